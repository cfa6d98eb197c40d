"""The command line that a model's `podman` or `docker` block stands for. Pure.

What only the unit knows, the container's name above all, is `systemd.container`'s part.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence

from llamaswapd.config.schema import Container, ModelConfig
from llamaswapd.config.settings import properties
from llamaswapd.config.unit_values import INFINITY, is_assignment

# NVIDIA's GPUs as its tools count and name them; those of others are given as a whole.
NVIDIA_GPU = re.compile(r"[0-9]+(:[0-9]+)?|(GPU|MIG)-[0-9A-Za-z/-]+")
GPU_DEVICES = {"amd": ("/dev/kfd", "/dev/dri"), "intel": ("/dev/dri",)}


def client(model: ModelConfig) -> str:
    """Return the program that runs the model's container."""
    return "podman" if model.podman is not None else "docker"


def shown(model: ModelConfig) -> str:
    """Return the command line as it is shown, `cmd` of a model with a container."""
    return shlex.join(words(model))


def words(model: ModelConfig, further: Sequence[str] = ()) -> list[str]:
    """Return the command that runs the model's container in the foreground, with `further` options; [] without one.

    The environment is passed by name, so that no value shows in `ps`: the client finds it in its own.
    """
    block = model.container
    if block is None:
        return []
    own = _podman(block) if model.podman is not None else _docker(model, block)
    return [*own, *further, *_common(model, block), *block.options, block.image, *block.args]


def _podman(block: Container) -> Iterator[str]:
    # What happens to the container stands in the journal already, and would push the model's last lines out of sight.
    yield from ("podman", "--events-backend=none", "run")
    # The container and its monitor stay in the unit's cgroup: what limits, freezes or kills the unit reaches them.
    yield "--cgroups=split"
    # The server's lines come through the client. conmon would write them to the journal once more.
    yield "--log-driver=none"
    # conmon would say it is the main process, and a container that runs is no model that has loaded.
    yield "--sdnotify=ignore"
    yield from (f"--device=nvidia.com/gpu={name}" for name in nvidia_gpus(block))  # by CDI
    if "amd" in block.gpus or "intel" in block.gpus:
        yield "--group-add=keep-groups"  # of a user who may use the devices; podman-run(1)


def _docker(model: ModelConfig, block: Container) -> Iterator[str]:
    yield from ("docker", "run")
    yield "--log-driver=none"
    if nvidia := nvidia_gpus(block):
        yield "--gpus=all" if nvidia == ["all"] else f'--gpus="device={",".join(nvidia)}"'
    if "amd" in block.gpus or "intel" in block.gpus:
        yield "--group-add=video"
    yield from _limits(model.systemd)


def _common(model: ModelConfig, block: Container) -> Iterator[str]:
    yield "--rm"
    if block.pull != "missing":
        yield f"--pull={block.pull}"
    yield "--security-opt=no-new-privileges"
    if block.network or not block.port:
        yield f"--network={block.network or 'host'}"
    if block.port:
        yield f"--publish=127.0.0.1:{model.port}:{block.port}"
    yield from (f"--volume={volume}" for volume in block.volumes)
    devices = [device for gpu, devices in GPU_DEVICES.items() if gpu in block.gpus for device in devices]
    yield from (f"--device={device}" for device in dict.fromkeys(devices))
    yield from (f"--env={name}" for name in dict.fromkeys(e.partition("=")[0] for e in model.env if is_assignment(e)))


def nvidia_gpus(block: Container) -> list[str]:
    """Return which of NVIDIA's GPUs a container gets: their numbers or ids, or `all`."""
    return [gpu for gpu in block.gpus if gpu == "all" or NVIDIA_GPU.fullmatch(gpu)]


def _limits(settings: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """Yield the unit's limits as options of docker, whose containers are in no unit of ours."""
    for name, option in _LIMITS.items():
        if name in settings:
            yield from (option(value) for key, _, value in properties(name, settings[name]) if _is_limit(key, value))


def _is_limit(key: str, value: object) -> bool:
    """Whether docker can be told: not a share of the machine (a property of its own), not "no limit"."""
    return not key.endswith("Scale") and value != INFINITY


_LIMITS: Mapping[str, Callable[..., str]] = {
    "MemoryMax": lambda size_bytes: f"--memory={size_bytes}",
    "CPUQuota": lambda usec_per_s: f"--cpus={usec_per_s / 1e6:g}",
    "TasksMax": lambda count: f"--pids-limit={count}",
}
