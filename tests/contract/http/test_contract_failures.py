"""Contract: what clients see when things fail (http.md, 8)."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import time

import pytest
from blackbox import JSON, Program, eventually, in_background

pytestmark = pytest.mark.private

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("no-command", "unspecific error: unable to get sanitized command: empty command"),
        ("no-proxy", "unspecific error: upstream proxy missing"),
        ("no-program", "unspecific error: failed to start command '/does/not/exist --some flag with blanks': "),
        ("no-permission", "unspecific error: failed to start command '/etc/passwd': "),
        ("leaves", "unspecific error: upstream command exited prematurely"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/upstream/{}/x"])
def test_a_model_that_cannot_start_is_500_with_the_reason(broken: Program, path: str, model: str, message: str) -> None:
    for _ in range(2):  # the next request tries again
        answer = broken.post(path.format(model), {"model": model})
        assert (answer.status, answer.message[: len(message)]) == (500, message)
    assert model not in broken.running()


def test_the_system_says_why_a_program_cannot_run(broken: Program) -> None:
    assert "no such file or directory" in broken.chat("no-program").message.lower()
    assert "permission denied" in broken.chat("no-permission").message.lower()


@pytest.mark.ours("the envelope is an event of the stream")
def test_a_failure_while_loading_ends_the_loading_stream_with_the_envelope(broken: Program) -> None:
    answer = broken.chat("leaves-loading", stream=True)
    assert (answer.status, answer.header("Content-Type")) == (200, "text/event-stream")
    data = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    assert data[-1]["src"] == "llama-swap"
    assert "upstream command exited prematurely" in data[-1]["error"]["message"]
    assert broken.chat("leaves-loading").status == 500


def test_a_loading_stream_names_the_model_and_goes_on_with_its_own(broken: Program) -> None:
    answer = broken.chat("loads", stream=True, n=2)
    assert (answer.status, answer.header("Content-Type")) == (200, "text/event-stream")
    assert answer.header("Cache-Control") == "no-cache"
    events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events[:-1]]
    thoughts = "".join(delta.get("reasoning_content", "") for delta in deltas)
    assert "llama-swap loading model: loads" in thoughts
    assert "Done! (" in thoughts
    assert [delta["content"] for delta in deltas if "content" in delta] == ["0 ", "1 "]


@pytest.mark.parametrize("ask_unload", ["/unload", "/api/models/unload", "/api/models/unload/never-ready"])
def test_an_unload_refuses_those_who_wait(broken: Program, ask_unload: str) -> None:
    with broken.events() as events, in_background(lambda: broken.chat("never-ready")) as answers:
        events.until_states(**{"never-ready": "starting"})
        assert broken.ask("GET" if ask_unload == "/unload" else "POST", ask_unload).status == 200
    assert (answers[0].status, answers[0].message[:38]) == (500, "unspecific error: group: model unloade")


def test_too_many_requests_are_429_at_once(house: Program) -> None:
    end = house.folder / "one-may-end"
    wish = {"events": ["x"], "until": str(end)}
    with house.asking("POST", CHAT, {"model": "one", "answer": wish}) as response:
        answer = house.post(CHAT, {"model": "one"}, {"Accept": "text/plain"})
        end.touch()
        response.read()
    error = answer.json()["error"]
    assert (answer.status, answer.header("Retry-After"), error["message"]) == (429, "1", "Too many requests")
    assert (error["type"], error["code"]) == ("rate_limit_error", "concurrency_limit")
    assert answer.header("Content-Type") == "application/json"


RESET = {"raw64": base64.b64encode(b"").decode()}


@pytest.mark.ours("502 has the envelope")
def test_a_model_that_closes_before_its_head_is_502(house: Program) -> None:
    answer = house.wish("m", **RESET)
    assert (answer.status, answer.json()["src"]) == (502, "llama-swap")


@pytest.mark.ours("502 has the envelope")
def test_a_model_that_answers_nonsense_is_502(house: Program) -> None:
    answer = house.wish("m", raw64=base64.b64encode(b"SSH-2.0-x\r\n\r\n").decode())
    assert (answer.status, answer.json()["src"]) == (502, "llama-swap")


@pytest.mark.ours("an answer that is cut is cut visibly")
def test_the_end_of_a_model_in_mid_stream_can_be_told(broken: Program) -> None:
    wish = {"events": ["data: 1\n\n"], "die": True, "headers": {"Content-Type": "text/event-stream"}}
    with broken.asking("POST", CHAT, {"model": "dies", "stream": True, "answer": wish}) as response:
        assert response.readline() == b"data: 1\n"
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            response.read()
    eventually(lambda: "dies" not in broken.running())


def test_the_end_of_a_model_in_mid_answer_cuts_it(broken: Program) -> None:
    wish = {"raw64": base64.b64encode(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").decode(), "die": True}
    with (
        broken.asking("POST", CHAT, {"model": "dies", "answer": wish}) as response,
        pytest.raises((http.client.IncompleteRead, ConnectionError)),
    ):
        response.read()
    eventually(lambda: "dies" not in broken.running())


@pytest.mark.ours("an answer that is cut is cut visibly")
def test_a_request_that_is_cut_by_an_unload_can_be_told(broken: Program) -> None:
    wish = {"events": ["x"], "until": "/never"}
    with broken.asking("POST", CHAT, {"model": "dies", "answer": wish}) as response:
        assert response.read(1) == b"x"
        assert broken.post("/api/models/unload/dies").body == b"OK"
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            response.read()


def test_a_peer_that_cannot_be_reached_is_502(house: Program) -> None:
    for name in ("ghost", "dead/ghost"):
        answer = house.chat(name)
        assert (answer.status, answer.message[:18]) == (502, "peer proxy error: ")
    assert house.get("/upstream/dead/ghost/x").message.startswith("peer proxy error: ")


def test_a_selector_whose_targets_are_all_stopping_is_503(broken: Program) -> None:
    broken.chat("deaf")
    with broken.events() as events, in_background(lambda: broken.post("/api/models/unload/deaf")):
        events.until_states(deaf="stopping")
        answer = broken.chat("only-deaf")
    assert (answer.status, answer.json()["error"]["code"]) == (503, "service_unavailable")
    assert 'selector "only-deaf" has no available spillover targets' in answer.message


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/upstream/nobody/x"),
        ("POST", "/upstream/nobody/v1/chat/completions"),
        ("GET", "/upstream/first/x"),
        ("POST", "/api/models/unload/nobody"),
        ("POST", "/api/models/unload/plain"),
        ("POST", "/api/models/unload/near/plain"),
    ],
)
def test_an_unknown_model_in_a_path_is_404(house: Program, method: str, path: str) -> None:
    answer = house.ask(method, path)
    assert (answer.status, "model not found" in answer.message) == (404, True)


@pytest.mark.parametrize(
    "path", ["/a.js", "/a/b.json?x=1", "/x.css", "/favicon.ico", "/robots.txt", "/p.png", "/q.jpeg", "/a%2Ejs"]
)
def test_assets_load_no_model(house: Program, path: str) -> None:
    answer = house.get(f"/upstream/hidden{path}")
    message = "model hidden is not loaded; path matches upstream.ignorePaths"
    assert (answer.status, answer.message) == (409, message)
    assert "hidden" not in house.running()


def test_assets_of_a_model_that_is_ready_are_served(house: Program) -> None:
    assert house.received("GET", "/upstream/m/a.js").path == "/a.js"


@pytest.mark.ours("it takes such a body for an empty one")
@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ("Content-Type: application/json\r\nTransfer-Encoding: chunked", b"zz\r\n{}\r\n0\r\n\r\n"),
        ("Content-Type: multipart/form-data; boundary=b\r\nTransfer-Encoding: chunked", b"-1\r\nx\r\n0\r\n\r\n"),
    ],
)
def test_a_body_that_cannot_be_read_is_400(house: Program, headers: str, body: bytes) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n\r\n"
    answer = house.exchange(head.encode() + body)
    assert answer.split(b" ")[1] == b"400"
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["src"] == "llama-swap"


@pytest.mark.ours("it takes such a body for what came of it")
@pytest.mark.parametrize("begun", [b"", b'4\r\n{"mo', b'b\r\n{"model":"m\r\n', b'd\r\n{"model":"m"}\r\n'])
@pytest.mark.parametrize("headers", ["", "Expect: 100-continue\r\n"])
def test_a_body_that_cannot_be_read_on_is_400_at_once(house: Program, headers: str, begun: bytes) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{headers}"
    with house.connected() as connection:
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + begun)
        time.sleep(0.05)
        connection.sendall(b"zz\r\n{}\r\n0\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert answer.split(b" ")[1] == b"400"
    assert "could not read request body" in json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]
    assert "Traceback" not in house.log


def test_a_body_that_breaks_behind_its_answer_ends_the_connection(house: Program) -> None:
    with house.connected() as connection:
        connection.sendall(b"POST /unload HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        answer = connection.recv(65536)
        connection.sendall(b"zz\r\n")
        answer += b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.split(b" ")[1] == b"405"
    assert answer.count(b"HTTP/1.1") == 1
    assert "Traceback" not in house.log


@pytest.mark.parametrize(
    "head",
    [
        b"GARBAGE\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\nBad Header: 1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /infill HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    ],
)
def test_what_is_no_request_is_refused_and_the_program_goes_on(house: Program, head: bytes) -> None:
    answer = house.exchange(head)
    assert answer == b"" or answer.split(b" ")[1].startswith((b"4", b"505"))
    assert house.get("/health").status == 200
    assert "Traceback" not in house.log


def test_a_failed_model_leaves_the_others_alone(broken: Program) -> None:
    answer = broken.post(CHAT, b'{"model": "dies"}', JSON)
    broken.chat("leaves")
    assert answer.json()["pid"] == broken.chat("dies").json()["pid"]


def test_a_model_that_is_killed_starts_again(broken: Program) -> None:
    first = broken.chat("dies").json()["pid"]
    os.kill(first, signal.SIGKILL)
    eventually(lambda: "dies" not in broken.running())
    assert broken.chat("dies").json()["pid"] != first
