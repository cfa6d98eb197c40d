"""The language of `matrix.sets`: which models may run together.

    expr  = and { "|" and }
    and   = atom { "&" atom }
    atom  = IDENT | "+" IDENT | "(" expr ")"

An expression stands for a family of sets of models: a name is a set of one, `|` joins families, `&` takes every union
of one set from each side, `+name` is the family of another expression. Families are never written out here, since their
size is a product. The error texts are llama-swap's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Name:
    """One model, by variable or id."""

    id: str


@dataclass(frozen=True)
class Ref:
    """The family of another expression, by its name under `sets`."""

    set: str


@dataclass(frozen=True)
class AnyOf:
    """The families of two or more parts, joined; their order breaks ties."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True)
class AllOf:
    """Every union of one set from each of two or more parts."""

    parts: tuple[Expression, ...]


Expression: TypeAlias = Name | Ref | AnyOf | AllOf


# Deeper parentheses mean nothing that fewer could not say, and reading them takes the interpreter's stack. Each pair
# may hold an AnyOf of an AllOf.
_DEEPEST = 50
_DEEPEST_WITH_REFERENCES = 200


class MatrixError(Exception):
    """An expression is malformed, or expressions refer to each other in a way that has no meaning."""


def parse(text: str) -> Expression:
    """Return what an expression says; raises MatrixError. Nothing is looked up: any name and any reference will do."""
    text = text.strip()
    if not text:
        raise MatrixError("empty DSL expression")
    return _Parser(_tokens(text)).whole()


def leaves(expression: Expression) -> Iterator[Name | Ref]:
    """Yield the names and references of an expression from left to right."""
    if isinstance(expression, Name | Ref):
        yield expression
        return
    for part in expression.parts:
        yield from leaves(part)


def referred_first(sets: Mapping[str, Expression]) -> list[str]:
    """Return the names of all sets, each after those it refers to, else in the order given.

    This is the order in which ties are broken. Raises MatrixError where a reference leads nowhere or in a circle, or
    where all is nested so deeply that a recursion over it, references included, would not be safe.
    """
    depths: dict[str, int] = {}
    for first in sets:
        # A stack in place of recursion: a chain of references may be as long as the file.
        opened = {first: _references(first, sets)}
        while opened:
            name = next(reversed(opened))
            found = next((each for each in opened[name] if each not in depths), None)
            if found is None:
                depths[name] = _depth(sets[name], depths)
                if depths[name] > _DEEPEST_WITH_REFERENCES:
                    raise MatrixError(f'set "{name}": nested more than {_DEEPEST_WITH_REFERENCES} deep')
                del opened[name]
            elif found in opened:
                raise MatrixError(f'circular reference detected involving set "{found}"')
            else:
                opened[found] = _references(found, sets)
    return list(depths)


def _depth(expression: Expression, depths: Mapping[str, int]) -> int:
    match expression:
        case Name():
            return 1
        case Ref(set=name):
            return 1 + depths[name]
        case AnyOf(parts=parts) | AllOf(parts=parts):
            return 1 + max(_depth(part, depths) for part in parts)


def _references(name: str, sets: Mapping[str, Expression]) -> Iterator[str]:
    for leaf in leaves(sets[name]):
        if not isinstance(leaf, Ref):
            continue
        if leaf.set not in sets:
            raise MatrixError(f'set "{name}" references undefined set "{leaf.set}"')
        yield leaf.set


# ---- reading -------------------------------------------------------------------------------------------------------

_Token: TypeAlias = Name | Ref | str  # a str is one of & | ( ) and, at the end, nothing
_END = ""


# \w has no combining marks, but numbers such as ² that are no digits to Go's unicode.IsDigit.
_IDENT = re.compile(r"[\w.-]+")


def _tokens(text: str) -> Iterator[_Token]:
    position = 0
    while position < len(text):
        char = text[position]
        if char.isspace():
            position += 1
        elif char in "&|()":
            position += 1
            yield char
        elif char == "+":
            found = _identifier(text, position + 1)
            if not found:
                raise MatrixError(f"tokenize: expected set name after '+' at position {position + 1}")
            position += 1 + len(found)
            yield Ref(found)
        else:
            found = _identifier(text, position)
            if not found:
                quoted = "'\\''" if char == "'" else repr(char)  # as Go's %q
                raise MatrixError(f"tokenize: unexpected character {quoted} at position {position}")
            position += len(found)
            yield Name(found)
    yield _END


def _identifier(text: str, start: int) -> str:
    """Return the letters, digits, `_`, `-` and `.` of a text from a position on."""
    match = _IDENT.match(text, start)
    if not match:
        return ""
    return next((match[0][:i] for i, c in enumerate(match[0]) if c.isnumeric() and not c.isdecimal()), match[0])


class _Parser:
    """Recursive descent, one token ahead."""

    def __init__(self, tokens: Iterator[_Token]) -> None:
        self._tokens = tokens
        self._next: _Token = next(tokens)
        self._depth = 0

    def whole(self) -> Expression:
        found = self._any_of()
        if self._next != _END:
            raise self._unexpected()
        return found

    def _any_of(self) -> Expression:
        parts = [self._all_of()]
        while self._next == "|":
            self._advance()
            parts.append(self._all_of())
        return AnyOf(tuple(parts)) if len(parts) > 1 else parts[0]

    def _all_of(self) -> Expression:
        parts = [self._atom()]
        while self._next == "&":
            self._advance()
            parts.append(self._atom())
        return AllOf(tuple(parts)) if len(parts) > 1 else parts[0]

    def _atom(self) -> Expression:
        found = self._next
        if isinstance(found, Name | Ref):
            self._advance()
            return found
        if found != "(":
            raise self._unexpected()
        if self._depth == _DEEPEST:
            raise MatrixError(f"parse: parentheses are nested more than {_DEEPEST} deep")
        self._depth += 1
        self._advance()
        inner = self._any_of()
        if self._next != ")":
            raise MatrixError("parse: missing closing parenthesis")
        self._depth -= 1
        self._advance()
        return inner

    def _advance(self) -> None:
        self._next = next(self._tokens)

    def _unexpected(self) -> MatrixError:
        match self._next:
            case Name(id=word):
                return MatrixError(f'parse: unexpected token "{word}"; write & or | before it')
            case Ref(set=word):
                return MatrixError(f'parse: unexpected token "+{word}"; write & or | before it')
            case "":
                return MatrixError("parse: unexpected token: the expression ends where a name is wanted")
            case sign:
                return MatrixError(f'parse: unexpected token "{sign}"')
