"""The listening side: one `Connection` per client, on top of aiohttp's own.

aiohttp reads requests and runs handlers. Added here is what a relay needs to know of its client (can it take more, is
it still there), the limits that keep strangers from holding connections, and error answers in our own form.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from llamaswapd.errors import envelope

HEAD_TIMEOUT_S = 30.0  # a new connection must have sent a whole request head by then
KEEPALIVE_S = 75.0  # an idle connection is kept this long; also bounds the heads after the first
HEADER_LIMIT = 64 * 1024  # bytes of the request line and of each header field
HEAD_LIMIT = 256 * 1024  # bytes of a whole request head; aiohttp 3.8 takes any number of fields
PIPELINE_LIMIT = 64  # requests that wait on one connection for the answers before theirs; aiohttp 3.8 takes any number
LINGER_S = 2.0  # how long a refused client may go on sending before its connection is closed
BACKLOG = 1024

log = logging.getLogger(__name__)


class Connection(web.RequestHandler):
    """One client's connection.

    While a request is handled, its handler may set `on_gone`, called when the client leaves, and `on_writable`, called
    with False when the client takes no more bytes for now and with True when it does again. aiohttp itself tells
    handlers neither in all its versions.
    """

    __slots__ = ("_body", "_head_bytes", "_head_timer", "_refused", "is_writable", "on_gone", "on_writable")

    def __init__(self, manager: web.Server, *, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        super().__init__(manager, loop=loop, **options)
        self.is_writable = True
        self.on_gone: Callable[[], object] | None = None
        self.on_writable: Callable[[bool], object] | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._refused: asyncio.Future[None] | None = None
        self._body: StreamReader = EMPTY_PAYLOAD  # of the newest request
        self._head_bytes = 0  # of a head that is not complete

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._head_timer = self._loop.call_later(HEAD_TIMEOUT_S, self._drop_slow_head)
        super().connection_made(transport)  # sets TCP_NODELAY

    def data_received(self, data: bytes) -> None:
        if self._refused is not None or self._head_bytes > HEAD_LIMIT:
            return
        requests, is_of_body = self._request_count, not self._body.is_eof() or self._payload_parser is not None
        super().data_received(data)
        if self._request_count != requests:
            self._body = self._messages[-1][1]
            self._head_bytes = 0
            self._cancel_head_timer()
            if len(self._messages) > PIPELINE_LIMIT:
                log.debug("Dropped a client that sent %d requests at once", len(self._messages))
                self.force_close()
        elif not is_of_body:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_LIMIT:
                super().data_received(b"\r\n\0\r\n")  # not HTTP: has aiohttp call `handle_error` when it is its turn

    @property
    def has_upgraded(self) -> bool:
        """Whether aiohttp has stopped reading HTTP because the request at hand offers another protocol.

        Up to 3.11 it does so before it reads the request's body, which is lost then; later versions read that first.
        """
        return bool(getattr(self, "_upgrade", False))

    def forget_rest(self) -> None:
        """Drop what aiohttp holds back to read it as requests after the one at hand."""
        self._message_tail = b""

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _drop_slow_head(self) -> None:
        self._head_timer = None
        log.debug("Dropped a client that sent no request within %g s", HEAD_TIMEOUT_S)
        self.force_close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.is_writable = False
        if self.on_writable is not None:
            self.on_writable(False)

    def resume_writing(self) -> None:
        super().resume_writing()
        self.is_writable = True
        if self.on_writable is not None:
            self.on_writable(True)

    def eof_received(self) -> None:
        # A client that closes its sending side has left, as net/http sees it too; the transport closes after this.
        self._leave()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._cancel_head_timer()
        self._leave()
        task = self._task_handler
        super().connection_lost(exc)
        if task is not None and self._current_request is None:
            task.cancel()  # may be reading the rest of a body, for seconds; nothing will come

    def _leave(self) -> None:
        if self._refused is not None and not self._refused.done():
            self._refused.set_result(None)
        on_gone, self.on_gone = self.on_gone, None
        if on_gone is not None:
            on_gone()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is not HTTP, or a handler that failed, with the error envelope; the connection ends with it."""
        if isinstance(exc, HttpProcessingError):
            status = 431 if isinstance(exc, LineTooLong) else status
            message = _first_line(exc.message) or "bad request"
            if self._head_bytes > HEAD_LIMIT:
                status, message = 431, f"request head of more than {HEAD_LIMIT} bytes"
        elif exc is not None:
            log.error("A request handler failed", exc_info=exc)
        if request.writer.output_size > 0:  # the answer has begun: its end can only be made visible
            raise ConnectionError("answer is cut")
        gone = self._refused = self._loop.create_future()
        answer = _Refusal(self, gone, status, message or "internal error")
        answer.force_close()
        return answer


class _Refusal(web.Response):
    """An error answer to a client that may still be sending.

    Closing a socket that has unread bytes resets the connection, and the client would see that instead of the answer.
    So only our side is closed, and what comes is dropped until the client has left, for a while.
    """

    def __init__(self, connection: Connection, gone: asyncio.Future[None], status: int, message: str) -> None:
        body = json.dumps(envelope(status, message)).encode()
        super().__init__(status=status, body=body, content_type="application/json")
        self._connection = connection
        self._gone = gone

    async def write_eof(self, data: bytes = b"") -> None:
        await super().write_eof(data)
        transport = self._connection.transport
        if transport is not None and transport.can_write_eof():  # TLS cannot
            transport.write_eof()
        await asyncio.wait([self._gone], timeout=LINGER_S)


def _first_line(message: str) -> str:
    """The first line of aiohttp's message; the others draw the offending bytes."""
    return message.partition("\n")[0].rstrip(":. ")[:200]


@contextmanager
def cancelled_if_gone(request: web.BaseRequest) -> Iterator[None]:
    """Cancel the current task when the request's client leaves before the block has ended."""
    connection, task = request.protocol, asyncio.current_task()
    if not isinstance(connection, Connection) or task is None:
        yield
        return
    if connection.transport is None:
        raise asyncio.CancelledError
    connection.on_gone = task.cancel
    try:
        yield
    finally:
        connection.on_gone = None


def _last_if_chunked(make: Callable[..., web.BaseRequest], message: Any, *context: Any) -> web.BaseRequest:
    """Make a request; close its connection after it if its body comes in chunks.

    aiohttp takes a trailer of such a body for a header of the next request (seen in 3.8.4 and 3.14.5), whose length or
    key it then may change.
    """
    return make(message._replace(should_close=True) if message.chunked else message, *context)


async def serve(
    runner: web.AppRunner, sockets: Sequence[socket.socket], tls: ssl.SSLContext | None = None
) -> list[asyncio.Server]:
    """Accept connections on bound sockets for an application that has been set up; the caller closes the servers."""
    manager, loop = runner.server, asyncio.get_running_loop()
    assert manager is not None
    manager.request_factory = partial(_last_if_chunked, manager.request_factory)

    def connect() -> Connection:
        return Connection(
            manager,
            loop=loop,
            keepalive_timeout=KEEPALIVE_S,
            access_log=None,
            max_line_size=HEADER_LIMIT,
            max_field_size=HEADER_LIMIT,
            auto_decompress=False,  # bodies reach the models as they came
        )

    return [await loop.create_server(connect, sock=sock, ssl=tls, backlog=BACKLOG) for sock in sockets]
