"""What a unit has in place of its usual settings when the model is a container. Pure.

podman's containers live in the unit's cgroup, docker's in one of the docker daemon's. Either way `ExecStopPost=` sees
to it that none is left, however the client, its monitor or the server has ended.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from llamaswapd.config import containers
from llamaswapd.config.fingerprint import digest
from llamaswapd.config.schema import ModelConfig
from llamaswapd.config.unit_words import quote

Settings = Mapping[str, tuple[str, ...]]

# What `podman stop` and `podman rm` take beyond the server's own time, on a machine that is busy.
_CLIENT_S = 10
# docker says it in the model's log if there is no container to remove.
_SILENTLY = quote('exec "$$0" "$$@" >/dev/null 2>&1')


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
        remove = f"-{podman} rm --force --ignore --time=0 {called}"
        return {
            **ends,
            "Delegate": ("yes",),
            "ExecStartPre": (remove,),
            "ExecStop": (f"-{podman} stop --ignore --time={grace_s} {called}",),
            # Twice: where `podman stop` has been killed, the first only finds out that the container has ended.
            "ExecStopPost": (remove, remove),
        }
    docker = quote(find("docker"))
    remove = f"-{quote(find('sh'))} -c {_SILENTLY} {docker} rm --force {called}"
    return {
        **ends,
        "ExecStartPre": (remove,),
        "ExecStop": (f"-{docker} stop -t {grace_s} {called}",),
        "ExecStopPost": (remove,),
    }
