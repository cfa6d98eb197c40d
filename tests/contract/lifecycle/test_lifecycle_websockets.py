"""swap.md §13: websockets that do not count."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from daemon_support import Daemon, model
from live import Live, load, mirror, ready

pytestmark = pytest.mark.private

IGNORING = {"compat": {"ignoreWebsockets": True}}
UPGRADES = [
    "Connection: Upgrade\r\nUpgrade: websocket\r\n",
    "Connection: keep-alive, upgrade\r\nUpgrade: WebSocket\r\n",
]


async def websocket(it: Daemon, upgrade: str = UPGRADES[0]) -> tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]:
    """Ask for one of model a; return the head of the answer and the connection."""
    reader, writer = await it.connect()
    writer.write(f"GET /upstream/a/ws HTTP/1.1\r\nHost: x\r\n{upgrade}\r\n".encode())
    return await reader.readuntil(b"\r\n\r\n"), reader, writer


@pytest.mark.parametrize("upgrade", UPGRADES)
async def test_one_for_a_model_that_is_not_ready_is_409_and_starts_nothing(live: Live, upgrade: str) -> None:
    it = await live.configure({"models": {"a": mirror(**IGNORING)}})
    head, reader, writer = await websocket(it, upgrade)
    assert head.startswith(b"HTTP/1.1 409 ")
    wanted = b"model a is not loaded; ignored websocket requests cannot start it"
    assert wanted in await reader.readuntil(b"}}")
    writer.close()
    assert await it.running() == {}


async def test_one_for_a_ready_model_is_forwarded_and_not_listed_in_flight(live: Live) -> None:
    it = await live.configure({"models": {"a": mirror(**IGNORING)}})
    await load(it, "a")
    async with it.events() as events:
        head, reader, writer = await websocket(it)
        assert head.startswith(b"HTTP/1.1 101 ")
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping"
        await events.until(lambda: bool(events.states))
        assert events.in_flight == {}
        writer.close()


@pytest.mark.parametrize("how", ["swap", "unload", "ttl"])
async def test_it_delays_neither_swaps_nor_unloads_nor_ttl_and_drops_when_the_model_stops(live: Live, how: str) -> None:
    ttl = 1 if how == "ttl" else 0
    it = await live.configure({"models": {"a": mirror(ttl=ttl, **IGNORING), "b": mirror()}})
    await load(it, "a")
    head, reader, writer = await websocket(it)
    assert head.startswith(b"HTTP/1.1 101 ")
    if how == "swap":
        await load(it, "b")
    elif how == "unload":
        await it.ask("/unload")
    assert await asyncio.wait_for(reader.read(), 20) == b""
    writer.close()
    async with it.events() as events:
        await events.until(lambda: events.states.get("a") == "stopped")


async def test_any_other_websocket_starts_the_model_and_delays_a_swap_for_as_long_as_it_is_open(live: Live) -> None:
    it = await live.configure({"models": {"a": mirror(), "b": mirror()}})
    head, _, writer = await websocket(it)
    assert head.startswith(b"HTTP/1.1 101 ")
    async with it.events() as events:
        waiting = asyncio.create_task(it.chat("b"))
        await events.until_in_flight(1)
        assert await ready(it) == {"a"}
        writer.close()
        assert (await waiting).status == 200


async def test_comfyui_ignores_them_in_any_case(live: Live) -> None:
    it = await live.configure({"models": {"comfyui_auto": mirror(compat={"ignoreWebsockets": False})}})
    reader, writer = await it.connect()
    writer.write(f"GET /upstream/comfyui_auto/ws HTTP/1.1\r\nHost: x\r\n{UPGRADES[0]}\r\n".encode())
    assert (await reader.readline()).startswith(b"HTTP/1.1 409 ")
    writer.close()
    assert await it.running() == {}


async def test_one_that_meets_a_loading_model_is_409_too(live: Live, tmp_path: Path) -> None:
    it = await live.configure({"models": {"a": model("--ready-when", tmp_path / "go", **IGNORING)}})
    async with it.events() as events:
        waiting = asyncio.create_task(it.chat("a"))
        await events.until(lambda: events.states.get("a") == "starting")
        head, _, writer = await websocket(it)
        assert head.startswith(b"HTTP/1.1 409 ")
        writer.close()
        (tmp_path / "go").touch()
        assert (await waiting).status == 200
