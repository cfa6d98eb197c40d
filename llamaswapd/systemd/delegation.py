"""How the half of the program that may do nothing has root's part done: by the launcher, over the system's bus.

The interface, org.llamaswapd.Launcher1, and the front half's end of it; the launcher's end is `llamaswapd.launcher`.
Names, methods, and how an error travels are written down here for both.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llamaswapd.config.schema import ModelConfig
from llamaswapd.errors import ConfigError, ManagerUnavailable, NotStarted, Problem, UnitError
from llamaswapd.systemd.bus import Bus, Call, Refused
from llamaswapd.systemd.manager import Manager, Scope
from llamaswapd.systemd.unit import model_id_of, unit_name
from llamaswapd.systemd.watched import Watch

# ---- the interface

NAME = INTERFACE = "org.llamaswapd.Launcher1"
PATH = "/org/llamaswapd/Launcher1"
UNIT = "llamaswapd-launcher.service"

USER = "llamaswapd"  # as whom the front half runs; who else may call the launcher is root

# Of the front half's unit: RuntimeDirectory= and StateDirectory=. The launcher is told no paths.
RUNTIME_DIR = Path("/run/llamaswapd/default")
STATE = Path("/var/lib/llamaswapd/state.json")
# Of the launcher's unit: RuntimeDirectory=.
LAUNCHER_DIR = Path("/run/llamaswapd-launcher")

# Method → signatures of what it takes and what it answers. Models are named by their ids alone.
METHODS: Mapping[str, tuple[str, str]] = {
    "Load": ("a{sq}", "sas"),  # model id → port of its running unit; configuration as JSON, warnings
    "Reload": ("", ""),  # are the files right?
    "Start": ("sqs", "o"),  # model id, port or 0, fingerprint; object path of the job
    "Stop": ("s", "o"),
    "Kill": ("si", ""),  # model id, signal
    "Freeze": ("s", ""),
    "Thaw": ("s", ""),
    "Forget": ("s", ""),  # that its unit has failed
    "Arm": ("", ""),  # the keeper
    "Disarm": ("", ""),
}

# Errors; systemd's own keep their names.
_ERROR = f"{INTERFACE}.Error."
CONFIG = _ERROR + "Config"  # text, problems, warnings; each of the latter is file, path, message
UNKNOWN_MODEL = _ERROR + "UnknownModel"
CHANGED = _ERROR + "Changed"  # the fingerprint is not that of the file
NOT_STARTED = _ERROR + "NotStarted"
FAILED = _ERROR + "Failed"
UNAVAILABLE = _ERROR + "Unavailable"
CONFIG_ERROR_SIGNATURE = "sa(sss)a(sss)"

# ---- the front half's end

# What the bus answers in place of a launcher that is not there, cannot be started, or must not be called by us. Not so
# of one that ends while it is asked: asked again, it is started again.
_BUS_ERROR = "org.freedesktop.DBus.Error."
_DENIED = _BUS_ERROR + "AccessDenied"
_TIMED_OUT = _BUS_ERROR + "TimedOut"
_ABSENT = {_TIMED_OUT, *(_BUS_ERROR + name for name in ("ServiceUnknown", "NameHasNoOwner"))}


class LauncherUnavailable(Refused):
    """There is no launcher for us; the message says what helps."""

    def __init__(self, call: Call, error: Refused) -> None:
        super().__init__(call, UNAVAILABLE, error.text)
        denied = f"only root and user {USER} may, by the policy in {NAME}.conf"
        absent = f"see systemctl status {UNIT}, or run llamaswapd as root, or -manager user, with -config"
        remedy = denied if error.name == _DENIED else absent
        self.args = (f"the launcher, {NAME}, cannot be called: {error.text}; {remedy}",)


class DelegatingManager(Manager):
    """The system's manager for somebody whom it does not obey: what takes root's rights goes by way of the launcher.

    A launcher that was restarted, killed or upgraded is called again, which starts it.
    """

    def __init__(self, scope: Scope, address: str, is_alive: Callable[[], bool]) -> None:
        super().__init__(scope, address, is_alive)
        self._ids: dict[str, str] = {}  # unit → model id

    @classmethod
    @contextlib.asynccontextmanager
    async def connected(cls, address: str = "") -> AsyncIterator[DelegatingManager]:
        """Have a connection as long as the block lasts; raises ManagerUnavailable."""
        manager = await cls.connect("system", address)
        try:
            yield manager
        finally:
            await manager.close()

    async def load(self, ports: Mapping[str, int]) -> tuple[str, list[str]]:
        """Return the configuration as `config.wire` writes it, and the warnings. Models in `ports` keep these.

        Raises ConfigError, and ManagerUnavailable if there is no launcher for us.
        """
        try:
            possible = {id_: port for id_, port in ports.items() if 0 < port <= 65535}
            text, warnings = await self._order("Load", possible)
        except LauncherUnavailable as error:
            raise ManagerUnavailable(str(error)) from error
        except UnitError as error:
            raise ManagerUnavailable(f"{error}; see systemctl status {UNIT}") from error
        return text, warnings

    async def start_model(self, watch: Watch, model: ModelConfig, taken: Callable[[], None] = lambda: None) -> str:
        """Start a model's unit; return the result of its job. `taken` is called when there is one.

        Raises NotStarted, too.
        """
        order = Call("", "", "", "StartTransientUnit", "", (watch.unit,))
        (path,) = await self._order("Start", model.id, model.port or 0, model.fingerprint, instead_of=order)
        taken()
        return await watch.job(path, "start")

    async def stop_unit(self, watch: Watch, taken: Callable[[], None] = lambda: None) -> str:
        (path,) = await self._order_unit("Stop", "StopUnit", watch.unit)
        taken()
        return await watch.job(path, "stop")

    async def kill_unit(self, unit: str, signal: int) -> None:
        await self._order_unit("Kill", "KillUnit", unit, signal)

    async def thaw_unit(self, unit: str) -> None:
        await self._order_unit("Thaw", "ThawUnit", unit)

    async def reset_failed_unit(self, unit: str) -> None:
        await self._order_unit("Forget", "ResetFailedUnit", unit)

    async def arm(self) -> None:
        """Have the keeper's unit started, in place of the one before."""
        await self._order("Arm")

    async def disarm(self) -> None:
        await self._order("Disarm")

    def know(self, model_id: str) -> None:
        """Remember a model whose unit's name may be too short to tell."""
        self._ids[unit_name(model_id)] = model_id

    async def _order_unit(self, member: str, instead_of: str, unit: str, *more: object) -> list[Any]:
        model_id = self._ids.get(unit) or model_id_of(unit)
        if model_id is None:
            raise UnitError(f"{unit} does not say which model's it is; stop it by systemctl stop {unit}")
        return await self._order(member, model_id, *more, instead_of=Call("", "", "", instead_of, "", (unit, *more)))

    async def _order(self, member: str, *body: object, instead_of: Call | None = None) -> list[Any]:
        """Call the launcher; `instead_of` is what would be asked of systemd itself, for the words of errors."""
        call = Call(NAME, PATH, INTERFACE, member, METHODS[member][0], body, "the launcher")
        return await self._with_bus(lambda bus: _told(bus, call, instead_of or call))


async def _told(bus: Bus, call: Call, instead_of: Call) -> list[Any]:
    try:
        try:
            return await bus.call(call)
        except Refused as error:
            # The bus has systemd start the launcher. What it asks of a systemd that executes itself anew is lost (seen
            # with 252), and all calls fail when it has waited long enough. The launcher has heard of none.
            if error.name != _TIMED_OUT:
                raise
            return await bus.call(call)
    except Refused as error:
        raise _meant(error, call, instead_of) from error


def _meant(error: Refused, call: Call, instead_of: Call) -> Exception:
    """Return what a direct manager would have raised."""
    if error.name in (NOT_STARTED, UNKNOWN_MODEL, CHANGED):
        return NotStarted(error.text)
    if error.name == CONFIG:
        return _config_error(error) if call.member in ("Load", "Reload") else NotStarted(error.text)
    if error.name == FAILED:
        return UnitError(error.text)
    if error.name == _DENIED or error.name in _ABSENT or UNIT in error.text:
        return LauncherUnavailable(call, error)
    return Refused(instead_of, error.name, error.text)


def _config_error(error: Refused) -> ConfigError:
    problems, warnings = error.details
    return ConfigError(_problems(problems), _problems(warnings))


def _problems(rows: Sequence[Sequence[str]]) -> list[Problem]:
    return [Problem(*row) for row in rows]
