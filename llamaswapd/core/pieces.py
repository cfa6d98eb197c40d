"""How a text that arrives in pieces is read as if it were all there.

A reader is a generator that takes from the text and yields when it has run out of it; `feed` brings more. The grammars
(`jsontext`, `multipart`) are then ordinary loops, right at every boundary, and keep only what they are looking at.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")
Reading = Generator[None, None, T]

# The regular expressions keep a note of some 30 bytes for each token that they pass; this bounds it.
STEP_BYTES = 64 * 1024


class Malformed(Exception):
    """The text does not follow the grammar."""


class PieceReader:
    """Runs `_read`, which takes from `_text` at `_at` and yields when it needs more.

    `done`: it has returned, or the text is malformed.
    """

    def __init__(self) -> None:
        self.done = False
        self._text = b""
        self._at = 0
        self._before = 0  # bytes of the whole that came before _text
        self._reading = self._read()

    def feed(self, piece: bytes | memoryview) -> None:
        """Take the next piece, of any size; ignored once `done`."""
        for start in range(0, len(piece), STEP_BYTES):
            if self.done:
                return
            self._before += self._at
            self._text = self._text[self._at :] + piece[start : start + STEP_BYTES]
            self._at = 0
            self._step()

    @property
    def position(self) -> int:
        """Bytes of the whole that have been read."""
        return self._before + self._at

    def _step(self) -> None:
        try:
            next(self._reading)
        except (StopIteration, Malformed):
            self.done = True

    def _read(self) -> Reading[None]:
        raise NotImplementedError
