"""What only root may read, in a directory of the launcher's own: the models' environments, the key of fingerprints.

    env/UNIT    environment of a model, see `systemd.environments`
    key         of this boot; see `config.fingerprint`
    config      the configurations that the front half was told, with everything that it was not told

It outlives the launcher (RuntimeDirectoryPreserve=).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from llamaswapd import __version__
from llamaswapd.config.schema import Config, Section
from llamaswapd.systemd.environments import Environments, remove_unfinished, write_private

KEY_BYTES = 32


class Told(NamedTuple):
    """A configuration that the front half was told, and when, in CLOCK_MONOTONIC seconds."""

    config: Config
    at: float


class Secrets:
    """The directory; its methods block for as long as a file system in memory does."""

    def __init__(self, directory: Path) -> None:
        """Make what is missing, and remove what one that was killed had not written to its end. Raises OSError."""
        self.environments = Environments(directory / "env")
        self._key = directory / "key"
        self._config = directory / "config"
        remove_unfinished(directory)

    def key(self) -> bytes:
        """Return the key, the same until the machine is started again."""
        with suppress(FileNotFoundError):
            key = self._key.read_bytes()
            if len(key) == KEY_BYTES:
                return key
        key = secrets.token_bytes(KEY_BYTES)
        write_private(self._key, key)
        return key

    def keep_configs(self, told: Sequence[Told]) -> None:
        """Keep what a launcher after us should start models by, whatever the files say then."""
        write_private(self._config, json.dumps([__version__, told], default=Section.said).encode())

    def kept_configs(self) -> list[Told]:
        """Return what was kept, nothing if that was by another version of the program."""
        with suppress(FileNotFoundError, ValueError):
            version, told = json.loads(self._config.read_bytes())
            if version == __version__:
                return [Told(Config(**config), at) for config, at in told]
        return []
