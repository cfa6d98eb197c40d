"""A cgroup's counters: as files that a test wrote."""

from __future__ import annotations

import resource
from pathlib import Path

from llamaswapd.systemd.cgroup import Resources, resources

CPU_STAT = "usage_usec 2500000\nuser_usec 2000000\nsystem_usec 500000\nnr_periods 0\nnr_throttled 0\n"


def test_a_cgroup_says_what_its_processes_use(tmp_path: Path) -> None:
    (tmp_path / "memory.current").write_text("1073741824\n")
    (tmp_path / "cpu.stat").write_text(CPU_STAT)
    (tmp_path / "pids.current").write_text("17\n")
    assert resources(tmp_path) == Resources(memory_bytes=1073741824, cpu_s=2.5, tasks=17)


def test_a_controller_that_is_missing_leaves_its_counter_unknown(tmp_path: Path) -> None:
    (tmp_path / "cpu.stat").write_text(CPU_STAT)
    assert resources(tmp_path) == Resources(cpu_s=2.5)


def test_without_controllers_the_processes_are_asked(tmp_path: Path) -> None:
    """Those of all cgroups below as well; one that has just ended counts nothing."""
    unit, proc = tmp_path / "unit", tmp_path / "proc"
    for folder, pids, threads in ((unit, "10\n11\n", "10\n11\n12\n"), (unit / "below", "20\n", "20\n21\n")):
        folder.mkdir()
        (folder / "cgroup.procs").write_text(pids)
        (folder / "cgroup.threads").write_text(threads)
    for pid, pages in (("10", 300), ("20", 5)):
        (proc / pid).mkdir(parents=True)
        (proc / pid / "statm").write_text(f"9000 {pages} 20 1 0 40 0\n")
    page = resource.getpagesize()
    assert resources(unit, proc) == Resources(memory_bytes=305 * page, tasks=5)


def test_counters_are_believed_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "memory.current").write_text("0\n")
    (tmp_path / "pids.current").write_text("0\n")
    (tmp_path / "cgroup.procs").write_text("1\n")
    (tmp_path / "cgroup.threads").write_text("1\n")
    assert resources(tmp_path) == Resources(memory_bytes=0, tasks=0)


def test_cgroup_v1_counts_nothing_for_us(tmp_path: Path) -> None:
    (tmp_path / "cpu.stat").write_text("nr_periods 0\nnr_throttled 0\nthrottled_time 0\n")
    (tmp_path / "memory.usage_in_bytes").write_text("4096\n")
    assert resources(tmp_path) == Resources()


def test_a_cgroup_that_is_gone_counts_nothing(tmp_path: Path) -> None:
    assert resources(tmp_path / "gone") == Resources()
