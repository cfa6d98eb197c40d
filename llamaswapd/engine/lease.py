"""The right to send one request to a model."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import TYPE_CHECKING

from llamaswapd.config.schema import ModelConfig

if TYPE_CHECKING:
    from llamaswapd.engine.engine import Engine
    from llamaswapd.engine.run import Run


class Lease:
    """The right to send one request to a ready model; given back when the `with` block ends, whatever happened.

        with engine.lease("qwen") as lease:
            await lease.granted()
            ...relay to lease.model.proxy...

    Entering asks for it. When the model is ready and nothing stands in the way it is granted at once, without a task
    switch (`is_granted`). Raises TooManyRequests on entering when the model's slots are taken.

    `requested`, `granted_at` and `load_began` are in seconds of the monotonic clock, 0.0 for what has not happened. All
    are 0.0 for a lease from `lease_now`: whoever got it had it at once. `load_began` is when the load began that the
    request waited for, before `requested` if that was under way already.
    """

    def __init__(self, engine: Engine, model: ModelConfig) -> None:
        self.model = model
        self.model_id = model.id
        self.ticket: int | None = None  # None: granted at once, nobody knows of it
        self.is_granted = False
        self.position: int | None = None  # the last place in the queue, from 1; None if it had none
        self.error: Exception | None = None
        self.run: Run | None = None
        self.requested = self.granted_at = self.load_began = 0.0
        self._engine = engine
        self._settled: asyncio.Future[None] | None = None

    def __enter__(self) -> Lease:
        self._engine.request(self)
        if self.error is not None:
            raise self.error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.error is None:
            self._engine.release(self)

    async def granted(self) -> None:
        """Wait until the request may be sent; raises StartError, Unloaded, ShuttingDown."""
        if not self.is_granted and self.error is None:
            self._settled = asyncio.get_running_loop().create_future()
            await self._settled
        if self.error is not None:
            raise self.error

    async def cause(self, within_s: float | None = None) -> str | None:
        """Say how the model's unit ended, if it has or does so in time, a second: `killed by SIGKILL (oom-kill)`."""
        return await self.run.cause(within_s) if self.run is not None else None

    def grant(self, run: Run | None) -> None:
        self.is_granted, self.run, self.granted_at = True, run, time.monotonic()
        if run is not None:
            self.model = run.model  # a reload may have come between
            if run.ready_at >= self.requested:
                self.load_began = run.began
        self._wake()

    def refuse(self, error: Exception) -> None:
        self.error = error
        self._wake()

    def _wake(self) -> None:
        if self._settled is not None and not self._settled.done():
            self._settled.set_result(None)
