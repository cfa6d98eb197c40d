"""An engine on a backend whose units do what the test says.

No model is probed: one is ready when it has started, or when it says so in its log.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from llamaswapd.config.fingerprint import fingerprint
from llamaswapd.config.schema import Config, Group, ModelConfig
from llamaswapd.core.lifecycle import State
from llamaswapd.engine import Engine, Resources
from llamaswapd.errors import UnitResult

GRACE_S = 7  # every model's unloadTimeout


class Unit:
    """Ends when told to; a stop lasts while it may not go."""

    pid = 4711

    def __init__(self, backend: Backend, model: ModelConfig, invocation: str = "") -> None:
        self.model = model
        self.invocation = invocation or f"{next(backend.invocations):032x}"
        self.name = f"llamaswapd-model-{model.id}.service"
        self.ended: asyncio.Future[UnitResult] = asyncio.get_running_loop().create_future()
        self.notified = asyncio.Event()
        self.is_up = asyncio.Event()
        self.graces: asyncio.Queue[float] = asyncio.Queue()  # of the stops that were asked for
        self.may_go = asyncio.Event()
        self.may_go.set()
        self.heeds_below_s = 0.0  # a stop with less grace than this makes it go
        self.stop_error: Exception | None = None
        self._backend = backend

    def end(self, result: UnitResult) -> None:
        self.pid = 0
        self.ended.set_result(result)

    async def stop(self, grace_s: float) -> None:
        self.graces.put_nowait(grace_s)
        if grace_s < self.heeds_below_s:
            self.may_go.set()
        await self.may_go.wait()
        if self.stop_error is not None:
            raise self.stop_error
        if not self.ended.done():
            self.end(UnitResult())
        self._backend.running.discard(self.model.id)

    def resources(self) -> Resources:
        raise NotImplementedError

    async def stranger(self, port: int) -> str | None:
        return None

    async def last_lines(self, count: int) -> list[str]:
        return ["last words"]

    async def wait_for_line(self, pattern: re.Pattern[str]) -> str:
        await self.is_up.wait()
        return "up"


@dataclass
class Found:
    """A unit that was there before."""

    unit: Unit
    model_id: str
    fingerprint: str
    port: int | None
    is_up: bool
    began: float
    grace_s: float


class Backend:
    """Starts units at once, unless a model is held, or is to fail."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[str] = asyncio.Queue()
        self.units: asyncio.Queue[Unit] = asyncio.Queue()
        self.all_units: list[Unit] = []
        self.running: set[str] = set()
        self.held: set[str] = set()
        self.cancelled: list[str] = []
        self.failures: dict[str, Exception] = {}
        self.invocations = itertools.count(1)
        self.is_left = False

    def found(self, model: ModelConfig, *, is_up: bool = True, of: ModelConfig | None = None) -> Found:
        """Have a unit that was there before, made from a definition, `of` if that is another one than `model`."""
        unit = Unit(self, of or model)
        self.running.add(model.id)
        self.all_units.append(unit)
        return Found(unit, model.id, (of or model).fingerprint, model.port, is_up, time.monotonic() - 100, GRACE_S)

    def leave(self) -> None:
        self.is_left = True

    async def start(self, model: ModelConfig) -> Unit:
        assert model.id not in self.running, "never started twice"
        self.asked.put_nowait(model.id)
        if model.id in self.held:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.append(model.id)
                raise
        if model.id in self.failures:
            raise self.failures[model.id]
        unit = Unit(self, model)
        self.running.add(model.id)
        self.all_units.append(unit)
        self.units.put_nowait(unit)
        return unit

    async def follow(self, models: Collection[str] | None, history_bytes: int) -> AsyncGenerator[tuple[str, str], None]:
        yield "a", f"{models} {history_bytes}"


def model(model_id: str, **settings: Any) -> ModelConfig:
    """A model that is ready once it has been started."""
    defaults = {"id": model_id, "proxy": "http://127.0.0.1:9", "check_endpoint": "none", "ttl": 0}
    made = ModelConfig(**defaults | {"unload_timeout": GRACE_S} | settings)
    return made.having(fingerprint=fingerprint(made))


def slow(model_id: str, **settings: Any) -> ModelConfig:
    """A model that is ready once its unit `is_up`."""
    return model(model_id, ready_log="up", **settings)


def swapping(*models: ModelConfig, **settings: Any) -> Config:
    """All models make room for each other."""
    return Config(models={each.id: each for each in models}, **settings)


def together(*models: ModelConfig, **settings: Any) -> Config:
    """All models run beside each other."""
    group = Group(swap=False, members=tuple(each.id for each in models))
    return swapping(*models, groups={"all": group}, **settings)


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[tuple[Engine, Backend]]:
    """An engine of which, when it is closed, nothing may be left: no unit, no request."""
    backend = Backend()
    engine = Engine(config, backend)
    try:
        async with asyncio.timeout(20):
            yield engine, backend
    finally:
        for unit in backend.all_units:
            unit.may_go.set()
        await engine.close(0)
    assert backend.running == set()
    for status in engine.statuses():
        assert (status.state, status.unit, status.pid) == (State.STOPPED, "", 0)
        assert (status.in_flight, status.waiting) == (0, 0)


async def load(engine: Engine, model_id: str) -> None:
    with engine.lease(model_id) as lease:
        await lease.granted()


async def until(engine: Engine, model_id: str, state: State) -> None:
    changed = asyncio.Event()
    engine.on_change(changed.set)
    while engine.status(model_id).state is not state:
        changed.clear()
        await changed.wait()


def counts(engine: Engine, model_id: str) -> tuple[int, int]:
    status = engine.status(model_id)
    return status.in_flight, status.waiting


async def until_gone(engine: Engine, model_id: str) -> None:
    """Wait until a model that is no longer configured is no longer listed."""
    changed = asyncio.Event()
    engine.on_change(changed.set)
    while model_id in [status.model.id for status in engine.statuses()]:
        changed.clear()
        await changed.wait()
