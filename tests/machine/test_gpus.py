"""Accelerators as tools and sysfs describe them, on answers as they come."""

from __future__ import annotations

from pathlib import Path

import pytest
from machines import tree

from llamaswapd.machine.gpus import (
    NVIDIA_FACTS,
    OLD_NVIDIA_FACTS,
    Accelerator,
    amd_accelerators,
    merge,
    nvidia_accelerators,
    nvidia_query,
    sysfs_accelerators,
)

GIB = 1024**3

# ---- nvidia-smi

TWO_CARDS = """00000000:01:00.0, 24564, 550.90.07, 450.00, 8.9, NVIDIA GeForce RTX 4090
00000000:41:00.0, 81559, 550.90.07, [N/A], 9.0, NVIDIA H100 80GB HBM3, engineering, sample
"""


def test_nvidia_smi_is_asked_for_the_name_last() -> None:
    query, form = nvidia_query(NVIDIA_FACTS)
    assert query == "--query-gpu=pci.bus_id,memory.total,driver_version,power.limit,compute_cap,name"
    assert form == "--format=csv,noheader,nounits"


def test_several_cards_of_nvidia() -> None:
    first, second = nvidia_accelerators(TWO_CARDS)
    assert first == Accelerator(
        address="0000:01:00.0",
        vendor="NVIDIA",
        model="NVIDIA GeForce RTX 4090",
        architecture="Ada Lovelace",
        memory_kind="dedicated",
        memory_bytes=24564 * 1024**2,
        driver="nvidia",
        driver_version="550.90.07",
        power_limit_w=450.0,
    )
    assert second.model == "NVIDIA H100 80GB HBM3, engineering, sample"
    assert (second.architecture, second.power_limit_w) == ("Hopper", None)


def test_an_old_driver_does_not_know_the_architecture() -> None:
    [card] = nvidia_accelerators("00000000:01:00.0, 8192, 470.256.02, 170.00, Quadro M4000\n", OLD_NVIDIA_FACTS)
    assert (card.model, card.architecture, card.driver_version) == ("Quadro M4000", None, "470.256.02")


def test_a_gpu_without_memory_of_its_own_says_so() -> None:
    [card] = nvidia_accelerators("0000000F:01:00.0, [N/A], 580.95.05, [N/A], 12.1, NVIDIA GB10\n")
    assert (card.memory_kind, card.memory_bytes, card.architecture) == ("unified", None, "Blackwell")
    assert card.address == "000f:01:00.0"


def test_a_memory_of_unknown_size_is_of_unknown_kind() -> None:
    [card] = nvidia_accelerators("00000000:01:00.0, [Unknown Error], 550.90.07, [Not Supported], 8.6, NVIDIA A40\n")
    assert (card.memory_kind, card.memory_bytes, card.power_limit_w) == (None, None, None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "No devices were found\n",
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest "
        "NVIDIA driver is installed, and running, or, else, this, happens.\n",
        'Field "compute_cap" is not a valid field to query.\n',
        "Unable to determine the device handle for GPU0000:41:00.0: Unknown Error\n",
    ],
)
def test_complaints_of_nvidia_smi_are_no_gpus(text: str) -> None:
    assert nvidia_accelerators(text) == []


# ---- rocm-smi

ROCM_6 = """WARNING: AMD GPU device(s) is/are in a low-power state. Check power control/runtime_status

{"card0": {"Device Name": "Navi 31 [Radeon RX 7900 XTX]", "Card Series": "Radeon RX 7900 XTX", "Card Model": "0x744c",
"Card Vendor": "Advanced Micro Devices, Inc. [AMD/ATI]", "PCI Bus": "0000:03:00.0", "GFX Version": "gfx1100",
"VRAM Total Memory (B)": "25753026560", "VRAM Total Used Memory (B)": "26636288",
"Max Graphics Package Power (W)": "339.0"},
"system": {"Driver version": "6.8.5"}}
"""
ROCM_4 = """{"card1": {"Card series": "0x73bf", "Card model": "0x2407", "PCI Bus": "0000:0B:00.0",
"VRAM Total Memory (B)": "17163091968", "Max Graphics Package Power (W)": "N/A"}}"""


def test_a_card_of_amd_from_rocm_smi() -> None:
    assert amd_accelerators(ROCM_6) == [
        Accelerator(
            address="0000:03:00.0",
            vendor="AMD",
            model="Navi 31 [Radeon RX 7900 XTX]",
            architecture="gfx1100",
            memory_bytes=25753026560,
            driver="amdgpu",
            driver_version="6.8.5",
            power_limit_w=339.0,
        )
    ]


def test_a_number_is_no_name_of_a_card() -> None:
    [card] = amd_accelerators(ROCM_4)
    assert (card.model, card.power_limit_w, card.address) == (None, None, "0000:0b:00.0")


@pytest.mark.parametrize("text", ["", "ERROR:root:Driver not initialized (amdgpu not found in modules)", "{broken"])
def test_complaints_of_rocm_smi_are_no_gpus(text: str) -> None:
    assert amd_accelerators(text) == []


# ---- sysfs

PCI_IDS = """#\tA comment
1002  Advanced Micro Devices, Inc. [AMD/ATI]
\t744c  Navi 31 [Radeon RX 7900 XT/7900 XTX]
\t\t1002 0e3b  Radeon RX 7900 GRE
8086  Intel Corporation
\t56a0  DG2 [Arc A770]
\t7d1d  Meteor Lake NPU
"""


def uevent(driver: str, pci_id: str, address: str) -> str:
    return f"DRIVER={driver}\nPCI_CLASS=30000\nPCI_ID={pci_id}\nPCI_SLOT_NAME={address}\nMODALIAS=pci:v0001\n"


def test_a_card_of_amd_from_its_driver(tmp_path: Path) -> None:
    card = "sys/class/drm/card1"
    root = tree(
        tmp_path,
        {
            f"{card}/device/uevent": uevent("amdgpu", "1002:744C", "0000:03:00.0"),
            f"{card}/device/mem_info_vram_total": "25753026560\n",
            f"{card}/device/mem_info_vram_vendor": "samsung\n",
            f"{card}/device/product_name": "\n",
            f"{card}/device/hwmon/hwmon3/power1_cap": "339000000\n",
            "sys/class/drm/card1-HDMI-A-1/device/uevent": "DRIVER=amdgpu\n",
            "sys/class/drm/renderD128/device/uevent": uevent("amdgpu", "1002:744C", "0000:03:00.0"),
            "sys/class/kfd/kfd/topology/nodes/0/properties": "cpu_cores_count 16\ngfx_target_version 0\n",
            "sys/class/kfd/kfd/topology/nodes/1/properties": "location_id 768\ndomain 0\ngfx_target_version 110000\n",
            "usr/share/misc/pci.ids": PCI_IDS,
        },
    )
    assert sysfs_accelerators(root) == [
        Accelerator(
            address="0000:03:00.0",
            vendor="AMD",
            model="Navi 31 [Radeon RX 7900 XT/7900 XTX]",
            architecture="gfx1100",
            memory_kind="dedicated",
            memory_bytes=25753026560,
            driver="amdgpu",
            power_limit_w=339.0,
        )
    ]


def test_a_compute_architecture_is_written_as_its_compiler_does(tmp_path: Path) -> None:
    files = {
        "sys/class/drm/card0/device/uevent": uevent("amdgpu", "1002:740F", "0000:83:00.0"),
        "sys/class/kfd/kfd/topology/nodes/2/properties": "location_id 33536\ngfx_target_version 90010\n",
    }
    [card] = sysfs_accelerators(tree(tmp_path, files))
    assert card.architecture == "gfx90a"


def test_integrated_graphics_of_amd_claim_no_memory_of_their_own(tmp_path: Path) -> None:
    files = {
        "sys/class/drm/card0/device/uevent": uevent("amdgpu", "1002:1900", "0000:c5:00.0"),
        "sys/class/drm/card0/device/mem_info_vram_total": "536870912\n",
        "sys/class/drm/card0/device/mem_info_vram_vendor": "unknown\n",
    }
    [card] = sysfs_accelerators(tree(tmp_path, files))
    assert (card.memory_kind, card.memory_bytes) == (None, 536870912)


def test_intels_cards_integrated_graphics_and_npus(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "sys/class/drm/card0/device/uevent": uevent("i915", "8086:7D55", "0000:00:02.0"),
            "sys/class/drm/card10/device/uevent": uevent("xe", "8086:56A0", "0000:03:00.0"),
            "sys/class/drm/card10/device/tile0/physical_vram_size_bytes": "0x3fa000000\n",
            "sys/class/drm/card2/device/uevent": uevent("i915", "8086:56A0", "0000:04:00.0"),
            "sys/class/drm/card2/lmem_total_bytes": "17079205888\n",
            "sys/class/accel/accel0/device/uevent": uevent("intel_vpu", "8086:7D1D", "0000:00:0b.0"),
            "sys/module/intel_vpu/version": "1.0.\n",
            "usr/share/hwdata/pci.ids": PCI_IDS,
        },
    )
    chip, dg2, arc, npu = sysfs_accelerators(root)
    assert (chip.vendor, chip.memory_kind, chip.memory_bytes, chip.model) == ("Intel", "shared_system", None, None)
    assert (dg2.memory_kind, dg2.memory_bytes, dg2.model) == ("dedicated", 17079205888, "DG2 [Arc A770]")
    assert (arc.driver, arc.address, arc.memory_bytes) == ("xe", "0000:03:00.0", 0x3FA000000)
    assert npu == Accelerator(
        "0000:00:0b.0", "npu", "Intel", "Meteor Lake NPU", None, "shared_system", None, "intel_vpu", "1.0."
    )


def test_a_card_of_nvidia_without_its_tool(tmp_path: Path) -> None:
    information = (
        "Model: \t\t NVIDIA GeForce RTX 3060\nIRQ:   \t\t 45\nGPU UUID: \t GPU-1\nBus Location: \t 0000:01:00.0\n"
    )
    files = {
        "sys/class/drm/card0/device/uevent": uevent("nvidia", "10DE:2504", "0000:01:00.0"),
        "proc/driver/nvidia/gpus/0000:01:00.0/information": information,
        "sys/module/nvidia/version": "550.90.07\n",
    }
    [card] = sysfs_accelerators(tree(tmp_path, files))
    assert (card.model, card.driver_version) == ("NVIDIA GeForce RTX 3060", "550.90.07")
    assert (card.memory_kind, card.memory_bytes) == (None, None)


def test_adapters_that_only_show_a_picture_are_no_accelerators(tmp_path: Path) -> None:
    drivers = ("virtio-pci", "bochs-drm", "ast", "mgag200")
    files = {
        f"sys/class/drm/card{number}/device/uevent": uevent(driver, "1af4:1050", f"0000:00:0{number}.0")
        for number, driver in enumerate(drivers)
    }
    assert sysfs_accelerators(tree(tmp_path, files)) == []


def test_a_machine_without_any_has_none(tmp_path: Path) -> None:
    assert sysfs_accelerators(tmp_path) == []


def test_this_machine_can_be_looked_at() -> None:
    assert isinstance(sysfs_accelerators(Path("/")), list)


# ---- together


def test_what_two_sources_know_is_one_accelerator_and_the_first_source_counts() -> None:
    told = Accelerator("0000:01:00.0", model="From the tool", memory_bytes=8 * GIB)
    seen = Accelerator("0000:01:00.0", model="From sysfs", memory_kind="dedicated", driver="amdgpu")
    other = Accelerator("0000:02:00.0", model="Other")
    assert merge([told], [], [seen, other]) == [
        Accelerator(
            "0000:01:00.0", model="From the tool", memory_bytes=8 * GIB, memory_kind="dedicated", driver="amdgpu"
        ),
        other,
    ]


def test_accelerators_without_an_address_are_not_taken_for_one() -> None:
    nowhere = Accelerator(None, model="Some")
    assert merge([nowhere], [nowhere]) == [nowhere, nowhere]
