"""The launcher on the bus: who may call, which method is which order, how an error is told, when it is time to go."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pwd
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llamaswapd.errors import ConfigError, Error, ManagerUnavailable, NotStarted, Problem, StartError, UnitError
from llamaswapd.launcher.orders import Changed, Orders, UnknownModel
from llamaswapd.launcher.secrets import Secrets
from llamaswapd.systemd import delegation
from llamaswapd.systemd.bus import BUS, Asked, Bus, Call, Refused
from llamaswapd.systemd.connect import launcher_host
from llamaswapd.systemd.manager import NO_SUCH_UNIT, Manager, bus_address

log = logging.getLogger(__name__)

IDLE_S = 60.0  # without anybody who has called: the front half is gone, not only being restarted

_BUS_PATH = "/org/freedesktop/DBus"
_DO_NOT_QUEUE = 4  # flags and answer of RequestName, D-Bus specification
_PRIMARY_OWNER = 1
_INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
_DBUS_ERROR = "org.freedesktop.DBus.Error."


async def run(files: Sequence[Path], config_dir: Path | None) -> int:
    """Serve until nobody is left who has called, or the bus ends; return the exit status.

    Raises ManagerUnavailable, and UnitError if there is a launcher already, or no directory of ours.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # one line for each order
    folder = os.environ.get("RUNTIME_DIRECTORY") or str(delegation.LAUNCHER_DIR)
    try:
        secrets = Secrets(Path(folder))
    except OSError as error:
        remedy = f"systemctl start {delegation.UNIT} makes it"
        raise UnitError(
            f"cannot keep anything in the launcher's directory {folder}: {error.strerror}; {remedy}"
        ) from error
    manager = await Manager.connect("system")
    try:
        host = launcher_host(manager.version, secrets.environments.directory)
        orders = Orders(manager, host, secrets, files, config_dir)
        await orders.take_over()
        await Service(orders, front_half()).run(bus_address("system"))
    finally:
        await manager.close()
    return 0


def front_half() -> set[int]:
    """Return the users who may call, beside root."""
    with contextlib.suppress(KeyError):
        return {pwd.getpwnam(delegation.USER).pw_uid}
    return set()


class Service:
    """`orders` on the bus, for root and for these users."""

    def __init__(self, orders: Orders, users: set[int], idle_s: float = IDLE_S) -> None:
        self._orders = orders
        self._users = {0, *users}
        self._idle_s = idle_s
        self._bus: Bus
        self._callers: dict[str, asyncio.Future[bool]] = {}  # unique name → may it call?
        self._somebody_left = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._do: Mapping[str, Callable[..., Awaitable[Any]]] = {
            name: getattr(orders, name.lower()) for name in delegation.METHODS
        }

    async def run(self, address: str) -> None:
        """Take the name and serve; return when it is time to go."""
        try:
            self._bus = await Bus.open(address, self._received, self._asked)
        except Exception as error:  # the libraries let through whatever went wrong
            raise ManagerUnavailable(f"cannot connect to the bus {address}: {error}") from error
        idle = asyncio.create_task(self._idle(), name="wait until nobody calls")
        try:
            gone = f"type='signal',sender='{BUS}',interface='{BUS}',member='NameOwnerChanged',arg2=''"
            await self._ask_bus("AddMatch", "s", gone)
            (answer,) = await self._ask_bus("RequestName", "su", delegation.NAME, _DO_NOT_QUEUE)
            if answer != _PRIMARY_OWNER:
                raise UnitError(f"there is another {delegation.NAME} on the bus; stop that")
            await asyncio.wait((idle, self._bus.lost), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (idle, *self._tasks):
                task.cancel()
            await asyncio.wait((idle, *self._tasks))
            await self._bus.close()

    async def _idle(self) -> None:
        """Return when everybody who has called has been gone for a while."""
        while True:
            self._somebody_left.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if self._callers else self._idle_s):
                    await self._somebody_left.wait()
                    continue
            if not self._callers:
                return

    def _received(self, member: str, path: str, body: list[Any]) -> None:
        if member == "NameOwnerChanged" and not body[2]:
            self._leave(body[0])

    def _asked(self, asked: Asked) -> bool:
        """Take a call that is for us."""
        if asked.path == delegation.PATH and asked.interface == _INTROSPECTABLE and asked.member == "Introspect":
            self._bus.reply(asked, "s", [introspection()])
            return True
        if asked.interface not in (delegation.INTERFACE, ""):
            return False
        task = asyncio.create_task(self._answer(asked), name=f"{asked.member} for {asked.sender}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _answer(self, asked: Asked) -> None:
        try:
            await self._obey(asked)
        except Error as error:
            self._refuse(asked, *told(error))
        except Exception as error:
            log.exception("%s failed", asked.member)
            self._refuse(asked, delegation.FAILED, "s", [f"the launcher cannot do that: {error!r}; see its log"])

    async def _obey(self, asked: Asked) -> None:
        if not await self._may_call(asked.sender):
            self._refuse(asked, _DBUS_ERROR + "AccessDenied", "s", ["only root and llamaswapd may call the launcher"])
            return
        if asked.member not in delegation.METHODS or asked.path != delegation.PATH:
            self._refuse(asked, _DBUS_ERROR + "UnknownMethod", "s", [f"there is no {asked.path} {asked.member}"])
            return
        takes, answers = delegation.METHODS[asked.member]
        if asked.signature != takes:
            self._refuse(asked, _DBUS_ERROR + "InvalidArgs", "s", [f"{asked.member} takes {takes or 'nothing'}"])
            return
        answer = await self._do[asked.member](*asked.body)
        log.info("%s: done", order(asked))
        body = () if answer is None else answer if isinstance(answer, tuple) else (answer,)
        self._bus.reply(asked, answers, body)

    def _refuse(self, asked: Asked, name: str, signature: str, body: Sequence[object]) -> None:
        # One that is gone already is how most stops end.
        level = logging.DEBUG if name == NO_SUCH_UNIT else logging.WARNING
        log.log(level, "%s: refused: %s", order(asked), body[0] if name == delegation.CONFIG else one_line(body[0]))
        self._bus.refuse(asked, name, signature, body)

    async def _may_call(self, sender: str) -> bool:
        """Whether a caller, followed until it is gone, is root or the front half; the bus's policy asks the same."""
        if sender not in self._callers:
            self._callers[sender] = asyncio.ensure_future(self._look_at(sender))
        return await asyncio.shield(self._callers[sender])

    async def _look_at(self, sender: str) -> bool:
        may_call = False
        try:
            (uid,) = await self._ask_bus("GetConnectionUnixUser", "s", sender)
            may_call = uid in self._users
        except Refused:
            pass  # it has gone
        finally:
            if not may_call:  # also where the bus does not answer: it is asked again at the next call
                self._leave(sender)
        return may_call

    def _leave(self, sender: str) -> None:
        if self._callers.pop(sender, None) is not None:
            self._somebody_left.set()

    async def _ask_bus(self, member: str, signature: str, *body: object) -> list[Any]:
        return await self._bus.call(Call(BUS, _BUS_PATH, BUS, member, signature, body, "the bus"))


def order(asked: Asked) -> str:
    """Return a call as one line of the log, whatever somebody has put into it."""
    return f"{asked.member}({', '.join(map(repr, asked.body)):.300})"


def one_line(text: object) -> str:
    """Return a text, which may repeat what a caller has said, as one line without control characters.

    At the begin of a line of the log `<0>` would have journald show it on every terminal; sd-daemon(3).
    """
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(text)[:1000])


def told(error: Error) -> tuple[str, str, list[object]]:
    """Return how an error travels: its name on the bus, signature and body. Its text comes first."""
    match error:
        case ConfigError():
            body: list[object] = [str(error), _rows(error.problems), _rows(error.warnings)]
            return delegation.CONFIG, delegation.CONFIG_ERROR_SIGNATURE, body
        case UnknownModel():
            return delegation.UNKNOWN_MODEL, "s", [str(error)]
        case Changed():
            return delegation.CHANGED, "s", [str(error)]
        case NotStarted():
            return delegation.NOT_STARTED, "s", [str(error).removeprefix(StartError.prefix)]
        case Refused():
            return error.name, "s", [error.text]
        case _:
            return delegation.FAILED, "s", [str(error)]


def _rows(problems: Sequence[Problem]) -> list[list[str]]:
    return [[each.file, each.path, each.message] for each in problems]


def introspection() -> str:
    """Return the interface for `busctl introspect`."""
    methods = "".join(
        f'<method name="{name}">{_arguments(takes, "in")}{_arguments(answers, "out")}</method>'
        for name, (takes, answers) in delegation.METHODS.items()
    )
    return f'<node><interface name="{delegation.INTERFACE}">{methods}</interface></node>'


def _arguments(signature: str, direction: str) -> str:
    types = ["a{sq}"] if signature == "a{sq}" else ["s", "as"] if signature == "sas" else list(signature)
    return "".join(f'<arg type="{each}" direction="{direction}"/>' for each in types)
