"""Who listens on a local TCP port, as far as the kernel shows it to us.

A socket is known by its inode: sock_diag(7) or /proc/net/tcp map ports to inodes, /proc/PID/fd inodes to processes;
proc(5). Where processes are hidden from us, sock_diag still tells in which cgroup a socket was made.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

LISTEN = 10  # TCP_LISTEN, include/net/tcp_states.h

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h
NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
_MESSAGE = struct.Struct("=IHHII")  # nlmsghdr: length with this header, type, flags, sequence number, port
_ERROR = struct.Struct("=i")  # errno, negative; 0 for none
_ASKED = struct.Struct("=BBBxI2s46x")  # inet_diag_req_v2: family, protocol, extensions, states (bits); source port
_FOUND = struct.Struct("=4x4x16s16x12x12xII")  # inet_diag_msg: source address; uid, inode
_ATTRIBUTE = struct.Struct("=HH")  # rtattr: length with this header, type
INET_DIAG_CGROUP_ID = 21  # u64, since Linux 5.7

# A container client's server runs in a cgroup of the container runtime, not in that of the client's unit.
CONTAINER_CLIENTS = {"docker", "nerdctl", "podman"}
CONTAINER_CGROUPS = re.compile(r"docker|containerd|libpod|conmon|machine\.slice")

Address = IPv4Address | IPv6Address


@dataclass(frozen=True)
class Listener:
    """A listening socket: its inode, the user who made it, and the cgroup it was made in."""

    inode: str
    uid: int
    # Inode of the cgroup's folder in the unified hierarchy, cgroups(7); 0 where it is not told.
    cgroup: int = field(default=0, compare=False)


def listeners(port: int) -> list[Listener]:
    """Return the sockets that answer on a TCP port of the loopback addresses (of our network namespace)."""
    try:
        found = [*_ask(port, socket.AF_INET), *_ask(port, socket.AF_INET6)]
    except OSError:  # a sandbox that keeps netlink from us, a kernel without inet_diag
        found = list(_look_up(port))
    return [listener for address, listener in found if _is_local(address)]


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
        if any(os.path.exists(f"/proc/{pid}") for pid in own):
            return None if any(inodes & _sockets(pid) for pid in own) else holder(found, program)
    except PermissionError:
        pass
    # ProtectProc= hides them, or they have ended.
    is_others = _is_from_elsewhere(found, cgroup) and os.path.basename(program) not in CONTAINER_CLIENTS
    return holder(found, program) if is_others else None


def _is_from_elsewhere(found: Iterable[Listener], cgroup: Path) -> bool:
    """Whether surely none of these sockets was made in the cgroup or below it."""
    if not (cgroup / "cgroup.controllers").exists():
        return False  # it has gone, or is of the old hierarchy, in which sockets are not
    own = set()
    for folder, _, _ in os.walk(cgroup):
        with contextlib.suppress(FileNotFoundError):  # it has gone just now
            own.add(os.stat(folder).st_ino)
    return bool(own) and all(listener.cgroup and listener.cgroup not in own for listener in found)


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


def _is_local(address: Address) -> bool:
    """Say whether a connection to a loopback address may end at a socket bound to this address."""
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_loopback or mapped.is_unspecified)


# ---- all listeners of a port, with the addresses they are bound to


def _ask(port: int, family: socket.AddressFamily) -> Iterator[tuple[Address, Listener]]:
    """Ask the kernel, sock_diag(7); raises OSError where it does not tell.

    It looks at listening sockets only. /proc/net/tcp comes with all connections, also those that have ended within the
    last minute (TIME_WAIT): with 20,000 of them it takes 33 ms to read, and this 0.05 ms.
    """
    asked = _ASKED.pack(family, socket.IPPROTO_TCP, 0, 1 << LISTEN, port.to_bytes(2, "big"))
    head = _MESSAGE.pack(_MESSAGE.size + len(asked), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as kernel:
        kernel.send(head + asked)
        while True:
            for kind, content in _messages(kernel.recv(65536)):
                if kind in (NLMSG_DONE, NLMSG_ERROR):
                    if error := -_ERROR.unpack_from(content)[0]:
                        raise OSError(error, os.strerror(error))
                    return
                source, uid, inode = _FOUND.unpack_from(content)
                made_by = Listener(str(inode), uid, _cgroup_id(content[_FOUND.size :]))
                yield ip_address(source[:4] if family is socket.AF_INET else source), made_by


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and content of the netlink messages in a datagram; netlink(7)."""
    at = 0
    while at < len(data):
        size, kind, *_ = _MESSAGE.unpack_from(data, at)
        yield kind, data[at + _MESSAGE.size : at + size]
        at += (size + 3) & ~3


def _cgroup_id(attributes: bytes) -> int:
    """Return the inode of the cgroup among a socket's attributes, 0 if it is not there.

    Where inode numbers have 32 bits, the upper half counts how often one has been used.
    """
    at = 0
    while at + _ATTRIBUTE.size <= len(attributes):
        size, kind = _ATTRIBUTE.unpack_from(attributes, at)
        if kind == INET_DIAG_CGROUP_ID:
            id_ = int.from_bytes(attributes[at + _ATTRIBUTE.size : at + size], sys.byteorder)
            return id_ if sys.maxsize > 2**32 else id_ & 0xFFFFFFFF
        at += max((size + 3) & ~3, _ATTRIBUTE.size)
    return 0


def _look_up(port: int) -> Iterator[tuple[Address, Listener]]:
    """Read /proc/net/tcp, which lists the connections as well; proc(5)."""
    suffix, listening = f":{port:04X}", f"{LISTEN:02X}"
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(FileNotFoundError), open(table, encoding="ascii") as lines:
            for line in lines:
                if suffix not in line:
                    continue
                _, local, _, state, _, _, _, uid, _, inode, *_ = line.split()
                if state == listening and local.endswith(suffix):
                    yield _address(local.partition(":")[0]), Listener(inode, int(uid))


def _address(hexadecimal: str) -> Address:
    """Read an address as the kernel prints it: 32-bit words, each in the byte order of the machine."""
    words = (int(hexadecimal[i : i + 8], 16) for i in range(0, len(hexadecimal), 8))
    return ip_address(b"".join(word.to_bytes(4, sys.byteorder) for word in words))
