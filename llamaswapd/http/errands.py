"""What a request on the express way has to wait for, in a task: a new connection, the reason of a failure.

`express.py` is compiled, and has no coroutines therefore. An exchange sends for what it needs, and is told what became
of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llamaswapd.errors import UpstreamError
from llamaswapd.http.connect import connect
from llamaswapd.http.failure import explained
from llamaswapd.http.upstream import OriginPool

if TYPE_CHECKING:
    from llamaswapd.http.express import Exchange

log = logging.getLogger(__name__)


async def get_connection(
    exchange: Exchange, pool: OriginPool, unedited: bytes | None = None, *, is_first: bool
) -> None:
    """Get a new connection. `is_first`: nothing of the request has been sent, and its body was `unedited` before."""
    with _guarded(exchange):
        try:
            upstream = await connect(pool)
        except UpstreamError as error:
            if is_first:
                exchange.on_refusal(unedited)
            else:  # it has been sent once: its model may have died of it
                await _explain(exchange, error)
        else:
            exchange.on_connection(upstream)


async def explain(exchange: Exchange, error: UpstreamError) -> None:
    """Find out why a request has failed."""
    with _guarded(exchange):
        await _explain(exchange, error)


async def _explain(exchange: Exchange, error: UpstreamError) -> None:
    assert exchange.lease is not None
    exchange.on_explanation(await explained(exchange.lease, exchange.lease.model, error))


@contextmanager
def _guarded(exchange: Exchange) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        log.exception("unexpected error while answering %s", exchange.path)
        exchange.on_accident(error)


class Errands:
    """Owns the tasks of all exchanges."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self, errand: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin an errand, which may be cancelled; what it raises is logged."""
        task = asyncio.create_task(errand, name="express")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("unexpected error", exc_info=error)

    async def close(self) -> None:
        """Give up what is still being done."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
