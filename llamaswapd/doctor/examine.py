"""The whole examination: the configuration, then every check, each for a bounded time."""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from llamaswapd.config import credentials
from llamaswapd.config.load import load, sources
from llamaswapd.config.schema import Config
from llamaswapd.doctor import machine_checks, model_checks
from llamaswapd.doctor.case import Case, Scope, Situation, case
from llamaswapd.doctor.finding import Finding, ok, problem, unseen, warning
from llamaswapd.doctor.machine import Machine, Unseen
from llamaswapd.errors import ConfigError, ManagerUnavailable, UsageError
from llamaswapd.systemd import connect, program
from llamaswapd.systemd.connect import NEWEST, dry_host
from llamaswapd.systemd.manager import choose_scope
from llamaswapd.systemd.unit import Host, build

log = logging.getLogger(__name__)

Wanted = connect.Wanted | Literal["launcher"]

CHECK_S = 15.0  # for one check; a file system that does not answer can hold up a process for ever

AS_ROOT = "run llamaswapd doctor as root"


def examine(
    machine: Machine,
    wanted: Wanted | None,
    files: Sequence[Path],
    config_dir: Path | None,
    names: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
) -> Iterator[Finding]:
    """Yield what is found, as it is found, of the models of these names; of all without one.

    `wanted`: who is to run the models; None: who the configuration says. Raises UsageError for a name of no model.
    """
    config, findings, used = _configuration(machine, wanted == "launcher", files, config_dir, environ)
    scope, host, unreachable = _host(wanted or config.manager)
    yield from (*findings, *unreachable)
    cases = _cases(machine, scope, host, config, names)
    situation = Situation(scope, [os.path.abspath(file) for file in used], cases, _name(machine))
    for check in machine_checks.CHECKS:
        yield from bounded(machine, check.__name__, partial(check, machine, situation))
    for one in cases:
        for about in model_checks.CHECKS:
            yield from bounded(machine, f"{one.id}: {about.__name__}", partial(about, machine, one))


def _host(wanted: Wanted) -> tuple[Scope, Host, list[Finding]]:
    """Return what units would take from this machine, even if nobody is there to run them."""
    try:
        scope: Scope = "launcher" if wanted == "launcher" else asyncio.run(choose_scope(wanted))
        return scope, asyncio.run(dry_host(wanted, "")), []
    except ManagerUnavailable as error:
        scope = "private" if wanted == "auto" else wanted
        here = os.getcwd()
        host = Host(NEWEST, here, find=lambda name: program.find(name, here))
        why = str(error).removeprefix("manager: ")
        return scope, host, [problem("manager", why, "see llamaswapd-units(7), MANAGERS")]


def _configuration(
    machine: Machine, is_packaged: bool, files: Sequence[Path], config_dir: Path | None, environ: Mapping[str, str]
) -> tuple[Config, list[Finding], list[Path]]:
    """Return the configuration, an empty one if it cannot be had, what is said of it, and its files."""
    used: list[Path] = []
    try:
        used = sources(files, config_dir)
        closed = [file for file in used if file.exists() and not os.access(file, os.R_OK)]
        if closed:
            return (
                Config(),
                [unseen(str(file), f"cannot be read by {_name(machine)}", AS_ROOT) for file in closed],
                used,
            )
        if is_packaged:
            secrets = _secrets(machine)
            loaded = load(files, config_dir, {}, credentials=secrets, defers=True, checks_store=False)
        else:
            loaded = load(files, config_dir, environ)
    except PermissionError as error:
        return Config(), [unseen(str(error.filename), f"cannot be read by {_name(machine)}", AS_ROOT)], used
    except ConfigError as error:
        said = [warning("configuration", str(each), _MANUAL) for each in error.warnings]
        return Config(), [*said, *(problem("configuration", str(each), _MANUAL) for each in error.problems)], used
    said = [warning("configuration", str(each), _MANUAL) for each in loaded.warnings]
    models = len(loaded.config.models)
    counted = "1 model" if models == 1 else f"{models} models"
    return loaded.config, [*said, ok(", ".join(map(str, used)), f"is usable, with {counted}")], used


_MANUAL = "see llamaswapd.yaml(5)"


def _secrets(machine: Machine) -> dict[str, str]:
    """Return the credentials as the launcher has them. Their values are not looked at."""
    try:
        return credentials.read(machine.path(machine_checks.CREDENTIALS))
    except (ConfigError, PermissionError):
        return {}


def _cases(machine: Machine, scope: Scope, host: Host, config: Config, names: Sequence[str]) -> list[Case]:
    found = []
    for name in names or config.models:
        model = config.resolve(name)
        if model is None and config.models:
            raise UsageError(f'no model "{name}" in the configuration; it has: {", ".join(config.models)}')
        if model is not None:
            found.append(case(machine, model, build(model, host), scope))
    return found


def _name(machine: Machine) -> str:
    user = machine.user(str(machine.uid))
    return user.name if user else f"user {machine.uid}"


def bounded(
    machine: Machine, about: str, check: Callable[[], Iterable[Finding]], limit_s: float = CHECK_S
) -> Iterator[Finding]:
    """Yield what a check finds, up to where it is stuck or may not look."""
    found: queue.SimpleQueue[Finding | None] = queue.SimpleQueue()

    def run() -> None:
        try:
            for finding in check():
                found.put(finding)
        except Unseen as error:
            found.put(unseen(about, f"{error} cannot be looked at by {_name(machine)}", AS_ROOT))
        except Exception as error:
            # What has changed under our eyes, or a mistake of ours: the other checks are worth having.
            log.debug("%s", about, exc_info=True)
            found.put(unseen(about, f"this check has failed itself: {error!r}", "try again, and report it"))
        finally:
            found.put(None)

    # Not joined: one that waits for a dead file system never ends.
    threading.Thread(target=run, name=f"doctor: {about}", daemon=True).start()
    try:
        while finding := found.get(timeout=limit_s):
            yield finding
    except queue.Empty:
        yield unseen(about, f"nothing has answered for {limit_s:g} s", "findmnt -t nfs,nfs4,cifs,fuse")
