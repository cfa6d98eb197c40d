"""The connection to a manager, on a real bus.

A stand-in for systemd, made with the same library, does what the real one does too rarely to be tested with: it sends
signals in the awkward order, gives no answer, vanishes.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from llamaswapd.errors import BusLost, ManagerUnavailable, UnitError
from llamaswapd.systemd import manager as module
from llamaswapd.systemd.manager import Manager, MessageBus, Watch, close_socket, dbus

UNIT, PATH, JOB = "m.service", "/org/freedesktop/systemd1/unit/m_2eservice", "/org/freedesktop/systemd1/job/7"


class Bus:
    """A dbus-daemon of the test's own."""

    def __init__(self, process: asyncio.subprocess.Process, address: str) -> None:
        self.address = address
        self._process = process

    async def stop(self) -> None:
        if self._process.returncode is None:
            self._process.terminate()
        await self._process.wait()


class StandIn:
    """A systemd that answers each method with what `answers` says, after sending the signals given there."""

    def __init__(self, bus: MessageBus) -> None:
        self.bus = bus
        self.calls: asyncio.Queue[tuple[str, list[Any]]] = asyncio.Queue()
        self.answers: dict[str, list[tuple[str, str, list[Any]]] | None] = {}

    async def called(self, member: str) -> list[Any]:
        """Wait for a call of this method, return its arguments."""
        while True:
            name, body = await self.calls.get()
            if name == member:
                return body

    def received(self, message: Any) -> Any:
        if message.message_type is not dbus.MessageType.METHOD_CALL:
            return None
        self.calls.put_nowait((message.member, message.body))
        if message.member == "Get":
            return dbus.Message.new_method_return(message, "v", [dbus.Variant("s", "257.13-1~deb13u1")])
        if message.member == "Subscribe":
            return dbus.Message.new_method_return(message)
        if message.member == "KillUnit":
            return dbus.Message.new_error(message, module.NO_SUCH_UNIT, "Unit m.service not loaded.")
        signals = self.answers.get(message.member)
        if signals is None:
            return True  # handled: never answered
        for signal in signals:
            self.signal(*signal)
        return dbus.Message.new_method_return(message, "o", [JOB])

    def signal(self, member: str, signature: str, body: list[Any]) -> None:
        interface = "org.freedesktop.systemd1.Manager"
        self.bus.send(
            dbus.Message(
                message_type=dbus.MessageType.SIGNAL,
                path="/org/freedesktop/systemd1",
                interface=interface,
                member=member,
                signature=signature,
                body=body,
            )
        )


JOB_DONE = ("JobRemoved", "uoss", [7, JOB, UNIT, "done"])
UNIT_REMOVED = ("UnitRemoved", "so", [UNIT, PATH])


@pytest.fixture
async def bus() -> AsyncIterator[Bus]:
    # An abstract socket: the default is a file in /tmp, which stays there.
    address = f"--address=unix:abstract=llamaswapd-test-{secrets.token_hex(8)}"
    argv = ("dbus-daemon", "--session", "--nofork", "--print-address", "--nopidfile", address)
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    assert process.stdout
    bus = Bus(process, (await process.stdout.readline()).decode().strip())
    yield bus
    await bus.stop()


@pytest.fixture
async def systemd(bus: Bus) -> AsyncIterator[StandIn]:
    connection = await MessageBus(bus_address=bus.address).connect()
    stand_in = StandIn(connection)
    connection.add_message_handler(stand_in.received)
    await connection.request_name("org.freedesktop.systemd1")
    yield stand_in
    connection.disconnect()
    with contextlib.suppress(EOFError, OSError):  # the bus may have gone before
        await connection.wait_for_disconnect()
    close_socket(connection)


@pytest.fixture
async def manager(bus: Bus, systemd: StandIn) -> AsyncIterator[Manager]:
    manager = await Manager.connect("private", bus.address)
    yield manager
    await manager.close()


async def watch(manager: Manager) -> Watch:
    return await manager.watch(UNIT, PATH, lambda properties: None)


def test_the_version_is_the_major_one(manager: Manager) -> None:
    assert manager.version == 257


async def test_a_job_that_is_removed_before_the_reply_came_is_not_lost(manager: Manager, systemd: StandIn) -> None:
    systemd.answers["StopUnit"] = [JOB_DONE]
    assert await manager.stop_unit(await watch(manager)) == "done"


async def test_a_job_is_awaited_when_the_reply_comes_first(manager: Manager, systemd: StandIn) -> None:
    systemd.answers["StopUnit"] = []
    stopping = asyncio.ensure_future(manager.stop_unit(await watch(manager)))
    await systemd.called("StopUnit")
    systemd.signal("JobRemoved", "uoss", [7, JOB, UNIT, "canceled"])
    assert await stopping == "canceled"


async def test_two_callers_of_one_job_both_learn_its_result(manager: Manager, systemd: StandIn) -> None:
    systemd.answers["StopUnit"] = []
    seen = await watch(manager)
    first, second = (asyncio.ensure_future(manager.stop_unit(seen)) for _ in range(2))
    for _ in (first, second):
        await systemd.called("StopUnit")
    first.cancel()
    systemd.signal(*JOB_DONE)
    assert await second == "done"


async def test_the_removal_of_a_stand_in_unit_is_not_the_end_of_ours(manager: Manager, systemd: StandIn) -> None:
    systemd.answers["StartTransientUnit"] = [UNIT_REMOVED, JOB_DONE]
    seen = await watch(manager)
    await manager.start_transient_unit(seen, [])
    assert not seen.gone.done()
    systemd.signal(*UNIT_REMOVED)
    await asyncio.shield(seen.gone)


async def test_text_that_is_not_ascii_arrives_as_it_is(manager: Manager, systemd: StandIn) -> None:
    systemd.answers["StartTransientUnit"] = [JOB_DONE]
    await manager.start_transient_unit(await watch(manager), [("Description", "s", "modèle 模型 🦙")])
    _, _, properties, _ = await systemd.called("StartTransientUnit")
    assert [(name, variant.value) for name, variant in properties] == [("Description", "modèle 模型 🦙")]


async def test_a_refusal_names_the_method_the_unit_and_the_reason(manager: Manager) -> None:
    with pytest.raises(UnitError, match=r"refused KillUnit m\.service: Unit m\.service not loaded\. \(.*NoSuchUnit\)"):
        await manager.kill_unit(UNIT, 9)


async def test_a_call_that_is_never_answered_ends(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CALL_TIMEOUT_S", 0.01)
    with pytest.raises(UnitError, match="systemd did not answer ThawUnit"):
        await manager.thaw_unit(UNIT)


async def test_everybody_who_waits_is_told_when_the_bus_is_lost(manager: Manager, systemd: StandIn, bus: Bus) -> None:
    systemd.answers["StopUnit"] = []
    lost = asyncio.Event()
    manager.on_lost = lost.set
    seen = await watch(manager)
    waiting_for_job = asyncio.ensure_future(manager.stop_unit(seen))
    waiting_for_reply = asyncio.ensure_future(manager.thaw_unit(UNIT))
    await systemd.called("ThawUnit")
    await bus.stop()
    for waiting in (waiting_for_job, waiting_for_reply, seen.gone, manager.reset_failed_unit(UNIT)):
        with pytest.raises(BusLost):
            await waiting
    await lost.wait()


async def test_closing_the_connection_is_not_losing_it(bus: Bus, systemd: StandIn) -> None:
    manager = await Manager.connect("private", bus.address)
    manager.on_lost = lambda: pytest.fail("called on_lost")
    await manager.close()


async def test_a_bus_without_systemd_is_no_manager(bus: Bus) -> None:
    with pytest.raises(ManagerUnavailable, match="no systemd answers on the bus"):
        await Manager.connect("private", bus.address)


async def test_a_connection_that_is_given_up_is_closed(bus: Bus) -> None:
    def is_connected() -> bool:
        return any(task.get_name() == "bus of the user manager" for task in asyncio.all_tasks())

    connecting = asyncio.create_task(Manager.connect("user", bus.address))  # waits for a systemd to join the bus
    while not is_connected():  # noqa: ASYNC110, nothing tells of it
        await asyncio.sleep(0)
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    assert not is_connected()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_bus_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManagerUnavailable, match=f"unix:path={tmp_path}/none"):
        await Manager.connect("private", f"unix:path={tmp_path}/none")
    gc.collect()  # the socket that dbus-next does not close when it cannot connect


class TestChoosingTheManager:
    @pytest.fixture(autouse=True)
    def machine(self, bus: Bus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """A machine that was not booted with systemd, seen by root, with a session bus."""
        monkeypatch.setattr(module, "_is_booted", lambda: False)
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", bus.address)

    async def test_root_on_a_machine_booted_with_systemd_gets_the_systems(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_is_booted", lambda: True)
        assert await module.choose_scope("auto") == "system"

    async def test_a_user_manager_that_answers_comes_next(self, systemd: StandIn) -> None:
        assert await module.choose_scope("auto") == "user"
        assert await module.choose_scope("user") == "user"

    async def test_anybody_else_gets_a_private_one(self) -> None:
        assert await module.choose_scope("auto") == "private"

    async def test_private_is_never_refused(self) -> None:
        assert await module.choose_scope("private") == "private"

    async def test_the_system_manager_takes_a_booted_systemd(self) -> None:
        with pytest.raises(ManagerUnavailable, match="not booted with systemd; use manager: private"):
            await module.choose_scope("system")

    async def test_the_system_manager_takes_root(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_is_booted", lambda: True)
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        with pytest.raises(ManagerUnavailable, match="takes root; use manager: user"):
            await module.choose_scope("system")

    async def test_a_user_manager_that_does_not_answer_says_what_would_help(self) -> None:
        with pytest.raises(ManagerUnavailable, match=r"no systemd answers .*enable-linger"):
            await module.choose_scope("user")


@pytest.mark.skipif(dbus.__name__ == "dbus_next", reason="this is that run")
def test_all_of_this_holds_with_dbus_next_too() -> None:
    code = "import sys, pytest; sys.modules['dbus_fast'] = None; sys.exit(pytest.main(sys.argv[1:]))"
    folder = Path(__file__).parent
    tests = [str(folder / "test_manager.py"), str(folder / "test_running.py")]
    argv = [sys.executable, "-c", code, "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
