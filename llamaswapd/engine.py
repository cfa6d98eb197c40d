"""The only owner of the scheduler: feeds it events, performs its actions, hands out leases.

The core decides what should run; this module makes it so through a `Backend` and tells the core what became of it. It
knows no unit property, no D-Bus and no route.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import re
import statistics
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, TypeVar

from llamaswapd import readiness
from llamaswapd.config.diff import diff
from llamaswapd.config.schema import Config, ModelConfig
from llamaswapd.core.lifecycle import State
from llamaswapd.core.naming import Naming
from llamaswapd.core.naming import Resolved as Resolved
from llamaswapd.core.policy import policy_of
from llamaswapd.core.scheduler import Action, Grant, Position, Refuse, Scheduler, Start, Stop
from llamaswapd.errors import Error, StartError, UnitError, UnitResult

log = logging.getLogger(__name__)

T = TypeVar("T")

# A model that failed to start gets this long between SIGTERM and SIGKILL (llama-swap).
FAILED_START_GRACE_S = 5.0

# How long to wait for systemd's word on a model whose connections broke: the kernel closes sockets a few milliseconds
# before PID 1 learns of the death.
EXPLAIN_WITHIN_S = 1.0

# How many of a model's loads are remembered, to say how long the next one will take.
LOADS_KEPT = 5


class Resources(Protocol):
    """What a unit uses, as its cgroup counts it; None where that is not counted."""

    @property
    def memory_bytes(self) -> int | None: ...

    @property
    def cpu_s(self) -> float | None: ...

    @property
    def tasks(self) -> int | None: ...


class Unit(Protocol):
    """One start of a model's unit, until it is gone."""

    @property
    def name(self) -> str:
        """The unit's name, `llamaswapd-model-qwen.service`."""

    @property
    def pid(self) -> int:
        """Its main process, 0 once that has ended."""

    @property
    def ended(self) -> asyncio.Future[UnitResult]:
        """Done when systemd says that the main process is gone; never an exception. Await it through `shield`."""

    @property
    def notified(self) -> asyncio.Event:
        """Set at every sign of life that the server gives systemd (READY=1, STATUS=): a reason to probe now."""

    def resources(self) -> Resources:
        """Say what the unit uses now; a matter of microseconds."""

    async def stop(self, grace_s: float) -> None:
        """Stop it; return when the unit is gone, its cgroup empty. SIGKILL after `grace_s`. May be called twice."""

    async def stranger(self, port: int) -> str | None:
        """Say who listens on a local TCP port, if that can be seen and is no process of this unit.

        Returns for example `process 4711 (python3) of unit other.service`, None when it is ours or cannot be seen.
        """

    async def last_lines(self, count: int) -> list[str]:
        """Return the last lines that this start of the model wrote, oldest first."""

    async def wait_for_line(self, pattern: re.Pattern[str]) -> str:
        """Return the first line of this start in which `pattern` is found, those already written included."""


class Backend(Protocol):
    """What makes models run: systemd in all its forms, or the tests' own."""

    async def start(self, model: ModelConfig) -> Unit:
        """Start the model's unit; return once its program has been executed.

        Raises StartError when it cannot be executed (the unit is gone again then), UnitError when systemd refuses.
        """

    def follow(self, models: Collection[str] | None, history_bytes: int) -> AsyncGenerator[tuple[str, str], None]:
        """Yield (model id, line) from the journal: the end of the history, then live, until the caller leaves.

        `models` None means all of them. At most `history_bytes` of history, whole lines, oldest first; 0: live only.
        Yields ("", "") once, between the history and the live lines.
        """


class EngineObserver(Protocol):
    """Is told how long things took, for metrics. Called at once, and must not raise."""

    def on_load(self, model_id: str, seconds: float, ok: bool) -> None:
        """A start has ended, in readiness or failure; `seconds` from the order. An aborted start is not told."""

    def on_swap(self, model_id: str, seconds: float) -> None:
        """A model is ready for which others had to stop; `seconds` from the request that wanted it."""

    def on_wait(self, model_id: str, seconds: float) -> None:
        """A request that was not granted by `lease_now` has been granted, after `seconds` in queue and load."""


class Unobserved:
    """Nobody wants to know."""

    def on_load(self, model_id: str, seconds: float, ok: bool) -> None: ...

    def on_swap(self, model_id: str, seconds: float) -> None: ...

    def on_wait(self, model_id: str, seconds: float) -> None: ...


@dataclass(frozen=True)
class Status:
    """What one model is doing, for listings."""

    model: ModelConfig
    state: State
    unit: str  # "" while stopped
    pid: int
    in_flight: int
    waiting: int
    since: float = 0.0  # Unix seconds: when it became ready, or, before that, when its start began; 0 while stopped
    last_used: float = 0.0  # Unix seconds: when its last request ended, now if one is in flight; 0 if there was none
    idle_unload_in_s: float | None = None  # until its ttl unloads it; None unless it is idle and has one


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

    ticket: int | None = None  # None: granted at once, nobody knows of it
    is_granted = False
    position: int | None = None  # the last place in the queue, from 1; None if it had none
    error: Exception | None = None
    _settled: asyncio.Future[None] | None = None
    run: _Run | None = None
    requested = 0.0
    granted_at = 0.0
    load_began = 0.0

    def __init__(self, engine: Engine, model: ModelConfig) -> None:
        self.model = model
        self._engine = engine

    def __enter__(self) -> Lease:
        self._engine.request(self)
        if self.error is not None:
            raise self.error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Give it back, once, where no `with` block does."""
        if self.error is None:
            self._engine.release(self)

    async def granted(self) -> None:
        """Wait until the request may be sent; raises StartError, Unloaded, ShuttingDown."""
        if not self.is_granted and self.error is None:
            self._settled = asyncio.get_running_loop().create_future()
            await self._settled
        if self.error is not None:
            raise self.error

    async def cause(self) -> str | None:
        """Say how the model's unit ended, if it has or does so within a second: `killed by SIGKILL (oom-kill)`."""
        return await self.run.cause() if self.run is not None else None

    def grant(self, run: _Run | None) -> None:
        self.is_granted, self.run, self.granted_at = True, run, time.monotonic()
        if run is not None and run.ready_at >= self.requested:
            self.load_began = run.began
        self._wake()

    def refuse(self, error: Exception) -> None:
        self.error = error
        self._wake()

    def _wake(self) -> None:
        if self._settled is not None and not self._settled.done():
            self._settled.set_result(None)


class _Run:
    """One run of a model, from the order to start it until its unit is gone."""

    def __init__(self, model: ModelConfig) -> None:
        self.model = model
        self.unit: Unit | None = None
        self.grace_s = 0.0
        self.stop_ordered = asyncio.Event()
        self.is_stopping = False  # its unit has been told
        self.task: asyncio.Task[None] | None = None
        self.began = time.monotonic()
        self.ready_at = 0.0

    def stop(self, grace_s: float) -> None:
        self.grace_s = grace_s
        self.stop_ordered.set()

    async def cause(self) -> str | None:
        if self.unit is None:
            return None
        if self.stop_ordered.is_set():
            return "the model was unloaded"
        try:
            async with asyncio.timeout(EXPLAIN_WITHIN_S):
                return str(await asyncio.shield(self.unit.ended))
        except TimeoutError:
            return None


@dataclass(slots=True)
class _History:
    """What is remembered of a model when it has stopped."""

    began: float = 0.0  # its last start; these are monotonic
    ready_at: float = 0.0
    ended_at: float = 0.0  # its last run
    loads_s: deque[float] = field(default_factory=lambda: deque(maxlen=LOADS_KEPT))  # that succeeded


class Engine:
    """Runs models on demand. All methods belong to one event loop.

    `config` and `naming` are replaced together, by `reconfigure`.
    """

    def __init__(self, config: Config, backend: Backend, observer: EngineObserver | None = None) -> None:
        self.config = config
        self.naming = Naming(config)
        self.backend = backend
        self.observer: EngineObserver = observer or Unobserved()
        self._tickets = itertools.count(1)
        self._scheduler = Scheduler(config.models, policy_of(config), config.overtake_limit, config.priority)
        self._histories: dict[str, _History] = {}
        self._leases: dict[int, Lease] = {}
        self._runs: dict[str, _Run] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = math.inf
        self._observers: list[Callable[[], None]] = []
        self._profile_observers: list[Callable[[str | None], None]] = []

    # ---- names

    def resolve(self, name: str) -> Resolved:
        """Return what a client's name means now, to be released when its request has ended.

        Raises NoModel if the active profile disables it, UnknownModel, NoSpilloverTarget.
        """
        return self.naming.resolve(name, self._scheduler.state)

    def activate_profile(self, name: str | None) -> None:
        """Switch to a profile, None or "" to none; raises ProfileNotFound."""
        before = self.naming.active
        self.naming.activate(name)
        if self.naming.active != before:
            self._profile_changed()

    def on_profile(self, call: Callable[[str | None], None]) -> None:
        """Call this with the active profile after every change of it."""
        self._profile_observers.append(call)

    def _profile_changed(self) -> None:
        for call in self._profile_observers:
            call(self.naming.active)
        self._changed()

    # ---- leases

    def lease(self, model_id: str) -> Lease:
        """Return a lease to enter; `model_id` must be a configured id (not an alias)."""
        return Lease(self, self.config.models[model_id])

    def lease_now(self, model: ModelConfig) -> Lease | None:
        """Return a lease that is granted already, to be given back by `release`; None if that cannot be done at once.

        None leaves no trace: whoever can wait asks for an ordinary lease then.
        """
        if not self._scheduler.enter(model.id):
            return None
        lease = Lease(self, model)
        lease.is_granted, lease.run = True, self._runs.get(model.id)
        return lease

    def request(self, lease: Lease) -> None:
        """Ask for a lease (see `Lease.__enter__`)."""
        ticket = lease.ticket = next(self._tickets)
        self._leases[ticket] = lease
        lease.requested = time.monotonic()
        self._perform(self._scheduler.request(ticket, lease.model.id, lease.requested))

    def release(self, lease: Lease) -> None:
        """Take a lease back, granted or not (see `Lease.__exit__`)."""
        model, now = lease.model, time.monotonic()
        if lease.ticket is None:
            actions = self._scheduler.leave(model.id, now)
        else:
            self._leases.pop(lease.ticket, None)
            if not lease.is_granted:
                self._note_load(lease)
            actions = self._scheduler.release(lease.ticket, now)
        if actions:
            self._perform(actions)
        if model.ttl > 0:
            self._arm(self._scheduler.deadline_of(model.id))

    def _note_load(self, lease: Lease) -> None:
        """Say since when the model of a lease that comes to nothing has been loading, if it has."""
        history = self._histories.get(lease.model.id)
        if history is not None and history.began > max(history.ready_at, history.ended_at):
            lease.load_began = history.began

    # ---- listings

    def status(self, model_id: str) -> Status:
        """Say what one configured model is doing."""
        run = self._runs.get(model_id)
        unit = run.unit if run is not None else None
        now = time.monotonic()
        to_unix = time.time() - now
        last_use = self._last_use(model_id, now)
        deadline = self._scheduler.deadline_of(model_id)
        return Status(
            self.config.models[model_id],
            self._scheduler.state(model_id),
            unit.name if unit is not None else "",
            unit.pid if unit is not None else 0,
            self._scheduler.in_flight(model_id),
            self._scheduler.waiting(model_id),
            since=(run.ready_at or run.began) + to_unix if run is not None else 0.0,
            last_used=last_use + to_unix if last_use else 0.0,
            idle_unload_in_s=None if deadline is None else max(0.0, deadline - now),
        )

    def _last_use(self, model_id: str, now: float) -> float:
        """Return when a model was last used, 0.0 for never; what became ready was not used yet."""
        if self._scheduler.in_flight(model_id):
            return now
        idle_since, history = self._scheduler.idle_since(model_id), self._histories.get(model_id)
        return idle_since if history is not None and idle_since > history.ready_at else 0.0

    def expected_load_s(self, model_id: str) -> float | None:
        """Return how long a model's last few loads took, their median; None if it has not been loaded yet."""
        history = self._histories.get(model_id)
        return statistics.median(history.loads_s) if history is not None and history.loads_s else None

    def statuses(self) -> list[Status]:
        """Every configured model, in byte order of the ids."""
        return [self.status(model_id) for model_id in self.config.models]

    def resources(self, model_id: str) -> Resources | None:
        """Say what a model's unit uses, None while it has none."""
        run = self._runs.get(model_id)
        return run.unit.resources() if run is not None and run.unit is not None else None

    def on_change(self, call: Callable[[], None]) -> None:
        """Call this after every change of a model's state."""
        self._observers.append(call)

    def logs(self, models: Collection[str] | None, history_bytes: int) -> AsyncGenerator[tuple[str, str], None]:
        """As `Backend.follow`."""
        return self.backend.follow(models, history_bytes)

    # ---- orders

    async def unload(self, model_ids: Sequence[str] | None = None) -> None:
        """Stop these models (None: all); return when their units are gone.

        Requests in flight are cut, requests that wait are refused with Unloaded.
        """
        models = list(self.config.models) if model_ids is None else model_ids
        self._perform(self._scheduler.unload(models, time.monotonic()))
        await self._gone(models)

    def reconfigure(self, config: Config) -> None:
        """Go on with another configuration. Models whose definition changed, or is gone, are unloaded.

        No profile is active then. How long loads took is still known.
        """
        change, had_profile = diff(self.config, config), self.naming.active is not None
        self._perform(self._scheduler.unload((*change.changed, *change.removed), time.monotonic()))
        self.config, self.naming = config, Naming(config)
        self._perform(
            self._scheduler.reconfigure(config.models, policy_of(config), config.overtake_limit, config.priority)
        )
        if had_profile:
            self._profile_changed()
        else:
            self._changed()

    async def preload(self, names: Iterable[str]) -> None:
        """Load models one after the other, each by a GET `/`; a failure is logged and the next one follows."""
        for name in names:
            model = self.config.resolve(name)
            if model is None:
                continue
            log.info("preloading model: %s", model.id)
            try:
                with self.lease(model.id) as lease:
                    await lease.granted()
                    await readiness.greet(lease.model)
            except Error as error:
                log.error("failed to preload model %s: status %d: %s", model.id, error.status, error)

    async def close(self, within_s: float) -> None:
        """Refuse whoever waits, stop every model, each with at most `within_s` of grace; return when all are gone."""
        self._perform(self._scheduler.shutdown(time.monotonic(), within_s))
        for run in self._runs.values():  # those that were stopping before may have been given longer
            run.stop(min(run.grace_s, within_s))
        stopping = [(run, run.unit) for run in self._runs.values() if run.unit is not None and run.is_stopping]
        await asyncio.gather(*(self._stop(run, unit, run.grace_s) for run, unit in stopping))
        await self._gone(list(self._runs))
        if self._timer is not None:
            self._timer.cancel()

    async def _gone(self, models: Iterable[str]) -> None:
        tasks = [run.task for model in models if (run := self._runs.get(model)) is not None and run.task is not None]
        if tasks:
            await asyncio.wait(tasks)

    # ---- what the scheduler decides is carried out here

    def _perform(self, actions: Sequence[Action]) -> None:
        changed = False
        for action in actions:
            match action:
                case Grant(ticket):
                    lease = self._leases[ticket]
                    lease.grant(self._runs.get(lease.model.id))
                    self.observer.on_wait(lease.model.id, lease.granted_at - lease.requested)
                case Refuse(ticket, error):
                    refused = self._leases.pop(ticket)
                    self._note_load(refused)
                    refused.refuse(error)
                case Position(ticket, place):
                    self._leases[ticket].position = place
                case Start(model_id):
                    self._start(model_id)
                    changed = True
                case Stop(model_id, grace_s):
                    self._runs[model_id].stop(grace_s)
                    changed = True
        if changed:
            self._changed()

    def _changed(self) -> None:
        self._arm(self._scheduler.next_deadline())
        for call in self._observers:
            call()

    def _arm(self, deadline: float | None) -> None:
        """Have the clock looked at when the scheduler needs it."""
        if deadline is None or deadline >= self._timer_due:  # a look too early does no harm, and sets the next timer
            return
        if self._timer is not None:
            self._timer.cancel()
        delay_s = max(0.0, deadline - time.monotonic())
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)
        self._timer_due = deadline

    def _tick(self) -> None:
        self._timer_due = math.inf
        actions = self._scheduler.tick(time.monotonic())
        for action in actions:
            if isinstance(action, Stop):
                ttl_s = self.config.models[action.model].ttl
                log.info("<%s> Unloading model, TTL of %ds reached", action.model, ttl_s)
        self._perform(actions)
        self._arm(self._scheduler.next_deadline())

    def _start(self, model_id: str) -> None:
        run = self._runs[model_id] = _Run(self.config.models[model_id])
        self._histories.setdefault(model_id, _History()).began = run.began
        run.task = asyncio.create_task(self._run(run), name=f"run {model_id}")

    async def _run(self, run: _Run) -> None:
        """See one model through: start it, wait until it is ready, until it ends or is to end, and stop it."""
        model_id, error = run.model.id, None
        ordered = asyncio.create_task(run.stop_ordered.wait(), name=f"stop order {model_id}")
        try:
            run.unit = unit = await unless(ordered, self.backend.start(run.model))
            await unless(ordered, readiness.wait_until_ready(run.model, unit))
            self._ready(run)
            await asyncio.wait((ordered, unit.ended), return_when=asyncio.FIRST_COMPLETED)
            if not run.stop_ordered.is_set():
                log.warning("<%s> upstream process exited unexpectedly: %s", model_id, unit.ended.result())
                run.grace_s = run.model.unload_timeout
                self._perform(self._scheduler.ended(model_id, time.monotonic()))
                self._changed()
        except StopOrdered:
            pass
        except StartError as failure:
            error = failure
        except UnitError as failure:
            error = StartError(f"systemd cannot start its unit: {failure}")
        except Exception as failure:
            log.exception("<%s> unexpected error", model_id)
            error = StartError(f"internal error: {failure!r}")
        finally:
            ordered.cancel()
        if error is not None and not run.ready_at and not run.stop_ordered.is_set():
            self.observer.on_load(model_id, time.monotonic() - run.began, ok=False)
        if run.unit is not None:
            await self._stop(run, run.unit, FAILED_START_GRACE_S if error is not None else run.grace_s)
        del self._runs[model_id]
        if error is not None:
            log.warning("<%s> %s", model_id, error)
        now = time.monotonic()
        if error is None or run.stop_ordered.is_set():
            self._perform(self._scheduler.gone(model_id, now))
        else:
            self._perform(self._scheduler.failed(model_id, error, now))
        self._histories[model_id].ended_at = time.monotonic()
        self._changed()

    def _ready(self, run: _Run) -> None:
        model_id, now = run.model.id, time.monotonic()
        wanted_at = self._scheduler.swap_began(model_id)
        if not run.stop_ordered.is_set():
            run.ready_at = now
            history = self._histories.setdefault(model_id, _History())
            history.ready_at = now
            history.loads_s.append(now - run.began)
            self.observer.on_load(model_id, now - run.began, ok=True)
            if wanted_at is not None:
                self.observer.on_swap(model_id, now - wanted_at)
        self._perform(self._scheduler.ready(model_id, now))
        self._changed()

    async def _stop(self, run: _Run, unit: Unit, grace_s: float) -> None:
        run.is_stopping = True
        try:
            await unit.stop(grace_s)
        except UnitError as error:
            log.error("<%s> cannot stop %s: %s; see systemctl status %s", run.model.id, unit.name, error, unit.name)
        except Exception:
            log.exception("<%s> unexpected error", run.model.id)


class StopOrdered(Exception):
    """A model is to be stopped before it is ready."""


async def unless(ordered: asyncio.Task[Any], work: Coroutine[Any, Any, T]) -> T:
    """Do the work and return its result; raise StopOrdered, once it is cancelled, if a stop is ordered first."""
    task = asyncio.create_task(work)
    await asyncio.wait((ordered, task), return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
        task.cancel()
        await asyncio.wait((task,))
    if task.cancelled():
        raise StopOrdered
    return task.result()
