"""What types cannot say: ranges, syntax, and what one part of the configuration demands of another.

Everything wrong is reported, in the order in which llama-swap would find it and in its words where it has any.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from llamaswapd.config import settings
from llamaswapd.config.report import Report
from llamaswapd.config.schema import Config, Group, ModelConfig
from llamaswapd.config.tree import Map, Path

# llama-swap's name for the group of the models that are in no other.
DEFAULT_GROUP = "(default)"


def validate(config: Config, root: Map, report: Report) -> None:
    """Report everything wrong with a decoded configuration; `root` is the tree it was decoded from."""
    for path, problem in _top_level(config):
        report.error(path, problem)
    for path, problem in _duplicate_aliases(config.models):
        report.error(path, problem)
    for id_, model in config.models.items():
        for key, problem in _model(id_, model, config):
            report.error(("models", id_, *key), problem)
    if config.groups and isinstance(root.get("matrix"), Map):
        report.error(("matrix",), "config cannot use both 'groups' and 'matrix'; remove one of them")
    for path, problem in _groups(config):
        report.error(path, problem)
    for path, problem in _api_keys(config):
        report.error(path, problem)
    _warn(config, report)


Problems = Iterator[tuple[Path, str]]


def _top_level(config: Config) -> Problems:
    if config.start_port < 1:
        yield ("startPort",), f"startPort must be greater than 1; it is {config.start_port}"
    if config.global_ttl < 0:
        yield ("globalTTL",), f"globalTTL must be >= 0; it is {config.global_ttl}, write 0 to never unload"
    if config.unload_timeout < 0:
        yield ("unloadTimeout",), f"unloadTimeout must be >= 0; it is {config.unload_timeout}"
    if config.overtake_limit < 0:
        yield ("overtakeLimit",), f"overtakeLimit must be >= 0; it is {config.overtake_limit}"
    yield from _unit_settings(config.systemd)


def _unit_settings(block: Mapping[str, tuple[str, ...]]) -> Problems:
    for name, values in block.items():
        for problem in settings.check(name, values):
            yield ("systemd", name), problem


def _api_keys(config: Config) -> Problems:
    for index, key in enumerate(config.api_keys):
        if not key:
            yield ("apiKeys", index), "empty api key found in apiKeys; remove it or give it a value"
        elif " " in key:
            yield ("apiKeys", index), f"apiKeys[{index}]: api key cannot contain spaces"


# ---- models --------------------------------------------------------------------------------------------------------


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
    yield from _names_by_id(id_, model, config.models)
    if problem := _proxy_problem(model.proxy):
        yield ("proxy",), f"model {id_}: invalid proxy URL: {problem}"
    if problem := _endpoint_problem(model.check_endpoint):
        yield ("checkEndpoint",), f'"{model.check_endpoint}" is no path: {problem}; write one such as /health, or none'
    try:
        re.compile(model.ready_log)
    except re.error as error:
        yield ("readyLog",), f'"{model.ready_log}" is no regular expression: {error}'
    yield from _unit_settings(model.systemd)


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


_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2}).{0,2}")


def _proxy_problem(proxy: str) -> str | None:
    if not proxy:
        return None  # no reason to refuse the file: only starting this model fails, as in llama-swap
    if proxy == ModelConfig().proxy:
        return None  # what was written could not be used, and that has been reported
    if problem := _url_problem(proxy):
        return problem
    url = urlsplit(proxy)
    example = "write one such as http://localhost:${PORT}"
    if url.scheme not in ("http", "https"):
        return f'"{proxy}" does not start with http:// or https://; {example}'
    if not url.hostname or " " in url.netloc:
        return f'"{proxy}" names no host; {example}'
    return None


def _endpoint_problem(endpoint: str) -> str | None:
    return _url_problem(endpoint.strip())


def _url_problem(text: str) -> str | None:
    if _CONTROL.search(text):
        return f"{text!r} holds a control character"
    try:
        url = urlsplit(text)
        _ = url.port  # raises where it is no number or too large
    except ValueError as error:
        return f'"{text}": {error}'
    if bad := _BAD_ESCAPE.search(url.path):
        return f'invalid URL escape "{bad[0]}"'
    return None


# ---- groups --------------------------------------------------------------------------------------------------------


def _groups(config: Config) -> Problems:
    homes: dict[str, str] = {}
    for name, group in config.groups.items():
        if name == DEFAULT_GROUP and group.members:
            yield ("groups", name), f"{DEFAULT_GROUP} is the group of the models in no other; choose another name"
        yield from _members(name, group, homes, config)


def _members(name: str, group: Group, homes: dict[str, str], config: Config) -> Problems:
    for index, member in enumerate(group.members):
        path = ("groups", name, "members", index)
        if member in group.members[:index]:
            yield path, f"duplicate model member {member} found in group: {name}"
        elif member in homes:
            yield path, f"model member {member} is used in multiple groups: {homes[member]} and {name}"
        elif config.resolve(member) is None:
            yield path, f'no model config for "{member}"; a member is the id of a model'
        homes.setdefault(member, name)


# ---- worth a word --------------------------------------------------------------------------------------------------


def _warn(config: Config, report: Report) -> None:
    if "comfyui_auto" in config.models:
        report.warn(("models", "comfyui_auto"), "the meaning of this id is not yet honoured; it is an ordinary model")
    for name, group in config.groups.items():
        for index, member in enumerate(group.members):
            model = config.resolve(member)
            if member not in config.models and model is not None:
                path = ("groups", name, "members", index)
                report.warn(path, f'"{member}" is an alias and ignored here; write the id, "{model.id}"')
    for index, preload in enumerate(config.hooks.on_startup.preload):
        if preload.strip() and config.resolve(preload.strip()) is None:
            report.warn(("hooks", "on_startup", "preload", index), f'no model is called "{preload.strip()}"; ignored')
