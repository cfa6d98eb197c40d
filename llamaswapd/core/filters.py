"""What a model's configuration changes in the JSON body of a request."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llamaswapd.config.schema import ModelConfig
from llamaswapd.core import jsontext


def needed(model: ModelConfig, requested: str) -> bool:
    """Say whether `apply` could change a body, for which it needs the whole of it."""
    filters = model.filters
    return bool(
        (model.use_model_name and model.use_model_name != requested)
        or filters.strip_params
        or filters.set_params
        or filters.set_params_by_id.get(requested)
    )


def apply(body: bytes, model: ModelConfig, requested: str) -> bytes:
    """Return the body as the model's server is to see it, the same object where nothing applies.

    `requested` is the name that the client used. In this order, later ones win: `useModelName`, `stripParams`,
    `setParams`, `setParamsByID`; the last three cannot touch `model`.
    """
    deletes = [path for path in sorted(model.filters.strip_params) if _may_change(path)]
    sets = list(_sets(model, requested))
    return jsontext.edit(body, deletes, sets) if deletes or sets else body


def _sets(model: ModelConfig, requested: str) -> Iterator[tuple[str, Any]]:
    if model.use_model_name and model.use_model_name != requested:
        yield "model", model.use_model_name
    for params in (model.filters.set_params, model.filters.set_params_by_id.get(requested, {})):
        yield from ((path, params[path]) for path in sorted(params) if _may_change(path))


def _may_change(path: str) -> bool:
    return jsontext.split(path)[0] != "model"
