"""What applies to each model once globals, defaults and aliases have had their say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar
from urllib.parse import urlsplit

from llamaswapd.config import containers
from llamaswapd.config.router import in_use
from llamaswapd.config.schema import (
    COMFYUI_ID,
    ActivityPage,
    Compat,
    Config,
    Filters,
    Group,
    Hooks,
    ModelConfig,
    OnStartup,
    Peer,
    Performance,
    Router,
    RouterSettings,
    Scheduling,
    Selector,
    Timeouts,
    Ui,
    UpstreamSection,
)

# A shorter limit would give up on servers that only need a moment; llama-swap raises it likewise.
_LEAST_HEALTH_CHECK_TIMEOUT_S = 15

# The router finds the model by this member of a request's body; no filter may touch it.
_PROTECTED = "model"

T = TypeVar("T", bound=Timeouts)


def effective(config: Config) -> Config:
    """Return the configuration with all settings filled in and names replaced by model ids.

    From here on `groups` and `matrix` are what is in use, wherever it was written: without a matrix, groups decide.
    """
    default = Config()
    rows = config.metrics_max_in_memory
    config = config.having(
        health_check_timeout=max(config.health_check_timeout, _LEAST_HEALTH_CHECK_TIMEOUT_S),
        unload_timeout=config.unload_timeout or default.unload_timeout,
        metrics_max_in_memory=rows if rows > 0 else default.metrics_max_in_memory,
        capture_buffer=max(config.capture_buffer, 0),
        performance=Performance(
            disabled=config.performance.disabled, every=config.performance.every or default.performance.every
        ),
        ui=Ui(activity=ActivityPage(session_id=_header_names(config.ui.activity.session_id))),
        upstream=config.upstream if config.upstream.ignore_paths else UpstreamSection(),
    )
    config = config.having(
        models={id_: _model(model, config) for id_, model in config.models.items()},
        selectors={id_: _selector(selector) for id_, selector in config.selectors.items()},
        # A peer given as null serves nothing.
        peers={id_: _peer(peer) for id_, peer in config.peers.items() if peer.models},
    )
    preload = tuple(model.id for name in config.hooks.on_startup.preload if (model := config.resolve(name.strip())))
    return _routed(config.having(hooks=Hooks(on_startup=OnStartup(preload=preload))))


def _routed(config: Config) -> Config:
    """Write down what is in use at both places where it can be written."""
    used = in_use(config)
    groups = {name: _group(group, config.models) for name, group in used.groups.items()}
    router = Router(
        use="group" if used.matrix is None else "matrix", settings=RouterSettings(groups=groups, matrix=used.matrix)
    )
    scheduler = config.routing.scheduler.having(use=config.routing.scheduler.use or Scheduling().use)
    routing = config.routing.having(router=router, scheduler=scheduler)
    return config.having(groups=groups, matrix=used.matrix, routing=routing)


def _header_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names without blanks around them and without repeats, whose case does not count."""
    found: dict[str, str] = {}
    for name in (name.strip() for name in names):
        if name:
            found.setdefault(name.lower(), name)
    return tuple(found.values())


def _model(model: ModelConfig, config: Config) -> ModelConfig:
    loading = model.send_loading_state
    model = model.having(
        ttl=config.global_ttl if model.ttl == -1 else model.ttl,
        unload_timeout=model.unload_timeout or config.unload_timeout,
        health_check_timeout=config.health_check_timeout,
        send_loading_state=config.send_loading_state if loading is None else loading,
        check_endpoint=_endpoint(model.check_endpoint),
        filters=_filters(model.filters),
        timeouts=_timeouts(model.timeouts),
        systemd={**config.systemd, **model.systemd},
    )
    if model.container is not None:  # what stands in `cmd` and `cmdStop` beside it is for llama-swap
        model = model.having(cmd=containers.shown(model), cmd_stop="")
    if model.id != COMFYUI_ID:
        return model
    return model.having(concurrency_limit=model.slots, compat=Compat(ignore_websockets=model.ignores_websockets))


def _selector(selector: Selector) -> Selector:
    return selector.having(name=selector.name.strip(), description=selector.description.strip())


def _peer(peer: Peer) -> Peer:
    return peer.having(filters=_filters(peer.filters), timeouts=_timeouts(peer.timeouts))


def _timeouts(timeouts: T) -> T:
    return timeouts.having(**{name: max(seconds, 0) for name, seconds in timeouts})


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
