"""What is done on the loop for plain requests, which are nearly all: for many at once, and little for each of them."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import cast

from llamaswapd.activity.glance import at_a_glance
from llamaswapd.activity.record import Record
from llamaswapd.activity.usage import Tokens

ENTRY_BYTES = 1024  # about what a capture takes beside bodies and heads

Read = Callable[[Record], tuple[Tokens, float, str]]


def are_plain(records: list[Record]) -> bool:
    return all([record.is_plain for record in records])  # noqa: C419, a generator takes longer


def understand(records: list[Record], number: int, wall_ahead: float, read: Read) -> dict[str, list[Record]]:
    """Number plain requests from `number` on, note what their answers tell, and return them by their models' ids.

    `wall_ahead`: by how many seconds the wall clock is ahead of the monotonic clock. `read` takes a closer look.
    """
    by_model: dict[str, list[Record]] = {}
    for record in records:
        record.number = number
        record.wall_ahead = wall_ahead
        record.tokens, record.took_ms = at_a_glance(record.response) or read(record)[:2]
        group = by_model.get(record.model_id)
        if group is None:
            by_model[record.model_id] = [record]
        else:
            group.append(record)
        number += 1
    return by_model


def forget_bodies(records: list[Record]) -> None:
    for record in records:
        record.request, record.response = None, b""


class Bunch:
    """What captures are made of: plain requests that ended together, with all their bodies in one piece.

    Thousands of short pieces, each of which goes when a thousand others have come, would be far from any cache.
    """

    __slots__ = ("_bodies", "_records", "_sizes", "first_id", "last_id", "size")

    def __init__(self, records: list[Record]) -> None:
        pieces = cast(list[bytes], [body for each in records for body in (each.request or b"", each.response)])
        self._records = records
        self._bodies = b"".join(pieces)
        self._sizes = array("I", map(len, pieces))
        self.first_id, self.last_id = records[0].number, records[-1].number
        heads = sum([each.heads_bytes for each in records])
        self.size = len(self._bodies) + heads + ENTRY_BYTES * len(records)

    def of(self, id_: int) -> tuple[Record, bytes | None, bytes]:
        """Return one of them, what was sent and what was answered."""
        index = id_ - self.first_id
        sizes = self._sizes[: 2 * index + 2]
        response = self._bodies[sum(sizes[:-1]) : sum(sizes)]
        request = self._bodies[sum(sizes[:-2]) : sum(sizes[:-1])] or None  # a plain one names its model: it has a body
        return self._records[index], request, response
