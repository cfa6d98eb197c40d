"""What a file means but does not say: old spellings, comments in commands and the implied `proxy` written out.

Runs before macros are expanded, because a macro in a comment must not count and the implied `proxy` holds `${PORT}`.
"""

from __future__ import annotations

from dataclasses import replace

from llamaswapd.config.commandline import without_comments
from llamaswapd.config.schema import ModelConfig
from llamaswapd.config.tree import Map, Node, Scalar, is_null, text

_DEFAULT_PROXY = ModelConfig().proxy


def prepare(root: Map) -> Map:
    models = root.get("models")
    if isinstance(models, Map):
        root = root.having(models=replace(models, items={id_: _model(node) for id_, node in models.items.items()}))
    return _with_manager(root)


def _model(model: Node) -> Node:
    """Return a model with its implied settings; one given as null stays without command and proxy."""
    if not isinstance(model, Map):
        return model
    model = _without_comments(model, "cmd", "cmdStop")
    for client in ("podman", "docker"):
        block = model.get(client)
        if isinstance(block, Map):
            model = model.having(**{client: _without_comments(block, "args", "options")})
    if is_null(model.get("proxy")):
        model = model.having(proxy=text(_DEFAULT_PROXY, model.origin))
    filters = model.get("filters")
    if isinstance(filters, Map):
        model = model.having(filters=_filters(filters))
    return model


def _without_comments(block: Map, *keys: str) -> Map:
    for key in keys:
        command = block.get(key)
        if isinstance(command, Scalar) and command.kind == "str":
            block = block.having(**{key: text(without_comments(command.text), command.origin)})
    return block


def _filters(filters: Map) -> Map:
    """Spell the old `strip_params` as `stripParams`; the new spelling wins where both say something."""
    legacy, current = filters.get("strip_params"), filters.get("stripParams")
    filters = filters.without("strip_params")
    is_unset = is_null(current) or (isinstance(current, Scalar) and not current.text)
    return filters.having(stripParams=legacy) if legacy is not None and is_unset else filters


def _with_manager(root: Map) -> Map:
    """Move `manager` out of the top-level `systemd` block, so that only unit settings remain there."""
    block, manager = root.get("systemd"), root.get("systemd", "manager")
    if not isinstance(block, Map) or manager is None:
        return root
    return root.having(**{"systemd": block.without("manager"), "systemd.manager": manager})
