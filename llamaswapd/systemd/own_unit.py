"""What systemd is doing to the unit that the daemon itself is: stopping it, or only restarting it?"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
from pathlib import Path

from llamaswapd.errors import Error, ManagerUnavailable
from llamaswapd.systemd.journal import library
from llamaswapd.systemd.manager import Manager, Scope
from llamaswapd.systemd.unit import object_path

log = logging.getLogger(__name__)

TIMEOUT_S = 2.0
RETRY_S = 0.05

UNKNOWN = "unknown"  # no type of a job

_UNIT = "org.freedesktop.systemd1.Unit"
_JOB = "org.freedesktop.systemd1.Job"


async def own_job() -> str:
    """Return the type of the job that systemd is doing to our unit, "" if there is none, `UNKNOWN` if it does not say.

    "" too when we are no service's main process: in a terminal, in a container, as a child of another program. Takes at
    most `TIMEOUT_S`; rights it needs none. What there is to see after SIGTERM, with systemd 252 and 257 alike, as root
    and as an ordinary user, in a unit of the system's manager and of a user's:

        restart       systemctl restart, try-restart, reload-or-restart of a unit without ExecReload=; restart of a unit
                      that ours has in Requires= or BindsTo=, such as its socket
        stop          systemctl stop, mask --now, isolate; start of a unit with Conflicts= on ours; stop of a unit that
                      ours requires, such as its socket, or the end of one that it is bound to; poweroff
        ""            systemctl kill and kill(1)
        unknown       the end of a user's manager, whose bus is gone by then

    The socket's stop is ours even without Requires=. A stop that is ordered while a restart is under way takes its
    place, so ask as late as possible.
    """
    scope, name = _own_unit()
    # A scope is somebody's session, and a slice nobody's.
    if not name.endswith(".service") or not _is_executed_by_systemd():
        return ""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await _job_of(await _connected(scope), object_path(name))
    except TimeoutError:
        log.warning("systemd did not say within %g s what it is doing to %s", TIMEOUT_S, name)
    except Error as error:
        log.warning("cannot find out what systemd is doing to %s: %s", name, error)
    return UNKNOWN


async def _connected(scope: Scope) -> Manager:
    """Connect to a manager; again and again, as the bus may be restarted at the same time as we are."""
    while True:
        try:
            return await Manager.connect(scope)
        except ManagerUnavailable as error:
            log.debug("%s", error)
        await asyncio.sleep(RETRY_S)


async def _job_of(manager: Manager, path: str) -> str:
    try:
        if await manager.service_property(path, "MainPID") != os.getpid():
            return ""
        _, job = await manager.property(path, _UNIT, "Job")
        return "" if job == "/" else str(await manager.property(job, _JOB, "JobType"))
    finally:
        await manager.close()


def _is_executed_by_systemd() -> bool:
    """Say whether we are no child of the process that systemd has executed for our unit; systemd.exec(5)."""
    return os.environ.get("SYSTEMD_EXEC_PID") == str(os.getpid())


def _own_unit() -> tuple[Scope, str]:
    """Return the unit in whose cgroup we are and whose manager's it is; "" if that is none. sd_pid_get_unit(3)."""
    if name := _of_this_process("sd_pid_get_user_unit"):
        return "user", name
    return "system", _of_this_process("sd_pid_get_unit") or unit_in(Path("/proc/self/cgroup").read_text())


def unit_in(cgroups: str) -> str:
    """Return the unit of the system's manager that a process is in, from its cgroups, cgroups(7); "" if it is in none.

    The library compares with the cgroup of PID 1, which ProtectProc= hides, and says that there is no such process.
    """
    entries = (line.split(":", 2) for line in cgroups.splitlines())
    path = max((path for _, controllers, path in entries if controllers in ("", "name=systemd")), key=len, default="")
    return next((part for part in path.split("/") if part and not part.endswith(".slice")), "")


def _of_this_process(question: str) -> str:
    answer = ctypes.c_void_p()
    if getattr(library(), question)(0, ctypes.byref(answer)) < 0:
        return ""
    try:
        return ctypes.string_at(answer.value or 0).decode()
    finally:
        library().free(answer)
