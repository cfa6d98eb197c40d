"""What the engine asks for: units that run models, and something that makes them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Collection
from typing import Protocol

from llamaswapd.config.schema import ModelConfig
from llamaswapd.errors import UnitResult


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
    def invocation(self) -> str:
        """What tells this start of the unit from all others, systemd's invocation id."""

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


class Found(Protocol):
    """A unit that was there before the engine."""

    @property
    def unit(self) -> Unit: ...

    @property
    def model_id(self) -> str: ...

    @property
    def fingerprint(self) -> str:
        """Of the definition that it was made from (`config.fingerprint`), "" if it does not say."""

    @property
    def is_up(self) -> bool:
        """Whether it runs, or is about to; one that is failing or being stopped is not."""

    @property
    def began(self) -> float:
        """When its program was started, in seconds of the monotonic clock."""

    @property
    def grace_s(self) -> float:
        """How long it may take to stop."""


class Backend(Protocol):
    """What makes models run: systemd in all its forms, or the tests' own."""

    async def start(self, model: ModelConfig) -> Unit:
        """Start the model's unit; return once its program has been executed.

        Raises StartError when it cannot be executed (the unit is gone again then), UnitError when systemd refuses.
        """

    def leave(self) -> None:
        """From now on leave every unit as it is: a start that is cancelled goes on."""

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
