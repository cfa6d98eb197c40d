"""aiohttp's way of an exchange: the request from a `Body`, the answer awaited; and what its handler returns then."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

from aiohttp import web

from llamaswapd.activity.record import NO_METADATA
from llamaswapd.errors import Cancelled, UpstreamError
from llamaswapd.http.body import Body
from llamaswapd.http.relay import LAST_CHUNK, Relay, chunk
from llamaswapd.http.server import connection_of
from llamaswapd.http.upstream import Upstream
from llamaswapd.http.wire import SWITCHING_PROTOCOLS, Framing, Shape

BEHIND_LIMIT = 64 * 1024  # bytes that a client may send before it knows that the server speaks its other protocol
WRITE_AT_ONCE = 256 * 1024  # bytes of a request; what a transport cannot send at once it copies again and again


class Awaited(Relay):
    """A relay whose end a handler of aiohttp awaits."""

    def __init__(self, request: web.BaseRequest, path: str, sent_path: str) -> None:
        self.connection = connection_of(request)
        self.connection.relay = self
        super().__init__("", request.method, path, request.headers, self.connection.peer)
        self.keep_alive = bool(request.keep_alive)
        self.sent_path = sent_path
        self.about = NO_METADATA
        self.is_plain = self.is_cut = self._has_own_stream = False
        self.request = self._table = self.framing = self._upstream = None
        self.answer = self.answer_kept = self.request_kept = self.lease = self.failure = self.budget = None
        self.response, self.error, self.type_of_error = b"", "", ""
        self.heads_bytes = sum(len(name) + len(value) for name, value in request.raw_headers)
        self._is_http11 = request.version >= (1, 1)
        self._writable = asyncio.Event()
        self._writable.set()
        self._over: asyncio.Future[UpstreamError | None] | None = None
        self._task: asyncio.Task[Any] | None = None  # which answers the request, while it can be cancelled
        self._is_cancelled = False
        self._behind = bytearray()  # what came behind the head of a request that offers another protocol

    async def exchange(self, upstream: Upstream, head: bytes, body: Body, *, upgrades: bool = False) -> None:
        """Send a request and pass its answer on, to its end.

        Raises UpstreamError when the answer does not come or breaks off, RequestError when the client's body does.
        """
        over = self._over = asyncio.get_running_loop().create_future()
        self._writable.set()  # a connection that was closed may have taken no more
        whole = body.is_complete and body.is_in_memory and body.size <= WRITE_AT_ONCE
        if self.request_kept is not None:
            self.request_kept.start_over()  # it may have been sent to a connection that was closed
        if whole:
            self._keep(body.in_memory())
        try:
            self.begin(upstream, head + body.in_memory() if whole else head, complete=whole, upgrades=upgrades)
            error = await (over if whole else self._upload(upstream, body, over))
        finally:
            self._over = None
            self.end()
        if error is not None:
            raise error

    def over(self, error: UpstreamError | None) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(error)

    @contextlib.contextmanager
    def cancellable(self) -> Iterator[None]:
        """Let `cancel` end what is done in this block; raises Cancelled then."""
        task = self._task = asyncio.current_task()
        assert task is not None
        try:
            yield
        except asyncio.CancelledError:
            if not self._is_cancelled:
                raise
            task.uncancel()
            raise Cancelled from None
        finally:
            self._task = None

    def cancel(self) -> None:
        if self._over is not None:
            if self._upstream is not None:
                self._upstream.fail(Cancelled())
        elif self._task is not None and not self._is_cancelled:
            self._is_cancelled = True
            self._task.cancel()

    def on_writable(self, writable: bool) -> None:
        if writable:
            self._writable.set()
            self.connection.resume_reading()
        else:
            self._writable.clear()
            if self.status == SWITCHING_PROTOCOLS:
                self.connection.pause_reading()

    def on_head(self, shape: Shape, digits: bytes, framing: Framing, data: bytes) -> None:
        super().on_head(shape, digits, framing, data)
        if self.status == SWITCHING_PROTOCOLS and self._upstream is not None:
            self._upstream.write(bytes(self._behind))
            self._behind.clear()
            self.connection.resume_reading()

    def send_on(self, data: bytes) -> None:
        """Pass on what the client sends in another protocol, once the server has agreed to speak it.

        A server that has not would take it for a request.
        """
        if self.status == SWITCHING_PROTOCOLS:
            if self._upstream is not None:
                self._upstream.write(data)
        elif not self.status:
            self._behind += data
            if len(self._behind) > BEHIND_LIMIT:
                self.connection.pause_reading()

    def end(self) -> None:
        upstream = self._upstream
        if upstream is not None and self.status == SWITCHING_PROTOCOLS:  # what the client has sent last counts too
            self._upstream = None
            upstream.close()
        super().end()

    def _keep(self, piece: bytes) -> None:
        if self.request_kept is not None:
            self.request_kept.add(piece)

    async def _upload(
        self, upstream: Upstream, body: Body, over: asyncio.Future[UpstreamError | None]
    ) -> UpstreamError | None:
        """Send the body while the answer may come already; a server need not wait for the end of a request."""
        sending = asyncio.create_task(self._send_body(upstream, body), name="upload")
        try:
            await asyncio.wait((sending, over), return_when=asyncio.FIRST_COMPLETED)
            if not over.done():
                sending.result()
            return await over
        finally:
            sending.cancel()
            await asyncio.wait((sending,))
            if not sending.cancelled():
                sending.exception()

    async def _send_body(self, upstream: Upstream, body: Body) -> None:
        in_chunks = not body.is_complete and body.length is None
        async for piece in body.stream():
            self._keep(piece)
            upstream.write(chunk(piece) if in_chunks else piece)
            await self._writable.wait()
        if in_chunks:
            upstream.write(LAST_CHUNK)
        upstream.end_request()


class Relayed(web.StreamResponse):
    """What the handler returns to aiohttp: an answer whose bytes have been written already."""

    def __init__(self, relay: Relay) -> None:
        super().__init__(status=relay.status)
        self._size = relay.size
        if not relay.keep_alive:
            self.force_close()

    @property
    def body_length(self) -> int:
        return self._size

    @property
    def keep_alive(self) -> bool:
        return bool(super().keep_alive is not False)

    async def prepare(self, request: web.BaseRequest) -> None:
        """Nothing is left to send."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to send."""
