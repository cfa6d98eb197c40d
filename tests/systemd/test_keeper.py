"""What becomes of models whose daemon dies, in a private manager: a daemon's stand-in is killed for it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaswapd.state import Remembered
from llamaswapd.systemd import keeper, unit
from llamaswapd.systemd.keeper import RETURN_S, DaemonLives, Keeper, Orders, due
from llamaswapd.systemd.manager import Manager, Property
from llamaswapd.systemd.running import RunningUnit

NAME = "llamaswapd-keeper.service"
RUN = "0123456789abcdef" * 2

# Arms a keeper, says so, and waits to be killed. Its arguments: bus address, runtime directory, state file.
DAEMON = """
import asyncio, logging, signal, sys
from pathlib import Path
from llamaswapd.systemd.keeper import Keeper
from llamaswapd.systemd.manager import Manager

async def main():
    keeper = Keeper.under(await Manager.connect("private", sys.argv[1]), "", Path(sys.argv[2]), Path(sys.argv[3]))
    await keeper.arm()
    print("armed", flush=True)
    signal.pause()

logging.basicConfig()
asyncio.run(main())
"""

Model = Callable[..., Awaitable[RunningUnit]]


@pytest.fixture
async def manager(private: Any) -> AsyncIterator[Manager]:
    manager = await Manager.connect("private", private.bus_address)
    yield manager
    await manager.close()


@pytest.fixture
async def start(manager: Manager) -> AsyncIterator[Callable[..., Awaitable[RunningUnit]]]:
    """Start units, and see them and the keeper gone at the end."""
    names = {NAME}

    async def start(name: str, *fields: str) -> RunningUnit:
        names.add(name)
        made = keeper.running(manager, name, "")
        assert await made.start(sleeping(*fields), timeout_s=20, grace_s=1) == "done"
        return made

    yield start
    for name in names:
        left = keeper.running(manager, name, "")
        await left.attach()
        await left.stop(0)


@pytest.fixture
def model(start: Callable[..., Awaitable[RunningUnit]]) -> Model:
    async def model(model_id: str, ttl_s: int = 0) -> RunningUnit:
        return await start(unit.unit_name(model_id), f"LLAMASWAP_MODEL={model_id}", f"LLAMASWAP_TTL={ttl_s or ''}")

    return model


@pytest.fixture
def daemon(private: Any, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    arguments = [
        sys.executable,
        "-c",
        DAEMON,
        private.bus_address,
        str(private.runtime_dir.parent),
        str(tmp_path / "s"),
    ]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == "armed\n"
        yield daemon
        daemon.kill()


@pytest.fixture
async def armed(private: Any, manager: Manager, model: Model, tmp_path: Path) -> AsyncIterator[Keeper]:
    """A keeper that waits for the end of this very process."""
    armed = Keeper.under(manager, "", private.runtime_dir.parent, tmp_path / "state")
    await armed.arm()
    yield armed
    armed.let_go()


def orders(bus: socket.socket, folder: Path, lock: Path) -> Orders:
    """Orders for a keeper that will meet a bus of the test's own."""
    bus.bind(str(folder / "bus"))
    bus.listen()
    return Orders("private", f"unix:path={folder}/bus", "", lock, folder / "state")


async def refused(bus: socket.socket, successor: Path | None = None) -> None:
    """Hang up on the first who comes to the bus; the next comes to its successor."""
    first, _ = await asyncio.to_thread(bus.accept)
    if successor:
        path = Path(bus.getsockname())
        path.unlink()
        path.symlink_to(successor)
    first.close()


def sleeping(*fields: str) -> list[Property]:
    return [
        ("Type", "s", "exec"),
        ("CollectMode", "s", "inactive-or-failed"),
        ("ExecStartEx", "a(sasas)", [["/bin/sleep", ["/bin/sleep", "600"], []]]),
        ("LogExtraFields", "aay", [field.encode() for field in fields]),
    ]


async def keepers_unit(manager: Manager) -> RunningUnit:
    found = keeper.running(manager, NAME, "")
    assert await found.take_over()
    return found


async def next_pid(unit: RunningUnit, before: int) -> int:
    """Return the next main process, once it has executed its program."""
    while unit.pid in (0, before) or unit._properties["ActiveState"] != "active":
        unit.notified.clear()
        await unit.notified.wait()
    return unit.pid


def program(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.private
class TestWhenTheDaemonDies:
    async def test_models_with_a_ttl_go_and_those_without_stay(
        self, manager: Manager, model: Model, daemon: subprocess.Popen[str]
    ) -> None:
        idle, other, kept = await model("idle", 1), await model("org/other", 1), await model("kept")
        waiting = await keepers_unit(manager)
        daemon.kill()
        await asyncio.gather(idle.ended, other.ended)
        assert str(await waiting.ended) == "exit status 0"  # its work is done
        assert is_alive(kept.pid)

    async def test_the_keeper_is_a_sleeping_flock_until_then(
        self, manager: Manager, model: Model, daemon: subprocess.Popen[str]
    ) -> None:
        assert program((await keepers_unit(manager)).pid) == "flock"

    async def test_a_keeper_without_models_ends(
        self, manager: Manager, model: Model, daemon: subprocess.Popen[str]
    ) -> None:
        waiting = await keepers_unit(manager)
        daemon.kill()
        assert str(await waiting.ended) == "exit status 0"

    async def test_a_bus_that_is_away_is_tried_again_though_the_lock_has_gone_with_its_folder(
        self, private: Any, model: Model, tmp_path: Path
    ) -> None:
        idle = await model("idle", 1)
        with socket.socket(socket.AF_UNIX) as bus:
            keeping = asyncio.create_task(keeper.keep(orders(bus, tmp_path, tmp_path / "gone" / "alive")))
            await refused(bus, private.runtime_dir / "bus")
        await asyncio.gather(keeping, idle.ended)

    async def test_a_keeper_that_was_killed_is_back_in_time(
        self, manager: Manager, model: Model, daemon: subprocess.Popen[str]
    ) -> None:
        idle = await model("idle", 1)
        waiting = await keepers_unit(manager)
        os.kill(before := waiting.pid, signal.SIGKILL)
        await next_pid(waiting, before)
        daemon.kill()
        await idle.ended


@pytest.mark.private
class TestWhenADaemonComesBack:
    async def test_its_own_keeper_takes_the_place_of_the_one_that_was_roused(
        self, private: Any, manager: Manager, model: Model, daemon: subprocess.Popen[str], tmp_path: Path
    ) -> None:
        idle = await model("idle", 1)
        roused = (await keepers_unit(manager)).pid
        daemon.kill()
        daemon.wait()
        back = Keeper.under(manager, "", private.runtime_dir.parent, tmp_path / "state")
        await back.arm()
        assert not is_alive(roused)
        assert program((await keepers_unit(manager)).pid) == "flock"
        assert is_alive(idle.pid)
        back.let_go()
        await idle.ended

    async def test_a_keeper_that_was_not_replaced_stops_nothing(self, model: Model, tmp_path: Path) -> None:
        idle = await model("idle", 1)
        lock = keeper.take(tmp_path / "alive")
        with pytest.raises(DaemonLives):
            await keeper.expire(idle, 1.0, 0.0, tmp_path / "alive")
        os.close(lock)
        assert is_alive(idle.pid)

    async def test_a_keeper_that_was_not_replaced_waits_again(
        self, private: Any, manager: Manager, model: Model, armed: Keeper
    ) -> None:
        """Its exit status is a failure, so systemd runs flock again."""
        idle = await model("idle", 1)
        waiting = await keepers_unit(manager)
        before = waiting.pid
        lock = keeper.take(private.runtime_dir / "alive")
        armed.let_go()
        assert program(await next_pid(waiting, before)) == "flock"
        assert is_alive(idle.pid)
        os.close(lock)
        await idle.ended

    async def test_it_waits_again_also_while_it_cannot_reach_systemd(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as bus:
            keeping = asyncio.create_task(keeper.keep(orders(bus, tmp_path, tmp_path / "alive")))
            await refused(bus)
            lock = keeper.take(tmp_path / "alive")
            with pytest.raises(DaemonLives):
                await keeping
            os.close(lock)

    async def test_a_model_that_ends_by_itself_is_not_waited_for(self, model: Model, tmp_path: Path) -> None:
        idle = await model("idle", 1)
        ending = asyncio.create_task(keeper.expire(idle, 1.0, float("inf"), tmp_path / "alive"))
        os.kill(idle.pid, signal.SIGKILL)
        assert await ending


@pytest.mark.private
class TestArming:
    async def test_disarming_leaves_neither_unit_nor_file(
        self, private: Any, manager: Manager, model: Model, armed: Keeper
    ) -> None:
        assert (private.runtime_dir / "alive").exists()
        await armed.disarm()
        assert not await manager.list_units(NAME)
        assert not (private.runtime_dir / "alive").exists()

    async def test_without_flock_there_is_a_warning_with_the_remedy(
        self,
        private: Any,
        manager: Manager,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        tmp_path: Path,
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        without = Keeper.under(manager, "", private.runtime_dir.parent, tmp_path / "state")
        await without.arm()
        await without.disarm()
        assert "install util-linux" in caplog.text

    async def test_a_unit_of_somebody_else_is_left_alone(
        self,
        manager: Manager,
        private: Any,
        start: Callable[..., Awaitable[RunningUnit]],
        caplog: pytest.LogCaptureFixture,
        tmp_path: Path,
    ) -> None:
        other = await start(NAME)
        refused = Keeper.under(manager, "", private.runtime_dir.parent, tmp_path / "state")
        await refused.arm()
        await refused.disarm()
        assert "that is not ours" in caplog.text
        assert is_alive(other.pid)

    async def test_without_a_lock_of_its_own_it_replaces_the_one_before_by_none(
        self,
        private: Any,
        manager: Manager,
        model: Model,
        daemon: subprocess.Popen[str],
        caplog: pytest.LogCaptureFixture,
        tmp_path: Path,
    ) -> None:
        """The one before takes the new daemon for dead, too."""
        in_the_way = private.runtime_dir / "alive.new"
        in_the_way.mkdir()
        back = Keeper.under(manager, "", private.runtime_dir.parent, tmp_path / "state")
        await back.arm()
        in_the_way.rmdir()
        assert not await manager.list_units(NAME)
        assert "will not be stopped by their ttl" in caplog.text

    async def test_a_lock_that_cannot_be_had_is_a_warning(
        self, manager: Manager, caplog: pytest.LogCaptureFixture, tmp_path: Path
    ) -> None:
        nowhere = Keeper.under(manager, "", tmp_path / "nowhere", tmp_path / "state")
        await nowhere.arm()
        nowhere.let_go()
        assert [record.levelno for record in caplog.records] == [logging.WARNING]


class TestWhenAModelIsDue:
    @pytest.mark.parametrize(
        ("last_used", "ttl_s", "deadline"),
        [
            (0.0, 60.0, 1060.0),  # nothing is known of it: from the death on
            (995.0, 60.0, 1055.0),
            (500.0, 600.0, 1100.0),
            (500.0, 60.0, 1000.0 + RETURN_S),  # over already, but the daemon may be back at once
            (500.0, 5.0, 1005.0),
            (1500.0, 60.0, 1060.0),  # not of this world
        ],
    )
    def test_it_is_its_ttl_after_its_last_use(self, last_used: float, ttl_s: float, deadline: float) -> None:
        assert due(ttl_s, Remembered(RUN, 0.0, last_used), died=1000.0) == deadline

    def test_a_model_that_was_never_used_counts_from_its_readiness(self) -> None:
        assert due(600.0, Remembered(RUN, 900.0, 0.0), died=1000.0) == 1500.0

    def test_a_model_of_which_nothing_was_written_counts_from_the_death(self) -> None:
        assert due(600.0, None, died=1000.0) == 1600.0

    @given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e6), st.floats(1, 1e6))
    def test_it_is_never_later_than_its_ttl_after_the_death(
        self, ready_at: float, last_used: float, died: float, ttl_s: float
    ) -> None:
        deadline = due(ttl_s, Remembered(RUN, ready_at, last_used), died)
        assert died + min(ttl_s, RETURN_S) <= deadline <= died + ttl_s


class TestTheLock:
    def test_tells_that_a_daemon_lives(self, tmp_path: Path) -> None:
        lock = keeper.take(tmp_path / "alive")
        with pytest.raises(DaemonLives):
            keeper.time_of_death(tmp_path / "alive")
        os.close(lock)

    def test_of_a_new_daemon_is_not_held_up_by_an_old_keeper(self, tmp_path: Path) -> None:
        os.close(keeper.take(tmp_path / "alive"))
        waiting = ["flock", "--shared", "--no-fork", str(tmp_path / "alive"), "cat"]
        with subprocess.Popen(waiting, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as roused:
            assert roused.stdin is not None
            assert roused.stdout is not None
            print("here", file=roused.stdin, flush=True)
            assert roused.stdout.readline() == "here\n"
            os.close(keeper.take(tmp_path / "alive"))
            roused.stdin.close()

    def test_leaves_nothing_beside_it(self, tmp_path: Path) -> None:
        os.close(keeper.take(tmp_path / "alive"))
        assert os.listdir(tmp_path) == ["alive"]

    def test_has_the_time_of_death_for_those_who_come_later(self, tmp_path: Path) -> None:
        os.close(keeper.take(tmp_path / "alive"))
        before = time.monotonic()
        died = keeper.time_of_death(tmp_path / "alive")
        assert before <= died <= time.monotonic()
        assert keeper.time_of_death(tmp_path / "alive") == died

    def test_that_has_no_room_for_the_time_is_a_death(self) -> None:
        assert keeper.time_of_death(Path("/dev/full")) <= time.monotonic()

    def test_that_has_gone_with_its_folder_is_a_death(self, tmp_path: Path) -> None:
        assert keeper.time_of_death(tmp_path / "gone" / "alive") <= time.monotonic()

    @pytest.mark.parametrize("text", ["", "nan", "1e300", "-5", "rubbish", "\xff"])
    def test_that_holds_rubbish_is_a_death_just_now(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "alive").write_text(text)
        before = time.monotonic()
        assert before <= keeper.time_of_death(tmp_path / "alive") <= time.monotonic()


class TestNames:
    @given(st.from_regex(r"\A[a-z0-9_]{0,32}\Z"), st.text(max_size=300), st.from_regex(r"\A[a-z0-9_]{0,32}\Z"))
    def test_no_models_unit_of_any_instance_has_the_name_of_a_keeper(
        self, instance: str, model_id: str, other: str
    ) -> None:
        assert keeper.unit_name(instance) != unit.unit_name(model_id.encode(errors="replace").decode(), other)

    def test_of_an_instance(self) -> None:
        assert keeper.unit_name("lab") == "llamaswapd-lab-keeper.service"
        assert keeper.slice_name("lab") == "llamaswapd-lab.slice"


def test_orders_survive_the_command_line() -> None:
    given_ = Orders("user", "unix:path=/run/user/1000/bus,guid=1", "", Path("/a b/alive"), Path("/s/state.json"))
    assert Orders.parse(given_.argv()) == given_


def test_a_keeper_of_a_user_is_one_who_can_do_nothing() -> None:
    theirs = {name: value for name, _, value in keeper.settings(["/bin/flock"], "", "llamaswapd")}
    assert (theirs["User"], theirs["NoNewPrivileges"], theirs["CapabilityBoundingSet"]) == ("llamaswapd", True, 0)
    assert "User" not in {name for name, _, _ in keeper.settings(["/bin/flock"], "")}
