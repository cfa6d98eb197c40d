"""What is in every model's way."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from typing import Any

import pytest
from folders import ALICE, MY_GROUP, Folder

from llamaswapd.config.schema import Container
from llamaswapd.doctor.case import Situation
from llamaswapd.doctor.finding import Finding
from llamaswapd.doctor.machine_checks import (
    controllers,
    disk,
    gpus,
    journal,
    launcher,
    listening,
    manager,
    owners,
    roots,
)
from llamaswapd.errors import ConfigError
from llamaswapd.launcher.guard import check_users
from llamaswapd.systemd.sandbox import defaults
from llamaswapd.systemd.unit import Host


def of(check: Any, folder: Folder, situation: Situation | None = None) -> list[Finding]:
    return list(check(folder.machine, situation or folder.situation()))


def problems(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(found.thing, found.remedy) for found in findings if found.level != "ok"]


# systemd


def test_a_machine_without_systemd_is_named_first(folder: Folder) -> None:
    [found] = of(manager, folder)
    assert (found.level, found.value) == ("problem", "is not PID 1 of this machine")
    assert "-manager private" in found.remedy


@pytest.mark.parametrize(
    ("answer", "level"), [("systemd 257 (257.7-1)\n", "ok"), ("systemd 241\n", "problem"), (None, "unseen")]
)
def test_the_version_of_systemd_matters(folder: Folder, answer: str | None, level: str) -> None:
    folder.put("/run/systemd/system/x")
    if answer:
        folder.answers["systemctl"] = answer
    [found] = of(manager, folder)
    assert found.level == level


def test_a_user_manager_that_ends_with_the_session_is_to_linger(folder: Folder) -> None:
    folder.put("/run/systemd/system/x")
    assert problems(of(manager, folder, folder.situation(scope="user")))[-1][1] == "loginctl enable-linger alice"
    folder.put("/var/lib/systemd/linger/alice")
    assert len(of(manager, folder, folder.situation(scope="user"))) == 1


# cgroups


def test_all_controllers_are_there(folder: Folder) -> None:
    folder.put("/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory hugetlb pids\n")
    assert [found.level for found in of(controllers, folder)] == ["ok"]


def test_a_controller_that_a_limit_needs_is_a_problem_and_others_a_warning(folder: Folder) -> None:
    folder.put("/sys/fs/cgroup/cgroup.controllers", "cpu pids\n")
    [found] = of(controllers, folder)
    assert (found.level, found.value.partition(" in ")[0]) == ("warning", "memory missing")
    limited = folder.case(systemd={"MemoryMax": "1G", "AllowedCPUs": "0-3"})
    by_thing = {each.thing: each for each in of(controllers, folder, folder.situation(limited))}
    assert by_thing["cgroup controller cpuset"].level == by_thing["cgroup controller memory"].level == "problem"
    assert "limits of qwen do nothing" in by_thing["cgroup controller memory"].value
    assert by_thing["cgroup controller memory"].remedy.startswith("boot with cgroup_enable=memory")


def test_what_is_not_delegated_to_a_user_manager_is_to_be(folder: Folder) -> None:
    folder.put("/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n")
    user = folder.situation(scope="user")
    assert [found.level for found in of(controllers, folder, user)] == ["unseen"]
    own = f"/sys/fs/cgroup/user.slice/user-{ALICE}.slice/user@{ALICE}.service/cgroup.controllers"
    folder.put(own, "memory pids\n")
    [found] = of(controllers, folder, user)
    assert (found.level, found.value.partition(" in ")[0]) == ("warning", "cpu missing")
    assert found.remedy == "systemctl edit user@.service, with [Service] and Delegate=cpu cpuset io memory pids"


def test_the_old_cgroups_are_told_from_none_at_all(folder: Folder) -> None:
    assert [found.level for found in of(controllers, folder)] == ["warning"]
    assert of(controllers, folder, folder.situation(scope="private")) == []


# GPUs


def pci(folder: Folder, vendor: str, kind: str = "0x030000") -> None:
    folder.put("/sys/bus/pci/devices/0000:01:00.0/vendor", f"{vendor}\n")
    folder.put("/sys/bus/pci/devices/0000:01:00.0/class", f"{kind}\n")


def test_without_a_gpu_nothing_is_missing(folder: Folder) -> None:
    pci(folder, "0x10de", "0x040300")  # only the sound of one
    assert [str(found) for found in of(gpus, folder)] == ["ok       GPUs: there are none"]


def test_a_gpu_of_nvidias_without_its_driver(folder: Folder) -> None:
    pci(folder, "0x10de", "0x030200")
    assert problems(of(gpus, folder)) == [("NVIDIA GPU", "modprobe nvidia")]


def test_nodes_of_nvidias_that_models_cannot_make_themselves(folder: Folder) -> None:
    pci(folder, "0x10de")
    folder.put("/proc/driver/nvidia/version")
    folder.put("/dev/nvidiactl", mode=0o666)
    assert [found.value for found in of(gpus, folder)] == ["/dev/nvidia-uvm is missing", "/dev/nvidia0 is missing"]
    assert {found.remedy.partition(";")[0] for found in of(gpus, folder)} == {"nvidia-modprobe -u -c 0"}
    folder.put("/dev/nvidia-uvm", mode=0o666)
    folder.put("/dev/nvidia3", mode=0o666)  # a container may have but one of several
    assert [found.level for found in of(gpus, folder)] == ["ok"]


def test_gpus_of_amds(folder: Folder) -> None:
    pci(folder, "0x1002", "0x120000")
    assert [(found.level, found.value.split()[0]) for found in of(gpus, folder)] == [
        ("problem", "/dev/dri/renderD*"), ("problem", "/dev/kfd"),
    ]  # fmt: skip
    folder.put("/dev/dri/renderD128")
    assert [found.level for found in of(gpus, folder)] == ["warning"]
    folder.put("/dev/kfd")
    assert [found.level for found in of(gpus, folder)] == ["ok"]


def test_a_gpu_of_intels(folder: Folder) -> None:
    pci(folder, "0x8086")
    assert [found.level for found in of(gpus, folder)] == ["warning"]


def test_a_device_that_a_model_may_not_use_names_its_group(folder: Folder) -> None:
    folder.put("/dev/dri/renderD128", mode=0o660)
    for case, remedy in (
        (folder.case(), "set SupplementaryGroups: mine in the model's systemd block"),
        (folder.case(systemd={"User": "alice"}), "usermod -aG mine alice, and log in again"),
        (folder.case(systemd={"SupplementaryGroups": "mine"}), None),
    ):
        found = problems(of(gpus, folder, folder.situation(case)))
        assert [each[1] for each in found] == ([remedy] if remedy else [])


def test_a_setting_that_hides_the_devices(folder: Folder) -> None:
    folder.put("/dev/nvidia0", mode=0o666)
    folder.put("/dev/nvidiactl", mode=0o666)
    case = folder.case(systemd={"PrivateDevices": "yes"})
    assert problems(of(gpus, folder, folder.situation(case))) == [
        ("qwen: PrivateDevices=yes", "set PrivateDevices: no")
    ]


# The journal


def test_a_journal_that_the_daemons_group_can_read(folder: Folder) -> None:
    assert problems(of(journal, folder)) == [("journal", "systemctl start systemd-journald")]
    folder.put("/var/log/journal/0123/system.journal", mode=0o640)
    [found] = of(journal, folder)
    assert "cannot be read by user llamaswapd" in found.value
    folder.groups["systemd-journal"] = MY_GROUP
    assert [found.level for found in of(journal, folder)] == ["ok"]
    del folder.groups["systemd-journal"]
    assert problems(of(journal, folder)) == [("journal", "systemd-sysusers")]


def test_a_users_own_journal_is_enough_for_her(folder: Folder) -> None:
    folder.put("/var/log/journal/0123/system.journal", mode=0o640)
    user = folder.situation(scope="user")
    assert problems(of(journal, folder, user)) == [("journal", "usermod -aG systemd-journal alice, and log in again")]
    folder.put(f"/var/log/journal/0123/user-{ALICE}.journal")
    assert [found.level for found in of(journal, folder, user)] == ["ok"]


# The package


def package(folder: Folder) -> None:
    folder.put("/usr/lib/systemd/system/llamaswapd-launcher.service")
    folder.put("/usr/share/dbus-1/system.d/org.llamaswapd.Launcher1.conf")
    folder.put("/usr/share/dbus-1/system-services/org.llamaswapd.Launcher1.service")


def test_what_of_the_package_is_missing_is_to_be_installed_again(folder: Folder) -> None:
    assert [thing for thing, _ in problems(of(launcher, folder))] == ["launcher", "policy of the bus", "bus activation"]
    assert of(launcher, folder, folder.situation(scope="system")) == []
    folder.put("/usr/bin/dnf")
    assert of(launcher, folder)[0].remedy == "dnf reinstall llamaswapd"


@pytest.mark.parametrize(
    ("activatable", "state", "level"),
    [
        (None, "", "unseen"),
        ('as 1 "org.example"', "", "problem"),
        ('as 1 "org.llamaswapd.Launcher1"', "inactive\n", "ok"),
        ('as 1 "org.llamaswapd.Launcher1"', "failed\n", "problem"),
        ('as 1 "org.llamaswapd.Launcher1"', "masked\n", "problem"),
    ],
)
def test_the_bus_knows_the_launcher(folder: Folder, activatable: str | None, state: str, level: str) -> None:
    package(folder)
    folder.answers["systemctl"] = state
    if activatable:
        folder.answers["busctl"] = activatable
    assert [found.level for found in of(launcher, folder)] == [level]


def test_files_that_others_can_write_are_named(folder: Folder) -> None:
    (folder.root / "etc/llamaswapd/credentials").mkdir(parents=True, mode=0o700)
    folder.put("/etc/llamaswapd/credentials/KEY", mode=0o644)
    file = folder.put("/etc/llamaswapd/config.yaml", mode=0o660)
    situation = folder.situation(files=("/etc/llamaswapd/config.yaml",))
    found = problems(of(owners, folder, situation))
    assert ("/etc/llamaswapd/config.yaml", "chmod go-w /etc/llamaswapd/config.yaml") in found
    assert ("/etc/llamaswapd/credentials/KEY", "chmod 0600 /etc/llamaswapd/credentials/KEY") in found
    if os.getuid() == 0:
        os.chown(file, ALICE, 0)
        assert ("/etc/llamaswapd/config.yaml", "chown root /etc/llamaswapd/config.yaml") in problems(
            of(owners, folder, situation)
        )


def test_what_a_link_leads_to_and_by_is_the_launchers_too(folder: Folder) -> None:
    folder.put("/srv/shared/config.yaml").parent.chmod(0o777)
    folder.put("/etc/llamaswapd/credentials/KEY", mode=0o600).parent.chmod(0o700)
    (folder.root / "etc/llamaswapd/config.yaml").symlink_to("/srv/shared/config.yaml")
    found = problems(of(owners, folder, folder.situation(files=("/etc/llamaswapd/config.yaml",))))
    assert ("/srv/shared", "chmod go-w /srv/shared") in found


def test_no_home_is_to_become_roots_for_a_link_into_it(folder: Folder) -> None:
    folder.put("/home/alice/config.yaml").parent.chmod(0o777)
    folder.put("/etc/llamaswapd/credentials/KEY", mode=0o600).parent.chmod(0o700)
    (folder.root / "etc/llamaswapd/config.yaml").symlink_to("/home/alice/config.yaml")
    found = problems(of(owners, folder, folder.situation(files=("/etc/llamaswapd/config.yaml",))))
    remedy = "put the file itself into /etc/llamaswapd, in place of a link"
    assert found == [("/etc/llamaswapd/config.yaml", remedy)]


@pytest.mark.parametrize(
    ("cmd", "fields", "is_refused"),
    [
        ("/usr/bin/server", {}, False),
        ("/usr/bin/server", {"systemd": {"DynamicUser": "no"}}, True),
        ("docker run x", {}, True),
        ("docker run x", {"systemd": {"User": "root"}}, False),
        ("docker run x", {"systemd": {"User": "alice"}}, False),
        ("docker run x", {"docker": Container(image="x")}, False),
    ],
)
def test_what_would_be_root_by_accident_is_what_the_launcher_refuses(
    folder: Folder, cmd: str, fields: dict[str, Any], is_refused: bool
) -> None:
    case = folder.case(cmd, **fields)
    found = [finding.thing for finding in of(roots, folder, folder.situation(case))]
    assert found == (["qwen: user"] if is_refused else [])
    host = Host(257, "/", defaults=defaults(folder.groups))
    with pytest.raises(ConfigError) if is_refused else contextlib.nullcontext():
        check_users({"qwen": case.model}, host)
    assert of(roots, folder, folder.situation(folder.case(cmd, scope="system", **fields), scope="system")) == []


def test_a_folder_of_credentials_that_is_missing_or_open(folder: Folder) -> None:
    remedies = [remedy for _, remedy in problems(of(owners, folder))]
    assert remedies == ["install -d -m 0700 /etc/llamaswapd/credentials"]
    folder.put("/etc/llamaswapd/credentials/KEY", mode=0o600)
    assert problems(of(owners, folder))[0][1] == "chmod 0700 /etc/llamaswapd/credentials"


@pytest.mark.parametrize(
    ("holder", "level"),
    [
        (None, "ok"),
        ("process 1 (systemd) of unit init.scope", "ok"),
        ("process 9 (python3) of unit llamaswapd.service", "ok"),
        ("process 9 (nginx) of unit nginx.service", "problem"),
        ("a process of user root that cannot be seen from here", "unseen"),
    ],
)
def test_the_daemons_port_may_be_taken(folder: Folder, holder: str | None, level: str) -> None:
    folder.answers["systemctl"] = "127.0.0.1:8080 (Stream)\n[::1]:8080 (Stream)\n"
    if holder:
        folder.holders[8080] = holder
    assert [found.level for found in of(listening, folder)] == [level]


@pytest.mark.parametrize(("free", "level"), [(5 << 30, "ok"), (500 << 20, "warning"), (50 << 20, "problem")])
def test_a_disk_may_be_full(folder: Folder, free: int, level: str) -> None:
    class Full(type(folder.machine)):  # type: ignore[misc]
        def space(self, name: str) -> tuple[int, int]:
            return free, 10 << 30

    machine = Full(**{each.name: getattr(folder.machine, each.name) for each in dataclasses.fields(folder.machine)})
    assert {found.level for found in disk(machine, folder.situation())} == {level}
