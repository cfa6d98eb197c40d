from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from llamaswapd import loop


@pytest.fixture
def collector() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


def test_what_is_there_is_left_to_stay(collector: None) -> None:
    loop.settle_memory()
    assert gc.get_freeze_count() > 1000
    assert gc.get_threshold() == loop.COLLECT_AFTER


async def which() -> str:
    return type(asyncio.get_running_loop()).__module__


def test_uvloop_is_used_where_it_is_installed() -> None:
    pytest.importorskip("uvloop")
    assert loop.run(which()) == "uvloop"


def test_plain_asyncio_is_used_where_it_is_not() -> None:
    script = (
        "import sys; sys.modules['uvloop'] = None\n"
        "import asyncio; from llamaswapd import loop\n"
        "async def which(): return type(asyncio.get_running_loop()).__module__\n"
        "print(loop.run(which()))"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.startswith("asyncio.")
