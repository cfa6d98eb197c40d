"""Rules of `models`."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping

from llamaswapd.config.rules import Problems
from llamaswapd.config.rules.containers import container
from llamaswapd.config.rules.units import unit_settings
from llamaswapd.config.rules.urls import base_url_problem, url_problem
from llamaswapd.config.schema import Capabilities, Config, ModelConfig
from llamaswapd.config.tree import Path


def models(config: Config) -> Problems:
    yield from _duplicate_aliases(config.models)
    for id_, model in config.models.items():
        for key, problem in _model(id_, model, config):
            yield ("models", id_, *key), problem


def _duplicate_aliases(models: Mapping[str, ModelConfig]) -> Problems:
    owners: dict[str, str] = {}
    for id_, model in models.items():
        for index, alias in enumerate(model.aliases):
            if alias in owners:
                taken = f"model {owners[alias]} has it already"
                yield ("models", id_, "aliases", index), f"duplicate alias {alias} found in model: {id_}; {taken}"
            owners.setdefault(alias, id_)


def _model(id_: str, model: ModelConfig, config: Config) -> Problems:
    if model.ttl < -1:
        remedy = "write seconds, 0 for never or -1 for globalTTL"
        yield ("ttl",), f"model {id_}: invalid TTL value {model.ttl}; {remedy}"
    if model.unload_timeout < 0:
        yield (
            ("unloadTimeout",),
            f"model {id_}: invalid unloadTimeout value {model.unload_timeout}; 0 is the global one",
        )
    for path, problem in _capabilities(model.capabilities):
        yield path, f"model {id_}: {problem}"
    yield from _names_by_id(id_, model, config.models)
    if problem_of_proxy := _proxy_problem(model.proxy):
        yield ("proxy",), f"model {id_}: invalid proxy URL: {problem_of_proxy}"
    if problem_of_endpoint := url_problem(model.check_endpoint.strip()):
        remedy = "write one such as /health, or none"
        yield ("checkEndpoint",), f'"{model.check_endpoint}" is no path: {problem_of_endpoint}; {remedy}'
    try:
        with warnings.catch_warnings(action="ignore"):  # of what a pattern may mean one day, such as [[a]
            re.compile(model.ready_log)
    except (re.error, OverflowError, RecursionError) as error:
        yield ("readyLog",), f'"{model.ready_log}" is no regular expression: {error}'
    yield from container(model)
    yield from unit_settings(model.systemd)


_MODALITIES = ("text", "audio", "image")


def _capabilities(capabilities: Capabilities) -> Problems:
    for key, modalities in (("in", capabilities.in_), ("out", capabilities.out)):
        for index, modality in enumerate(modalities):
            if modality not in _MODALITIES:
                offer = f"must be one of: {', '.join(_MODALITIES)}"
                yield ("capabilities", key, index), f'capabilities.{key}: invalid modality "{modality}", {offer}'
    if capabilities.context < 0:
        yield ("capabilities", "context"), f"capabilities.context: must be >= 0; it is {capabilities.context}"


def _names_by_id(id_: str, model: ModelConfig, models: Mapping[str, ModelConfig]) -> Problems:
    """Check the aliases that `setParamsByID` makes."""
    where = f"model {id_} filters.setParamsByID"
    for key in model.filters.set_params_by_id:
        path: Path = ("filters", "setParamsByID", key)
        if key == id_:
            continue
        if key in models:
            yield path, f"{where}: key '{key}' conflicts with an existing model ID"
            continue
        owner = next((other for other, rival in models.items() if _owns(other, rival, key, before=id_)), id_)
        if owner != id_:
            yield path, f"duplicate alias '{key}' in {where}, already used by model {owner}"


def _owns(id_: str, model: ModelConfig, alias: str, *, before: str) -> bool:
    """Whether a model has an alias already when the aliases of `setParamsByID` come to the model `before`."""
    return alias in model.aliases or (id_ < before and alias in model.filters.set_params_by_id)


def _proxy_problem(proxy: str) -> str | None:
    if not proxy:
        return None  # no reason to refuse the file: only starting this model fails, as in llama-swap
    if proxy == ModelConfig().proxy:
        return None  # what was written could not be used, and that has been reported
    return base_url_problem(proxy, "http://localhost:${PORT}")
