"""Contract: what reaches the model, and what comes back from it (http.md, 7; filters: config.md, 9)."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Mapping

import pytest
from blackbox import JSON, Headers, Program, eventually

pytestmark = pytest.mark.private

CHAT = "/v1/chat/completions"
FORM = "application/x-www-form-urlencoded"


# ---- the body


@pytest.mark.parametrize("body", [b'{ "model" :\t"m" , "b":1.0e+2,"a":[ ]}\n', b'{"model":"m","x":"\xc3\xa4\\u00e4"}'])
def test_a_body_is_passed_on_byte_for_byte(house: Program, body: bytes) -> None:
    assert house.received("POST", CHAT, body, JSON).body == body


@pytest.mark.ours("it passes the chunks on")
def test_json_in_chunks_reaches_the_model_with_a_length(house: Program) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
    chunks = b'8\r\n{"model"\r\n5;ext=1\r\n:"m"}\r\n0\r\n\r\n'
    answer = house.exchange(f"{head}Connection: close\r\n\r\n".encode() + chunks)
    told = json.loads(answer.partition(b"\r\n\r\n")[2])
    names = {name.lower(): value for name, value in told["headers"]}
    assert base64.b64decode(told["body64"]) == b'{"model":"m"}'
    assert (names["content-length"], "transfer-encoding" in names) == ("13", False)


@pytest.mark.parametrize(
    ("sent", "got"),
    [
        ('{"model": "renamed", "a": 1}', '{"model": "real-name", "a": 1}'),
        ('{"b" : 2,  "model":"renamed"}', '{"b" : 2,  "model":"real-name"}'),
    ],
)
def test_an_edit_leaves_spacing_and_order_alone(house: Program, sent: str, got: str) -> None:
    received = house.received("POST", CHAT, sent, JSON)
    assert received.body.decode() == got
    assert received.values("content-length") == [str(len(got))]


def test_filters_strip_and_set_parameters(house: Program) -> None:
    sent = {"model": "filtered", "temperature": 0.5, "top_p": 1, "nested": {"gone": 1, "kept": 2}, "kwargs": {"a": 1}}
    expected = {"model": "filtered", "nested": {"kept": 2}, "kwargs": {"a": 1, "think": False}, "stop": ["a"]}
    assert house.received("POST", CHAT, sent).json() == expected


def test_filters_by_name_override_the_others(house: Program) -> None:
    got = house.received("POST", CHAT, {"model": "filtered:hot", "temperature": 0.5, "stop": ["mine"]}).json()
    assert got == {"model": "filtered:hot", "temperature": 1.5, "stop": ["b"], "kwargs": {"think": False}}


def test_filters_leave_other_types_and_upstream_alone(house: Program) -> None:
    text = "model=filtered&temperature=1"
    assert house.received("POST", CHAT, text, {"Content-Type": FORM}).body.decode() == text
    sent = {"model": "x", "temperature": 1}
    assert house.received("POST", f"/upstream/filtered{CHAT}", sent).json() == sent


def test_a_form_is_renamed_with_all_else_as_it_was(house: Program) -> None:
    fields = [
        b'name="prompt"\r\n\r\nhello',
        b'name="model"\r\n\r\nrenamed',
        b'name="file"; filename="\xc3\xa4 b.wav"\r\nContent-Type: audio/wav\r\n\r\n\x00\xff\r\n--\r\n',
    ]
    body = b"".join(b"--b\r\nContent-Disposition: form-data; " + field + b"\r\n" for field in fields) + b"--b--\r\n"
    got = house.received("POST", "/v1/images/edits", body, {"Content-Type": "multipart/form-data; boundary=b"})
    boundary = got.values("content-type")[0].partition("boundary=")[2].strip('"').encode()
    parts = got.body.split(b"--" + boundary)[1:-1]
    assert len(parts) == 3
    assert b"\r\n\r\nreal-name\r\n" in parts[1]
    assert b'name="prompt"' in parts[0]
    assert parts[2].endswith(b"\r\n\r\n\x00\xff\r\n--\r\n\r\n")
    assert b"\xc3\xa4 b.wav" in parts[2]


# ---- the head


@pytest.mark.parametrize(
    ("sent", "name", "got"),
    [
        ({"Host": "models.example:81"}, "host", ["models.example:81"]),
        ({}, "x-forwarded-for", ["127.0.0.1"]),
        ({"X-Forwarded-For": "1.2.3.4, 5.6.7.8"}, "x-forwarded-for", ["1.2.3.4, 5.6.7.8, 127.0.0.1"]),
        ({"Connection": "close, X-Hop", "X-Hop": "1"}, "x-hop", []),
        ({"Keep-Alive": "timeout=5"}, "keep-alive", []),
        ({"Proxy-Connection": "keep-alive"}, "proxy-connection", []),
        ({"Proxy-Authorization": "Basic eA=="}, "proxy-authorization", []),
        ({"Proxy-Authenticate": "Basic"}, "proxy-authenticate", []),
        ({"TE": "gzip"}, "te", []),
        ({"Trailer": "X-T"}, "trailer", []),
        ({"Upgrade": "h2c"}, "upgrade", []),
        ({}, "user-agent", []),
        ({"User-Agent": "curl/8"}, "user-agent", ["curl/8"]),
        ({"Cookie": "a=b; c=d"}, "cookie", ["a=b; c=d"]),
        ({"traceparent": "00-1-2-3"}, "traceparent", ["00-1-2-3"]),
        ({"X-Anything": "as it is  here"}, "x-anything", ["as it is  here"]),
        ({"Accept": "a/b, c/d;q=0.1"}, "accept", ["a/b, c/d;q=0.1"]),
        ({"Authorization": "Bearer own"}, "authorization", ["Bearer own"]),
        ({"Accept-Encoding": "br, gzip, deflate, zstd"}, "accept-encoding", ["gzip, deflate"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("path", [CHAT, "/upstream/m/v1/chat/completions"])
def test_a_local_model_gets_headers_like_this(
    house: Program, path: str, sent: Headers, name: str, got: list[str]
) -> None:
    assert house.received("POST", path, {"model": "m"}, sent).values(name) == got


def test_trailers_may_be_offered(house: Program) -> None:
    assert house.received("POST", CHAT, {"model": "m"}, {"TE": "trailers"}).values("te") in (["trailers"], [])


def test_the_encodings_of_a_get_are_left_alone(house: Program) -> None:
    assert house.received("GET", "/props?model=m", headers={"Accept-Encoding": "br, gzip"}).values(
        "accept-encoding"
    ) == ["br, gzip"]


def test_header_lines_that_repeat_all_arrive(house: Program) -> None:
    got = house.received("POST", CHAT, {"model": "m"}, [("X-A", "1"), ("X-A", "2")])
    assert ", ".join(got.values("x-a")) == "1, 2"


@pytest.mark.parametrize("path", ["/props?model=prefixed&a=%2f%20", "/upstream/prefixed/a%2Fb/c?x=1"])
def test_the_path_of_the_proxy_is_a_prefix(house: Program, path: str) -> None:
    rest = path.removeprefix("/upstream/prefixed")
    assert house.received("GET", path).path == f"/base{rest}"


# ---- peers


def test_a_peer_gets_its_own_host_key_and_name_and_none_of_the_way(house: Program, peer_url: str) -> None:
    headers = {
        "Authorization": "Bearer mine",
        "x-api-key": "mine",
        "X-Forwarded-For": "1.2.3.4",
        "X-Forwarded-Proto": "https",
        "Forwarded": "for=1.2.3.4",
        "X-Other": "kept",
    }
    got = house.received("POST", CHAT, {"model": "far/p/q", "temperature": 1, "x": 2}, headers)
    assert got.path == f"/base{CHAT}"
    assert got.json() == {"model": "p/q", "x": 2, "extra": {"deep": 1}}
    assert got.values("host") == [peer_url.removeprefix("http://")]
    assert (got.values("authorization"), got.values("x-api-key")) == (["Bearer peer-key"], ["peer-key"])
    assert [name for name, _ in got.headers if "forwarded" in name.lower()] == []
    assert got.values("x-other") == ["kept"]


def test_a_peer_without_a_key_gets_the_clients(house: Program) -> None:
    got = house.received("POST", CHAT, {"model": "plain"}, {"Authorization": "Bearer mine", "x-api-key": "other"})
    assert (got.values("authorization"), got.values("x-api-key")) == (["Bearer mine"], ["other"])


# ---- the answer


def test_status_headers_and_body_pass(house: Program) -> None:
    headers = {"X-Model": "1", "Content-Type": "text/x", "ETag": '"e"', "Location": "/elsewhere"}
    answer = house.wish("m", status=418, headers=headers, body="short and stout")
    assert (answer.status, answer.body) == (418, b"short and stout")
    assert {name: answer.header(name) for name in headers} == headers
    assert answer.header("Content-Length") == "15"


@pytest.mark.parametrize("status", [201, 204, 302, 304, 400, 401, 404, 429, 500, 503])
def test_every_status_of_the_model_passes(house: Program, status: int) -> None:
    body = "" if status in (204, 304) else '{"error":"of the model"}'
    answer = house.wish("m", status=status, body=body, headers={"Content-Length": None} if not body else {})
    assert (answer.status, answer.text) == (status, body)
    assert answer.header("WWW-Authenticate") is None


def raw(*parts: str) -> dict[str, str]:
    return {"raw64": base64.b64encode("".join(parts).encode()).decode()}


def test_hop_by_hop_headers_of_the_answer_are_removed(house: Program) -> None:
    head = "HTTP/1.1 200 OK\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: x\r\n"
    answer = house.wish("m", **raw(head, "X-Kept: 1\r\nContent-Length: 2\r\n\r\nhi"))
    assert answer.body == b"hi"
    assert [answer.header(name) for name in ("X-Hop", "Proxy-Authenticate", "X-Kept")] == [None, None, "1"]
    assert "timeout=5" not in (answer.header("Keep-Alive") or "")


def test_cookies_pass_one_by_one(house: Program) -> None:
    head = "HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 0\r\n\r\n"
    answer = house.wish("m", **raw(head))
    assert [value for name, value in answer.headers if name.lower() == "set-cookie"] == ["a=1", "b=2"]


def test_an_answer_without_a_length_passes_to_its_end(house: Program) -> None:
    assert house.wish("m", **raw("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil the end")).text == (
        "until the end"
    )


def wished(house: Program, wish: Mapping[str, object]) -> bytes:
    """Ask a model for an answer on a connection that is then closed; return all that comes."""
    body = json.dumps({"model": "m", "answer": wish}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTE: trailers\r\n"
    return house.exchange(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)


def test_early_hints_pass(house: Program) -> None:
    hints = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
    answer = wished(house, raw(hints, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"))
    assert answer.startswith(hints.encode() + b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("hints", ["", "HTTP/1.1 103 Early Hints\r\nLink: a\r\nContent-Length: 5\r\n\r\n"])
@pytest.mark.parametrize("length", [0, 5])
def test_what_has_no_body_tells_the_length_of_none(house: Program, hints: str, length: int) -> None:
    answer = wished(house, raw(hints, f"HTTP/1.1 204 No Content\r\nX-Kept: 1\r\nContent-Length: {length}\r\n\r\n"))
    assert answer.count(b"HTTP/1.1 ") == 1 + bool(hints)
    assert b"content-length" not in answer.lower()
    assert b"X-Kept: 1\r\n" in answer


def test_trailers_pass(house: Program) -> None:
    head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
    answer = wished(house, raw(head, "2\r\nhi\r\n0\r\nX-Sum: 7\r\n\r\n"))
    assert answer.endswith(b"0\r\nX-Sum: 7\r\n\r\n")


def test_a_stream_is_marked_and_passes_event_by_event(house: Program) -> None:
    end = house.folder / "stream-may-end"
    wish = {"events": ["data: 1\n\n"], "until": str(end), "headers": {"Content-Type": "text/event-stream; x=y"}}
    with house.asking("POST", CHAT, {"model": "m", "stream": True, "answer": wish}) as response:
        assert response.headers["X-Accel-Buffering"] == "no"
        assert response.headers["Content-Type"] == "text/event-stream; x=y"
        assert response.readline() == b"data: 1\n"  # the stream has not ended
        end.touch()
        assert response.read() == b"\n"


def test_an_answer_in_chunks_passes_chunk_by_chunk(house: Program) -> None:
    end = house.folder / "chunks-may-end"
    with house.asking("POST", CHAT, {"model": "m", "answer": {"events": ["one"], "until": str(end)}}) as response:
        assert response.headers["X-Accel-Buffering"] is None
        assert response.read(3) == b"one"
        end.touch()
        assert response.read() == b""


def test_a_client_that_leaves_ends_the_request_at_the_model(house: Program) -> None:
    with house.asking("POST", CHAT, {"model": "streams", "stream": True, "until": "/never"}) as response:
        assert response.readline().startswith(b"data: ")
    assert house.get("/upstream/streams/stats?left=1").json()["active"] == 0


def test_a_compressed_answer_passes_as_it_is(house: Program) -> None:
    body = base64.b64encode(b"\x1f\x8b not really").decode()
    wish = {"body64": body, "headers": {"Content-Encoding": "gzip"}}
    answer = house.post(CHAT, {"model": "m", "answer": wish}, {"Accept-Encoding": "gzip"})
    assert (answer.header("Content-Encoding"), answer.body) == ("gzip", b"\x1f\x8b not really")


# ---- websockets


UPGRADE = (
    "GET /upstream/{model}/ws HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n"
    "Sec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def head_of(connection: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1)
    return head


def test_a_websocket_is_a_way_for_bytes_in_both_directions(house: Program) -> None:
    with house.connected() as connection:
        connection.sendall(UPGRADE.format(model="m").encode())
        assert head_of(connection).startswith(b"HTTP/1.1 101 ")
        for data in (b"\x81\x05hello", b"\x00" * 70000):
            connection.sendall(data)
            assert receive(connection, len(data)) == data
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""


def receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (piece := connection.recv(size - len(data))):
        data += piece
    return data


def test_an_ignored_websocket_starts_no_model(house: Program) -> None:
    with house.connected() as connection:
        connection.sendall(UPGRADE.format(model="sockets").replace("keep-alive, ", "").encode())
        assert head_of(connection).startswith(b"HTTP/1.1 409 ")
    answer = house.get("/upstream/sockets/ws", {"Connection": "Upgrade", "Upgrade": "websocket"})
    assert answer.message == "model sockets is not loaded; ignored websocket requests cannot start it"
    assert "sockets" not in house.running()


def test_an_ignored_websocket_reaches_a_model_that_is_ready(house: Program) -> None:
    house.chat("sockets")
    with house.connected() as connection, house.events() as events:
        connection.sendall(UPGRADE.format(model="sockets").encode())
        assert head_of(connection).startswith(b"HTTP/1.1 101 ")
        snapshot = events.until(lambda kind, data: kind == "inflight")
        assert "sockets" not in [each["model"] for each in snapshot.get("requests", ())]
        connection.sendall(b"ping")
        assert receive(connection, 4) == b"ping"
    house.post("/api/models/unload/sockets")
    eventually(lambda: "sockets" not in house.running())
