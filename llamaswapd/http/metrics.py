"""What Prometheus is told: how busy the machine is, as by llama-swap, and what the models and their requests do.

Families are made of plain data here; how they are spelled is the library's business.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, Protocol

from aiohttp import web

from llamaswapd import __version__
from llamaswapd.activity.counts import BOUNDS_S, Histogram, ModelCounts
from llamaswapd.core.lifecycle import State
from llamaswapd.engine import Resources, Status
from llamaswapd.machine.gpus import MIB
from llamaswapd.machine.load import GpuLoad
from llamaswapd.machine.performance import Performance, Sample

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
NOT_AVAILABLE = "# performance monitor not available\n"


class Models(Protocol):
    """What of the engine is told."""

    def statuses(self) -> list[Status]: ...

    def resources(self, model_id: str) -> Resources | None: ...


class Counted(Protocol):
    """What of the activity is told."""

    @property
    def counts(self) -> Mapping[str, ModelCounts]:
        """By model."""

    def flush(self) -> None:
        """Count what has just ended."""


class Durations:
    """How long loads and swaps took, by model: what an engine tells its observer."""

    def __init__(self) -> None:
        self.loads: defaultdict[str, Histogram] = defaultdict(Histogram)
        self.swaps: defaultdict[str, Histogram] = defaultdict(Histogram)
        self.failures: Counter[str] = Counter()

    def on_load(self, model_id: str, seconds: float, ok: bool) -> None:
        if ok:
            self.loads[model_id].observe(seconds)
        else:
            self.failures[model_id] += 1

    def on_swap(self, model_id: str, seconds: float) -> None:
        self.swaps[model_id].observe(seconds)

    def on_wait(self, model_id: str, seconds: float) -> None:
        """Not noted: the activity knows it, of the requests that did not have to wait, too."""


class Metrics:
    """The handler for `/metrics`."""

    def __init__(self, models: Models, activity: Counted, durations: Durations, performance: Performance) -> None:
        self._models = models
        self._activity = activity
        self._durations = durations
        self._performance = performance

    async def metrics(self, request: web.Request) -> web.Response:
        """Answer with the newest sample and all that was counted; empty while there is nothing to tell (llama-swap)."""
        if not self._performance.is_enabled:
            return _answer(NOT_AVAILABLE.encode(), 503)
        sample, gpus = self._performance.newest()
        statuses = self._models.statuses()
        self._activity.flush()
        families: list[Family] = []
        if sample is not None:
            families += machine_families(sample, gpus)
        if families or self._activity.counts or any(status.state is not State.STOPPED for status in statuses):
            families += model_families(statuses, self._models.resources)
            families += [*request_families(self._activity.counts), *duration_families(self._durations)]
        # The library takes a while to import, and is not needed where nobody looks.
        return _answer(await asyncio.to_thread(exposition, families))


def _answer(body: bytes, status: int = 200) -> web.Response:
    return web.Response(status=status, body=body, headers={"Content-Type": CONTENT_TYPE})


# ---- families

Labels = Mapping[str, str]


@dataclass(frozen=True)
class Family:
    """One metric: its samples are (suffix of the name, labels, value)."""

    name: str  # without llamaswap_
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    samples: Sequence[tuple[str, Labels, float]]


def gauge(name: str, text: str, *samples: tuple[Labels, float | None]) -> Family:
    """Make a gauge; values that are not known are left out."""
    return Family(name, "gauge", text, [("", labels, value) for labels, value in samples if value is not None])


def counter(name: str, text: str, *samples: tuple[Labels, float | None]) -> Family:
    """Make a counter; its name ends in `_total`."""
    return Family(name, "counter", text, [("", labels, value) for labels, value in samples if value is not None])


def histogram(name: str, text: str, by_model: Mapping[str, Histogram]) -> Family:
    return Family(name, "histogram", text, [s for model, found in by_model.items() for s in _buckets(model, found)])


def _buckets(model: str, found: Histogram) -> Iterator[tuple[str, Labels, float]]:
    sums = list(accumulate(found.counts))
    for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), sums, strict=True):
        yield "_bucket", {"model": model, "le": bound}, count
    yield "_sum", {"model": model}, found.sum
    yield "_count", {"model": model}, sums[-1]


# ---- the machine


def machine_families(sample: Sample, gpus: Sequence[GpuLoad]) -> list[Family]:
    """Return what llama-swap tells, under its names."""
    memory = sample.memory
    return [
        gauge(
            "cpu_util_percent",
            "How busy a core was since the sample before, in percent.",
            *(({"core": str(number)}, round(busy, 2)) for number, busy in enumerate(sample.cores)),
        ),
        gauge("memory_total_bytes", "Memory of the machine.", ({}, memory.total)),
        gauge("memory_used_bytes", "Memory that cannot be had without swapping.", ({}, memory.used)),
        gauge("memory_free_bytes", "Memory that is not used for anything, caches included.", ({}, memory.free)),
        gauge("swap_total_bytes", "Swap space.", ({}, memory.swap_total)),
        gauge("swap_used_bytes", "Swap space in use.", ({}, memory.swap_used)),
        gauge(
            "load_average",
            "Processes that run or wait for a disk, on average.",
            *(({"interval": name}, value) for name, value in zip(("1m", "5m", "15m"), sample.load, strict=True)),
        ),
        counter(
            "network_bytes_total",
            "Bytes that went through a network interface.",
            *(
                ({"interface": entry.name, "direction": direction}, value)
                for entry in sample.network
                for direction, value in (("recv", entry.received), ("sent", entry.sent))
            ),
        ),
        *(_gpu_family(*metric, gpus) for metric in GPU_METRICS if gpus),
    ]


GPU_METRICS: Sequence[tuple[str, str, Callable[[GpuLoad], float | None]]] = (
    ("temperature_celsius", "Temperature of the GPU.", lambda gpu: gpu.temp_c),
    ("vram_temperature_celsius", "Temperature of the GPU's memory.", lambda gpu: gpu.vram_temp_c),
    ("util_percent", "How busy the GPU is.", lambda gpu: gpu.gpu_util_pct),
    ("memory_util_percent", "How busy the GPU's memory is.", lambda gpu: gpu.mem_util_pct),
    ("memory_used_bytes", "The GPU's memory in use.", lambda gpu: _bytes(gpu.mem_used_mb)),
    ("memory_total_bytes", "The GPU's memory.", lambda gpu: _bytes(gpu.mem_total_mb)),
    ("fan_speed_percent", "Speed of the GPU's fan.", lambda gpu: gpu.fan_speed_pct),
    ("power_draw_watts", "What the GPU draws.", lambda gpu: gpu.power_draw_w),
)


def _gpu_family(name: str, text: str, value: Callable[[GpuLoad], float | None], gpus: Iterable[GpuLoad]) -> Family:
    return gauge(f"gpu_{name}", text, *((_gpu_labels(gpu), value(gpu)) for gpu in gpus))


def _gpu_labels(gpu: GpuLoad) -> Labels:
    return {"id": str(gpu.id), "name": gpu.name, **({"uuid": gpu.uuid} if gpu.uuid else {})}


def _bytes(mebibytes: int | None) -> int | None:
    return None if mebibytes is None else mebibytes * MIB


# ---- the models and their requests


def model_families(statuses: Sequence[Status], resources: Callable[[str], Resources | None]) -> list[Family]:
    """Return what every model is doing, and what those that run use."""
    used = [
        ({"model": status.model.id, "unit": status.unit}, found)
        for status in statuses
        if status.unit and (found := resources(status.model.id)) is not None
    ]
    by_model = [({"model": status.model.id}, status) for status in statuses]
    return [
        gauge("build_info", "The version that runs.", ({"version": __version__}, 1)),
        gauge(
            "model_state",
            "1 for the state that a model is in, 0 for the others.",
            *(
                ({**labels, "state": state.value}, status.state is state)
                for labels, status in by_model
                for state in State
            ),
        ),
        gauge(
            "requests_in_flight",
            "Requests that a model is answering.",
            *((labels, status.in_flight) for labels, status in by_model),
        ),
        gauge(
            "queue_length",
            "Requests that wait for a model.",
            *((labels, status.waiting) for labels, status in by_model),
        ),
        gauge(
            "model_memory_bytes",
            "Memory of a model's unit, its share of the page cache included if its cgroup counts it.",
            *((labels, found.memory_bytes) for labels, found in used),
        ),
        counter(
            "model_cpu_seconds_total",
            "Processor time that a model's unit has used since it was started.",
            *((labels, found.cpu_s) for labels, found in used),
        ),
        gauge(
            "model_tasks",
            "Processes and threads of a model's unit.",
            *((labels, found.tasks) for labels, found in used),
        ),
    ]


def request_families(counts: Mapping[str, ModelCounts]) -> list[Family]:
    """Return what was counted of requests since the daemon started."""
    return [
        counter(
            "requests_total",
            "Requests that have been answered, by HTTP status.",
            *(
                ({"model": model, "status": str(status)}, number)
                for model, found in counts.items()
                for status, number in found.requests.items()
            ),
        ),
        counter(
            "tokens_total",
            "Tokens, as the models' servers have reported them.",
            *(
                ({"model": model, "kind": kind}, number)
                for model, found in counts.items()
                for kind, number in (("input", found.input), ("output", found.output), ("cached", found.cached))
            ),
        ),
        histogram(
            "queue_wait_seconds",
            "How long requests waited for their model, its load included.",
            {model: found.waiting for model, found in counts.items()},
        ),
        histogram(
            "request_duration_seconds",
            "From a request's arrival to its answer's end.",
            {model: found.duration for model, found in counts.items()},
        ),
        histogram(
            "time_to_first_byte_seconds",
            "From a request's arrival to its answer's beginning.",
            {model: found.first_byte for model, found in counts.items()},
        ),
    ]


def duration_families(durations: Durations) -> list[Family]:
    """Return how long loads and swaps took since the daemon started."""
    return [
        histogram("load_duration_seconds", "From the order to start a model until it was ready.", durations.loads),
        histogram(
            "swap_duration_seconds",
            "From the request for which others had to stop until its model was ready.",
            durations.swaps,
        ),
        counter(
            "load_failures_total",
            "Starts of a model that did not end in readiness.",
            *(({"model": model}, number) for model, number in durations.failures.items()),
        ),
    ]


# ---- text


def exposition(families: Iterable[Family]) -> bytes:
    """Write families in Prometheus' text format 0.0.4, without those that have no sample. Blocks at first."""
    from prometheus_client import generate_latest
    from prometheus_client.core import Metric
    from prometheus_client.registry import Collector

    class Ours(Collector):
        def collect(self) -> Iterable[Any]:
            for family in families:
                # The library itself puts a counter's ending where this format wants it.
                metric = Metric(f"llamaswap_{family.name.removesuffix('_total')}", family.help, family.kind)
                for suffix, labels, value in family.samples:
                    metric.add_sample(f"llamaswap_{family.name}{suffix}", dict(labels), value)
                if family.samples:
                    yield metric

    return generate_latest(Ours())  # type: ignore[arg-type,unused-ignore] # a CollectorRegistry before 0.22
