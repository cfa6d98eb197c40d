"""How busy the machine has been for the last hour: processors, memory, network, GPUs.

Processor times and network bytes are counters of the kernel since boot; proc(5) says what each file holds.
"""

from __future__ import annotations

import asyncio
import logging
from array import array
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol, TypeVar

from llamaswapd.machine.gpus import MIB, read
from llamaswapd.machine.load import GpuLoad, Gpus

log = logging.getLogger(__name__)

KEPT = timedelta(hours=1)
KEPT_COUNT = 720  # of the shortest interval; holds should the clock be set back
SILENT_ROUNDS = 3  # after which GPUs that have never answered are asked no more

CoreTimes = Mapping[int, tuple[int, int]]  # core → (busy, all), in ticks


class Settings(Protocol):
    """The section `performance` of the configuration."""

    @property
    def disabled(self) -> bool: ...

    @property
    def every(self) -> float:
        """Seconds between samples."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What went through one network interface since it is there, in bytes."""

    name: str
    received: int
    sent: int


@dataclass(frozen=True, slots=True)
class Sample:
    """The machine at one moment. Memory in bytes; `cores` in percent, in the order of their numbers."""

    timestamp: datetime
    cores: Sequence[float]
    memory: Memory
    load: tuple[float, float, float]  # over 1, 5 and 15 minutes
    network: tuple[Traffic, ...]


@dataclass(frozen=True, slots=True)
class Memory:
    """In bytes. What can be had without swapping does not count as used, although most of it is not free."""

    total: int
    used: int
    free: int
    swap_total: int
    swap_used: int


@dataclass(frozen=True, slots=True)
class GpuSample:
    timestamp: datetime
    loads: tuple[GpuLoad, ...]


Record = dict[str, object]
Kept = TypeVar("Kept", Sample, GpuSample)


class Performance:
    """Takes samples for as long as `run` runs, and keeps them for an hour."""

    def __init__(
        self,
        settings: Settings,
        root: Path = Path("/"),
        gpus: Gpus | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`root` is the root directory. Once disabled, by `settings` or `reconfigure`, it stays so."""
        self.is_enabled = not settings.disabled
        self._every_s = settings.every
        self._root = root
        self._gpus = gpus or Gpus(root)
        self._now = now
        self._times: CoreTimes = {}
        self._samples: deque[Sample] = deque(maxlen=KEPT_COUNT)
        self._gpu_samples: deque[GpuSample] = deque(maxlen=KEPT_COUNT)
        self._silent_rounds = 0
        self._changed = asyncio.Event()

    def reconfigure(self, settings: Settings) -> None:
        """Go on with other settings at once. What was disabled comes back with a restart only (llama-swap)."""
        self._every_s = settings.every
        if settings.disabled:
            self.is_enabled = False
            self._samples.clear()
            self._gpu_samples.clear()
        # Whoever waits for the event is woken and takes the new one next time.
        self._changed.set()
        self._changed = asyncio.Event()

    def after(self, moment: datetime | None) -> tuple[list[Sample], list[GpuSample]]:
        """Return the samples later than `moment` (None: all), oldest first."""
        return (
            [sample for sample in self._samples if moment is None or sample.timestamp > moment],
            [sample for sample in self._gpu_samples if moment is None or sample.timestamp > moment],
        )

    def newest(self) -> tuple[Sample | None, tuple[GpuLoad, ...]]:
        """Return the newest sample, and what the GPUs did when last asked, nothing if they did not answer."""
        return (
            self._samples[-1] if self._samples else None,
            self._gpu_samples[-1].loads if self._gpu_samples else (),
        )

    async def run(self) -> None:
        """Take samples until cancelled, or disabled. The first is there after one interval."""
        if not self.is_enabled:
            return
        await self.begin()
        async with asyncio.TaskGroup() as both:  # GPUs may take their time, or hang
            both.create_task(self._repeat(self.sample), name="samples of the machine")
            if await asyncio.to_thread(self._gpus.can_be_asked):
                both.create_task(self._repeat(self.sample_gpus), name="samples of the GPUs")

    async def begin(self) -> None:
        """Note from where on the processors' times count for the first sample."""
        self._times = await asyncio.to_thread(self._core_times)

    async def sample(self) -> bool:
        """Take a sample of the machine; say whether it makes sense to go on."""
        try:
            self._times, sample = await asyncio.to_thread(self._look, self._times)
        except (ValueError, LookupError) as error:
            log.warning("cannot see how busy the machine is, /proc says something else than expected: %r", error)
            return False
        if self.is_enabled:
            _keep(self._samples, sample)
        return True

    async def sample_gpus(self) -> bool:
        """Ask the GPUs; say whether it makes sense to go on."""
        moment, loads = self._now(), tuple(await self._gpus.loads())
        if self.is_enabled and (loads or self._gpu_samples):
            _keep(self._gpu_samples, GpuSample(moment, loads))
        self._silent_rounds = 0 if loads or self._gpu_samples else self._silent_rounds + 1
        return self._silent_rounds < SILENT_ROUNDS

    async def _repeat(self, take: Callable[[], Awaitable[bool]]) -> None:
        try:
            await self._repeat_until_senseless(take)
        except Exception:
            log.exception("unexpected error, the machine's load is no longer watched")

    async def _repeat_until_senseless(self, take: Callable[[], Awaitable[bool]]) -> None:
        now = asyncio.get_running_loop().time
        last = now()
        while self.is_enabled:
            if (delay_s := last + self._every_s - now()) > 0 and await self._is_changed_within(delay_s):
                continue
            last = now()
            if self.is_enabled and not await take():
                return

    async def _is_changed_within(self, delay_s: float) -> bool:
        changed = self._changed
        try:
            async with asyncio.timeout(delay_s):
                return await changed.wait()
        except TimeoutError:
            return False

    def _core_times(self) -> CoreTimes:
        return core_times(read(self._root / "proc/stat"))

    def _look(self, before: CoreTimes) -> tuple[CoreTimes, Sample]:
        proc, times = self._root / "proc", self._core_times()
        return times, Sample(
            self._now(),
            utilisation(before, times),
            memory(read(proc / "meminfo")),
            load_averages(read(proc / "loadavg")),
            traffic(read(proc / "net/dev")),
        )


def _keep(samples: deque[Kept], sample: Kept) -> None:
    samples.append(sample)
    while sample.timestamp - samples[0].timestamp > KEPT:
        samples.popleft()


# ---- /proc


def core_times(stat: str) -> dict[int, tuple[int, int]]:
    """Read /proc/stat: core → (busy, all), in ticks. Waiting for a disk is not work."""
    times = {}
    for line in stat.splitlines():
        name, _, values = line.partition(" ")
        if name.startswith("cpu") and name[3:].isdecimal():
            # user nice system idle iowait irq softirq steal; what guests use is part of user already
            ticks = [int(value) for value in values.split()[:8]]
            total = sum(ticks)
            times[int(name[3:])] = total - sum(ticks[3:5]), total
    return times


def utilisation(before: CoreTimes, after: CoreTimes) -> Sequence[float]:
    """Return the percentage that each core was busy between two looks, by number; 0 for one that was not there."""
    # An hour of tuples would be megabytes on a machine with hundreds of cores.
    return array("f", (_percentage(before.get(core), times) for core, times in sorted(after.items())))


def _percentage(before: tuple[int, int] | None, after: tuple[int, int]) -> float:
    busy, total = (now - then for now, then in zip(after, before or after, strict=True))
    return min(max(100.0 * busy / total, 0.0), 100.0) if total > 0 else 0.0


def memory(meminfo: str) -> Memory:
    """Read /proc/meminfo; raises LookupError when it lacks the total."""
    sizes = {}
    for line in meminfo.splitlines():
        name, _, value = line.partition(":")
        sizes[name] = int(value.split()[0]) * 1024
    total, free = sizes["MemTotal"], sizes["MemFree"]
    swap_total = sizes.get("SwapTotal", 0)
    return Memory(
        total=total,
        used=total - sizes.get("MemAvailable", free),
        free=free,
        swap_total=swap_total,
        swap_used=swap_total - sizes.get("SwapFree", swap_total),
    )


def load_averages(loadavg: str) -> tuple[float, float, float]:
    """Read /proc/loadavg."""
    one, five, fifteen = map(float, loadavg.split()[:3])
    return one, five, fifteen


def traffic(net_dev: str) -> tuple[Traffic, ...]:
    """Read /proc/net/dev, without the loopback interface; none if there is no such file."""
    found = []
    for line in net_dev.splitlines()[2:]:
        name, _, values = line.rpartition(":")  # the name of an alias holds a colon
        columns = values.split()
        if name.strip() != "lo":
            found.append(Traffic(name.strip(), int(columns[0]), int(columns[8])))
    return tuple(found)


# ---- as JSON


def records(samples: Sequence[Sample], gpu_samples: Sequence[GpuSample]) -> tuple[list[Record], list[Record]]:
    """Return the rows of `/api/performance`: one per sample, and one per sample and GPU."""
    return (
        [_record(sample) for sample in samples],
        [_gpu_record(sample.timestamp, load) for sample in gpu_samples for load in sample.loads],
    )


def rfc3339(moment: datetime) -> str:
    """Write a moment with all its microseconds, so that it can be sent back as `after`."""
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"


def _record(sample: Sample) -> Record:
    memory = sample.memory
    return {
        "timestamp": rfc3339(sample.timestamp),
        "cpu_util_per_core": [round(core, 2) for core in sample.cores],
        "mem_total_mb": memory.total // MIB,
        "mem_used_mb": memory.used // MIB,
        "mem_free_mb": memory.free // MIB,
        "swap_total_mb": memory.swap_total // MIB,
        "swap_used_mb": memory.swap_used // MIB,
        **dict(zip(("load_avg_1", "load_avg_5", "load_avg_15"), sample.load, strict=True)),
        "net_io": [
            {"name": entry.name, "bytes_recv": entry.received, "bytes_sent": entry.sent} for entry in sample.network
        ],
    }


def _gpu_record(timestamp: datetime, load: GpuLoad) -> Record:
    """Write a GPU's load. Clients expect numbers, so that what is not known is 0 as from llama-swap."""
    return {
        "timestamp": rfc3339(timestamp),
        **{name: 0 if value is None else value for name, value in asdict(load).items()},
    }
