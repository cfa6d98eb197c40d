"""Tools that answer, fail, or hang, as programs that really run."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from machines import tool

from llamaswapd.machine.tools import Tool


async def test_what_a_tool_prints_counts_whatever_its_exit_status(tmp_path: Path) -> None:
    search = tool(tmp_path, "ask", 'echo "$1 $LC_ALL"; echo complaint >&2; exit 3')
    assert await Tool("ask", search).output("one", within_s=20) == "one C\n"


async def test_a_tool_that_is_not_installed_says_nothing(tmp_path: Path) -> None:
    missing = Tool("ask", str(tmp_path))
    assert missing.find() is None
    assert await missing.output(within_s=20) == ""


async def test_a_tool_that_cannot_be_executed_says_nothing(tmp_path: Path) -> None:
    search = tool(tmp_path, "ask", "")
    (tmp_path / "ask").write_bytes(b"\x7fELF, but not really")
    assert await Tool("ask", search).output(within_s=20) == ""


async def test_a_tool_that_hangs_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    search = tool(tmp_path, "ask", f"sleep 600 & echo $$ $! > {pids}; wait")
    assert await Tool("ask", search).output(within_s=0.3) == ""
    for pid in map(int, pids.read_text().split()):
        assert await asyncio.to_thread(is_gone, pid)


async def test_a_tool_is_killed_when_nobody_waits_for_it_any_more(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    search = tool(tmp_path, "ask", f"echo $$ > {fifo}; sleep 600")
    asked = asyncio.create_task(Tool("ask", search).output(within_s=60))
    pid = int(await asyncio.to_thread(fifo.read_text))
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert await asyncio.to_thread(is_gone, pid)


async def test_a_tool_is_killed_when_nobody_waits_for_it_before_it_has_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    ask = Tool("ask", tool(tmp_path, "ask", f"echo $$ >> {pids}; sleep 600"))
    for turns in range(12):
        asked = asyncio.create_task(ask.output(within_s=60))
        for _ in range(turns):
            await asyncio.sleep(0)
        asked.cancel()
        await asyncio.wait((asked,))
    for pid in map(int, pids.read_text().split() if pids.exists() else ()):
        assert await asyncio.to_thread(is_gone, pid)


async def test_while_a_run_cannot_be_killed_no_other_is_started(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    hanging = Tool("ask", tool(tmp_path, "ask", f"echo start >> {starts}"))
    hanging._stuck = stuck = await asyncio.create_subprocess_exec("sleep", "600")
    assert await hanging.output(within_s=20) == ""
    assert not starts.exists()
    stuck.send_signal(signal.SIGKILL)
    await stuck.wait()
    await hanging.output(within_s=20)
    assert starts.exists()


def is_gone(pid: int) -> bool:
    """Wait for a process that is no child of ours; the test's time limit is the only one."""
    while True:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":  # nobody reaps orphans in some containers
            return True
