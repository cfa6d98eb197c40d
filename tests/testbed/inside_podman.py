"""Models that are containers of podman's or docker's, with the system manager. Runs in a bed, as root.

Their image has nothing of its own: programs and test server are the bed's, as volumes. Whatever happens to a container,
nothing may be left: no container, no process, no mount, no cgroup.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from inside_daemon import (
    TREE,
    Client,
    by_hand,
    cgroup_root,
    error_message,
    eventually,
    log_of,
    main_pid,
    output,
    show,
    units,
)

CONFIG = Path("/etc/llamaswapd-containers.yaml")
PORT, OTHER_PORT = 8090, 8091
IMAGE = "llamaswapd-test"
ARCHIVE = Path("/var/tmp/llamaswapd-test.tar")
SERVER = f"/usr/bin/python3 -S -E {TREE}/tests/models/server.py"
VOLUMES = f"[/usr:/usr:ro, /etc:/etc:ro, '{TREE}:{TREE}:ro']"

MODELS = """
unloadTimeout: 10
healthCheckTimeout: 60
models:
  red:
    env: [SECRET=only-for-red, GREETING=hello world]
    {client}: {{image: {image}, args: "{server} ${{PORT}} --slow-stop 0", volumes: {volumes}}}
  blue:
    {client}: {{image: {image}, args: "{server} ${{PORT}} --slow-stop 0", volumes: {volumes}}}
  "org/published:x":
    {client}: {{image: {image}, args: "{server} 8000 --host 0.0.0.0 --slow-stop 0", port: 8000, volumes: {volumes}}}
  deaf:
    unloadTimeout: 2
    {client}: {{image: {image}, args: "{server} ${{PORT}} --deaf --fork", volumes: {volumes}}}
  own:
    cmd: "{client} run --rm --name own {options} {image} {server} ${{PORT}} --slow-stop 0"
    systemd: {{Delegate: yes}}
  own-deaf:
    unloadTimeout: 2
    cmd: "{client} run --rm --name=own-deaf {options} {image} {server} ${{PORT}} --deaf --fork"
    systemd: {{Delegate: yes}}
  hungry:
    {client}: {{image: {image}, args: "{server} ${{PORT}} --slow-stop 0 --memory 400", volumes: {volumes}}}
    systemd: {{MemoryMax: 200M, MemorySwapMax: 0}}
  ann:
    {client}: {{image: {image}, args: "{server} ${{PORT}} --slow-stop 0", volumes: {volumes}}}
    systemd: {{User: ann}}
  nowhere:
    {client}: {{image: localhost/there-is-no/such-image, args: "${{PORT}}", pull: never}}
  failing:
    {client}: {{image: {image}, args: "{server} ${{PORT}} --listen-after 9 --exit 0.3:7", volumes: {volumes}}}
"""

CLIENT = os.environ.get("CONTAINER_CLIENT", "podman")
IS_PODMAN = CLIENT == "podman"
STORAGE = Path("/etc/containers/storage.conf")  # what it is by default does not work in every bed
HAS_LIMITS = "memory" in (cgroup_root() / "cgroup.controllers").read_text()
PROCESSES = ["conmon", "server.py", f"{CLIENT} run"] if IS_PODMAN else ["containerd-shim", "server.py", "docker run"]


@pytest.fixture(scope="module", autouse=True)
def image(tmp_path_factory: pytest.TempPathFactory) -> None:
    if IS_PODMAN and not STORAGE.exists():
        storage = '[storage]\ndriver = "vfs"\nrunroot = "/run/containers"\ngraphroot = "/var/lib/containers/storage"\n'
        STORAGE.write_text(storage)
    root = tmp_path_factory.mktemp("image")
    for name in ("usr", "etc", "tmp", "opt"):
        (root / name).mkdir()
    for name in ("bin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    output("sh", "-c", f"tar -C {root} -cf {ARCHIVE} . && {CLIENT} import {ARCHIVE} {IMAGE}")
    options = f"--network=host -v /usr:/usr:ro -v /etc:/etc:ro -v {TREE}:{TREE}:ro"
    options += " --cgroups=split" if IS_PODMAN else ""
    CONFIG.write_text(MODELS.format(client=CLIENT, image=IMAGE, server=SERVER, volumes=VOLUMES, options=options))


@pytest.fixture(scope="module")
def daemon(image: None) -> Iterator[Client]:
    with by_hand(CONFIG, PORT, "--instance", "held"):
        yield Client(PORT)
    nothing_is_left()


@pytest.fixture
def client(daemon: Client) -> Iterator[Client]:
    yield daemon
    daemon.unload()
    nothing_is_left()


def nothing_is_left() -> None:
    """Fail unless there is no trace of a container. docker takes its own away a moment after it has said so."""
    eventually(lambda: not traces(), "there is no trace of a container") if not IS_PODMAN else None
    assert traces() == []


def traces() -> list[str]:
    return [
        *units(),
        *containers(),
        *(
            line
            for line in Path("/proc/self/mounts").read_text().splitlines()
            if "userdata" in line or "/lib/docker/" in line
        ),
        *(line for line in output("ps", "-eo", "pid,args").splitlines() if any(name in line for name in PROCESSES)),
        *(str(path) for path in cgroup_root().rglob("*") if "libpod" in path.name or path.name.startswith("docker-")),
        *(output("podman", "mount").splitlines() if IS_PODMAN else ()),
    ]


def containers() -> list[str]:
    return output(CLIENT, "ps", "--all", "--format", "{{.Names}}").splitlines()


def unit_of(model: str) -> str:
    return f"llamaswapd-held-model-{model}.service"


def load(client: Client, model: str) -> int:
    """Have a model running; return the pid of its server."""
    status, text = client.ask(model)
    assert status == 200, text
    return server_pid()


def server_pid() -> int:
    [line] = [
        line for line in output("ps", "-eo", "pid,args").splitlines() if "server.py" in line and CLIENT not in line
    ]
    return int(line.split()[0])


def inside(name: str) -> Any:
    """Return what the client knows of a container."""
    return json.loads(output(CLIENT, "inspect", name))[0]


def test_a_container_starts_streams_and_is_unloaded(client: Client) -> None:
    load(client, "red")
    assert containers() == ["llamaswapd-held-model-red"]
    _, text = client.ask("red", stream=True, n=3)
    assert text.count("data:") >= 3
    client.unload("red")
    nothing_is_left()


def test_the_next_model_evicts_it(client: Client) -> None:
    load(client, "red")
    load(client, "blue")
    assert containers() == ["llamaswapd-held-model-blue"]


def test_all_of_it_is_in_the_units_cgroup_where_the_client_is_podman(client: Client) -> None:
    pid = load(client, "red")
    group = show(unit_of("red"), "ControlGroup")["ControlGroup"]
    assert (group in Path(f"/proc/{pid}/cgroup").read_text()) is IS_PODMAN


def test_a_port_inside_is_published_on_the_models_port_for_this_machine_only(client: Client) -> None:
    load(client, "org/published:x")
    [name] = containers()
    assert name.startswith("llamaswapd-held-model-org_x2fpublished_x-")
    [[published]] = inside(name)["HostConfig"]["PortBindings"].values()
    assert published["HostIp"] == "127.0.0.1"


def test_the_environment_reaches_the_server_and_no_command_line(client: Client) -> None:
    pid = load(client, "red")
    assert b"SECRET=only-for-red\0" in Path(f"/proc/{pid}/environ").read_bytes()
    assert b"GREETING=hello world\0" in Path(f"/proc/{pid}/environ").read_bytes()
    assert "only-for-red" not in output("ps", "-eo", "args")
    assert "no_new_privs:1" in " ".join(Path(f"/proc/{pid}/status").read_text().split()).replace(
        "NoNewPrivs: ", "no_new_privs:"
    )


def test_its_lines_are_in_the_journal_once(client: Client) -> None:
    load(client, "red")
    log = eventually(lambda: log_of("LLAMASWAP_MODEL=red", "LLAMASWAP_INSTANCE=held", "-b", *this_run("red")), "a log")
    assert log.count("received /v1/chat/completions") == 1
    assert "container create" not in log


def this_run(model: str) -> list[str]:
    return [f"_SYSTEMD_INVOCATION_ID={show(unit_of(model), 'InvocationID')['InvocationID']}"]


@pytest.mark.parametrize("model", ["deaf", "own-deaf"])
def test_one_that_ignores_sigterm_is_gone_when_its_time_is_over(client: Client, model: str) -> None:
    status, text = client.ask(model)
    assert status == 200, text
    client.unload(model)
    nothing_is_left()


@pytest.mark.parametrize("model", ["red", "own"])
@pytest.mark.parametrize("victim", ["client", "monitor", "server"])
def test_whichever_process_is_killed_nothing_is_left_and_the_next_request_starts_it_again(
    client: Client, victim: str, model: str
) -> None:
    server = load(client, model)
    os.kill({"client": main_pid(unit_of(model)), "monitor": monitor_pid(), "server": server}[victim], signal.SIGKILL)
    eventually(lambda: not units("llamaswapd-held-model-*"), "the unit is gone")
    nothing_is_left()
    load(client, model)


def monitor_pid() -> int:
    [name] = containers()
    if IS_PODMAN:
        return int(Path(inside(name)["ConmonPidFile"]).read_text())
    [line] = [line for line in output("ps", "-eo", "pid,args").splitlines() if "containerd-shim" in line]
    return int(line.split()[0])


def test_a_client_of_the_model_is_told_how_it_ended(client: Client) -> None:
    status, text = client.ask("failing")
    assert status == 500
    assert "exited prematurely: exit status 7" in error_message(text)


def test_an_image_that_is_not_there_is_named(client: Client) -> None:
    status, text = client.ask("nowhere")
    assert status == 500
    assert "such-image" in error_message(text)


def test_a_container_outlives_a_killed_daemon_and_is_taken_over_by_the_next() -> None:
    with by_hand(CONFIG, OTHER_PORT, "--instance", "other") as daemon:
        pid = load(Client(OTHER_PORT), "red")
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
        assert containers() == ["llamaswapd-other-model-red"]
    with by_hand(CONFIG, OTHER_PORT, "--instance", "other"):
        assert load(Client(OTHER_PORT), "red") == pid
    nothing_is_left()


def test_a_container_that_was_left_behind_gives_way(client: Client) -> None:
    argv = [CLIENT, "run", "--detach", "--name=llamaswapd-held-model-red", "--network=host", "--volume=/usr:/usr:ro"]
    output(*argv, IMAGE, "/usr/bin/sleep", "600")
    load(client, "red")
    assert containers() == ["llamaswapd-held-model-red"]


@pytest.mark.skipif(not HAS_LIMITS, reason="there is no memory controller")
def test_one_that_takes_more_memory_than_it_may_is_killed_and_nothing_is_left(client: Client) -> None:
    load(client, "hungry")
    status, text = client.get("/upstream/hungry/allocate")
    assert status == 502
    assert "killed by SIGKILL" in error_message(text)
    eventually(lambda: not units("llamaswapd-held-model-*"), "the unit is gone")
    nothing_is_left()


@pytest.mark.skipif(not IS_PODMAN, reason="docker's containers are run by its daemon")
@pytest.mark.skipif(not shutil.which("newuidmap"), reason="uidmap is not installed")
def test_a_user_may_run_containers_that_root_does_not_know(client: Client) -> None:
    output("useradd", "--create-home", "ann")
    output("loginctl", "enable-linger", "ann")
    output("systemctl", "start", f"user@{pwd.getpwnam('ann').pw_uid}.service")
    output("runuser", "--login", "ann", "--command", f"podman import {ARCHIVE} {IMAGE}")
    pid = load(client, "ann")
    assert os.stat(f"/proc/{pid}").st_uid == pwd.getpwnam("ann").pw_uid
    assert show(unit_of("ann"), "ControlGroup")["ControlGroup"] in Path(f"/proc/{pid}/cgroup").read_text()
    assert containers() == []
    client.unload("ann")
    nothing_is_left()
    assert output("runuser", "--login", "ann", "--command", "podman ps --all --quiet") == ""
