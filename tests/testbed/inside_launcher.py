"""The program in two halves, as a package installs it. Runs in a bed, as root.

What is tried as user llamaswapd is what somebody could try who has taken over the half that speaks HTTP.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from inside_daemon import (
    SERVER,
    TREE,
    Client,
    environment_of,
    error_message,
    eventually,
    log_of,
    main_pid,
    output,
    show,
    systemd_version,
    units,
)

FRONT, LAUNCHER, KEEPER = "llamaswapd.service", "llamaswapd-launcher.service", "llamaswapd-keeper.service"
RED = "llamaswapd-model-red.service"
ETC = Path("/etc/llamaswapd")
CONFIG, MORE, CREDENTIALS = ETC / "config.yaml", ETC / "models.d" / "more.yaml", ETC / "credentials"
SYSTEMD = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
OURS = ("org.llamaswapd.Launcher1", "/org/llamaswapd/Launcher1", "org.llamaswapd.Launcher1")
NOBODY = "nobody"
SECRETS = ("hush-in-the-file", "hush-in-a-credential")

PROGRAM = f"""#!/usr/bin/python3
import sys
sys.path.insert(0, "{TREE}")
from llamaswapd.__main__ import main
sys.exit(main())
"""

MODELS = f"""
startPort: 5800
unloadTimeout: 10
healthCheckTimeout: 15
models:
  red:
    cmd: "{SERVER} ${{PORT}}"
    env: ["IN_FILE=hush-in-the-file", "IN_CREDENTIAL=${{env.TOKEN}}"]
  blue: {{cmd: "{SERVER} ${{PORT}}"}}
  nowhere: {{cmd: "/nowhere/server ${{PORT}}"}}
  failing: {{cmd: "{SERVER} ${{PORT}} --exit 0.1:7 --listen-after 9"}}
  "org/a long name, and no end of it {"x" * 200}": {{cmd: "{SERVER} ${{PORT}}"}}
"""


@pytest.fixture(scope="module", autouse=True)
def installed() -> Iterator[None]:
    """Both halves where the package puts them, and the front half started."""
    program = Path("/usr/bin/llamaswapd")
    program.write_text(PROGRAM)
    program.chmod(0o755)
    for source, target in (
        ("units/*.service", "/etc/systemd/system"),
        ("units/*.socket", "/etc/systemd/system"),
        ("packaging/dbus/*.conf", "/usr/share/dbus-1/system.d"),
        ("packaging/dbus/*.service", "/usr/share/dbus-1/system-services"),
        ("packaging/sysusers.d/*", "/usr/lib/sysusers.d"),
        ("packaging/tmpfiles.d/*", "/usr/lib/tmpfiles.d"),
    ):
        for path in TREE.glob(source):
            shutil.copy(path, target)
    Path("/run/systemd/system", FRONT).unlink(missing_ok=True)  # of other checks
    output("systemd-sysusers")
    output("systemd-tmpfiles", "--create", "llamaswapd.conf")
    output("systemctl", "daemon-reload")
    output("systemctl", "reload", "dbus.service")
    configure(MODELS)
    (CREDENTIALS / "TOKEN").write_text("hush-in-a-credential\n")
    (CREDENTIALS / "TOKEN").chmod(0o600)
    output("systemctl", "start", FRONT)
    yield
    output("systemctl", "stop", "llamaswapd.socket", FRONT)
    output("systemctl", "stop", LAUNCHER)
    assert units("llamaswapd*.service") == []
    assert [path.name for path in Path("/run/llamaswapd-launcher/env").iterdir()] == []


@pytest.fixture
def client() -> Iterator[Client]:
    yield Client(8080)
    Client(8080).unload()
    assert units("llamaswapd-model-*") == []


def configure(text: str) -> None:
    CONFIG.write_text(text)
    CONFIG.chmod(0o640)


def reload() -> None:
    """Have the configuration read anew; return when that is over, with success or without."""
    before = len(log_of("-u", FRONT))
    output("systemctl", "reload", FRONT)
    over = re.compile("configuration reloaded|failed to reload config")
    eventually(lambda: over.search(log_of("-u", FRONT)[before:]), "the configuration is reloaded")


def attempt(user: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user, who is in no other groups."""
    return subprocess.run(
        ["setpriv", "--reuid", user, "--regid", str(pwd.getpwnam(user).pw_gid), "--clear-groups", *argv],
        capture_output=True,
        text=True,
    )


def call(user: str, whom: tuple[str, str, str], *words: str) -> str:
    """Call a method as a user; return the error, or "" if it is done."""
    done = attempt(user, "busctl", "--allow-interactive-authorization=no", "call", *whom, *words)
    return done.stderr if done.returncode else ""


def user_of(pid: int) -> str:
    return pwd.getpwuid(Path(f"/proc/{pid}").stat().st_uid).pw_name


# ---- it works


def test_a_request_starts_a_model_which_is_none_of_the_known_users(client: Client) -> None:
    assert user_of(main_pid(FRONT)) == "llamaswapd"
    assert user_of(main_pid(LAUNCHER)) == "root"
    unit = client.load("red")
    assert show(unit, "DynamicUser") == {"DynamicUser": "yes"}
    uid = Path(f"/proc/{main_pid(unit)}").stat().st_uid
    assert uid >= 61184  # systemd.exec(5), DynamicUser=
    client.load("blue")
    assert units("llamaswapd-model-*") == ["llamaswapd-model-blue.service"]


def test_why_a_model_does_not_start_is_said_as_ever(client: Client) -> None:
    status, text = client.ask("nowhere")
    assert status == 500
    assert "failed to start command '/nowhere/server" in error_message(text)
    assert error_message(text).endswith("no such file or directory")
    status, text = client.ask("failing")
    assert "exited prematurely: exit status 7" in error_message(text)
    assert "giving up" in error_message(text)


def test_a_port_that_somebody_has_is_noticed(client: Client) -> None:
    with socket.create_server(("127.0.0.1", 5801)):  # "nowhere" has none, and comes behind "failing"
        texts = [client.ask(model)[1] for model in ("red", "blue", "failing")]
    assert any("port 5801 of proxy" in text and "is taken by a process of user root" in text for text in texts), texts


def test_a_model_whose_name_is_too_long_for_its_unit_is_stopped_by_the_next_daemon(client: Client) -> None:
    name = next(line.split('"')[1] for line in MODELS.splitlines() if "org/a long name" in line)
    assert client.ask(name)[0] == 200
    os.kill(main_pid(FRONT), signal.SIGKILL)
    eventually(lambda: client_answers(client), "the daemon is back")


def client_answers(client: Client) -> bool:
    try:
        return client.get("/health")[0] == 200
    except OSError:
        return False


def test_models_outlive_both_halves(client: Client) -> None:
    pid = main_pid(client.load("red"))
    for end in (["restart", FRONT], ["restart", LAUNCHER], ["kill", "-sKILL", LAUNCHER], ["kill", "-sKILL", FRONT]):
        output("systemctl", *end)
        assert client.ask("red")[0] == 200
        assert main_pid(RED) == pid
    assert "found running" in log_of("-u", FRONT)


def test_a_launcher_that_was_killed_is_there_when_it_is_called(client: Client) -> None:
    client.load("red")
    os.kill(main_pid(LAUNCHER), signal.SIGKILL)
    client.unload()
    os.kill(main_pid(LAUNCHER), signal.SIGKILL)
    client.load("red")  # what the file says is found out anew
    assert main_pid(LAUNCHER)


def test_a_reload_brings_new_models_and_changed_credentials(client: Client) -> None:
    client.load("red")
    MORE.write_text(f'models: {{green: {{cmd: "{SERVER} ${{PORT}}"}}}}')
    (CREDENTIALS / "TOKEN").write_text("another\n")
    reload()
    client.load("green")
    client.load("red")
    assert environment_of(main_pid(RED))["IN_CREDENTIAL"] == "another"
    MORE.unlink()
    (CREDENTIALS / "TOKEN").write_text("hush-in-a-credential\n")
    reload()
    assert client.ask("green")[0] == 404


def test_a_restart_brings_changed_credentials(client: Client) -> None:
    (CREDENTIALS / "TOKEN").write_text("another\n")
    output("systemctl", "restart", FRONT)
    client.load("red")
    assert environment_of(main_pid(RED))["IN_CREDENTIAL"] == "another"
    (CREDENTIALS / "TOKEN").unlink()
    assert subprocess.run(["systemctl", "restart", FRONT], capture_output=True).returncode
    (CREDENTIALS / "TOKEN").write_text("hush-in-a-credential\n")
    eventually(lambda: client_answers(client), "the daemon has found what was missing")
    client.load("red")
    assert environment_of(main_pid(RED))["IN_CREDENTIAL"] == "hush-in-a-credential"


def test_a_credential_that_is_none_of_its_business_is_not_given_to_the_front_half() -> None:
    assert not list(Path("/run/credentials").glob(f"{FRONT}/*"))


def test_the_keeper_can_do_no_more_than_the_front_half() -> None:
    assert user_of(main_pid(KEEPER)) == "llamaswapd"
    assert show(KEEPER, "NoNewPrivileges", "CapabilityBoundingSet") == {
        "NoNewPrivileges": "yes",
        "CapabilityBoundingSet": "",
    }


def test_the_keeper_stops_idle_models_by_way_of_the_launcher(client: Client) -> None:
    configure(MODELS.replace("  blue:", "  red-for-a-while:").replace('PORT}"}', 'PORT}", ttl: 1}'))
    reload()
    unit = client.load("red-for-a-while")
    dead = Path(f"/run/systemd/system/{FRONT}.d/dead.conf")  # a unit in /etc cannot be masked for a while
    dead.parent.mkdir()
    dead.write_text("[Service]\nRestart=no\n")
    output("systemctl", "daemon-reload")
    try:
        output("systemctl", "stop", "llamaswapd.socket")
        os.kill(main_pid(FRONT), signal.SIGKILL)
        eventually(lambda: units(unit) == [], "the model is gone")
        eventually(lambda: units(KEEPER) == [], "the keeper is gone")
    finally:
        shutil.rmtree(dead.parent)
        output("systemctl", "daemon-reload")
    configure(MODELS)
    output("systemctl", "start", "llamaswapd.socket")
    output("systemctl", "start", FRONT)


# ---- what is refused


@pytest.mark.parametrize("path", [CONFIG, ETC, MORE])
def test_files_that_others_can_write_are_refused_and_what_there_was_goes_on(client: Client, path: Path) -> None:
    MORE.write_text("models: {}")
    mode = path.stat().st_mode & 0o777
    path.chmod(mode | 0o002)
    try:
        reload()
        said = json.loads(client.get("/health?verbose")[1])["config"]["error"]
        assert f"{path} can be written by everybody" in said
        assert f"chmod go-w {path}" in said
        client.load("red")
    finally:
        path.chmod(mode)
        MORE.unlink()
    reload()


def test_files_of_another_user_are_refused(client: Client) -> None:
    shutil.chown(CONFIG, "llamaswapd")
    try:
        reload()
        assert f"{CONFIG} belongs to user llamaswapd" in client.get("/health?verbose")[1]
    finally:
        shutil.chown(CONFIG, "root")
    reload()


def test_a_model_is_root_only_if_the_file_says_so(client: Client) -> None:
    MORE.write_text(f'models: {{green: {{cmd: "{SERVER} ${{PORT}}", systemd: {{DynamicUser: no}}}}}}')
    reload()
    assert 'model \\"green\\" would run as root' in client.get("/health?verbose")[1]
    MORE.write_text(f'models: {{green: {{cmd: "{SERVER} ${{PORT}}", systemd: {{User: root}}}}}}')
    reload()
    assert user_of(main_pid(client.load("green"))) == "root"
    client.unload()
    MORE.unlink()
    reload()


# ---- what somebody can do who has taken over the front half


@pytest.mark.parametrize(
    "words",
    [
        ("StartTransientUnit", "ssa(sv)a(sa(sv))", "evil.service", "replace", "1", "ExecStart", "a(sasb)", "1",
         "/bin/sh", "1", "sh", "false", "0"),
        ("StartUnit", "ss", "rescue.service", "replace"),
        ("StopUnit", "ss", "dbus.service", "replace"),
        ("KillUnit", "ssi", "dbus.service", "all", "9"),
        ("RestartUnit", "ss", RED, "replace"),
        ("SetUnitProperties", "sba(sv)", RED, "true", "1", "MemoryMax", "t", "1"),
        ("Reload", ""),
        ("EnableUnitFiles", "asbb", "1", "rescue.service", "false", "false"),
        ("SetEnvironment", "as", "1", "LD_PRELOAD=/tmp/evil.so"),
        ("PowerOff", ""),
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_systemd_does_nothing_for_it(client: Client, words: tuple[str, ...]) -> None:
    client.load("red")
    error = call("llamaswapd", SYSTEMD, *[word for word in words if word])
    assert re.search("ccess denied|authentication required|uthorization|Permission denied", error), error or "done"
    client.load("red")


def test_the_launcher_starts_nothing_but_what_is_configured(client: Client) -> None:
    client.load("red")
    client.unload()
    fingerprint = "0123456789abcdef"
    for model, port, error in (
        ("red", "5800", "has changed in the configuration"),
        ("red", "22", "port 22 is not one that models may have"),
        ("evil", "5800", "is not in the configuration"),
        ("../../tmp/evil", "0", "is not in the configuration"),
        ("", "0", "is not in the configuration"),
    ):
        assert error in call("llamaswapd", OURS, "Start", "sqs", model, port, fingerprint)
    assert "takes sqs" in call("llamaswapd", OURS, "Start", "ssa(sv)", "red", "x", "0")
    assert "there is no" in call("llamaswapd", OURS, "StartTransientUnit", "s", "x")
    assert units("llamaswapd-model-*") == []


@pytest.mark.parametrize("name", ["dbus", "../dbus", "dbus.service", "/etc/passwd", "*", "a@b", "\n"])
def test_the_launcher_touches_no_other_units(name: str) -> None:
    for words in (("Stop", "s", name), ("Kill", "si", name, "9"), ("Freeze", "s", name), ("Forget", "s", name)):
        assert re.search(r"Unit llamaswapd-model-\S* (not loaded|not found)", call("llamaswapd", OURS, *words))
    assert main_pid("dbus.service")


def test_a_port_of_somebody_else_cannot_be_given_to_a_model() -> None:
    done = attempt(
        "llamaswapd", "busctl", "--json=short", "call", *OURS, "Load", "a{sq}", "2", "red", "22", "blue", "5799"
    )
    assert done.returncode == 0, done.stderr
    models = json.loads(json.loads(done.stdout)["data"][0])["models"]
    assert {models["red"]["port"], models["blue"]["port"]} <= set(range(5800, 5810))
    reload()


@pytest.mark.parametrize(
    "path",
    [CONFIG, CREDENTIALS / "TOKEN", Path("/run/llamaswapd-launcher"), Path(f"/run/credentials/{LAUNCHER}")],
    ids=str,
)
def test_it_cannot_read(path: Path) -> None:
    assert path.exists()
    done = attempt("llamaswapd", "find", str(path), "-type", "f", "-exec", "cat", "{}", "+")
    assert "Permission denied" in done.stderr
    assert done.stdout == ""


def test_it_cannot_write_configuration() -> None:
    for path in (CONFIG, MORE, ETC / "x", Path("/etc/systemd/system/x.service"), Path("/run/systemd/system/x.service")):
        assert "ermission denied" in attempt("llamaswapd", "tee", "-a", str(path)).stderr


@pytest.mark.parametrize("user", ["llamaswapd", NOBODY])
def test_no_secret_of_a_model_can_be_seen(client: Client, user: str) -> None:
    pid = main_pid(client.load("red"))
    assert environment_of(pid)["IN_FILE"] == SECRETS[0]
    assert environment_of(pid)["IN_CREDENTIAL"] == SECRETS[1]
    path = "/org/freedesktop/systemd1/unit/llamaswapd_2dmodel_2dred_2eservice"
    answers = [
        attempt(user, "systemctl", "show", "--all", RED),
        attempt(user, "systemctl", "cat", RED),
        attempt(user, "busctl", "call", SYSTEMD[0], path, "org.freedesktop.DBus.Properties", "GetAll", "s", ""),
        attempt(user, "busctl", "call", *OURS, "Load", "a{sq}", "0"),
        attempt(user, "cat", f"/proc/{pid}/environ", f"/proc/{main_pid(LAUNCHER)}/environ"),
        attempt(user, "ps", "-eww", "-o", "args="),
    ]
    said = [each.stdout + each.stderr for each in answers]
    assert "IN_FILE" not in said[0]
    assert said[4].count("Permission denied") == 2
    said += [client.get("/running")[1], client.get("/v1/models")[1], log_of("-u", FRONT), log_of("-u", LAUNCHER)]
    assert [(secret, text) for secret in SECRETS for text in said if secret in text] == []
    reload()


def test_nobody_else_may_call_the_launcher(client: Client) -> None:
    client.load("red")
    for words in (("Stop", "s", "red"), ("Load", "a{sq}", "0"), ("Reload",), ("Arm",)):
        error = call(NOBODY, OURS, *words)
        assert "denied" in error or "not allowed" in error, error
    for member, interface in (
        ("Introspect", "org.freedesktop.DBus.Introspectable"),
        ("Ping", "org.freedesktop.DBus.Peer"),
    ):
        assert call(NOBODY, (*OURS[:2], interface), member)
    assert units("llamaswapd-model-*") == [RED]


def test_nobody_else_may_pose_as_the_launcher() -> None:
    bus = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
    for user in ("llamaswapd", NOBODY):
        assert "ccess denied" in call(user, bus, "RequestName", "su", OURS[0], "2")


# ---- how well they are locked up


@pytest.mark.skipif(systemd_version() < 257, reason="another systemd counts otherwise")
@pytest.mark.parametrize(("unit", "most"), [(FRONT, 1.3), (LAUNCHER, 1.0)])
def test_they_are_locked_up(unit: str, most: float) -> None:
    said = output("systemd-analyze", "security", "--no-pager", unit)
    score = re.search(rf"exposure level for {re.escape(unit)}: ([0-9.]+)", said)
    assert score
    assert float(score[1]) <= most, said


def test_their_units_are_what_systemd_expects() -> None:
    paths = [str(path) for path in Path("/etc/systemd/system").glob("llamaswapd*")]
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *paths], capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if "llamaswapd" in line and "ImportCredential" not in line]
    assert (done.returncode, said) == (0, [])
