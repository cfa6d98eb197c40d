"""The relay between real sockets: framings, backpressure, and who may leave when."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from fake_model import OK, Call, chat, fixed, house_of, last, until
from standins import Client, House
from ways import close_express

from llamaswapd.http import body as body_module
from llamaswapd.http.awaited import Awaited
from llamaswapd.http.connect import RECEIVE_BYTES

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
STREAM = CHUNKED + b'5;x="y"\r\nhello\r\nA\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n'


async def ask(it: House, request: bytes) -> bytes:
    """Send a request and return everything up to the end of the connection."""
    client = await it.connect()
    client.writer.write(request)
    return await client.reader.read()


def body_of(raw: bytes) -> bytes:
    return raw.partition(b"\r\n\r\n")[2]


# ---- framings


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (OK, b"ok"),
        (STREAM, body_of(STREAM)),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + OK, b"ok"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
    ],
)
async def test_an_answer_may_be_cut_at_every_byte(answer: bytes, body: bytes) -> None:
    async def send_in_two(call: Call) -> None:
        await call.read_body()
        at = int(call.headers["x-cut"])
        await call.send(answer[:at])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await call.send(answer[at:])

    async with house_of(send_in_two) as (it, server):
        requests = [chat(b'{"model":"m"}', f"X-Cut: {at}") for at in range(len(answer))]
        client = await it.connect()
        for request in requests:
            client.writer.write(request)
            head = await client.head()
            if b"103 Early" in answer:
                assert (head.status, head.headers) == (103, {"link": "x"})
                head = await client.head()
            assert head.status == int(answer.rpartition(b"HTTP/1.1 ")[2][:3])
            assert await client.reader.readexactly(len(body)) == body
        assert server.connections == 1  # each was seen to its end, none was retried
        assert len(server.calls) == len(requests)


async def test_an_answer_that_ends_with_its_connection_ends_the_clients_too() -> None:
    async with house_of(last(b"HTTP/1.1 200 OK\r\n\r\nall of it")) as (it, _):
        raw = await ask(it, chat())
    assert raw == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it"


async def test_an_answer_of_http_1_0_is_passed_on_as_1_1() -> None:
    async with house_of(last(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok")) as (it, server):
        client = await it.connect()
        for _ in range(2):
            client.writer.write(chat())
            assert await client.reader.readuntil(b"ok") == OK
    assert server.connections == 2


async def test_a_head_request_has_the_length_and_no_body() -> None:
    async def answer(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n")

    async with house_of(answer) as (it, server):
        client = await it.connect()
        for _ in range(2):
            await client.send("/upstream/m/x", method="HEAD")
            assert (await client.head()).headers["content-length"] == "999"
    assert server.connections == 1


async def test_a_client_of_http_1_0_gets_the_content_without_chunks_and_the_end_of_the_connection() -> None:
    async with house_of(fixed(STREAM)) as (it, _):
        raw = await ask(it, chat(version="1.0"))
    assert raw == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello0123456789"


async def test_a_client_that_asks_for_it_gets_its_connection_closed() -> None:
    async with house_of(fixed(OK)) as (it, server):
        raw = await ask(it, chat(b'{"model":"m"}', "Connection: close"))
    assert raw == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
    assert "connection" not in server.calls[0].headers


async def test_event_streams_are_marked_for_proxies_in_front_of_us() -> None:
    head = b"HTTP/1.1 200 OK\r\nX-Accel-Buffering: yes\r\nContent-Type: Text/Event-Stream\r\nContent-Length: 0\r\n\r\n"
    async with house_of(fixed(head)) as (it, _):
        client = await it.connect()
        client.writer.write(chat())
        raw = await client.reader.readuntil(b"\r\n\r\n")
    assert raw.count(b"X-Accel-Buffering") == 1
    assert b"X-Accel-Buffering: no\r\n" in raw


async def test_what_comes_behind_an_answer_is_not_passed_on() -> None:
    async with house_of(fixed(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")) as (it, server):
        client = await it.connect()
        for _ in range(2):
            client.writer.write(chat())
            assert await client.reader.readexactly(len(OK)) == OK
    assert server.connections == 2


async def test_connections_to_the_model_are_used_again() -> None:
    async with house_of(fixed(STREAM)) as (it, server):
        for _ in range(3):
            client = await it.connect()
            client.writer.write(chat())
            await client.reader.readuntil(b"Trailer: x\r\n\r\n")
            client.close()
    assert server.connections == 1


async def test_pipelined_requests_are_answered_in_their_order() -> None:
    async def echo(call: Call) -> None:
        body = await call.read_body()
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    async with house_of(echo) as (it, _):
        client = await it.connect()
        questions = [b'{"model":"m","n":%d}' % n for n in range(20)]
        client.writer.write(b"".join(chat(question) for question in questions))
        assert [(await client.answer()).body for _ in questions] == questions


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
async def test_an_offer_to_change_the_protocol_is_not_passed_on(protocol: str) -> None:
    async with house_of(fixed(OK)) as (it, server):
        client = await it.connect()
        client.writer.write(chat(b'{"model":"m"}', "Connection: Upgrade", f"Upgrade: {protocol}"))
        answer = await client.answer()
        if answer.status == 400:  # aiohttp 3.8 and 3.11 lose the body: nothing that follows may pass for a request
            assert b"without the Upgrade header" in answer.body
            assert await client.reader.read() == b""
            return
        assert answer.body == b"ok"
        client.writer.write(chat())
        assert (await client.answer()).body == b"ok"
    assert "upgrade" not in server.calls[0].headers
    assert [call.body for call in server.calls] == [b'{"model":"m"}'] * 2


# ---- backpressure


def with_small_buffers(sock: socket.socket) -> socket.socket:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    return sock


async def connect_slowly(it: House) -> Client:
    """A client whose kernel takes next to nothing on its behalf."""
    sock = with_small_buffers(socket.socket())
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", it.port))
    client = Client(*await asyncio.open_connection(sock=sock, limit=4096))
    it._clients.append(client)
    return client


async def test_a_client_that_does_not_read_stops_the_model_from_sending() -> None:
    sent = 0
    stuck = asyncio.Event()
    total = 64 * 1024 * 1024

    async def pour(call: Call) -> None:
        nonlocal sent
        await call.read_body()
        call.writer.transport.set_write_buffer_limits(high=0)
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        piece = bytes(65536)
        while sent < total:
            call.writer.write(piece)
            sent += len(piece)
            try:
                async with asyncio.timeout(0.3):
                    await call.writer.drain()
            except TimeoutError:
                stuck.set()
                await call.writer.drain()

    async with house_of(pour) as (it, _):
        client = await connect_slowly(it)
        client.writer.write(chat())
        await stuck.wait()
        assert sent < total // 2  # the rest of what is on the way is in the kernel's buffers
        await client.reader.readuntil(b"\r\n\r\n")
        left = total
        while left:
            left -= len(await client.reader.read(1024 * 1024))


async def test_many_clients_that_do_not_read_cost_a_bounded_buffer_each() -> None:
    async def pour(call: Call) -> None:
        await call.read_body()
        call.writer.transport.set_write_buffer_limits(high=0)
        await call.send(CHUNKED)
        while True:
            await call.send(b"10000\r\n" + bytes(65536) + b"\r\n")

    async with house_of(pour, concurrency_limit=100) as (it, _):
        clients = [await connect_slowly(it) for _ in range(50)]
        for client in clients:
            client.writer.write(chat())
        connections = it.front._site.connections  # type: ignore[union-attr]
        await until(lambda: len(connections) == 50 and not any(each.is_writable for each in connections))
        buffers = [each.transport.get_write_buffer_size() for each in connections]
        assert max(buffers) <= 64 * 1024 + 2 * RECEIVE_BYTES  # its mark, and what came at once above it


async def test_a_model_that_does_not_read_stops_the_client_from_sending() -> None:
    total, go_on = 100 * 1024 * 1024, asyncio.Event()
    received = 0

    async def drink_late(call: Call) -> None:
        nonlocal received
        await go_on.wait()
        while received < total:
            received += len(await call.reader.read(1024 * 1024))
        await call.send(OK)

    async with house_of(drink_late) as (it, _):
        client = await it.connect()
        client.writer.transport.set_write_buffer_limits(high=0)
        await client.send("/upstream/m/put", f"Content-Length: {total}", method="PUT")
        sent, piece, memory = 0, bytes(1024 * 1024), resident_kb()
        while sent < total:
            client.writer.write(piece)
            sent += len(piece)
            try:
                async with asyncio.timeout(0.3):
                    await client.writer.drain()
            except TimeoutError:
                assert sent < total // 2
                go_on.set()
                await client.writer.drain()
        assert (await client.answer()).body == b"ok"
        assert go_on.is_set()
        assert resident_kb() - memory < 32 * 1024


async def test_a_large_upload_that_waits_for_its_model_is_not_kept_in_memory(tmp_path: Path) -> None:
    total, received = 100 * 1024 * 1024, 0

    async def drink(call: Call) -> None:
        nonlocal received
        while received < total:
            received += len(await call.reader.read(1024 * 1024))
        await call.send(OK)

    async with house_of(drink) as (it, _):
        it.engine.ready.clear()
        client = await it.connect()
        await client.send("/upstream/m/put", f"Content-Length: {total}", method="PUT")
        piece, memory = bytes(1024 * 1024), resident_kb()
        for _ in range(total // len(piece)):
            client.writer.write(piece)
            await client.writer.drain()
        await it.engine.waited.wait()
        it.engine.ready.set()
        assert (await client.answer()).body == b"ok"
        assert resident_kb() - memory < 32 * 1024


def resident_kb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


# ---- who leaves when


async def test_a_client_that_leaves_during_the_answer_ends_the_models_work() -> None:
    left = asyncio.Event()

    async def stream(call: Call) -> None:
        await call.read_body()
        await call.send(CHUNKED + b"1\r\n.\r\n")
        await call.left()
        left.set()

    async with house_of(stream) as (it, _):
        client = await it.connect()
        client.writer.write(chat())
        await client.reader.readuntil(b".\r\n")
        client.close()
        await left.wait()


async def test_a_client_that_leaves_before_the_answer_ends_the_models_work() -> None:
    asked, left = asyncio.Event(), asyncio.Event()

    async def think(call: Call) -> None:
        await call.read_body()
        asked.set()
        await call.left()
        left.set()

    async with house_of(think) as (it, _):
        client = await it.connect()
        client.writer.write(chat())
        await asked.wait()
        client.close()
        await left.wait()


async def test_a_client_that_leaves_in_the_middle_of_its_upload_ends_the_models_work() -> None:
    asked, left = asyncio.Event(), asyncio.Event()

    async def receive(call: Call) -> None:
        asked.set()
        await call.left()
        left.set()

    async with house_of(receive) as (it, _):
        client = await it.connect()
        client.writer.write(chat().replace(b"Length: 13", b"Length: 50"))
        await asked.wait()
        client.writer.transport.abort()
        await left.wait()


async def test_a_client_that_stopped_reading_and_leaves_ends_the_models_work() -> None:
    left = asyncio.Event()

    async def pour(call: Call) -> None:
        await call.read_body()
        await call.send(CHUNKED)
        try:
            while True:
                await call.send(b"10000\r\n" + bytes(65536) + b"\r\n")
        except ConnectionError:
            left.set()

    async with house_of(pour) as (it, _):
        client = await connect_slowly(it)
        client.writer.write(chat())
        await client.reader.readuntil(b"\r\n\r\n")
        client.writer.transport.abort()
        await left.wait()


async def test_an_answer_may_come_before_the_upload_has_ended() -> None:
    left = asyncio.Event()

    async def refuse(call: Call) -> None:
        await call.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await call.left()
        left.set()

    async with house_of(refuse) as (it, server):
        client = await it.connect()
        question = b'{"model":"m","pad":"' + b"x" * 100 + b'"}'
        client.writer.write(chat(question)[:-50])
        answer = await client.answer()
        assert (answer.status, answer.body) == (413, b"big")
        await left.wait()
        server.answer = fixed(OK)
        client.writer.write(chat(question)[-50:] + chat())
        assert (await client.answer()).body == b"ok"
    assert server.connections == 2


async def test_an_upload_whose_model_dies_is_a_502() -> None:
    async def die(call: Call) -> None:
        call.reset()

    async with house_of(die) as (it, _):
        client = await it.connect()
        client.writer.write(chat().replace(b"Length: 13", b"Length: 50"))
        assert (await client.answer()).status == 502


# ---- the body's file


async def test_a_body_that_was_kept_in_a_file_comes_out_as_it_went_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module, "MEMORY_LIMIT", 10)
    monkeypatch.setattr(body_module, "SPOOL_PIECE", 10)
    pad = bytes(range(32, 127)).replace(b'"', b"").replace(b"\\", b"") * 1000
    question = b'{"model":"m","pad":"' + pad + b'"}'
    async with house_of(fixed(OK)) as (it, server):
        it.engine.ready.clear()
        client = await it.connect()
        for at in range(0, len(chat(question)), 9999):
            client.writer.write(chat(question)[at : at + 9999])
            await client.writer.drain()
        await it.engine.waited.wait()
        it.engine.ready.set()
        assert (await client.answer()).status == 200
    assert server.calls[0].body == question


async def test_a_body_that_cannot_be_kept_is_an_error_that_names_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module, "MEMORY_LIMIT", 10)
    monkeypatch.setattr(body_module, "SPOOL_DIR", "/nonexistent")
    async with house_of(fixed(OK)) as (it, _):
        it.engine.ready.clear()
        client = await it.connect()
        client.writer.write(chat())
        answer = await client.answer()
    assert answer.status == 500
    assert "/nonexistent" in answer.json()["error"]["message"]


# ---- interim answers


async def test_interim_answers_pass_but_for_100_and_what_concerns_one_connection_only() -> None:
    interim = (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\nConnection: x-own\r\nX-Own: 1\r\n\r\n"
        b"HTTP/1.1 102 Processing\r\n\r\n"
    )
    async with house_of(fixed(interim + OK)) as (it, _):
        client = await it.connect()
        client.writer.write(chat())
        assert [(await client.head()).status for _ in range(2)] == [103, 102]
        assert (await client.answer()).body == b"ok"
        client.writer.write(chat(version="1.0"))
        assert (await client.answer()).body == b"ok"


async def test_interim_answers_do_not_get_into_a_stream_of_our_own() -> None:
    stream = b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" + OK
    async with house_of(fixed(stream), send_loading_state=True) as (it, _):
        it.engine.ready.clear()
        client = await it.connect()
        client.writer.write(chat(b'{"model":"m","stream":true}'))
        await it.engine.waited.wait()
        it.engine.ready.set()
        text = (await client.reader.readuntil(b"0\r\n\r\n")).decode()
    assert text.startswith("HTTP/1.1 200 OK")
    assert "103" not in text


async def test_a_length_that_is_said_to_be_of_the_connection_is_passed_on(way: str) -> None:
    odd = b"HTTP/1.1 200 OK\r\nConnection: content-length\r\nContent-Length: 2\r\n\r\nok"
    async with house_of(fixed(odd)) as (it, _):
        client = await it.connect()
        for _ in range(2):
            client.writer.write(chat())
            answer = await client.answer()
            assert (answer.headers["content-length"], answer.body) == ("2", b"ok")


async def test_a_large_request_on_a_connection_that_takes_no_more_and_is_reset_is_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held_back = asyncio.Event()
    on_writable = Awaited.on_writable

    def note(relay: Awaited, writable: bool) -> None:
        on_writable(relay, writable)
        if not writable:
            held_back.set()

    async def answer(call: Call) -> None:
        if server.calls[0] is not call and call.connection == server.calls[0].connection:
            await held_back.wait()
            call.reset()
            return
        await call.read_body()
        await call.send(OK)

    close_express(monkeypatch)
    monkeypatch.setattr(Awaited, "on_writable", note)
    async with house_of(answer) as (it, server):
        client = await it.connect()
        for body in (b'{"model":"m"}', b'{"x":"' + b"y" * 8_000_000 + b'","model":"m"}'):
            client.writer.write(chat(body))
            assert (await client.answer()).status == 200
        assert [call.connection == 1 for call in server.calls] == [True, True, False]
