"""Reading and editing JSON text without parsing all of it.

A request body may hold megabytes of images in one string; what is wanted of it is one name. Strings and nested values
are passed over inside the regular expression engine, and no value is built. Text that is not JSON is never an error
here: it has no name, and comes back unedited.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llamaswapd.core.pieces import Malformed, PieceReader, Reading

Text = bytes | memoryview

QUOTE, COLON, COMMA = b'":,'
CLOSING = dict(zip(b"{[", b"}]", strict=True))

# Longer keys and names are passed over: nothing is configured under them, and what is kept stays bounded.
TEXT_LIMIT_BYTES = 4096
# Of longer texts no copies are made, though for shorter ones they cost less than a view.
COPY_LIMIT_BYTES = 256 * 1024
# About the limit of Go's encoding/json; each level that is open costs a step in Python.
DEPTH_LIMIT = 10_000

NOWHERE = -1

INDEX = re.compile(r"-1|[0-9]{1,6}")  # longer lists are a slip of the pen
START = re.compile(rb"[\x00-\x20\xef\xbb\xbf]*")  # blanks and a byte order mark, which some clients send
NUMBER = re.compile(rb"-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?")
STRING_REST = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*', re.DOTALL)

# Which branch applies is clear from one byte, so nothing is tried twice. Possessive quantifiers stand on single
# characters only: on groups they are wrong before Python 3.11.5 (gh-106052).
_BLANKS = r"[\x00-\x20]*+"
_SCALAR = r"[-+.0-9A-Za-z]++"
_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*"'


def _nested(plain: str, levels: int) -> str:
    """Return a pattern for what stands inside a list or an object: strings, others with so many levels, and `plain`."""
    container = rf"|[{{\[]{_nested(plain, levels - 1)}[}}\]]" if levels else ""
    return rf"{plain}(?:(?:{_STRING}{container}){plain})*"


_LEVELS = 4  # that are passed as a whole; the messages of a chat have four
_PLAIN = r'[^"{}\[\]]*+'
# JSON has no backslash outside its strings. Where none is allowed there, who takes a string's end for its beginning
# never gets back into step: that takes a quote that is escaped.
_NO_BACKSLASH = r'[^"{}\[\]\\]*+'
_CONTAINER = rf"[{{\[]{_nested(_NO_BACKSLASH, _LEVELS - 1)}[}}\]]"
BLANKS = re.compile(_BLANKS.encode())
SCALAR = re.compile(f"(?:{_SCALAR})?".encode())
# Inside a list or an object: everything up to its end, to something deeper, or to what does not end in this text.
NESTED = re.compile(_nested(_PLAIN, _LEVELS).encode(), re.DOTALL)
# A member that lies in this text as a whole: what stands between the quotes of its key, its value, what follows.
MEMBER = re.compile(
    rf"{_BLANKS}({_STRING}){_BLANKS}:{_BLANKS}({_STRING}|{_CONTAINER}|{_SCALAR}){_BLANKS}([,}}])".encode(),
    re.DOTALL,
)

# The beginning of most bodies: a plain name as the first member. What the scanner finds in it, this finds at once.
MODEL_FIRST = re.compile(
    rf"""[\x00-\x20\xef\xbb\xbf]*+\{{{_BLANKS}"model"{_BLANKS}:{_BLANKS}"([^"\\]{{0,{TEXT_LIMIT_BYTES}}}+)"(?={_BLANKS}[,}}])"""
    .encode()
)  # fmt: skip
OBJECT = re.compile(rb"[\x00-\x20\xef\xbb\xbf]*+\{")
LIST_MEMBER = re.compile(rf"{_BLANKS}({_STRING}){_BLANKS}:{_BLANKS}\[".encode(), re.DOTALL)
NEXT_MEMBER = re.compile(rf"\]{_BLANKS},(?={_BLANKS}\")".encode())  # behind a list that is a member of an object
# The last bytes of a piece, if that may match with the next one.
BEGUN_BYTES = 64
BEGUN = re.compile(rf"(?:\A|.*\]){_BLANKS},?{_BLANKS}\Z".encode(), re.DOTALL)
QUICK_MEMBER_BYTES = 64 * 1024  # longer members, and more behind a list, are left to the scanner
GUESSES = 16  # how many ends of lists are tried
# How many members are read before such a list, and behind all of them: what is not found soon is not found quickly.
QUICK_MEMBERS = 256


def first_model(text: bytes) -> str | None:
    """Return the model if a text that may go on begins with it; None says nothing."""
    match = MODEL_FIRST.match(text)
    return match and match[1].decode("utf-8", "replace")


def beginning(text: bytes) -> bytes:
    """Return what a text begins with if that names its model, with the comma or brace behind; else b"".

    All texts that begin so name the same.
    """
    match = MODEL_FIRST.match(text)
    if match is None:
        return b""
    blanks = BLANKS.match(text, match.end())
    return text[: (blanks or match).end() + 1]


def quick_model(*text: bytes | bytearray) -> str | None:
    """Return the first top-level `model` of a whole text, in pieces, if it is found without a look at every byte.

    None says nothing; what is returned for valid JSON is what the scanner would find. Clients put the model behind
    `messages`, megabytes perhaps. Of such a list only the end is looked for: a `]` that has a key behind it ends the
    list if what follows are members up to the brace that ends the text, since a bracket further in has other braces
    behind it before that one.
    """
    pieces = _apart_where_nothing_is(text) if len(text) > 1 else text
    first = pieces[0]
    if match := MODEL_FIRST.match(first):
        return match[1].decode("utf-8", "replace")
    start = OBJECT.match(first)
    if start is None:
        return None
    at, members = start.end(), QUICK_MEMBERS
    while (in_list := LIST_MEMBER.match(first, at)) is None:
        member = MEMBER.match(first, at, at + QUICK_MEMBER_BYTES)
        members -= 1
        if member is None or not members:
            return None
        if _is_model(member[1]):
            return _plain(member[2])
        if member[3] != b",":
            return None
        at = member.end()
    if _is_model(in_list[1]):
        return None
    at, members, guesses = in_list.end(), QUICK_MEMBERS, GUESSES
    for number, piece in enumerate(pieces):
        while guesses and (at := _next_member(piece, at)) >= 0:
            rest, is_all = _rest(pieces, number, at)
            ends_well, found, members = _model_until_end(rest, is_all, members)
            if ends_well is not False:
                return found
            guesses -= 1
        at = 0
    return None


def _apart_where_nothing_is(pieces: Sequence[bytes | bytearray]) -> Sequence[bytes | bytearray]:
    """Put pieces together between which there may be the end of a list, and the first ones until there is enough."""
    apart, grown = [pieces[0]], None
    for piece in pieces[1:]:
        last = apart[-1]
        is_long = len(last) >= QUICK_MEMBER_BYTES or len(apart) > 1  # what comes first is looked at by itself
        if is_long and not BEGUN.match(last[-BEGUN_BYTES:]):
            apart.append(piece)
            grown = None
            continue
        if grown is None:  # what came is not ours to change
            apart[-1] = grown = bytearray(last)
        grown += piece
    return apart


def _rest(pieces: Sequence[bytes | bytearray], number: int, at: int) -> tuple[bytes | bytearray, bool]:
    """Return so much text as is read behind a list, from a place in a piece on; and whether that is all."""
    rest = pieces[number][at : at + QUICK_MEMBER_BYTES]
    for piece in pieces[number + 1 :]:
        if len(rest) == QUICK_MEMBER_BYTES:
            break
        rest += piece[: QUICK_MEMBER_BYTES - len(rest)]
    return rest, len(rest) == sum(map(len, pieces[number:])) - at


def _next_member(text: bytes | bytearray, at: int) -> int:
    """Return where a member of an object begins that follows a list; -1 if that is nowhere."""
    for _ in range(1000):  # finding single bytes is many times faster than matching, unless there are many
        at = text.find(b"]", at)
        if at < 0:
            return -1
        if match := NEXT_MEMBER.match(text, at):
            return match.end()
        at += 1
    match = NEXT_MEMBER.search(text, at)
    return match.end() if match else -1


def _model_until_end(text: bytes | bytearray, is_all: bool, most: int) -> tuple[bool | None, str | None, int]:
    """Read members, `most` of them. `is_all`: nothing comes behind the text.

    Return whether their object ends with all of the text (None: that cannot be told), the first model, and what is
    left of `most`.
    """
    found, is_found, at = None, False, 0
    while most and (member := MEMBER.match(text, at)):
        most -= 1
        if not is_found and _is_model(member[1]):
            found, is_found = _plain(member[2]), True
        at = member.end()
        if member[3] != b",":
            if _end(BLANKS, text, at) < len(text):
                return False, None, most
            return (True, found, most) if is_all else (None, None, most)
    return None, None, most


def _is_model(key: bytes | bytearray) -> bool:
    return key == b'"model"' or (b"\\" in key and _unquoted(key[1:-1]) == "model")


class _JsonReader(PieceReader):
    """The grammar of JSON, as far as it takes to get past a value."""

    def _peek(self, blanks: re.Pattern[bytes] = BLANKS) -> Reading[int]:
        """Pass over blanks; return the byte that follows, without taking it."""
        while True:
            self._at = _end(blanks, self._text, self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            yield

    def _string(self) -> Reading[bytes]:
        """Take a string whose quote is next; return what is between the quotes, cut just above the limit."""
        self._at += 1
        taken = b""
        while True:
            start, end = self._at, _string_end(self._text, self._at)
            taken += self._text[start : min(end, start + TEXT_LIMIT_BYTES + 1 - len(taken))]
            self._at = end
            if self._text[end : end + 1] == b'"':
                self._at += 1
                return taken
            yield  # the piece has ended, or all but a backslash, whose second half comes with the next

    def _key(self) -> Reading[str]:
        """Take a key and its colon."""
        if (yield from self._peek()) != QUOTE:
            raise Malformed
        raw = yield from self._string()
        if (yield from self._peek()) != COLON:
            raise Malformed
        self._at += 1
        return _unquoted(raw) or ""

    def _value(self) -> Reading[bytes]:
        """Take a value; return its text, of a list or object only the bracket."""
        first = yield from self._peek()
        if first == QUOTE:
            return b'"%b"' % (yield from self._string())
        if first in CLOSING:
            yield from self._nested()
            return bytes([first])
        return (yield from self._scalar())

    def _scalar(self) -> Reading[bytes]:
        """Take a number or a word; what it says is not looked at."""
        taken = b""
        while True:
            start, end = self._at, _end(SCALAR, self._text, self._at)
            taken += self._text[start : min(end, start + TEXT_LIMIT_BYTES + 1 - len(taken))]
            self._at = end
            if end < len(self._text):
                break
            yield
        if not taken:
            raise Malformed
        return taken

    def _nested(self) -> Reading[None]:
        """Take a list or object whose bracket is next."""
        self._at += 1
        depth = 1
        while depth:
            if depth > DEPTH_LIMIT:
                raise Malformed
            self._at = _end(NESTED, self._text, self._at)
            if self._at == len(self._text):
                yield
            elif self._text[self._at] == QUOTE:
                yield from self._string()
            else:
                depth += 1 if self._text[self._at] in CLOSING else -1
                self._at += 1


class Scanner(_JsonReader):
    """Finds the first top-level `model` and `stream` of an object that arrives in pieces.

    `done`: both are known, the object has ended, or the text is no JSON object.
    """

    model: str | None = None  # numbers and booleans as their text; None also for null, lists and objects
    stream = False

    def _read(self) -> Reading[None]:
        if (yield from self._peek(START)) not in b"{":
            return
        self._at += 1
        wanted = {"model", "stream"}
        while wanted:
            key, value, mark = yield from self._member()
            if key in wanted:
                wanted.remove(key)
                self._found(key, value)
            if mark != COMMA:
                return

    def _member(self) -> Reading[tuple[str, bytes, int]]:
        """Take a member and the byte after it; return its key, its value as `_value` does, and that byte."""
        whole = MEMBER.match(self._text, self._at)
        if whole:
            self._at = whole.end()
            return _unquoted(whole[1][1:-1]) or "", whole[2], whole[3][0]
        key = yield from self._key()
        value = yield from self._value()
        mark = yield from self._peek()
        self._at += 1
        return key, value, mark

    def _found(self, key: str, value: bytes) -> None:
        text = _plain(value)
        if key == "model":
            self.model = text
        else:
            self.stream = text == "true"


def edit(text: bytes, deletes: Sequence[str], sets: Sequence[tuple[str, Any]]) -> bytes:
    """Delete, then set, members by path; everything else keeps its text. What is not JSON comes back unchanged.

    A dot in a path descends, `\\.` is a dot, a number is the place in a list, `-1` the last one to delete and a new one
    to set. What is missing on the way is made, and what is not a list or object gives way. New members come last. Of
    members with the same key all are deleted, or replaced by one, since servers differ in which they read.
    """
    return b"".join(edited(text, deletes, sets))


def edited(text: bytes, deletes: Sequence[str], sets: Sequence[tuple[str, Any]]) -> list[Text]:
    """Do what `edit` does, but return the text in pieces: those of a long one are views of what was given."""
    try:
        root = _Container(text)
        for path in deletes:
            root.delete(split(path))
        for path, value in sets:
            root.set(split(path), _dumped(value))
    except Malformed:
        return [text]
    return root.pieces


def split(path: str) -> list[str]:
    """Return the parts of a dotted path, without their escapes."""
    parts = re.findall(r"(?:\\.|[^.])+", path, re.DOTALL) or [""]
    return [re.sub(r"\\(.)", r"\1", part, flags=re.DOTALL) for part in parts]


@dataclass(eq=False, slots=True)
class _Item:
    """A member of an object or an element of a list, by where it stands in the text."""

    key: str  # of a list's element: ""
    start: int  # behind the comma before it; NOWHERE of a new one
    middle: int  # where its value begins
    end: int  # where its value ends
    stop: int  # where the comma behind it is
    value: bytes | None = None  # None: as in the text
    inner: _Container | None = None  # the value, once it is taken apart


class _Container(_JsonReader):
    """A list or object taken apart into its items; what is not changed is taken over in as few pieces as can be."""

    def __init__(self, text: Text) -> None:
        super().__init__()
        self._items: list[_Item] = []
        self._is_list = False
        self._first = self._last = 0  # where the items begin and end
        self._whole = memoryview(text) if len(text) > COPY_LIMIT_BYTES else text
        self.feed(text)
        if not self._last:
            raise Malformed

    def _read(self) -> Reading[None]:
        opening = yield from self._peek(START)
        if opening not in CLOSING:
            raise Malformed
        self._at += 1
        self._first = start = end = self.position
        self._is_list = opening in b"["
        mark = yield from self._peek()
        while mark != CLOSING[opening]:
            if self._items:
                if mark != COMMA:
                    raise Malformed
                self._items[-1].stop = self.position
                self._at += 1
                start = self.position
            key = "" if self._is_list else (yield from self._key())
            yield from self._peek()
            middle = self.position
            yield from self._value()
            end = self.position
            self._items.append(_Item(key, start, middle, end, end))
            mark = yield from self._peek()
        self._last = end

    @property
    def pieces(self) -> list[Text]:
        whole, comma, found = self._whole, b"", list[Text]()
        # A stretch of the text that is taken over, and goes on as long as items follow in it.
        begin, at = 0, self._first
        for item in self._items:
            if item.start != at + len(comma):
                found += (whole[begin:at], comma)
                begin = item.start
            comma = b","
            if item.value is None and item.inner is None:
                at = item.stop
                continue
            if item.start == NOWHERE:  # behind all that were there
                found.append(b"" if self._is_list else _dumped(item.key) + b":")
                begin = at = self._last
            else:
                found.append(whole[begin : item.middle])
                begin, at = item.end, item.stop
            if item.inner is not None:
                found += item.inner.pieces
            elif item.value is not None:
                found.append(item.value)
        return [*found, whole[begin:at], whole[self._last :]]

    def delete(self, path: Sequence[str]) -> None:
        items = self._named(path[0], last=len(path) == 1)
        if len(path) == 1:
            self._remove(items)
            return
        for item in items:
            if inner := self._inner(item):
                inner.delete(path[1:])

    def set(self, path: Sequence[str], value: bytes) -> None:
        """Put a value where the path says; a word has no place in a list."""
        name, rest = path[0], path[1:]
        items = self._named(name)
        if items:
            self._put(items[0], rest, value)
            self._remove(items[1:])
        elif not self._is_list:
            self._put(self._added(name), rest, value)
        elif _is_index(name):
            for _ in range(int(name) - len(self._items)):
                self._added("")
            self._put(self._added(""), rest, value)

    def _put(self, item: _Item, path: Sequence[str], value: bytes) -> None:
        """Set what a path means in an item; what is no list or object gives way to one."""
        if not path:
            item.value, item.inner = value, None
            return
        inner = self._inner(item)
        if inner is None:
            inner = item.inner = _Container(b"[]" if _is_index(path[0]) else b"{}")
        inner.set(path, value)

    def _inner(self, item: _Item) -> _Container | None:
        """Return the list or object that an item is; it is taken apart once, however many paths lead into it."""
        if item.inner is None:
            value = self._whole[item.middle : item.end] if item.value is None else item.value
            if value[0] in CLOSING:
                item.inner = _Container(value)
        return item.inner

    def _added(self, key: str) -> _Item:
        """Return a new last item, which is null."""
        self._items.append(_Item(key, NOWHERE, 0, 0, 0, b"null"))
        return self._items[-1]

    def _remove(self, items: Sequence[_Item]) -> None:
        gone = set(items)  # there may be as many of one key as find room in a body
        if gone:
            self._items = [item for item in self._items if item not in gone]

    def _named(self, name: str, last: bool = False) -> list[_Item]:
        """Return the items that a part of a path means; `-1` only where the `last` one can be meant."""
        if not self._is_list:
            return [i for i in self._items if i.key == name]
        if name == "-1":
            return self._items[-1:] if last else []
        return self._items[int(name) :][:1] if _is_index(name) else []


def _is_index(part: str) -> bool:
    return INDEX.fullmatch(part) is not None


def _dumped(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str).encode("utf-8", "replace")


def _plain(value: bytes | bytearray) -> str | None:
    """Return the content of a string, the text of a number or boolean, else None."""
    if value.startswith(b'"'):
        return _unquoted(value[1:-1])
    if value in (b"true", b"false") or NUMBER.fullmatch(value):
        return value.decode()
    return None


def _unquoted(raw: bytes | bytearray) -> str | None:
    """Return what stands between the quotes of a string, None if it is too long or its escapes are wrong."""
    if len(raw) > TEXT_LIMIT_BYTES:
        return None
    text = raw.decode("utf-8", "replace")
    if "\\" not in text:
        return text
    try:
        decoded: str = json.loads(f'"{text}"', strict=False)
    except ValueError:
        return None
    return re.sub("[\ud800-\udfff]", "\ufffd", decoded)  # half of a pair is no character and cannot be written again


def _string_end(text: bytes, at: int) -> int:
    """Return where a string ends that goes on at `at`: at its quote, at a lone last backslash, or with the text."""
    quote = text.find(b'"', at)
    end = quote if quote >= 0 else len(text)
    # Long strings are mostly images in base64, without a backslash: finding bytes is many times faster than matching.
    return end if text.find(b"\\", at, end) < 0 else _end(STRING_REST, text, at)


def _end(pattern: re.Pattern[bytes], text: bytes | bytearray, at: int) -> int:
    match = pattern.match(text, at)
    assert match is not None  # every pattern here matches the empty text
    return match.end()
