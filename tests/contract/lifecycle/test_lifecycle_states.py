"""swap.md §1: the states of a model, and who may see them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from daemon_support import Daemon, model
from live import Live, load, mirror, ready, told

pytestmark = pytest.mark.private


async def status_in_list(it: Daemon) -> dict[str, Any]:
    return {row["id"]: row["status"]["value"] for row in (await it.ask("/v1/models")).json()["data"]}


async def test_a_stopped_model_is_not_running_and_unloaded(live: Live) -> None:
    it = await live.configure({"models": {"a": mirror()}})
    assert await it.running() == {}
    assert await status_in_list(it) == {"a": "unloaded"}


async def test_a_starting_model_is_running_and_loaded(live: Live, tmp_path: Path) -> None:
    it = await live.configure({"models": {"a": model("--ready-when", tmp_path / "go")}})
    async with it.events() as events:
        waiting = asyncio.create_task(it.chat("a"))
        await events.until(lambda: events.states.get("a") == "starting")
        assert (await it.running(), await status_in_list(it)) == ({"a": "starting"}, {"a": "loaded"})
        (tmp_path / "go").touch()
        assert (await waiting).status == 200


async def test_a_ready_model_is_running_and_loaded(live: Live) -> None:
    it = await live.configure({"models": {"a": mirror()}})
    await load(it, "a")
    assert (await it.running(), await status_in_list(it)) == ({"a": "ready"}, {"a": "loaded"})


async def test_a_stopping_model_is_running_and_loaded_and_a_request_that_meets_it_starts_it_again(live: Live) -> None:
    slow = model("--slow-stop", 0.7, cmdStop="kill -USR1 ${PID}")
    it = await live.configure({"models": {"a": slow}})
    async with it.events() as events:
        first = await told(it, "a")
        unloading = asyncio.create_task(it.ask("/unload"))
        await events.until(lambda: events.states.get("a") == "stopping")
        waiting = asyncio.create_task(it.chat("a"))
        assert (await it.running(), await status_in_list(it)) == ({"a": "stopping"}, {"a": "loaded"})
        assert (await unloading).body == b"OK"
        answer = await waiting
    assert answer.status == 200
    assert answer.json()["pid"] != first["pid"]


async def test_every_change_is_announced(live: Live) -> None:
    it = await live.configure({"models": {"a": mirror()}})
    seen: list[str] = []
    async with it.events() as events:
        await events.until(lambda: events.states == {"a": "stopped"})
        asking = asyncio.create_task(load(it, "a"))
        await events.until(lambda: note(seen, events.states["a"]) == "ready")
        await asking
        unloading = asyncio.create_task(it.ask("/unload"))
        await events.until(lambda: note(seen, events.states["a"]) == "stopped")
        await unloading
    assert seen == ["stopped", "starting", "ready", "stopping", "stopped"]


def note(seen: list[str], state: str) -> str:
    if seen[-1:] != [state]:
        seen.append(state)
    return state


@pytest.mark.ours("models are units")
async def test_a_model_has_at_most_one_process(live: Live) -> None:
    it = await live.configure({"models": {"a": mirror(concurrencyLimit=30)}})
    pids = {answer["pid"] for answer in await asyncio.gather(*(told(it, "a") for _ in range(20)))}
    assert len(pids) == 1
    assert it.units() == ["llamaswapd-it-model-a.service"]


async def test_a_model_that_ended_by_itself_is_stopped(live: Live) -> None:
    it = await live.configure({"models": {"a": mirror()}})
    await load(it, "a")
    async with it.events() as events:
        assert (await it.chat("a", die=True)).status == 502
        await events.until(lambda: events.states.get("a") == "stopped")
    assert await ready(it) == set()
