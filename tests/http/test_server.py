from __future__ import annotations

import asyncio
import logging
import zlib

import pytest
from fake_model import OK, chat, fixed, house_of, until

from llamaswapd.http import server as server_module


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
        assert it.front._runner.server.connections  # what the client still sends does not reset the connection
        assert answer.status in statuses
        error = answer.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert 0 < len(error["message"]) <= 200
        assert "\n" not in error["message"]
        assert (await it.ask("/health")).status == 200
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_headers_of_tens_of_kilobytes_are_fine() -> None:
    async with house_of(fixed(OK)) as (it, server):
        client = await it.connect()
        client.writer.write(chat(b'{"model":"m"}', "X-Long: " + "x" * 40_000))
        assert (await client.answer()).status == 200
    assert len(server.calls[0].headers["x-long"]) == 40_000


@pytest.mark.parametrize("place", [b"GET /health HTTP/1.1\r\nHost: x\r\n", b"", b"GET /health HTTP/1.1\r\nX"])
async def test_a_request_head_may_not_grow_without_end(place: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
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
        client = await it.connect()
        connection = next(iter(it.front._runner.server.connections))
        client.writer.write(chat() + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 5000)
        await until(lambda: connection.transport is None or len(connection._messages) > 1)
        assert len(connection._messages) <= server_module.PIPELINE_LIMIT or connection._force_close


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
    monkeypatch.setattr(server_module, "HEAD_TIMEOUT_S", 0.05)
    async with house_of(fixed(OK)) as (it, _):
        client = await it.connect()
        client.writer.write(b"GET /health HTTP/1.1\r\nX")
        assert await client.reader.read() == b""


async def test_a_connection_stays_open_once_a_request_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "HEAD_TIMEOUT_S", 0.05)
    async with house_of(fixed(OK)) as (it, _):
        client, slow = await it.connect(), await it.connect()
        await client.send("/health")
        assert (await client.answer()).status == 200
        assert await slow.reader.read() == b""  # by now the limit has passed for both
        await client.send("/health")
        assert (await client.answer()).status == 200


async def test_an_idle_connection_is_closed_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "KEEPALIVE_S", 0.05)
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


async def test_many_clients_that_vanish_leave_nothing_behind() -> None:
    async with house_of(fixed(OK)) as (it, _):
        before = len(tasks_of_ours())
        for size in (0, 5, 60, 100, 1000):
            for _ in range(20):
                client = await it.connect()
                client.writer.write(chat()[:size])
                client.writer.transport.abort()
        assert (await it.ask("/health")).status == 200
        await until(lambda: not it.front._runner.server.connections)
        await until(lambda: len(tasks_of_ours()) == before)


def tasks_of_ours() -> list[asyncio.Task[object]]:
    """All but the stand-in model's, one for each connection that the pool keeps."""
    return [task for task in asyncio.all_tasks() if "FakeModel" not in repr(task)]
