"""aiohttp's way of an exchange: the request from a `Body`, the answer awaited; and what its handler returns then."""

from __future__ import annotations

import asyncio

from aiohttp import web

from llamaswapd.errors import UpstreamError
from llamaswapd.http.body import Body
from llamaswapd.http.relay import LAST_CHUNK, Relay, chunk
from llamaswapd.http.server import connection_of
from llamaswapd.http.upstream import Upstream

WRITE_AT_ONCE = 256 * 1024  # bytes of a request; what a transport cannot send at once it copies again and again


class Awaited(Relay):
    """A relay whose end a handler of aiohttp awaits."""

    def __init__(self, request: web.BaseRequest, model_id: str, path: str) -> None:
        self.connection = connection_of(request)
        super().__init__(model_id, request.method, path, request.headers, self.connection.peer)
        self.keep_alive = bool(request.keep_alive)
        self._is_http11 = request.version >= (1, 1)
        self._has_own_stream = False
        self._table = self._answer = self._framing = self._upstream = None
        self._writable = asyncio.Event()
        self._writable.set()

    async def exchange(self, upstream: Upstream, head: bytes, body: Body) -> None:
        """Send a request and pass its answer on, to its end.

        Raises UpstreamError when the answer does not come or breaks off, RequestError when the client's body does.
        """
        self._over: asyncio.Future[UpstreamError | None] = asyncio.get_running_loop().create_future()
        whole = body.is_complete and body.is_in_memory and body.size <= WRITE_AT_ONCE
        try:
            self.begin(upstream, head + body.in_memory() if whole else head, complete=whole)
            error = await (self._over if whole else self._upload(upstream, body))
        finally:
            self.end()
        if error is not None:
            raise error

    def over(self, error: UpstreamError | None) -> None:
        if not self._over.done():
            self._over.set_result(error)

    def on_writable(self, writable: bool) -> None:
        if writable:
            self._writable.set()
        else:
            self._writable.clear()

    async def _upload(self, upstream: Upstream, body: Body) -> UpstreamError | None:
        """Send the body while the answer may come already; a server need not wait for the end of a request."""
        sending = asyncio.create_task(self._send_body(upstream, body), name="upload")
        try:
            await asyncio.wait((sending, self._over), return_when=asyncio.FIRST_COMPLETED)
            if not self._over.done():
                sending.result()
            return await self._over
        finally:
            sending.cancel()
            await asyncio.wait((sending,))
            if not sending.cancelled():
                sending.exception()

    async def _send_body(self, upstream: Upstream, body: Body) -> None:
        in_chunks = not body.is_complete and body.length is None
        async for piece in body.stream():
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
