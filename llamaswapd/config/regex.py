"""Regular expressions as llama-swap reads them: in the syntax of Go's regexp, which is RE2's.

A pattern is read here and written anew for Python's `re`, so that what both accept and read differently (`$`, `\\d`,
`\\pL`, `[[:alpha:]]`, flags in mid-pattern) means what it means in Go, and what only Python knows (look-around,
back-references) is refused. Reference: pkg.go.dev/regexp/syntax, with the flags that regexp.Compile sets.

What cannot be carried over is refused too: scripts, such as `\\p{Greek}`. Where case does not count, each letter is
written as the class of all its cases, because Python also takes the Turkish ı and İ for an i.
"""

from __future__ import annotations

import re
import string
import sys
import unicodedata
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TypeAlias

# Limits of Go's parser, but for the depth, of which it allows 1000: Python's compiler recurses.
_MOST_REPEATS = 1000
_DEEPEST = 100


class RegexError(ValueError):
    """The pattern is no regular expression of RE2's, or holds something that cannot be carried over."""


def compile_re2(pattern: str) -> re.Pattern[str]:
    """Return a pattern that finds what Go's regexp would find; raises RegexError with the reason, in Go's words.

    Groups keep their numbers and lose their names.
    """
    translated = _Translator(pattern).whole()
    try:
        return re.compile(translated)
    except (re.error, OverflowError, RecursionError) as error:
        raise RegexError(f"Python cannot compile it: {error}") from None


def without_start(pattern: str) -> str:
    """Return an expression that is found in the same texts without a `.*` at its beginning.

    To search for one that begins so takes time with the square of the text's length.
    """
    return re.sub(r"^(\.\*\??(?![?*+{]))+", "", pattern)


def _failed(code: str, part: str) -> RegexError:
    return RegexError(f"error parsing regexp: {code}: `{part}`")


# ---- sets of characters --------------------------------------------------------------------------------------------

Ranges: TypeAlias = tuple[tuple[int, int], ...]  # code points, both ends included

_LAST = sys.maxunicode


def _ranges(*characters: str) -> Ranges:
    """Return the ranges that texts such as `az` and `_` stand for."""
    return tuple((ord(each[0]), ord(each[-1])) for each in characters)


def _complement(ranges: Ranges) -> Ranges:
    gaps, start = [], 0
    for low, high in sorted(ranges):
        if low > start:
            gaps.append((start, low - 1))
        start = max(start, high + 1)
    return (*gaps, (start, _LAST)) if start <= _LAST else tuple(gaps)


_DIGITS = _ranges("09")
_WORD = _ranges("09", "AZ", "_", "az")
_PERL: dict[str, Ranges] = {"d": _DIGITS, "s": _ranges("\t\n", "\f\r", " "), "w": _WORD}
_POSIX: dict[str, Ranges] = {
    "alnum": _ranges("09", "AZ", "az"), "alpha": _ranges("AZ", "az"), "ascii": ((0, 0x7F),),
    "blank": _ranges("\t", " "),
    "cntrl": ((0, 0x1F), (0x7F, 0x7F)), "digit": _DIGITS, "graph": _ranges("!~"), "lower": _ranges("az"),
    "print": _ranges(" ~"), "punct": _ranges("!/", ":@", "[`", "{~"), "space": _ranges("\t\r", " "),
    "upper": _ranges("AZ"), "word": _WORD, "xdigit": _ranges("09", "AF", "af"),
}  # fmt: skip
_CATEGORIES = re.compile(r"C[cfos]?|L[lmotu]?|M[cen]?|N[dlo]?|P[cdefios]?|S[ckmo]?|Z[lps]?")


@lru_cache(maxsize=4)
def _category(name: str) -> Ranges:
    """Return the characters of a general category, such as L or Lu. Walks through all of Unicode."""
    found: list[list[int]] = []
    for code in range(_LAST + 1):
        of = unicodedata.category(chr(code))
        if not of.startswith(name) or (of == "Cn" and name == "C"):
            continue
        if found and found[-1][1] == code - 1:
            found[-1][1] = code
        else:
            found.append([code, code])
    return tuple((low, high) for low, high in found)


@lru_cache(maxsize=1)
def _cases() -> tuple[tuple[int, ...], ...]:
    """Return the letters that are one if case does not count, by Unicode's simple folding: k, K and the kelvin sign."""
    by_fold: dict[str, list[int]] = {}
    for code in range(_LAST + 1):
        char = chr(code)
        fold = next((fold for fold in (char.casefold(), char.lower()) if len(fold) == 1), char)
        if fold != char or char.upper() != char:
            by_fold.setdefault(fold, []).append(code)
    return tuple(tuple(codes) for codes in by_fold.values() if len(codes) > 1)


def _folded(ranges: Ranges) -> Ranges:
    """Return the characters with all their cases."""
    added = [
        (code, code)
        for codes in _cases()
        if any(low <= code <= high for code in codes for low, high in ranges)
        for code in codes
    ]
    return _complement(_complement((*ranges, *added)))


def _written(ranges: Ranges) -> str:
    """Write a set of characters as a class of Python's."""
    if not ranges:
        return "(?!)"
    return "[" + "".join(_char(low) + (f"-{_char(high)}" if high > low else "") for low, high in ranges) + "]"


def _char(code: int) -> str:
    return chr(code) if chr(code) in string.ascii_letters + string.digits else f"\\U{code:08x}"


# ---- flags and groups ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Flags:
    """The letters of `(?imsU)`."""

    i: bool = False
    m: bool = False
    s: bool = False
    U: bool = False


@dataclass
class _Piece:
    """Something that can be repeated, written for Python."""

    text: str
    repeats: int = 1  # how often the innermost part of it may stand here, as far as counts say
    is_repeated: bool = False


@dataclass
class _Group:
    """What has been read of a group, or of the pattern as a whole."""

    opening: str
    flags: _Flags  # of what surrounds it
    closed: list[str] = field(default_factory=list)  # the alternatives before the last `|`
    pieces: list[_Piece] = field(default_factory=list)
    repeats: int = 1

    def end_alternative(self) -> None:
        self.closed.append("".join(piece.text for piece in self.pieces))
        self.repeats = max([self.repeats, *(piece.repeats for piece in self.pieces)])
        self.pieces = []

    def piece(self) -> _Piece:
        self.end_alternative()
        return _Piece(f"({self.opening}{'|'.join(self.closed)})", self.repeats)


# ---- reading -------------------------------------------------------------------------------------------------------

_REPEAT = re.compile(r"([*+?]|\{(0|[1-9][0-9]*)(?:(,)(0|[1-9][0-9]*)?)?\})(\??)")
_FLAG_GROUP = re.compile(r"\(\?([imsU]*)(-[imsU]+)?([:)])")
_NAMED_GROUP = re.compile(r"\(\?P?<([^>]*)>")
_NAMED_CLASS = re.compile(r"\[:(\^?)(.*?):\]", re.DOTALL)
_CATEGORY = re.compile(r"\\([pP])(?:\{(\^?)([^}]*)\}|(.))", re.DOTALL)
_HEX = re.compile(r"\\x(?:\{([0-9A-Fa-f]+)\}|([0-9A-Fa-f]{2}))")
_OCTAL = re.compile(r"\\(0[0-7]{0,2}|[1-7][0-7]{1,2})")
_CONTROL = {"a": 7, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11}


class _Translator:
    """Reads a pattern from left to right."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0
        self._flags = _Flags()
        self._open = [_Group("?:", self._flags)]
        self._names: set[str] = set()
        self._repeated = ""  # the repetition operator read last
        self._repeated_until = -1  # and where it ends

    def whole(self) -> str:
        while self._at < len(self._pattern):
            self._step()
        if len(self._open) > 1:
            raise _failed("missing closing )", self._pattern)
        return self._open[0].piece().text

    def _step(self) -> None:
        rest = self._pattern[self._at :]
        if self._pattern.startswith("\\Q", self._at):
            self._quoted()
        elif repeat := _REPEAT.match(self._pattern, self._at):
            self._repeat(repeat)
        elif rest[0] in _SIGNS:
            _SIGNS[rest[0]](self)
        else:
            self._literal(ord(rest[0]), 1)

    def _add(self, text: str, length: int) -> None:
        self._open[-1].pieces.append(_Piece(text))
        self._at += length

    def _literal(self, code: int, length: int) -> None:
        self._add(_written(_folded(((code, code),))) if self._flags.i else _char(code), length)

    def _quoted(self) -> None:
        quoted, _end, _rest = self._pattern[self._at + 2 :].partition("\\E")
        for char in quoted:
            self._literal(ord(char), 0)
        self._at += len(f"\\Q{quoted}{_end}")

    # ---- signs -----------------------------------------------------------------------------------------------------

    def _dot(self) -> None:
        self._add("(?s:.)" if self._flags.s else ".", 1)

    def _caret(self) -> None:
        self._add("(?m:^)" if self._flags.m else r"\A", 1)

    def _dollar(self) -> None:
        # Python's $ also matches before a newline at the end, Go's does not.
        self._add("(?m:$)" if self._flags.m else r"\Z", 1)

    def _bar(self) -> None:
        self._open[-1].end_alternative()
        self._at += 1

    def _repeat(self, match: re.Match[str]) -> None:
        operator, least, _comma, most, lazy = match.groups()
        pieces = self._open[-1].pieces
        if not pieces:
            raise _failed("missing argument to repetition operator", match[0])
        last = pieces[-1]
        if last.is_repeated and match.start() == self._repeated_until:
            raise _failed("invalid nested repetition operator", self._repeated + match[0])
        count = max(int(least or 1), int(most or 0))
        if count > _MOST_REPEATS or (most and int(least) > int(most)) or last.repeats * max(count, 1) > _MOST_REPEATS:
            raise _failed("invalid repeat count", match[0])
        greedy = bool(lazy) == self._flags.U
        pieces[-1] = _Piece(
            f"(?:{last.text}){operator}{'' if greedy else '?'}", last.repeats * max(count, 1), is_repeated=True
        )
        self._at, self._repeated, self._repeated_until = match.end(), match[0], match.end()

    def _opening(self) -> None:
        if len(self._open) > _DEEPEST:
            raise _failed("expression nests too deeply", self._pattern)
        if not self._pattern.startswith("(?", self._at):
            self._enter("", self._flags, 1)
        elif named := _NAMED_GROUP.match(self._pattern, self._at):
            if not re.fullmatch(r"\w+", named[1], re.ASCII):
                raise _failed("invalid named capture", named[0])
            if named[1] in self._names:
                raise _failed("duplicate capture group name", named[1])
            self._names.add(named[1])
            self._enter("", self._flags, len(named[0]))
        elif flags := _FLAG_GROUP.match(self._pattern, self._at):
            changed = replace(self._flags, **dict.fromkeys(flags[1], True))
            changed = replace(changed, **dict.fromkeys((flags[2] or "-")[1:], False))
            if flags[3] == ":":
                self._enter("?:", changed, len(flags[0]))
            else:
                self._flags = changed
                self._at += len(flags[0])
        else:
            found = re.compile(r"\(\?(P?<[=!]?|P[=>]|[^\s\w]|\w*)").match(self._pattern, self._at)
            part = found[0] if found else "(?"
            raise _failed("invalid or unsupported Perl syntax", part)

    def _enter(self, opening: str, flags: _Flags, length: int) -> None:
        self._open.append(_Group(opening, self._flags))
        self._flags = flags
        self._at += length

    def _closing(self) -> None:
        if len(self._open) == 1:
            raise _failed("unexpected )", self._pattern)
        group = self._open.pop()
        self._flags = group.flags
        self._open[-1].pieces.append(group.piece())
        self._at += 1

    # ---- backslashes -----------------------------------------------------------------------------------------------

    def _backslash(self) -> None:
        letter = self._pattern[self._at + 1 : self._at + 2]
        if letter in _ASSERTIONS:
            self._add(_ASSERTIONS[letter], 2)
        elif letter and letter in "dswDSWpP":
            ranges, length = self._class_escape()
            self._add(_written(ranges), length)
        else:
            code, length = self._escape()
            self._literal(code, length)

    def _class_escape(self) -> tuple[Ranges, int]:
        """Return the characters of `\\d`, `\\pL` and the like, and how long it is written."""
        letter = self._pattern[self._at + 1]
        if letter.lower() in _PERL:
            ranges = self._any_case(_PERL[letter.lower()])
            return (_complement(ranges) if letter.isupper() else ranges), 2
        match = _CATEGORY.match(self._pattern, self._at)
        if match is None:
            raise _failed("invalid character class range", self._pattern[self._at :])
        sign, caret, long, short = match.groups()
        name = long if short is None else short
        if not _CATEGORIES.fullmatch(name) and name != "Any":
            offer = "of the classes of Unicode, llamaswapd knows general categories, such as Lu, and no scripts"
            raise RegexError(f"{_failed('invalid character class range', match[0])}; {offer}")
        ranges = ((0, _LAST),) if name == "Any" else self._any_case(_category(name))
        is_negated = (sign == "P") != bool(caret)
        return (_complement(ranges) if is_negated else ranges), len(match[0])

    def _escape(self) -> tuple[int, int]:
        """Return the one character that an escape stands for, and how long it is written."""
        escape = self._pattern[self._at : self._at + 2]
        if escape == "\\":
            raise _failed("trailing backslash at end of expression", "")
        letter = escape[1]
        if match := _OCTAL.match(self._pattern, self._at):
            return int(match[1], 8), len(match[0])
        if match := _HEX.match(self._pattern, self._at):
            code = int(match[1] or match[2], 16)
            if code <= _LAST:
                return code, len(match[0])
        if letter in _CONTROL:
            return _CONTROL[letter], 2
        if letter.isascii() and not letter.isalnum():
            return ord(letter), 2
        raise _failed("invalid escape sequence", escape)

    # ---- classes ---------------------------------------------------------------------------------------------------

    def _class(self) -> None:
        start = self._at
        self._at += 1
        is_negated = self._take("^")
        ranges: list[tuple[int, int]] = []
        is_first = True
        while is_first or not self._take("]"):
            if self._at >= len(self._pattern):
                raise _failed("missing closing ]", self._pattern[start:])
            ranges += self._class_item()
            is_first = False
        merged = _complement(tuple(ranges))
        self._add(_written(merged if is_negated else _complement(merged)), 0)

    def _any_case(self, ranges: Ranges) -> Ranges:
        return _folded(ranges) if self._flags.i else ranges

    def _class_item(self) -> Ranges:
        if named := _NAMED_CLASS.match(self._pattern, self._at):
            if named[2] not in _POSIX:
                raise _failed("invalid character class range", named[0])
            self._at += len(named[0])
            found = self._any_case(_POSIX[named[2]])
            return _complement(found) if named[1] else found
        if self._pattern[self._at] == "\\" and self._pattern[self._at + 1 : self._at + 2] in tuple("dswDSWpP"):
            ranges, length = self._class_escape()
            self._at += length
            return ranges
        start = self._at
        low = high = self._class_char()
        if self._pattern.startswith("-", self._at) and self._pattern[self._at + 1 : self._at + 2] not in ("", "]"):
            self._at += 1
            high = self._class_char()
            if high < low:
                raise _failed("invalid character class range", self._pattern[start : self._at])
        return self._any_case(((low, high),))

    def _class_char(self) -> int:
        code, length = self._escape() if self._pattern[self._at] == "\\" else (ord(self._pattern[self._at]), 1)
        self._at += length
        return code

    def _take(self, sign: str) -> bool:
        found = self._pattern.startswith(sign, self._at)
        self._at += found
        return found


_SIGNS = {
    ".": _Translator._dot, "^": _Translator._caret, "$": _Translator._dollar, "|": _Translator._bar,
    "(": _Translator._opening, ")": _Translator._closing, "[": _Translator._class, "\\": _Translator._backslash,
}  # fmt: skip

# Before Python 3.14, \B does not match in an empty text.
_ASSERTIONS = {"A": r"\A", "z": r"\Z", "b": r"(?a:\b)", "B": r"(?a:(?!\b))"}
