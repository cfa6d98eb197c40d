"""Our own log: its end for whoever asks, its lines as llama-swap writes them, and what it says of requests."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from datetime import datetime
from typing import NamedTuple, Protocol

from llamaswapd.observe.feed import Feed, Subscription

HISTORY_BYTES = 100 * 1024  # of each log, as llama-swap keeps
ACCESS_LINES = 256  # of the access log at once: what that costs delays one request in as many
ACCESS_DELAY_S = 0.05  # how late a line may be

log = logging.getLogger(__name__)


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
