"""swap.md §14: requests to peers know no models of ours."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from daemon_support import Json, daemon
from live import Live

pytestmark = pytest.mark.private


@asynccontextmanager
async def peer(answer: asyncio.Event) -> AsyncIterator[Json]:
    """A peer that answers each request when it may; yields its configuration."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await answer.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield {"p": {"proxy": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "models": ["x"]}}
        server.close()


@pytest.mark.ours("a peer's model goes by its full name")
async def test_they_are_in_flight_and_recorded(live: Live) -> None:
    answer = asyncio.Event()
    async with peer(answer) as peers:
        it = await live.configure({"peers": peers, "sendLoadingState": True})
        async with it.events() as events:
            waiting = asyncio.create_task(it.chat("x", stream=True))
            await events.until_in_flight(1)
            assert [*events.in_flight.values()] == ["p/x"]
            answer.set()
            assert (await waiting).body == b"{}"  # and there was no loading to be shown
            await events.until_in_flight(0)
    async with asyncio.timeout(10):
        while not (await it.ask("/api/metrics/activity?model=p/x")).json()["data"]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.ours("a reload leaves alone what it does not change")
async def test_they_go_on_during_a_reload_and_an_unload(live: Live) -> None:
    answer = asyncio.Event()
    async with peer(answer) as peers:
        it = await live.configure({"peers": peers})
        async with it.events() as events:
            waiting = asyncio.create_task(it.chat("x"))
            await events.until_in_flight(1)
            await it.ask("/unload")
            await live.reload({"peers": {}})
            assert (await it.chat("x")).status == 404
            answer.set()
            assert (await waiting).status == 200


async def test_they_may_finish_before_a_shutdown(folder: Path) -> None:
    answer = asyncio.Event()
    async with peer(answer) as peers, daemon(folder, {"peers": peers}) as it, it.events() as events:
        waiting = asyncio.create_task(it.chat("x"))
        await events.until_in_flight(1)
        it.signal(signal.SIGTERM)
        while await events._response.content.read(65536):  # event streams end when the shutdown begins
            pass
        answer.set()
        assert (await waiting).status == 200
        assert await it.exited() == 0
