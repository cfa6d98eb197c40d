"""What is kept of the bodies that go by, for the activity: all of a short one, of a long one its beginning and end.

All requests in flight share one budget, so that a thousand long streams do not hold a thousand long answers. Beyond it
each may still have the beginning and end of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

HEAD_BYTES = 4 * 1024  # of a long answer: where Anthropic's say how many tokens came in
TAIL_BYTES = 16 * 1024  # and where all others do
LEAST_BUDGET = 4 * 1024 * 1024


# Requests that carry files: their bodies are no use to whoever looks for what was asked (llama-swap).
UNKEPT_REQUESTS = frozenset((
    "/v1/audio/transcriptions", "/v1/images/edits", "/sdapi/v1/img2img", "/v1/audio/voices",
))  # fmt: skip


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


class Kept:
    """One body: `pieces` as they came. `is_cut`: some are missing, those in the middle if `ends` are kept, else all."""

    __slots__ = ("_budget", "_ends", "_limit", "is_cut", "pieces", "size")

    def __init__(self, budget: Budget, *, ends: bool) -> None:
        self.pieces: list[bytes] = []
        self.size = 0
        self.is_cut = False
        self._ends = ends
        self._budget = budget
        self._limit = budget.limit

    def add(self, data: bytes) -> None:
        self.pieces.append(data)
        size = len(data)
        self.size += size
        budget = self._budget
        budget.held += size
        if self.size > self._limit or budget.held > budget.whole:
            self._shorten()

    def _shorten(self) -> None:
        """Leave out the middle; what comes from now on pushes out what came before, from time to time."""
        if not self._ends:
            self.drop()
            return
        if self.size <= HEAD_BYTES + TAIL_BYTES:
            return
        self._budget.held -= self.size - HEAD_BYTES - TAIL_BYTES
        self.pieces = [_first(self.pieces, HEAD_BYTES), _last(self.pieces, TAIL_BYTES)]
        self.size = HEAD_BYTES + TAIL_BYTES
        self.is_cut = True
        self._limit = self.size + TAIL_BYTES

    def start_over(self) -> None:
        """Forget what came; the same body comes again."""
        self.release()
        self.pieces, self.size, self.is_cut, self._limit = [], 0, False, self._budget.limit

    def drop(self) -> None:
        """Keep nothing."""
        self.release()
        self.pieces, self.size, self.is_cut, self._limit = [], 0, True, -1

    def release(self) -> None:
        """What is kept is somebody else's from now on."""
        self._budget.held -= self.size


def _first(pieces: Iterable[bytes], wanted: int) -> bytes:
    """Return that many bytes from the beginning."""
    taken = []
    for piece in pieces:
        if wanted <= 0:
            break
        taken.append(piece[:wanted])
        wanted -= len(piece)
    return b"".join(taken)


def _last(pieces: Sequence[bytes], wanted: int) -> bytes:
    """Return that many bytes from the end."""
    taken = []
    for piece in reversed(pieces):
        if wanted <= 0:
            break
        taken.append(piece[max(len(piece) - wanted, 0) :])
        wanted -= len(piece)
    return b"".join(reversed(taken))
