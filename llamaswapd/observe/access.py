"""What the access log says of one request."""

from __future__ import annotations

from typing import NamedTuple, Protocol


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
    """Return a duration as it is logged: `0.417ms`, `12.000s`."""
    if seconds < 1:
        micros = int(seconds * 1_000_000 + 0.5)
        return f"{micros // 1000}{_THOUSANDTHS[micros % 1000]}ms"
    millis = int(seconds * 1_000 + 0.5)
    return f"{millis // 1000}{_THOUSANDTHS[millis % 1000]}s"


_THOUSANDTHS = [f".{n:03d}" for n in range(1000)]  # to format a float takes five times as long
