"""The JSON schema of a configuration file, for editors: every key with its type, default and meaning.

Made from the models of `schema.py`. A value that any YAML reader may hand over is described, not only one that yaml.v3
would: editors read YAML 1.2, where `on` is text and `1_000` as well. Unknown keys stay allowed, since the loader
ignores them. JSON Schema draft 2020-12.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from llamaswapd.config.decode import BOOLEAN_WORDS, fields_by_key
from llamaswapd.config.schema import (
    CommaSeparated,
    Config,
    Container,
    Duration,
    Filters,
    Key,
    Lenient,
    Matrix,
    ModelConfig,
    Peer,
    Profile,
    Router,
    Scheduling,
    Section,
    Selector,
    Store,
    Strategy,
    UnitSettings,
    Words,
)

Schema = dict[str, Any]

_DRAFT = "https://json-schema.org/draft/2020-12/schema"

_TEXT: Schema = {"type": ["string", "number", "boolean", "null"]}  # a number where text is wanted is its digits
_TEXTS: Schema = {"type": ["array", "null"], "items": _TEXT}
# What a macro or a variable of the environment yields cannot be known here.
_MACRO: Schema = {"type": "string", "pattern": r"\$\{.+\}"}
_NULL: Schema = {"type": "null"}
_TEXT_OR_TEXTS: Schema = {"anyOf": [_TEXT, _TEXTS]}

_REQUIRED: Mapping[type[Section], list[str]] = {
    Selector: ["strategy", "targets"],
    Profile: ["pins"],
    Peer: ["proxy", "models"],
    Matrix: ["sets"],
    Store: ["path"],
    Container: ["image"],
}

# Texts that are one of a few words. A wrong one is an error of the rules, in llama-swap's words, and not of the type.
_CHOICES: Mapping[type[Section], Mapping[str, tuple[str, ...]]] = {
    Selector: {"strategy": get_args(Strategy)},
    Router: {"use": ("group", "matrix", "")},
    Scheduling: {"use": (Scheduling().use, "")},
}

# Keys that are read without being fields: old spellings, and what llama-swap accepts without effect.
_OLD: Mapping[type[Section], dict[str, Schema]] = {
    Config: {"logRequests": {"description": "without effect", "deprecated": True}},
    ModelConfig: {
        "healthCheckTimeout": {"description": "without effect; the top-level key counts", "deprecated": True}
    },
    Filters: {"strip_params": {**_TEXT, "description": "the old spelling of stripParams", "deprecated": True}},
}

# Values whose types are told by the name of their field alone.
_MACROS: Schema = {
    "type": ["object", "null"],
    "propertyNames": {"pattern": "^[a-zA-Z0-9_-]{1,63}$", "not": {"enum": ["PID", "PORT", "MODEL_ID"]}},
    "additionalProperties": {"type": ["string", "number", "boolean"]},
}


def json_schema() -> Schema:
    """Return the schema of a whole file."""
    return {
        "$schema": _DRAFT,
        "title": "llamaswapd.yaml",
        **_section(Config),
        "$defs": {section.__name__: _section(section) for section in sections_within(Config) if section is not Config},
    }


def sections_within(hint: Any) -> dict[type[Section], None]:
    """Return every kind of section that a type holds, itself included, in the order of the schema."""
    return dict.fromkeys(_sections(hint))


def _sections(hint: Any) -> Iterator[type[Section]]:
    if isinstance(hint, type) and issubclass(hint, Section):
        yield hint
        for _, field_type in fields_by_key(hint).values():
            yield from _sections(field_type)
    for argument in get_args(hint):
        yield from _sections(argument)


def _section(section: type[Section]) -> Schema:
    described: dict[str, Schema] = {}
    descriptions = _descriptions(section)
    for key, (name, hint) in fields_by_key(section).items():
        block, _, inner = key.rpartition(".")
        properties = described[block].setdefault("properties", {}) if block else described
        choices = _CHOICES.get(section, {}).get(name)
        value = _one_of(choices) if choices else _MACROS if name == "macros" else _value(hint)
        properties[inner] = {"description": descriptions[name], **value, **_default(getattr(section(), name))}
    required = {"required": _REQUIRED[section]} if section in _REQUIRED else {}
    return {
        "type": ["object", "null"],
        "description": " ".join((vars(section)["__doc__"] or "").split()),
        "properties": {**described, **_OLD.get(section, {})},
        **required,
    }


def _descriptions(section: type[Section]) -> dict[str, str]:
    """Return what is said of each field, by pydantic 2 or 1."""
    fields: Mapping[str, Any] = (
        section.model_fields if hasattr(section, "model_fields") else vars(section)["__fields__"]
    )
    return {name: getattr(field, "field_info", field).description for name, field in fields.items()}


def _default(value: Any) -> Schema:
    if isinstance(value, tuple):
        return {"default": list(value)}
    if isinstance(value, float):
        return {"default": f"{value:g}s"}
    return {"default": value} if isinstance(value, str | int | dict) else {}


def _value(hint: Any) -> Schema:
    """Return what the values of a type look like in a file."""
    marks = getattr(hint, "__metadata__", ())
    if marks:
        hint = get_args(hint)[0]
    for mark in marks:
        if not isinstance(mark, Key | Lenient):
            return _MARKED[type(mark)]
    if get_origin(hint) in (types.UnionType, Union):  # with None, which every value may be
        hint = get_args(hint)[0]
    if get_origin(hint) is Literal:
        others = _TEXT if any(isinstance(mark, Lenient) for mark in marks) else _MACRO
        return _one_of([choice for choice in get_args(hint) if choice], others)
    if get_origin(hint) is tuple:
        return _TEXTS
    if get_origin(hint) is Mapping:
        return {"type": ["object", "null"], "additionalProperties": _value(get_args(hint)[1])}
    if isinstance(hint, type) and issubclass(hint, Section):
        return {"$ref": f"#/$defs/{hint.__name__}"}
    return _BY_TYPE[hint]


def _one_of(choices: Sequence[str], others: Schema = _MACRO) -> Schema:
    return {"anyOf": [{"enum": list(choices)}, others, _NULL]}


_BY_TYPE: Mapping[Any, Schema] = {
    str: _TEXT,
    int: {"anyOf": [{"type": ["number", "null"]}, {"type": "string", "pattern": "^[-+]?[0-9]+(_[0-9]+)+$"}, _MACRO]},
    bool: {"anyOf": [{"type": ["boolean", "null"]}, {"enum": list(BOOLEAN_WORDS)}, _MACRO]},
    Any: {},
}

_MARKED: Mapping[type, Schema] = {
    CommaSeparated: _TEXT,
    Duration: {
        "anyOf": [
            {"type": "string", "pattern": r"^[-+]?(([0-9]+\.?[0-9]*|\.[0-9]+)(ns|[uµμ]s|ms|s|m|h))+$"},
            _MACRO,
            _NULL,
        ]
    },
    UnitSettings: {"type": ["object", "null"], "patternProperties": {"^[A-Z]": _TEXT_OR_TEXTS}},
    Words: _TEXT_OR_TEXTS,
}
