"""The configuration on its way from the launcher to the half of the program that serves requests.

That half is told what it needs for requests, and nothing that only the models' units do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

from llamaswapd.config.environment import names_in
from llamaswapd.config.references import filled, unknown_to_launcher
from llamaswapd.config.report import Report
from llamaswapd.config.rules.general import api_keys
from llamaswapd.config.schema import Config, Filters, ModelConfig, Peer, Section
from llamaswapd.config.store import check_store
from llamaswapd.config.tree import Path
from llamaswapd.errors import ConfigError, Problem

F = TypeVar("F", ModelConfig, Peer)

_DEFAULT_PORTS = {"http": 80, "https": 443}


def to_front(config: Config) -> str:
    """Return the configuration as JSON; what is as by default is left out."""
    return json.dumps(of_front(config), default=Section.said)


def of_front(config: Config) -> Config:
    """Return what the half that serves requests may know of a configuration."""
    return config.having(models={id_: _of_front(model) for id_, model in config.models.items()}, systemd={}, macros={})


def _of_front(model: ModelConfig) -> ModelConfig:
    url = urlsplit(model.proxy)
    port = url.port or _DEFAULT_PORTS.get(url.scheme)
    is_named = port is not None and model.names_port(port)
    return model.having(
        env=(), systemd={}, cmd_stop="", macros={}, podman=None, docker=None, named_port=port if is_named else None
    )


def from_launcher(text: str, environ: Mapping[str, str], credentials: Mapping[str, str]) -> Config:
    """Return the configuration, with the values put in that the launcher did not know.

    Raises ConfigError for those that are not known here either, for a store that cannot be used, and for what another
    version may have meant. Looks at the file system for the store.
    """
    try:
        config = Config(**json.loads(text))
    except (ValueError, TypeError):  # their texts quote values
        remedy = "restart both services: systemctl restart llamaswapd-launcher llamaswapd"
        what = f"the launcher's configuration cannot be read, it may be of another version; {remedy}"
        raise ConfigError([Problem("", "", what)]) from None
    report = Report()
    config = _Resolver({**environ, **credentials}, report).config(config)
    for path, problem in api_keys(config):
        report.error(path, problem)
    check_store(config, report)
    report.raise_errors()
    return config


class _Resolver:
    """Puts the values in where the launcher has left references."""

    def __init__(self, values: Mapping[str, str], report: Report) -> None:
        self._values = values
        self._report = report

    def config(self, config: Config) -> Config:
        return config.having(
            api_keys=tuple(self._text(key, ("apiKeys", number)) for number, key in enumerate(config.api_keys)),
            models={id_: self._filtered(model, "models") for id_, model in config.models.items()},
            peers={id_: self._peer(peer) for id_, peer in config.peers.items()},
        )

    def _peer(self, peer: Peer) -> Peer:
        peer = peer.having(api_key=self._text(peer.api_key, ("peers", peer.id, "apiKey")))
        return self._filtered(peer, "peers")

    def _filtered(self, owner: F, kind: str) -> F:
        path: Path = (kind, owner.id, "filters")
        filters: Filters = owner.filters.having(
            set_params=self._value(owner.filters.set_params, (*path, "setParams")),
            set_params_by_id=self._value(owner.filters.set_params_by_id, (*path, "setParamsByID")),
        )
        return owner.having(filters=filters) if filters != owner.filters else owner

    def _value(self, value: Any, path: Path) -> Any:
        if isinstance(value, str):
            return self._text(value, path)
        if isinstance(value, list):
            return [self._value(item, (*path, number)) for number, item in enumerate(value)]
        if isinstance(value, Mapping):
            return {key: self._value(item, (*path, key)) for key, item in value.items()}
        return value

    def _text(self, written: str, path: Path) -> str:
        for name in names_in([written]):
            if name not in self._values:
                self._report.error(path, unknown_to_launcher(name))
        return filled(written, path, self._values, self._report)
