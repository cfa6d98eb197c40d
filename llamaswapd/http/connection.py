"""A client's connection, from when it is accepted: whose turn it is, and how long a client may take.

Requests that are plain and whose model is ready are served on the express way (`express.py`), by callbacks. Everything
else is aiohttp's: the bytes of the request are handed over as they came, and it answers. One decision is made for each
request, in `_read`:

| the head of the request | who answers | the next request of this connection |
| --- | --- | --- |
| is not complete | nobody yet | |
| is in doubt (`heads.py`), or never comes to an end | aiohttp | is aiohttp's: who else knows where it begins? |
| is plain, and so is all about it (`Express.admit`) | the express way | is decided anew |
| is plain, but something about it is not | aiohttp | is decided anew |

The express way may change its mind until it has sent something to the model: what it has read is handed over then.
Requests that come before the answer to the one at hand wait here for their turn.

When the daemon stops, a connection is *ending*: what has been asked on it is answered, with `Connection: close` where
the head of the answer has not gone yet, and then it is closed. A client that has just connected is awaited for a
moment, because whoever connects is about to ask; and an idle connection is not closed over bytes that have arrived.
That leaves clients that send on an idle connection while its end is under way to them, which they have to take into
account at any time (RFC 9112 section 9.5).
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from llamaswapd.errors import Error
from llamaswapd.http import heads
from llamaswapd.http.link import Link, Outbox
from llamaswapd.http.wire import Templates, number

if TYPE_CHECKING:
    from llamaswapd.http.express import Exchange, Express
    from llamaswapd.http.relay import Relay
    from llamaswapd.http.server import Handler

HEAD_TIMEOUT_S = (
    30.0  # a new connection must have sent a whole request head by then, and so must one that has begun one
)
KEEPALIVE_S = 75.0  # an idle connection is kept this long; also bounds the heads that aiohttp reads
LINGER_S = 10.0  # how long a client may take to read the end of the last answer
LAST_REQUEST_S = 2.0  # how long a client may take to send the request it came for, once the connection is ending
LOOK_EVERY_S = 1.0  # how often it is looked who has taken too long
AHEAD_LIMIT = 64 * 1024  # bytes of further requests that are read while one is answered
_NO_ASCII = re.compile(rb"[\x80-\xff]")

_templates = Templates(heads.parse_head)

log = logging.getLogger(__name__)


class Site(Protocol):
    """What all connections share."""

    express: Express
    is_draining: bool
    failure: Error | None  # by which everything is being cut
    outbox: Outbox

    def make_handler(self, connection: Connection) -> Handler: ...

    def add(self, connection: Connection) -> None:
        """The connection is established."""

    def remove(self, connection: Connection) -> None:
        """It has ended."""


class Connection(Link, asyncio.Protocol):
    """One client's connection.

    While a request is answered, whoever answers it may set `on_gone`, called when the client leaves. The relay of a
    request is told when the client takes no more bytes for now, and when it does again.
    """

    __slots__ = (
        "_ahead", "_exchange", "_handler", "_is_aiohttps", "_is_fresh", "_is_handed", "_last_shape",
        "_left", "_loop", "_site", "answering", "arrival", "deadline", "failure", "has_left", "is_ending", "is_paused",
        "is_writable", "on_gone", "peer", "relay",
    )  # fmt: skip

    def __init__(self, site: Site, loop: asyncio.AbstractEventLoop, *, has_tls: bool) -> None:
        super().__init__(site.outbox, has_tls=has_tls)
        self.is_writable = True
        self.on_gone: Callable[[], object] | None = None
        self.has_left = False  # it sends no more
        self.relay: Relay | None = None  # of aiohttp's request at hand, if it goes to a model
        self.peer = ""  # the client's address, "" for a UNIX socket
        self.deadline: float | None = loop.time() + HEAD_TIMEOUT_S  # by which the client must have sent something
        self.is_ending = False  # the request at hand is the last one
        self.arrival: object = None  # what the site knows it by while TLS is being negotiated
        self.answering: asyncio.Task[object] | None = None  # runs the handler of aiohttp's request at hand
        self.failure: Error | None = None  # why everything is cut, once it is
        self._site = site
        self._loop = loop
        self._ahead = b""  # of a head that is not complete, or of requests behind the one at hand
        self._last_shape = _templates.last  # of its last request, or of another's; the next one is alike
        self._exchange: Exchange | None = None
        self._is_fresh = True  # no answer has been given yet
        self.is_paused = False
        self._handler: Handler | None = None
        self._is_aiohttps = False  # for the rest of its days
        self._is_handed = False  # one plain request is in aiohttp's hands
        self._left = 0  # bytes of that request that have not come yet

    # ---- what the client sends

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple):
            self.peer = peer[0]
        site = self._site
        site.add(self)
        if site.failure is not None:
            self.cut(site.failure)
        elif site.is_draining:
            self.drain()

    def data_received(self, data: bytes) -> None:
        if self._exchange is not None:
            self._exchange.feed(data)
        elif self._is_handed:
            self._feed_handler(data)
        elif self._is_aiohttps:
            self._handler_at_work().data_received(data)
        else:
            self._read(b"".join((self._ahead, data)) if self._ahead else data)

    def _read(self, data: bytes) -> None:
        """Decide who answers the request that begins here."""
        shape = self._last_shape
        if shape is not None and (digits := shape.fit(data)) is not None:
            start = shape.fixed + len(digits)
        else:
            if not data.isascii():  # quick, and so for most
                data = _with_ascii_target(data)
            end = data.find(b"\r\n\r\n")
            start = end + 4
            found = _templates.read(data[:start]) if end >= 0 else None
            if found is None:
                if end < 0 and _may_become_plain(data):
                    self._await_head(data)
                else:
                    self._is_aiohttps = True
                    self._ahead = b""
                    self._handler_at_work().data_received(data)
                    if self.has_left:
                        self._handler_at_work().end_of_input()
                        self.handler_is_idle()  # as it stays, if that was no request
                return
            shape, digits = found
            self._last_shape = _templates.last = shape if shape.is_reusable else None
        length = number(digits) if digits else 0
        size = start + length
        if size < len(data):
            data, self._ahead = data[:size], data[size:]
        elif self._ahead:
            self._ahead = b""
        # Of a client that sends no more, aiohttp knows what to make.
        if not self.has_left:
            self._exchange = self._site.express.admit(self, shape, digits, data, start, length)
        if self._exchange is None:
            self.hand_over(data, size)

    def _await_head(self, data: bytes) -> None:
        if self.has_left:
            self.hang_up()
        if not self._ahead and self.deadline is not None:
            self.deadline = min(self.deadline, self.now + HEAD_TIMEOUT_S)
        self._ahead = data

    def read_ahead(self, data: bytes) -> None:
        """Keep what comes behind the request at hand."""
        self._ahead += data
        if len(self._ahead) > AHEAD_LIMIT:
            self.pause_reading()

    def end_exchange(self, keep_alive: bool, now: float) -> None:
        """The express way has answered, at that time of the monotonic clock."""
        self._exchange = None
        if keep_alive:
            self._go_on(now)
        else:
            self.deadline = now + LINGER_S  # a client that reads nothing must not stay for ever
            self.hang_up()

    def _go_on(self, now: float) -> None:
        """The request at hand has been answered; the next one may have come already."""
        if self.transport.is_closing():
            self._ahead = b""
            return
        self.deadline = now + KEEPALIVE_S
        self._is_fresh = False
        if self._ahead:
            self.outbox.send()  # it may be that the client does not read what it has asked for
        if self.is_ending and not (self._ahead and self.is_writable):
            self._end_unless_asked()
            return
        if not self.is_writable:  # what it does not read now must not become more
            self.pause_reading()
            return
        if self.is_paused:
            self.resume_reading()
        if self._ahead:
            ahead, self._ahead = self._ahead, b""
            self._read(ahead)
        elif self.has_left:
            self.hang_up()

    # ---- aiohttp's part

    def hand_over(self, data: bytes, size: int) -> None:
        """Have aiohttp answer a request of `size` bytes, which begins with `data`, of which nobody has answered yet."""
        self._exchange = None
        self._is_handed = True
        self._left = size - len(data)
        self.deadline = None  # it has limits of its own
        self.resume_reading()
        self._handler_at_work().data_received(data)
        if self.has_left:  # it was behind another request, and no more of it will come
            self._handler_at_work().end_of_input()

    def _feed_handler(self, data: bytes) -> None:
        mine = data[: self._left]
        if mine:
            self._left -= len(mine)
            self._handler_at_work().data_received(mine)
        if len(mine) < len(data):
            self.read_ahead(data[len(mine) :])

    def handler_is_idle(self) -> None:
        """aiohttp has answered, or never had anything."""
        if self._handler is None or not self._handler.is_idle:
            return
        if self._is_aiohttps:
            if self.has_left:
                self.hang_up()
            elif self.is_ending:
                self._end_unless_asked()
        elif self._is_handed:
            self._is_handed = False
            self.share(False)
            self._handler.read_on()
            self._go_on(self.now)

    def _handler_at_work(self) -> Handler:
        if self._handler is None:
            self._handler = self._site.make_handler(self)
            self._handler.connection_made(self.transport)
        if not self.is_shared:
            self.share(True)
        return self._handler

    # ---- flow control

    @property
    def now(self) -> float:
        return self._loop.time()

    def pause_reading(self) -> None:
        """Read no more from the client until `resume_reading`; may be called twice."""
        if not self.transport.is_closing():
            self.is_paused = True
            self.transport.pause_reading()  # also if it is: aiohttp, which pauses and resumes as well, may have resumed

    def resume_reading(self) -> None:
        if self.is_paused and not self.transport.is_closing():
            self.is_paused = False
            self.transport.resume_reading()

    def pause_writing(self) -> None:
        self._tell_writable(False)
        if self._handler is not None:
            self._handler.pause_writing()

    def resume_writing(self) -> None:
        self._tell_writable(True)
        if self._handler is not None:
            self._handler.resume_writing()
        if self._exchange is None and not self._is_handed and not self._is_aiohttps:
            self._go_on(self.now)

    def _tell_writable(self, is_writable: bool) -> None:
        self.is_writable = is_writable
        relay = self._exchange or self.relay
        if relay is not None:
            relay.on_client_writable(is_writable)

    # ---- its end

    def eof_received(self) -> bool:
        """The client sends no more; return whether it is to be answered all the same.

        Whoever waits for a model is taken to have left, as net/http sees it too: nothing else tells of a client that
        has been killed. What is answered at once is answered, to `printf ... | nc` say.
        """
        self.outbox.send()  # its transport may be closed when this returns
        self.has_left = True
        self._leave()
        if self._handler is not None:
            self._handler.end_of_input()
        if self.failure is not None:  # it has been told; nobody waits for the rest of what it was sending
            return False
        is_answering = self._is_handed or (self._handler is not None and not self._handler.is_idle)
        return is_answering and not self.has_tls  # TLS has no half-closed connections

    def connection_lost(self, exc: Exception | None) -> None:
        self._site.remove(self)
        # It may have sent what nobody answers any more. All of it was read if the last write went out at once.
        if self.is_ending or self.is_paused or self._ahead or self.has_waited:
            self.discard_unread()
        self._leave()
        if self._handler is not None:
            self._handler.connection_lost(exc)

    def _leave(self) -> None:
        on_gone, self.on_gone = self.on_gone, None
        if on_gone is not None:
            on_gone()
        if self._exchange is not None:
            self._exchange.give_up()
        if self._handler is not None:
            self._handler.leave()

    def drain(self) -> None:
        """Answer what has been asked, or is being asked, and close the connection then."""
        self.is_ending = True
        if not self._is_busy:
            self._end_unless_asked()

    @property
    def _is_busy(self) -> bool:
        """Whether a request is being answered, or the end of an answer of aiohttp's is still on its way."""
        return (
            self._exchange is not None or self._is_handed or (self._handler is not None and not self._handler.is_idle)
        )

    def _end_unless_asked(self) -> None:
        """Close an ending connection on which nothing is being answered, unless a request is coming."""
        handler = self._handler
        is_fresh = self._is_fresh and (handler is None or not handler.has_been_asked)
        is_asking = bool(self._ahead) or (handler is not None and handler.has_partial_head) or self.has_unread
        if self.is_writable and (is_fresh or is_asking):
            within_s = self.now + LAST_REQUEST_S
            self.deadline = within_s if self.deadline is None else min(self.deadline, within_s)
            self.resume_reading()
        else:
            self.deadline = self.now + LINGER_S
            self.hang_up()

    def cut(self, failure: Error) -> None:
        """End what is going on so that the client can see it, with a failure where an answer has not begun."""
        self.is_ending = True
        self.failure = failure
        if self._exchange is not None:
            self._exchange.cut(failure)
        elif self.answering is not None:
            self.answering.cancel()  # the gate knows why
        elif not self._is_busy:
            self.hang_up()

    def close(self) -> None:
        """Close it, at once where it is idle."""
        if self._exchange is not None:
            self._exchange.keep_alive = False
        elif self._handler is not None:
            self._handler.close()
        else:
            self.hang_up()

    @property
    def is_answering(self) -> bool:
        """Whether an answer of the express way is on its way, or the end of any answer."""
        return self._exchange is not None or self.transport.get_write_buffer_size() > 0

    def look(self, now: float) -> None:
        """Close the connection if its client has taken too long."""
        if self.deadline is None and self.transport.is_closing():  # by aiohttp
            self.deadline = now + LINGER_S
        if self.deadline is None or now < self.deadline:
            return
        handler = self._handler
        if self.transport.is_closing():
            self.transport.abort()
        elif self._exchange is not None:
            self._exchange.time_out()
        elif self._is_aiohttps and handler is not None and handler.has_been_at_work():
            self.deadline = now + (LAST_REQUEST_S if self.is_ending else KEEPALIVE_S)
        else:
            log.debug("Dropped a client that sent no request in time")
            self.hang_up()


def _with_ascii_target(data: bytes) -> bytes:
    """Escape what is not ASCII in a request's first line, as its client should have: curl leaves a query as typed."""
    end = data.find(b"\r\n")
    line = data[: max(end, 0)]
    if line.isascii() or not line[:1].isupper():
        return data
    return b"".join((_NO_ASCII.sub(lambda match: b"%%%02X" % match[0][0], line), data[end:]))


def _may_become_plain(data: bytes) -> bool:
    """Tell whether the rest of a plain head may follow; what cannot become one is not waited for."""
    return (
        len(data) <= heads.HEAD_LIMIT
        and data[:1].isupper()
        and data.count(b"\n") == data.count(b"\r\n")
        and b"\0" not in data
    )
