from __future__ import annotations

import asyncio
import resource

import pytest
from aiohttp import web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.streams import StreamReader
from aiohttp.test_utils import make_mocked_request

from llamaswapd.errors import Error, RequestTimeout, RequestTooLarge
from llamaswapd.http import body as body_module
from llamaswapd.http.body import Body

TEXT = bytes(range(100))


def request(length: int | None = None) -> tuple[web.Request, StreamReader]:
    """A request whose body the test feeds."""
    loop = asyncio.get_running_loop()
    protocol = BaseProtocol(loop)
    protocol.connection_made(asyncio.Transport())
    content = StreamReader(protocol, 65536, loop=loop)
    headers = {"Content-Length": str(length)} if length is not None else {}
    return make_mocked_request("POST", "/", headers=headers, payload=content), content


async def fed(pieces: int) -> Body:
    """A body that was read to its end in so many pieces."""
    asked, content = request(len(TEXT))
    body = Body(asked)
    step = len(TEXT) // pieces
    for at in range(0, len(TEXT), step):
        content.feed_data(TEXT[at : at + step])
        assert await body.read_more() == TEXT[at : at + step]
    content.feed_eof()
    assert await body.read_more() == b""
    return body


async def streamed(body: Body) -> bytes:
    return b"".join([piece async for piece in body.stream()])


@pytest.mark.parametrize("memory_limit", [1000, 99, 30, 0])
async def test_a_complete_body_can_be_had_again_and_again(memory_limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module, "MEMORY_LIMIT", memory_limit)
    monkeypatch.setattr(body_module, "SPOOL_PIECE", 7)
    with await fed(10) as body:
        assert (body.is_complete, body.size, body.length_to_send) == (True, 100, 100)
        assert body.is_in_memory == (memory_limit >= 100)
        for _ in range(2):
            assert await streamed(body) == TEXT
        assert await body.whole() == TEXT


@pytest.mark.parametrize("memory_limit", [1000, 45])
async def test_bytes_are_replaced_wherever_they_were_kept(memory_limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module, "MEMORY_LIMIT", memory_limit)
    monkeypatch.setattr(body_module, "SPOOL_PIECE", 7)
    for start in range(99):
        for end in (start + 1, min(start + 25, 100)):
            with await fed(10) as body:
                body.splice(start, end, b"new name")
                expected = TEXT[:start] + b"new name" + TEXT[end:]
                assert await streamed(body) == expected
                assert body.length_to_send == len(expected)


async def test_another_body_takes_the_place_of_a_complete_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module, "MEMORY_LIMIT", 45)
    with await fed(10) as body:
        await body.replace([b"ot", memoryview(b"her")])
        assert (body.in_memory(), body.length_to_send) == (b"other", 5)
        await body.replace([b"a long", memoryview(b"er one"), TEXT])
        assert (body.is_in_memory, body.length_to_send) == (False, 112)
        assert await streamed(body) == await body.whole() == b"a longer one" + TEXT


async def test_a_full_disk_is_told_and_nothing_else_goes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module, "MEMORY_LIMIT", 30)
    asked, content = request(len(TEXT))
    content.feed_data(TEXT)
    content.feed_eof()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, before[1]))
    try:
        with pytest.raises(Error, match="cannot be kept in"), Body(asked) as body:
            await body.whole()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_what_was_read_is_streamed_before_what_still_comes() -> None:
    asked, content = request()
    with Body(asked) as body:
        content.feed_data(b"first ")
        await body.read_more()
        content.feed_data(b"second")
        content.feed_eof()
        assert body.length_to_send is None
        assert await streamed(body) == b"first second"


async def test_a_client_that_stops_sending_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module, "READ_TIMEOUT_S", 0.01)
    asked, content = request(10)
    with Body(asked) as body:
        content.feed_data(b"12345")
        with pytest.raises(RequestTimeout, match=r"for 0\.01 s"):
            await body.finish()


async def test_a_body_without_an_end_is_not_kept_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module, "KEEP_LIMIT", 250)
    asked, content = request()
    with Body(asked) as body:
        for _ in range(2):
            content.feed_data(TEXT)
            await body.read_more()
        content.feed_data(TEXT)
        with pytest.raises(RequestTooLarge, match="more than 250 bytes"):
            await body.read_more()
