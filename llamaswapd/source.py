"""Where does the configuration come from: from files that we read, or from the launcher, who reads them for us?"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from llamaswapd.config import credentials, wire
from llamaswapd.config.load import Loaded, load, sources
from llamaswapd.config.schema import Config
from llamaswapd.errors import ConfigError, Problem
from llamaswapd.systemd.delegation import DelegatingManager


class Source(Protocol):
    """Where the configuration comes from."""

    async def read(self, ports: Mapping[str, int] = MappingProxyType({})) -> Loaded:
        """Read the configuration; models in `ports` keep these. Raises ConfigError."""

    def watched(self) -> list[Path]:
        """Return the files to watch for changes, and the directories in which more may appear."""


@dataclass(frozen=True)
class Files:
    """We read it ourselves."""

    files: tuple[Path, ...]
    config_dir: Path | None

    async def read(self, ports: Mapping[str, int] = MappingProxyType({})) -> Loaded:
        return await asyncio.to_thread(load, self.files, self.config_dir, ports=ports)

    def watched(self) -> list[Path]:
        """Return the files of the configuration, and the directory in which more may appear."""
        try:
            found = sources(self.files, self.config_dir)
        except ConfigError:  # the directory has gone, or holds no file: it may come back
            found = [*self.files]
        return [*found, *([self.config_dir] if self.config_dir else [])]


@dataclass(frozen=True)
class Launcher:
    """The launcher reads it, and tells us what we may know."""

    manager: DelegatingManager

    async def read(self, ports: Mapping[str, int] = MappingProxyType({})) -> Loaded:
        text, warnings = await self.manager.load(ports)
        return Loaded(await asyncio.to_thread(_resolved, text), tuple(Problem("", "", warning) for warning in warnings))

    def watched(self) -> list[Path]:
        return []  # they may not even be visible


def _resolved(text: str) -> Config:
    """Return a configuration that the launcher has told, with what is only ours to know."""
    return wire.from_launcher(text, os.environ, credentials.read(os.environ.get("CREDENTIALS_DIRECTORY", "")))
