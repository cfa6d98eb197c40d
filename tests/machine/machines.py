"""Machines that a test makes up: trees of files, and tools that print what they are told to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

MEMINFO = """MemTotal:       32768000 kB
MemFree:         2048000 kB
MemAvailable:   16384000 kB
Buffers:          512000 kB
Cached:         14000000 kB
SwapTotal:       8192000 kB
SwapFree:        6144000 kB
HugePages_Total:       0
Hugepagesize:       2048 kB
"""

STAT = """cpu  400 0 200 1400 0 0 0 0 0 0
cpu0 100 0 100 800 0 0 0 0 0 0
cpu1 300 0 100 600 0 0 0 0 0 0
intr 12345 0 0 0
ctxt 99
btime 1700000000
processes 42
"""

NET_DEV = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 5000       10    0    0    0     0          0         0     5000      10    0    0    0     0       0          0
  eth0: 1256514528 31602 0    0    0     0          0         0  1764133   18708    0    0    0     0       0          0
eth0:1:7          1    0    0    0     0          0         0        8       1    0    0    0     0       0          0
"""  # noqa: E501

PROC = {
    "proc/meminfo": MEMINFO,
    "proc/stat": STAT,
    "proc/loadavg": "0.50 1.25 2.00 1/200 4711\n",
    "proc/net/dev": NET_DEV,
}


def tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def tool(folder: Path, name: str, script: str) -> str:
    """Make a program; return the folder as a search path."""
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(folder)


def printing(text: str) -> str:
    return f"cat <<'END'\n{text.rstrip()}\nEND"
