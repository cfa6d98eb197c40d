"""What is in one model's way, and what helps."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from folders import ALICE, Folder

from llamaswapd.config.schema import Container
from llamaswapd.doctor.case import Case
from llamaswapd.doctor.finding import Finding
from llamaswapd.doctor.model_checks import CHECKS, accounts, containers, files, paths, port, program, settings


def of(check: Any, folder: Folder, case: Case) -> list[Finding]:
    return list(check(folder.machine, case))


def only(check: Any, folder: Folder, case: Case) -> Finding:
    [finding] = of(check, folder, case)
    return finding


# The program


def test_a_program_that_the_model_may_execute_is_fine(folder: Folder) -> None:
    folder.put("/usr/bin/server", mode=0o755)
    found = only(program, folder, folder.case())
    assert str(found) == "ok       qwen: program /usr/bin/server: can be executed by a user of the model's own"


def test_a_program_that_is_not_in_the_path_is_looked_for_elsewhere(folder: Folder) -> None:
    found = only(program, folder, folder.case("llama-server --port 1"))
    assert (found.level, found.value) == ("problem", "is not in the PATH of the daemon")
    assert found.remedy == "install llama-server, or write the path of the program in cmd"
    folder.put("/opt/llama/bin/llama-server", mode=0o755)
    assert only(program, folder, folder.case("llama-server --port 1")).remedy == (
        "write the path in cmd: /opt/llama/bin/llama-server --port 1"
    )


def test_a_model_without_a_command_is_said_to_have_none_and_no_more(folder: Folder) -> None:
    said = [str(found) for check in CHECKS for found in of(check, folder, folder.case("", proxy="http://localhost:9"))]
    assert said == ["problem  qwen: has no command; set cmd"]


def test_a_program_on_a_file_system_without_programs_is_named(folder: Folder) -> None:
    class NoExec(type(folder.machine)):  # type: ignore[misc]
        def is_noexec(self, name: str) -> bool:
            return name == "/srv/bin/server"

    folder.put("/srv/bin/server", mode=0o755)
    machine = NoExec(**{each.name: getattr(folder.machine, each.name) for each in dataclasses.fields(folder.machine)})
    [found] = program(machine, folder.case("/srv/bin/server"))
    assert (found.level, found.value) == ("problem", "is on a file system that is mounted noexec")


def test_a_program_in_somebodys_home_names_the_home(folder: Folder) -> None:
    folder.put("/home/alice/bin/server", mode=0o755)
    folder.machine.path("/home/alice").chmod(0o700)
    found = only(program, folder, folder.case("/home/alice/bin/server"))
    assert found.level == "problem"
    assert found.value.startswith("/home/alice cannot be entered by a user of the model's own (mode 0700")
    assert found.remedy == "chmod o+x /home/alice"


def test_a_program_that_is_gone_or_has_no_x(folder: Folder) -> None:
    assert only(program, folder, folder.case()).value == "/usr does not exist"
    folder.put("/usr/bin/server", mode=0o644)
    found = only(program, folder, folder.case())
    assert (found.value.partition(" (")[0], found.remedy) == (
        "cannot be executed by a user of the model's own", "chmod o+x /usr/bin/server",
    )  # fmt: skip


def test_the_interpreter_of_a_script_is_looked_at(folder: Folder) -> None:
    folder.put("/usr/bin/server", "#!/home/alice/venv/bin/python -E\n", mode=0o755)
    found = only(program, folder, folder.case())
    assert "its interpreter /home/alice/venv/bin/python cannot be run: /home does not exist" in found.value
    folder.put("/home/alice/venv/bin/python", mode=0o755)
    assert only(program, folder, folder.case()).level == "ok"


def test_a_program_in_a_root_of_its_own_is_not_looked_at(folder: Folder) -> None:
    assert only(program, folder, folder.case(systemd={"RootDirectory": "/srv/root"})).level == "unseen"


# Its files


@pytest.mark.parametrize(
    "arguments", ["-m /srv/x.gguf", "--model /srv/x.gguf", "--model=/srv/x.gguf", "--mmproj /srv/x.gguf", "/srv/x.gguf",
                  "--anything /srv/x.gguf", "--lora=/srv/x.gguf"]
)  # fmt: skip
def test_a_file_that_the_model_cannot_read_is_found(folder: Folder, arguments: str) -> None:
    folder.put("/srv/x.gguf", mode=0o600)
    found = only(files, folder, folder.case(f"/usr/bin/server {arguments}"))
    assert found.thing == "qwen: /srv/x.gguf"
    assert found.value.startswith("cannot be read by a user of the model's own (mode 0600, ")
    assert found.remedy == "chgrp llamaswapd-model /srv/x.gguf && chmod g+r /srv/x.gguf"
    assert found.level == ("problem" if arguments.split("=")[0].split()[0] in (
        "-m", "--model", "--mmproj", "--lora") else "warning")  # fmt: skip


def test_a_model_file_must_be_there(folder: Folder) -> None:
    folder.put("/srv/other")
    found = only(files, folder, folder.case("/usr/bin/server -m /srv/models/x.gguf"))
    assert (found.level, found.value, found.remedy) == ("problem", "/srv/models does not exist", "ls -l /srv")


@pytest.mark.parametrize(
    "arguments", ["--api-prefix /v1", "--root-path /upstream/x", "--host 0.0.0.0", "-m Qwen/Qwen2.5-7B", "--model qwen",
                  "--alias=/", "--slots /var/cache/llamaswapd/qwen/slots", "--key /run/credentials/u/key"]
)  # fmt: skip
def test_what_is_no_file_of_the_machines_is_let_alone(folder: Folder, arguments: str) -> None:
    assert of(files, folder, folder.case(f"/usr/bin/server {arguments}")) == []


def test_an_option_of_python_names_a_module(folder: Folder) -> None:
    assert of(files, folder, folder.case("/usr/bin/python3 -m http.server")) == []
    folder.put("/srv/x.gguf")
    assert only(files, folder, folder.case("/usr/bin/python3 -m llama.server -m /srv/x.gguf")).level == "ok"


def test_a_relative_path_counts_from_where_the_unit_runs(folder: Folder) -> None:
    folder.put("/srv/models/x.gguf")
    case = folder.case("/usr/bin/server -m models/x.gguf", systemd={"WorkingDirectory": "/srv"})
    assert only(files, folder, case).thing == "qwen: /srv/models/x.gguf"
    found = only(files, folder, folder.case("/usr/bin/server -m x.gguf"))
    assert (found.thing, found.value) == ("qwen: /var/cache/llamaswapd/qwen/x.gguf", "does not exist")
    folder.put("/var/cache/llamaswapd/qwen/x.gguf")
    assert of(files, folder, folder.case("/usr/bin/server -m x.gguf")) == []


def test_a_folder_is_readable_if_the_weights_in_it_are(folder: Folder) -> None:
    folder.put("/srv/qwen/config.json")
    folder.put("/srv/qwen/notes.txt", mode=0o600)
    case = folder.case("/usr/bin/vllm serve /srv/qwen")
    assert only(files, folder, case).level == "ok"
    folder.put("/srv/qwen/model.safetensors", mode=0o600)
    assert only(files, folder, case).value.startswith("/srv/qwen/model.safetensors cannot be read")


@pytest.mark.parametrize(
    ("path", "systemd", "why"),
    [
        ("/home/alice/x.gguf", {"ProtectHome": "yes"}, "/home is hidden by ProtectHome=yes"),
        ("/tmp/x.gguf", {}, "/tmp is hidden by PrivateTmp="),
        ("/etc/llamaswapd/x.gguf", {}, "/etc/llamaswapd is hidden by InaccessiblePaths="),
    ],
)
def test_what_the_sandbox_hides_is_said(folder: Folder, path: str, systemd: dict[str, str], why: str) -> None:
    folder.put(path)
    found = only(files, folder, folder.case(f"/usr/bin/server -m {path}", systemd=systemd))
    assert (found.level, found.value) == ("problem", why)
    assert found.remedy


def test_what_is_bound_into_the_unit_is_looked_for_where_it_comes_from(folder: Folder) -> None:
    folder.put("/home/alice/models/x.gguf")
    bound = {"BindReadOnlyPaths": "/home/alice/models:/models", "ProtectHome": "yes"}
    assert only(files, folder, folder.case("/usr/bin/server -m /models/x.gguf", systemd=bound)).level == "ok"


def test_a_user_of_the_machine_reads_by_her_own_rights(folder: Folder) -> None:
    folder.put("/srv/x.gguf", mode=0o600)
    found = only(files, folder, folder.case("/usr/bin/server -m /srv/x.gguf", systemd={"User": "alice"}))
    assert found.value.startswith("cannot be read by user alice")
    mine = folder.case("/usr/bin/server -m /srv/x.gguf", scope="user")
    assert mine.who
    assert mine.who.uid == ALICE


# Port, users, settings, containers


@pytest.mark.parametrize(
    ("holder", "level", "remedy"),
    [
        (None, "ok", ""),
        ("process 7 (x) of unit llamaswapd-model-qwen.service", "ok", ""),
        ("process 7 (nginx) of unit nginx.service", "problem", "systemctl stop nginx.service; or give"),
        ("process 7 (nc) of unit session-1.scope", "problem", "kill 7; or give models other ports by startPort"),
        ("a process of user bob that cannot be seen from here", "problem", "give models other ports by startPort"),
    ],
)  # fmt: skip
def test_a_port_is_free_ours_or_taken(folder: Folder, holder: str | None, level: str, remedy: str) -> None:
    if holder:
        folder.holders[5800] = holder
    found = only(port, folder, folder.case("/usr/bin/server --port 5800", proxy="http://localhost:5800"))
    assert found.level == level
    assert found.remedy.startswith(remedy)


def test_a_port_that_the_model_does_not_name_is_none_of_its_business(folder: Folder) -> None:
    folder.holders[5800] = "process 7 (ssh) of unit ssh.service"
    assert of(port, folder, folder.case("/usr/bin/sleep 99", proxy="http://localhost:5800")) == []
    assert of(port, folder, folder.case("/usr/bin/x 5800", proxy="http://gpu.example:5800")) == []


def test_users_and_groups_that_are_missing_are_to_be_made(folder: Folder) -> None:
    del folder.groups["render"]
    case = folder.case(systemd={"User": "carol", "SupplementaryGroups": "render audio"})
    assert [(found.thing, found.remedy) for found in of(accounts, folder, case)] == [
        ("qwen: user carol", "useradd --system carol"),
        ("qwen: group render", "groupadd --system render"),
        ("qwen: group audio", "groupadd --system audio"),
    ]
    assert of(program, folder, case) == []
    assert of(accounts, folder, folder.case()) == []


def test_what_a_setting_names_must_be_there(folder: Folder) -> None:
    folder.put("/srv/there")
    case = folder.case(
        systemd={
            "ReadWritePaths": ("/srv/there /srv/data", "-/srv/maybe"),
            "LoadCredential": ("token:/srv/token", "inherited"),
            "BindReadOnlyPaths": "/srv/models:/models",
            "EnvironmentFile": ("/srv/env", "-/srv/maybe"),
        }
    )
    assert [found.thing for found in of(paths, folder, case)] == [
        "qwen: ReadWritePaths=/srv/data", "qwen: BindReadOnlyPaths=/srv/models:/models",
        "qwen: LoadCredential=token:/srv/token", "qwen: EnvironmentFile=/srv/env",
    ]  # fmt: skip


def test_the_folder_that_a_unit_works_in_must_be_there_or_be_made(folder: Folder) -> None:
    lost = folder.case(systemd={"WorkingDirectory": "/srv/no where"})
    assert only(paths, folder, lost).remedy == "mkdir -p '/srv/no where'"
    for there in ({"WorkingDirectory": "-/nowhere"}, {"WorkingDirectory": "/var/lib/q", "StateDirectory": "q"}):
        assert of(paths, folder, folder.case(systemd=there)) == []


def test_a_device_that_is_allowed_must_be_there(folder: Folder) -> None:
    folder.put("/dev/kfd")
    case = folder.case(systemd={"DeviceAllow": ("/dev/kfd rw", "/dev/nvidia0 rw", "char-drm rw")})
    found = only(paths, folder, case)
    assert (found.thing, found.remedy) == ("qwen: DeviceAllow=/dev/nvidia0", "nvidia-modprobe -u -c 0")


def test_a_dynamic_users_group_is_made(folder: Folder) -> None:
    assert of(accounts, folder, folder.case(systemd={"DynamicUser": "yes", "Group": "nobodys"})) == []


def test_settings_that_a_user_made_for_the_model_overrules_are_named(folder: Folder) -> None:
    found = only(settings, folder, folder.case(systemd={"ProtectHome": "no"}))
    assert (found.level, found.thing) == ("warning", "qwen: ProtectHome=no")
    assert of(settings, folder, folder.case(systemd={"ProtectHome": "no", "User": "alice"})) == []


def test_memory_that_cannot_be_locked_is_said(folder: Folder) -> None:
    folder.put("/proc/self/limits", "Max locked memory         8388608              8388608              bytes     \n")
    assert of(settings, folder, folder.case("/usr/bin/server --mlock")) == []
    found = only(settings, folder, folder.case("/usr/bin/server --mlock", scope="user"))
    assert (found.value, found.level) == ("no more than 8388608 bytes may be locked", "warning")


def test_docker_without_a_cmd_stop_leaves_its_container(folder: Folder) -> None:
    folder.put("/run/docker.sock")
    case = folder.case("/usr/bin/docker run --name box -p 5800:80 image")
    found = only(containers, folder, case)
    remedy = "add --rm and --name=box to cmd, or use a docker: block"
    assert (found.level, found.remedy) == ("problem", remedy)
    crash = folder.case("/usr/bin/docker run --rm image", cmd_stop="docker stop box")
    assert only(containers, folder, crash).level == "warning"
    assert of(containers, folder, folder.case("/usr/bin/docker run --rm --name box image")) == []
    assert of(containers, folder, folder.case("", docker=Container(image="x"))) == []


def test_podmans_container_belongs_into_the_unit(folder: Folder) -> None:
    named = "/usr/bin/podman run --rm --name=box"
    assert "--cgroups=split" in only(containers, folder, folder.case(f"{named} image")).remedy
    assert of(containers, folder, folder.case(f"{named} --cgroups=split image")) == []
    found = only(containers, folder, folder.case("/usr/bin/podman run --cgroups=split --rm image"))
    assert (found.level, found.remedy) == ("warning", "add --rm and --name=NAME to cmd, or use a podman: block")


def test_a_container_for_gpus_needs_their_devices(folder: Folder) -> None:
    case = folder.case("", podman=Container(image="x", gpus=("all",)))
    assert only(containers, folder, case).remedy == "nvidia-modprobe -u -c 0"
    folder.put("/dev/nvidiactl")
    assert of(containers, folder, case) == []


def test_a_daemon_of_dockers_that_does_not_run_and_a_volume_that_is_missing(folder: Folder) -> None:
    case = folder.case("", docker=Container(image="x", volumes=("/srv/models:/models:ro", "named:/data")))
    assert [(found.thing, found.remedy) for found in of(containers, folder, case)] == [
        ("qwen: docker", "systemctl start docker"), ("qwen: volume /srv/models", "mkdir -p /srv/models"),
    ]  # fmt: skip
