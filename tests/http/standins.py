"""A front end on a loopback port, before an engine that only says what it is told to say."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from llamaswapd.activity.activity import Activity
from llamaswapd.activity.record import Record
from llamaswapd.condition import Condition
from llamaswapd.config.schema import Config, ModelConfig
from llamaswapd.core.lifecycle import State
from llamaswapd.core.naming import Naming, Resolved
from llamaswapd.engine import Status
from llamaswapd.errors import Error
from llamaswapd.http.app import FrontEnd
from llamaswapd.http.metrics import Durations
from llamaswapd.http.server import Listener
from llamaswapd.machine.hardware import Hardware
from llamaswapd.machine.performance import Performance
from llamaswapd.observe import Observer
from llamaswapd.observe.feed import Event, Feed
from llamaswapd.observe.log import LineFormat


class Engine:
    """What the management API sees of an engine."""

    def __init__(self, *models: ModelConfig, **config: Any) -> None:
        ordered = sorted(models, key=lambda model: model.id)
        self.config = Config(models={model.id: model for model in ordered}, **config)
        self.states = {model.id: State.STOPPED for model in ordered}
        self.past: list[tuple[str, str]] = []
        self.live: asyncio.Queue[tuple[str, str] | Error] = asyncio.Queue()
        self.asked_logs: list[tuple[Collection[str] | None, int]] = []
        self.followers = 0
        self.naming = Naming(self.config)
        self.used: dict[str, Any] = {}
        self.forgiven: list[str] = []
        self.waiting: dict[str, int] = {}
        self._observers: list[Callable[[], None]] = []
        self._profile_observers: list[Callable[[str | None], None]] = []

    def use(self, config: Config) -> None:
        self.config, self.naming = config, Naming(config)

    def resolve(self, name: str) -> Resolved:
        return self.naming.resolve(name, self.states.__getitem__)

    def activate_profile(self, name: str | None) -> None:
        self.naming.activate(name)
        for tell in self._profile_observers:
            tell(self.naming.active)

    def on_profile(self, call: Callable[[str | None], None]) -> None:
        self._profile_observers.append(call)

    def expected_load_s(self, model_id: str) -> float | None:
        return None

    def resources(self, model_id: str) -> Any:
        return self.used.get(model_id)

    def become(self, model_id: str, state: State) -> None:
        self.states[model_id] = state
        for call in self._observers:
            call()

    def status(self, model_id: str) -> Status:
        return Status(self.config.models[model_id], self.states[model_id], "", 0, 0, self.waiting.get(model_id, 0))

    def is_ready(self, model_id: str) -> bool:
        return self.states.get(model_id) is State.READY

    def statuses(self) -> list[Status]:
        return [self.status(model_id) for model_id in self.config.models]

    async def unload(self, model_ids: Sequence[str] | None = None) -> None:
        for model_id in self.states if model_ids is None else model_ids:
            self.become(model_id, State.STOPPED)

    async def load(self, model_id: str) -> None:
        self.forgive(model_id)
        self.become(model_id, State.READY)

    def forgive(self, model_id: str) -> None:
        self.forgiven.append(model_id)

    def on_change(self, call: Callable[[], None]) -> None:
        self._observers.append(call)

    async def logs(self, models: Collection[str] | None, history_bytes: int) -> AsyncIterator[tuple[str, str]]:
        self.asked_logs.append((models, history_bytes))
        self.followers += 1
        try:
            for model_id, line in self.past:
                if history_bytes and (models is None or model_id in models):
                    yield model_id, line
            yield "", ""
            while True:
                entry = await self.live.get()
                if isinstance(entry, Error):
                    raise entry
                yield entry
        finally:
            self.followers -= 1


class RememberingActivity(Activity):
    """Remembers what has ended, beside making rows of it."""

    def __init__(self, config: Config, events: Feed[Event]) -> None:
        super().__init__(config, events)
        self.ended: list[Any] = []  # records, but for their methods
        self.add, self._add = self._remember, self.add

    def _remember(self, record: Record) -> None:
        self.ended.append(as_it_is(record))
        self._add(record)


def as_it_is(record: Record) -> Any:
    """Return all that can be read of a record now: what is made of it later leaves that alone."""
    read = SimpleNamespace()
    for name in dir(record):
        if not name.startswith("_"):
            with suppress(AttributeError):  # nothing is in the slot
                setattr(read, name, getattr(record, name))
    return read


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One connection that sends and reads exactly the bytes it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, target: str, *header_lines: str, method: str = "GET") -> None:
        lines = (f"{method} {target} HTTP/1.1", "Host: models", *header_lines, "", "")
        self.writer.write("\r\n".join(lines).encode("utf-8", "surrogateescape"))
        await self.writer.drain()

    async def head(self) -> Answer:
        status_line, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        return Answer(int(status_line.split()[1]), headers, b"")

    async def answer(self, *, has_body: bool = True) -> Answer:
        head = await self.head()
        length = int(head.headers.get("content-length", 0)) if has_body else 0
        return replace(head, body=await self.reader.readexactly(length))

    async def chunk(self) -> bytes:
        """Read one chunk of a chunked body, b"" at its end."""
        size = int(await self.reader.readuntil(b"\r\n"), 16)
        return (await self.reader.readexactly(size + 2))[:-2]

    async def text_until(self, end: str) -> str:
        text = ""
        while end not in text:
            text += (await self.chunk()).decode()
        return text

    def close(self) -> None:
        self.writer.close()


class House:
    """A running front end."""

    def __init__(self, engine: Engine, observer: Observer, activity: Activity, front: FrontEnd, port: int) -> None:
        self.engine = engine
        self.observer = observer
        self.activity = activity
        self.front = front
        self.port = port
        self._clients: list[Client] = []

    async def connect(self) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self._clients.append(client)
        return client

    async def ask(self, target: str, *header_lines: str, method: str = "GET") -> Answer:
        client = await self.connect()
        await client.send(target, *header_lines, method=method)
        answer = await client.answer(has_body=method != "HEAD")
        client.close()
        return answer

    async def stream(self, target: str, *header_lines: str) -> Client:
        """Ask for something without an end; return once its head is there."""
        client = await self.connect()
        await client.send(target, *header_lines)
        assert (await client.head()).status == 200
        return client

    def write_own_line(self, text: str) -> None:
        self.observer.log.handle(logging.LogRecord("x", logging.INFO, "x.py", 1, text, None, None))

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Let the front end work until something has become true; the house's time limit is the only one."""
        while not is_so():  # noqa: ASYNC110, what is waited for has no event
            await asyncio.sleep(0.001)

    async def close(self) -> None:
        for client in self._clients:
            client.close()
        await self.front.close()
        for _ in range(3):
            await asyncio.sleep(0)  # connections that have been closed are gone some turns of the loop later


@asynccontextmanager
async def house(
    engine: Engine, limit_s: float = 20, listeners: Sequence[Listener] = (), **options: Any
) -> AsyncIterator[House]:
    """A front end that listens on a port of its own if it is not told where."""
    observer = Observer()
    observer.log.setFormatter(LineFormat())
    listeners = listeners or (Listener(socket.create_server(("127.0.0.1", 0))),)
    name = listeners[0].socket.getsockname()
    port = name[1] if isinstance(name, tuple) else 0
    activity = RememberingActivity(engine.config, observer.events)
    await activity.open()
    performance = Performance(engine.config.performance)
    front = FrontEnd(
        engine,
        observer,
        activity,
        Durations(),
        Hardware(),
        performance,
        **{"condition": Condition(), **options},
    )
    await front.start(listeners)
    running = House(engine, observer, activity, front, port)
    try:
        async with asyncio.timeout(limit_s):
            yield running
    finally:
        await running.close()
        await activity.close()


def model(model_id: str, **settings: Any) -> ModelConfig:
    return ModelConfig(**({"id": model_id, "cmd": "serve", "proxy": "http://127.0.0.1:1", "ttl": 0} | settings))
