"""Our own log: its end for whoever asks, its lines as llama-swap writes them, and what it says of requests."""

from __future__ import annotations

import logging
import time
from collections import deque
from datetime import datetime

from llamaswapd.observe.access import Answered
from llamaswapd.observe.batch import Batch
from llamaswapd.observe.feed import Feed, Subscription

HISTORY_BYTES = 100 * 1024  # of each log, as llama-swap keeps
ACCESS_LINES = 512  # of the access log at once: what that costs delays one request in as many
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
        self._ended: Batch[Answered] = Batch(self._say, ACCESS_LINES, ACCESS_DELAY_S)
        self.add = self._ended.add  # note a request that has ended; on the way of every one

    def emit(self, record: logging.LogRecord) -> None:
        if not hasattr(record, "answered"):
            self.flush()

    def flush(self) -> None:
        """Say what has been collected."""
        self._ended.flush()

    @staticmethod
    def _say(ended: list[Answered]) -> None:
        if log.isEnabledFor(logging.INFO):
            answered = tuple(ended)  # one more may come, if this is another thread
            lines = "\n".join([each.access_line() for each in answered])
            log.info("%s", lines, extra={"answered": answered, "wall_ahead_s": time.time() - time.monotonic()})


class LineFormat(logging.Formatter):
    """Format records as llama-swap writes its log: `[timestamp ][LEVEL] message`, the time by `logTimeFormat`."""

    def __init__(self, time_format: str = "") -> None:
        super().__init__("%(message)s")
        self._layout = TIME_FORMATS.get(time_format.strip().lower(), "")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802, the name is logging's
        level = LEVEL_NAMES.get(record.levelno, record.levelname)
        if not hasattr(record, "answered"):
            return f"{self._timestamp(record.created)}[{level}] {record.message}"
        shown = record.__dict__.get("shown")  # if it is another handler's turn: these are many lines
        if shown is None or shown[0] is not self:
            shown = record.__dict__["shown"] = self, self._lines(record, level)
        return str(shown[1])

    def _lines(self, record: logging.LogRecord, level: str) -> str:
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
