"""The program as a client of llama-swap meets it: started by its command line, asked over HTTP, nothing else known.

All of it is synchronous: a client that sends bytes and waits for bytes needs no event loop, and sees them as they are.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from daemon_support import MODELS, WAIT_S, Daemon, clear_away, command, daemon

Json = dict[str, Any]
Headers = Mapping[str, str] | Iterable[tuple[str, str]]

JSON = {"Content-Type": "application/json"}


def echo(**keys: object) -> Json:
    """Return the configuration of a model on `models/echo.py`, which answers what a request asks for."""
    return command(f"{sys.executable} -S -E {MODELS / 'echo.py'} ${{PORT}}", **keys)


@contextmanager
def folder() -> Iterator[Path]:
    """A folder with a path short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="ls-", dir="/tmp"))
    try:
        yield path
    finally:
        clear_away(path)
        shutil.rmtree(path)


@contextmanager
def serving(config: Json, *flags: str) -> Iterator[Program]:
    """Run the program with this configuration until the block ends; see then that it leaves nothing behind.

    For fixtures of any scope: the loop that starts and stops it is its own, and idle in between.
    """
    with folder() as path, asyncio.Runner() as runner:
        context = daemon(path, config, *flags)
        it = runner.run(context.__aenter__())
        try:
            yield Program(it, path)
        except BaseException as error:
            if not runner.run(context.__aexit__(type(error), error, error.__traceback__)):
                raise
        else:
            runner.run(context.__aexit__(None, None, None))


@dataclass(frozen=True)
class Answer:
    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """Return the value of a header, None if it is absent. It must not be there twice."""
        values = [value for each, value in self.headers if each.lower() == name.lower()]
        assert len(values) < 2, f"{name} came {len(values)} times: {values}"
        return values[0] if values else None

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def message(self) -> str:
        """The message of an error envelope."""
        return str(self.json()["error"]["message"])


@dataclass(frozen=True)
class Received:
    """What a model on `models/echo.py` says it was sent."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes

    @classmethod
    def told_by(cls, answer: Answer) -> Received:
        assert answer.status == 200, answer
        told = answer.json()
        headers = [(name, value) for name, value in told["headers"]]
        return cls(told["method"], told["path"], headers, base64.b64decode(told["body64"]))

    def values(self, name: str) -> list[str]:
        return [value for each, value in self.headers if each.lower() == name.lower()]

    def json(self) -> Any:
        return json.loads(self.body)


class Program:
    """A running program and its clients. `folder` is a place for files that models are told to wait for."""

    def __init__(self, it: Daemon, folder: Path) -> None:
        self.daemon = it
        self.folder = folder
        self._address = urlsplit(it.url)

    @property
    def pid(self) -> int:
        return self.daemon.process.pid

    @property
    def host(self) -> str:
        """What a client writes into `Host`."""
        return self._address.netloc

    @property
    def log(self) -> str:
        return self.daemon.log

    # ---- one question, one answer

    def ask(self, method: str, path: str, body: object = None, headers: Headers = ()) -> Answer:
        """Ask on a connection of its own. `body`: bytes and text as they are, anything else as JSON."""
        with self.asking(method, path, body, headers) as response:
            return Answer(response.status, response.reason, response.getheaders(), response.read())

    def get(self, path: str, headers: Headers = ()) -> Answer:
        return self.ask("GET", path, headers=headers)

    def post(self, path: str, body: object = b"", headers: Headers = ()) -> Answer:
        return self.ask("POST", path, body, headers)

    def chat(self, model_id: str, **body: object) -> Answer:
        return self.post("/v1/chat/completions", {"model": model_id, **body})

    def wish(self, model_id: str, path: str = "/v1/chat/completions", **answer: object) -> Answer:
        """Have a model on `models/echo.py` answer this."""
        return self.post(path, {"model": model_id, "answer": answer})

    def received(self, method: str, path: str, body: object = None, headers: Headers = ()) -> Received:
        """Return what the model got of a request."""
        return Received.told_by(self.ask(method, path, body, headers))

    @contextmanager
    def asking(
        self, method: str, path: str, body: object = None, headers: Headers = ()
    ) -> Iterator[http.client.HTTPResponse]:
        """Ask; yield the response once its head is there, to be read bit by bit. The connection ends with the block."""
        connection = self.sent(method, path, body, headers)
        try:
            yield connection.getresponse()
        finally:
            connection.close()

    def sent(self, method: str, path: str, body: object = None, headers: Headers = ()) -> http.client.HTTPConnection:
        """Send a question and return at once; `getresponse()` waits for the answer, `close()` gives it up."""
        pairs = [*(headers.items() if isinstance(headers, Mapping) else headers)]
        if isinstance(body, str):
            body = body.encode()
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            pairs = [*JSON.items(), *pairs]
        names = {name.lower() for name, _ in pairs}
        connection = http.client.HTTPConnection(self._address.hostname or "", self._address.port, timeout=WAIT_S)
        connection.putrequest(method, path, skip_host="host" in names, skip_accept_encoding=True)
        for name, value in pairs:
            connection.putheader(name, value)
        if isinstance(body, bytes) and not names & {"content-length", "transfer-encoding"}:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        return connection

    # ---- bytes of one's own

    @contextmanager
    def connected(self) -> Iterator[socket.socket]:
        with socket.create_connection((self._address.hostname, self._address.port), WAIT_S) as connection:
            yield connection

    def exchange(self, data: bytes) -> bytes:
        """Send these bytes; return everything that comes back until the program closes the connection."""
        with self.connected() as connection:
            connection.sendall(data)
            return b"".join(iter(lambda: connection.recv(65536), b""))

    # ---- what goes on

    @contextmanager
    def events(self, headers: Headers = ()) -> Iterator[Events]:
        """Follow `/api/events`."""
        with self.asking("GET", "/api/events", headers=headers) as response:
            yield Events(response)

    def running(self) -> dict[str, str]:
        """Return what `/running` says: model id → state."""
        return {entry["model"]: entry["state"] for entry in self.get("/running").json()["running"]}

    def rows(self, query: str = "") -> list[Json]:
        """Return the activity rows, the newest first."""
        return list(self.get(f"/api/metrics/activity{query}").json()["data"])

    def row_of(self, model_id: str, ask: Callable[[], object]) -> Json:
        """Ask something of a model; return the activity row that it leaves. Nobody else must be asking this model."""
        before = [row["id"] for row in self.rows(f"?model={quote(model_id)}&limit=1")]
        ask()
        query = f"?model={quote(model_id)}&min_id={before[0] + 1 if before else 1}"
        eventually(lambda: self.rows(query))
        [row] = self.rows(query)
        return row


class Events:
    """The events of `/api/events` in their order, as (type, payload)."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.response = response

    def next(self, wait_s: float = WAIT_S) -> tuple[str, Any]:
        """Return the next event, whose frame must be exactly as the contract says. Comments are passed over."""
        deadline = time.monotonic() + wait_s
        while (line := self.response.readline()).startswith(b":"):
            assert self.response.readline() == b"\n"
            assert time.monotonic() < deadline, "nothing but comments"
        assert line == b"event:message\n", line
        data = self.response.readline()
        assert data.startswith(b'data:{"'), data
        assert self.response.readline() == b"\n"
        event = json.loads(data[5:])
        return event["type"], json.loads(event["data"])

    def until(self, wanted: Callable[[str, Any], object]) -> Any:
        """Read on to the first event that is wanted, given type and payload; return its payload."""
        deadline = time.monotonic() + WAIT_S
        while not wanted(*(event := self.next(deadline - time.monotonic()))):
            assert time.monotonic() < deadline, f"the last event was {event}"
        return event[1]

    def until_states(self, **states: str) -> None:
        """Read on until the models are in these states."""

        def reached(kind: str, data: Any) -> bool:
            if kind != "modelStatus":
                return False
            now = {entry["id"]: entry["state"] for entry in data}
            return all(now[name] == state for name, state in states.items())

        self.until(reached)


def eventually(condition: Callable[[], object]) -> None:
    """Wait for what nothing tells of."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)


@contextmanager
def in_background(work: Callable[[], object]) -> Iterator[list[Any]]:
    """Do something in a thread while the block runs; wait for it then. Yields a list that gets what it returned."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    try:
        yield results
    finally:
        thread.join()
