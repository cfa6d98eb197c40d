from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fake_model import OK, Answer, Call, FakeModel, fixed, last, until

from llamaswapd.config.schema import Timeouts
from llamaswapd.errors import UpstreamError
from llamaswapd.http import upstream as upstream_module
from llamaswapd.http.upstream import Origin, OriginPool, Pool, Stale, Upstream, parse_base
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
        upstream = upstream or pool.take() or await pool.connect()
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


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://localhost:5800", (Origin("localhost", 5800, False), "")),
        ("http://localhost/", (Origin("localhost", 80, False), "")),
        ("https://gpu.example/v2/", (Origin("gpu.example", 443, True), "/v2")),
        ("http://[::1]:8080/a%2Fb", (Origin("::1", 8080, False), "/a%2Fb")),
    ],
)
def test_a_proxy_url_is_an_origin_and_a_prefix(url: str, expected: tuple[Origin, str]) -> None:
    assert parse_base(url)[:2] == expected


@pytest.mark.parametrize("url", ["", "localhost:5800", "ftp://x", "http://", "http://x:y", "http://x:99999"])
def test_what_is_no_proxy_url_is_named(url: str) -> None:
    with pytest.raises(UpstreamError, match='proxy "'):
        parse_base(url)


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
        upstreams = [await pool.connect() for _ in range(3)]
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
        (await pool.connect()).send(sink, GET, is_head=False, unframe=False, complete=True)
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
        upstream, sink = await pool.connect(), Pausing()
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
        upstream, sink = await pool.connect(), Sink()
        upstream.send(sink, GET, is_head=False, unframe=False, complete=True)
        await until(lambda: bool(sink.told))
        upstream.abort()
        await left.wait()
        assert sink.told == [200]


async def test_a_server_that_takes_no_connections_is_an_error_in_time() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        fill = [socket.socket() for _ in range(2)]  # the backlog is full then, and what comes is not answered
        for each in fill:
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))
        with pytest.raises(UpstreamError, match="does not take connections: nothing for 1 s"):
            await OriginPool(Origin("127.0.0.1", port, False), LIMITS.having(connect=1)).connect()
        for each in fill:
            each.close()


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


@pytest.mark.parametrize("period_s", [0, 7])
async def test_the_kernel_looks_whether_the_server_is_still_there(period_s: int) -> None:
    async with served(fixed(OK), LIMITS.having(keepalive=period_s)) as (pool, _server, _):
        sock = (await pool.connect()).transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        idle_s = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
        assert idle_s == (period_s or int(Path("/proc/sys/net/ipv4/tcp_keepalive_time").read_text()))


@pytest.mark.sources
async def test_a_server_that_closes_while_it_is_connected_to_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    connected = OriginPool._connected

    async def late(pool: OriginPool) -> Upstream:
        upstream = await connected(pool)
        await until(upstream.transport.is_closing)
        return upstream

    def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    monkeypatch.setattr(OriginPool, "_connected", late)
    server = await asyncio.start_server(close, "127.0.0.1", 0)
    pool = OriginPool(Origin("127.0.0.1", server.sockets[0].getsockname()[1], False), LIMITS)
    with pytest.raises(UpstreamError, match="closed the connection before it answered"):
        await pool.connect()
    assert not pool._all
    server.close()


@pytest.mark.parametrize(
    ("url", "target", "seen"),
    [
        ("http://h/v1/", "/x?a=1", "/v1/x?a=1"),
        ("http://h/v1?api-version=2", "/x", "/v1/x?api-version=2"),
        ("http://h?api-version=2", "/x?a=1&b", "/x?api-version=2&a=1&b"),
    ],
)
async def test_path_and_query_of_a_base_belong_to_every_target(url: str, target: str, seen: str) -> None:
    assert Pool().of(url, LIMITS).target(target) == seen
