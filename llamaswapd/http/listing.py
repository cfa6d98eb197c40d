"""How models are listed: pure functions from the configuration and the engine's statuses to what JSON will hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime

from llamaswapd.config.schema import Capabilities, Config, ModelConfig, Selector
from llamaswapd.core.lifecycle import State
from llamaswapd.engine import Status

Record = dict[str, object]

# What is said of `capabilities` does not have to be said again by hand.
CAPABILITY_KEYS = frozenset(("architecture", "capabilities", "supported_parameters", "context_length"))


def model_records(config: Config, statuses: Sequence[Status], pins: Mapping[str, str], created: int) -> list[Record]:
    """Return the rows of `/v1/models`, in byte order of their ids; `pins` are those of the active profile."""
    states = {status.model.id: status.state for status in statuses}
    rows = [
        row
        for status in statuses
        if status.model.id in config.models and not status.model.unlisted  # one that is gone may run on for a while
        for row in _models(status, created, with_aliases=config.include_aliases_in_list)
    ]
    rows += [_peer_model(found.id, found.peer.id, found.model, created) for found in config.peer_models]
    rows += [
        _selector(id_, selector, created, is_loaded=_is_loaded(selector, config, states))
        for id_, selector in config.selectors.items()
        if not selector.unlisted
    ]
    rows += [
        _record(name, "", "", {}, {"type": "profile"}, created, is_loaded=False)
        for name, target in pins.items()
        if target and not (config.find(name) or name in config.selectors)
    ]
    return sorted(rows, key=lambda row: str(row["id"]))


def _models(status: Status, created: int, *, with_aliases: bool) -> Iterator[Record]:
    model = status.model
    aliases: Record = {"aliases": list(model.listed_aliases)} if model.listed_aliases else {}
    facts: dict[str, Record] = {}
    if with_aliases:
        names = (alias.strip() for alias in model.listed_aliases)
        facts.update({name: {"type": "alias", "modelID": model.id} for name in names if name})
    facts[model.id] = {"type": "model", **aliases}  # it may be an alias of itself, to no effect
    metadata = model.metadata
    capabilities = capability_fields(model.capabilities)
    if model.capabilities != Capabilities():
        metadata = {key: value for key, value in metadata.items() if key not in CAPABILITY_KEYS}
    for name, own in facts.items():
        is_loaded = status.state is not State.STOPPED
        row = _record(name, model.name, model.description, metadata, own, created, is_loaded=is_loaded)
        if model.capabilities.context > 0:
            row["meta"] = {**_mapping(row["meta"]), "n_ctx": model.capabilities.context}
        yield row | capabilities


def _mapping(value: object) -> Mapping[str, object]:
    assert isinstance(value, Mapping)
    return value


def _peer_model(id_: str, peer_id: str, model: str, created: int) -> Record:
    facts: Record = {"type": "peer", "peerID": peer_id}
    return _record(id_, f"{peer_id}: {model}", "", {}, facts, created, is_loaded=False)


def _selector(id_: str, selector: Selector, created: int, *, is_loaded: bool) -> Record:
    facts: Record = {"type": "selector", "strategy": selector.strategy, "targets": list(selector.targets)}
    if selector.strategy == "spillover":
        facts["spillover"] = selector.settings.spillover
    return _record(id_, selector.name, selector.description, selector.metadata, facts, created, is_loaded=is_loaded)


def _is_loaded(selector: Selector, config: Config, states: Mapping[str, State]) -> bool:
    """Whether one of its targets, of a `pin` the first, runs or is about to."""
    targets = selector.targets[:1] if selector.strategy == "pin" else selector.targets
    models = (config.resolve(target) for target in targets)
    return any(model and states.get(model.id) in (State.STARTING, State.READY) for model in models)


def _record(
    name: str,
    shown_name: str,
    description: str,
    metadata: Mapping[str, object],
    facts: Record,
    created: int,
    *,
    is_loaded: bool,
) -> Record:
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "llama-swap",
        **_if_not_blank("name", shown_name),
        **_if_not_blank("description", description),
        "meta": {"llamaswap": {**metadata, **facts}},
        "status": {"value": "loaded" if is_loaded else "unloaded"},
    }


def _if_not_blank(key: str, text: str) -> Record:
    return {key: text.strip()} if text.strip() else {}


def capability_fields(can: Capabilities) -> Record:
    """Return what a row says of a model's abilities: nothing of what it lacks."""
    fields: Record = {}
    if can.in_ or can.out:
        fields["architecture"] = _architecture(can)
    if flags := capability_flags(can):
        fields["capabilities"] = flags
    if can.tools:
        fields["supported_parameters"] = ["tools", "tool_choice"]
    if can.context > 0:
        fields["context_length"] = can.context
    return fields


def _architecture(can: Capabilities) -> Record:
    modalities: Record = {}
    if can.in_:
        modalities["input_modalities"] = list(can.in_)
    if can.out:
        modalities["output_modalities"] = list(can.out)
    if can.in_ and can.out:
        modalities["modality"] = f"{'+'.join(can.in_)}->{'+'.join(can.out)}"
    return modalities


def capability_flags(can: Capabilities) -> Record:
    flags = {
        "vision": "image" in can.in_,
        "audio_transcriptions": "audio" in can.in_ and "text" in can.out,
        "audio_speech": "text" in can.in_ and "audio" in can.out,
        "image_generation": "text" in can.in_ and "image" in can.out,
        "image_to_image": "image" in can.in_ and "image" in can.out,
        "function_calling": can.tools,
        "reranker": can.reranker,
    }
    return {name: True for name, has_it in flags.items() if has_it}


def running_records(statuses: Iterable[Status], resources: Callable[[str], Record]) -> list[Record]:
    """Return the rows of `/running`: every model that is not stopped; `resources` says what one uses."""
    return [_running(status) | resources(status.model.id) for status in statuses if status.state is not State.STOPPED]


def _running(status: Status) -> Record:
    model = status.model
    return {
        "model": model.id,
        "state": status.state.value,
        "cmd": model.cmd,
        "proxy": model.proxy,
        "ttl": model.ttl,
        "name": model.name,
        "description": model.description,
        # What llama-swap does not say; null where it is not known.
        "unit": status.unit or None,
        "pid": status.pid or None,
        "port": model.port,
        "since": rfc3339(status.since) if status.since else None,
        "last_used": rfc3339(status.last_used) if status.last_used else None,
        "idle_unload_in_s": round(status.idle_unload_in_s, 1) if status.idle_unload_in_s is not None else None,
        "in_flight": status.in_flight,
        "waiting": status.waiting,
    }


def rfc3339(unix_s: float) -> str:
    """Return a time, in seconds since 1970, as RFC 3339 in UTC, whole seconds."""
    return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%dT%H:%M:%SZ}"


def status_records(config: Config, statuses: Iterable[Status]) -> list[Record]:
    """Return the data of a `modelStatus` event: all models of ours, unlisted ones included, then the peers'."""
    return [
        *(_status(status.model, status.state) for status in statuses),
        *(
            {"id": found.id, "name": "", "description": "", "state": "", "unlisted": False, "peerID": found.peer.id}
            for found in config.peer_models
        ),
    ]  # fmt: skip


def _status(model: ModelConfig, state: State) -> Record:
    flags = capability_flags(model.capabilities)
    return {
        "id": model.id,
        "name": model.name,
        "description": model.description,
        "state": state.value,
        "unlisted": model.unlisted,
        "peerID": "",
        **({"aliases": list(model.listed_aliases)} if model.listed_aliases else {}),
        **({"capabilities": flags} if flags else {}),
        **({"context_length": model.capabilities.context} if model.capabilities.context > 0 else {}),
    }
