"""A request's body: what has been read of it, and the rest.

The model's name stands somewhere in it, so some of it is read before it is known where it goes. What has been read is
kept, in memory up to a bound and then in an unnamed file, until it can be sent.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import IO

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from llamaswapd.errors import Error, RequestError, RequestTimeout, RequestTooLarge

MEMORY_LIMIT = 8 * 1024 * 1024  # bytes of one body kept in memory: a question with some pictures in it
SPOOL_PIECE = 1024 * 1024  # bytes of a larger one that are written and read at once
KEEP_LIMIT = 4 * 1024**3  # bytes of one body kept at all: one without an end must not fill the disk
READ_TIMEOUT_S = 60.0  # how long a client may pause in the middle of its body

# file-hierarchy(7): /var/tmp is for what is too large for a /tmp in memory.
SPOOL_DIR = os.environ.get("TMPDIR") or "/var/tmp"


class Body:
    """One request's body. Use as a context manager: it may hold a file.

    `length` is what the client announced, None if it sends chunks; `size` what has been kept so far.
    """

    def __init__(self, request: web.BaseRequest) -> None:
        self.length = request.content_length if request.body_exists else 0
        self.size = 0
        self._content = request.content
        self._pieces: list[bytes] = []
        self._in_memory = 0
        self._spool: IO[bytes] | None = None
        self._splice: tuple[int, int, bytes] | None = None  # of what is in the file
        self._at_end = self.length == 0

    def __enter__(self) -> Body:
        return self

    def __exit__(self, *_: object) -> None:
        if self._spool is not None:
            with suppress(OSError):  # of a full disk, which has been told by then
                self._spool.close()

    @property
    def is_complete(self) -> bool:
        """Whether all of it has been read and kept."""
        return self._at_end

    @property
    def is_in_memory(self) -> bool:
        return self._spool is None

    @property
    def length_to_send(self) -> int | None:
        """How many bytes `stream` yields; None when that is not known yet."""
        return self.size if self._at_end else self.length

    def in_memory(self) -> bytes:
        """What was kept, if no part of it had to go into a file."""
        assert self._spool is None
        if len(self._pieces) != 1:
            self._pieces = [b"".join(self._pieces)]
        return self._pieces[0]

    async def whole(self) -> bytes:
        """Read it to its end and return it, however large."""
        await self.finish()
        if self._spool is None:
            return self.in_memory()
        if self._pieces:
            await self._spill()
        return await asyncio.to_thread(_content, self._spool)  # at once: putting it together would take twice as much

    async def replace(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Put another body in the place of a complete one."""
        assert self._at_end
        if self._spool is not None:
            self._spool.close()
            self._spool = None
        self.size = sum(map(len, pieces))
        if self.size > MEMORY_LIMIT:
            await self._spill(pieces)
        else:
            self._pieces, self._in_memory = [b"".join(pieces)], self.size

    def splice(self, start: int, end: int, data: bytes) -> None:
        """Put `data` in the place of some bytes of what was kept. Once, and before any of it is streamed."""
        if self._spool is None:
            kept = self.in_memory()
            self._pieces = [kept[:start] + data + kept[end:]]
            self._in_memory = len(self._pieces[0])
        else:
            self._splice = (start, end, data)
        added = len(data) - (end - start)
        self.size += added
        if self.length is not None:
            self.length += added

    async def read_more(self) -> bytes:
        """Read and keep the next piece; return it, b"" at the end. Raises RequestTimeout, RequestTooLarge."""
        piece = await self._next()
        if piece:
            self.size += len(piece)
            self._pieces.append(piece)
            self._in_memory += len(piece)
            if self.size > KEEP_LIMIT:
                raise RequestTooLarge(
                    f"the request's body has more than {KEEP_LIMIT} bytes, and its model is not known or not ready yet"
                )
            if self._in_memory > (MEMORY_LIMIT if self._spool is None else SPOOL_PIECE):
                await self._spill()
        return piece

    async def finish(self) -> None:
        """Read and keep it to its end."""
        while await self.read_more():
            pass

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield all of it: what was kept, then what still comes, which is not kept. A complete one may be had again."""
        at = 0
        if self._spool is not None:
            await asyncio.to_thread(self._spool.seek, 0)
            while piece := await asyncio.to_thread(self._spool.read, SPOOL_PIECE):
                yield self._spliced(piece, at)
                at += len(piece)
        for piece in self._pieces:
            yield self._spliced(piece, at)
            at += len(piece)
        while piece := await self._next():
            yield piece

    def _spliced(self, piece: bytes, at: int) -> bytes:
        """What goes out for a kept piece that begins at a place of the body."""
        if self._splice is None:
            return piece
        start, end, data = self._splice
        first, last = max(start - at, 0), end - at
        if first >= len(piece) or last <= 0:
            return piece
        return piece[:first] + (data if start >= at else b"") + piece[last:]

    async def _next(self) -> bytes:
        if self._at_end:
            return b""
        try:
            piece = self._content.read_nowait()
            if not piece and not self._content.at_eof():
                async with asyncio.timeout(READ_TIMEOUT_S):
                    piece = await self._content.readany()
        except TimeoutError:
            raise RequestTimeout(f"no more of the request's body came for {READ_TIMEOUT_S:g} s") from None
        except (web.RequestPayloadError, HttpProcessingError) as error:
            raise RequestError(f"could not read request body: {error}") from error
        self._at_end = self._content.at_eof()
        return piece

    async def _spill(self, pieces: Sequence[bytes | memoryview] = ()) -> None:
        """Move what is kept into the file, or put `pieces` there in its place."""
        try:
            if self._spool is None:
                self._spool = tempfile.TemporaryFile(dir=SPOOL_DIR)  # noqa: SIM115, closed by __exit__
            await asyncio.to_thread(_write, self._spool, pieces or self._pieces)
        except OSError as error:
            raise Error(f"the request's body cannot be kept in {SPOOL_DIR}: {error.strerror}") from error
        self._pieces.clear()
        self._in_memory = 0


def _write(file: IO[bytes], pieces: Sequence[bytes | memoryview]) -> None:
    file.writelines(pieces)
    file.flush()  # or a full disk would be told by whatever comes next


def _content(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()
