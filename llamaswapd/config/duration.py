"""Times in Go's spelling: `15s`, `1m30s`, `250ms`."""

from __future__ import annotations

import re

_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")

# Go counts nanoseconds in 63 bits.
_MOST_S = 2**63 / 1e9


def duration_s(text: str) -> float | None:
    """Return the seconds that a text stands for (time.ParseDuration), None if it is no duration."""
    unsigned = text[1:] if text[:1] in ("-", "+") else text
    if unsigned == "0":
        return 0.0
    parts = _PART.findall(unsigned)
    if not parts or "".join(number + unit for number, unit in parts) != unsigned:
        return None
    seconds = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    if seconds >= _MOST_S:
        return None
    return -seconds if text[:1] == "-" else seconds


def go_duration(seconds: float) -> str:
    """Write a time as Go's `%v` does: `1.5s`, `1m0s`, `250ms`."""
    if seconds < 0:
        return "-" + go_duration(-seconds)
    nanoseconds = round(seconds * 1e9)
    if nanoseconds == 0:
        return "0s"
    for unit, size in (("ns", 1), ("µs", 1000), ("ms", 1_000_000)):
        if nanoseconds < size * 1000:
            return _decimal(nanoseconds, size) + unit
    minutes, rest = divmod(nanoseconds, 60_000_000_000)
    hours, minutes = divmod(minutes, 60)
    written = _decimal(rest, 1_000_000_000) + "s"
    if hours:
        return f"{hours}h{minutes}m{written}"
    return f"{minutes}m{written}" if minutes else written


def _decimal(count: int, size: int) -> str:
    whole, rest = divmod(count, size)
    fraction = f"{rest:0{len(str(size)) - 1}d}".rstrip("0") if rest else ""
    return f"{whole}.{fraction}" if fraction else str(whole)
