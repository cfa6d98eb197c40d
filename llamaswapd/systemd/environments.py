"""The environments of models on the system's manager: files that systemd reads, and nobody else but root.

On the bus every local user could read a unit's `Environment=`. systemd reads the file whenever it runs a command of the
unit, so also for `cmdStop`, which is why it stays as long as the unit.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from llamaswapd.errors import NotStarted


class Environments:
    """A directory with one file for each unit; its methods block for as long as a file system in memory does."""

    def __init__(self, directory: Path) -> None:
        """Make it if it is missing, and remove what one that was killed had not written to its end. Raises OSError."""
        self.directory = directory
        directory.mkdir(mode=0o700, exist_ok=True)
        remove_unfinished(directory)

    def keep(self, unit: str, text: str) -> None:
        """Have systemd find this environment, in the format of systemd.exec(5), EnvironmentFile=. Raises NotStarted."""
        try:
            write_private(self.directory / unit, text.encode())
        except OSError as error:
            what = f"the environment of {unit} cannot be written to {self.directory}: {error.strerror}"
            raise NotStarted(f"{what}; see what fills it with df {self.directory}") from error

    def forget(self, unit: str) -> None:
        """Remove a unit's environment, if there is one."""
        (self.directory / unit).unlink(missing_ok=True)

    def forget_others(self, units: Collection[str]) -> None:
        """Remove the environments of all units but these."""
        for path in self.directory.iterdir():
            if path.name not in units:
                path.unlink()

    def remove_if_empty(self) -> None:
        """Remove the directory, if no unit's environment is in it."""
        with suppress(OSError):
            self.directory.rmdir()


def write_private(path: Path, content: bytes) -> None:
    """Replace a file in one step: what is there is whole, and was never anybody else's to read."""
    # A hidden name, which no unit has.
    new = path.with_name(f".{secrets.token_hex(8)}")
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def remove_unfinished(directory: Path) -> None:
    """Remove what `write_private` had not come to replace."""
    for half in directory.glob(".*"):
        half.unlink(missing_ok=True)
