"""What the activity is told of each request that has ended, and what is kept of its bodies until then."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fake_model import OK, Call, FakeModel, chat, fixed, house_of, last, until
from standins import Client, House, model
from ways import close_express

from llamaswapd.activity.record import REQUESTS_NOT_KEPT, Record
from llamaswapd.config.schema import Filters
from llamaswapd.errors import StartError, TooManyRequests, UpstreamError
from llamaswapd.http import connect
from llamaswapd.http.kept import HEAD_BYTES, TAIL_BYTES, Budget, KeptAnswer, KeptRequest
from llamaswapd.http.upstream import OriginPool, Upstream

MIB = 1024 * 1024


@asynccontextmanager
async def recorded(answer: Any, *args: Any, **settings: Any) -> AsyncIterator[tuple[House, FakeModel]]:
    """A house that must hold nothing of any body in the end."""
    async with house_of(answer, *args, **settings) as (it, server):
        yield it, server
        await it.front.drained()
        assert it.front._recorder.budget.held == 0


async def ended(it: House, count: int = 1) -> list[Record]:
    await until(lambda: len(it.activity.ended) >= count)
    assert len(it.activity.ended) == count
    return it.activity.ended


async def ask(it: House, data: bytes) -> tuple[Client, Any]:
    client = await it.connect()
    client.writer.write(data)
    return client, await client.answer()


TOLD = (
    "model_id", "method", "sent_path", "path", "peer_ip", "outcome", "about", "error", "content_type",
    "content_encoding", "response", "is_chunked", "is_cut", "size",
)  # fmt: skip


def told(row: Record) -> dict[str, Any]:
    """All but the times."""
    is_kept = row.request is not None and row.sent_path not in REQUESTS_NOT_KEPT
    return {name: getattr(row, name) for name in TOLD} | {
        "request": bytes(row.request or b"") if is_kept else None,
        "request_headers": sorted(row.request_pairs()()),
        "response_headers": sorted(row.response_pairs()()),
    }


# ---- the fields


FILE = b"\r\nContent-Disposition: x\r\n\r\n" + b"x" * MIB + b"\r\n--b--\r\n"
FORM = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--b--\r\n'


def form(path: str, body: bytes = FORM) -> bytes:
    return chat(body, path=path).replace(b"application/json", b"multipart/form-data; boundary=b")


SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
KINDS: dict[str, tuple[bytes, bytes]] = {
    "an answer with a length": (chat(), OK),
    "a stream": (chat(), SSE + b"8\r\ndata: 1\n\r\n1\r\n\n\r\n0\r\n\r\n"),
    "an answer without a length": (chat(), b"HTTP/1.1 200 OK\r\n\r\nrest"),
    "an error of the model": (chat(), b"HTTP/1.1 400 No\r\nContent-Type: a/b\r\nContent-Length: 2\r\n\r\n{}"),
    "no content": (chat(), b"HTTP/1.1 204 No\r\n\r\n"),
    "a path that is cut": (chat(path="/v/chat/completions?a=b"), OK),
    "another": (chat(path="/audioapi/v1/tasks/run"), OK),
    "packed": (chat(), b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\ngzip"),
    "headers": (chat(b'{"model":"m"}', "X-A: 1", "Cookie: c", "Accept: text/plain"), OK),
    "an upload": (form("/v1/audio/transcriptions"), OK),
    "a form": (form("/v1/rerank"), OK),
    "a larger body": (chat(b'{"model":"m","pad":"' + b"x" * 700_000 + b'"}'), OK),
    "the name at the end": (chat(b'{"pad":"' + b"x" * 700_000 + b'","model":"m"}'), OK),
    "a form with a file": (form("/v1/rerank", FORM[:-4] + FILE), OK),
}  # fmt: skip


@pytest.mark.parametrize(("request_", "answer"), KINDS.values(), ids=KINDS.keys())
async def test_a_request_is_told_alike_on_either_way(
    request_: bytes, answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with recorded(last(answer)) as (it, _):
        for count in (1, 2):
            client = await it.connect()
            client.writer.write(request_)
            head = await client.head()
            assert head.status == int(answer.split()[1])
            await ended(it, count)
            close_express(monkeypatch)
    fast, slow = map(told, it.activity.ended)
    assert fast == slow
    _, _, body = request_.partition(b"\r\n\r\n")
    is_kept = b"audio/transcriptions" not in request_
    assert (fast["request"], fast["response"]) == (body if is_kept else None, answer.partition(b"\r\n\r\n")[2])
    assert (fast["model_id"], fast["method"], fast["error"], fast["is_cut"]) == ("m", "POST", "", False)
    assert fast["about"] == {"fifo_priority": "0"}
    path = request_.split()[1].decode().partition("?")[0]
    assert fast["sent_path"] == path.replace("/v/", "/").replace("/audioapi", "")
    assert fast["is_chunked"] == (b"chunked" in answer)
    headers = dict(fast["response_headers"])
    assert (fast["content_type"], fast["content_encoding"]) == (
        headers.get("content-type", ""), headers.get("content-encoding", ""),
    )  # fmt: skip


async def test_the_times_are_in_their_order(way: str) -> None:
    async with recorded(fixed(OK)) as (it, _):
        await ask(it, chat())
        (row,) = await ended(it)
    assert row.began <= row.granted <= row.first_byte <= row.ended
    assert (row.load_began, row.granted) == (0.0, row.began)
    assert row.heads_bytes > 0


async def test_the_request_is_told_as_the_model_got_it(way: str) -> None:
    filters = Filters(strip_params=("x",), set_params={"n": 1})
    async with recorded(fixed(OK), use_model_name="real", filters=filters) as (it, server):
        await ask(it, chat(b'{"model":"m","x":2}'))
        (row,) = await ended(it)
    assert row.request == server.calls[0].body == b'{"model":"real","n":1}'
    assert dict(row.request_pairs()())["Content-Length"] == "19"  # as the client sent it


async def test_requests_of_upstream_are_told_if_the_rest_is_a_model_route() -> None:
    async with recorded(fixed(OK)) as (it, _):
        for path in ("/upstream/m/v1/embeddings?a", "/upstream/m/v1/other", "/upstream/m/v/embeddings"):
            await ask(it, chat(path=path))
        rows = await ended(it, 2)
    assert [(row.model_id, row.sent_path) for row in rows] == [("m", "/v1/embeddings"), ("m", "/v/embeddings")]
    assert rows[0].request == b'{"model":"m"}'


async def test_no_row_is_made_of_gets_and_of_requests_without_a_model() -> None:
    async with recorded(fixed(OK)) as (it, _):
        for target in ("/props?model=m", "/v1/audio/voices?model=m", "/upstream/m/props", "/props", "/v1/models"):
            await it.ask(target)
        for body in (b"{}", b"", b'{"model":""}'):
            assert (await ask(it, chat(body)))[1].status == 404
        assert it.activity.ended == []


async def test_a_request_of_an_unknown_model_is_told_as_a_404() -> None:
    async with recorded(fixed(OK)) as (it, _):
        _, answer = await ask(it, chat(b'{"model":"nobody"}', path="/v/embeddings"))
        (row,) = await ended(it)
    assert (row.model_id, row.sent_path, row.outcome, row.about) == ("nobody", "/embeddings", 404, {})
    assert row.error == answer.json()["error"]["message"]
    assert (row.granted, row.first_byte, row.request, row.response) == (0.0, 0.0, None, b"")


@pytest.mark.parametrize(
    ("accept", "kind"), [("*/*", "application/json"), ("text/plain", "text/plain"), ("text/html", "text/html")]
)
async def test_a_model_that_cannot_start_is_told_with_what_the_client_got(accept: str, kind: str) -> None:
    async with recorded(fixed(OK)) as (it, _):
        it.engine.failure = StartError("upstream command exited prematurely")
        _, answer = await ask(it, chat(b'{"model":"m"}', f"Accept: {accept}"))
        (row,) = await ended(it)
    assert (answer.headers["content-type"], row.content_type) == (kind, kind)
    assert (row.outcome, row.error) == (500, "unspecific error: upstream command exited prematurely")
    assert (row.granted, row.first_byte) == (0.0, 0.0)


async def test_a_long_message_is_told_in_short() -> None:
    """As llama-swap cuts it in a row; the client gets all of it."""
    async with recorded(fixed(OK)) as (it, _):
        it.engine.failure = StartError("x" * 2000)
        _, answer = await ask(it, chat(b'{"model":"m"}'))
        (row,) = await ended(it)
    message = answer.json()["error"]["message"]
    assert len(message) > 2000
    assert row.error == message[:500] + "..."


async def test_a_request_too_many_is_told_as_a_429(monkeypatch: pytest.MonkeyPatch) -> None:
    async with recorded(fixed(OK)) as (it, _):

        def refuse(*_: object) -> None:
            raise TooManyRequests

        monkeypatch.setattr(it.engine, "lease_now", lambda _: None)
        monkeypatch.setattr(it.engine, "lease", refuse)
        _, answer = await ask(it, chat(b'{"model":"m"}', "Accept: text/plain"))
        (row,) = await ended(it)
    assert (answer.status, row.outcome, row.error) == (429, 429, "Too many requests")
    assert (row.content_type, row.granted) == ("application/json", 0.0)


async def test_a_server_that_takes_no_connection_is_told(way: str) -> None:
    async with recorded(fixed(OK), proxy="http://127.0.0.1:1") as (it, _):
        _, answer = await ask(it, chat())
        (row,) = await ended(it)
    assert (row.outcome, row.error, row.request) == (502, answer.json()["error"]["message"], None)


async def test_a_server_that_dies_is_told_with_what_it_was_sent(way: str) -> None:
    async with recorded(last(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nsome")) as (it, _):
        client = await it.connect()
        client.writer.write(chat())
        await client.reader.read()
        (row,) = await ended(it)
    assert (row.outcome, row.request, row.response) == (200, b'{"model":"m"}', b"some")
    assert "in the middle of its answer" in row.error


async def test_a_body_that_is_sent_twice_is_told_once(way: str) -> None:
    async def answer(call: Call) -> None:
        if len(server.calls) == 2:
            call.reset()
        else:
            await fixed(OK)(call)

    async with recorded(answer) as (it, server):
        for _ in range(2):
            await ask(it, chat())
        rows = await ended(it, 2)
    assert [row.request for row in rows] == [b'{"model":"m"}'] * 2
    assert len(server.calls) == 3


@pytest.mark.parametrize("begun", [False, True])
async def test_a_client_that_leaves_is_told(begun: bool, way: str) -> None:
    async def answer(call: Call) -> None:
        await call.read_body()
        if begun:
            await call.send(SSE + b"8\r\ndata: 1\n\r\n")
        await call.left()

    async with recorded(answer) as (it, server):
        client = await it.connect()
        client.writer.write(chat())
        await until(lambda: bool(server.calls))
        if begun:
            await client.head()
        client.close()
        (row,) = await ended(it)
    assert (row.outcome, row.error) == ((200, "") if begun else (499, ""))
    assert row.request == b'{"model":"m"}'
    assert row.content_type == ("text/event-stream" if begun else "")


async def test_a_client_that_leaves_while_it_waits_is_told_without_a_grant() -> None:
    async with recorded(fixed(OK)) as (it, _):
        it.engine.ready.clear()
        client = await it.connect()
        client.writer.write(chat())
        await it.engine.waited.wait()
        client.close()
        (row,) = await ended(it)
    assert (row.outcome, row.granted, row.request) == (499, 0.0, None)


async def test_a_loading_stream_is_told_with_the_answer_behind_it() -> None:
    answer = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/x\r\nContent-Encoding: x\r\nContent-Length: 9\r\n\r\ndata: 1\n\n"
    )
    async with recorded(fixed(answer), {"send_loading_state": True}) as (it, server):
        it.engine.ready.clear()
        client = await it.connect()
        client.writer.write(chat(b'{"model":"m","stream":true}', "Accept-Encoding: gzip"))
        await client.head()
        assert "loading model: m" in (await client.chunk()).decode()
        it.engine.ready.set()
        while await client.chunk():
            pass
        (row,) = await ended(it)
    assert "accept-encoding" not in server.calls[0].headers  # the client would not be told what to unpack
    assert (row.outcome, row.content_type, row.content_encoding, row.is_chunked) == (200, "text/event-stream", "", True)
    text = row.response
    assert text.count(b"loading model: m") == 1
    assert text.endswith(b"9\r\ndata: 1\n\n\r\n0\r\n\r\n")


async def test_a_model_that_fails_behind_a_loading_stream_is_told() -> None:
    async with recorded(fixed(OK), {"send_loading_state": True}) as (it, _):
        it.engine.failure = StartError("health check timed out after 15s")
        client = await it.connect()
        client.writer.write(chat(b'{"model":"m","stream":true}'))
        await client.head()
        while await client.chunk():
            pass
        (row,) = await ended(it)
    assert (row.outcome, row.content_type) == (200, "text/event-stream")
    assert row.error == "unspecific error: health check timed out after 15s"


# ---- long bodies


async def test_of_a_long_answer_the_ends_are_kept(way: str) -> None:
    body = b"".join(b"%07d\n" % number for number in range(400_000))  # 3.2 MB
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    async with recorded(fixed(answer), {"capture_buffer": 1}) as (it, _):
        await ask(it, chat())
        (row,) = await ended(it)
    kept = row.response
    assert row.is_cut
    assert kept.startswith(body[:HEAD_BYTES])
    assert kept.endswith(body[-TAIL_BYTES:])
    assert len(kept) <= HEAD_BYTES + 2 * TAIL_BYTES


async def test_without_captures_short_answers_are_kept_and_no_request(way: str) -> None:
    async with recorded(fixed(OK), {"capture_buffer": 0}) as (it, _):
        await ask(it, chat())
        (row,) = await ended(it)
    assert (row.request, row.response, row.is_cut) == (None, b"ok", False)


@pytest.mark.parametrize("first", [b'{"model":"m","pad":"', b'{"pad":"'])
async def test_a_request_that_is_larger_than_a_capture_is_not_kept(first: bytes, way: str) -> None:
    body = first + b"x" * 2 * MIB + (b'"}' if b"model" in first else b'","model":"m"}')
    async with recorded(fixed(OK), {"capture_buffer": 1}) as (it, server):
        await ask(it, chat(body))
        (row,) = await ended(it)
    assert server.calls[0].body == body
    assert (row.request, row.response) == (None, b"ok")


async def test_another_capture_buffer_counts_from_the_next_request_on(way: str) -> None:
    async with recorded(fixed(OK), {"capture_buffer": 0}) as (it, _):
        it.engine.use(it.engine.config.having(capture_buffer=1))
        it.front.reconfigure(it.engine.config)
        await ask(it, chat())
        (row,) = await ended(it)
    assert row.request == b'{"model":"m"}'


async def test_many_long_answers_share_one_budget(way: str) -> None:
    async def answer(call: Call) -> None:
        await call.read_body()
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 999_999)
        await go_on.wait()
        await call.send(b"x")

    go_on = asyncio.Event()
    async with recorded(answer, {"capture_buffer": 1}) as (it, _):
        clients = [await it.connect() for _ in range(10)]
        for client in clients:
            client.writer.write(chat())
        for client in clients:
            await client.head()
            await client.reader.readexactly(999_999)
        budget = it.front._recorder.budget
        assert 0 < budget.held <= budget.whole + 10 * (HEAD_BYTES + TAIL_BYTES)
        go_on.set()
        rows = await ended(it, 10)
    assert any(row.is_cut for row in rows)
    assert {row.response[-1:] for row in rows} == {b"x"}


async def test_a_request_that_changes_ways_holds_nothing_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    connected = connect._connected
    tries = 0

    async def second_time(pool: OriginPool) -> Upstream:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise UpstreamError("not yet")
        return await connected(pool)

    monkeypatch.setattr(connect, "_connected", second_time)
    async with recorded(fixed(OK)) as (it, _):
        await ask(it, chat())
        (row,) = await ended(it)
    assert (tries, row.outcome, row.request) == (2, 200, b'{"model":"m"}')


def test_a_body_keeps_no_more_than_its_ends_and_says_when_it_lacks_something() -> None:
    budget = Budget(0)
    kept = KeptAnswer(budget)
    kept.add(b"a" * (HEAD_BYTES + 2 * TAIL_BYTES))
    assert (kept.is_cut, len(kept.body)) == (False, HEAD_BYTES + 2 * TAIL_BYTES)
    for size in (1, 100, 1000, 70_000) * 1000:
        kept.add(b"b" * size)
        assert len(kept.body) == budget.held <= HEAD_BYTES + 2 * TAIL_BYTES
    assert kept.is_cut
    kept.add(b"the end")
    text = bytes(kept.body)
    assert text.startswith(b"a" * HEAD_BYTES + b"b")
    assert text.endswith(b"b" * (TAIL_BYTES - 7) + b"the end")
    kept.release()
    assert budget.held == 0


def test_a_body_that_comes_again_is_kept_from_its_beginning() -> None:
    budget = Budget(10)
    kept = KeptRequest(budget)
    kept.add(b"x" * 11)
    assert (kept.is_cut, kept.pieces, budget.held) == (True, [], 0)
    kept.start_over()
    kept.add(b"y" * 9)
    assert (kept.is_cut, kept.pieces, budget.held) == (False, [b"y" * 9], 9)


# ---- the codings that a model may answer in


@pytest.mark.parametrize(
    ("accepted", "sent"),
    [
        ("gzip, deflate, br, zstd", "gzip, deflate"),
        ("br;q=1.0, gzip;q=0.8, *;q=0.1", "gzip;q=0.8"),
        ("GZIP ,deflate;q=0", "GZIP ,deflate;q=0"),
        ("gzip", "gzip"),
        ("br", None),
        ("*", None),
        ("identity", None),
        ("", None),
    ],
)
async def test_of_what_a_client_accepts_a_model_sees_what_we_can_read(
    accepted: str, sent: str | None, way: str
) -> None:
    async with recorded(fixed(OK)) as (it, server):
        await ask(it, chat(b'{"model":"m"}', f"Accept-Encoding: {accepted}"))
    assert (server.calls[0].headers.get("accept-encoding") or None) == sent


async def test_other_requests_accept_what_they_accept() -> None:
    async with recorded(fixed(OK)) as (it, server):
        for target, method in (("/props?model=m", "GET"), ("/upstream/m/x", "GET"), ("/upstream/m/x", "POST")):
            await it.ask(target, "Accept-Encoding: br, zstd", "Content-Length: 0", method=method)
        await it.ask("/upstream/m/v1/rerank", "Accept-Encoding: br, gzip", "Content-Length: 0", method="POST")
    assert [call.headers["accept-encoding"] for call in server.calls] == ["br, zstd"] * 3 + ["gzip"]


async def test_what_is_told_becomes_a_row_with_usage(way: str) -> None:
    text = zlib.compress(b'{"usage":{"prompt_tokens":3,"completion_tokens":4}}')
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: deflate\r\nContent-Length: %d\r\n\r\n"
    )
    async with recorded(fixed(head % len(text) + text), others=[model("n", proxy="")]) as (it, _):
        await ask(it, chat())
        await ask(it, chat(b'{"model":"n"}'))
        await ended(it, 2)
        answer = await it.ask("/api/metrics/activity?model=n")
    (row,) = answer.json()["data"]
    assert (row["model"], row["tokens"]["input_tokens"], row["tokens"]["output_tokens"]) == ("n", 3, 4)
