"""Runs models as transient units of one systemd manager: what `engine.Backend` asks for.

Brings together what a unit is (`unit`), the manager (`manager`), the run of a unit (`running`) and its log (`journal`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from llamaswapd.config.commandline import split
from llamaswapd.config.schema import ModelConfig
from llamaswapd.errors import SYSTEMD_EXIT_STATUSES, BusLost, NotStarted, StartError, UnitError
from llamaswapd.systemd import listeners, program, unit
from llamaswapd.systemd.bus import Refused
from llamaswapd.systemd.delegation import DelegatingManager
from llamaswapd.systemd.environments import Environments
from llamaswapd.systemd.journal import Journal
from llamaswapd.systemd.manager import UNIT_EXISTS, Manager
from llamaswapd.systemd.running import UP, Order, RunningUnit
from llamaswapd.systemd.watched import Watch

log = logging.getLogger(__name__)

LOG_LINES = 10  # shown when a start fails
LOOPBACK = {"localhost", "127.0.0.1", "::1", "0.0.0.0", "::"}
DEFAULT_PORTS = {"http": 80, "https": 443}

START_ATTEMPTS = 4  # each but the last may find the name taken, or systemd reading its files

FAILED_START_GRACE_S = 5.0  # from SIGTERM to SIGKILL when a start fails or is given up (llama-swap)

FIND_AT_ONCE = 32  # the system's bus takes 128 unanswered calls of one connection; each unit looked at is one


@dataclass(frozen=True)
class Found:
    """A unit of this instance that was there already, and what it says about itself."""

    unit: RunningUnit  # attached: its end will be noticed, or has been
    model_id: str  # "" if it does not say
    fingerprint: str  # of the definition it was made from; "" for one of an older version, or made by hand
    port: int | None
    is_up: bool  # its main process runs or will: not so of one that has failed, or is being stopped
    began: float  # when its main process was started, CLOCK_MONOTONIC in seconds; 0.0 if it never was
    grace_s: float  # for a stop


class SystemdBackend:
    """Starts and finds the units of one instance. Never touches those of another."""

    def __init__(
        self,
        manager: Manager,
        host: unit.Host,
        cgroup_root: Path,
        journal: Journal,
        environments: Environments | None = None,
    ) -> None:
        """Below the directory `cgroup_root` the manager's units have their ControlGroup.

        `environments`: where models' environments are kept, if the host says that they are files.
        """
        self.manager = manager
        self._environments = environments
        self._host = host
        self._cgroup_root = cgroup_root
        self._journal = journal
        self.is_leaving = False

    async def start(self, model: ModelConfig) -> RunningUnit:
        """Start the model's unit; return once its program has been executed.

        Raises StartError when it cannot be executed (the unit is gone again then), UnitError when systemd refuses.
        """
        words = split(model.cmd)
        try:
            order = await self._order(model, words)
        except NotStarted:
            # Its port may be that of a unit of ours which could not be stopped when nobody obeyed.
            if not await self._end_leftover(model):
                raise
            order = await self._order(model, words)
        running, outcome = await self._start(order, words, model)
        if outcome == "done":
            return running
        lines, result = await running.last_lines(LOG_LINES), running.result
        if outcome != "failed":
            raise program.cannot_start(words, f"its start job ended with: {outcome}", lines)
        if result.exit_status in SYSTEMD_EXIT_STATUSES:
            raise program.cannot_start(words, str(result), lines)
        # It was executed, and gone before systemd had noticed.
        raise StartError(f"upstream command exited prematurely: {result}", lines)

    async def find(self) -> list[Found]:
        """Return every unit of this instance, whoever started it; without those that go while they are looked at.

        Each is watched, and not collected, from before it is looked at, so its end is noticed with its cause.
        """
        names = await self.manager.list_units(unit.pattern(self._host.instance))
        if self._environments:
            self._environments.forget_others(names)
        turn = asyncio.Semaphore(FIND_AT_ONCE)
        found = await asyncio.gather(*(self._find(name, turn) for name in names))
        return [one for one in found if one is not None]

    def leave(self) -> None:
        """From now on leave units as they are: the next daemon takes them over. A start that is cancelled just ends."""
        self.is_leaving = True

    def follow(self, models: Collection[str] | None, history_bytes: int) -> AsyncGenerator[tuple[str, str], None]:
        """Yield (model id, line) from the journal: the end of the history, ("", ""), then live lines."""
        return self._journal.follow(models, history_bytes)

    async def _order(self, model: ModelConfig, words: Sequence[str]) -> Order:
        """Return what has the unit started, when called for a watch of it. Raises NotStarted."""
        await asyncio.to_thread(self._check, model, words)
        spec = unit.build(model, self._host)
        for oddity in unit.oddities(spec, model, self._host):
            log.warning("<%s> %s", model.id, oddity)

        def order(watch: Watch, taken: Callable[[], None]) -> Awaitable[str]:
            if self._environments:
                self._environments.keep(spec.name, spec.environment_file)
                watch.gone.add_done_callback(lambda gone: self._forget_environment(spec.name, gone))
            return self.manager.start_transient_unit(watch, spec.properties, taken)

        return order

    def _forget_environment(self, name: str, gone: asyncio.Future[None]) -> None:
        """Remove what a unit that is gone needed; one that nobody has seen go may still need it."""
        if self._environments and gone.exception() is None:
            self._environments.forget(name)

    async def _start(self, order: Order, words: Sequence[str], model: ModelConfig) -> tuple[RunningUnit, str]:
        name, limit_s = unit.unit_name(model.id, self._host.instance), float(model.health_check_timeout)
        for _ in range(START_ATTEMPTS):
            running = self._unit(name, *words[:1])
            try:
                outcome = await running.start_by(order, limit_s, FAILED_START_GRACE_S, lambda: self.is_leaving)
            except Refused as error:
                if error.name != UNIT_EXISTS:
                    raise
                # A name is taken until its unit is unloaded. Whoever has it, a unit that failed or one that nobody
                # knows of any more, stands in for the model and has to go.
                await self._end_leftover(model)
            else:
                if outcome != "failed" or running.invocation:
                    return running, outcome
                # systemd 252 cannot read the file that it writes for ExecStartPreEx= and its like. If it reads its
                # files anew before it has come to the start, it fails, or forgets it.
                log.warning("<%s> systemd has not begun to start %s, ordering it again", model.id, name)
        raise NotStarted(f"systemd does not start {name}; see systemctl status {name}")

    async def _end_leftover(self, model: ModelConfig) -> bool:
        """Stop what has the name of a model's unit; return whether there was anything."""
        leftover = self._unit(unit.unit_name(model.id, self._host.instance))
        was_there = bool(await leftover.take_over())
        if was_there:
            await leftover.stop(float(model.unload_timeout))
        return was_there

    def _unit(self, name: str, program_name: str = "") -> RunningUnit:
        return RunningUnit(self.manager, name, unit.object_path(name), self._cgroup_root, self._journal, program_name)

    async def _find(self, name: str, turn: asyncio.Semaphore) -> Found | None:
        try:
            async with turn:
                return await self._look_at(name)
        except BusLost:
            raise
        except (UnitError, KeyError, TypeError, ValueError) as error:
            # One that nobody can judge must not keep the others from being served. Who needs its name stops it.
            log.warning("%s is left as it is, systemd says odd things of it: %r", name, error)
            return None

    async def _look_at(self, name: str) -> Found | None:
        running = self._unit(name)
        properties = await running.take_over()
        if not properties:
            return None
        running.when_gone(lambda gone: self._forget_environment(name, gone))
        fields = unit.identity(properties)
        port = fields.get("LLAMASWAP_PORT", "")
        # Before its main process a unit may have others to run.
        began_usec = properties["ExecMainStartTimestampMonotonic"] or properties["InactiveExitTimestampMonotonic"]
        return Found(
            running,
            unit.model_of(name, fields, self._host.instance),
            fields.get("LLAMASWAP_FINGERPRINT", ""),
            int(port) if port.isdecimal() else None,
            properties["ActiveState"] in UP and not running.ended.done(),
            began_usec / 1e6,
            unit.grace_s(properties),
        )

    def _check(self, model: ModelConfig, words: Sequence[str]) -> None:
        """Raise NotStarted when the program or the port cannot be used. Blocks for as long as the file system does."""
        if not model.proxy:
            raise NotStarted("upstream proxy missing")
        program.check(words, self._host.directory, model.systemd)
        check_port(model, words)


class DelegatingBackend(SystemdBackend):
    """Has the launcher start and stop units, which also knows what they are; sees to everything else itself."""

    manager: DelegatingManager

    def __init__(self, manager: DelegatingManager, cgroup_root: Path, journal: Journal) -> None:
        super().__init__(manager, unit.Host(manager.version, "/"), cgroup_root, journal)

    async def _order(self, model: ModelConfig, words: Sequence[str]) -> Order:
        if not model.proxy:
            raise NotStarted("upstream proxy missing")
        if words:  # otherwise the launcher has something to say
            await asyncio.to_thread(check_port, model, words)
        self.manager.know(model.id)
        return lambda watch, taken: self.manager.start_model(watch, model, taken)

    async def _look_at(self, name: str) -> Found | None:
        found = await super()._look_at(name)
        if found is not None:
            self.manager.know(found.model_id)
        return found


def check_port(model: ModelConfig, words: Sequence[str]) -> None:
    """Raise NotStarted when somebody else has the port. Blocks for as long as /proc does."""
    proxy = urlsplit(model.proxy)
    port = proxy.port or DEFAULT_PORTS.get(proxy.scheme)
    if port is None or proxy.hostname not in LOOPBACK or not model.names_port(port):
        return
    if (found := listeners.listeners(port)) and (holder := listeners.holder(found, words[0])):
        raise NotStarted(
            f"port {port} of proxy {model.proxy} is taken by {holder}; stop that, or give the model another port"
        )
