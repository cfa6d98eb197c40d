from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp.test_utils import make_mocked_request

from llamaswapd.errors import RequestError
from llamaswapd.http.machine import Machine, parse_rfc3339
from llamaswapd.machine.hardware import Hardware, HardwareUnavailable
from llamaswapd.machine.load import Gpus
from llamaswapd.machine.performance import Performance


@dataclass
class Settings:
    disabled: bool = False
    every: float = 5.0


class Handlers(Machine):
    """The handlers before this machine, without GPUs; samples are a second apart."""

    def __init__(self, root: Path, settings: Settings | None = None) -> None:
        self.now = datetime(2025, 1, 2, 3, 4, 5, 123456, UTC)
        self.hardware_of = Hardware(search="/nowhere")
        self.load = Performance(settings or Settings(), gpus=Gpus(root, "/nowhere"), now=self._tick)
        super().__init__(self.hardware_of, self.load)

    def _tick(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now

    async def ask(self, query: str = "") -> Any:
        answer = await self.performance(make_mocked_request("GET", f"/api/performance{query}"))
        assert answer.headers["Content-Type"] == "application/json"
        assert isinstance(answer.body, bytes)
        assert answer.body.endswith(b"}\n")
        return answer.status, json.loads(answer.body)


@pytest.fixture
async def handlers(tmp_path: Path) -> Handlers:
    return Handlers(tmp_path)


# ---- /api/hardware


async def test_the_hardware_is_what_was_found_at_the_start(handlers: Handlers) -> None:
    await handlers.hardware_of.detect()
    answer = await handlers.hardware(make_mocked_request("GET", "/api/hardware"))
    assert isinstance(answer.body, bytes)
    facts = json.loads(answer.body)
    assert facts == await handlers.hardware_of.snapshot()
    assert (answer.status, facts["schema_version"], facts["operating_system"]["family"]) == (200, 1, "linux")


async def test_a_client_that_comes_early_waits_for_the_detection(handlers: Handlers) -> None:
    asked = asyncio.create_task(handlers.hardware(make_mocked_request("GET", "/api/hardware")))
    await asyncio.sleep(0)
    await handlers.hardware_of.detect()
    assert (await asked).status == 200


async def test_hardware_that_could_not_be_detected_is_unavailable(
    handlers: Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers.hardware_of, "_take", None)
    await handlers.hardware_of.detect()
    with pytest.raises(HardwareUnavailable):
        await handlers.hardware(make_mocked_request("GET", "/api/hardware"))


# ---- /api/performance


async def test_before_the_first_sample_there_are_none(handlers: Handlers) -> None:
    assert await handlers.ask() == (200, {"enabled": True, "sys_stats": None, "gpu_stats": None})


async def test_samples_come_oldest_first(handlers: Handlers) -> None:
    for _ in range(3):
        await handlers.load.sample()
    status, answer = await handlers.ask()
    assert status == 200
    times = [row["timestamp"] for row in answer["sys_stats"]]
    assert times == [f"2025-01-02T03:04:0{second}.123456Z" for second in (6, 7, 8)]
    assert answer["gpu_stats"] is None


async def test_after_the_timestamp_of_a_sample_come_those_that_are_newer(handlers: Handlers) -> None:
    for _ in range(3):
        await handlers.load.sample()
    _, answer = await handlers.ask()
    first, *later = answer["sys_stats"]
    assert (await handlers.ask(f"?after={first['timestamp']}"))[1]["sys_stats"] == later
    assert (await handlers.ask(f"?after={later[-1]['timestamp']}"))[1]["sys_stats"] == []
    elsewhere = quote("2025-01-02T05:04:06.999+02:00")
    assert (await handlers.ask(f"?after={elsewhere}"))[1]["sys_stats"] == later
    assert len((await handlers.ask("?after="))[1]["sys_stats"]) == 3


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "1735787045",
        "2025-01-02",
        "2025-01-02 03:04:05Z",
        "2025-01-02T03:04:05",
        "2025-01-02T03:04:05+0200",
        "2025-01-02T03:04:05+25:00",
        "2025-02-30T03:04:05Z",
        "2025-01-02T24:00:00Z",
        "2025-01-02t03:04:05z",
        "2025-01-02T03:04:05.Z",
        "٢٠٢٥-01-02T03:04:05Z",
    ],
)
async def test_a_moment_that_is_none_is_refused(handlers: Handlers, text: str) -> None:
    with pytest.raises(RequestError, match=r"^invalid 'after' timestamp, use RFC3339 format$") as refused:
        await handlers.ask(f"?after={quote(text)}")
    assert refused.value.status == 400


def test_a_moment_is_read_to_the_microsecond_below_it() -> None:
    moment = datetime(2025, 1, 2, 3, 4, 5, 123456, UTC)
    assert parse_rfc3339("2025-01-02T03:04:05.123456999Z") == moment
    assert parse_rfc3339("2025-01-02T03:04:05.1Z") == moment.replace(microsecond=100000)
    assert parse_rfc3339("2025-01-02T03:04:05-03:30") == datetime(
        2025, 1, 2, 3, 4, 5, tzinfo=timezone(-timedelta(hours=3, minutes=30))
    )


async def test_what_is_disabled_says_so(tmp_path: Path) -> None:
    handlers = Handlers(tmp_path, Settings(disabled=True))
    assert await handlers.ask("?after=x") == (503, {"enabled": False})


async def test_what_a_reload_disables_says_so_at_once(handlers: Handlers) -> None:
    await handlers.load.sample()
    handlers.load.reconfigure(Settings(disabled=True))
    assert await handlers.ask() == (503, {"enabled": False})
