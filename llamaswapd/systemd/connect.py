"""Which systemd runs the models, and how it is reached: the system's, the user's, or one of our own."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

from llamaswapd.errors import ManagerUnavailable
from llamaswapd.systemd import delegation, program, sandbox
from llamaswapd.systemd.backend import DelegatingBackend, SystemdBackend
from llamaswapd.systemd.delegation import DelegatingManager
from llamaswapd.systemd.environments import Environments
from llamaswapd.systemd.journal import Journal
from llamaswapd.systemd.manager import Manager, Scope, choose_scope
from llamaswapd.systemd.private import PrivateManager
from llamaswapd.systemd.service import runtime_path
from llamaswapd.systemd.unit import Host

Wanted = Literal["auto", "system", "user", "private"]

NEWEST = 9999  # a systemd that knows every setting
ENVIRONMENTS = "env"  # of models, in the runtime directory; see `environments`


@asynccontextmanager
async def connect(
    wanted: Wanted, instance: str, runtime_dir: Path, model_ids: Callable[[], Collection[str]]
) -> AsyncIterator[SystemdBackend]:
    """Yield a backend on the wanted manager.

    A private one is started, or joined, here, and stopped at the end unless the backend is to leave its units. If it
    dies before, `manager.on_dead` is called. `model_ids`: the models there are, asked when the log of all of them is
    wanted. Raises ManagerUnavailable, naming what is missing and the remedy.
    """
    scope = await choose_scope(wanted)
    private = await PrivateManager.start(runtime_dir / "private") if scope == "private" else None
    backend = None
    try:
        if private:
            manager = await Manager.connect(scope, private.bus_address, private.is_running)
            cgroups, journal = private.cgroup_root, private.journal_dir
        else:
            manager, cgroups, journal = await Manager.connect(scope), cgroup_root(), None
        environments = Environments(runtime_dir / ENVIRONMENTS) if scope == "system" else None
        host = _host(scope, manager.version, instance, runtime_dir)
        backend = SystemdBackend(manager, host, cgroups, Journal(scope, instance, journal, model_ids), environments)
        try:
            yield backend
        finally:
            await manager.close()
            if environments:
                environments.remove_if_empty()
    finally:
        if private and not (backend and backend.is_leaving):
            await private.stop()


def delegated(manager: DelegatingManager, model_ids: Callable[[], Collection[str]]) -> SystemdBackend:
    """Return a backend on the system's manager that has the launcher do what takes root's rights."""
    return DelegatingBackend(manager, cgroup_root(), Journal("system", "", None, model_ids))


async def dry_host(wanted: Wanted | Literal["launcher"], instance: str) -> Host:
    """Return what units would take from this machine, without a connection: for printing them."""
    if wanted == "launcher":
        return launcher_host(NEWEST, delegation.LAUNCHER_DIR / ENVIRONMENTS)
    return _host(await choose_scope(wanted), NEWEST, instance, runtime_path(instance))


def launcher_host(version: int, environments: Path) -> Host:
    """Return what units take from the launcher: a sandbox, and an environment that stands in a file."""
    directory = "/"
    return Host(
        version,
        directory,
        environment=environment("system"),
        find=lambda name: program.find(name, directory),
        defaults=sandbox.packaged(),
        environment_file=str(environments),
    )


def _host(scope: Scope, version: int, instance: str, runtime_dir: Path) -> Host:
    directory = os.getcwd()
    return Host(
        version,
        directory,
        instance,
        environment(scope),
        lambda name: program.find(name, directory),
        environment_file=str(runtime_dir / ENVIRONMENTS) if scope == "system" else "",
    )


def environment(scope: Scope, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return what of our environment is written into the models' units.

    llama-swap's models inherit all of it. On the system manager they run as whomever the file says, who has no business
    with root's, so there it is only where programs are found. A private manager has inherited ours itself.
    """
    if scope == "system":
        return {name: environ[name] for name in ("PATH",) if name in environ}
    if scope == "private":
        return {}
    return dict(environ)


def cgroup_root() -> Path:
    """Return the folder below which a unit's ControlGroup is found; the hybrid layout has systemd's below `unified`."""
    for candidate in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup", "/sys/fs/cgroup/systemd"):
        if (Path(candidate) / "cgroup.procs").exists():
            return Path(candidate)
    raise ManagerUnavailable("no cgroup file system is mounted on /sys/fs/cgroup; systemd needs one")
