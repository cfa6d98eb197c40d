"""A model's server that sends exactly the bytes it is told to, and an engine that grants what it is told to."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from standins import Engine, House, house, model

from llamaswapd.config.schema import ModelConfig, Peer
from llamaswapd.http.server import Listener

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Call:
    """One request as the model's server sees it."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes, connection: int
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.connection = connection
        self.request_line, *lines = head.decode("latin-1").split("\r\n")[:-2]
        self.lines = lines
        self.headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        self.left_early = False
        self.body = b""

    async def read_body(self) -> bytes:
        if "transfer-encoding" in self.headers:
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                self.body += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readexactly(2)
        else:
            self.body = await self.reader.readexactly(int(self.headers.get("content-length", 0)))
        return self.body

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def left(self) -> None:
        """Wait until the other side has ended the connection."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass


Answer = Callable[[Call], Awaitable[None]]


class FakeModel:
    """Listens on a loopback port and lets `answer` see to each request."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.calls: list[Call] = []
        self.connections = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self, tls: ssl.SSLContext | None = None) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for _ in range(3):
            await asyncio.sleep(0)  # connections that have been closed are gone some turns of the loop later

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                call = Call(reader, writer, head, number)
                self.calls.append(call)
                await self.answer(call)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def fixed(data: bytes) -> Answer:
    """Read the whole request, then answer these bytes."""

    async def answer(call: Call) -> None:
        await call.read_body()
        await call.send(data)

    return answer


def last(data: bytes) -> Answer:
    """The same, and close the connection."""

    async def answer(call: Call) -> None:
        await call.read_body()
        await call.send(data)
        call.close()

    return answer


async def until(is_so: Callable[[], bool]) -> None:
    """Let the loop run until something is so that nobody tells."""
    while not is_so():  # noqa: ASYNC110, there is no event
        await asyncio.sleep(0)


class Lease:
    def __init__(self, engine: LeasingEngine, model: ModelConfig) -> None:
        self.model = model
        self.requested = self.granted_at = self.load_began = 0.0
        self._engine = engine

    @property
    def position(self) -> int | None:
        return self._engine.position

    @property
    def is_granted(self) -> bool:
        return self._engine.ready.is_set() and self._engine.failure is None

    def __enter__(self) -> Lease:
        self._engine.leases += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        self._engine.leases -= 1

    async def granted(self) -> None:
        self._engine.waited.set()
        await self._engine.ready.wait()
        if self._engine.failure is not None:
            raise self._engine.failure

    async def cause(self, within_s: float | None = None) -> str | None:
        return await self._engine.explain()


class LeasingEngine(Engine):
    """Grants leases while `ready` is set."""

    def __init__(self, *models: ModelConfig, **config: Any) -> None:
        super().__init__(*models, **config)
        self.leases = 0
        self.ready = asyncio.Event()
        self.ready.set()
        self.waited = asyncio.Event()  # somebody waits for a lease
        self.position: int | None = None  # in the queue
        self.failure: Exception | None = None
        self.cause: str | None = None

    async def explain(self) -> str | None:
        return self.cause

    def lease(self, model_id: str) -> Lease:
        return Lease(self, self.config.models[model_id])

    def lease_now(self, model_id: str) -> Lease | None:
        lease = Lease(self, self.config.models[model_id])
        return lease.__enter__() if lease.is_granted else None

    def leave(self, lease: Lease, now: float) -> None:
        lease.release()


@asynccontextmanager
async def house_of(
    answer: Answer,
    config: dict[str, Any] | None = None,
    limit_s: float = 20,
    others: Sequence[ModelConfig] = (),
    listeners: Sequence[Listener] = (),
    **settings: Any,
) -> AsyncIterator[tuple[House, FakeModel]]:
    """A front end with a model that runs, `m`, and perhaps others of the same server, by `proxy` "" in their config."""
    server = FakeModel(answer)
    await server.start()
    others = [each if each.proxy else each.having(proxy=server.url) for each in others]
    engine = LeasingEngine(model("m", **({"proxy": server.url} | settings)), *others, **(config or {}))
    try:
        async with house(engine, limit_s, listeners) as it:
            yield it, server
            for client in it._clients:
                client.close()
            await it.front.drained()
            assert engine.leases == 0
            assert len(it.observer.inflight) == 0
    finally:
        await server.close()


@asynccontextmanager
async def peered(
    answer: Answer,
    models: Sequence[str] = ("far", "author/far"),
    config: dict[str, Any] | None = None,
    proxy: str = "{url}/api/",
    **settings: Any,
) -> AsyncIterator[tuple[House, FakeModel]]:
    """A front end with a model of its own, `m`, and a peer, `p`, which is the server that is yielded."""
    server = FakeModel(answer)
    await server.start()
    peer = Peer(id="p", proxy=proxy.format(url=server.url), models=tuple(models), **settings)
    try:
        async with house_of(fixed(OK), {"peers": {"p": peer}} | (config or {})) as (it, _):
            yield it, server
    finally:
        await server.close()


def make_certificate(directory: Path, *names: str) -> ssl.SSLContext:
    """Make a certificate for these hosts, `cert` in the directory; return what a server of theirs needs."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    kind = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=x -keyout key -out cert"
    subprocess.run([*kind.split(), "-addext", f"subjectAltName={','.join(names)}"], cwd=directory, check=True,
                   capture_output=True)  # fmt: skip
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(directory / "cert", directory / "key")
    return tls


def chat(
    body: bytes = b'{"model":"m"}', *lines: str, version: str = "1.1", path: str = "/v1/chat/completions"
) -> bytes:
    """A chat request, as bytes."""
    head = (f"POST {path} HTTP/{version}", "Host: models", "Content-Type: application/json", *lines)
    return "\r\n".join((*head, f"Content-Length: {len(body)}", "", "")).encode() + body
