"""Contract: version, hardware, performance, Prometheus (http.md, 18)."""

from __future__ import annotations

import re
from datetime import datetime

import pytest
from blackbox import Program, eventually

pytestmark = pytest.mark.private

KEY = {"x-api-key": "secret"}
SOON = "2000-01-01T00:00:00Z"


@pytest.fixture
def sampled(house: Program) -> Program:
    """The program, once it has taken its first sample."""
    eventually(lambda: house.get("/api/performance").json()["sys_stats"])
    return house


def test_the_version_is_three_texts(house: Program) -> None:
    told = house.get("/api/version").json()
    assert told.keys() == {"version", "commit", "build_date"}
    assert all(isinstance(value, str) and value for value in told.values())


def test_the_hardware_is_one_snapshot(house: Program) -> None:
    answer = house.get("/api/hardware")
    told = answer.json()
    assert answer.status == 200
    assert told["schema_version"] == 1
    datetime.fromisoformat(told["captured_at"])
    assert (told["capture"]["scope"], told["capture"]["method"]) == ("inference_host", "detected")
    assert told["capture"]["detector"].keys() == {"name", "version"}
    assert told["architecture"]["name"] in ("x86_64", "arm64", "armv7", "ppc64le", "riscv64", "s390x", "other")
    assert told["architecture"].keys() == {"name", "raw_name"}
    assert told["operating_system"].keys() == {"family", "name", "version", "kernel"}
    assert told["operating_system"]["family"] == "linux"
    assert told["environment"]["kind"] in ("native", "container", "virtual_machine", "wsl", "other", "unknown")
    assert {"vendor", "model", "socket_count", "physical_core_count", "logical_thread_count"} <= told["cpu"].keys()
    assert told["cpu"]["logical_thread_count"] >= 1
    assert told["memory"]["capacity_bytes"] > 2**20
    assert isinstance(told["accelerators"], list)
    assert house.get("/api/hardware").json() == told


def test_samples_are_taken(sampled: Program) -> None:
    told = sampled.get("/api/performance").json()
    assert told.keys() == {"enabled", "sys_stats", "gpu_stats"}
    assert told["enabled"] is True
    sample = told["sys_stats"][0]
    numbers = ["mem_total_mb", "mem_used_mb", "mem_free_mb", "swap_total_mb", "swap_used_mb"]
    numbers += ["load_avg_1", "load_avg_5", "load_avg_15"]
    assert all(isinstance(sample[name], int | float) for name in numbers)
    assert all(0 <= share <= 100 for share in sample["cpu_util_per_core"])
    assert sample["cpu_util_per_core"]
    assert all(each.keys() == {"name", "bytes_recv", "bytes_sent"} for each in sample["net_io"])
    assert "lo" not in [each["name"] for each in sample["net_io"]]
    times = [datetime.fromisoformat(each["timestamp"]) for each in told["sys_stats"]]
    assert times == sorted(times)
    assert all("gpu_util_pct" in each for each in told["gpu_stats"] or [])


def test_samples_are_those_after_a_moment(sampled: Program) -> None:
    assert sampled.get(f"/api/performance?after={SOON}").json()["sys_stats"]
    assert sampled.get("/api/performance?after=2100-01-01T00:00:00%2B01:00").json()["sys_stats"] == []
    for text in ("yesterday", "2026-01-01", "1700000000"):
        answer = sampled.get(f"/api/performance?after={text}")
        assert (answer.status, answer.message) == (400, "invalid 'after' timestamp, use RFC3339 format")


def test_a_monitor_that_is_off_says_so(locked: Program) -> None:
    answer = locked.get("/api/performance", KEY)
    assert (answer.status, answer.json()) == (503, {"enabled": False})
    answer = locked.get("/metrics", KEY)
    assert (answer.status, answer.text) == (503, "# performance monitor not available\n")


METRICS = {
    "llamaswap_cpu_util_percent": ("gauge", {"core"}),
    "llamaswap_memory_total_bytes": ("gauge", set()),
    "llamaswap_memory_used_bytes": ("gauge", set()),
    "llamaswap_memory_free_bytes": ("gauge", set()),
    "llamaswap_swap_total_bytes": ("gauge", set()),
    "llamaswap_swap_used_bytes": ("gauge", set()),
    "llamaswap_load_average": ("gauge", {"interval"}),
    "llamaswap_network_bytes_total": ("counter", {"interface", "direction"}),
}


def test_metrics_are_prometheus_text(sampled: Program) -> None:
    answer = sampled.get("/metrics")
    assert (answer.status, answer.header("Content-Type")) == (200, "text/plain; version=0.0.4; charset=utf-8")


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_has_its_type_help_and_labels(sampled: Program, name: str) -> None:
    kind, labels = METRICS[name]
    text = sampled.get("/metrics").text
    assert f"# TYPE {name} {kind}\n" in text
    assert f"# HELP {name} " in text
    found = re.findall(rf"^{name}(?:\{{(.*)\}})? ([-+.\deE]+)$", text, re.MULTILINE)
    if name != "llamaswap_network_bytes_total":  # a machine may have no interface but lo
        assert found
    for pairs, _ in found:
        assert {pair.partition("=")[0] for pair in pairs.split(",") if pair} == labels


def test_load_averages_and_directions_have_their_names(sampled: Program) -> None:
    text = sampled.get("/metrics").text
    assert {*re.findall(r'interval="(\w+)"', text)} == {"1m", "5m", "15m"}
    assert {*re.findall(r'direction="(\w+)"', text)} <= {"recv", "sent"}
