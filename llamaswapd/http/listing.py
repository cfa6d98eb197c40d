"""How models are listed: pure functions from the engine's statuses to what JSON will hold."""

from __future__ import annotations

from collections.abc import Iterable

from llamaswapd.config.schema import ModelConfig
from llamaswapd.core.lifecycle import State
from llamaswapd.engine import Status

Record = dict[str, object]


def model_records(statuses: Iterable[Status], created: int, *, with_aliases: bool) -> list[Record]:
    """Return the rows of `/v1/models`, in byte order of their ids."""
    rows: list[Record] = []
    for status in statuses:
        model = status.model
        if model.unlisted:
            continue
        aliases: Record = {"aliases": list(model.listed_aliases)} if model.listed_aliases else {}
        rows.append(_record(model.id, status, created, {"type": "model", **aliases}))
        if with_aliases:
            names = (alias.strip() for alias in model.listed_aliases)
            rows += [_record(name, status, created, {"type": "alias", "modelID": model.id}) for name in names if name]
    return sorted(rows, key=lambda row: str(row["id"]))


def _record(name: str, status: Status, created: int, facts: Record) -> Record:
    model = status.model
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "llama-swap",
        **_if_not_blank("name", model.name),
        **_if_not_blank("description", model.description),
        "meta": {"llamaswap": {**model.metadata, **facts}},
        "status": {"value": "unloaded" if status.state is State.STOPPED else "loaded"},
    }


def _if_not_blank(key: str, text: str) -> Record:
    return {key: text.strip()} if text.strip() else {}


def running_records(statuses: Iterable[Status]) -> list[Record]:
    """Return the rows of `/running`: every model that is not stopped."""
    return [_running(status.model, status.state) for status in statuses if status.state is not State.STOPPED]


def _running(model: ModelConfig, state: State) -> Record:
    return {
        "model": model.id,
        "state": state.value,
        "cmd": model.cmd,
        "proxy": model.proxy,
        "ttl": model.ttl,
        "name": model.name,
        "description": model.description,
    }


def status_records(statuses: Iterable[Status]) -> list[Record]:
    """Return the data of a `modelStatus` event: all models, unlisted ones included."""
    return [_status(status.model, status.state) for status in statuses]


def _status(model: ModelConfig, state: State) -> Record:
    return {
        "id": model.id,
        "name": model.name,
        "description": model.description,
        "state": state.value,
        "unlisted": model.unlisted,
        "peerID": "",
        **({"aliases": list(model.listed_aliases)} if model.listed_aliases else {}),
    }
