"""The proxy that the environment names, on the way to models and peers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from fake_model import OK, Call, FakeModel, chat, fixed, house_of, make_certificate
from standins import House

from llamaswapd.config.schema import Peer, PeerTimeouts
from llamaswapd.errors import UpstreamError
from llamaswapd.http.connect import tls_context
from llamaswapd.http.pool import parse_base
from llamaswapd.http.tunnel import by_way_of, is_loopback


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what the environment of the tests names."""
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def way(url: str) -> str | None:
    """Where a connection to this URL goes instead, None if it goes there."""
    found = by_way_of(parse_base(url)[0])
    return found and f"{found.host}:{found.port}"


# ---- which way


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy"])
def test_the_environment_names_the_proxy_for_a_scheme(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "http://squid:3128")
    assert (way("http://gpu:80"), way("https://gpu")) == ("squid:3128", None)
    monkeypatch.setenv("HTTPS_PROXY", "squid2")
    assert (way("http://gpu:80"), way("https://gpu")) == ("squid:3128", "squid2:80")


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST", "x.localhost", "127.0.0.1", "127.9.9.9", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_a_server_on_this_machine_is_reached_directly(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://squid:3128")
    assert way(f"http://{host}:5800") is None


def test_what_only_looks_like_this_machine_is_another() -> None:
    assert not any(is_loopback(host) for host in ("localhost.example", "127.0.0.1.example", "10.0.0.1", "::2"))


@pytest.mark.parametrize(
    ("listed", "host", "is_direct"),
    [
        ("*", "gpu", True),
        ("gpu", "gpu", True),
        ("GPU", "gpu", True),
        ("a, gpu ,b", "gpu", True),
        ("", "gpu", False),
        (",,", "gpu", False),
        ("gpu", "gpu2", False),
        ("gpu", "xgpu", False),
        ("example.com", "example.com", True),
        ("example.com", "a.b.example.com", True),
        ("example.com", "badexample.com", False),
        (".example.com", "a.example.com", True),
        (".example.com", "example.com", False),
        ("*.example.com", "a.example.com", True),
        ("*.example.com", "example.com", False),
        ("gpu:8080", "gpu:8080", True),
        ("gpu:8080", "gpu:8081", False),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.1/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.0.0.0/8", "gpu", False),
        ("10.0.0.0/99", "10.1.2.3", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3:80", "10.1.2.3", True),
        ("10.1.2.3:81", "10.1.2.3", False),
        ("fd00::/8", "[fd00::5]", True),
        ("fd00::5", "[fd00::5]", True),
        ("[fd00::5]", "[fd00::5]", True),
        ("[fd00::5]:80", "[fd00::5]", True),
        ("2.3", "10.1.2.3", False),
    ],
)
def test_no_proxy_lists_hosts_domains_and_networks(
    listed: str, host: str, is_direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://squid:3128")
    monkeypatch.setenv("NO_PROXY", listed)
    assert way(f"http://{host}") == (None if is_direct else "squid:3128")


@pytest.mark.parametrize("url", ["socks5://x:1", "http://x:y", "http://", "https://x"])
def test_a_proxy_that_cannot_be_used_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", url)
    with pytest.raises(UpstreamError, match='HTTP_PROXY "'):
        way("http://gpu")


# ---- plain HTTP


async def test_a_proxy_is_asked_with_the_whole_url_and_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    squid = FakeModel(fixed(OK))
    await squid.start()
    monkeypatch.setenv("HTTP_PROXY", f"http://us%65r:p%40ss@127.0.0.1:{squid.port}")
    async with house_of(fixed(OK), proxy="http://gpu.test:5800/base") as (it, _):
        client = await it.connect()
        for _ in range(2):
            client.writer.write(chat(b'{"model":"m"}', "Proxy-Authorization: Basic Y2xpZW50"))
            assert (await client.answer()).body == b"ok"
        assert (await it.ask("/upstream/m/x?y")).body == b"ok"
    await squid.close()
    assert [call.request_line.split()[1] for call in squid.calls] == [
        *["http://gpu.test:5800/base/v1/chat/completions"] * 2, "http://gpu.test:5800/base/x?y",
    ]  # fmt: skip
    for call in squid.calls:
        assert [line for line in call.lines if line.startswith("Proxy-")] == ["Proxy-Authorization: Basic dXNlcjpwQHNz"]
        assert call.headers["host"] == "models"


async def test_a_proxy_without_a_password_is_asked_on_the_express_way_too(monkeypatch: pytest.MonkeyPatch) -> None:
    squid = FakeModel(fixed(OK))
    await squid.start()
    monkeypatch.setenv("http_proxy", f"127.0.0.1:{squid.port}")
    async with house_of(fixed(OK), proxy="http://gpu.test") as (it, _):
        client = await it.connect()
        client.writer.write(chat())
        assert (await client.answer()).body == b"ok"
    await squid.close()
    assert squid.calls[0].request_line.split()[1] == "http://gpu.test:80/v1/chat/completions"
    assert "proxy-authorization" not in squid.calls[0].headers


async def test_a_proxy_that_is_not_there_is_a_502(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    async with house_of(fixed(OK), proxy="http://gpu.test") as (it, _):
        client = await it.connect()
        client.writer.write(chat())
        assert (await client.answer()).status == 502


async def test_a_proxy_that_cannot_be_used_is_a_502_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "socks5://x")
    async with house_of(fixed(OK), proxy="http://gpu.test") as (it, _):
        client = await it.connect()
        client.writer.write(chat())
        answer = await client.answer()
    assert (answer.status, 'HTTP_PROXY "socks5://x"' in answer.json()["error"]["message"]) == (502, True)


# ---- TLS


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A certificate for gpu.test that is trusted; what a server needs that has it."""
    tls = make_certificate(tmp_path, "DNS:gpu.test")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert"))
    tls_context.cache_clear()
    yield tls
    tls_context.cache_clear()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def by_tunnel(answer: Any, tls: Any, monkeypatch: pytest.MonkeyPatch, user: str = "") -> AsyncIterator[House]:
    """A peer, `https://gpu.test`, that is reached by way of a proxy which answers CONNECT with `answer`.

    True: it opens the tunnel. Its calls are in `house.squid`, the peer's in `house.gpu`.
    """

    async def connect(call: Call) -> None:
        if answer is not True:
            await call.send(answer)
            call.close()
            return
        reader, writer = await asyncio.open_connection("127.0.0.1", gpu.port)
        await call.send(b"HTTP/1.1 200 Connection established\r\nX: y\r\n\r\n")
        async with asyncio.TaskGroup() as group:
            group.create_task(pump(call.reader, writer))
            group.create_task(pump(reader, call.writer))

    squid, gpu = FakeModel(connect), FakeModel(fixed(OK))
    await squid.start()
    await gpu.start(tls)
    monkeypatch.setenv("HTTPS_PROXY", f"http://{user}127.0.0.1:{squid.port}")
    peer = Peer(id="p", proxy="https://gpu.test/v2", models=("far",), timeouts=PeerTimeouts(connect=2, tls_handshake=2))
    async with house_of(fixed(OK), {"peers": {"p": peer}}) as (it, _):
        it.squid, it.gpu = squid, gpu  # type: ignore[attr-defined]
        yield it
    await squid.close()
    await gpu.close()


async def ask_far(it: House) -> tuple[int, str]:
    client = await it.connect()
    client.writer.write(chat(b'{"model":"far"}'))
    answer = await client.answer()
    return answer.status, answer.body.decode()


async def test_a_peer_with_tls_is_reached_through_a_tunnel(trusted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with by_tunnel(True, trusted, monkeypatch, "u:p@") as it:
        for _ in range(2):
            assert await ask_far(it) == (200, "ok")
        squid, gpu = it.squid, it.gpu  # type: ignore[attr-defined]
    assert [call.request_line for call in squid.calls] == ["CONNECT gpu.test:443 HTTP/1.1"]
    assert squid.calls[0].lines == ["Host: gpu.test:443", "Proxy-Authorization: Basic dTpw"]
    assert [call.request_line for call in gpu.calls] == ["POST /v2/v1/chat/completions HTTP/1.1"] * 2
    assert "proxy-authorization" not in gpu.calls[0].headers


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "HTTP/1.1 407 Proxy Authentication Required"),
        (b"HTTP/1.1 2000 x\r\n\r\n", "HTTP/1.1 2000 x"),
        (b"SSH-2.0 200 x\r\n\r\n", "SSH-2.0 200 x"),
        (b"", "''"),
        (b"HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK"),
        (b"\0" * 70_000, "\\\\x00"),
    ],
    ids=["407", "2000", "ssh", "nothing", "half a head", "garbage"],  # pytest puts them into the environment
)
async def test_a_proxy_that_opens_no_tunnel_is_a_502_that_tells_its_answer(
    answer: bytes, shown: str, trusted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with by_tunnel(answer, trusted, monkeypatch) as it:
        status, body = await ask_far(it)
        assert (status, len(it.squid.calls)) == (502, 1)  # type: ignore[attr-defined]
    assert "peer proxy error: " in body
    assert "opens no tunnel to gpu.test:443" in body
    assert shown in body
    assert len(body) < 2000


async def test_a_tunnel_that_does_not_lead_to_tls_is_a_502(
    trusted: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with by_tunnel(b"HTTP/1.1 200 OK\r\n\r\nplain text and no TLS", trusted, monkeypatch) as it:
        assert (await ask_far(it))[0] == 502
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_tunnel_to_somebody_else_is_a_502(
    tmp_path: Path, trusted: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "other").mkdir()
    other = make_certificate(tmp_path / "other", "DNS:gpu.test")
    async with by_tunnel(True, other, monkeypatch) as it:
        status, body = await ask_far(it)
        assert not it.gpu.calls  # type: ignore[attr-defined]
    assert (status, "certificate" in body) == (502, True)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_client_that_leaves_while_the_tunnel_is_made_leaves_nothing(
    trusted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = asyncio.Event()

    async with by_tunnel(True, trusted, monkeypatch) as it:

        async def wait(call: Call) -> None:
            await call.left()
            left.set()

        squid = it.squid  # type: ignore[attr-defined]
        squid.answer = wait
        client = await it.connect()
        client.writer.write(chat(b'{"model":"far"}'))
        await it.until(lambda: bool(squid.calls))
        client.close()
        await left.wait()


async def test_a_proxy_that_never_answers_is_a_502(trusted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def wait(call: Call) -> None:
        await call.left()

    async with by_tunnel(True, trusted, monkeypatch) as it:
        it.squid.answer = wait  # type: ignore[attr-defined]
        peer = it.engine.config.peers["p"]
        short = peer.having(timeouts=PeerTimeouts(connect=1, tls_handshake=0))
        it.engine.use(it.engine.config.having(peers={"p": short}))
        status, body = await ask_far(it)
    assert (status, "does not take connections: nothing for" in body) == (502, True)
