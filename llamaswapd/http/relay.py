"""One request's way through: the request to the model's server, its answer to the client.

The relay is the sink of the upstream connection and writes what arrives straight to the client's transport; no task, no
queue and no copy in between. Backpressure runs both ways. It does not know how the model was found or made ready.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from typing import TYPE_CHECKING

from aiohttp import web

from llamaswapd.errors import Error, UpstreamError, envelope
from llamaswapd.http.body import Body
from llamaswapd.http.server import Connection
from llamaswapd.http.upstream import Upstream
from llamaswapd.http.wire import Chunked, Framing, Head, UntilClose

if TYPE_CHECKING:
    from llamaswapd.observe import InflightEntry

# RFC 9110 section 7.6.1, and what is of one connection only by custom. Trailer stays: trailers are passed on.
HOP_BY_HOP = frozenset((
    b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"transfer-encoding", b"upgrade", b"te",
))  # fmt: skip

LAST_CHUNK = b"0\r\n\r\n"
WRITE_AT_ONCE = 256 * 1024  # bytes of a request; what a transport cannot send at once it copies again and again
LINGER_S = 10.0  # how long a client may take to read the end of an answer that breaks off

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\nX-Accel-Buffering: no\r\n"
)


class Relayed(web.StreamResponse):
    """What the handler returns to aiohttp: an answer whose bytes have been written already."""

    def __init__(self, status: int, size: int, *, keep_alive: bool) -> None:
        super().__init__(status=status)
        self._size = size
        if not keep_alive:
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


class Relay:
    """Carries one request and its answer.

    An answer reaches the client in one of three forms: as it came; without chunk framing, for a client of HTTP/1.0,
    whose connection then ends with it; or in chunks of our own, behind a stream that we have begun ourselves.
    """

    def __init__(self, request: web.BaseRequest, entry: InflightEntry | None = None) -> None:
        connection = request.protocol
        assert isinstance(connection, Connection)
        assert connection.transport is not None
        self.status = 0  # until the answer to the client has begun
        self.size = 0  # bytes of the answer's body so far, framing included
        self.is_event_stream = False
        self.keep_alive = bool(request.keep_alive)
        self._connection = connection
        self._transport = connection.transport
        self._entry = entry
        self._is_http11 = request.version >= (1, 1)
        self._is_head = request.method == "HEAD"
        self._rechunk = False
        self._framing: Framing | None = None
        self._upstream: Upstream | None = None
        self._ended: asyncio.Future[UpstreamError | None] | None = None
        self._upstream_writable: asyncio.Future[None] | None = None

    @property
    def has_begun(self) -> bool:
        """Whether the client has been sent some of the answer."""
        return self.status != 0

    def response(self) -> Relayed:
        return Relayed(self.status, self.size, keep_alive=self.keep_alive)

    # ---- the request

    async def exchange(self, upstream: Upstream, head: bytes, body: Body) -> None:
        """Send a request and pass its answer on, to its end.

        Raises UpstreamError when the answer does not come or breaks off, RequestError when the client's body does.
        """
        self._upstream = upstream
        self._ended = asyncio.get_running_loop().create_future()
        self._connection.on_writable = self._on_client_writable
        if not self._connection.is_writable:
            upstream.pause_reading()
        whole = body.is_complete and body.is_in_memory and body.size <= WRITE_AT_ONCE
        try:
            upstream.send(
                self,
                head + body.in_memory() if whole else head,
                is_head=self._is_head,
                unframe=self._rechunk or not self._is_http11,
                complete=whole,
            )
            error = await (self._ended if whole else self._upload(upstream, body, self._ended))
        finally:
            self._connection.on_writable = None
            if self._upstream is not None:
                self._upstream.abort()
                self._upstream = None
        if error is not None:
            raise error

    async def _upload(
        self, upstream: Upstream, body: Body, ended: asyncio.Future[UpstreamError | None]
    ) -> UpstreamError | None:
        """Send the body while the answer may come already; a server need not wait for the end of a request."""
        sending = asyncio.create_task(self._send_body(upstream, body), name="upload")
        try:
            await asyncio.wait((sending, ended), return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                sending.result()
            return await ended
        finally:
            sending.cancel()
            await asyncio.wait((sending,))
            if not sending.cancelled():
                sending.exception()

    async def _send_body(self, upstream: Upstream, body: Body) -> None:
        in_chunks = not body.is_complete and body.length is None
        async for piece in body.stream():
            upstream.write(_chunk(piece) if in_chunks else piece)
            if self._upstream_writable is not None:
                await self._upstream_writable
        if in_chunks:
            upstream.write(LAST_CHUNK)
        upstream.end_request()

    def on_writable(self, writable: bool) -> None:
        waiter, self._upstream_writable = self._upstream_writable, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        if not writable:
            self._upstream_writable = asyncio.get_running_loop().create_future()

    # ---- the answer

    def _on_client_writable(self, writable: bool) -> None:
        if self._upstream is None:
            return
        if writable:
            self._upstream.resume_reading()
        else:
            self._upstream.pause_reading()

    def on_head(self, head: Head, framing: Framing, data: bytes) -> None:
        self._framing = framing
        if self._entry is not None:
            self._entry.answered(head.status, head)
        if self.has_begun:  # our own stream: status and headers of the answer are lost
            if data:
                self.on_data(data)
            return
        self.status = head.status
        self._write(self._answer_head(head, framing) + data, len(data))

    def on_data(self, data: bytes) -> None:
        self._write(_chunk(data) if self._rechunk else data, len(data))

    def on_end(self) -> None:
        self.end_stream()
        self._settle(None)

    def on_failure(self, error: UpstreamError) -> None:
        self._settle(error)

    def _settle(self, error: UpstreamError | None) -> None:
        self._upstream = None
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(error)

    def _write(self, data: bytes, size: int) -> None:
        self.size += size
        if self._entry is not None:
            self._entry.bytes(size)
        if not self._transport.is_closing():  # uvloop's raises then
            self._transport.write(data)

    def _answer_head(self, head: Head, framing: Framing) -> bytes:
        """The head as the client gets it: without what concerns the model's connection, with what concerns its own."""
        listed = head.names_in(b"connection")
        lines = [b"HTTP/1.1" + head.status_line[8:]]
        chunked = isinstance(framing, Chunked)
        self.is_event_stream = any(b"text/event-stream" in kind.lower() for kind in head.values(b"content-type"))
        for field in head.fields:
            name = field.name
            if name in HOP_BY_HOP or name in listed:
                continue
            if (chunked and name == b"content-length") or (self.is_event_stream and name == b"x-accel-buffering"):
                continue
            lines.append(field.line)
        if self.is_event_stream:
            lines.append(b"X-Accel-Buffering: no")  # nginx in front of us must not collect events
        if chunked and self._is_http11:
            lines.append(b"Transfer-Encoding: chunked")
        if isinstance(framing, UntilClose) or not self._is_http11:
            self.keep_alive = False
        if not self.keep_alive:
            lines.append(b"Connection: close")
        lines.append(b"\r\n")
        return b"\r\n".join(lines)

    # ---- a stream of our own

    def begin_stream(self) -> None:
        """Begin an event stream before there is an answer; the answer's body will follow in it."""
        self.status = 200
        self.is_event_stream = True
        self._rechunk = self._is_http11
        if self._is_http11:
            framing = b"Transfer-Encoding: chunked\r\n"
        else:
            self.keep_alive = False
            framing = b""
        close = b"" if self.keep_alive else b"Connection: close\r\n"
        self._write(STREAM_HEAD + framing + close + b"\r\n", 0)

    def send_event(self, data: object) -> None:
        """Send an event of our own into the stream that we have begun."""
        self._write_content(_event(data))

    def end_stream(self) -> None:
        """End the stream that we have begun, cleanly."""
        if self._rechunk:
            self._write(LAST_CHUNK, 0)

    def break_off(self, error: Error) -> None:
        """Let the client see that the answer is cut: by an error event where there can be one, and no clean end."""
        self.keep_alive = False
        if self.is_event_stream and self._is_between_chunks():
            # The blank line ends what the model had begun of an event, and means nothing if there was nothing.
            self._write_content(b"\n\n" + _event(envelope(error.status, str(error))))
        elif isinstance(self._framing, UntilClose) or not self._is_http11:
            _reset_on_close(self._transport)  # else the end of the connection would look like the end of the answer
        # Not abort(): what was written is to reach the client. One that does not read must not stay for ever.
        self._transport.close()
        asyncio.get_running_loop().call_later(LINGER_S, self._transport.abort)

    def _is_between_chunks(self) -> bool:
        """Whether something of ours can be put into the body here."""
        if self._rechunk or not self._is_http11:
            return True
        if isinstance(self._framing, Chunked):
            return self._framing.between_chunks
        return isinstance(self._framing, UntilClose)

    def _write_content(self, content: bytes) -> None:
        in_chunks = self._rechunk or (self._is_http11 and isinstance(self._framing, Chunked))
        self._write(_chunk(content) if in_chunks else content, len(content))


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(data: object) -> bytes:
    return b"data: %b\n\n" % json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode(errors="replace")


def _reset_on_close(transport: asyncio.Transport) -> None:
    """Make the connection end with a reset instead of an orderly end (socket(7), SO_LINGER)."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
