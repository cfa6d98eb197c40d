"""What the head of a request says, where that is beyond doubt.

A strict subset of HTTP/1.1 (RFC 9112). Of a head outside of it nothing is said at all, not even that it is wrong:
aiohttp reads it then. Whatever is read here, aiohttp's parser reads alike; `tests/http/test_heads.py` holds the one
against the other. No socket, no loop.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from llamaswapd.http.wire import LENGTH_DIGITS, Template

HEAD_LIMIT = 16 * 1024  # bytes of a head that is read here
FIELDS_LIMIT = 64  # header lines of it

METHODS = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE"))

# A request target in origin form, of characters that nobody escapes or cuts off (RFC 3986).
_REQUEST_LINE = re.compile(
    rb"([A-Z]+) (/[!$&'()*+,\-./0-9:;=@A-Z_a-z~%]*)(\?[!$&'()*+,\-./0-9:;=?@A-Z_a-z~%]*)? HTTP/1\.1"
)
# A token, a colon, printable ASCII: neither folded lines nor bytes whose encoding has to be guessed; and no blanks at
# the end, which versions of aiohttp before 3.12 take for a part of the value.
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*+((?:[!-~](?:[\t -~]*[!-~])?)?)")

# Fields that change how a message is read, or what follows it. Content-Length and Connection are read below.
DOUBTFUL = frozenset(
    (
        b"transfer-encoding",
        b"upgrade",
        b"expect",
        b"te",
        b"trailer",
        b"http2-settings",
        b"sec-websocket-key1",
        b"proxy-connection",
    )
)


class Field:
    """One header line of a request."""

    __slots__ = ("line", "name", "value")

    def __init__(self, name: bytes, lowered: bytes, value: bytes) -> None:
        self.line = b"%b: %b" % (name, value)  # as it is sent on
        self.name = lowered
        self.value = value


class Shape(Template):
    """What a request's head says. `memo` is for whoever reads it first, to keep what follows from it."""

    __slots__ = ("fields", "keep_alive", "memo", "method", "path", "query")

    def __init__(
        self, head: bytes, digits: bytes, request_line: re.Match[bytes], fields: Sequence[Field], *, keep_alive: bool
    ) -> None:
        super().__init__(head, digits)
        self.method = request_line[1].decode()
        self.path = request_line[2].decode()
        self.query = (request_line[3] or b"")[1:].decode()  # without its question mark
        self.fields = fields
        self.keep_alive = keep_alive
        self.memo: Any = None

    def value(self, name: bytes) -> str:
        """Return a field's value, "" when it is not there; no field is there twice."""
        return next((field.value.decode() for field in self.fields if field.name == name), "")

    def pairs(self, digits: bytes) -> list[tuple[str, str]]:
        """Return the fields of such a head as text, name and value."""
        found = []
        for field in self.fields:
            name, _, value = field.line.partition(b": ")
            found.append((name.decode(), (digits if field.name == b"content-length" else value).decode()))
        return found


class Headers:
    """The header fields of one request, as observers show them."""

    def __init__(self, shape: Shape, digits: bytes) -> None:
        self._shape = shape
        self._digits = digits

    def get(self, name: str, default: str, /) -> str:
        return self._shape.value(name.lower().encode()) or default

    def items(self) -> list[tuple[str, str]]:
        return self._shape.pairs(self._digits)


def parse_head(head: bytes) -> tuple[Shape, bytes] | None:
    """Read a head with the blank line at its end; return what it says and the digits of its length, b"" if none.

    None: something in it is not beyond doubt.
    """
    line, *lines = head[:-4].split(b"\r\n")
    request_line = _REQUEST_LINE.fullmatch(line)
    if request_line is None or request_line[1] not in METHODS or len(lines) > FIELDS_LIMIT or len(head) > HEAD_LIMIT:
        return None
    if request_line[3] == b"?":
        return None
    fields = [field for line in lines if (field := _read_field(line)) is not None]
    values = {field.name: field.value for field in fields}
    if len(values) != len(lines):  # a line that is in doubt, or a field that is there twice
        return None
    if not values.get(b"host") or not DOUBTFUL.isdisjoint(values):
        return None
    digits = values.get(b"content-length", b"")
    if b"content-length" in values and not (digits.isdigit() and len(digits) <= LENGTH_DIGITS):
        return None
    connection = values.get(b"connection", b"keep-alive").lower()
    if connection not in (b"keep-alive", b"close"):
        return None
    return Shape(head, digits, request_line, fields, keep_alive=connection == b"keep-alive"), digits


@lru_cache(maxsize=2048)
def _read_short_field(line: bytes) -> Field | None:
    match = _FIELD.fullmatch(line)
    return match and Field(match[1], match[1].lower(), match[2])


def _read_field(line: bytes) -> Field | None:
    return _read_short_field(line) if len(line) <= 256 else _read_short_field.__wrapped__(line)
