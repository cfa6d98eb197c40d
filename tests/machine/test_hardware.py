"""The snapshot of made-up machines and of this one."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from machines import MEMINFO, printing, tool, tree

from llamaswapd import __version__
from llamaswapd.machine.gpus import Accelerator
from llamaswapd.machine.hardware import (
    Hardware,
    HardwareUnavailable,
    architecture,
    cpu,
    environment,
    memory_bytes,
    operating_system,
    os_release,
    snapshot,
)

UNAME = os.uname_result(("Linux", "host", "6.12.0-amd64", "#1 SMP", "x86_64"))

DEBIAN = """PRETTY_NAME="Debian GNU/Linux 13 (trixie)"
NAME="Debian GNU/Linux"
VERSION_ID="13"
VERSION="13 (trixie)"
ID=debian
"""


def thread(number: int, *, package: int, siblings: str) -> dict[str, str]:
    topology = f"sys/devices/system/cpu/cpu{number}/topology"
    return {
        f"{topology}/physical_package_id": f"{package}\n",
        f"{topology}/core_id": "0\n",
        f"{topology}/core_cpus_list": f"{siblings}\n",
    }


def x86(threads: int, flags: str = "fpu vme avx2") -> str:
    return "".join(
        f"processor\t: {number}\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 9654 96-Core Processor\n"
        f"flags\t\t: {flags}\npower management:\n\n"
        for number in range(threads)
    )


# ---- the whole


def test_every_member_of_a_snapshot(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "etc/os-release": DEBIAN,
            "proc/cpuinfo": x86(4),
            "proc/meminfo": MEMINFO,
            **thread(0, package=0, siblings="0,2"),
            **thread(1, package=1, siblings="1,3"),
            **thread(2, package=0, siblings="0,2"),
            **thread(3, package=1, siblings="1,3"),
        },
    )
    card = Accelerator(
        "0000:01:00.0", "gpu", "NVIDIA", "RTX", "Hopper", "dedicated", 1024, "nvidia", "550.90.07", 450.0
    )
    at = datetime(2025, 1, 2, 3, 4, 5, 678, UTC)
    assert snapshot(root, UNAME, "none\n", [card, Accelerator()], at) == {
        "schema_version": 1,
        "captured_at": "2025-01-02T03:04:05Z",
        "capture": {
            "scope": "inference_host",
            "method": "detected",
            "detector": {"name": "llamaswapd", "version": __version__},
        },
        "architecture": {"name": "x86_64", "raw_name": None},
        "operating_system": {
            "family": "linux",
            "name": "Debian GNU/Linux",
            "version": "13",
            "kernel": "6.12.0-amd64",
        },
        "environment": {"kind": "native", "name": None, "version": None},
        "cpu": {
            "vendor": "AuthenticAMD",
            "model": "AMD EPYC 9654 96-Core Processor",
            "socket_count": 2,
            "physical_core_count": 2,
            "logical_thread_count": 4,
        },
        "memory": {"capacity_bytes": 32768000 * 1024},
        "accelerators": [
            {
                "index": 0,
                "kind": "gpu",
                "vendor": "NVIDIA",
                "model": "RTX",
                "architecture": "Hopper",
                "memory": {"kind": "dedicated", "capacity_bytes": 1024},
                "driver": {"name": "nvidia", "version": "550.90.07"},
                "power_limit_watts": 450.0,
            },
            {
                "index": 1,
                "kind": "gpu",
                "vendor": None,
                "model": None,
                "architecture": None,
                "memory": {"kind": "unknown", "capacity_bytes": None},
                "driver": {"name": None, "version": None},
                "power_limit_watts": None,
            },
        ],
    }


def test_of_a_machine_without_files_nothing_is_invented(tmp_path: Path) -> None:
    facts = snapshot(tmp_path, UNAME, "", [], datetime.now(UTC))
    assert facts["operating_system"] == {"family": "linux", "name": None, "version": None, "kernel": "6.12.0-amd64"}
    assert facts["environment"] == {"kind": "unknown", "name": None, "version": None}
    assert set(facts["cpu"].values()) == {None}  # type: ignore[attr-defined]
    assert facts["memory"] == {"capacity_bytes": None}


# ---- its parts


@pytest.mark.parametrize(
    ("machine", "name", "raw"),
    [
        ("x86_64", "x86_64", None),
        ("aarch64", "arm64", None),
        ("armv7l", "armv7", None),
        ("ppc64le", "ppc64le", None),
        ("riscv64", "riscv64", None),
        ("s390x", "s390x", None),
        ("loongarch64", "other", "loongarch64"),
        ("i686", "other", "i686"),
        ("", "other", "unknown"),
    ],
)
def test_architectures_have_the_names_of_the_contract(machine: str, name: str, raw: str | None) -> None:
    assert architecture(machine) == {"name": name, "raw_name": raw}


def test_an_operating_system_that_is_not_linux_says_what_it_is(tmp_path: Path) -> None:
    facts = operating_system(tmp_path, os.uname_result(("FreeBSD", "host", "14.1", "", "amd64")))
    assert (facts["family"], facts["raw_family"], facts["kernel"]) == ("other", "FreeBSD", "14.1")


def test_a_distribution_may_keep_its_name_below_usr_and_have_no_version(tmp_path: Path) -> None:
    facts = operating_system(tree(tmp_path, {"usr/lib/os-release": "NAME='Arch Linux'\nID=arch\nVERSION_ID=\n"}), UNAME)
    assert (facts["name"], facts["version"]) == ("Arch Linux", None)


def test_words_of_os_release_may_be_quoted() -> None:
    text = '# NAME=x\nNAME="A \\"B\\" \\$C"\nVERSION_ID=\'1\'\nID=d\n'
    assert os_release(text) == {"NAME": 'A "B" $C', "VERSION_ID": "1", "ID": "d"}


@pytest.mark.parametrize(
    ("said", "kind", "name"),
    [
        ("none", "native", None),
        ("docker", "container", "docker"),
        ("systemd-nspawn", "container", "systemd-nspawn"),
        ("container-other", "container", None),
        ("kvm", "virtual_machine", "kvm"),
        ("vm-other", "virtual_machine", None),
    ],
)
def test_systemd_knows_what_a_machine_runs_in(tmp_path: Path, said: str, kind: str, name: str | None) -> None:
    tree(tmp_path, {"proc/cpuinfo": x86(1)})
    assert environment(tmp_path, said) == {"kind": kind, "name": name, "version": None}


@pytest.mark.parametrize(
    ("files", "kind", "name"),
    [
        ({".dockerenv": ""}, "container", "docker"),
        ({"run/.containerenv": "engine=podman\n"}, "container", "podman"),
        ({"run/systemd/container": "lxc\n"}, "container", "lxc"),
        ({"run/systemd/container": "somebody's\n"}, "container", None),
        ({"proc/cpuinfo": x86(1, "fpu hypervisor vme")}, "virtual_machine", None),
        ({"proc/cpuinfo": x86(1)}, "native", None),
        ({"proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd\n"}, "unknown", None),
    ],
)
def test_without_systemds_tool_the_usual_marks_count(
    tmp_path: Path, files: dict[str, str], kind: str, name: str | None
) -> None:
    assert environment(tree(tmp_path, files), "") == {"kind": kind, "name": name, "version": None}


@pytest.mark.parametrize("said", ["wsl", ""])
@pytest.mark.parametrize(
    ("kernel", "version"), [("5.15.167.4-microsoft-standard-WSL2", "2"), ("4.4.0-19041-Microsoft", None)]
)
def test_windows_below_is_recognised(tmp_path: Path, said: str, kernel: str, version: str | None) -> None:
    root = tree(tmp_path, {"proc/sys/kernel/osrelease": f"{kernel}\n"})
    assert environment(root, said) == {"kind": "wsl", "name": None, "version": version}


def test_a_processor_of_arm_is_known_by_its_maker(tmp_path: Path) -> None:
    text = "processor\t: 0\nBogoMIPS\t: 50.00\nCPU implementer\t: 0xc0\nCPU part\t: 0xac3\n\nprocessor\t: 1\n"
    facts = cpu(tree(tmp_path, {"proc/cpuinfo": text}))
    assert facts == {
        "vendor": "Ampere",
        "model": None,
        "socket_count": None,
        "physical_core_count": None,
        "logical_thread_count": 2,
    }


def test_a_processor_that_is_switched_off_does_not_count(tmp_path: Path) -> None:
    files = {**thread(0, package=0, siblings="0"), "sys/devices/system/cpu/cpu1/online": "0\n"}
    facts = cpu(tree(tmp_path, {"proc/cpuinfo": x86(1), "sys/devices/system/cpu/cpuidle/x": "", **files}))
    assert (facts["socket_count"], facts["physical_core_count"], facts["logical_thread_count"]) == (1, 1, 1)


def test_an_old_kernel_spells_siblings_differently_and_sockets_may_be_unknown(tmp_path: Path) -> None:
    topology = "sys/devices/system/cpu/cpu0/topology"
    files = {
        f"{topology}/physical_package_id": "-1\n",
        f"{topology}/thread_siblings_list": "0-1\n",
        f"{topology}/core_id": "0\n",
    }
    facts = cpu(tree(tmp_path, files))
    assert (facts["socket_count"], facts["physical_core_count"], facts["logical_thread_count"]) == (None, 1, 1)


def test_memory_that_cannot_be_read_is_unknown() -> None:
    assert memory_bytes("") is None
    assert memory_bytes("MemTotal: 0 kB\n") is None


# ---- the detection


def accelerators(facts: Any) -> Any:
    return facts["accelerators"]


async def test_tools_and_files_are_brought_together(tmp_path: Path) -> None:
    search = tool(
        tmp_path / "bin",
        "nvidia-smi",
        printing("00000000:01:00.0, 24564, 550.90.07, 450.00, 8.9, NVIDIA GeForce RTX 4090"),
    )
    tool(
        tmp_path / "bin",
        "rocm-smi",
        printing('{"card0": {"Card Series": "RX", "PCI Bus": "0000:03:00.0", "VRAM Total Memory (B)": "4096"}}'),
    )
    tool(tmp_path / "bin", "systemd-detect-virt", "echo kvm")
    device = "sys/class/drm/card0/device"
    uevent = "DRIVER=amdgpu\nPCI_SLOT_NAME=0000:03:00.0\n"
    tree(tmp_path, {f"{device}/uevent": uevent, f"{device}/mem_info_vram_vendor": "hynix\n"})
    hardware = Hardware(tmp_path, search)
    await hardware.detect()
    facts = await hardware.snapshot()
    nvidia, amd = accelerators(facts)
    assert (nvidia["model"], amd["model"]) == ("NVIDIA GeForce RTX 4090", "RX")
    assert amd["memory"] == {"kind": "dedicated", "capacity_bytes": 4096}
    assert facts["environment"] == {"kind": "virtual_machine", "name": "kvm", "version": None}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", str(facts["captured_at"]))


async def test_an_old_nvidia_smi_is_asked_for_what_it_knows(tmp_path: Path) -> None:
    script = (
        "case $1 in *compute_cap*) echo 'Field \"compute_cap\" is not a valid field to query.'; exit 2;; esac\n"
        + printing("00000000:01:00.0, 8192, 470.256.02, 170.00, Quadro M4000")
    )
    hardware = Hardware(tmp_path, tool(tmp_path / "bin", "nvidia-smi", script))
    await hardware.detect()
    [card] = accelerators(await hardware.snapshot())
    assert (card["model"], card["architecture"]) == ("Quadro M4000", None)


async def test_a_snapshot_that_is_not_there_in_time_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(HardwareUnavailable, match=r"^hardware detection unavailable$") as raised:
        await Hardware(tmp_path, "/nowhere").snapshot(within_s=0)
    assert raised.value.status == 503


async def test_a_detection_that_fails_is_unavailable_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    hardware = Hardware(tmp_path, "/nowhere")
    monkeypatch.setattr(hardware, "_take", None)
    await hardware.detect()
    with pytest.raises(HardwareUnavailable):
        await hardware.snapshot()
    assert "the hardware stays unknown" in caplog.text


async def test_this_machine() -> None:
    hardware = Hardware()
    await hardware.detect()
    facts: Any = await hardware.snapshot()
    assert facts["architecture"]["name"]
    assert facts["operating_system"]["kernel"] == os.uname().release
    assert facts["environment"]["kind"] in ("native", "container", "virtual_machine", "wsl", "unknown")
    assert facts["memory"]["capacity_bytes"] > 0
    assert facts["cpu"]["logical_thread_count"] >= 1
