"""What somebody can do who should not be able to, to the package as it is installed. Runs in a bed, as root.

Three of them: a local user; somebody who has taken over the half that speaks HTTP, as its user and inside its unit's
namespaces; a model, whose command is the operator's but whose program is hostile.
"""

from __future__ import annotations

import json
import pwd
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from inside_daemon import SERVER, TREE, Client, environment_of, eventually, log_of, main_pid, output, show, units

FRONT, LAUNCHER, KEEPER = "llamaswapd.service", "llamaswapd-launcher.service", "llamaswapd-keeper.service"
VICTIM, ROGUE = "llamaswapd-model-victim.service", "llamaswapd-model-rogue.service"
VICTIM_PATH = "/org/freedesktop/systemd1/unit/llamaswapd_2dmodel_2dvictim_2eservice"
ETC, STATE, RUN = Path("/etc/llamaswapd"), Path("/var/lib/llamaswapd"), Path("/run/llamaswapd-launcher")
CONFIG, TOKEN = ETC / "config.yaml", ETC / "credentials" / "TOKEN"
MALLORY = "mallory"
SECRETS = ("hush-in-the-file", "hush-in-a-credential", "hush-for-a-unit")
CLINGING = Path("/opt/clinging.py")

MODELS = f"""
startPort: 5800
unloadTimeout: 2
healthCheckTimeout: 15
models:
  victim:
    cmd: "{SERVER} ${{PORT}}"
    env: ["IN_FILE=hush-in-the-file", "IN_CREDENTIAL=${{env.TOKEN}}"]
    systemd: {{LoadCredential: "token:{TOKEN}", Environment: "IN_UNIT=hush-for-a-unit"}}
  rogue: {{cmd: "/usr/bin/python3 -I {TREE}/tests/models/obedient.py ${{PORT}}", checkEndpoint: none}}
  late: {{cmd: "{SERVER} ${{PORT}} --listen-after 2"}}
  clinging: {{cmd: "/usr/bin/python3 {CLINGING} ${{PORT}}"}}
groups:
  all: {{swap: false, members: [victim, rogue, late, clinging]}}
"""

# Takes no SIGTERM for an end, says that it needs more time, and that another process is the one that matters.
CLINGS = f"""
import os, signal, socket, sys, threading
sys.path.insert(0, "{TREE}/tests/models")
signal.signal(signal.SIGTERM, signal.SIG_IGN)
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.connect(os.environ["NOTIFY_SOCKET"])
notify.send(b"MAINPID=1\\nSTATUS=x\\x1b[31m\\nFDSTORE=1")
def cling():
    while not threading.Event().wait(0.2):
        notify.send(b"EXTEND_TIMEOUT_USEC=600000000")
threading.Thread(target=cling, daemon=True).start()
import server
signal.signal = lambda *_: None
server.main()
"""

# Answers whatever it is asked on a port, and tells what that was.
THIEF = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def do_POST(self):
        print(self.rfile.read(int(self.headers["Content-Length"])), flush=True)
        self.do_GET()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""

BUS = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
LOGIND = ("org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager")
SYSTEMD = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
OURS = ("org.llamaswapd.Launcher1", "/org/llamaswapd/Launcher1", "org.llamaswapd.Launcher1")

Attempt = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module", autouse=True)
def installed() -> Iterator[None]:
    """The package with a configuration, and two models that run: one to be harmed, and one that harms."""
    subprocess.run(["useradd", MALLORY], check=False)
    CLINGING.write_text(CLINGS)
    TOKEN.write_text(f"{SECRETS[1]}\n")
    CONFIG.write_text(MODELS)
    output("systemctl", "reload", FRONT)
    eventually(lambda: "victim" in client.get("/v1/models")[1], "the models are listed")
    client.load("victim")
    client.ask("rogue")  # which speaks no HTTP
    eventually(lambda: client.get("/running")[1].count('"ready"') == 2, "both run")
    eventually(is_listening, "the rogue takes orders")
    yield
    assert client.ask("victim")[0] == 200
    output("systemctl", "stop", "llamaswapd.socket", FRONT, LAUNCHER)
    assert units("llamaswapd-model-*") == []


client = Client(8080)


def as_user(name: str, *argv: str, groups: str = "--clear-groups") -> subprocess.CompletedProcess[str]:
    gid = str(pwd.getpwnam(name).pw_gid)
    return run("setpriv", "--reuid", name, "--regid", gid, groups, *argv)


def inside_front(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run a command where the half that speaks HTTP runs: as its user, in its namespaces."""
    ids = pwd.getpwnam("llamaswapd")
    user = ("--setuid", str(ids.pw_uid), "--setgid", str(ids.pw_gid))
    return run("nsenter", "--target", str(main_pid(FRONT)), "--all", *user, "--", *argv)


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True)


def anybody(*argv: str) -> subprocess.CompletedProcess[str]:
    return as_user(MALLORY, *argv)


def front(*argv: str) -> subprocess.CompletedProcess[str]:
    return as_user("llamaswapd", *argv, groups="--init-groups")


FRONT_HALF = pytest.mark.parametrize("attempt", [front, inside_front])
EVERYBODY = pytest.mark.parametrize("attempt", [anybody, front, inside_front])


def call(attempt: Attempt, whom: tuple[str, str, str], *words: str) -> str:
    """Call a method; return the error, or "" if it is done."""
    done = attempt("busctl", "--allow-interactive-authorization=no", "call", "--", *whom, *words)
    return done.stderr if done.returncode else ""


def orders(*calls: tuple[object, ...]) -> list[str]:
    """Give the launcher orders as the front half does, over one connection; return what each came to."""
    code = f"""
import asyncio, json, sys
from llamaswapd.systemd.bus import Bus, Call
async def main():
    bus = await Bus.open("unix:path=/run/dbus/system_bus_socket", lambda *_: None)
    for member, signature, *body in json.loads(sys.stdin.read()):
        try:
            said = await bus.call(Call(*{OURS}, member, signature, tuple(body)))
        except Exception as error:
            said = str(error)
        print(json.dumps(said))
    await bus.close()
asyncio.run(main())
"""
    ids = pwd.getpwnam("llamaswapd")
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(calls), capture_output=True, text=True, check=True,
        user=ids.pw_uid, group=ids.pw_gid, extra_groups=[], cwd="/",
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


def models() -> dict[str, dict[str, object]]:
    """Return the models as the launcher tells the front half, which keeps the ports that there are."""
    running = {each["model"]: each["port"] for each in json.loads(client.get("/running")[1])["running"]}
    ((text, _),) = orders(("Load", "a{sq}", running))
    found: dict[str, dict[str, object]] = json.loads(text)["models"]
    return found


def port_of_rogue() -> int:
    return next(each["port"] for each in json.loads(client.get("/running")[1])["running"] if each["model"] == "rogue")


def is_listening() -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port_of_rogue())) == 0


def tell(expression: str) -> str:
    """Have the rogue model evaluate an expression; return what came of it: `= repr` or `! Exception`."""
    with socket.create_connection(("127.0.0.1", port_of_rogue())) as connection:
        connection.sendall(expression.encode() + b"\n")
        return connection.makefile().readline().rstrip("\n")


# ---- whoever it is


@EVERYBODY
@pytest.mark.parametrize(
    "words",
    [
        ("StartTransientUnit", "ssa(sv)a(sa(sv))", "evil.service", "replace", "1", "ExecStart", "a(sasb)", "1",
         "/bin/sh", "1", "sh", "false", "0"),
        ("StartUnit", "ss", "rescue.service", "replace"),
        ("StopUnit", "ss", VICTIM, "replace"),
        ("KillUnit", "ssi", VICTIM, "all", "9"),
        ("KillUnit", "ssi", "dbus.service", "all", "9"),
        ("SetUnitProperties", "sba(sv)", VICTIM, "true", "1", "MemoryMax", "t", "1"),
        ("LinkUnitFiles", "asbb", "1", "/tmp/evil.service", "true", "false"),
        ("SetEnvironment", "as", "1", "LD_PRELOAD=/tmp/evil.so"),
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_systemd_does_nothing_for_them(attempt: Attempt, words: tuple[str, ...]) -> None:
    assert re.search("ccess denied|uthentication required|Permission denied", call(attempt, SYSTEMD, *words))


@EVERYBODY
def test_they_read_no_secret(attempt: Attempt) -> None:
    pid = main_pid(VICTIM)
    environment = environment_of(pid)
    assert [environment[name] for name in ("IN_FILE", "IN_CREDENTIAL", "IN_UNIT")] == [*SECRETS]
    files = [CONFIG, TOKEN, RUN / "env" / VICTIM, RUN / "config", RUN / "key", f"/run/credentials/{VICTIM}/token",
             f"/run/credentials/{LAUNCHER}/env_TOKEN", f"/proc/{pid}/environ", f"/proc/{pid}/mem",
             f"/proc/{main_pid(LAUNCHER)}/environ", f"/proc/{main_pid(LAUNCHER)}/mem"]  # fmt: skip
    for file in files:
        done = attempt("head", "-c", "1", str(file))
        assert (done.returncode, done.stdout) == (1, ""), file
        assert run("test", "-e", str(file)).returncode == 0, file
    properties = ("org.freedesktop.systemd1", VICTIM_PATH, "org.freedesktop.DBus.Properties", "GetAll", "s", "")
    seen = [
        attempt("systemctl", "show", "--all", VICTIM, LAUNCHER),
        attempt("systemctl", "cat", VICTIM),
        attempt("busctl", "call", *properties),
        attempt("busctl", "call", *OURS, "Load", "a{sq}", "0"),
        attempt("ps", "-eww", "-o", "args="),
        attempt("journalctl", "--no-pager", "-b", "-o", "verbose"),
    ]
    said = "".join(each.stdout + each.stderr for each in seen)
    said += client.get("/running")[1] + client.get("/v1/models")[1] + client.get("/health?verbose")[1]
    assert "LLAMASWAP_MODEL" in said
    assert [secret for secret in SECRETS if secret in said] == []
    models()


@EVERYBODY
def test_they_write_nothing_of_what_is_believed(attempt: Attempt) -> None:
    for path in (CONFIG, ETC / "models.d/x.yaml", ETC / "x", ETC / "credentials/x", RUN / "env" / VICTIM, RUN / "x",
                 "/etc/systemd/system/x.service", "/run/systemd/system/x.service", "/run/systemd/transient/x.service",
                 "/usr/lib/python3/dist-packages/llamaswapd/x.py", "/var/cache/llamaswapd/x"):  # fmt: skip
        assert re.search("ermission denied|ead-only", attempt("tee", str(path)).stderr), path


@EVERYBODY
def test_they_signal_nobody(attempt: Attempt) -> None:
    for unit in (VICTIM, LAUNCHER, "dbus.service", "systemd-journald.service"):
        done = attempt("kill", "-KILL", str(main_pid(unit)))
        assert re.search("not permitted|No such process", done.stderr), unit


@EVERYBODY
def test_they_cannot_pose_as_the_launcher(attempt: Attempt) -> None:
    output("systemctl", "stop", LAUNCHER)
    assert "ccess denied" in call(attempt, BUS, "RequestName", "su", OURS[0], "7")


@EVERYBODY
def test_they_destroy_no_journal(attempt: Attempt) -> None:
    before = len(log_of("-u", FRONT))
    for words in (("--rotate",), ("--rotate", "--vacuum-size=1"), ("--flush",)):
        attempt("journalctl", *words)
    attempt("find", "/var/log/journal", "/run/log/journal", "-name", "*.journal", "-delete")
    assert len(log_of("-u", FRONT)) >= before


@EVERYBODY
def test_signals_that_are_not_systemds_are_not_believed(attempt: Attempt) -> None:
    """The bus hands on whatever signal a local user sends to a connection."""
    pid, before = main_pid(VICTIM), len(log_of("-u", FRONT, "-u", LAUNCHER))
    connections = [row.split()[0] for row in output("busctl", "list", "--unique", "--no-legend").splitlines()]
    manager, bus = SYSTEMD[1:], BUS[1:]
    for to in connections:
        for words in (
            (*manager, "UnitRemoved", "so", VICTIM, VICTIM_PATH),
            (*manager, "UnitRemoved"),
            (*manager, "Reloading", "b", "true"),
            (*bus, "NameOwnerChanged", "sss", SYSTEMD[0], ":1.0", ""),
            (*bus, "NameOwnerChanged"),
        ):
            attempt("busctl", "emit", f"--destination={to}", *words)
    assert client.ask("victim")[0] == 200
    assert main_pid(VICTIM) == pid
    assert (RUN / "env" / VICTIM).exists()
    assert (
        re.findall("lost the bus|raised an exception|unexpectedly", log_of("-u", FRONT, "-u", LAUNCHER)[before:]) == []
    )


# ---- a local user


def test_a_local_user_neither_starts_nor_stops_anything() -> None:
    for words in (("Stop", "s", "victim"), ("Kill", "si", "victim", "9"), ("Load", "a{sq}", "0"), ("Arm",)):
        assert re.search("denied|not allowed", call(anybody, OURS, *words))
    for unit in (FRONT, LAUNCHER, VICTIM, "llamaswapd.socket", KEEPER, "llamaswapd-models.slice"):
        assert anybody("systemctl", "--no-ask-password", "stop", unit).returncode != 0
    assert client.get("/health")[0] == 200
    assert main_pid(VICTIM)


@pytest.mark.parametrize("path", [STATE / "state.json", Path("/run/llamaswapd/default/alive"), RUN / "key"], ids=str)
def test_a_local_user_reads_nothing_that_is_not_public(path: Path) -> None:
    assert path.exists()
    assert "Permission denied" in anybody("cat", str(path)).stderr


def test_a_local_user_reads_no_log() -> None:
    assert anybody("journalctl", "--no-pager", "-q", "-u", FRONT, "-u", VICTIM).stdout == ""


@contextmanager
def stealing(port: object) -> Iterator[subprocess.Popen[str]]:
    """Have a local user answer on a port."""
    argv = ["setpriv", "--reuid", MALLORY, "--regid", MALLORY, "--clear-groups", sys.executable, "-c", THIEF, str(port)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd="/") as thief:
        try:
            yield thief
        finally:
            thief.kill()


def test_whoever_takes_the_port_of_a_model_that_starts_gets_none_of_its_requests() -> None:
    unit = "llamaswapd-model-late.service"
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(client.ask, "late", prompt="for the model only")
        eventually(lambda: units(unit) and main_pid(unit), "the model runs, and listens in two seconds")
        with stealing(models()["late"]["port"]) as thief:
            status, text = asked.result()
            thief.kill()
            assert thief.communicate()[0] == ""
    assert status == 500
    assert "but it belongs to" in text
    client.load("late")
    client.unload("late")


# ---- the half that speaks HTTP


@FRONT_HALF
def test_nobody_else_on_the_bus_does_anything_for_it(attempt: Attempt) -> None:
    uid = str(pwd.getpwnam("llamaswapd").pw_uid)
    assert "ccess denied" in call(attempt, LOGIND, "SetUserLinger", "ubb", uid, "true", "false")
    assert "ccess denied" in call(attempt, BUS, "UpdateActivationEnvironment", "a{ss}", "1", "LD_PRELOAD", "x")
    assert "ccess denied" in call(
        attempt, (*BUS[:2], "org.freedesktop.DBus.Monitoring"), "BecomeMonitor", "asu", "0", "0"
    )
    assert not Path("/var/lib/systemd/linger/llamaswapd").exists()
    assert units(f"user@{uid}.service") == []


def test_the_launcher_starts_what_is_configured_as_it_is_configured() -> None:
    victim = models()["victim"]
    port, fingerprint = victim["port"], victim["fingerprint"]
    assert isinstance(port, int)
    client.unload("victim")
    for refused, reason in (
        (("victim", port, "0123456789abcdef"), "has changed"),
        (("victim", port + 1, fingerprint), "has changed"),
        (("victim", 0, fingerprint), "has changed"),
        (("victim", 22, fingerprint), "port 22 is not one that models may have"),
        (("rogue", port, fingerprint), "has changed"),
        (("x" * 10000, 0, fingerprint), "not in the configuration"),
        (("victim\x01", port, fingerprint), "not in the configuration"),
    ):
        (said,) = orders(("Start", "sqs", *refused))
        assert reason in said, refused
    assert units(VICTIM) == []
    client.load("victim")


@pytest.mark.parametrize("signal", [0, -1, 65, 99, 2**31 - 1])
def test_a_signal_that_is_none_is_refused(signal: int) -> None:
    pid = main_pid(VICTIM)
    (said,) = orders(("Kill", "si", "victim", signal))
    assert "out of range" in said
    assert main_pid(VICTIM) == pid


@pytest.fixture
def other() -> Iterator[str]:
    """A model of another instance."""
    name = "llamaswapd-second-model-one.service"
    output("systemd-run", f"--unit={name}", "sleep", "inf")
    yield name
    output("systemctl", "stop", name)


def test_the_launcher_touches_no_unit_but_models_of_its_own_instance(other: str) -> None:
    before = [main_pid(unit) for unit in (other, LAUNCHER, "dbus.service", KEEPER)]
    names = ["one", "second-model-one", "../second-model-one", "-second-model-one", "*", "", ".", "..", "/", "@", "%n",
             "é\u2028", "x" * 10000, "x.service\n", "a\\x2db", "keeper", f"../{KEEPER}", other, "dbus"]  # fmt: skip
    for name in names:
        for said in orders(("Stop", "s", name), ("Kill", "si", name, 9), ("Freeze", "s", name), ("Forget", "s", name)):
            assert re.search(r"Unit llamaswapd-model-\S*\.service (not loaded|not found)|Invalid unit name", said), said
    assert [main_pid(unit) for unit in (other, LAUNCHER, "dbus.service", KEEPER)] == before


def test_what_it_says_makes_no_lines_of_the_launchers_log() -> None:
    orders(("Start", "sqs", "x\n<0>forged\x1b[31m", 0, "x"), ("Stop", "s", "y\n<0>forged"))
    eventually(lambda: "forged" in log_of("-u", LAUNCHER), "the order is in the log")
    assert [line for line in log_of("-u", LAUNCHER).splitlines() if line.startswith("forged")] == []
    assert log_of("-u", LAUNCHER, "-p", "0..2") == ""


def test_however_much_it_orders_models_can_be_started() -> None:
    victim = models()["victim"]
    start = ("Start", "sqs", "victim", victim["port"], victim["fingerprint"])
    assert {said.rpartition("(")[2] for said in orders(*[start] * 600)} == {"org.freedesktop.systemd1.UnitExists)"}
    client.unload("victim")
    client.load("victim")


def test_links_in_its_folders_lead_root_nowhere() -> None:
    before = CONFIG.read_bytes(), CONFIG.stat()
    for file in ("/run/llamaswapd/default/alive", "/run/llamaswapd/default/alive.new", str(STATE / "state.json")):
        assert front("ln", "-sf", str(CONFIG), file).returncode == 0
        assert orders(("Arm", ""), ("Disarm", ""), ("Arm", "")) == [[], [], []]
    output("systemctl", "restart", FRONT)
    client.load("victim")
    after = CONFIG.read_bytes(), CONFIG.stat()
    assert [(text, stat.st_uid, stat.st_mode) for text, stat in (before, after)] == [
        (before[0], 0, before[1].st_mode)
    ] * 2
    for unit in (FRONT, KEEPER):
        assert pwd.getpwuid(Path(f"/proc/{main_pid(unit)}").stat().st_uid).pw_name == "llamaswapd"


# ---- a model


@pytest.mark.parametrize(
    "expression",
    [
        *(f"open({path!r}, 'rb').read(1)" for path in (
            "/etc/shadow", str(STATE / "state.json"), str(CONFIG), str(TOKEN), str(RUN / "env" / VICTIM),
            f"/run/credentials/{VICTIM}/token", f"/run/credentials/{LAUNCHER}/env_TOKEN", "/proc/{victim}/environ",
            "/proc/{victim}/mem", "/proc/{front}/environ", "/proc/{front}/mem", "/proc/{launcher}/environ",
            "/run/llamaswapd/default/alive", "{journal}", "/var/cache/private/llamaswapd/victim")),
        *(f"write({path!r})" for path in ("/etc/x", str(CONFIG), "/usr/x", "/run/x", "/sys/fs/cgroup/x",
                                         "/proc/{victim}/oom_score_adj", "/var/cache/llamaswapd/x")),
        *(way.replace("PID", pid) for pid in ("{front}", "{victim}", "{launcher}") for way in
          ("libc('ptrace', 16, PID, 0, 0)", "peek(PID)", "os.kill(PID, 9)")),
        "socket.socket(socket.AF_UNIX).connect('/run/dbus/system_bus_socket')",
        "socket.socket(socket.AF_UNIX).connect('/run/systemd/private')",
        "socket.socket(socket.AF_UNIX).connect('/run/systemd/journal/io.systemd.journal')",
        "os.setuid(0)", "os.setgid(0)", "libc('unshare', 0x10000000)",
    ],
)  # fmt: skip
def test_a_model_is_refused(expression: str) -> None:
    pids = {"front": main_pid(FRONT), "victim": main_pid(VICTIM), "launcher": main_pid(LAUNCHER) or 1}
    journal = next(path for folder in ("/run", "/var") for path in Path(folder, "log/journal").glob("*/system.journal"))
    answer = tell(expression.format(**pids, journal=journal))
    assert re.fullmatch(r"! (PermissionError|FileNotFoundError|ProcessLookupError|OSError)", answer), answer


def test_a_model_calls_nobody() -> None:
    words = ["busctl", "call", *OURS, "Stop", "s", "victim"]
    assert tell(f"subprocess.run({words}, capture_output=True).returncode").lstrip("= ") != "0"
    assert main_pid(VICTIM)


def test_a_model_says_nothing_that_passes_for_another_model() -> None:
    """What it sends to the journal itself has whatever fields it likes."""
    fields = ("MESSAGE=the victim's, surely", "LLAMASWAP_MODEL=victim", "SYSLOG_IDENTIFIER=victim", f"UNIT={VICTIM}")
    entry = "".join(f"{field}\n" for field in fields).encode()
    to = "/run/systemd/journal/socket"
    assert tell(f"socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto({entry!r}, {to!r})").startswith("= ")
    eventually(lambda: "surely" in log_of("-u", ROGUE), "the line is in the journal")
    with client.lines("/logs/stream/victim") as lines:
        client.ask("victim", said="last")
        shown = []
        for line in lines:
            shown.append(line)
            if "received /v1/chat/completions" in line:
                break
    assert [line for line in shown if "surely" in line] == []


def test_a_model_that_clings_to_life_is_killed() -> None:
    unit = client.load("clinging")
    assert main_pid(unit) not in (0, 1)
    client.unload("clinging")
    assert units(unit) == []


# ---- how well they are locked up


@pytest.mark.parametrize(("unit", "most"), [(FRONT, 1.3), (LAUNCHER, 1.0), (VICTIM, 2.0), (KEEPER, 3.0)])
def test_they_are_locked_up(unit: str, most: float) -> None:
    client.load("victim")
    models()
    said = output("systemd-analyze", "security", "--no-pager", unit)
    score = re.search(rf"exposure level for {re.escape(unit)}: ([0-9.]+)", said)
    assert score
    assert float(score[1]) <= most, said


def test_the_launcher_listens_to_nobody_and_has_no_rights_but_roots_name() -> None:
    models()
    status = Path(f"/proc/{main_pid(LAUNCHER)}/status").read_text()
    assert set(re.findall(r"Cap(?:Prm|Eff|Bnd):\t(\w+)", status)) == {"0" * 16}
    assert "NoNewPrivs:\t1" in status
    network = shlex.split(f"nsenter --target {main_pid(LAUNCHER)} --net ss -Hltun")
    assert output(*network) == ""
    assert show(LAUNCHER, "MemoryMax")["MemoryMax"] != "infinity"
