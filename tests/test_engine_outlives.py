"""What outlives an engine, and what the next one makes of it; models that keep dying."""

from __future__ import annotations

import asyncio
import time

import pytest
from engine_support import GRACE_S, Backend, Found, Unit, counts, load, model, running, slow, swapping, together, until

from llamaswapd.config.schema import Config, Profile
from llamaswapd.core.lifecycle import State
from llamaswapd.engine import Engine
from llamaswapd.engine.engine import FREE_DEATHS
from llamaswapd.errors import BusLost, CrashLoop, ShuttingDown, StartError, UnitResult
from llamaswapd.state import Remembered
from llamaswapd.state import State as Memory

NOTHING = Memory()


def remembered(found: Found, ready_at: float, last_used: float) -> Memory:
    return Memory({found.model_id: Remembered(found.unit.invocation, ready_at, last_used)})


# ---- adoption


async def test_a_unit_that_is_as_configured_is_taken_over_once_it_answers() -> None:
    async with running(swapping(slow("a"))) as (engine, backend):
        found = backend.found(slow("a"))
        engine.adopt([found], NOTHING)
        assert engine.status("a").state is State.STARTING
        assert engine.status("a").unit == "llamaswapd-model-a.service"
        found.unit.is_up.set()
        await until(engine, "a", State.READY)
        await load(engine, "a")
        assert backend.asked.empty()


async def test_requests_wait_for_a_model_that_was_found_loading() -> None:
    async with running(swapping(slow("a"))) as (engine, backend):
        found = backend.found(slow("a"))
        engine.adopt([found], NOTHING)
        with engine.lease("a") as lease:
            assert not lease.is_granted
            found.unit.is_up.set()
            await lease.granted()
        assert backend.asked.empty()


async def test_one_that_does_not_come_up_is_a_failed_start() -> None:
    async with running(swapping(slow("a"))) as (engine, backend):
        found = backend.found(slow("a"))
        engine.adopt([found], NOTHING)
        found.unit.end(UnitResult("exit-code", 1, 3))
        await until(engine, "a", State.STOPPED)
        client = asyncio.create_task(load(engine, "a"))
        (await backend.units.get()).is_up.set()
        await client


@pytest.mark.parametrize("case", ["of another definition", "going already", "of no model"])
async def test_any_other_unit_is_stopped_before_anything_starts(case: str) -> None:
    async with running(together(model("a"), model("b"))) as (engine, backend):
        found = {
            "of another definition": lambda: backend.found(model("a"), of=model("a", cmd="other")),
            "going already": lambda: backend.found(model("a"), is_up=False),
            "of no model": lambda: backend.found(model("gone")),
        }[case]()
        found.unit.may_go.clear()
        engine.adopt([found], NOTHING)
        clients = [asyncio.create_task(load(engine, name)) for name in ("a", "b")]
        assert await found.unit.graces.get() == GRACE_S
        assert backend.asked.empty()
        found.unit.may_go.set()
        await asyncio.gather(*clients)
        assert backend.running == {"a", "b"}


async def test_what_was_taken_over_serves_while_others_are_being_stopped() -> None:
    async with running(together(model("a"))) as (engine, backend):
        other = backend.found(model("gone"))
        other.unit.may_go.clear()
        engine.adopt([backend.found(model("a")), other], NOTHING)
        await load(engine, "a")
        assert backend.asked.empty()


async def test_the_idle_clock_goes_on_where_it_was() -> None:
    async with running(swapping(model("a", ttl=1000))) as (engine, backend):
        found = backend.found(model("a", ttl=1000))
        now = time.monotonic()
        engine.adopt([found], remembered(found, now - 500, now - 300))
        await until(engine, "a", State.READY)
        status = engine.status("a")
        assert status.idle_unload_in_s is not None
        assert 600 < status.idle_unload_in_s <= 700
        assert status.since == pytest.approx(time.time() - 500, abs=60)
        assert status.last_used == pytest.approx(time.time() - 300, abs=60)


async def test_a_ttl_that_has_passed_meanwhile_counts() -> None:
    async with running(swapping(model("a", ttl=100))) as (engine, backend):
        found = backend.found(model("a", ttl=100))
        now = time.monotonic()
        engine.adopt([found], remembered(found, now - 500, now - 300))
        assert await found.unit.graces.get() == GRACE_S
        await until(engine, "a", State.STOPPED)


async def test_what_is_remembered_of_another_run_of_the_unit_does_not_count() -> None:
    async with running(swapping(model("a", ttl=100))) as (engine, backend):
        found = backend.found(model("a", ttl=100))
        engine.adopt([found], Memory({"a": Remembered("other", 1.0, 1.0)}))
        await until(engine, "a", State.READY)
        assert found.unit.graces.empty()
        assert engine.status("a").last_used == 0


async def test_one_without_a_probe_that_was_ready_is_not_asked_for_its_log_line_again() -> None:
    async with running(swapping(slow("a"))) as (engine, backend):
        found = backend.found(slow("a"))
        engine.adopt([found], remembered(found, time.monotonic() - 10, 0.0))
        await until(engine, "a", State.READY)


async def test_what_is_remembered_is_what_the_next_engine_is_told() -> None:
    config = together(model("a", ttl=1000), model("b"), profiles={"p": Profile(pins={"llm": "a"})})
    async with running(config) as (engine, backend):
        await load(engine, "a")
        engine.activate_profile("p")
        memory, last_used = engine.memory(), engine.status("a").last_used
        expected = engine.expected_load_s("a")
        unit = await backend.units.get()
        assert set(memory.models) == {"a"}
        assert memory.models["a"].invocation == unit.invocation
    async with running(config) as (engine, backend):
        found = backend.found(model("a", ttl=1000))
        found.unit.invocation = memory.models["a"].invocation
        engine.adopt([found], memory)
        await until(engine, "a", State.READY)
        assert engine.status("a").last_used == pytest.approx(last_used, abs=1)
        assert engine.expected_load_s("a") == expected
        assert engine.naming.active == "p"


async def test_the_load_of_a_model_that_was_found_ready_is_not_counted() -> None:
    async with running(swapping(model("a"))) as (engine, backend):
        found = backend.found(model("a"))
        engine.adopt([found], remembered(found, time.monotonic() - 10, 0.0))
        await until(engine, "a", State.READY)
        assert engine.expected_load_s("a") is None


async def test_what_was_remembered_is_not_forgotten_before_the_model_has_answered() -> None:
    async with running(swapping(slow("a", check_endpoint="/"))) as (engine, backend):
        found = backend.found(slow("a", check_endpoint="/"))
        memory = remembered(found, 10.0, 20.0)
        engine.adopt([found], memory)
        assert engine.memory().models == memory.models


async def test_a_unit_that_was_found_tells_nothing_about_how_long_a_load_takes() -> None:
    async with running(swapping(model("a"))) as (engine, backend):
        engine.adopt([backend.found(model("a"))], NOTHING)
        await until(engine, "a", State.READY)
        assert engine.expected_load_s("a") is None


async def test_nothing_waits_for_ever_for_a_unit_that_does_not_stop() -> None:
    async with running(together(model("a", health_check_timeout=0))) as (engine, backend):
        found = backend.found(model("gone"))
        found.unit.may_go.clear()
        engine.adopt([found], NOTHING)
        with pytest.raises(StartError, match=r"llamaswapd-model-gone.service, .* does not stop"):
            await load(engine, "a")


# ---- leaving


async def leave(engine: Engine, backend: Backend) -> None:
    """Have the engine leave, and what it left pass for stopped."""
    await engine.keep()
    assert backend.is_left
    assert all(unit.graces.empty() for unit in backend.all_units)


async def kept(config: Config) -> tuple[Engine, Backend]:
    backend = Backend()
    return Engine(config, backend), backend


async def test_units_are_left_alone_and_whoever_waits_is_refused() -> None:
    engine, backend = await kept(together(model("a"), slow("b")))
    with engine.lease("a") as lease, engine.lease("b") as waiting:
        await lease.granted()
        await engine.keep()
        with pytest.raises(ShuttingDown):
            await waiting.granted()
        with pytest.raises(ShuttingDown), engine.lease("a"):
            pass
    assert backend.is_left
    assert backend.running == {"a", "b"}
    assert all(unit.graces.empty() for unit in backend.all_units)


async def test_a_start_that_systemd_has_not_done_yet_is_left_to_it() -> None:
    engine, backend = await kept(swapping(model("a")))
    backend.held.add("a")
    with engine.lease("a"):
        await backend.asked.get()
        await engine.keep()
        assert backend.is_left
        assert backend.cancelled == ["a"]


async def test_a_ttl_that_ends_later_stops_nothing() -> None:
    engine, backend = await kept(swapping(model("a", ttl=1)))
    await load(engine, "a")
    await engine.keep()
    await asyncio.sleep(0)
    assert engine._timer is None or engine._timer.cancelled()
    assert (await backend.units.get()).graces.empty()


# ---- models that keep dying


async def die(engine: Engine, backend: Backend) -> None:
    await load(engine, "a")
    (await backend.units.get()).end(UnitResult("signal", 2, 11))
    await until(engine, "a", State.STOPPED)


async def test_a_model_that_keeps_dying_is_not_started_for_a_while_and_says_why() -> None:
    async with running(swapping(model("a"))) as (engine, backend):
        for _ in range(FREE_DEATHS + 1):
            await die(engine, backend)
        with pytest.raises(CrashLoop) as caught:
            await load(engine, "a")
        assert caught.value.status == 503
        assert caught.value.retry_after_s == 1
        assert "killed by SIGSEGV" in str(caught.value)
        assert "last words" in str(caught.value)
        assert counts(engine, "a") == (0, 0)


async def test_a_systemd_that_cannot_be_reached_is_no_death_of_the_model() -> None:
    async with running(swapping(model("a"))) as (engine, backend):
        for _ in range(3):
            backend.failures["a"] = BusLost("the bus is gone")
            with pytest.raises(StartError, match="the bus is gone"):
                await load(engine, "a")
        backend.failures.clear()
        await load(engine, "a")


async def test_an_operators_load_clears_that() -> None:
    async with running(swapping(model("a"))) as (engine, backend):
        for _ in range(FREE_DEATHS + 1):
            await die(engine, backend)
        await engine.load("a")
        await load(engine, "a")


async def test_a_journal_that_cannot_be_read_is_no_reason_to_stay_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(self: Unit, count: int) -> list[str]:
        raise OSError("no journal")

    monkeypatch.setattr(Unit, "last_lines", broken)
    async with running(swapping(model("a"))) as (engine, backend):
        await die(engine, backend)
        await load(engine, "a")


# ---- preload


async def test_a_preload_that_spares_what_runs_passes_over_what_would_stop_it() -> None:
    groups_apart = swapping(model("a"), model("b"))
    async with running(groups_apart) as (engine, backend):
        await load(engine, "a")
        await engine.preload(["b"], spare_running=True)
        assert backend.running == {"a"}
        await engine.preload(["a"], spare_running=True)
        await engine.preload(["b"])
        assert backend.running == {"b"}
