"""Where the field `model` stands in a multipart form.

A form may carry a hundred megabytes of audio before that field: it is looked for as the bytes go by, and nothing is
kept but the part header at hand. Grammar: RFC 2046 section 5.1, RFC 7578.
"""

from __future__ import annotations

import re

from llamaswapd.core.pieces import Malformed, PieceReader, Reading

HEADER_LIMIT_BYTES = 16 * 1024  # of all header lines of one part
VALUE_LIMIT_BYTES = 4096  # longer values name no model

# A quoted value is taken as a whole, so that nothing inside a file name reads as a parameter.
PARAMETER = re.compile(r';\s*+([^\s=;"]++)\s*+=\s*+(?:"((?:[^"\\]|\\.)*)"|([^;]*))', re.DOTALL)


def parameter(header: str, name: str) -> str | None:
    """Return a parameter of a header like `form-data; name="model"`, quoted or not; None when it is not there."""
    for key, quoted, bare in PARAMETER.findall(header):
        if key.lower() == name:
            return re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL) or bare.strip()
    return None


class MultipartScanner(PieceReader):
    """Finds the first form field `model` of a body that arrives in pieces.

    `done`: it has been found, the form has ended, or the text is no form.
    """

    value: str | None = None
    span: tuple[int, int] | None = None  # the value's place in the body, in bytes: its first, one past its last

    def __init__(self, boundary: str) -> None:
        super().__init__()
        # The carriage return before it, which some scripts leave out, is left to what comes before.
        self._delimiter = b"\n--" + boundary.encode("latin-1", "replace")

    def _read(self) -> Reading[None]:
        self._text = b"\n" + self._text  # the first delimiter may be the very beginning of the body
        self._before -= 1
        while True:
            yield from self._until_delimiter()
            rest = yield from self._line(HEADER_LIMIT_BYTES)
            if rest.startswith(b"--"):
                return
            if rest.strip():
                raise Malformed
            is_model = yield from self._header()
            self._at -= 1  # the line feed belongs to the delimiter too, in a part without a body
            if is_model:
                return (yield from self._field())

    def _field(self) -> Reading[None]:
        start = self.position
        taken = yield from self._until_delimiter(keep=VALUE_LIMIT_BYTES + 3)
        value = taken[1:].removesuffix(b"\r")
        if len(value) <= VALUE_LIMIT_BYTES:
            self.value = value.decode("utf-8", "replace")
            self.span = (start + 1, start + 1 + len(value))

    def _header(self) -> Reading[bool]:
        """Take a part's header; say whether it is the field's."""
        room = HEADER_LIMIT_BYTES
        disposition = ""
        while True:
            line = yield from self._line(room)
            if not line.strip():
                return parameter(disposition, "name") == "model" and parameter(disposition, "filename") is None
            room -= len(line)
            name, _, content = line.decode("utf-8", "replace").partition(":")
            if name.strip().lower() == "content-disposition":
                disposition = content

    def _line(self, limit: int) -> Reading[bytes]:
        """Take a line; return it without its line feed."""
        while (end := self._text.find(b"\n", self._at, self._at + limit + 1)) < 0:
            if len(self._text) - self._at > limit:
                raise Malformed
            yield
        line = self._text[self._at : end]
        self._at = end + 1
        return line

    def _until_delimiter(self, keep: int = 0) -> Reading[bytes]:
        """Take everything up to and including the delimiter; return the first `keep` bytes before it."""
        taken = b""
        while True:
            start = self._at
            self._at, has_come = self._seek()
            taken += self._text[start : min(self._at, start + keep - len(taken))]
            if has_come:
                self._at += len(self._delimiter)
                return taken
            yield

    def _seek(self) -> tuple[int, bool]:
        """Return where the delimiter stands and True, else how far there is certainly none and False."""
        at, size = self._at, len(self._delimiter)
        while (at := self._text.find(self._delimiter, at)) >= 0:
            after = self._text[at + size : at + size + 2]
            if len(after) < 2:
                return at, False
            if after == b"--" or after[:1].isspace():
                return at, True
            at += 1  # a longer word that begins like the boundary
        return max(self._at, len(self._text) - size + 1), False
