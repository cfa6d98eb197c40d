"""How busy GPUs are, on answers as their tools give them, and by tools and a LACT daemon that really answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from machines import printing, tool, tree

from llamaswapd.machine.load import GpuLoad, Gpus, amd_loads, ask_lact, nvidia_loads

# ---- nvidia-smi

NVIDIA = """0, GPU-5c1e2f3a-0b4d-11ee-be56-0242ac120, 41, N/A, 37, 12, 20123, 24564, 30, 212.55, NVIDIA GeForce RTX 4090
1, GPU-77777777-0b4d-11ee-be56-0242ac120002, 33, 45, [N/A], [N/A], 1024, 81559, [N/A], 70.12, NVIDIA H100, odd, name
"""


def test_each_gpu_of_nvidia_is_one_row() -> None:
    first, second = nvidia_loads(NVIDIA)
    assert first == GpuLoad(
        id=0,
        name="NVIDIA GeForce RTX 4090",
        uuid="GPU-5c1e2f3a-0b4d-11ee-be56-0242ac120",
        temp_c=41,
        vram_temp_c=None,
        gpu_util_pct=37.0,
        mem_util_pct=12.0,
        mem_used_mb=20123,
        mem_total_mb=24564,
        fan_speed_pct=30.0,
        power_draw_w=212.55,
    )
    assert second.name == "NVIDIA H100, odd, name"
    assert second.vram_temp_c == 45


def test_a_gpu_cut_up_into_mig_devices_hides_how_busy_it_is() -> None:
    _, mig = nvidia_loads(NVIDIA)
    assert (mig.gpu_util_pct, mig.mem_util_pct, mig.fan_speed_pct) == (None, None, None)
    assert mig.mem_used_mb == 1024


@pytest.mark.parametrize("text", ["", "No devices were found\n", 'Field "fan.speed" is not a valid field to query.\n'])
def test_complaints_of_nvidia_smi_are_no_rows(text: str) -> None:
    assert nvidia_loads(text) == []


# ---- rocm-smi


def test_a_card_of_amd_from_an_old_release() -> None:
    text = json.dumps(
        {
            "card0": {
                "Unique ID": "0xac1b58f8c066790f",
                "Card series": "Radeon RX 6800 XT",
                "Temperature (Sensor edge) (C)": "52.0",
                "Temperature (Sensor junction) (C)": "56.0",
                "Temperature (Sensor memory) (C)": "54.0",
                "GPU use (%)": "99",
                "GPU memory use (%)": "17",
                "VRAM Total Memory (B)": "17163091968",
                "VRAM Total Used Memory (B)": "8581545984",
                "Fan speed (%)": "29",
                "Average Graphics Package Power (W)": "203.0",
            },
            "system": {"Driver version": "5.15"},
        }
    )
    assert amd_loads(text) == [
        GpuLoad(0, "Radeon RX 6800 XT", "0xac1b58f8c066790f", 52, 54, 99.0, 17.0, 8184, 16368, 29.0, 203.0)
    ]


def test_cards_of_amd_from_a_new_release() -> None:
    text = json.dumps(
        {
            "card0": {
                "Device Name": "AMD Instinct MI300X",
                "Unique ID": "0x1",
                "Temperature (Sensor edge) (C)": "N/A",
                "Temperature (Sensor junction) (C)": "41.0",
                "GPU use (%)": "0",
                "GPU Memory Allocated (VRAM%)": "3",
                "GPU Memory Read/Write Activity (%)": "1",
                "Current Socket Graphics Package Power (W)": "131.0",
            },
            "card1": {"Card Series": "N/A", "Card Model": "0x74a1", "Unique ID": "N/A"},
        }
    )
    first, second = amd_loads(text)
    assert (first.name, first.temp_c, first.mem_util_pct, first.power_draw_w) == ("AMD Instinct MI300X", 41, 3.0, 131.0)
    assert second == GpuLoad(1, "AMD GPU")


# ---- LACT

LACT_STATS = {
    "fan": {"control_enabled": False, "pwm_current": 51, "speed_current": 800, "pmfw_info": {}},
    "clockspeed": {"gpu_clockspeed": 2500, "sensors": {}},
    "voltage": {"gpu": 900},
    "vram": {"total": 25753026560, "used": 5150605312},
    "power": {"average": 60.0, "current": 61.5, "cap_current": 339.0},
    "temps": {
        "edge": {"current": 44.0, "crit": 100.0, "primary": True},
        "junction": {"current": 50.0},
        "mem": {"current": 58.0},
    },
    "busy_percent": 12,
}


@asynccontextmanager
async def lact(path: Path, answers: Mapping[str, Any]) -> AsyncIterator[list[Any]]:
    """A daemon on a socket; it answers commands, and says nothing to one that it does not know. Yields its requests."""
    requests = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for line in reader:
            requests.append(json.loads(line))
            if (data := answers.get(requests[-1]["command"])) is not None:
                writer.write(json.dumps(data).encode() + b"\n")
        writer.close()

    path.parent.mkdir(exist_ok=True, parents=True)
    server = await asyncio.start_unix_server(serve, path)
    yield requests
    server.close()
    await server.wait_closed()
    for _ in range(3):
        await asyncio.sleep(0)  # the ends of connections


def ok(data: object) -> object:
    return {"status": "ok", "data": data}


DEVICES = ok([{"id": "1002:744C-1DA2:471E-0000:03:00.0", "name": "Radeon RX 7900 XTX"}, {"id": "8086:56A0-0-0"}])


async def test_lact_is_asked_for_every_device(tmp_path: Path) -> None:
    async with lact(tmp_path / "s", {"list_devices": DEVICES, "device_stats": ok(LACT_STATS)}) as requests:
        first, second = await ask_lact(tmp_path / "s")
    assert requests == [
        {"command": "list_devices"},
        {"command": "device_stats", "args": {"id": "1002:744C-1DA2:471E-0000:03:00.0"}},
        {"command": "device_stats", "args": {"id": "8086:56A0-0-0"}},
    ]
    assert first == GpuLoad(
        0, "Radeon RX 7900 XTX", "1002:744C-1DA2:471E-0000:03:00.0", 44, 58, 12, 20.0, 4912, 24560, 20.0, 61.5
    )
    assert (second.id, second.name) == (1, "8086:56A0-0-0")


async def test_a_device_of_which_lact_knows_nothing_has_only_its_name(tmp_path: Path) -> None:
    nothing = ok({"fan": {}, "clockspeed": {}, "voltage": {}, "vram": {}, "power": {}, "temps": {}})
    async with lact(tmp_path / "s", {"list_devices": DEVICES, "device_stats": nothing}):
        loads = await ask_lact(tmp_path / "s")
    assert loads[1] == GpuLoad(1, "8086:56A0-0-0", "8086:56A0-0-0")


@pytest.mark.parametrize("answer", [{"status": "error", "data": "no"}, ok(None), ok([{}]), ok(7), "text", {}, 1])
async def test_an_answer_of_lact_that_makes_no_sense_is_none(tmp_path: Path, answer: object) -> None:
    async with lact(tmp_path / "s", {"list_devices": answer, "device_stats": answer}):
        assert await ask_lact(tmp_path / "s") == []


async def test_a_lact_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    async with lact(tmp_path / "s", {"list_devices": DEVICES}):
        assert await ask_lact(tmp_path / "s", within_s=0.2) == []


async def test_a_socket_that_nobody_listens_on_answers_nothing(tmp_path: Path) -> None:
    assert await ask_lact(tmp_path / "s") == []


# ---- all of them


def amdgpu(folder: Path) -> Path:
    device = "sys/class/drm/card1/device"
    return tree(
        folder,
        {
            f"{device}/uevent": "DRIVER=amdgpu\nPCI_ID=1002:744C\nPCI_SLOT_NAME=0000:03:00.0\n",
            f"{device}/unique_id": "ac1b58f8c066790f\n",
            f"{device}/gpu_busy_percent": "7\n",
            f"{device}/mem_busy_percent": "2\n",
            f"{device}/mem_info_vram_used": "1073741824\n",
            f"{device}/mem_info_vram_total": "25753026560\n",
            f"{device}/hwmon/hwmon2/temp1_input": "44000\n",
            f"{device}/hwmon/hwmon2/temp3_input": "57600\n",
            f"{device}/hwmon/hwmon2/power1_average": "61500000\n",
            f"{device}/hwmon/hwmon2/pwm1": "51\n",
            "usr/share/misc/pci.ids": "1002  AMD\n\t744c  Navi 31\n",
        },
    )


async def test_nobody_is_asked_where_nobody_can_be(tmp_path: Path) -> None:
    gpus = Gpus(tmp_path, str(tmp_path))
    assert not gpus.can_be_asked()
    assert await gpus.loads() == []


async def test_the_driver_of_amd_spares_its_tool(tmp_path: Path) -> None:
    search = tool(tmp_path / "bin", "rocm-smi", printing('{"card0": {"Card Series": "From the tool"}}'))
    gpus = Gpus(amdgpu(tmp_path), search)
    assert gpus.can_be_asked()
    expected = [GpuLoad(0, "Navi 31", "ac1b58f8c066790f", 44, 58, 7.0, 2.0, 1024, 24560, 20.0, 61.5)]
    assert await gpus.loads() == expected
    assert await gpus.loads() == expected


async def test_the_tool_of_amd_is_asked_where_its_driver_shows_nothing(tmp_path: Path) -> None:
    search = tool(tmp_path / "bin", "rocm-smi", printing('{"card0": {"Card Series": "From the tool"}}'))
    gpus = Gpus(tmp_path, search)
    assert gpus.can_be_asked()
    assert await gpus.loads() == [GpuLoad(0, "From the tool")]


async def test_gpus_of_two_vendors_are_counted_through(tmp_path: Path) -> None:
    gpus = Gpus(amdgpu(tmp_path), tool(tmp_path / "bin", "nvidia-smi", printing(NVIDIA)))
    loads = await gpus.loads()
    assert [load.id for load in loads] == [0, 1, 2]
    assert loads[2].name == "Navi 31"


async def test_lact_knows_them_all_so_that_no_tool_is_run(tmp_path: Path) -> None:
    search = tool(tmp_path / "bin", "nvidia-smi", printing(NVIDIA))
    async with lact(tmp_path / "run/lactd.sock", {"list_devices": DEVICES, "device_stats": ok(LACT_STATS)}):
        gpus = Gpus(tmp_path, search)
        assert gpus.can_be_asked()
        assert [load.name for load in await gpus.loads()] == ["Radeon RX 7900 XTX", "8086:56A0-0-0"]
    first, *_ = await gpus.loads()
    assert first.name == "NVIDIA GeForce RTX 4090"
