"""One unit that runs a model: started, watched, stopped, until it is gone.

What it is doing is known from systemd's signals. Asking would be wrong as well as slow: a unit that ended is collected
at once, and reading a collected unit gives the clean-looking lie `success`. Where there have been no signals, the
manager looks in a way that cannot be lied to, and what it sees comes here like signals.
"""

from __future__ import annotations

import asyncio
import logging
import re
import signal
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from llamaswapd.errors import BusLost, NotStarted, UnitError, UnitResult
from llamaswapd.systemd import cgroup, listeners
from llamaswapd.systemd.bus import Refused
from llamaswapd.systemd.journal import Journal
from llamaswapd.systemd.manager import NO_SUCH_UNIT, Manager, Property
from llamaswapd.systemd.watched import Watch

log = logging.getLogger(__name__)

# How long systemd may take to see the last process of a unit go after SIGKILL. Only a process that hangs in the kernel,
# in a GPU driver for example, takes longer than milliseconds.
KILL_TIMEOUT_S = 10.0

# At least so long may it take to order a start. The bus gives a launcher that it has started 25 s, and is asked twice.
TAKEN_WITHIN_S = 60.0

Order = Callable[[Watch, Callable[[], None]], Awaitable[str]]  # has the unit started; says when systemd has been told

UP = {"activating", "active", "reloading", "refreshing"}  # values of ActiveState


class RunningUnit:
    """A unit on one manager. Before anything else `start` it, `take_over` one that exists, or `attach` to stop one.

    `ended` is done when the main process is gone, `notified` set at every change systemd reports while it runs: also
    when the server says READY=1 or STATUS=, see sd_notify(3).
    """

    def __init__(
        self, manager: Manager, name: str, path: str, cgroup_root: Path, journal: Journal, program: str = ""
    ) -> None:
        """`path` is the unit's object path, `program` the file that its main process executes."""
        self.name = name
        self.ended: asyncio.Future[UnitResult] = asyncio.get_running_loop().create_future()
        self.notified = asyncio.Event()
        self._manager = manager
        self._path = path
        self._cgroup_root = cgroup_root
        self._journal = journal
        self._program = program
        self._properties: dict[str, Any] = {}
        self._is_started = False
        self._is_gone = False
        self._cgroup: Path | None = None
        self._watch: Watch

    @property
    def pid(self) -> int:
        """The main process, 0 once that has ended."""
        return int(self._properties.get("MainPID", 0))

    @property
    def invocation(self) -> str:
        """The invocation id, 32 hexadecimal digits: this start of the unit and no other."""
        return bytes(self._properties.get("InvocationID", b"")).hex()

    @property
    def result(self) -> UnitResult:
        """How it ended, as far as it has; `unknown` if nobody could see it, because the bus was away."""
        get = self._properties.get
        result = UnitResult(get("Result", "success"), get("ExecMainCode", 0), get("ExecMainStatus", 0))
        return UnitResult("unknown") if result == UnitResult() and self._is_gone else result

    def __repr__(self) -> str:
        state = self._properties.get("ActiveState", "unknown")
        return f"<{self.name} {state}, pid {self.pid}>"

    async def start(
        self,
        properties: Iterable[Property],
        timeout_s: float,
        grace_s: float,
        is_left: Callable[[], bool] = lambda: False,
    ) -> str:
        """Start it as a transient unit, as `start_by` does."""

        async def order(watch: Watch, taken: Callable[[], None]) -> str:
            return await self._manager.start_transient_unit(watch, properties, taken)

        return await self.start_by(order, timeout_s, grace_s, is_left)

    async def start_by(
        self,
        order: Order,
        timeout_s: float,
        grace_s: float,
        is_left: Callable[[], bool] = lambda: False,
    ) -> str:
        """Have it started by `order`; return the job's result, `timeout` if there is none within `timeout_s`.

        That time begins when the order is taken: whoever has to take it may have to be started first.

        Unless the result is `done`, and when cancelled, the unit is gone again afterwards; if cancelled while `is_left`
        says so, it stays as it is. Raises Refused, what else `order` does, and BusLost when there is no bus to
        order it by for `timeout_s`.
        """
        await self._attach_within(timeout_s)
        now = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(max(TAKEN_WITHIN_S, timeout_s)) as limit:
                outcome = await order(self._watch, lambda: limit.reschedule(now() + timeout_s))
                if outcome == "done":
                    # Until here the signals spoke of the past too: the first ones of a start still say inactive. The
                    # one of the job comes after all that led to it.
                    self._is_started = True
                    self._notice_end()
                    await self.find_cgroup()
        except (Refused, NotStarted):
            self._watch.set_gone()
            raise
        except TimeoutError:
            outcome = "timeout"
        except (asyncio.CancelledError, UnitError):
            if not is_left():
                # Not in this task: where one has been cancelled, the end of a `timeout` is a cancellation too, until
                # Python 3.11.3 (gh-102780), and the unit would be left as it is.
                await asyncio.create_task(self.stop(grace_s), name=f"stop {self.name}")
            raise
        if outcome != "done":
            await self.stop(grace_s)
        return outcome

    async def _attach_within(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self.attach()
        except TimeoutError:
            raise BusLost(f"{self.name} cannot be started: there has been no bus for {timeout_s:g} s") from None

    async def take_over(self) -> Mapping[str, Any]:
        """Follow the unit of this name, started by whomever; return its properties as they are now, {} if it is gone.

        A reference keeps its result readable until we have seen its end.

        One that is `activating` has not ended, and its failure will be its end.
        """
        await self.attach()
        try:
            await self._manager.ref_unit(self._watch)
            properties = await self._manager.look(self._watch)
        except UnitError:
            self._watch.set_gone()  # nobody will follow it
            raise
        if not properties:
            self._watch.set_gone()
            return {}
        self._is_started = True
        self._notice_end()
        self._take_cgroup(properties["ControlGroup"])
        for command in properties.get("ExecStart", ()):  # a(sasbttttuii), of which there is one
            self._program = command[0]
        return properties

    async def attach(self) -> None:
        """Follow the unit of this name."""
        self._watch = await self._manager.watch(self.name, self._path, self._changed)
        self._watch.gone.add_done_callback(self._gone)

    def when_gone(self, act: Callable[[asyncio.Future[None]], None]) -> None:
        """Have something done when the unit is gone, or when nobody will know; the future given says which."""
        self._watch.gone.add_done_callback(act)

    async def stop(self, grace_s: float) -> None:
        """Stop it; return when it is gone, which systemd says once its cgroup is empty. SIGKILL after `grace_s`.

        May be called twice, at once too, and for a unit that never was. While the bus is away it waits, and the unit
        has its grace afterwards; so it has while a launcher is started. Raises UnitError when it cannot be killed.
        """
        gone = self._watch.gone
        if not gone.done():
            await self._manager.available()
        if await self._stopped_within(grace_s):
            return
        if not await self._manager.service_property(self._path, "SendSIGKILL"):
            log.warning("%s has not stopped after %g s, waiting on as it has SendSIGKILL=no", self.name, grace_s)
            self._manager.unref_unit(self.name)
            await asyncio.shield(gone)
            return
        log.warning("%s has not stopped after %g s, killing it", self.name, grace_s)
        await self._kill()
        # What runs after the last process is gone, ExecStopPost, has its time too.
        if not await self._stopped_within(KILL_TIMEOUT_S + grace_s):
            raise UnitError("it is still there after SIGKILL")

    async def _stopped_within(self, limit_s: float) -> bool:
        """Have it stopped; return whether it is gone so long after the order was taken."""
        now = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(None) as limit:
                await self._terminate(lambda: limit.reschedule(now() + limit_s))
                await asyncio.shield(self._watch.gone)
        except TimeoutError:
            await self._manager.available()  # without a bus nobody knows
        return self._watch.gone.done()

    async def stranger(self, port: int) -> str | None:
        """Say who listens on a local TCP port, if that can be seen and is no process of this unit."""
        if self._cgroup is None:
            return None
        return await asyncio.to_thread(listeners.stranger, port, self._cgroup, self._program)

    async def find_cgroup(self) -> None:
        """Find the folder of its cgroup, which stays the same while it runs. `start` and `take_over` have done so."""
        try:
            path = await self._manager.service_property(self._path, "ControlGroup")
        except UnitError as error:  # its counters and its port's holder stay unknown, all else works
            log.warning("cannot find the cgroup of %s: %s", self.name, error)
            return
        self._take_cgroup(path)

    def _take_cgroup(self, path: str) -> None:
        self._cgroup = self._cgroup_root / path.lstrip("/") if path else None

    def resources(self) -> cgroup.Resources:
        """Return what all its processes use now, or have used. Reads three small files."""
        return cgroup.resources(self._cgroup) if self._cgroup is not None else cgroup.Resources()

    async def last_lines(self, count: int) -> list[str]:
        """Return the last lines that this start of it wrote, oldest first."""
        return await self._journal.last_lines(self.name, self.invocation, count)

    async def wait_for_line(self, pattern: re.Pattern[str]) -> str:
        """Return the first line of this start in which `pattern` is found, those already written included."""
        return await self._journal.wait_for_line(self.invocation, pattern)

    async def _terminate(self, taken: Callable[[], None]) -> None:
        """Have systemd stop it, whatever state it is in; `taken` is called as soon as systemd has been told."""
        if self._watch.gone.done():
            return
        try:
            # systemd 252 thaws a frozen unit before it stops it, 257 refuses.
            while await self._manager.stop_unit(self._watch, taken) == "frozen":
                await self._manager.thaw_unit(self.name)
            self._manager.unref_unit(self.name)
            # A unit that failed and has CollectMode=inactive stays loaded until its failure is forgotten. Only now: its
            # result would be forgotten, too.
            await self._manager.reset_failed_unit(self.name)
        except Refused as error:
            if error.name != NO_SUCH_UNIT:
                raise
            self._watch.set_gone()

    async def _kill(self) -> None:
        try:
            await self._manager.kill_unit(self.name, signal.SIGKILL)
        except Refused as error:
            # It may have gone by itself this moment, or have no process left to kill: what counts is whether it goes.
            log.debug("%s", error)

    def _changed(self, properties: dict[str, Any]) -> None:
        self._properties.update(properties)
        if self._is_started:
            self.notified.set()
            self._notice_end()

    def _notice_end(self) -> None:
        state = self._properties.get("ActiveState")
        if state in UP or (state == "deactivating" and self.pid) or self.ended.done():
            return
        self.ended.set_result(self.result)
        self._manager.unref_unit(self.name)

    def _gone(self, gone: asyncio.Future[None]) -> None:
        self._is_gone = gone.exception() is None
        if self._is_gone and not self.ended.done():
            self.ended.set_result(self.result)
