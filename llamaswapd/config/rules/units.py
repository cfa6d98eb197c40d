"""Rules of `systemd`, at the top and in models."""

from __future__ import annotations

from collections.abc import Mapping

from llamaswapd.config import settings
from llamaswapd.config.rules import Problems


def unit_settings(block: Mapping[str, tuple[str, ...]]) -> Problems:
    for name, values in block.items():
        for problem in settings.check(name, values):
            yield ("systemd", name), problem
