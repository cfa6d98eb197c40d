"""What a row of the activity says: as it is noted, as the store keeps it, as clients see it. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

from llamaswapd.activity.usage import Tokens
from llamaswapd.observe.inflight import clean

# In the order of `Row.stored`. The first ones, and the table's name, are llama-swap's: its file can be taken over.
COLUMNS = (
    "id", "ts_created", "model_id", "req_path", "resp_content_type", "resp_status_code", "cache_tokens",
    "draft_tokens", "draft_acc_tokens", "input_tokens", "output_tokens", "prompt_per_second", "tokens_per_second",
    "duration_ms", "error_msg", "metadata_json", "queued_ms", "loading_ms", "first_byte_ms", "streaming_ms",
)  # fmt: skip

Stored = tuple[int | float | str | None, ...]


class Row(NamedTuple):
    """One request, as little worked out as possible. Times as in `Record`; `took_ms` by its server's own account."""

    number: int
    created: int  # seconds since 1970
    model_id: str
    path: str
    content_type: str
    status: int
    tokens: Tokens
    took_ms: float
    began: float
    load_began: float
    granted: float
    first_byte: float
    ended: float
    error: str
    metadata: Mapping[str, str]

    def stored(self) -> Stored:
        """Return the row in the order of COLUMNS."""
        return (
            self.number,
            self.created,
            clean(self.model_id),
            clean(self.path),
            clean(self.content_type),
            self.status,
            *self.tokens,
            max(_ms(self.ended - self.began), int(self.took_ms)),
            clean(self.error),
            _json(tuple(self.metadata.items())) if self.metadata else "",
            *self._phases_ms(),
        )

    def _phases_ms(self) -> tuple[int, int, int, int]:
        """Return how long it was queued, its model was loading, the first byte took from then on, the rest took.

        A request that joins a load finds part of it done: what passed before the request came is not its time.
        """
        granted = self.granted or self.ended
        began_loading = max(self.load_began, self.began) if self.load_began else granted
        first_byte = self.first_byte or self.ended
        has_answer = self.first_byte > 0
        return (
            _ms(began_loading - self.began),
            _ms(granted - began_loading),
            _ms(first_byte - granted) if has_answer else 0,
            _ms(self.ended - first_byte) if has_answer else 0,
        )


def _ms(seconds: float) -> int:
    return int(seconds * 1000 + 0.5) if seconds > 0 else 0


@lru_cache(maxsize=256)  # it says much the same of all requests
def _json(metadata: tuple[tuple[str, str], ...]) -> str:
    return json.dumps(dict(metadata))


def shown(values: Sequence[int | float | str | None], *, has_capture: bool) -> dict[str, object]:
    """Return a row of the store as clients see it."""
    at = dict(zip(COLUMNS, values, strict=True))
    created = at["ts_created"]
    row: dict[str, object] = {
        "id": at["id"],
        "timestamp": _timestamp(created if isinstance(created, int) else 0),
        "model": at["model_id"],
        "req_path": at["req_path"],
        "resp_content_type": at["resp_content_type"],
        "resp_status_code": at["resp_status_code"],
        "tokens": {name: at[name] for name in COLUMNS[6:13]},
        "duration_ms": at["duration_ms"],
        "has_capture": has_capture,
    }
    if at["error_msg"]:
        row["error_msg"] = at["error_msg"]
    metadata = _metadata(at["metadata_json"])
    if metadata:
        row["metadata"] = metadata
    if at["queued_ms"] is not None:  # not of a row that llama-swap has written
        row |= {name: at[name] for name in COLUMNS[16:]}
    return row


def _timestamp(seconds: int) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (ValueError, OverflowError, OSError):
        return "1970-01-01T00:00:00Z"


def _metadata(text: object) -> object:
    if not isinstance(text, str) or not text:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
