"""A seeded random walk through a simulated world, with everything that must always hold checked after every event.

LLAMASWAPD_WALK_SEEDS sets how many seeds are walked.
"""

from __future__ import annotations

import heapq
import itertools
import math
import os
import random
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from llamaswapd.config.schema import Config, Group, Matrix, ModelConfig
from llamaswapd.core.policy import GroupPolicy, SwapPolicy, policy_of
from llamaswapd.core.scheduler import Action, Grant, Position, Refuse, Scheduler, Start, Stop
from llamaswapd.errors import CrashLoop, ShuttingDown, StartError, TooManyRequests, UnknownModel, Unloaded

ALL = "abcdef"
SEEDS = int(os.environ.get("LLAMASWAPD_WALK_SEEDS", "2000"))
STEPS = 60


def test_what_must_always_hold_holds_in_every_walk() -> None:
    for seed in range(SEEDS):
        world = World(random.Random(seed))
        try:
            world.walk()
        except BaseException as error:
            error.add_note(f"seed {seed}, at {world.now}\n{world.scheduler!r}\n" + "\n".join(world.story[-25:]))
            raise


@dataclass(slots=True)
class Unit:
    """One start of a model, as the world sees it."""

    began: int  # the number of the event that started it
    config: ModelConfig  # the definition it was started by
    state: str = "starting"
    ready_at: float = 0.0
    idle_from: float | None = None  # if it was found running: when it was last used
    is_excused: bool = False  # from the policy: it was found, or started when there was another one
    error: Exception | None = None  # what it died of


@dataclass(slots=True)
class Client:
    model: str
    since: float
    granted: bool = False
    entered: bool = False  # without a ticket
    position: int = 0


@dataclass(slots=True)
class Deaths:
    count: int = 0
    until: float = 0.0  # it must not be started before
    event: int = 0  # of the last one


class GroupRules:
    """What groups permit. Who evicts whom does not depend on who else runs."""

    def __init__(self, rng: random.Random, names: list[str]) -> None:
        self.config = Config(groups=self.random_groups(rng, names))
        self.policy: SwapPolicy = GroupPolicy(self.config)
        self._evicts = {a: set(self.policy.evictions(a, ALL)) for a in ALL}

    @staticmethod
    def random_groups(rng: random.Random, names: list[str]) -> dict[str, Group]:
        members: dict[str, list[str]] = {"g": [], "h": [], "i": []}
        for name in names:
            group = rng.choice(("g", "h", "i", None))
            if group:
                members[group].append(name)

        def flag() -> bool:
            return rng.random() < 0.5

        return {
            group: Group(members=tuple(names), swap=flag(), exclusive=flag(), persistent=flag())
            for group, names in members.items()
        }

    def evicts(self, name: str, running: Iterable[str]) -> set[str]:
        return self._evicts[name] & set(running)

    def permits(self, names: Iterable[str]) -> bool:
        """Tell whether these may run together.

        They may if they can have been started one after the other, each beside those before it and evicting none of
        them. Then some model, the last one, evicts none of the others; and the same is true of the rest without it.
        """
        rest = set(names)
        while rest:
            last = next((name for name in rest if not self._evicts[name] & rest), None)
            if last is None:
                return False
            rest.remove(last)
        return True


class MatrixRules:
    """What a matrix permits: the subsets of its sets, and any model by itself."""

    def __init__(self, rng: random.Random, names: list[str]) -> None:
        self._sets = [frozenset(rng.sample(names, rng.randint(1, len(names)))) for _ in range(rng.randint(1, 5))]
        texts = {f"s{n}": " & ".join(sorted(models)) for n, models in enumerate(self._sets)}
        costs = {name: rng.randint(1, 3) for name in names}
        self.config = Config(matrix=Matrix(sets=texts, evict_costs=costs))
        self.policy = policy_of(self.config)

    def evicts(self, name: str, running: Collection[str]) -> set[str]:
        return set(self.policy.evictions(name, tuple(running)))

    def permits(self, names: Collection[str]) -> bool:
        return len(names) <= 1 or any(models.issuperset(names) for models in self._sets)


class World:
    """Units that start, fail, stop and die after random delays; clients that come and leave; an operator; reloads."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.names = names = list(ALL[: rng.randint(2, 6)])
        self.models = {name: self.random_model() for name in names}
        self.known = dict(self.models)  # what was removed, too, as it was
        self.rules: GroupRules | MatrixRules = rng.choice((GroupRules, MatrixRules))(rng, names)
        self.limit = rng.choice((0.0, 3.0, 10.0, 1e9))
        self.priority = {name: rng.choice((0, 0, 0, 1, 2, -1)) for name in names}
        self.scheduler = Scheduler(self.models, self.rules.policy, self.limit, self.priority)
        self.now = 0.0
        self.event = 0
        self.units: dict[str, Unit] = {}
        self.clients: dict[int, Client] = {}  # tickets alive
        self.last_use = dict.fromkeys(names, -math.inf)
        self.deaths: dict[str, Deaths] = {name: Deaths() for name in names}
        self.promised: set[int] = set()  # tickets of removed models that are to be granted yet
        self.mortality = rng.choice((0.2, 0.2, 0.9))  # of starts
        self.is_kept = False  # nothing is to be touched any more
        self.decided: dict[str, int] = {}  # swap under way → the number of the event that began it
        self.due: list[tuple[float, int, str, str, Unit]] = []
        self.numbers = itertools.count()
        self.story: list[str] = []

    def random_model(self) -> ModelConfig:
        """The description stands for all that a unit is made of."""
        choose = self.rng.choice
        return ModelConfig(
            description=choose("xyz"),
            ttl=choose((0, 0, 2, 8)),
            unload_timeout=choose((1, 7)),
            concurrency_limit=self.rng.randint(1, 5),
        )

    # ---- the walk ----

    def walk(self) -> None:
        self.adopt_some()
        for _ in range(STEPS):
            self.step()
        if self.rng.random() < 0.3:
            self.shutdown()
        elif self.rng.random() < 0.3:
            self.leave_all_as_it_is()
        self.drain()

    def step(self) -> None:
        dice = self.rng.random()
        if dice < 0.40:
            self.request()
        elif dice < 0.62:
            self.release_one()
        elif dice < 0.65:
            self.unload()
        elif dice < 0.69:
            self.die()
        elif dice < 0.72:
            self.reload()
        elif dice < 0.725:
            self.now += 100
        else:
            self.pass_time()

    def drain(self) -> None:
        """Nobody comes any more: everybody who is here is served or refused, and then nothing is left."""
        for _ in range(10_000):
            if not (self.clients or self.due):
                break
            if any(client.granted for client in self.clients.values()) and self.rng.random() < 0.5:
                self.release_one(granted=True)
            else:
                self.pass_time()
        assert not self.clients, "somebody waits for ever"
        assert not self.scheduler._queue
        assert not self.scheduler._swaps
        assert not self.scheduler._requests

    # ---- what happens in the world ----

    def adopt_some(self) -> None:
        for name in self.rng.sample(self.names, self.rng.randint(0, len(self.names))):
            unit = self.units[name] = Unit(1, self.models[name], is_excused=True)
            unit.idle_from = self.rng.choice((None, -3.0))
            self.come_up(name)
            self.feed(f"adopt {name}", self.scheduler.adopt(name, self.now))

    def come_up(self, name: str) -> None:
        word = "ready" if self.rng.random() > self.mortality else "failed"
        self.later(self.rng.choice((0.1, 1, 4)), word, name)

    def request(self) -> None:
        ticket, name = next(self.numbers), self.rng.choice(self.names)
        expected = self.expected_refusal(name)
        self.clients[ticket] = Client(name, self.now)
        evicts = self.evicts(name)
        has_queue = bool(self.scheduler._queue)
        if tries_at_once := name in self.models and self.rng.random() < 0.5:
            self.clients[ticket].entered = self.scheduler.slots[name].take()
        if self.clients[ticket].entered:
            actions: list[Action] = [Grant(ticket)]
        else:
            actions = self.scheduler.request(ticket, name, self.now)
            assert not tries_at_once or has_queue or Grant(ticket) not in actions, "it could have entered"
        refusals = [type(action.error) for action in actions if isinstance(action, Refuse)]
        assert refusals == ([expected] if expected else [])
        assert Grant(ticket) not in actions or not evicts, "the policy is asked for every request"
        self.feed(f"request {ticket} {name}", actions)

    def expected_refusal(self, name: str) -> type[Exception] | None:
        if name not in self.models:
            return UnknownModel
        if sum(client.model == name for client in self.clients.values()) >= self.models[name].slots:
            return TooManyRequests
        return CrashLoop if self.backs_off(name) else None

    def backs_off(self, name: str) -> bool:
        is_idle = name not in self.units and name not in self.scheduler._swaps
        return is_idle and self.now < self.deaths[name].until

    def release_one(self, granted: bool | None = None) -> None:
        candidates = [t for t, client in self.clients.items() if granted is None or client.granted is granted]
        if not candidates:
            return
        ticket = self.rng.choice(candidates)
        client = self.clients.pop(ticket)
        if client.granted:
            self.last_use[client.model] = self.now
        if client.entered:
            matters = self.scheduler.slots[client.model].give_back(self.now)
            self.feed(f"leave {ticket}", self.scheduler.idle(client.model, self.now) if matters else [])
        else:
            self.feed(f"release {ticket}", self.scheduler.release(ticket, self.now))

    def unload(self) -> None:
        known = [name for name in self.names if name in self.models or name in self.units]
        if not known:
            return
        names = self.rng.sample(known, self.rng.randint(1, len(known)))
        waiting = {t for t, client in self.clients.items() if client.model in names and not client.granted}
        for name in names:
            self.deaths[name] = Deaths()
        actions = self.scheduler.unload(names, self.now)
        assert waiting == {a.ticket for a in actions if isinstance(a, Refuse) and isinstance(a.error, Unloaded)}
        self.feed(f"unload {names}", actions)
        assert all(self.units[name].state == "stopping" for name in names if name in self.units)

    def shutdown(self) -> None:
        waiting = {t for t, client in self.clients.items() if not client.granted}
        actions = self.scheduler.shutdown(self.now, grace_s=3)
        assert waiting == {a.ticket for a in actions if isinstance(a, Refuse) and isinstance(a.error, ShuttingDown)}
        self.feed("shutdown", actions)
        assert all(unit.state == "stopping" for unit in self.units.values())

    def leave_all_as_it_is(self) -> None:
        self.is_kept = True
        waiting = {t for t, client in self.clients.items() if not client.granted}
        actions = self.scheduler.shutdown(self.now, keep=True)
        assert waiting == {a.ticket for a in actions if isinstance(a, Refuse) and isinstance(a.error, ShuttingDown)}
        self.feed("shutdown, keeping units", actions)

    def reload(self) -> None:
        before, self.models = self.models, self.random_models()
        self.known.update(self.models)
        if before.keys() != self.models.keys() or self.rng.random() < 0.5:
            self.rules = self.rng.choice((GroupRules, MatrixRules))(self.rng, list(self.models) or ["a"])
            for unit in self.units.values():
                unit.is_excused = True
        self.priority = {name: self.rng.choice((0, 0, 1, -1)) for name in self.names}
        outdated = {name for name in self.units if name in self.models and self.is_outdated(name)}
        for name, config in self.models.items():
            if name in outdated or config != before.get(name):
                self.deaths[name] = Deaths()
        refused = self.refused_as_removed()
        self.decided = dict.fromkeys(self.scheduler._swaps, self.event + 1)
        actions = self.scheduler.reconfigure(
            self.models, self.rules.policy, self.limit, self.priority, self.now, outdated
        )
        unknown = {a.ticket for a in actions if isinstance(a, Refuse) and isinstance(a.error, UnknownModel)}
        assert unknown == refused
        story = " ".join(f"{name}={config.description}" for name, config in self.models.items())
        rules = self.rules.config.matrix or self.rules.config.groups
        self.feed(f"reload {story} {outdated=} {rules}", actions)

    def random_models(self) -> dict[str, ModelConfig]:
        models = {}
        for name in self.names:
            dice = self.rng.random()
            if dice < 0.6:
                models[name] = self.known[name]
            elif dice < 0.8:
                models[name] = self.random_model()
        return models

    def refused_as_removed(self) -> set[int]:
        """Say who waits for what was removed, and note whom of them a load that has begun will serve yet."""
        refused = set()
        for ticket, client in self.clients.items():
            name = client.model
            if client.granted or name in self.models:
                continue
            swap = self.scheduler._swaps.get(name)
            has_joined = swap is not None and ticket in [request.ticket for request in swap.joined]
            if has_joined and name in self.units and self.units[name].state in ("starting", "ready"):
                self.promised.add(ticket)
            else:
                refused.add(ticket)
        return refused

    def is_outdated(self, name: str) -> bool:
        return name not in self.models or self.units[name].config.description != self.models[name].description

    def die(self) -> None:
        ready = [name for name, unit in self.units.items() if unit.state == "ready"]
        if not ready:
            return
        name = self.rng.choice(ready)
        unit, error = self.units[name], StartError("killed by SIGKILL")
        self.note_end_of_readiness(name)
        if self.rng.random() < 0.5:  # nothing of it is left
            del self.units[name]
            self.note_death(name)
            self.feed(f"gone {name}, unasked", self.scheduler.gone(name, self.now, error))
            return
        unit.state, unit.error = "stopping", error
        self.later(self.rng.choice((0.1, 1, 4)), "gone", name)
        self.feed(f"ended {name}", self.scheduler.ended(name, self.now))

    def note_end_of_readiness(self, name: str) -> None:
        if self.now >= self.units[name].ready_at + 60:
            self.deaths[name] = Deaths()

    def note_death(self, name: str) -> None:
        count = self.deaths[name].count + 1
        backoff_s = min(2.0 ** (count - 2), 60.0) if count > 1 else 0.0
        self.deaths[name] = Deaths(count, self.now + backoff_s, self.event + 1)

    def pass_time(self) -> None:
        """Go to whatever happens next: a deadline of the scheduler, word from a unit, or nothing for a second."""
        deadline = self.scheduler.next_deadline()
        soon = self.now + 1
        if deadline is not None and deadline <= min(soon, self.due[0][0] if self.due else soon):
            self.now = max(self.now, deadline)
            assert self.feed("tick", self.scheduler.tick(self.now)), "a deadline at which nothing was to be done"
        elif self.due and self.due[0][0] <= soon:
            at, _, word, name, unit = heapq.heappop(self.due)
            self.now = max(self.now, at)
            self.deliver(word, name, unit)
        else:
            self.now = soon
            assert not self.feed("tick", self.scheduler.tick(self.now)), "something done before its deadline"

    def deliver(self, word: str, name: str, unit: Unit) -> None:
        if self.units.get(name) is not unit:
            return  # it is gone already
        if word == "ready":
            if unit.state == "starting":
                unit.state, unit.ready_at = "ready", self.now
            self.feed(f"ready {name}", self.scheduler.ready(name, self.now, unit.idle_from))
        elif word == "failed":
            self.fail(name)
        else:
            del self.units[name]
            if unit.error is not None:
                self.note_death(name)
            self.feed(f"gone {name}", self.scheduler.gone(name, self.now, unit.error))

    def fail(self, name: str) -> None:
        unit, error = self.units.pop(name), StartError("exit status 3")
        swap = self.scheduler._swaps.get(name)
        joined = {request.ticket for request in swap.joined} if swap is not None else set()
        was_stopping = unit.state == "stopping"
        if not was_stopping:
            self.note_death(name)
        actions = self.scheduler.failed(name, error, self.now)
        told = {action.ticket for action in actions if isinstance(action, Refuse) and action.error is error}
        assert told == (set() if was_stopping else joined)
        self.feed(f"failed {name}", actions)

    def later(self, delay: float, word: str, name: str) -> None:
        heapq.heappush(self.due, (self.now + delay, next(self.numbers), word, name, self.units[name]))

    # ---- performing and checking ----

    def feed(self, event: str, actions: list[Action]) -> list[Action]:
        self.event += 1
        self.story.append(f"{self.now:g} {event} → {actions}")
        targets = self.scheduler._swaps
        for name in targets:
            self.decided.setdefault(name, self.event)
        for action in actions:
            match action:
                case Start(name):
                    self.start(name)
                case Stop(name, grace_s):
                    self.stop(event, name, grace_s)
                case Grant(ticket):
                    self.grant(ticket)
                case Refuse(ticket, error):
                    client = self.clients.pop(ticket)
                    assert not client.granted
                    assert not isinstance(error, CrashLoop) or self.now < self.deaths[client.model].until
                case Position(ticket, n):
                    self.clients[ticket].position = n
        self.decided = {name: began for name, began in self.decided.items() if name in targets}
        self.check()
        return actions

    def start(self, name: str) -> None:
        assert not self.is_kept
        assert name not in self.units, "started twice"
        assert name in self.models, "started though it was removed"
        assert self.scheduler.config(name) == self.models[name]
        decided = self.decided.get(name, self.event)
        assert self.now >= self.deaths[name].until or decided < self.deaths[name].event, "started too soon"
        for other in self.rules.evicts(name, self.units):
            # Only what came later than the decision, and does not mind the target, may run beside it.
            assert self.units[other].began >= decided, f"{other} had to be gone"
        self.units[name] = Unit(self.event, self.models[name])
        self.come_up(name)

    def stop(self, event: str, name: str, grace_s: float) -> None:
        assert not self.is_kept
        unit, config = self.units[name], self.known[name]
        assert unit.state != "stopping", "stopped twice"
        is_forced = event.startswith(("unload", "shutdown"))
        if unit.state == "starting":
            is_changed = name in self.models and self.is_outdated(name)
            assert is_forced or (is_changed and event.startswith("reload")), "a load was aborted"
        else:
            assert is_forced or not self.is_serving(name), "a request was cut"
        if event == "tick":
            assert config.ttl > 0
            came_up = unit.ready_at if unit.idle_from is None else unit.idle_from
            assert self.now >= max(came_up, self.last_use[name]) + config.ttl
        usual = 3 if event == "shutdown" else config.unload_timeout
        assert grace_s == (min(usual, 5) if unit.state == "starting" else usual)
        word = self.rng.choice(("gone", "failed")) if unit.state == "starting" else "gone"
        if unit.state == "ready":
            self.note_end_of_readiness(name)
        unit.state = "stopping"
        self.later(self.rng.choice((0.1, 1, 4)), word, name)

    def grant(self, ticket: int) -> None:
        client = self.clients[ticket]
        assert not client.granted, "granted twice"
        assert self.units[client.model].state == "ready", "granted without a ready model"
        assert not self.is_outdated(client.model) or ticket in self.promised, "granted what is to be replaced"
        client.granted = True

    def is_serving(self, name: str) -> bool:
        return any(client.granted and client.model == name for client in self.clients.values())

    def evicts(self, name: str, are_stops_over: bool = False) -> set[str]:
        """Say who has to stop for a model now, or would have to if what is stopping had stopped."""
        running = [other for other, unit in self.units.items() if not (are_stops_over and unit.state == "stopping")]
        return self.rules.evicts(name, {*running, *self.scheduler._swaps})

    def check(self) -> None:
        s = self.scheduler
        accountable = [name for name, unit in self.units.items() if not unit.is_excused]
        assert self.rules.permits(accountable), f"the policy does not permit {accountable} together"
        for name in self.names:
            granted = waiting = 0
            for client in self.clients.values():
                if client.model == name:
                    granted += client.granted
                    waiting += not client.granted
            is_known = name in self.models or name in self.units or granted + waiting > 0
            assert (name in s._models) == is_known
            if is_known:
                assert s.state(name).value == (self.units[name].state if name in self.units else "stopped")
                assert (s.in_flight(name), s.waiting(name)) == (granted, waiting)
            assert not self.lingers(name), f"{name} could have stopped"
        self.check_queue()

    def lingers(self, name: str) -> bool:
        """Tell whether a unit runs that is not what is configured, and nobody needs it."""
        if name not in self.units or self.is_kept or not self.is_outdated(name):
            return False
        if self.units[name].state == "starting":
            return name in self.models
        is_wanted = self.is_serving(name) or (name not in self.models and name in self.scheduler._swaps)
        return self.units[name].state == "ready" and not is_wanted

    def check_queue(self) -> None:
        s = self.scheduler
        queue = [request.ticket for request in s._queue]
        assert [self.clients[ticket].position for ticket in queue] == list(range(1, len(queue) + 1))
        ranks = [self.priority[self.clients[ticket].model] for ticket in queue]
        assert ranks == sorted(ranks, reverse=True)
        is_moving = any(unit.state != "ready" for unit in self.units.values())
        is_serving = any(client.granted for client in self.clients.values())
        waiting = [client for client in self.clients.values() if not client.granted]
        assert is_moving or is_serving or not waiting, "nothing will ever happen again"
        assert not any(self.backs_off(self.clients[ticket].model) for ticket in queue), "nobody waits for a back-off"
        first = min(queue, default=None)  # tickets are numbered in order of arrival
        if first is not None:
            assert self.has_to_wait(self.clients[first].model), f"{first} was forgotten"
        self.check_overtaking(first, set(queue))

    def has_to_wait(self, name: str) -> bool:
        """Tell whether somebody whom nobody holds back has a reason to stay in the queue."""
        swaps = self.scheduler._swaps
        evicts = self.evicts(name)
        state = self.units[name].state if name in self.units else "stopped"
        is_retiring = state == "ready" and self.is_outdated(name)
        if name in swaps or (state == "ready" and not evicts and not is_retiring):
            return False
        return bool(swaps) or state == "stopping" or is_retiring or any(map(self.is_serving, evicts))

    oldest: tuple[int, set[int]] | None = None  # the oldest queued request, and all that were let pass until then

    def check_overtaking(self, first: int | None, queue: set[int]) -> None:
        """Nobody who came too late passed the request that was the oldest in the queue all along."""
        passed = self.clients.keys() - queue
        if self.oldest is not None and self.oldest[0] == first:  # a reload can put older ones back into the queue
            oldest = self.clients[self.oldest[0]]
            in_its_way = self.evicts(oldest.model) & self.evicts(oldest.model, are_stops_over=True)
            for ticket in passed - self.oldest[1]:
                client = self.clients[ticket]
                is_late = client.since >= oldest.since + self.limit and client.model != oldest.model
                assert not (is_late and client.model in in_its_way), f"{ticket} came too late"
        self.oldest = None if first is None else (first, passed)
