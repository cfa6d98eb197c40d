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
import select
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from signal import SIGSTOP
from typing import Any

import pytest

from llamaswapd.errors import BusLost, ManagerUnavailable, UnitError
from llamaswapd.systemd import bus as bus_module
from llamaswapd.systemd import manager as module
from llamaswapd.systemd.bus import MessageBus, Refused, close_socket, dbus
from llamaswapd.systemd.manager import Manager
from llamaswapd.systemd.watched import Watch

UNIT, PATH, JOB = "m.service", "/org/freedesktop/systemd1/unit/m_2eservice", "/org/freedesktop/systemd1/job/7"


# Gives up a connection when the bus has answered its Hello, then watches another file that has its descriptor's number.
# A process of its own, because uvloop would end ours. Its arguments: the module of the loop, and the bus address.
GIVING_UP = """
import asyncio, importlib, os, sys
from llamaswapd.systemd.bus import Bus

module = importlib.import_module(sys.argv[1])

class Loop(getattr(module, "Loop", None) or asyncio.SelectorEventLoop):
    watched = -1

    def add_writer(self, fd, *arguments):
        super().add_writer(fd, *arguments)
        if self.watched < 0:
            self.watched = fd
            self.opening.cancel()

async def main(loop):
    loop.opening = asyncio.create_task(Bus.open(sys.argv[2], print))
    await asyncio.wait((loop.opening,))
    reading, writing = os.pipe()
    assert (loop.opening.cancelled(), reading) == (True, loop.watched)
    readable = asyncio.Event()
    loop.add_reader(reading, readable.set)
    os.write(writing, b".")
    await readable.wait()

with asyncio.Runner(loop_factory=Loop) as runner:
    runner.run(main(runner.get_loop()))
"""


class Bus:
    """A dbus-daemon of the test's own, always at the same address."""

    def __init__(self) -> None:
        # An abstract socket: the default is a file in /tmp, which stays there.
        self.address = f"unix:abstract=llamaswapd-test-{secrets.token_hex(8)}"
        self._process: asyncio.subprocess.Process

    async def start(self) -> None:
        argv = ("dbus-daemon", "--session", "--nofork", "--print-address", "--nopidfile", f"--address={self.address}")
        self._process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
        assert self._process.stdout
        await self._process.stdout.readline()

    async def stop(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.communicate()

    def somebody_comes_and_goes(self) -> None:
        """Return when the bus has told so, without a turn of the loop."""
        argv = ("busctl", f"--address={self.address}", "list")
        subprocess.run(argv, stdout=subprocess.DEVNULL, check=True)

    def stand_still(self) -> None:
        """Return when it reads nothing more, but goes on when it is killed."""
        os.kill(self._process.pid, SIGSTOP)
        while "\nState:\tT" not in Path(f"/proc/{self._process.pid}/status").read_text():
            time.sleep(0.001)

    def kill_now(self) -> None:
        """Return when it has gone, without a turn of the loop, in which others would notice."""
        end = os.pidfd_open(self._process.pid)
        self._process.kill()
        select.select((end,), (), ())
        os.close(end)


class StandIn:
    """A systemd that answers each method with what `answers` says, after sending the signals given there."""

    def __init__(self, address: str) -> None:
        self.calls: asyncio.Queue[tuple[str, list[Any]]] = asyncio.Queue()
        self.answers: dict[str, list[tuple[str, str, list[Any]]] | None] = {}
        self.never_answers: set[str] = set()  # methods
        self.when_called: dict[str, Callable[[Any], object]] = {}  # by method, gets its first argument; once
        self.errors: dict[str, list[str]] = {}  # with which its next calls are answered, by method
        self.properties: dict[str, Any] = {}  # of the one unit; none: there is no unit
        self.behind: list[tuple[str, str, list[Any]]] = []  # signals sent right behind the properties
        self._address = address
        self._bus: MessageBus

    async def connect(self) -> None:
        self._bus = await MessageBus(bus_address=self._address).connect()

    async def request_nothing(self) -> None:
        """Return when the bus has taken what we have sent."""
        await self._bus.release_name("org.example.Nothing")

    async def join(self) -> None:
        await self.connect()
        self._bus.add_message_handler(self.received)
        await self._bus.request_name("org.freedesktop.systemd1")

    async def leave(self) -> None:
        if self._bus.connected:
            self._bus.disconnect()
        with contextlib.suppress(EOFError, OSError):  # the bus may have gone before
            await self._bus.wait_for_disconnect()
        close_socket(self._bus)

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
        if act := self.when_called.pop(message.member, None):
            act(message.body[0])
        if message.member in self.never_answers:
            return True  # handled
        if errors := self.errors.get(message.member):
            return dbus.Message.new_error(message, errors.pop(0), "not now")
        if message.member == "Get":
            return dbus.Message.new_method_return(message, "v", [dbus.Variant("s", "257.13-1~deb13u1")])
        if message.member in ("Subscribe", "ThawUnit", "RefUnit", "UnrefUnit"):
            return dbus.Message.new_method_return(message)
        if message.member == "KillUnit":
            return dbus.Message.new_error(message, module.NO_SUCH_UNIT, "Unit m.service not loaded.")
        if message.member == "GetAll":
            self._bus.send(dbus.Message.new_method_return(message, "a{sv}", [self.properties or STAND_IN]))
            for signal in self.behind:
                self.signal(*signal)
            return True
        signals = self.answers.get(message.member)
        if signals is None:
            return True  # handled: never answered
        for signal in signals:
            self.signal(*signal)
        return dbus.Message.new_method_return(message, "o", [JOB])

    def signal(self, member: str, signature: str, body: list[Any], to: str | None = None) -> None:
        of_unit = member == "PropertiesChanged"
        self._bus.send(
            dbus.Message(
                message_type=dbus.MessageType.SIGNAL,
                destination=to,
                path=PATH if of_unit else "/org/freedesktop/systemd1",
                interface="org.freedesktop.DBus.Properties" if of_unit else "org.freedesktop.systemd1.Manager",
                member=member,
                signature=signature,
                body=body,
            )
        )


def references(systemd: StandIn) -> int:
    """Return how many more were taken than given back by the calls that have come, and were not looked at yet."""
    count = 0
    while not systemd.calls.empty():
        count += {"RefUnit": 1, "UnrefUnit": -1}.get(systemd.calls.get_nowait()[0], 0)
    return count


JOB_DONE = ("JobRemoved", "uoss", [7, JOB, UNIT, "done"])
UNIT_REMOVED = ("UnitRemoved", "so", [UNIT, PATH])
OURS, ANOTHER = b"\1" * 16, b"\2" * 16


def unit(state: str = "active", invocation: bytes = OURS, job: str = "/", load: str = "loaded") -> dict[str, Any]:
    """What systemd says of a unit."""
    values = [("s", state), ("s", load), ("ay", invocation), ("(uo)", [0 if job == "/" else 7, job])]
    names = ["ActiveState", "LoadState", "InvocationID", "Job"]
    return {name: dbus.Variant(*value) for name, value in zip(names, values, strict=True)}


STAND_IN = unit("inactive", b"", load="not-found")


def changed(**properties: Any) -> tuple[str, str, list[Any]]:
    values = {
        name: dbus.Variant("ay" if isinstance(value, bytes) else "s", value) for name, value in properties.items()
    }
    return ("PropertiesChanged", "sa{sv}as", ["org.freedesktop.systemd1.Unit", values, []])


@pytest.fixture
async def bus() -> AsyncIterator[Bus]:
    bus = Bus()
    await bus.start()
    yield bus
    await bus.stop()


@pytest.fixture
async def systemd(bus: Bus) -> AsyncIterator[StandIn]:
    stand_in = StandIn(bus.address)
    await stand_in.join()
    yield stand_in
    await stand_in.leave()


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


async def test_signals_of_others_are_not_heard(bus: Bus, manager: Manager, systemd: StandIn) -> None:
    """The system's bus hands on whatever signal a local user sends to a connection."""
    lost: list[str] = []
    manager.on_connection = lost.append
    systemd.properties = unit()
    ours = await watch(manager)
    await manager.look(ours)
    mallory = StandIn(bus.address)
    await mallory.connect()
    for number in range(10):
        mallory.signal(*UNIT_REMOVED, to=f":1.{number}")
        mallory.signal("UnitRemoved", "", [], to=f":1.{number}")
        mallory.signal("NameOwnerChanged", "sss", ["org.freedesktop.systemd1", ":1.0", ""], to=f":1.{number}")
    await mallory.request_nothing()
    assert await manager.look(ours)
    assert (ours.gone.done(), lost) == (False, [])
    await mallory.leave()


async def test_text_that_is_not_ascii_arrives_as_it_is(manager: Manager, systemd: StandIn) -> None:
    systemd.answers["StartTransientUnit"] = [JOB_DONE]
    await manager.start_transient_unit(await watch(manager), [("Description", "s", "modèle 模型 🦙")])
    _, _, properties, _ = await systemd.called("StartTransientUnit")
    assert [(name, variant.value) for name, variant in properties][:1] == [("Description", "modèle 模型 🦙")]


async def test_a_unit_that_cannot_be_referenced_is_watched_all_the_same(manager: Manager, systemd: StandIn) -> None:
    systemd.errors["RefUnit"] = ["org.freedesktop.DBus.Error.AccessDenied"]
    systemd.properties = unit()
    ours = await watch(manager)
    await manager.ref_unit(ours)
    assert (await manager.look(ours))["ActiveState"] == "active"


async def test_a_refusal_names_the_method_the_unit_and_the_reason(manager: Manager) -> None:
    with pytest.raises(UnitError, match=r"refused KillUnit m\.service: Unit m\.service not loaded\. \(.*NoSuchUnit\)"):
        await manager.kill_unit(UNIT, 9)


async def test_a_call_that_is_never_answered_ends(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_module, "CALL_TIMEOUT_S", 0.01)
    with pytest.raises(UnitError, match="systemd did not answer ResetFailedUnit"):
        await manager.reset_failed_unit(UNIT)


async def test_closing_tells_everybody_who_waits(manager: Manager, systemd: StandIn) -> None:
    systemd.answers["StopUnit"] = []
    manager.on_connection = manager.on_dead = lambda *_: pytest.fail("a connection that was closed is not lost")
    seen = await watch(manager)
    waiting_for_job = asyncio.ensure_future(manager.stop_unit(seen))
    waiting_for_reply = asyncio.ensure_future(manager.reset_failed_unit(UNIT))
    await systemd.called("ResetFailedUnit")
    await manager.close()
    for waiting in (waiting_for_job, waiting_for_reply, seen.gone, manager.thaw_unit(UNIT)):
        with pytest.raises(BusLost):
            await waiting


async def test_a_bus_without_systemd_is_no_manager(bus: Bus) -> None:
    with pytest.raises(ManagerUnavailable, match="no systemd answers on the bus"):
        await Manager.connect("private", bus.address, back_within_s=0.1)


async def test_a_manager_that_is_dead_before_we_connect_is_not_waited_for(bus: Bus) -> None:
    with pytest.raises(ManagerUnavailable, match="no systemd answers on the bus"):
        await Manager.connect("private", bus.address, lambda: False, back_within_s=float("inf"))


async def test_a_systemd_that_leaves_while_we_connect_is_waited_for(bus: Bus, systemd: StandIn) -> None:
    """As it does to execute itself anew. A launcher that did not wait would end; the bus would not start another."""
    systemd.never_answers.add("Subscribe")
    connecting = asyncio.create_task(Manager.connect("private", bus.address))
    await systemd.called("Subscribe")
    await systemd.leave()
    await joined_by_systemd(bus, connecting)


async def joined_by_systemd(bus: Bus, connecting: asyncio.Task[Manager]) -> None:
    """Have one join the bus, and see that who is connecting finds it."""
    stand_in = StandIn(bus.address)
    await stand_in.join()
    manager = await connecting
    await manager.thaw_unit(UNIT)
    await manager.close()
    await stand_in.leave()


def is_connected() -> bool:
    return any(task.get_name() == "end of a connection to the bus" for task in asyncio.all_tasks())


async def connecting_to_a_bus_without_systemd(bus: Bus) -> asyncio.Task[Manager]:
    """Connect to a user's manager that has yet to join the bus."""
    connecting = asyncio.create_task(Manager.connect("user", bus.address))
    while not is_connected():  # noqa: ASYNC110, nothing tells of it
        await asyncio.sleep(0)
    return connecting


async def test_a_systemd_that_joins_the_bus_after_us_is_waited_for(bus: Bus) -> None:
    await joined_by_systemd(bus, await connecting_to_a_bus_without_systemd(bus))


async def test_a_connection_that_is_given_up_is_closed(bus: Bus) -> None:
    connecting = await connecting_to_a_bus_without_systemd(bus)
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    assert not is_connected()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_nothing_watches_the_socket_of_a_connection_that_was_given_up(bus: Bus, loop: str) -> None:
    pytest.importorskip(loop)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", GIVING_UP, loop, bus.address, stderr=asyncio.subprocess.PIPE
    )
    _, complaint = await process.communicate()
    assert (process.returncode, complaint.decode()) == (0, "")


async def test_a_bus_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManagerUnavailable, match=f"unix:path={tmp_path}/none"):
        await Manager.connect("private", f"unix:path={tmp_path}/none")
    gc.collect()  # would complain about a socket that is still open


class Away:
    """Away and back, as the daemon is told."""

    def __init__(self, manager: Manager) -> None:
        self.told: asyncio.Queue[str] = asyncio.Queue()
        manager.on_connection = self.told.put_nowait

    async def lost(self) -> None:
        assert await self.told.get() != ""

    async def back(self) -> None:
        assert await self.told.get() == ""


@pytest.fixture
def away(manager: Manager) -> Away:
    return Away(manager)


@pytest.fixture(params=["bus", "systemd"])
async def absence(request: pytest.FixtureRequest, bus: Bus, systemd: StandIn, away: Away) -> Absence:
    """What is away: the bus with all on it, or systemd alone, which executes itself anew."""
    return Absence(request.param == "bus", bus, systemd, away)


class Absence:
    def __init__(self, of_bus: bool, bus: Bus, systemd: StandIn, away: Away) -> None:
        self._of_bus, self._bus, self._systemd, self._away = of_bus, bus, systemd, away

    async def begin(self) -> None:
        if self._of_bus:
            await self._bus.stop()
        await self._systemd.leave()
        await self._away.lost()

    async def end(self) -> None:
        if self._of_bus:
            await self._bus.start()
        await self._systemd.join()
        await self._away.back()

    async def pass_by(self) -> None:
        await self.begin()
        await self.end()


class TestAfterTheBusOrSystemdWasAway:
    async def test_a_call_made_meanwhile_is_answered(self, manager: Manager, absence: Absence) -> None:
        await absence.begin()
        call = asyncio.ensure_future(manager.thaw_unit(UNIT))
        await absence.end()
        await call

    async def test_a_call_that_was_under_way_is_sent_again(
        self, manager: Manager, systemd: StandIn, absence: Absence
    ) -> None:
        call = asyncio.ensure_future(manager.start_transient_unit(await watch(manager), []))
        await systemd.called("StartTransientUnit")
        systemd.answers["StartTransientUnit"] = [JOB_DONE]
        await absence.pass_by()
        assert await call == "done"

    async def test_a_reference_is_taken_again_unless_it_was_given_back(
        self, manager: Manager, systemd: StandIn, absence: Absence
    ) -> None:
        one, other = await watch(manager), await manager.watch("other.service", PATH, lambda properties: None)
        await manager.ref_unit(one)
        await manager.ref_unit(other)
        manager.unref_unit(other.unit)
        assert await systemd.called("UnrefUnit") == ["other.service"]
        await absence.pass_by()
        assert await systemd.called("RefUnit") == [UNIT]
        while not systemd.calls.empty():
            assert systemd.calls.get_nowait()[0] != "RefUnit"

    async def test_a_reference_is_taken_once_however_often_it_is_asked_for(
        self, manager: Manager, systemd: StandIn, absence: Absence
    ) -> None:
        systemd.never_answers.add("RefUnit")
        referring = asyncio.ensure_future(manager.ref_unit(await watch(manager)))
        await systemd.called("RefUnit")
        systemd.never_answers.clear()
        await absence.pass_by()
        await referring
        assert references(systemd) == 1

    async def test_a_reference_that_is_given_back_while_others_are_taken_again_is_not_taken(
        self, manager: Manager, systemd: StandIn, absence: Absence
    ) -> None:
        ours = [await manager.watch(f"{name}.service", PATH, lambda properties: None) for name in "abc"]
        for each in ours:
            await manager.ref_unit(each)
        await absence.begin()
        systemd.calls = asyncio.Queue()
        systemd.when_called["RefUnit"] = lambda first: [
            manager.unref_unit(each.unit) for each in ours if each.unit != first
        ]
        await absence.end()
        taken = [systemd.calls.get_nowait()[0] for _ in range(systemd.calls.qsize())].count("RefUnit")
        assert taken == 1

    async def test_a_start_that_is_refused_after_all_leaves_no_reference(
        self, manager: Manager, systemd: StandIn, absence: Absence
    ) -> None:
        """It was begun by the order that was not answered, so there is the unit."""
        call = asyncio.ensure_future(manager.start_transient_unit(await watch(manager), []))
        await systemd.called("StartTransientUnit")
        systemd.errors["StartTransientUnit"] = [module.UNIT_EXISTS]
        await absence.pass_by()
        with pytest.raises(Refused, match="UnitExists"):
            await call
        await manager.thaw_unit(UNIT)
        assert references(systemd) == 0

    async def test_a_unit_that_is_gone_is_known_to_be(
        self, manager: Manager, systemd: StandIn, absence: Absence
    ) -> None:
        seen = await watch(manager)
        systemd.properties = unit()
        await manager.look(seen)
        systemd.properties = {}
        await absence.pass_by()
        assert seen.gone.done()

    async def test_a_unit_that_is_to_be_started_is_not_gone(self, manager: Manager, absence: Absence) -> None:
        seen = await watch(manager)
        await absence.pass_by()
        assert not seen.gone.done()

    async def test_another_run_of_the_unit_is_not_ours(
        self, manager: Manager, systemd: StandIn, absence: Absence
    ) -> None:
        states = []
        seen = await manager.watch(UNIT, PATH, lambda properties: states.append(properties["ActiveState"]))
        systemd.properties = unit()
        await manager.look(seen)
        systemd.properties = unit("failed", ANOTHER)
        await absence.pass_by()
        assert seen.gone.done()
        assert states == ["active"]

    async def test_changes_are_told_those_of_meanwhile_and_later_ones(
        self, manager: Manager, systemd: StandIn, absence: Absence
    ) -> None:
        states: asyncio.Queue[str] = asyncio.Queue()
        seen = await manager.watch(UNIT, PATH, lambda properties: states.put_nowait(properties["ActiveState"]))
        systemd.properties = unit("activating")
        await manager.look(seen)
        systemd.properties = unit("active")
        await absence.pass_by()
        systemd.signal(*changed(ActiveState="failed"))
        assert [await states.get() for _ in range(3)] == ["activating", "active", "failed"]
        systemd.signal(*UNIT_REMOVED)
        await asyncio.shield(seen.gone)

    @pytest.mark.parametrize(
        ("method", "after", "result"),
        [
            ("StartTransientUnit", unit("active"), "done"),
            ("StartTransientUnit", unit("reloading"), "done"),
            ("StartTransientUnit", unit("failed"), "failed"),
            ("StartTransientUnit", {}, "failed"),
            ("StopUnit", {}, "done"),
            ("StopUnit", unit("inactive"), "done"),
            ("StopUnit", unit("active"), "canceled"),
        ],
    )
    async def test_a_job_that_has_ended_is_concluded_from_the_unit(
        self, manager: Manager, systemd: StandIn, absence: Absence, method: str, after: dict[str, Any], result: str
    ) -> None:
        job = await self.job(manager, systemd, method)
        systemd.properties = after
        await absence.pass_by()
        assert await job == result

    async def test_a_job_that_goes_on_is_awaited(self, manager: Manager, systemd: StandIn, absence: Absence) -> None:
        job = await self.job(manager, systemd, "StopUnit")
        systemd.properties = unit("deactivating", job=JOB)
        await absence.pass_by()
        assert not job.done()
        systemd.signal(*JOB_DONE)
        assert await job == "done"

    async def job(self, manager: Manager, systemd: StandIn, method: str) -> asyncio.Future[str]:
        """Have a job begin; its end is not signalled."""
        systemd.answers[method] = []
        seen = await watch(manager)
        order = manager.stop_unit(seen) if method == "StopUnit" else manager.start_transient_unit(seen, [])
        job = asyncio.ensure_future(order)
        await systemd.called(method)
        await manager.thaw_unit(UNIT)  # its answer comes behind that to the order
        return job

    async def test_closing_does_not_wait_for_it(self, manager: Manager, absence: Absence) -> None:
        seen = await watch(manager)
        await absence.begin()
        call = asyncio.ensure_future(manager.thaw_unit(UNIT))
        await asyncio.sleep(0)
        await manager.close()
        for waiting in (call, seen.gone):
            with pytest.raises(BusLost):
                await waiting


async def test_what_is_signalled_behind_a_look_counts_more_than_what_was_seen(
    manager: Manager, systemd: StandIn
) -> None:
    states = []
    seen = await manager.watch(UNIT, PATH, lambda properties: states.append(properties["ActiveState"]))
    systemd.properties = unit("active")
    systemd.behind = [changed(ActiveState="failed")]
    await manager.look(seen)
    await manager.thaw_unit(UNIT)  # answered behind both
    assert states == ["active", "failed"]


async def test_a_look_at_what_is_not_there_shows_nothing(manager: Manager, systemd: StandIn) -> None:
    seen = await watch(manager)
    assert await manager.look(seen) == {}


async def test_a_reload_of_systemd_has_every_unit_removed_and_none_of_it_counts(
    manager: Manager, systemd: StandIn
) -> None:
    seen = await watch(manager)
    systemd.properties = unit()
    await manager.look(seen)
    systemd.signal("Reloading", "b", [True])
    systemd.signal(*UNIT_REMOVED)
    await manager.thaw_unit(UNIT)
    assert not seen.gone.done()
    systemd.properties = {}
    systemd.signal("Reloading", "b", [False])
    await asyncio.shield(seen.gone)


@pytest.mark.parametrize("error", sorted(module.AWAY))
async def test_a_systemd_that_is_away_for_a_moment_is_asked_again(
    manager: Manager, systemd: StandIn, error: str
) -> None:
    systemd.errors["ThawUnit"] = [error, error]
    await manager.thaw_unit(UNIT)


async def test_a_systemd_that_stays_away_is_not_asked_for_ever(
    manager: Manager, systemd: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CALL_TIMEOUT_S", 0.06)
    systemd.errors["ThawUnit"] = [module.NO_OWNER] * 1000
    with pytest.raises(Refused, match="refused ThawUnit"):
        await manager.thaw_unit(UNIT)


async def test_a_manager_that_is_dead_is_not_waited_for(bus: Bus, systemd: StandIn) -> None:
    alive = True
    manager = await Manager.connect("private", bus.address, lambda: alive)
    dead, reasons = asyncio.Event(), []
    manager.on_dead, manager.on_connection = dead.set, reasons.append
    seen = await watch(manager)
    await systemd.leave()
    alive = False
    await dead.wait()
    for waiting in (seen.gone, manager.thaw_unit(UNIT)):
        with pytest.raises(BusLost, match="is dead"):
            await waiting
    assert reasons == ["systemd has left it"]
    await manager.close()


async def test_a_bus_that_hangs_up_on_us_hangs_nothing(tmp_path: Path) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.close()

    async with await asyncio.start_unix_server(hang_up, tmp_path / "bus"):
        with pytest.raises(ManagerUnavailable, match="hung up"):
            await Manager.connect("private", f"unix:path={tmp_path}/bus")


@pytest.mark.parametrize("order", ["call", "post"])
async def test_a_bus_that_has_gone_unnoticed_is_no_error_of_who_writes_first(
    bus: Bus, order: str, caplog: pytest.LogCaptureFixture
) -> None:
    ours = await bus_module.Bus.open(bus.address, lambda member, path, body: None)
    bus.kill_now()
    assert ours.is_connected
    if order == "post":
        ours.post(bus_call("GetId"))
    else:
        with pytest.raises(BusLost):
            await ours.call(bus_call("GetId"))
    await ours.lost
    await ours.close()
    gc.collect()  # would complain about an error that nobody has asked for
    assert not caplog.records


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_the_end_of_a_bus_that_has_not_read_all_is_noticed(loop: str) -> None:
    module = pytest.importorskip(loop)

    async def noticed() -> int:
        heard = 0

        def hear(member: str, path: str, body: list[Any]) -> None:
            nonlocal heard
            heard += 1

        bus = Bus()
        await bus.start()
        ours = await bus_module.Bus.open(bus.address, hear)
        await ours.call(bus_call("AddMatch", "s", "type='signal'"))
        bus.somebody_comes_and_goes()
        bus.stand_still()
        ours.post(bus_call("GetId"))
        bus.kill_now()
        async with asyncio.timeout(20):
            await ours.lost
        await ours.close()
        await bus.stop()
        return heard

    with asyncio.Runner(loop_factory=module.new_event_loop) as runner:
        assert runner.run(noticed()) >= 2  # that somebody came, and that they went


def bus_call(member: str, signature: str = "", *body: object) -> bus_module.Call:
    return bus_module.Call(bus_module.BUS, "/org/freedesktop/DBus", bus_module.BUS, member, signature, body)


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
