"""swap.md §3: a model that ends by itself."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import aiohttp
import pytest
from daemon_support import model
from live import Live, logged_after, mirror, ready, told

pytestmark = pytest.mark.private


async def test_a_model_that_died_is_not_restarted_until_somebody_asks(live: Live) -> None:
    it = await live.configure({"models": {"a": mirror()}})
    first = (await told(it, "a"))["pid"]
    mark = len(it.log)
    async with it.events() as events:
        await events.until(lambda: events.states.get("a") == "ready")
        os.kill(first, signal.SIGKILL)
        await events.until(lambda: events.states.get("a") == "stopped")
    await logged_after(it, mark, "[WARN] <a> ")
    assert await it.running() == {}
    assert (await told(it, "a"))["pid"] != first


async def test_a_request_in_flight_gets_502_if_no_headers_had_come(live: Live, tmp_path: Path) -> None:
    it = await live.configure({"models": {"a": mirror()}})
    pid = (await told(it, "a"))["pid"]
    async with it.events() as events:
        waiting = asyncio.create_task(it.chat("a", until=str(tmp_path / "never")))
        await events.until_in_flight(1)
        os.kill(pid, signal.SIGKILL)
        assert (await waiting).status == 502


@pytest.mark.ours("an answer that is cut is cut visibly")
async def test_an_answer_that_has_begun_is_cut_visibly(live: Live) -> None:
    it = await live.configure({"models": {"a": model()}})
    async with it.stream("a", n=5, die_after=2) as stream:
        with pytest.raises(aiohttp.ClientPayloadError):
            await stream.rest()
    assert json.loads(stream.events[-1])["src"] == "llama-swap"


async def test_a_ready_model_is_not_checked_any_more(live: Live) -> None:
    it = await live.configure({"models": {"a": mirror("--health=503")}})
    assert len((await told(it, "a"))["probes"]) == 2
    await asyncio.sleep(0.2)
    assert len((await told(it, "a"))["probes"]) == 2
    assert await ready(it) == {"a"}
