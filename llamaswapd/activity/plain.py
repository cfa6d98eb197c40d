"""What is done on the loop for plain requests, which are nearly all: for many at once, and little for each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from llamaswapd.activity.glance import Glances
from llamaswapd.activity.record import Record
from llamaswapd.activity.usage import Tokens

ENTRY_BYTES = 1024  # about what a capture takes beside bodies and heads

_glances = Glances()

Read = Callable[[Record], tuple[Tokens, float, str]]


def are_plain(records: list[Record]) -> bool:
    for record in records:  # noqa: SIM110, a generator takes longer
        if not record.is_plain:
            return False
    return True


def understand(records: list[Record], number: int, wall_ahead: float, read: Read) -> dict[str, list[Record]]:
    """Number plain requests from `number` on, note what their answers tell, and return them by their models' ids.

    `wall_ahead`: by how many seconds the wall clock is ahead of the monotonic clock. `read` takes a closer look.
    """
    by_model: dict[str, list[Record]] = {}
    for record in records:
        record.number = number
        record.wall_ahead = wall_ahead
        record.tokens, record.took_ms = _glances.look(record.response) or read(record)[:2]
        group = by_model.get(record.model_id)
        if group is None:
            by_model[record.model_id] = [record]
        else:
            group.append(record)
        number += 1
    if _glances.has_missed():
        for record in records:
            record.tokens, record.took_ms = read(record)[:2]
    return by_model


def forget_bodies(records: list[Record]) -> None:
    for record in records:
        record.request, record.response = None, b""


class Bunch:
    """What captures are made of: plain requests that ended together, with all their bodies in one piece.

    Thousands of short pieces, each of which goes when a thousand others have come, would be far from any cache.
    """

    __slots__ = ("_bodies", "_records", "first_id", "last_id", "size")

    def __init__(self, records: list[Record]) -> None:
        pieces: list[bytes] = []
        size = heads = 0
        for record in records:
            request, response = record.request, record.response
            record.request_at = size
            if request is not None:
                pieces.append(cast(bytes, request))
                size += len(request)
            record.response_at = size
            pieces.append(response)
            size += len(response)
            heads += record.heads_bytes
        self._records = records
        self._bodies = b"".join(pieces)
        self.first_id, self.last_id = records[0].number, records[-1].number
        self.size = size + heads + ENTRY_BYTES * len(records)

    def of(self, id_: int) -> tuple[Record, bytes | None, bytes]:
        """Return one of them, what was sent and what was answered."""
        record = self._records[id_ - self.first_id]
        end = len(self._bodies) if id_ == self.last_id else self._records[id_ - self.first_id + 1].request_at
        # A plain request has a body, which names its model; none was kept if there is none.
        request = self._bodies[record.request_at : record.response_at] or None
        return record, request, self._bodies[record.response_at : end]
