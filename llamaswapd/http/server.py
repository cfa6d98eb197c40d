"""The listening side: sockets, the connections of clients, and aiohttp's part in them.

aiohttp reads requests and runs handlers where `Connection` hands it bytes. Added here are the limits that keep
strangers from holding what is not theirs, and error answers in our own form.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakSet

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from llamaswapd.errors import Error, PathTooDeep, envelope
from llamaswapd.http.connection import LAST_REQUEST_S, LOOK_EVERY_S, Connection
from llamaswapd.http.express import Express
from llamaswapd.http.link import Outbox

HEADER_LIMIT = 64 * 1024  # bytes of the request line and of each header field
SLASHES = 1024  # in a path; a router takes time with the square of their number
HEAD_LIMIT = 256 * 1024  # bytes of a whole request head; aiohttp 3.8 takes any number of fields
PIPELINE_LIMIT = 64  # requests that wait on one connection for the answers before theirs; aiohttp 3.8 takes any number
LINGER_S = 2.0  # how long a refused client may go on sending before its connection is closed
BACKLOG = 4096
NEVER_S = 1e9  # aiohttp closes no idle connection: it may be busy on the express way

log = logging.getLogger(__name__)


class Listener(NamedTuple):
    """A bound stream socket, TCP or UNIX, and what is spoken on it."""

    socket: socket.socket
    tls: ssl.SSLContext | None = None  # None: plain HTTP


class Handler(web.RequestHandler):
    """aiohttp's part of one connection, made when it has the first request of it."""

    __slots__ = (
        "_body", "_head_bytes", "_is_broken", "_next_message", "_refused", "_requests_seen", "connection", "refusal",
    )  # fmt: skip

    def __init__(self, connection: Connection, manager: web.Server, loop: asyncio.AbstractEventLoop) -> None:
        self.connection = connection
        self._requests_seen = 0
        super().__init__(
            manager,
            loop=loop,
            keepalive_timeout=NEVER_S,
            access_log=None,  # type: ignore[arg-type]
            max_line_size=HEADER_LIMIT,
            max_field_size=HEADER_LIMIT,
            auto_decompress=False,  # bodies reach the models as they came
        )
        self._refused: asyncio.Future[None] | None = None
        self.refusal: Error | None = None  # what a request is answered without a further look
        self._body: StreamReader = EMPTY_PAYLOAD  # of the newest request
        self._is_broken = False  # the newest request's body has ended in what is no chunk
        self._head_bytes = 0  # of a head that is not complete

    # aiohttp makes this future, and nothing else, when it has answered everything it has.
    @property
    def _waiter(self) -> asyncio.Future[None] | None:
        return self._next_message

    @_waiter.setter
    def _waiter(self, waiter: asyncio.Future[None] | None) -> None:
        self._next_message = waiter
        if waiter is not None:
            self._loop.call_soon(self.connection.handler_is_idle)

    def read_on(self) -> None:
        """Read from the client again if that was paused for a body that nobody has read (3.8 leaves it so)."""
        if getattr(self, "_reading_paused", False):
            self.resume_reading()

    def has_been_at_work(self) -> bool:
        """Whether it is answering, or has been given a request since it was last asked."""
        seen, self._requests_seen = self._requests_seen, self._request_count
        return not self.is_idle or seen != self._request_count

    @property
    def has_been_asked(self) -> bool:
        """Whether it has ever been given a whole head."""
        return bool(self._request_count)

    @property
    def has_partial_head(self) -> bool:
        """Whether a head has begun to come; one that began in the same piece as the request before it is not seen."""
        return self._head_bytes > 0

    @property
    def is_idle(self) -> bool:
        """Whether everything it was given is answered."""
        waiter = self._next_message
        return waiter is not None and not waiter.done() and not self._messages and self._payload_parser is None

    def data_received(self, data: bytes) -> None:
        if self._refused is not None or self._is_broken or self._head_bytes > HEAD_LIMIT:
            return
        requests, body = self._request_count, self._body
        is_of_body = not body.is_eof() or self._payload_parser is not None
        super().data_received(data)
        if self._request_count != requests:
            newest, self._body = self._messages[-1]
            error = getattr(newest, "exc", None)  # of what aiohttp cannot parse
            if error is not None and not body.is_eof():
                self._is_broken = True
                self._break(body, error)
            self._head_bytes = 0
            if len(self._messages) > PIPELINE_LIMIT:
                log.debug("Dropped a client that sent %d requests at once", len(self._messages))
                self.force_close()
        elif not is_of_body:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_LIMIT:
                super().data_received(b"\r\n\0\r\n")  # not HTTP: has aiohttp call `handle_error` when it is its turn

    def _break(self, body: StreamReader, error: HttpProcessingError) -> None:
        """Tell whoever reads a body that the rest of it cannot be read; aiohttp lets them wait (3.14.5)."""
        # Where nobody answers but somebody waits, an answer has been given and aiohttp drops the rest of the body.
        is_dropped = self._current_request is None and body._waiter is not None
        if not is_dropped and body.exception() is None:
            body.set_exception(web.RequestPayloadError(_first_line(error.message)))
        body.feed_eof()

    @property
    def has_upgraded(self) -> bool:
        """Whether aiohttp has stopped reading HTTP because the request at hand offers another protocol.

        Up to 3.11 it does so before it reads the request's body, which is lost then; later versions read that first.
        """
        return bool(getattr(self, "_upgrade", False))

    def forget_rest(self) -> None:
        """Drop what aiohttp holds back to read it as requests after the one at hand."""
        self._message_tail = b""

    def connection_lost(self, exc: BaseException | None) -> None:
        task = self._task_handler
        super().connection_lost(exc)
        if task is not None and self._current_request is None:
            task.cancel()  # may be reading the rest of a body, for seconds; nothing will come

    def end_of_input(self) -> None:
        """Nothing more comes from the client, not even the rest of a body; aiohttp would wait for that."""
        if not self._body.is_eof():
            self._break(self._body, HttpProcessingError(message="it ends too early"))

    def leave(self) -> None:
        """The client has left."""
        if self._refused is not None and not self._refused.done():
            self._refused.set_result(None)

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
        elif isinstance(exc, ConnectionError) and self.connection.transport.is_closing():
            raise exc  # it had something to say to a client that has left
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

    def __init__(self, handler: Handler, gone: asyncio.Future[None], status: int, message: str) -> None:
        body = json.dumps(envelope(status, message)).encode()
        super().__init__(status=status, body=body, content_type="application/json")
        self._handler = handler
        self._gone = gone

    async def _prepare_headers(self) -> None:
        await super()._prepare_headers()
        self.headers.pop("Server", None)  # as all answers: it says which library this is

    async def write_eof(self, data: bytes = b"") -> None:
        await super().write_eof(data)
        transport = self._handler.transport
        if transport is not None and transport.can_write_eof():  # TLS cannot
            transport.write_eof()
        await asyncio.wait([self._gone], timeout=LINGER_S)


def _first_line(message: str) -> str:
    """The first line of aiohttp's message; the others draw the offending bytes."""
    return message.partition("\n")[0].rstrip(":. ")[:200]


def connection_of(request: web.BaseRequest) -> Connection:
    """Return the connection that a request came on."""
    handler = request.protocol
    assert isinstance(handler, Handler)
    return handler.connection


@contextmanager
def cancelled_if_gone(request: web.BaseRequest) -> Iterator[None]:
    """Cancel the current task when the request's client leaves before the block has ended."""
    connection, task = connection_of(request), asyncio.current_task()
    assert task is not None
    if connection.has_left or connection.transport.is_closing():
        raise asyncio.CancelledError
    connection.on_gone = task.cancel
    try:
        yield
    finally:
        connection.on_gone = None


def _fit_for_aiohttp(
    make: Callable[..., web.BaseRequest], message: Any, payload: StreamReader, handler: Handler, *context: Any
) -> web.BaseRequest:
    """Make a request, of a message that is changed where aiohttp would stumble over it.

    It takes a trailer of a body in chunks for a header of the next request (seen in 3.8.4 and 3.14.5), whose length or
    key it then may change: the connection is closed after it. And it fails to quote an Expect header that is no text.
    """
    if message.chunked:
        message = message._replace(should_close=True)
    if not message.headers.get("Expect", "").isascii():
        headers = message.headers.copy()
        headers["Expect"] = ascii(headers["Expect"])
        message = message._replace(headers=headers)
    path, handler.refusal = message.url.raw_path, None
    depth = path.count("/") + path.count("%2F") + path.count("%2f")
    if depth > SLASHES:  # aiohttp looks up each of its beginnings, before anybody is asked
        message = message._replace(url=message.url.with_path(path[:SLASHES], encoded=True))
        handler.refusal = PathTooDeep(f"the path has {depth} slashes; more than {SLASHES} are not looked at")
    return make(message, payload, handler, *context)


class Arrival:
    """Stands for a connection while TLS is being negotiated: nobody tells if that comes to nothing, but this goes then.

    Not the connection itself, which may be compiled, and cannot be referred to weakly then.
    """


class Site:
    """The listening sockets of an application that has been set up, and the connections that came of them."""

    def __init__(self, runner: web.AppRunner, express: Express) -> None:
        self.express = express
        self.is_draining = False
        self.failure: Error | None = None
        self.connections: set[Connection] = set()
        self._arriving: WeakSet[Arrival] = WeakSet()
        self._ended = asyncio.Event()  # a connection, since this was last cleared
        self._loop = asyncio.get_running_loop()
        self.outbox = Outbox.of_running_loop()
        manager = runner.server
        assert manager is not None
        manager.request_factory = partial(_fit_for_aiohttp, manager.request_factory)
        self._manager = manager
        self._servers: list[asyncio.Server] = []
        self._not_listening = asyncio.Event()  # and has taken over all that was accepted
        self._await_arrivals_until = 0.0
        self._look: asyncio.TimerHandle | None = None
        self._last_look: asyncio.TimerHandle | None = None  # at those who were given a moment when we began to drain

    def make_handler(self, connection: Connection) -> Handler:
        return Handler(connection, self._manager, self._loop)

    async def listen(self, listeners: Iterable[Listener]) -> None:
        """Accept connections on bound sockets, which are closed when that is over."""
        for sock, tls in listeners:
            make = partial(Connection, self, self._loop, has_tls=False) if tls is None else self._arrive_by_tls
            if sock.family == socket.AF_UNIX:
                # Its path belongs to whoever bound it, and to the daemon that is next to listen there.
                keeps: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
                server = await self._loop.create_unix_server(make, sock=sock, ssl=tls, backlog=BACKLOG, **keeps)
            else:
                server = await self._loop.create_server(make, sock=sock, ssl=tls, backlog=BACKLOG)
            self._servers.append(server)
        self._look_later()

    def _arrive_by_tls(self) -> Connection:
        connection = Connection(self, self._loop, has_tls=True)
        connection.arrival = arrival = Arrival()
        self._arriving.add(arrival)
        return connection

    def add(self, connection: Connection) -> None:
        connection.arrival = None
        self.connections.add(connection)

    def remove(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self._ended.set()

    # ---- the end

    def drain(self) -> None:
        """Accept no more connections; end those that are open when what was asked on them is answered."""
        if self.is_draining:
            return
        self.is_draining = True
        self._stop_listening()
        for connection in tuple(self.connections):
            connection.drain()
        self._await_arrivals_until = self._loop.time() + LAST_REQUEST_S
        self._last_look = self._loop.call_at(self._await_arrivals_until, self._look_for_slow_clients)

    def _stop_listening(self) -> None:
        """Stop accepting now, and close the sockets when what has been accepted has been taken over.

        asyncio accepts as many connections as there are and has a task begin with each; a server that is closed before
        these have run loses them. They run before what is called from here, and have `add` called one turn later.
        """
        for server in self._servers:
            for sock in server.sockets:
                self._loop.remove_reader(sock.fileno())  # uvloop, which takes over at once, knows of none
        self._loop.call_soon(self._close_servers)

    def _close_servers(self) -> None:
        for server in self._servers:
            server.close()
        self._loop.call_soon(self._not_listening.set)

    async def drained(self) -> None:
        """Wait until no connection is left; after `drain`."""
        await self._not_listening.wait()
        while self.connections or self._arriving:
            self._ended.clear()
            try:
                # Nobody tells of a TLS negotiation that has come to nothing.
                async with asyncio.timeout_at(None if self.connections else self._await_arrivals_until):
                    await self._ended.wait()
            except TimeoutError:
                return

    def cut(self, failure: Error) -> None:
        """End visibly what is being answered, and what comes yet; the answers still have to reach the clients."""
        self.drain()
        self.failure = failure
        for connection in tuple(self.connections):
            connection.cut(failure)

    async def close(self, cut_after_s: float) -> None:
        """Close all connections, those at work after a while."""
        self.drain()
        for connection in tuple(self.connections):
            connection.close()
        deadline = self._loop.time() + cut_after_s
        await self._manager.shutdown(cut_after_s)
        answering = [connection for connection in self.connections if connection.is_answering]
        while self._loop.time() < deadline and any(connection.is_answering for connection in answering):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await self.express.errands.close()
        self.outbox.send()
        while self.connections:  # the loop tells them in its next turn
            for connection in tuple(self.connections):
                connection.transport.abort()
            await asyncio.sleep(0)
        await self._not_listening.wait()
        for timer in (self._look, self._last_look):
            if timer is not None:
                timer.cancel()

    def _look_later(self) -> None:
        self._look = self._loop.call_later(LOOK_EVERY_S, self._look_regularly)

    def _look_regularly(self) -> None:
        self._look_for_slow_clients()
        self._look_later()

    def _look_for_slow_clients(self) -> None:
        now = self._loop.time()
        for connection in tuple(self.connections):
            connection.look(now)
