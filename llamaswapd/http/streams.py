"""Answers without an end: they go on until the client leaves or the daemon stops, and then say so."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any

from aiohttp import web

from llamaswapd.errors import Error
from llamaswapd.http.server import connection_of

LAST_WORD_S = 1.0  # how long a reader may hold up the end of its stream

log = logging.getLogger(__name__)

Writer = Callable[[web.StreamResponse], Coroutine[Any, Any, None]]


class Streams:
    """Runs the open streams and ends them all together."""

    def __init__(self) -> None:
        self._closing = asyncio.Event()
        self._why = ""
        self._others: set[Callable[[], object]] = set()

    def close(self, why: str) -> None:
        """End all streams, and those to come as soon as they begin, telling their readers; may be called twice."""
        self._why = self._why or why
        self._closing.set()
        for end in tuple(self._others):
            end()

    @contextlib.contextmanager
    def including(self, end: Callable[[], object]) -> Iterator[None]:
        """Take what is done in the block for a stream too: `end` ends it."""
        self._others.add(end)
        try:
            yield
        finally:
            self._others.discard(end)

    async def run(
        self,
        request: web.Request,
        response: web.StreamResponse,
        *writers: Writer,
        last_word: Callable[[str], bytes],
    ) -> web.StreamResponse:
        """Send the head at once, then let the writers work, until one fails, the client leaves or the daemon stops.

        Several may write to the one response, if each piece is whole in itself. `last_word` is what a reader is sent
        when the daemon stops, for a reason; it may be nothing.
        """
        if request.method == "HEAD":  # aiohttp 3.8 would put the end of a chunked body behind a stream's head
            return web.Response(headers=response.headers)
        await response.prepare(request)
        try:
            async with asyncio.TaskGroup() as group:
                for writer in writers:
                    group.create_task(writer(response))
                group.create_task(self._until_closed())
                group.create_task(until_client_leaves(request))
        except* _Closing:
            await self._say(request, response, last_word(self._why))
        except* ConnectionError:
            pass  # the ordinary end
        except* Error as failures:
            log.warning("stream %s ended: %s", request.rel_url.raw_path, failures.exceptions[0])
        return response

    async def _until_closed(self) -> None:
        await self._closing.wait()
        raise _Closing

    async def _say(self, request: web.Request, response: web.StreamResponse, last_word: bytes) -> None:
        """Send the last piece and the end; a reader that takes neither is not waited for."""
        connection = connection_of(request)
        # Not asyncio.timeout: up to Python 3.12 a task whose task group has failed counts as cancelled from then on.
        # And aiohttp, once a write has been cancelled, cancels those that have to wait.
        saying = asyncio.create_task(_end(response, last_word), name="end of a stream")
        try:
            await asyncio.wait((saying,), timeout=LAST_WORD_S)
        finally:
            saying.cancel()
        connection.deadline = connection.now + LAST_WORD_S  # for what is still in buffers
        connection.hang_up()


async def _end(response: web.StreamResponse, last_word: bytes) -> None:
    with contextlib.suppress(ConnectionError):
        if last_word:
            await response.write(last_word)
        await response.write_eof()


class _Closing(Exception):
    """The daemon stops."""


async def until_client_leaves(request: web.Request) -> None:
    """Raise once the client has closed its connection."""
    connection, gone = connection_of(request), asyncio.Event()
    connection.on_gone = gone.set
    try:
        if not (connection.has_left or connection.transport.is_closing()):
            await gone.wait()
    finally:
        connection.on_gone = None
    raise ConnectionResetError("the client left")


def stream_response(content_type: str, headers: Mapping[str, str] | None = None) -> web.StreamResponse:
    """Return an answer whose pieces neither proxies hold back nor browsers interpret."""
    head = {"Content-Type": content_type, "X-Accel-Buffering": "no", "X-Content-Type-Options": "nosniff"}
    return web.StreamResponse(headers={**head, **(headers or {})})
