"""A model's unit: name, settings, fingerprint, print."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaswapd.config.schema import ModelConfig
from llamaswapd.errors import UsageError
from llamaswapd.systemd.unit import (
    UNLIMITED_GRACE_S,
    Host,
    UnitSpec,
    build,
    check_instance,
    grace_s,
    identity,
    model_id_of,
    object_path,
    oddities,
    pattern,
    slice_name,
    to_unit_file,
    unit_name,
    unusable_environment,
)

# The surrogates have no UTF-8 and cannot come out of a YAML file.
IDS = st.text(st.characters(blacklist_categories=["Cs"]), max_size=120)
HOST = Host(version=252, directory="/srv")


def model(**fields: Any) -> ModelConfig:
    return ModelConfig(**{"id": "qwen", "cmd": "/usr/bin/server --port 5800", "unload_timeout": 10, **fields})


def value_of(spec: UnitSpec, name: str) -> Any:
    [value] = [value for key, _, value in spec.properties if key == name]
    return value


# Names


@pytest.mark.parametrize(
    ("model_id", "name"),
    [
        ("qwen2.5-7b", "llamaswapd-model-qwen2.5-7b.service"),
        ("qwen:7b_Q4", "llamaswapd-model-qwen:7b_Q4.service"),
        ("org/model", r"llamaswapd-model-org\x2fmodel.service"),
        ("a b@c", r"llamaswapd-model-a\x20b\x40c.service"),
        ("ünï", r"llamaswapd-model-\xc3\xbcn\xc3\xaf.service"),
        (".hidden", r"llamaswapd-model-\x2ehidden.service"),
        ("back\\slash", r"llamaswapd-model-back\x5cslash.service"),
    ],
)
def test_a_unit_is_named_after_its_model(model_id: str, name: str) -> None:
    assert unit_name(model_id) == name
    assert model_id_of(name) == model_id


@given(IDS, st.sampled_from(["", "second"]))
def test_a_unit_name_is_legal_and_stands_for_its_model(model_id: str, instance: str) -> None:
    name = unit_name(model_id, instance)
    assert re.fullmatch(r"[A-Za-z0-9:_.\\-]{1,199}", name)
    assert model_id_of(name, instance) in (model_id, None)
    if len(name) < 199 - 4:
        assert model_id_of(name, instance) == model_id


@given(st.sampled_from(["x", "/", "é", "\\"]), st.integers(1, 400), st.integers(1, 400))
def test_distinct_ids_have_distinct_names_however_long(char: str, one: int, other: int) -> None:
    assert (unit_name(char * one) == unit_name(char * other)) == (one == other)


def test_a_long_id_is_cut_between_escapes_and_has_a_hash() -> None:
    name = unit_name("/" * 100)
    assert len(name) <= 199
    assert re.fullmatch(r"llamaswapd-model-(\\x2f)+\\x2d[0-9a-f]{16}\.service", name)
    assert model_id_of(name) is None


def test_a_shortened_name_is_no_other_models_name() -> None:
    shortened = unit_name("x" * 300)
    looks_like_it = shortened.removeprefix("llamaswapd-model-").removesuffix(".service").replace(r"\x2d", "-")
    assert unit_name(looks_like_it) != shortened


@pytest.mark.parametrize("name", ["ssh.service", "llamaswapd-model-x.scope", "llamaswapd-second-model-x.service",
                                  r"llamaswapd-model-\x61.service", r"llamaswapd-model-\xff.service"])  # fmt: skip
def test_a_name_that_is_not_ours_stands_for_no_model(name: str) -> None:
    assert model_id_of(name) is None


@pytest.mark.skipif(not shutil.which("systemd-escape"), reason="needs systemd-escape to compare with")
def test_names_are_escaped_as_systemd_does_but_for_dashes_and_slashes() -> None:
    ids = [".x", "a b", "qwen:7b", "ü", "a@b", "a\\b", "%h", "x.y_z", "a\tb", "a" * 50 + "!"]
    output = subprocess.run(["systemd-escape", "--", *ids], capture_output=True, text=True, check=True).stdout
    assert [unit_name(model_id) for model_id in ids] == [f"llamaswapd-model-{x}.service" for x in output.split()]


def test_an_instance_has_names_of_its_own() -> None:
    assert unit_name("x", "second") == "llamaswapd-second-model-x.service"
    assert model_id_of("llamaswapd-second-model-x.service", "second") == "x"
    assert (slice_name(), slice_name("second")) == ("llamaswapd-models.slice", "llamaswapd-second-models.slice")
    assert (pattern(), pattern("second")) == ("llamaswapd-model-*.service", "llamaswapd-second-model-*.service")


@pytest.mark.parametrize("name", ["", "model", "models", "Second", "a-b", "a" * 33, "ü"])
def test_an_instance_name_that_could_be_mistaken_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f'instance "{name}"'):
        check_instance(name)


def test_a_plain_instance_name_is_taken() -> None:
    check_instance("gpu_2")


def test_the_object_path_escapes_everything_but_letters_and_digits() -> None:
    assert object_path(r"a-1.service") == "/org/freedesktop/systemd1/unit/a_2d1_2eservice"
    assert object_path("1x_y") == "/org/freedesktop/systemd1/unit/_31x_5fy"


# The settings that the daemon needs


NEW_HOST = dataclasses.replace(HOST, version=257)


def test_the_command_runs_as_written_without_expansion() -> None:
    spec = build(
        model(cmd="sh -c 'echo $HOME; echo \"100%\"'"), dataclasses.replace(NEW_HOST, find=lambda name: f"/bin/{name}")
    )
    script = 'echo $HOME; echo "100%"'
    assert value_of(spec, "ExecStartEx") == [["/bin/sh", ["/bin/sh", "-c", script], ["no-env-expand"]]]


def test_a_systemd_that_could_not_read_the_unit_again_is_told_so_by_doubled_dollars() -> None:
    assert value_of(build(model(cmd="/bin/x $A $$"), HOST), "ExecStart") == [
        ["/bin/x", ["/bin/x", "$$A", "$$$$"], False]
    ]


@pytest.mark.parametrize("host", [HOST, NEW_HOST])
def test_a_command_without_dollars_needs_no_more_than_systemd_has_always_known(host: Host) -> None:
    assert value_of(build(model(cmd="/bin/x a"), host), "ExecStart") == [["/bin/x", ["/bin/x", "a"], False]]


def test_every_argument_reaches_the_bus_unchanged() -> None:
    spec = build(model(cmd=r'''/bin/x "" "a;b" ";" 'it"s' $A ${B} %n "\\" ü "two
lines"'''), NEW_HOST)  # fmt: skip
    [[_, argv, _]] = value_of(spec, "ExecStartEx")
    assert argv[1:] == ["", "a;b", ";", 'it"s', "$A", "${B}", "%n", "\\", "ü", "two\nlines"]


def test_cmd_stop_gets_the_main_process_and_is_followed_by_a_wait_for_its_end() -> None:
    spec = build(model(cmd_stop="/bin/stop --pid ${PID} $HOME $$"), HOST)
    stop, wait = value_of(spec, "ExecStop")
    assert stop == ["/bin/stop", ["/bin/stop", "--pid", "${MAINPID}", "$$HOME", "$$$$"], True]
    assert wait[1][:2] == ["tail", "--pid=${MAINPID}"]
    assert value_of(spec, "TimeoutStopFailureMode") == "kill"


@pytest.mark.parametrize("cmd_stop", ["", "  ", "# only a comment"])
def test_without_a_usable_cmd_stop_systemd_sends_sigterm(cmd_stop: str) -> None:
    names = [name for name, _, _ in build(model(cmd_stop=cmd_stop), HOST).properties]
    assert "ExecStop" not in names
    assert "TimeoutStopFailureMode" not in names


def test_the_environment_is_the_inherited_and_the_models_own_where_the_last_of_a_name_counts() -> None:
    spec = build(
        model(env=("A=first", "B=two words 100%", "A=own")),
        dataclasses.replace(HOST, environment={"PATH": "/bin", "A": "inherited"}),
    )
    assert value_of(spec, "Environment") == ["A=own", "PATH=/bin", "B=two words 100%"]


def test_what_is_no_assignment_is_left_out_of_the_environment_and_named() -> None:
    odd = model(env=("A=1", "NOTHING", "1=2", "a.b=c"))
    assert value_of(build(odd, HOST), "Environment") == ["A=1"]
    assert unusable_environment(odd) == ["***", "1", "a.b"]
    assert [text.split()[1] for text in oddities(build(odd, HOST), odd, HOST)] == ["***", "1", "a.b"]


def test_what_belongs_to_the_daemons_own_unit_is_not_inherited() -> None:
    inherited = {"NOTIFY_SOCKET": "/run/x", "LISTEN_FDS": "1", "INVOCATION_ID": "0", "HOME": "/root"}
    assert value_of(build(model(), dataclasses.replace(HOST, environment=inherited)), "Environment") == ["HOME=/root"]


def test_what_systemd_would_refuse_is_not_inherited() -> None:
    inherited = {"BASH_FUNC_x%%": "() { :; }", "ESC": "\x1b[0m", "BROKEN": "\udcff", "TABBED": "a\tb\nc"}
    assert value_of(build(model(), dataclasses.replace(HOST, environment=inherited)), "Environment") == [
        "TABBED=a\tb\nc"
    ]


def test_the_journal_fields_say_whose_lines_these_are() -> None:
    qwen = model(id='a/b "c" %d\n', fingerprint="0123456789abcdef")
    fields = value_of(build(qwen, dataclasses.replace(HOST, instance="second")), "LogExtraFields")
    assert fields == [
        b'LLAMASWAP_MODEL=a/b "c" %d\n',
        b"LLAMASWAP_INSTANCE=second",
        b"LLAMASWAP_FINGERPRINT=0123456789abcdef",
    ]


def test_the_journal_fields_say_what_a_later_daemon_has_to_know() -> None:
    fields = value_of(build(model(port=5801, ttl=300), HOST), "LogExtraFields")
    assert fields[-2:] == [b"LLAMASWAP_PORT=5801", b"LLAMASWAP_TTL=300"]


@pytest.mark.parametrize("ttl", [0, -1])
def test_without_a_ttl_there_is_no_field_for_it(ttl: int) -> None:
    fields = value_of(build(model(ttl=ttl), HOST), "LogExtraFields")
    assert not [field for field in fields if field.startswith((b"LLAMASWAP_TTL", b"LLAMASWAP_PORT"))]


def test_description_and_identifier_are_printable() -> None:
    spec = build(model(id="a%\n\x1b\\"), HOST)
    assert value_of(spec, "Description") == "llama-swap model a%___"
    assert value_of(spec, "SyslogIdentifier") == "a%___"


def test_the_identifier_tells_the_instances_of_a_model_apart() -> None:
    assert value_of(build(model(), HOST), "SyslogIdentifier") == "qwen"
    assert value_of(build(model(), dataclasses.replace(HOST, instance="lab")), "SyslogIdentifier") == "qwen@lab"


def test_times_are_those_of_the_model() -> None:
    spec = build(model(unload_timeout=7, health_check_timeout=60), HOST)
    assert value_of(spec, "TimeoutStopUSec") == 7_000_000
    assert value_of(spec, "TimeoutStartUSec") == 60_000_000


def test_the_name_of_an_ended_unit_is_free_again() -> None:
    assert value_of(build(model(), HOST), "CollectMode") == "inactive-or-failed"


# The model's own settings


def test_a_setting_of_the_model_replaces_that_of_the_daemon() -> None:
    spec = build(model(systemd={"Slice": ("gpu.slice",), "MemoryMax": ("24G",)}), HOST)
    assert value_of(spec, "Slice") == "gpu.slice"
    assert value_of(spec, "MemoryMax") == 24 << 30


def test_an_environment_of_the_model_is_added() -> None:
    spec = build(model(env=("A=1",), systemd={"Environment": ("B=2", '"C=3 4"')}), HOST)
    assert value_of(spec, "Environment") == ["A=1", "B=2", "C=3 4"]


@pytest.mark.parametrize(
    ("assignments", "merged"), [(("A=2",), ["A=2"]), (("", "B=2"), ["B=2"]), (("B=1 B=2",), ["A=1", "B=2"])]
)
def test_the_environment_of_the_block_wins_over_that_of_env(assignments: tuple[str, ...], merged: list[str]) -> None:
    assert value_of(build(model(env=("A=1",), systemd={"Environment": assignments}), HOST), "Environment") == merged


def test_journal_fields_of_the_model_do_not_displace_its_identity() -> None:
    fields = value_of(build(model(systemd={"LogExtraFields": ("", "TEAM=ml")}), HOST), "LogExtraFields")
    assert [field.partition(b"=")[0] for field in fields] == [
        b"TEAM", b"LLAMASWAP_MODEL", b"LLAMASWAP_INSTANCE", b"LLAMASWAP_FINGERPRINT",
    ]  # fmt: skip


def test_a_setting_that_systemd_does_not_know_yet_is_left_out() -> None:
    newer = model(systemd={"PrivateTmp": ("disconnected",), "MemoryZSwapMax": ("1G",), "PrivateIPC": ("yes",)})
    spec = build(newer, HOST)
    assert spec.left_out == ("PrivateTmp", "MemoryZSwapMax")
    assert "PrivateIPC" in spec.settings
    assert oddities(spec, newer, HOST)[0] == f"systemd {HOST.version} does not know PrivateTmp=, left out"
    assert build(newer, dataclasses.replace(HOST, version=257)).left_out == ()


# Read back


def test_a_unit_says_who_it_is_by_what_was_put_into_it() -> None:
    spec = build(model(port=5800, ttl=60, systemd={"LogExtraFields": ("LLAMASWAP_MODEL=another", "OWN=a=b")}), HOST)
    said = identity({"LogExtraFields": value_of(spec, "LogExtraFields")})
    expected = {"LLAMASWAP_MODEL": "qwen", "LLAMASWAP_PORT": "5800", "LLAMASWAP_TTL": "60", "OWN": "a=b"}
    assert said.items() >= expected.items()


def test_a_unit_of_somebody_else_says_nothing() -> None:
    assert identity({}) == identity({"LogExtraFields": []}) == {}


@pytest.mark.parametrize(("limit_usec", "limit_s"), [(1_500_000, 1.5), (2**64 - 1, UNLIMITED_GRACE_S)])
def test_a_stop_takes_no_longer_than_systemd_allows_or_than_is_usual(limit_usec: int, limit_s: float) -> None:
    assert grace_s({"TimeoutStopUSec": limit_usec}) == limit_s


# In print


def test_a_unit_is_printed_in_sections_with_one_assignment_a_line() -> None:
    spec = build(model(env=("A=b c",), cmd="/bin/sh -c 'echo $X 100%'", systemd={"MemoryMax": ("24G",)}), HOST)
    lines = to_unit_file(spec).splitlines()
    assert lines[:3] == ["# llamaswapd-model-qwen.service", "[Unit]", "Description=llama-swap model qwen"]
    service = lines[lines.index("[Service]") :]
    assert 'ExecStart=/bin/sh -c "echo $$X 100%%"' in service
    assert {'Environment="A=b c"', "MemoryMax=24G", "LogExtraFields=LLAMASWAP_MODEL=qwen"} <= set(service)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
@pytest.mark.parametrize("manager", ["--user", "--system"])
def test_systemd_finds_nothing_wrong_with_a_printed_unit(manager: str, tmp_path: Path) -> None:
    demanding = model(
        id='org/a "b" 50%',
        cmd="sh -c 'echo $HOME; sleep 9%' ';' \"two\nlines\" ünï \\\\",
        cmd_stop="kill -TERM ${PID} $x",
        env=("A=b c", 'Q="%h"'),
        systemd={
            "MemoryMax": ("24G",), "CPUQuota": ("150%",), "DeviceAllow": ("char-nvidia* rw", "/dev/kfd"),
            "ExecStartPre": ("-/bin/true a", "/bin/true 'b c'"), "LimitNOFILE": ("1024:4096",), "Nice": ("5",),
            "SystemCallFilter": ("@system-service", "~@privileged"), "BindReadOnlyPaths": ("/usr:/srv",),
        },
    )  # fmt: skip
    spec = build(demanding, dataclasses.replace(HOST, find=lambda name: shutil.which(name) or name))
    file = tmp_path / "llamaswapd-model-x.service"
    file.write_text(to_unit_file(spec))
    command = ["systemd-analyze", "verify", manager, "--man=no", str(file)]
    environment = {"XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "Failed to initialize manager" in result.stderr:
        pytest.skip(f"systemd-analyze cannot verify here: {result.stderr}")
    ours = [line for line in result.stderr.splitlines() if file.name in line]
    assert (ours, result.returncode) == ([], 0)
