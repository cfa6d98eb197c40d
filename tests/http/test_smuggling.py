"""The known ways to hide a request inside another: none of them reaches a model's server as a request of its own.

The classes are those of the public corpora: lengths that contradict each other or the chunks (CL.TE, TE.CL, CL.CL),
spellings of Transfer-Encoding that one side overlooks (TE.TE), odd line ends, names and values, chunk sizes, and what
hangs behind the end of a message.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from fake_model import OK, Call, house_of, until
from standins import House

from llamaswapd.http.upstream import Upstream

HIDDEN = b'POST /v1/embeddings HTTP/1.1\r\nHost: hidden\r\nContent-Length: 13\r\nContent-Type: application/json\r\n\r\n{"model":"m"}'
BODY = b'{"model":"m"}'
CHUNKED = b"d\r\n" + BODY + b"\r\n0\r\n\r\n"

START = b"POST /v1/chat/completions HTTP/1.1\r\nHost: models\r\nContent-Type: application/json\r\n"
UPSTREAM = START.replace(b"/v1/chat/completions", b"/upstream/m/anything")


def with_length(*lines: bytes, body: bytes = BODY, start: bytes = START) -> bytes:
    return start + b"".join(line + b"\r\n" for line in lines) + b"Content-Length: %d\r\n\r\n" % len(body) + body


def with_lines(*lines: bytes, body: bytes, end: bytes = b"\r\n", start: bytes = START) -> bytes:
    return start + b"".join(line + end for line in lines) + b"\r\n" + body


TE_SPELLINGS = [
    b"Transfer-Encoding: chunked", b"Transfer-Encoding : chunked", b"Transfer-Encoding: xchunked", b" Transfer-Encoding: chunked",
    b"Transfer-Encoding:\tchunked", b"Transfer-Encoding: chunked\x0b", b"Transfer-Encoding: \x0bchunked", b"X: y\nTransfer-Encoding: chunked",
    b"Transfer-Encoding\n: chunked", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x", b"Transfer-Encoding: x\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked, identity", b"Transfer-Encoding: identity, chunked", b"Transfer-Encoding: identity",
    b"transfer_encoding: chunked", b"Transfer-Encoding: \"chunked\"", b"Transfer-Encoding: chunked;x", b"Transfer-Encoding: chunked\x00",
    b"Transfer-Encoding: cow\r\n chunked", b"TRANSFER-ENCODING: CHUNKED", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding:",
    b"Content-Encoding: chunked", b"X:\rTransfer-Encoding: chunked", b"Transfer-Encoding\xa0: chunked",
]  # fmt: skip

LENGTHS = [
    b"Content-Length: 13\r\nContent-Length: 0", b"Content-Length: 0\r\nContent-Length: 13", b"Content-Length: 13, 0",
    b"Content-Length: 0, 13", b"Content-Length: +13", b"Content-Length: -1", b"Content-Length: 0x0d", b"Content-Length: 013",
    b"Content-Length: 1 3", b"Content-Length: 13\x00", b"Content-Length : 0", b"Content-Length:\r\n 13", b"Content-Length: 13\x0b",
    b"content_length: 0\r\nContent-Length: 13", b"Content-Length: 18446744073709551629", b"Content-Length: 1e1", b"Content-Length: ",
]  # fmt: skip

CHUNKS = [
    CHUNKED + HIDDEN, b"d\r\n" + BODY + b"\r\n0\r\n" + HIDDEN, b"D;x\r\n" + BODY + b"\r\n0\r\n\r\n" + HIDDEN,
    b"0xd\r\n" + BODY + b"\r\n0\r\n\r\n" + HIDDEN, b"d\n" + BODY + b"\n0\n\n" + HIDDEN, b" d\r\n" + BODY + b"\r\n0\r\n\r\n" + HIDDEN,
    b"d\r\n" + BODY + b"0\r\n\r\n" + HIDDEN, b"d\r\n" + BODY + b"\r\n00000000000000000000\r\n\r\n" + HIDDEN,
    b"1000000000000000d\r\n" + BODY + b"\r\n0\r\n\r\n" + HIDDEN, b"d;\nx\r\n" + BODY + b"\r\n0\r\n\r\n" + HIDDEN,
    b"d\r\n" + BODY + b"\r\n-0\r\n\r\n" + HIDDEN, b"d\r\n" + BODY + b"\r\n0\r\nContent-Length: 5\r\n\r\n" + HIDDEN,
    b"d\r\n" + BODY + b"\r\n0\r\n\r\r\n" + HIDDEN,
]  # fmt: skip

ATTACKS = {
    **{f"CL and {spelling!r}": with_length(spelling) for spelling in TE_SPELLINGS},
    **{f"CL.TE {spelling!r}": with_length(spelling, body=b"0\r\n\r\n" + HIDDEN) for spelling in TE_SPELLINGS},
    **{
        f"TE.CL {spelling!r}": with_lines(spelling, b"Content-Length: 4", body=b"%x\r\n" % len(HIDDEN) + HIDDEN + b"\r\n0\r\n\r\n")
        for spelling in TE_SPELLINGS
    },
    **{f"lengths {lines!r}": with_lines(lines, body=BODY + HIDDEN) for lines in LENGTHS},
    **{f"chunks {body[:30]!r}": with_lines(b"Transfer-Encoding: chunked", body=body) for body in CHUNKS},
    **{f"upstream chunks {body[:30]!r}": with_lines(b"Transfer-Encoding: chunked", body=body, start=UPSTREAM) for body in CHUNKS},
    "a GET with a body": with_length(body=HIDDEN, start=UPSTREAM).replace(b"POST", b"GET", 1),
    "a body in a body": with_length(body=BODY[:-1] + b',"x":"' + HIDDEN.replace(b'"', b"'").replace(b"\r\n", b"\\r\\n") + b'"}'),
    "an upgrade": with_length(b"Connection: Upgrade", b"Upgrade: h2c", body=BODY) + HIDDEN,
    "an expectation": with_length(b"Expect: 100-continue", body=BODY),
    "an absolute target": with_length().replace(b" /v1", b" http://other/v1"),
    "a target with a line break": with_length().replace(b"completions ", b"completions\r\nX: y "),
    "a target with an encoded line break": with_length().replace(b"completions ", b"completions?a=%0d%0aX:%20y "),
    "HTTP/1.0 with chunks": with_lines(b"Transfer-Encoding: chunked", body=CHUNKED + HIDDEN).replace(b"1.1", b"1.0"),
    "HTTP/0.9": b"GET /upstream/m/x\r\n\r\n" + HIDDEN,
    "bare line feeds": with_length().replace(b"\r\n", b"\n") + HIDDEN,
    "a bare carriage return": with_length(b"X: a\rContent-Length: 0"),
    "a folded length": with_lines(b"X: a\r\n Content-Length: 0", b"Content-Length: 13", body=BODY + HIDDEN),
    "a hop that is named": with_length(b"Connection: close, content-length", body=BODY),
    "a host that is named": with_length(b"Connection: host", body=BODY),
    "two hosts": with_length(b"Host: other", body=BODY),
    "a NUL in a name": with_length(b"Content-Length\x00: 0", body=BODY),
}  # fmt: skip


async def send(it: House, data: bytes) -> None:
    client = await it.connect()
    client.writer.write(data)
    client.writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    try:
        async with asyncio.timeout(0.25):
            while await client.reader.read(65536):
                pass
    except (TimeoutError, ConnectionError):
        pass
    client.writer.transport.abort()


@pytest.mark.sources
@pytest.mark.timeout(240)
async def test_a_models_server_sees_exactly_the_requests_that_were_sent_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sent, seen = 0, 0
    send_on = Upstream.send_whole

    def count(*arguments: Any, **options: Any) -> None:
        nonlocal sent
        sent += 1
        send_on(*arguments, **options)

    async def record(call: Call) -> None:
        nonlocal seen
        body = await call.read_body()
        seen += 1
        lines = [line.lower() for line in call.lines]
        framings = [line for line in lines if re.match(r"content-length|transfer-encoding", line)]
        assert len(framings) <= 1, lines
        assert not re.search("[\r\n\0\x0b]", "".join(lines)), lines
        assert len(body) == int(call.headers.get("content-length", len(body)))
        await call.send(OK)

    monkeypatch.setattr(Upstream, "send_whole", count)
    async with house_of(record) as (it, server):
        for name, data in ATTACKS.items():
            await send(it, data)
            await until(lambda: len(server.calls) >= sent)
            assert len(server.calls) == sent, name
        assert len(ATTACKS) / 3 > seen > 20
        paths = {call.request_line.rpartition(" ")[0] for call in server.calls}
        assert paths <= {f"POST /v1/{what}" for what in ("chat/completions", "embeddings", "chat/completions?a=%0d%0aX:%20y")} | {
            "POST /anything", "GET /anything", "GET /x",  # the last for aiohttp 3.8, which reads HTTP/0.9
        }  # fmt: skip
