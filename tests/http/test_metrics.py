from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request
from prometheus_client.parser import text_string_to_metric_families
from standins import Engine, model

from llamaswapd import __version__
from llamaswapd.activity.counts import BOUNDS_S, Counts
from llamaswapd.core.lifecycle import State
from llamaswapd.engine import Status
from llamaswapd.http.metrics import Durations, Metrics, exposition, machine_families
from llamaswapd.machine.load import GpuLoad, Gpus
from llamaswapd.machine.performance import Memory, Performance, Sample, Traffic
from llamaswapd.systemd.cgroup import Resources

MIB = 1024**2

SAMPLE = Sample(
    datetime(2025, 1, 2, tzinfo=UTC),
    array("f", (12.5, 100.0)),
    Memory(16 * MIB, 8 * MIB, 4 * MIB, 2 * MIB, MIB),
    (0.5, 1.25, 2.0),
    (Traffic("eth0", 1256514528, 1764133),),
)
GPUS = (
    GpuLoad(0, "NVIDIA GeForce RTX 4090", "GPU-1", 41, 50, 37.0, 12.0, 1024, 24564, 30.0, 212.55),
    GpuLoad(1, 'odd "name", \\ and\nline'),
)


@dataclass
class Settings:
    disabled: bool = False
    every: float = 5.0


@dataclass
class Activity:
    """Counts that come about when they are looked for."""

    counts: Counts = field(default_factory=Counts)
    late: list[tuple[str, int]] = field(default_factory=list)

    def flush(self) -> None:
        for model_id, status in self.late:
            self.counts[model_id].requests[status] = self.counts[model_id].requests.get(status, 0) + 1
        self.late.clear()


class Scrape:
    """One way to ask for everything there is."""

    def __init__(self, root: Path, *models: str) -> None:
        self.engine = Engine(*map(model, models))
        self.activity = Activity()
        self.durations = Durations()
        self.performance = Performance(Settings(), gpus=Gpus(root, "/nowhere"))

    async def answer(self) -> tuple[int, str, str]:
        metrics = Metrics(self.engine, self.activity, self.durations, self.performance)
        answer = await metrics.metrics(make_mocked_request("GET", "/metrics"))
        assert isinstance(answer.body, bytes)
        return answer.status, answer.headers["Content-Type"], answer.body.decode()

    async def lines(self) -> list[str]:
        status, _, text = await self.answer()
        assert status == 200
        return text.splitlines()

    async def values(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        _, _, text = await self.answer()
        return parsed(text)


@pytest.fixture
async def scrape(tmp_path: Path) -> Scrape:
    return Scrape(tmp_path, "a", "b")


def parsed(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def key(metric: str, /, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return f"llamaswap_{metric}", frozenset(labels.items())


# ---- the answer


async def test_before_the_first_sample_and_the_first_request_there_is_nothing_to_tell(scrape: Scrape) -> None:
    assert await scrape.answer() == (200, "text/plain; version=0.0.4; charset=utf-8", "")


async def test_what_is_disabled_says_so(scrape: Scrape) -> None:
    scrape.performance.reconfigure(Settings(disabled=True))
    status, content_type, text = await scrape.answer()
    assert (status, text) == (503, "# performance monitor not available\n")
    assert content_type.startswith("text/plain")


async def test_requests_are_told_of_before_the_first_sample(scrape: Scrape) -> None:
    scrape.activity.late.append(("a", 200))
    assert (await scrape.values())[key("requests_total", model="a", status="200")] == 1


async def test_a_model_that_loads_is_told_of_before_the_first_sample(scrape: Scrape) -> None:
    scrape.engine.become("a", State.STARTING)
    assert (await scrape.values())[key("model_state", model="a", state="starting")] == 1


async def test_the_newest_sample_counts(scrape: Scrape) -> None:
    await scrape.performance.sample()
    await scrape.performance.sample()
    sample, _ = scrape.performance.newest()
    assert sample is not None
    values = await scrape.values()
    assert values[key("memory_used_bytes")] == sample.memory.used
    assert values[key("load_average", interval="15m")] == sample.load[2]
    assert key("cpu_util_percent", core="0") in values
    assert values[key("build_info", version=__version__)] == 1


# ---- the machine


def test_every_metric_of_llama_swap_has_its_name_its_type_and_its_labels() -> None:
    text = exposition(machine_families(SAMPLE, GPUS)).decode()
    assert {line.split()[2]: line.split()[3] for line in text.splitlines() if line.startswith("# TYPE")} == {
        "llamaswap_cpu_util_percent": "gauge",
        "llamaswap_memory_total_bytes": "gauge",
        "llamaswap_memory_used_bytes": "gauge",
        "llamaswap_memory_free_bytes": "gauge",
        "llamaswap_swap_total_bytes": "gauge",
        "llamaswap_swap_used_bytes": "gauge",
        "llamaswap_load_average": "gauge",
        "llamaswap_network_bytes_total": "counter",
        "llamaswap_gpu_temperature_celsius": "gauge",
        "llamaswap_gpu_vram_temperature_celsius": "gauge",
        "llamaswap_gpu_util_percent": "gauge",
        "llamaswap_gpu_memory_util_percent": "gauge",
        "llamaswap_gpu_memory_used_bytes": "gauge",
        "llamaswap_gpu_memory_total_bytes": "gauge",
        "llamaswap_gpu_fan_speed_percent": "gauge",
        "llamaswap_gpu_power_draw_watts": "gauge",
    }
    assert text.count("# HELP ") == text.count("# TYPE ") == 16
    gpu = {"id": "0", "name": "NVIDIA GeForce RTX 4090", "uuid": "GPU-1"}
    assert parsed(text) == {
        key("cpu_util_percent", core="0"): 12.5,
        key("cpu_util_percent", core="1"): 100.0,
        key("memory_total_bytes"): 16 * MIB,
        key("memory_used_bytes"): 8 * MIB,
        key("memory_free_bytes"): 4 * MIB,
        key("swap_total_bytes"): 2 * MIB,
        key("swap_used_bytes"): MIB,
        key("load_average", interval="1m"): 0.5,
        key("load_average", interval="5m"): 1.25,
        key("load_average", interval="15m"): 2.0,
        key("network_bytes_total", interface="eth0", direction="recv"): 1256514528,
        key("network_bytes_total", interface="eth0", direction="sent"): 1764133,
        key("gpu_temperature_celsius", **gpu): 41,
        key("gpu_vram_temperature_celsius", **gpu): 50,
        key("gpu_util_percent", **gpu): 37.0,
        key("gpu_memory_util_percent", **gpu): 12.0,
        key("gpu_memory_used_bytes", **gpu): 1024 * MIB,
        key("gpu_memory_total_bytes", **gpu): 24564 * MIB,
        key("gpu_fan_speed_percent", **gpu): 30.0,
        key("gpu_power_draw_watts", **gpu): 212.55,
    }


def test_labels_are_escaped_and_an_unknown_uuid_is_left_out() -> None:
    odd = GpuLoad(1, 'odd "name", \\ and\nline', temp_c=40)
    text = exposition(machine_families(SAMPLE, (odd,))).decode()
    assert r'llamaswap_gpu_temperature_celsius{id="1",name="odd \"name\", \\ and\nline"} 40.0' in text.splitlines()
    assert parsed(text)[key("gpu_temperature_celsius", id="1", name='odd "name", \\ and\nline')] == 40


# ---- models


async def test_every_model_says_which_state_it_is_in(scrape: Scrape) -> None:
    scrape.engine.become("a", State.READY)
    values = await scrape.values()
    for model_id, current in (("a", State.READY), ("b", State.STOPPED)):
        for state in State:
            assert values[key("model_state", model=model_id, state=state.value)] == (state is current)


async def test_requests_in_flight_and_in_the_queue_are_told(scrape: Scrape, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = Status(scrape.engine.config.models["a"], State.READY, "unit-a.service", 1, in_flight=3, waiting=2)
    monkeypatch.setattr(scrape.engine, "statuses", lambda: [busy])
    values = await scrape.values()
    assert values[key("requests_in_flight", model="a")] == 3
    assert values[key("queue_length", model="a")] == 2


async def test_a_running_model_says_what_its_unit_uses(scrape: Scrape, monkeypatch: pytest.MonkeyPatch) -> None:
    models = scrape.engine.config.models
    statuses = [
        Status(models["a"], State.READY, "unit-a.service", 1, 0, 0),
        Status(models["b"], State.STOPPED, "", 0, 0, 0),
    ]
    used: dict[str, Any] = {"a": Resources(memory_bytes=4096, cpu_s=2.5, tasks=None)}
    monkeypatch.setattr(scrape.engine, "statuses", lambda: statuses)
    monkeypatch.setattr(scrape.engine, "resources", used.get, raising=False)
    labels = {"model": "a", "unit": "unit-a.service"}
    values = await scrape.values()
    assert values[key("model_memory_bytes", **labels)] == 4096
    assert values[key("model_cpu_seconds_total", **labels)] == 2.5
    assert not [name for name, _ in values if name == "llamaswap_model_tasks"]
    assert "# TYPE llamaswap_model_cpu_seconds_total counter" in await scrape.lines()


# ---- requests


async def test_requests_and_tokens_are_counted_by_model(scrape: Scrape) -> None:
    counts = scrape.activity.counts["org/model:q4"]
    counts.requests = {200: 7, 502: 1}
    counts.input, counts.output, counts.cached = 100, 20, 60
    values = await scrape.values()
    assert values[key("requests_total", model="org/model:q4", status="200")] == 7
    assert values[key("requests_total", model="org/model:q4", status="502")] == 1
    assert values[key("tokens_total", model="org/model:q4", kind="input")] == 100
    assert values[key("tokens_total", model="org/model:q4", kind="output")] == 20
    assert values[key("tokens_total", model="org/model:q4", kind="cached")] == 60


async def test_times_are_told_as_histograms(scrape: Scrape) -> None:
    counts = scrape.activity.counts["a"]
    for seconds in (0.001, 0.2, 0.2, 9999.0):
        counts.duration.observe(seconds)
    counts.waiting.observe(3.0)
    counts.first_byte.observe(0.05)
    values = await scrape.values()
    name = "request_duration_seconds"
    assert values[key(f"{name}_bucket", model="a", le="0.005")] == 1
    assert values[key(f"{name}_bucket", model="a", le="0.1")] == 1
    assert values[key(f"{name}_bucket", model="a", le="0.25")] == 3
    assert values[key(f"{name}_bucket", model="a", le=str(BOUNDS_S[-1]))] == 3
    assert values[key(f"{name}_bucket", model="a", le="+Inf")] == 4
    assert values[key(f"{name}_count", model="a")] == 4
    assert values[key(f"{name}_sum", model="a")] == pytest.approx(9999.401)
    assert values[key("queue_wait_seconds_sum", model="a")] == 3.0
    assert values[key("time_to_first_byte_seconds_sum", model="a")] == 0.05
    assert f"# TYPE llamaswap_{name} histogram" in await scrape.lines()


async def test_loads_and_swaps_are_told_and_failed_loads_are_counted_apart(scrape: Scrape) -> None:
    scrape.engine.become("a", State.READY)
    scrape.durations.on_load("a", 12.0, ok=True)
    scrape.durations.on_load("a", 60.0, ok=False)
    scrape.durations.on_swap("a", 15.0)
    scrape.durations.on_wait("a", 15.0)
    values = await scrape.values()
    assert values[key("load_duration_seconds_sum", model="a")] == 12.0
    assert values[key("load_duration_seconds_count", model="a")] == 1
    assert values[key("swap_duration_seconds_sum", model="a")] == 15.0
    assert values[key("load_failures_total", model="a")] == 1
