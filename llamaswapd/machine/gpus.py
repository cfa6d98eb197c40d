"""Which accelerators there are, as vendors' tools and sysfs describe them.

Parsers of text and readers of folders; nothing here runs a program or waits. What a source does not say is None. A
device is known by its PCI address (`0000:01:00.0`), so that two sources that know it make one accelerator.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

MIB = 1024 * 1024
PCI_ADDRESS = re.compile(
    r"(?:[0-9a-f]{4})?([0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])"
)  # the domain has 4 or 8 digits

MemoryKind = Literal["dedicated", "unified", "shared_system", "unknown"]


@dataclass(frozen=True)
class Accelerator:
    """What does not change while the machine runs. `driver` is the kernel module; capacities in bytes."""

    address: str | None = None
    kind: Literal["gpu", "npu"] = "gpu"
    vendor: str | None = None
    model: str | None = None
    architecture: str | None = None
    memory_kind: MemoryKind | None = None
    memory_bytes: int | None = None
    driver: str | None = None
    driver_version: str | None = None
    power_limit_w: float | None = None


def merge(*sources: Iterable[Accelerator]) -> list[Accelerator]:
    """Return every accelerator once; where several sources know one, the earlier source's facts count."""
    by_address: dict[str, Accelerator] = {}
    for number, found in enumerate(accelerator for source in sources for accelerator in source):
        key = found.address or f"nowhere {number}"
        known = by_address.get(key)
        by_address[key] = found if known is None else _completed(known, found)
    return list(by_address.values())


def _completed(known: Accelerator, more: Accelerator) -> Accelerator:
    gaps = [field.name for field in fields(Accelerator) if getattr(known, field.name) is None]
    return replace(known, **{name: getattr(more, name) for name in gaps})


# ---- nvidia-smi

# The name stands last in every query: it alone may hold a comma, and the tool does not quote.
NVIDIA_FACTS = ("pci.bus_id", "memory.total", "driver_version", "power.limit", "compute_cap", "name")
OLD_NVIDIA_FACTS = tuple(fact for fact in NVIDIA_FACTS if fact != "compute_cap")  # before release 510

NVIDIA_ARCHITECTURES = {  # by compute capability, the longest match counts
    "5": "Maxwell", "6": "Pascal", "7": "Volta", "7.5": "Turing", "8": "Ampere", "8.9": "Ada Lovelace", "9": "Hopper",
    "10": "Blackwell", "11": "Blackwell", "12": "Blackwell",
}  # fmt: skip
NVIDIA_WITHOUT_OWN_MEMORY = re.compile(r"\b(GB10|Orin|Thor)\b")  # one memory for CPU and GPU


def nvidia_query(names: Sequence[str]) -> tuple[str, str]:
    """Return nvidia-smi's arguments for a list of facts."""
    return f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits"


def nvidia_rows(text: str, names: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yield what nvidia-smi says of each GPU, by the names that it was asked for; complaints are no rows."""
    for line in text.splitlines():
        values = [value.strip() for value in line.split(",", len(names) - 1)]
        if len(values) == len(names):
            yield dict(zip(names, values, strict=True))


def nvidia_accelerators(text: str, names: Sequence[str] = NVIDIA_FACTS) -> list[Accelerator]:
    """Read the answer to `nvidia_query(names)`."""
    return [_nvidia(row) for row in nvidia_rows(text, names) if pci_address(row["pci.bus_id"])]


def _nvidia(row: Mapping[str, str]) -> Accelerator:
    total_mib, model = number(row["memory.total"]), word(row["name"])
    kind: MemoryKind | None = "dedicated" if total_mib else None
    if model and NVIDIA_WITHOUT_OWN_MEMORY.search(model):
        kind = "unified"
    return Accelerator(
        address=pci_address(row["pci.bus_id"]),
        vendor="NVIDIA",
        model=model,
        architecture=_nvidia_architecture(row.get("compute_cap", "")),
        memory_kind=kind,
        memory_bytes=round(total_mib * MIB) if total_mib else None,
        driver="nvidia",
        driver_version=word(row["driver_version"]),
        power_limit_w=number(row["power.limit"]),
    )


def _nvidia_architecture(capability: str) -> str | None:
    return NVIDIA_ARCHITECTURES.get(capability) or NVIDIA_ARCHITECTURES.get(capability.partition(".")[0])


# ---- rocm-smi

AMD_FACTS = (
    "--showproductname", "--showbus", "--showmeminfo", "vram", "--showmaxpower", "--showdriverversion", "--json",
)  # fmt: skip


def amd_cards(text: str) -> dict[str, dict[str, str]]:
    """Return what `rocm-smi --json` says of each card, by its name (`card0`), and of the `system`.

    Spelling differs between releases, so names are in lower case. Warnings may stand before the JSON.
    """
    start = text.find("{")
    try:
        read: Any = json.loads(text[start:]) if start >= 0 else {}
    except ValueError:
        return {}
    return {
        card: {str(name).lower(): str(value) for name, value in facts.items()}
        for card, facts in read.items()
        if isinstance(facts, dict)
    }


def amd_accelerators(text: str) -> list[Accelerator]:
    """Read the answer of rocm-smi to AMD_FACTS."""
    cards = amd_cards(text)
    version = word(cards.get("system", {}).get("driver version", ""))
    return [
        Accelerator(
            address=pci_address(facts.get("pci bus", "")),
            vendor="AMD",
            model=amd_name(facts),
            architecture=word(facts.get("gfx version", "")),
            memory_bytes=whole(facts.get("vram total memory (b)", "")),
            driver="amdgpu",
            driver_version=version,
            power_limit_w=number(facts.get("max graphics package power (w)", "")),
        )
        for card, facts in cards.items()
        if card.startswith("card")
    ]


def amd_name(facts: Mapping[str, str]) -> str | None:
    """Return a card's name; some releases have a number in its place."""
    names = (word(facts.get(key, "")) for key in ("device name", "card series", "card model"))
    return next((name for name in names if name and not name.startswith("0x")), None)


# ---- sysfs

VENDORS = {"amdgpu": "AMD", "radeon": "AMD", "i915": "Intel", "xe": "Intel", "nvidia": "NVIDIA", "nouveau": "NVIDIA"}
NPU_VENDORS = {"intel_vpu": "Intel", "amdxdna": "AMD"}
INTEL_ON_CHIP = "0000:00:02.0"  # where Intel's integrated graphics are, always
VRAM_SIZES = ("device/mem_info_vram_total", "lmem_total_bytes", "device/tile0/physical_vram_size_bytes")
PCI_IDS = ("usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids")


def sysfs_accelerators(root: Path) -> list[Accelerator]:
    """Return what the kernel's drivers show of GPUs and NPUs, below the root directory `root`. Blocks for a while."""
    gpus = [(folder, facts) for folder, facts in devices(root / "sys/class/drm", "card") if facts["DRIVER"] in VENDORS]
    npus = [(folder, f) for folder, f in devices(root / "sys/class/accel", "accel") if f["DRIVER"] in NPU_VENDORS]
    names = pci_names(root, {pci_id(facts) for _, facts in (*gpus, *npus)})
    architectures = _amd_architectures(root)
    return [
        *(_gpu(root, folder, facts, names, architectures) for folder, facts in gpus),
        *(_npu(root, facts, names) for _, facts in npus),
    ]


def devices(group: Path, prefix: str) -> list[tuple[Path, dict[str, str]]]:
    """Return (folder, facts) of the devices of a class; `card0` is one, its connector `card0-HDMI-A-1` is not.

    The facts are those of `uevent`: DRIVER, PCI_ID (`1002:744C`), PCI_SLOT_NAME.
    """
    found = []
    for folder in group.glob(f"{prefix}[0-9]*"):
        if folder.name.removeprefix(prefix).isdigit():
            lines = read(folder / "device/uevent").splitlines()
            facts = dict(line.split("=", 1) for line in lines if "=" in line)
            if "DRIVER" in facts:
                found.append((folder, facts))
    return sorted(found, key=lambda entry: int(entry[0].name.removeprefix(prefix)))


def pci_id(facts: Mapping[str, str]) -> str:
    """Return `vendor:device` in lower case, as the list of PCI ids has it; "" for a device that is not on PCI."""
    return facts.get("PCI_ID", "").lower()


def _gpu(
    root: Path, folder: Path, facts: Mapping[str, str], names: Mapping[str, str], architectures: Mapping[str, str]
) -> Accelerator:
    driver, address = facts["DRIVER"], pci_address(facts.get("PCI_SLOT_NAME", ""))
    size = next((size for name in VRAM_SIZES if (size := _size(read(folder / name)))), None)
    limit_uw = next(
        (limit for file in folder.glob("device/hwmon/hwmon*/power1_cap") if (limit := number(read(file)))), 0
    )
    return Accelerator(
        address=address,
        vendor=VENDORS[driver],
        model=word(read(folder / "device/product_name")) or _nvidia_model(root, address) or names.get(pci_id(facts)),
        architecture=architectures.get(address or ""),
        memory_kind=_memory_kind(folder, driver, address, size),
        memory_bytes=size,
        driver=driver,
        driver_version=word(read(root / "sys/module" / driver / "version")),
        power_limit_w=limit_uw / 1e6 if limit_uw else None,
    )


def _size(text: str) -> int | None:
    """Read a number of bytes: some drivers write it in decimal, some in hexadecimal."""
    try:
        return int(text, 0)
    except ValueError:
        return None


def _npu(root: Path, facts: Mapping[str, str], names: Mapping[str, str]) -> Accelerator:
    driver = facts["DRIVER"]
    return Accelerator(
        address=pci_address(facts.get("PCI_SLOT_NAME", "")),
        kind="npu",
        vendor=NPU_VENDORS[driver],
        model=names.get(pci_id(facts)),
        memory_kind="shared_system",
        driver=driver,
        driver_version=word(read(root / "sys/module" / driver / "version")),
    )


def _memory_kind(folder: Path, driver: str, address: str | None, size: int | None) -> MemoryKind | None:
    if address == INTEL_ON_CHIP and VENDORS[driver] == "Intel":
        return "shared_system"
    if driver == "amdgpu":  # integrated graphics show a part of the system's memory, from no maker of video memory
        return "dedicated" if read(folder / "device/mem_info_vram_vendor").strip() not in ("", "unknown") else None
    return "dedicated" if size else None


def _nvidia_model(root: Path, address: str | None) -> str | None:
    text = read(root / "proc/driver/nvidia/gpus" / (address or "") / "information")
    found = re.search(r"^Model:\s*(.+)$", text, re.MULTILINE)
    return word(found[1]) if found else None


def _amd_architectures(root: Path) -> dict[str, str]:
    """Return PCI address → `gfx1100`, from the compute driver's nodes."""
    found = {}
    for file in root.glob("sys/class/kfd/kfd/topology/nodes/*/properties"):
        facts = {name: int(value) for name, value in re.findall(r"^(\w+) (\d+)$", read(file), re.MULTILINE)}
        if version := facts.get("gfx_target_version", 0):
            location = facts.get("location_id", 0)  # bus, device and function, as the kernel packs them
            bus, device, function = location >> 8, location >> 3 & 0x1F, location & 7
            address = f"{facts.get('domain', 0):04x}:{bus:02x}:{device:02x}.{function}"
            found[address] = f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"
    return found


def pci_names(root: Path, wanted: Iterable[str]) -> dict[str, str]:
    """Return `1002:744c` → `Navi 31 [Radeon RX 7900 XT/7900 XTX]` for those known to the list of PCI ids."""
    by_vendor: dict[str, set[str]] = {}
    for pci_id in wanted:
        vendor, _, device = pci_id.partition(":")
        by_vendor.setdefault(vendor, set()).add(device)
    text = next((text for path in PCI_IDS if by_vendor and (text := read(root / path))), "")
    names, vendor = {}, ""
    for line in text.splitlines():
        if line[:1] not in ("\t", "#", ""):
            vendor = line[:4]
        elif line[:1] == "\t" and line[1:5] in by_vendor.get(vendor, ()):
            names[f"{vendor}:{line[1:5]}"] = line[5:].strip()
    return names


# ---- words and numbers


def read(path: Path) -> str:
    """Return a file's text, "" if it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def word(text: str) -> str | None:
    """Return a text, None if it says nothing: `N/A`, `[Not Supported]`, `[Unknown Error]`."""
    text = text.strip()
    return None if text.lower() in ("", "n/a", "none") or text.startswith("[") else text


def number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def whole(text: str) -> int | None:
    value = number(text)
    return None if value is None else round(value)


def pci_address(text: str) -> str | None:
    found = PCI_ADDRESS.fullmatch(text.strip().lower())
    return found[1] if found else None
