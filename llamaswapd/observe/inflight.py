"""The requests that are being answered, and how they are shown: as llama-swap shows them, without secrets."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Protocol

from llamaswapd.observe.feed import Event, Feed

BYTE_UPDATES_S = 0.25  # an answer's size is told at most this often

Pairs = Iterable[tuple[str, str]]


class Headers(Protocol):
    """What is read of a message's headers: names compare without regard to case."""

    def get(self, name: str, default: str, /) -> str: ...
    def items(self) -> Pairs: ...


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
