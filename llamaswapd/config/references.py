"""Where a credential may stand in the configuration, and how it gets there.

`${env.NAME}` is usually replaced in the text of a file. For a credential that would be wrong: its characters would mean
something to YAML, and its value would be in every message about what stands there. So the text gets a mark, the tree
the reference again, and only when all macros are expanded the value takes its place, where nobody else reads it.

A value that is not known yet, but may be to the half of the program that needs it, stays a reference likewise.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace

from llamaswapd.config.environment import REFERENCE, names_in
from llamaswapd.config.report import Report
from llamaswapd.config.tree import Map, Node, Path, Scalar, Seq, text

# ---- between the text and the tree ---------------------------------------------------------------------------------

# Private characters of Unicode: a plain scalar to YAML wherever the mark stands, unlike braces.
_MARK = re.compile("\ue000([a-zA-Z0-9_]+)\ue001")


def marked(source: str, names: Collection[str]) -> str:
    """Return the text of a file with marks for the references to these names."""
    return REFERENCE.sub(lambda match: f"\ue000{match[1]}\ue001" if match[1] in names else match[0], source)


def unmarked(root: Map) -> Map:
    """Return a tree in which the references are written out again."""
    return replace(root, items={_written_out(key): _unmarked(item) for key, item in root.items.items()})


def _unmarked(node: Node) -> Node:
    match node:
        case Scalar():
            return text(_written_out(node.text), node.origin) if _MARK.search(node.text) else node
        case Seq():
            return replace(node, items=tuple(_unmarked(item) for item in node.items))
        case Map():
            return unmarked(node)


def _written_out(marked: str) -> str:
    return _MARK.sub(r"${env.\1}", marked)


# ---- from references to values -------------------------------------------------------------------------------------


def resolved(
    root: Map, known_keys: Collection[str], values: Mapping[str, str], report: Report, *, defers: bool = False
) -> Map:
    """Return the expanded tree with the values of the credentials in it; what may not have one is reported and unset.

    With `defers` other references are looked at as well: they stay where the value may be known later.
    """
    resolver = _Resolver(values, report, defers=defers)
    items = {key: resolver.node(node, (key,)) if key in known_keys else node for key, node in root.items.items()}
    return replace(root, items=items)


class _Resolver:
    def __init__(self, values: Mapping[str, str], report: Report, *, defers: bool) -> None:
        self._values = values
        self._report = report
        self._defers = defers

    def node(self, node: Node, path: Path) -> Node:
        if _is_macros(path):  # what is made of them counts
            return node
        match node:
            case Scalar():
                return self._scalar(node, path)
            case Seq():
                return replace(node, items=tuple(self.node(item, (*path, i)) for i, item in enumerate(node.items)))
            case Map():
                for key in node.items:
                    self._refuse(self._looked_at(key), (*path, key))
                return replace(node, items={key: self.node(item, (*path, key)) for key, item in node.items.items()})

    def _scalar(self, scalar: Scalar, path: Path) -> Scalar:
        names = self._looked_at(scalar.text) if scalar.kind == "str" else []
        if not names:
            return scalar
        if not is_private(path):
            self._refuse(names, path)
            return Scalar("", "null", None, scalar.origin)
        unknown = [name for name in names if name not in self._values]
        if unknown and not _may_wait(path):
            self._refuse(unknown, path)
            return Scalar("", "null", None, scalar.origin)
        return text(filled(scalar.text, path, self._values, self._report), scalar.origin)

    def _looked_at(self, written: str) -> list[str]:
        return [name for name in names_in([written]) if self._defers or name in self._values]

    def _refuse(self, names: list[str], path: Path) -> None:
        for name in names:
            if name in self._values:
                self._report.error(path, f"credential '{name}' could be read by others here; {_remedy(path)}")
            else:
                self._report.error(path, unknown_to_launcher(name))


def _remedy(path: Path) -> str:
    if path[0] == "models":
        return "put it into the value of a variable in env, or hand it to the model by LoadCredential= in systemd"
    return "it may stand in apiKeys, in apiKey of a peer, in setParams and in env"


def unknown_to_launcher(name: str) -> str:
    return (
        f"environment variable '{name}' is not set, and there is no credential of that name; "
        f"write it to /etc/llamaswapd/credentials/{name}"
    )


def filled(written: str, path: Path, values: Mapping[str, str], report: Report) -> str:
    """Return a text with what is known put in, once; a value that cannot be at this place is reported and left out."""
    for name in names_in([written]):
        if problem := _problem(values.get(name, ""), path):
            report.error(path, f"credential '{name}' {problem}")
            values = {**values, name: ""}
    if _is_env(path) and (named := names_in([written.partition("=")[0]])):
        report.error(path, f"credential '{named[0]}' may only be in the value of a variable; write NAME= before it")
    return REFERENCE.sub(lambda match: values.get(match[1], match[0]), written)


def _problem(value: str, path: Path) -> str:
    """Return what is wrong with a value at a place, without the value; "" if nothing is."""
    if re.search("[\ud800-\udfff]", value):
        return "is not UTF-8; encode it, for example as base64"
    if REFERENCE.search(value):
        return "refers to another variable; write the value itself"
    if _is_env(path) and re.search(r"[\x00-\x08\x0b-\x1f\x7f]", value):
        return "holds control characters, which no variable may; use LoadCredential= in systemd"
    if _is_header(path) and re.search(r"[\x00-\x1f\x7f]", value):
        return "holds line breaks or other control characters, which no key may"
    return ""


# ---- places --------------------------------------------------------------------------------------------------------


def is_private(path: Path) -> bool:
    """Whether what stands at a place of the file is shown to nobody."""
    return _is_env(path) or _may_wait(path)


def _may_wait(path: Path) -> bool:
    """Whether it is for requests, so that only the half that serves them has to know it."""
    return _is_header(path) or _is_parameter(path)


def _is_env(path: Path) -> bool:
    return len(path) == 4 and path[0] == "models" and path[2] == "env"


def _is_header(path: Path) -> bool:
    if path[0] == "apiKeys":
        return len(path) == 2
    return len(path) == 3 and path[0] == "peers" and path[2] == "apiKey"


def _is_parameter(path: Path) -> bool:
    """Whether it is a value that filters set, at any depth; their names are no secrets."""
    if path[0] not in ("models", "peers") or path[2:3] != ("filters",):
        return False
    return len(path) > {"setParams": 4, "setParamsByID": 5}.get(str(path[3:4][0]) if path[3:] else "", len(path))


def _is_macros(path: Path) -> bool:
    return path == ("macros",) or (path[0] == "models" and path[2:] == ("macros",))
