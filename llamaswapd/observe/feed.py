"""Events and other items, handed to whoever watches.

Publishing never waits and costs next to nothing while nobody watches: it happens on the way of every request. Whoever
reads too slowly loses events, not anybody else's time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, TypeVar

QUEUE_LIMIT = 1024  # events that wait for one reader, as in llama-swap
QUEUE_CHARACTERS = 8 * 1024 * 1024  # of text that waits for one reader

Item = TypeVar("Item")


@dataclass(frozen=True)
class Event:
    """Something for the event stream: llama-swap's name of its type, and its data as JSON will hold it."""

    type: str
    data: Mapping[str, object] | Sequence[object]


class Feed(Generic[Item]):
    """Hands every item to all its subscriptions, none of which can hold up the publisher or another."""

    def __init__(self) -> None:
        # While there are none, publishing reaches nobody: look before making an item that costs something.
        self.members: set[Subscription[Item]] = set()

    def publish(self, item: Item) -> None:
        """Queue an item for every subscription; from any thread."""
        for subscription in tuple(self.members):
            subscription.put(item)

    def subscribe(self, limit: int = QUEUE_LIMIT) -> Subscription[Item]:
        """Return a subscription that is live from now on; use it in a `with` block of the reader's event loop."""
        subscription = Subscription(self.members, limit)
        self.members.add(subscription)
        return subscription


class Subscription(Generic[Item]):
    """One reader's queue. When `limit` items wait, or much text, all is given up and `has_lost` is set."""

    def __init__(self, members: set[Subscription[Item]], limit: int) -> None:
        self.has_lost = False  # the reader resets it, once it has caught up by other means
        self._members = members
        self._limit = limit
        self._items: deque[Item] = deque()
        self._characters = 0
        self._filled = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> Subscription[Item]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._members.discard(self)

    def put(self, item: Item) -> None:
        characters = len(item) if isinstance(item, str) else 0
        if len(self._items) >= self._limit or self._characters + characters > QUEUE_CHARACTERS:
            self._clear()
            self.has_lost = True
        self._characters += characters
        self._items.append(item)
        if len(self._items) == 1:  # the reader may sleep; log lines come from any thread
            self._loop.call_soon_threadsafe(self._filled.set)

    async def items(self) -> list[Item]:
        """Wait until there is something, then return all that is queued, oldest first."""
        while not self._items:
            self._filled.clear()
            await self._filled.wait()
        items = list(self._items)
        self._clear()
        return items

    def _clear(self) -> None:
        self._items.clear()
        self._characters = 0
