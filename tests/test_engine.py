"""Models on demand, on a backend whose units do what the test says."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from engine_support import (
    GRACE_S,
    Unit,
    counts,
    load,
    model,
    running,
    slow,
    swapping,
    together,
    until,
    until_gone,
)

from llamaswapd.config.schema import (
    COMFYUI_ID,
    Config,
    Fifo,
    Matrix,
    ModelConfig,
    Profile,
    Routing,
    SchedulerSettings,
    Scheduling,
    Selector,
)
from llamaswapd.core.lifecycle import State
from llamaswapd.core.scheduler import ABORT_GRACE_S
from llamaswapd.engine import Engine, run
from llamaswapd.engine.engine import FAILED_START_GRACE_S
from llamaswapd.engine.run import LOADS_KEPT
from llamaswapd.errors import (
    BusLost,
    ProfileNotFound,
    ShuttingDown,
    StartError,
    TooManyRequests,
    UnitError,
    UnitResult,
    UnknownModel,
    Unloaded,
)

# ---- leases


async def test_a_lease_on_a_stopped_model_starts_it_and_is_granted_when_it_is_ready() -> None:
    async with running(swapping(slow("a"))) as (engine, backend):
        with engine.lease("a") as lease:
            assert engine.status("a").state is State.STARTING
            unit = await backend.units.get()
            assert not lease.is_granted
            assert counts(engine, "a") == (0, 1)
            unit.is_up.set()
            await lease.granted()
            assert lease.is_granted
            assert counts(engine, "a") == (1, 0)
            status = engine.status("a")
            assert (status.state, status.unit, status.pid) == (State.READY, unit.name, 4711)
        assert counts(engine, "a") == (0, 0)


async def test_a_lease_on_a_ready_model_is_granted_on_entering() -> None:
    async with running(swapping(model("a"))) as (engine, backend):
        await load(engine, "a")
        with engine.lease("a") as lease:
            assert lease.is_granted
            await lease.granted()
        assert backend.asked.qsize() == 1


async def test_a_lease_is_given_back_when_its_block_fails() -> None:
    async with running(swapping(model("a"))) as (engine, _):
        with suppress(ZeroDivisionError), engine.lease("a") as lease:
            await lease.granted()
            raise ZeroDivisionError
        assert counts(engine, "a") == (0, 0)


async def test_a_client_that_leaves_while_its_model_loads_leaves_the_load_alone() -> None:
    async with running(swapping(slow("a"))) as (engine, backend):
        client = asyncio.create_task(load(engine, "a"))
        unit = await backend.units.get()
        client.cancel()
        with pytest.raises(asyncio.CancelledError):
            await client
        assert counts(engine, "a") == (0, 0)
        unit.is_up.set()
        await until(engine, "a", State.READY)


async def test_a_client_that_leaves_the_queue_takes_its_wish_along() -> None:
    async with running(swapping(model("a"), model("b"))) as (engine, backend):
        with engine.lease("a") as a:
            await a.granted()
            with engine.lease("b") as b:
                assert (b.position, a.position) == (1, None)
                assert counts(engine, "b") == (0, 1)
            assert counts(engine, "b") == (0, 0)
        assert engine.status("a").state is State.READY
        assert backend.asked.qsize() == 1


async def test_a_lease_beyond_the_models_slots_is_refused_on_entering() -> None:
    async with running(swapping(model("a", concurrency_limit=1))) as (engine, _):
        with engine.lease("a") as lease:
            await lease.granted()
            with pytest.raises(TooManyRequests), engine.lease("a"):
                pytest.fail("entered")
            assert counts(engine, "a") == (1, 0)
        with engine.lease("a") as lease:
            assert lease.is_granted


async def test_an_unknown_model_has_no_lease() -> None:
    async with running(swapping(model("a"))) as (engine, _):
        with pytest.raises(UnknownModel):
            engine.lease("b")


# ---- swaps


async def test_a_swap_waits_for_requests_in_flight_and_starts_when_the_other_unit_is_gone() -> None:
    async with running(swapping(model("a"), model("b"))) as (engine, backend):
        with engine.lease("a") as a:
            await a.granted()
            unit = await backend.units.get()
            unit.may_go.clear()
            client = asyncio.create_task(load(engine, "b"))
            await asyncio.sleep(0)
            assert unit.graces.empty()
        assert await unit.graces.get() == GRACE_S
        assert engine.status("a").state is State.STOPPING
        assert await backend.asked.get() == "a"
        assert backend.asked.empty()
        unit.may_go.set()
        await client
        assert backend.running == {"b"}


async def test_models_that_need_not_make_room_load_side_by_side() -> None:
    async with running(together(slow("a"), slow("b"))) as (engine, backend):
        clients = [asyncio.create_task(load(engine, model_id)) for model_id in "ab"]
        for _ in clients:
            (await backend.units.get()).is_up.set()
        await asyncio.gather(*clients)
        assert backend.running == {"a", "b"}


async def test_a_matrix_decides_who_makes_room_and_gives_errors_its_name() -> None:
    matrix = Matrix(sets={"ab": "a & b", "bc": "b & c"})
    async with running(swapping(model("a"), model("b"), slow("c"), matrix=matrix)) as (engine, backend):
        await load(engine, "a")
        await load(engine, "b")
        assert backend.running == {"a", "b"}
        client = asyncio.create_task(load(engine, "c"))
        await until(engine, "c", State.STARTING)
        assert backend.running - {"c"} == {"b"}
        await engine.unload(["c"])
        with pytest.raises(Unloaded, match="matrix: model unloaded"):
            await client


def prioritized(**priority: int) -> Routing:
    return Routing(scheduler=Scheduling(settings=SchedulerSettings(fifo=Fifo(priority=priority))))


async def test_who_has_priority_is_before_others_in_the_queue_also_under_another_configuration() -> None:
    models = model("a"), model("b"), model("c")
    async with running(swapping(*models, routing=prioritized(c=1))) as (engine, _):
        with engine.lease("a") as a, engine.lease("b") as b, engine.lease("c") as c:
            await a.granted()
            assert (b.position, c.position) == (2, 1)
            engine.reconfigure(swapping(*models, routing=prioritized(b=5, c=1)))
            assert (b.position, c.position) == (1, 2)
            engine.reconfigure(swapping(*models))
            assert (b.position, c.position) == (1, 2), "in order of arrival"


async def test_comfyui_has_fifty_slots() -> None:
    async with running(swapping(model(COMFYUI_ID, concurrency_limit=3))) as (engine, _):
        with ExitStack() as stack:
            for _ in range(50):
                stack.enter_context(engine.lease(COMFYUI_ID))
            with pytest.raises(TooManyRequests), engine.lease(COMFYUI_ID):
                pytest.fail("entered")


# ---- failures


async def test_all_who_wait_share_the_error_of_a_failed_start_and_the_next_one_tries_again() -> None:
    async with running(swapping(slow("a"))) as (engine, backend):
        clients = [asyncio.create_task(load(engine, "a")) for _ in range(3)]
        unit = await backend.units.get()
        unit.end(UnitResult("exit-code", 1, 3))
        errors = await asyncio.gather(*clients, return_exceptions=True)
        assert isinstance(errors[0], StartError)
        assert str(errors[0]) == (
            "unspecific error: upstream command exited prematurely: exit status 3 (exit-code)"
            "; last lines of its log:\n  last words"
        )
        assert errors[0] is errors[1] is errors[2]
        assert unit.graces.get_nowait() == FAILED_START_GRACE_S
        assert backend.running == set()
        assert engine.status("a").state is State.STOPPED

        again = asyncio.create_task(load(engine, "a"))
        (await backend.units.get()).is_up.set()
        await again


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        (StartError("no such program"), "unspecific error: no such program"),
        (UnitError("Access denied"), "unspecific error: systemd cannot start its unit: Access denied"),
        (BusLost("gone"), "unspecific error: systemd cannot start its unit: gone"),
        (ZeroDivisionError("oops"), "unspecific error: internal error: ZeroDivisionError('oops')"),
    ],
)
async def test_a_start_that_the_backend_refuses_is_an_error_of_the_request(
    failure: Exception, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(swapping(model("a"))) as (engine, backend):
        backend.failures["a"] = failure
        with pytest.raises(StartError) as error:
            await load(engine, "a")
        assert str(error.value) == text
        tracebacks = [record for record in caplog.records if record.exc_info]
        assert bool(tracebacks) == isinstance(failure, ZeroDivisionError)

        del backend.failures["a"]
        await load(engine, "a")


@pytest.mark.parametrize("failure", [UnitError("Access denied"), ZeroDivisionError("oops")])
async def test_a_stop_that_fails_is_logged_and_the_model_can_be_started_again(
    failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(swapping(model("a"))) as (engine, backend):
        await load(engine, "a")
        unit = await backend.units.get()
        unit.stop_error = failure
        await engine.unload()
        assert str(failure) in caplog.text
        assert engine.status("a").state is State.STOPPED
        backend.running.clear()  # the next start would remove what is left
        await load(engine, "a")


async def test_a_unit_that_ends_by_itself_is_cleared_away_and_started_again_on_demand() -> None:
    async with running(swapping(model("a"))) as (engine, backend):
        await load(engine, "a")
        unit = await backend.units.get()
        unit.end(UnitResult("signal", 2, 11))
        await until(engine, "a", State.STOPPED)
        assert unit.graces.get_nowait() == GRACE_S
        await load(engine, "a")
        assert backend.running == {"a"}


# ---- why a connection broke


async def test_the_cause_is_how_the_unit_ended_also_when_that_is_not_known_yet() -> None:
    async with running(swapping(model("a"))) as (engine, backend):
        with engine.lease("a") as lease:
            await lease.granted()
            unit = await backend.units.get()
            asking = asyncio.create_task(lease.cause())
            await asyncio.sleep(0)
            unit.end(UnitResult("oom-kill", 2, 9))
            assert await asking == "killed by SIGKILL (oom-kill)"
            await until(engine, "a", State.STOPPED)
            assert await lease.cause() == "killed by SIGKILL (oom-kill)"


async def test_the_cause_of_a_cut_by_an_unload_is_the_unload() -> None:
    async with running(swapping(model("a"))) as (engine, _):
        with engine.lease("a") as lease:
            await lease.granted()
            await engine.unload(["a"])
            assert await lease.cause() == "the model was unloaded"
            assert counts(engine, "a") == (1, 0)


async def test_a_model_that_lives_is_no_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "EXPLAIN_WITHIN_S", 0.01)
    async with running(swapping(model("a"))) as (engine, backend):
        with engine.lease("a") as lease:
            assert await lease.cause() is None
            await lease.granted()
            assert await lease.cause() is None
        assert not (await backend.units.get()).ended.cancelled()


# ---- unloading


async def test_unload_returns_when_the_unit_is_gone() -> None:
    async with running(swapping(model("a"))) as (engine, backend):
        await load(engine, "a")
        unit = await backend.units.get()
        unit.may_go.clear()
        unloading = asyncio.create_task(engine.unload(["a"]))
        assert await unit.graces.get() == GRACE_S
        assert engine.status("a").state is State.STOPPING
        again = asyncio.create_task(engine.unload(["a"]))
        await asyncio.sleep(0)
        assert not unloading.done()
        unit.may_go.set()
        await unloading
        assert backend.running == set()
        await again


async def test_unload_stops_only_what_it_is_told_to() -> None:
    async with running(together(model("a"), model("b"), model("c"))) as (engine, backend):
        for model_id in "abc":
            await load(engine, model_id)
        await engine.unload(["a"])
        assert backend.running == {"b", "c"}
        await engine.unload(["a"])
        await engine.unload()
        assert backend.running == set()


async def test_unload_refuses_whoever_waits_and_aborts_the_load() -> None:
    async with running(swapping(slow("a"))) as (engine, backend):
        clients = [asyncio.create_task(load(engine, "a")) for _ in range(2)]
        unit = await backend.units.get()
        await engine.unload(["a"])
        for client in clients:
            with pytest.raises(Unloaded):
                await client
        assert unit.graces.get_nowait() == ABORT_GRACE_S
        assert backend.running == set()


async def test_unload_of_everything_refuses_those_in_the_queue_too() -> None:
    async with running(swapping(model("a"), model("b"))) as (engine, backend):
        with engine.lease("a") as a, engine.lease("b") as b:
            await a.granted()
            await engine.unload()
            with pytest.raises(Unloaded):
                await b.granted()
        assert backend.asked.qsize() == 1


async def test_unload_cancels_a_start_that_systemd_has_not_done_yet() -> None:
    async with running(swapping(model("a"))) as (engine, backend):
        backend.held.add("a")
        client = asyncio.create_task(load(engine, "a"))
        await backend.asked.get()
        await engine.unload()
        assert backend.cancelled == ["a"]
        with pytest.raises(Unloaded):
            await client
        backend.held.clear()
        await load(engine, "a")


async def test_a_request_during_a_stop_starts_the_model_after_it() -> None:
    async with running(swapping(model("a"))) as (engine, backend):
        await load(engine, "a")
        unit = await backend.units.get()
        unit.may_go.clear()
        unloading = asyncio.create_task(engine.unload())
        await unit.graces.get()
        client = asyncio.create_task(load(engine, "a"))
        await asyncio.sleep(0)
        assert backend.asked.qsize() == 1
        unit.may_go.set()
        await unloading
        await client
        assert backend.asked.qsize() == 2


# ---- ttl


async def test_an_idle_model_is_unloaded_after_its_ttl(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with running(swapping(model("a", ttl=1))) as (engine, backend):
        for _ in range(2):  # every time
            await load(engine, "a")
            unit = await backend.units.get()
            assert await unit.graces.get() == GRACE_S
            await until(engine, "a", State.STOPPED)
    assert caplog.text.count("<a> Unloading model, TTL of 1s reached") == 2


async def test_a_short_ttl_is_not_held_up_by_a_long_one_nor_by_a_model_in_use() -> None:
    async with running(together(model("busy", ttl=1), model("long", ttl=1000), model("short", ttl=1))) as (engine, _):
        with engine.lease("busy") as busy:
            await busy.granted()
            with engine.lease("short") as short:
                await short.granted()
                await load(engine, "long")
            await until(engine, "short", State.STOPPED)
            assert engine.status("busy").state is State.READY
            assert engine.status("long").state is State.READY


async def test_the_unload_of_a_hung_model_delays_nobody_else() -> None:
    async with running(together(model("hung"), model("other"), model("third"))) as (engine, backend):
        for model_id in ("hung", "other"):
            await load(engine, model_id)
        hung, other = await backend.units.get(), await backend.units.get()
        hung.may_go.clear()
        unloading = asyncio.create_task(engine.unload(["hung"]))
        await hung.graces.get()
        await load(engine, "other")
        await load(engine, "third")
        await engine.unload(["other"])
        assert other.ended.done()
        await load(engine, "other")
        assert engine.status("hung").state is State.STOPPING
        assert not unloading.done()
        hung.may_go.set()
        await unloading


async def test_all_models_that_are_unloaded_stop_at_the_same_time_whatever_their_grace() -> None:
    async with running(together(model("a", unload_timeout=1), model("b", unload_timeout=9))) as (engine, backend):
        await load(engine, "a")
        await load(engine, "b")
        a, b = await backend.units.get(), await backend.units.get()
        a.may_go.clear()
        unloading = asyncio.create_task(engine.unload())
        assert (await a.graces.get(), await b.graces.get()) == (1, 9)
        a.may_go.set()
        await unloading
        assert backend.running == set()


# ---- preload


async def test_models_are_preloaded_one_after_the_other() -> None:
    async with running(together(slow("a"), model("b", aliases=("bee",)))) as (engine, backend):
        preloading = asyncio.create_task(engine.preload(["a", "unknown", "bee"]))
        unit = await backend.units.get()
        assert (unit.model.id, backend.asked.qsize()) == ("a", 1)
        unit.is_up.set()
        await preloading
        assert backend.running == {"a", "b"}
        assert counts(engine, "a") == counts(engine, "b") == (0, 0)


async def test_a_preload_sends_a_request_that_is_in_flight() -> None:
    seen: list[object] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append((await reader.readline(), counts(engine, "a")))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        proxy = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with running(swapping(model("a", proxy=proxy))) as (engine, _):
            await engine.preload(["a"])
            assert counts(engine, "a") == (0, 0)
        server.close()
    assert seen == [(b"GET / HTTP/1.1\r\n", (1, 0))]


async def test_a_preload_that_fails_is_logged_and_the_next_one_follows(caplog: pytest.LogCaptureFixture) -> None:
    async with running(together(model("a"), model("b"))) as (engine, backend):
        backend.failures["a"] = StartError("no such program")
        await engine.preload(["a", "b"])
        assert "failed to preload model a: status 500: unspecific error: no such program" in caplog.text
        assert backend.running == {"b"}


# ---- the end


async def test_close_stops_everything_within_the_grace_and_refuses_whoever_waits_or_comes() -> None:
    async with running(together(model("ready"), slow("loading"), model("starting"), model("idle"))) as (
        engine,
        backend,
    ):
        await load(engine, "ready")
        backend.held.add("starting")
        clients = [asyncio.create_task(load(engine, model_id)) for model_id in ("loading", "starting")]
        ready, loading = await backend.units.get(), await backend.units.get()
        await engine.close(1.5)
        assert ready.graces.get_nowait() == loading.graces.get_nowait() == 1.5
        assert backend.running == set()
        assert backend.cancelled == ["starting"]
        for client in clients:
            with pytest.raises(ShuttingDown):
                await client
        with pytest.raises(ShuttingDown), engine.lease("ready"):
            pytest.fail("entered")
        assert engine.status("idle").state is State.STOPPED


async def test_close_returns_when_the_last_unit_is_gone() -> None:
    async with running(swapping(model("a"))) as (engine, backend):
        await load(engine, "a")
        unit = await backend.units.get()
        unit.may_go.clear()
        closing = asyncio.create_task(engine.close(3))
        await unit.graces.get()
        assert not closing.done()
        unit.may_go.set()
        await closing
        assert backend.running == set()


async def unloaded(engine: Engine, unit: Unit) -> None:
    unit.is_up.set()
    await until(engine, "a", State.READY)
    await engine.unload()


async def failed(engine: Engine, unit: Unit) -> None:
    unit.end(UnitResult("exit-code", 1, 3))
    await asyncio.Event().wait()


async def ended(engine: Engine, unit: Unit) -> None:
    unit.is_up.set()
    await until(engine, "a", State.READY)
    unit.end(UnitResult("exit-code", 1, 3))
    await asyncio.Event().wait()


@pytest.mark.parametrize(("stop", "grace_s"), [(unloaded, GRACE_S), (ended, GRACE_S), (failed, FAILED_START_GRACE_S)])
async def test_close_hurries_a_stop_that_was_given_longer(stop: Callable[[Engine, Unit], Any], grace_s: float) -> None:
    async with running(swapping(slow("a"))) as (engine, backend):
        client = asyncio.create_task(load(engine, "a"))
        unit = await backend.units.get()
        unit.may_go.clear()
        unit.heeds_below_s = 3
        stopping = asyncio.create_task(stop(engine, unit))
        assert await unit.graces.get() == grace_s
        await engine.close(2)
        assert unit.graces.get_nowait() == 2
        stopping.cancel()
        await asyncio.gather(stopping, client, return_exceptions=True)


async def test_close_gives_a_stop_under_way_no_more_time_than_it_had() -> None:
    async with running(swapping(model("a"))) as (engine, backend):
        await load(engine, "a")
        unit = await backend.units.get()
        unit.may_go.clear()
        unloading = asyncio.create_task(engine.unload())
        assert await unit.graces.get() == GRACE_S
        closing = asyncio.create_task(engine.close(30))
        assert await unit.graces.get() == GRACE_S
        unit.may_go.set()
        await closing
        await unloading


# ---- another configuration


async def test_models_that_did_not_change_run_on_under_another_configuration() -> None:
    async with running(together(model("a", macros={"x": 1}))) as (engine, backend):
        with engine.lease("a") as lease:
            await lease.granted()
            unit = await backend.units.get()
            engine.reconfigure(together(model("a", macros={"x": 2}), model("b")))
            assert counts(engine, "a") == (1, 0)
            await load(engine, "b")
            assert unit.graces.empty()
        assert backend.running == {"a", "b"}


async def test_models_that_changed_are_stopped_and_start_as_they_are_now_defined() -> None:
    async with running(swapping(model("a", cmd="old"))) as (engine, backend):
        await load(engine, "a")
        old = await backend.units.get()
        old.may_go.clear()
        engine.reconfigure(swapping(model("a", cmd="new", unload_timeout=3)))
        assert await old.graces.get() == 3
        client = asyncio.create_task(load(engine, "a"))
        await asyncio.sleep(0)
        assert backend.units.empty()
        old.may_go.set()
        await client
        assert (await backend.units.get()).model.cmd == "new"


async def test_a_model_that_changed_serves_the_requests_it_has_and_the_others_wait_for_its_successor() -> None:
    async with running(swapping(model("a", cmd="old"))) as (engine, backend):
        with engine.lease("a") as first:
            await first.granted()
            old = await backend.units.get()
            engine.reconfigure(swapping(model("a", cmd="new")))
            assert engine.lease_now("a") is None
            client = asyncio.create_task(load(engine, "a"))
            await asyncio.sleep(0)
            assert (counts(engine, "a"), old.graces.qsize()) == ((1, 1), 0)
            assert first.model.cmd == "old"
        await client
        assert old.graces.qsize() == 1
        assert (await backend.units.get()).model.cmd == "new"


async def test_a_lease_that_waited_is_on_the_model_as_it_is_defined_when_it_is_granted() -> None:
    async with running(swapping(slow("a", cmd="old"))) as (engine, backend):
        with engine.lease("a") as lease:
            await backend.units.get()
            engine.reconfigure(swapping(slow("a", cmd="new")))
            (await backend.units.get()).is_up.set()
            await lease.granted()
            assert lease.model.cmd == "new"


async def test_what_is_not_of_the_unit_changes_while_it_runs() -> None:
    async with running(swapping(model("a"))) as (engine, backend):
        await load(engine, "a")
        engine.reconfigure(swapping(model("a", ttl=1000)))
        with engine.lease("a") as lease:
            assert lease.model.ttl == 1000
        assert engine.status("a").idle_unload_in_s is not None
        engine.reconfigure(swapping(model("a", ttl=0)))
        assert engine.status("a").idle_unload_in_s is None
        assert backend.units.qsize() == 1


async def test_whoever_waits_for_a_model_that_changes_gets_its_successor() -> None:
    async with running(swapping(slow("a", cmd="old"))) as (engine, backend):
        client = asyncio.create_task(load(engine, "a"))
        old = await backend.units.get()
        engine.reconfigure(swapping(slow("a", cmd="new")))
        (await backend.units.get()).is_up.set()
        await client
        assert old.graces.qsize() == 1


async def test_models_that_are_removed_serve_the_requests_they_have_and_are_listed_as_long() -> None:
    async with running(together(model("a"), model("b"))) as (engine, backend):
        with engine.lease("a") as lease:
            await lease.granted()
            unit = await backend.units.get()
            engine.reconfigure(together(model("b")))
            assert [status.model.id for status in engine.statuses()] == ["a", "b"]
            with pytest.raises(UnknownModel):
                engine.lease("a")
            assert unit.graces.empty()
        assert await unit.graces.get() == GRACE_S
        await until_gone(engine, "a")
        assert [status.model.id for status in engine.statuses()] == ["b"]
        await load(engine, "b")
        assert backend.running == {"b"}


async def test_another_configuration_brings_its_groups_along() -> None:
    async with running(together(model("a"), model("b"))) as (engine, backend):
        await load(engine, "a")
        engine.reconfigure(swapping(model("a"), model("b")))
        await load(engine, "b")
        assert backend.running == {"b"}


# ---- names


def named(*models: ModelConfig) -> Config:
    return together(
        *models,
        selectors={"warm": Selector(strategy="warm", targets=("a", "b"))},
        profiles={"p": Profile(pins={"llm": "b"})},
    )


async def test_a_selector_knows_which_models_run() -> None:
    async with running(named(model("a"), model("b"))) as (engine, _):
        assert engine.resolve("warm").name == "a"
        await load(engine, "b")
        resolved = engine.resolve("warm")
        assert (resolved.target.id, resolved.selector, resolved.is_rewritten) == ("b", "warm", True)


async def test_a_profile_is_active_until_another_one_is_and_every_change_is_told() -> None:
    async with running(named(model("a"), model("b"))) as (engine, _):
        told: list[str | None] = []
        changes: list[str | None] = []
        engine.on_profile(told.append)
        engine.on_change(lambda: changes.append(engine.naming.active))
        with pytest.raises(UnknownModel):
            engine.resolve("llm")
        engine.activate_profile("p")
        engine.activate_profile("p")
        assert engine.resolve("llm").target.id == "b"
        with pytest.raises(ProfileNotFound):
            engine.activate_profile("q")
        assert engine.naming.active == "p"
        engine.activate_profile(None)
        assert told == changes == ["p", None]


async def test_another_configuration_starts_without_a_profile() -> None:
    async with running(named(model("a"), model("b"))) as (engine, _):
        told: list[str | None] = []
        engine.on_profile(told.append)
        engine.reconfigure(named(model("a"), model("b")))
        assert told == []
        engine.activate_profile("p")
        engine.reconfigure(named(model("a"), model("b")))
        assert told == ["p", None]
        assert engine.naming.active is None


# ---- how long things take


class Told:
    """What an observer is told, without the times."""

    def __init__(self) -> None:
        self.events: list[tuple[object, ...]] = []
        self.seconds: list[float] = []

    def on_load(self, model_id: str, seconds: float, ok: bool) -> None:
        self.events.append(("load", model_id, ok))
        self.seconds.append(seconds)

    def on_swap(self, model_id: str, seconds: float) -> None:
        self.events.append(("swap", model_id))
        self.seconds.append(seconds)

    def on_wait(self, model_id: str, seconds: float) -> None:
        self.events.append(("wait", model_id))
        self.seconds.append(seconds)


async def test_loads_swaps_and_waits_are_told_to_an_observer() -> None:
    async with running(swapping(model("a"), model("b"))) as (engine, backend):
        told = engine.observer = Told()
        await load(engine, "a")
        await load(engine, "b")
        assert told.events == [("load", "a", True), ("wait", "a"), ("load", "b", True), ("swap", "b"), ("wait", "b")]
        assert all(seconds >= 0 for seconds in told.seconds)
        load_s, swap_s, wait_s = told.seconds[2:]
        assert load_s <= swap_s <= wait_s

        told.events.clear()
        backend.failures["a"] = StartError("no such program")
        with pytest.raises(StartError):
            await load(engine, "a")
        assert told.events == [("load", "a", False)]


async def test_a_load_that_is_given_up_is_not_told() -> None:
    async with running(swapping(slow("a"))) as (engine, backend):
        told = engine.observer = Told()
        with engine.lease("a"):
            await backend.units.get()
            await engine.unload()
        assert told.events == []
        assert engine.expected_load_s("a") is None


@pytest.mark.parametrize("turns", range(12))
async def test_a_load_is_told_if_and_only_if_somebody_got_it_whenever_an_unload_crosses_it(turns: int) -> None:
    async with running(swapping(slow("a"))) as (engine, backend):
        told = engine.observer = Told()
        with engine.lease("a") as lease:
            (await backend.units.get()).is_up.set()
            for _ in range(turns):  # of the event loop
                await asyncio.sleep(0)
            await engine.unload()
            assert (("load", "a", True) in told.events) == lease.is_granted
            assert (engine.expected_load_s("a") is not None) == lease.is_granted


async def test_a_start_that_fails_when_it_is_given_up_is_not_told() -> None:
    async with running(swapping(model("a"))) as (engine, backend):
        told = engine.observer = Told()
        backend.failures["a"] = StartError("no such program")
        with engine.lease("a"):
            await engine.unload()
            assert backend.asked.qsize() == 1
        assert told.events == []


async def test_the_next_load_is_expected_to_take_what_the_last_few_took() -> None:
    async with running(swapping(model("a"), model("b"))) as (engine, _):
        assert engine.expected_load_s("a") is None
        told = engine.observer = Told()
        for _ in range(LOADS_KEPT + 2):
            await load(engine, "a")
            await engine.unload()
        loads = [seconds for event, seconds in zip(told.events, told.seconds, strict=True) if event[0] == "load"]
        expected = sorted(loads[2:])[LOADS_KEPT // 2]
        assert engine.expected_load_s("a") == expected
        engine.reconfigure(swapping(model("a", cmd="new")))
        assert engine.expected_load_s("a") == expected
        assert engine.expected_load_s("b") is None


async def test_a_lease_knows_since_when_it_waited_and_for_which_load() -> None:
    async with running(swapping(slow("a"))) as (engine, backend):
        with engine.lease("a") as first, engine.lease("a") as second:
            assert (first.granted_at, first.load_began) == (0, 0)
            (await backend.units.get()).is_up.set()
            await first.granted()
            assert first.requested <= first.load_began <= first.granted_at
            assert second.load_began == first.load_began <= second.requested
        with engine.lease("a") as late:
            assert 0 < late.requested <= late.granted_at
            assert late.load_began == 0
        at_once = engine.lease_now("a")
        assert at_once is not None
        assert (at_once.requested, at_once.granted_at, at_once.load_began) == (0, 0, 0)
        assert engine.lease_now("a") is at_once
        assert counts(engine, "a") == (2, 0)
        engine.leave(at_once, time.monotonic())
        engine.leave(at_once, time.monotonic())
        assert counts(engine, "a") == (0, 0)


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_ttl_that_came_with_a_reload_counts_from_the_end_of_the_requests_of_before(at_once: bool) -> None:
    async with running(swapping(model("a"))) as (engine, _):
        await load(engine, "a")
        with ExitStack() as stack:
            lease = engine.lease_now("a") if at_once else stack.enter_context(engine.lease("a"))
            for ttl in (0, 1000):
                engine.reconfigure(swapping(model("a", ttl=ttl)))
            assert lease is not None
            assert lease.model.ttl == 1000
            assert engine._timer is None
            if at_once:
                engine.leave(lease, time.monotonic())
        assert engine._timer is not None


async def test_a_lease_that_comes_to_nothing_tells_since_when_its_model_was_loading() -> None:
    async with running(swapping(slow("a"), model("b"))) as (engine, backend):
        with engine.lease("a") as left:
            await backend.units.get()
        assert left.requested <= left.load_began <= time.monotonic()
        with suppress(Unloaded), engine.lease("a") as refused:
            await asyncio.gather(refused.granted(), engine.unload(["a"]))
        assert refused.load_began == left.load_began
        await load(engine, "b")
        with engine.lease("b"), engine.lease("a") as queued:
            pass
        assert queued.load_began == 0


# ---- listings


async def test_a_status_tells_since_when_a_model_runs_and_when_it_was_used_and_will_be_unloaded() -> None:
    async with running(together(slow("a", ttl=1000))) as (engine, backend):
        before = time.time()
        assert (engine.status("a").since, engine.status("a").last_used) == (0, 0)
        client = asyncio.create_task(engine.preload(["a"]))
        unit = await backend.units.get()
        assert engine.status("a").since >= before - 0.01
        assert engine.status("a").idle_unload_in_s is None
        unit.is_up.set()
        await client
        status = engine.status("a")
        assert before - 0.01 <= status.since <= status.last_used <= time.time() + 0.01
        assert status.idle_unload_in_s is not None
        assert 900 < status.idle_unload_in_s <= 1000
        with engine.lease("a"):
            assert engine.status("a").last_used >= status.last_used
            assert engine.status("a").idle_unload_in_s is None
        await engine.unload()
        assert engine.status("a").since == 0
        assert engine.status("a").last_used >= status.last_used


async def test_a_model_that_only_became_ready_was_not_used() -> None:
    async with running(swapping(slow("a"))) as (engine, backend):
        client = asyncio.create_task(load(engine, "a"))
        unit = await backend.units.get()
        client.cancel()
        with suppress(asyncio.CancelledError):
            await client
        unit.is_up.set()
        await until(engine, "a", State.READY)
        assert engine.status("a").last_used == 0


async def test_every_change_of_state_is_announced_once_it_can_be_seen() -> None:
    async with running(swapping(slow("a"))) as (engine, backend):
        seen: list[State] = []
        engine.on_change(lambda: seen.append(engine.status("a").state))
        client = asyncio.create_task(load(engine, "a"))
        (await backend.units.get()).is_up.set()
        await client
        await engine.unload()
        engine.reconfigure(swapping(slow("a")))
        assert list(dict.fromkeys(seen)) == [State.STARTING, State.READY, State.STOPPING, State.STOPPED]
        assert seen[-2:] == [State.STOPPED] * 2  # a new configuration is a change too


async def test_statuses_tell_of_every_model_in_order() -> None:
    async with running(swapping(model("a"), model("b"))) as (engine, _):
        with engine.lease("a") as a, engine.lease("b"):
            await a.granted()
            told = [(s.model.id, s.state, s.unit, s.pid, s.in_flight, s.waiting) for s in engine.statuses()]
            assert told == [
                ("a", State.READY, "llamaswapd-model-a.service", 4711, 1, 0),
                ("b", State.STOPPED, "", 0, 0, 1),
            ]


async def test_logs_are_those_of_the_backend() -> None:
    async with running(swapping(model("a"))) as (engine, _):
        assert [line async for line in engine.logs({"a"}, 10)] == [("a", "{'a'} 10")]
