"""Limits on models, where the kernel has the controllers for them. Runs in a virtual machine, as root."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from inside_daemon import CGROUPS, SERVER, Client, by_hand, error_message, log_of, main_pid, show, units

PORT = 8080
CONFIG = f"""
healthCheckTimeout: 60
systemd: {{MemoryMax: 64M}}
models:
  hungry: {{cmd: "{SERVER} ${{PORT}} --memory 256"}}
  too-big: {{cmd: "{sys.executable} -S -c 'weights = b\\"w\\" * (256 << 20)' ${{PORT}}"}}
  bounded:
    cmd: "{SERVER} ${{PORT}}"
    systemd: {{TasksMax: 7, CPUQuota: 50%, MemoryMax: 100M, MemoryHigh: 90%}}
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    config = tmp_path_factory.mktemp("llamaswapd") / "config.yaml"
    config.write_text(CONFIG)
    with by_hand(config, PORT):
        yield Client(PORT)
    assert units() == []


def test_a_model_that_outgrows_its_memory_while_it_loads_is_said_to_have(client: Client) -> None:
    status, text = client.ask("too-big")
    assert status == 500
    assert error_message(text).startswith(
        "unspecific error: upstream command exited prematurely: killed by SIGKILL (oom-kill)"
    )


def test_a_model_that_outgrows_its_memory_in_mid_request_is_said_to_have(client: Client) -> None:
    pid = main_pid(client.load("hungry"))
    status, text = client.get("/upstream/hungry/allocate")
    assert status == 502
    assert error_message(text) == 'model "hungry": it ended before its answer did: killed by SIGKILL (oom-kill)'
    assert main_pid(client.load("hungry")) != pid
    assert "oom-kill" in log_of("-u", "llamaswapd-model-hungry")


def test_limits_are_those_of_the_configuration(client: Client) -> None:
    unit = client.load("bounded")
    wanted = {"TasksMax": "7", "CPUQuotaPerSecUSec": "500ms", "MemoryMax": str(100 << 20)}
    assert show(unit, *wanted) == wanted
    group = CGROUPS / show(unit, "ControlGroup")["ControlGroup"].lstrip("/")
    assert Path(group / "pids.max").read_text() == "7\n"
    assert Path(group / "cpu.max").read_text() == "50000 100000\n"
    assert Path(group / "memory.max").read_text() == f"{100 << 20}\n"
