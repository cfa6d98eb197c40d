"""Rules of `podman` and `docker` blocks."""

from __future__ import annotations

import re

from llamaswapd.config.containers import GPU_DEVICES, NVIDIA_GPU, client
from llamaswapd.config.rules import Problems
from llamaswapd.config.schema import Container, ModelConfig

_LAST_PORT = 65535

# What a unit relies on, and why that is no option of a block.
_REASONS = {
    "--name --replace --rm --cidfile --restart": "the unit names and removes the container",
    "--detach -d": "the unit lasts as long as the client does",
    "--cgroups --cgroup-parent --pod": "the container belongs in the unit's cgroup",
    "--log-driver --sdnotify": "the journal keeps the log, the health check says what is ready",
    "--tty -t --interactive -i": "there is no terminal",
}
_OURS = {name: reason for names, reason in _REASONS.items() for name in names.split()}
_SHORT = re.compile(r"-[ditPq]+")  # short options that take no value may be written as one word


def container(model: ModelConfig) -> Problems:
    """Yield what is wrong, paths counted from the model."""
    if model.podman is not None and model.docker is not None:
        yield ("docker",), f"model {model.id} has a podman block as well; keep one of them"
    block = model.container
    if block is not None:
        for key, problem in _block(model, block):
            yield (client(model), *key), problem


def _block(model: ModelConfig, block: Container) -> Problems:
    if not block.image.strip():
        yield ("image",), f"model {model.id} needs an image to run, such as ghcr.io/ggml-org/llama.cpp:server"
    elif block.image.startswith("-") or len(block.image.split()) != 1:
        yield ("image",), f'"{block.image}" is no image; options go to options, words after the image to args'
    if not 0 <= block.port <= _LAST_PORT:
        yield ("port",), f"port must be 1 to {_LAST_PORT}, as the server inside has it; it is {block.port}"
    if block.port and block.network == "host":
        yield ("port",), "with network: host nothing is published; leave port out and use ${PORT} in args"
    for index, volume in enumerate(block.volumes):
        if not all(volume.split(":")[:2]) or ":" not in volume:
            what = f'"{volume}" is not HOST:CONTAINER or HOST:CONTAINER:OPTIONS'
            yield ("volumes", index), f"{what}; write one such as /srv/models:/models:ro"
    yield from _gpus(block)
    yield from _options(block)


def _gpus(block: Container) -> Problems:
    for gpu in block.gpus:
        if gpu not in ("all", "none", *GPU_DEVICES) and not NVIDIA_GPU.fullmatch(gpu):
            what = (
                f'"{gpu}" is neither all, none, {", ".join(GPU_DEVICES)} nor the number or UUID of a GPU of NVIDIA\'s'
            )
            yield ("gpus",), f"{what}; write several as a list: [0, 1]"
    if len(block.gpus) > 1 and (alone := {"all", "none"}.intersection(block.gpus)):
        yield ("gpus",), f'"{min(alone)}" cannot stand beside others; leave those out'


def _options(block: Container) -> Problems:
    for word in block.options:
        names = [f"-{letter}" for letter in word[1:]] if _SHORT.fullmatch(word) else [word.partition("=")[0]]
        for name in names:
            if name in _OURS:
                yield ("options",), f'"{name}" cannot be an option here: {_OURS[name]}; leave it out'
