"""The relay of aiohttp's way, as the two connections see it. What awaits its end is in `ordinary.py`."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from llamaswapd.activity.record import NO_METADATA
from llamaswapd.errors import Cancelled, UpstreamError
from llamaswapd.http.relay import Relay
from llamaswapd.http.server import connection_of
from llamaswapd.http.wire import SWITCHING_PROTOCOLS, Framing, Shape

BEHIND_LIMIT = 64 * 1024  # bytes that a client may send before it knows that the server speaks its other protocol


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
        self.writable = asyncio.Event()  # while the server takes more of the request
        self._over: asyncio.Future[UpstreamError | None] | None = None
        self.task: asyncio.Task[Any] | None = None  # which answers the request, while it can be cancelled
        self.is_cancelled = False
        self._behind = bytearray()  # what came behind the head of a request that offers another protocol

    def expect(self) -> asyncio.Future[UpstreamError | None]:
        """Return what is done when the answer is over, and has the error; before each `begin`, until `end`."""
        over = self._over = asyncio.get_running_loop().create_future()
        self.writable.set()  # a connection that was closed may have taken no more
        if self.request_kept is not None:
            self.request_kept.start_over()  # it may have been sent to a connection that was closed
        return over

    def over(self, error: UpstreamError | None) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(error)

    def cancel(self) -> None:
        if self._over is not None:
            if self._upstream is not None:
                self._upstream.fail(Cancelled())
        elif self.task is not None and not self.is_cancelled:
            self.is_cancelled = True
            self.task.cancel()

    def on_writable(self, writable: bool) -> None:
        if writable:
            self.writable.set()
            self.connection.resume_reading()
        else:
            self.writable.clear()
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
        self._over = None
        upstream = self._upstream
        if upstream is not None and self.status == SWITCHING_PROTOCOLS:  # what the client has sent last counts too
            self._upstream = None
            upstream.close()
        super().end()
