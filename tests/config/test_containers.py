"""Models that are containers: what their blocks mean, and what is refused."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import pytest

from llamaswapd.config.schema import ModelConfig

if TYPE_CHECKING:
    from conftest import Complain, Load


def model(load_text: Load, block: str, client: str = "podman", **others: str) -> ModelConfig:
    """Return the model m, which is a container with this block and has these other keys."""
    lines = [f"    {key}: {value}" for key, value in others.items()]
    return load_text("\n".join(["models:", "  m:", f"    {client}: {{image: i, {block}}}", *lines])).config.models["m"]


def words(found: ModelConfig) -> list[str]:
    return shlex.split(found.cmd)


# ---- the command line


def test_a_block_is_a_command_line_with_what_keeps_the_container_in_the_unit(load_text: Load) -> None:
    found = model(load_text, "args: '--port ${PORT} --model /models/x.gguf', volumes: [/srv/models:/models:ro]")
    assert words(found) == [
        "podman", "--events-backend=none", "run", "--cgroups=split", "--log-driver=none", "--sdnotify=ignore", "--rm",
        "--security-opt=no-new-privileges", "--network=host", "--volume=/srv/models:/models:ro",
        "i", "--port", "5800", "--model", "/models/x.gguf",
    ]  # fmt: skip
    assert found.port == 5800


def test_docker_takes_the_same_block(load_text: Load) -> None:
    assert words(model(load_text, "args: '--port ${PORT}'", "docker")) == [
        "docker", "run", "--log-driver=none", "--rm", "--security-opt=no-new-privileges", "--network=host",
        "i", "--port", "5800",
    ]  # fmt: skip


def test_words_are_a_text_with_quotes_and_comments_or_a_list(load_text: Load) -> None:
    text = "\"--a 'b c'\\n# --not ${this}\\n--d\""
    assert words(model(load_text, f"args: {text}", proxy="http://h"))[-4:] == ["i", "--a", "b c", "--d"]
    assert words(model(load_text, "args: [--a, b c, 7]", proxy="http://h"))[-4:] == ["i", "--a", "b c", "7"]


def test_a_port_inside_is_published_on_one_of_ours_for_this_machine(load_text: Load) -> None:
    found = model(load_text, "port: 8000")
    assert "--publish=127.0.0.1:5800:8000" in words(found)
    assert not any(word.startswith("--network") for word in words(found))
    assert found.names_port(5800)


@pytest.mark.parametrize(("key", "value"), [("network", "ai_stack"), ("pull", "always")])
def test_what_goes_to_the_client_as_it_is(load_text: Load, key: str, value: str) -> None:
    assert f"--{key}={value}" in words(model(load_text, f"port: 80, {key}: {value}"))


def test_options_stand_before_the_image(load_text: Load) -> None:
    assert words(model(load_text, "port: 80, options: --shm-size=16g --ipc=host"))[-3:] == [
        "--shm-size=16g", "--ipc=host", "i",
    ]  # fmt: skip


def test_of_the_environment_only_names_are_in_the_command(load_text: Load) -> None:
    found = model(load_text, "port: 80", env="[HF_TOKEN=hush, HF_TOKEN=hush2, A=1]")
    assert [word for word in words(found) if word.startswith("--env")] == ["--env=HF_TOKEN", "--env=A"]
    assert "hush" not in found.cmd


@pytest.mark.parametrize(
    ("gpus", "podman", "docker"),
    [
        ("all", ["--device=nvidia.com/gpu=all"], ["--gpus=all"]),
        ("none", [], []),
        ("0", ["--device=nvidia.com/gpu=0"], ['--gpus="device=0"']),
        (
            "[0, GPU-1a2b]",
            ["--device=nvidia.com/gpu=0", "--device=nvidia.com/gpu=GPU-1a2b"],
            ['--gpus="device=0,GPU-1a2b"'],
        ),
        (
            "amd",
            ["--group-add=keep-groups", "--device=/dev/kfd", "--device=/dev/dri"],
            ["--group-add=video", "--device=/dev/kfd", "--device=/dev/dri"],
        ),
        ("intel", ["--group-add=keep-groups", "--device=/dev/dri"], ["--group-add=video", "--device=/dev/dri"]),
    ],
)
def test_gpus_are_said_in_each_clients_way(load_text: Load, gpus: str, podman: list[str], docker: list[str]) -> None:
    for client, expected in (("podman", podman), ("docker", docker)):
        found = words(model(load_text, f"port: 80, gpus: {gpus}", client))
        assert [word for word in found if word.startswith(("--device", "--gpus", "--group"))] == expected


def test_docker_is_told_the_limits_of_the_unit_in_which_its_containers_are_not(load_text: Load) -> None:
    limits = "{MemoryMax: 1.5G, CPUQuota: 150%, TasksMax: 300}"
    told = ["--memory=1610612736", "--cpus=1.5", "--pids-limit=300"]
    assert [word for word in words(model(load_text, "port: 80", "docker", systemd=limits)) if word in told] == told
    assert not set(told) & set(words(model(load_text, "port: 80", systemd=limits)))
    without = "{MemoryMax: 50%, CPUQuota: '', TasksMax: infinity}"
    shares = words(model(load_text, "port: 80", "docker", systemd=without))
    assert not [word for word in shares if word.startswith(("--memory", "--cpus", "--pids"))]


# ---- ports and macros


@pytest.mark.parametrize("others", [{}, {"env": '["OLLAMA_HOST=127.0.0.1:${PORT}"]'}])
def test_a_port_is_allocated_where_the_container_is_told_of_it(load_text: Load, others: dict[str, str]) -> None:
    block = "args: serve" if others else 'options: ["--env=PORT=${PORT}"]'
    assert model(load_text, block, **others).port == 5800


def test_macros_work_in_all_of_the_block(load_text: Load) -> None:
    text = """
macros: {models: /srv/models, tag: v1, gpu: 3}
models:
  m/x:
    podman: {image: "r/i:${tag}", args: ["${MODEL_ID}"], port: 80, volumes: ["${models}:/m"], gpus: ["${gpu}"]}
"""
    found = shlex.split(load_text(text).config.models["m/x"].cmd)
    assert {"r/i:v1", "m/x", "--volume=/srv/models:/m", "--device=nvidia.com/gpu=3"} <= set(found)


def test_a_container_without_a_port_needs_one_or_a_proxy(complaints: Complain, load_text: Load) -> None:
    (found,) = complaints("models: {m: {podman: {image: i}}}")
    assert "give the container a port, use ${PORT} in its args or in env, or set proxy" in found
    assert model(load_text, "args: x", proxy="http://127.0.0.1:9000").port is None


# ---- beside llama-swap


def test_cmd_and_cmd_stop_beside_a_block_are_for_llama_swap(load_text: Load) -> None:
    found = model(load_text, "args: '--port ${PORT}'", cmd="llama-server --port ${PORT}", cmdStop="docker stop m")
    assert words(found)[0] == "podman"
    assert found.cmd_stop == ""


def test_the_fingerprint_covers_the_block(load_text: Load) -> None:
    first, same, other = (model(load_text, f"port: 80, args: {args}") for args in ("a", "[a]", "b"))
    assert first.fingerprint == same.fingerprint != other.fingerprint


# ---- what is refused


@pytest.mark.parametrize(
    ("block", "where", "what"),
    [
        ("podman: {args: a, port: 1}", "models.m.podman.image", "needs an image to run"),
        ("podman: {image: --privileged, port: 1}", "models.m.podman.image", "is no image; options go to options"),
        ("podman: {image: i --port 1, port: 1}", "models.m.podman.image", "is no image; options go to options"),
        ("podman: {image: i, port: 65536}", "models.m.podman.port", "port must be 1 to 65535"),
        ("podman: {image: i, port: 1, network: host}", "models.m.podman.port", "nothing is published"),
        ("docker: {image: i, port: 1, volumes: [/srv]}", "models.m.docker.volumes[0]", '"/srv" is not HOST:CONTAINER'),
        ("docker: {image: i, port: 1, volumes: [a:b, ':/b']}", "models.m.docker.volumes[1]", "is not HOST:CONTAINER"),
        ("docker: {image: i, port: 1, gpus: '0,1'}", "models.m.docker.gpus", "write several as a list: [0, 1]"),
        ("docker: {image: i, port: 1, gpus: [all, 0]}", "models.m.docker.gpus", '"all" cannot stand beside others'),
        ("docker: {image: i, port: 1, pull: later}", "models.m.docker.pull", "must be one of: missing, always, never"),
        ("docker: {image: i, port: 1, options: --name x}", "models.m.docker.options", "the unit names and removes"),
        ("docker: {image: i, port: 1, options: --name=x}", "models.m.docker.options", '"--name" cannot be an option'),
        ("docker: {image: i, port: 1, options: -itd}", "models.m.docker.options", '"-d" cannot be an option here'),
        ("podman: {image: i, port: 1, options: [--cgroups=enabled]}", "models.m.podman.options", "the unit's cgroup"),
        ("podman: {image: i, port: 1}, docker: {image: i, port: 1}", "models.m.docker", "keep one of them"),
        ("podman: {image: [i], port: 1}", "models.m.podman.image", "write one text"),
    ],
)
def test_what_cannot_work_is_refused_with_the_remedy(complaints: Complain, block: str, where: str, what: str) -> None:
    found = complaints(f"models: {{m: {{{block}}}}}")
    assert any(f": {where}: " in each and what in each for each in found), found


def test_a_misspelt_key_is_named(load_text: Load) -> None:
    (warning,) = load_text("models: {m: {podman: {image: i, port: 1, volume: [a:b]}}}").warnings
    assert 'did you mean "volumes"?' in warning.message


def test_an_empty_block_is_none(load_text: Load) -> None:
    assert load_text("models: {m: {cmd: a, proxy: http://h, podman: }}").config.models["m"].cmd == "a"
