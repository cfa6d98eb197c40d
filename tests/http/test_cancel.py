"""`POST /api/inflight/{id}/cancel`: requests that somebody else ends, wherever they are."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from fake_model import OK, Call, chat, fixed, house_of, last, peered, until
from standins import Answer, Client, House

from llamaswapd.errors import Cancelled
from llamaswapd.http import connect
from llamaswapd.http.upstream import OriginPool, Upstream

TOLD = str(Cancelled())


def ids(it: House) -> list[str]:
    data: Any = it.observer.inflight.snapshot().data
    return [entry["id"] for entry in data.get("requests", ())]


async def cancel(it: House, id_: str | None = None) -> Answer:
    """Cancel a request, the only one in flight unless it is named."""
    if id_ is None:
        await until(lambda: bool(ids(it)))
        (id_,) = ids(it)
    return await it.ask(f"/api/inflight/{id_}/cancel", "Content-Length: 0", method="POST")


async def cancelled(it: House, client: Client) -> None:
    """Cancel the request in flight, whose client has seen nothing yet; see what it is told."""
    answer = await cancel(it)
    assert (answer.status, answer.json()) == (200, {"msg": "ok"})
    told = await client.answer()
    assert (told.status, told.json()["error"]["message"]) == (502, TOLD)
    assert told.json()["error"]["code"] == "bad_gateway"
    await until(lambda: not ids(it))
    (row,) = it.activity.ended
    assert (row.outcome, row.error, row.content_type) == (502, TOLD, "application/json")
    assert it.front._recorder.budget.held == 0


async def silent(call: Call) -> None:
    await call.read_body()
    await call.left()


# ---- before the answer


async def test_a_request_that_waits_for_its_model(way: str) -> None:
    async with house_of(fixed(OK)) as (it, server):
        it.engine.ready.clear()
        client = await it.connect()
        client.writer.write(chat() + chat())
        await it.engine.waited.wait()
        await cancelled(it, client)
        assert not server.calls
        it.engine.ready.set()
        assert (await client.answer()).body == b"ok"  # the connection goes on


async def test_a_request_that_waits_in_upstream() -> None:
    async with house_of(fixed(OK)) as (it, server):
        it.engine.ready.clear()
        client = await it.connect()
        client.writer.write(chat(path="/upstream/m/v1/embeddings"))
        await it.engine.waited.wait()
        await cancelled(it, client)
        assert not server.calls


async def test_a_request_whose_server_is_being_connected_to(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connecting = asyncio.Event()

    async def connected(pool: OriginPool) -> Upstream:
        connecting.set()
        await asyncio.sleep(3600)
        raise AssertionError

    monkeypatch.setattr(connect, "_connected", connected)
    async with house_of(fixed(OK)) as (it, _):
        client = await it.connect()
        client.writer.write(chat())
        await connecting.wait()
        await cancelled(it, client)


async def test_a_request_that_waits_for_its_answer(way: str) -> None:
    left = asyncio.Event()

    async def answer(call: Call) -> None:
        await silent(call)
        left.set()

    async with house_of(answer) as (it, server):
        client = await it.connect()
        client.writer.write(chat())
        await until(lambda: bool(server.calls))
        await cancelled(it, client)
        await left.wait()
        server.answer = fixed(OK)
        client.writer.write(chat())
        assert (await client.answer()).body == b"ok"


async def test_a_request_to_a_peer() -> None:
    async with peered(silent) as (it, peer):
        client = await it.connect()
        client.writer.write(chat(b'{"model":"far"}'))
        await until(lambda: bool(peer.calls))
        await cancelled(it, client)


@pytest.mark.parametrize("size", [100_000, 20_000_000])
async def test_an_upload_whose_rest_is_dropped(size: int, way: str) -> None:
    async def drink(call: Call) -> None:
        await call.left()

    async with house_of(drink) as (it, server):
        client = await it.connect()
        whole = chat(b'{"model":"m","pad":"' + b"x" * size + b'"}')
        client.writer.write(whole[: size // 2])
        await until(lambda: bool(server.calls))
        await cancelled(it, client)
        server.answer = fixed(OK)
        client.writer.write(whole[size // 2 :])
        client.writer.write(chat())
        assert (await client.answer()).body == b"ok"


async def test_an_upload_of_which_the_server_takes_no_more(way: str) -> None:
    async def refuse(call: Call) -> None:
        await asyncio.sleep(3600)

    async with house_of(refuse) as (it, server):
        client = await it.connect()
        client.writer.write(chat(b'{"model":"m","pad":"' + b"x" * 40_000_000 + b'"}'))
        await until(lambda: bool(server.calls))
        await cancelled(it, client)


async def test_a_request_whose_failure_is_being_explained(way: str) -> None:
    explaining = asyncio.Event()

    async def cause() -> str | None:
        explaining.set()
        await asyncio.sleep(3600)
        return None

    async with house_of(last(b"")) as (it, _):
        it.engine.explain = cause  # type: ignore[attr-defined]
        client = await it.connect()
        client.writer.write(chat())
        await explaining.wait()
        await cancelled(it, client)


# ---- after it has begun

SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n"


async def streaming(call: Call) -> None:
    await call.read_body()
    await call.send(SSE)
    await call.left()


def last_event(text: bytes) -> Any:
    event = text.rpartition(b"data: ")[2].partition(b"\n\n")[0]
    return json.loads(event)


async def test_a_stream_ends_with_an_error_event_and_no_clean_end(way: str) -> None:
    async with house_of(streaming) as (it, _):
        client = await it.connect()
        client.writer.write(chat())
        await client.head()
        await client.chunk()
        assert (await cancel(it)).status == 200
        rest = await client.reader.read()
        (row,) = it.activity.ended
    assert last_event(rest)["error"]["message"] == TOLD
    assert not rest.endswith(b"0\r\n\r\n")
    assert (row.outcome, row.error, row.content_type) == (200, TOLD, "text/event-stream")


async def test_an_answer_with_a_length_is_cut(way: str) -> None:
    async def answer(call: Call) -> None:
        await call.read_body()
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nsome")
        await call.left()

    async with house_of(answer) as (it, _):
        client = await it.connect()
        client.writer.write(chat())
        await client.reader.readuntil(b"some")
        assert (await cancel(it)).status == 200
        assert await client.reader.read() == b""
        (row,) = it.activity.ended
    assert (row.outcome, row.error) == (200, TOLD)


async def test_a_loading_stream_ends_with_an_error_event() -> None:
    async with house_of(fixed(OK), {"send_loading_state": True}) as (it, server):
        it.engine.ready.clear()
        client = await it.connect()
        client.writer.write(chat(b'{"model":"m","stream":true}'))
        assert (await client.head()).status == 200
        await client.text_until("loading model: m")
        assert (await cancel(it)).status == 200
        rest = await client.reader.read()
        (row,) = it.activity.ended
        assert not server.calls
    assert b"HTTP/1.1" not in rest
    assert last_event(rest)["error"]["message"] == TOLD
    assert not rest.endswith(b"0\r\n\r\n")
    assert (row.outcome, row.error, row.content_type) == (200, TOLD, "text/event-stream")


async def test_a_cut_stream_whose_cause_is_being_looked_for(way: str) -> None:
    explaining = asyncio.Event()

    async def cause() -> str | None:
        explaining.set()
        await asyncio.sleep(3600)
        return None

    async with house_of(last(SSE)) as (it, _):
        it.engine.explain = cause  # type: ignore[attr-defined]
        client = await it.connect()
        client.writer.write(chat())
        await client.head()
        await explaining.wait()
        assert (await cancel(it)).status == 200
        rest = await client.reader.read()
    assert b"HTTP/1.1" not in rest
    assert last_event(rest)["error"]["message"] == TOLD


async def test_a_client_that_does_not_read_is_cut_as_well(way: str) -> None:
    async def flood(call: Call) -> None:
        await call.read_body()
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n" + b"x" * 50_000_000)
        await call.left()

    async with house_of(flood) as (it, _):
        client = await it.connect()
        client.writer.write(chat())
        await client.head()
        connection = next(each for each in it.front._site.connections)  # type: ignore[union-attr]
        await until(lambda: not connection.is_writable)
        assert (await cancel(it)).status == 200
        await until(lambda: not ids(it))
        client.writer.transport.abort()


# ---- which request


async def test_only_the_request_with_this_id_is_cancelled(way: str) -> None:
    async with house_of(silent) as (it, server):
        clients = []
        for count in range(1, 4):
            clients.append(await it.connect())
            clients[-1].writer.write(chat())
            await until(lambda count=count: len(server.calls) == count)  # type: ignore[misc]
        _, second, _ = ids(it)
        assert (await cancel(it, second)).status == 200
        assert (await clients[1].answer()).status == 502
        assert len(ids(it)) == 2
        again = await cancel(it, second)
        assert (again.status, again.json()["error"]["message"]) == (404, "inflight request not found")


@pytest.mark.parametrize(
    "id_", ["0", "99", "-1", "x", "1.0", "%31x", "%D9%A3", "9" * 5000, "1e0", "%20", "0x1", "null"]
)
async def test_an_id_that_nothing_has_is_a_404(id_: str) -> None:
    async with house_of(silent) as (it, server):
        client = await it.connect()
        client.writer.write(chat())
        await until(lambda: bool(server.calls))
        answer = await cancel(it, id_)
        assert (answer.status, answer.json()["error"]["message"]) == (404, "inflight request not found")
        assert len(ids(it)) == 1


async def test_a_request_is_cancelled_twice_at_once(way: str) -> None:
    async with house_of(silent) as (it, server):
        it.engine.ready.clear()
        client = await it.connect()
        client.writer.write(chat() + chat())
        await it.engine.waited.wait()
        (id_,) = ids(it)
        assert it.observer.inflight.cancel(id_)
        assert it.observer.inflight.cancel(id_)
        assert (await client.answer()).status == 502
        it.engine.ready.set()
        await until(lambda: bool(server.calls))  # the next request is not hit
        await until(lambda: len(ids(it)) == 1)


async def test_a_client_that_leaves_in_the_moment_of_the_cancel_leaves_nothing(way: str) -> None:
    async with house_of(silent) as (it, server):
        for _ in range(5):
            client = await it.connect()
            client.writer.write(chat())
            await until(lambda: len(ids(it)) == 1)
            await until(lambda: bool(server.calls))
            client.writer.transport.abort()
            it.observer.inflight.cancel(ids(it)[0])
            await until(lambda: it.engine.leases == 0 and not ids(it))
            server.calls.clear()


async def test_only_post_cancels() -> None:
    async with house_of(silent) as (it, _):
        for method in ("GET", "HEAD", "DELETE"):
            assert (await it.ask("/api/inflight/1/cancel", method=method)).status == 405
