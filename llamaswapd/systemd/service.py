"""Our own side of being a service: what systemd handed us, and what we tell it.

Variables are taken out of the environment when they are read, so that no child inherits them. Everything here does
nothing, harmlessly, when we were not started by systemd.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import NamedTuple

import sdnotify  # type: ignore[import-untyped]

from llamaswapd.errors import UsageError

FIRST_PASSED_FD = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)
UNNAMED = "unknown"  # sd_listen_fds_with_names(3)
LISTEN_STREAM = "use ListenStream= in the socket unit"


class Notifier:
    """Tells the service manager how we are; see sd_notify(3), sd_watchdog_enabled(3)."""

    def __init__(self) -> None:
        # The library gives up on a missing variable only after it has opened a socket, which it then leaks.
        self._notifier = sdnotify.SystemdNotifier() if os.environ.get("NOTIFY_SOCKET") else None
        os.environ.pop("NOTIFY_SOCKET", None)
        limit_us = int(os.environ.pop("WATCHDOG_USEC", None) or 0)
        is_ours = os.environ.pop("WATCHDOG_PID", None) in (None, str(os.getpid()))
        self.watchdog_interval_s = limit_us / 1e6 / 3 if is_ours else 0.0  # 0: nobody watches

    def ready(self) -> None:
        self._send("READY=1")

    def reloading(self) -> None:
        """Say that a reload has begun; `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """Show one line in `systemctl status`."""
        self._send(f"STATUS={text}")

    def watchdog(self) -> None:
        """Say that we are alive; due every `watchdog_interval_s`."""
        self._send("WATCHDOG=1")

    def close(self) -> None:
        if self._notifier and self._notifier.socket:
            self._notifier.socket.close()

    def _send(self, state: str) -> None:
        if self._notifier:
            # The library encodes in Latin-1 where systemd expects UTF-8.
            self._notifier.notify(state.encode().decode("latin-1"))


class Passed(NamedTuple):
    """A listening socket that a socket unit passed to us, and its FileDescriptorName=."""

    name: str
    socket: socket.socket

    def speaks_tls(self, *, has_certificate: bool) -> bool:
        """Whether HTTPS is spoken on it: `https` and `http` say so, any other name leaves it to the certificate.

        Raises UsageError where a certificate is missing.
        """
        if self.name == "https" and not has_certificate:
            raise UsageError(
                "a socket unit passes a socket with FileDescriptorName=https, but there is no certificate; "
                "give -tls-cert-file and -tls-key-file, or name the socket http"
            )
        return has_certificate and self.name != "http"


def passed_sockets() -> list[Passed]:
    """Return what socket units passed to us, in their order; sd_listen_fds_with_names(3). Further calls return none.

    Raises UsageError for what is no listening stream socket, naming it and the remedy.
    """
    count = int(os.environ.pop("LISTEN_FDS", None) or 0)
    is_ours = os.environ.pop("LISTEN_PID", None) == str(os.getpid())
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")  # one for each, unless it was not systemd that set them
    os.environ.pop("LISTEN_PIDFDID", None)  # systemd 258: whom they are meant for, once more
    fds = range(FIRST_PASSED_FD, FIRST_PASSED_FD + count if is_ours else 0)
    for fd in fds:
        os.set_inheritable(fd, False)
    return [_passed(fd, name or UNNAMED) for fd, name in zip(fds, chain(names, repeat("")))]  # noqa: B905


def _passed(fd: int, name: str) -> Passed:
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        raise UsageError(f"{_what(fd, name)} is no socket; {LISTEN_STREAM}")
    passed = socket.socket(fileno=fd)
    if passed.type != socket.SOCK_STREAM or passed.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        passed.close()
        raise UsageError(f"{_what(fd, name)} is no TCP or UNIX stream socket; {LISTEN_STREAM}")
    if not passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        passed.close()
        raise UsageError(f"{_what(fd, name)} does not listen; {LISTEN_STREAM}, and Accept=no")
    passed.setblocking(False)
    return Passed(name, passed)


def _what(fd: int, name: str) -> str:
    return f"what a socket unit passes as file descriptor {fd} (FileDescriptorName={name})"


def runtime_path(instance: str) -> Path:
    """Return the directory in which an instance keeps what lasts as long as it runs.

    $RUNTIME_DIRECTORY (RuntimeDirectory= of a unit), else /run/llamaswapd for root and $XDG_RUNTIME_DIR/llamaswapd for
    others; below it `default` or the instance's name.
    """
    given = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    if given:
        return Path(given) / (instance or "default")
    own = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    return Path("/run" if os.geteuid() == 0 else own) / "llamaswapd" / (instance or "default")


def has_state_directory() -> bool:
    """Whether there is a place for what outlasts the runtime directory: StateDirectory= of a unit."""
    return bool(os.environ.get("STATE_DIRECTORY"))


def state_path(instance: str, runtime_dir: Path) -> Path:
    """Return the file in which an instance keeps what its next daemon should know."""
    if not has_state_directory():
        return runtime_dir / "state.json"
    name = f"state-{instance}.json" if instance else "state.json"
    return Path(os.environ["STATE_DIRECTORY"].split(":")[0]) / name


@contextlib.contextmanager
def runtime_directory(instance: str) -> Iterator[Path]:
    """Yield `runtime_path`, made for its user only; remove it again, and the one above if it is ours, when empty."""
    directory = runtime_path(instance)
    is_ours = not directory.parent.exists() or not os.environ.get("RUNTIME_DIRECTORY")
    remedy = "set $RUNTIME_DIRECTORY to a directory that is yours"
    try:
        for path in (directory.parent, directory):
            path.mkdir(mode=0o700, exist_ok=True)
            if path.lstat().st_uid not in (0, os.geteuid()):  # who owns it could put what they like in our place
                raise UsageError(f"the runtime directory {path} belongs to another user; {remedy}")
    except OSError as error:
        raise UsageError(f"cannot make the runtime directory {directory}: {error.strerror}; {remedy}") from error
    try:
        yield directory
    finally:
        for path in (directory, directory.parent) if is_ours else (directory,):
            with contextlib.suppress(OSError):  # not empty: somebody else's things are left alone
                path.rmdir()


@contextlib.contextmanager
def instance_lock(runtime_dir: Path) -> Iterator[None]:
    """Hold what only one daemon of an instance can hold; raise UsageError naming the other's pid."""
    path = runtime_dir / "lock"
    lock = _lock(path)
    try:
        os.truncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is still ours
        os.close(lock)


def _lock(path: Path) -> int:
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before us removes the file when it leaves: what we locked must still be what others will find.
            if os.path.exists(path) and os.path.samestat(os.fstat(lock), os.stat(path)):
                return lock
        except BlockingIOError:
            other = os.read(lock, 32).decode(errors="replace").strip() or "unknown"
            os.close(lock)
            raise UsageError(
                f"another llamaswapd of this instance is running, pid {other} (lock {path}); "
                "stop it, or give this one a name of its own with --instance"
            ) from None
        except FileNotFoundError:
            pass  # removed between the two looks
        os.close(lock)
