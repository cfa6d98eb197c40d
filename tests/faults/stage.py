"""One fault, some runs of it: set the scene, strike, and hold everything against what must be true afterwards."""

from __future__ import annotations

import asyncio
import random
import re
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.daemon_support import MARK
from tests.faults.crowd import (
    Client,
    Connecting,
    Crowd,
    Keeping,
    Reloading,
    Streaming,
    Swapping,
    Tally,
    Unloading,
    pid_in,
)
from tests.faults.places import MODELS, Failed, Found, Place
from tests.faults.wire import Answer, Broken, ask, chat

ECHO = f"{sys.executable} -S -E {MODELS / 'echo.py'} ${{PORT}}"
SERVER = f"{sys.executable} -S -E {MODELS / 'server.py'} ${{PORT}}"

STEADY, STREAM, CHANGING, COMING = "steady", "stream", "changing", "coming"
SWAPPED = ("red", "blue", "slow")
UNCHANGED = (STEADY, STREAM)  # they keep their process whatever happens, unless a fault is about them

GIVE_UP_AFTER = 3  # failed runs
MOMENT_S = 0.5  # before a fault strikes, anything from nothing to this

Json = dict[str, Any]


@dataclass
class Row:
    """What became of one fault in one place: a line of the table."""

    fault: str
    where: str
    runs: int = 0
    sent: int = 0
    failed: dict[str, int] = field(default_factory=dict)  # by kind
    ended_with_it: int = 0  # requests that had to fail
    retried: int = 0
    pids_changed: int = 0
    orphans: int = 0
    longest_stall_ms: int = 0
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def is_good(self) -> bool:
        return not (self.problems or self.failed)

    def as_json(self) -> Json:
        return asdict(self)


@dataclass(frozen=True)
class Fault:
    """A fault as a scenario: `strike` does it and returns when the program has had the chance to recover."""

    name: str
    strike: Callable[[Stage], Awaitable[None]]
    where: tuple[str, ...]  # private, system, user, vm
    full: int  # runs at full length
    short: int
    crowd: Callable[[Place, Tally], list[Client]]
    models: Json = field(default_factory=dict)  # further models, or other definitions
    flags: tuple[str, ...] = ()
    settings: str = ""  # of the daemon's unit


class Stage:
    """A fault's scene: the place, the crowd, what must be as it was."""

    def __init__(self, fault: Fault, place: Place, seed: str) -> None:
        self.fault = fault
        self.place = place
        self.rng = random.Random(f"{seed} {fault.name}")
        self.tally = Tally()
        self.crowd = Crowd(fault.crowd(place, self.tally), self.tally)
        self.row = Row(fault.name, place.name)
        self.pids: dict[str, int] = {}  # of the models that must keep them
        self.renewed: set[str] = set()
        self._failed_runs = 0
        self._blamed = 0  # lost requests that are in the row already
        self.expected = {*UNCHANGED}  # the models that should run when the crowd halts, beside those it is asked for

    # ---- the runs

    async def play(self, runs: int) -> Row:
        began = time.monotonic()
        try:
            await self._set_up()
            async with self.crowd.at_work():
                await self.crowd.everyone_has_had_a_turn()
                self._blame(0)
                for number in range(1, runs + 1):
                    await self._run(number)
                    if self._failed_runs >= GIVE_UP_AFTER:
                        break
        except (AssertionError, Broken, Failed, OSError, TimeoutError) as error:
            await self._problem(f"set-up: {told(error)}")
        finally:
            await self._take_down()
        self._account()
        self.row.seconds = round(time.monotonic() - began, 1)
        return self.row

    async def _run(self, number: int) -> None:
        self.row.runs = number
        try:
            await asyncio.sleep(self.rng.random() * MOMENT_S)
            await self.fault.strike(self)
            await self.check()
        except (AssertionError, Broken, Failed, OSError, TimeoutError) as error:
            self._failed_runs += 1
            await self._problem(f"run {number}: {told(error)}")
            self.crowd.resume()
        self._blame(number)

    def _blame(self, number: int) -> None:
        """Note which requests a run has cost."""
        lost = self.tally.lost()
        for failure in lost[self._blamed :][:3]:
            self.row.problems.append(f"run {number}: lost: {failure}")
        self._blamed = len(lost)

    async def _set_up(self) -> None:
        await self.place.start(
            scene(self.place.mark, self.fault.models), *self.fault.flags, settings=self.fault.settings
        )
        for model in UNCHANGED:
            await self.has_answered(model)
            self.pids[model] = await self.place.main_pid(self.place.unit(model))

    async def _take_down(self) -> None:
        try:
            await self.place.stop()
            left = self.place.model_processes()
            assert not left, f"left behind when the daemon was stopped: {left}"
        except (AssertionError, Failed, OSError) as error:
            await self._problem(f"end: {told(error)}")

    async def _problem(self, text: str) -> None:
        self.row.problems.append(text)
        print(f"--- {self.fault.name}, {self.place.name}: {text}", flush=True)
        if len(self.row.problems) == 1:
            print(await self.place.log(), flush=True)

    def _account(self) -> None:
        row, tally = self.row, self.tally
        row.sent, row.retried = tally.sent, tally.retried
        row.failed, row.ended_with_it = dict(tally.kinds()), tally.ended_with_it()
        row.longest_stall_ms = round(tally.longest_stall_s * 1000)

    # ---- what strikes use

    def excused(self, *kinds: str, model: str = "") -> AbstractContextManager[None]:
        return self.tally.excused(*kinds, model=model)

    async def ask_path(self, path: str) -> Answer:
        self.tally.sent += 1
        return await ask(self.place.port, "GET", path)

    async def ask(self, model: str, **body: object) -> Answer:
        self.tally.sent += 1
        return await chat(self.place.port, model, **body)

    async def has_answered(self, model: str) -> int:
        """Ask a model, which must answer; return its pid."""
        return pid_in(await self.ask(model))

    async def post(self, path: str) -> Answer:
        return await ask(self.place.port, "POST", path)

    def renews(self, model: str) -> None:
        """Have the fault end a model's process: the one that is there at the next check is the one to keep."""
        self.renewed.add(model)

    # ---- what must be true

    async def check(self) -> None:
        """Hold everything against what must be true once the fault is over; raises AssertionError."""
        await self.place.answers()
        await self.crowd.everyone_has_had_a_turn()
        await self.crowd.pause()
        await self._forget_what_the_crowd_left()
        expected = {*self.expected}
        for model in sorted(expected):
            await self.has_answered(model)
        await self._exactly_these_run(expected)
        await self._each_is_who_it_was(expected)
        self.crowd.resume()

    async def _forget_what_the_crowd_left(self) -> None:
        """Bring the models that come and go to where they must be: one of the swapped ones runs, `coming` does not."""
        wanted = {model for client in self.crowd.clients for model in client.models}
        if COMING in wanted:
            (await self.post(f"/api/models/unload/{COMING}")).succeeded()
        if CHANGING in wanted:
            self.expected.add(CHANGING)
        if wanted & {*SWAPPED}:
            self.expected.add(SWAPPED[0])

    async def _exactly_these_run(self, expected: set[str]) -> None:
        units = await self.place.units()
        alive = Found("active", "running")
        assert units == {self.place.unit(model): alive for model in expected}, f"of {sorted(expected)} run: {units}"
        running = await self.place.running()
        assert running == dict.fromkeys(expected, "ready"), f"of {sorted(expected)} /running lists {running}"
        processes = self.place.model_processes()
        orphans = {pid: unit for pid, unit in processes.items() if unit not in units}
        self.row.orphans += len(orphans)
        assert not orphans, f"processes of models that belong to no unit: {orphans}"
        per_unit = sorted(processes.values())
        assert per_unit == sorted(units), f"not one process for each unit: {per_unit}"

    async def _each_is_who_it_was(self, expected: set[str]) -> None:
        for model in sorted(expected):
            unit = self.place.unit(model)
            pid, answering = await self.place.main_pid(unit), await self.has_answered(model)
            assert pid == answering, f"{model}: process {answering} answers, {unit} has {pid}"
            if model in self.renewed:
                self.renewed.remove(model)
                self.pids[model] = pid
            was = self.pids.get(model, pid)
            if pid != was:
                self.row.pids_changed += 1
                self.pids[model] = pid
            assert pid == was, f"{model}: its process was {was} and is {pid}"


def told(error: BaseException) -> str:
    """Return what an error says, with where an assertion failed."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({re.sub('.*/', '', where.filename)}:{where.lineno})"


def scene(mark: str, further: Json) -> Json:
    """Return the configuration: models that stay, models that are swapped for each other, and one that changes."""
    models: dict[str, Json] = {
        STEADY: {"cmd": ECHO},
        STREAM: {"cmd": SERVER},
        CHANGING: {"cmd": ECHO},
        COMING: {"cmd": ECHO},
        "red": {"cmd": ECHO},
        "blue": {"cmd": ECHO},
        "slow": {"cmd": f"{SERVER} --ready-after 0.3"},
        **further,
    }
    for each in models.values():
        each.setdefault("env", [f"{MARK}={mark}"])
    together = [model for model in models if model not in SWAPPED]
    return {
        "healthCheckTimeout": 15,
        "unloadTimeout": 5,
        "logLevel": "debug",
        "models": models,
        "groups": {
            "together": {"swap": False, "exclusive": False, "members": together},
            "swapped": {"swap": True, "exclusive": False, "members": [*SWAPPED]},
        },
    }


# ---- crowds


def all_kinds(place: Place, tally: Tally) -> list[Client]:
    """Loading, swapping, streaming, unloading, reloading, and plain requests on new and kept connections."""
    kinds: Sequence[tuple[type[Client], Sequence[str]]] = (
        (Connecting, [STEADY]),
        (Keeping, [STEADY]),
        (Streaming, [STREAM]),
        (Swapping, SWAPPED),
        (Swapping, SWAPPED[:2]),
        (Unloading, [COMING]),
        (Reloading, [CHANGING]),
    )
    return [kind(place, tally, models) for kind, models in kinds]


def all_but_reloads(place: Place, tally: Tally) -> list[Client]:
    return [client for client in all_kinds(place, tally) if not isinstance(client, Reloading)]


def steady_ones(place: Place, tally: Tally) -> list[Client]:
    """Those whose models are there all the time."""
    kinds: Sequence[tuple[type[Client], str]] = ((Connecting, STEADY), (Keeping, STEADY), (Streaming, STREAM))
    return [kind(place, tally, [model]) for kind, model in kinds]
