"""What applies to each model once globals, defaults and aliases have had their say."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from llamaswapd.config.schema import Config, Filters, Group, Hooks, ModelConfig, OnStartup

# A shorter limit would give up on servers that only need a moment; llama-swap raises it likewise.
_LEAST_HEALTH_CHECK_TIMEOUT_S = 15

# The router finds the model by this member of a request's body; no filter may touch it.
_PROTECTED = "model"


def effective(config: Config) -> Config:
    """Return the configuration with every model's settings filled in and names replaced by model ids."""
    default = Config()
    rows = config.metrics_max_in_memory
    config = config.having(
        health_check_timeout=max(config.health_check_timeout, _LEAST_HEALTH_CHECK_TIMEOUT_S),
        unload_timeout=config.unload_timeout or default.unload_timeout,
        metrics_max_in_memory=rows if rows > 0 else default.metrics_max_in_memory,
    )
    config = config.having(models={id_: _model(model, config) for id_, model in config.models.items()})
    preload = tuple(model.id for name in config.hooks.on_startup.preload if (model := config.resolve(name.strip())))
    return config.having(
        hooks=Hooks(on_startup=OnStartup(preload=preload)),
        groups={name: _group(group, config.models) for name, group in config.groups.items()},
    )


def _model(model: ModelConfig, config: Config) -> ModelConfig:
    loading = model.send_loading_state
    return model.having(
        ttl=config.global_ttl if model.ttl == -1 else model.ttl,
        unload_timeout=model.unload_timeout or config.unload_timeout,
        health_check_timeout=config.health_check_timeout,
        send_loading_state=config.send_loading_state if loading is None else loading,
        check_endpoint=_endpoint(model.check_endpoint),
        filters=_filters(model.filters),
        systemd={**config.systemd, **model.systemd},
    )


def _endpoint(endpoint: str) -> str:
    """Return `none`, or the path and query to ask for below `proxy`."""
    endpoint = endpoint.strip()
    if endpoint.lower() == "none":
        return "none"
    url = urlsplit(endpoint)
    return "/" + url.path.removeprefix("/") + (f"?{url.query}" if url.query else "")


def _filters(filters: Filters) -> Filters:
    return Filters(
        strip_params=tuple(name for name in filters.strip_params if name != _PROTECTED),
        set_params=_unprotected(filters.set_params),
        set_params_by_id={id_: _unprotected(params) for id_, params in filters.set_params_by_id.items()},
    )


def _unprotected(params: Mapping[str, object]) -> dict[str, object]:
    return {name: params[name] for name in sorted(params) if name != _PROTECTED}


def _group(group: Group, models: Mapping[str, ModelConfig]) -> Group:
    return group.having(members=tuple(member for member in group.members if member in models))
