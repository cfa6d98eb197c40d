"""What a process is told of the job that its own unit is in, asked in its SIGTERM handler under a private manager."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from llamaswapd.systemd import keeper
from llamaswapd.systemd.manager import Manager, Property
from llamaswapd.systemd.own_unit import UNKNOWN, own_job, unit_in

NAME = "llamaswapd-itself.service"

# Writes into its first argument, a pipe, that it runs, and after SIGTERM which job it is in.
ITSELF = """
import asyncio, signal, sys
from llamaswapd.systemd.own_unit import own_job

async def main():
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    with open(sys.argv[1], "w") as told:
        print("runs", file=told)
    await stopping.wait()
    with open(sys.argv[1], "w") as told:
        print(repr(await own_job()), file=told)

asyncio.run(main())
"""


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


@pytest.fixture
async def itself(private: Any, fifo: Path) -> AsyncIterator[None]:
    """A service whose main process tells of its job."""
    argv = [sys.executable, "-P", "-c", ITSELF, str(fifo)]
    async for each in service(private, argv):
        assert await said(fifo) == "runs"
        yield each


@pytest.fixture
async def child(private: Any, fifo: Path) -> AsyncIterator[None]:
    """The same as the child of a service's main process."""
    async for each in service(private, as_child(fifo)):
        assert await said(fifo) == "runs"
        yield each


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[socket.socket]:
    """A bus of the test's own."""
    with socket.socket(socket.AF_UNIX) as bus:
        bus.bind(str(tmp_path / "bus"))
        bus.listen()
        yield bus


@pytest.fixture
async def deaf(private: Any, fifo: Path, bus: socket.socket, tmp_path: Path) -> AsyncIterator[None]:
    """A service that meets a bus which takes connections and says nothing."""
    argv = [sys.executable, "-P", "-c", ITSELF, str(fifo)]
    async for each in service(private, argv, f"XDG_RUNTIME_DIR={tmp_path}"):
        assert await said(fifo) == "runs"
        yield each


@pytest.fixture
async def deaf_child(private: Any, fifo: Path, bus: socket.socket, tmp_path: Path) -> AsyncIterator[None]:
    """The same as the child of a service's main process."""
    async for each in service(private, as_child(fifo), f"XDG_RUNTIME_DIR={tmp_path}"):
        assert await said(fifo) == "runs"
        yield each


def as_child(fifo: Path) -> list[str]:
    shell = f'trap : TERM; "{sys.executable}" -P -c "$0" "{fifo}" & wait; wait'
    return ["/bin/sh", "-c", shell, ITSELF]


async def service(private: Any, argv: list[str], *environment: str) -> AsyncIterator[None]:
    manager = await Manager.connect("private", private.bus_address)
    unit = keeper.running(manager, NAME, "")
    assert await unit.start(properties(argv, environment), timeout_s=20, grace_s=1) == "done"
    yield
    await unit.stop(0)
    await manager.close()


def properties(argv: list[str], environment: Sequence[str]) -> list[Property]:
    return [
        ("Type", "s", "exec"),
        ("CollectMode", "s", "inactive-or-failed"),
        ("Environment", "as", ["PYTHONPATH=" + os.pathsep.join(keeper.module_folders()), *environment]),
        ("ExecStartEx", "a(sasas)", [[argv[0], argv, ["no-env-expand"]]]),
    ]


async def said(fifo: Path) -> str:
    return (await asyncio.to_thread(fifo.read_text)).strip()


def systemctl(private: Any, *arguments: str) -> None:
    command = ["systemctl", "--user", "--no-block", *arguments, NAME]
    subprocess.run(command, env={**os.environ, **private.environment}, check=True)


@pytest.mark.private
@pytest.mark.parametrize(
    ("command", "job"),
    [("restart", "'restart'"), ("try-restart", "'restart'"), ("stop", "'stop'"), ("kill", "''")],
)
async def test_a_service_sees_what_is_done_to_it(
    private: Any, itself: None, fifo: Path, command: str, job: str
) -> None:
    systemctl(private, command)
    assert await said(fifo) == job
    if job == "'restart'":
        assert await said(fifo) == "runs"


@pytest.mark.private
async def test_a_child_of_a_service_is_not_what_is_stopped(private: Any, child: None, fifo: Path) -> None:
    systemctl(private, "stop")
    assert await said(fifo) == "''"


@pytest.mark.private
async def test_a_bus_that_does_not_answer_is_not_waited_for_and_leaves_it_unknown(
    private: Any, deaf: None, fifo: Path
) -> None:
    systemctl(private, "stop")
    assert await said(fifo) == repr(UNKNOWN)


@pytest.mark.private
async def test_a_child_of_a_service_has_no_job_whether_or_not_the_bus_answers(
    private: Any, deaf_child: None, fifo: Path
) -> None:
    systemctl(private, "stop")
    assert await said(fifo) == "''"


@pytest.mark.private
async def test_a_bus_that_is_restarted_together_with_us_is_asked_when_it_is_back(
    private: Any, deaf: None, bus: socket.socket, fifo: Path, tmp_path: Path
) -> None:
    systemctl(private, "restart")
    answer = asyncio.create_task(said(fifo))  # it is waited for with the question
    dying, _ = await asyncio.to_thread(bus.accept)
    (tmp_path / "bus").unlink()
    (tmp_path / "bus").symlink_to(private.runtime_dir / "bus")
    dying.close()
    assert await answer == "'restart'"
    assert await said(fifo) == "runs"


async def test_a_process_that_is_no_service_has_no_job() -> None:
    assert await own_job() == ""


@pytest.mark.parametrize(
    ("cgroups", "unit"),
    [
        ("0::/system.slice/llamaswapd.service\n", "llamaswapd.service"),
        ("0::/a.slice/a-b.slice/it.service/below/it\n", "it.service"),
        ("3:memory:/docker/1\n1:name=systemd:/\n0::/system.slice/it.service\n", "it.service"),
        ("3:memory:/x\n1:name=systemd:/system.slice/it.service\n0::/\n", "it.service"),
        ("0::/user.slice/user-1.slice/user@1.service/app.slice/it.service\n", "user@1.service"),
        ("0::/\n", ""),
        ("", ""),
    ],
)
def test_where_the_library_cannot_look_the_cgroup_names_the_unit(cgroups: str, unit: str) -> None:
    assert unit_in(cgroups) == unit
