"""What is kept of the bodies that go by, for the activity: all of a short one, of a long one its beginning and end.

All requests in flight share one budget, so that a thousand long streams do not hold a thousand long answers. Beyond it
each may still have the beginning and end of its own.
"""

from __future__ import annotations

from llamaswapd.activity.record import Pieces

HEAD_BYTES = 4 * 1024  # of a long answer: where Anthropic's say how many tokens came in
TAIL_BYTES = 8 * 1024  # and where all others do
LEAST_BUDGET = 4 * 1024 * 1024


class Budget:
    """How much may be kept: of one body, and of all that are in flight."""

    __slots__ = ("held", "limit", "whole")

    def __init__(self, capture_bytes: int) -> None:
        self.held = 0
        self.allow(capture_bytes)

    def allow(self, capture_bytes: int) -> None:
        """Set how many bytes a capture may have."""
        self.limit = capture_bytes
        self.whole = max(2 * capture_bytes, LEAST_BUDGET)

    def has_room_for(self, size: int) -> bool:
        """Whether a body of so many bytes can be kept in whole; if not, it is not worth to begin."""
        return size <= self.limit and self.held + size <= self.whole


class KeptAnswer:
    """An answer's body. `is_cut`: it is too long, and what is between its beginning and its end is missing.

    In one piece that grows, because a thousand small ones for each stream would be far from any cache.
    """

    __slots__ = ("_budget", "_limit", "body", "is_cut")

    def __init__(self, budget: Budget) -> None:
        self.body = bytearray()
        self.is_cut = False
        self._budget = budget
        self._limit = budget.limit

    def add(self, data: bytes) -> None:
        self.body += data
        budget = self._budget
        budget.held += len(data)
        if len(self.body) > self._limit or budget.held > budget.whole:
            self._shorten()

    def _shorten(self) -> None:
        """Leave out the middle; what comes from now on pushes out what came before, from time to time."""
        body = self.body
        if len(body) <= HEAD_BYTES + 2 * TAIL_BYTES:  # doing it for every token would take longer than all the rest
            return
        self._budget.held -= len(body) - HEAD_BYTES - TAIL_BYTES
        del body[HEAD_BYTES:-TAIL_BYTES]
        self.is_cut = True
        self._limit = HEAD_BYTES + 2 * TAIL_BYTES

    def release(self) -> None:
        """What is kept is somebody else's from now on."""
        self._budget.held -= len(self.body)


class KeptRequest:
    """A request's body, in the pieces that came. `is_cut`: it is too long, and nothing of it is kept."""

    __slots__ = ("_budget", "is_cut", "pieces", "size")

    def __init__(self, budget: Budget) -> None:
        self.pieces: list[bytes | bytearray] = []
        self.size = 0
        self.is_cut = False
        self._budget = budget

    def add(self, data: bytes | bytearray) -> None:
        if self.is_cut:
            return
        self.pieces.append(data)
        self.size += len(data)
        budget = self._budget
        budget.held += len(data)
        if self.size > budget.limit or budget.held > budget.whole:
            self.start_over()
            self.is_cut = True

    def body(self) -> bytes | Pieces | None:
        """Return the whole body, None if it is not kept, or there was none."""
        if self.is_cut or not self.pieces:
            return None
        first = self.pieces[0]
        return first if len(self.pieces) == 1 and isinstance(first, bytes) else Pieces(self.pieces, self.size)

    def start_over(self) -> None:
        """Forget what came; the same body comes again."""
        self.release()
        self.pieces, self.size, self.is_cut = [], 0, False

    def release(self) -> None:
        """What is kept is somebody else's from now on."""
        self._budget.held -= self.size
