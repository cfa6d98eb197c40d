"""Whatever is passed on of a model's answer, aiohttp's client reads alike, wherever it is cut."""

from __future__ import annotations

import asyncio
import os
import random

import pytest
from differential import mutated, read_answer, some_answer

from llamaswapd.config.schema import Timeouts
from llamaswapd.errors import UpstreamError
from llamaswapd.http.upstream import Origin, OriginPool, Upstream
from llamaswapd.http.wire import Framing, Shape

ROUNDS = int(os.environ.get("LLAMASWAPD_TEST_ANSWERS", "60000"))


class Transport(asyncio.Transport):
    """Takes everything and does nothing."""

    closed = False

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0


class Sink:
    def __init__(self) -> None:
        self.shape: Shape | None = None
        self.digits = b""
        self.content = b""
        self.has_ended = False
        self.error: UpstreamError | None = None

    def on_interim(self, shape: Shape) -> None:
        """Of no interest here."""

    def on_whole(self, shape: Shape, digits: bytes, data: bytes, now: float) -> None:
        self.shape, self.digits, self.content, self.has_ended = shape, digits, data, True

    def on_head(self, shape: Shape, digits: bytes, framing: Framing, data: bytes) -> None:
        self.shape, self.digits, self.content = shape, digits, data

    def on_data(self, data: bytes) -> None:
        self.content += data

    def on_end(self) -> None:
        self.has_ended = True

    def on_failure(self, error: UpstreamError) -> None:
        self.error = error

    def on_writable(self, writable: bool) -> None:
        pass


def passed_on(pool: OriginPool, method: str, pieces: list[bytes], at_end: bool) -> tuple[Sink, Upstream]:
    """What the sink of a request is told when the server sends these pieces, and closes if it is `at_end`."""
    link, sink = Upstream(pool), Sink()
    link.has_tls = True  # the transport is no socket
    link.connection_made(Transport())
    link.send(sink, b"", is_head=method == "HEAD", unframe=True, complete=True)
    for piece in pieces:
        if link.transport.is_closing():
            break
        link.data_received(piece)
    if at_end and not sink.has_ended and sink.error is None:
        link.eof_received()
        link.connection_lost(None)
    return sink, link


def cut(chance: random.Random, data: bytes) -> list[bytes]:
    if chance.random() < 0.3:
        return [data[at : at + 1] for at in range(len(data))]
    places = sorted(chance.choices(range(len(data) + 1), k=chance.randrange(4)))
    return [data[i:j] for i, j in zip([0, *places], [*places, len(data)], strict=True) if i < j]


@pytest.mark.timeout(600)
async def test_an_answer_that_is_passed_on_is_what_aiohttp_reads() -> None:
    loop = asyncio.get_running_loop()
    pool = OriginPool(Origin("models", 80, True), Timeouts())
    ended = 0
    for seed in range(ROUNDS):
        chance = random.Random(seed)
        data = mutated(chance, some_answer(chance))
        method, at_end = chance.choice(["POST", "POST", "HEAD"]), chance.random() < 0.5
        sink, link = passed_on(pool, method, cut(chance, data), at_end)
        again, other = passed_on(pool, method, [data], at_end)
        assert (sink.has_ended, sink.error is None) == (again.has_ended, again.error is None), (seed, data)
        assert sink.content.startswith(again.content), (seed, data)  # of what breaks off, more may have gone before
        assert sink.content == again.content or sink.error is not None, (seed, data)
        assert link.transport.is_closing() == other.transport.is_closing(), (seed, data)
        if not sink.has_ended or sink.shape is None:
            continue
        ended += 1
        read = read_answer(loop, method, data, at_end)
        if read is None and not other.transport.is_closing():
            raise AssertionError(f"kept a connection whose answer aiohttp does not read: {seed} {data!r}")
        if read is None:
            continue
        final = next((each for each in read if each.message.code >= 200), None)
        if final is None:  # interim answers confuse older versions
            continue
        assert final.message.code == sink.shape.status, (seed, data)
        fields = [(field.name, field.value) for field in sink.shape.fields if field.name != b"content-length"]
        theirs = [(name, value.strip(b" \t")) for name, value in final.headers if name != b"content-length"]
        assert theirs == fields, (seed, data)
        if method != "HEAD" and final.message.code not in (204, 304):
            assert (final.body, final.is_complete) == (sink.content, True), (seed, data)
    pool.close()
    assert ended > ROUNDS // 4
