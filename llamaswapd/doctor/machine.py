"""The machine as the doctor looks at it: files below a root directory, accounts, ports, programs to ask.

Tests replace any part. What may not be looked at raises Unseen, which is a finding of its own kind.
"""

from __future__ import annotations

import grp
import os
import pwd
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from llamaswapd.systemd import listeners

T = TypeVar("T")

ANSWER_S = 5.0  # for any program that is asked

_ACL = "system.posix_acl_access"  # xattr(7), acl(5)


class Unseen(Exception):
    """The path cannot be looked at by whoever runs this."""


@dataclass(frozen=True)
class User:
    name: str
    uid: int
    gids: frozenset[int]
    home: str = ""


def _user(name: str) -> User | None:
    try:
        entry = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except KeyError:
        return None
    return User(entry.pw_name, entry.pw_uid, frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid)), entry.pw_dir)


def _group(name: str) -> int | None:
    if name.isdecimal():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _ask(command: Sequence[str]) -> str | None:
    """Return what a program prints; None if it is missing, fails, or has not ended in time."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _holder(port: int) -> str | None:
    return listeners.holder(found) if (found := listeners.listeners(port)) else None


@dataclass(frozen=True)
class Machine:
    root: Path = Path("/")
    uid: int = field(default_factory=os.geteuid)  # of whoever asks
    user: Callable[[str], User | None] = _user  # by name or number
    group: Callable[[str], int | None] = _group
    group_name: Callable[[int], str] = _group_name
    ask: Callable[[Sequence[str]], str | None] = _ask
    holder: Callable[[int], str | None] = _holder  # of a TCP port; None: it is free

    def path(self, name: str) -> Path:
        return self.root / name.lstrip("/")

    def lstat(self, name: str) -> os.stat_result:
        """Raises Unseen, and OSError for what does not exist."""
        return self._seen(name, lambda path: path.lstat())

    def readlink(self, name: str) -> str:
        return self._seen(name, lambda path: os.readlink(path))

    def acl(self, name: str) -> bytes:
        """Return the access control list of a file as the kernel keeps it; empty without one."""
        try:
            return os.getxattr(self.path(name), _ACL, follow_symlinks=False)
        except OSError:  # it has none, its file system has none
            return b""

    def text(self, name: str) -> str:
        """Return what is in a file, "" if it does not exist. Raises Unseen."""
        try:
            return self._seen(name, lambda path: path.read_text(errors="replace"))
        except OSError:
            return ""

    def head(self, name: str, size: int) -> bytes:
        """Return the first bytes of a file, none if it cannot be read."""
        try:
            with self.path(name).open("rb") as file:
                return file.read(size)
        except OSError:
            return b""

    def names(self, folder: str) -> list[str]:
        """Return what is in a folder, sorted; nothing if it does not exist. Raises Unseen."""
        try:
            return sorted(self._seen(folder, lambda path: os.listdir(path)))
        except OSError:
            return []

    def exists(self, name: str) -> bool:
        """Say whether there is something at a path, links followed below the root. Raises Unseen."""
        try:
            self._seen(name, lambda path: path.stat())
        except OSError:
            return False
        return True

    def glob(self, pattern: str) -> list[str]:
        """Return the paths that match, as names of the machine; without what may not be looked at."""
        return sorted(f"/{path.relative_to(self.root)}" for path in self.root.glob(pattern.lstrip("/")))

    def space(self, name: str) -> tuple[int, int] | None:
        """Return bytes free for others than root, and of how many; None where it cannot be seen."""
        try:
            found = os.statvfs(self.path(name))
        except OSError:
            return None
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize

    def is_noexec(self, name: str) -> bool:
        """Say whether a file is on a file system of which nothing can be executed."""
        try:
            return bool(os.statvfs(self.path(name)).f_flag & os.ST_NOEXEC)
        except OSError:
            return False

    def _seen(self, name: str, look: Callable[[Path], T]) -> T:
        try:
            return look(self.path(name))
        except PermissionError:
            raise Unseen(name) from None
