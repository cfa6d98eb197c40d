"""What types cannot say, section by section: each rule takes the decoded configuration and yields what breaks it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from llamaswapd.config.tree import Path

Problems: TypeAlias = Iterator[tuple[Path, str]]
