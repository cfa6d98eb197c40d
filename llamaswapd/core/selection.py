"""Which of its targets a selector chooses for a request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from llamaswapd.config.schema import Config, ModelConfig, Selector
from llamaswapd.core.lifecycle import State
from llamaswapd.errors import NoSpilloverTarget

# Model id → its state; asked for our own models only.
States: TypeAlias = Callable[[str], State]


@dataclass(slots=True)
class Chosen:
    """A selector's choice, to be released when the request has ended, once or more often."""

    name: str  # the target, as the selector's list names it
    selector: str  # its id
    _release: Callable[[], None] | None = None

    def release(self) -> None:
        """Stop counting the request."""
        release, self._release = self._release, None
        if release is not None:
            release()


@dataclass(frozen=True)
class _Target:
    name: str
    id: str  # of the model; `<peer>/<model>` for a peer's
    is_local: bool

    def state(self, states: States) -> State:
        return states(self.id) if self.is_local else State.STOPPED


@dataclass
class Selection:
    """One selector at work. It counts the requests that go through it, per target, while they last."""

    id: str
    selector: Selector
    targets: tuple[_Target, ...]
    _counts: Counter[str] = field(default_factory=Counter)  # by the model's id
    _turn: int = 0  # counts the choices among the least busy, so that equally busy ones take turns

    @classmethod
    def of(cls, id_: str, config: Config) -> Selection:
        """Return the selector with this id, whose targets must be known."""
        selector = config.selectors[id_]
        return cls(id_, selector, tuple(_target(name, config) for name in selector.targets))

    def choose(self, states: States) -> Chosen:
        """Choose a target for one request; raises NoSpilloverTarget."""
        match self.selector.strategy:
            case "warm":
                return Chosen(self._warmest(states).name, self.id)
            case "spillover":
                return self._counted(self._least_busy(states))
            case _:
                return Chosen(self.targets[0].name, self.id)

    def _warmest(self, states: States) -> _Target:
        for wanted in (State.READY, State.STARTING):
            for target in self.targets:
                if target.state(states) is wanted:
                    return target
        return self.targets[0]

    def _least_busy(self, states: States) -> _Target:
        """Stay with the targets in use until each has `spillover` requests; then take another into use."""
        active: list[_Target] = []
        cold: list[_Target] = []
        for target in self.targets:
            state = target.state(states)
            if state in (State.READY, State.STARTING):
                active.append(target)
            elif state is State.STOPPED:
                (active if self._counts[target.id] else cold).append(target)
        least = min((self._counts[target.id] for target in active), default=0)
        if cold and (not active or least >= self.selector.settings.spillover):
            return cold[0]
        if not active:
            raise NoSpilloverTarget(self.id)
        equal = [target for target in active if self._counts[target.id] == least]
        self._turn += 1
        return equal[(self._turn - 1) % len(equal)]

    def _counted(self, target: _Target) -> Chosen:
        self._counts[target.id] += 1

        def release() -> None:
            self._counts[target.id] -= 1

        return Chosen(target.name, self.id, release)


def _target(name: str, config: Config) -> _Target:
    found = config.find(name)
    return _Target(name, found.id if found is not None else name, isinstance(found, ModelConfig))
