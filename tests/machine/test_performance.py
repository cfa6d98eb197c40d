"""Samples of made-up machines and of this one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from machines import MEMINFO, NET_DEV, PROC, STAT, printing, tool, tree

from llamaswapd.machine.load import GpuLoad, Gpus
from llamaswapd.machine.performance import (
    KEPT_COUNT,
    SILENT_ROUNDS,
    Memory,
    Performance,
    Traffic,
    core_times,
    load_averages,
    memory,
    records,
    traffic,
    utilisation,
)

MIB = 1024**2


@dataclass
class Settings:
    disabled: bool = False
    every: float = 5.0


class Clock:
    """Goes on by five seconds whenever somebody looks."""

    def __init__(self) -> None:
        self.now = datetime(2025, 1, 2, 3, 4, 0, 250, UTC)
        self.step = timedelta(seconds=5)

    def __call__(self) -> datetime:
        self.now += self.step
        return self.now


def watch(root: Path, search: str = "/nowhere", clock: Callable[[], datetime] | None = None) -> Performance:
    return Performance(Settings(), root, Gpus(root, search), clock or Clock())


async def until(is_so: Callable[[], object]) -> None:
    while not is_so():  # noqa: ASYNC110, what is waited for has no event
        await asyncio.sleep(0.001)


# ---- /proc


def test_cores_are_told_apart_and_waiting_for_a_disk_is_not_work() -> None:
    assert core_times("cpu  9 9 9 9\ncpu0 10 1 20 100 50 2 3 4 10 1\ncpu11 1 0 0 9 0 0 0 0\nintr 1\n") == {
        0: (40, 190),
        11: (1, 10),
    }


def test_a_core_is_as_busy_as_its_time_between_two_looks_says() -> None:
    before = {0: (100, 1000), 1: (100, 1000), 2: (100, 1000)}
    after = {0: (150, 1100), 1: (200, 1100), 2: (100, 1100)}
    assert list(utilisation(before, after)) == [50.0, 100.0, 0.0]


def test_a_core_that_comes_goes_or_counts_backwards_does_no_harm() -> None:
    before = {0: (100, 1000), 1: (100, 1000), 3: (10, 20)}
    after = {1: (90, 1100), 2: (500, 600), 3: (10, 20)}
    assert list(utilisation(before, after)) == [0.0, 0.0, 0.0]


def test_memory_that_can_be_had_again_is_not_used() -> None:
    kib = 1024
    assert memory(MEMINFO) == Memory(
        32768000 * kib, (32768000 - 16384000) * kib, 2048000 * kib, 8192000 * kib, 2048000 * kib
    )


def test_a_machine_without_swap_has_none_in_use() -> None:
    assert memory("MemTotal: 10 kB\nMemFree: 4 kB\n") == Memory(10240, 6144, 4096, 0, 0)


def test_load_averages() -> None:
    assert load_averages("0.50 1.25 2.00 1/200 4711\n") == (0.5, 1.25, 2.0)


def test_loopback_is_no_traffic() -> None:
    assert traffic(NET_DEV) == (Traffic("eth0", 1256514528, 1764133), Traffic("eth0:1", 7, 8))


def test_a_machine_without_network_has_no_traffic() -> None:
    assert traffic("") == ()


# ---- samples


async def test_a_sample_as_json(tmp_path: Path) -> None:
    performance = watch(tree(tmp_path, PROC))
    await performance.begin()
    busier = STAT.replace("cpu0 100 0 100 800", "cpu0 133 0 100 867").replace("cpu1 300", "cpu1 400")
    (tmp_path / "proc/stat").write_text(busier)
    assert await performance.sample()
    assert records(*performance.after(None)) == (
        [
            {
                "timestamp": "2025-01-02T03:04:05.000250Z",
                "cpu_util_per_core": [33.0, 100.0],
                "mem_total_mb": 32000,
                "mem_used_mb": 16000,
                "mem_free_mb": 2000,
                "swap_total_mb": 8000,
                "swap_used_mb": 2000,
                "load_avg_1": 0.5,
                "load_avg_5": 1.25,
                "load_avg_15": 2.0,
                "net_io": [
                    {"name": "eth0", "bytes_recv": 1256514528, "bytes_sent": 1764133},
                    {"name": "eth0:1", "bytes_recv": 7, "bytes_sent": 8},
                ],
            }
        ],
        [],
    )


async def test_a_gpu_has_a_row_in_each_sample_and_what_is_unknown_is_nought(tmp_path: Path) -> None:
    rows = "0, GPU-1, 41, N/A, 37, 12, 20123, 24564, [N/A], 212.55, One\n1, GPU-2, 40, N/A, 0, 0, 1, 2, 3, 4, Two"
    performance = watch(tmp_path, tool(tmp_path / "bin", "nvidia-smi", printing(rows)))
    assert await performance.sample_gpus()
    _, (first, second) = records(*performance.after(None))
    assert first == {
        "timestamp": "2025-01-02T03:04:05.000250Z",
        "id": 0,
        "name": "One",
        "uuid": "GPU-1",
        "temp_c": 41,
        "vram_temp_c": 0,
        "gpu_util_pct": 37.0,
        "mem_util_pct": 12.0,
        "mem_used_mb": 20123,
        "mem_total_mb": 24564,
        "fan_speed_pct": 0,
        "power_draw_w": 212.55,
    }
    assert (second["id"], second["timestamp"]) == (1, first["timestamp"])


async def test_only_samples_later_than_a_moment_are_returned(tmp_path: Path) -> None:
    performance = watch(tree(tmp_path, PROC))
    for _ in range(3):
        await performance.sample()
    first, second, third = performance.after(None)[0]
    assert performance.after(first.timestamp)[0] == [second, third]
    assert performance.after(third.timestamp)[0] == []
    assert performance.newest() == (third, ())


async def test_samples_are_kept_for_an_hour(tmp_path: Path) -> None:
    clock = Clock()
    clock.step = timedelta(minutes=25)
    performance = watch(tree(tmp_path, PROC), clock=clock)
    for _ in range(5):
        await performance.sample()
    kept = [sample.timestamp for sample in performance.after(None)[0]]
    assert kept == [clock.now - 2 * clock.step, clock.now - clock.step, clock.now]


async def test_a_clock_that_is_set_back_does_not_keep_samples_for_ever(tmp_path: Path) -> None:
    clock = Clock()
    performance = watch(tree(tmp_path, PROC), clock=clock)
    clock.step = timedelta(days=-1)
    for _ in range(KEPT_COUNT + 1):
        await performance.sample()
    assert len(performance.after(None)[0]) == KEPT_COUNT


async def test_gpus_that_stop_answering_are_not_shown_as_they_were(tmp_path: Path) -> None:
    search = tool(tmp_path / "bin", "nvidia-smi", printing("0, GPU-1, 41, N/A, 37, 12, 1, 2, 3, 4, One"))
    performance = watch(tmp_path, search)
    for _ in range(SILENT_ROUNDS + 1):
        assert await performance.sample_gpus()
        tool(tmp_path / "bin", "nvidia-smi", "echo Unknown Error")
    assert performance.newest()[1] == ()
    assert len(performance.after(None)[1]) == SILENT_ROUNDS + 1


async def test_gpus_that_never_answer_are_asked_no_more(tmp_path: Path) -> None:
    performance = watch(tmp_path, tool(tmp_path / "bin", "nvidia-smi", "echo No devices were found"))
    assert [await performance.sample_gpus() for _ in range(SILENT_ROUNDS)] == [True, True, False]
    assert performance.after(None) == ([], [])


async def test_a_machine_that_cannot_be_seen_is_not_looked_at_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert not await watch(tmp_path).sample()
    assert "cannot see how busy the machine is" in caplog.text


# ---- while it runs


async def run(performance: Performance) -> asyncio.Task[None]:
    return asyncio.create_task(performance.run())


async def test_samples_are_taken_again_and_again_until_it_is_cancelled(tmp_path: Path) -> None:
    root = tree(tmp_path, PROC)
    search = tool(tmp_path / "bin", "nvidia-smi", printing("0, GPU-1, 41, N/A, 37, 12, 1, 2, 3, 4, One"))
    performance = Performance(Settings(every=0.001), root, Gpus(root, search))
    running = await run(performance)
    await until(lambda: len(performance.after(None)[0]) > 2 and len(performance.after(None)[1]) > 1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    sample, gpus = performance.newest()
    assert sample is not None
    assert gpus == (GpuLoad(0, "One", "GPU-1", 41, None, 37.0, 12.0, 1, 2, 3.0, 4.0),)


async def test_another_interval_counts_at_once(tmp_path: Path) -> None:
    root = tree(tmp_path, PROC)
    performance = Performance(Settings(every=3600), root, Gpus(root, "/nowhere"))
    running = await run(performance)
    await until(lambda: performance._times)
    assert performance.newest()[0] is None
    performance.reconfigure(Settings(every=0.001))
    await until(lambda: performance.newest()[0])
    running.cancel()
    await asyncio.wait((running,))


async def test_once_disabled_it_ends_and_stays_so(tmp_path: Path) -> None:
    root = tree(tmp_path, PROC)
    performance = Performance(Settings(every=0.001), root, Gpus(root, "/nowhere"))
    running = await run(performance)
    await until(lambda: performance.newest()[0])
    performance.reconfigure(Settings(disabled=True, every=3600))
    await running
    assert performance.after(None) == ([], [])
    performance.reconfigure(Settings(every=0.001))
    assert not performance.is_enabled
    await performance.run()


async def test_what_is_disabled_from_the_start_takes_no_sample(tmp_path: Path) -> None:
    performance = Performance(Settings(disabled=True), tmp_path)
    await performance.run()
    assert not performance.is_enabled


async def test_a_mistake_in_this_program_ends_the_samples_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Gpus):
        def can_be_asked(self) -> bool:
            return True

        async def loads(self) -> list[GpuLoad]:
            raise RuntimeError("a mistake")

    performance = Performance(Settings(every=0.001), tree(tmp_path, PROC), Broken(tmp_path))
    running = await run(performance)
    await until(lambda: "a mistake" in caplog.text)
    seen = len(performance.after(None)[0])
    await until(lambda: len(performance.after(None)[0]) > seen)
    running.cancel()
    await asyncio.wait((running,))


async def test_this_machine(tmp_path: Path) -> None:
    performance = Performance(Settings(), gpus=Gpus(tmp_path, "/nowhere"))
    await performance.begin()
    sum(range(1_000_000))  # so that time goes by
    assert await performance.sample()
    sample, _ = performance.newest()
    assert sample is not None
    assert len(sample.cores) >= 1
    assert all(0 <= core <= 100 for core in sample.cores)
    assert 0 < sample.memory.used < sample.memory.total
    assert 0 < sample.memory.free < sample.memory.total  # more than is available, right after a boot
    assert "lo" not in {entry.name for entry in sample.network}
    assert abs(sample.timestamp - datetime.now(UTC)) < timedelta(minutes=1)
