"""What a configuration file holds before it has types: scalars, sequences and mappings that know where they stand.

A scalar keeps its text as written beside its value, because the setting that takes it decides which of the two counts
(`name: 1.50` is the text `1.50`, `ttl: 30.0` the number 30). Trees are never changed in place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

Kind: TypeAlias = Literal["str", "int", "float", "bool", "null", "timestamp"]
Value: TypeAlias = str | int | float | bool | None
Path: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True)
class Origin:
    """Where a node was written; lines count from 1."""

    file: str = ""
    line: int = 0


NOWHERE = Origin()


@dataclass(frozen=True)
class Scalar:
    text: str
    kind: Kind
    value: Value
    origin: Origin = NOWHERE

    @property
    def is_null(self) -> bool:
        return self.kind == "null"

    @property
    def is_empty(self) -> bool:
        """Whether nothing at all was written (`key:`); a written `null` or `~` is not empty."""
        return self.is_null and not self.text

    @property
    def integer(self) -> int | None:
        """The whole number that this is where one is wanted, None if it is none; a fraction is dropped."""
        if self.kind in ("int", "float") and isinstance(self.value, int | float) and -(2**63) <= self.value < 2**63:
            return int(self.value)
        return None


@dataclass(frozen=True)
class Seq:
    items: tuple[Node, ...]
    origin: Origin = NOWHERE


@dataclass(frozen=True)
class Map:
    items: Mapping[str, Node] = field(default_factory=dict)
    origin: Origin = NOWHERE

    def get(self, *keys: str) -> Node | None:
        """Return the node under a chain of keys, None where one is missing or the way leads through no mapping."""
        node: Node | None = self
        for key in keys:
            node = node.items.get(key) if isinstance(node, Map) else None
        return node

    def having(self, **changes: Node) -> Map:
        return replace(self, items={**self.items, **changes})

    def without(self, *keys: str) -> Map:
        return replace(self, items={key: node for key, node in self.items.items() if key not in keys})


Node: TypeAlias = Scalar | Seq | Map


def text(value: str, origin: Origin = NOWHERE) -> Scalar:
    return Scalar(value, "str", value, origin)


def is_null(node: Node | None) -> bool:
    return node is None or (isinstance(node, Scalar) and node.is_null)


def dotted(path: Path) -> str:
    """Spell a path as the manual does: `models.qwen.aliases[0]`."""
    steps = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return steps.removeprefix(".")


def rewritten(node: Node, change: Callable[[Scalar, Path], Scalar], path: Path = ()) -> Node:
    """Return the tree with each scalar value replaced by what `change` makes of it; keys stay as they are."""
    match node:
        case Scalar():
            return change(node, path)
        case Seq():
            return replace(node, items=tuple(rewritten(item, change, (*path, i)) for i, item in enumerate(node.items)))
        case Map():
            return replace(node, items={k: rewritten(item, change, (*path, k)) for k, item in node.items.items()})


def plain(node: Node) -> Any:
    """Return the values alone, as lists and dicts."""
    match node:
        case Scalar():
            return node.value
        case Seq():
            return [plain(item) for item in node.items]
        case Map():
            return {key: plain(item) for key, item in node.items.items()}
