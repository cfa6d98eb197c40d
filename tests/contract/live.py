"""One running daemon for many cases: each puts its own configuration in place, by a reload."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from daemon_support import (
    WAIT_S,
    Answer,
    Daemon,
    Events,
    Json,
    clear_away,
    command,
    daemon,
    free_ports,
)

MIRROR = Path(__file__).parent / "mirror.py"
RELOADED = "configuration reloaded"
REFUSED = "failed to reload config: "


def mirror(*words: object, **keys: object) -> Json:
    """Return the configuration of a model on `mirror.py`, which is ready at once and tells what it was given."""
    return command(" ".join(map(str, (sys.executable, "-I", "-S", MIRROR, "${PORT}", *words))), **keys)


class Live:
    """A daemon without models until a test configures some."""

    def __init__(self, it: Daemon, file: Path, first_port: int) -> None:
        self.it = it
        self.file = file
        self.first_port = first_port

    async def configure(self, config: Json) -> Daemon:
        """Have nothing run, then go on with this configuration."""
        await self.it.ask("/unload")
        return await self.reload(config)

    async def reload(self, config: Json) -> Daemon:
        """Go on with this configuration; what runs and is in it as before runs on."""
        return await self.reload_text(json.dumps({"startPort": self.first_port, **config}, ensure_ascii=False))

    async def reload_text(self, text: str) -> Daemon:
        said = await self._reloaded(text)
        assert RELOADED in said, said
        return self.it

    async def refused(self, text: str) -> str:
        """Put a wrong file in place and have it loaded; return all that the log then says about it."""
        said = await self._reloaded(text)
        assert RELOADED not in said, f"loads: {text}"
        return said

    async def _reloaded(self, text: str) -> str:
        """Have a file loaded; return what is logged from then on."""
        mark = len(self.it.log)
        self.file.write_text(text)
        self.it.signal(signal.SIGHUP)
        async with asyncio.timeout(WAIT_S):
            while not any(outcome in self.it.log[mark:] for outcome in (RELOADED, REFUSED)):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        return self.it.log[mark:]


class _House:
    """Starts the daemon when the first test wants it, and another one should it have died."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._folder = Path(tempfile.mkdtemp(prefix="ls-", dir="/tmp"))  # short, for sockets
        self._context: AbstractAsyncContextManager[Daemon] | None = None
        self._live: Live | None = None

    def live(self) -> Live:
        if self._live is None or self._live.it.process.poll() is not None:
            port = free_ports()
            self._context = daemon(self._folder, {"startPort": port})
            it = self._loop.run_until_complete(self._context.__aenter__())
            self._live = Live(it, self._folder / "it.yaml", port)
        return self._live

    def close(self) -> None:
        try:
            if self._context is not None:
                self._loop.run_until_complete(self._context.__aexit__(None, None, None))
        finally:
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()
            clear_away(self._folder)
            shutil.rmtree(self._folder)


@pytest.fixture(scope="session")
def house(private: object) -> Iterator[_House]:
    """Where the daemon of all tests lives; skipped where none can run."""
    it = _House()
    yield it
    it.close()


@pytest.fixture
def live(house: _House) -> Iterator[Live]:
    """A daemon to configure; whatever a test did to it, it must have survived without a traceback."""
    live = house.live()
    seen = len(live.it.log)
    yield live
    log = live.it.log[seen:]
    print(log)
    assert live.it.process.poll() is None
    assert "Traceback" not in log


@pytest.fixture
def folder(private: object) -> Iterator[Path]:
    """A folder for a daemon of the test's own, with a short path, for sockets."""
    path = Path(tempfile.mkdtemp(prefix="ls-", dir="/tmp"))
    yield path
    clear_away(path)
    shutil.rmtree(path)


# ---- asking


async def told(it: Daemon, model: str, **body: object) -> Any:
    """Ask a mirror; return what it tells."""
    answer = await it.chat(model, **body)
    assert answer.status == 200, answer.body
    return answer.json()


async def upstream(it: Daemon, model: str, path: str = "") -> Any:
    """Ask a mirror by `/upstream`; return what it tells."""
    answer = await it.ask(f"/upstream/{model}/{path}")
    assert answer.status == 200, answer.body
    return answer.json()


async def load(it: Daemon, *models: str) -> None:
    """Load models, one after the other."""
    for model in models:
        answer = await it.ask(f"/upstream/{model}/")
        assert answer.status == 200, answer.body


async def ready(it: Daemon) -> set[str]:
    """Return which models are running, all of which must be ready."""
    running = await it.running()
    assert {*running.values()} <= {"ready"}, running
    return {*running}


async def logged_after(it: Daemon, mark: int, text: str) -> str:
    """Wait for a line that holds `text` in what is logged from `mark`, a length of the log, on."""
    return await it.logged(text, it.log[:mark].count(text) + 1)


@asynccontextmanager
async def held(it: Daemon, model: str, until: Path, events: Events) -> AsyncIterator[asyncio.Task[Answer]]:
    """Have a request to a mirror in flight during the block, and answered after it."""
    count = len(events.in_flight)
    waiting = asyncio.create_task(it.chat(model, until=str(until)))
    await events.until_in_flight(count + 1)
    await events.until(lambda: events.states.get(model) == "ready")
    yield waiting
    until.touch()
    assert (await asyncio.wait_for(waiting, WAIT_S)).status == 200
