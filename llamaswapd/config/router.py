"""Which groups or which matrix decide who makes room; they may be written in two places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llamaswapd.config.schema import Config, Group, Matrix
from llamaswapd.config.tree import Path

ROUTED: Path = ("routing", "router", "settings")


@dataclass(frozen=True)
class InUse:
    """What decides, and below which path it is written. With a matrix there are no groups."""

    groups: Mapping[str, Group]
    matrix: Matrix | None
    path: Path


def in_use(config: Config) -> InUse:
    """Return what applies in a configuration as written; the top-level keys win, though nobody may write both."""
    if config.matrix is not None:
        return InUse({}, config.matrix, ())
    if config.groups:
        return InUse(config.groups, None, ())
    settings = config.routing.router.settings
    if config.routing.router.use == "matrix" and settings.matrix is not None:
        return InUse({}, settings.matrix, ROUTED)
    return InUse(settings.groups, None, ROUTED)
