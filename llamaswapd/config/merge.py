"""How several configuration files become one.

Mappings merge key by key, lists are joined, the same scalar may be said twice. What names a thing (a model, a group, a
peer) may be said in one file only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import reduce

from llamaswapd.config.report import Report
from llamaswapd.config.tree import Map, Node, Path, Scalar, Seq, dotted

# Below these paths a child stands for one thing, which may not be split over files.
_NAMES_THINGS = frozenset(
    {
        "models", "groups", "profiles", "selectors", "peers", "matrix",
        "routing.router.settings.groups", "routing.router.settings.matrix",
    }
)  # fmt: skip


def merge(sources: Iterable[Map], report: Report) -> Map:
    """Return one tree of all sources; earlier ones come first in lists and in the order of keys."""
    return reduce(lambda first, second: _merged_maps(first, second, (), report), sources, Map())


def _merged_maps(first: Map, second: Map, path: Path, report: Report) -> Map:
    items = dict(first.items)
    for key, node in second.items.items():
        if key not in items:
            items[key] = node
        elif dotted(path) in _NAMES_THINGS:
            file = second.origin.file
            message = f'duplicate {path[-1]} "{key}" found in {file} (already defined in another config source)'
            report.error((*path, key), f"{message}; keep it in one file", file)
        else:
            items[key] = _merged(items[key], node, (*path, key), report)
    return replace(first if first.items else second, items=items)


def _merged(first: Node, second: Node, path: Path, report: Report) -> Node:
    file = second.origin.file
    if isinstance(second, Scalar) and second.is_empty:
        return first
    if isinstance(first, Scalar) and first.is_empty:
        return second
    match first, second:
        case Map(), Map():
            return _merged_maps(first, second, path, report)
        case Seq(), Seq():
            return replace(first, items=first.items + second.items)
        case Scalar(), Scalar():
            if (first.text, first.kind) != (second.text, second.kind):
                message = f'conflict at "{dotted(path)}": {file} sets a different value than a previous source'
                report.error(path, f"{message} ({first.origin.file}); keep one of them", file)
        case _:
            kinds = f"{_KINDS[type(first)]} vs. {_KINDS[type(second)]}"
            message = f'conflict at "{dotted(path)}": incompatible YAML node kinds ({kinds}) introduced by {file}'
            report.error(path, message, file)
    return first


_KINDS = {Scalar: "scalar", Seq: "list", Map: "mapping"}
