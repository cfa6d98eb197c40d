"""The whole daemon as a process of its own, seen as its users see it, and a look at what it leaves behind."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import aiohttp

# Another program that is to hold to the same contract can be put in its place: llama-swap itself.
COMMAND = (*shlex.split(os.environ.get("LLAMASWAPD_TEST_PROGRAM", "")),) or (sys.executable, "-m", "llamaswapd")
ROOT = Path(__file__).parents[1]
MODELS = Path(__file__).parent / "models"

# The same program, which tells on SIGUSR1 what tasks it has.
TELLING_TASKS = (
    sys.executable,
    "-c",
    """
import asyncio, signal, sys
from llamaswapd.__main__ import main
def tell(*_): print("tasks:", *sorted(task.get_coro().__qualname__ for task in asyncio.all_tasks()), flush=True)
signal.signal(signal.SIGUSR1, tell)
sys.exit(main())""",
)

# Whatever a daemon starts inherits this variable, wherever it goes.
MARK = "LLAMASWAPD_TEST_OF"

WAIT_S = 20.0  # for what comes at once unless something is broken
PORTS_PER_DAEMON = 20

Json = dict[str, Any]


def model(*options: object, **keys: object) -> Json:
    """Return the configuration of a model on `models/server.py` with these options."""
    words = (sys.executable, "-S", "-E", MODELS / "server.py", "${PORT}", *options)
    return command(" ".join(map(str, words)), **keys)


def command(cmd: str, **keys: object) -> Json:
    """Return the configuration of a model that runs this. If it uses no port, nothing listens where it should."""
    return {"cmd": cmd, "proxy": f"http://127.0.0.1:{'${PORT}' if '${PORT}' in cmd else 9}", **keys}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        return str(self.json()["error"]["message"])


class Daemon:
    """A running daemon. `url` is known once it listens."""

    def __init__(self, folder: Path, instance: str, process: subprocess.Popen[str]) -> None:
        self.runtime_dir = folder / instance
        self.process = process
        self.url = ""
        self._lines: list[str] = []
        self._more = threading.Condition()
        threading.Thread(target=self._read_log, daemon=True).start()

    # ---- the process

    @property
    def log(self) -> str:
        return "".join(self._lines)

    async def logged(self, text: str, times: int = 1) -> str:
        """Wait for the so many-th line of its log that holds `text`; return it."""
        return await asyncio.to_thread(self._wait_for_line, text, times)

    def _wait_for_line(self, text: str, times: int) -> str:
        def found() -> list[str]:
            return [line for line in self._lines if text in line]

        with self._more:
            self._more.wait_for(lambda: len(found()) >= times or self._lines[-1:] == [""], WAIT_S)
        assert len(found()) >= times, f"not {times} times in the log: {text}\n{self.log}"
        return found()[times - 1].rstrip()

    def _read_log(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in chain(iter(output.readline, ""), [""]):
                with self._more:
                    self._lines.append(line)
                    self._more.notify_all()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    async def exited(self) -> int:
        return await asyncio.to_thread(self.process.wait, 40)

    async def tasks(self) -> str:
        """Return the line that `TELLING_TASKS` prints."""
        told = self.log.count("tasks:")
        self.signal(signal.SIGUSR1)
        return await self.logged("tasks:", told + 1)

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    # ---- what it runs

    @property
    def _cgroup(self) -> Path:
        return Path((self.runtime_dir / "private" / "cgroup").read_text())

    def units(self) -> list[str]:
        """Return every unit of a model that systemd knows of, whatever its state."""
        bus = {"XDG_RUNTIME_DIR": f"{self.runtime_dir}/private"}
        bus["DBUS_SESSION_BUS_ADDRESS"] = f"unix:path={self.runtime_dir}/private/bus"
        listing = ["systemctl", "--user", "list-units", "--all", "--plain", "--no-legend", "llamaswapd*-model-*"]
        output = subprocess.run(listing, env={**os.environ, **bus}, check=True, capture_output=True, text=True).stdout
        return [line.split()[0] for line in output.splitlines()]

    def pids(self, unit: str) -> list[int]:
        """Return every process in a unit's cgroup."""
        folders = self._cgroup.rglob(unit)
        return [int(pid) for folder in folders for pid in (folder / "cgroup.procs").read_text().split()]

    async def unit_runs(self, unit: str) -> None:
        """Wait until systemd has started a unit."""
        async with asyncio.timeout(WAIT_S):
            while not self.pids(unit):  # noqa: ASYNC110, nothing to await tells of a cgroup's making
                await asyncio.sleep(0.01)

    def left_behind(self) -> list[str]:
        """Return what should not be there any more when it has stopped."""
        mark = f"{MARK}={self.runtime_dir}\0".encode()
        left = [f"process {pid}" for pid in processes() if mark in environment(pid)]
        return left + ([f"{self.runtime_dir}"] if self.runtime_dir.exists() else [])

    # ---- its clients

    async def ask(self, path: str, body: object = None, *, method: str = "", **options: Any) -> Answer:
        """Ask once, on a connection of its own: a POST if there is a JSON body."""
        async with (
            client() as session,
            session.request(method or ("GET" if body is None else "POST"), self.url + path, json=body, **options) as it,
        ):
            return Answer(it.status, {name.lower(): value for name, value in it.headers.items()}, await it.read())

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to send bytes of one's own."""
        host, _, port = self.url.partition("://")[2].partition(":")
        return await asyncio.open_connection(host, int(port))

    async def chat(self, model_id: str, **body: object) -> Answer:
        return await self.ask("/v1/chat/completions", {"model": model_id, **body})

    @asynccontextmanager
    async def stream(self, model_id: str, **body: object) -> AsyncIterator[Stream]:
        """Ask for a stream; yield it once its head has come."""
        question = {"model": model_id, "stream": True, **body}
        async with client() as session, session.post(f"{self.url}/v1/chat/completions", json=question) as response:
            yield Stream(response)

    @asynccontextmanager
    async def events(self) -> AsyncIterator[Events]:
        """Follow `/api/events`."""
        async with client() as session, session.get(f"{self.url}/api/events") as response:
            yield Events(response)

    @asynccontextmanager
    async def lines(self, path: str) -> AsyncIterator[AsyncIterator[str]]:
        """Follow a log."""
        async with client() as session, session.get(self.url + path) as response:

            async def each() -> AsyncIterator[str]:
                while line := await asyncio.wait_for(response.content.readline(), WAIT_S):
                    yield line.decode().rstrip()

            yield each()

    async def running(self) -> dict[str, str]:
        """Return what `/running` says: model id → state."""
        return {entry["model"]: entry["state"] for entry in (await self.ask("/running")).json()["running"]}


class Stream:
    """A streamed answer, event by event."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.events: list[str] = []

    async def next(self) -> str:
        """Return the data of the next event, "" at a clean end. Raises aiohttp.ClientPayloadError when it is cut."""
        async for line in self.response.content:
            if line.startswith(b"data: "):
                self.events.append(line[6:].decode().strip())
                return self.events[-1]
        return ""

    async def rest(self) -> list[str]:
        """Read it to its clean end; return all its events."""
        while await self.next():
            pass
        return self.events


class Events:
    """`/api/events`: what the models are doing and which requests are in flight, kept up to date."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.states: dict[str, str] = {}
        self.in_flight: dict[str, str] = {}  # id → model

    async def until(self, condition: Callable[[], bool]) -> None:
        """Read on until `condition` holds."""
        async with asyncio.timeout(WAIT_S):
            while not condition():
                line = await self._response.content.readuntil(b"\n")
                assert line, "the event stream ended"
                if line.startswith(b"data:"):
                    event = json.loads(line[5:])
                    self._take(event["type"], json.loads(event["data"]))

    async def until_in_flight(self, count: int) -> None:
        await self.until(lambda: len(self.in_flight) == count)

    def _take(self, kind: str, data: Any) -> None:
        if kind == "modelStatus":
            self.states = {entry["id"]: entry["state"] for entry in data}
        elif kind == "inflight":
            match data["operation"]:
                case "snapshot":
                    self.in_flight = {entry["id"]: entry["model"] for entry in data.get("requests", ())}
                case "upsert":
                    self.in_flight[data["request"]["id"]] = data["request"]["model"]
                case "remove":
                    self.in_flight.pop(data["id"], None)


def client() -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(force_close=True, limit=0, ssl=TRUST_ALL)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(50), read_bufsize=2**20)


TRUST_ALL = ssl.create_default_context()
TRUST_ALL.check_hostname = False
TRUST_ALL.verify_mode = ssl.CERT_NONE


def write(path: Path, config: Json) -> Path:
    path.write_text(json.dumps(config))  # which is YAML
    return path


@asynccontextmanager
async def daemon(
    folder: Path, config: Json, *flags: str, instance: str = "it", program: Sequence[str] = COMMAND
) -> AsyncIterator[Daemon]:
    """Run a daemon on a free port; in the end have it stop, and see that nothing is left. One that was killed is left.

    `folder` holds its configuration, `<instance>.yaml`, and is $RUNTIME_DIRECTORY; its path must be short, for sockets.
    """
    config = {"startPort": free_ports(), **config}
    file = write(folder / f"{instance}.yaml", config)
    argv = [*program, "-config", str(file), "-listen", "127.0.0.1:0", "-instance", instance, *flags]
    it = Daemon(folder, instance, launched(argv, surroundings(folder, instance)))
    process = it.process
    try:
        it.url = (await it.logged("llama-swap listening on ")).rpartition(" ")[2]
        yield it
        if process.poll() is None:
            it.signal(signal.SIGTERM)
        if await it.exited() != -signal.SIGKILL:
            assert process.returncode == 0
            assert it.left_behind() == []
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        print(it.log)  # pytest shows it when the test fails


def launched(argv: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(argv, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def surroundings(folder: Path, instance: str = "") -> dict[str, str]:
    """Return the environment of a daemon whose runtime directory is in `folder`."""
    own = {"RUNTIME_DIRECTORY": str(folder), MARK: str(folder / instance)}
    return {**os.environ, **own, "PYTHONUNBUFFERED": "1"}


def clear_away(folder: Path) -> None:
    """Kill the private managers that a daemon which was killed, or a test that failed, left in `folder`."""
    for file in folder.glob("*/private/cgroup"):
        cgroup = Path(file.read_text())
        if cgroup.name.startswith("llamaswapd-") and cgroup.exists():
            (cgroup / "cgroup.kill").write_text("1")
            while "populated 1" in (cgroup / "cgroup.events").read_text():
                os.sched_yield()
            for each, _, _ in os.walk(cgroup, topdown=False):
                os.rmdir(each)


def free_ports() -> int:
    """Return the first of some ports in a row that nobody listens on, below those the kernel gives out.

    Others than before: whoever got those may not listen yet.
    """
    return next(first for first in _rows if all(can_listen(port) for port in range(first, first + PORTS_PER_DAEMON)))


_ROWS = range(10000, 32000, PORTS_PER_DAEMON)
_rows = itertools.cycle(random.sample(_ROWS, len(_ROWS)))


def can_listen(port: int) -> bool:
    with suppress(OSError), socket.create_server(("127.0.0.1", port)):
        return True
    return False


def processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def alive(pids: Iterable[int]) -> list[int]:
    """Return those of these processes that still are."""
    return sorted({*pids} & {*processes()})


def environment(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes()
    return b""
