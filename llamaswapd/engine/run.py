"""One run of a model, and what is remembered of its runs."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from llamaswapd.config.schema import ModelConfig
from llamaswapd.engine.backend import Unit
from llamaswapd.state import Remembered

T = TypeVar("T")

# How long to wait for systemd's word on a model whose connections broke: the kernel closes sockets a few milliseconds
# before PID 1 learns of the death.
EXPLAIN_WITHIN_S = 1.0

# How many of a model's loads are remembered, to say how long the next one will take.
LOADS_KEPT = 5


class Run:
    """One run of a model, from the order to start it, or from when it was found, until its unit is gone.

    `model` is the definition of its unit; what a reload changed beside the unit is in it. Times are monotonic.
    """

    def __init__(self, model: ModelConfig) -> None:
        self.model = model
        self.unit: Unit | None = None
        self.grace_s = 0.0
        self.stop_ordered = asyncio.Event()
        self.is_stopping = False  # its unit has been told
        self.task: asyncio.Task[None] | None = None
        self.began = time.monotonic()
        self.ready_at = 0.0
        self.was_found = False  # it had begun before us
        self.known: Remembered | None = None  # what an earlier daemon knew of it

    @classmethod
    def found(cls, model: ModelConfig, unit: Unit, began: float, known: Remembered | None) -> Run:
        """Return the run of a unit that was there before us; what is known counts if it is of the same invocation."""
        run = cls(model)
        run.unit, run.began, run.was_found = unit, began, True
        if known is not None and known.invocation == unit.invocation:
            run.known = known
        return run

    @property
    def was_ready(self) -> bool:
        """Whether an earlier daemon has seen it ready."""
        return self.known is not None and self.known.ready_at > 0

    def stop(self, grace_s: float) -> None:
        self.grace_s = grace_s
        self.stop_ordered.set()

    async def cause(self, within_s: float | None = None) -> str | None:
        if self.unit is None:
            return None
        if self.stop_ordered.is_set():
            return "the model was unloaded"
        try:
            async with asyncio.timeout(EXPLAIN_WITHIN_S if within_s is None else within_s):
                return str(await asyncio.shield(self.unit.ended))
        except TimeoutError:
            return None


@dataclass(slots=True)
class History:
    """What is remembered of a model when it has stopped."""

    began: float = 0.0  # its last start; these are monotonic
    ready_at: float = 0.0
    ended_at: float = 0.0  # its last run
    loads_s: deque[float] = field(default_factory=lambda: deque(maxlen=LOADS_KEPT))  # that succeeded


class StopOrdered(Exception):
    """A model is to be stopped before it is ready."""


async def unless(ordered: asyncio.Task[Any], work: Coroutine[Any, Any, T]) -> T:
    """Do the work and return its result; raise StopOrdered, once it is cancelled, if a stop is ordered first."""
    task = asyncio.create_task(work)
    try:
        await asyncio.wait((ordered, task), return_when=asyncio.FIRST_COMPLETED)
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
    if task.cancelled():
        raise StopOrdered
    return task.result()
