"""Which rows are asked for: the parameters of the activity pages, checked as llama-swap checks them. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from llamaswapd.errors import RequestError
from llamaswapd.observe.inflight import clean

MOST_ROWS = 999  # of a page
MOST_NUMBER = 2**63 - 1
EPOCH = datetime(1970, 1, 1)

# Sort key → column of the store.
SORT_COLUMNS = {
    "id": "id",
    "time": "ts_created",
    "model": "model_id",
    "req_path": "req_path",
    "resp_status_code": "resp_status_code",
    "resp_content_type": "resp_content_type",
    "cached": "cache_tokens",
    "prompt": "input_tokens",
    "generated": "output_tokens",
    "drafted": "draft_tokens",
    "prompt_speed": "prompt_per_second",
    "gen_speed": "tokens_per_second",
    "duration": "duration_ms",
}

_INTEGER = re.compile(r"[+-]?[0-9]{1,40}", re.ASCII)
_RFC3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:[.,]\d+)?(?:Z|([+-])(\d\d):(\d\d))", re.ASCII
)  # Go takes a comma too


@dataclass(frozen=True)
class Query:
    """One page of rows. `start` and `end`: seconds since 1970, inclusive; None where there is no limit."""

    limit: int = 25
    page: int = 1
    models: tuple[str, ...] = ()
    min_id: int | None = None
    max_id: int | None = None
    start: int | None = None
    end: int | None = None
    sort: str = "id"
    is_descending: bool = True


def parse(values: Mapping[str, Sequence[str]]) -> Query:
    """Read the parameters of a query, name → all its values; raises RequestError with llama-swap's words."""

    def first(name: str) -> str:
        return next(iter(values.get(name, ())), "").strip()

    limit = _integer(first("limit") or "25")
    if limit is None:
        raise RequestError(f"invalid limit: {first('limit')[:40]!r} is not a number")
    if not 1 <= limit <= MOST_ROWS:
        raise RequestError(f"limit must be between 1 and {MOST_ROWS}")
    page = _at_least_one("page", first("page") or "1")
    sort = first("sort") or "id"
    if sort not in SORT_COLUMNS:
        raise RequestError(f"invalid sort column: {sort[:40]!r} is none of {', '.join(SORT_COLUMNS)}")
    order = first("order").lower() or "desc"
    if order not in ("asc", "desc"):
        raise RequestError("order must be asc or desc")
    min_id = _at_least_one("min_id", first("min_id")) if first("min_id") else None
    max_id = _at_least_one("max_id", first("max_id")) if first("max_id") else None
    if min_id is not None and max_id is not None and min_id > max_id:
        raise RequestError("min_id must be <= max_id")
    start, end = _time("start", first("start")), _time("end", first("end"))
    if start is not None and end is not None and start > end:
        raise RequestError("start must be before end")
    models = tuple(model for each in values.get("model", ()) if (model := model_of(each)))
    return Query(limit, page, models, min_id, max_id, start, end, sort, order == "desc")


def model_of(text: str) -> str:
    """Return the model that a query asks for, as the store knows it."""
    return clean(text.strip())


def _at_least_one(name: str, text: str) -> int:
    value = _integer(text)
    if value is None or value < 1:
        raise RequestError(f"{name} must be >= 1")
    return value


def _integer(text: str) -> int | None:
    if not _INTEGER.fullmatch(text):
        return None
    value = int(text)
    return value if abs(value) <= MOST_NUMBER else None


def _time(name: str, text: str) -> int | None:
    if not text:
        return None
    seconds = rfc3339_seconds(text)
    if seconds is None:
        raise RequestError(f"invalid '{name}' timestamp, use RFC3339 format")
    return seconds


def rfc3339_seconds(text: str) -> int | None:
    """Return a time in whole seconds since 1970, None if it is not written as Go's `time.RFC3339` wants it."""
    match = _RFC3339.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second = (int(digits) for digits in match.groups()[:6])
    try:
        # Python knows no year 0; the calendar repeats itself every 400 years.
        moment = (
            datetime(year or 400, month, day, hour, minute, second) - EPOCH - timedelta(days=0 if year else 146_097)
        )
    except ValueError:
        return None
    hours, minutes = int(match[8] or 0), int(match[9] or 0)
    if hours > 24 or minutes > 60:  # as Go has it
        return None
    offset = (hours * 60 + minutes) * 60
    return moment // timedelta(seconds=1) - (-offset if match[7] == "-" else offset)
