"""What a YAML text means, read as llama-swap reads it: by the rules of Go's yaml.v3.

PyYAML parses; the meaning of scalars, merge keys and repeated keys is decided here, because PyYAML follows YAML 1.1
(`yes` is a boolean, `1:30` is ninety) and existing files would change their meaning. Only the first document counts.
"""

from __future__ import annotations

import math
import re
from base64 import b64decode
from collections.abc import Iterator

import yaml

from llamaswapd.config.report import Report
from llamaswapd.config.tree import Kind, Map, Node, Origin, Path, Scalar, Seq, Value, is_null, text

try:
    # libyaml is what yaml.v3 is a port of: unlike PyYAML's own scanner it takes a tab after a colon, for example.
    from yaml import CSafeLoader as _Parser
except ImportError:
    from yaml import SafeLoader as _Parser  # type: ignore[assignment]

_TAG = "tag:yaml.org,2002:"
_PLAIN = "plain"  # no tag of YAML's: a scalar without quotes, whose kind its text decides

_DEEPEST = 100  # no real configuration comes near this


class Malformed(Exception):
    """The text is no YAML."""


class _Loader(_Parser):
    def resolve(self, kind: type[yaml.Node], value: str, implicit: tuple[bool, bool]) -> str:
        if kind is not yaml.ScalarNode:
            return _TAG + ("map" if kind is yaml.MappingNode else "seq")
        return _PLAIN if implicit[0] else _TAG + "str"


def parse(source: str, file: str, report: Report) -> Map | None:
    """Return the mapping that a file holds, None when it holds nothing."""
    try:
        root = _compose(source)
        node = _Reader(file, report).node(root, ()) if root is not None else None
    except Malformed as error:
        report.error((), str(error), file)
        return None
    if is_null(node):
        return None
    if not isinstance(node, Map):
        report.error((), "top-level YAML must be a mapping, such as `models:`", file)
        return None
    return node


def texts(source: str) -> Iterator[str]:
    """Yield every key and scalar of a text, comments left out; raises Malformed."""
    waiting: list[yaml.Node] = [root] if (root := _compose(source)) is not None else []
    seen: set[int] = set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.ScalarNode):
            yield str(node.value)
        elif isinstance(node, yaml.MappingNode):
            waiting += [part for key, value in reversed(node.value) for part in (value, key)]
        elif isinstance(node, yaml.SequenceNode):
            waiting += reversed(node.value)


def _compose(source: str) -> yaml.Node | None:
    try:
        loader = _Loader(source)
        try:
            return loader.get_node() if loader.check_node() else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise Malformed(f"yaml: {line}{error.problem or error.context}{_remedy(source, error)}") from None
    except yaml.YAMLError as error:
        raise Malformed(f"yaml: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise Malformed("yaml: nested too deeply") from None


def _remedy(source: str, error: yaml.MarkedYAMLError) -> str:
    """Return what to do about the mistakes that are most often made, nothing about others."""
    mark, problem = error.problem_mark, error.problem or ""
    if "cannot start any token" in problem and mark is not None:
        rest = "".join(source.splitlines()[mark.line : mark.line + 1])[mark.column :]
        return "; indent with blanks, not tabs" if rest.startswith("\t") else "; put quotes around the value"
    if "tab character" in problem:
        return "; indent with blanks, not tabs"
    if problem.startswith("mapping values are not allowed"):
        return '; put quotes around a value with ": " in it, or look whether the line is indented like its neighbours'
    return ""


class _Reader:
    """Turns PyYAML's nodes into ours."""

    def __init__(self, file: str, report: Report) -> None:
        self._file = file
        self._report = report
        self._open: set[int] = set()
        self._seen: set[int] = set()
        self._is_copy = False  # what is read has been brought by an alias
        self._count = self._copies = 0  # of nodes that were read, keys and aliases too, and of those that are copies

    def node(self, node: yaml.Node, path: Path) -> Node:
        self._count_node()
        if not self._is_copy and id(node) in self._seen:
            self._is_copy = True
            try:
                return self.node(node, path)
            finally:
                self._is_copy = False
        self._seen.add(id(node))
        if len(self._open) > _DEEPEST:
            raise Malformed(f"yaml: line {node.start_mark.line + 1}: nested too deeply")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if id(node) in self._open:
            raise Malformed(f"yaml: line {node.start_mark.line + 1}: anchor value contains itself")
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return Map(self._entries(node, path), self._origin(node))
            items = tuple(self.node(item, (*path, i)) for i, item in enumerate(node.value))
            return Seq(items, self._origin(node))
        finally:
            self._open.remove(id(node))

    def _count_node(self) -> None:
        self._count += 1
        self._copies += self._is_copy
        if self._copies > 100 and self._copies > self._count * _share_of_copies(self._count):
            raise Malformed("yaml: document contains excessive aliasing")

    def _origin(self, node: yaml.Node) -> Origin:
        return Origin(self._file, node.start_mark.line + 1)

    def _scalar(self, node: yaml.ScalarNode) -> Scalar:
        origin, tag = self._origin(node), node.tag.removeprefix(_TAG)
        if tag == "binary":
            return text(_decoded(node), origin)
        kind, value = scalar_value(node.value)
        if tag == "float" and isinstance(value, int) and kind == "int":
            kind, value = "float", float(value)
        if tag not in (_PLAIN, kind):
            return text(node.value, origin)
        return Scalar(node.value, kind, value, origin)

    def _entries(self, node: yaml.MappingNode, path: Path) -> dict[str, Node]:
        """Return the entries in the order written, those of a merge key at its place; written ones win over merged."""
        written: dict[str, yaml.Node] = {}
        lines: dict[str, int] = {}
        for key_node, value in node.value:
            self._count_node()
            if not isinstance(key_node, yaml.ScalarNode):
                line = key_node.start_mark.line + 1
                self._report.error(path, f"line {line}: a mapping key must be text, not a list or mapping", self._file)
                continue
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in lines:
                message = f'line {line}: mapping key "{key}" already defined at line {lines[key]}; remove one of them'
                self._report.error((*path, key), message, self._file)
                continue
            lines[key] = line
            written[_MERGE if key_node.tag in (_PLAIN, _TAG + "merge") and key == "<<" else key] = value
        entries: dict[str, Node] = {}
        for key, value in written.items():
            if key == _MERGE:
                merged = self._merged(value, path)
                entries |= {key: merged[key] for key in merged if key not in written}
            else:
                entries[key] = self.node(value, (*path, key))
        return entries

    def _merged(self, node: yaml.Node, path: Path) -> dict[str, Node]:
        """Return the entries that `<<:` brings in; of several mappings the earlier one wins."""
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        entries: dict[str, Node] = {}
        for source in sources:
            merged = self.node(source, path)
            if not isinstance(merged, Map):
                message = "map merge requires map or sequence of maps as the value"
                self._report.error((*path, "<<"), f"line {node.start_mark.line + 1}: {message}", self._file)
                continue
            entries = {**merged.items, **entries}
        return entries


def _decoded(node: yaml.ScalarNode) -> str:
    try:
        return b64decode(node.value.replace("\n", ""), validate=True).decode()
    except ValueError:
        line = node.start_mark.line + 1
        raise Malformed(f"yaml: line {line}: !!binary value contains invalid base64 data, or no text") from None


def _share_of_copies(count: int) -> float:
    """Return how many of so many nodes may come of aliases, by yaml.v3's decode.go: of few all, of many a tenth.

    A few aliases of aliases could stand for billions of nodes.
    """
    if count <= 1000:
        return 1.0
    return max(0.99 - 0.89 * max(count - 400_000, 0) / 3_600_000, 0.1)


_MERGE = "\0<<"  # in no YAML text, so it cannot clash with a quoted "<<"

_WORDS: dict[str, tuple[Kind, Value]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), ("null", None)),
    **dict.fromkeys(("true", "True", "TRUE"), ("bool", True)),
    **dict.fromkeys(("false", "False", "FALSE"), ("bool", False)),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), ("float", math.nan)),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), ("float", math.inf)),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), ("float", -math.inf)),
}
_INTEGER = re.compile(r"([-+]?)(?:0[xX]([0-9a-fA-F]+)|0[bB]([01]+)|0[oO]?([0-7]+)|(0|[1-9][0-9]*))")
_BASES = (16, 2, 8, 10)  # of the groups of _INTEGER
_INTEGER_DIGITS = 1000  # more than any 64 bits are written with, and less than Python refuses to read
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_TIME = r"[0-9]{1,2}:[0-9]{1,2}:[0-9]{1,2}(\.[0-9]+)?"
_TIMESTAMP = re.compile(
    r"[0-9]{4}-(0?[1-9]|1[0-2])-(0?[1-9]|[12][0-9]|3[01])"
    rf"([Tt]{_TIME}(Z|[-+][0-9]{{2}}:[0-9]{{2}})| {_TIME})?"
)


def scalar_value(written: str) -> tuple[Kind, Value]:
    """Return kind and value of a scalar without quotes, by the rules of yaml.v3's resolve.go."""
    if written in _WORDS:
        return _WORDS[written]
    if written[0] not in "+-.0123456789":
        return "str", written
    if _TIMESTAMP.fullmatch(written):
        return "timestamp", written if ":" in written else written + "T00:00:00Z"
    digits = written if written[0] == "." else written.replace("_", "")
    if len(digits) <= _INTEGER_DIGITS and (match := _INTEGER.fullmatch(digits)):
        sign, *groups = match.groups()
        number = next(int(sign + group, base) for group, base in zip(groups, _BASES, strict=True) if group)
        if -(2**63) <= number < 2**64:
            return "int", number
    if _FLOAT.fullmatch(digits) and math.isfinite(float(digits)):
        return "float", float(digits)
    return "str", written
