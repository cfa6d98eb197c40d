"""What a unit uses, as its cgroup counts it; "Control Group v2" of the kernel's documentation.

Where the controllers of memory and tasks are of cgroup v1 (containers, older machines), proc(5) tells of its processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True)
class Resources:
    """None: not counted, or the unit is gone."""

    memory_bytes: int | None = None
    cpu_s: float | None = None
    tasks: int | None = None


def resources(folder: Path, proc: Path = PROC) -> Resources:
    """Read the counters of a cgroup, which include all below it. A matter of microseconds if it counts."""
    cpu_us = _number(_field(_read(folder / "cpu.stat"), "usage_usec"))
    memory_bytes, tasks = _number(_read(folder / "memory.current")), _number(_read(folder / "pids.current"))
    return Resources(
        memory_bytes=_resident_bytes(folder, proc) if memory_bytes is None else memory_bytes,
        cpu_s=None if cpu_us is None else cpu_us / 1e6,
        tasks=_listed(folder, "cgroup.threads") if tasks is None else tasks,
    )


def _resident_bytes(folder: Path, proc: Path) -> int | None:
    """Add up what the processes hold in memory. What they share counts for each of them, cached files do not count."""
    sizes = [_read(proc / pid / "statm").split() for pid in _ids(folder, "cgroup.procs")]
    pages = [int(size[1]) for size in sizes if size]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE") or None


def _listed(folder: Path, name: str) -> int | None:
    return len(list(_ids(folder, name))) or None


def _ids(folder: Path, name: str) -> Iterator[str]:
    """Yield the ids that a file lists, in a cgroup and those below it."""
    for below, _, _ in os.walk(folder):
        yield from _read(Path(below, name)).split()


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
