"""The program with the system manager of a machine that was booted with systemd. Runs in a bed, as root.

One daemon, a service of its own, for most checks; those that end a daemon have one started by hand, of another
instance.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from inside_daemon import (
    INSTANT,
    SERVER,
    TREE,
    Client,
    by_hand,
    command,
    environment_of,
    error_message,
    eventually,
    log_of,
    main_pid,
    output,
    processes,
    show,
    systemd_version,
    units,
)

CONFIG = Path("/etc/llamaswapd.yaml")
PORT, OTHER_PORT = 8080, 8081
UNIT = "llamaswapd.service"
DROP_INS = Path("/etc/systemd/system/llamaswapd-model-.service.d")

MODELS = f"""
unloadTimeout: 10
healthCheckTimeout: 15
models:
  red: {{cmd: "{SERVER} ${{PORT}}"}}
  blue: {{cmd: "{SERVER} ${{PORT}}"}}
  instant: {{cmd: "{INSTANT} ${{PORT}}"}}
  "org/qwen 2.5:Q4_K-M é": {{cmd: "{SERVER} ${{PORT}}"}}
  notifying: {{cmd: "{SERVER} ${{PORT}} --notify --ready-after 0.2"}}
  forking: {{cmd: "{SERVER} ${{PORT}} --fork", unloadTimeout: 1}}
  deaf: {{cmd: "{SERVER} ${{PORT}} --deaf", unloadTimeout: 2}}
  asked:
    cmd: "{SERVER} ${{PORT}} --deaf"
    cmdStop: sh -c "echo ${{PID}} >/run/stopped; kill -KILL ${{PID}}"
  sandboxed:
    cmd: "{SERVER} ${{PORT}}"
    systemd:
      User: nobody
      WorkingDirectory: /usr
      Environment: [GREETING="hello world", OTHER=one]
      Nice: 5
      PrivateTmp: yes
      OOMScoreAdjust: 300
      LimitNOFILE: 4096
      ProtectSystem: strict
      NoNewPrivileges: yes
  secretive: {{cmd: "{SERVER} ${{PORT}}", env: ["TOKEN=h%sh $1"]}}
  dynamic:
    cmd: "{SERVER} ${{PORT}}"
    systemd: {{DynamicUser: yes, StateDirectory: llamaswapd-dynamic}}
  nobody-there:
    cmd: "{SERVER} ${{PORT}}"
    systemd: {{User: there-is-no-such-user}}
  failing: {{cmd: "{SERVER} ${{PORT}} --listen-after 9 --exit 0.3:7"}}
"""

SERVICE = f"""
[Service]
Type=notify
Environment=PYTHONPATH={TREE}
ExecStart={" ".join(command(CONFIG, PORT))}
ExecReload=/bin/kill -HUP $MAINPID
# Shorter than the checks take: a daemon that does not feed it would be gone before their end.
WatchdogSec=5
"""


@pytest.fixture(scope="module", autouse=True)
def service() -> Iterator[None]:
    """The daemon as a service; `systemctl start` returns when it has said READY=1."""
    CONFIG.write_text(MODELS)
    Path("/run/systemd/system", UNIT).write_text(SERVICE)
    output("systemctl", "daemon-reload")
    output("systemctl", "start", UNIT)
    yield
    output("systemctl", "stop", UNIT)


@pytest.fixture
def client() -> Iterator[Client]:
    yield Client(PORT)
    Client(PORT).unload()
    assert units("llamaswapd-model-*") == []


# ---- start, swap, unload


def test_ready_is_said_when_requests_are_answered(client: Client) -> None:
    assert show(UNIT, "ActiveState", "SubState") == {"ActiveState": "active", "SubState": "running"}
    assert client.get("/health")[0] == 200


def test_a_request_starts_a_unit_another_swaps_it_and_an_unload_leaves_none(client: Client) -> None:
    red = client.load("red")
    assert show(red, "ActiveState", "SubState") == {"ActiveState": "active", "SubState": "running"}
    blue = client.load("blue")
    assert units("llamaswapd-model-*") == [blue]
    client.unload("blue")
    assert units("llamaswapd-model-*") == []


@pytest.mark.parametrize("model", ["instant", "notifying"])
def test_other_kinds_of_server_are_found_ready(client: Client, model: str) -> None:
    assert show(client.load(model), "ActiveState") == {"ActiveState": "active"}


def test_any_model_id_makes_a_unit(client: Client) -> None:
    status, text = client.ask("org/qwen 2.5:Q4_K-M é")
    assert status == 200, text
    assert units("llamaswapd-model-*") == [r"llamaswapd-model-org\x2fqwen\x202.5:Q4_K-M\x20\xc3\xa9.service"]
    assert "listening on" in log_of("LLAMASWAP_MODEL=org/qwen 2.5:Q4_K-M é")


def test_a_model_that_ends_itself_is_explained_to_the_client(client: Client) -> None:
    status, text = client.ask("failing")
    assert status == 500
    assert "exited prematurely: exit status 7" in error_message(text)
    assert "giving up" in error_message(text)


def test_a_model_that_dies_in_mid_stream_is_explained_to_the_client(client: Client) -> None:
    client.load("red")
    _, text = client.ask("red", stream=True, n=5, die_after=2)
    assert "killed by SIGKILL" in text


def test_a_request_waits_for_the_remains_of_a_model_that_died(client: Client) -> None:
    client.load("forking")
    client.ask("forking", stream=True, n=2, die_after=1)
    status, text = client.ask("forking")
    assert status == 200, text


# ---- what an administrator sees


def test_status_shows_the_command_the_log_and_the_slice(client: Client) -> None:
    unit = client.load("red")
    status = eventually(lambda: _status_with_log(), "the log is in systemctl status")
    assert f"tests/models/server.py {_port_of(unit)}" in status
    assert f"llamaswapd-models.slice/{unit}" in status
    tree = output("systemd-cgls", "--no-pager", "--full", "--unit", "llamaswapd-models.slice")
    assert unit in tree
    assert "tests/models/server.py" in tree


def _status_with_log() -> str:
    status = output("systemctl", "--no-pager", "--full", "status", "llamaswapd-model-*")
    return status if "listening on" in status else ""


def _port_of(unit: str) -> str:
    return Path(f"/proc/{main_pid(unit)}/cmdline").read_text().split("\0")[-2]


@pytest.mark.parametrize("match", [("-u", "llamaswapd-model-red"), ("LLAMASWAP_MODEL=red",), ("-t", "red")])
def test_the_journal_has_the_log(client: Client, match: tuple[str, ...]) -> None:
    client.load("red")
    assert "POST /v1/chat/completions" in eventually(lambda: log_of(*match), "the journal has lines")


def test_a_log_is_streamed_history_first_then_live(client: Client) -> None:
    client.load("red")
    with client.lines("/logs/stream/red") as lines:
        assert any(line == "ready" for line in lines)
        client.ask("blue")
        client.call("POST", "/v1/embeddings", {"model": "red"})
        assert any(line == "POST /v1/embeddings" for line in lines)


# ---- stopping


def test_nothing_of_a_model_that_forks_is_left_after_an_unload(client: Client) -> None:
    pids = processes(client.load("forking"))
    assert len(pids) == 3
    assert len({os.getsid(pid) for pid in pids}) == 2
    client.unload("forking")
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []


def test_a_model_that_ignores_sigterm_is_gone_a_second_after_its_time(client: Client) -> None:
    pids = processes(client.load("deaf"))
    before = time.monotonic()
    client.unload("deaf")
    assert 2 <= time.monotonic() - before < 3
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []


def test_cmd_stop_is_told_the_pid(client: Client) -> None:
    pid = main_pid(client.load("asked"))
    client.unload("asked")
    assert Path("/run/stopped").read_text() == f"{pid}\n"
    assert not Path(f"/proc/{pid}").exists()


def test_a_frozen_model_can_be_unloaded(client: Client) -> None:
    unit = client.load("red")
    output("systemctl", "freeze", unit)
    assert show(unit, "FreezerState") == {"FreezerState": "frozen"}
    client.unload("red")
    assert units("llamaswapd-model-*") == []


@pytest.mark.parametrize("verb", ["daemon-reload", "daemon-reexec"])
def test_a_model_runs_on_when_systemd_reloads(client: Client, verb: str) -> None:
    pid = main_pid(client.load("red"))
    output("systemctl", verb)
    assert '"state":"ready"' in client.get("/running")[1].replace(" ", "")
    assert main_pid(client.load("red")) == pid
    client.load("blue")
    assert units("llamaswapd-model-*") == ["llamaswapd-model-blue.service"]


# ---- settings


def test_drop_ins_for_all_models_apply(client: Client) -> None:
    DROP_INS.mkdir()
    drop_in = DROP_INS / "local.conf"
    drop_in.write_text("[Service]\nEnvironment=LOCAL=admin\nNice=3\n")
    output("systemctl", "daemon-reload")
    try:
        unit = client.load("red")
        assert show(unit, "DropInPaths", "Nice") == {"DropInPaths": str(drop_in), "Nice": "3"}
        assert environment_of(main_pid(unit))["LOCAL"] == "admin"
    finally:
        drop_in.unlink()
        DROP_INS.rmdir()
        output("systemctl", "daemon-reload")


def test_unit_settings_of_the_configuration_apply(client: Client) -> None:
    unit = client.load("sandboxed")
    wanted = {
        "User": "nobody", "WorkingDirectory": "/usr", "Nice": "5", "PrivateTmp": "yes", "OOMScoreAdjust": "300",
        "LimitNOFILE": "4096", "ProtectSystem": "strict", "NoNewPrivileges": "yes",
    }  # fmt: skip
    assert show(unit, *wanted) == wanted
    pid = main_pid(unit)
    environment = environment_of(pid)
    assert (environment["GREETING"], environment["OTHER"]) == ("hello world", "one")
    assert os.readlink(f"/proc/{pid}/cwd") == "/usr"
    assert os.stat(f"/proc/{pid}").st_uid == 65534
    assert os.readlink(f"/proc/{pid}/ns/mnt") != os.readlink("/proc/1/ns/mnt")


def test_what_env_says_only_root_and_the_model_can_read(client: Client) -> None:
    unit = client.load("secretive")
    assert environment_of(main_pid(unit))["TOKEN"] == "h%sh $1"
    file = Path(show(unit, "EnvironmentFiles")["EnvironmentFiles"].split()[0])
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert "h%sh" not in output("systemctl", "show", unit) + output("systemctl", "cat", unit)
    client.unload("secretive")
    assert not file.exists()


def test_a_model_may_have_a_user_for_its_run_only(client: Client) -> None:
    pid = main_pid(client.load("dynamic"))
    assert 61184 <= os.stat(f"/proc/{pid}").st_uid <= 65519  # systemd.exec(5), DynamicUser=
    assert environment_of(pid)["STATE_DIRECTORY"] == "/var/lib/llamaswapd-dynamic"


def test_a_user_that_does_not_exist_is_named_as_the_cause(client: Client) -> None:
    status, text = client.ask("nobody-there")
    assert status == 500
    assert "USER" in error_message(text) or "there-is-no-such-user" in error_message(text)


# ---- the daemon's own life


def test_a_reload_takes_the_new_file_and_leaves_unchanged_models_alone(client: Client) -> None:
    unit = client.load("red")
    pid = main_pid(unit)
    CONFIG.write_text(f'{MODELS}  zebra: {{cmd: "{INSTANT} ${{PORT}}"}}\n')
    output("systemctl", "reload", UNIT)
    eventually(lambda: "zebra" in client.get("/v1/models")[1], "the new model is listed")
    assert main_pid(unit) == pid


def test_a_stop_ends_the_models_and_leaves_nothing() -> None:
    unit = Client(PORT).load("red")
    pid = main_pid(unit)
    output("systemctl", "stop", UNIT)
    assert show(UNIT, "ActiveState", "Result", "ExecMainStatus") == {
        "ActiveState": "inactive", "Result": "success", "ExecMainStatus": "0",
    }  # fmt: skip
    assert units("llamaswapd-model-*") == []
    assert not Path(f"/proc/{pid}").exists()
    assert not Path("/run/llamaswapd").exists()
    output("systemctl", "start", UNIT)


def test_models_of_a_killed_daemon_run_on_and_are_taken_over_by_the_next() -> None:
    leftover = "llamaswapd-hand-model-red.service"
    with by_hand(CONFIG, OTHER_PORT, "--instance", "hand") as daemon:
        Client(OTHER_PORT).load("red")
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
        assert show(leftover, "ActiveState") == {"ActiveState": "active"}
        pid = main_pid(leftover)
    with by_hand(CONFIG, OTHER_PORT, "--instance", "hand"):
        assert units("llamaswapd-hand-model-*") == [leftover]
        assert Client(OTHER_PORT).ask("red")[0] == 200
        assert main_pid(leftover) == pid
    assert units("llamaswapd-hand-model-*") == []


def test_two_daemons_of_one_instance_do_not_run_at_once() -> None:
    argv = command(CONFIG, OTHER_PORT)
    second = subprocess.run(argv, env={**os.environ, "PYTHONPATH": str(TREE)}, capture_output=True, text=True)
    assert second.returncode == 1
    assert f"pid {main_pid(UNIT)}" in second.stderr


@pytest.mark.parametrize("library", ["dbus_next", "dbus_fast"])
def test_either_dbus_library_will_do(tmp_path: Path, library: str) -> None:
    path = f"{TREE}"
    if library == "dbus_next":  # taken when the other is not there
        (tmp_path / "dbus_fast.py").write_text("raise ImportError")
        path = f"{tmp_path}:{TREE}"
    elif systemd_version() < 257:
        pytest.skip("the dbus-fast of Debian 12 cannot send texts that are not ASCII")
    ask = "from llamaswapd.systemd import bus; print(bus.dbus.__name__)"
    assert output("env", f"PYTHONPATH={path}", "python3", "-c", ask) == f"{library}\n"
    with by_hand(CONFIG, OTHER_PORT, "--instance", library, PYTHONPATH=path):
        assert Client(OTHER_PORT).ask("org/qwen 2.5:Q4_K-M é")[0] == 200
        assert len(units(f"llamaswapd-{library}-model-*")) == 1
    assert units(f"llamaswapd-{library}-model-*") == []


# ---- a user's own manager


def test_a_user_with_linger_runs_models_on_the_own_manager() -> None:
    output("useradd", "--create-home", "ann")
    output("loginctl", "enable-linger", "ann")
    uid = int(output("id", "-u", "ann"))
    runtime = f"/run/user/{uid}"
    output("systemctl", "start", f"user@{uid}.service")
    prefix = ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "env", f"XDG_RUNTIME_DIR={runtime}")
    with by_hand(CONFIG, OTHER_PORT, "--manager", "user", prefix=prefix):
        client = Client(OTHER_PORT)
        client.load("red")
        assert units("llamaswapd-model-*", "--user", "--machine=ann@") == ["llamaswapd-model-red.service"]
        with client.lines("/logs/stream/red") as lines:
            assert any(line == "ready" for line in lines)
            client.call("POST", "/v1/embeddings", {"model": "red"})
            assert any(line == "POST /v1/embeddings" for line in lines)
        client.unload("red")
    assert units("llamaswapd-model-*", "--user", "--machine=ann@") == []
