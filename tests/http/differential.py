"""What aiohttp's own parsers make of some bytes, and generators of bytes that are worth asking them about."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import http
from aiohttp.http_exceptions import HttpProcessingError

LIMITS = {"max_line_size": 65536, "max_field_size": 65536}
MARKER = b"GET /the-next-one HTTP/1.1\r\nHost: marker\r\n\r\n"


class Protocol:
    """As much of a protocol as a parser needs: it may ask for a pause, and gets none."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.transport = None
        self._reading_paused = False

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


@dataclass
class Read:
    """One message as a parser has read it."""

    message: Any
    payload: Any

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(bytes(name).lower(), bytes(value)) for name, value in self.message.raw_headers]

    @property
    def body(self) -> bytes:
        return b"".join(getattr(self.payload, "_buffer", ()))

    @property
    def is_complete(self) -> bool:
        return bool(self.payload.is_eof())


def read_requests(loop: asyncio.AbstractEventLoop, *pieces: bytes) -> list[Read] | None:
    """Return the requests that aiohttp's server sees in some bytes, None where it sees an error or an upgrade."""
    parser = http.HttpRequestParser(
        Protocol(loop), loop, 2**20, **LIMITS, payload_exception=ValueError, auto_decompress=False
    )
    found: list[Read] = []
    for piece in pieces:
        try:
            messages, upgraded, _ = parser.feed_data(piece)
        except HttpProcessingError:
            return None
        found += [Read(*each) for each in messages]
        if upgraded:
            return None
    return found


def read_answer(loop: asyncio.AbstractEventLoop, method: str, data: bytes, at_end: bool) -> list[Read] | None:
    """Return the answers that aiohttp's client sees in some bytes; `at_end`: the connection has ended then."""
    parser = http.HttpResponseParser(
        Protocol(loop), loop, 2**20, **LIMITS, payload_exception=ValueError, auto_decompress=False,
        read_until_eof=True, response_with_body=method != "HEAD",
    )  # fmt: skip
    try:
        messages, _, _ = parser.feed_data(data)
        if at_end:
            parser.feed_eof()
    except (HttpProcessingError, ValueError):
        return None
    found = [Read(*each) for each in messages]
    return None if any(getattr(each.payload, "exception", lambda: None)() for each in found) else found


# ---- generators


METHODS = [
    b"GET",
    b"POST",
    b"HEAD",
    b"PUT",
    b"PATCH",
    b"DELETE",
    b"POST",
    b"POST",
    b"OPTIONS",
    b"CONNECT",
    b"get",
    b"PO ST",
    b"",
    b"PRI",
]
TARGETS = [
    b"/", b"/v1/chat/completions", b"/v1/models?x=1&y=%20", b"/a%2Fb;c=d", b"/v1/chat/completions?", b"//x",
    b"/..%2f", b"http://evil/x", b"*", b"x", b"", b"/a b", b"/a#b", b"/\xff", b"/{x}|y", b"/a\\b", b"/?a=b?c=d",
    b"/\x00", b"/a\tb",
]  # fmt: skip
VERSIONS = [b"HTTP/1.1"] * 9 + [
    b"HTTP/1.0",
    b"HTTP/1.2",
    b"HTTP/2.0",
    b"http/1.1",
    b"HTTP/1.1 ",
    b"HTTP/11",
    b"",
    b"HTTP/1.10",
]
NAMES = [
    b"Host", b"Accept", b"X-A", b"x-a", b"User-Agent", b"Content-Type", b"Authorization", b"Cookie", b"X-Real-IP",
    b"Keep-Alive", b"Expect", b"Upgrade", b"Connection", b"TE", b"Trailer", b"Content-Length", b"Transfer-Encoding",
    b"Content-Encoding", b"X_Y", b"X Y", b"X-A ", b" X-A", b"\tX", b"", b"X\x00", b"X\xff", b"Content-Length\x00",
    b"Transfer_Encoding", b"X-Forwarded-For", b"HTTP2-Settings", b"Sec-WebSocket-Key1", b"Proxy-Connection",
]  # fmt: skip
VALUES = [
    b"x", b"*/*", b"application/json", b"close", b"keep-alive", b"Keep-Alive", b"close, x", b"upgrade",
    b"Upgrade, close", b"websocket", b"h2c", b"100-continue", b"chunked", b"Chunked", b"gzip", b"gzip, chunked",
    b"identity", b"chunked, identity", b"", b" ", b"a\tb", b"a\x00b", b"a\rb", b"\xe4\xb8", b"0", b"3", b"03", b"+3",
    b"-3", b"3 3", b"3,3", b"3, 3", b"0x3", b"3_0", b"3.0", b"99999999999999999999", b"3;x", b'"3"', b"a\x0bb",
    b"a\x7fb", b"trailers",
    b"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
]  # fmt: skip
ENDS = [b"\r\n"] * 30 + [b"\n", b"\r", b"\r\r\n", b"\n\r\n", b"\r\n ", b"\r\n\t", b"\x00\r\n", b" \r\n"]
SEPARATORS = [b": "] * 12 + [b":", b":  ", b":\t", b" : ", b" :", b"", b": \r\n "]


def some_request(chance: random.Random) -> bytes:
    """A request with what has been used to deceive parsers in any place, or nowhere."""
    wild = chance.random() < 0.6
    pick: Callable[[Sequence[bytes]], bytes] = lambda choices: chance.choice(choices) if wild else choices[0]  # noqa: E731
    body = chance.choice([b"", b"", b'{"model":"m"}', b"abc", b"0\r\n\r\n", MARKER, b"GET /x HTTP/1.1\r\n\r\n"])
    method = chance.choice(METHODS if wild and chance.random() < 0.3 else METHODS[:6])
    target = chance.choice(TARGETS if wild and chance.random() < 0.3 else TARGETS[:4])
    lines = [method + b" " + target + b" " + (chance.choice(VERSIONS) if wild else VERSIONS[0])]
    fields = [(b"Host", b"models")] if chance.random() < 0.95 else []
    if body or chance.random() < 0.5:
        length = len(body) + (chance.choice([0, 0, 0, 0, 1, -1]) if wild else 0)
        name = chance.choice([b"Content-Length", b"content-length", b"CONTENT-LENGTH", b"Content-length"])
        fields.append((name, b"%d" % max(length, 0)))
    for _ in range(chance.randrange(5)):
        tame = (chance.choice(NAMES[:10]), chance.choice(VALUES[:6]))
        fields.append((chance.choice(NAMES), chance.choice(VALUES)) if wild and chance.random() < 0.4 else tame)
    chance.shuffle(fields)
    lines += [name + pick(SEPARATORS if chance.random() < 0.1 else SEPARATORS[:1]) + value for name, value in fields]
    end = ENDS if wild and chance.random() < 0.2 else ENDS[:1]
    return b"".join(line + chance.choice(end) for line in lines) + chance.choice(end) + body


def mutated(chance: random.Random, data: bytes) -> bytes:
    """The same with a byte changed, lost, doubled or moved, most often none."""
    changed = bytearray(data)
    while changed and chance.random() < 0.4:
        at = chance.randrange(len(changed))
        match chance.randrange(5):
            case 0:
                changed[at] = chance.choice(b"\r\n\0 \t:;,/0a\xff")
            case 1:
                del changed[at]
            case 2:
                changed.insert(at, chance.choice(b"\r\n\0 \t:;,"))
            case 3:
                changed[at:at] = changed[at : at + chance.randrange(1, 20)]
            case _:
                del changed[at : at + chance.randrange(1, 20)]
    return bytes(changed)


STATUSES = [
    b"200 OK",
    b"200",
    b"200 ",
    b"404 Not Found",
    b"204 No Content",
    b"304 Not Modified",
    b"201 \xff",
    b"99 X",
    b"1000 X",
]
INTERIM = [b"", b"", b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"]
EXTENSIONS = [b"", b"", b";a", b";a=b", b';a="b c"', b" ;a", b" "]
TRAILERS = [b"", b"", b"X-T: 1\r\n", b"X-T: 1\r\nX-U: 2\r\n"]


def some_answer(chance: random.Random) -> bytes:
    """An answer in one of the ways in which answers end, often with something odd about it."""
    body = bytes(chance.choices(b"abc\r\n0;", k=chance.randrange(30)))
    odd = chance.random() < 0.5
    fields = [
        (chance.choice([b"X-A", b"Server", b"Content-Type"]), chance.choice(VALUES[:6]))
        for _ in range(chance.randrange(3))
    ]
    match chance.randrange(4):
        case 0:
            framed = body
        case 1 | 2:
            length = len(body) + (chance.choice([0, 0, 1, -1]) if odd else 0)
            fields.append((chance.choice([b"Content-Length", b"content-length"]), b"%d" % max(length, 0)))
            framed = body
        case _:
            fields.append(
                (b"Transfer-Encoding", chance.choice([b"chunked", b"Chunked", b"gzip"]) if odd else b"chunked")
            )
            framed = b""
            while body:
                size = chance.randrange(1, len(body) + 1)
                form = chance.choice([b"%x", b"%X", b"0%x"])
                framed += form % size + chance.choice(EXTENSIONS) + b"\r\n" + body[:size] + b"\r\n"
                body = body[size:]
            framed += b"0" + chance.choice(EXTENSIONS) + b"\r\n" + chance.choice(TRAILERS) + b"\r\n"
    if odd and chance.random() < 0.3:
        fields.append((chance.choice(NAMES), chance.choice(VALUES)))
    chance.shuffle(fields)
    status = chance.choice(STATUSES) if odd else STATUSES[0]
    version = chance.choice([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.2"]) if odd else b"HTTP/1.1"
    lines = [version + b" " + status, *(name + b": " + value for name, value in fields)]
    return chance.choice(INTERIM) + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + framed
