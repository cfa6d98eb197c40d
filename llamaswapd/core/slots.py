"""How many requests a model may have, and has."""

from __future__ import annotations


class Slots:
    """One model's. `take` and `give_back` are the way of nearly all requests; the scheduler decides about all others.

    It opens the slots while whoever asks would be granted, and closes them while somebody else may have to come first,
    or something has to stop.
    """

    __slots__ = ("granted", "idle_since", "is_open", "limit", "taken", "tells")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0  # by requests that are granted, or wait
        self.granted = 0
        self.idle_since = 0.0  # the later of: the model became ready, the last granted request ended
        self.is_open = False
        self.tells = False  # the scheduler wants to know when no request is granted any more

    def take(self) -> bool:
        """Take one for a request that is granted by that, if there is one for it; else nothing has happened."""
        if not self.is_open or self.taken >= self.limit:
            return False
        self.taken += 1
        self.granted += 1
        return True

    def give_back(self, now: float) -> bool:
        """A granted request has ended; return whether the scheduler has to be told."""
        self.taken -= 1
        self.granted -= 1
        self.idle_since = now
        return self.tells and not self.granted
