"""A client of HTTP that knows exactly how a request ended: the difference between refused, closed and cut is its use.

Libraries hide it: they retry, pool, and have one exception for many ends.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

LIMIT_S = 40.0  # for a whole request, or from one piece of a stream to the next

# How a request can end badly.
REFUSED = "refused"  # no connection
UNHEARD = "unheard"  # the connection ended before a byte of the answer
CUT = "cut"  # it ended in the middle of the answer
LATE = "late"  # nothing came for LIMIT_S
WRONG = "wrong"  # an answer, but not the one that is right
# and `status N`


class Broken(Exception):
    """A request came to nothing."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")

    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except ValueError:
            raise Broken(WRONG, f"not JSON: {self.text[:200]}") from None

    def succeeded(self) -> Answer:
        """Return the answer; raises Broken unless its status is 200."""
        if self.status != 200:
            raise Broken(f"status {self.status}", self.text[:500])
        return self


@dataclass
class Connection:
    """A connection, with one request at a time."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    is_reusable: bool = True

    @classmethod
    async def open(cls, port: int) -> Connection:
        try:
            async with asyncio.timeout(LIMIT_S):
                return cls(*await asyncio.open_connection("127.0.0.1", port))
        except TimeoutError:
            raise Broken(LATE, "no connection") from None
        except OSError as error:
            raise Broken(REFUSED, str(error)) from None

    async def ask(self, method: str, path: str, body: object = None) -> Answer:
        """Send a request and read its answer; raises Broken."""
        status, headers = await self._head(method, path, body)
        with ended_as(CUT):
            return Answer(status, headers, b"".join([piece async for piece in self._pieces(headers)]))

    async def lines(self, path: str, body: object) -> AsyncIterator[str]:
        """Send a request and yield the lines of its answer; raises Broken, also unless its status is 200."""
        status, headers = await self._head("POST", path, body)
        with ended_as(CUT):
            if status != 200:
                Answer(status, headers, b"".join([piece async for piece in self._pieces(headers)])).succeeded()
            rest = b""
            async for piece in self._pieces(headers):
                *whole, rest = (rest + piece).split(b"\n")
                for line in whole:
                    yield line.decode()
            yield rest.decode()

    def close(self) -> None:
        self.writer.close()

    async def _head(self, method: str, path: str, body: object) -> tuple[int, dict[str, str]]:
        data = b"" if body is None else json.dumps(body).encode()
        words = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with ended_as(UNHEARD):
            self.writer.write(f"{words}Content-Length: {len(data)}\r\n\r\n".encode() + data)
            async with asyncio.timeout(LIMIT_S):
                first = await self.reader.readexactly(1)
        with ended_as(CUT):
            async with asyncio.timeout(LIMIT_S):
                head = first + await self.reader.readuntil(b"\r\n\r\n")
        status_line, *rows = head.decode("latin-1").strip().split("\r\n")
        pairs = (row.partition(":") for row in rows)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        self.is_reusable = headers.get("connection", "").lower() != "close"
        return int(status_line.split()[1]), headers

    async def _pieces(self, headers: dict[str, str]) -> AsyncIterator[bytes]:
        """Yield the body as it comes. Raises what asyncio raises when it ends too soon."""
        if "content-length" in headers:
            async with asyncio.timeout(LIMIT_S):
                yield await self.reader.readexactly(int(headers["content-length"]))
        elif headers.get("transfer-encoding") == "chunked":
            while piece := await self._chunk():
                yield piece
        else:
            self.is_reusable = False
            while True:
                async with asyncio.timeout(LIMIT_S):
                    piece = await self.reader.read(65536)
                if not piece:
                    return
                yield piece

    async def _chunk(self) -> bytes:
        async with asyncio.timeout(LIMIT_S):
            size = int((await self.reader.readuntil(b"\r\n")).split(b";")[0], 16)
            return (await self.reader.readexactly(size + 2))[:-2]


@contextmanager
def ended_as(kind: str) -> Iterator[None]:
    """Give the ways in which a connection ends that name."""
    try:
        yield
    except TimeoutError:
        raise Broken(LATE, f"nothing for {LIMIT_S:g} s") from None
    except (asyncio.IncompleteReadError, OSError) as error:
        raise Broken(kind, str(error)) from None


async def ask(port: int, method: str, path: str, body: object = None) -> Answer:
    """Ask once, on a connection of its own; raises Broken."""
    connection = await Connection.open(port)
    try:
        return await connection.ask(method, path, body)
    finally:
        connection.close()


async def chat(port: int, model: str, **body: object) -> Answer:
    return await ask(port, "POST", "/v1/chat/completions", {"model": model, **body})


async def eventually(question: Any, what: str, limit_s: float = LIMIT_S) -> Any:
    """Ask until the answer is true and return it; for what gives no sign of itself. Raises AssertionError."""
    deadline = time.monotonic() + limit_s
    while not (answer := await question()):
        assert time.monotonic() < deadline, f"still not so after {limit_s:g} s: {what}"
        await asyncio.sleep(0.02)
    return answer
