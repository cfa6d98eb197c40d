"""The programs that the suite of the HTTP contract asks: few, because each takes a second to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from blackbox import Program, echo, serving

from llamaswapd.systemd.private import PrivateManager

TOGETHER = {"swap": False, "exclusive": False}


@pytest.fixture(scope="session")
def house(private: PrivateManager) -> Iterator[Program]:
    """A program without keys, with models that run side by side."""
    models = {
        "m": echo(aliases=["alias", "other/alias"]),
        "n": echo(),
    }
    with serving({"models": models, "groups": {"all": {**TOGETHER, "members": [*models]}}}) as program:
        yield program
