"""Which running models have to stop so that another may run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Protocol

from llamaswapd.config.schema import Config, Group
from llamaswapd.core.matrix import MatrixPolicy


class SwapPolicy(Protocol):
    """Says who makes room. Must be a function of its arguments alone: answers are remembered."""

    @property
    def name(self) -> str:
        """What `routing.router.use` calls it, and errors name."""

    def evictions(self, target: str, running: Collection[str]) -> tuple[str, ...]:
        """Return the models of `running` that must stop before a request to `target` may pass, never `target` itself.

        `running` holds every model that has a unit or is about to get one, among them `target` if it does, and such as
        the configuration does not know any more. Asked for every request, also when the target is ready.
        """


class GroupPolicy:
    """Groups, as llama-swap has them.

    `swap` rules among the members of a group. Between groups the target's `exclusive` and the other's `persistent`
    decide, and nothing else: a member of a group that is not exclusive starts beside an exclusive group, whose next
    request then stops it.
    """

    name = "group"

    def __init__(self, config: Config) -> None:
        self._group_of = {member: group for group in config.groups.values() for member in group.members}
        self._implicit = Group()  # of all models in no group

    def evictions(self, target: str, running: Collection[str]) -> tuple[str, ...]:
        return tuple(other for other in running if other != target and self._evicts(target, other))

    def _evicts(self, target: str, other: str) -> bool:
        own = self._group_of.get(target, self._implicit)
        others = self._group_of.get(other, self._implicit)
        if own is others:
            return own.swap
        return own.exclusive and not others.persistent


# By the name that `routing.router.use` gives.
POLICIES: Mapping[str, Callable[[Config], SwapPolicy]] = {
    GroupPolicy.name: GroupPolicy,
    MatrixPolicy.name: MatrixPolicy,
}


def policy_of(config: Config) -> SwapPolicy:
    """Return the policy in use: the matrix if there is one, as `groups` and `matrix` hold what routing has chosen."""
    return POLICIES["group" if config.matrix is None else "matrix"](config)
