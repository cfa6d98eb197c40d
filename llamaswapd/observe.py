"""What observers may watch: events, our own log lines, the requests in flight.

Publishing never waits and costs next to nothing while nobody watches: it happens on the way of every request. Whoever
reads too slowly loses events, not anybody else's time. Knows neither HTTP nor the engine.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Generic, NamedTuple, Protocol, TypeVar

HISTORY_BYTES = 100 * 1024  # of each log, as llama-swap keeps
QUEUE_LIMIT = 1024  # events that wait for one reader, as in llama-swap
QUEUE_CHARACTERS = 8 * 1024 * 1024  # of text that waits for one reader
BYTE_UPDATES_S = 0.25  # an answer's size is told at most this often
ACCESS_LINES = 256  # of the access log at once: what that costs delays one request in as many
ACCESS_DELAY_S = 0.05  # how late a line may be

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Pairs = Iterable[tuple[str, str]]


# ---- feeds ---------------------------------------------------------------------------------------------------------


class Feed(Generic[Item]):
    """Hands every item to all its subscriptions, none of which can hold up the publisher or another."""

    def __init__(self) -> None:
        # While there are none, publishing reaches nobody: look before making an item that costs something.
        self.members: set[Subscription[Item]] = set()

    def publish(self, item: Item) -> None:
        """Queue an item for every subscription; from any thread."""
        for subscription in tuple(self.members):
            subscription.put(item)

    def subscribe(self, limit: int = QUEUE_LIMIT) -> Subscription[Item]:
        """Return a subscription that is live from now on; use it in a `with` block of the reader's event loop."""
        subscription = Subscription(self.members, limit)
        self.members.add(subscription)
        return subscription


class Subscription(Generic[Item]):
    """One reader's queue. When `limit` items wait, or much text, all is given up and `has_lost` is set."""

    def __init__(self, members: set[Subscription[Item]], limit: int) -> None:
        self.has_lost = False  # the reader resets it, once it has caught up by other means
        self._members = members
        self._limit = limit
        self._items: deque[Item] = deque()
        self._characters = 0
        self._filled = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> Subscription[Item]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._members.discard(self)

    def put(self, item: Item) -> None:
        characters = len(item) if isinstance(item, str) else 0
        if len(self._items) >= self._limit or self._characters + characters > QUEUE_CHARACTERS:
            self._clear()
            self.has_lost = True
        self._characters += characters
        self._items.append(item)
        if len(self._items) == 1:  # the reader may sleep; log lines come from any thread
            self._loop.call_soon_threadsafe(self._filled.set)

    async def items(self) -> list[Item]:
        """Wait until there is something, then return all that is queued, oldest first."""
        while not self._items:
            self._filled.clear()
            await self._filled.wait()
        items = list(self._items)
        self._clear()
        return items

    def _clear(self) -> None:
        self._items.clear()
        self._characters = 0


# ---- our own log ---------------------------------------------------------------------------------------------------


class LogRing(logging.Handler):
    """Keeps the end of our own log, as text, for whoever asks; and tells every new line."""

    def __init__(self, limit_bytes: int = HISTORY_BYTES) -> None:
        super().__init__()
        self.lines: Feed[str] = Feed()
        self._limit = limit_bytes
        self._history: deque[str] = deque()
        self._size = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record) + "\n"
        except Exception:  # a wrong log call must not end a request: what every handler of logging does
            self.handleError(record)
            return
        self._history.append(line)
        self._size += len(line.encode(errors="replace"))
        while self._size > self._limit:
            self._size -= len(self._history.popleft().encode(errors="replace"))
        self.lines.publish(line)

    def history(self) -> str:
        """Return the lines kept, oldest first, each with its newline."""
        self.acquire()
        try:
            return "".join(self._history)
        finally:
            self.release()

    def follow(self) -> tuple[str, Subscription[str]]:
        """Return the history and a subscription that goes on where it ends: no line twice, none missing."""
        self.acquire()  # `logging` holds this lock around emit()
        try:
            return "".join(self._history), self.lines.subscribe()
        finally:
            self.release()


class AccessLog(logging.Handler):
    """Collects what is to be said of each request, and says it a little later, many lines at once.

    A record of `logging` for each request would cost as much as answering it. As the first handler of the root logger
    it says what it has collected before any other line is written, so that lines stay in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self._entries: list[Answered] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, answered: Answered) -> None:
        """Note a request that has ended."""
        entries = self._entries
        entries.append(answered)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(ACCESS_DELAY_S, self.flush)
        elif len(entries) >= ACCESS_LINES:
            self.flush()

    def emit(self, record: logging.LogRecord) -> None:
        if not hasattr(record, "answered"):
            self.flush()

    def flush(self) -> None:
        """Say what has been collected."""
        entries, self._entries = self._entries, []
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        if entries and log.isEnabledFor(logging.INFO):
            answered = tuple(entries)  # one more may come, if this is another thread
            lines = "\n".join([entry.access_line() for entry in answered])
            log.info("%s", lines, extra={"answered": answered, "wall_ahead_s": time.time() - time.monotonic()})


class Answered(Protocol):
    """Whatever the access log can tell of a request. `ended`: on the monotonic clock, in seconds."""

    @property
    def ended(self) -> float: ...
    def access_line(self) -> str: ...


class Access(NamedTuple):
    """All of it, for those who have no better place; `what` is its method, path and protocol."""

    ended: float
    ip: str
    what: str
    status: int
    size: int
    agent: str
    duration_s: float

    def access_line(self) -> str:
        """Return what is said of a request. Nothing may hold a line break."""
        head = access_head(self.ip, self.what)
        return f"{head}{self.status} {self.size}{access_tail(self.agent)}{took(self.duration_s)}"


def access_head(ip: str, what: str) -> str:
    """Return how a line of the access log begins; the status, a blank and the size follow."""
    return f'Request {ip} "{what}" '


def access_tail(agent: str) -> str:
    """Return what follows then, up to the duration."""
    return f' "{agent}" '


def took(seconds: float) -> str:
    return f"{seconds * 1000:.3f}ms" if seconds < 1 else f"{seconds:.3f}s"


class LineFormat(logging.Formatter):
    """Format records as llama-swap writes its log: `[timestamp ][LEVEL] message`, the time by `logTimeFormat`."""

    def __init__(self, time_format: str = "") -> None:
        super().__init__("%(message)s")
        self._layout = TIME_FORMATS.get(time_format.strip().lower(), "")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802, the name is logging's
        level = LEVEL_NAMES.get(record.levelno, record.levelname)
        if not hasattr(record, "answered"):
            return f"{self._timestamp(record.created)}[{level}] {record.message}"
        if not self._layout:
            return f"[{level}] " + record.message.replace("\n", f"\n[{level}] ")
        times = [each.ended + record.wall_ahead_s for each in record.answered]  # type: ignore[attr-defined]
        lines = zip(times, record.message.split("\n"), strict=True)
        return "\n".join([f"{self._timestamp(ended)}[{level}] {line}" for ended, line in lines])

    def _timestamp(self, created: float) -> str:
        if not self._layout:
            return ""
        moment = datetime.fromtimestamp(created).astimezone()
        micros, offset = f"{moment.microsecond:06d}", moment.strftime("%z")
        return (
            moment.strftime(self._layout).format(
                day=f"{moment.day:>2}",
                hour=moment.hour % 12 or 12,
                offset=f"{offset[:3]}:{offset[3:]}" if moment.utcoffset() else "Z",
                fraction=f".{micros}".rstrip("0").rstrip("."),
                milli=micros[:3],
                micro=micros,
            )
            + " "
        )


LEVEL_NAMES = {logging.WARNING: "WARN", logging.CRITICAL: "ERROR"}  # llama-swap knows four levels

# Go's layouts by the names of `logTimeFormat`, in strftime's language; braces hold what strftime cannot say.
TIME_FORMATS = {
    "ansic": "%a %b {day} %H:%M:%S %Y",
    "unixdate": "%a %b {day} %H:%M:%S %Z %Y",
    "rubydate": "%a %b %d %H:%M:%S %z %Y",
    "rfc822": "%d %b %y %H:%M %Z",
    "rfc822z": "%d %b %y %H:%M %z",
    "rfc850": "%A, %d-%b-%y %H:%M:%S %Z",
    "rfc1123": "%a, %d %b %Y %H:%M:%S %Z",
    "rfc1123z": "%a, %d %b %Y %H:%M:%S %z",
    "rfc3339": "%Y-%m-%dT%H:%M:%S{offset}",
    "rfc3339nano": "%Y-%m-%dT%H:%M:%S{fraction}{offset}",
    "kitchen": "{hour}:%M%p",
    "stamp": "%b {day} %H:%M:%S",
    "stampmilli": "%b {day} %H:%M:%S.{milli}",
    "stampmicro": "%b {day} %H:%M:%S.{micro}",
    "stampnano": "%b {day} %H:%M:%S.{micro}000",
}


# ---- requests in flight --------------------------------------------------------------------------------------------


class Headers(Protocol):
    """What is read of a message's headers: names compare without regard to case."""

    def get(self, name: str, default: str, /) -> str: ...
    def items(self) -> Pairs: ...


@dataclass(frozen=True)
class Event:
    """Something for the event stream: llama-swap's name of its type, and its data as JSON will hold it."""

    type: str
    data: Mapping[str, object] | Sequence[object]


class Inflight:
    """The requests that are being answered, told to `events` as they begin, proceed and end."""

    def __init__(self, events: Feed[Event]) -> None:
        self._events = events
        self._ids = itertools.count(1)
        self._entries: dict[InflightEntry, None] = {}  # in the order in which they came
        self.watchers = events.members  # whether there are any is asked on the way of every request

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: InflightEntry) -> None:
        """Enter a request; `remove` it when it has ended, whatever happens."""
        self._entries[entry] = None
        if self.watchers:
            self.tell(entry)

    def remove(self, entry: InflightEntry) -> None:
        """The request is over; may be called twice."""
        if entry in self._entries:
            del self._entries[entry]
            if self.watchers and entry.id:  # else nobody has been told of it
                self._events.publish(Event("inflight", {"operation": "remove", "id": str(entry.id)}))

    def cancel(self, id_: str) -> bool:
        """Have whoever answers a request give it up; False if there is no such request."""
        entry = next((each for each in self._entries if each.id and str(each.id) == id_), None)
        if entry is None:
            return False
        entry.cancel()
        return True

    def _id_of(self, entry: InflightEntry) -> str:
        """Return its number: it gets one when it is first told of, because most are not."""
        entry.id = entry.id or next(self._ids)
        return str(entry.id)

    def tell(self, entry: InflightEntry) -> None:
        """Tell how the request stands."""
        if not self.watchers:
            return
        entry.told = time.monotonic()
        self._events.publish(Event("inflight", {"operation": "upsert", "request": self._shown(entry)}))

    def tell_size(self, entry: InflightEntry) -> None:
        """Tell how large its answer is by now, if that was not told just before."""
        if time.monotonic() - entry.told >= BYTE_UPDATES_S:
            self.tell(entry)

    def snapshot(self) -> Event:
        """Return the event that says everything; it replaces whatever a reader knew."""
        requests = [self._shown(entry) for entry in self._entries]
        return Event("inflight", {"operation": "snapshot"} | ({"requests": requests} if requests else {}))

    def _shown(self, entry: InflightEntry) -> dict[str, object]:
        return {"id": self._id_of(entry)} | entry.as_json()


class InflightEntry:
    """One request in flight, kept up to date by whoever answers it. Nothing is copied, and little is worked out."""

    __slots__ = (
        "_headers",
        "began",
        "id",
        "method",
        "model_id",
        "path",
        "peer_ip",
        "size",
        "status",
        "told",
        "unix_time_ns",
    )

    def __init__(self, model_id: str, method: str, path: str, headers: Headers, peer_ip: str) -> None:
        self.id = 0  # none yet
        self.status = 0  # until the answer has begun
        self.size = 0  # bytes of the answer's body so far, framing included
        self.unix_time_ns = 0  # when it began, once somebody has asked
        self.model_id = model_id
        self.method = method
        self.path = path
        self._headers = headers  # must stay as they are
        self.peer_ip = peer_ip
        self.began = self.told = time.monotonic()

    @property
    def headers(self) -> Headers:
        """Of the request."""
        return self._headers

    def cancel(self) -> None:
        """Give the request up, as somebody wants who is not its client."""

    def resp_headers(self) -> Pairs:
        """Return the header fields of the answer, if it has begun."""
        return ()

    def metadata(self) -> Mapping[str, str]:
        """Return what else there is to say of the request."""
        return {}

    def as_json(self) -> dict[str, object]:
        """Return the entry as the event stream shows it, but for its number."""
        elapsed_s = time.monotonic() - self.began
        self.unix_time_ns = self.unix_time_ns or time.time_ns() - int(elapsed_s * 1e9)
        entry: dict[str, object] = {
            "timestamp": rfc3339_nano(self.unix_time_ns),
            "model": self.model_id,
            "req_path": clean(self.path),
            "method": self.method,
            "req_headers": shown_headers(self.headers.items()),
            "remote_ip": remote_ip(self.headers, self.peer_ip),
            "resp_headers": shown_headers(self.resp_headers()),
            "resp_bytes": self.size,
            "elapsed_ms": round(elapsed_s * 1000),
        }
        metadata = self.metadata()
        return entry | ({"metadata": dict(metadata)} if metadata else {})


def remote_ip(headers: Headers, peer_ip: str) -> str:
    """Return the client's address as proxies before us tell it, else the peer's."""
    forwarded = headers.get("X-Forwarded-For", "").partition(",")[0].strip()
    return clean(forwarded or headers.get("X-Real-IP", "").strip() or peer_ip)


def shown_headers(headers: Pairs) -> dict[str, str]:
    """Return the first value of each header under its canonical name, secrets replaced. `Host` is left out."""
    shown: dict[str, str] = {}
    for raw_name, value in headers:
        name = canonical(raw_name)
        if name not in shown and name != "Host":
            shown[name] = "[REDACTED]" if name in SECRET_HEADERS else clean(value)
    return shown


def canonical(name: str) -> str:
    """Return a header's name as Go writes it, `X-Session-Id`; one that is no token stays as it is."""
    return "-".join(part.capitalize() for part in name.split("-")) if TOKEN.fullmatch(name) else clean(name)


def clean(text: str) -> str:
    """Return text without the stand-ins (lone surrogates) of bytes that were no UTF-8: no encoder takes them."""
    return text if text.isascii() else text.encode(errors="surrogatepass").decode(errors="replace")


def rfc3339_nano(time_ns: int) -> str:
    """Return a time, in nanoseconds since 1970, as RFC 3339 in UTC with nine decimals."""
    seconds, nanos = divmod(time_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanos:09d}Z"


SECRET_HEADERS = frozenset(("Authorization", "Proxy-Authorization", "Cookie", "Set-Cookie", "X-Api-Key"))
TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, section 5.6.2


class Observer:
    """Everything that can be observed, in one hand: what the front end is given."""

    def __init__(self) -> None:
        self.events: Feed[Event] = Feed()
        self.log = LogRing()
        self.access = AccessLog()
        self.inflight = Inflight(self.events)
