"""One systemd manager: its methods, its jobs, its signals, over a bus that may go and come back.

What a model is, this module does not know. See org.freedesktop.systemd1(5).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from llamaswapd.errors import BusLost, ManagerUnavailable, UnitError
from llamaswapd.systemd.bus import BUS, CALL_TIMEOUT_S, Answer, Bus, Call, Refused, values, variant
from llamaswapd.systemd.unit import object_path
from llamaswapd.systemd.watched import Watch, is_stand_in

log = logging.getLogger(__name__)

Scope = Literal["system", "user", "private"]
Property = tuple[str, str, object]  # name, D-Bus signature, value
T = TypeVar("T")

# How long a systemd that is to be connected to may be away, as it executes itself anew. A user's, of which nobody knows
# whether it runs, may take so long to join a bus that our connection has brought up.
BACK_WITHIN_S = 10.0
JOIN_TIMEOUT_S = 2.0

# Between attempts to connect again, doubling. A bus that is restarted is back within some ten milliseconds.
FIRST_RETRY_S, LAST_RETRY_S = 0.05, 2.0

UNIT_EXISTS = "org.freedesktop.systemd1.UnitExists"
NO_SUCH_UNIT = "org.freedesktop.systemd1.NoSuchUnit"

_ERROR = "org.freedesktop.DBus.Error"
NO_OWNER = f"{_ERROR}.NameHasNoOwner"

# What a bus answers in place of a systemd that is executing itself anew or has not joined it yet. In the last two cases
# it has tried to activate systemd, by a program that does nothing.
AWAY = {
    NO_OWNER,
    f"{_ERROR}.NoReply",
    f"{_ERROR}.Disconnected",
    f"{_ERROR}.ServiceUnknown",
    f"{_ERROR}.Spawn.ChildExited",
    f"{_ERROR}.TimedOut",
}

_SYSTEMD = "org.freedesktop.systemd1"
_SYSTEMD_PATH = "/org/freedesktop/systemd1"
_MANAGER = "org.freedesktop.systemd1.Manager"
_SERVICE = "org.freedesktop.systemd1.Service"
_PROPERTIES = "org.freedesktop.DBus.Properties"


class Manager:
    """A connection to one manager, made anew whenever the bus or systemd has gone and come back.

    Calls made meanwhile wait, and a call that was under way is sent again, so one that is not idempotent may find its
    work done. How long that may take is the caller's concern. Every method may raise Refused, UnitError when there is
    no answer, and BusLost once the manager is closed or dead.
    """

    def __init__(self, scope: Scope, address: str, is_alive: Callable[[], bool]) -> None:
        self.scope = scope
        self.version = 0  # systemd's major version
        # Called with the reason when the connection is lost, and with "" when everything is known again.
        self.on_connection: Callable[[str], None] = lambda reason: None
        self.on_dead: Callable[[], None] = lambda: None  # called once: there will be no connection any more
        self._address = address
        self._is_alive = is_alive
        self._bus: Bus
        self._usable = asyncio.Event()  # set while the connection can be used, and at the end
        self._end: BusLost | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._watches: set[Watch] = set()
        # Those whose units are to be kept from being collected, and those of them for which the connection at hand has
        # said so by RefUnit: systemd counts, and what is taken twice and given back once is never collected.
        self._references: set[Watch] = set()
        self._taken: set[Watch] = set()
        self._is_settled = False  # a unit that is said to be removed is
        self._looking: asyncio.Task[None] | None = None
        self._systemd_left = False

    @classmethod
    async def connect(
        cls,
        scope: Scope,
        address: str = "",
        is_alive: Callable[[], bool] = lambda: True,
        back_within_s: float = BACK_WITHIN_S,
    ) -> Self:
        """Connect to a manager; `address` is the bus to find it on, by default that of the scope.

        `is_alive` says whether there is any use in trying again when the connection is lost. Raises ManagerUnavailable
        when there is no bus, or no systemd on it for `back_within_s`.
        """
        manager = cls(scope, address or bus_address(scope), is_alive)
        await manager._connect_within(back_within_s)
        manager._usable.set()
        manager._keeper = asyncio.create_task(manager._keep_connected(), name=f"connection to the {scope} manager")
        return manager

    async def close(self) -> None:
        """End everything at once; whoever waits gets BusLost. Running units stay as they are."""
        self._finish(BusLost(f"the connection to the bus of the {self.scope} manager was closed"))
        if self._keeper:
            await _cancelled(self._keeper)
        await self._disconnect()

    # ---- methods of org.freedesktop.systemd1.Manager

    async def start_transient_unit(
        self, watch: Watch, properties: Iterable[Property], taken: Callable[[], None] = lambda: None
    ) -> str:
        """StartTransientUnit, with a reference to the unit; returns the result of its job.

        `taken` is called when there is one.
        """
        referenced = (*properties, ("AddRef", "b", True))
        settings = [[name, variant(signature, value)] for name, signature, value in referenced]
        body: tuple[object, ...] = (watch.unit, "replace", settings, [])
        self._references.add(watch)  # before there is an answer, as it may not be awaited
        try:
            (path,) = await self._call("StartTransientUnit", "ssa(sv)a(sa(sv))", *body)
        except Refused:
            if watch in self._taken:  # by a connection made meanwhile, which found a unit, perhaps another's
                self.unref_unit(watch.unit)
            self._references.discard(watch)
            raise
        self._references.add(watch)  # again: a connection made meanwhile found nothing to refer to
        taken()
        return await watch.job(path, "start")

    async def stop_unit(self, watch: Watch, taken: Callable[[], None] = lambda: None) -> str:
        """StopUnit; returns the result of its job. `taken` is called when there is one."""
        path = await self.order_stop(watch.unit)
        taken()
        return await watch.job(path, "stop")

    async def order_start(self, unit: str, properties: Iterable[Property]) -> str:
        """StartTransientUnit for somebody else, who sees to the unit; returns the path of its job."""
        settings = [[name, variant(signature, value)] for name, signature, value in properties]
        (path,) = await self._call("StartTransientUnit", "ssa(sv)a(sa(sv))", unit, "replace", settings, [])
        return str(path)

    async def order_stop(self, unit: str) -> str:
        """StopUnit for somebody else; returns the path of its job."""
        (path,) = await self._call("StopUnit", "ss", unit, "replace")
        return str(path)

    async def kill_unit(self, unit: str, signal: int) -> None:
        """KillUnit, every process of it.

        With KillMode=mixed systemd kills the others itself once there is no main process. `all` would have it write to
        cgroup.kill, after which Linux (seen with 6.18) kills also what is started in that cgroup by clone3(2) with
        CLONE_INTO_CGROUP, and so `ExecStopPost=`, which removes containers.
        """
        if await self.service_property(object_path(unit), "KillMode") != "mixed":
            await self._call("KillUnit", "ssi", unit, "all", signal)
            return
        for whom in ("control", "main"):
            with contextlib.suppress(Refused):  # there is none, or no longer
                await self._call("KillUnit", "ssi", unit, whom, signal)

    async def freeze_unit(self, unit: str) -> None:
        await self._call("FreezeUnit", "s", unit)

    async def thaw_unit(self, unit: str) -> None:
        await self._call("ThawUnit", "s", unit)

    async def reset_failed_unit(self, unit: str) -> None:
        await self._call("ResetFailedUnit", "s", unit)

    async def ref_unit(self, watch: Watch) -> None:
        """RefUnit: keep a unit loaded, and so its result readable, until `unref_unit`. Nothing if it is not there.

        A reference is the connection's and goes with it; `_connect` takes it again.
        """
        self._references.add(watch)
        await self._with_bus(lambda bus: self._ref(bus, watch))

    def unref_unit(self, unit: str) -> None:
        """UnrefUnit: what the unit came to is known, it may be collected. Does not wait for it."""
        for watch in [watch for watch in self._references if watch.unit == unit]:
            self._references.discard(watch)
            self._taken.discard(watch)
            self._bus.post(_call("UnrefUnit", "s", unit))

    async def list_units(self, pattern: str) -> list[str]:
        """ListUnitsByPatterns: the names of all loaded units that match a glob."""
        (rows,) = await self._call("ListUnitsByPatterns", "asas", [], [pattern])
        return [row[0] for row in rows]

    async def service_property(self, path: str, name: str) -> Any:
        """Get a property of the service at an object path; a unit that is not loaded has the defaults of any unit."""
        return await self.property(path, _SERVICE, name)

    async def property(self, path: str, interface: str, name: str) -> Any:
        """Get a property of the object at a path."""
        (value,) = await self._call("Get", "ss", interface, name, path=path, interface=_PROPERTIES)
        return value.value

    # ---- what units do

    async def watch(self, unit: str, path: str, changed: Callable[[dict[str, Any]], None]) -> Watch:
        """Follow a unit until it is gone; `changed` gets its properties whenever some change.

        Match by object path: on a busy host a match for all units would wake us for every service there is.
        """
        watch = Watch(unit, path, changed)
        await self._ask(_add_match(_properties_changed(path)))
        self._watches.add(watch)
        watch.gone.add_done_callback(lambda _: self._unwatch(watch))
        return watch

    async def look(self, watch: Watch) -> dict[str, Any]:
        """Return all properties of a unit as they are now, none if it is gone; `watch` is told, too."""
        return await self._with_bus(lambda bus: self._look(bus, watch))

    async def available(self) -> None:
        """Wait until there is a connection, and what happened without one is known. Raises BusLost at the end."""
        await self._usable.wait()
        if self._end:
            raise self._end

    def _unwatch(self, watch: Watch) -> None:
        self._watches.discard(watch)
        self._references.discard(watch)
        self._taken.discard(watch)
        self._bus.post(_bus_call("RemoveMatch", _properties_changed(watch.path)))

    def _received(self, member: str, path: str, body: list[Any]) -> None:
        if member == "PropertiesChanged":
            changed = values(body[1])
            for watch in [watch for watch in self._watches if watch.path == path]:
                watch.changed(changed)
        elif member == "JobRemoved":
            _, job, unit, result = body
            for watch in self._watches_of(unit):
                watch.job_removed(job, result)
        elif member == "UnitRemoved" and self._is_settled:
            for watch in self._watches_of(body[0]):
                watch.unit_removed()
        elif member == "Reloading":
            # `systemctl daemon-reload` has every unit removed and made anew, whether it runs or not.
            self._is_settled = not body[0]
            if self._is_settled:
                self._look_later()
        elif member == "NameOwnerChanged" and body[1]:  # there was an owner, so it is not one for which we wait
            # A systemd that executes itself anew leaves the bus and joins it again. Its signals were missed, and the
            # next ones need a subscription: no other case than a bus that was restarted.
            self._systemd_left = True
            self._is_settled = False
            self._bus.hang_up()

    def _watches_of(self, unit: str) -> list[Watch]:
        return [watch for watch in self._watches if watch.unit == unit]

    def _look_later(self) -> None:
        if self._looking:
            self._looking.cancel()  # what it had not come to yet, the next one sees
        self._looking = asyncio.create_task(self._look_after_reload(), name="units after systemd has reloaded")

    async def _look_after_reload(self) -> None:
        try:
            await self._look_at_all()
        except UnitError as error:
            log.warning("cannot see what survived systemd's reload: %s", error)

    async def _look_at_all(self) -> None:
        for watch in list(self._watches):
            try:
                await self._look(self._bus, watch)
            except Refused as error:
                log.warning("cannot see what became of %s: %s", watch.unit, error)

    async def _ref(self, bus: Bus, watch: Watch) -> None:
        if watch not in self._references or watch in self._taken:  # given back, or taken while a connection was made
            return
        self._taken.add(watch)
        try:
            await bus.call(_call("RefUnit", "s", watch.unit))
        except Refused as error:
            self._taken.discard(watch)
            if _is_away(error):
                raise
            # It has gone, or we are not allowed to: signals tell of its end, too.
            log.debug("no reference to %s: %s", watch.unit, error)
            self._references.discard(watch)

    async def _look(self, bus: Bus, watch: Watch) -> dict[str, Any]:
        seen: dict[str, Any] = {}

        def heed(answer: Answer) -> None:
            if not isinstance(answer, Refused) and not watch.gone.done():
                seen.update(values(answer[0]))
                watch.found(seen)

        # "": of every interface, in one answer, so that state and result belong together, and it can be told whether
        # they are a unit's or a stand-in's.
        await bus.call(_call("GetAll", "s", "", path=watch.path, interface=_PROPERTIES), heed)
        return {} if not seen or is_stand_in(seen) else seen

    # ---- the connection

    async def _keep_connected(self) -> None:
        """Make a new connection whenever one is lost, for as long as the manager lives."""
        while True:
            await asyncio.wait((self._bus.lost,))
            self._usable.clear()
            reason = "systemd has left it" if self._systemd_left else self._bus.lost.result()
            log.warning("lost the bus of the %s manager: %s; connecting again", self.scope, reason)
            self.on_connection(reason)
            if not await self._reconnected():
                log.error("the %s manager is dead", self.scope)
                self._finish(BusLost(f"the {self.scope} systemd manager is dead"))
                self.on_dead()
                return
            log.info("the bus of the %s manager is back", self.scope)
            self._usable.set()
            self.on_connection("")

    async def _reconnected(self) -> bool:
        """Return when there is a connection and every watch knows what it has missed; False if there can be none.

        That may take 90 s where a user's bus was killed: systemd waits so long for the answer of a bus that it alone
        could start, and meanwhile hears no signal either.
        """
        delay_s = FIRST_RETRY_S
        while self._is_alive():
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, LAST_RETRY_S)
            await self._disconnect()
            try:
                await self._connect()
                await self._look_at_all()
            except (ManagerUnavailable, UnitError) as error:
                log.debug("no connection to the %s manager yet: %s", self.scope, error)
            else:
                return True
        return False

    async def _connect_within(self, seconds: float) -> None:
        """Connect for the first time. A systemd that is away just now is back soon."""
        deadline = asyncio.get_running_loop().time() + seconds
        while True:
            try:
                return await self._connect()
            except ManagerUnavailable as error:
                is_late = asyncio.get_running_loop().time() > deadline
                if is_late or not _is_away(error.__cause__) or not self._is_alive():
                    raise
            await asyncio.sleep(FIRST_RETRY_S)

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                self._bus = await Bus.open(self._address, self._received)
        except Exception as error:  # the libraries let through whatever went wrong
            what = f"cannot connect to the bus of the {self.scope} manager, {self._address}: {error}"
            raise ManagerUnavailable(what) from error
        try:
            await self._greet(self._bus)
        except BaseException as error:  # cancelled, too
            await self._disconnect()
            if isinstance(error, UnitError):
                raise ManagerUnavailable(f"no systemd answers on the bus {self._address}: {error}") from error
            raise

    async def _disconnect(self) -> None:
        if self._looking:
            await _cancelled(self._looking)
        await self._bus.close()

    def _finish(self, error: BusLost) -> None:
        self._end = error
        self._usable.set()
        for watch in list(self._watches):
            watch.lost(error)

    async def _greet(self, bus: Bus) -> None:
        self._systemd_left = False
        signals = f"type='signal',sender='{BUS}',interface='{BUS}',member='NameOwnerChanged',arg0='{_SYSTEMD}'"
        await bus.call(_add_match(signals))
        # Asked for, because a call would have the bus activate a systemd: on a bus without one that fails slowly.
        (owner,) = await bus.call(_bus_call("GetNameOwner", _SYSTEMD))
        bus.hear(owner)
        for member in ("JobRemoved", "UnitRemoved", "Reloading"):
            await bus.call(_add_match(f"type='signal',sender='{_SYSTEMD}',interface='{_MANAGER}',member='{member}'"))
        for watch in list(self._watches):
            await bus.call(_add_match(_properties_changed(watch.path)))
        self._taken.clear()
        for watch in list(self._references):
            await self._ref(bus, watch)
        # Without a subscriber systemd sends no signals. What came before the answer may have been said to others, in
        # the middle of a reload.
        await bus.call(_call("Subscribe"), self._settle)
        (version,) = await bus.call(_call("Get", "ss", _MANAGER, "Version", interface=_PROPERTIES))
        self.version = int(re.findall(r"\d+", version.value)[0])

    def _settle(self, answer: Answer) -> None:
        self._is_settled = not isinstance(answer, Refused)

    async def _call(
        self, member: str, signature: str = "", *body: object, path: str = _SYSTEMD_PATH, interface: str = _MANAGER
    ) -> list[Any]:
        return await self._ask(_call(member, signature, *body, path=path, interface=interface))

    async def _ask(self, call: Call) -> list[Any]:
        return await self._with_bus(lambda bus: bus.call(call))

    async def _with_bus(self, act: Callable[[Bus], Awaitable[T]]) -> T:
        """Do something over the bus; again if the connection breaks meanwhile, or systemd is away for a moment."""
        deadline = float("inf")
        while True:
            await self.available()
            bus, now = self._bus, asyncio.get_running_loop().time()
            try:
                return await act(bus)
            except BusLost:
                if bus is self._bus and self._end is None:
                    self._usable.clear()  # sooner than the keeper does: nobody tries again before it has connected
            except Refused as error:
                if not _is_away(error) or now > deadline:
                    raise
                deadline = min(deadline, now + CALL_TIMEOUT_S)
                await asyncio.sleep(FIRST_RETRY_S)


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
        await (await Manager.connect("user", back_within_s=JOIN_TIMEOUT_S)).close()
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
    runtime = _user_runtime()
    if scope == "user" and (runtime / "bus").exists():
        return f"unix:path={runtime}/bus"
    if scope == "user" and (address := os.environ.get("DBUS_SESSION_BUS_ADDRESS")):
        return address
    raise ManagerUnavailable(f"no {scope} bus: there is no {runtime}/bus and no $DBUS_SESSION_BUS_ADDRESS")


def _user_runtime() -> Path:
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")


def _is_booted() -> bool:
    """Say whether PID 1 is systemd; sd_booted(3)."""
    return Path("/run/systemd/system").is_dir()


def _call(
    member: str, signature: str = "", *body: object, path: str = _SYSTEMD_PATH, interface: str = _MANAGER
) -> Call:
    return Call(_SYSTEMD, path, interface, member, signature, body)


def _bus_call(member: str, argument: str) -> Call:
    return Call(BUS, "/org/freedesktop/DBus", BUS, member, "s", (argument,))


def _add_match(rule: str) -> Call:
    return _bus_call("AddMatch", rule)


def _properties_changed(path: str) -> str:
    return f"type='signal',sender='{_SYSTEMD}',path='{path}',interface='{_PROPERTIES}',member='PropertiesChanged'"


def _is_away(error: BaseException | None) -> bool:
    """Say whether it is what is got while systemd is away for a moment, by a call or by whoever waits for an answer."""
    return isinstance(error, BusLost) or (isinstance(error, Refused) and error.name in AWAY)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait((task,))
