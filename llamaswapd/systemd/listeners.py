"""Who listens on a local TCP port, as far as /proc shows it to us.

A socket is known by its inode: /proc/net/tcp maps ports to inodes, /proc/PID/fd inodes to processes; proc(5).
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

LISTEN = "0A"  # TCP_LISTEN, include/net/tcp_states.h

# A container client's server runs in a cgroup of the container runtime, not in that of the client's unit.
CONTAINER_CLIENTS = {"docker", "nerdctl", "podman"}
CONTAINER_CGROUPS = re.compile(r"docker|containerd|libpod|conmon|machine\.slice")


@dataclass(frozen=True)
class Listener:
    """A listening socket: its inode, and the user who made it."""

    inode: str
    uid: int


def listeners(port: int) -> list[Listener]:
    """Return the sockets that answer on a TCP port of the loopback addresses (of our network namespace)."""
    found = []
    suffix = f":{port:04X}"
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(FileNotFoundError), open(table, encoding="ascii") as lines:
            for line in lines:
                if suffix not in line:
                    continue
                _, local, _, state, _, _, _, uid, _, inode, *_ = line.split()
                if state == LISTEN and local.endswith(suffix) and _is_local(local.partition(":")[0]):
                    found.append(Listener(inode, int(uid)))
    return found


def stranger(port: int, cgroup: Path, program: str) -> str | None:
    """Say who listens on a port, if that is no process in `cgroup`, whose main program is `program`.

    None when nobody listens, when the cgroup's processes do, or when it cannot be seen. Blocks for milliseconds.
    """
    found = listeners(port)
    if not found:
        return None
    inodes = {listener.inode for listener in found}
    try:
        own = _pids(cgroup)
        if any(inodes & _sockets(pid) for pid in own):
            return None
    except PermissionError:
        return None
    return holder(found, program) if own else None


def holder(found: Iterable[Listener], program: str = "") -> str | None:
    """Name who holds one of these sockets: `process 4711 (python3) of unit other.service`.

    None when that is a container runtime and `program` its client: it holds the socket in the client's stead.
    """
    by_inode = {listener.inode: listener for listener in found}
    for pid in _all_pids():
        try:
            if not by_inode.keys() & _sockets(pid):
                continue
            cgroup = _cgroup(pid)
            if os.path.basename(program) in CONTAINER_CLIENTS and CONTAINER_CGROUPS.search(cgroup):
                return None
            return f"process {pid} ({_name(pid)}){_of_unit(cgroup)}"
        except PermissionError:
            continue
    users = sorted({_user(listener.uid) for listener in by_inode.values()})
    return f"a process of user {' or '.join(users)} that cannot be seen from here"


def _pids(cgroup: Path) -> list[int]:
    """Return the processes in a cgroup and those below it; none when it does not exist."""
    pids: list[int] = []
    for folder, _, _ in os.walk(cgroup):
        with contextlib.suppress(OSError):  # a cgroup may go, a threaded one has no list
            pids.extend(map(int, Path(folder, "cgroup.procs").read_text().split()))
    return pids


def _all_pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _sockets(pid: int) -> set[str]:
    """Return the inodes of a process's sockets; raises PermissionError."""
    inodes = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):  # it closed it
                target = os.readlink(f"/proc/{pid}/fd/{fd}")
                if target.startswith("socket:["):
                    inodes.add(target[len("socket:[") : -1])
    return inodes


def _cgroup(pid: int) -> str:
    """Return a process's cgroup in the hierarchy that tells most: cgroup v2's or systemd's own; cgroups(7)."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return ""
    entries = (line.split(":", 2) for line in lines)
    return max((path for _, controllers, path in entries if controllers in ("", "name=systemd")), key=len, default="")


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return "ended"


def _of_unit(cgroup: str) -> str:
    units = re.findall(r"[^/]+\.(?:service|scope)(?=/|$)", cgroup)
    return f" of unit {units[-1]}" if units else ""


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _is_local(hexadecimal: str) -> bool:
    """Say whether a connection to a loopback address may end at a socket bound to this address.

    The kernel prints 32-bit words, each in the byte order of the machine.
    """
    words = (int(hexadecimal[i : i + 8], 16) for i in range(0, len(hexadecimal), 8))
    address = ip_address(b"".join(word.to_bytes(4, sys.byteorder) for word in words))
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_loopback or mapped.is_unspecified)
