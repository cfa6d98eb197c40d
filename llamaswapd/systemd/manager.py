"""One systemd manager, spoken to over D-Bus: its methods, its jobs, its signals.

The only importer of the D-Bus library, and of that only the part which dbus-next and its continuation dbus-fast share.
Messages are sent by hand: introspection and proxy objects would cost two round trips and milliseconds of CPU each. What
a model is, this module does not know. See org.freedesktop.systemd1(5).
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from llamaswapd.errors import BusLost, ManagerUnavailable, UnitError

try:
    # Before 2.12 it counts characters where D-Bus counts bytes, and the bus hangs up on the first non-ASCII text.
    if tuple(map(int, metadata.version("dbus-fast").split(".")[:2])) < (2, 12):
        raise ImportError
    import dbus_fast as dbus
    from dbus_fast.aio import MessageBus
except ImportError:
    import dbus_next as dbus  # type: ignore[no-redef]
    from dbus_next.aio import MessageBus  # type: ignore[assignment,attr-defined]

log = logging.getLogger(__name__)

Scope = Literal["system", "user", "private"]
Property = tuple[str, str, object]  # name, D-Bus signature, value

CALL_TIMEOUT_S = 25.0  # the reference implementation's default for a method call
JOIN_TIMEOUT_S = 2.0  # how long systemd may take to join a bus that our connection has brought up

UNIT_EXISTS = "org.freedesktop.systemd1.UnitExists"
NO_SUCH_UNIT = "org.freedesktop.systemd1.NoSuchUnit"
NO_OWNER = "org.freedesktop.DBus.Error.NameHasNoOwner"

_SYSTEMD = "org.freedesktop.systemd1"
_SYSTEMD_PATH = "/org/freedesktop/systemd1"
_MANAGER = "org.freedesktop.systemd1.Manager"
_SERVICE = "org.freedesktop.systemd1.Service"
_PROPERTIES = "org.freedesktop.DBus.Properties"


class Refused(UnitError):
    """The call was answered with a D-Bus error, `name`."""

    def __init__(self, member: str, subject: object, name: str, text: str) -> None:
        self.name = name
        super().__init__(f"systemd refused {member} {subject}: {text} ({name})")


class Watch:
    """What systemd signals about one unit, from before its start until it is gone.

    `gone` is done when the unit is unloaded, which systemd does only once its cgroup is empty; its exception is BusLost
    when that can no longer be known. Await it through `shield`.
    """

    def __init__(self, unit: str, path: str, changed: Callable[[dict[str, Any]], None]) -> None:
        self.unit = unit
        self.path = path
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.changed = changed
        self._jobs: dict[str, asyncio.Future[str]] = {}

    async def job(self, path: str) -> str:
        """Wait for a job of the unit and return its result: done, failed, canceled, timeout, frozen ..."""
        if self.gone.done() and path not in self._jobs:
            self.gone.result()
        return await asyncio.shield(self._job(path))

    def job_removed(self, path: str, result: str) -> None:
        # The signal may overtake the reply that tells us the job's path, so it is kept for whoever asks.
        job = self._job(path)
        if not job.done():
            job.set_result(result)

    def unit_removed(self) -> None:
        # Asking for a unit that does not exist loads an empty stand-in, removed again a moment later. A unit that was
        # started or stopped has had a job; one without is somebody's stand-in of before.
        if self._jobs:
            self.set_gone()

    def set_gone(self) -> None:
        if not self.gone.done():
            self.gone.set_result(None)

    def lost(self, error: BusLost) -> None:
        futures: list[asyncio.Future[Any]] = [self.gone, *self._jobs.values()]
        for future in futures:
            if not future.done():
                future.set_exception(error)
                future.exception()  # whether anybody waits for it is not our concern

    def _job(self, path: str) -> asyncio.Future[str]:
        return self._jobs.setdefault(path, asyncio.get_running_loop().create_future())


class Manager:
    """A connection to one manager. Every method may raise Refused, BusLost, or UnitError when there is no answer."""

    def __init__(self, bus: MessageBus, scope: Scope) -> None:
        self.scope = scope
        self.version = 0  # systemd's major version
        self.on_lost: Callable[[], None] = lambda: None  # called once when the connection ends without `close`
        self._bus = bus
        self._watches: set[Watch] = set()
        self._lost: asyncio.Task[None] | None = None
        self._is_reloading = False
        self._recheck: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, scope: Scope, address: str = "") -> Manager:
        """Connect to a manager; `address` is the bus to find it on, by default that of the scope.

        Raises ManagerUnavailable when there is no bus, or no systemd on it.
        """
        address = address or bus_address(scope)
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                # Connecting happens in the constructor.
                bus = await MessageBus(bus_address=address).connect()
        except Exception as error:  # the libraries let through whatever went wrong: OSError, AuthError, EOFError ...
            raise ManagerUnavailable(f"cannot connect to the bus of the {scope} manager, {address}: {error}") from error
        manager = cls(bus, scope)
        manager._lost = asyncio.create_task(manager._wait_until_lost(), name=f"bus of the {scope} manager")
        try:
            await manager._greet()
        except BaseException as error:  # cancelled, too
            await manager.close()
            if isinstance(error, UnitError):
                raise ManagerUnavailable(f"no systemd answers on the bus {address}: {error}") from error
            raise
        return manager

    async def close(self) -> None:
        self.on_lost = lambda: None
        if self._recheck:
            self._recheck.cancel()
            await asyncio.wait((self._recheck,))
        if self._bus.connected:
            self._bus.disconnect()
        if self._lost:
            await self._lost
        close_socket(self._bus)

    # ---- methods of org.freedesktop.systemd1.Manager

    async def start_transient_unit(self, watch: Watch, properties: Iterable[Property]) -> str:
        """StartTransientUnit; returns the result of its job."""
        values = [[name, dbus.Variant(signature, value)] for name, signature, value in properties]
        return await self._job(watch, "StartTransientUnit", "ssa(sv)a(sa(sv))", watch.unit, "replace", values, [])

    async def stop_unit(self, watch: Watch) -> str:
        """StopUnit; returns the result of its job."""
        return await self._job(watch, "StopUnit", "ss", watch.unit, "replace")

    async def kill_unit(self, unit: str, signal: int) -> None:
        """KillUnit, every process of it."""
        await self._call("KillUnit", "ssi", unit, "all", signal)

    async def thaw_unit(self, unit: str) -> None:
        await self._call("ThawUnit", "s", unit)

    async def reset_failed_unit(self, unit: str) -> None:
        await self._call("ResetFailedUnit", "s", unit)

    async def list_units(self, pattern: str) -> list[str]:
        """ListUnitsByPatterns: the names of all loaded units that match a glob."""
        (rows,) = await self._call("ListUnitsByPatterns", "asas", [], [pattern])
        return [row[0] for row in rows]

    async def service_property(self, path: str, name: str) -> Any:
        """Get a property of the service at an object path; a unit that is not loaded has the defaults of any unit."""
        (value,) = await self._call("Get", "ss", _SERVICE, name, path=path, interface=_PROPERTIES)
        return value.value

    # ---- signals

    async def watch(self, unit: str, path: str, changed: Callable[[dict[str, Any]], None]) -> Watch:
        """Follow a unit until it is gone; `changed` gets its properties whenever some change.

        Match by object path: on a busy host a match for all units would wake us for every service there is.
        """
        watch = Watch(unit, path, changed)
        await self._call_bus("AddMatch", "s", _properties_changed(path))
        self._watches.add(watch)
        watch.gone.add_done_callback(lambda _: self._unwatch(watch))
        return watch

    def _unwatch(self, watch: Watch) -> None:
        self._watches.discard(watch)
        if self._bus.connected:
            removed = self._bus.send(_bus_message("RemoveMatch", "s", _properties_changed(watch.path)))
            removed.add_done_callback(asyncio.Future.exception)  # of no concern: a match ends with its connection

    def _received(self, message: Any) -> None:
        if message.message_type is not dbus.MessageType.SIGNAL:
            return
        if message.member == "PropertiesChanged":
            changed = {name: value.value for name, value in message.body[1].items()}
            for watch in [watch for watch in self._watches if watch.path == message.path]:
                watch.changed(changed)
        elif message.member == "JobRemoved":
            _, job, unit, result = message.body
            for watch in self._watches_of(unit):
                watch.job_removed(job, result)
        elif message.member == "UnitRemoved" and not self._is_reloading:
            for watch in self._watches_of(message.body[0]):
                watch.unit_removed()
        elif message.member == "Reloading":
            # `systemctl daemon-reload` has every unit removed and made anew, whether it runs or not.
            self._is_reloading = message.body[0]
            if not self._is_reloading:
                if self._recheck:
                    self._recheck.cancel()  # what it had not come to yet, the next one sees
                self._recheck = asyncio.create_task(self._find_removed(), name="units gone while systemd reloaded")

    async def _find_removed(self) -> None:
        for watch in list(self._watches):
            try:
                await self._call("GetUnit", "s", watch.unit)
            except Refused as error:
                if error.name == NO_SUCH_UNIT:
                    watch.unit_removed()
            except UnitError as error:
                log.warning("cannot see whether %s survived systemd's reload: %s", watch.unit, error)

    def _watches_of(self, unit: str) -> list[Watch]:
        return [watch for watch in self._watches if watch.unit == unit]

    # ---- the connection

    async def _greet(self) -> None:
        # Never let the bus activate a systemd: on a bus without one that fails slowly.
        await self._wait_for_owner()
        (version,) = await self._call("Get", "ss", _MANAGER, "Version", interface=_PROPERTIES)
        self.version = int(re.findall(r"\d+", version.value)[0])
        self._bus.add_message_handler(self._received)
        for member in ("JobRemoved", "UnitRemoved", "Reloading"):
            rule = f"type='signal',sender='{_SYSTEMD}',interface='{_MANAGER}',member='{member}'"
            await self._call_bus("AddMatch", "s", rule)
        await self._call("Subscribe")  # without a subscriber systemd sends no signals

    async def _wait_for_owner(self) -> None:
        # A user's bus is started by whoever connects first, and systemd joins it a moment later.
        deadline = asyncio.get_running_loop().time() + (JOIN_TIMEOUT_S if self.scope == "user" else 0.0)
        while True:
            try:
                await self._call_bus("GetNameOwner", "s", _SYSTEMD)
            except Refused as error:
                if error.name != NO_OWNER or asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(0.01)
            else:
                return

    async def _wait_until_lost(self) -> None:
        reason = "it was closed"
        try:
            await self._bus.wait_for_disconnect()  # type: ignore[no-untyped-call]
        except Exception as error:  # whatever ended the library's reader
            reason = str(error) or type(error).__name__
        lost = BusLost(f"the connection to the bus of the {self.scope} manager is lost: {reason}")
        for watch in list(self._watches):
            watch.lost(lost)
        self.on_lost()

    async def _job(self, watch: Watch, member: str, signature: str, *body: object) -> str:
        (path,) = await self._call(member, signature, *body)
        return await watch.job(path)

    async def _call(
        self, member: str, signature: str = "", *body: object, path: str = _SYSTEMD_PATH, interface: str = _MANAGER
    ) -> list[Any]:
        return await self._ask(_message(_SYSTEMD, path, interface, member, signature, body))

    async def _call_bus(self, member: str, signature: str, *body: object) -> list[Any]:
        return await self._ask(_bus_message(member, signature, *body))

    async def _ask(self, message: Any) -> list[Any]:
        if not self._bus.connected:
            raise BusLost(f"not connected to the bus of the {self.scope} manager")
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                reply = await self._bus.call(message)
        except TimeoutError:
            raise UnitError(f"systemd did not answer {message.member} within {CALL_TIMEOUT_S:g} s") from None
        except (OSError, EOFError) as error:
            raise BusLost(f"the bus of the {self.scope} manager hung up during {message.member}: {error}") from error
        if reply is None:  # both libraries end pending calls so when the connection is closed on purpose
            raise BusLost(f"the connection to the bus was closed during {message.member}")
        body: list[Any] = reply.body
        if reply.message_type is dbus.MessageType.ERROR:
            subject = message.body[0] if message.body else ""
            raise Refused(message.member, subject, str(reply.error_name), body[0] if body else "no reason given")
        return body


def close_socket(bus: MessageBus) -> None:
    """Close what dbus-next and older versions of dbus-fast leave open when they disconnect."""
    for part in (bus._stream, bus._sock):
        if part:
            part.close()


async def choose_scope(wanted: Literal["auto", "system", "user", "private"]) -> Scope:
    """Return whose systemd to use; raises ManagerUnavailable when the wanted one cannot be used.

    `auto` takes the system's where it may be told to start units (root, on a machine booted with systemd), else the
    user's if that answers, else a private one.
    """
    booted, root = _is_booted(), os.geteuid() == 0
    if wanted == "system" and not booted:
        raise ManagerUnavailable("manager: system: this machine was not booted with systemd; use manager: private")
    if wanted == "system" and not root:
        raise ManagerUnavailable("manager: system: starting system units takes root; use manager: user")
    if wanted == "system" or (wanted == "auto" and booted and root):
        return "system"
    if wanted == "private":
        return "private"
    try:
        await (await Manager.connect("user")).close()
    except ManagerUnavailable as error:
        if wanted == "auto":
            return "private"
        remedy = "log in as that user, or `loginctl enable-linger`; or use manager: private"
        raise ManagerUnavailable(f"manager: user: {error}; {remedy}") from error
    return "user"


def bus_address(scope: Scope) -> str:
    """Return the address of the bus on which a scope's manager is found; a private one has none that can be known."""
    if scope == "system":
        return os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or "unix:path=/run/dbus/system_bus_socket"
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")
    if scope == "user" and (runtime / "bus").exists():
        return f"unix:path={runtime}/bus"
    if scope == "user" and (address := os.environ.get("DBUS_SESSION_BUS_ADDRESS")):
        return address
    raise ManagerUnavailable(f"no {scope} bus: there is no {runtime}/bus and no $DBUS_SESSION_BUS_ADDRESS")


def _is_booted() -> bool:
    """Say whether PID 1 is systemd; sd_booted(3)."""
    return Path("/run/systemd/system").is_dir()


def _properties_changed(path: str) -> str:
    return f"type='signal',sender='{_SYSTEMD}',path='{path}',interface='{_PROPERTIES}',member='PropertiesChanged'"


def _bus_message(member: str, signature: str, *body: object) -> Any:
    return _message("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", member, signature, body)


def _message(destination: str, path: str, interface: str, member: str, signature: str, body: Iterable[object]) -> Any:
    return dbus.Message(
        destination=destination, path=path, interface=interface, member=member, signature=signature, body=list(body)
    )
