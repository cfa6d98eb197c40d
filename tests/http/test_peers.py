"""Models of other servers: how they are found, what they get to see, and what is said of them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_model import OK, Call, FakeModel, chat, fixed, house_of, last, make_certificate, peered, until

from llamaswapd.config.schema import Filters, Peer, PeerTimeouts
from llamaswapd.http import upstream as upstream_module
from llamaswapd.http.connect import tls_context


def names(name: str) -> bytes:
    return b'{"model":"%b"}' % name.encode()


# ---- the name


@pytest.mark.parametrize(
    ("used", "sent"), [("far", "far"), ("p/far", "far"), ("author/far", "author/far"), ("p/author/far", "author/far")]
)
async def test_a_peer_is_asked_by_its_own_name_for_the_model(used: str, sent: str) -> None:
    async with peered(fixed(OK)) as (it, peer):
        client = await it.connect()
        client.writer.write(chat(names(used)))
        assert (await client.answer()).body == b"ok"
    assert peer.calls[0].request_line == "POST /api/v1/chat/completions HTTP/1.1"
    assert peer.calls[0].body == names(sent)


async def test_a_name_of_two_peers_is_nobodys_unless_it_is_qualified() -> None:
    async with peered(fixed(OK)) as (it, _):
        twin = it.engine.config.peers["p"].having(id="q")
        it.engine.use(it.engine.config.having(peers={**it.engine.config.peers, "q": twin}))
        client = await it.connect()
        for name, status in (("far", 404), ("p/far", 200), ("q/far", 200)):
            client.writer.write(chat(names(name)))
            assert (await client.answer()).status == status


async def test_a_model_of_ours_comes_before_a_peers_of_the_same_name() -> None:
    async with peered(fixed(OK), models=("m",)) as (it, peer):
        client = await it.connect()
        client.writer.write(chat())
        assert (await client.answer()).status == 200
        assert not peer.calls
        client.writer.write(chat(names("p/m")))
        assert (await client.answer()).status == 200
        assert peer.calls[0].body == b'{"model":"m"}'


async def test_the_peers_filters_change_the_body_and_keep_the_rest_of_it() -> None:
    filters = Filters(strip_params=("temperature",), set_params={"provider": {"zdr": True}, "model": "x"},
                      set_params_by_id={"p/far": {"n": 2}, "far": {"n": 3}})  # fmt: skip
    async with peered(fixed(OK), filters=filters) as (it, peer):
        client = await it.connect()
        client.writer.write(chat(b'{ "temperature":1, "model" : "p/far",  "k":1e0}'))
        assert (await client.answer()).status == 200
    assert peer.calls[0].body == b'{ "model" : "far",  "k":1e0,"provider":{"zdr":true},"n":2}'


async def test_a_form_keeps_all_but_the_name() -> None:
    form = (
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
        + bytes(range(256)) * 4000 + b"\r\n--b--\r\n"
    )  # fmt: skip
    async with peered(fixed(OK)) as (it, peer):
        client = await it.connect()
        body = form.replace(b"%b", b"p/author/far")
        await client.send("/v1/audio/transcriptions", "Content-Type: multipart/form-data; boundary=b",
                          f"Content-Length: {len(body)}", method="POST")  # fmt: skip
        client.writer.write(body)
        assert (await client.answer()).status == 200
    assert peer.calls[0].body == form.replace(b"%b", b"author/far")


async def test_json_in_chunks_reaches_a_peer_with_a_length_and_other_prefixes_are_cut() -> None:
    async with peered(fixed(OK)) as (it, peer):
        client = await it.connect()
        await client.send("/v/embeddings?x=%20", "Content-Type: application/json", "Transfer-Encoding: chunked",
                          method="POST")  # fmt: skip
        client.writer.write(b'f\r\n{"model":"far"}\r\n0\r\n\r\n')
        assert (await client.answer()).status == 200
    assert peer.calls[0].request_line == "POST /api/embeddings?x=%20 HTTP/1.1"
    assert peer.calls[0].headers["content-length"] == "15"


# ---- the head


async def test_a_peer_learns_neither_our_host_nor_who_asks() -> None:
    async with peered(fixed(OK)) as (it, peer):
        client = await it.connect()
        told = ("Forwarded: for=1.2.3.4", "X-Forwarded-For: 1.2.3.4", "x-forwarded-host: a", "X-FORWARDED-Proto: b")
        client.writer.write(chat(names("far"), *told, "X-Trace: 1", "Authorization: Bearer theirs", "x-api-key: k"))
        assert (await client.answer()).status == 200
    assert peer.calls[0].lines == [
        f"Host: 127.0.0.1:{peer.port}",
        "Content-Type: application/json",
        "X-Trace: 1",
        "Authorization: Bearer theirs",
        "x-api-key: k",
        "Content-Length: 15",
    ]


@pytest.mark.parametrize("header", ["Authorization: Bearer theirs", "x-api-key: theirs", "Authorization: Basic dTpw"])
async def test_the_peers_key_takes_the_place_of_the_clients(header: str) -> None:
    async with peered(fixed(OK), api_key="secret") as (it, peer):
        client = await it.connect()
        client.writer.write(chat(names("far"), header))
        assert (await client.answer()).status == 200
    assert [line for line in peer.calls[0].lines if "secret" in line or "theirs" in line or "Basic" in line] == [
        "Authorization: Bearer secret",
        "x-api-key: secret",
    ]


async def test_a_key_of_ours_is_not_shown_to_a_peer() -> None:
    async with peered(fixed(OK), config={"api_keys": ("ours",)}) as (it, peer):
        client = await it.connect()
        client.writer.write(chat(names("far"), "Authorization: Bearer ours", "x-api-key: theirs"))
        assert (await client.answer()).status == 200
    assert peer.calls[0].headers["x-api-key"] == "theirs"
    assert "authorization" not in peer.calls[0].headers


# ---- the answer, and what is said of the request


async def test_a_stream_is_passed_on_as_it_comes_and_is_in_flight_until_it_ends() -> None:
    proceed = asyncio.Event()

    async def answer(call: Call) -> None:
        await call.read_body()
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        await call.send(b"9\r\ndata: 1\n\n\r\n")
        await proceed.wait()
        await call.send(b"0\r\n\r\n")

    async with peered(answer) as (it, _):
        client = await it.connect()
        client.writer.write(chat(names("far")))
        assert (await client.head()).headers["x-accel-buffering"] == "no"
        assert await client.chunk() == b"data: 1\n\n"
        (entry,) = it.observer.inflight.snapshot().data["requests"]  # type: ignore[index]
        assert (entry["model"], entry.get("metadata")) == ("p/far", None)
        proceed.set()
        assert await client.chunk() == b""
        (row,) = it.activity.ended
    assert (row.model_id, row.sent_path, row.outcome, row.error) == ("p/far", "/v1/chat/completions", 200, "")
    assert (row.request, row.granted - row.began, row.load_began) == (names("far"), 0.0, 0.0)


async def test_no_limit_counts_for_peers_and_they_need_no_lease() -> None:
    go_on = asyncio.Event()

    async def answer(call: Call) -> None:
        await call.read_body()
        await go_on.wait()
        await call.send(OK)

    async with peered(answer) as (it, peer):
        it.engine.ready.clear()  # nobody would be granted anything
        clients = [await it.connect() for _ in range(60)]
        for client in clients:
            client.writer.write(chat(names("far")))
        await until(lambda: len(peer.calls) == 60)
        assert (it.engine.leases, len(it.observer.inflight)) == (0, 60)
        go_on.set()
        assert {(await client.answer()).status for client in clients} == {200}


async def test_a_client_that_leaves_ends_the_request_at_the_peer() -> None:
    left = asyncio.Event()

    async def answer(call: Call) -> None:
        await call.read_body()
        await call.left()
        left.set()

    async with peered(answer) as (it, peer):
        client = await it.connect()
        client.writer.write(chat(names("far")))
        await until(lambda: bool(peer.calls))
        client.close()
        await left.wait()
        await until(lambda: bool(it.activity.ended))
    assert (it.activity.ended[0].outcome, it.activity.ended[0].error) == (499, "")


# ---- what goes wrong


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


async def test_a_peer_that_cannot_be_reached_is_a_502_that_names_it() -> None:
    async with peered(fixed(OK), proxy=f"http://127.0.0.1:{unused_port()}") as (it, _):
        client = await it.connect()
        client.writer.write(chat(names("far")))
        answer = await client.answer()
        assert (answer.status, answer.json()["error"]["code"]) == (502, "bad_gateway")
        message = answer.json()["error"]["message"]
        assert message.startswith('peer proxy error: peer "p": http://127.0.0.1:')
        (row,) = it.activity.ended
    assert (row.outcome, row.error, row.content_type, row.request) == (502, message, "application/json", None)


async def test_a_peer_that_closes_without_an_answer_is_a_502() -> None:
    async with peered(last(b"")) as (it, _):
        client = await it.connect()
        client.writer.write(chat(names("far")))
        answer = await client.answer()
    assert (answer.status, answer.json()["error"]["message"].split(": ")[0]) == (502, "peer proxy error")


async def test_a_peer_that_does_not_begin_to_answer_in_time_is_a_502() -> None:
    async def answer(call: Call) -> None:
        await call.read_body()
        await call.left()

    async with peered(answer, timeouts=PeerTimeouts(response_header=1)) as (it, _):
        client = await it.connect()
        client.writer.write(chat(names("far")))
        answer = await client.answer()
        assert answer.status == 502
        assert answer.json()["error"]["message"].endswith("did not begin to answer within 1 s")


async def test_the_time_that_an_upload_takes_is_not_the_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_module, "RELIEVE_AFTER_S", 0.01)

    async def answer(call: Call) -> None:
        await call.reader.readexactly(15)
        go_on.set()
        await call.reader.readexactly(10)
        await call.send(OK)

    go_on = asyncio.Event()
    async with peered(answer, timeouts=PeerTimeouts(response_header=1)) as (it, _):
        client = await it.connect()
        whole = chat(names("far") + b" " * 10)
        client.writer.write(whole[:-10])
        await go_on.wait()
        await asyncio.sleep(1.2)  # longer than the peer may take
        client.writer.write(whole[-10:])
        assert (await client.answer()).body == b"ok"


async def test_a_peer_that_dies_in_the_middle_of_a_stream_shows() -> None:
    start = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n: \r\n"
    async with peered(last(start)) as (it, _):
        client = await it.connect()
        client.writer.write(chat(names("far")))
        await client.head()
        text = (await client.reader.read()).decode()
        (row,) = it.activity.ended
    assert 'peer proxy error: peer \\"p\\"' in text
    assert not text.endswith("0\r\n\r\n")
    assert (row.outcome, row.error.split(":")[0]) == (200, "peer proxy error")


# ---- /upstream


async def test_upstream_reaches_peers_without_a_look_at_the_body() -> None:
    async with peered(fixed(OK), filters=Filters(strip_params=("x",))) as (it, peer):
        client = await it.connect()
        question = b'{"model":"p/far","x":1}'
        targets = (
            "/upstream/p/author/far/v1/chat/completions?a=%2F",
            "/upstream/p%2Ffar/v1/embeddings",
            "/upstream/far/x",
        )
        for target in targets:
            client.writer.write(chat(question, path=target))
            assert (await client.answer()).status == 200
        rows = it.activity.ended
    assert [call.request_line.split()[1] for call in peer.calls] == [
        "/api/v1/chat/completions?a=%2F", "/api/v1/embeddings", "/api/x",
    ]  # fmt: skip
    assert {call.body for call in peer.calls} == {question}
    assert [(row.model_id, row.sent_path) for row in rows] == [
        ("p/author/far", "/v1/chat/completions"), ("p/far", "/v1/embeddings"),
    ]  # fmt: skip


async def test_assets_of_peers_are_fetched() -> None:
    async with peered(fixed(OK)) as (it, _):
        assert (await it.ask("/upstream/p/far/app.js")).body == b"ok"
        redirected = await it.ask("/upstream/p/far?x")
        assert (redirected.status, redirected.headers["location"]) == (301, "/upstream/p/far/?x")


# ---- TLS


@pytest.fixture
def fresh_trust() -> Iterator[None]:
    """Have the system's certificates read anew, before and after."""
    tls_context.cache_clear()
    yield
    tls_context.cache_clear()


async def test_a_peer_with_tls_is_reached_if_its_certificate_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_trust: None
) -> None:
    tls = make_certificate(tmp_path, "IP:127.0.0.1")
    peer = FakeModel(fixed(OK))
    await peer.start(tls)
    there = {"p": Peer(id="p", proxy=f"https://127.0.0.1:{peer.port}/v2", models=("far",))}
    async with house_of(fixed(OK), {"peers": there}) as (it, _):
        client = await it.connect()
        client.writer.write(chat(names("far")))
        refused = await client.answer()
        assert (refused.status, "certificate" in refused.json()["error"]["message"]) == (502, True)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert"))
        tls_context.cache_clear()
        for _ in range(2):
            client.writer.write(chat(names("far")))
            assert (await client.answer()).body == b"ok"
    await peer.close()
    assert [call.connection for call in peer.calls] == [peer.connections] * 2
    assert peer.calls[0].request_line == "POST /v2/v1/chat/completions HTTP/1.1"


@pytest.mark.parametrize("answer", ["silence", "nonsense", "end"])
async def test_a_peer_that_speaks_no_tls_is_a_502(answer: str, caplog: pytest.LogCaptureFixture) -> None:
    async def no_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if answer == "nonsense":
            writer.write(b"SSH-2.0-x\r\n")
        if answer != "end":
            await reader.read()
        writer.close()

    server = await asyncio.start_server(no_tls, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    limits = PeerTimeouts(connect=0, tls_handshake=1)
    there = {"p": Peer(id="p", proxy=f"https://127.0.0.1:{port}", models=("far",), timeouts=limits)}
    async with house_of(fixed(OK), {"peers": there}) as (it, _):
        client = await it.connect()
        client.writer.write(chat(names("far")))
        told = await client.answer()
    server.close()
    assert (told.status, told.json()["error"]["message"].partition(": ")[0]) == (502, "peer proxy error")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
