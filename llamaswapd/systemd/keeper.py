"""Who stops idle models when the daemon has died and does not come back: the keeper, a unit that waits for its death.

It runs beside the models, under the same manager, so that nothing that befalls the daemon reaches it. While the daemon
lives it is flock(1), some 200 KiB asleep in the kernel on a file that the daemon has locked. A lock ends with its
holder, however that ends; then flock becomes the second half of this module, a program of its own that stops each model
with a `ttl` when that is over, and ends. Where the daemon needs the launcher for what takes root's rights, so does the
keeper: it is the same user's, since it opens files in a directory of that user.

    runtime_dir/alive           locked by the daemon for as long as it lives; of a private manager, runtime_dir/private/

The next daemon puts a new file in its place, locked already, before it touches anything. So a keeper knows at any time
whether a daemon lives: there is a file and its lock cannot be had.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import logging
import os
import shutil
import sys
import sysconfig
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

from llamaswapd.config import settings as unit_settings
from llamaswapd.errors import Error, ManagerUnavailable, UnitError
from llamaswapd.state import Remembered, StateFile
from llamaswapd.systemd import delegation
from llamaswapd.systemd.delegation import DelegatingManager
from llamaswapd.systemd.journal import Journal
from llamaswapd.systemd.manager import Manager, Property, Scope, bus_address
from llamaswapd.systemd.running import RunningUnit
from llamaswapd.systemd.unit import grace_s, identity, model_of, object_path, pattern

log = logging.getLogger(__name__)

ARM_TIMEOUT_S = 15.0
LOCK = "alive"  # the name of the file

STOP_GRACE_S = 5.0  # the keeper itself has nothing to put away

RETRY_S = 1.0  # between attempts to find and stop models, whatever is in the way: a bus that restarts, a full disk

# A start that the daemon ordered with its last breath may not have become a unit yet.
SETTLE_S = 1.0
# In what time a daemon comes back that was restarted or upgraded. Models that were used shortly before, but are not
# known to have been, should still be there.
RETURN_S = 30.0

MARK = b"LLAMASWAP_KEEPER=1"  # in LogExtraFields: a unit of this name that is ours
TTL = "LLAMASWAP_TTL"


def unit_name(instance: str = "") -> str:
    """Return the name of an instance's keeper, which no model's unit has."""
    return f"llamaswapd-{instance}-keeper.service" if instance else "llamaswapd-keeper.service"


def slice_name(instance: str = "") -> str:
    """Return the slice that the models' slice is in: what is done to that one does not befall the keeper."""
    return f"llamaswapd-{instance}.slice" if instance else "llamaswapd.slice"


@dataclass(frozen=True)
class Orders:
    """What the keeper is told on its command line; all paths as they are seen under the manager."""

    manager: Scope | Literal["launcher"]
    bus: str  # address
    instance: str
    lock: Path
    state: Path

    def argv(self) -> list[str]:
        return [f"--{name}={value}" for name, value in vars(self).items()]

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Orders:
        parser = argparse.ArgumentParser("llamaswapd-keeper", allow_abbrev=False)
        parser.add_argument("--manager", required=True, choices=[*get_args(Scope), "launcher"])
        parser.add_argument("--bus", required=True)
        parser.add_argument("--instance", required=True)
        parser.add_argument("--lock", required=True, type=Path)
        parser.add_argument("--state", required=True, type=Path)
        return cls(**vars(parser.parse_args(arguments)))


# ---- the daemon's side


class Replaceable(Protocol):
    """The unit of a keeper, however one gets it."""

    async def replace(self) -> None:
        """Start it, in place of the one before. Raises Error."""

    async def remove(self) -> None:
        """Stop it, if there is one. Raises Error."""


class Keeper:
    """The keeper of one instance. `arm` it before the models that are found are judged."""

    def __init__(self, unit: Replaceable, lock: Path) -> None:
        """`lock` is the path of the file as we see it."""
        self._unit = unit
        self._path = lock
        self._lock = -1

    @classmethod
    def under(cls, manager: Manager, instance: str, runtime_dir: Path, state: Path) -> Keeper:
        """Return the keeper under a manager; `runtime_dir` is the daemon's, `state` its state file."""
        if isinstance(manager, DelegatingManager):
            return cls(Delegated(manager), delegation.RUNTIME_DIR / LOCK)
        folder, seen, bus = runtime_dir, runtime_dir, ""
        if manager.scope == "private":  # whose units have another /run, see `private`
            folder, seen = runtime_dir / "private", Path(f"/run/user/{os.getuid()}")
            bus = f"unix:path={seen}/bus"
        orders = Orders(manager.scope, bus or bus_address(manager.scope), instance, seen / LOCK, state)
        return cls(KeeperUnit(manager, orders), folder / LOCK)

    async def arm(self) -> None:
        """Put a keeper that waits for our end in the place of the one before us.

        Without one everything works, until the daemon dies for good: a failure is logged. Without a lock the one before
        us has to go all the same, since it takes us for dead.
        """
        try:
            async with asyncio.timeout(ARM_TIMEOUT_S):
                try:
                    self._take_lock()
                except OSError:
                    await self._unit.remove()
                    raise
                await self._unit.replace()
        except TimeoutError:
            self._warn(f"it was not started within {ARM_TIMEOUT_S:g} s")
        except (Error, OSError) as error:
            self._warn(error)

    async def disarm(self) -> None:
        """Remove the keeper, because no model is left. Otherwise leave it armed. A failure is logged."""
        try:
            async with asyncio.timeout(ARM_TIMEOUT_S):
                await self._unit.remove()
        except TimeoutError:
            log.warning("the keeper was not stopped within %g s", ARM_TIMEOUT_S)
        except Error as error:
            log.warning("cannot stop the keeper: %s", error)
        with suppress(OSError):
            self._path.unlink()
        self.let_go()

    def let_go(self) -> None:
        """Do what our end does otherwise: the keeper, if it is armed, takes over. May be called twice."""
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1

    def _take_lock(self) -> None:
        lock = take(self._path)
        self.let_go()
        self._lock = lock

    def _warn(self, why: object) -> None:
        log.warning("if llamaswapd dies and does not come back, models will not be stopped by their ttl: %s", why)


class Delegated:
    """The keeper's unit by way of the launcher."""

    def __init__(self, manager: DelegatingManager) -> None:
        self._manager = manager

    async def replace(self) -> None:
        await self._manager.arm()

    async def remove(self) -> None:
        await self._manager.disarm()


class KeeperUnit:
    """The keeper's unit under a manager that obeys us."""

    def __init__(self, manager: Manager, orders: Orders, user: str = "") -> None:
        """`user` is whose the keeper is; "" for our own."""
        self._manager = manager
        self._orders = orders
        self._user = user
        self._name = unit_name(orders.instance)

    async def replace(self) -> None:
        """Start it, in place of the one before. Raises Error."""
        await self.remove()
        flock = shutil.which("flock")
        if flock is None:
            raise ManagerUnavailable("flock is not installed; install util-linux")
        if not sys.executable:
            raise ManagerUnavailable("Python does not know its own program")
        waiting = [flock, "--shared", "--no-fork", str(self._orders.lock)]
        # Not the folder it happens to run in, but where we ourselves have our modules from.
        program = [sys.executable, "-P", "-m", "llamaswapd.systemd.keeper", *self._orders.argv()]
        properties = settings([*waiting, *program], self._orders.instance, self._user)
        outcome = await self._unit().start(properties, ARM_TIMEOUT_S, STOP_GRACE_S)
        self._manager.unref_unit(self._name)  # what becomes of it is the next daemon's concern
        if outcome != "done":
            raise UnitError(f"{self._name} cannot be started ({outcome}); see journalctl -t llamaswapd-keeper")

    async def remove(self) -> None:
        """Stop it, if there is one. Raises Error."""
        ask, path = self._manager.service_property, object_path(self._name)
        if await ask(path, "MainPID") and MARK not in await ask(path, "LogExtraFields"):
            raise UnitError(f"there is a {self._name} that is not ours; give that unit another name")
        unit = self._unit()
        await unit.attach()
        await unit.stop(STOP_GRACE_S)

    def _unit(self) -> RunningUnit:
        return running(self._manager, self._name, self._orders.instance)


def delegated_orders() -> Orders:
    """Return what the launcher has a keeper do. Nothing in it comes from the other half."""
    return Orders("launcher", bus_address("system"), "", delegation.RUNTIME_DIR / LOCK, delegation.STATE)


def take(path: Path) -> int:
    """Put a new file at `path`, locked by us, in one step; return its descriptor. Raises OSError."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    lock = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        new.replace(path)
    except OSError:
        os.close(lock)
        new.unlink(missing_ok=True)
        raise
    return lock


def settings(argv: Sequence[str], instance: str, user: str = "") -> list[Property]:
    """Return the unit of a keeper; `user` is whose it is, unless the manager's own."""
    return [
        *(unprivileged(user) if user else ()),
        ("Description", "s", "Stops idle models if llamaswapd does not come back"),
        ("Documentation", "as", ["man:llamaswapd-units(7)"]),
        ("CollectMode", "s", "inactive-or-failed"),
        ("StartLimitIntervalUSec", "t", 0),
        ("Type", "s", "exec"),
        ("ExecStartEx", "a(sasas)", [[argv[0], list(argv), ["no-env-expand"]]]),
        # Whatever ends it, a daemon that is back, a kill, a library that is being upgraded: it waits again.
        ("Restart", "s", "on-failure"),
        ("RestartUSec", "t", 1_000_000),
        ("TimeoutStopUSec", "t", int(STOP_GRACE_S * 1e6)),
        ("Environment", "as", ["PYTHONPATH=" + os.pathsep.join(module_folders()), "PYTHONDONTWRITEBYTECODE=1"]),
        ("StandardInput", "s", "null"),
        ("SyslogIdentifier", "s", "llamaswapd-keeper"),
        ("LogExtraFields", "aay", [f"LLAMASWAP_INSTANCE={instance}".encode(), MARK]),
        ("Slice", "s", slice_name(instance)),
    ]


def unprivileged(user: str) -> list[Property]:
    """Return what makes a unit one of a user who can do nothing.

    No mount namespace: in it the daemon's runtime directory would stay the one there was when the keeper was started.
    """
    return [
        ("User", "s", user),
        *(entry for name, values in _LOCKED.items() for entry in unit_settings.properties(name, values)),
    ]


_LOCKED = {
    "CapabilityBoundingSet": ("",),
    "DevicePolicy": ("closed",),
    "IPAddressDeny": ("any",),
    "KeyringMode": ("private",),
    "LockPersonality": ("yes",),
    "MemoryDenyWriteExecute": ("yes",),
    "NoNewPrivileges": ("yes",),
    "RestrictAddressFamilies": ("AF_UNIX",),
    "RestrictNamespaces": ("uts",),  # "none at all" does not outlive a daemon-reload, see `sandbox`
    "RestrictRealtime": ("yes",),
    "RestrictSUIDSGID": ("yes",),
    "SystemCallArchitectures": ("native",),
    "SystemCallErrorNumber": ("EPERM",),
    "SystemCallFilter": ("@system-service", "~@privileged @resources"),
    "UMask": ("0077",),
}


def module_folders() -> list[str]:
    """Return where we have our modules from, without Python's own: they go with the interpreter, which may change."""
    own = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    own |= {f"{folder}/lib-dynload" for folder in own}
    return [folder for folder in map(os.path.abspath, sys.path) if folder not in own and os.path.exists(folder)]


# ---- the keeper's side


class DaemonLives(Exception):
    """The keeper has been roused for nothing, or for too long."""


def due(ttl_s: float, run: Remembered | None, died: float) -> float:
    """Return when a model has to go: `ttl_s` after its last use, as far as that is known. All are CLOCK_MONOTONIC.

    Never later than `ttl_s` after the daemon `died`, and not so soon that a daemon which comes back would miss it.
    """
    latest = died + ttl_s
    used = max(run.ready_at, run.last_used) if run else 0.0
    return min(latest, max(used + ttl_s, died + RETURN_S)) if used else latest


def time_of_death(lock: Path) -> float:
    """Return when the daemon died, in CLOCK_MONOTONIC seconds; raises DaemonLives.

    The first to find it dead writes that down, if it can, for a keeper that is restarted.
    """
    now = time.monotonic()
    try:
        file = open(lock, "r+", encoding="ascii", errors="replace")  # noqa: SIM115 - what it raises is told apart
    except FileNotFoundError:  # a RuntimeDirectory= goes with its service
        return now
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DaemonLives from None
        with suppress(ValueError):
            if 0 < (noted := float(file.read(32))) <= now:
                return noted
        with suppress(OSError):  # no room
            os.ftruncate(file.fileno(), 0)
            os.pwrite(file.fileno(), repr(now).encode(), 0)
    return now


async def keep(orders: Orders) -> None:
    """Stop each model with a `ttl` in its time; return when all are gone. Raises DaemonLives.

    Tries again and again by itself: systemd would run flock first, which may have lost its file with the daemon's
    runtime directory.
    """
    died = time_of_death(orders.lock)
    while not await _kept(orders, died):
        await asyncio.sleep(RETRY_S)
        with suppress(OSError):
            time_of_death(orders.lock)


async def _kept(orders: Orders, died: float) -> bool:
    """Try it once; return whether all are gone."""
    try:
        return await expire_all(orders, died)
    except (Error, OSError) as error:
        log.error("%s; trying again", error)
        return False


async def expire_all(orders: Orders, died: float) -> bool:
    """Stop each model with a `ttl` in its time; return whether all are gone. Raises DaemonLives, Error or OSError."""
    runs = {run.invocation: run for run in StateFile(orders.state).read().models.values()}
    await asyncio.sleep(SETTLE_S)
    manager = await connected(orders)
    ends: list[asyncio.Task[bool]] = []
    try:
        for unit, ttl_s, grace_s in await find(manager, orders.instance):
            deadline = due(ttl_s, runs.get(unit.invocation), died)
            ends.append(asyncio.create_task(expire(unit, grace_s, deadline, orders.lock), name=unit.name))
        log.info("llamaswapd has died; models with a ttl: %d", len(ends))
        return all(await asyncio.gather(*ends))
    finally:
        for end in ends:
            end.cancel()
        await asyncio.gather(*ends, return_exceptions=True)
        await manager.close()


async def connected(orders: Orders) -> Manager:
    if orders.manager == "launcher":
        return await DelegatingManager.connect("system", orders.bus)
    return await Manager.connect(orders.manager, orders.bus)


async def find(manager: Manager, instance: str) -> list[tuple[RunningUnit, float, float]]:
    """Return the units of models with a `ttl`, each with that and the time it may take to stop, in seconds."""
    found = []
    for name in await manager.list_units(pattern(instance)):
        unit = running(manager, name, instance)
        properties = await unit.take_over()
        fields = identity(properties)
        if isinstance(manager, DelegatingManager):
            manager.know(model_of(name, fields, instance))
        ttl_s = fields.get(TTL, "")
        if ttl_s.isdecimal():
            found.append((unit, float(ttl_s), grace_s(properties)))
    return found


async def expire(unit: RunningUnit, grace_s: float, due: float, lock: Path) -> bool:
    """Stop a unit at its time, if it has not ended by then; return whether it has. Raises DaemonLives."""
    await asyncio.wait((unit.ended,), timeout=max(due - time.monotonic(), 0.0))
    if unit.ended.done():
        return True
    time_of_death(lock)
    log.info("stopping %s: its ttl is over, and llamaswapd has not come back", unit.name)
    try:
        await unit.stop(grace_s)
    except UnitError as error:
        log.error("%s", error)
        return False
    return True


def running(manager: Manager, name: str, instance: str) -> RunningUnit:
    """Return a unit that is only to be started or stopped."""
    return RunningUnit(manager, name, object_path(name), Path("/sys/fs/cgroup"), Journal(manager.scope, instance))


def main(argv: Sequence[str] | None = None) -> int:
    """Be the keeper of a daemon that has died; exit status 0 when nothing is left to do, else to wait again."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    orders = Orders.parse(sys.argv[1:] if argv is None else argv)
    try:
        asyncio.run(keep(orders))
    except DaemonLives:
        log.info("llamaswapd is back")
        return os.EX_TEMPFAIL  # to wait for its end again, should it not replace us
    except OSError as error:
        log.error("cannot see whether llamaswapd lives: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
