"""What happens next: who is served, who waits, what starts and what stops.

Events are methods; each returns the actions that follow from it, to be performed in order. The answers to a `Start` or
a `Stop` come back as events: `ready` or `failed` once for each start, `gone` once for each end of a unit that was not a
failed start. Nothing here awaits, reads a clock or knows what a unit is; `now` is in seconds of any monotonic clock.

A *ticket* stands for one request of a client. It lives from `request` until it is refused or released, and takes one of
its model's slots all that time: queued, waiting for a load it has joined, or granted.

A *swap* is a model's way to being served: the stops it waits for, then, once the last of them is gone, the start, if
one is needed. It goes on when everybody who joined it has left: the model was wanted a moment ago, and half a swap
would leave nothing running.

A model is *outdated* while its unit is not what the configuration says any more: the definition is another, or the
model was removed. Nothing that it serves is cut for that. It lets nobody new in, and stops when the last request ends.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TypeAlias

from llamaswapd.config.schema import ModelConfig
from llamaswapd.core.lifecycle import Cause, State, advance
from llamaswapd.core.policy import SwapPolicy
from llamaswapd.core.slots import Slots
from llamaswapd.errors import CrashLoop, ShuttingDown, TooManyRequests, UnknownModel, Unloaded

ABORT_GRACE_S = 5.0  # an aborted start has nothing to finish; llama-swap's figure
SHUTDOWN_GRACE_S = 30.0  # llama-swap's budget for the whole shutdown

# Back-off of a model that keeps dying: none after the first `free_deaths` in a row, then this, doubled by each.
BACKOFF_S = 1.0
BACKOFF_LIMIT_S = 60.0
FORGIVEN_AFTER_S = 60.0  # of readiness


# ---- actions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    model: str


@dataclass(frozen=True, slots=True)
class Stop:
    model: str
    grace_s: float  # from the stop signal to SIGKILL


@dataclass(frozen=True, slots=True)
class Grant:
    """The request may be sent to its model, which is ready."""

    ticket: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """The request ends with this error; its ticket is forgotten and must not be released."""

    ticket: int
    error: Exception


@dataclass(frozen=True, slots=True)
class Position:
    """A queued request has moved to this place, counted from 1. Leaving the queue is not announced."""

    ticket: int
    n: int


Action: TypeAlias = Start | Stop | Grant | Refuse | Position


# ---- what the scheduler remembers ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Deaths:
    """How often a model died since it was last ready for a while, and what follows from that."""

    count: int
    error: Exception  # of the last one
    until: float  # it is not started before


@dataclass(slots=True, eq=False)
class _Model:
    id: str
    config: ModelConfig
    slots: Slots
    priority: int
    state: State = State.STOPPED
    is_removed: bool = False  # it is not configured any more
    is_outdated: bool = False  # its unit is not what is configured; always, once it is removed
    ready_at: float = 0.0
    deaths: _Deaths | None = None

    def define(self, config: ModelConfig, priority: int, calls_for_another_unit: bool) -> None:
        if calls_for_another_unit or self.is_removed or self.config != config:
            self.deaths = None
        self.config, self.slots.limit, self.priority = config, config.slots, priority
        self.is_removed = False
        self.is_outdated = calls_for_another_unit and self.state in (State.STARTING, State.READY)

    def remove(self) -> None:
        self.is_removed = self.is_outdated = True

    def move(self, cause: Cause) -> None:
        self.state = advance(self.state, cause)
        if self.state is State.STOPPED:
            self.is_outdated = self.is_removed

    @property
    def serves(self) -> bool:
        """Whether it is ready for new requests."""
        return self.state is State.READY and not self.is_outdated


@dataclass(slots=True, eq=False)
class _Request:
    ticket: int
    model: _Model
    number: int  # in order of arrival
    since: float
    granted: bool = False
    position: int = 0


@dataclass(slots=True, eq=False)
class _Swap:
    target: _Model
    evicts: tuple[str, ...]
    joined: list[_Request]
    since: float  # when the request came that began it, or the unit was found
    needs_joined: bool = False  # a reload stopped what it had: nothing is started again for nobody
    pending: set[str] = field(init=False)  # those of `evicts` that are not gone yet

    def __post_init__(self) -> None:
        self.pending = set(self.evicts)


_arrival = attrgetter("number")


class Scheduler:
    """Decides for all local models. One owner calls it, one event at a time, with a `now` that never goes back.

    `models` maps each id to its resolved configuration. `priority` (default 0, higher first) orders the queue and
    nothing else. `free_deaths` is how many deaths in a row have no consequence. An event that a model's state cannot
    see raises LifecycleError and changes nothing.
    """

    def __init__(
        self,
        models: Mapping[str, ModelConfig],
        policy: SwapPolicy,
        overtake_limit_s: float = 30.0,
        priority: Mapping[str, int] = {},
        free_deaths: int = 1,
    ) -> None:
        self._free_deaths = free_deaths
        self._models: dict[str, _Model] = {}
        self.slots: dict[str, Slots] = {}  # by model; for whoever wants one at once
        for id, config in models.items():
            self._new_model(id, config, priority.get(id, 0))
        self._policy = policy
        self._overtake_limit_s = overtake_limit_s
        self._numbers = itertools.count()
        self._requests: dict[int, _Request] = {}  # every ticket alive, in order of arrival
        self._queue: list[_Request] = []  # those that neither joined a swap nor were granted
        self._swaps: dict[str, _Swap] = {}  # by target
        self._answers: dict[str, tuple[str, ...]] = {}  # the policy's, for the models that run now
        self._actions: list[Action] = []  # of the event at hand
        self._now = 0.0  # of the last event that needed it
        self._is_closed = False

    def __repr__(self) -> str:
        models = " ".join(f"{id}={m.state.value}({m.slots.granted})" for id, m in self._models.items())
        return f"<Scheduler {models} swaps={list(self._swaps)} queue={[r.model.id for r in self._queue]}>"

    def _new_model(self, id: str, config: ModelConfig, priority: int) -> _Model:
        slots = self.slots[id] = Slots(config.slots)
        model = self._models[id] = _Model(id, config, slots, priority)
        return model

    # ---- events ----

    def request(self, ticket: int, model: str, now: float) -> list[Action]:
        """A client wants `model`, which a reload may have removed meanwhile. Raises ValueError for a ticket in use."""
        self._now = now
        target = self._models.get(model)
        if ticket in self._requests:
            raise ValueError(f"ticket {ticket} is in use")
        if self._is_closed:
            return [Refuse(ticket, ShuttingDown(self._policy.name))]
        if target is None or target.is_removed:
            return [Refuse(ticket, UnknownModel(model))]
        if target.slots.taken >= target.slots.limit:
            return [Refuse(ticket, TooManyRequests())]
        request = self._requests[ticket] = _Request(ticket, target, next(self._numbers), now)
        target.slots.taken += 1
        if not self._pass(request):
            self._enqueue(request)
        return self._flush()

    def idle(self, model: str, now: float) -> list[Action]:
        """The last of a model's requests that were granted has ended; to be told where `Slots.give_back` says so.

        Such a request need not have a ticket: whoever took one of the model's `slots` was granted by that.
        """
        target = self._models[model]
        if not (self._queue or target.is_outdated):
            return []  # nobody waits for that
        self._now = now
        self._retire(target)
        return self._settle()

    def release(self, ticket: int, now: float) -> list[Action]:
        """The request ended, or its client left, granted or not. Raises LookupError for a ticket that is not alive."""
        request = self._requests.pop(ticket, None)
        if request is None:
            raise LookupError(f"ticket {ticket} was never admitted, or has ended")
        if request.granted:
            return self.idle(request.model.id, now) if request.model.slots.give_back(now) else []
        self._now = now
        request.model.slots.taken -= 1
        self._withdraw(request)
        return self._settle()

    def adopt(self, model: str, now: float) -> list[Action]:
        """The unit of a stopped model was found. It counts as a load that is under way: `ready` or `failed` follow."""
        self._now = now
        target = self._move(model, Cause.ADOPT)
        self._swaps.setdefault(model, _Swap(target, (), [], now))
        return self._settle()

    def ready(self, model: str, now: float, idle_since: float | None = None) -> list[Action]:
        """The model answers. `idle_since`: when it was last used, if it was found running; else that is now."""
        self._now = now
        target = self._move(model, Cause.READY)
        if target.state is State.READY:  # else a stop was faster
            target.ready_at = now
            target.slots.idle_since = now if idle_since is None else idle_since
            self._proceed(self._swaps[model])
        return self._settle()

    def failed(self, model: str, error: Exception, now: float, is_death: bool = True) -> list[Action]:
        """The start failed and nothing is left of its unit; everybody who waited for it gets the same error.

        If it was to stop anyway, this is `gone`. `is_death`: it was the model that failed, not who was to start it.
        """
        self._now = now
        was_stopping = self._models[model].state is State.STOPPING
        target = self._move(model, Cause.FAILED)
        if not was_stopping:
            if is_death:
                self._died(target, error)
            for request in self._swaps.pop(model).joined:
                self._refuse(request, error)
        self._carry_on_without(target)
        return self._settle()

    def ended(self, model: str, now: float) -> list[Action]:
        """A ready model's server ended by itself; what is left of its unit is being stopped, `gone` will follow."""
        self._now = now
        self._move(model, Cause.STOP)
        return self._settle()

    def gone(self, model: str, now: float, error: Exception | None = None) -> list[Action]:
        """The unit ended. Requests in flight stay so until they are released.

        `error` says why it ended if nobody had asked it to.
        """
        self._now = now
        target = self._move(model, Cause.GONE)
        if error is not None:
            self._died(target, error)
        self._carry_on_without(target)
        return self._settle()

    def unload(self, models: Iterable[str], now: float) -> list[Action]:
        """Stop these at once, whoever uses them: waiters are refused, loads aborted. Nobody else is held up."""
        self._now = now
        targets = [self._models[id] for id in models]
        self._refuse_waiting_for(targets, Unloaded)
        for target in targets:
            self._stop_at_once(target, target.config.unload_timeout)
            target.deaths = None
        return self._settle()

    def forgive(self, model: str) -> None:
        """Forget that a model keeps dying: the next request starts it at once."""
        self._models[model].deaths = None

    def reconfigure(
        self,
        models: Mapping[str, ModelConfig],
        policy: SwapPolicy,
        overtake_limit_s: float,
        priority: Mapping[str, int],
        now: float,
        outdated: Collection[str] = (),
    ) -> list[Action]:
        """Go on with other definitions. No request in flight is cut, and what is the same runs on.

        `outdated`: those of `models` whose unit is not that of the new definition. It serves what it has, then stops; a
        load is aborted; whoever waits is served by the successor. What is not in `models` any more also serves who
        joined its load, refuses everybody else, and is forgotten when nothing is left of it.

        Whoever waits is put in order by the new priorities.
        """
        self._now = now
        self._policy, self._overtake_limit_s = policy, overtake_limit_s
        for id, config in models.items():
            known = self._models.get(id) or self._new_model(id, config, 0)
            known.define(config, priority.get(id, 0), id in outdated)
        for known in self._models.values():
            if known.id not in models:
                self._remove(known)
        self._answers.clear()
        for target in self._models.values():
            self._retire(target)
        self._reconsider()
        self._queue.sort(key=lambda request: (-request.model.priority, request.number))
        return self._settle()

    def tick(self, now: float) -> list[Action]:
        """Stop what has been idle for its ttl."""
        self._now = now
        for model in self._models.values():
            if self._can_expire(model) and now >= model.slots.idle_since + model.config.ttl:
                self._stop(model, model.config.unload_timeout)
        return self._flush()

    def shutdown(self, now: float, grace_s: float = SHUTDOWN_GRACE_S, keep: bool = False) -> list[Action]:
        """Refuse everybody who waits or will come, stop everything. What is in flight is cut by the stops.

        With `keep` nothing is stopped, nor anything from now on: units are left as they are. May be called again
        without.
        """
        self._now = now
        self._is_closed = True
        self._refuse_waiting_for(self._models.values(), ShuttingDown)
        for model in self._models.values():
            if not keep:
                self._stop_at_once(model, grace_s)
            elif model.state is not State.STARTING:
                self._swaps.pop(model.id, None)  # it would start something yet
        return self._settle()

    # ---- questions ----

    def state(self, model: str) -> State:
        return self._models[model].state

    def config(self, model: str) -> ModelConfig:
        """Return the definition by which the model is to be started next."""
        return self._models[model].config

    def in_flight(self, model: str) -> int:
        """How many requests are granted and not yet released."""
        return self._models[model].slots.granted

    def waiting(self, model: str) -> int:
        """How many requests are queued or wait for a load."""
        slots = self._models[model].slots
        return slots.taken - slots.granted

    def idle_since(self, model: str) -> float:
        """Return when the model became ready or its last granted request ended, whichever is later; 0.0 for never."""
        return self._models[model].slots.idle_since

    def swap_began(self, model: str) -> float | None:
        """Return when the request came that has others stopped for this model, None if there is no such swap."""
        swap = self._swaps.get(model)
        return swap.since if swap is not None and swap.evicts else None

    def next_deadline(self) -> float | None:
        """Return the earliest moment at which `tick` has something to do.

        That is the end of a ttl. Bounded overtaking needs no deadline: who may overtake is settled by times of arrival.
        """
        ends = (m.slots.idle_since + m.config.ttl for m in self._models.values() if self._can_expire(m))
        return min(ends, default=None)

    def deadline_of(self, model: str) -> float | None:
        """Return when this model's ttl ends, if it runs; None also for a model that is forgotten."""
        target = self._models.get(model)
        return target.slots.idle_since + target.config.ttl if target is not None and self._can_expire(target) else None

    # ---- the decision ----

    def _pass(self, request: _Request) -> bool:
        """Let a new or queued request pass, refuse it, or say that it has to wait. The only place that decides.

        0. Its model keeps dying and is not to be started yet → refuse
        1. It came too late to overtake the oldest queued request, and would delay it → wait
        2. A swap to its model is under way → join it
        3. Its model is ready and nothing has to stop → grant
        4. Its swap would clash with one under way → wait
        5. A model that has to stop serves requests → wait
        6. Its own model is still stopping, or outdated and about to → wait
        7. Otherwise → swap
        """
        target = request.model
        swap = self._swaps.get(target.id)
        if target.deaths is not None and self._backs_off(target, target.deaths):  # 0
            self._refuse(request, self._crash_loop(target, target.deaths))
            return True
        evicts = self.evictions(target.id) if swap is None else ()
        if self._queue and self._overtakes(request, evicts):  # 1
            return False
        if swap is not None:  # 2
            swap.joined.append(request)
            return True
        if target.serves and not evicts:  # 3
            self._grant(request)
            return True
        if any(_clash(target.id, evicts, other.target.id, other.evicts) for other in self._swaps.values()):  # 4
            return False
        if any(self._is_serving(id) for id in evicts):  # 5
            return False
        if target.state is State.STOPPING or target.is_outdated:  # 6
            return False
        self._begin(_Swap(target, evicts, [request], request.since))  # 7
        return True

    def _overtakes(self, request: _Request, evicts: tuple[str, ...]) -> bool:
        """Tell whether letting `request` pass delays a queued one that it came too late to overtake.

        Only the oldest is protected, and only from requests that came `overtake_limit_s` or more after it. So everybody
        is the oldest after a bounded wait, what came close together is still served model by model, and nobody can wait
        in a circle: the oldest itself waits for requests in flight, stops and starts, which all end. It must not have
        to wait for other models than before either: a matrix could change its mind with each newcomer, for ever.
        """
        oldest = min(self._queue, key=_arrival)
        if request.model is oldest.model or request.since < oldest.since + self._overtake_limit_s:
            return False
        before = self.evictions(oldest.model.id)
        after = self._evictions_after(request.model.id, evicts, oldest.model.id)
        clashes = _clash(request.model.id, evicts, oldest.model.id, (*before, *after))
        return clashes or not set(before).issuperset(after)

    def _settle(self) -> list[Action]:
        """Look at the queue until nobody passes: whoever passed may have held back somebody before or behind."""
        has_moved = True
        while has_moved:
            has_moved = False
            for request in tuple(self._queue):
                if self._pass(request):
                    self._queue.remove(request)
                    has_moved = True
        self._forget_removed()
        return self._flush()

    def evictions(self, target: str) -> tuple[str, ...]:
        """Return who must stop for `target`, given what runs."""
        if target not in self._answers:
            self._answers[target] = self._policy.evictions(target, self._running())
        return self._answers[target]

    def _evictions_after(self, other: str, evicted: tuple[str, ...], target: str) -> tuple[str, ...]:
        """Return the same, given that a swap to `other` had come first."""
        running = self._running()
        if other in running and not evicted:
            return self.evictions(target)
        return self._policy.evictions(target, tuple({*running, other} - {*evicted}))

    def _running(self) -> tuple[str, ...]:
        return tuple(id for id, m in self._models.items() if m.state is not State.STOPPED or id in self._swaps)

    def _is_serving(self, id: str) -> bool:
        """Tell whether stopping this model would cut a request. One that is stopping has cut its own already."""
        return self._models[id].state is State.READY and self._models[id].slots.granted > 0

    def _can_expire(self, model: _Model) -> bool:
        """Tell whether a ttl runs: nobody uses or waits for the model, and no swap is about to serve from it."""
        return (
            model.config.ttl > 0
            and model.state is State.READY
            and not model.slots.taken
            and model.id not in self._swaps
            and not self._is_closed
        )

    # ---- swaps ----

    def _begin(self, swap: _Swap) -> None:
        self._swaps[swap.target.id] = swap
        self._answers.clear()
        for id in swap.evicts:
            if self._models[id].state is State.READY:  # else it is stopping; one that starts would clash
                self._stop(self._models[id], self._models[id].config.unload_timeout)
        self._proceed(swap)

    def _proceed(self, swap: _Swap) -> None:
        """Do what comes next, if it is time for it; otherwise there will be word of the model or of who has to stop."""
        target = swap.target
        if target.state is State.STOPPED and self._is_pointless(swap):
            self._give_up(swap)
        elif swap.pending:
            return
        elif target.state is State.READY and (target.serves or target.is_removed):
            self._complete(swap)  # who joined before it was removed is served
        elif target.state is State.STOPPED:
            self._move(target.id, Cause.START)
            self._actions.append(Start(target.id))

    def _complete(self, swap: _Swap) -> None:
        del self._swaps[swap.target.id]
        for request in swap.joined:
            self._grant(request)
        self._retire(swap.target)

    @staticmethod
    def _is_pointless(swap: _Swap) -> bool:
        return swap.target.is_removed or (swap.needs_joined and not swap.joined)

    def _give_up(self, swap: _Swap) -> None:
        """Forget a swap whose model was removed, or that nobody needs any more."""
        del self._swaps[swap.target.id]
        self._answers.clear()
        for request in swap.joined:
            self._refuse(request, UnknownModel(swap.target.id))

    def _carry_on_without(self, model: _Model) -> None:
        """Continue the swaps that waited for this model to be gone, to have another instead or the same anew."""
        for swap in tuple(self._swaps.values()):
            if swap.target is model or model.id in swap.pending:
                swap.pending.discard(model.id)
                self._proceed(swap)

    def _reconsider(self) -> None:
        """Have the new policy decide again where a swap has started nothing yet and would have to stop more by it.

        Whoever joined such a swap goes back to the queue.
        """
        for swap in tuple(self._swaps.values()):
            target = swap.target
            if target.state is State.STARTING or target.is_removed:
                continue
            others = tuple(id for id in self._running() if id != target.id)  # it may have to be started yet
            if swap.pending.issuperset(self._policy.evictions(target.id, others)):
                continue
            del self._swaps[target.id]
            self._answers.clear()
            self._queue += swap.joined

    # ---- models ----

    def _move(self, model: str, cause: Cause) -> _Model:
        target = self._models[model]
        was_ready = target.state is State.READY
        target.move(cause)
        if was_ready and self._now >= target.ready_at + FORGIVEN_AFTER_S:
            target.deaths = None
        self._answers.clear()
        return target

    def _stop(self, model: _Model, grace_s: float) -> None:
        grace_s = min(grace_s, ABORT_GRACE_S) if model.state is State.STARTING else grace_s
        self._move(model.id, Cause.STOP)
        self._actions.append(Stop(model.id, grace_s))

    def _stop_at_once(self, model: _Model, grace_s: float) -> None:
        """Stop whatever there is of the model. Nobody waits for it any more."""
        self._swaps.pop(model.id, None)
        self._answers.clear()
        if model.state in (State.STARTING, State.READY):
            self._stop(model, grace_s)

    def _retire(self, model: _Model) -> None:
        """Stop a model if it is outdated and nothing is cut by that.

        A swap to it stays, and starts its successor. One to a removed model has none, and goes on with what runs.
        """
        if not model.is_outdated or self._is_closed:
            return
        swap = self._swaps.get(model.id)
        if model.is_removed:
            can_stop = model.state is State.READY and not model.slots.granted and swap is None
        else:
            can_stop = model.state is State.STARTING or (model.state is State.READY and not model.slots.granted)
        if not can_stop:
            return
        if swap is not None:
            swap.needs_joined = True
        self._stop(model, model.config.unload_timeout)

    def _remove(self, model: _Model) -> None:
        """Take a model out of the configuration. Only those who joined a load of it that has begun are served yet."""
        model.remove()
        for request in tuple(self._queue):
            if request.model is model:
                self._queue.remove(request)
                self._refuse(request, UnknownModel(model.id))
        swap = self._swaps.get(model.id)
        if swap is not None and model.state not in (State.STARTING, State.READY):
            self._give_up(swap)

    def _forget_removed(self) -> None:
        """Forget the removed models of which nothing is left."""
        for model in [m for m in self._models.values() if m.is_removed]:
            if model.state is State.STOPPED and not model.slots.taken:
                del self._models[model.id], self.slots[model.id]
                self._answers.clear()

    def _died(self, model: _Model, error: Exception) -> None:
        """Count a death nobody ordered, and say how long the model has to wait for its next start."""
        count = model.deaths.count + 1 if model.deaths is not None else 1
        late = count - self._free_deaths
        backoff_s = min(BACKOFF_LIMIT_S, BACKOFF_S * 2.0 ** min(late - 1, 10)) if late > 0 else 0.0
        model.deaths = _Deaths(count, error, self._now + backoff_s)

    def _backs_off(self, model: _Model, deaths: _Deaths) -> bool:
        return model.state is State.STOPPED and model.id not in self._swaps and self._now < deaths.until

    def _crash_loop(self, model: _Model, deaths: _Deaths) -> CrashLoop:
        return CrashLoop(model.id, deaths.count, deaths.error, deaths.until - self._now)

    # ---- requests ----

    def _grant(self, request: _Request) -> None:
        request.granted = True
        request.model.slots.granted += 1
        self._actions.append(Grant(request.ticket))

    def _refuse(self, request: _Request, error: Exception) -> None:
        del self._requests[request.ticket]
        request.model.slots.taken -= 1
        self._actions.append(Refuse(request.ticket, error))

    def _refuse_waiting_for(self, models: Iterable[_Model], error: Callable[[str], Exception]) -> None:
        affected = set(models)
        for request in tuple(self._requests.values()):
            if request.model in affected and not request.granted:
                self._withdraw(request)
                self._refuse(request, error(self._policy.name))

    def _enqueue(self, request: _Request) -> None:
        """Put it before the first of strictly lower priority."""
        rank = request.model.priority
        place = next((n for n, other in enumerate(self._queue) if other.model.priority < rank), len(self._queue))
        self._queue.insert(place, request)

    def _withdraw(self, request: _Request) -> None:
        """Take a request that is not granted out of where it waits."""
        swap = self._swaps.get(request.model.id)
        if swap is not None and request in swap.joined:
            swap.joined.remove(request)
        else:
            self._queue.remove(request)

    def _flush(self) -> list[Action]:
        """Return the actions of this event, and where in the queue everybody stands now; open or close the slots."""
        actions, self._actions = self._actions, []
        is_clear = not self._queue and not self._is_closed  # whether somebody may be overtaken, `request` decides
        for model in self._models.values():
            slots = model.slots
            slots.is_open = is_clear and model.serves and model.id not in self._swaps and not self.evictions(model.id)
            slots.tells = bool(self._queue) or model.is_outdated or model.config.ttl > 0
        for n, request in enumerate(self._queue, 1):
            if request.position != n:
                request.position = n
                actions.append(Position(request.ticket, n))
        return actions


def _clash(a: str, evicted_by_a: tuple[str, ...], b: str, evicted_by_b: tuple[str, ...]) -> bool:
    """Tell whether swaps to `a` and `b` get in each other's way."""
    return a in evicted_by_b or b in evicted_by_a or not set(evicted_by_a).isdisjoint(evicted_by_b)
