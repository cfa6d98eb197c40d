"""Which requests go the express way, and that nobody can tell from the answers which way they went."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import sys
from collections.abc import Awaitable, Callable

import pytest
from fake_model import OK, Call, chat, fixed, house_of, last, until
from standins import Client, House, model
from ways import close_express

from llamaswapd.config.schema import Config
from llamaswapd.http import body as body_module
from llamaswapd.http import connect, express
from llamaswapd.http import server as server_module
from llamaswapd.http.upstream import OriginPool, Upstream

Trip = tuple[bytes, bytes]  # what the model's server got, what the client got


class Ways:
    """Counts what goes which way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.handed_over = 0
        self.given = 0
        hand_over, give = express.Exchange._hand_over, server_module.Handler.data_received

        def count_handed_over(exchange: express.Exchange) -> None:
            self.handed_over += 1
            hand_over(exchange)

        def count_given(handler: server_module.Handler, data: bytes) -> None:
            self.given += bool(data)  # newer versions of aiohttp give themselves nothing to look again
            give(handler, data)

        monkeypatch.setattr(express.Exchange, "_hand_over", count_handed_over)
        monkeypatch.setattr(server_module.Handler, "data_received", count_given)


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> Ways:
    return Ways(monkeypatch)


@pytest.fixture
def ordinary(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Close the express way from now on."""
    return lambda: close_express(monkeypatch)


def form(*, model_last: bool = False) -> bytes:
    model = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
    file = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + bytes(range(256)) + b"\r\n"
    return (file + model if model_last else model + file) + b"--b--\r\n"


def request(body: bytes, *lines: str, path: str = "/v1/chat/completions", kind: str = "application/json") -> bytes:
    head = (f"POST {path} HTTP/1.1", "Host: models", f"Content-Type: {kind}", *lines, f"Content-Length: {len(body)}")
    return "\r\n".join((*head, "", "")).encode() + body


async def answer_of(client: Client) -> bytes:
    """One answer as it came, without its date."""
    head = re.sub(rb"Date: [^\r]*\r\n", b"", await client.reader.readuntil(b"\r\n\r\n"))
    if b" 204 " in head:
        return head
    length = re.search(rb"content-length: (\d+)", head.lower())
    body = await client.reader.readexactly(int(length[1])) if length else await client.reader.readuntil(b"0\r\n\r\n")
    return head + body


PLAIN = {
    "a short question": request(b'{"model":"m"}'),
    "the model behind the messages": request(b'{"messages":[{"role":"user","content":"]"}],"model":"m"}'),
    "the model deep in other members": request(b'{"tools":[{"a":[1]}],"messages":[{"b":[2]}],"x":{"y":1},"model":"m"}'),
    "an escaped key": request(b'{"x":1,"mod\\u0065l":"m"}'),
    "an alias": request(b'{"model":"alias"}'),
    "a query": request(b'{"model":"m"}', path="/v1/embeddings?a=%20&model=x"),
    "headers of all kinds": request(
        b'{"model":"m"}', "accept: */*", "X-Forwarded-For: 1.2.3.4", "COOKIE: a=b", "Keep-Alive: 5", "X-Empty:", "X:y"
    ),
    "a connection that ends": request(b'{"model":"m"}', "Connection: close"),
    "one that stays": request(b'{"model":"m"}', "Connection: Keep-Alive"),
    "a path that is cut": request(b'{"model":"m"}', path="/v/chat/completions"),
    "another path that is cut": request(b'{"model":"m"}', path="/audioapi/v1/tasks/run"),
    "a form": request(form(), kind="multipart/form-data; boundary=b", path="/v1/audio/transcriptions"),
    "a form with the model last": request(form(model_last=True), kind='multipart/form-data; boundary="b"'),
}


async def echo(call: Call) -> None:
    """Answer with what came, in a head that says much."""
    body = await call.read_body()
    text = "\r\n".join((call.request_line, *call.lines, "")).encode() + body
    await call.send(b"HTTP/1.1 201 Made\r\nX-A: 1\r\nContent-Length: %d\r\nx-a: 2\r\n\r\n%b" % (len(text), text))


async def trip(it: House, data: bytes, *pieces: int) -> bytes:
    """Send a request, cut at these places, and return the answer."""
    client = await it.connect()
    for start, end in zip((0, *pieces), (*pieces, len(data)), strict=True):
        client.writer.write(data[start:end])
        await client.writer.drain()
        for _ in range(4):
            await asyncio.sleep(0)
    answer = await answer_of(client)
    client.close()
    return answer


@pytest.mark.parametrize("data", PLAIN.values(), ids=PLAIN.keys())
async def test_a_plain_request_is_answered_alike_on_either_way(
    data: bytes, ways: Ways, ordinary: Callable[[], None]
) -> None:
    async with house_of(echo, {"api_keys": ()}, aliases=("alias",)) as (it, _):
        fast = [await trip(it, data) for _ in range(2)]  # with a new connection to the server, and with a kept one
        assert ways.given == 0
        ordinary()
        assert [await trip(it, data), *fast] == [fast[0]] * 3
        assert ways.given


@pytest.mark.parametrize(
    ("body", "answered"),
    [
        (b'{"model":"m"}', ["m"]),
        (b'{"model":"m2","x":1}', ["m2"]),
        (b'{"model":"m2"}', ["m2"]),
        (b'{"model":"m","model":"m2"}', ["m"]),
        (b'{"model":"m2","model":"m"}', ["m2"]),
        (b'{"model" : "m" , "x":1}', ["m"]),
        (b'{"x":{"model":"m"},"model":"m2"}', ["m2"]),
        (b'{"model":"m3"}', []),
        (b'{"model":"m', []),
    ],
)
async def test_the_model_of_a_body_is_its_own_however_the_one_before_began(body: bytes, answered: list[str]) -> None:
    """The heads are the same, and bodies that begin alike are not read again."""
    async with house_of(fixed(OK), others=[model("m2", proxy="")]) as (it, _):
        for before in (b'{"model":"m"}', b'{"model":"m","x":1}', b'{"model":"m2"}', b'{"model":"m2","model":"m"}'):
            it.activity.ended.clear()
            client = await it.connect()
            for each in (before, before, body):
                client.writer.write(request(each))
                await client.answer()
            assert [row.model_id for row in it.activity.ended[2:] if row.outcome == 200] == answered


@pytest.mark.parametrize("data", PLAIN.values(), ids=PLAIN.keys())
async def test_a_plain_request_may_be_cut_at_every_byte(data: bytes, ways: Ways) -> None:
    async with house_of(echo, aliases=("alias",)) as (it, server):
        expected = await trip(it, data)
        for at in range(1, len(data)):
            assert await trip(it, data, at) == expected
        assert ways.given == 0
        assert len(server.calls) == len(data)


@pytest.mark.parametrize(
    "data",
    [
        chat(version="1.0"),
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b'Transfer-Encoding: chunked\r\n\r\nd\r\n{"model":"m"}\r\n0\r\n\r\n',
        request(b'{"model":"m"}', "X: \xe4"),
        request(b'{"model":"m"}', "X: a", "x: b"),
        request(b'{"model":"m"}', path="http://models/v1/chat/completions"),
        request(b'{"model":"nobody"}'),
        request(b'{"model":""}'),
        request(b"{}"),
        request(b"[]"),
        request(b""),
        request(b'{"model":"m"}', kind="text/plain"),
        request(b"model=m", kind="application/x-www-form-urlencoded"),
        request(form(), kind="multipart/form-data"),
        request(b"", path="/v1/audio/voices?model=m").replace(b"POST", b"GET"),
        request(b'{"model":"m"}', path="/upstream/m/v1/chat/completions"),
        request(b'{"model":"m"}', path="/v1//chat/completions"),
        request(b'{"model":"m"}', path="/nothing"),
        request(b"").replace(b"POST", b"OPTIONS"),
        b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
async def test_what_is_not_plain_is_aiohttps_wherever_it_is_cut(data: bytes, ways: Ways) -> None:
    async with house_of(echo) as (it, _):
        expected = await trip(it, data)
        assert ways.given
        for at in range(1, len(data), 3):
            assert await trip(it, data, at) == expected


async def test_a_wrong_key_is_refused_and_a_right_one_is_taken_off(ways: Ways) -> None:
    async with house_of(echo, {"api_keys": ("k1", "k2")}) as (it, server):
        for line in (
            "Authorization: Bearer k2",
            "x-api-key: k1",
            "Authorization: bearer k1",
            "Authorization: Basic dTprMQ==",
        ):
            assert (await trip(it, request(b'{"model":"m"}', line))).startswith(b"HTTP/1.1 201 ")
        assert ways.given == 0
        for line in ("Authorization: Bearer k3", "x-api-key: k", "X: y", "Authorization: Bearer"):
            assert (await trip(it, request(b'{"model":"m"}', line))).startswith(b"HTTP/1.1 401 ")
    assert len(server.calls) == 4
    assert not any("authorization" in call.headers or "x-api-key" in call.headers for call in server.calls)


async def test_another_configuration_counts_from_the_next_request_on() -> None:
    async with house_of(echo, {"api_keys": ("old",)}) as (it, _):
        client = await it.connect()
        for key, status in (("old", b"201"), ("new", b"401")):
            client.writer.write(request(b'{"model":"m"}', f"x-api-key: {key}"))
            assert (await answer_of(client)).startswith(b"HTTP/1.1 " + status)
        it.engine.use(it.engine.config.having(api_keys=("new",), models={}))
        for key, status in (("old", b"401"), ("new", b"404")):
            client.writer.write(request(b'{"model":"m"}', f"x-api-key: {key}"))
            assert (await answer_of(client)).startswith(b"HTTP/1.1 " + status)


async def test_short_bodies_are_changed_as_configured(ways: Ways, ordinary: Callable[[], None]) -> None:
    settings = {"use_model_name": "real", "filters": {"strip_params": ("x",), "set_params": {"n": 1}}}
    data = request(b'{"model":"m", "x": 5, "pad": "' + b"p" * 1000 + b'"}')
    async with house_of(echo, **settings) as (it, server):
        fast = await trip(it, data), await trip(it, data, 150), await trip(it, data)
        assert ways.given == 0
        assert json.loads(server.calls[0].body) == {"model": "real", "pad": "p" * 1000, "n": 1}
        ordinary()
        assert {await trip(it, data), *fast} == {fast[0]}


async def test_a_body_that_is_large_or_a_form_is_changed_by_the_other_way(ways: Ways) -> None:
    async with house_of(echo, use_model_name="real") as (it, server):
        await trip(it, PLAIN["a form"])
        await trip(it, request(b'{"model":"m","pad":"' + b"p" * express.EDIT_LIMIT + b'"}'))
        assert ways.given
    assert b"\r\n\r\nreal\r\n" in server.calls[0].body
    assert server.calls[1].body.startswith(b'{"model":"real",')


# ---- one connection, several requests


async def test_the_ways_alternate_on_one_connection(ways: Ways) -> None:
    async with house_of(echo) as (it, server):
        client = await it.connect()
        for _ in range(3):
            client.writer.write(PLAIN["a short question"])
            assert (await answer_of(client)).startswith(b"HTTP/1.1 201 ")
            given = ways.given
            client.writer.write(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await answer_of(client)).startswith(b"HTTP/1.1 200 ")
            assert ways.given == given + 1
    assert server.connections == 1


async def test_requests_that_come_all_at_once_are_answered_in_their_order(ways: Ways) -> None:
    other = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
    sent = [request(b'{"model":"m","n":%d}' % n) if n % 3 else other for n in range(30)]
    async with house_of(echo) as (it, _):
        client = await it.connect()
        client.writer.write(b"".join(sent))
        for n in range(30):
            answer = await answer_of(client)
            assert (b'"n":%d}' % n in answer) if n % 3 else (b'"object":"list"' in answer)
        assert ways.given == 10


async def test_after_a_request_in_doubt_the_connection_is_aiohttps(ways: Ways) -> None:
    async with house_of(echo) as (it, _):
        client = await it.connect()
        for count in (1, 2):
            client.writer.write(request(b'{"model":"m"}', "X: \xe4") if count == 1 else PLAIN["a short question"])
            assert (await answer_of(client)).startswith(b"HTTP/1.1 201 ")
            assert ways.given == count


# ---- a change of mind


async def test_a_request_that_cannot_be_granted_at_once_waits_on_the_other_way(ways: Ways) -> None:
    async with house_of(echo) as (it, server):
        it.engine.ready.clear()
        client = await it.connect()
        client.writer.write(PLAIN["a short question"])
        await it.engine.waited.wait()
        assert ways.given == 1
        it.engine.ready.set()
        assert (await answer_of(client)).startswith(b"HTTP/1.1 201 ")
    assert len(server.calls) == 1


async def test_a_kept_connection_that_has_ended_is_not_noticed(ways: Ways) -> None:
    async def answer(call: Call) -> None:
        if call.connection == 1 and len(server.calls) == 2:
            call.reset()
        else:
            await fixed(OK)(call)

    async with house_of(answer) as (it, server):
        client = await it.connect()
        for _ in range(2):
            client.writer.write(PLAIN["a short question"])
            assert await answer_of(client) == OK
    assert [call.connection for call in server.calls] == [1, 1, 2]
    assert (ways.handed_over, ways.given) == (0, 0)


@pytest.mark.sources
async def test_a_server_that_takes_no_connection_is_asked_again_on_the_other_way(ways: Ways) -> None:
    async with house_of(echo, proxy="http://127.0.0.1:1") as (it, _):
        answer = await trip(it, PLAIN["a short question"])
    assert answer.startswith(b"HTTP/1.1 502 ")
    assert ways.handed_over == 1


@pytest.mark.parametrize("rest", [b'"}', b'","model":"m"}'])
async def test_a_long_body_without_a_model_in_sight_is_handed_over(
    rest: bytes, ways: Ways, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(express, "HOLD_LIMIT", 100_000)
    async with house_of(echo) as (it, _):
        answer = await trip(it, request(b'{"pad":"' + b"x" * 200_000 + rest), 5000)
    assert answer.startswith(b"HTTP/1.1 201 " if b"model" in rest else b"HTTP/1.1 404 ")
    assert ways.handed_over + ways.given >= 1


# ---- bodies


@pytest.mark.parametrize("model_last", [False, True])
@pytest.mark.parametrize("size", [100_000, 3_000_000, 12_000_000])
async def test_a_large_body_arrives_as_it_was_sent(size: int, model_last: bool, ways: Ways) -> None:
    pad = b'"pad":"' + bytes(97 + n % 26 for n in range(1000)) * (size // 1000) + b'"'
    body = b'{"list":[{' + pad + b'}],"model":"m"}' if model_last else b'{"model":"m",' + pad + b"}"
    async with house_of(fixed(OK)) as (it, server):
        client = await it.connect()
        for _ in range(2):
            client.writer.write(request(body))
            assert await answer_of(client) == OK
        assert [call.body == body for call in server.calls] == [True, True]
    assert (ways.handed_over + ways.given > 0) == (model_last and size > express.HOLD_LIMIT)


async def test_a_body_in_pieces_of_any_size_is_held_in_its_length_and_sent_whole() -> None:
    body = b'{"pad":"' + bytes(97 + n % 26 for n in range(200_000)) + b'","model":"m"}'
    async with house_of(fixed(OK)) as (it, server):
        client = await it.connect()
        (connection,) = it.front._site.connections  # type: ignore[union-attr]
        client.writer.write(request(body)[: -len(body)])
        await until(lambda: connection._exchange is not None)
        at = 0
        for size in (*[1] * 50_000, 10_000, 1, 5000, 5000, *[7] * 10_000):
            connection.data_received(body[at : at + size])
            at += size
        pieces = connection._exchange._pieces
        assert sum(map(sys.getsizeof, pieces)) < at * 1.25
        connection.data_received(body[at:])
        assert await answer_of(client) == OK
    assert [call.body for call in server.calls] == [body]


async def test_an_answer_may_come_before_the_body_has_and_the_connection_goes_on(ways: Ways) -> None:
    async def refuse(call: Call) -> None:
        await call.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await call.left()

    data = request(b'{"model":"m","pad":"' + b"x" * 100_000 + b'"}')
    async with house_of(refuse) as (it, server):
        client = await it.connect()
        client.writer.write(data[:50_000])
        assert (await answer_of(client)).endswith(b"big")
        server.answer = fixed(OK)
        client.writer.write(data[50_000:] + PLAIN["a short question"])
        assert await answer_of(client) == OK
    assert ways.given == 0


async def test_a_client_that_sends_on_behind_its_last_request_is_not_reset() -> None:
    """It might not see the end of its answer."""
    called, answers = asyncio.Event(), asyncio.Event()

    async def wait(call: Call) -> None:
        await call.read_body()
        called.set()
        await answers.wait()
        await call.send(OK)

    async with house_of(wait) as (it, _):
        client = await it.connect()
        client.writer.write(request(b'{"model":"m"}', "Connection: close") + b"x" * 500_000)
        await called.wait()
        await until(lambda: all(each.is_paused for each in it.front._site.connections))  # type: ignore[union-attr]
        answers.set()
        assert (await client.reader.read()).endswith(b"ok")


async def test_a_client_that_sends_on_while_its_answer_is_on_its_way_is_not_reset() -> None:
    """A transport that closes reads nothing more, but may have much to send yet."""
    length = 100_000
    called, answers = asyncio.Event(), asyncio.Event()

    async def wait(call: Call) -> None:
        await call.read_body()
        called.set()
        await answers.wait()
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length + b"x" * length)

    async with house_of(wait) as (it, _):
        loop = asyncio.get_running_loop()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", it.port))
            await loop.sock_sendall(client, request(b'{"model":"m"}', "Connection: close"))
            await called.wait()
            [connection] = it.front._site.connections  # type: ignore[union-attr]
            connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
            answers.set()
            await until(connection.transport.is_closing)
            assert connection.transport.get_write_buffer_size()
            await loop.sock_sendall(client, b"\r\n")
            received = b""
            while piece := await loop.sock_recv(client, 65536):
                received += piece
        assert len(received.partition(b"\r\n\r\n")[2]) == length


async def test_a_body_that_nobody_wants_and_that_does_not_come_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(express, "LINGER_S", 0.05)
    monkeypatch.setattr(server_module, "LOOK_EVERY_S", 0.01)
    async with house_of(fixed(b"HTTP/1.1 413 X\r\nContent-Length: 0\r\n\r\n")) as (it, server):

        async def refuse(call: Call) -> None:
            await call.send(b"HTTP/1.1 413 X\r\nContent-Length: 0\r\n\r\n")
            await call.left()

        server.answer = refuse
        client = await it.connect()
        client.writer.write(request(b'{"model":"m","pad":"' + b"x" * 1000 + b'"}')[:-100])
        assert (await answer_of(client)).startswith(b"HTTP/1.1 413 ")
        assert await client.reader.read() == b""


@pytest.mark.parametrize("sent", [b'{"pad":"', b'{"model":"m","pad":"'])
async def test_a_body_that_does_not_come_is_a_408_and_the_end(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module, "READ_TIMEOUT_S", 0.05)
    monkeypatch.setattr(server_module, "LOOK_EVERY_S", 0.01)

    async def wait(call: Call) -> None:
        await call.left()

    async with house_of(wait) as (it, _):
        client = await it.connect()
        client.writer.write(request(sent + b"x" * 1000)[:-1000])
        answer = await answer_of(client)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"no more of the request's body came" in answer
        if b"model" in sent:
            assert b"\r\nConnection: close\r\n" in answer


async def test_a_client_is_not_to_blame_for_a_model_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module, "READ_TIMEOUT_S", 0.1)
    monkeypatch.setattr(server_module, "LOOK_EVERY_S", 0.01)
    size, go_on = 40_000_000, asyncio.Event()

    async def drink_late(call: Call) -> None:
        await go_on.wait()
        await call.read_body()
        await call.send(OK)

    async with house_of(drink_late) as (it, server):
        client = await it.connect()
        client.writer.write(request(b'{"model":"m","pad":"' + b"x" * size + b'"}'))
        await until(lambda: bool(server.calls))
        connection = next(iter(it.front._site.connections))  # type: ignore[union-attr]
        await until(lambda: connection.is_paused)
        await asyncio.sleep(0.3)  # longer than a client may take
        go_on.set()
        assert await answer_of(client) == OK


# ---- what goes wrong


Dying = Callable[[Call], Awaitable[None]]


async def test_a_model_that_dies_is_explained_alike_on_either_way(ordinary: Callable[[], None]) -> None:
    async def die(call: Call) -> None:
        await call.read_body()
        call.reset()

    answers = []
    async with house_of(die) as (it, _):
        it.engine.cause = "killed by SIGKILL (oom-kill)"
        for _ in range(2):
            client = await it.connect()
            for accept in ("*/*", "text/html", "text/plain"):
                client.writer.write(request(b'{"model":"m"}', f"Accept: {accept}"))
                head, _, body = (await answer_of(client)).partition(b"\r\n\r\n")
                answers.append((head.partition(b"\r\n")[0], sorted(head.split(b"\r\n")[1:]), body))
            ordinary()
    assert answers[:3] == answers[3:]
    assert b"oom-kill" in answers[0][2]


async def test_a_stream_that_breaks_off_is_cut_alike_on_either_way(ordinary: Callable[[], None]) -> None:
    start = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n"
    )
    async with house_of(last(start)) as (it, _):
        it.engine.cause = "killed by SIGKILL (oom-kill)"
        answers = []
        for _ in range(2):
            client = await it.connect()
            client.writer.write(PLAIN["a short question"])
            answers.append(await client.reader.read())
            ordinary()
    assert answers[0] == answers[1]
    assert b"oom-kill" in answers[0]


@pytest.mark.parametrize("cause", [None, "killed by SIGKILL"])
async def test_a_stream_that_ends_with_its_connection_is_whole_if_its_model_lives(
    ordinary: Callable[[], None], cause: str | None
) -> None:
    async def end(call: Call) -> None:
        await call.read_body()
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        call.close()

    async with house_of(end) as (it, _):
        it.engine.cause = cause
        answers = []
        for _ in range(2):
            client = await it.connect()
            client.writer.write(PLAIN["a short question"])
            answers.append(await client.reader.read())
            ordinary()
        assert it.engine.leases == 0
    assert answers[0] == answers[1]
    assert answers[0].endswith(b"\r\n\r\ndata: 1\n\n") == (cause is None)
    assert (b'"error"' in answers[0] and b"killed by SIGKILL" in answers[0]) == (cause is not None)


async def test_a_client_that_leaves_gives_everything_back() -> None:
    left = asyncio.Event()

    async def hang(call: Call) -> None:
        await call.read_body()
        await call.left()
        left.set()

    async with house_of(hang) as (it, server):
        client = await it.connect()
        client.writer.write(PLAIN["a short question"])
        await until(lambda: bool(server.calls))
        assert (it.engine.leases, len(it.observer.inflight)) == (1, 1)
        client.close()
        await left.wait()
        assert (it.engine.leases, len(it.observer.inflight)) == (0, 0)


async def test_a_client_that_leaves_while_a_failure_is_explained_gives_everything_back() -> None:
    explaining = asyncio.Event()

    async def die(call: Call) -> None:
        call.reset()

    async with house_of(die) as (it, _):

        async def cause() -> str | None:
            explaining.set()
            await asyncio.sleep(3600)
            return None

        it.engine.explain = cause  # type: ignore[attr-defined]
        client = await it.connect()
        client.writer.write(PLAIN["a short question"])
        await explaining.wait()
        client.close()
        await until(lambda: it.engine.leases == 0)


async def test_a_client_that_leaves_while_its_server_is_connected_to_gives_everything_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connecting = asyncio.Event()

    async def connected(pool: OriginPool) -> Upstream:
        connecting.set()
        await asyncio.sleep(3600)
        raise AssertionError

    monkeypatch.setattr(connect, "_connected", connected)
    async with house_of(echo) as (it, _):
        client = await it.connect()
        client.writer.write(PLAIN["a short question"])
        await connecting.wait()
        assert it.engine.leases == 1
        client.close()
        await until(lambda: it.engine.leases == 0)


async def test_a_request_on_the_express_way_is_shown_while_it_is_in_flight(ordinary: Callable[[], None]) -> None:
    shown = []
    async with house_of(echo) as (it, server):

        async def answer(call: Call) -> None:
            (entry,) = it.observer.inflight.snapshot().data["requests"]  # type: ignore[index]
            shown.append({key: value for key, value in entry.items() if key not in ("id", "timestamp", "elapsed_ms")})
            await echo(call)

        server.answer = answer
        for _ in range(2):
            await trip(it, PLAIN["headers of all kinds"])
            ordinary()
    assert shown[0] == shown[1]
    assert (shown[0]["remote_ip"], shown[0]["model"]) == ("1.2.3.4", "m")


async def test_the_access_log_says_the_same_on_either_way(
    ordinary: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "llamaswapd.observe")
    async with house_of(echo) as (it, _):
        for _ in range(2):
            await trip(it, request(b'{"model":"m"}', "User-Agent: tool"))
            ordinary()
    first, second = [line.rpartition(" ")[0] for line in caplog.records[0].getMessage().split("\n")]
    assert first == second
    assert first.startswith('Request 127.0.0.1 "POST /v1/chat/completions HTTP/1.1" 201 ')


@pytest.mark.parametrize("is_removed", [False, True])
async def test_a_reload_between_a_head_and_its_body_counts(is_removed: bool) -> None:
    elsewhere = OK.replace(b"ok", b"ko")
    async with house_of(fixed(OK)) as (it, _), house_of(fixed(elsewhere)) as (_, other):
        client = await it.connect()
        client.writer.write(chat())
        assert (await client.answer()).body == b"ok"
        (connection,) = it.front._site.connections  # type: ignore[union-attr]
        request = chat()
        client.writer.write(request[:-5])
        await until(lambda: connection._exchange is not None)
        moved = it.engine.config.models["m"].having(proxy=other.url)
        it.engine.use(Config(models={} if is_removed else {"m": moved}))
        client.writer.write(request[-5:])
        answer = await client.answer()
        assert (answer.status, answer.body == b"ko") == ((404, False) if is_removed else (200, True))


async def test_a_large_first_piece_that_comes_behind_its_head_tells_the_model() -> None:
    body = b'{"model":"m","pad":"' + b"x" * 100_000 + b'"}'
    async with house_of(fixed(OK)) as (it, _):
        it.engine.ready.clear()
        client = await it.connect()
        (connection,) = it.front._site.connections  # type: ignore[union-attr]
        request = chat(body)
        client.writer.write(request[: -len(body)])
        await until(lambda: connection._exchange is not None)
        client.writer.write(body[:-2])
        await until(lambda: it.engine.leases == 1)  # one that waits, for the model has to be loaded
        it.engine.ready.set()
        client.writer.write(body[-2:])
        assert (await client.answer()).body == b"ok"
