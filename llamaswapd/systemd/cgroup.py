"""What a unit uses, as its cgroup counts it; "Control Group v2" of the kernel's documentation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Resources:
    """None: not counted, because the controller is missing or of cgroup v1, or the unit is gone."""

    memory_bytes: int | None = None
    cpu_s: float | None = None
    tasks: int | None = None


def resources(folder: Path) -> Resources:
    """Read the counters of a cgroup, which include all below it. A matter of microseconds."""
    cpu_us = _number(_field(_read(folder / "cpu.stat"), "usage_usec"))
    return Resources(
        memory_bytes=_number(_read(folder / "memory.current")),
        cpu_s=None if cpu_us is None else cpu_us / 1e6,
        tasks=_number(_read(folder / "pids.current")),
    )


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # no such controller, or no such unit any more
        return ""


def _field(text: str, name: str) -> str:
    return next((line.removeprefix(name) for line in text.splitlines() if line.startswith(f"{name} ")), "")


def _number(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isdecimal() else None
