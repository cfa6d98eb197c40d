"""Units that really run, in a private manager: every trap of starting, watching and stopping one."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from llamaswapd.errors import BusLost, UnitError, UnitResult
from llamaswapd.systemd import running
from llamaswapd.systemd.bus import Refused
from llamaswapd.systemd.cgroup import Resources
from llamaswapd.systemd.manager import UNIT_EXISTS, Manager, Property
from llamaswapd.systemd.running import RunningUnit
from llamaswapd.systemd.unit import object_path

pytestmark = pytest.mark.private

TERMINATED = UnitResult("success", 2, signal.SIGTERM)
KILLED = UnitResult("signal", 2, signal.SIGKILL)
DEAF = "trap '' TERM; echo $$ > {fifo}; while :; do sleep 0.05; done"

Make = Callable[..., RunningUnit]


@pytest.fixture
async def manager(private: Any, tmp_path: Path) -> AsyncIterator[Manager]:
    """A connection that can be cut: by way of a link to the bus."""
    (tmp_path / "bus").symlink_to(private.runtime_dir / "bus")
    manager = await Manager.connect("private", f"unix:path={tmp_path}/bus")
    yield manager
    await manager.close()


@pytest.fixture
async def make(private: Any, manager: Manager) -> AsyncIterator[Make]:
    """Make units, and see them gone at the end."""
    made = []

    def make(name: str = "llamaswapd-model-t.service") -> RunningUnit:
        unit = RunningUnit(manager, name, object_path(name), private.cgroup_root, cast(Any, None))
        made.append(unit)
        return unit

    yield make
    for unit in made:
        await unit.attach()
        await unit.stop(0)


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """A pipe through which a unit's program reports to the test, or waits for it."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


async def said(fifo: Path) -> str:
    return (await asyncio.to_thread(fifo.read_text)).strip()


async def say(fifo: Path) -> None:
    await asyncio.to_thread(fifo.write_text, "go\n")


def properties(*argv: str, **settings: tuple[str, Any]) -> Iterable[Property]:
    base: dict[str, tuple[str, Any]] = {
        "Type": ("s", "exec"),
        "CollectMode": ("s", "inactive-or-failed"),
        "NotifyAccess": ("s", "all"),
        "ExecStartEx": ("a(sasas)", [[argv[0], list(argv), ["no-env-expand"]]]),
    }
    return [(name, signature, value) for name, (signature, value) in {**base, **settings}.items()]


def shell(script: str, **settings: tuple[str, Any]) -> Iterable[Property]:
    return properties("/bin/sh", "-c", script, **settings)


SLEEP = properties("/bin/sleep", "600")


async def start(unit: RunningUnit, what: Iterable[Property] = SLEEP) -> RunningUnit:
    assert await unit.start(what, timeout_s=20, grace_s=1) == "done"
    return unit


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_a_start_returns_a_unit_that_runs_although_the_first_signals_say_inactive(make: Make) -> None:
    unit = await start(make())
    assert is_alive(unit.pid)
    assert len(unit.invocation) == 32
    assert not unit.ended.done()


@pytest.mark.parametrize("is_found", [False, True])
async def test_how_a_unit_ended_stays_readable_until_that_has_been_seen(
    make: Make, manager: Manager, monkeypatch: pytest.MonkeyPatch, is_found: bool
) -> None:
    unit = await start(make())
    if is_found:
        manager.unref_unit(unit.name)
        unit = make()
        await unit.take_over()
    monkeypatch.setattr(manager, "unref_unit", lambda unit: None)
    os.kill(unit.pid, signal.SIGSEGV)
    await unit.ended
    properties = await manager.look(unit._watch)
    assert (properties["ActiveState"], properties["ExecMainStatus"]) == ("failed", signal.SIGSEGV)
    monkeypatch.undo()
    await unit.stop(1)


async def test_a_missing_program_fails_the_start(make: Make) -> None:
    unit = make()
    assert await unit.start(properties("/nowhere/server"), 20, 1) == "failed"
    assert str(unit.result) == "exit status 203/EXEC (exit-code)"


async def test_a_failed_start_leaves_the_name_free(make: Make) -> None:
    await make().start(properties("/nowhere/server"), 20, 1)
    await start(make())


async def test_type_simple_says_done_too_early_and_the_end_is_still_noticed(make: Make) -> None:
    unit = await start(make(), properties("/nowhere/server", Type=("s", "simple")))
    assert await unit.ended == UnitResult("exit-code", 1, 203)


async def test_an_exit_is_noticed_with_its_status(make: Make, fifo: Path) -> None:
    unit = await start(make(), shell(f"read line < {fifo}; exit 3"))
    await say(fifo)
    assert await unit.ended == UnitResult("exit-code", 1, 3)
    assert unit.pid == 0


async def test_the_result_outlives_the_collected_unit(make: Make, fifo: Path) -> None:
    unit = await start(make(), shell(f"read line < {fifo}; exit 3"))
    await say(fifo)
    await asyncio.shield(unit._watch.gone)
    assert await unit.ended == UnitResult("exit-code", 1, 3)


async def test_a_kill_from_outside_is_noticed(make: Make) -> None:
    unit = await start(make())
    os.kill(unit.pid, signal.SIGKILL)
    assert await unit.ended == KILLED


async def test_the_end_of_the_main_process_is_noticed_while_children_live_on(make: Make, fifo: Path) -> None:
    script = f"trap '' TERM; (while :; do sleep 0.05; done) & echo $! > {fifo}; wait"
    unit = await start(make(), shell(script))
    child = int(await said(fifo))
    os.kill(unit.pid, signal.SIGKILL)
    assert await unit.ended == KILLED
    assert is_alive(child)


async def test_a_stop_that_is_obeyed(make: Make) -> None:
    unit = await start(make())
    pid = unit.pid
    await unit.stop(20)
    assert not is_alive(pid)
    assert await unit.ended == TERMINATED


async def test_a_unit_that_ignores_sigterm_is_killed_after_its_grace(make: Make, fifo: Path) -> None:
    unit = await start(make(), shell(DEAF.format(fifo=fifo)))
    pid = int(await said(fifo))
    await unit.stop(0.05)
    assert not is_alive(pid)
    assert (await unit.ended).exit_status == signal.SIGKILL


async def test_a_stop_command_that_hangs_does_not_prolong_the_grace(make: Make) -> None:
    hang = ["/bin/sleep", ["/bin/sleep", "600"], False]
    unit = await start(make(), properties("/bin/sleep", "600", ExecStop=("a(sasb)", [hang])))
    await unit.stop(0.05)
    assert (await unit.ended).exit_status == signal.SIGKILL


async def test_a_unit_that_stays_is_told_in_words_that_fit_behind_its_name(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "KILL_TIMEOUT_S", 0.1)
    after = ["/bin/sleep", ["/bin/sleep", "1"], True]  # twice: the first may be killed with the rest
    unit = await start(make(), properties("/bin/sleep", "600", ExecStopPost=("a(sasb)", [after, after])))
    with pytest.raises(UnitError, match=r"^it is still there after SIGKILL$"):
        await unit.stop(0.05)


async def test_what_follows_a_units_end_is_run_after_a_sigkill_too(make: Make, tmp_path: Path, fifo: Path) -> None:
    child = f"(trap '' TERM; echo $$ > {fifo}; exec sleep 600) & trap '' TERM; wait; sleep 600"
    after = ["/bin/sh", ["/bin/sh", "-c", f"sleep 0.1; echo removed > {tmp_path}/after"], False]
    unit = make()
    starting = asyncio.create_task(
        start(unit, shell(child, KillMode=("s", "mixed"), ExecStopPost=("a(sasb)", [after])))
    )
    await said(fifo)
    await starting
    await unit.stop(0.2)
    assert (tmp_path / "after").read_text() == "removed\n"


async def test_sendsigkill_no_is_respected(make: Make, fifo: Path, caplog: pytest.LogCaptureFixture) -> None:
    script = f"trap '' TERM; echo ready > {fifo}; read line < {fifo}"
    unit = await start(make(), shell(script, SendSIGKILL=("b", False)))
    await said(fifo)
    waits = asyncio.Event()
    handler = logging.Handler()
    handler.emit = lambda record: waits.set()  # type: ignore[method-assign]
    logging.getLogger("llamaswapd.systemd.running").addHandler(handler)
    stopping = asyncio.ensure_future(unit.stop(0.05))
    await waits.wait()
    logging.getLogger("llamaswapd.systemd.running").removeHandler(handler)
    assert not unit.ended.done()
    await say(fifo)
    await stopping
    assert (await unit.ended).code == 1


async def test_what_forked_twice_and_left_its_session_is_gone_too(make: Make, fifo: Path) -> None:
    script = f"(setsid sh -c '(sleep 600 & echo $! > {fifo}) &' &) ; exec sleep 600"
    unit = await start(make(), shell(script))
    daemon = int(await said(fifo))
    assert is_alive(daemon)
    await unit.stop(20)
    assert not is_alive(daemon)


async def test_two_stops_at_once_both_return_when_it_is_gone(make: Make) -> None:
    unit = await start(make())
    pid = unit.pid
    await asyncio.gather(unit.stop(20), unit.stop(20))
    assert not is_alive(pid)


async def test_an_impatient_stop_overtakes_a_patient_one(make: Make, fifo: Path) -> None:
    unit = await start(make(), shell(DEAF.format(fifo=fifo)))
    await said(fifo)
    await asyncio.gather(unit.stop(600), unit.stop(0.05))
    assert (await unit.ended).exit_status == signal.SIGKILL


async def test_a_unit_that_is_gone_may_be_stopped_again(make: Make) -> None:
    unit = await start(make())
    await unit.stop(20)
    await unit.stop(20)


async def test_a_unit_that_never_was_can_be_stopped(make: Make) -> None:
    unit = make("llamaswapd-model-never.service")
    await unit.attach()
    await unit.stop(20)


async def test_a_stop_during_the_start_ends_both(make: Make, fifo: Path) -> None:
    unit = make()
    never_ready = shell(f"echo $$ > {fifo}; exec sleep 600", Type=("s", "notify"))
    starting = asyncio.ensure_future(unit.start(never_ready, 20, 1))
    pid = int(await said(fifo))
    await unit.stop(20)
    assert await starting == "canceled"
    assert not is_alive(pid)


async def test_a_cancelled_start_leaves_nothing(make: Make, fifo: Path) -> None:
    unit = make()
    never_ready = shell(f"echo $$ > {fifo}; exec sleep 600", Type=("s", "notify"))
    starting = asyncio.ensure_future(unit.start(never_ready, 20, 1))
    pid = int(await said(fifo))
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not is_alive(pid)


async def test_a_start_that_takes_too_long_is_given_up(make: Make, fifo: Path) -> None:
    unit = make()
    assert await unit.start(properties("/bin/sleep", "600", Type=("s", "notify")), 0.1, 1) == "timeout"
    assert unit.pid == 0


async def test_a_name_is_taken_until_its_unit_is_gone(make: Make) -> None:
    await start(make())
    with pytest.raises(Refused) as refused:
        await make().start(SLEEP, 20, 1)
    assert refused.value.name == UNIT_EXISTS


async def test_a_unit_that_failed_and_was_not_collected_can_be_removed(make: Make, fifo: Path) -> None:
    first = await start(make(), shell(f"read line < {fifo}; exit 3", CollectMode=("s", "inactive")))
    await say(fifo)
    await first.ended
    await first.stop(20)
    await start(make())


async def test_start_and_stop_fifty_times_without_a_pause(make: Make) -> None:
    for _ in range(50):
        unit = await start(make())
        await unit.stop(20)


async def test_thirty_starts_at_once(make: Make) -> None:
    units = [make(f"llamaswapd-model-{number}.service") for number in range(30)]
    await asyncio.gather(*(start(unit) for unit in units))
    assert len({unit.pid for unit in units}) == 30
    await asyncio.gather(*(unit.stop(20) for unit in units))
    assert [await unit.ended for unit in units] == [TERMINATED] * 30


async def test_a_frozen_unit_is_thawed_and_stopped(make: Make, manager: Manager) -> None:
    unit = await start(make())
    try:
        await manager._call("FreezeUnit", "s", unit.name)
    except Refused as error:
        pytest.skip(str(error))
    await unit.stop(20)
    assert await unit.ended == TERMINATED


@pytest.mark.parametrize("message", ["READY=1", "STATUS=loading"])
async def test_signs_of_life_of_the_server_are_noticed(make: Make, fifo: Path, message: str) -> None:
    unit = await start(make(), shell(f"read line < {fifo}; systemd-notify {message}; exec sleep 600"))
    await asyncio.sleep(0)
    unit.notified.clear()
    await say(fifo)
    await unit.notified.wait()
    assert not unit.ended.done()


async def test_a_port_of_the_unit_is_no_strangers(make: Make, fifo: Path) -> None:
    script = f"""
import socket
listener = socket.create_server(("127.0.0.1", 0))
open({str(fifo)!r}, "w").write(str(listener.getsockname()[1]))
listener.accept()
"""
    server, other = (
        await start(make(), properties(sys.executable, "-c", script)),
        make("llamaswapd-model-o.service"),
    )
    port = int(await said(fifo))
    assert await server.stranger(port) is None
    await start(other)
    named = str(await other.stranger(port))
    assert named.startswith(f"process {server.pid} (python")
    assert named.endswith(f" of unit {server.name}")


@pytest.mark.parametrize("verb", ["daemon-reload", "daemon-reexec"])
async def test_a_reload_of_systemd_is_no_end_of_the_unit(private: Any, make: Make, verb: str) -> None:
    unit, other = make(), make("llamaswapd-model-other.service")
    for each in (unit, other):
        assert await each.start(properties("/bin/sleep", "infinity"), 10, 5) == "done"
    await systemctl(private, verb)
    # What is signalled of the other's end comes after all that the reload has caused.
    await other.stop(5)
    assert not unit.ended.done()
    os.kill(unit.pid, signal.SIGKILL)
    assert await unit.ended == KILLED


async def systemctl(private: Any, *arguments: str) -> str:
    """Run it on the private manager, with which it speaks without a bus."""
    argv = ("systemctl", "--user", *arguments)
    environ = {**os.environ, **private.environment}
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE, env=environ)
    printed, _ = await process.communicate()
    assert process.returncode == 0
    return printed.decode().strip()


class Bus:
    """The private manager's, killed and kept away from us."""

    def __init__(self, private: Any, manager: Manager, link: Path) -> None:
        self._private, self._link = private, link
        self._told: asyncio.Queue[str] = asyncio.Queue()
        manager.on_connection = self._told.put_nowait

    async def goes(self) -> None:
        self._link.unlink()
        os.kill(int(await systemctl(self._private, "show", "--value", "-p", "MainPID", "dbus.service")), signal.SIGKILL)
        assert await self._told.get() != ""

    async def comes(self) -> None:
        self.link()
        assert await self._told.get() == ""

    def link(self) -> None:
        if not self._link.is_symlink():
            self._link.symlink_to(self._private.runtime_dir / "bus")


@pytest.fixture
def bus(private: Any, make: Make, manager: Manager, tmp_path: Path) -> Iterator[Bus]:
    bus = Bus(private, manager, tmp_path / "bus")
    yield bus
    bus.link()  # for those that are put away next


async def vanished(pid: int) -> None:
    """Wait for the end of a process that is nobody's child here."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(process, ended.set)
    await ended.wait()
    asyncio.get_running_loop().remove_reader(process)
    os.close(process)


class TestWhileTheBusIsAway:
    NEVER_READY = "echo $$ > {fifo}; read line < {fifo}; {then}; exec sleep 600"

    async def test_a_unit_runs_on_and_its_end_is_noticed_afterwards(self, make: Make, bus: Bus) -> None:
        unit = await start(make())
        await bus.goes()
        await bus.comes()
        assert not unit.ended.done()
        os.kill(unit.pid, signal.SIGKILL)
        assert await unit.ended == KILLED

    @pytest.mark.parametrize("times", [3])
    async def test_it_may_go_again_and_again(self, make: Make, bus: Bus, times: int) -> None:
        unit = await start(make())
        for _ in range(times):
            await bus.goes()
            await bus.comes()
        await unit.stop(20)
        assert await unit.ended == TERMINATED

    async def test_a_unit_that_ends_has_ended_from_an_unknown_cause(self, make: Make, bus: Bus) -> None:
        unit = await start(make())
        await bus.goes()
        os.kill(pid := unit.pid, signal.SIGKILL)
        await vanished(pid)
        assert not unit.ended.done()
        await bus.comes()
        # Known after all if systemd lets go of the unit, whose reference went with the bus, later than we are back.
        assert str(await unit.ended) in ("ended (unknown)", "killed by SIGKILL (signal)")
        await unit.stop(20)
        await start(make())

    async def test_a_unit_that_ends_and_stays_loaded_says_why(self, make: Make, bus: Bus, fifo: Path) -> None:
        unit = await start(make(), shell(f"read line < {fifo}; exit 3", CollectMode=("s", "inactive")))
        await bus.goes()
        pid = unit.pid
        await say(fifo)
        await vanished(pid)
        await bus.comes()
        assert await unit.ended == UnitResult("exit-code", 1, 3)

    async def test_a_start_that_was_waited_for_succeeds(self, make: Make, bus: Bus, fifo: Path) -> None:
        unit = make()
        script = self.NEVER_READY.format(fifo=fifo, then="systemd-notify --ready")
        starting = asyncio.ensure_future(unit.start(shell(script, Type=("s", "notify")), 20, 1))
        await said(fifo)
        await bus.goes()
        await say(fifo)
        await bus.comes()
        assert await starting == "done"
        assert not unit.ended.done()

    async def test_a_start_that_was_waited_for_fails(self, make: Make, bus: Bus, fifo: Path) -> None:
        unit = make()
        script = self.NEVER_READY.format(fifo=fifo, then="exit 3")
        starting = asyncio.ensure_future(unit.start(shell(script, Type=("s", "notify")), 20, 1))
        pid = int(await said(fifo))
        await bus.goes()
        await say(fifo)
        await vanished(pid)
        await bus.comes()
        assert await starting == "failed"

    async def test_a_start_waits(self, make: Make, bus: Bus) -> None:
        unit = make()
        await bus.goes()
        starting = asyncio.ensure_future(start(unit))
        await asyncio.sleep(0)
        await bus.comes()
        await starting
        assert is_alive(unit.pid)

    async def test_a_start_does_not_wait_for_ever(self, make: Make, bus: Bus) -> None:
        await bus.goes()
        with pytest.raises(BusLost, match=r"llamaswapd-model-t\.service cannot be started: .* no bus for 0\.05 s"):
            await make().start(SLEEP, 0.05, 1)
        await bus.comes()

    async def test_a_stop_waits_and_the_unit_has_its_grace_all_the_same(self, make: Make, bus: Bus) -> None:
        unit = await start(make())
        await bus.goes()
        stopping = asyncio.ensure_future(unit.stop(2))
        done, _ = await asyncio.wait((stopping,), timeout=2.1)
        assert not done
        await bus.comes()
        await stopping
        assert await unit.ended == TERMINATED

    async def test_a_stop_that_was_waited_for_is_over(self, make: Make, bus: Bus, fifo: Path) -> None:
        asked = f"echo asked > {fifo}; read line < {fifo}; exit 0"
        script = f"trap '{asked}' TERM; echo $$ > {fifo}; while :; do sleep 0.05; done"
        unit = await start(make(), shell(script))
        pid = int(await said(fifo))
        stopping = asyncio.ensure_future(unit.stop(20))
        assert await said(fifo) == "asked"
        await bus.goes()
        await say(fifo)
        await vanished(pid)
        await bus.comes()
        await stopping
        assert not is_alive(pid)

    async def test_a_cancelled_start_leaves_nothing_once_it_is_back(self, make: Make, bus: Bus, fifo: Path) -> None:
        script = self.NEVER_READY.format(fifo=fifo, then="exit 3")
        starting = asyncio.ensure_future(make().start(shell(script, Type=("s", "notify")), 20, 1))
        pid = int(await said(fifo))
        await bus.goes()
        starting.cancel()
        await asyncio.sleep(0)
        await bus.comes()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert not is_alive(pid)


@pytest.mark.parametrize("verb", ["daemon-reload", "daemon-reexec"])
async def test_a_start_goes_on_while_systemd_reloads(private: Any, make: Make, fifo: Path, verb: str) -> None:
    unit = make()
    never_ready = f"echo $$ > {fifo}; read line < {fifo}; systemd-notify --ready; exec sleep 600"
    starting = asyncio.ensure_future(unit.start(shell(never_ready, Type=("s", "notify")), 20, 1))
    await said(fifo)
    await systemctl(private, verb)
    await say(fifo)
    assert await starting == "done"
    assert not unit.ended.done()


async def test_a_start_that_is_left_leaves_the_unit_as_it_is(make: Make, fifo: Path) -> None:
    unit = make()
    never_ready = shell(f"echo $$ > {fifo}; exec sleep 600", Type=("s", "notify"))
    starting = asyncio.ensure_future(unit.start(never_ready, 20, 1, lambda: True))
    pid = int(await said(fifo))
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert is_alive(pid)


async def test_a_unit_that_runs_can_be_taken_over(make: Make) -> None:
    started, unit = await start(make()), make()
    assert (await unit.take_over())["MainPID"] == started.pid
    assert (unit.pid, unit.invocation) == (started.pid, started.invocation)
    assert unit.resources().cpu_s is not None
    os.kill(unit.pid, signal.SIGKILL)
    assert await unit.ended == KILLED
    await unit.stop(20)


async def test_a_unit_that_is_loading_is_taken_over_and_its_failure_is_its_end(make: Make, fifo: Path) -> None:
    never_ready = f"echo $$ > {fifo}; read line < {fifo}; exit 3"
    starting = asyncio.ensure_future(make().start(shell(never_ready, Type=("s", "notify")), 20, 1))
    await said(fifo)
    unit = make()
    assert (await unit.take_over())["ActiveState"] == "activating"
    assert not unit.ended.done()
    await say(fifo)
    assert await unit.ended == UnitResult("exit-code", 1, 3)
    assert await starting == "failed"


async def test_there_is_nothing_to_take_over_from_a_unit_that_is_not_there(make: Make, manager: Manager) -> None:
    assert await make().take_over() == {}
    await asyncio.sleep(0)
    assert not manager._watches


async def test_a_unit_says_what_it_uses_until_it_is_gone(make: Make) -> None:
    """Its cgroup counts it or, where the machine keeps the controllers to cgroup v1, its processes are asked."""
    unit = await start(make(), shell("sleep 600 & wait"))
    used = unit.resources()
    assert used.cpu_s is not None
    assert used.tasks in (1, 2)
    assert used.memory_bytes
    await unit.stop(5)
    assert unit.resources() == Resources()


async def test_a_unit_that_is_not_started_uses_nothing_that_is_known(make: Make) -> None:
    assert make().resources() == Resources()
