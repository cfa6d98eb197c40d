"""What the bytes of an answer mean: its head, and where its body ends; and what heads have in common.

A minimal, strict reader of HTTP/1.1 answers (RFC 9112). It never copies or changes a body: the scanners only say how
many of the bytes that arrived belong to the answer, so that the relay can pass them on as they are. No socket, no loop.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from typing import Generic, Protocol, TypeVar

HEAD_LIMIT = 64 * 1024  # bytes of an answer's head; also of its trailers
LENGTH_DIGITS = 18  # of a Content-Length
TEMPLATES_KEPT = 512
TEMPLATE_LIMIT = 4 * 1024  # bytes of a head whose template is kept
SWITCHING_PROTOCOLS = 101
OK = 200
NO_CONTENT = 204
NO_HEAD = b"\0"  # nothing begins so
LINE_LIMIT = 4 * 1024  # bytes of a chunk's size line with its extensions
SIZE_DIGITS = 8  # of a chunk that is passed over at once
CR, LF = 13, 10

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: [^\r\n\0]*)?")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([^\r\n\0]*+)")
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_CHUNK_SIZE = re.compile(
    rb"([0-9A-Fa-f]{1,15})[ \t]*"
    rb'(?:;[ \t]*%b[ \t]*(?:=[ \t]*(?:%b|"[^"\\\x00-\x08\x0a-\x1f\x7f]*")[ \t]*)?)*' % (_TOKEN, _TOKEN)
)
_LENGTH = re.compile(rb"[0-9]{1,18}")


class Malformed(Exception):
    """The bytes are not HTTP/1.x; the message says what is wrong with them."""


# ---- the head ------------------------------------------------------------------------------------------------------


class BodyKind(Enum):
    """How the end of a body is found (RFC 9112 section 6.3)."""

    NONE = auto()
    LENGTH = auto()
    CHUNKED = auto()
    UNTIL_CLOSE = auto()


@dataclass(frozen=True, slots=True)
class Field:
    """One header line: as it came, and taken apart. `name` is in lower case."""

    line: bytes
    name: bytes
    value: bytes


class Template:
    """A head but for the digits of its length: programs send the same one again and again.

    Two heads that differ in nothing but the number in one line mean the same, if there is no second such line. So what
    was found out about one need not be found out again.
    """

    __slots__ = ("_end", "_start", "before", "behind", "fixed", "has_length", "is_reusable")

    def __init__(self, head: bytes, digits: bytes) -> None:
        """`head`: with the blank line at its end; `digits`: of its length, as they were read, b"" if it has none."""
        start, end = find_length(head)
        self._start, self._end = start, end  # of the digits, the end as it was seen last
        self.before, self.behind = head[:start], head[end:]
        self.fixed = start + len(head) - end  # bytes of it without the digits
        self.has_length = end < len(head)
        self.is_reusable = head[start:end] == digits and head.lower().count(b"\r\ncontent-length") <= 1
        if not self.is_reusable:
            self.before, self.behind, self.has_length = NO_HEAD, head, True
            self._start = self._end = 0  # nor does anything else fit

    def head(self, digits: bytes) -> bytes:
        """Return the head that has these digits."""
        return b"".join((self.before, digits, self.behind)) if self.is_reusable else self.behind

    def fit(self, data: bytes) -> bytes | None:
        """Return the digits (b"" if it has none) if `data` begins with such a head, else None."""
        if not data.startswith(self.before):
            return None
        end, behind = self._end, self.behind
        digits = data[self._start : end]  # most are as many as the last ones
        if number(digits) >= 0 and data[end : end + len(behind)] == behind:
            return digits
        if not self.has_length:
            return b""
        start = self._start
        end = data.find(b"\r", start, start + LENGTH_DIGITS + 1)
        if end < 0:
            return None
        digits = data[start:end]
        if number(digits) < 0 or data[end : end + len(behind)] != behind:
            return None
        self._end = end
        return digits


def number(digits: bytes) -> int:
    """Return what decimal digits say, -1 if there are none or others. Compiled, a fifth of what `int` takes."""
    found = 0 if digits else -1
    for at in range(len(digits)):
        value = digits[at] - 48
        if value < 0 or value > 9:
            return -1
        found = found * 10 + value
    return found


def find_length(head: bytes) -> tuple[int, int]:
    """Return where the digits of a length stand, from and to; the end of the head twice if they are not found."""
    at = head.find(b"\r\nContent-Length: ")
    if at < 0:
        at = head.find(b"\r\ncontent-length: ")
    if at >= 0:
        start = at + 18
        end = head.find(b"\r", start)
        if 0 < end - start <= LENGTH_DIGITS and head[start:end].isdigit():
            return start, end
    return len(head), len(head)


T = TypeVar("T", bound=Template)


class Templates(Generic[T]):
    """The templates of the heads that came last, bounded in number and size."""

    def __init__(self, read: Callable[[bytes], tuple[T, bytes] | None]) -> None:
        self._read = read
        self._kept: dict[tuple[bytes, bytes], T] = {}
        self.last: T | None = None  # the one that came last, for whoever has none of his own yet

    def read(self, head: bytes) -> tuple[T, bytes] | None:
        """Return what a head says, with its blank line, and the digits of its length; None as `read` returns it."""
        start, end = find_length(head)
        known = self._kept.get((head[:start], head[end:]))
        if known is not None:
            return known, head[start:end]
        found = self._read(head)
        if found is not None and found[0].is_reusable and len(head) <= TEMPLATE_LIMIT:
            if len(self._kept) >= TEMPLATES_KEPT:
                self._kept.clear()
            self._kept[head[:start], head[end:]] = found[0]
        return found


class Shape(Template):
    """What an answer's head says."""

    __slots__ = (
        "as_usual", "body", "content_encoding", "content_type", "fields", "is_counted", "is_event_stream", "is_http11",
        "is_plain", "keeps_alive", "rendered", "status", "status_line",
    )  # fmt: skip

    def __init__(self, head: bytes, digits: bytes, status_line: bytes, fields: Sequence[Field]) -> None:
        super().__init__(head, digits)
        match = _STATUS_LINE.fullmatch(status_line)
        if match is None:
            raise Malformed(f"bad status line {status_line[:100]!r}")
        self.status = int(match[2])
        self.is_http11 = match[1] == b"1"
        self.status_line = status_line
        self.fields = fields
        self.body = _body_kind(self.status, fields)
        self.is_counted = self.body is BodyKind.LENGTH  # asked for every answer
        self.keeps_alive = self.is_http11 and b"close" not in names_in(fields, b"connection")
        self.content_type = _text_of(fields, b"content-type")
        self.content_encoding = _text_of(fields, b"content-encoding")
        self.is_event_stream = any(b"text/event-stream" in kind.lower() for kind in values_of(fields, b"content-type"))
        self.is_plain = self.status == OK and not self.content_encoding and not self.is_event_stream
        # By (is HTTP/1.1, keep the connection): what a client is sent, before and behind the digits of the length.
        self.rendered: dict[tuple[bool, bool], tuple[bytes, bytes]] = {}
        self.as_usual: tuple[bytes, bytes] | None = None  # the one for both

    def pairs(self, digits: bytes) -> list[tuple[str, str]]:
        """Return the fields of such a head as text, name and value."""
        found = []
        for field in self.fields:
            value = digits if field.name == b"content-length" else field.value
            found.append((field.name.decode(), value.decode("utf-8", "surrogateescape")))
        return found


def values_of(fields: Sequence[Field], name: bytes) -> list[bytes]:
    return [field.value for field in fields if field.name == name]


def _text_of(fields: Sequence[Field], name: bytes) -> str:
    """Return a field's first value as text, "" when it is not there."""
    return next(iter(values_of(fields, name)), b"").decode("utf-8", "surrogateescape")


def names_in(fields: Sequence[Field], name: bytes) -> set[bytes]:
    """The members of a comma-separated list field such as Connection, in lower case."""
    return {part.strip() for value in values_of(fields, name) for part in value.lower().split(b",")}


def _body_kind(status: int, fields: Sequence[Field]) -> BodyKind:
    if status < 200 or status in (NO_CONTENT, 304):
        return BodyKind.NONE
    codings = values_of(fields, b"transfer-encoding")
    if codings:
        lines = [field.line.lower() for field in fields if field.name == b"transfer-encoding"]
        if [coding.lower() for coding in codings] != [b"chunked"] or not lines[0].endswith(b"chunked"):
            raise Malformed(f"unknown transfer encoding {b', '.join(codings)[:100]!r}")
        return BodyKind.CHUNKED
    lengths = values_of(fields, b"content-length")
    if not lengths:
        return BodyKind.UNTIL_CLOSE
    if len(set(lengths)) > 1 or _LENGTH.fullmatch(lengths[0]) is None:
        raise Malformed(f"bad Content-Length {b', '.join(lengths)[:100]!r}")
    return BodyKind.LENGTH


def parse_field(line: bytes) -> Field:
    """Take a header line apart; raises Malformed."""
    match = _FIELD.fullmatch(line)
    if match is None:
        raise Malformed(f"bad header line {line[:100]!r}")
    return Field(line, match[1].lower(), match[2].strip(b" \t"))


_parse_short_field = lru_cache(maxsize=2048)(parse_field)


def parse_head(head: bytes) -> tuple[Shape, bytes]:
    """Read an answer's head, with the blank line at its end; return what it says and the digits of its length."""
    status_line, *lines = head[:-4].split(b"\r\n")
    fields = [_parse_short_field(line) if len(line) <= 256 else parse_field(line) for line in lines]
    digits = next(iter(values_of(fields, b"content-length")), b"")
    return Shape(head, digits, status_line, fields), digits


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
        self._awaits = _SIZE  # which line comes next
        self._data_left = 0  # of the chunk being read
        self._line = b""  # an unfinished line
        self._trailer_bytes = 0

    @property
    def between_chunks(self) -> bool:
        """Whether a chunk of our own may be put in here."""
        return self._awaits is _SIZE and not self._line

    def take(self, data: bytes, content: list[bytes] | None = None) -> int:
        size = len(data)
        at = 0
        if content is None and self._awaits is _SIZE and not self._line:  # `between_chunks`, found at once
            at = self._take_whole_chunks(data, size)
            if at == size:
                return at
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
            line = b"".join((self._line, data[at : end + 1])) if self._line else data[at : end + 1]
            self._check_length(line)
            if not line.endswith(b"\r\n"):
                raise Malformed(f"bad line end in a chunked body: {line[-100:]!r}")
            self._line = b""
            at = end + 1
            self._read_line(line[:-2])
        return at

    @staticmethod
    def _take_whole_chunks(data: bytes, size: int) -> int:
        """Pass over the chunks that begin with `data` and are all there, as most tokens are; what is odd is left."""
        at = 0
        while at < size:
            length, line_end = 0, at
            while line_end < min(size, at + SIZE_DIGITS) and (digit := _hex_digit(data[line_end])) >= 0:
                length = length * 16 + digit
                line_end += 1
            behind = line_end + length + 4
            if not length or behind > size:
                break
            if data[line_end] != CR or data[line_end + 1] != LF or data[behind - 2] != CR or data[behind - 1] != LF:
                break
            at = behind
        return at

    @staticmethod
    def _check_length(line: bytes) -> None:
        if len(line) > LINE_LIMIT:
            raise Malformed(f"line of more than {LINE_LIMIT} bytes in a chunked body")

    def _read_line(self, line: bytes) -> None:
        if self._awaits is _SIZE:
            self._data_left = _chunk_size(line)
            self._awaits = _AFTER_DATA if self._data_left else _TRAILER
        elif self._awaits is _AFTER_DATA:
            if line:
                raise Malformed("a chunk is longer than its size says")
            self._awaits = _SIZE
        else:
            self._trailer_bytes += len(line)
            if self._trailer_bytes > HEAD_LIMIT:
                raise Malformed(f"more than {HEAD_LIMIT} bytes of trailers")
            if line:
                parse_field(line)
            else:
                self.ended = True


_SIZE, _AFTER_DATA, _TRAILER = "size", "after data", "trailer"


def _hex_digit(character: int) -> int:
    """Return what a character stands for in a number, -1 if nothing. Compiled, next to nothing."""
    if 48 <= character <= 57:
        return character - 48
    letter = character | 32
    return letter - 87 if 97 <= letter <= 102 else -1


@lru_cache(maxsize=1024)
def _chunk_size(line: bytes) -> int:
    match = _CHUNK_SIZE.fullmatch(line)
    if match is None:
        raise Malformed(f"bad chunk size {line[:100]!r}")
    return int(match[1], 16)


def framing_of(shape: Shape, digits: bytes, *, to_head_request: bool) -> Framing:
    """Return what finds the end of an answer's body."""
    if shape.body is BodyKind.NONE or to_head_request:
        return Length(0)
    if shape.body is BodyKind.LENGTH:
        return Length(int(digits))
    return Chunked() if shape.body is BodyKind.CHUNKED else UntilClose()
