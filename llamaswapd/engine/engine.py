"""The only owner of the scheduler: feeds it events, performs its actions, hands out leases.

The core decides what should run; this module makes it so through a `Backend` and tells the core what became of it. It
knows no unit property, no D-Bus and no route.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import statistics
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from llamaswapd import readiness
from llamaswapd.config.schema import Config, ModelConfig
from llamaswapd.core.lifecycle import State
from llamaswapd.core.naming import Naming, Resolved
from llamaswapd.core.policy import policy_of
from llamaswapd.core.scheduler import Action, Grant, Position, Refuse, Scheduler, Start, Stop
from llamaswapd.engine.at_once import AtOnce
from llamaswapd.engine.backend import Backend, EngineObserver, Found, Resources, Unit, Unobserved
from llamaswapd.engine.lease import Lease
from llamaswapd.engine.run import History, Run, StopOrdered, unless
from llamaswapd.errors import Error, NotStarted, StartError, UnitError, UnknownModel
from llamaswapd.state import Remembered
from llamaswapd.state import State as Memory

log = logging.getLogger(__name__)

# A model that failed to start gets this long between SIGTERM and SIGKILL (llama-swap).
FAILED_START_GRACE_S = 5.0

# After so many deaths in a row the next request starts a model at once, as in llama-swap. The next one has it wait.
FREE_DEATHS = 3

LOG_LINES = 10  # of a model that died, for whoever asks for it meanwhile


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
        self._scheduler = Scheduler(
            config.models, policy_of(config), config.overtake_limit, config.priority, FREE_DEATHS
        )
        self._histories: dict[str, History] = {}
        self._leftovers: dict[asyncio.Task[None], Found] = {}  # units that are none of our models, being stopped
        self._leases: dict[int, Lease] = {}
        self._runs: dict[str, Run] = {}
        at_once = self._at_once = AtOnce(self._scheduler.slots, self._lease_at_once, self._idle)
        self.lease_now, self.leave = at_once.lease_now, at_once.leave  # of every request: not by way of a method here
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

    # ---- before and after

    def adopt(self, found: Iterable[Found], memory: Memory) -> None:
        """Take over the units that are models of this configuration, have the others stopped; before anything else.

        `memory` is what an earlier daemon knew of its units, believed as far as their invocations are the same. A unit
        taken over counts as loading until it has answered one probe. Nothing is started while others are being stopped:
        they may have the port, the name or the memory that the new one needs.
        """
        self._recall(memory)
        for each in found:
            model = self.config.models.get(each.model_id)
            if (
                model is not None
                and each.is_up
                and each.fingerprint == model.fingerprint
                and model.id not in self._runs
            ):
                self._adopt(model, each, memory.models.get(model.id))
            else:
                log.warning("stopping %s, which is not as the configuration has it", each.unit.name)
                task = asyncio.create_task(self._clear(each), name=f"clear {each.unit.name}")
                self._leftovers[task] = each
                task.add_done_callback(self._leftovers.pop)

    def _recall(self, memory: Memory) -> None:
        for model_id, loads_s in memory.loads_s.items():
            if model_id in self.config.models:
                self._histories.setdefault(model_id, History()).loads_s.extend(loads_s)
        if memory.profile in self.config.profiles:
            self.naming.activate(memory.profile)

    def _adopt(self, model: ModelConfig, found: Found, known: Remembered | None) -> None:
        log.info("<%s> found running: %s, pid %d", model.id, found.unit.name, found.unit.pid)
        run = self._runs[model.id] = Run.found(model, found.unit, found.began, known)
        self._histories.setdefault(model.id, History()).began = run.began
        self._perform(self._scheduler.adopt(model.id, time.monotonic()))
        self._see_through(run)

    async def _clear(self, found: Found) -> None:
        try:
            await found.unit.stop(found.grace_s)
        except UnitError as error:
            log.error("cannot stop %s: %s; see systemctl status %s", found.unit.name, error, found.unit.name)

    def memory(self) -> Memory:
        """Return what another daemon should know of our units."""
        now = time.monotonic()
        return Memory(
            models={
                model_id: run.known
                if run.known is not None and not run.ready_at
                else Remembered(run.unit.invocation, run.ready_at, self._last_use(model_id, now))
                for model_id, run in self._runs.items()
                if run.unit is not None and run.unit.invocation and not run.stop_ordered.is_set()
            },
            loads_s={id: tuple(history.loads_s) for id, history in self._histories.items() if history.loads_s},
            profile=self.naming.active,
        )

    @property
    def ports(self) -> dict[str, int]:
        """The ports that units have from us, by model id: they must not move."""
        return {id: run.model.port for id, run in self._runs.items() if run.model.port is not None}

    async def keep(self) -> None:
        """Refuse whoever waits, and leave every unit as it is, for the next daemon to adopt."""
        self.backend.leave()
        self._perform(self._scheduler.shutdown(time.monotonic(), 0.0, keep=True))
        tasks = [*self._leftovers, *(run.task for run in self._runs.values() if run.task is not None)]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._stop_clock()

    def _stop_clock(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    # ---- leases

    def lease(self, model_id: str) -> Lease:
        """Return a lease to enter; raises UnknownModel for what is no configured id, as one that a reload removed."""
        model = self.config.models.get(model_id)
        if model is None:
            raise UnknownModel(model_id)
        return Lease(self, model)

    def _lease_at_once(self, model_id: str) -> Lease:
        lease = Lease(self, self.config.models[model_id])
        lease.is_granted, lease.run = True, self._runs.get(model_id)
        return lease

    def _idle(self, model_id: str, now: float) -> None:
        """No request of a model is granted any more."""
        self._perform(self._scheduler.idle(model_id, now))
        self._arm(self._scheduler.deadline_of(model_id))

    def request(self, lease: Lease) -> None:
        """Ask for a lease (see `Lease.__enter__`)."""
        ticket = lease.ticket = next(self._tickets)
        self._leases[ticket] = lease
        lease.requested = time.monotonic()
        self._perform(self._scheduler.request(ticket, lease.model.id, lease.requested))

    def release(self, lease: Lease) -> None:
        """Take a lease back, granted or not (see `Lease.__exit__`)."""
        assert lease.ticket is not None
        self._leases.pop(lease.ticket, None)
        if not lease.is_granted:
            self._note_load(lease)
        self._perform(self._scheduler.release(lease.ticket, time.monotonic()))
        self._arm(self._scheduler.deadline_of(lease.model_id))

    def _note_load(self, lease: Lease) -> None:
        """Say since when the model of a lease that comes to nothing has been loading, if it has."""
        history = self._histories.get(lease.model.id)
        if history is not None and history.began > max(history.ready_at, history.ended_at):
            lease.load_began = history.began

    # ---- listings

    def status(self, model_id: str) -> Status:
        """Say what a model is doing that is configured, or still running."""
        run = self._runs.get(model_id)
        unit = run.unit if run is not None else None
        now = time.monotonic()
        to_unix = time.time() - now
        last_use = self._last_use(model_id, now)
        deadline = self._scheduler.deadline_of(model_id)
        return Status(
            self.config.models.get(model_id) or self._scheduler.config(model_id),
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

    def is_ready(self, model_id: str) -> bool:
        """Tell whether a model can be sent requests; False for one that is not configured."""
        return model_id in self.config.models and self._scheduler.state(model_id) is State.READY

    def statuses(self) -> list[Status]:
        """Every model that is configured, or still running, in byte order of the ids."""
        return [self.status(model_id) for model_id in sorted({*self.config.models, *self._runs})]

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

    async def load(self, model_id: str) -> None:
        """Have a model running, now, however often it has died; raises what its start raises."""
        self.forgive(model_id)
        with self.lease(model_id) as lease:
            await lease.granted()

    def forgive(self, model_id: str) -> None:
        """Let a model that keeps dying be started again at once: somebody has seen to it."""
        self._scheduler.forgive(model_id)

    async def unload(self, model_ids: Sequence[str] | None = None) -> None:
        """Stop these models (None: all); return when their units are gone.

        Requests in flight are cut, requests that wait are refused with Unloaded.
        """
        models = list({**self.config.models, **self._runs}) if model_ids is None else model_ids
        self._perform(self._scheduler.unload(models, time.monotonic()))
        await self._gone(models)

    def reconfigure(self, config: Config) -> None:
        """Go on with another configuration, without harm to any request.

        Units that are the same under it run on. One that would be another serves the requests that it has; those that
        come wait until it is gone and its successor is ready. One that is no longer wanted stops when it is idle. No
        profile is active then. How long loads took is still known.
        """
        outdated = [id for id, model in config.models.items() if self._is_other_unit(model)]
        had_profile = self.naming.active is not None
        self.config, self.naming = config, Naming(config)
        for lease in (*self._at_once.leases.values(), *self._leases.values()):
            if lease.is_granted and lease.model_id in config.models and lease.model_id not in outdated:
                lease.model = config.models[lease.model_id]
        for id, run in self._runs.items():
            if id in config.models and id not in outdated:
                run.model = config.models[id]
        self._perform(
            self._scheduler.reconfigure(
                config.models,
                policy_of(config),
                config.overtake_limit,
                config.priority,
                now=time.monotonic(),
                outdated=outdated,
            )
        )
        if had_profile:
            self._profile_changed()
        else:
            self._changed()

    def _is_other_unit(self, model: ModelConfig) -> bool:
        """Tell whether a model's unit, if it has one, is not what this definition of it would make."""
        run = self._runs.get(model.id)
        known = run.model if run is not None else self.config.models.get(model.id)
        return known is not None and known.fingerprint != model.fingerprint

    async def preload(self, names: Iterable[str], spare_running: bool = False) -> None:
        """Load models one after the other, each by a GET `/`; a failure is logged and the next one follows.

        `spare_running` passes over those that run already, and those for which a model would have to stop that does.
        """
        running = {*self._runs} if spare_running else set()
        for name in names:
            model = self.config.resolve(name)
            if model is None or model.id in running:
                continue
            if others := running.intersection(self._scheduler.evictions(model.id)):
                log.info("not preloading model %s: it would stop %s", model.id, ", ".join(sorted(others)))
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
        if self._leftovers:
            hurried = [each.unit.stop(min(each.grace_s, within_s)) for each in self._leftovers.values()]
            await asyncio.gather(*hurried, return_exceptions=True)
        self._stop_clock()

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
                ttl_s = self._scheduler.config(action.model).ttl
                log.info("<%s> Unloading model, TTL of %ds reached", action.model, ttl_s)
        self._perform(actions)
        self._arm(self._scheduler.next_deadline())

    def _start(self, model_id: str) -> None:
        run = self._runs[model_id] = Run(self._scheduler.config(model_id))
        self._histories.setdefault(model_id, History()).began = run.began
        self._see_through(run)

    def _see_through(self, run: Run) -> None:
        run.task = asyncio.create_task(self._run(run), name=f"run {run.model.id}")
        run.task.add_done_callback(log_failure)

    async def _run(self, run: Run) -> None:
        """See one model through: start it, wait until it is ready, until it ends or is to end, and stop it."""
        model_id, error, death = run.model.id, None, None
        ordered = asyncio.create_task(run.stop_ordered.wait(), name=f"stop order {model_id}")
        try:
            if run.unit is None:
                run.unit = await unless(ordered, self._start_unit(run))
            unit = run.unit
            await unless(ordered, self._until_ready(run, unit))
            self._ready(run)
            await asyncio.wait((ordered, unit.ended), return_when=asyncio.FIRST_COMPLETED)
            if not run.stop_ordered.is_set():
                death = f"upstream process exited unexpectedly: {unit.ended.result()}"
                log.warning("<%s> %s", model_id, death)
                run.grace_s = run.model.unload_timeout
                self._perform(self._scheduler.ended(model_id, time.monotonic()))
                self._changed()
        except StopOrdered:
            pass
        except StartError as failure:
            error = failure
        except UnitError as failure:
            error = NotStarted(f"systemd cannot start its unit: {failure}")
        except Exception as failure:
            log.exception("<%s> unexpected error", model_id)
            error = StartError(f"internal error: {failure!r}")
        finally:
            ordered.cancel()
        if error is not None and not run.ready_at and not run.stop_ordered.is_set():
            self.observer.on_load(model_id, time.monotonic() - run.began, ok=False)
        died_of = None
        if run.unit is not None:
            stop = self._stop(run, run.unit, FAILED_START_GRACE_S if error is not None else run.grace_s)
            _, lines = await asyncio.gather(stop, last_lines(run.unit if death else None))
            died_of = StartError(death, lines) if death else None
        if error is not None:
            log.warning("<%s> %s", model_id, error)
        del self._runs[model_id]
        self._at_once.leases.pop(model_id, None)
        now = time.monotonic()
        if error is None or run.stop_ordered.is_set():
            self._perform(self._scheduler.gone(model_id, now, died_of))
        else:
            is_death = not isinstance(error, NotStarted)
            self._perform(self._scheduler.failed(model_id, error, now, is_death))
        self._histories[model_id].ended_at = time.monotonic()
        self._changed()

    async def _start_unit(self, run: Run) -> Unit:
        if self._leftovers:
            await asyncio.wait(self._leftovers, timeout=run.model.health_check_timeout)
        for other in self._leftovers.values():
            raise NotStarted(
                f"{other.unit.name}, which is no longer configured, does not stop; kill it, or wait for it"
            )
        return await self.backend.start(run.model)

    async def _until_ready(self, run: Run, unit: Unit) -> None:
        # What was ready, and says so by nothing that can be asked, has said so already.
        if run.was_ready and readiness.endpoint(run.model) is None and not unit.ended.done():
            return
        await readiness.wait_until_ready(run.model, unit)

    def _ready(self, run: Run) -> None:
        model_id, now = run.model.id, time.monotonic()
        wanted_at = self._scheduler.swap_began(model_id)
        if not run.stop_ordered.is_set():
            run.ready_at = run.known.ready_at if run.known is not None and run.was_ready else now
            history = self._histories.setdefault(model_id, History())
            history.ready_at = run.ready_at
            if not run.was_found:
                history.loads_s.append(now - run.began)
                self.observer.on_load(model_id, now - run.began, ok=True)
            if wanted_at is not None:
                self.observer.on_swap(model_id, now - wanted_at)
        idle_since = max(run.known.ready_at, run.known.last_used) or None if run.known is not None else None
        self._perform(self._scheduler.ready(model_id, now, idle_since))
        self._changed()

    async def _stop(self, run: Run, unit: Unit, grace_s: float) -> None:
        run.is_stopping = True
        try:
            await unit.stop(grace_s)
        except UnitError as error:
            log.error("<%s> cannot stop %s: %s; see systemctl status %s", run.model.id, unit.name, error, unit.name)
        except Exception:
            log.exception("<%s> unexpected error", run.model.id)


async def last_lines(unit: Unit | None) -> list[str]:
    """Return what a unit said last, nothing if that cannot be read."""
    if unit is None:
        return []
    try:
        return await unit.last_lines(LOG_LINES)
    except Exception as error:  # whatever is wrong with the journal, the model has ended
        log.warning("the last lines of %s cannot be read: %s", unit.name, error)
        return []


def log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("%s failed", task.get_name(), exc_info=error)
