"""The end of a front end: what has been asked is answered, what cannot be waited for is cut so that it shows."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fake_model import OK, Call, chat, fixed, house_of, make_certificate, until
from standins import Client, House

from llamaswapd.http import connection as connection_module
from llamaswapd.http.server import Listener

WHY = "llamaswapd is being restarted"
GET = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n"
SSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
STREAMING = b'{"model":"m","stream":true}'


@pytest.fixture
def lasting() -> contextlib.closing[socket.socket]:
    """A listening socket that outlives who accepts from it, as that of a socket unit."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        yield listener


@asynccontextmanager
async def serving(listener: socket.socket) -> AsyncIterator[House]:
    """One life of a daemon at a socket that is not its own: it ends as a restart ends it."""
    async with house_of(fixed(OK), listeners=[Listener(listener.dup())]) as (it, _):
        yield it
        it.front.drain()
        await it.front.drained()
        assert not it.front._site.connections


async def ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(2)
    writer.close()
    return answer


def write_now(client: Client, data: bytes) -> None:
    """Have bytes lie in the kernel, without a turn of the loop."""
    os.write(client.writer.get_extra_info("socket").fileno(), data)


async def read_on(client: Client) -> bytes:
    """Read to the end, which is not to be a reset."""
    return await client.reader.read()


async def in_flight(it: House) -> None:
    await until(lambda: any(each._is_busy for each in it.front._site.connections))


# ---- across a restart


async def test_no_client_that_connects_asks_and_reads_without_pause_notices_restarts(
    lasting: socket.socket, way: str
) -> None:
    port = lasting.getsockname()[1]
    is_over, answers = asyncio.Event(), 0

    async def go_on_asking(request: bytes) -> None:
        nonlocal answers
        while not is_over.is_set():
            assert (await ask(port, request)).startswith(b"HTTP/1.1 200 OK\r\n")
            answers += 1

    async with asyncio.TaskGroup() as group:
        for request in (chat(), chat(), GET, GET, chat(b'{"model":"m"}', "X: \xe9")):
            group.create_task(go_on_asking(request))
        for _ in range(20):
            async with serving(lasting):
                enough = answers + 25
                await until(lambda enough=enough: answers >= enough)  # type: ignore[misc]
        async with serving(lasting):
            is_over.set()
            await until(lambda: len(group._tasks) == 0)  # type: ignore[attr-defined]


@pytest.mark.parametrize("turns", range(6))
async def test_a_connection_is_served_wherever_the_end_meets_it_on_its_way_in(
    turns: int, lasting: socket.socket
) -> None:
    port = lasting.getsockname()[1]
    async with serving(lasting):
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]  # nobody has accepted them yet
        for _ in range(turns):
            await asyncio.sleep(0)
        # The front end has waited for those that it had, without having seen anything of them.
        for client in clients:
            client.sendall(GET)
    async with serving(lasting):
        for client in clients:
            client.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=client)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
            writer.close()


@pytest.mark.parametrize("way_of_request", [GET, chat(), GET.replace(b"x\r\n", b"\xff\r\n")])
async def test_a_kept_connection_ends_between_two_answers(way_of_request: bytes, lasting: socket.socket) -> None:
    async with serving(lasting) as it:
        client = await it.connect()
        for _ in range(3):
            client.writer.write(way_of_request)
            answer = await client.answer()
            assert answer.status in (200, 400)
    assert await read_on(client) == b""


async def test_tls_that_is_being_negotiated_comes_to_its_request(tmp_path: Path, lasting: socket.socket) -> None:
    tls = make_certificate(tmp_path, "IP:127.0.0.1")
    trusting = ssl.create_default_context(cafile=tmp_path / "cert")
    async with house_of(fixed(OK), listeners=[Listener(lasting.dup(), tls)]) as (it, _):
        raw = socket.create_connection(lasting.getsockname())
        await until(lambda: bool(it.front._site._arriving))
        it.front.drain()
        drained = asyncio.create_task(it.front.drained())
        raw.setblocking(False)
        client = Client(*await asyncio.open_connection(sock=raw, ssl=trusting, server_hostname="127.0.0.1"))
        assert not drained.done()
        client.writer.write(chat())
        answer = await client.answer()
        assert (answer.body, answer.headers["connection"]) == (b"ok", "close")
        client.close()
        await drained


async def test_tls_that_is_never_negotiated_does_not_hold_up_the_end(
    tmp_path: Path, lasting: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llamaswapd.http.server.LAST_REQUEST_S", 0.01)
    tls = make_certificate(tmp_path, "IP:127.0.0.1")
    async with house_of(fixed(OK), listeners=[Listener(lasting.dup(), tls)]) as (it, _):
        with socket.create_connection(lasting.getsockname()):
            await until(lambda: bool(it.front._site._arriving))
            it.front.drain()
            await it.front.drained()


# ---- what is going on when the end comes


async def test_an_answer_that_has_not_begun_says_that_it_is_the_last(way: str) -> None:
    proceed = asyncio.Event()

    async def answer(call: Call) -> None:
        await call.read_body()
        await proceed.wait()
        await call.send(OK)

    async with house_of(answer) as (it, server):
        client = await it.connect()
        client.writer.write(chat())
        await until(lambda: bool(server.calls))
        it.front.drain()
        drained = asyncio.create_task(it.front.drained())
        await asyncio.sleep(0)
        assert not drained.done()
        proceed.set()
        told = await client.answer()
        assert (told.status, told.headers["connection"], told.body) == (200, "close", b"ok")
        assert await read_on(client) == b""
        await drained


async def test_an_answer_that_has_begun_comes_to_its_end_and_so_does_the_connection(way: str) -> None:
    proceed = asyncio.Event()

    async def answer(call: Call) -> None:
        await call.read_body()
        await call.send(HEAD + b"abc")
        await proceed.wait()
        await call.send(b"def")

    async with house_of(answer) as (it, _):
        client = await it.connect()
        client.writer.write(chat())
        head = await client.head()
        assert "connection" not in head.headers
        it.front.drain()
        proceed.set()
        assert await read_on(client) == b"abcdef"
        await it.front.drained()


async def test_a_request_that_waits_for_its_model_gets_it(way: str) -> None:
    async with house_of(fixed(OK)) as (it, _):
        it.engine.ready.clear()
        client = await it.connect()
        client.writer.write(chat())
        await it.engine.waited.wait()
        it.front.drain()
        it.engine.ready.set()
        assert (await read_on(client)).endswith(b"ok")
        await it.front.drained()


async def test_a_stream_that_shows_the_loading_says_that_it_is_the_last() -> None:
    async with house_of(fixed(OK), {"send_loading_state": True}) as (it, _):
        client = await it.connect()
        question = chat(b'{"stream":true,"model":"m"}')
        client.writer.write(question[:-10])
        await in_flight(it)
        it.engine.ready.clear()
        it.front.drain()
        client.writer.write(question[-10:])
        assert (await client.head()).headers["connection"] == "close"
        it.engine.ready.set()
        assert (await read_on(client)).endswith(b"0\r\n\r\n")


async def test_an_error_on_the_way_of_callbacks_says_that_it_is_the_last() -> None:
    proceed = asyncio.Event()

    async def answer(call: Call) -> None:
        await proceed.wait()
        call.close()

    async with house_of(answer) as (it, server):
        client = await it.connect()
        client.writer.write(chat())
        await until(lambda: bool(server.calls))
        it.front.drain()
        proceed.set()
        told = await client.answer()
        assert (told.status, told.headers["connection"]) == (502, "close")
        assert await read_on(client) == b""


async def test_an_idle_connection_is_closed_at_once() -> None:
    async with house_of(fixed(OK)) as (it, _):
        for request in (GET, chat(), GET.replace(b"x\r\n", b"x\r\nX: \xff\r\n")):
            client = await it.connect()
            client.writer.write(request)
            assert (await client.answer()).status == 200
        await until(lambda: not any(each._is_busy for each in it.front._site.connections))
        it.front.drain()
        assert all(each.transport.is_closing() for each in it.front._site.connections)
        for client in it._clients:
            assert await read_on(client) == b""


async def test_a_request_that_lies_in_the_kernel_is_answered() -> None:
    async with house_of(fixed(OK)) as (it, _):
        client = await it.connect()
        client.writer.write(GET)
        assert (await client.answer()).status == 200
        await until(lambda: not any(each._is_busy for each in it.front._site.connections))
        write_now(client, chat())
        it.front.drain()
        answer = await client.answer()
        assert (answer.body, answer.headers["connection"]) == (b"ok", "close")
        assert await read_on(client) == b""
        await it.front.drained()


async def test_a_request_that_comes_right_behind_the_last_answer_is_answered(way: str) -> None:
    async def answer(call: Call) -> None:
        await call.read_body()
        if len(server.calls) == 1:
            await call.send(HEAD + b"abc")
            await proceed.wait()
            await call.send(b"def")
        else:
            await call.send(OK)

    proceed = asyncio.Event()
    async with house_of(answer) as (it, server):
        client = await it.connect()
        client.writer.write(chat())
        await client.head()
        it.front.drain()
        proceed.set()
        await client.reader.readexactly(3)
        write_now(client, chat())
        assert await client.reader.readexactly(3) == b"def"
        told = await client.answer()
        assert (told.body, told.headers["connection"]) == (b"ok", "close")
        await it.front.drained()


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("behind", [1, 5000])
async def test_requests_that_are_sent_ahead_are_answered_or_end_cleanly(begun: bool, behind: int, way: str) -> None:
    proceed = asyncio.Event()

    async def answer(call: Call) -> None:
        await call.read_body()
        if len(server.calls) == 1:
            await call.send(HEAD if begun else b"")
            await proceed.wait()
        await call.send((b"" if begun and len(server.calls) == 1 else HEAD) + b"abcdef")

    async with house_of(answer) as (it, server):
        client = await it.connect()
        client.writer.write(chat() + chat() * behind)
        await until(lambda: bool(server.calls))
        if begun:
            await client.head()
        await in_flight(it)
        it.front.drain()
        proceed.set()
        answers = await read_on(client)
        assert answers.count(b"abcdef") == (2 if begun else 1)
        assert answers.count(b"Connection: close") == 1
        await it.front.drained()


async def test_a_connection_without_a_request_is_awaited_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "LAST_REQUEST_S", 0.05)
    monkeypatch.setattr("llamaswapd.http.server.LAST_REQUEST_S", 0.05)
    async with house_of(fixed(OK)) as (it, _):
        for begun in (b"", GET[:10], GET.replace(b"x\r\n", b"x\r\nX: \xff\r\n")):
            client = await it.connect()
            client.writer.write(begun)
        assert (await client.answer()).status == 200
        client.writer.write(GET[:10])
        connections = it.front._site.connections
        await until(lambda: any(each._handler and each._handler.has_partial_head for each in connections))
        await until(lambda: any(each._ahead for each in connections))
        it.front.drain()
        assert not any(each.transport.is_closing() for each in connections)
        for client in it._clients:
            assert await read_on(client) == b""
        await it.front.drained()


async def test_the_rest_of_a_head_is_awaited() -> None:
    async with house_of(fixed(OK)) as (it, _):
        client = await it.connect()
        client.writer.write(GET + GET[:10])
        assert (await client.answer()).status == 200
        await until(lambda: any(each._ahead for each in it.front._site.connections))
        it.front.drain()
        client.writer.write(GET[10:])
        answer = await client.answer()
        assert (answer.body, answer.headers["connection"]) == (b"OK", "close")


async def test_a_client_that_does_not_read_its_answer_is_left_to_the_cut(way: str) -> None:
    big = b"HTTP/1.1 200 OK\r\nContent-Length: 40000000\r\n\r\n" + b"x" * 40_000_000
    async with house_of(fixed(big)) as (it, _):
        client = await it.connect()
        client.writer.write(chat())
        await client.head()
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        (connection,) = it.front._site.connections
        await until(lambda: not connection.is_writable)
        it.front.drain()
        drained = asyncio.create_task(it.front.drained())
        it.front.cut(WHY)
        await it.front.close()
        await drained


# ---- the cut


def told(answer: bytes) -> None:
    """See that an answer says what is said of a cut before the answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    head += b"\r\n"
    assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"\r\nRetry-After: 1\r\n" in head
    assert b"\r\nConnection: close\r\n" in head
    assert json.loads(body) == {
        "src": "llama-swap",
        "error": {"message": WHY, "type": "server_error", "param": None, "code": "service_unavailable"},
    }


async def silent(call: Call) -> None:
    await call.read_body()
    await call.left()


async def test_an_answer_that_has_not_begun_becomes_503_when_it_is_cut(way: str) -> None:
    async with house_of(silent) as (it, server):
        client = await it.connect()
        client.writer.write(chat())
        await until(lambda: bool(server.calls))
        it.front.drain()
        it.front.cut(WHY)
        told(await read_on(client))
        await it.front.drained()
        (row,) = it.activity.ended
        assert (row.outcome, row.error) == (503, WHY)


async def test_a_request_that_waits_for_its_model_becomes_503_when_it_is_cut(way: str) -> None:
    async with house_of(fixed(OK)) as (it, server):
        it.engine.ready.clear()
        client = await it.connect()
        client.writer.write(chat())
        await it.engine.waited.wait()
        it.front.cut(WHY)
        told(await read_on(client))
        await it.front.drained()
        assert not server.calls
        (row,) = it.activity.ended
        assert (row.outcome, row.error) == (503, WHY)


async def test_a_request_whose_body_still_comes_becomes_503_when_it_is_cut(way: str) -> None:
    async with house_of(fixed(OK)) as (it, _):
        client = await it.connect()
        question = chat(b'{"pad":"' + b"x" * 1000 + b'","model":"m"}')
        client.writer.write(question[:-20])
        await in_flight(it)
        if way == "ordinary":
            await until(lambda: any(each.answering for each in it.front._site.connections))
        it.front.cut(WHY)
        answer = await client.answer()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")


async def test_an_event_stream_that_is_cut_ends_with_an_error_event_and_no_clean_end(way: str) -> None:
    async def answer(call: Call) -> None:
        await call.read_body()
        await call.send(SSE_HEAD + b"8\r\ndata: 1\n\r\n")
        await call.left()

    async with house_of(answer) as (it, _):
        client = await it.connect()
        client.writer.write(chat())
        await client.head()
        assert await client.chunk() == b"data: 1\n"
        it.front.drain()
        it.front.cut(WHY)
        event = await client.chunk()
        assert json.loads(event.removeprefix(b"\n\ndata: "))["error"]["message"] == WHY
        assert await read_on(client) == b""
        await it.front.drained()
        (row,) = it.activity.ended
        assert (row.outcome, row.error) == (200, WHY)


async def test_any_other_answer_that_is_cut_does_not_look_whole(way: str) -> None:
    async def answer(call: Call) -> None:
        await call.read_body()
        await call.send(HEAD + b"abc")
        await call.left()

    async with house_of(answer) as (it, _):
        client = await it.connect()
        client.writer.write(chat())
        await client.head()
        it.front.cut(WHY)
        assert await read_on(client) == b"abc"


async def test_a_stream_that_shows_the_loading_is_cut_by_an_event() -> None:
    async with house_of(fixed(OK), {"send_loading_state": True}) as (it, _):
        it.engine.ready.clear()
        client = await it.connect()
        client.writer.write(chat(STREAMING))
        await client.head()
        await client.text_until("loading model: m")
        it.front.cut(WHY)
        text = await client.text_until(WHY)
        assert text.endswith('"code":"service_unavailable"}}\n\n')
        assert await read_on(client) == b""


async def test_a_websocket_is_cut() -> None:
    async def agree(call: Call) -> None:
        await call.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        await call.left()

    async with house_of(agree) as (it, _):
        client = await it.connect()
        await client.send("/upstream/m/ws", "Connection: Upgrade", "Upgrade: websocket")
        assert (await client.head()).status == 101
        it.front.drain()
        it.front.cut(WHY)
        with pytest.raises(ConnectionResetError):
            await client.reader.read()
        await it.front.drained()


async def test_an_operators_order_that_takes_its_time_is_cut() -> None:
    async with house_of(fixed(OK)) as (it, _):
        began = asyncio.Event()

        async def load(model_id: str) -> None:
            began.set()
            await asyncio.Event().wait()

        it.engine.load = load  # type: ignore[method-assign]
        client = await it.connect()
        await client.send("/api/models/load/m", method="POST")
        await began.wait()
        it.front.cut(WHY)
        told(await read_on(client))


async def test_a_stream_of_ours_ends_although_everything_is_cut_at_once() -> None:
    async with house_of(fixed(OK)) as (it, _):
        client = await it.stream("/api/events")
        it.front.drain()
        it.front.cut(WHY)
        with contextlib.suppress(ConnectionError):
            await read_on(client)
        await it.front.drained()


async def test_whoever_comes_after_the_cut_is_closed_or_told(way: str) -> None:
    async with house_of(fixed(OK)) as (it, _):
        idle, asking = await it.connect(), await it.connect()
        await until(lambda: len(it.front._site.connections) == 2)
        asking.writer.write(chat(b'{"model":"nobody"}'))
        await in_flight(it)
        it.front.cut(WHY)
        assert await read_on(idle) == b""
        told(await read_on(asking))


async def test_a_cut_is_the_end_of_everything_even_without_a_drain_before() -> None:
    async with house_of(silent) as (it, server):
        for _ in range(20):
            client = await it.connect()
            client.writer.write(chat())
        await until(lambda: len(server.calls) == 20)
        it.front.cut(WHY)
        it.front.cut(WHY)
        await it.front.close()
        for client in it._clients:
            told(await read_on(client))


# ---- where it listens


async def test_requests_come_by_a_unix_socket(tmp_path: Path, way: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "llamaswapd")
    path = tmp_path / "sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    async with house_of(fixed(OK), listeners=[Listener(listener)]) as (it, server):
        client = Client(*await asyncio.open_unix_connection(path))
        client.writer.write(chat() + chat(b'{"model":"m"}', "X-Forwarded-For: 10.0.0.1"))
        for _ in range(2):
            assert (await client.answer()).body == b"ok"
        it.front.drain()
        assert await read_on(client) == b""
        client.close()
        await it.front.drained()
    assert "x-forwarded-for" not in server.calls[0].headers
    assert server.calls[1].headers["x-forwarded-for"] == "10.0.0.1"
    assert path.exists()  # the next daemon listens there
    assert [row.remote_ip if hasattr(row, "remote_ip") else "" for row in it.activity.ended] == ["", ""]
    lines = "\n".join(record.getMessage() for record in caplog.records)
    assert 'Request  "POST /v1/chat/completions' in lines
    assert 'Request 10.0.0.1 "POST' in lines


async def test_a_client_with_an_abstract_address_has_none(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "sock"))
    listener.listen()
    async with house_of(fixed(OK), listeners=[Listener(listener)]) as (_, server):
        client_socket = socket.socket(socket.AF_UNIX)
        client_socket.bind("")  # unix(7): the kernel chooses one
        client_socket.connect(str(tmp_path / "sock"))
        client_socket.setblocking(False)
        client = Client(*await asyncio.open_unix_connection(sock=client_socket))
        client.writer.write(chat() + GET.replace(b"/health", b"/upstream/m/x"))
        for _ in range(2):
            assert (await client.answer()).body == b"ok"
        client.close()
    assert not [call for call in server.calls if "x-forwarded-for" in call.headers]


async def test_several_sockets_each_with_tls_or_without(tmp_path: Path) -> None:
    tls = make_certificate(tmp_path, "IP:127.0.0.1")
    trusting = ssl.create_default_context(cafile=tmp_path / "cert")
    plain, secret = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
    ports = plain.getsockname()[1], secret.getsockname()[1]
    async with house_of(fixed(OK), listeners=[Listener(plain), Listener(secret, tls)]) as (it, _):
        first = Client(*await asyncio.open_connection("127.0.0.1", ports[0]))
        second = Client(*await asyncio.open_connection("127.0.0.1", ports[1], ssl=trusting))
        for client in (first, second, second, first):
            client.writer.write(chat())
            assert (await client.answer()).body == b"ok"
        it.front.drain()
        for client in (first, second):
            assert await read_on(client) == b""
            client.close()
        await it.front.drained()


async def test_a_front_end_that_never_listened_can_be_closed() -> None:
    async with house_of(fixed(OK), listeners=[Listener(socket.create_server(("127.0.0.1", 0)))]) as (it, _):
        it.front.drain()
        it.front.drain()
        await it.front.drained()
