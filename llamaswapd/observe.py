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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Generic, Protocol, TypeVar

HISTORY_BYTES = 100 * 1024  # of each log, as llama-swap keeps
QUEUE_LIMIT = 1024  # events that wait for one reader, as in llama-swap
BYTE_UPDATES_S = 0.25  # an answer's size is told at most this often

Item = TypeVar("Item")
Pairs = Iterable[tuple[str, str]]


# ---- feeds ---------------------------------------------------------------------------------------------------------


class Feed(Generic[Item]):
    """Hands every item to all its subscriptions, none of which can hold up the publisher or another."""

    def __init__(self) -> None:
        self._subscriptions: set[Subscription[Item]] = set()

    @property
    def is_watched(self) -> bool:
        """Whether publishing reaches anybody: ask before making an item that costs something."""
        return bool(self._subscriptions)

    def publish(self, item: Item) -> None:
        """Queue an item for every subscription; from any thread."""
        for subscription in tuple(self._subscriptions):
            subscription.put(item)

    def subscribe(self, limit: int = QUEUE_LIMIT) -> Subscription[Item]:
        """Return a subscription that is live from now on; use it in a `with` block of the reader's event loop."""
        subscription = Subscription(self._subscriptions, limit)
        self._subscriptions.add(subscription)
        return subscription


class Subscription(Generic[Item]):
    """One reader's queue. When `limit` items wait, all of them are given up and `has_lost` is set."""

    def __init__(self, members: set[Subscription[Item]], limit: int) -> None:
        self.has_lost = False  # the reader resets it, once it has caught up by other means
        self._members = members
        self._limit = limit
        self._items: deque[Item] = deque()
        self._filled = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> Subscription[Item]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._members.discard(self)

    def put(self, item: Item) -> None:
        if len(self._items) >= self._limit:
            self._items.clear()
            self.has_lost = True
        self._items.append(item)
        if len(self._items) == 1:  # the reader may sleep; log lines come from any thread
            self._loop.call_soon_threadsafe(self._filled.set)

    async def items(self) -> list[Item]:
        """Wait until there is something, then return all that is queued, oldest first."""
        while not self._items:
            self._filled.clear()
            await self._filled.wait()
        items = list(self._items)
        self._items.clear()
        return items


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


class LineFormat(logging.Formatter):
    """Format records as llama-swap writes its log: `[timestamp ][LEVEL] message`, the time by `logTimeFormat`."""

    def __init__(self, time_format: str = "") -> None:
        super().__init__("%(message)s")
        self._layout = TIME_FORMATS.get(time_format.strip().lower(), "")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802, the name is logging's
        level = LEVEL_NAMES.get(record.levelno, record.levelname)
        return f"{self._timestamp(record.created)}[{level}] {record.message}"

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
    data: object


class Inflight:
    """The requests that are being answered, told to `events` as they begin, proceed and end."""

    def __init__(self, events: Feed[Event]) -> None:
        self._events = events
        self._ids = itertools.count(1)
        self._entries: dict[int, InflightEntry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def begin(
        self,
        model_id: str,
        method: str,
        path: str,
        headers: Headers,
        peer_ip: str,
        metadata: Mapping[str, str] | None = None,
    ) -> InflightEntry:
        """Enter a request; `end` of what is returned must be called, whatever happens.

        Nothing is copied: `headers` must stay as they are until then.
        """
        entry = InflightEntry(self, next(self._ids), model_id, method, path, headers, peer_ip, metadata)
        self._entries[entry.id] = entry
        if self._events.is_watched:
            self.tell(entry)
        return entry

    def snapshot(self) -> Event:
        """Return the event that says everything; it replaces whatever a reader knew."""
        requests = [entry.as_json() for entry in self._entries.values()]
        return Event("inflight", {"operation": "snapshot"} | ({"requests": requests} if requests else {}))

    def tell(self, entry: InflightEntry) -> None:
        self._events.publish(Event("inflight", {"operation": "upsert", "request": entry.as_json()}))

    def forget(self, entry: InflightEntry) -> None:
        if self._entries.pop(entry.id, None) is not None and self._events.is_watched:
            self._events.publish(Event("inflight", {"operation": "remove", "id": str(entry.id)}))

    @property
    def is_watched(self) -> bool:
        return self._events.is_watched


class InflightEntry:
    """One request in flight."""

    __slots__ = (
        "_began", "_headers", "_metadata", "_method", "_path", "_peer_ip", "_resp_headers", "_table", "_timestamp_ns",
        "_told", "id", "model_id", "resp_bytes", "status",
    )  # fmt: skip

    def __init__(
        self,
        table: Inflight,
        number: int,
        model_id: str,
        method: str,
        path: str,
        headers: Headers,
        peer_ip: str,
        metadata: Mapping[str, str] | None,
    ) -> None:
        self.id = number
        self.model_id = model_id
        self.status = 0  # until the answer begins
        self.resp_bytes = 0
        self._table = table
        self._method = method
        self._path = path
        self._headers = headers
        self._peer_ip = peer_ip
        self._metadata = metadata
        self._resp_headers: Pairs = ()
        self._timestamp_ns = time.time_ns()
        self._began = self._told = time.monotonic()

    def answered(self, status: int, headers: Pairs) -> None:
        """Note the head of the answer; `headers` must be iterable more than once."""
        self.status = status
        self._resp_headers = headers
        if self._table.is_watched:
            self._table.tell(self)

    def bytes(self, count: int) -> None:
        """Add to the size of the answer's body so far."""
        self.resp_bytes += count
        if self._table.is_watched and time.monotonic() - self._told >= BYTE_UPDATES_S:
            self._told = time.monotonic()
            self._table.tell(self)

    def end(self) -> None:
        """The request is over; may be called twice."""
        self._table.forget(self)

    def as_json(self) -> dict[str, object]:
        """Return the entry as the event stream shows it."""
        entry: dict[str, object] = {
            "id": str(self.id),
            "timestamp": rfc3339_nano(self._timestamp_ns),
            "model": self.model_id,
            "req_path": clean(self._path),
            "method": self._method,
            "req_headers": shown_headers(self._headers.items()),
            "remote_ip": remote_ip(self._headers, self._peer_ip),
            "resp_headers": shown_headers(self._resp_headers),
            "resp_bytes": self.resp_bytes,
            "elapsed_ms": round((time.monotonic() - self._began) * 1000),
        }
        return entry | ({"metadata": dict(self._metadata)} if self._metadata else {})


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
        self.inflight = Inflight(self.events)
