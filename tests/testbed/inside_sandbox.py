"""What a model can do in the sandbox of the packaged program, and what it is kept from. Runs in a bed, as root."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from inside_daemon import (
    PATIENCE_S,
    TREE,
    environment_of,
    eventually,
    main_pid,
    output,
    processes,
    show,
    systemd_version,
    units,
)

from llamaswapd.config.schema import ModelConfig
from llamaswapd.doctor.access import READ, obstacle
from llamaswapd.doctor.case import case as case_of
from llamaswapd.doctor.machine import Machine
from llamaswapd.systemd import sandbox
from llamaswapd.systemd.manager import Manager
from llamaswapd.systemd.unit import Host, build, object_path

DAEMON = "sandbox-daemon.service"
ETC, STATE, RUN, MODELS = map(
    Path, ("/etc/llamaswapd", "/var/lib/llamaswapd", "/run/llamaswapd-launcher", "/srv/models")
)
ENVIRONMENTS = RUN / "env"
FIRST_PORT = 5900
ODD = """ a"b\\c`d$e ${f} %n\n\tg'h # é """


class Model:
    """A model that evaluates expressions, as a unit with the packaged defaults."""

    def __init__(self, model_id: str, number: int, **settings: Any) -> None:
        port = FIRST_PORT + number
        own = {name: (values,) if isinstance(values, str) else values for name, values in settings.items()}
        cmd = f"/usr/bin/python3 -I {TREE}/tests/models/obedient.py {port}"
        model = ModelConfig(
            id=model_id, cmd=cmd, env=(f"SECRET=of {model_id}", f"ODD={ODD}"), unload_timeout=5, systemd=own
        )
        host = Host(
            systemd_version(), "/", "", {"PATH": os.environ["PATH"]}, str, sandbox.packaged(), str(ENVIRONMENTS)
        )
        self.model = model
        self.spec = build(model, host)
        self.unit = self.spec.name
        self._port = port

    def start(self) -> None:
        (ENVIRONMENTS / self.unit).write_text(self.spec.environment_file)
        assert asyncio.run(self._start()) == "done", output("journalctl", "-u", self.unit)
        eventually(self._is_listening, f"{self.unit} listens")

    async def _start(self) -> str:
        manager = await Manager.connect("system")
        try:
            watch = await manager.watch(self.unit, object_path(self.unit), lambda changed: None)
            return await manager.start_transient_unit(watch, self.spec.properties)
        finally:
            await manager.close()

    def _is_listening(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0

    def stop(self) -> None:
        subprocess.run(["systemctl", "stop", self.unit], check=False)

    def tell(self, expression: str) -> str:
        """Return what came of an expression: `= repr` or `! Exception`."""
        with socket.create_connection(("127.0.0.1", self._port), PATIENCE_S) as connection:
            connection.sendall(expression.encode() + b"\n")
            return connection.makefile().readline().rstrip("\n")

    def can(self, expression: str) -> str:
        answer = self.tell(expression)
        assert answer.startswith("= "), f"{expression} {answer}"
        return answer[2:]

    def is_refused(self, expression: str) -> None:
        answer = self.tell(expression)
        assert re.fullmatch(r"! (PermissionError|FileNotFoundError|ProcessLookupError|OSError)", answer), answer


@pytest.fixture(scope="module", autouse=True)
def machine() -> Iterator[None]:
    """What the package makes, and a daemon: a process of the user llamaswapd with a state."""
    output("groupadd", "--system", "--force", "llamaswapd-model")
    subprocess.run(["useradd", "--system", "llamaswapd"], check=False)
    for folder, mode in ((ETC / "credentials", 0o700), (ENVIRONMENTS, 0o700), (MODELS, 0o755)):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(mode)
    (ETC / "config.yaml").write_text("models: {}\n")
    for name in ("one", "two"):
        (ETC / "credentials" / name).write_text(f"secret of {name}")
    (MODELS / "public.gguf").write_text("weights")
    (MODELS / "private.gguf").write_text("weights")
    (MODELS / "private.gguf").chmod(0o640)
    output("chgrp", "llamaswapd-model", str(MODELS / "private.gguf"))
    (MODELS / "closed.gguf").write_text("weights")
    (MODELS / "closed.gguf").chmod(0o600)
    properties = ("User=llamaswapd", "StateDirectory=llamaswapd", "Environment=SECRET=x")
    output(
        "systemd-run", f"--unit={DAEMON}", "--service-type=exec", *(f"--property={each}" for each in properties),
        "sh", "-c", "echo {} >$STATE_DIRECTORY/state.json; exec sleep inf",
    )  # fmt: skip
    eventually((STATE / "state.json").exists, "there is a state")
    yield
    output("systemctl", "stop", DAEMON)


def running(*models: Model) -> Iterator[Any]:
    try:
        for model in models:
            model.start()
        yield models[0] if len(models) == 1 else models
    finally:
        for model in models:
            model.stop()


@pytest.fixture(scope="module")
def both(machine: None) -> Iterator[tuple[Model, Model]]:
    """Two models, each with a credential of its own."""
    yield from running(
        *(
            Model(f"org/{name}", number, LoadCredential=f"token:{ETC}/credentials/{name}")
            for number, name in enumerate(("one", "two"))
        )
    )


@pytest.fixture(scope="module")
def model(both: tuple[Model, Model]) -> Model:
    return both[0]


@pytest.fixture(scope="module")
def as_root(machine: None) -> Iterator[Model]:
    yield from running(Model("root", 2, User="root"))


# What it is kept from


@pytest.mark.parametrize(
    "path",
    ["/etc/shadow", f"{STATE}/state.json", f"{ETC}/config.yaml", f"{ETC}/credentials/one", f"{ETC}/credentials/two",
     f"{ENVIRONMENTS}/llamaswapd-model-org\\x2ftwo.service", f"{MODELS}/closed.gguf",
     "/run/credentials/llamaswapd-model-org\\x2ftwo.service/token", "/var/cache/llamaswapd/org+2ftwo/x"],
)  # fmt: skip
def test_it_reads_no_secret(model: Model, path: str) -> None:
    model.is_refused(f"open({path!r}).read()")


@pytest.mark.parametrize("path", [ETC, STATE, "/root", "/run/llamaswapd-launcher"])
def test_it_does_not_look_into_folders_of_others(model: Model, path: object) -> None:
    model.is_refused(f"os.listdir({str(path)!r})")


def test_of_all_caches_it_sees_its_own(model: Model) -> None:
    assert model.can("os.listdir('/var/cache/private/llamaswapd')") == "['org+2fone']"


def test_of_the_credentials_of_all_models_it_sees_its_own(model: Model) -> None:
    assert model.can("open(os.environ['CREDENTIALS_DIRECTORY'] + '/token').read()") == "'secret of one'"
    assert model.can("os.listdir('/run/credentials')") == r"['llamaswapd-model-org\\x2fone.service']"


@pytest.mark.parametrize(
    "path",
    ["/etc/x", "/usr/x", "/srv/models/x", "/var/lib/x", "/opt/x", "/run/x", "/sys/fs/cgroup/x", "/home/x",
     "/proc/sys/kernel/hostname"],
)  # fmt: skip
def test_it_writes_nothing_of_the_machines(model: Model, path: str) -> None:
    model.is_refused(f"write({path!r})")


@pytest.mark.parametrize("whose", ["daemon", "other"])
@pytest.mark.parametrize("file", ["environ", "mem", "maps", "root/etc/hostname", "fd/0"])
def test_it_sees_no_process_of_others(both: tuple[Model, Model], whose: str, file: str) -> None:
    pid = main_pid(DAEMON if whose == "daemon" else both[1].unit)
    both[0].is_refused(f"open('/proc/{pid}/{file}', 'rb').read(1)")


@pytest.mark.parametrize("whose", ["daemon", "other"])
@pytest.mark.parametrize("way", ["libc('ptrace', 16, {pid}, 0, 0)", "peek({pid})", "os.kill({pid}, 9)"])
def test_it_touches_no_process_of_others(both: tuple[Model, Model], whose: str, way: str) -> None:
    pid = main_pid(DAEMON if whose == "daemon" else both[1].unit)
    both[0].is_refused(way.format(pid=pid))


@pytest.mark.parametrize(
    "call",
    ["socket.socket(socket.AF_PACKET)", "os.setuid(0)", "os.chroot('/tmp')", "libc('unshare', 0x10000000)",
     "libc('mount', b'x', b'/tmp', b'tmpfs', 0, 0)"],
)  # fmt: skip
def test_it_gets_no_further_rights(model: Model, call: str) -> None:
    model.is_refused(call)


def test_a_program_with_another_users_rights_gets_none(model: Model) -> None:
    shell = "subprocess.run(['su', '-c', 'id'], stdin=-3, capture_output=True).returncode"
    assert model.can(shell) != "0"
    assert "NoNewPrivs:\t1" in model.can("open('/proc/self/status').read()").replace("\\t", "\t")


def test_it_has_no_bus_on_which_to_ask_for_anything(model: Model) -> None:
    model.is_refused("os.stat('/run/dbus/system_bus_socket')")
    assert model.can("subprocess.run(['busctl', 'list'], capture_output=True).returncode") != "0"


def test_its_environment_is_clean_and_nobody_reads_it_from_the_bus(model: Model) -> None:
    names = set(environment_of(main_pid(model.unit)))
    assert {"HOME", "XDG_CACHE_HOME", "PATH", "SECRET", "CREDENTIALS_DIRECTORY"} <= names
    assert not {name for name in names if name.startswith(("LLAMASWAP", "PYTHON", "DBUS"))}
    assert show(model.unit, "Environment") == {"Environment": ""}
    assert "of org/one" not in output("systemctl", "show", model.unit) + output("systemctl", "cat", model.unit)


def test_every_character_of_its_environment_arrives(model: Model) -> None:
    assert model.can("os.environ['ODD']") == repr(ODD)


# What it can do


@pytest.mark.parametrize("name", ["public.gguf", "private.gguf"])
def test_it_reads_models_that_all_or_its_group_may_read(model: Model, name: str) -> None:
    assert model.can(f"open('{MODELS}/{name}').read()") == "'weights'"


def test_it_has_every_group_that_devices_want(model: Model) -> None:
    groups = {line.split(":")[0] for line in Path("/etc/group").read_text().splitlines()}
    wanted = ({"video", "render"} & groups) | {"llamaswapd-model"}
    assert wanted <= set(model.can("subprocess.check_output(['id', '-Gn'], text=True)").strip("'\\n").split())


def test_weights_are_mapped_and_locked_as_far_as_the_machine_lets_anybody(model: Model) -> None:
    model.can(f"mmap.mmap(os.open('{MODELS}/public.gguf', os.O_RDONLY), 0, prot=mmap.PROT_READ)")
    ours = ctypes.CDLL(None).mlock(ctypes.create_string_buffer(4096), 4096)  # a container may not let even us
    assert model.can("LIBC.mlock(ctypes.create_string_buffer(4096), 4096)") == str(ours)


def test_code_is_made_and_run_in_memory(model: Model) -> None:
    model.can("mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)")


@pytest.mark.parametrize(
    "call",
    ["os.sched_setaffinity(0, os.sched_getaffinity(0))", "os.nice(1)", "os.memfd_create('x')",
     "os.fork() or os._exit(0)", "os.open('/dev/null', os.O_RDWR)", "open('/dev/urandom', 'rb').read(1)",
     "write('/dev/shm/x')", "write('/tmp/x')",
     "open('/proc/meminfo').read()", "os.listdir('/sys/class')", "socket.getaddrinfo('localhost', 1)",
     "subprocess.check_output(['python3', '-c', 'import threading; threading.Thread(target=print).start()'])"],
)  # fmt: skip
def test_it_has_what_programs_are_used_to(model: Model, call: str) -> None:
    model.can(call)


def test_what_it_downloads_is_there_at_its_next_start(both: tuple[Model, Model]) -> None:
    model = both[1]
    assert model.can("write(os.environ['HOME'] + '/model.bin', 'much')") == "4"
    assert model.can("os.getcwd()").endswith("llamaswapd/org+2ftwo'")
    model.stop()
    model.start()
    assert model.can("open(os.environ['XDG_CACHE_HOME'] + '/model.bin').read()") == "'much'"
    assert os.stat("/var/cache/private/llamaswapd/org+2ftwo/model.bin").st_mode & 0o777 == 0o600


def test_nothing_of_it_is_left_in_tmp_and_shm_when_it_has_stopped(machine: None) -> None:
    for gone in running(Model("gone", 3)):
        gone.can("write('/tmp/x')")
        gone.can("write('/dev/shm/gone')")
    assert not Path("/tmp/x").exists()
    assert not Path("/dev/shm/gone").exists()
    assert "llamaswapd-model-gone.service" not in units("llamaswapd-model-*")


# Taken back


def test_a_model_runs_as_a_user_of_the_machine_and_stays_locked_up(machine: None) -> None:
    subprocess.run(["useradd", "--create-home", "alice"], check=False)
    Path("/home/alice/model.gguf").write_text("hers")
    output("chown", "alice:", "/home/alice/model.gguf")
    for model in running(Model("hers", 4, User="alice")):
        assert model.can("os.getlogin() if False else os.environ['USER']") == "'alice'"
        assert model.can("open('/home/alice/model.gguf').read()") == "'hers'"
        model.can("write(os.environ['HOME'] + '/x')")
        model.is_refused("write('/home/alice/x')")
        model.is_refused(f"os.listdir('{STATE}')")


def test_each_thing_can_be_taken_back(machine: None) -> None:
    loosened = Model(
        "loose", 5, User="alice", ProtectHome="no", ProtectSystem="no", InaccessiblePaths="", PrivateTmp="no",
        RestrictNamespaces="no", NoNewPrivileges="no", SystemCallFilter="", CapabilityBoundingSet="~",
        AmbientCapabilities="CAP_DAC_READ_SEARCH", RestrictAddressFamilies="", ProtectKernelTunables="no",
        ProtectControlGroups="no", CacheDirectory="", LimitCORE="1M", UMask="0022",
    )  # fmt: skip
    for model in running(loosened):
        assert model.can(f"open('{ETC}/credentials/one').read()") == "'secret of one'"
        model.can("write('/home/alice/x')")
        model.can("os.stat('/run/dbus/system_bus_socket') and 1")
        assert model.can("os.environ['HOME']") == "'/home/alice'"
        if systemd_version() < 257:  # which takes the right away with any filter that is left
            return
        assert "NoNewPrivs:\t0" in model.can("open('/proc/self/status').read()").replace("\\t", "\t")


def test_a_model_as_root_is_kept_from_the_daemon_and_from_systemd(as_root: Model) -> None:
    for path in (ETC, STATE, RUN, "/run/dbus"):
        as_root.is_refused(f"os.listdir({str(path)!r})")
    as_root.is_refused("open('/run/systemd/private')")
    as_root.is_refused("write('/etc/x')")
    assert as_root.can("subprocess.run(['systemctl', 'list-units'], capture_output=True).returncode") != "0"


# The doctor

PATHS = (
    *(MODELS / name for name in ("public.gguf", "private.gguf", "closed.gguf", "link.gguf", "nothing.gguf")),
    ETC / "config.yaml", ETC / "credentials/one", STATE / "state.json", "/etc/shadow", "/etc/hostname", "/root/x",
    "/home/alice/model.gguf", "/home/alice/open/model.gguf", "/tmp/model.gguf", "/var/tmp/model.gguf",
    "/dev/shm/model.gguf", "/run/llamaswapd-launcher/env", "/run/systemd/private", "/proc/meminfo", "/srv/models",
)  # fmt: skip


@pytest.mark.parametrize("settings", [{}, {"User": "alice"}, {"User": "root"}, {"User": "alice", "ProtectHome": "yes"},
                                      {"User": "alice", "InaccessiblePaths": "", "PrivateTmp": "no"}])  # fmt: skip
def test_the_doctor_foresees_what_a_model_can_read(machine: None, settings: dict[str, str]) -> None:
    subprocess.run(["useradd", "--create-home", "alice"], check=False)
    Path("/home/alice/open").mkdir(exist_ok=True)
    for path in map(Path, ("/home/alice/model.gguf", "/home/alice/open/model.gguf", "/tmp/model.gguf",
                           "/var/tmp/model.gguf", "/dev/shm/model.gguf", "/root/x")):  # fmt: skip
        path.write_text("weights")
    output("chown", "-R", "alice:", "/home/alice")
    link = MODELS / "link.gguf"
    link.unlink(missing_ok=True)
    link.symlink_to("/home/alice/open/model.gguf")
    for model in running(Model("asked", 6, **settings)):
        case = case_of(Machine(), model.model, model.spec, "launcher")
        assert case.who
        wrong = []
        for path in map(str, PATHS):
            foreseen = obstacle(Machine(), path, case.who, READ, case.hidden)
            look = f"os.listdir({path!r})" if Path(path).is_dir() else f"os.close(os.open({path!r}, os.O_RDONLY))"
            if model.tell(look).startswith("= ") != (foreseen is None):
                wrong.append((path, model.tell(look), foreseen))
        assert not wrong


def test_what_the_doctor_advises_helps(machine: None, tmp_path: Path) -> None:
    weights = MODELS / "advised.gguf"
    weights.write_text("weights")
    weights.chmod(0o600)
    config = tmp_path / "config.yaml"
    program = f"/usr/bin/python3 -I {TREE}/tests/models/obedient.py ${{PORT}}"
    config.write_text(f"models: {{advised: {{cmd: '{program} --model {weights}'}}}}")
    ask = ("python3", "-m", "llamaswapd", "doctor", "-json", "-manager", "launcher", "-config", str(config))

    def advice() -> list[str]:
        done = subprocess.run(ask, capture_output=True, text=True)
        return [found["remedy"] for found in json.loads(done.stdout) if found["thing"] == f"advised: {weights}"]

    for model in running(Model("advised", 7)):
        model.is_refused(f"open('{weights}')")
        [command] = advice()
        subprocess.run(command, shell=True, check=True)
        assert advice() == [""]
        model.can(f"open('{weights}').read()")


# The whole of it


def test_systemd_finds_the_unit_well_locked_up(model: Model) -> None:
    [score] = re.findall(
        r"exposure level for .*: ([0-9.]+)", output("systemd-analyze", "security", "--no-pager", model.unit)
    )
    print(f"exposure of a model: {score}")
    assert float(score) < 2.0


def test_the_unit_is_the_same_after_systemd_has_read_its_files_again(model: Model) -> None:
    before = show(model.unit)
    output("systemctl", "daemon-reload")
    after = show(model.unit)
    changed = {name for name in model.spec.settings if before.get(name) != after.get(name)}
    assert changed <= {"ExecStart"}  # which says when it was started
    assert processes(model.unit)
