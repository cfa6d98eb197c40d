"""Connections to the models' servers: pooled by origin, one exchange at a time, driven by callbacks.

Whoever sends a request gives an `AnswerSink`; head, body and end of the answer are told to it as they arrive, the body
in the server's own framing. Nothing here knows of clients, models or leases.
"""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple, Protocol

from llamaswapd.config.schema import Timeouts
from llamaswapd.errors import UpstreamError
from llamaswapd.http.link import Link
from llamaswapd.http.tunnel import by_way_of
from llamaswapd.http.wire import (
    HEAD_LIMIT,
    SWITCHING_PROTOCOLS,
    Framing,
    Malformed,
    Shape,
    Templates,
    UntilClose,
    framing_of,
    number,
    parse_head,
)  # fmt: skip

CONTINUE = 100
IDLE_CONNECTIONS = 512  # kept per origin
CLOSE_WITHIN_S = 10.0  # how long a server may take to read the end of what it was sent
RELIEVE_AFTER_S = 0.1  # how long an answer may be awaited before idle connections are given up for it


class Origin(NamedTuple):
    """Where a server listens."""

    host: str
    port: int
    tls: bool

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"

    @property
    def authority(self) -> str:
        """What a Host header says of it (RFC 9110 section 7.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


class AnswerSink(Protocol):
    """Who gets an answer. Called from the connection's callbacks; must not raise."""

    def on_interim(self, shape: Shape) -> None:
        """A head came that says something, but is not the answer's, such as 103 (RFC 9110 section 15.2)."""

    def on_whole(self, shape: Shape, digits: bytes, data: bytes, now: float) -> None:
        """The final head came with the whole body, `data`, at that time of the monotonic clock. Nothing follows."""

    def on_head(self, shape: Shape, digits: bytes, framing: Framing, data: bytes) -> None:
        """The final head came, and `data`, the part of the body that came with it; may be empty."""

    def on_data(self, data: bytes) -> None:
        """More of the body came."""

    def on_end(self) -> None:
        """The answer is complete."""

    def on_failure(self, error: UpstreamError) -> None:
        """The answer will not come, or not to its end."""

    def on_writable(self, writable: bool) -> None:
        """The server takes no more of the request for now, or takes it again."""


_templates = Templates(parse_head)


class Upstream(Link, asyncio.Protocol):
    """One connection to a model's server.

        upstream.send(sink, head, is_head=False, complete=True)

    starts an exchange; the sink hears the rest. Afterwards the connection goes back to its pool by itself, if it can be
    used again.
    """

    __slots__ = (
        "_excess", "_framing", "_head", "_is_paused", "_keeps_alive", "_received", "_sink", "_takes_whole",
        "_to_head_request", "_unframe", "_upgrades", "awaiting_since", "idle_since", "is_used", "pool", "request_sent",
    )  # fmt: skip

    def __init__(self, pool: OriginPool) -> None:
        super().__init__(has_tls=pool.origin.tls)
        self.pool = pool
        self.idle_since = 0.0
        self.awaiting_since: float | None = None  # since when the head of an answer is awaited
        self.is_used = False  # has carried a whole exchange before
        self._sink: AnswerSink | None = None
        self._takes_whole = True  # an answer that comes in one piece is told in one piece
        self._unframe = False
        self._upgrades = False
        self._excess = False  # bytes came behind the end of the answer
        self._is_paused = False
        self._head = b""  # of an answer whose head is not complete
        self._keeps_alive = False  # the answer at hand says so
        self._framing: Framing | None = None
        self._to_head_request = False
        self.request_sent = True
        self._received = False

    def __repr__(self) -> str:
        return f"<Upstream {self.pool.origin} {'busy' if self._sink else 'idle'}>"

    # ---- the request

    def send(
        self, sink: AnswerSink, data: bytes, *, is_head: bool, unframe: bool, complete: bool, upgrades: bool = False
    ) -> None:
        """Begin an exchange with the request's first bytes.

        `is_head`: a HEAD request, its answer has no body. `unframe`: the sink wants the answer's content without the
        chunk framing. `complete`: these are all bytes of the request; else `write` and `end_request` follow.
        `upgrades`: the answer may be 101, and everything behind it belongs to another protocol.
        """
        self._unframe = unframe
        self._upgrades = upgrades
        self._to_head_request = is_head
        self._takes_whole = not (unframe or is_head)
        self.request_sent = complete
        self.send_whole(sink, data, self.pool.loop.time())

    def send_whole(self, sink: AnswerSink, data: bytes, now: float) -> None:
        """The same for all bytes of a request that asks for nothing out of the ordinary, at that monotonic time."""
        self._sink = sink
        self._received = False
        self.awaiting_since = now
        if self.pool.relief is None:
            self.pool.relieve_later()
        self.write(data)

    def end_request(self) -> None:
        """All of the request has been written: from now on the server is waited for, and not the client."""
        self.request_sent = True
        if self.awaiting_since is not None:
            self.awaiting_since = self.pool.loop.time()

    def abort(self) -> None:
        """Give the exchange up: the sink hears nothing more, the server sees its connection end."""
        self._sink = self.awaiting_since = None
        self.transport.abort()

    def close(self) -> None:
        """The same, but what has been written is sent, if the server takes it."""
        self._sink = self.awaiting_since = None
        self.hang_up()
        self.pool.loop.call_later(CLOSE_WITHIN_S, self.transport.abort)

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

    def data_received(self, data: bytes) -> None:
        self._received = True
        try:
            if self._framing is None:
                self._read_head(data)
            else:
                self._read_body(self._framing, data)
        except Malformed as error:
            self.fail(NotHttp(f"{self.pool.origin} does not answer in HTTP: {error}"))

    def _read_head(self, data: bytes) -> None:
        sink, pool = self._sink, self.pool
        if sink is None:  # bytes nobody asked for
            self.transport.abort()
            return
        shape = pool.last_shape
        if shape is not None and not self._head and (digits := shape.fit(data)) is not None:
            data = data[shape.fixed + len(digits) :]
        else:
            found = self._read_new_head(b"".join((self._head, data)) if self._head else data)
            if found is None:
                return
            shape, digits, data = found
            pool.last_shape = shape if shape.is_reusable and shape.status != SWITCHING_PROTOCOLS else None
            self._head = b""
        self.awaiting_since = None
        if shape.is_counted and self._takes_whole and number(digits) == len(data):
            now = time.monotonic()
            self._sink = None
            self._upgrades = False
            if self.request_sent and shape.keeps_alive:
                self.is_used = True
                pool.keep(self, now)
            else:
                self.transport.abort()
            sink.on_whole(shape, digits, data, now)
            return
        self._keeps_alive = shape.keeps_alive
        framing: Framing = UntilClose()  # of another protocol, up to its end
        if shape.status != SWITCHING_PROTOCOLS:
            framing = framing_of(shape, digits, to_head_request=self._to_head_request)
        self._framing = framing
        sink.on_head(shape, digits, framing, self._advance(framing, data))
        if framing.ended:
            self._end()

    def _read_new_head(self, data: bytes) -> tuple[Shape, bytes, bytes] | None:
        """Return what a head says, its digits, and what comes behind it; None if it is not complete, and is kept."""
        while True:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._check_unfinished_head(data)
                self._head = data
                return None
            found = _templates.read(data[: end + 4])
            assert found is not None
            data = data[end + 4 :]
            shape, digits = found
            if shape.status >= 200:
                return shape, digits, data
            if shape.status == SWITCHING_PROTOCOLS:
                if self._upgrades:
                    return shape, digits, data
                raise Malformed("it switches protocols without being asked to")
            if shape.status != CONTINUE and self._sink is not None:  # a client that awaits 100 has had ours
                self._sink.on_interim(shape)

    @staticmethod
    def _check_unfinished_head(data: bytes) -> None:
        if len(data) > HEAD_LIMIT:
            raise Malformed(f"head of more than {HEAD_LIMIT} bytes")
        # What does not even begin like an answer never gets a blank line; do not wait for one.
        line, line_feed, _ = data.partition(b"\n")
        if not b"HTTP/1.".startswith(data[:7]) or (line_feed and not line.endswith(b"\r")):
            raise Malformed(f"bad status line {data[:100]!r}")

    def _read_body(self, framing: Framing, data: bytes) -> None:
        sink = self._sink
        if sink is None:
            return
        if self._unframe:
            data = self._advance(framing, data)
        else:
            taken = framing.take(data)
            if taken < len(data):
                self._excess = True
                data = data[:taken]
        if data:
            sink.on_data(data)
        if framing.ended:
            self._end()

    def _advance(self, framing: Framing, data: bytes) -> bytes:
        """Move the framing over `data`; return what of it the sink gets."""
        content: list[bytes] | None = [] if self._unframe else None
        taken = framing.take(data, content)
        self._excess = taken < len(data)
        if content is not None:
            return b"".join(content)
        return data[:taken] if self._excess else data

    def _end(self) -> None:
        """The answer is complete."""
        sink = self._sink
        self._sink = self._framing = None
        if sink is None:  # the client left while it was told the last bytes
            return
        if self.request_sent and self._keeps_alive and not self._excess and not self.transport.is_closing():
            self.is_used = self._takes_whole = True
            self._unframe = self._upgrades = self._to_head_request = False
            self.resume_reading()
            self.pool.keep(self, self.pool.loop.time())
        else:
            self.transport.abort()
        sink.on_end()

    def eof_received(self) -> None:
        if isinstance(self._framing, UntilClose):
            self._keeps_alive = False
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self.pool.forget(self)
        how = "broke the connection" if exc is not None else "closed the connection"
        when = "in the middle of its answer" if self._framing is not None else "before it answered"
        message = f"{self.pool.origin} {how} {when}"
        self.fail(Stale(message, self.pool) if self.is_used and not self._received else UpstreamError(message))

    def fail(self, error: UpstreamError) -> None:
        """End the exchange, and the connection, with an error."""
        sink, self._sink = self._sink, None
        self.awaiting_since = None
        self.transport.abort()
        if sink is not None:
            sink.on_failure(error)


class Stale(UpstreamError):
    """A kept connection turned out to be closed before anything of an answer came: the request may be sent again."""

    def __init__(self, message: str, pool: OriginPool) -> None:
        super().__init__(message)
        self.pool = pool


class MayBeCut(UpstreamError):
    """An answer ended as it should, with its connection; but so does one whose server is killed."""


class NotHttp(UpstreamError):
    """The server answered what cannot be read: it is alive, and no reason of systemd's will explain it."""


class OriginPool:
    """The connections to one server, all with the same limits."""

    def __init__(self, origin: Origin, timeouts: Timeouts) -> None:
        self.origin = origin
        self.by_way = by_way_of(origin)
        self.timeouts = timeouts
        self.loop = asyncio.get_running_loop()  # asking is a system call before Python 3.12
        self.last_shape: Shape | None = None  # of its last answer; the next one is alike
        self.relief: asyncio.TimerHandle | None = None
        self._all: set[Upstream] = set()
        self._idle: list[Upstream] = []  # the one used last at the end
        self._sweep: asyncio.TimerHandle | None = None

    def take(self) -> Upstream | None:
        """Return an idle connection, the one used last. One that is closing just now proves to be stale soon."""
        return self._idle.pop() if self._idle else None

    @property
    def authorization(self) -> str:
        """What requests have to tell a proxy on their way that reads them; "" if there is none."""
        return self.by_way.authorization if self.by_way is not None and not self.origin.tls else ""

    def add(self, upstream: Upstream) -> None:
        """A connection has been opened."""
        self._all.add(upstream)

    def keep(self, upstream: Upstream, now: float) -> None:
        """Take a connection back whose exchange has ended well, at that time of the monotonic clock."""
        if len(self._idle) >= IDLE_CONNECTIONS:
            upstream.transport.abort()
            return
        upstream.idle_since = now
        self._idle.append(upstream)
        if self._sweep is None and self.timeouts.idle_conn:
            self._sweep = self.loop.call_later(self.timeouts.idle_conn, self._close_idle)

    def forget(self, upstream: Upstream) -> None:
        """A connection has ended."""
        self._all.discard(upstream)
        if upstream in self._idle:
            self._idle.remove(upstream)

    def close(self) -> None:
        """Close the idle connections; those at work end with their requests."""
        for timer in (self._sweep, self.relief):
            if timer is not None:
                timer.cancel()
        self._sweep = self.relief = None
        self._close_all_idle()

    def _close_all_idle(self) -> None:
        idle, self._idle = self._idle, []
        for upstream in idle:
            upstream.transport.abort()

    def relieve_later(self) -> None:
        """See to it that a request does not wait for the idle connections to its server to end.

        llama.cpp's server has a thread for each connection, for as long as that is open, and not always one more. A
        request beyond them is not looked at until one of the idle connections ends, which by itself takes 5 s.
        """
        self.relief = self.loop.call_later(RELIEVE_AFTER_S, self._relieve)

    def _relieve(self) -> None:
        self.relief = None
        now, limit_s = self.loop.time(), self.timeouts.response_header
        waited_s = {each: now - each.awaiting_since for each in self._all if each.awaiting_since is not None}
        if waited_s and max(waited_s.values()) >= RELIEVE_AFTER_S:
            self._close_all_idle()
        for upstream, seconds in waited_s.items():
            if limit_s and seconds >= limit_s and upstream.request_sent:
                upstream.fail(UpstreamError(f"{self.origin} did not begin to answer within {limit_s} s"))
        if waited_s:
            self.relieve_later()

    def _close_idle(self) -> None:
        """Close what was idle for too long; look again when the next one may be."""
        oldest_allowed = self.loop.time() - self.timeouts.idle_conn
        for upstream in self._idle:
            if upstream.idle_since <= oldest_allowed:
                upstream.transport.abort()
        self._idle = [upstream for upstream in self._idle if upstream.idle_since > oldest_allowed]
        self._sweep = (
            self.loop.call_at(self._idle[0].idle_since + self.timeouts.idle_conn, self._close_idle)
            if self._idle
            else None
        )
