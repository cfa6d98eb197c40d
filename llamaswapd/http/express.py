"""The express way: plain requests to models that are ready, served by callbacks alone.

No task, no request object and no dictionary of headers is made for a request. What the two ways decide and do alike is
not here: who may ask (`auth`), what a name means (`core/routing`), what is changed in a body (`core/filters`), who is
granted (`Engine.lease_now`), what a model gets to see (`forward`), how answers are relayed (`relay`), what is said of
failures (`failure`) and of requests (`traffic`, `observe`, `recording`).

A request is admitted if all of this is so; if not, aiohttp answers it, alike, only slower:

1. it is a POST to a route of `MODEL_ROUTES`, with a length, and JSON or a form by its Content-Type;
2. it presents a key, where keys are configured;
3. the model's name is found in the body without much ado, and is one of ours (no peer's, selector's or pin's);
4. the body needs no change, or it is JSON and short;
5. the model is ready and has a slot, nobody waits, nothing has to stop;
6. its server takes a connection.

The first two follow from the head and are decided once for all heads that differ in nothing but the length. What goes
wrong after the last, when something has been sent that cannot be taken back, is answered here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING

from llamaswapd.activity.record import PLAIN_BYTES
from llamaswapd.core import jsontext
from llamaswapd.core.filters import Edit, edit_for
from llamaswapd.core.routing import MultipartReader
from llamaswapd.engine import Engine
from llamaswapd.errors import Cancelled, Error, RequestTimeout, UpstreamError
from llamaswapd.http import body
from llamaswapd.http.answers import error_bytes
from llamaswapd.http.errands import Errands, explain, get_connection
from llamaswapd.http.heads import Headers, Shape
from llamaswapd.http.kept import KeptRequest
from llamaswapd.http.pool import Pool
from llamaswapd.http.recording import Recorder, about_request
from llamaswapd.http.relay import Relay
from llamaswapd.http.route import Route, Start
from llamaswapd.http.traffic import CLIENT_LEFT, Traffic
from llamaswapd.http.upstream import OriginPool, Stale, Upstream
from llamaswapd.http.wire import Framing
from llamaswapd.http.wire import Shape as AnswerShape
from llamaswapd.observe.access import took
from llamaswapd.observe.inflight import Inflight, Pairs

if TYPE_CHECKING:
    from llamaswapd.http.connection import Connection

HOLD_LIMIT = 8 * 1024 * 1024  # bytes of one body that are held until its model is known
BEGINNING_BYTES = 8 * 1024  # of a body that comes in pieces, looked at for a first member `model`
PIECE_BYTES = 32 * 1024  # from which on a piece of a body is kept by itself
EDIT_LIMIT = 64 * 1024  # bytes of JSON that are changed, or read from end to end, while everybody else waits
WRITE_AT_ONCE = 256 * 1024  # bytes of a body that is sent together with the head, and kept until the answer comes
HAND_OVER_S = 0.05  # more than aiohttp takes to begin with a request that it has been handed
LINGER_S = 10.0  # how long the rest of a body is awaited that nobody wants any more

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a name leads, under one configuration."""

    model_id: str
    pool: OriginPool
    prefix: str  # of the path
    edit: Edit | None  # None: bodies stay as they are
    about: Mapping[str, str]


class Express:
    """Admits requests. Sees `engine.config` anew for each request."""

    def __init__(self, engine: Engine, inflight: Inflight, pool: Pool, traffic: Traffic, recorder: Recorder) -> None:
        self.engine = engine
        self.inflight = inflight
        self.traffic = traffic
        self.recorder = recorder
        self.errands = Errands()
        self._pool = pool
        self._config = engine.config
        self._destinations: dict[str, Destination] = {}  # of the names that have been used
        engine.on_profile(lambda _: self._destinations.clear())

    def admit(
        self, connection: Connection, shape: Shape, digits: bytes, data: bytes, start: int, length: int
    ) -> Exchange | None:
        """Take a request on; None if that is not for us, and nothing has happened then.

        `data`: its head and, from `start` on, what of its body has come, which has so many bytes in all.
        """
        config = self.engine.config
        route: Route | None = shape.memo
        if route is None or route.config is not config:
            shape.memo = route = Route(shape, config)
        if not route.is_admitted:
            return None
        exchange = Exchange(self, connection, route, shape, digits, data, start, length)
        if not exchange.go_on(exchange.began):
            return None
        self.traffic.begin()
        return exchange

    def destination(self, name: str) -> Destination | None:
        """Return where a name leads that means the same model of ours for everybody, None for any other."""
        if self.engine.config is not self._config:  # a reload may have come between a head and its body
            self._config = self.engine.config
            self._destinations.clear()
        found = self._destinations.get(name)
        return found if found is not None else self._new_destination(name)

    def _new_destination(self, name: str) -> Destination | None:
        model = self._config.resolve(name)
        if model is None or name in self._config.selectors or name in self.engine.naming.pins():
            return None
        try:
            pool, prefix, query = self._pool.of(model.proxy, model.timeouts)
        except UpstreamError:
            return None
        if pool.authorization or query:
            return None
        edit, about = edit_for(model, name, name), about_request(self._config, model)
        found = Destination(model.id, pool, prefix, edit if edit.is_needed else None, about)
        self._destinations[name] = found
        return found


class Phase(Enum):
    """What an exchange waits for."""

    MODEL = auto()  # more of the body, to find its model
    SERVER = auto()  # the connection to the model's server
    ANSWER = auto()  # the answer; the body may still be coming, and is passed on
    CAUSE = auto()  # the reason of a failure
    REST = auto()  # the rest of a body that nobody wants any more; the answer has been sent
    NOTHING = auto()  # it is over


MODEL, ANSWER, NOTHING = Phase.MODEL, Phase.ANSWER, Phase.NOTHING  # a member of an Enum is slow to find before 3.12


class Exchange(Relay):
    """One request on the express way, from its head to the end of its answer."""

    __slots__ = (
        "_digits", "_express", "_form", "_left", "_length", "_phase", "_pieces", "_prefix", "_route", "_shape",
        "_start", "_task", "_text",
    )  # fmt: skip

    method = "POST"

    def __init__(
        self,
        express: Express,
        connection: Connection,
        route: Route,
        shape: Shape,
        digits: bytes,
        data: bytes,
        start: int,
        length: int,
    ) -> None:
        # Not by way of the classes above: this is done for every request.
        self._express = express
        self.connection = connection
        self._route = route
        self.path = route.path
        self.sent_path = route.sent_path
        self._shape = shape
        self._digits = digits
        self.peer_ip = connection.peer
        self.keep_alive = shape.keep_alive
        self.heads_bytes = shape.fixed
        self.began = self.told = self.granted = time.monotonic()
        self.first_byte = self.load_began = self.ended = self.took_ms = self.wall_ahead = 0.0
        self.id = self.status = self.size = self.unix_time_ns = 0
        self._is_http11 = True
        self.is_plain = self.is_cut = self._has_own_stream = False
        self._table = self.answer = self.framing = self._upstream = None
        self._task: asyncio.Task[None] | None = None
        self._form: MultipartReader | None = None
        self.answer_kept = self.request_kept = self.lease = self.failure = self.budget = self.request = None
        self._start: Start | None = None
        self.response = b""
        self.error = self.type_of_error = ""
        self._phase = MODEL
        # What has come of the body; nothing once it has been passed on without being held. If more has to be awaited it
        # is in `_pieces`, since to put them together once costs less than to let a text grow.
        self._text = data[start:]
        self._pieces: list[bytes | bytearray] | None = None
        self._length = length
        self._left = length + start - len(data)  # bytes of the body that have not come
        if route.boundary is not None:
            self._form = MultipartReader(route.boundary, route.query)
            self._form.feed(data[start:])

    @property
    def headers(self) -> Headers:
        return Headers(self._shape, self._digits)

    def request_pairs(self) -> Callable[[], Pairs]:
        return partial(self._shape.pairs, self._digits)

    def access_line(self) -> str:
        """Return what the access log says of it."""
        start, tail = self._start or self._route.start("", self.peer_ip), self._route.access_tail
        return f"{start.access}{self.outcome} {self.size}{tail}{took(self.ended - self.began)}"

    # ---- what comes from the client

    def feed(self, data: bytes) -> None:
        """Take what the client sends."""
        if len(data) > self._left:
            self.connection.read_ahead(data[self._left :])
            data = data[: self._left]
            if not data:
                return
        self._left -= len(data)
        match self._phase:
            case Phase.MODEL:
                self._hold(data)
                if self._form is not None:
                    self._form.feed(data)
                if not self.go_on(self.connection.now):
                    self._hand_over()
            case Phase.SERVER:
                self._hold(data)
            case Phase.ANSWER if self._upstream is not None:
                self._upstream.write(data)
                if self.request_kept is not None:
                    self.request_kept.add(data)
                self._body_went_on(self._upstream)
            case Phase.REST if not self._left:
                self._end(self.connection.now)
            case _:
                pass

    def go_on(self, now: float) -> bool:
        """Go as far as what has come allows; False if the request is not for us. Then nothing has happened."""
        if self._form is not None:
            name = self._form.name
        elif not self._left:
            if self._pieces is not None and self._length > EDIT_LIMIT:  # not put together, if that can be spared
                name = jsontext.quick_model(*self._pieces)
            else:
                text = self._text if self._pieces is None else self._held()
                name = self._route.model_of(text) or _scanned_model(text)
        elif self._pieces is None or self._length - self._left <= BEGINNING_BYTES:  # the first piece, or short ones
            name = jsontext.first_model(self._held())
        else:
            name = None
        if not name:
            return self._left > 0 and self._length <= HOLD_LIMIT and self._await_body()
        to = self._express.destination(name)
        if to is None:
            return False
        if to.edit is not None:
            if self._form is not None or self._length > EDIT_LIMIT:
                return False
            if self._left:
                return self._await_body()
            return self._ask_for(to, now, to.edit.apply(self._held()))
        return self._ask_for(to, now)

    def _await_body(self) -> bool:
        self.connection.deadline = self.connection.now + body.READ_TIMEOUT_S
        return True

    def _hold(self, data: bytes) -> None:
        """Keep a piece of the body until it can be sent."""
        pieces = self._pieces
        if pieces is None:
            if not self._text:  # the head came alone
                self._text = data
                return
            self._pieces = pieces = [self._text]
        if len(data) >= PIECE_BYTES:
            pieces.append(data)
        elif isinstance(last := pieces[-1], bytearray) and len(last) < PIECE_BYTES:  # or there would be thousands
            last += data
        else:
            pieces.append(bytearray(data))

    def _held(self) -> bytes:
        """Return what has been kept of the body."""
        if self._pieces is not None:
            self._text, self._pieces = b"".join(self._pieces), None
        return self._text

    # ---- the model

    def _ask_for(self, to: Destination, now: float, edited: bytes | None = None) -> bool:
        """Get a lease and a connection; send the body as it came if it is not `edited`."""
        express, connection = self._express, self.connection
        lease = express.engine.lease_now(to.model_id)
        if lease is None:
            return False
        self.lease = lease
        self._prefix = to.prefix
        unedited = None
        if edited is not None:
            unedited, self._text = self._text, edited
        # What cannot be sent twice takes a new connection; and what would be much to keep for that.
        if not self._left and self._length <= WRITE_AT_ONCE and (upstream := to.pool.take()) is not None:
            self._send_whole(upstream, now)
        else:
            self._phase = Phase.SERVER
            self._task = express.errands.run(get_connection(self, to.pool, unedited, is_first=True))
            if self._left:
                connection.pause_reading()
        # The model's server is at work by now. Nothing of this is needed before its answer comes.
        self.model_id = to.model_id
        self.about = to.about
        self._table = table = express.inflight
        table.add(self)
        connection.deadline = None
        return True

    def on_connection(self, upstream: Upstream) -> None:
        """There is a new connection to the model's server."""
        self._task = None
        self.connection.resume_reading()
        self._send(upstream, self.connection.now)

    def on_refusal(self, unedited: bytes | None) -> None:
        """There is none, and nothing has been sent."""
        self._text = unedited or self._text
        self._hand_over()

    def _send(self, upstream: Upstream, now: float) -> None:
        if self._left or self._length > WRITE_AT_ONCE:
            self._send_in_pieces(upstream)
        else:
            self._send_whole(upstream, now)

    def _send_whole(self, upstream: Upstream, now: float) -> None:
        self._phase = ANSWER
        route, text, digits = self._route, self._text if self._pieces is None else self._held(), self._digits
        if len(text) != self._length:  # it has been edited
            digits = b"%d" % len(text)
        self._upstream = upstream
        if not self.connection.is_writable:
            upstream.pause_reading()
        self._start = start = route.start(self._prefix, self.peer_ip)
        upstream.send_whole(self, b"".join((start.head, digits, b"\r\n\r\n", text)), now)
        if route.keeps_request and self._express.recorder.budget.limit:
            self.request = text

    def _send_in_pieces(self, upstream: Upstream) -> None:
        self._phase = ANSWER
        route, budget = self._route, self._express.recorder.budget
        pieces = self._pieces if self._pieces is not None else [self._text]
        if route.keeps_request and budget.has_room_for(self._length):
            self.request_kept = kept = KeptRequest(budget)
            for piece in pieces:  # as they are: nothing more is added to them
                kept.add(piece)
        self._start = start = route.start(self._prefix, self.peer_ip)
        self.begin(upstream, b"%b%b\r\n\r\n" % (start.head, self._digits), complete=False)
        for piece in pieces:
            upstream.write(piece)
        self._text, self._pieces = b"", None
        self._body_went_on(upstream)

    def _body_went_on(self, upstream: Upstream) -> None:
        connection = self.connection
        if self._left:
            if not connection.is_paused:
                connection.deadline = connection.now + body.READ_TIMEOUT_S
        else:
            connection.deadline = None
            connection.resume_reading()  # or it would not be seen that the client leaves
            upstream.end_request()

    def on_writable(self, writable: bool) -> None:
        connection = self.connection
        if not self._left:
            return
        if writable:
            connection.resume_reading()
            connection.deadline = connection.now + body.READ_TIMEOUT_S
        else:
            connection.pause_reading()
            connection.deadline = None  # it is not the client that is slow

    # ---- its end

    def over(self, error: UpstreamError | None) -> None:
        if error is None:
            self._answered(self.status)
        elif isinstance(error, Stale) and self._text:
            self._phase = Phase.SERVER
            self._task = self._express.errands.run(get_connection(self, error.pool, is_first=False))
        else:
            self._phase = Phase.CAUSE
            self.connection.deadline = None
            self._task = self._express.errands.run(explain(self, error))

    def on_explanation(self, failure: UpstreamError | None) -> None:
        """It is known why the answer will not come, or not to its end; None: that was its end."""
        self._task = None
        if failure is None:
            self._answered(self.status)
        else:
            self._fail(failure)

    def on_accident(self, error: Exception) -> None:
        """An errand has failed as nobody foresaw."""
        if self._phase is not NOTHING:
            self.end()
            self._fail(Error(f"internal error: {type(error).__name__}; its traceback is in the log"))

    def _fail(self, error: Error) -> None:
        """Answer with an error, or show the client that its answer is cut."""
        if self.has_begun:
            log.warning("answer cut after %d bytes: %s", self.size, error)
            self.break_off(error)
            self._answered(self.status)
        else:
            if self.connection.is_ending:
                self.keep_alive = False
            answer, self.size = error_bytes(error, self._route.accept, keep_alive=self.keep_alive)
            self.connection.write(answer)
            self._answered(error.status, error)

    def on_head(self, shape: AnswerShape, digits: bytes, framing: Framing, data: bytes) -> None:
        self.budget = self._express.recorder.budget
        super().on_head(shape, digits, framing, data)

    def _answered(self, status: int, error: Error | None = None) -> None:
        self._give_back(status, error)
        connection = self.connection
        if self._left and not connection.transport.is_closing():
            # Closing now would reset the connection, and the client might not see the answer.
            self._phase = Phase.REST
            connection.deadline = self.ended + LINGER_S
            connection.resume_reading()
            return
        self._end(self.ended)

    def _end(self, now: float) -> None:
        connection = self.connection
        del self.connection  # the record must not hold on to it
        self._phase = NOTHING
        connection.end_exchange(self.keep_alive, now)

    def _give_back(self, status: int, error: Error | None = None) -> None:
        """Give back what was taken; unless `status` is 0 the request is over, which is told to whoever keeps books."""
        express, lease = self._express, self.lease
        self.outcome = status
        if not self.ended:
            self.ended = time.monotonic()
        if lease is not None:
            express.engine.leave(lease, self.ended)
            express.inflight.remove(self)
            if not status:
                express.recorder.forget(self)
            elif (
                error is None
                and self.framing is None
                and self.size <= PLAIN_BYTES
                and self._length <= PLAIN_BYTES
                and self.request_kept is None
                and self.answer is not None
                and self.answer[0].is_plain
            ):
                self.is_plain = True
                express.recorder.note(self)
            else:
                express.recorder.end(self, error)
            self.lease = None
        if status:
            self._text, self._pieces = b"", None
            self._form = None  # it holds on to what it has read
            express.traffic.end(self)

    def _hand_over(self) -> None:
        """Have aiohttp answer the request: nothing has come of it yet."""
        self._give_back(0)
        # Counted by itself until aiohttp counts it, which is some turns of the loop later.
        asyncio.get_running_loop().call_later(HAND_OVER_S, self._express.traffic.end)
        self._phase = Phase.NOTHING
        head = self._shape.head(self._digits)
        self.connection.hand_over(b"".join((head, self._held())), len(head) + self._length)

    def give_up(self) -> None:
        """The client has left."""
        if self._phase is Phase.REST:  # it has been answered
            self._phase = NOTHING
            del self.connection  # as in `_end`
        if self._phase is NOTHING:
            return
        self._phase = Phase.NOTHING
        if self._task is not None:
            self._task.cancel()
        self.end()
        self._give_back(self.status or CLIENT_LEFT)

    def cancel(self) -> None:
        if self._phase is Phase.ANSWER and self._upstream is not None:
            self._upstream.fail(Cancelled())
        elif self._phase in (Phase.SERVER, Phase.CAUSE):
            if self._task is not None:
                self._task.cancel()
            self._fail(Cancelled())

    def time_out(self) -> None:
        """The rest of the body has not come in time."""
        if self._phase is Phase.REST:
            self.connection.hang_up()
            return
        self.cut(RequestTimeout(f"no more of the request's body came for {body.READ_TIMEOUT_S:g} s"))

    def cut(self, error: Error) -> None:
        """Give the exchange up and answer with an error, or show the client that its answer is cut."""
        if self._phase is Phase.REST or self._phase is NOTHING:  # it has been answered, or nobody is there
            return
        if self._task is not None:
            self._task.cancel()
        self.end()
        self.keep_alive = False
        self._fail(error)


def _scanned_model(text: bytes) -> str | None:
    if len(text) > EDIT_LIMIT:
        return None
    scanner = jsontext.Scanner()
    scanner.feed(text)
    return scanner.model
