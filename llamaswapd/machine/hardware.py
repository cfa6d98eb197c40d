"""What the machine is made of: the snapshot of `GET /api/hardware`, taken once at the start.

Facts that cannot be found are None. Files are read below a root directory, so that tests bring machines of their own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from llamaswapd import __version__
from llamaswapd.errors import Error
from llamaswapd.machine.gpus import (
    AMD_FACTS,
    NVIDIA_FACTS,
    OLD_NVIDIA_FACTS,
    Accelerator,
    amd_accelerators,
    merge,
    nvidia_accelerators,
    nvidia_query,
    read,
    sysfs_accelerators,
    whole,
    word,
)
from llamaswapd.machine.tools import Tool

log = logging.getLogger(__name__)

Facts = dict[str, object]

WITHIN_S = 5.0  # for each tool; one that hangs takes its facts with it
WAIT_S = 8.0  # how long a client waits for a detection under way


class HardwareUnavailable(Error):
    """The detection has failed, or takes too long."""

    status = 503

    def __init__(self) -> None:
        super().__init__("hardware detection unavailable")


class Hardware:
    """The snapshot, once `detect` is through."""

    def __init__(self, root: Path = Path("/"), search: str | None = None) -> None:
        """`root` is the root directory, `search` as in Tool."""
        self._root = root
        self._nvidia = Tool("nvidia-smi", search)
        self._amd = Tool("rocm-smi", search)
        self._detect_virt = Tool("systemd-detect-virt", search)
        self._is_done = asyncio.Event()
        self._snapshot: Facts | None = None

    async def detect(self) -> None:
        """Take the snapshot. Never raises: without one, the daemon works as well."""
        try:
            self._snapshot = await self._take()
        except Exception:
            log.exception("unexpected error, the hardware stays unknown")
        finally:
            self._is_done.set()

    async def snapshot(self, within_s: float = WAIT_S) -> Facts:
        """Return the snapshot, when it is there; raises HardwareUnavailable."""
        try:
            async with asyncio.timeout(within_s):
                await self._is_done.wait()
        except TimeoutError:
            raise HardwareUnavailable from None
        if self._snapshot is None:
            raise HardwareUnavailable
        return self._snapshot

    async def _take(self) -> Facts:
        at = datetime.now(UTC)
        async with asyncio.TaskGroup() as asked:
            virtualization = asked.create_task(self._detect_virt.output(within_s=WITHIN_S), name="systemd-detect-virt")
            nvidia = asked.create_task(self._nvidia_accelerators(), name="nvidia-smi")
            amd = asked.create_task(self._amd_accelerators(), name="rocm-smi")
            sysfs = await asyncio.to_thread(sysfs_accelerators, self._root)
        accelerators = merge(nvidia.result(), amd.result(), sysfs)
        return await asyncio.to_thread(snapshot, self._root, os.uname(), virtualization.result(), accelerators, at)

    async def _nvidia_accelerators(self) -> list[Accelerator]:
        for facts in (NVIDIA_FACTS, OLD_NVIDIA_FACTS):
            printed = await self._nvidia.output(*nvidia_query(facts), within_s=WITHIN_S)
            found = nvidia_accelerators(printed, facts)
            if found or not printed:
                return found
        return []

    async def _amd_accelerators(self) -> list[Accelerator]:
        return amd_accelerators(await self._amd.output(*AMD_FACTS, within_s=WITHIN_S))


def snapshot(
    root: Path, uname: os.uname_result, virtualization: str, accelerators: Iterable[Accelerator], at: datetime
) -> Facts:
    """Bring everything together. `virtualization` is what systemd-detect-virt said, "" if it could not be asked."""
    return {
        "schema_version": 1,
        "captured_at": f"{at:%Y-%m-%dT%H:%M:%SZ}",
        "capture": {
            "scope": "inference_host",
            "method": "detected",
            "detector": {"name": "llamaswapd", "version": __version__},
        },
        "architecture": architecture(uname.machine),
        "operating_system": operating_system(root, uname),
        "environment": environment(root, virtualization.strip()),
        "cpu": cpu(root),
        "memory": {"capacity_bytes": memory_bytes(read(root / "proc/meminfo"))},
        "accelerators": [accelerator(index, found) for index, found in enumerate(accelerators)],
    }


# ---- architecture, operating system

ARCHITECTURES = {
    "x86_64": "x86_64", "amd64": "x86_64", "aarch64": "arm64", "arm64": "arm64", "armv7l": "armv7",
    "ppc64le": "ppc64le", "riscv64": "riscv64", "s390x": "s390x",
}  # fmt: skip


def architecture(machine: str) -> Facts:
    if machine in ARCHITECTURES:
        return {"name": ARCHITECTURES[machine], "raw_name": None}
    return {"name": "other", "raw_name": machine or "unknown"}


def operating_system(root: Path, uname: os.uname_result) -> Facts:
    """Name the distribution and the kernel; os-release(5)."""
    release = os_release(read(root / "etc/os-release") or read(root / "usr/lib/os-release"))
    facts: Facts = {
        "family": "linux",
        "name": release.get("NAME"),
        "version": release.get("VERSION_ID"),
        "kernel": uname.release or None,
    }
    return facts if uname.sysname == "Linux" else {**facts, "family": "other", "raw_family": uname.sysname or "unknown"}


def os_release(text: str) -> dict[str, str]:
    pairs = re.findall(r"""^([A-Z_]+)=(["']?)(.*)\2\s*$""", text, re.MULTILINE)
    return {name: re.sub(r"\\(.)", r"\1", value) for name, _, value in pairs if value}


# ---- environment

CONTAINERS = {  # of systemd-detect-virt(1)
    "container-other", "docker", "lxc", "lxc-libvirt", "openvz", "podman", "pouch", "proot", "rkt", "systemd-nspawn",
}  # fmt: skip


def environment(root: Path, virtualization: str) -> Facts:
    """Say what the machine runs in. `virtualization` is systemd-detect-virt's word for it, "" for none."""
    kernel = read(root / "proc/sys/kernel/osrelease").lower()
    if virtualization == "wsl" or (not virtualization and "microsoft" in kernel):
        return {"kind": "wsl", "name": None, "version": "2" if "wsl2" in kernel else None}
    name = virtualization or _container(root) or _virtual_machine(root)
    if name == "none":
        return {"kind": "native", "name": None, "version": None}
    kind = "unknown" if not name else "container" if name in CONTAINERS else "virtual_machine"
    known = None if name in ("", "container-other", "vm-other") else name
    return {"kind": kind, "name": known, "version": None}


def _container(root: Path) -> str:
    """Name the container that we are in, by the marks that the usual ones leave."""
    if (root / ".dockerenv").exists():
        return "docker"
    if (root / "run/.containerenv").exists():
        return "podman"
    told = read(root / "run/systemd/container").strip()  # by the container's manager, to a systemd inside
    return told if told in CONTAINERS or not told else "container-other"


def _virtual_machine(root: Path) -> str:
    """Say whether there is a hypervisor below: `vm-other`, `none`, or "" where the processor does not tell."""
    flags = re.search(r"^flags\s*:(.*)$", read(root / "proc/cpuinfo"), re.MULTILINE)  # only of x86
    if not flags:
        return ""
    return "vm-other" if "hypervisor" in flags[1].split() else "none"


# ---- processor, memory

ARM_VENDORS = {  # MIDR_EL1.Implementer
    "0x41": "ARM", "0x42": "Broadcom", "0x43": "Cavium", "0x46": "Fujitsu", "0x48": "HiSilicon", "0x4e": "NVIDIA",
    "0x51": "Qualcomm", "0x61": "Apple", "0x6d": "Microsoft", "0xc0": "Ampere",
}  # fmt: skip
MODEL_NAMES = ("model name", "cpu", "uarch")  # x86; POWER; RISC-V


def cpu(root: Path) -> Facts:
    """Read /proc/cpuinfo, which differs by architecture, and the processors' topology from sysfs."""
    pairs = re.findall(r"^([^\t\n:]+?)[ \t]*: *(.*)$", read(root / "proc/cpuinfo"), re.MULTILINE)
    first: dict[str, str] = {}
    for name, value in pairs:
        first.setdefault(name, value)
    vendor = first.get("vendor_id") or ARM_VENDORS.get(first.get("CPU implementer", ""))
    return {
        "vendor": word(vendor or ""),
        "model": next((model for name in MODEL_NAMES if (model := word(first.get(name, "")))), None),
        **_topology(root, sum(name == "processor" for name, _ in pairs)),
    }


def _topology(root: Path, listed: int) -> Facts:
    """Count sockets, cores and threads; `listed` is how many processors /proc/cpuinfo lists."""
    folders = [folder / "topology" for folder in root.glob("sys/devices/system/cpu/cpu[0-9]*")]
    sockets = {read(folder / "physical_package_id").strip() for folder in folders} - {"", "-1"}
    cores = {(read(folder / "core_cpus_list") or read(folder / "thread_siblings_list")).strip() for folder in folders}
    cores -= {""}  # an offline processor has no topology
    threads = sum((folder / "core_id").exists() for folder in folders)
    return {
        "socket_count": len(sockets) or None,
        "physical_core_count": len(cores) or None,
        "logical_thread_count": threads or listed or None,
    }


def memory_bytes(meminfo: str) -> int | None:
    total = re.search(r"^MemTotal:\s*(\d+) kB$", meminfo, re.MULTILINE)
    kib = whole(total[1]) if total else None
    return kib * 1024 if kib else None


# ---- accelerators


def accelerator(index: int, found: Accelerator) -> Mapping[str, object]:
    return {
        "index": index,
        "kind": found.kind,
        "vendor": found.vendor,
        "model": found.model,
        "architecture": found.architecture,
        "memory": {"kind": found.memory_kind or "unknown", "capacity_bytes": found.memory_bytes},
        "driver": {"name": found.driver, "version": found.driver_version},
        "power_limit_watts": found.power_limit_w,
    }
