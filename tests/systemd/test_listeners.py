"""Who listens on a port, with real sockets and real processes. Our own cgroup stands in for a unit's."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llamaswapd.systemd import listeners

PROGRAM = "/usr/bin/server"
IPPROTO_MPTCP = 262  # linux/in.h


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """A cgroup with a process of ours in a cgroup below it, as far as its files tell."""
    child = tmp_path / "payload"
    child.mkdir()
    (tmp_path / "cgroup.procs").write_text("")
    (child / "cgroup.procs").write_text(f"{os.getpid()}\n")
    return tmp_path


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A cgroup with one process, which listens on nothing."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "cgroup.procs").write_text(f"{os.getppid()}\n")
    return folder


@pytest.fixture
def own_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def stranger() -> Iterator[tuple[int, int]]:
    """(pid, port) of another process that listens."""
    code = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        yield process.pid, int(process.stdout.readline())
        process.kill()


@pytest.fixture
def no_netlink(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and no netlink socket can be made any more, as with RestrictAddressFamilies=AF_INET AF_INET6."""

    class Socket(socket.socket):
        def __init__(self, family: int = -1, *arguments: int, **options: Any) -> None:
            if family == socket.AF_NETLINK:
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            super().__init__(family, *arguments, **options)

    return lambda: monkeypatch.setattr(socket, "socket", Socket)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_a_port_of_the_units_own_processes_has_no_stranger(unit: Path, own_port: int) -> None:
    assert listeners.stranger(own_port, unit, PROGRAM) is None


def test_a_stranger_is_named_with_pid_and_program(unit: Path, stranger: tuple[int, int]) -> None:
    pid, port = stranger
    named = listeners.stranger(port, unit, PROGRAM)
    assert named is not None
    assert named.startswith(f"process {pid} (python")


def test_a_process_of_another_cgroup_is_a_stranger(elsewhere: Path, own_port: int) -> None:
    named = listeners.stranger(own_port, elsewhere, PROGRAM)
    assert named is not None
    assert named.startswith(f"process {os.getpid()} (")


def test_a_port_nobody_listens_on_has_no_stranger(unit: Path) -> None:
    assert listeners.stranger(free_port(), unit, PROGRAM) is None


def test_a_unit_whose_processes_cannot_be_listed_is_given_the_benefit_of_the_doubt(
    tmp_path: Path, stranger: tuple[int, int]
) -> None:
    assert listeners.stranger(stranger[1], tmp_path / "gone", PROGRAM) is None


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with ProtectProc=invisible: of a unit's processes nothing can be seen."""
    monkeypatch.setattr(listeners, "_pids", lambda cgroup: [])


def our_cgroup() -> Path:
    """Return the folder of the cgroup that our sockets are made in."""
    path = next((line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line[:3] == "0::"), None)
    root = next(Path(root) for root in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup") if Path(root).is_dir())
    if path is None or not (root / path.lstrip("/") / "cgroup.controllers").exists():
        pytest.skip("the unified hierarchy of cgroups is not mounted")
    return root / path.lstrip("/")


@pytest.mark.usefixtures("hidden")
@pytest.mark.parametrize("program", [PROGRAM, "/usr/bin/docker"])
def test_a_socket_that_was_made_in_another_cgroup_is_a_strangers(own_port: int, tmp_path: Path, program: str) -> None:
    our_cgroup()
    assert listeners.stranger(own_port, tmp_path, program) is None  # no cgroup
    (tmp_path / "cgroup.controllers").touch()
    said = listeners.stranger(own_port, tmp_path, program)
    assert (said is not None) == (program == PROGRAM)  # a container's server is not in its client's cgroup


@pytest.mark.usefixtures("hidden")
def test_a_socket_that_was_made_in_the_units_cgroup_or_below_it_is_no_strangers(own_port: int) -> None:
    ours = our_cgroup()
    assert listeners.stranger(own_port, ours, PROGRAM) is None
    if (ours.parent / "cgroup.controllers").exists():
        assert listeners.stranger(own_port, ours.parent, PROGRAM) is None


@pytest.mark.usefixtures("hidden")
@pytest.mark.parametrize("is_whole", [True, False])
def test_cgroups_may_go_while_they_are_looked_at(
    own_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_whole: bool
) -> None:
    our_cgroup()
    (tmp_path / "cgroup.controllers").touch()
    folders = [str(tmp_path / "gone"), *([] if is_whole else [str(tmp_path)])]
    monkeypatch.setattr(listeners.os, "walk", lambda top: [(folder, [], []) for folder in folders])
    assert (listeners.stranger(own_port, tmp_path, PROGRAM) is None) == is_whole


@pytest.mark.usefixtures("hidden")
def test_without_netlink_the_doubt_is_to_the_benefit(
    own_port: int, tmp_path: Path, no_netlink: Callable[[], None]
) -> None:
    (tmp_path / "cgroup.controllers").touch()
    no_netlink()
    assert listeners.stranger(own_port, tmp_path, PROGRAM) is None


@contextmanager
def listening_on(address: str, *, dual: bool = True) -> Iterator[int]:
    """Listen on an address; yields the port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as listener:
        if family is socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
        listener.bind((address, 0))
        listener.listen()
        yield listener.getsockname()[1]


ON_LOOPBACK = ["127.0.0.1", "127.0.0.2", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1"]


@pytest.mark.parametrize("address", ON_LOOPBACK)
def test_every_address_that_answers_on_loopback_counts(address: str) -> None:
    with listening_on(address) as port:
        found = listeners.listeners(port)
    assert [entry.uid for entry in found] == [os.getuid()]


@pytest.mark.parametrize("dual", [True, False], ids=["dual-stack", "one family"])
@pytest.mark.parametrize("address", ON_LOOPBACK)
def test_proc_says_what_the_kernel_says(address: str, dual: bool, no_netlink: Callable[[], None]) -> None:
    with listening_on(address, dual=dual or address.startswith("::ffff:")) as port:
        asked = listeners.listeners(port)
        no_netlink()
        assert listeners.listeners(port) == asked
    assert [entry.uid for entry in asked] == [os.getuid()]


def test_several_listeners_of_a_port_are_found_either_way(no_netlink: Callable[[], None]) -> None:
    with listening_on("127.0.0.1") as port, socket.create_server(("127.0.0.2", port)) as second:
        inodes = {os.fstat(second.fileno()).st_ino}
        with socket.create_server(("::1", port), family=socket.AF_INET6) as third:
            inodes.add(os.fstat(third.fileno()).st_ino)
            asked = listeners.listeners(port)
            no_netlink()
            assert set(listeners.listeners(port)) == set(asked)
    assert len(asked) == 3
    assert inodes < {int(entry.inode) for entry in asked}


def test_a_server_of_multipath_tcp_is_found_either_way(no_netlink: Callable[[], None]) -> None:
    """As Go's are, since 1.24."""
    try:
        listener = socket.socket(proto=IPPROTO_MPTCP)
    except OSError as error:
        pytest.skip(f"the kernel has no MPTCP: {error}")
    with listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        asked = listeners.listeners(port)
        no_netlink()
        assert listeners.listeners(port) == asked
    assert len(asked) == 1


def test_a_socket_bound_to_another_address_does_not_count() -> None:
    as_printed = int.from_bytes(socket.inet_aton("192.0.2.1"), sys.byteorder)
    assert str(listeners._address(f"{as_printed:08X}")) == "192.0.2.1"
    assert not listeners._is_local(listeners._address(f"{as_printed:08X}"))


def test_what_the_kernel_refuses_is_an_error() -> None:
    """And not an answer without listeners: proc is asked then."""
    no_family = socket.AF_UNSPEC
    with pytest.raises(OSError, match=os.strerror(errno.ENOENT)):
        list(listeners._ask(80, no_family))


def test_a_connection_is_no_listener(own_port: int) -> None:
    with socket.create_connection(("127.0.0.1", own_port)) as client:
        assert listeners.listeners(client.getsockname()[1]) == []


@pytest.mark.parametrize(
    ("cgroup", "is_the_runtimes"),
    [
        ("/system.slice/docker.service", True),
        ("/machine.slice/libpod-1f2e.scope/container", True),
        ("/system.slice/containerd.service", True),
        ("/system.slice/nginx.service", False),
        ("/", False),
    ],
)
def test_a_container_runtime_listens_in_its_clients_stead(
    cgroup: str, is_the_runtimes: bool, own_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "_cgroup", lambda pid: cgroup)
    found = listeners.listeners(own_port)
    assert (listeners.holder(found, "/usr/bin/docker") is None) is is_the_runtimes
    assert listeners.holder(found, "/usr/bin/llama-server") is not None


def test_the_unit_of_a_stranger_is_named(own_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        listeners, "_cgroup", lambda pid: "/user.slice/user-0.slice/user@0.service/app.slice/web.service"
    )
    named = listeners.holder(listeners.listeners(own_port))
    assert named is not None
    assert named.endswith(" of unit web.service")


def test_a_socket_whose_owner_cannot_be_seen_is_put_down_to_its_user() -> None:
    unseen = listeners.Listener(inode="0", uid=os.getuid())
    assert listeners.holder([unseen]) == "a process of user root that cannot be seen from here"
