"""Our own side of being a service, against the real sockets, locks and directories."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamaswapd.errors import UsageError
from llamaswapd.systemd import service


@pytest.fixture
def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """What systemd has at the other end of $NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield receiver


@pytest.fixture
def notifier(supervisor: socket.socket) -> Iterator[service.Notifier]:
    with contextlib.closing(service.Notifier()) as notifier:
        yield notifier


def test_ready_status_and_stopping_reach_the_service_manager(
    supervisor: socket.socket, notifier: service.Notifier
) -> None:
    notifier.ready()
    notifier.status("2 models, 1 loading")
    notifier.stopping()
    assert [supervisor.recv(100) for _ in range(3)] == [b"READY=1", b"STATUS=2 models, 1 loading", b"STOPPING=1"]


def test_a_status_is_utf8_on_the_wire(supervisor: socket.socket, notifier: service.Notifier) -> None:
    notifier.status("modèle 模型")
    assert supervisor.recv(100).decode() == "STATUS=modèle 模型"


def test_reloading_carries_the_monotonic_time(supervisor: socket.socket, notifier: service.Notifier) -> None:
    notifier.reloading()
    first, second = supervisor.recv(100).decode().splitlines()
    assert first == "RELOADING=1"
    assert second.removeprefix("MONOTONIC_USEC=").isdigit()


def test_without_a_service_manager_nothing_is_sent_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notifier = service.Notifier()
    notifier.ready()
    assert notifier.watchdog_interval_s == 0


def test_the_watchdog_is_fed_three_times_in_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert service.Notifier().watchdog_interval_s == 10


def test_a_watchdog_meant_for_another_process_is_not_fed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert service.Notifier().watchdog_interval_s == 0


def test_no_child_inherits_the_notification_socket(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "1")
    request.getfixturevalue("notifier")
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & os.environ.keys()


RECEIVE = """
import os, sys
pid, names, *fds = sys.argv[1:]
for place, fd in enumerate(fds, 100):
    os.dup2(int(fd), place)
for place in range(len(fds)):
    os.dup2(100 + place, 3 + place)
os.environ.update(LISTEN_FDS=str(len(fds)), LISTEN_PID=pid or str(os.getpid()), LISTEN_PIDFDID="1")
if names != "-":
    os.environ["LISTEN_FDNAMES"] = names
from llamaswapd.errors import UsageError
from llamaswapd.systemd.service import passed_sockets
try:
    first, second = passed_sockets(), passed_sockets()
    for name, s in first:
        print(name, repr(s.getsockname()), s.gettimeout(), s.get_inheritable())
    print(second, sorted(name for name in os.environ if name.startswith("LISTEN_")))
except UsageError as error:
    print(error)
"""


def receive(*passed: socket.socket | int, names: str = "-", pid: str = "") -> list[str]:
    """Return what a process says to which these are passed."""
    fds = [each if isinstance(each, int) else each.fileno() for each in passed]
    argv = [sys.executable, "-c", RECEIVE, pid, names, *map(str, fds)]
    return subprocess.run(argv, pass_fds=fds, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.fixture
def listeners(tmp_path: Path) -> Iterator[list[socket.socket]]:
    with (
        socket.create_server(("127.0.0.1", 0)) as first,
        socket.create_server(("127.0.0.1", 0)) as second,
        socket.socket(socket.AF_UNIX) as third,
    ):
        third.bind(str(tmp_path / "sock"))
        third.listen()
        yield [first, second, third]


def test_passed_sockets_are_taken_once_in_their_order_and_not_passed_on(listeners: list[socket.socket]) -> None:
    *said, rest = receive(*listeners, names="http:https:local")
    assert said == [
        f"{name} {each.getsockname()!r} 0.0 False"
        for name, each in zip(("http", "https", "local"), listeners, strict=True)
    ]
    assert rest == "[] []"


@pytest.mark.parametrize(
    ("names", "understood"),
    [
        ("-", ["unknown"] * 3),
        ("", ["unknown"] * 3),
        ("http", ["http", "unknown", "unknown"]),
        ("a:b:c:d", ["a", "b", "c"]),
        ("a::c", ["a", "unknown", "c"]),
    ],
)
def test_names_may_be_missing_or_too_many(names: str, understood: list[str], listeners: list[socket.socket]) -> None:
    assert [line.split()[0] for line in receive(*listeners, names=names)[:-1]] == understood


def test_sockets_passed_to_another_process_are_left_alone(listeners: list[socket.socket]) -> None:
    assert receive(*listeners, pid="1", names="a:b:c") == ["[] []"]


def test_what_does_not_listen_for_streams_is_named_with_the_remedy(listeners: list[socket.socket]) -> None:
    reader, writer = os.pipe()
    ours, theirs = socket.socketpair()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams, ours, theirs:
        wrong: list[tuple[socket.socket | int, str]] = [
            (reader, "is no socket; use ListenStream= in the socket unit"),
            (datagrams, "is no TCP or UNIX stream socket; use ListenStream= in the socket unit"),
            (ours, "does not listen; use ListenStream= in the socket unit, and Accept=no"),
        ]
        for passed, why in wrong:
            said = receive(listeners[0], passed, names="http:odd")
            assert said == [f"what a socket unit passes as file descriptor 4 (FileDescriptorName=odd) {why}"]
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize(
    ("name", "has_certificate", "speaks_tls"),
    [("http", True, False), ("http", False, False), ("https", True, True), ("x", True, True), ("x", False, False)],
)
def test_a_sockets_name_says_whether_tls_is_spoken(name: str, has_certificate: bool, speaks_tls: bool) -> None:
    with socket.socket() as any_socket:
        passed = service.Passed(name, any_socket)
        assert passed.speaks_tls(has_certificate=has_certificate) == speaks_tls


def test_a_socket_for_https_needs_a_certificate() -> None:
    with socket.socket() as any_socket, pytest.raises(UsageError, match="give -tls-cert-file"):
        service.Passed("https", any_socket).speaks_tls(has_certificate=False)


def test_the_runtime_directory_is_per_instance_private_and_removed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))
    with service.runtime_directory("") as default, service.runtime_directory("blue") as blue:
        assert (default, blue) == (tmp_path / "run/default", tmp_path / "run/blue")
        assert default.stat().st_mode & 0o777 == 0o700
    assert not list(tmp_path.iterdir())


def test_a_runtime_directory_with_something_in_it_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    with service.runtime_directory("") as directory:
        (directory / "kept").touch()
    assert (directory / "kept").exists()


def test_a_runtime_directory_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"/file/default: .*RUNTIME_DIRECTORY"), service.runtime_directory(""):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a directory away takes root")
def test_a_runtime_directory_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = tmp_path / "run"
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(theirs))
    with pytest.raises(UsageError, match="/run belongs to another user"), service.runtime_directory(""):
        pass
    assert not list(theirs.iterdir())


def test_a_second_daemon_of_an_instance_is_refused_and_told_the_pid(tmp_path: Path) -> None:
    with (
        service.instance_lock(tmp_path),
        pytest.raises(UsageError, match=f"pid {os.getpid()} "),
        service.instance_lock(tmp_path),
    ):
        pass


def test_the_lock_is_free_again_afterwards_and_leaves_no_file(tmp_path: Path) -> None:
    for _ in range(2):
        with service.instance_lock(tmp_path):
            pass
    assert not list(tmp_path.iterdir())


def test_a_lock_file_left_by_a_daemon_that_was_killed_locks_nobody_out(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("4711\n")
    with service.instance_lock(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
