"""What a process does to itself before it becomes the private manager.

Run as a program of its own, by path and with nothing but the standard library, so that it is up at once and no thread
of the daemon is ever forked. It enters its cgroup, gives itself a mount and a cgroup namespace, and executes
`systemd --user`. File descriptor 3 is a pipe to the daemon: `ERRNO WHAT`, or closed without a word by the exec.
"""

from __future__ import annotations

import ctypes
import os
import re
import socket
import sys
import uuid
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

# sched.h, sys/mount.h; os.unshare comes with Python 3.12 only.
CLONE_NEWNS, CLONE_NEWCGROUP = 0x00020000, 0x02000000
MS_BIND, MS_REC, MS_SLAVE = 0x1000, 0x4000, 0x80000

REPORT_FD = 3

# Entries of /run that belong to a system's own systemd, logins, journal and bus.
HIDDEN_IN_RUN = ("dbus", "log", "systemd", "user")

# journald's settings, as a drop-in that sorts behind all others. `Audit=` empty: leave the kernel's auditing alone.
JOURNALD_CONF = """[Journal]
Storage=volatile
RuntimeMaxUse=64M
RateLimitIntervalSec=0
RateLimitBurst=0
ReadKMsg=no
Audit=
ForwardToSyslog=no
ForwardToKMsg=no
ForwardToConsole=no
ForwardToWall=no
"""

libc = ctypes.CDLL(None, use_errno=True)


def main(runtime_dir: Path, cgroup: Path, systemd: str) -> None:
    """Become the private manager; never returns."""
    os.set_inheritable(REPORT_FD, False)
    os.closerange(REPORT_FD + 1, 2**31 - 1)
    inside = Path(f"/run/user/{os.getuid()}")  # what `runtime_dir` is called from here on

    # The cgroup comes before its namespace: where a process stands when it unshares becomes the namespace's root.
    enter(cgroup)
    check(libc.unshare(CLONE_NEWNS | CLONE_NEWCGROUP), "unshare")
    # Slave: what the host mounts and unmounts later is seen here, and nothing from here is seen there.
    mount("none", "/", flags=MS_REC | MS_SLAVE)
    # Bound and not mounted anew: the kernel refuses a file system on top of itself, as /sys/fs/cgroup often is.
    mount(cgroup, "/sys/fs/cgroup", flags=MS_BIND)
    # journald takes PID 1's cgroup for the root of all, and since systemd 257 does not start if that is out of sight.
    (runtime_dir / "init-cgroup").write_text("0::/init.scope\n")
    mount(runtime_dir / "init-cgroup", "/proc/1/cgroup", flags=MS_BIND)
    provide_machine_id(held(runtime_dir))
    replace_run(held(runtime_dir), inside)

    own = Path("/sys/fs/cgroup", own_unit())
    enter(own)
    for ancestor in reversed(own.relative_to("/sys/fs/cgroup").parents):
        enable_controllers("/sys/fs/cgroup" / ancestor)
    # Bound here and found by systemd among its file descriptors, so that its first words are in the journal.
    listen(Path("/run/systemd/journal/stdout"), socket.SOCK_STREAM)
    listen(Path("/run/systemd/journal/socket"), socket.SOCK_DGRAM)
    listen(Path("/run/systemd/journal/dev-log"), socket.SOCK_DGRAM)

    units = (inside / "systemd/transient", inside / "systemd/user.control", Path("/etc/systemd/user"), inside / "units")
    os.environ.update(
        XDG_RUNTIME_DIR=str(inside),
        DBUS_SESSION_BUS_ADDRESS=f"unix:path={inside}/bus",
        SYSTEMD_UNIT_PATH=":".join(map(str, units)),
        SYSTEMD_GENERATOR_PATH=f"{inside}/none",
        SYSTEMD_ENVIRONMENT_GENERATOR_PATH=f"{inside}/none",
    )
    os.execv(systemd, [systemd, "--user", "--unit=llamaswapd.target", "--log-target=journal"])


def own_unit() -> str:
    """Return where a user manager is in the tree of cgroups: from this journald knows user, unit and invocation."""
    uid = os.getuid()
    return f"user.slice/user-{uid}.slice/user@{uid}.service"


def enter(cgroup: Path) -> None:
    (cgroup / "cgroup.procs").write_text("0")


def enable_controllers(cgroup: Path) -> None:
    """Hand down every controller that can be had; without them limits are silently without effect."""
    for controller in (cgroup / "cgroup.controllers").read_text().split():
        with suppress(OSError):
            (cgroup / "cgroup.subtree_control").write_text(f"+{controller}")


def mount(source: str | Path, target: str | Path, kind: str = "", flags: int = 0, data: str = "") -> None:
    arguments = (os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), data.encode())
    check(libc.mount(*arguments), f"mount {target}")


def check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def held(directory: Path) -> Path:
    """Return a path to a directory that stays right when something is mounted over it or above it."""
    return Path(f"/proc/self/fd/{os.open(directory, os.O_PATH | os.O_DIRECTORY)}")


def rebuild(directory: Path, hidden: Collection[str] = ()) -> Path:
    """Replace a directory by a tmpfs with all its entries but the hidden ones: links copied, the rest bound.

    Returns a path to the directory as it was.
    """
    old = held(directory)
    mount("tmpfs", directory, kind="tmpfs", data="mode=755")
    for entry in old.iterdir():
        if entry.name not in hidden:
            with suppress(FileNotFoundError):  # gone since it was listed
                bind(entry, directory / entry.name)
    return old


def bind(source: Path, target: Path) -> None:
    if source.is_symlink():
        target.symlink_to(source.readlink())
        return
    target.mkdir(parents=True) if source.is_dir() else target.touch()
    mount(source, target, flags=MS_BIND | MS_REC)


def replace_run(runtime_dir: Path, inside: Path) -> None:
    """Give this namespace a /run in which a system booted with systemd has nothing running yet."""
    run = Path("/run")
    old = rebuild(run, HIDDEN_IN_RUN)
    for made in (inside, run / "systemd/journal", run / "systemd/journald.conf.d", run / "systemd/system"):
        made.mkdir(parents=True)
    (run / "systemd/journald.conf.d/zzz-llamaswapd.conf").write_text(JOURNALD_CONF)
    resolve = old / "systemd/resolve"  # where /etc/resolv.conf points to with systemd-resolved
    if resolve.is_dir():
        bind(resolve, run / "systemd/resolve")
    mount(runtime_dir, inside, flags=MS_BIND)
    bind(runtime_dir / "journal", run / "log/journal")


def provide_machine_id(runtime_dir: Path) -> None:
    """journald does not start without a machine id, and names its folder after it; containers often have none."""
    machine_id = Path("/etc/machine-id")
    with suppress(FileNotFoundError):
        if re.fullmatch(r"[0-9a-f]{32}\n?", machine_id.read_text()):
            return
    made = runtime_dir / "machine-id"
    made.write_text(f"{uuid.uuid4().hex}\n")
    if machine_id.exists():
        mount(made, machine_id, flags=MS_BIND)
    else:
        rebuild(machine_id.parent)
        bind(made, machine_id)


def listen(path: Path, kind: socket.SocketKind) -> None:
    """Bind a socket and leave it open across the exec, for the manager's socket unit of this path."""
    bound = socket.socket(socket.AF_UNIX, kind)
    # The sender's credentials are in a message only if this was set before it was sent; journald needs them.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    bound.bind(str(path))
    path.chmod(0o666)
    if kind == socket.SOCK_STREAM:
        bound.listen(4096)
    os.set_inheritable(bound.detach(), True)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    except OSError as error:
        os.write(REPORT_FD, f"{error.errno} {error.filename}".encode())
        sys.exit(1)
