"""swap.md §5: who is served when."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
from daemon_support import Daemon, Events, Json, model
from live import Live, held, load, mirror, ready, told

pytestmark = pytest.mark.private

ABC = {"a": mirror(), "b": mirror(), "c": mirror()}
ALL_TOGETHER = {"all": {"swap": False, "members": ["a", "b", "c"]}}


async def served_in_order(
    it: Daemon, events: Events, names: str, folder: Path, *, holder: str = "a"
) -> list[tuple[str, int]]:
    """Queue requests for these models behind one for `holder`; return who was served in which order, by whom."""
    served: list[tuple[str, int]] = []

    async def ask(name: str) -> None:
        served.append((name, (await told(it, name))["pid"]))

    async with asyncio.TaskGroup() as group, held(it, holder, folder / "end", events):
        for number, name in enumerate(names, 2):
            group.create_task(ask(name))
            await events.until_in_flight(number)
    return served


async def test_queued_requests_are_batched_per_model(live: Live, tmp_path: Path) -> None:
    it = await live.configure({"models": {**ABC, "hold": mirror()}})
    async with it.events() as events:
        served = await served_in_order(it, events, "abcabc", tmp_path, holder="hold")
    assert [name for name, _ in served] == ["a", "a", "b", "b", "c", "c"]
    assert len({pid for _, pid in served}) == 3  # two swaps, one process each


async def test_a_stream_in_flight_is_never_interrupted_by_a_swap(live: Live, tmp_path: Path) -> None:
    it = await live.configure({"models": {"a": model(), "b": mirror()}})
    async with it.events() as events, it.stream("a", until=f"{tmp_path}/end") as stream:
        await stream.next()
        waiting = asyncio.create_task(it.chat("b"))
        await events.until_in_flight(2)
        for _ in range(20):
            await stream.next()
        assert await it.running() == {"a": "ready"}
        (tmp_path / "end").touch()
        assert (await stream.rest())[-1] == "[DONE]"
        assert (await waiting).status == 200


async def test_a_start_waits_until_every_evicted_model_has_exited(live: Live) -> None:
    slow = model("--slow-stop", 0.3, cmdStop="kill -USR1 ${PID}")
    slower = model("--slow-stop", 0.8, cmdStop="kill -USR1 ${PID}")
    groups = {"pair": {"swap": False, "members": ["a", "b"]}}
    it = await live.configure({"models": {"a": slow, "b": slower, "c": mirror()}, "groups": groups})
    await load(it, "a", "b")
    async with it.events() as events:
        began = time.monotonic()
        waiting = asyncio.create_task(it.chat("c"))
        # In parallel: both are told at once. The start is not before both are gone.
        await events.until(lambda: events.states.get("a") == events.states.get("b") == "stopping")
        await events.until(lambda: events.states["c"] == "starting")
        assert (events.states["a"], events.states["b"]) == ("stopped", "stopped")
        assert time.monotonic() - began >= 0.8
        assert (await waiting).status == 200


async def test_requests_for_a_running_model_are_served_while_a_swap_away_from_it_is_queued(
    live: Live, tmp_path: Path
) -> None:
    it = await live.configure({"models": ABC})
    async with it.events() as events, held(it, "a", tmp_path / "end", events):
        waiting = asyncio.create_task(it.chat("b"))
        await events.until_in_flight(2)
        for _ in range(3):
            assert (await it.chat("a")).status == 200
        assert not waiting.done()
        (tmp_path / "end").touch()
        assert (await waiting).status == 200


async def test_swaps_that_do_not_conflict_run_in_parallel(live: Live, tmp_path: Path) -> None:
    go = tmp_path / "go"
    models = {"a": model("--ready-when", go), "b": model("--ready-when", go)}
    it = await live.configure({"models": models, "groups": {"g": {"swap": False, "members": ["a", "b"]}}})
    async with it.events() as events:
        waiting = [asyncio.create_task(it.chat(name)) for name in "ab"]
        await events.until(lambda: {*events.states.values()} == {"starting"})
        go.touch()
        assert [(await each).status for each in waiting] == [200, 200]
    assert await ready(it) == {"a", "b"}


async def test_a_queued_request_does_not_block_others_behind_it(live: Live, tmp_path: Path) -> None:
    """One that waits for the holder keeps its place, while one that clashes with nobody passes it."""
    groups = {"swapping": {"members": ["a", "b"]}, "free": {"exclusive": False, "persistent": True, "members": ["c"]}}
    it = await live.configure({"models": ABC, "groups": groups})
    async with it.events() as events, held(it, "a", tmp_path / "end", events):
        waiting = asyncio.create_task(it.chat("b"))
        await events.until_in_flight(2)
        assert (await it.chat("c")).status == 200
        assert not waiting.done()
        (tmp_path / "end").touch()
        assert (await waiting).status == 200


async def test_a_client_that_leaves_the_queue_leaves_no_load_behind(live: Live, tmp_path: Path) -> None:
    it = await live.configure({"models": ABC})
    async with it.events() as events:
        async with held(it, "a", tmp_path / "end", events):
            waiting = asyncio.create_task(it.chat("b"))
            await events.until_in_flight(2)
            waiting.cancel()
            await events.until_in_flight(1)
        assert (await it.chat("a")).status == 200
    assert await ready(it) == {"a"}


async def test_higher_priorities_come_first_and_equal_ones_in_order_of_arrival(live: Live, tmp_path: Path) -> None:
    priority = {"fifo": {"priority": {"c": 5, "d": -1}}}
    models = {**ABC, "d": mirror(), "e": mirror()}
    it = await live.configure({"models": models, "routing": {"scheduler": {"settings": priority}}})
    async with it.events() as events:
        served = await served_in_order(it, events, "dbecc", tmp_path)
    assert [name for name, _ in served] == ["c", "c", "b", "e", "d"]


async def test_a_priority_does_not_preempt(live: Live, tmp_path: Path) -> None:
    routing = {"scheduler": {"use": "fifo", "settings": {"fifo": {"priority": {"b": 100}}}}}
    it = await live.configure({"models": ABC, "routing": routing})
    async with it.events() as events, held(it, "a", tmp_path / "end", events) as holding:
        waiting = asyncio.create_task(it.chat("b"))
        await events.until_in_flight(2)
        assert (await it.chat("a")).status == 200
        assert not holding.done()
        (tmp_path / "end").touch()
        assert (await waiting).status == 200


async def test_requests_that_meet_a_stopping_model_wait_and_start_it_again(live: Live) -> None:
    it = await live.configure({"models": {"a": model("--slow-stop", 0.4, cmdStop="kill -USR1 ${PID}"), "b": mirror()}})
    await load(it, "a")
    async with it.events() as events:
        for_b = asyncio.create_task(told(it, "b"))
        await events.until(lambda: events.states.get("a") == "stopping")
        for_a = asyncio.create_task(it.chat("a"))
        assert (await for_b)["served"] == 1
        assert (await for_a).status == 200
    assert await ready(it) == {"a"}


@pytest.mark.ours("a swap is overtaken for a bounded time")
async def test_overlapping_clients_keep_nobody_else_waiting_for_longer_than_the_bound(live: Live) -> None:
    """Two clients take turns on a, so that it is never idle; b is served all the same, and then a again."""
    it = await live.configure({"overtakeLimit": 1, "models": {"a": model(), "b": mirror()}})
    await load(it, "a")
    answered: list[int] = []
    done = asyncio.Event()

    async def keep_busy(delay: float) -> None:
        await asyncio.sleep(delay)
        while not done.is_set():
            answered.append((await it.chat("a", sleep=0.2)).status)

    async with asyncio.TaskGroup() as group:
        for delay in (0, 0.1):
            group.create_task(keep_busy(delay))
        await asyncio.sleep(0.3)
        began = time.monotonic()
        assert (await it.chat("b")).status == 200
        waited = time.monotonic() - began
        before = len(answered)
        while len(answered) < before + 2:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        done.set()
    assert 0.5 < waited < 4  # overtaken for a second, then only what was in flight and the swap itself
    assert {*answered} == {200}


async def test_no_bound_is_needed_where_nobody_overtakes(live: Live, tmp_path: Path) -> None:
    it = await live.configure({"overtakeLimit": 0, "models": ABC})
    async with it.events() as events:
        served = await served_in_order(it, events, "bcbc", tmp_path)
    assert sorted(name for name, _ in served) == ["b", "b", "c", "c"]


@pytest.mark.ours("an unload delays nobody else")
@pytest.mark.parametrize("options", ["--deaf", "--deaf --hang-health"], ids=["ready", "starting"])
async def test_an_unload_of_a_hung_model_delays_nobody_else(live: Live, options: str) -> None:
    models: Json = {"a": model(options, unloadTimeout=5), "b": mirror(), "c": mirror()}
    it = await live.configure({"models": models, "groups": ALL_TOGETHER})
    async with it.events() as events, it.lines("/logs/stream/a?no-history") as lines:
        waiting = asyncio.create_task(it.chat("a"))
        assert (await anext(lines)).startswith("listening on")  # it is deaf by now
        if "--hang-health" not in options:
            assert (await waiting).status == 200
        unloading = asyncio.create_task(it.ask("/api/models/unload/a", method="POST"))
        await events.until(lambda: events.states.get("a") == "stopping")
        began = time.monotonic()
        assert (await told(it, "b"))["served"] == 1
        assert (await told(it, "c"))["served"] == 1
        assert (await it.running())["a"] == "stopping"
        assert time.monotonic() - began < 3
        assert not unloading.done()
        for pid in it.pids("llamaswapd-it-model-a.service"):  # it has hung for long enough
            os.kill(pid, signal.SIGKILL)
        assert (await unloading).status == 200
        assert (await waiting).status in (200, 500)
