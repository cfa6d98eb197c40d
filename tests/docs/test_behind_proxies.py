"""What docs/ says of nginx and Caddy, done with nginx and Caddy."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from daemon_support import COMMAND, TRUST_ALL, WAIT_S, Daemon, clear_away, command, daemon, free_ports
from pages import the

pytestmark = pytest.mark.private

ROOT = Path(__file__).parents[2]
ECHO = ROOT / "tests" / "models" / "echo.py"
KEY = "sk-of-the-proxy"
HOST = "models.example.org"
UPLOAD_BYTES = 100 << 20

NGINX = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr warn;
events {{ }}
http {{
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s; access_log off;
  {config}
}}
"""

CADDY = """
{{
	admin off
	auto_https disable_redirects
	local_certs
	skip_install_trust
	https_port {port}
	storage file_system {folder}/caddy
}}
{config}
"""


@pytest.fixture
def folder(private: object) -> Iterator[Path]:
    """A folder for the daemon and the proxy, with a short path, for sockets."""
    path = Path(tempfile.mkdtemp(prefix="ls-", dir="/tmp"))
    yield path
    clear_away(path)
    shutil.rmtree(path)


def program(name: str) -> str:
    """Return where a program is; skip the test where it is not, unless $LLAMASWAPD_NO_SKIP is set and it is nginx."""
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if path is None and name == "nginx" and os.environ.get("LLAMASWAPD_NO_SKIP"):
        pytest.fail("nginx is not installed")
    return path or pytest.skip(f"{name} is not installed")


def certificate(folder: Path) -> None:
    """Have `folder` hold a certificate and its key."""
    subject = ["-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}"]
    files = ["-keyout", f"{folder}/key", "-out", f"{folder}/pem"]
    make = ["openssl", "req", "-x509", "-nodes", "-newkey", "rsa:2048", "-days", "2", *subject, *files]
    subprocess.run(make, check=True, capture_output=True)


def replaced(text: str, *changes: tuple[str, str]) -> str:
    """Put what is true of this test in place of what the page says; each must be there."""
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return text


def nginx_config(folder: Path, port: int, upstream: str) -> Path:
    """Write the page's configuration, to listen on a port of this machine in front of `upstream`."""
    certificate(folder)
    config = replaced(
        the("behind-nginx", "nginx"),
        ("127.0.0.1:8080", upstream),
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("    listen [::]:443 ssl;\n", ""),
        ("/etc/ssl/models.example.org.pem", f"{folder}/pem"),
        ("/etc/ssl/private/models.example.org.key", f"{folder}/key"),
    )
    file = folder / "nginx.conf"
    file.write_text(NGINX.format(folder=folder, config=config))
    return file


@asynccontextmanager
async def nginx(folder: Path, upstream: str) -> AsyncIterator[str]:
    port = free_ports()
    file = nginx_config(folder, port, upstream)
    path = program("nginx")
    assert "[warn]" not in accepted(path, "-t", "-c", file, "-p", folder)
    async with running(port, path, "-c", file, "-p", folder):
        yield f"https://{HOST}:{port}"


@asynccontextmanager
async def caddy(folder: Path, upstream: str) -> AsyncIterator[str]:
    port = free_ports()
    file = folder / "Caddyfile"
    config = replaced(the("behind-caddy", "caddy"), ("127.0.0.1:8080", upstream))
    file.write_text(CADDY.format(folder=folder, port=port, config=config))
    path = program("caddy")
    env = {**os.environ, "HOME": str(folder)}
    accepted(path, "validate", "--config", file, "--adapter", "caddyfile", env=env)
    async with running(port, path, "run", "--config", file, "--adapter", "caddyfile", env=env):
        yield f"https://{HOST}:{port}"


def accepted(*argv: str | Path, env: dict[str, str] | None = None) -> str:
    """Have a program look at a configuration, which it must accept; return what it says."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return done.stderr


@asynccontextmanager
async def running(port: int, *argv: str | Path, env: dict[str, str] | None = None) -> AsyncIterator[None]:
    """Run a proxy, from when it takes connections."""
    process = await asyncio.create_subprocess_exec(*argv, env=env, stderr=asyncio.subprocess.DEVNULL)
    try:
        async with asyncio.timeout(WAIT_S):
            while not await listens(port):
                assert process.returncode is None, f"{argv[0]} ended"
                await asyncio.sleep(0.01)  # nothing tells
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def listens(port: int) -> bool:
    """Tell whether it takes connections, and has its certificate, which Caddy makes first."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=TRUST_ALL, server_hostname=HOST)
    except OSError:  # ssl's errors among them
        return False
    writer.close()
    return True


class ToThisMachine(aiohttp.abc.AbstractResolver):
    """Every name is this machine, so that clients can ask for the name that the page has."""

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[aiohttp.abc.ResolveResult]:
        return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": 2, "proto": 0, "flags": 0}]

    async def close(self) -> None:
        pass


def asking() -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(resolver=ToThisMachine(), ssl=False)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(50))


# A model that says at once how long its answer is, and the second half of it when a file is there.
HALVES = """
import json, os, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send(b"")

    def do_POST(self):
        until = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["until"]
        self.send(b"abc", b"def", until)

    def send(self, first, second=b"", until="/"):
        self.send_response(200)
        self.send_header("Content-Type", "audio/mpeg")
        self.send_header("Content-Length", str(len(first + second)))
        self.end_headers()
        self.wfile.write(first)
        while not os.path.exists(until):
            time.sleep(0.005)
        self.wfile.write(second)

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def config(folder: Path) -> dict[str, object]:
    halves = folder / "halves.py"
    halves.write_text(HALVES)
    programs = {"m": ECHO, "halves": halves}
    return {
        "models": {name: command(f"{sys.executable} -S -E {file} ${{PORT}}") for name, file in programs.items()},
        "apiKeys": [KEY],
        "logToStdout": "both",
    }


@dataclass(frozen=True)
class Front:
    url: str
    daemon: Daemon


@pytest.fixture(params=[nginx, caddy], ids=["nginx", "caddy"])
async def front(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Front]:
    """A proxy as the page has it, with a daemon behind it."""
    program(request.param.__name__)
    async with daemon(folder, config(folder)) as it, request.param(folder, it.url.removeprefix("http://")) as url:
        yield Front(url, it)


def key() -> dict[str, str]:
    return {"Authorization": f"Bearer {KEY}"}


def wanted(**answer: object) -> dict[str, object]:
    return {"model": "m", "answer": answer}


@pytest.mark.parametrize("kind", ["text/event-stream", "audio/mpeg"])
async def test_what_a_model_has_said_comes_while_it_goes_on(front: Front, folder: Path, kind: str) -> None:
    end = folder / "end"
    answer = wanted(events=["data: 1\n\n", "data: 2\n\n"], until=str(end), headers={"Content-Type": kind})
    async with asking() as session, session.post(f"{front.url}/v1/chat/completions", json=answer, headers=key()) as it:
        assert it.status == 200
        assert await it.content.readexactly(18) == b"data: 1\n\ndata: 2\n\n"
        end.touch()
        assert await it.content.read() == b""


async def test_an_answer_of_known_length_is_not_held_back_either(front: Front, folder: Path) -> None:
    question = {"model": "halves", "until": str(folder / "end")}
    async with asking() as session, session.post(f"{front.url}/v1/audio/speech", json=question, headers=key()) as it:
        assert it.headers["Content-Length"] == "6"
        assert await it.content.readexactly(3) == b"abc"
        (folder / "end").touch()
        assert await it.content.read() == b"def"


async def test_an_upload_of_100_mb_arrives_whole(front: Front) -> None:
    body = b'{"model": "m", "messages": "' + b"x" * UPLOAD_BYTES + b'"}'
    headers = {**key(), "Content-Type": "application/json", "X-Answer": '{"body": "received"}'}
    there = f"{front.url}/v1/chat/completions"
    async with asking() as session, session.post(there, data=io.BytesIO(body), headers=headers) as it:
        assert (it.status, await it.text()) == (200, "received")


async def test_the_model_is_loaded_while_an_upload_is_still_on_its_way(front: Front) -> None:
    first, last = b'{"model": "m", "messages": "' + b"x" * 100_000, b'"}'
    length = f"Content-Length: {len(first) + len(last)}"
    async with connection(front.url) as (reader, writer):
        writer.write(head("POST /v1/chat/completions", "Content-Type: application/json", length) + first)
        await front.daemon.logged("Health check passed")
        writer.write(last)
        assert (await reader.readline()).split()[1] == b"200"


async def test_websockets_below_upstream_talk_both_ways(front: Front) -> None:
    upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
    async with connection(front.url) as (reader, writer):
        writer.write(head("GET /upstream/m/ws", *upgrade, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="))
        assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        for word in (b"one", b"two"):
            writer.write(word)
            assert await reader.readexactly(3) == word


@asynccontextmanager
async def connection(url: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    port = int(url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=TRUST_ALL, server_hostname=HOST)
    async with asyncio.timeout(WAIT_S):
        yield reader, writer
    writer.close()


def head(what: str, *lines: str) -> bytes:
    own = (f"{what} HTTP/1.1", f"Host: {HOST}", f"Authorization: Bearer {KEY}")
    return "\r\n".join((*own, *lines, "", "")).encode()


async def test_a_key_passes_in_either_header_and_none_is_refused(front: Front) -> None:
    for headers, status in (({}, 401), (key(), 200), ({"x-api-key": KEY}, 200), ({"x-api-key": "another"}, 401)):
        async with asking() as session, session.get(f"{front.url}/v1/models", headers=headers) as it:
            assert it.status == status, headers


async def test_the_model_learns_the_client_and_the_name_and_the_log_the_client(folder: Path) -> None:
    program("nginx")
    async with daemon(folder, config(folder)) as it, nginx(folder, it.url.removeprefix("http://")) as url:
        told = await told_by_model(url)
        print(told)
        assert told["x-forwarded-proto"] == "https"
        assert told["x-forwarded-for"].startswith("203.0.113.7, ")
        assert "203.0.113.7" in await it.logged("/v1/chat/completions")


async def told_by_model(url: str) -> dict[str, str]:
    headers = {**key(), "X-Forwarded-For": "203.0.113.7"}
    async with (
        asking() as session,
        session.post(f"{url}/v1/chat/completions", json={"model": "m"}, headers=headers) as it,
    ):
        assert it.status == 200
        return {name.lower(): value for name, value in (await it.json())["headers"]}


# Passes a socket as systemd does, and becomes the program.
WITH_A_SOCKET = """
import os, socket, sys
path, *argv = sys.argv[1:]
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_FDNAMES="http", LISTEN_PID=str(os.getpid()))
os.execvp(argv[0], argv)
"""


async def test_nginx_reaches_it_by_the_unix_socket_of_the_page(folder: Path) -> None:
    program("nginx")
    unit = the("behind-nginx", "systemd", "llamaswapd.socket")
    (path,) = (line.removeprefix("ListenStream=") for line in unit.splitlines() if "ListenStream=/" in line)
    assert f"server unix:{path};" in the("behind-nginx", "nginx", "upstream")
    passing = (sys.executable, "-c", WITH_A_SOCKET, f"{folder}/sock", *COMMAND)
    async with daemon(folder, config(folder), program=passing), nginx(folder, f"unix:{folder}/sock") as url:
        assert (await told_by_model(url))["x-forwarded-for"] == "203.0.113.7, 127.0.0.1"
