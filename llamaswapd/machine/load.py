"""How busy the GPUs are: asked of LACT, of nvidia-smi, of the kernel's amdgpu driver or of rocm-smi.

What a source does not say is None.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llamaswapd.machine.gpus import (
    MIB,
    amd_cards,
    amd_name,
    devices,
    number,
    nvidia_query,
    nvidia_rows,
    pci_id,
    pci_names,
    read,
    whole,
    word,
)
from llamaswapd.machine.tools import Tool

WITHIN_S = 5.0  # the least time between samples


@dataclass(frozen=True, slots=True)
class GpuLoad:
    """One GPU at one moment. `id` counts from 0; memory in MiB, power in watts, the rest °C or percent."""

    id: int
    name: str
    uuid: str = ""
    temp_c: int | None = None
    vram_temp_c: int | None = None
    gpu_util_pct: float | None = None
    mem_util_pct: float | None = None
    mem_used_mb: int | None = None
    mem_total_mb: int | None = None
    fan_speed_pct: float | None = None
    power_draw_w: float | None = None


class Gpus:
    """The GPUs of this machine, asked again and again."""

    def __init__(self, root: Path = Path("/"), search: str | None = None) -> None:
        """`root` is the root directory, `search` as in Tool."""
        self._root = root
        self._nvidia = Tool("nvidia-smi", search)
        self._amd = Tool("rocm-smi", search)
        self._lact = root / "run/lactd.sock"
        self._pci_names: dict[str, str] | None = None

    def can_be_asked(self) -> bool:
        """Say whether there is anybody to ask. Blocks for some file reads."""
        return self._lact.exists() or any((self._nvidia.find(), self._amd.find(), amdgpu_cards(self._root)))

    async def loads(self) -> list[GpuLoad]:
        """Return what each GPU does now, none if nobody answers within WITHIN_S."""
        if self._lact.exists() and (found := await ask_lact(self._lact)):  # knows the GPUs of every vendor
            return numbered(found)
        async with asyncio.TaskGroup() as both:
            nvidia = both.create_task(self._nvidia_loads(), name="nvidia-smi")
            amd = both.create_task(self._amd_loads(), name="amdgpu or rocm-smi")
        return numbered((*nvidia.result(), *amd.result()))

    async def _nvidia_loads(self) -> list[GpuLoad]:
        return nvidia_loads(await self._nvidia.output(*nvidia_query(NVIDIA_LOAD), within_s=WITHIN_S))

    async def _amd_loads(self) -> list[GpuLoad]:
        # Some file reads tell the same as rocm-smi, a script that takes longer to start than everything else here.
        if found := await asyncio.to_thread(self._amdgpu_loads):
            return found
        return amd_loads(await self._amd.output(*AMD_LOAD, within_s=WITHIN_S))

    def _amdgpu_loads(self) -> list[GpuLoad]:
        cards = amdgpu_cards(self._root)
        if self._pci_names is None:  # the list is long, and the cards stay the same
            self._pci_names = pci_names(self._root, {pci_id(facts) for _, facts in cards})
        return [
            amdgpu_load(index, folder / "device", self._pci_names.get(pci_id(facts)))
            for index, (folder, facts) in enumerate(cards)
        ]


def numbered(found: Iterable[GpuLoad]) -> list[GpuLoad]:
    """Number the GPUs of several sources from 0 on."""
    return [replace(load, id=index) for index, load in enumerate(found)]


# ---- nvidia-smi

NVIDIA_LOAD = (
    "index", "uuid", "temperature.gpu", "temperature.memory", "utilization.gpu", "utilization.memory", "memory.used",
    "memory.total", "fan.speed", "power.draw", "name",
)  # fmt: skip


def nvidia_loads(text: str) -> list[GpuLoad]:
    """Read the answer to `nvidia_query(NVIDIA_LOAD)`; of a GPU cut up into MIG devices it tells less."""
    return [
        GpuLoad(
            id=int(row["index"]),
            name=row["name"],
            uuid=word(row["uuid"]) or "",
            temp_c=whole(row["temperature.gpu"]),
            vram_temp_c=whole(row["temperature.memory"]),
            gpu_util_pct=number(row["utilization.gpu"]),
            mem_util_pct=number(row["utilization.memory"]),
            mem_used_mb=whole(row["memory.used"]),
            mem_total_mb=whole(row["memory.total"]),
            fan_speed_pct=number(row["fan.speed"]),
            power_draw_w=number(row["power.draw"]),
        )
        for row in nvidia_rows(text, NVIDIA_LOAD)
        if row["index"].isdecimal()
    ]


# ---- rocm-smi

AMD_LOAD = (
    "--showproductname", "--showuniqueid", "--showtemp", "--showuse", "--showmemuse", "--showmeminfo", "vram",
    "--showfan", "--showpower", "--json",
)  # fmt: skip


def amd_loads(text: str) -> list[GpuLoad]:
    """Read the answer of rocm-smi to AMD_LOAD, as releases 4 to 7 spell it."""
    cards = {name: facts for name, facts in amd_cards(text).items() if name.startswith("card")}
    return [_amd_load(index, facts) for index, facts in enumerate(cards.values())]


def _amd_load(index: int, facts: Mapping[str, str]) -> GpuLoad:
    def first(*names: str) -> float | None:
        values = (number(facts[name]) for name in names if name in facts)
        return next((value for value in values if value is not None), None)

    return GpuLoad(
        id=index,
        name=amd_name(facts) or "AMD GPU",
        uuid=word(facts.get("unique id", "")) or "",
        temp_c=rounded(first("temperature (sensor edge) (c)", "temperature (sensor junction) (c)")),
        vram_temp_c=rounded(first("temperature (sensor memory) (c)")),
        gpu_util_pct=first("gpu use (%)"),
        mem_util_pct=first("gpu memory allocated (vram%)", "gpu memory use (%)"),
        mem_used_mb=mib(first("vram total used memory (b)")),
        mem_total_mb=mib(first("vram total memory (b)")),
        fan_speed_pct=first("fan speed (%)"),
        power_draw_w=first("average graphics package power (w)", "current socket graphics package power (w)"),
    )


# ---- the amdgpu driver, see "AMDGPU driver information" of the kernel's documentation


def amdgpu_cards(root: Path) -> list[tuple[Path, dict[str, str]]]:
    """Return (folder in sysfs, facts of its uevent) of the cards that this driver has."""
    return [(folder, facts) for folder, facts in devices(root / "sys/class/drm", "card") if facts["DRIVER"] == "amdgpu"]


def amdgpu_load(index: int, device: Path, pci_name: str | None) -> GpuLoad:
    """Read a card's counters and sensors. Blocks: a card that sleeps may have to be woken."""
    sensors = next(iter(device.glob("hwmon/hwmon*")), device)
    used, total = number(read(device / "mem_info_vram_used")), number(read(device / "mem_info_vram_total"))
    power_uw = number(read(sensors / "power1_average")) or number(read(sensors / "power1_input"))
    pwm = number(read(sensors / "pwm1"))
    return GpuLoad(
        id=index,
        name=word(read(device / "product_name")) or pci_name or "AMD GPU",
        uuid=word(read(device / "unique_id")) or "",
        temp_c=_degrees(sensors / "temp1_input"),  # edge
        vram_temp_c=_degrees(sensors / "temp3_input"),  # mem
        gpu_util_pct=number(read(device / "gpu_busy_percent")),
        mem_util_pct=number(read(device / "mem_busy_percent")),
        mem_used_mb=mib(used),
        mem_total_mb=mib(total),
        fan_speed_pct=None if pwm is None else round(pwm / 2.55, 1),
        power_draw_w=None if power_uw is None else power_uw / 1e6,
    )


def _degrees(path: Path) -> int | None:
    thousandths = number(read(path))
    return None if thousandths is None else round(thousandths / 1000)


# ---- LACT, one line of JSON for another; see docs/API.md of ilya-zlobintsev/LACT

LACT_LINE_BYTES = 1024 * 1024


async def ask_lact(path: Path, within_s: float = WITHIN_S) -> list[GpuLoad]:
    """Return what the LACT daemon that listens on this socket says; none if it does not answer."""
    with contextlib.suppress(OSError, TimeoutError, ValueError, LookupError, TypeError, AttributeError):
        async with asyncio.timeout(within_s):
            reader, writer = await asyncio.open_unix_connection(path, limit=LACT_LINE_BYTES)
            try:
                found = await _ask(reader, writer, {"command": "list_devices"})
                return [
                    lact_load(
                        index,
                        device,
                        await _ask(reader, writer, {"command": "device_stats", "args": {"id": device["id"]}}),
                    )
                    for index, device in enumerate(found)
                ]
            finally:
                writer.close()
    return []


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: Mapping[str, object]) -> Any:
    writer.write(json.dumps(request).encode() + b"\n")
    answer = json.loads(await reader.readline())
    if answer["status"] != "ok":
        raise ValueError(answer)
    return answer["data"]


def lact_load(index: int, device: Mapping[str, Any], stats: Mapping[str, Any]) -> GpuLoad:
    """Read one entry of `list_devices` and the answer to `device_stats`; members without a value are left out."""
    temperatures = {name: entry.get("current") for name, entry in stats.get("temps", {}).items()}
    memory, power = stats.get("vram", {}), stats.get("power", {})
    used, total, pwm = memory.get("used"), memory.get("total"), stats.get("fan", {}).get("pwm_current")
    core = next((temperatures[name] for name in ("edge", "GPU", "GPU Core", "junction") if name in temperatures), None)
    return GpuLoad(
        id=index,
        name=device.get("name") or device["id"],
        uuid=device["id"],
        temp_c=rounded(core),
        vram_temp_c=rounded(next((temperatures[name] for name in ("mem", "VRAM") if name in temperatures), None)),
        gpu_util_pct=stats.get("busy_percent"),
        mem_util_pct=round(100 * used / total, 1) if used is not None and total else None,
        mem_used_mb=mib(used),
        mem_total_mb=mib(total),
        fan_speed_pct=None if pwm is None else round(pwm / 2.55, 1),
        power_draw_w=power.get("current", power.get("average")),
    )


# ---- numbers


def mib(size: float | None) -> int | None:
    return None if size is None else int(size // MIB)


def rounded(value: float | None) -> int | None:
    return None if value is None else round(value)
