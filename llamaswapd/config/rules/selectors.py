"""Rules of `selectors`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from llamaswapd.config.matrix_families import may_run_together
from llamaswapd.config.router import in_use
from llamaswapd.config.rules import Problems
from llamaswapd.config.rules.matrix import expressions_of
from llamaswapd.config.schema import Config, Group, Matrix, ModelConfig, PeerModel, Selector, Strategy

_STRATEGIES = get_args(Strategy)


def selectors(config: Config) -> Problems:
    for id_, selector in config.selectors.items():
        yield from _name(id_, config)
        path = ("selectors", id_)
        where = f"selectors.{id_}"
        if not selector.strategy:
            yield (*path, "strategy"), f"{where}.strategy is required; write pin, warm or spillover"
        elif selector.strategy not in _STRATEGIES:
            what = f'unknown strategy "{selector.strategy}" (valid: warm, pin, spillover)'
            yield (*path, "strategy"), f"{where}.strategy: {what}"
        if not selector.targets:
            yield (*path, "targets"), f"{where}.targets must contain at least one entry"
        yield from _targets(id_, selector, config)
        if selector.strategy == "spillover":
            yield from _spillover(id_, selector, config)


def _name(id_: str, config: Config) -> Problems:
    if not id_.strip():
        yield ("selectors", id_), "selectors: selector names cannot be empty"
    elif id_ in config.models:
        yield ("selectors", id_), f'selectors.{id_}: name conflicts with model ID "{id_}"'
    elif config.resolve(id_) is not None:
        yield ("selectors", id_), f'selectors.{id_}: name conflicts with model alias "{id_}"'


def _targets(id_: str, selector: Selector, config: Config) -> Problems:
    for index, target in enumerate(selector.targets):
        path = ("selectors", id_, "targets", index)
        where = f"selectors.{id_}.targets[{index}]"
        found = config.find(target)
        if target in config.selectors:
            yield path, f'{where} references selector "{target}"; selector chaining is not supported'
        elif found is None:
            yield path, f'{where} references unknown model "{target}"'
        elif selector.strategy == "warm" and isinstance(found, PeerModel):
            yield path, f'{where} must resolve to a local model for strategy "warm"; "{target}" is a model of a peer'


def _spillover(id_: str, selector: Selector, config: Config) -> Problems:
    where = f"selectors.{id_}"
    if selector.settings.spillover < 1:
        written = selector.settings.spillover
        yield ("selectors", id_, "settings", "spillover"), f"{where}.settings.spillover must be >= 1; it is {written}"
    found = [each for target in selector.targets if (each := config.find(target)) is not None]
    names = [each.id for each in found]
    for name in dict.fromkeys(name for index, name in enumerate(names) if name in names[:index]):
        yield ("selectors", id_, "targets"), f'{where}.targets contains duplicate resolved model "{name}"'
    local = list(dict.fromkeys(each.id for each in found if isinstance(each, ModelConfig)))
    if len(local) > 1:
        used = in_use(config)
        problem = _apart_by_matrix(used.matrix, local) if used.matrix else _apart_by_groups(used.groups, local)
        if problem:
            yield ("selectors", id_, "targets"), f"{where}{problem}"


def _apart_by_matrix(matrix: Matrix, models: list[str]) -> str | None:
    expressions = expressions_of(matrix)
    if expressions is None or may_run_together(expressions, matrix.vars, models):
        return None
    return f".targets must all appear together in one expanded matrix set; no set holds {' & '.join(models)}"


def _apart_by_groups(groups: Mapping[str, Group], models: list[str]) -> str | None:
    homes = {member: name for name, group in groups.items() for member in group.members}
    home = homes.get(models[0])
    if home is None or groups[home].swap:
        what = f'"{models[0]}" is in {f"group {home}" if home else "no group"}, where models replace each other'
        return f" spillover targets must share a group with swap: false; {what}"
    stranger = next((model for model in models if homes.get(model) != home), None)
    if stranger is None:
        return None
    return f' spillover targets must share one routing group; "{models[0]}" is in {home}, "{stranger}" is not'
