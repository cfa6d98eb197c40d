"""What a name in a request means at the moment: profiles and selectors, before models and peers.

A name is replaced by the pin that the active profile has for it, then, if it is a selector's, by that one's choice;
each at most once. What is left is a model of ours or of a peer, by id or alias (`Config.find`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from llamaswapd.config.schema import Config, ModelConfig, PeerModel
from llamaswapd.core.selection import Chosen, Selection, States
from llamaswapd.errors import NoModel, ProfileNotFound, UnknownModel

_NO_PINS: Mapping[str, str] = {}


@dataclass(slots=True)
class Resolved:
    """What a client's name has led to; `release` when the request has ended, once or more often."""

    target: ModelConfig | PeerModel
    name: str  # what has become of the client's name: still an alias, if it was one or led to one
    is_rewritten: bool  # by a pin or a selector
    selector: str | None = None  # the id of the selector that chose the target
    _chosen: Chosen | None = None

    def release(self) -> None:
        if self._chosen is not None:
            self._chosen.release()


class Naming:
    """The names of one configuration. No profile is active at first."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._selections = {id_: Selection.of(id_, config) for id_ in config.selectors}
        self._pins = _NO_PINS
        self.active: str | None = None  # the profile

    def activate(self, name: str | None) -> None:
        """Switch to a profile, None or "" to none; raises ProfileNotFound, and leaves everything as it was."""
        if name and name not in self._config.profiles:
            raise ProfileNotFound(name)
        self.active = name or None
        self._pins = self._config.profiles[name].pins if name else _NO_PINS

    def pins(self) -> Mapping[str, str]:
        """Return the pins of the active profile; one to "" disables its name."""
        return self._pins

    def pinned(self, name: str) -> str:
        """Return what the active profile makes of a name; raises NoModel if it disables it."""
        pin = self._pins.get(name, name)
        if not pin and name in self._pins:
            raise NoModel(f'the profile "{self.active}" disables the name "{name}"')
        return pin

    def select(self, selector: str, states: States) -> Chosen:
        """Let a selector choose; raises KeyError if there is none with this id, NoSpilloverTarget."""
        return self._selections[selector].choose(states)

    def resolve(self, name: str, states: States) -> Resolved:
        """Return what a client's name means; raises NoModel, UnknownModel, NoSpilloverTarget."""
        meant = self.pinned(name) if self._pins else name
        if meant in self._selections:
            return self._selected(meant, states)
        target = self._config.find(meant)
        if target is None:
            raise unknown(self._config, meant)
        return Resolved(target, meant, meant != name)

    def _selected(self, selector: str, states: States) -> Resolved:
        chosen = self.select(selector, states)
        target = self._config.find(chosen.name)
        if target is None:
            chosen.release()
            raise unknown(self._config, chosen.name)
        return Resolved(target, chosen.name, True, selector, chosen)


def unknown(config: Config, name: str) -> UnknownModel:
    """Return the error for a name that nothing has, with the nearest one that is listed."""
    nearest = difflib.get_close_matches(name, list(_listed(config)), n=1)
    return UnknownModel(name, nearest[0] if nearest else None)


def names_of(models: Iterable[ModelConfig]) -> Iterator[str]:
    """Yield the ids and aliases of these models."""
    for model in models:
        yield from (model.id, *model.listed_aliases)


def _listed(config: Config) -> Iterator[str]:
    yield from names_of(model for model in config.models.values() if not model.unlisted)
    yield from (id_ for id_, selector in config.selectors.items() if not selector.unlisted)
    for found in config.peer_models:
        yield from (found.model, found.id)
