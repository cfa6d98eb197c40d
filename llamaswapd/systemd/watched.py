"""One unit as systemd's signals show it: what its jobs came to, and when it is gone.

Knows what follows from a signal, and from a fresh look where signals may have been missed; not how either is got, nor
what the unit is for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from llamaswapd.errors import BusLost

JobKind = Literal["start", "stop"]

RUNS = {"active", "reloading", "refreshing"}  # values of ActiveState to which a start leads
RESTS = {"inactive", "failed"}  # to which a stop leads


@dataclass
class _Job:
    """A job of the unit; `kind` is None for one that somebody else has asked for."""

    kind: JobKind | None = None
    result: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def end(self, result: str) -> None:
        if not self.result.done():
            self.result.set_result(result)


class Watch:
    """What systemd says about one unit, from before its start until it is gone.

    `gone` is done when the unit is unloaded, which systemd does only once its cgroup is empty; its exception is BusLost
    when that can no longer be known. Await it through `shield`.
    """

    def __init__(self, unit: str, path: str, changed: Callable[[dict[str, Any]], None]) -> None:
        """`path` is the unit's object path; `changed` gets its properties whenever some have changed."""
        self.unit = unit
        self.path = path
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tell = changed
        self._jobs: dict[str, _Job] = {}
        self._invocation = b""  # the last that was heard of
        # Asking for a unit that does not exist loads an empty stand-in, removed again a moment later. Ours is a unit
        # that had a job, or that was there when somebody looked; before that, what is removed is no concern of ours.
        self._is_there = False

    async def job(self, path: str, kind: JobKind) -> str:
        """Wait for a job of the unit and return its result: done, failed, canceled, timeout, frozen ..."""
        if self.gone.done() and path not in self._jobs:
            self.gone.result()
        job = self._job(path)
        job.kind = kind
        return await asyncio.shield(job.result)

    # ---- signals

    def changed(self, properties: dict[str, Any]) -> None:
        self._invocation = bytes(properties.get("InvocationID", b"")) or self._invocation
        self._tell(properties)

    def job_removed(self, path: str, result: str) -> None:
        # The signal may overtake the reply that tells us the job's path, so it is kept for whoever asks.
        self._job(path).end(result)

    def unit_removed(self) -> None:
        if self._is_there:
            self.set_gone()

    # ---- a fresh look

    def found(self, properties: dict[str, Any]) -> None:
        """Take all properties of the unit as they are now for what has been signalled in the meantime.

        A unit that is not loaded has an object, too: it has no invocation, as has no other run of a unit of this name.
        """
        is_another = self._invocation not in (b"", bytes(properties["InvocationID"]))
        if is_stand_in(properties) or is_another:
            self.unit_removed()
            return
        self._is_there = True
        self.changed(properties)
        (_, current), state = properties["Job"], properties["ActiveState"]
        for path, job in self._jobs.items():
            if path != current:  # its end will be signalled; that of any other has been
                job.end(_outcome(job, state))

    # ---- the end

    def set_gone(self) -> None:
        if self.gone.done():
            return
        self.gone.set_result(None)
        for job in self._jobs.values():
            job.end(_outcome(job, "inactive"))

    def lost(self, error: BusLost) -> None:
        """Have everybody who waits get the error: nothing more will be heard."""
        futures: list[asyncio.Future[Any]] = [self.gone, *(job.result for job in self._jobs.values())]
        for future in futures:
            if not future.done():
                future.set_exception(error)
                future.exception()  # whether anybody waits for it is not our concern

    def _job(self, path: str) -> _Job:
        self._is_there = True
        return self._jobs.setdefault(path, _Job())


def is_stand_in(properties: Mapping[str, Any]) -> bool:
    """Say whether they are those of a unit that does not exist. One that runs may be loaded badly, masked or worse."""
    return bool(properties["LoadState"] == "not-found" and properties["ActiveState"] == "inactive")


def _outcome(job: _Job, state: str) -> str:
    """Return the result of a job whose end nobody saw, from the ActiveState that it left the unit in."""
    if job.kind == "start":
        return "done" if state in RUNS else "failed"
    return "done" if state in RESTS else "canceled"
