"""One daemon for the traffic of all clients, and the clients."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import daemon_support
import pytest
from daemon_support import Json
from traffic import BEARER, KEY, Rows, Service

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def service(private: object) -> Iterator[Service]:
    """A daemon with models on llama.cpp and scripted ones; skipped where none can run. It has a manager of its own."""
    pytest.importorskip("gguf")
    pytest.importorskip("xllamacpp")
    folder = Path(tempfile.mkdtemp(prefix="llamaswapd-"))
    try:
        with asyncio.Runner() as runner:
            running = daemon_support.daemon(folder, config(folder), "-manager", "private")
            daemon = runner.run(running.__aenter__())
            yield Service(daemon, folder)
            runner.run(running.__aexit__(None, None, None))
            assert [line for line in daemon.log.splitlines() if is_complaint(line)] == []
    finally:
        daemon_support.clear_away(folder)
        shutil.rmtree(folder)


def is_complaint(line: str) -> bool:
    """Whether a line of the daemon's log tells of anything but traffic, and of a model that is meant to fail."""
    return line.startswith(("[WARN]", "[ERROR]", "Traceback")) and "<broken>" not in line


def config(folder: Path) -> Json:
    scripted = f"{sys.executable} -S -E {TESTS}/models/scripted.py ${{PORT}}"
    models = {
        "red": llama_cpp(folder, "engine/make_tiny_gguf.py"),
        "blue": llama_cpp(folder, "clients/fill_in_gguf.py"),
        "vectors": llama_cpp(folder, "engine/make_tiny_gguf.py", "--pooling mean"),
        "ranks": llama_cpp(folder, "engine/make_tiny_gguf.py", "--pooling rank"),
        "scripted": {"cmd": scripted},
        "packed": {"cmd": f"{scripted} --gzip"},
        "narrow": {"cmd": scripted, "concurrencyLimit": 1},
        "shown": {"cmd": scripted, "sendLoadingState": True},
        "broken": {"cmd": f"{sys.executable} -S -E -c pass ${{PORT}}", "sendLoadingState": True},
        "shown-packed": {"cmd": f"{scripted} --gzip", "sendLoadingState": True},
    }
    # A capture is to hold a request with pictures, and /metrics to have a sample soon.
    return {"models": models, "apiKeys": [KEY], "captureBuffer": 64, "performance": {"every": "5s"}}


def llama_cpp(folder: Path, maker: str, options: str = "") -> Json:
    file = folder / f"{Path(maker).stem}.gguf"
    if not file.exists():
        subprocess.run([sys.executable, TESTS / maker, file], check=True)
    return {"cmd": f"{sys.executable} {TESTS}/engine/serve_llama_cpp.py {file} ${{PORT}} {options}"}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have clients ask the daemon itself, whatever the machine's way to the world is."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def rows(service: Service) -> Iterator[Rows]:
    with closing(service.connect()) as connection:
        connection.request("GET", "/api/events", headers=BEARER)
        yield Rows(service, connection.getresponse())


@pytest.fixture
def client(service: Service) -> Iterator[Any]:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(**service.openai()) as client:
        yield client


@pytest.fixture
async def async_client(service: Service) -> AsyncIterator[Any]:
    openai = pytest.importorskip("openai")
    async with openai.AsyncOpenAI(**service.openai()) as client:
        yield client


@pytest.fixture
def messages_client(service: Service) -> Iterator[Any]:
    anthropic = pytest.importorskip("anthropic")
    with anthropic.Anthropic(**service.anthropic()) as client:
        yield client
