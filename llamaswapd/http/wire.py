"""What the bytes of an answer mean: its head, and where its body ends.

A minimal, strict reader of HTTP/1.1 answers (RFC 9112). It never copies or changes a body: the scanners only say how
many of the bytes that arrived belong to the answer, so that the relay can pass them on as they are. No socket, no loop.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

HEAD_LIMIT = 64 * 1024  # bytes of an answer's head; also of its trailers
LINE_LIMIT = 4 * 1024  # bytes of a chunk's size line with its extensions

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: [^\r\n\0]*)?")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\r\n\0]*?)[ \t]*")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n\0]*)?")
_LENGTH = re.compile(rb"[0-9]{1,18}")


class Malformed(Exception):
    """The bytes are not HTTP/1.x; the message says what is wrong with them."""


# ---- the head ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Field:
    """One header line: as it came, and taken apart. `name` is in lower case."""

    line: bytes
    name: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Head:
    """An answer's status line and header fields, in their order."""

    status: int
    is_http11: bool
    status_line: bytes
    fields: Sequence[Field]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Yield the fields as text, name and value."""
        return ((field.name.decode(), field.value.decode("utf-8", "surrogateescape")) for field in self.fields)

    def values(self, name: bytes) -> list[bytes]:
        return [field.value for field in self.fields if field.name == name]

    def names_in(self, name: bytes) -> set[bytes]:
        """The members of a comma-separated list field such as Connection, in lower case."""
        return {part.strip() for value in self.values(name) for part in value.lower().split(b",")}


def _parse_field(line: bytes) -> Field:
    match = _FIELD.fullmatch(line)
    if match is None:
        raise Malformed(f"bad header line {line[:100]!r}")
    return Field(line, match[1].lower(), match[2])


# Servers send the same lines again and again; what a line means never changes. Long lines would make the cache large.
_parse_short_field = lru_cache(maxsize=2048)(_parse_field)


def parse_head(head: bytes) -> Head:
    """Read an answer's head, without the blank line at its end."""
    status_line, *lines = head.split(b"\r\n")
    match = _STATUS_LINE.fullmatch(status_line)
    if match is None:
        raise Malformed(f"bad status line {status_line[:100]!r}")
    fields = [_parse_short_field(line) if len(line) <= 256 else _parse_field(line) for line in lines]
    return Head(int(match[2]), match[1] == b"1", status_line, fields)


# ---- the body ------------------------------------------------------------------------------------------------------


class Framing(Protocol):
    """Finds the end of one body in the bytes that follow the head."""

    ended: bool

    def take(self, data: bytes, content: list[bytes] | None = None) -> int:
        """Return how many bytes of `data` belong to the body, framing included; sets `ended` after the last one.

        What of them is content, and not framing, is appended to `content` for those who ask.
        """


class Length:
    """A body of known length; 0 also stands for the answers that have none (HEAD, 204, 304)."""

    def __init__(self, length: int) -> None:
        self.left = length
        self.ended = length == 0

    def take(self, data: bytes, content: list[bytes] | None = None) -> int:
        taken = min(len(data), self.left)
        self.left -= taken
        self.ended = self.left == 0
        if content is not None:
            content.append(data[:taken])
        return taken


class UntilClose:
    """A body that ends when the server closes the connection."""

    ended = False

    def take(self, data: bytes, content: list[bytes] | None = None) -> int:
        if content is not None:
            content.append(data)
        return len(data)


class Chunked:
    """A chunked body, with extensions and trailers (RFC 9112 section 7.1)."""

    def __init__(self) -> None:
        self.ended = False
        self._data_left = 0  # of the chunk being read
        self._line = b""  # an unfinished line
        self._read_line = self._size_line
        self._trailer_bytes = 0

    @property
    def between_chunks(self) -> bool:
        """Whether a chunk of our own may be put in here."""
        return self._data_left == 0 and not self._line and self._read_line == self._size_line

    def take(self, data: bytes, content: list[bytes] | None = None) -> int:
        at, size = 0, len(data)
        while at < size and not self.ended:
            if self._data_left:
                step = min(self._data_left, size - at)
                if content is not None:
                    content.append(data[at : at + step])
                self._data_left -= step
                at += step
                continue
            end = data.find(b"\n", at)
            if end < 0:
                self._line += data[at:]
                self._check_length(self._line)
                return size
            line = self._line + data[at : end + 1] if self._line else data[at : end + 1]
            self._check_length(line)
            if not line.endswith(b"\r\n"):
                raise Malformed(f"bad line end in a chunked body: {line[-100:]!r}")
            self._line = b""
            at = end + 1
            self._read_line(line[:-2])
        return at

    @staticmethod
    def _check_length(line: bytes) -> None:
        if len(line) > LINE_LIMIT:
            raise Malformed(f"line of more than {LINE_LIMIT} bytes in a chunked body")

    def _size_line(self, line: bytes) -> None:
        self._data_left = _chunk_size(line)
        self._read_line = self._after_data if self._data_left else self._trailer_line

    def _after_data(self, line: bytes) -> None:
        if line:
            raise Malformed("a chunk is longer than its size says")
        self._read_line = self._size_line

    def _trailer_line(self, line: bytes) -> None:
        self._trailer_bytes += len(line)
        if self._trailer_bytes > HEAD_LIMIT:
            raise Malformed(f"more than {HEAD_LIMIT} bytes of trailers")
        if line:
            _parse_field(line)
        else:
            self.ended = True


@lru_cache(maxsize=1024)
def _chunk_size(line: bytes) -> int:
    match = _CHUNK_SIZE.fullmatch(line)
    if match is None:
        raise Malformed(f"bad chunk size {line[:100]!r}")
    return int(match[1], 16)


def framing_of(head: Head, *, to_head_request: bool) -> Framing:
    """Return how the body of an answer is delimited (RFC 9112 section 6.3)."""
    if to_head_request or head.status < 200 or head.status in (204, 304):
        return Length(0)
    codings = head.values(b"transfer-encoding")
    if codings:
        if [coding.lower() for coding in codings] != [b"chunked"]:
            raise Malformed(f"unknown transfer encoding {b', '.join(codings)[:100]!r}")
        return Chunked()
    lengths = head.values(b"content-length")
    if not lengths:
        return UntilClose()
    if len(set(lengths)) > 1 or _LENGTH.fullmatch(lengths[0]) is None:
        raise Malformed(f"bad Content-Length {b', '.join(lengths)[:100]!r}")
    return Length(int(lengths[0]))
