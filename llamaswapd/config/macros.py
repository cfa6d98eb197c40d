"""What `${name}`, `${MODEL_ID}` and `${PORT}` stand for.

`${PID}` is left alone: its value exists only when a stop command runs.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal

from llamaswapd.config.report import Report
from llamaswapd.config.tree import Map, Node, Path, Scalar, Seq, Value, is_null, rewritten, text

# ---- declarations --------------------------------------------------------------------------------------------------

Scope = dict[str, Scalar]  # macro name to value, in the order of declaration

_NAME = re.compile(r"[a-zA-Z0-9_-]+")
_RESERVED = ("PID", "PORT", "MODEL_ID")
# What stands for a macro that was refused, so that its uses do not become problems of their own.
_REFUSED = Scalar("", "null", None)


def _declared(block: Node | None, path: Path, report: Report, prefix: str = "") -> Scope:
    """Return the macros of a `macros` block, their values written as they will be inserted."""
    if is_null(block):
        return {}
    if not isinstance(block, Map):
        report.error(path, f"{prefix}macros must be a mapping of names to values")
        return {}
    scope: Scope = {}
    for name, node in block.items.items():
        problem = _declaration_problem(name, node)
        if problem:
            report.error((*path, name), prefix + problem)
        if name in _RESERVED:
            continue
        usable = isinstance(node, Scalar) and not problem
        scope[name] = replace(node, text=_as_text(node)) if usable and isinstance(node, Scalar) else _REFUSED
    return scope


def _declaration_problem(name: str, node: Node) -> str | None:
    if len(name.encode()) > 63:
        return f"macro name '{name}' exceeds maximum length of 63 characters"
    if not _NAME.fullmatch(name):
        return f"macro name '{name}' contains invalid characters, must match pattern ^[a-zA-Z0-9_-]+$"
    if not isinstance(node, Scalar) or node.kind in ("null", "timestamp"):
        kind = _GO_TYPES[type(node)] if not isinstance(node, Scalar) else "<nil>" if node.is_null else "time.Time"
        return f"macro '{name}' has invalid type {kind}, must be a scalar type (string, int, float, or bool)"
    if node.kind == "str" and f"${{{name}}}" in node.text:
        return f"macro '{name}' contains self-reference"
    if name in _RESERVED:
        return f"macro name '{name}' is reserved; choose another name"
    return None


_GO_TYPES: dict[type, str] = {Seq: "[]interface {}", Map: "map[string]interface {}"}


def _as_text(scalar: Scalar) -> str:
    """Write a value as Go's `%v` does, which is how it is inserted into other text."""
    return scalar.text if scalar.kind == "str" else go_text(scalar.value)


def go_text(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{value:+}".title()
    # repr has the fewest digits that identify a float, as Go has; only the choice of notation differs.
    shortest = Decimal(repr(value)).normalize()
    power = shortest.adjusted()
    if -4 <= power < 6:
        return f"{shortest:f}"
    return f"{shortest.scaleb(-power):f}e{power:+03d}"


# ---- expansion -----------------------------------------------------------------------------------------------------

_WORD = re.compile(r"\$\{([a-zA-Z0-9_-]+)\}")
_PORT = "${PORT}"


@dataclass(frozen=True)
class Expanded:
    """A tree without macros, and the port of each model that has `${PORT}` in its command."""

    root: Map
    ports: Mapping[str, int]


def expand(
    root: Map, known_keys: Collection[str], default_port: int, report: Report, reserved: Mapping[str, int] = {}
) -> Expanded:
    """Expand all macros. What cannot be expanded is reported and counts as not set from here on.

    `known_keys` are the top-level keys in which an unknown macro is a mistake; others may hold anything, for instance
    the anchors of a `defs:` block. Ports count from `startPort` in the order of the models' ids; a port that is
    `reserved` for a model id is that model's, and nobody else's even if there is no such model.
    """
    scope = _declared(root.get("macros"), ("macros",), report)
    models = root.get("models")
    expanded = {
        key: node if key == "models" else _substituted_unless_macros(key, node, scope)
        for key, node in root.items.items()
    }
    ports: dict[str, int] = {}
    if isinstance(models, Map):
        start = expanded.get("startPort")
        first_port = (start.integer if isinstance(start, Scalar) else None) or default_port
        free = (port for port in itertools.count(first_port) if port not in reserved.values())
        expanded["models"], ports = _expanded_models(models, scope, free, reserved, report)
    for key, node in expanded.items():
        if key in known_keys and key != "macros":
            expanded[key] = _without_unknown(node, (key,), report)
    return Expanded(replace(root, items=expanded), ports)


def _expanded_models(
    models: Map, scope: Scope, free: Iterator[int], reserved: Mapping[str, int], report: Report
) -> tuple[Map, dict[str, int]]:
    by_id = {id_: model for id_, model in sorted(models.items.items()) if isinstance(model, Map)}
    own = {
        id_: _declared(model.get("macros"), ("models", id_, "macros"), report, f"model {id_}: ")
        for id_, model in by_id.items()
    }
    ports: dict[str, int] = {}
    for id_, model in by_id.items():
        model = _expanded_model(id_, model, model_scope(id_, scope, own[id_]), report)
        if _mentions_port(model.get("cmd")) or _contained_port(model):
            kept = reserved.get(id_)
            ports[id_] = port = next(free) if kept is None or kept in ports.values() else kept
            model = _expanded_model(id_, model, {"PORT": Scalar(str(port), "int", port)}, report)
        elif _mentions_port(model.get("proxy")):
            why = "proxy uses ${PORT} but cmd does not - ${PORT} is only available when used in cmd"
            remedy = _PORT_OF_CONTAINER if _has_container(model) else "use it there or set proxy"
            report.error(("models", id_, "proxy"), f"model {id_}: {why}; {remedy}")
            model = model.having(proxy=_REFUSED)
        by_id[id_] = model
    return models.having(**by_id), ports


def model_scope(id_: str, global_scope: Scope, own: Scope) -> Scope:
    """Return the macros of a model: `MODEL_ID`, the global ones with the model's in their places, then its others."""
    return {"MODEL_ID": text(id_), **global_scope, **own}


def _substituted_unless_macros(key: str, node: Node, scope: Scope) -> Node:
    if key != "macros":
        return _substituted(node, scope)
    return node if isinstance(node, Map) else _REFUSED


def _substituted(node: Node, scope: Scope) -> Node:
    backwards = [(f"${{{name}}}", value) for name, value in reversed(scope.items())]
    return rewritten(node, lambda scalar, _path: _substituted_scalar(scalar, backwards))


def _substituted_scalar(scalar: Scalar, backwards: Iterable[tuple[str, Scalar]]) -> Scalar:
    """Insert macros from the last declared to the first, each once: a macro can use only those declared before it."""
    for slug, value in backwards:
        if "${" not in scalar.text:
            break
        if scalar.text == slug:
            scalar = replace(value, origin=scalar.origin)
        elif slug in scalar.text:
            scalar = text(scalar.text.replace(slug, value.text), scalar.origin)
    return scalar


def _expanded_model(id_: str, model: Map, scope: Scope, report: Report) -> Map:
    items = {key: _substituted_unless_macros(key, node, scope) for key, node in model.items.items()}
    filters = items.get("filters")
    if isinstance(filters, Map) and isinstance(by_id := filters.get("setParamsByID"), Map):
        path = ("models", id_, "filters", "setParamsByID")
        items["filters"] = filters.having(setParamsByID=_with_keys_substituted(by_id, scope, path, report))
    return replace(model, items=items)


def _with_keys_substituted(by_id: Map, scope: Scope, path: Path, report: Report) -> Map:
    """Expand the keys of `setParamsByID`, the only keys in which macros count."""
    items: dict[str, Node] = {}
    written: dict[str, str] = {}
    for key, node in by_id.items.items():
        new_key = key
        for name, value in reversed(scope.items()):
            new_key = new_key.replace(f"${{{name}}}", value.text)
        if new_key in items:
            where = f"model {path[1]} filters.setParamsByID"
            both = f'keys "{written[new_key]}" and "{key}" resolve to the same value'
            report.error((*path, key), f'{where}: {both}, "{new_key}"')
        items[new_key] = node
        written.setdefault(new_key, key)
    return replace(by_id, items=items)


_CLIENTS = ("podman", "docker")
_PORT_OF_CONTAINER = "give the container a port, use ${PORT} in its args or in env, or set proxy"


def _has_container(model: Map) -> bool:
    return any(not is_null(model.get(client)) for client in _CLIENTS)


def _contained_port(model: Map) -> bool:
    """Whether a container of the model needs a port of ours: to be published there, or told to listen there."""
    blocks = [block for client in _CLIENTS if isinstance(block := model.get(client), Map)]
    if not all(is_null(block.get("port")) for block in blocks):
        return True
    told = [*(node for block in blocks for node in block.items.values()), model.get("env")] if blocks else []
    return any(_mentions_port(each) for node in told for each in (node.items if isinstance(node, Seq) else [node]))


def _mentions_port(node: Node | None) -> bool:
    return isinstance(node, Scalar) and node.kind == "str" and _PORT in node.text


# ---- what is left over ---------------------------------------------------------------------------------------------

_NAMED_BY_FIELD = ("cmd", "cmdStop", "proxy", "checkEndpoint", "name", "description", "filters.stripParams")


def _without_unknown(node: Node, path: Path, report: Report) -> Node:
    """Report each macro that is still there, and unset the values that hold one."""

    def checked(scalar: Scalar, path: Path) -> Scalar:
        unknown = _unknown_macros(scalar, path)
        for name in unknown:
            report.error(path, _unknown_text(name, path))
        return replace(_REFUSED, origin=scalar.origin) if unknown else scalar

    if path == ("models",) and isinstance(node, Map):
        for id_ in node.items:
            _report_unknown_keys(node, id_, report)
    return rewritten(node, checked, path)


def _unknown_macros(scalar: Scalar, path: Path) -> list[str]:
    if scalar.kind != "str" or (path[0] == "models" and path[2:3] == ("macros",)):
        return []
    is_stop = path[0] == "models" and path[2:] == ("cmdStop",)
    return [name for name in dict.fromkeys(_WORD.findall(scalar.text)) if not (is_stop and name == "PID")]


def _unknown_text(name: str, path: Path) -> str:
    """Say it in llama-swap's words, which differ by place; problems outside models carry the path anyway."""
    macro = f"unknown macro '${{{name}}}'"
    remedy = {
        "PORT": "; ${PORT} is only available when used in cmd",
        "PID": "; ${PID} is only available in cmdStop",
    }.get(name, "; declare it under macros, before the macros that use it")
    if name.isupper() and name.isidentifier() and name not in _RESERVED:  # it looks like a variable of the environment
        remedy += f", or write ${{env.{name}}}"
    if path[0] != "models" or len(path) < 3:
        return macro + remedy
    field = ".".join(step for step in path[2:] if isinstance(step, str))
    if field in _NAMED_BY_FIELD:
        return f"{macro} found in {path[1]}.{field}{remedy}"
    if field.startswith(("capabilities.", "metadata.")):
        field = field.partition(".")[0]
    return f"model {path[1]} {field}: {macro}{remedy}"


def _report_unknown_keys(models: Map, id_: str, report: Report) -> None:
    by_id = models.get(id_, "filters", "setParamsByID")
    for key in by_id.items if isinstance(by_id, Map) else ():
        if match := _WORD.search(key):
            what = f"unknown macro '{match[0]}' found in model {id_} filters.setParamsByID key"
            report.error(("models", id_, "filters", "setParamsByID", key), what)
