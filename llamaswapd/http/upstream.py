"""Connections to the models' servers: pooled by origin, one exchange at a time, driven by callbacks.

Whoever sends a request gives an `AnswerSink`; head, body and end of the answer are told to it as they arrive, the body
in the server's own framing. Nothing here knows of clients, models or leases.
"""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple, Protocol, cast
from urllib.parse import urlsplit

from llamaswapd.errors import UpstreamError
from llamaswapd.http.wire import HEAD_LIMIT, Framing, Head, Malformed, UntilClose, framing_of, parse_head

CONNECT_TIMEOUT_S = 30.0
IDLE_LIMIT_S = 90.0  # an idle connection is closed after this long
IDLE_CONNECTIONS = 64  # kept per origin
RELIEVE_AFTER_S = 0.1  # how long an answer may be awaited before idle connections are given up for it


class Origin(NamedTuple):
    """Where a server listens."""

    host: str
    port: int
    tls: bool

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"


@lru_cache(maxsize=1024)
def parse_base(url: str) -> tuple[Origin, str]:
    """Take a model's `proxy` URL apart: where to connect, and the path prefix without a slash at its end."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UpstreamError(f'proxy "{url}" is not a URL: {error}') from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UpstreamError(f'proxy "{url}" is not a URL of the form http://host:port')
    tls = parts.scheme == "https"
    return Origin(parts.hostname, port or (443 if tls else 80), tls), parts.path.rstrip("/")


class AnswerSink(Protocol):
    """Who gets an answer. Called from the connection's callbacks; must not raise."""

    def on_head(self, head: Head, framing: Framing, data: bytes) -> None:
        """The final head came, and `data`, the part of the body that came with it; may be empty."""

    def on_data(self, data: bytes) -> None:
        """More of the body came."""

    def on_end(self) -> None:
        """The answer is complete."""

    def on_failure(self, error: UpstreamError) -> None:
        """The answer will not come, or not to its end."""

    def on_writable(self, writable: bool) -> None:
        """The server takes no more of the request for now, or takes it again."""


class Upstream(asyncio.Protocol):
    """One connection to a model's server.

        upstream.send(sink, head, is_head=False, complete=True)

    starts an exchange; the sink hears the rest. Afterwards the connection goes back to its pool by itself, if it can be
    used again.
    """

    transport: asyncio.Transport

    def __init__(self, pool: Pool, origin: Origin) -> None:
        self.origin = origin
        self.idle_since = 0.0
        self.is_used = False  # has carried a whole exchange before
        self._pool = pool
        self._sink: AnswerSink | None = None
        self._unframe = False
        self._excess = False  # bytes came behind the end of the answer
        self._is_paused = False
        self._head = b""  # of an answer whose head is not complete
        self._answer: Head | None = None
        self._framing: Framing | None = None
        self._to_head_request = False
        self._request_sent = False
        self._received = False

    def __repr__(self) -> str:
        return f"<Upstream {self.origin} {'busy' if self._sink else 'idle'}>"

    # ---- the request

    def send(self, sink: AnswerSink, data: bytes, *, is_head: bool, unframe: bool, complete: bool) -> None:
        """Begin an exchange with the request's first bytes.

        `is_head`: a HEAD request, its answer has no body. `unframe`: the sink wants the answer's content without the
        chunk framing. `complete`: these are all bytes of the request; else `write` and `end_request` follow.
        """
        self._sink = sink
        self._unframe = unframe
        self._answer = self._framing = None
        self._to_head_request = is_head
        self._request_sent = complete
        self._received = False
        self._pool.answer_awaited(self)
        self.transport.write(data)

    def write(self, data: bytes) -> None:
        """Send more of the request."""
        if not self.transport.is_closing():
            self.transport.write(data)

    def end_request(self) -> None:
        self._request_sent = True

    def abort(self) -> None:
        """Give the exchange up: the sink hears nothing more, the server sees its connection end."""
        self._sink = None
        self._pool.answer_came(self)
        self.transport.abort()

    def pause_writing(self) -> None:
        if self._sink is not None:
            self._sink.on_writable(False)

    def resume_writing(self) -> None:
        if self._sink is not None:
            self._sink.on_writable(True)

    # ---- the answer

    def pause_reading(self) -> None:
        if not self._is_paused and not self.transport.is_closing():
            self._is_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self._is_paused and not self.transport.is_closing():
            self._is_paused = False
            self.transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        sock = self.transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        self._received = True
        try:
            if self._framing is None:
                self._read_head(data)
            else:
                self._read_body(self._framing, data)
        except Malformed as error:
            self._fail(NotHttp(f"{self.origin} does not answer in HTTP: {error}"))

    def _read_head(self, data: bytes) -> None:
        if self._sink is None:  # bytes nobody asked for
            self.transport.abort()
            return
        if self._head:
            data = self._head + data
        while True:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._check_unfinished_head(data)
                self._head = data
                return
            head = parse_head(data[:end])
            data = data[end + 4 :]
            if head.status == 101:
                raise Malformed("it switches protocols without being asked to")
            # Other interim answers are dropped: they say nothing that a client of ours has to know.
            if head.status >= 200:
                break
        self._head = b""
        self._pool.answer_came(self)
        self._answer = head
        self._framing = framing_of(head, to_head_request=self._to_head_request)
        self._sink.on_head(head, self._framing, self._advance(self._framing, data))
        self._end_if_complete()

    @staticmethod
    def _check_unfinished_head(data: bytes) -> None:
        if len(data) > HEAD_LIMIT:
            raise Malformed(f"head of more than {HEAD_LIMIT} bytes")
        # What does not even begin like an answer never gets a blank line; do not wait for one.
        line, line_feed, _ = data.partition(b"\n")
        if not b"HTTP/1.".startswith(data[:7]) or (line_feed and not line.endswith(b"\r")):
            raise Malformed(f"bad status line {data[:100]!r}")

    def _read_body(self, framing: Framing, data: bytes) -> None:
        if self._sink is None:
            return
        data = self._advance(framing, data)
        if data:
            self._sink.on_data(data)
        self._end_if_complete()

    def _advance(self, framing: Framing, data: bytes) -> bytes:
        """Move the framing over `data`; return what of it the sink gets."""
        content: list[bytes] | None = [] if self._unframe else None
        taken = framing.take(data, content)
        self._excess = taken < len(data)
        if content is not None:
            return b"".join(content)
        return data[:taken] if self._excess else data

    def _end_if_complete(self) -> None:
        framing, sink = self._framing, self._sink
        if framing is None or sink is None or not framing.ended:
            return
        self._sink = self._framing = None
        if self._can_be_used_again():
            self.is_used = True
            self.resume_reading()
            self._pool.keep(self)
        else:
            self.transport.abort()
        sink.on_end()

    def _can_be_used_again(self) -> bool:
        assert self._answer is not None
        return (
            self._request_sent
            and not self._excess
            and self._answer.is_http11
            and b"close" not in self._answer.names_in(b"connection")
            and not self.transport.is_closing()
        )

    def eof_received(self) -> None:
        if isinstance(self._framing, UntilClose):
            self._framing.ended = True
            self._end_if_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.forget(self)
        how = "broke the connection" if exc is not None else "closed the connection"
        when = "in the middle of its answer" if self._framing is not None else "before it answered"
        message = f"{self.origin} {how} {when}"
        self._fail(Stale(message) if self.is_used and not self._received else UpstreamError(message))

    def _fail(self, error: UpstreamError) -> None:
        sink, self._sink = self._sink, None
        self._pool.answer_came(self)
        self.transport.abort()
        if sink is not None:
            sink.on_failure(error)


class Stale(UpstreamError):
    """A kept connection turned out to be closed before anything of an answer came: the request may be sent again."""


class NotHttp(UpstreamError):
    """The server answered what cannot be read: it is alive, and no reason of systemd's will explain it."""


class Pool:
    """The connections to all models' servers."""

    def __init__(self) -> None:
        self._idle: dict[Origin, list[Upstream]] = {}
        self._awaiting: dict[Origin, dict[Upstream, float]] = {}  # since when, the longest first
        self._relief: dict[Origin, asyncio.TimerHandle] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._tls: ssl.SSLContext | None = None

    def take(self, origin: Origin) -> Upstream | None:
        """Return an idle connection, the one used last."""
        idle = self._idle.get(origin)
        while idle:
            upstream = idle.pop()
            if not upstream.transport.is_closing():
                return upstream
        return None

    async def connect(self, origin: Origin) -> Upstream:
        """Open a connection; raises UpstreamError."""
        loop = asyncio.get_running_loop()
        factory: Callable[[], Upstream] = lambda: Upstream(self, origin)  # noqa: E731
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, upstream = await loop.create_connection(
                    factory, origin.host, origin.port, ssl=self._tls_context() if origin.tls else None
                )
        except TimeoutError:
            raise UpstreamError(f"{origin} does not take connections: nothing for {CONNECT_TIMEOUT_S:g} s") from None
        except OSError as error:
            raise UpstreamError(f"{origin} does not take connections: {error.strerror or error}") from error
        return upstream

    def keep(self, upstream: Upstream) -> None:
        """Take a connection back whose exchange has ended well."""
        loop = asyncio.get_running_loop()
        idle = self._idle.setdefault(upstream.origin, [])
        if len(idle) >= IDLE_CONNECTIONS:
            upstream.transport.abort()
            return
        upstream.idle_since = loop.time()
        idle.append(upstream)
        if self._sweep is None:
            self._sweep = loop.call_later(IDLE_LIMIT_S, self._close_idle)

        self._relieve_later(upstream.origin)

    def answer_awaited(self, upstream: Upstream) -> None:
        """A request is on its way."""
        self._awaiting.setdefault(upstream.origin, {})[upstream] = asyncio.get_running_loop().time()
        self._relieve_later(upstream.origin)

    def answer_came(self, upstream: Upstream) -> None:
        """Its answer has begun, or will not come."""
        if awaiting := self._awaiting.get(upstream.origin):
            awaiting.pop(upstream, None)

    def forget(self, upstream: Upstream) -> None:
        """A connection has ended."""
        idle = self._idle.get(upstream.origin)
        if idle and upstream in idle:
            idle.remove(upstream)

    def close(self) -> None:
        """Close the idle connections; those at work end with their requests."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for timer in self._relief.values():
            timer.cancel()
        self._relief.clear()
        for upstream in [upstream for idle in self._idle.values() for upstream in idle]:
            upstream.transport.abort()
        self._idle.clear()

    def _relieve_later(self, origin: Origin) -> None:
        """See to it that a request does not wait for the idle connections to its server to end.

        llama.cpp's server has a thread for each connection, for as long as that is open, and not always one more. A
        request beyond them is not looked at until one of the idle connections ends, which by itself takes 5 s.
        """
        awaiting = self._awaiting.get(origin)
        if awaiting and self._idle.get(origin) and origin not in self._relief:
            due = next(iter(awaiting.values())) + RELIEVE_AFTER_S
            self._relief[origin] = asyncio.get_running_loop().call_at(due, self._relieve, origin)

    def _relieve(self, origin: Origin) -> None:
        del self._relief[origin]
        longest = next(iter(self._awaiting[origin].values()), math.inf)
        if asyncio.get_running_loop().time() >= longest + RELIEVE_AFTER_S:
            for upstream in self._idle.pop(origin, ()):
                upstream.transport.abort()
        self._relieve_later(origin)

    def _close_idle(self) -> None:
        """Close what was idle for too long; look again when the next one may be."""
        loop = asyncio.get_running_loop()
        oldest_allowed = loop.time() - IDLE_LIMIT_S
        for origin, idle in list(self._idle.items()):
            for upstream in idle:
                if upstream.idle_since <= oldest_allowed:
                    upstream.transport.abort()
            self._idle[origin] = [upstream for upstream in idle if upstream.idle_since > oldest_allowed]
            if not self._idle[origin]:
                del self._idle[origin]
        earliest = min((idle[0].idle_since for idle in self._idle.values()), default=None)
        self._sweep = None if earliest is None else loop.call_at(earliest + IDLE_LIMIT_S, self._close_idle)

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls
