from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from fake_model import OK, Answer, Call, FakeModel, fixed, last, until

from llamaswapd.config.schema import Timeouts
from llamaswapd.errors import UpstreamError
from llamaswapd.http import upstream as upstream_module
from llamaswapd.http.connect import connect
from llamaswapd.http.upstream import Origin, OriginPool, Stale, Upstream
from llamaswapd.http.wire import Framing, Shape

LIMITS = Timeouts()
GET = b"GET / HTTP/1.1\r\nHost: m\r\n\r\n"


class Sink:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.data = b""
        self.over = asyncio.Event()

    def on_interim(self, shape: Shape) -> None:
        """Of no interest here."""

    def on_whole(self, shape: Shape, digits: bytes, data: bytes, now: float) -> None:
        self.told.append(shape.status)
        self.data += data
        self.on_end()

    def on_head(self, shape: Shape, digits: bytes, framing: Framing, data: bytes) -> None:
        self.told.append(shape.status)
        self.data += data

    def on_data(self, data: bytes) -> None:
        self.data += data

    def on_end(self) -> None:
        self.told.append("end")
        self.over.set()

    def on_failure(self, error: UpstreamError) -> None:
        self.told.append(type(error))
        self.over.set()

    def on_writable(self, writable: bool) -> None:
        self.told.append(writable)


@asynccontextmanager
async def served(
    answer: Answer, limits: Timeouts = LIMITS
) -> AsyncIterator[tuple[OriginPool, FakeModel, Callable[[Upstream | None], Awaitable[Sink]]]]:
    server = FakeModel(answer)
    await server.start()
    pool = OriginPool(Origin("127.0.0.1", server.port, False), limits)

    async def exchange(upstream: Upstream | None = None) -> Sink:
        upstream = upstream or pool.take() or await connect(pool)
        sink = Sink()
        upstream.send(sink, GET, is_head=False, unframe=False, complete=True)
        await sink.over.wait()
        return sink

    try:
        async with asyncio.timeout(10):
            yield pool, server, exchange
    finally:
        pool.close()
        await server.close()


async def test_an_exchange_is_told_from_head_to_end() -> None:
    async with served(fixed(OK)) as (_, _, exchange):
        sink = await exchange()
    assert (sink.told, sink.data) == ([200, "end"], b"ok")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        OK + b"!",
    ],
)
async def test_a_connection_that_cannot_be_used_again_is_closed(answer: bytes) -> None:
    async with served(fixed(answer)) as (_, server, exchange):
        for _ in range(2):
            assert (await exchange()).told == [200, "end"]
        assert server.connections == 2


async def test_bytes_nobody_asked_for_close_an_idle_connection() -> None:
    async def answer(call: Call) -> None:
        await call.send(OK)
        await kept.wait()
        await call.send(OK)
        await call.left()
        left.set()

    kept, left = asyncio.Event(), asyncio.Event()
    async with served(answer) as (pool, _server, exchange):
        await exchange()
        kept.set()
        await left.wait()
        assert pool.take() is None


async def test_a_connection_that_ends_while_idle_is_forgotten() -> None:
    async with served(last(OK)) as (pool, _, exchange):
        await exchange()
        await until(lambda: not pool._idle)
        assert (await exchange()).told == [200, "end"]


async def test_only_a_kept_connection_can_be_stale() -> None:
    async def die(call: Call) -> None:
        if call.connection == 2 and len(server.calls) == 2:
            await call.send(OK)
        else:
            call.reset()

    async with served(die) as (_, server, exchange):
        assert (await exchange()).told == [UpstreamError]
        assert (await exchange()).told == [200, "end"]
        assert (await exchange()).told == [Stale]


async def test_idle_connections_are_closed_after_a_while() -> None:
    left = asyncio.Event()

    async def answer(call: Call) -> None:
        await call.send(OK)
        await call.left()
        left.set()

    async with served(answer, LIMITS.having(idle_conn=1)) as (pool, _, exchange):
        await exchange()
        await left.wait()
        assert not pool._idle


async def test_no_more_than_so_many_connections_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_module, "IDLE_CONNECTIONS", 2)
    async with served(fixed(OK)) as (pool, _server, exchange):
        upstreams = [await connect(pool) for _ in range(3)]
        await asyncio.gather(*(exchange(upstream) for upstream in upstreams))
        assert [pool.take() is not None for _ in range(3)] == [True, True, False]


async def test_idle_connections_are_given_up_for_a_request_that_the_server_does_not_look_at() -> None:
    turn = asyncio.Lock()
    served = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.add(asyncio.current_task())
        async with turn:  # one connection at a time, for as long as it is open
            while await reader.readline():
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    pool = OriginPool(Origin("127.0.0.1", server.sockets[0].getsockname()[1], False), LIMITS)
    sinks = [Sink(), Sink(), Sink()]
    for sink in sinks:
        (await connect(pool)).send(sink, GET, is_head=False, unframe=False, complete=True)
    for sink in sinks:
        await sink.over.wait()
    assert [sink.told for sink in sinks] == [[200, "end"]] * 3
    pool.close()
    server.close()
    await asyncio.gather(*served, return_exceptions=True)  # their connections were reset


async def test_a_connection_that_was_paused_at_the_end_of_an_answer_is_read_from_again() -> None:
    class Pausing(Sink):
        def on_head(self, shape: Shape, digits: bytes, framing: Framing | None, data: bytes) -> None:
            upstream.pause_reading()

    async with served(fixed(OK)) as (pool, server, exchange):
        upstream, sink = await connect(pool), Pausing()
        upstream.send(sink, GET, is_head=False, unframe=False, complete=True)
        await sink.over.wait()
        assert (await exchange()).told == [200, "end"]
        assert server.connections == 1


async def test_an_exchange_that_is_given_up_tells_nothing_more() -> None:
    left = asyncio.Event()

    async def answer(call: Call) -> None:
        await call.send(OK[:-1])
        await call.left()
        left.set()

    async with served(answer) as (pool, _server, _):
        upstream, sink = await connect(pool), Sink()
        upstream.send(sink, GET, is_head=False, unframe=False, complete=True)
        await until(lambda: bool(sink.told))
        upstream.abort()
        await left.wait()
        assert sink.told == [200]


async def test_a_server_that_does_not_begin_to_answer_is_given_up_in_time() -> None:
    async def answer(call: Call) -> None:
        await call.left()

    async with served(answer, LIMITS.having(response_header=1)) as (_, _server, exchange):
        assert (await exchange()).told == [UpstreamError]


async def test_the_time_for_an_answer_is_over_once_it_has_begun() -> None:
    begun = asyncio.Event()

    async def answer(call: Call) -> None:
        await call.send(OK[:-1])
        await begun.wait()
        await call.send(OK[-1:])

    async with served(answer, LIMITS.having(response_header=1)) as (_, _server, exchange):
        asked = asyncio.ensure_future(exchange())
        await asyncio.sleep(1.2)  # longer than it may take to begin
        begun.set()
        assert (await asked).told == [200, "end"]
