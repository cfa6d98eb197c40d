"""What becomes of the records of requests: what they show later, and that they hold on to nothing."""

from __future__ import annotations

import asyncio
import base64
from contextlib import suppress

from fake_model import OK, Call, chat, fixed, house_of, until

from llamaswapd.errors import ShuttingDown, StartError
from llamaswapd.http.express import Exchange
from tests.http.standins import House

FIELD = b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'


def kept_record(it: House) -> Exchange:
    """Return the one record that the store has and nobody has asked for."""
    (record,) = it.activity._store._added
    assert isinstance(record, Exchange)
    assert record.is_plain
    return record


async def early(call: Call) -> None:
    """Answer before the body is all there."""
    await call.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
    await call.left()


async def test_the_capture_of_a_loading_stream_that_failed_has_no_framing() -> None:
    async with house_of(fixed(OK), {"send_loading_state": True}) as (it, _):
        it.engine.failure = StartError("no luck")
        client = await it.connect()
        client.writer.write(chat(b'{"model":"m","stream":true}'))
        await client.head()
        while await client.chunk():
            pass
        await until(lambda: len(it.activity.ended) == 1)
        said = (await it.activity.capture(1))["resp_body"]
        assert isinstance(said, str)
        assert base64.b64decode(said).startswith(b"data:")


async def test_the_capture_of_a_request_that_was_held_in_pieces_is_whole() -> None:
    body = b'{"messages":["' + bytes(97 + n % 26 for n in range(700_000)) + b'"],"model":"m"}'
    async with house_of(fixed(OK), {"capture_buffer": 1}) as (it, _):
        client = await it.connect()
        client.writer.write(chat(body))
        assert (await client.answer()).status == 200
        await until(lambda: len(it.activity.ended) == 1)
        said = (await it.activity.capture(1))["req_body"]
        assert isinstance(said, str)
        assert base64.b64decode(said) == body


async def test_a_request_from_before_captures_were_wanted_has_no_body() -> None:
    may_answer = asyncio.Event()

    async def answer(call: Call) -> None:
        await call.read_body()
        await may_answer.wait()
        await call.send(OK)

    async with house_of(answer, {"capture_buffer": 0}) as (it, server):
        client = await it.connect()
        client.writer.write(chat())
        await until(lambda: bool(server.calls))
        config = it.engine.config.having(capture_buffer=1)
        it.engine.use(config)
        it.front.reconfigure(config)
        await it.activity.reconfigure(config)
        may_answer.set()
        assert (await client.answer()).status == 200
        await until(lambda: len(it.activity.ended) == 1)
        capture = await it.activity.capture(1)
        assert (capture["req_body"], capture["resp_body"]) == (None, base64.b64encode(b"ok").decode())


async def test_a_plain_record_holds_neither_connection_nor_bodies() -> None:
    form = FIELD % (b"model", b"m") + FIELD % (b"pad", b"x" * 7000) + b"--b--\r\n"
    request = chat(form, path="/v1/rerank").replace(b"application/json", b"multipart/form-data; boundary=b")
    async with house_of(fixed(OK)) as (it, _):
        client = await it.connect()
        client.writer.write(request)
        assert (await client.answer()).status == 200
        await until(lambda: bool(it.activity._store._added))
        record = kept_record(it)
        assert not hasattr(record, "connection")
        assert (record._form, record._text, record.request, record.response) == (None, b"", None, b"")


async def test_a_client_that_leaves_while_the_rest_of_its_body_is_awaited_is_let_go() -> None:
    async with house_of(early, {"capture_buffer": 0}) as (it, _):
        client = await it.connect()
        client.writer.write(chat(b'{"model":"m","x":1}')[:-3])
        assert (await client.answer()).status == 200
        client.close()
        await until(lambda: bool(it.activity._store._added) and not hasattr(kept_record(it), "connection"))


async def test_what_is_cut_after_its_client_has_left_does_not_end_twice() -> None:
    async def answer(call: Call) -> None:
        await call.read_body()
        with suppress(OSError):
            await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
            while True:
                await call.send(bytes(1_000_000))

    async with house_of(answer) as (it, _):
        client = await it.connect()
        (connection,) = it.front._site.connections  # type: ignore[union-attr]
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.writer.write(chat())
        await until(lambda: not connection.is_writable)
        client.writer.write_eof()
        await until(lambda: connection.has_left)
        assert it.front._traffic.active == 0
        connection.cut(ShuttingDown())
        assert it.front._traffic.active == 0
        client.writer.transport.abort()
