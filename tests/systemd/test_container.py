"""The unit of a model that is a container."""

from __future__ import annotations

from typing import Any

import pytest

from llamaswapd.config.schema import Container, ModelConfig
from llamaswapd.systemd.container import Settings, name
from llamaswapd.systemd.unit import Host, UnitSpec, build

HOST = Host(version=257, directory="/srv", instance="eve", find=lambda program: f"/usr/bin/{program}")
CALLED = "llamaswapd-eve-model-qwen"


def spec(client: str = "podman", host: Host = HOST, **fields: Any) -> UnitSpec:
    block = Container(image="i", args=("--model", "a b"), port=8000)
    return build(ModelConfig(**{"id": "qwen", "unload_timeout": 7, "port": 5800, client: block, **fields}), host)


@pytest.mark.parametrize(
    ("unit", "container"),
    [
        ("llamaswapd-model-qwen2.5_7b.service", "llamaswapd-model-qwen2.5_7b"),
        (r"llamaswapd-model-org\x2fa.service", "llamaswapd-model-org_x2fa-"),
        ("llamaswapd-model-org:x2fa.service", "llamaswapd-model-org_x2fa-"),
    ],
)
def test_a_container_is_called_as_its_unit_as_far_as_it_can_be(unit: str, container: str) -> None:
    assert name(unit).startswith(container)


def test_different_units_have_containers_of_different_names() -> None:
    units = [r"m-a\x2fb.service", "m-a:x2fb.service", "m-a_x2fb.service"]
    assert len({name(unit) for unit in units}) == 3


def test_the_client_runs_in_the_foreground_by_the_units_name() -> None:
    (command,) = spec().settings["ExecStart"]
    assert command.startswith("/usr/bin/podman --events-backend=none run --cgroups=split ")
    assert f" --name={CALLED} " in command
    assert command.endswith(' i --model "a b"')


def test_podmans_container_is_stopped_by_name_and_removed_however_the_unit_ends() -> None:
    settings = spec().settings
    remove = f"-/usr/bin/podman --events-backend=none rm --force --ignore --time=0 {CALLED}"
    assert settings["ExecStop"] == (f"-/usr/bin/podman --events-backend=none stop --ignore --time=7 {CALLED}",)
    assert settings["ExecStartPre"] == (remove,)
    assert settings["ExecStopPost"] == (remove, remove)
    assert (settings["Delegate"], settings["KillMode"], settings["TimeoutStopSec"]) == (("yes",), ("mixed",), ("17",))


def test_so_is_dockers_which_is_in_no_cgroup_of_the_unit() -> None:
    settings = spec("docker").settings
    remove = f'-/usr/bin/sh -c "exec \\"$$0\\" \\"$$@\\" >/dev/null 2>&1" /usr/bin/docker rm --force {CALLED}'
    assert settings["ExecStop"] == (f"-/usr/bin/docker stop -t 7 {CALLED}",)
    assert settings["ExecStartPre"] == settings["ExecStopPost"] == (remove,)
    assert "Delegate" not in settings


def test_commands_of_the_models_own_come_before_the_removal() -> None:
    settings = spec(systemd={"ExecStopPost": ("/usr/bin/true",), "KillMode": ("control-group",)}).settings
    assert settings["ExecStopPost"][0] == "/usr/bin/true"
    assert len(settings["ExecStopPost"]) == 3
    assert settings["KillMode"] == ("control-group",)


@pytest.mark.parametrize("name", ["--name own", "--name=own"])
def test_what_a_command_of_the_users_own_runs_is_removed_as_well(name: str) -> None:
    settings = own(f"podman run --rm {name} --cgroups=split image")
    remove = "-/usr/bin/podman rm --force --ignore --time=0 own"
    assert (settings["ExecStopPost"], settings["KillMode"]) == ((remove, remove), ("mixed",))
    (remove,) = own(f"docker run --rm {name} image")["ExecStopPost"]
    assert remove.endswith(" /usr/bin/docker rm --force own")


@pytest.mark.parametrize(
    "command",
    [
        "podman run --name own image",  # somebody may want to see it
        "podman run --rm image",
        "podman run --rm image --name",
        "podman run --rm --name 'o;wn' image",
        "podman start --rm --name own",
        "server run --rm --name own",
    ],
)
def test_any_other_command_is_none_of_a_containers(command: str) -> None:
    assert "ExecStopPost" not in own(command)


def own(command: str) -> Settings:
    return build(ModelConfig(id="qwen", cmd=command, port=5800), HOST).settings


def test_a_dollar_reaches_the_container() -> None:
    block = Container(image="i", args=("$HOME",))
    (command,) = spec(podman=block).settings["ExecStart"]
    assert command.startswith(":/usr/bin/podman ")
    assert command.endswith(" i $HOME")


def test_the_environment_is_the_clients_and_passed_by_name() -> None:
    settings = spec(env=("TOKEN=hush",)).settings
    assert settings["Environment"] == ("TOKEN=hush",)
    assert "--env=TOKEN" in settings["ExecStart"][0]
    assert "hush" not in settings["ExecStart"][0]


def test_everything_can_be_said_on_the_bus() -> None:
    for client in ("podman", "docker"):
        assert {key for key, _, _ in spec(client).properties} >= {
            "ExecStartPre",
            "ExecStop",
            "ExecStopPost",
            "KillMode",
        }


def test_no_sandbox_is_around_the_client() -> None:
    packaged = Host(257, "/", defaults={"DynamicUser": ("yes",), "PrivateTmp": ("yes",), "OOMScoreAdjust": ("500",)})
    for client in ("podman", "docker"):
        settings = spec(client, packaged).settings
        assert not {"DynamicUser", "PrivateTmp"} & settings.keys()
        assert settings["OOMScoreAdjust"] == ("500",)
