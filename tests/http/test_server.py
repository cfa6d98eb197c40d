from __future__ import annotations

import asyncio
import logging
import socket
import zlib

import pytest
from fake_model import OK, Call, chat, fixed, house_of, until

from llamaswapd.http import connection as connection_module
from llamaswapd.http import heads, link
from llamaswapd.http import server as server_module
from llamaswapd.http.connection import AHEAD_LIMIT

READ_BYTES = 256 * 1024  # what a loop reads at once


@pytest.mark.parametrize(
    ("request_bytes", "statuses"),
    [
        (b"GET /health HTTP/1.1\r\nX: " + b"x" * 1_000_000 + b"\r\n\r\n", {400, 431}),
        (b"GET /" + b"x" * 1_000_000 + b" HTTP/1.1\r\n\r\n", {400, 431}),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", {400}),
        (b"NONSENSE\r\n\r\n", {400}),
        (b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n", {400}),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc", {400}),
    ],
)
async def test_what_is_no_request_gets_an_error_answer_and_no_traceback(
    request_bytes: bytes, statuses: set[int], caplog: pytest.LogCaptureFixture
) -> None:
    async with house_of(fixed(OK)) as (it, _):
        client = await it.connect()
        client.writer.write(request_bytes)
        answer = await client.answer()
        assert await client.reader.read() == b""
        assert it.front._site.connections  # what the client still sends does not reset the connection
        assert answer.status in statuses
        error = answer.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert 0 < len(error["message"]) <= 200
        assert "\n" not in error["message"]
        assert (await it.ask("/health")).status == 200
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_target_that_its_client_did_not_escape_is_escaped() -> None:
    async with house_of(fixed(OK), aliases=("é",)) as (it, server):
        client = await it.connect()
        for target in ("/props?model=é&x=ü", "/upstream/é/ä?ö", "/props?model=é"):
            data = f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
            middle = data.index("é".encode()) + 1
            client.writer.write(data[:middle])
            await asyncio.sleep(0.01)
            client.writer.write(data[middle:])
            assert (await client.answer()).status == 200
    targets = [call.request_line.split()[1] for call in server.calls]
    assert targets == ["/props?model=%C3%A9&x=%C3%BC", "/%C3%A4?%C3%B6", "/props?model=%C3%A9"]


async def test_only_the_target_is_escaped() -> None:
    async with house_of(fixed(OK)) as (it, server):
        client = await it.connect()
        body = '{"model":"m","x":"é"}'.encode()
        head = "POST /v1/chat/completions?é HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-Name: ñ\r\n"
        client.writer.write(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert (await client.answer()).status == 200
    [call] = server.calls
    assert call.request_line == "POST /v1/chat/completions?%C3%A9 HTTP/1.1"
    assert (call.headers["x-name"].encode("latin-1"), call.body) == ("ñ".encode(), body)


async def test_headers_of_tens_of_kilobytes_are_fine() -> None:
    async with house_of(fixed(OK)) as (it, server):
        client = await it.connect()
        client.writer.write(chat(b'{"model":"m"}', "X-Long: " + "x" * 40_000))
        assert (await client.answer()).status == 200
    assert len(server.calls[0].headers["x-long"]) == 40_000


@pytest.mark.parametrize("place", [b"GET /health HTTP/1.1\r\nHost: x\r\n", b"", b"GET /health HTTP/1.1\r\nX"])
async def test_a_request_head_may_not_grow_without_end(place: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "HEAD_LIMIT", 500)
    monkeypatch.setattr(server_module, "HEAD_LIMIT", 1000)
    async with house_of(fixed(OK)) as (it, _):
        client = await it.connect()
        await client.send("/health")
        assert (await client.answer()).status == 200
        client.writer.write(place)
        for _ in range(30):
            client.writer.write(b"X: 12345678901234567890123456789012345678\r\n" if place else b"\r\n" * 20)
            await asyncio.sleep(0)
            await client.writer.drain()
        answer = await client.answer()
        assert (answer.status, answer.json()["error"]["message"]) == (431, "request head of more than 1000 bytes")
        assert await client.reader.read() == b""


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/health" + "/a" * 1022, 404),
        ("/health" + "/a" * 1024, 414),
        ("/health" + "%2fa" * 512 + "%2Fa" * 512, 414),
        ("/upstream/m/" + "a/" * 1021, 200),
        ("/upstream/m/" + "a/" * 1022, 414),
    ],
)
async def test_a_path_of_a_thousand_parts_is_not_looked_at(path: str, status: int) -> None:
    async with house_of(fixed(OK)) as (it, _):
        answer = await it.ask(path)
        assert answer.status == status
        if status == 414:
            assert answer.json()["error"]["message"].endswith(" slashes; more than 1024 are not looked at")


async def test_a_body_of_any_size_is_no_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "HEAD_LIMIT", 1000)
    async with house_of(fixed(OK)) as (it, server):
        client = await it.connect()
        for _ in range(2):
            client.writer.write(chat(b'{"model":"m","x":"' + b"x" * 1_000_000 + b'"}'))
            assert (await client.answer()).status == 200
    assert len(server.calls[1].body) > 1_000_000


async def test_a_client_that_sends_requests_without_end_and_reads_nothing_is_held_back() -> None:
    async with house_of(fixed(OK)) as (it, _):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", it.port))
        await until(lambda: bool(it.front._site.connections))
        connection = next(iter(it.front._site.connections))
        link = connection.transport.get_extra_info("socket")
        link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        requests = b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n" * 5000
        sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(sock, requests))
        await until(lambda: not connection.is_writable)
        assert 0 < len(connection._ahead) <= AHEAD_LIMIT + READ_BYTES
        assert connection.transport.get_write_buffer_size() < 128 * 1024
        sending.cancel()
        await asyncio.wait((sending,))
        sock.close()


async def test_requests_in_doubt_that_come_without_end_end_the_connection() -> None:
    async with house_of(fixed(OK)) as (it, _):
        client = await it.connect()
        connection = next(iter(it.front._site.connections))
        client.writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nX: \xff\r\n\r\n" * 5000)
        await until(lambda: connection._handler is not None)
        handler = connection._handler
        assert handler is not None
        await until(lambda: handler.transport is None or len(handler._messages) > 1)
        assert len(handler._messages) <= server_module.PIPELINE_LIMIT or handler._force_close


@pytest.mark.parametrize("turns", range(4))
async def test_a_client_that_leaves_before_it_is_told_to_go_on_is_no_error(
    turns: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with house_of(fixed(OK)) as (it, _):
        await it.connect()
        await until(lambda: it.front._site.connections)
        connection = next(iter(it.front._site.connections))
        connection.data_received(
            b"POST /upstream/m/x HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n"
        )
        for _ in range(turns):
            await asyncio.sleep(0)
        connection.transport.abort()
        await until(lambda: not it.front._site.connections)
        await asyncio.sleep(0.01)
    assert not [each for each in caplog.records if each.levelname == "ERROR"]


@pytest.mark.parametrize("trailer", ["X-Next: 1", "Content-Length: 2", "x-api-key: k1"])
async def test_a_trailer_is_no_header_of_the_next_request(trailer: str) -> None:
    async with house_of(fixed(OK)) as (it, server):
        client = await it.connect()
        await client.send("/upstream/m/first", "Transfer-Encoding: chunked", method="POST")
        client.writer.write(f"1\r\n!\r\n0\r\n{trailer}\r\n\r\n".encode() + chat(path="/v1/embeddings"))
        assert (await client.head()).status in (200, 400)  # newer versions of aiohttp refuse some trailers
        await client.reader.read()
    assert "/v1/embeddings" not in "".join(call.request_line for call in server.calls)


async def test_a_client_that_does_not_finish_its_request_head_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "HEAD_TIMEOUT_S", 0.05)
    monkeypatch.setattr(server_module, "LOOK_EVERY_S", 0.01)
    async with house_of(fixed(OK)) as (it, _):
        client = await it.connect()
        client.writer.write(b"GET /health HTTP/1.1\r\nX")
        assert await client.reader.read() == b""


async def test_a_connection_stays_open_once_a_request_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "HEAD_TIMEOUT_S", 0.05)
    monkeypatch.setattr(server_module, "LOOK_EVERY_S", 0.01)
    async with house_of(fixed(OK)) as (it, _):
        client, slow = await it.connect(), await it.connect()
        await client.send("/health")
        assert (await client.answer()).status == 200
        assert await slow.reader.read() == b""  # by now the limit has passed for both
        await client.send("/health")
        assert (await client.answer()).status == 200


async def test_an_idle_connection_is_closed_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "KEEPALIVE_S", 0.05)
    monkeypatch.setattr(server_module, "LOOK_EVERY_S", 0.01)
    async with house_of(fixed(OK)) as (it, _):
        client = await it.connect()
        await client.send("/health")
        assert (await client.answer()).status == 200
        assert await client.reader.read() == b""


async def test_compressed_bodies_reach_the_model_as_they_came() -> None:
    packed = zlib.compress(b"hello")
    async with house_of(fixed(OK)) as (it, server):
        client = await it.connect()
        await client.send("/upstream/m/", "Content-Encoding: deflate", f"Content-Length: {len(packed)}", method="PUT")
        client.writer.write(packed)
        assert (await client.answer()).status == 200
    assert server.calls[0].body == packed
    assert server.calls[0].headers["content-encoding"] == "deflate"


async def test_what_is_read_ahead_is_bounded_whatever_aiohttp_pauses_and_resumes() -> None:
    async with house_of(fixed(OK)) as (it, _):
        it.engine.ready.clear()
        client = await it.connect()
        client.writer.transport.set_write_buffer_limits(high=0)
        body = b'{"model":"m","pad":"' + b"x" * 140_000 + b'"}'
        client.writer.write(chat(body) + chat() * 1000)
        await it.engine.waited.wait()
        connection = next(iter(it.front._site.connections))  # type: ignore[union-attr]
        for _ in range(500):
            client.writer.write(chat() * 500)
        await until(lambda: connection.is_paused)
        await asyncio.sleep(0.1)
        # aiohttp resumes once when it has given away what it held of the body, and one more piece comes.
        assert len(connection._ahead) <= AHEAD_LIMIT + 2 * READ_BYTES
        it.engine.ready.set()
        for _ in range(3):
            assert (await client.answer()).body == b"ok"


async def test_what_comes_behind_the_last_request_of_a_connection_goes_nowhere() -> None:
    big = b"HTTP/1.1 200 OK\r\nContent-Length: 20000000\r\n\r\n" + b"x" * 20_000_000
    async with house_of(fixed(big)) as (it, server):
        client = await it.connect()
        client.writer.write(chat(b'{"model":"m"}', "Connection: close") + chat())
        assert len(await client.reader.read()) > 20_000_000 or await client.reader.read()
        while await client.reader.read(1_000_000):
            pass
        assert len(server.calls) == 1


async def test_a_client_that_does_not_read_its_last_answer_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "LINGER_S", 0.05)
    monkeypatch.setattr(server_module, "LOOK_EVERY_S", 0.01)
    big = b"HTTP/1.1 200 OK\r\nContent-Length: 40000000\r\n\r\n" + b"x" * 40_000_000
    async with house_of(fixed(big)) as (it, _):
        client = await it.connect()
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        client.writer.write(chat(b'{"model":"m"}', "Connection: close"))
        await until(lambda: bool(it.front._site.connections))  # type: ignore[union-attr]
        connection = next(iter(it.front._site.connections))  # type: ignore[union-attr]
        connection.transport.set_write_buffer_limits(high=100_000_000)  # the whole answer fits
        await until(lambda: not it.front._site.connections)  # type: ignore[union-attr]


async def test_everything_sent_before_a_half_close_is_answered() -> None:
    async with house_of(fixed(OK)) as (it, _):
        client = await it.connect()
        client.writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
        client.writer.write_eof()
        assert (await client.reader.read()).count(b"OK") == 6  # status and body


async def test_a_drain_waits_for_requests_whose_body_still_comes() -> None:
    async with house_of(fixed(OK)) as (it, _):
        client = await it.connect()
        question = chat(b'{"pad":"' + b"x" * 1000 + b'","model":"m"}')
        client.writer.write(question[:-20])
        await until(lambda: any(each._exchange for each in it.front._site.connections))  # type: ignore[union-attr]
        draining = asyncio.create_task(it.front.drained())
        for _ in range(5):
            await asyncio.sleep(0)
        assert not draining.done()
        client.writer.write(question[-20:])
        assert (await client.answer()).body == b"ok"
        await draining


@pytest.mark.parametrize("odd", [b"", b"X: \xff\r\n"])
async def test_a_client_that_closes_its_sending_side_is_answered_and_that_is_the_end(odd: bytes) -> None:
    async with house_of(fixed(OK)) as (it, _):
        client = await it.connect()
        client.writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n" + odd + b"\r\n")
        client.writer.write_eof()
        assert (await client.reader.read()).endswith(b"OK")


@pytest.mark.parametrize("when", ["at once", "in pieces", "answered"])
@pytest.mark.parametrize(
    ("head", "statuses"),
    [
        ("PUT /api/profiles/active HTTP/1.1\r\nContent-Length: 1000", {400}),
        ("POST /nowhere HTTP/1.1\r\nContent-Length: 1000", {404}),
        ("GET /health HTTP/1.1\r\nContent-Length: 1000", {200}),
        ("GET /health HTTP/1.1\r\nTransfer-Encoding: chunked", {200}),
        ("POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked", {400}),
        ("POST /v1/chat/completions HTTP/1.1\r\nX: \xff\r\nContent-Length: 1000", {400}),
        # Without a boundary it names no model, whatever comes.
        ("POST /v/messages HTTP/1.1\r\nContent-Type: multipart/form-data\r\nContent-Length: 1000", {400, 404}),
    ],
)
async def test_a_client_that_closes_its_sending_side_within_a_body_is_answered_and_that_is_the_end(
    head: str, statuses: set[int], when: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with house_of(fixed(OK)) as (it, server):
        before = len(tasks_of_ours())
        client = await it.connect()
        begun = head.encode("latin-1") + b"\r\nHost: x\r\n\r\n50\r\n{"
        if when == "answered":
            client.writer.write(begun)
            if 400 not in statuses:  # else the body would have to come
                assert (await client.answer()).status in statuses
        elif when == "in pieces":
            for piece in (begun[:-3], begun[-3:], b"x"):
                client.writer.write(piece)
                await asyncio.sleep(0.002)
        else:
            client.writer.write(begun)
        client.writer.write_eof()
        rest = await client.reader.read()
        assert not rest or int(rest.split()[1]) in statuses
        await until(lambda: not it.front._site.connections)  # type: ignore[union-attr]
        assert not server.calls
        await until(lambda: len(tasks_of_ours()) == before)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("behind", ["Content-Length: 1000", "Transfer-Encoding: chunked", "X: \xff", "X"])
async def test_and_so_is_one_whose_last_request_of_several_is_not_complete(behind: str) -> None:
    async with house_of(fixed(OK)) as (it, server):
        client = await it.connect()
        (connection,) = it.front._site.connections  # type: ignore[union-attr]
        connection.data_received(
            b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
            b"PUT /api/profiles/active HTTP/1.1\r\nHost: x\r\n%b\r\n\r\n5" % behind.encode("latin-1")
        )
        assert connection.eof_received()  # before the first has been answered
        answers = await client.reader.read()
        assert answers.startswith(b"HTTP/1.1 200 OK")
        assert not server.calls
        await until(lambda: not it.front._site.connections)  # type: ignore[union-attr]


async def test_a_client_that_closes_its_sending_side_gets_what_was_to_be_sent_with_other_answers() -> None:
    async with house_of(fixed(OK)) as (it, _):
        client = await it.connect()
        client.writer.write(chat())
        await client.answer()
        (connection,) = it.front._site.connections  # type: ignore[union-attr]
        connection.outbox.at_once = 1
        connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", True)
        assert not connection.eof_received()
        connection.transport.close()  # as the loop does then
        assert (await client.answer()).status == 200


LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n" + bytes(50_000)


async def test_a_client_that_asks_and_asks_and_reads_nothing_holds_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "LOOK_EVERY", 1)
    monkeypatch.setattr(link, "MANY", 0)  # every answer is kept until the loop's turn ends
    async with house_of(fixed(LONG)) as (it, _):
        client = await it.connect()
        (connection,) = it.front._site.connections  # type: ignore[union-attr]
        connection.outbox.at_once = 1
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.writer.write(chat() * 1000)
        await until(lambda: not connection.is_writable)
        assert (connection.is_paused, it.engine.leases) == (True, 0)
        assert connection.deadline is not None
        client.writer.transport.abort()


@pytest.mark.parametrize("is_ready", [True, False])
async def test_a_client_that_closes_its_sending_side_does_not_wait_for_a_model(is_ready: bool) -> None:
    async def think(call: Call) -> None:
        await call.left()

    async with house_of(think) as (it, _):
        if not is_ready:
            it.engine.ready.clear()
        client = await it.connect()
        client.writer.write(chat())
        client.writer.write_eof()
        assert await client.reader.read() == b""
        assert it.engine.leases == 0


async def test_many_clients_that_vanish_leave_nothing_behind() -> None:
    async with house_of(fixed(OK)) as (it, _):
        before = len(tasks_of_ours())
        for size in (0, 5, 60, 100, 1000):
            for _ in range(20):
                client = await it.connect()
                client.writer.write(chat()[:size])
                client.writer.transport.abort()
        assert (await it.ask("/health")).status == 200
        await until(lambda: not it.front._site.connections)
        await until(lambda: len(tasks_of_ours()) == before)


def tasks_of_ours() -> list[asyncio.Task[object]]:
    """All but the stand-in model's, one for each connection that the pool keeps."""
    return [task for task in asyncio.all_tasks() if "FakeModel" not in repr(task)]
