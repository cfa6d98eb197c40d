"""The way of nearly all requests: a lease that is granted at once, and given back when the answer has ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from llamaswapd.core.slots import Slots

if TYPE_CHECKING:
    from llamaswapd.engine.lease import Lease


class AtOnce:
    """Gives such leases. All of one run are one and the same, because nothing in them is of a single request.

    `slots` are the scheduler's, by model id; `make` returns a new lease; `idle` is told when a model's last request has
    ended, if that matters to anybody.
    """

    def __init__(
        self, slots: Mapping[str, Slots], make: Callable[[str], Lease], idle: Callable[[str, float], None]
    ) -> None:
        self.leases: dict[str, Lease] = {}  # by model, of the runs that are on
        self._slots = slots
        self._make = make
        self._idle = idle

    def lease_now(self, model_id: str) -> Lease | None:
        """Return a lease that is granted already, to be given back by `leave`; None if that cannot be done at once.

        None leaves no trace: whoever can wait asks for an ordinary lease then.
        """
        if not self._slots[model_id].take():
            return None
        lease = self.leases.get(model_id)
        if lease is None:
            lease = self.leases[model_id] = self._make(model_id)
        return lease

    def leave(self, lease: Lease, now: float) -> None:
        """Take a lease back that came of `lease_now`, at that time of the monotonic clock."""
        if self._slots[lease.model_id].give_back(now):
            self._idle(lease.model_id, now)
