"""Turns a tree of scalars into the schema's models, by the types that their fields declare.

What does not fit its type is reported and counts as not set, so that one pass finds every problem. The rules are those
of Go's yaml.v3, including which text counts as a boolean and that a fraction is dropped where a whole number is wanted.
"""

from __future__ import annotations

import difflib
import inspect
import types
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from llamaswapd.config.commandline import split
from llamaswapd.config.duration import duration_s
from llamaswapd.config.report import Report
from llamaswapd.config.schema import (
    WITHOUT_EFFECT,
    CommaSeparated,
    Config,
    Duration,
    Group,
    Key,
    Lenient,
    ModelConfig,
    Peer,
    Profile,
    Section,
    UnitSettings,
    Words,
)
from llamaswapd.config.tree import Map, Node, Path, Scalar, Seq, is_null, plain

S = TypeVar("S", bound=Section)

# Words that are text everywhere but where a boolean is wanted.
BOOLEAN_WORDS = {
    **dict.fromkeys(("y", "Y", "yes", "Yes", "YES", "on", "On", "ON"), True),
    **dict.fromkeys(("n", "N", "no", "No", "NO", "off", "Off", "OFF"), False),
}


class _NotSet(Exception):
    """The value counts as not written: it is null, or was reported."""


def decode(section: type[S], node: Map, path: Path, report: Report) -> S:
    """Return the section with every value that fits; the others keep their defaults and are reported."""
    fields = fields_by_key(section)
    values: dict[str, Any] = {}
    for key, value in node.items.items():
        if key in fields:
            name, hint = fields[key]
            with suppress(_NotSet):
                values[name] = _Decoder(report).value(hint, value, (*path, *key.split(".")))
        elif key not in known_keys(section):
            report.unknown((*path, key), _nearest(key, section))
    return section(**values)


@cache
def fields_by_key(section: type[Section]) -> Mapping[str, tuple[str, Any]]:
    """Return, for each key of the file, the field it sets and that field's type."""
    fields = {}
    hints = get_type_hints(section, include_extras=True)
    kinds = [kind for kind in reversed(section.__mro__) if issubclass(kind, Section)]
    for name in (name for kind in kinds for name in inspect.get_annotations(kind) if not name.startswith("_")):
        hint = hints[name]
        head, *tail = name.split("_")
        key = next((mark.name for mark in _marks(hint) if isinstance(mark, Key)), head + "".join(map(str.title, tail)))
        if key:
            fields[key] = (name, hint)
    return fields


@cache
def known_keys(section: type[Section]) -> frozenset[str]:
    """Return every key that means something in a section, or is accepted for llama-swap's sake."""
    return frozenset(fields_by_key(section)) | WITHOUT_EFFECT.get(section, frozenset())


_LATE = "readytimeout", "starttimeout", "health_check_timeout"
_IDLE = "idletimeout", "unloadafter", "unload"
_ADDRESS = "host", "port", "listen", "url"

# What keys mean that are seen in real files and that no program here knows, by their letters in lower case.
_MEANT: Mapping[type[Section], Mapping[str, str]] = {
    Config: {
        **dict.fromkeys((*_LATE, "timeout"), '"healthCheckTimeout"'),
        **dict.fromkeys((*_IDLE, "ttl"), '"globalTTL"'),
        **dict.fromkeys(_ADDRESS, "the option -listen"),
    },
    ModelConfig: {
        **dict.fromkeys(_LATE, '"healthCheckTimeout", at the top level'),
        **dict.fromkeys(_IDLE, '"ttl"'),
        **dict.fromkeys(_ADDRESS, '"proxy"'),
        **dict.fromkeys(("command", "args"), '"cmd"'),
        "timeout": '"timeouts"',
    },
    Group: {"models": '"members"'},
    Peer: {**dict.fromkeys(_ADDRESS, '"proxy"'), "timeout": '"timeouts"'},
}


def _nearest(key: str, section: type[Section]) -> str:
    """Return the known key that an unknown one may have been meant to be, in a question, or nothing."""
    if meant := _MEANT.get(section, {}).get(key.lower()):
        return f"did you mean {meant}?"
    by_letters = {each.lower(): each for each in sorted(known_keys(section))}
    nearest = difflib.get_close_matches(key.lower(), by_letters, n=1)
    return f'did you mean "{by_letters[nearest[0]]}"?' if nearest else ""


def _marks(hint: Any) -> tuple[Any, ...]:
    return getattr(hint, "__metadata__", ())


class _Decoder:
    """Decodes one value; every method raises _NotSet for what is null or does not fit."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def value(self, hint: Any, node: Node, path: Path) -> Any:
        if is_null(node):
            raise _NotSet
        marks = _marks(hint)
        if marks:
            hint = get_args(hint)[0]
        if any(isinstance(mark, CommaSeparated) for mark in marks):
            return _names(self._text(node, path))
        if any(isinstance(mark, Duration) for mark in marks):
            return self._duration(node, path)
        if any(isinstance(mark, Words) for mark in marks):
            return self._texts(node, path) if isinstance(node, Seq) else tuple(split(self._text(node, path)))
        if any(isinstance(mark, UnitSettings) for mark in marks):
            return self._unit_settings(node, path)
        if get_origin(hint) is types.UnionType:  # `bool | None`: null, the other half, has been dealt with
            hint = get_args(hint)[0]
        if get_origin(hint) is Literal:
            return self._choice(get_args(hint), node, path, is_lenient=any(isinstance(mark, Lenient) for mark in marks))
        if get_origin(hint) is tuple:
            return self._list(node, path)
        if get_origin(hint) is Mapping:
            return self._mapping(get_args(hint)[1], node, path)
        if isinstance(hint, type) and issubclass(hint, Section):
            return decode(hint, self._map(node, path, _NO_MAPPING.get(hint, "")), path, self._report)
        return _BY_TYPE[hint](self, node, path)

    def _text(self, node: Node, path: Path) -> str:
        if isinstance(node, Scalar):
            return node.text
        raise self._unfit(node, path, "string", "write one text")

    def _integer(self, node: Node, path: Path) -> int:
        number = node.integer if isinstance(node, Scalar) else None
        if number is None:
            raise self._unfit(node, path, "int", "write a whole number, without quotes")
        return number

    def _boolean(self, node: Node, path: Path) -> bool:
        if isinstance(node, Scalar) and isinstance(node.value, bool):
            return node.value
        if isinstance(node, Scalar) and node.kind == "str" and node.text in BOOLEAN_WORDS:
            return BOOLEAN_WORDS[node.text]
        raise self._unfit(node, path, "bool", "write true or false, without quotes")

    def _duration(self, node: Node, path: Path) -> float:
        seconds = duration_s(node.text) if isinstance(node, Scalar) and node.kind == "str" else None
        if seconds is None:
            raise self._unfit(node, path, "time.Duration", "write a time with its unit, such as 15s or 1m30s")
        return seconds

    def _anything(self, node: Node, _path: Path) -> Any:
        return plain(node)

    def _choice(self, choices: tuple[str, ...], node: Node, path: Path, *, is_lenient: bool) -> str:
        text = self._text(node, path)
        if is_lenient:
            text = text.strip().lower()
        if text in choices:
            return text
        offer = f'must be one of: {", ".join(choice for choice in choices if choice)}; "{text}" is none of them'
        if is_lenient:
            self._report.warn(path, f"{path[-1]} {offer} and ignored")
        else:
            self._report.error(path, f"{path[-1]} {offer}")
        raise _NotSet

    def _list(self, node: Node, path: Path) -> tuple[str, ...]:
        if not isinstance(node, Seq):
            raise self._unfit(node, path, "[]string", "write a list: [one, two]")
        return self._texts(node, path)

    def _texts(self, node: Seq, path: Path) -> tuple[str, ...]:
        texts = []
        for index, item in enumerate(node.items):
            with suppress(_NotSet):
                texts.append(self.value(str, item, (*path, index)))
        return tuple(texts)

    def _mapping(self, hint: Any, node: Node, path: Path) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, item in self._map(node, path).items.items():
            try:
                values[key] = self.value(hint, item, (*path, key))
            except _NotSet:
                values[key] = _empty(hint)
        return values

    def _unit_settings(self, node: Node, path: Path) -> dict[str, tuple[str, ...]]:
        settings = {}
        for name, value in self._map(node, path).items.items():
            if not name[:1].isupper():
                self._report.unknown((*path, name), "unit settings start with a capital letter")
            elif isinstance(value, Seq):
                settings[name] = self._texts(value, (*path, name))
            elif not is_null(value):
                with suppress(_NotSet):
                    settings[name] = (self._text(value, (*path, name)),)
        return settings

    def _map(self, node: Node, path: Path, remedy: str = "") -> Map:
        if isinstance(node, Map):
            return node
        raise self._unfit(node, path, "map[string]interface {}", remedy or "write a mapping of keys to values")

    def _unfit(self, node: Node, path: Path, wanted: str, remedy: str) -> _NotSet:
        """Report that a value does not fit its setting, in the words of yaml.v3 that users know from llama-swap."""
        found = {Seq: "!!seq", Map: "!!map"}.get(type(node), "")
        if isinstance(node, Scalar):
            found = f"!!{node.kind} `{node.text if len(node.text) <= 10 else node.text[:7] + '...'}`"
            if path[-1:] in (("env",), ("apiKeys",)):  # a secret that stands where a list of them should
                found = f"!!{node.kind}"
        what = f"cannot unmarshal {found} into {wanted}"
        self._report.error(path, f"yaml: unmarshal errors: line {node.origin.line}: {what}; {remedy}")
        return _NotSet()


# What to say of a section that is no mapping, where it once was something else.
_NO_MAPPING: Mapping[type[Section], str] = {
    Profile: "profile must be a mapping with description and pins; the legacy list syntax is no longer supported"
}

_BY_TYPE = {str: _Decoder._text, int: _Decoder._integer, bool: _Decoder._boolean, Any: _Decoder._anything}


def _empty(hint: Any) -> Any:
    """Return what a key of a mapping means when nothing stands behind it."""
    hint = get_args(hint)[0] if _marks(hint) else hint
    if hint is Any:
        return None
    return {} if get_origin(hint) is Mapping else hint()


def _names(text: str) -> tuple[str, ...]:
    return tuple(sorted({name for part in text.split(",") if (name := part.strip())}))
