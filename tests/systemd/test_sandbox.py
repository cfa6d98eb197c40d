"""What models are kept from, and how each takes it back."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from llamaswapd.config.schema import Container, ModelConfig
from llamaswapd.config.settings import check
from llamaswapd.systemd.sandbox import FOR_CLIENTS, LISTS, defaults, packaged
from llamaswapd.systemd.unit import Host, UnitSpec, build

GROUPS = {"llamaswapd-model", "video", "render", "audio"}
HOST = Host(version=257, directory="/", environment={"PATH": "/usr/bin"}, defaults=defaults(GROUPS))
DEFAULTS = sorted(HOST.defaults)


def built(model_id: str = "qwen", cmd: str = "/usr/bin/server", env: tuple[str, ...] = (), **settings: Any) -> UnitSpec:
    own = {name: (values,) if isinstance(values, str) else values for name, values in settings.items()}
    return build(ModelConfig(id=model_id, cmd=cmd, env=env, systemd=own), HOST)


def value_of(spec: UnitSpec, name: str) -> Any:
    [value] = [value for key, _, value in spec.properties if key == name]
    return value


def test_every_default_is_a_setting_that_a_model_might_have_written() -> None:
    assert not [name for name, values in HOST.defaults.items() if name != "CacheDirectory" and check(name, values)]


def test_a_host_without_defaults_locks_nothing_up() -> None:
    spec = build(ModelConfig(id="qwen", cmd="/usr/bin/server"), Host(version=257, directory="/"))
    assert set(spec.settings) & set(DEFAULTS) == {"NotifyAccess"}
    assert spec.settings["NotifyAccess"] == ("all",)


def test_only_groups_that_exist_are_asked_for() -> None:
    assert value_of(built(), "SupplementaryGroups") == ["llamaswapd-model", "video", "render"]
    assert defaults({"video"})["SupplementaryGroups"] == ("video",)
    assert (
        "SupplementaryGroups"
        not in build(ModelConfig(id="x", cmd="/x"), Host(version=257, directory="/", defaults=defaults(()))).settings
    )


def test_the_groups_of_this_machine_can_be_looked_up() -> None:
    assert set(packaged()) == set(DEFAULTS)


def test_a_model_has_a_user_and_a_place_of_its_own() -> None:
    spec = built(env=("A=1",))
    assert value_of(spec, "DynamicUser") is True
    assert value_of(spec, "CacheDirectory") == ["llamaswapd/qwen"]
    assert value_of(spec, "WorkingDirectory") == "/var/cache/llamaswapd/qwen"
    assert value_of(spec, "Environment") == [
        "PATH=/usr/bin", "HOME=/var/cache/llamaswapd/qwen", "XDG_CACHE_HOME=/var/cache/llamaswapd/qwen", "A=1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("model_id", "folder"),
    [
        ("org/qwen 2.5:Q4_K-M", "org+2fqwen+202.5+3aQ4_K-M"), ("..", "+2e."), ("a+b", "a+2bb"), ("100%i", "100+25i"),
        ("é", "+c3+a9"),
    ],
)  # fmt: skip
def test_any_id_makes_one_plain_folder(model_id: str, folder: str) -> None:
    spec = built(model_id)
    assert value_of(spec, "CacheDirectory") == [f"llamaswapd/{folder}"]
    assert value_of(spec, "WorkingDirectory") == f"/var/cache/llamaswapd/{folder}"


def test_long_ids_have_folders_of_their_own() -> None:
    one, other = (value_of(built("x" * 300 + end), "CacheDirectory")[0].split("/")[1] for end in "12")
    assert one != other
    assert len(one) <= 255


# Taken back


@pytest.mark.parametrize("name", sorted(set(DEFAULTS) & LISTS))
def test_an_empty_assignment_takes_a_list_back(name: str) -> None:
    held = [value for key, _, value in built(**{name: ("",)}).properties if key == name]
    assert held in ([], [0])  # 0: no capability at all, which is what an empty list of them means


def test_capabilities_come_back_with_all_but_none() -> None:
    assert value_of(built(), "CapabilityBoundingSet") == 0
    assert value_of(built(CapabilityBoundingSet="~"), "CapabilityBoundingSet") == (1 << 63) - 1
    assert value_of(built(CapabilityBoundingSet="CAP_CHOWN"), "CapabilityBoundingSet") == 1


def test_a_list_of_the_model_is_added_to_ours() -> None:
    spec = built(InaccessiblePaths="/srv/secret", SupplementaryGroups="audio", SystemCallFilter="@mount")
    assert value_of(spec, "InaccessiblePaths")[0] == "-/etc/llamaswapd"
    assert value_of(spec, "InaccessiblePaths")[-1] == "/srv/secret"
    assert value_of(spec, "SupplementaryGroups") == ["llamaswapd-model", "video", "render", "audio"]
    assert [value for name, _, value in spec.properties if name == "SystemCallFilter"] == [
        [True, ["@system-service", "pidfd_getfd"]], [False, ["@privileged"]], [True, ["@mount"]],
    ]  # fmt: skip


def test_behind_an_empty_assignment_only_the_models_own_holds() -> None:
    assert value_of(built(SupplementaryGroups=("", "audio")), "SupplementaryGroups") == ["audio"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("ProtectHome", "no"), ("ProtectSystem", "full"), ("PrivateTmp", "no"), ("RestrictNamespaces", "no"),
     ("DeviceAllow", "char-nvidia* rw"),
     ("LimitCORE", "infinity"), ("OOMScoreAdjust", "0"), ("UMask", "0022"), ("WorkingDirectory", "/srv")],
)  # fmt: skip
def test_a_single_value_is_replaced(name: str, value: str) -> None:
    assert built(**{name: value}).settings[name] == (value,)


def test_a_model_with_a_user_is_not_given_one_but_stays_locked_up() -> None:
    spec = built(User="alice")
    assert set(DEFAULTS) - set(spec.settings) == {"DynamicUser"}
    assert value_of(spec, "WorkingDirectory") == "/var/cache/llamaswapd/qwen"
    assert value_of(built(User="alice", DynamicUser="yes"), "DynamicUser") is True
    assert value_of(built(User=("alice", "")), "DynamicUser") is True, "a user that was taken back is none"


def test_a_model_that_says_when_it_is_ready_may_have_a_child_say_so() -> None:
    assert built().settings["NotifyAccess"] == ("exec",)
    assert built(Type="notify").settings["NotifyAccess"] == ("all",)


def test_without_our_cache_nothing_points_to_it() -> None:
    spec = built(CacheDirectory=("", "mine"))
    assert value_of(spec, "CacheDirectory") == ["mine"]
    assert value_of(spec, "WorkingDirectory") == "/"
    assert value_of(spec, "Environment") == ["PATH=/usr/bin"]


def test_an_environment_of_the_model_wins() -> None:
    entries = value_of(built(env=("HOME=/srv",), Environment="XDG_CACHE_HOME=/x"), "Environment")
    assert {"HOME=/srv", "XDG_CACHE_HOME=/x"} <= set(entries)


@pytest.mark.parametrize("cmd", ["podman run x", "/usr/bin/docker run x", "nerdctl run x"])
def test_a_client_of_a_container_engine_is_not_locked_up(cmd: str) -> None:
    assert set(built(cmd=cmd).settings) & set(DEFAULTS) == {"NotifyAccess"} | FOR_CLIENTS


def test_a_container_is_locked_up_by_its_engine_alone() -> None:
    model = ModelConfig(id="qwen", podman=Container(image="llama.cpp"))
    assert set(build(model, HOST).settings) & set(DEFAULTS) == {"NotifyAccess"} | FOR_CLIENTS


# The environment in a file

FILES = Host(version=257, directory="/", environment={"PATH": "/usr/bin"}, environment_file="/run/env")


def test_the_environment_is_in_a_file_and_not_in_the_unit() -> None:
    spec = build(ModelConfig(id="qwen", cmd="/x", env=("KEY=a b",), systemd={"Environment": ("B=1",)}), FILES)
    assert "Environment" not in spec.settings
    assert value_of(spec, "EnvironmentFiles") == [["/run/env/llamaswapd-model-qwen.service", False]]
    assert spec.environment_file == 'PATH="/usr/bin"\nKEY="a b"\nB="1"\n'
    assert "a b" not in repr(spec.properties)


def test_the_file_is_found_by_a_pattern_in_which_a_backslash_stands_for_itself() -> None:
    spec = build(ModelConfig(id="a/b", cmd="/x"), FILES)
    assert value_of(spec, "EnvironmentFiles") == [[r"/run/env/llamaswapd-model-a\\x2fb.service", False]]


def test_files_of_the_model_come_behind_ours_and_cannot_take_it_away() -> None:
    spec = build(ModelConfig(id="qwen", cmd="/x", systemd={"EnvironmentFile": ("/a", "", "-/b")}), FILES)
    assert [path for path, _ in value_of(spec, "EnvironmentFiles")] == ["/run/env/llamaswapd-model-qwen.service", "/b"]


def test_a_file_reads_as_the_shell_would_read_it() -> None:
    value = "a\"b\\c`d$e %f\tg'h"
    text = build(ModelConfig(id="qwen", cmd="/x", env=(f"KEY={value}",)), FILES).environment_file
    # In a shell $ and ` would be expanded without their backslashes, which shlex leaves where they are.
    assert shlex.split(text.splitlines()[1])[0].replace("\\$", "$").replace("\\`", "`") == f"KEY={value}"


def test_without_an_environment_there_is_no_file() -> None:
    spec = build(ModelConfig(id="qwen", cmd="/x"), Host(version=257, directory="/", environment_file="/run/env"))
    assert (spec.environment_file, "EnvironmentFile" in spec.settings) == ("", False)
