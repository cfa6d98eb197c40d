"""Rules of `peers`, and of the names that they reserve."""

from __future__ import annotations

from llamaswapd.config.rules import Problems
from llamaswapd.config.rules.urls import base_url_problem
from llamaswapd.config.schema import Config, PeerModel
from llamaswapd.config.tree import Map, is_null


def peers(config: Config, root: Map) -> Problems:
    for id_, peer in config.peers.items():
        if is_null(root.get("peers", id_)):
            continue  # it serves nothing, to llama-swap as well
        if not peer.proxy:
            yield ("peers", id_, "proxy"), "proxy is required; write the URL of the server, such as https://host/api"
        elif problem := base_url_problem(peer.proxy, "https://host/api"):
            yield ("peers", id_, "proxy"), f"invalid peer proxy URL ({peer.proxy}): {problem}"
        if not peer.models:
            yield ("peers", id_, "models"), "peer models can not be empty; list the models that the peer serves"


def peer_names(config: Config) -> Problems:
    """Check that each `<peer>/<model>` means one thing."""
    owners: dict[str, PeerModel] = {}
    for id_, peer in sorted(config.peers.items()):
        for model in dict.fromkeys(peer.models):
            found = PeerModel(peer, model)
            rival = owners.setdefault(found.id, found)
            if rival.peer.id != id_:
                both = f'peers.{rival.peer.id} model "{rival.model}" and peers.{id_} model "{model}"'
                yield ("peers", id_, "models"), f'peer model name "{found.id}" is ambiguous between {both}'
    clash = "conflicts with fully qualified peer model name; choose another"
    for id_, model_config in config.models.items():
        if id_ in owners:
            yield ("models", id_), f'model ID "{id_}" {clash}'
        for alias in model_config.listed_aliases:
            if alias in owners:
                yield ("models", id_, "aliases"), f'model {id_} alias "{alias}" {clash}'
    for id_ in config.selectors:
        if id_ in owners:
            yield ("selectors", id_), f'selector ID "{id_}" {clash}'
    for id_, profile in config.profiles.items():
        for pin in profile.pins:
            if pin in owners:
                yield ("profiles", id_, "pins", pin), f'profile {id_} pin "{pin}" {clash}'
