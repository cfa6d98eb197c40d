"""What all tests share: a time limit, a look for tasks left behind, and a private systemd manager to run units on."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import FrameType

import pytest

os.environ.setdefault("LLAMASWAPD_COMPILED", "0")  # the sources, here and in every daemon, unless somebody says 1

from llamaswapd.errors import ManagerUnavailable
from llamaswapd.systemd.private import PrivateManager

TIMEOUT_S = 60.0


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("LLAMASWAPD_TEST_LOOP") == "uvloop":
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    config.addinivalue_line("markers", f"timeout(seconds): time limit of a test, {TIMEOUT_S:g} s unless it says so")


@pytest.fixture(autouse=True)
def time_limit(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that takes too long; and again every few seconds, should it hang in its end as well."""
    marker = request.node.get_closest_marker("timeout")
    limit_s = float(marker.args[0]) if marker else TIMEOUT_S

    def expired(number: int, frame: FrameType | None) -> None:
        pytest.fail(f"the test takes longer than {limit_s:g} s")

    before = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, limit_s, 5.0)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
async def no_task_left(time_limit: None) -> AsyncIterator[None]:
    """Fail a test that leaves tasks behind. Set up before the test's other fixtures, it looks when those are done."""
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not left, f"tasks left behind: {left}"


@pytest.fixture(scope="session")
def private() -> Iterator[PrivateManager]:
    """A private manager for all tests; it belongs to no event loop.

    Where none can run, its tests are skipped; with $LLAMASWAPD_NO_SKIP set, as in CI, they fail instead.
    """
    directory = Path(tempfile.mkdtemp(prefix="llamaswapd-"))
    try:
        manager = asyncio.run(PrivateManager.start(directory / "private"))
    except ManagerUnavailable as error:
        if os.environ.get("LLAMASWAPD_NO_SKIP"):
            raise
        pytest.skip(str(error))
    else:
        yield manager
        asyncio.run(manager.stop())
    finally:
        shutil.rmtree(directory)
