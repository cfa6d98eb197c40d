"""swap.md §9: a model that nobody uses is unloaded."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from daemon_support import model
from live import Live, held, load, logged_after, mirror, ready

pytestmark = pytest.mark.private

TOGETHER = {"all": {"swap": False, "members": ["a", "b", "c", "d"]}}


@pytest.mark.ours("models are units")
async def test_it_happens_between_ttl_and_a_second_later_and_is_logged(live: Live) -> None:
    it = await live.configure({"models": {"a": mirror(ttl=1)}})
    mark = len(it.log)
    async with it.events() as events:
        await load(it, "a")
        began = time.monotonic()
        await events.until(lambda: events.states.get("a") == "ready")
        await events.until(lambda: events.states["a"] == "stopped")
        assert 0.95 < time.monotonic() - began < 2.5
    assert await logged_after(it, mark, "<a> Unloading model, TTL of 1s reached")
    assert it.units() == []


async def test_the_global_ttl_is_the_default_0_is_never_and_the_models_own_wins(live: Live) -> None:
    models = {"a": mirror(), "b": mirror(ttl=0), "c": mirror(ttl=-1), "d": mirror(ttl=60)}
    it = await live.configure({"globalTTL": 1, "models": models, "groups": TOGETHER})
    await load(it, *"abcd")
    rows = (await it.ask("/running")).json()["running"]
    assert {row["model"]: row["ttl"] for row in rows} == {"a": 1, "b": 0, "c": 1, "d": 60}
    async with it.events() as events:
        await events.until(lambda: events.states.get("a") == events.states.get("c") == "stopped")
    assert await ready(it) == {"b", "d"}


async def test_a_long_request_never_expires_and_the_clock_starts_when_it_ends(live: Live, tmp_path: Path) -> None:
    it = await live.configure({"models": {"a": mirror(ttl=1)}})
    async with it.events() as events:
        async with held(it, "a", tmp_path / "end", events):
            await asyncio.sleep(1.5)
            assert await ready(it) == {"a"}
            began = time.monotonic()
        await events.until(lambda: events.states["a"] == "stopped")
        assert time.monotonic() - began > 0.95


@pytest.mark.ours("the head of a log stream is sent at once")
async def test_listings_logs_and_events_are_no_use_but_upstream_is(live: Live) -> None:
    it = await live.configure({"models": {"a": mirror(ttl=1), "b": mirror(ttl=1)}, "groups": {
        "all": {"swap": False, "members": ["a", "b"]}}})  # fmt: skip
    await load(it, "a", "b")
    async with it.events() as events, it.lines("/logs/stream/a"):
        end = time.monotonic() + 1.6
        while time.monotonic() < end:
            await it.ask("/running")
            await it.ask("/v1/models")
            await it.ask("/logs")
            await it.ask("/upstream/b/x")
            await asyncio.sleep(0.1)
        await events.until(lambda: events.states.get("a") == "stopped")
        assert (await it.running()).get("b") == "ready"


async def test_a_request_that_arrives_during_the_stop_waits_and_starts_the_model_again(live: Live) -> None:
    it = await live.configure({"models": {"a": model("--slow-stop", 0.5, ttl=1, cmdStop="kill -USR1 ${PID}")}})
    first = (await it.chat("a")).json()["pid"]
    async with it.events() as events:
        await events.until(lambda: events.states.get("a") == "stopping")
        answer = await it.chat("a")
    assert answer.status == 200
    assert answer.json()["pid"] != first


async def test_the_clock_of_a_model_whose_only_client_left_counts_from_its_readiness(
    live: Live, tmp_path: Path
) -> None:
    it = await live.configure({"models": {"a": model("--ready-when", tmp_path / "go", ttl=1)}})
    async with it.events() as events:
        waiting = asyncio.create_task(it.chat("a"))
        await events.until(lambda: events.states.get("a") == "starting" and len(events.in_flight) == 1)
        waiting.cancel()
        await asyncio.sleep(1.1)
        (tmp_path / "go").touch()
        await events.until(lambda: events.states.get("a") == "ready")
        began = time.monotonic()
        await events.until(lambda: events.states.get("a") == "stopped")
        assert time.monotonic() - began > 0.9


async def test_the_unload_timeout_is_the_grace(live: Live) -> None:
    it = await live.configure({"models": {"a": model("--deaf", ttl=1, unloadTimeout=1)}})
    await it.chat("a")
    async with it.events() as events:
        await events.until(lambda: events.states.get("a") == "stopping")
        began = time.monotonic()
        await events.until(lambda: events.states["a"] == "stopped")
        assert 0.9 < time.monotonic() - began < 2.5


@pytest.mark.parametrize("ttl", ["30.0", "30.5", "0x1E", "036"])
async def test_numbers_are_read_as_go_reads_them(live: Live, ttl: str) -> None:
    text = f"startPort: {live.first_port}\nmodels:\n  a:\n    cmd: {mirror()['cmd']}\n    ttl: {ttl}\n"
    it = await live.reload_text(text)
    await load(it, "a")
    [row] = (await it.ask("/running")).json()["running"]
    assert row["ttl"] == 30
