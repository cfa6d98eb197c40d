"""swap.md §8: how many requests a model admits."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from daemon_support import Answer, Daemon, model
from live import Live, held, load, mirror

pytestmark = pytest.mark.private

ONE = {"concurrencyLimit": 1}


def is_refused(answer: Answer) -> bool:
    """Tell whether it is the 429; it must be that of the contract."""
    if answer.status != 429:
        return False
    assert answer.headers["retry-after"] == "1"
    assert answer.message == "Too many requests"
    assert answer.json()["error"]["code"] == "concurrency_limit"
    assert answer.json()["error"]["type"] == "rate_limit_error"
    return True


@pytest.mark.parametrize(("limit", "admitted"), [(0, 10), (-3, 10), (2, 2), (12, 12)])
async def test_the_limit_counts_above_0_and_is_10_else(live: Live, tmp_path: Path, limit: int, admitted: int) -> None:
    it = await live.configure({"models": {"a": model("--ready-when", tmp_path / "go", concurrencyLimit=limit)}})
    async with it.events() as events:
        waiting = [asyncio.create_task(it.chat("a")) for _ in range(admitted)]
        await events.until_in_flight(admitted)
        assert is_refused(await it.chat("a"))
        (tmp_path / "go").touch()
        assert [(await each).status for each in waiting] == [200] * admitted
    assert (await it.chat("a")).status == 200


async def test_a_queued_request_holds_a_slot_of_its_own_target_until_its_client_leaves(
    live: Live, tmp_path: Path
) -> None:
    it = await live.configure({"models": {"a": mirror(), "b": mirror(**ONE)}})
    async with it.events() as events, held(it, "a", tmp_path / "end", events):
        waiting = asyncio.create_task(it.chat("b"))
        await events.until_in_flight(2)
        assert is_refused(await it.chat("b"))
        assert (await it.chat("a")).status == 200
        waiting.cancel()
        await events.until_in_flight(1)
        again = asyncio.create_task(it.chat("b"))
        await events.until_in_flight(2)
        (tmp_path / "end").touch()
        assert (await again).status == 200


async def test_the_refusal_is_json_whatever_the_client_accepts(live: Live, tmp_path: Path) -> None:
    it = await live.configure({"models": {"a": mirror(**ONE)}})
    async with it.events() as events, held(it, "a", tmp_path / "end", events):
        for accepted in ("text/plain", "text/html"):
            answer = await it.ask("/v1/completions", {"model": "a"}, headers={"Accept": accepted})
            assert answer.headers["content-type"] == "application/json"
            assert is_refused(answer)


async def test_upstream_counts(live: Live, tmp_path: Path) -> None:
    it = await live.configure({"models": {"a": mirror(**ONE)}})
    async with it.events() as events, held(it, "a", tmp_path / "end", events):
        assert is_refused(await it.ask("/upstream/a/anything"))


@pytest.mark.ours("event streams go on during a reload")
async def test_a_preload_counts(live: Live, tmp_path: Path) -> None:
    preload = {"on_startup": {"preload": ["a"]}}
    it = await live.configure({"models": {}})
    async with it.events() as events:
        models = {"a": model("--ready-when", tmp_path / "go", **ONE)}
        await live.reload({"models": models, "hooks": preload})
        await events.until(lambda: events.states.get("a") == "starting")
        assert is_refused(await it.chat("a"))
        (tmp_path / "go").touch()
        await events.until(lambda: events.states.get("a") == "ready")
    await until_admitted(it, "a")


async def test_comfyui_has_at_least_50_slots(live: Live, tmp_path: Path) -> None:
    it = await live.configure({"models": {"comfyui_auto": model("--ready-when", tmp_path / "go", concurrencyLimit=3)}})
    async with it.events() as events:
        waiting = [asyncio.create_task(it.chat("comfyui_auto")) for _ in range(50)]
        await events.until_in_flight(50)
        assert is_refused(await it.ask("/comfyui/"))
        (tmp_path / "go").touch()
        assert {(await each).status for each in waiting} == {200}


async def test_a_model_that_takes_no_websockets_into_account_counts_none(live: Live) -> None:
    it = await live.configure({"models": {"a": mirror(compat={"ignoreWebsockets": True}, **ONE)}})
    await load(it, "a")
    first, second = await websocket(it, "a"), await websocket(it, "a")
    assert (await it.chat("a")).status == 200
    for writer in (first, second):
        writer.close()


async def test_any_other_websocket_holds_a_slot(live: Live) -> None:
    it = await live.configure({"models": {"a": mirror(**ONE)}})
    writer = await websocket(it, "a")
    assert is_refused(await it.chat("a"))
    writer.close()
    await until_admitted(it, "a")


async def until_admitted(it: Daemon, name: str) -> None:
    async with asyncio.timeout(10):
        while (await it.chat(name)).status != 200:  # noqa: ASYNC110, nothing tells of a slot
            await asyncio.sleep(0.01)


async def websocket(it: Daemon, name: str) -> asyncio.StreamWriter:
    """Open one through `/upstream`."""
    reader, writer = await it.connect()
    upgrade = "Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n"
    writer.write(f"GET /upstream/{name}/ws HTTP/1.1\r\nHost: x\r\n{upgrade}\r\n".encode())
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    writer.write(b"ping")
    assert await reader.readexactly(4) == b"ping"
    return writer


async def test_a_limit_that_a_reload_changes_counts_at_once(live: Live, tmp_path: Path) -> None:
    it = await live.configure({"models": {"a": mirror(**ONE)}})
    await live.reload({"models": {"a": mirror(concurrencyLimit=2)}})
    async with it.events() as events, held(it, "a", tmp_path / "end", events):
        assert (await it.chat("a")).status == 200
