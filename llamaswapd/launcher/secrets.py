"""What only root may read, in a directory of the launcher's own: the models' environments, the key of fingerprints.

    env/UNIT    environment of a model, for systemd to read: on the bus every local user could read it
    key         of this boot; see `config.fingerprint`
    config      the configurations that the front half was told, with everything that it was not told

It outlives the launcher (RuntimeDirectoryPreserve=). systemd reads an environment whenever it runs a command of the
unit, so also for `cmdStop`, which is why the file stays as long as the unit.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from llamaswapd import __version__
from llamaswapd.config.schema import Config, Section

KEY_BYTES = 32


class Told(NamedTuple):
    """A configuration that the front half was told, and when, in CLOCK_MONOTONIC seconds."""

    config: Config
    at: float


class Secrets:
    """The directory; its methods block for as long as a file system in memory does."""

    def __init__(self, directory: Path) -> None:
        """Make what is missing, and remove what one that was killed had not written to its end. Raises OSError."""
        self.environments = directory / "env"
        self._key = directory / "key"
        self._config = directory / "config"
        self.environments.mkdir(mode=0o700, exist_ok=True)
        for folder in (directory, self.environments):
            for half in folder.glob(".*"):
                half.unlink(missing_ok=True)

    def key(self) -> bytes:
        """Return the key, the same until the machine is started again."""
        with suppress(FileNotFoundError):
            key = self._key.read_bytes()
            if len(key) == KEY_BYTES:
                return key
        key = secrets.token_bytes(KEY_BYTES)
        _write(self._key, key)
        return key

    def keep_configs(self, told: Sequence[Told]) -> None:
        """Keep what a launcher after us should start models by, whatever the files say then."""
        _write(self._config, json.dumps([__version__, told], default=Section.said).encode())

    def kept_configs(self) -> list[Told]:
        """Return what was kept, nothing if that was by another version of the program."""
        with suppress(FileNotFoundError, ValueError):
            version, told = json.loads(self._config.read_bytes())
            if version == __version__:
                return [Told(Config(**config), at) for config, at in told]
        return []

    def keep_environment(self, unit: str, text: str) -> None:
        _write(self.environments / unit, text.encode())

    def forget_environment(self, unit: str) -> None:
        (self.environments / unit).unlink(missing_ok=True)

    def forget_others(self, units: Collection[str]) -> None:
        """Remove the environments of all units but these."""
        for path in self.environments.iterdir():
            if path.name not in units:
                path.unlink()


def _write(path: Path, content: bytes) -> None:
    """Replace a file in one step: what is there is whole, and was never anybody else's to read."""
    # A hidden name, which no unit has.
    new = path.with_name(f".{secrets.token_hex(8)}")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    new.replace(path)
