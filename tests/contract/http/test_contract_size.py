"""Contract: bodies have no limit (http.md, 1.2); how much of them is held is bounded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from blackbox import JSON, Program, echo, serving

from llamaswapd.systemd.private import PrivateManager

pytestmark = pytest.mark.private

MIB = 2**20
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def fresh(private: PrivateManager) -> Iterator[Program]:
    """A program whose memory nobody else has used."""
    with serving({"models": {"m": echo(), "edited": echo(filters={"setParams": {"a": 1}})}}) as program:
        program.chat("m")
        yield program


def peak(program: Program) -> int:
    """Return the most memory that the program has had since `forget_peak`, in bytes."""
    status = Path(f"/proc/{program.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def forget_peak(program: Program) -> int:
    """Have the kernel count from here (proc(5), clear_refs); return what is used now."""
    Path(f"/proc/{program.pid}/clear_refs").write_text("5")
    return peak(program)


@pytest.mark.ours("it keeps several copies")
def test_an_answer_of_60_mb_takes_little_memory(fresh: Program) -> None:
    before = forget_peak(fresh)
    with fresh.asking("POST", CHAT, {"model": "m", "answer": {"body": "x" * MIB, "times": 60}}) as response:
        assert response.status == 200
        size = sum(len(piece) for piece in iter(lambda: response.read(MIB), b""))
    assert size == 60 * MIB
    assert peak(fresh) - before <= 20 * MIB


@pytest.mark.ours("it keeps several copies")
@pytest.mark.parametrize("model", [b"m", b"edited"])
def test_a_json_request_of_100_mb_takes_twice_its_size_at_most(fresh: Program, model: bytes) -> None:
    before = forget_peak(fresh)
    body = b'{"messages": ["' + b"x" * (100 * MIB) + b'"], "model": "%b", "answer": {"body": "got it"}}' % model
    answer = fresh.post(CHAT, body, JSON)
    assert (answer.status, answer.text) == (200, "got it")
    assert peak(fresh) - before <= 2 * len(body)
