"""Websockets: bytes that pass both ways, once the server has agreed, and what they count for."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable

import aiohttp
import pytest
from aiohttp import WSMsgType, web
from fake_model import OK, Call, chat, fixed, house_of, last, peered, until
from standins import Client, House, model

from llamaswapd.config.schema import COMFYUI_ID, Compat, Selector
from llamaswapd.core.lifecycle import State

OFFER = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: x3JJHMbDL1EzLkh9",
)
AGREED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX-A: 1\r\n\r\n"


async def offer(it: House, target: str = "/upstream/m/ws", *lines: str, method: str = "GET") -> Client:
    client = await it.connect()
    await client.send(target, *OFFER, *lines, method=method)
    return client


async def agree(call: Call) -> None:
    """Switch, then echo."""
    await call.send(AGREED)
    await echo(call)


async def echo(call: Call) -> None:
    while data := await call.reader.read(65536):
        await call.send(data)
    call.close()


# ---- real clients and servers


async def answer_websocket(request: web.Request) -> web.StreamResponse:
    socket = web.WebSocketResponse(protocols=("chat",), max_msg_size=0)
    await socket.prepare(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            await socket.send_str(f"{request.path_qs} {message.data}")
        else:
            await socket.send_bytes(message.data[::-1])
            if len(message.data) == 1:
                await socket.close(code=4001, message=b"enough")
    return socket


@pytest.mark.parametrize(("path", "seen"), [("/upstream/m/a%20b?x=1", "/a%20b?x=1"), ("/comfyui/ws?x=1", "/ws?x=1")])
async def test_a_websocket_reaches_the_model_and_talks_both_ways(path: str, seen: str) -> None:
    app = web.Application()
    app.router.add_get("/{rest:.*}", answer_websocket)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[union-attr]
    async with house_of(fixed(OK), proxy=url, others=[model(COMFYUI_ID, proxy=url)]) as (it, _):
        it.engine.become(COMFYUI_ID, State.READY)
        async with aiohttp.ClientSession() as session:
            there = f"http://127.0.0.1:{it.port}{path}"
            async with session.ws_connect(there, protocols=("chat",), max_msg_size=0) as socket:
                assert socket.protocol == "chat"
                for text in ("one", "two" * 1000):
                    await socket.send_str(text)
                    assert await socket.receive_str() == f"{seen} {text}"
                large = bytes(range(256)) * 20_000
                await socket.send_bytes(large)
                assert await socket.receive_bytes() == large[::-1]
                await socket.send_bytes(b"x")
                assert await socket.receive_bytes() == b"x"
                closing = await socket.receive()
                assert (closing.type, closing.data, closing.extra) == (WSMsgType.CLOSE, 4001, "enough")
        await until(lambda: it.engine.leases == 0)
    await runner.cleanup()


# ---- the heads


async def test_the_offer_and_the_agreement_pass_with_their_headers() -> None:
    async with house_of(agree) as (it, server):
        client = await offer(it, "/upstream/m/ws", "Sec-WebSocket-Protocol: a, b", "Cookie: c", "X-Hop: 1")
        assert await client.reader.readuntil(b"\r\n\r\n") == AGREED
        client.close()
    assert server.calls[0].request_line == "GET /ws HTTP/1.1"
    assert server.calls[0].lines == [
        "Host: models",
        *OFFER[2:],
        "Sec-WebSocket-Protocol: a, b",
        "Cookie: c",
        "X-Hop: 1",
        "X-Forwarded-For: 127.0.0.1",
        "Connection: Upgrade",
        "Upgrade: websocket",
    ]


@pytest.mark.parametrize("connection", ["upgrade", "keep-alive, Upgrade", "Upgrade,X-Hop"])
@pytest.mark.parametrize("protocol", ["websocket", "WebSocket"])
async def test_an_offer_may_be_spelled_in_several_ways(connection: str, protocol: str) -> None:
    async with house_of(agree) as (it, server):
        client = await it.connect()
        await client.send("/upstream/m/ws", f"Connection: {connection}", f"Upgrade: {protocol}", "X-Hop: 1")
        assert (await client.head()).status == 101
        client.writer.write(b"hello")
        assert await client.reader.readexactly(5) == b"hello"
        client.close()
    assert server.calls[0].headers["connection"] == "Upgrade"
    assert ("x-hop" in server.calls[0].headers) == ("X-Hop" not in connection)


@pytest.mark.parametrize(
    "lines",
    [
        ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
        ("Connection: Upgrade", "Upgrade: websocket, h2c"),
        ("Connection: Upgrade", "Upgrade: h2c, websocket"),
        ("Connection: Upgrade", "Upgrade: websocket", "Upgrade: h2c"),
        ("Connection: Upgrade", "Upgrade: tcp"),
        ("Connection: close", "Upgrade: websocket"),
        ("Upgrade: websocket",),
    ],
)
async def test_no_other_protocol_is_offered_to_a_model(lines: tuple[str, ...]) -> None:
    async with house_of(fixed(OK)) as (it, server):
        answer = await it.ask("/upstream/m/x", *lines)
        assert answer.status == 200
    assert not {"upgrade", "http2-settings", "connection"} & set(server.calls[0].headers)


async def test_an_offer_of_http_1_0_is_none() -> None:
    async with house_of(fixed(OK)) as (it, server):
        client = await it.connect()
        client.writer.write(b"GET /upstream/m/x HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert (await client.head()).status == 200
    assert "upgrade" not in server.calls[0].headers


async def test_a_server_that_switches_unasked_is_a_502() -> None:
    async with house_of(last(AGREED)) as (it, _):
        assert (await it.ask("/upstream/m/x")).status == 502


async def test_an_offer_with_a_body_is_a_plain_request_or_refused() -> None:
    async with house_of(fixed(OK)) as (it, server):
        client = await it.connect()
        client.writer.write(chat(b'{"model":"m"}', *OFFER))
        answer = await client.answer()
        assert answer.status in (200, 400)  # as aiohttp's version can read it or not
    assert all("upgrade" not in call.headers and call.body == b'{"model":"m"}' for call in server.calls)


# ---- what comes behind the offer

SMUGGLED = b"GET /secret HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("status", [b"200 OK", b"400 Bad Request", b"426 Upgrade Required"])
async def test_what_follows_an_offer_does_not_reach_a_server_that_refuses(status: bytes) -> None:
    refusal = b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\nno"
    answered = asyncio.Event()

    async def refuse(call: Call) -> None:
        await answered.wait()
        await call.send(refusal)

    async with house_of(refuse) as (it, server):
        client = await offer(it)
        client.writer.write(SMUGGLED)
        await until(lambda: bool(server.calls))
        client.writer.write(SMUGGLED)
        await client.writer.drain()
        await asyncio.sleep(0.02)  # time enough to do it wrong
        answered.set()
        answer = await client.answer()
        assert (answer.body, answer.headers["connection"]) == (b"no", "close")
        assert await client.reader.read() == b""  # it is over
        # The server's connection is as good as new.
        assert (await it.ask("/upstream/m/next")).body == b"no"
    assert [call.request_line for call in server.calls] == ["GET /ws HTTP/1.1", "GET /next HTTP/1.1"]


async def test_what_follows_an_offer_with_the_same_packet_does_not_either() -> None:
    async with house_of(fixed(OK)) as (it, server):
        client = await it.connect()
        head = "\r\n".join(("GET /upstream/m/ws HTTP/1.1", "Host: m", *OFFER, "", "")).encode()
        client.writer.write(head + SMUGGLED * 3000)
        assert (await client.head()).status == 200
        assert (await client.reader.readexactly(2)) == b"ok"
        await until(client.reader.at_eof)
    assert len(server.calls) == 1


async def test_what_follows_an_offer_reaches_a_server_that_agrees_in_its_order() -> None:
    early, go_on = b"e" * 200_000, asyncio.Event()

    async def late(call: Call) -> None:
        await go_on.wait()
        await agree(call)

    async with house_of(late) as (it, server):
        client = await offer(it)
        client.writer.write(early[:1000])
        await until(lambda: bool(server.calls))
        client.writer.write(early[1000:])
        await asyncio.sleep(0.02)
        go_on.set()
        client.writer.write(b"late")
        assert (await client.head()).status == 101
        assert await client.reader.readexactly(200_004) == early + b"late"
        client.close()


async def test_a_server_may_speak_at_once() -> None:
    async def speak(call: Call) -> None:
        await call.send(AGREED + b"hello")
        await echo(call)

    async with house_of(speak) as (it, _):
        client = await offer(it)
        assert (await client.head()).status == 101
        assert await client.reader.readexactly(5) == b"hello"
        client.writer.write(b"you")
        assert await client.reader.readexactly(3) == b"you"
        client.close()


async def test_an_offer_that_fails_is_answered_and_ends_the_connection() -> None:
    async with house_of(last(b"")) as (it, _):
        client = await offer(it)
        assert (await client.answer()).status == 502
        assert await client.reader.read() == b""


async def test_a_refused_offer_to_nobody_is_an_ordinary_error() -> None:
    async with house_of(agree) as (it, server):
        client = await offer(it, "/upstream/nobody/ws")
        assert (await client.answer()).status == 404
    assert not server.calls


# ---- much of it


async def test_much_passes_both_ways_at_once_and_a_slow_reader_holds_it_up() -> None:
    total, drink = 30_000_000, asyncio.Event()
    sent = bytes(range(256)) * (total // 256)
    got = hashlib.sha256()

    async def slow(call: Call) -> None:
        await call.send(AGREED)
        await drink.wait()
        size = 0
        while size < len(sent):
            data = await call.reader.read(65536)
            got.update(data)
            size += len(data)
        for at in range(0, len(sent), 100_000):
            await call.send(sent[at : at + 100_000])
        call.close()

    async with house_of(slow) as (it, _):
        client = await offer(it)
        assert (await client.head()).status == 101
        writing = asyncio.create_task(write_all(client, sent))
        connection = next(iter(it.front._site.connections))  # type: ignore[union-attr]
        await until(lambda: connection.is_paused)
        drink.set()
        await writing
        # Now nobody reads what comes back, until the server cannot go on.
        relay = next(iter(it.front._pool._by_origin.values()))._all
        await until(lambda: any(upstream._is_paused for upstream in relay))
        back = hashlib.sha256()
        while data := await client.reader.read(65536):
            back.update(data)
    assert got.digest() == back.digest() == hashlib.sha256(sent).digest()


async def write_all(client: Client, data: bytes) -> None:
    client.writer.write(data)
    await client.writer.drain()


# ---- how it ends


async def test_when_the_server_closes_the_client_gets_the_rest_and_the_end() -> None:
    async def bye(call: Call) -> None:
        await call.send(AGREED)
        await call.reader.readexactly(1)
        await call.send(b"b" * 300_000)
        call.close()

    async with house_of(bye) as (it, _):
        client = await offer(it)
        await client.head()
        client.writer.write(b"?")
        assert await client.reader.read() == b"b" * 300_000
        await until(lambda: it.engine.leases == 0)


async def test_when_the_server_is_killed_the_client_sees_a_reset() -> None:
    async def die(call: Call) -> None:
        await call.send(AGREED)
        await call.reader.readexactly(1)
        call.reset()

    async with house_of(die) as (it, _):
        client = await offer(it)
        await client.head()
        client.writer.write(b"?")
        with pytest.raises(ConnectionResetError):
            await client.reader.read()


@pytest.mark.parametrize("half", [False, True])
async def test_when_the_client_closes_the_server_gets_the_rest_and_the_end(half: bool) -> None:
    got, over = bytearray(), asyncio.Event()

    async def listen(call: Call) -> None:
        await call.send(AGREED)
        await go_on.wait()
        while data := await call.reader.read(65536):
            got.extend(data)
        over.set()

    go_on = asyncio.Event()
    async with house_of(listen) as (it, _):
        client = await offer(it)
        await client.head()
        client.writer.write(b"l" * 20_000)
        if half:
            client.writer.write_eof()
        else:
            client.close()
        await until(lambda: it.engine.leases == 0)
        go_on.set()
        await over.wait()
    assert bytes(got) == b"l" * 20_000


# ---- what it counts for


async def test_an_ordinary_websocket_holds_its_lease_as_long_as_it_is_open() -> None:
    async with house_of(agree) as (it, _):
        client = await offer(it)
        await client.head()
        assert (it.engine.leases, len(it.observer.inflight)) == (1, 0)  # other paths of /upstream are not shown
        client.close()
        await until(lambda: it.engine.leases == 0)
    assert not it.activity.ended


async def test_a_websocket_waits_for_its_model() -> None:
    async with house_of(agree) as (it, server):
        it.engine.ready.clear()
        client = await offer(it)
        await it.engine.waited.wait()
        assert not server.calls
        it.engine.ready.set()
        assert (await client.head()).status == 101
        client.close()


async def test_a_client_that_leaves_while_its_websocket_waits_gives_its_lease_back() -> None:
    async with house_of(agree) as (it, server):
        it.engine.ready.clear()
        client = await offer(it)
        client.writer.write(b"early")
        await it.engine.waited.wait()
        client.close()
        await until(lambda: it.engine.leases == 0)
    assert not server.calls


Asking = Callable[[House], Awaitable[Client]]
IGNORED = "model m is not loaded; ignored websocket requests cannot start it"


@pytest.mark.parametrize("protocol", ["websocket", "WebSocket", "websocket, h2c", "x-websocket"])
@pytest.mark.parametrize("state", [State.STOPPED, State.STARTING, State.STOPPING])
async def test_an_ignored_websocket_does_not_start_its_model(state: State, protocol: str) -> None:
    async with house_of(agree, compat=Compat(ignore_websockets=True)) as (it, server):
        it.engine.become("m", state)
        answer = await it.ask("/upstream/m/ws", "Connection: keep-alive, UPGRADE", f"Upgrade: {protocol}")
        assert (answer.status, answer.json()["error"]["message"]) == (409, IGNORED)
        assert answer.json()["error"]["code"] == "conflict"
        assert not it.engine.waited.is_set()
        plain = await it.ask("/upstream/m/ws", "Connection: Upgrade", "Upgrade: other")
        assert plain.status == 101 or plain.body  # which is answered as ever
    assert len(server.calls) == 1


@pytest.mark.parametrize("target", ["/upstream/m/ws", "/upstream/m/props", "/props?model=m", "/props?model=s"])
async def test_an_ignored_websocket_takes_nothing_and_is_not_shown(target: str) -> None:
    spill = Selector(strategy="spillover", targets=("m",))
    async with house_of(agree, {"selectors": {"s": spill}}, compat=Compat(ignore_websockets=True)) as (it, _):
        it.engine.become("m", State.READY)
        with it.observer.events.subscribe() as events:
            client = await offer(it, target)
            assert (await client.head()).status == 101
            client.writer.write(b"hello")
            assert await client.reader.readexactly(5) == b"hello"
            assert (it.engine.leases, len(it.observer.inflight)) == (0, 0)
            assert not it.engine.naming._selections["s"]._counts["m"]
            client.close()
            assert not [event for event in events._items if event.type == "inflight"]


async def test_an_ignored_websocket_does_not_hold_up_the_end() -> None:
    async with house_of(agree, compat=Compat(ignore_websockets=True)) as (it, _):
        it.engine.become("m", State.READY)
        client = await offer(it)
        await client.head()
        it.front.drain()
        await it.front.drained()
        with pytest.raises(ConnectionResetError):  # it did not come to its own end
            await client.reader.read()


async def test_what_is_no_websocket_counts_for_a_model_that_ignores_those() -> None:
    proceed = asyncio.Event()

    async def answer(call: Call) -> None:
        await proceed.wait()
        await call.send(OK)

    async with house_of(answer, compat=Compat(ignore_websockets=True)) as (it, server):
        client = await it.connect()
        await client.send("/upstream/m/props")
        await until(lambda: bool(server.calls))
        assert (it.engine.leases, len(it.observer.inflight)) == (1, 1)
        proceed.set()
        assert (await client.answer()).body == b"ok"


async def test_a_websocket_that_is_cut_while_the_front_end_closes_leaves_nothing() -> None:
    async with house_of(agree) as (it, _):
        client = await offer(it)
        await client.head()
        await it.front.close()
        assert it.engine.leases == 0


async def test_a_websocket_reaches_a_peer_by_its_own_host() -> None:
    async with peered(agree, api_key="secret") as (it, peer):
        client = await offer(it, "/upstream/p/far/ws?x", "X-Forwarded-For: 1.2.3.4")
        assert (await client.head()).status == 101
        client.writer.write(b"hello")
        assert await client.reader.readexactly(5) == b"hello"
        client.close()
    assert peer.calls[0].request_line == "GET /api/ws?x HTTP/1.1"
    assert (peer.calls[0].headers["host"], peer.calls[0].headers["x-api-key"]) == (f"127.0.0.1:{peer.port}", "secret")
    assert "x-forwarded-for" not in peer.calls[0].headers


async def test_a_websocket_on_a_model_route_is_shown_until_it_ends() -> None:
    async with house_of(agree) as (it, _):
        client = await offer(it, "/v1/audio/voices?model=m")
        assert (await client.head()).status == 101
        (entry,) = it.observer.inflight.snapshot().data["requests"]  # type: ignore[index]
        assert (entry["model"], entry["method"], entry["resp_headers"]["X-A"]) == ("m", "GET", "1")
        assert it.observer.inflight.cancel(entry["id"])
        with pytest.raises(ConnectionResetError):
            await client.reader.read()
