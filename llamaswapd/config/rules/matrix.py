"""Rules of a matrix, wherever it is written; whoever calls puts `matrix: ` before each problem."""

from __future__ import annotations

import re
from collections.abc import Mapping

from llamaswapd.config.matrix_language import Expression, MatrixError, Name, leaves, parse, referred_first
from llamaswapd.config.rules import Problems
from llamaswapd.config.schema import Matrix, ModelConfig

_VARIABLE = re.compile(r"[a-zA-Z0-9.-]{1,32}")


def matrix(block: Matrix, models: Mapping[str, ModelConfig]) -> Problems:
    """Yield what is wrong, paths counted from the matrix."""
    if not block.sets:
        yield ("sets",), 'matrix must define at least one set, such as `both: "a & b"`'
    for name, model in block.vars.items():
        if not _VARIABLE.fullmatch(name):
            rule = "must contain only alphanumeric, '-' or '.' characters and be 1-32 characters long"
            yield ("vars", name), f'var key "{name}" {rule}'
        elif model not in models:
            yield ("vars", name), f'var key "{name}" references unknown model "{model}"; write the id, not an alias'
    for name, cost in block.evict_costs.items():
        if cost < 1:
            yield ("evict_costs", name), f'evict_cost for "{name}" must be a positive integer, got {cost}'
        if name not in block.vars and name not in models:
            yield ("evict_costs", name), f'evict_costs: unknown var or model "{name}"'
    yield from _sets(block, models)


def _sets(block: Matrix, models: Mapping[str, ModelConfig]) -> Problems:
    expressions: dict[str, Expression] = {}
    for name, written in block.sets.items():
        try:
            expressions[name] = parse(written)
        except MatrixError as error:
            yield ("sets", name), f'set "{name}": {error}'
    for name, expression in expressions.items():
        unknown = {leaf.id: None for leaf in leaves(expression) if isinstance(leaf, Name)}
        for id_ in unknown:
            if id_ not in block.vars and id_ not in models:
                yield ("sets", name), f'set "{name}": unknown var or model "{id_}"'
    if len(expressions) == len(block.sets):
        try:
            referred_first(expressions)
        except MatrixError as error:
            yield ("sets",), str(error)


def expressions_of(block: Matrix) -> dict[str, Expression] | None:
    """Return what the sets say, None if that is wrong in itself."""
    try:
        found = {name: parse(written) for name, written in block.sets.items()}
        referred_first(found)
    except MatrixError:
        return None
    return found
