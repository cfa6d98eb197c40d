"""aiohttp's way of an exchange: the request from a `Body`, the answer awaited; and what its handler returns then."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from aiohttp import web

from llamaswapd.errors import Cancelled, UpstreamError
from llamaswapd.http.awaited import Awaited
from llamaswapd.http.body import Body
from llamaswapd.http.relay import LAST_CHUNK, Relay, chunk
from llamaswapd.http.upstream import Upstream

WRITE_AT_ONCE = 256 * 1024  # bytes of a request; what a transport cannot send at once it copies again and again


async def exchange(relay: Awaited, upstream: Upstream, head: bytes, body: Body, *, upgrades: bool = False) -> None:
    """Send a request and pass its answer on, to its end.

    Raises UpstreamError when the answer does not come or breaks off, RequestError when the client's body does.
    """
    over = relay.expect()
    whole = body.is_complete and body.is_in_memory and body.size <= WRITE_AT_ONCE
    if whole:
        _keep(relay, body.in_memory())
    try:
        relay.begin(upstream, head + body.in_memory() if whole else head, complete=whole, upgrades=upgrades)
        error = await (over if whole else _upload(relay, upstream, body, over))
    finally:
        relay.end()
    if error is not None:
        raise error


async def _upload(
    relay: Awaited, upstream: Upstream, body: Body, over: asyncio.Future[UpstreamError | None]
) -> UpstreamError | None:
    """Send the body while the answer may come already; a server need not wait for the end of a request."""
    sending = asyncio.create_task(_send_body(relay, upstream, body), name="upload")
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


async def _send_body(relay: Awaited, upstream: Upstream, body: Body) -> None:
    in_chunks = not body.is_complete and body.length is None
    async for piece in body.stream():
        _keep(relay, piece)
        upstream.write(chunk(piece) if in_chunks else piece)
        await relay.writable.wait()
    if in_chunks:
        upstream.write(LAST_CHUNK)
    upstream.end_request()


def _keep(relay: Awaited, piece: bytes) -> None:
    if relay.request_kept is not None:
        relay.request_kept.add(piece)


@contextlib.contextmanager
def cancellable(relay: Awaited) -> Iterator[None]:
    """Let the relay's `cancel` end what is done in this block; raises Cancelled then."""
    task = relay.task = asyncio.current_task()
    assert task is not None
    try:
        yield
    except asyncio.CancelledError:
        if not relay.is_cancelled:
            raise
        task.uncancel()
        raise Cancelled from None
    finally:
        relay.task = None


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
