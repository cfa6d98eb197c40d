"""What a unit has in place of its usual settings when the model is a container, by a block or its command. Pure.

podman's containers live in the unit's cgroup, docker's in one of the docker daemon's. Either way `ExecStopPost=` sees
to it that none is left, however the client, its monitor or the server has ended.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence

from llamaswapd.config import containers
from llamaswapd.config.fingerprint import digest
from llamaswapd.config.schema import ModelConfig
from llamaswapd.config.unit_words import quote

Settings = Mapping[str, tuple[str, ...]]

# What `podman stop` and `podman rm` take beyond the server's own time, on a machine that is busy.
_CLIENT_S = 10
# docker says it in the model's log if there is no container to remove.
_SILENTLY = quote('exec "$$0" "$$@" >/dev/null 2>&1')


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # podman-run(1)


def name(unit: str) -> str:
    """Return the name of a unit's container; distinct for distinct units, the unit's own wherever that can be."""
    stem = unit.removesuffix(".service")
    legible = re.sub(r"[^A-Za-z0-9_.-]", "_", stem)
    return stem if legible == stem else f"{legible}-{digest(unit)}"


def words(model: ModelConfig, unit: str) -> list[str]:
    """Return the command that runs the unit's container; [] for a model without one."""
    return containers.words(model, [f"--name={name(unit)}"])


def settings(model: ModelConfig, unit: str, find: Callable[[str], str]) -> Settings:
    """Return what differs from the unit of a program; `find` makes a program's path absolute."""
    called, grace_s = name(unit), str(model.unload_timeout)
    ends = {
        # When the client has gone, what it has left of itself goes at once.
        "KillMode": ("mixed",),
        # That of a client whose container has ended by SIGTERM.
        "SuccessExitStatus": ("143",),
        "TimeoutStopSec": (str(model.unload_timeout + _CLIENT_S),),
        "TimeoutStopFailureMode": ("kill",),
    }
    if model.podman is not None:
        podman = f"{quote(find('podman'))} --events-backend=none"
        removals = _podmans_removals(podman, called)
        return {
            **ends,
            "Delegate": ("yes",),
            "ExecStartPre": removals[:1],
            "ExecStop": (f"-{podman} stop --ignore --time={grace_s} {called}",),
            "ExecStopPost": removals,
        }
    docker = quote(find("docker"))
    removal = _dockers_removal(docker, called, find)
    return {
        **ends,
        "ExecStartPre": removal,
        "ExecStop": (f"-{docker} stop -t {grace_s} {called}",),
        "ExecStopPost": removal,
    }


def _podmans_removals(podman: str, called: str) -> tuple[str, ...]:
    remove = f"-{podman} rm --force --ignore --time=0 {called}"
    # Twice: where `podman stop` has been killed, the first only finds out that the container has ended.
    return remove, remove


def _dockers_removal(docker: str, called: str, find: Callable[[str], str]) -> tuple[str, ...]:
    return (f"-{quote(find('sh'))} -c {_SILENTLY} {docker} rm --force {called}",)


def settings_of_command(model: ModelConfig, argv: Sequence[str], find: Callable[[str], str]) -> Settings:
    """Return what differs where a command of the user's own runs a container that has a name and is to be removed.

    That is `podman run --rm --name qwen ...`, or docker's. Without --rm somebody may want to see what is left.
    """
    called = removed_by_name(argv)
    if not called:
        return {}
    program = quote(find(argv[0]))
    is_podman = os.path.basename(argv[0]) == "podman"
    return {
        "KillMode": ("mixed",),
        "TimeoutStopSec": (str(model.unload_timeout + _CLIENT_S),),
        "ExecStopPost": _podmans_removals(program, called) if is_podman else _dockers_removal(program, called, find),
    }


def removed_by_name(argv: Sequence[str]) -> str:
    """Return the name of the container that a command runs and that goes with the unit; "" of any other command."""
    client = os.path.basename(argv[0]) if argv else ""
    if client not in ("podman", "docker") or argv[1:2] != ["run"] or "--rm" not in argv:
        return ""
    called = name_given(argv)
    return called if _NAME.fullmatch(called) else ""


def name_given(argv: Sequence[str]) -> str:
    """Return the container's name by the command's first --name, "" if it has none."""
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        if word == "--name":
            return following
        if word.startswith("--name="):
            return word.partition("=")[2]
    return ""
