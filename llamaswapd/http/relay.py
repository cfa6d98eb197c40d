"""One request's way through: the request to the model's server, its answer to the client.

The relay is the sink of the upstream connection and writes what arrives straight to the client; no task, no queue and
no copy in between. Backpressure runs both ways. It does not know how the model was found or made ready, nor by which
of the two ways the request came.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from llamaswapd.activity.record import Record
from llamaswapd.engine import Lease
from llamaswapd.errors import Error, UpstreamError, envelope
from llamaswapd.http.kept import Budget, KeptAnswer, KeptRequest
from llamaswapd.http.upstream import MayBeCut
from llamaswapd.http.wire import (
    NO_CONTENT,
    SWITCHING_PROTOCOLS,
    BodyKind,
    Chunked,
    Framing,
    Shape,
    UntilClose,
    names_in,
)
from llamaswapd.observe.inflight import Inflight, Pairs

if TYPE_CHECKING:
    from llamaswapd.http.connection import Connection
    from llamaswapd.http.upstream import Upstream

# RFC 9110 section 7.6.1, and what is of one connection only by custom. Trailer stays: trailers are passed on.
HOP_BY_HOP = frozenset((
    b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"transfer-encoding", b"upgrade", b"te",
))  # fmt: skip

UPGRADE_FIELDS = frozenset((b"connection", b"upgrade"))

LAST_CHUNK = b"0\r\n\r\n"
LINGER_S = 10.0  # how long a client may take to read the end of an answer that breaks off

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\nX-Accel-Buffering: no\r\n"
)


class Relay(Record):
    """Carries one request and its answer, and is what is known of them, now and later.

    Each of the two ways has its own, which knows what to do when the answer is `over`. An answer reaches the client in
    one of three forms: as it came; without chunk framing, for a client of HTTP/1.0, whose connection then ends with it;
    or in chunks of our own, behind a stream that we have begun ourselves.
    """

    __slots__ = (
        "_has_own_stream", "_is_http11", "_table", "_upstream", "answer", "answer_kept", "budget", "connection",
        "failure", "framing", "keep_alive", "lease", "request_kept", "type_of_error",
    )  # fmt: skip
    __deletable__ = ("connection",)  # mypyc wants to know

    to_peer = False  # its answer comes from another machine's models

    connection: Connection
    keep_alive: bool
    lease: Lease | None
    answer: tuple[Shape, bytes] | None  # its head, once it has come, and the digits of its length
    failure: Error | None  # why the answer is cut
    type_of_error: str  # what the client was told in place of an answer came as this type
    framing: Framing | None  # of the answer's body; None until it comes, and if it came with its head
    budget: Budget | None  # for what is kept of what is said; None: nothing
    request_kept: KeptRequest | None  # what is not at hand in the end anyway
    answer_kept: KeptAnswer | None
    _is_http11: bool
    _has_own_stream: bool
    _table: Inflight | None
    _upstream: Upstream | None

    @property
    def has_begun(self) -> bool:
        """Whether the client has been sent some of the answer."""
        return self.status != 0

    @property
    def has_own_stream(self) -> bool:
        """Whether the client has been sent the head of a stream of ours in place of the answer's."""
        return self._has_own_stream

    @property
    def is_in_chunks(self) -> bool:
        """Whether the client gets the answer's body in chunks."""
        return self._is_http11 and (self._has_own_stream or isinstance(self.framing, Chunked))

    def over(self, error: UpstreamError | None) -> None:
        """The answer has ended; with the error if it did not come or broke off. Not called after `end`."""
        raise NotImplementedError

    def on_writable(self, writable: bool) -> None:
        """The server takes no more of the request for now, or takes it again."""
        raise NotImplementedError

    # ---- what is in flight

    def show_in(self, table: Inflight) -> None:
        """Have the request shown while it is in flight; until `show_no_more`."""
        self._table = table
        table.add(self)

    def show_no_more(self) -> None:
        if self._table is not None:
            self._table.remove(self)

    def resp_headers(self) -> Pairs:
        return self.response_pairs()()

    # ---- what is known of it when it has ended

    def request_pairs(self) -> Callable[[], Pairs]:
        return self.headers.items

    def response_pairs(self) -> Callable[[], Pairs]:
        return partial(self.answer[0].pairs, self.answer[1]) if self.answer is not None else _no_headers

    @property
    def content_type(self) -> str:
        if self._has_own_stream:
            return "text/event-stream"
        return self.answer[0].content_type if self.answer is not None else self.type_of_error

    @property
    def content_encoding(self) -> str:
        return self.answer[0].content_encoding if self.answer is not None and not self._has_own_stream else ""

    @property
    def is_chunked(self) -> bool:
        return self.is_in_chunks

    def take_over_kept(self) -> None:
        """Have `request` and `response` be what was kept of them; nothing more is."""
        sent, said = self.request_kept, self.answer_kept
        if sent is not None:
            sent.release()
            self.request = sent.body()
        if said is not None:
            said.release()
            self.response, self.is_cut = bytes(said.body), said.is_cut
        self.answer_kept = self.request_kept = self.budget = None

    # ---- the exchange

    def begin(self, upstream: Upstream, data: bytes, *, complete: bool, upgrades: bool = False) -> None:
        """Send a request, or its beginning if it is not `complete`, and pass the answer on.

        `upgrades`: it asks for another protocol, of which the answer may be the beginning (101).
        """
        self._upstream = upstream
        if not self.connection.is_writable:
            upstream.pause_reading()
        unframe = self._has_own_stream or not self._is_http11
        upstream.send(self, data, is_head=self.method == "HEAD", unframe=unframe, complete=complete, upgrades=upgrades)

    def end(self) -> None:
        """Give the exchange up if it is not over: the server sees its connection end."""
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abort()

    # ---- the answer

    def on_client_writable(self, writable: bool) -> None:
        """The client takes no more bytes for now, or takes them again."""
        if self._upstream is None:
            return
        if writable:
            self._upstream.resume_reading()
        else:
            self._upstream.pause_reading()

    def on_interim(self, shape: Shape) -> None:
        if self._is_http11 and not self.status:
            self.connection.write(_render_interim(shape))

    def on_whole(self, shape: Shape, digits: bytes, data: bytes, now: float) -> None:
        self._upstream = None
        connection = self.connection
        if connection.is_ending or not self._is_http11:
            self.keep_alive = False
        before, behind = (self.keep_alive and shape.as_usual) or self._rendered(shape)
        connection.write(b"".join((before, digits, behind, data)), True)  # first of all: somebody waits for it
        self.answer = shape, digits
        self.first_byte = self.ended = now
        self.heads_bytes += shape.fixed
        self.status = shape.status
        self.size = len(data)
        self.response = data
        table = self._table
        if table is not None and table.watchers:
            table.tell(self)
        self.over(None)

    def on_head(self, shape: Shape, digits: bytes, framing: Framing, data: bytes) -> None:
        self.answer = shape, digits
        self.framing = framing
        self.first_byte = time.monotonic()
        self.heads_bytes += shape.fixed
        if self.status:  # our own stream: status and headers of the answer are lost
            if data:
                self.on_data(data)
            return
        self.status = shape.status
        if not self._is_http11 or self.connection.is_ending or isinstance(framing, UntilClose):
            self.keep_alive = False
        before, behind = self._rendered(shape)
        self.size = len(data)
        table = self._table
        if table is not None and table.watchers:
            table.tell(self)
        if data and self.budget is not None:
            self._keep_answer(data, self.budget)
        self.connection.write(b"".join((before, digits, behind, data) if behind else (before, data)))

    def _rendered(self, shape: Shape) -> tuple[bytes, bytes]:
        how = self._is_http11, self.keep_alive
        return shape.rendered.get(how) or _render(shape, *how)

    def on_data(self, data: bytes) -> None:
        if self._has_own_stream:
            self._write(chunk(data) if self._is_http11 else data, len(data))
            return
        # As `_write` does, for every token: the client comes first, and nothing is called that can be asked.
        self.connection.write(data)
        self.size += len(data)
        table, kept = self._table, self.answer_kept
        if table is not None and table.watchers:
            table.tell_size(self)
        if kept is not None:
            kept.add(data)
        elif self.budget is not None:
            self._keep_answer(data, self.budget)

    def on_end(self) -> None:
        self._upstream = None
        if self.lease is not None and isinstance(self.framing, UntilClose) and self._is_of_events():
            self.over(MayBeCut("its stream ended with its connection"))
            return
        self.end_whole()
        self.over(None)

    def end_whole(self) -> None:
        """The answer is complete: end what of its form is ours."""
        if self._has_own_stream:
            self.end_stream()

    def _is_of_events(self) -> bool:
        return self.answer is not None and self.answer[0].is_event_stream

    def on_failure(self, error: UpstreamError) -> None:
        self._upstream = None
        self.over(error)

    def _write(self, data: bytes, size: int) -> None:
        self.size += size
        table = self._table
        if table is not None and table.watchers:
            table.tell_size(self)
        if self.budget is not None:
            self._keep_answer(data, self.budget)
        self.connection.write(data)

    def _keep_answer(self, data: bytes, budget: Budget) -> None:
        kept = self.answer_kept
        if kept is None:
            kept = self.answer_kept = KeptAnswer(budget)
        kept.add(data)

    # ---- a stream of our own

    def begin_stream(self) -> None:
        """Begin an event stream before there is an answer; the answer's body will follow in it."""
        self.status = 200
        self._has_own_stream = True
        if self.connection.is_ending:
            self.keep_alive = False
        if self._is_http11:
            framing = b"Transfer-Encoding: chunked\r\n"
        else:
            self.keep_alive = False
            framing = b""
        close = b"" if self.keep_alive else b"Connection: close\r\n"
        self.connection.write(b"".join((STREAM_HEAD, framing, close, b"\r\n")))

    def send_event(self, data: object) -> None:
        """Send an event of our own into the stream that we have begun."""
        self._write_content(_event(data))

    def end_stream(self) -> None:
        """End the stream that we have begun, cleanly."""
        if self._is_http11:
            self._write(LAST_CHUNK, 0)

    def break_off(self, error: Error) -> None:
        """Let the client see that the answer is cut: by an error event where there can be one, and no clean end."""
        self.keep_alive = False
        self.failure = error
        transport = self.connection.transport
        if (self._has_own_stream or self._is_of_events()) and self._is_between_chunks():
            # The blank line ends what the model had begun of an event, and means nothing if there was nothing.
            self._write_content(b"\n\n%b" % _event(envelope(error.status, str(error))))
        elif isinstance(self.framing, UntilClose) or not self._is_http11:
            _reset_on_close(transport)  # else the end of the connection would look like the end of the answer
        # Not abort(): what was written is to reach the client. One that does not read must not stay for ever.
        self.connection.hang_up()
        asyncio.get_running_loop().call_later(LINGER_S, transport.abort)

    def _is_between_chunks(self) -> bool:
        """Whether something of ours can be put into the body here."""
        if self._has_own_stream or not self._is_http11:
            return True
        if isinstance(self.framing, Chunked):
            return self.framing.between_chunks
        return isinstance(self.framing, UntilClose)

    def _write_content(self, content: bytes) -> None:
        self._write(chunk(content) if self.is_in_chunks else content, len(content))


def _render(shape: Shape, is_http11: bool, keep_alive: bool) -> tuple[bytes, bytes]:
    """Return the head as the client gets it, before and behind the digits of the length; without them, b"" behind.

    What concerns the model's connection is left out, what concerns the client's own is put in.
    """
    listed = names_in(shape.fields, b"connection") - {b"content-length"}  # without it no end would be seen
    is_chunked = shape.body is BodyKind.CHUNKED
    has_length = not is_chunked and shape.status != NO_CONTENT  # which must not tell one (RFC 9110 section 8.6)
    lines: list[bytes] = [b"HTTP/1.1%b" % shape.status_line[8:]]
    before: bytes | None = None
    is_upgrade = shape.status == SWITCHING_PROTOCOLS
    for field in shape.fields:
        name = field.name
        if (name in HOP_BY_HOP or name in listed) and not (is_upgrade and name in UPGRADE_FIELDS):
            continue
        if shape.is_event_stream and name == b"x-accel-buffering":
            continue
        if name == b"content-length":
            if has_length and before is None:  # one line will do, should there be two that say the same
                before = b"\r\n".join((*lines, b"%b: " % field.line[: field.line.index(b":")]))
                lines = [b""]
            continue
        lines.append(field.line)
    if shape.is_event_stream:
        lines.append(b"X-Accel-Buffering: no")  # nginx in front of us must not collect events
    if is_chunked and is_http11:
        lines.append(b"Transfer-Encoding: chunked")
    if not keep_alive and not is_upgrade:
        lines.append(b"Connection: close")
    behind = b"\r\n".join((*lines, b"", b""))
    rendered = (behind, b"") if before is None else (before, behind)
    shape.rendered[is_http11, keep_alive] = rendered
    if is_http11 and keep_alive:
        shape.as_usual = rendered
    return rendered


def _render_interim(shape: Shape) -> bytes:
    """Return the head of an interim answer as the client gets it."""
    left_out = HOP_BY_HOP | names_in(shape.fields, b"connection") | {b"content-length"}  # it has no body to tell one of
    lines = [field.line for field in shape.fields if field.name not in left_out]
    return b"\r\n".join((b"HTTP/1.1%b" % shape.status_line[8:], *lines, b"", b""))


def _no_headers() -> Pairs:
    return ()


def chunk(data: bytes) -> bytes:
    """Return one chunk of a chunked body (RFC 9112 section 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(data: object) -> bytes:
    return b"data: %b\n\n" % json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode(errors="replace")


def _reset_on_close(transport: asyncio.Transport) -> None:
    """Make the connection end with a reset instead of an orderly end (socket(7), SO_LINGER)."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
