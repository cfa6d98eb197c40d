"""What need not be done at once is done a little later, for many at once: a request waits for none of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Batch(Generic[T]):
    """Collects things until there are `size` of them, or `delay_s` have passed, and has them worked on by `work`."""

    __slots__ = ("_delay_s", "_items", "_size", "_timer", "_work")

    def __init__(self, work: Callable[[list[T]], None], size: int, delay_s: float) -> None:
        self._work = work
        self._size = size
        self._delay_s = delay_s
        self._items: list[T] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, item: T) -> None:
        items = self._items
        items.append(item)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._delay_s, self.flush)
        elif len(items) == self._size:
            self.flush()

    def flush(self) -> None:
        """Have what has been added worked on."""
        items = self.take()
        if items:
            self._work(items)

    def take(self) -> list[T]:
        """Return what has been added; it is the caller's now."""
        items, self._items = self._items, []
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        return items

    def put_back(self, items: list[T], delay_s: float) -> None:
        """Have these worked on after so long, or with the next full batch; for `work`, of what it has no time for."""
        self._items = items
        self._timer = asyncio.get_running_loop().call_later(delay_s, self.flush)
