"""Contract: the error envelope and its negotiation, paths and methods that lead nowhere (http.md, 1 and 2)."""

from __future__ import annotations

import pytest
from blackbox import Program

pytestmark = pytest.mark.private

UNKNOWN = {"model": "nobody"}
NO_ROUTER = "no router for requested model"


def test_an_error_is_the_envelope_without_a_newline(house: Program) -> None:
    answer = house.post("/v1/chat/completions", UNKNOWN)
    error = {"message": answer.message, "type": "invalid_request_error", "param": None, "code": "not_found"}
    assert answer.json() == {"src": "llama-swap", "error": error}
    assert answer.message.startswith(NO_ROUTER)
    assert answer.header("Content-Type") == "application/json"
    assert not answer.body.endswith(b"\n")
    assert answer.header("Content-Length") == str(len(answer.body))


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "type_", "code"),
    [
        ("PUT", "/api/profiles/active", [], 400, "invalid_request_error", "bad_request"),
        ("POST", "/v1/embeddings", UNKNOWN, 404, "invalid_request_error", "not_found"),
        ("GET", "/comfyui/queue", None, 409, "invalid_request_error", "conflict"),
        ("POST", "/v1/embeddings", {"model": "ghost"}, 502, "server_error", "bad_gateway"),
    ],
)
def test_type_and_code_follow_from_the_status(
    house: Program, method: str, path: str, body: object, status: int, type_: str, code: str
) -> None:
    answer = house.ask(method, path, body)
    error = answer.json()["error"]
    assert (answer.status, error["type"], error["code"], error["param"]) == (status, type_, code, None)


def test_an_error_of_ours_is_a_server_error_with_the_code_internal_error(broken: Program) -> None:
    answer = broken.chat("no-command")
    error = answer.json()["error"]
    assert (answer.status, error["type"], error["code"]) == (500, "server_error", "internal_error")


@pytest.mark.parametrize(
    ("accept", "content_type", "begin", "end"),
    [
        ("text/plain", "text/plain", f"llama-swap: {NO_ROUTER}", ""),
        ("text/html, text/plain;q=0.5", "text/plain", f"llama-swap: {NO_ROUTER}", ""),
        ("text/html", "text/html", f"<html><body><h1>llama-swap</h1><p>{NO_ROUTER}", "</p></body></html>"),
        ("application/xhtml+xml,text/html;q=0.9", "text/html", "<html><body><h1>", "</p></body></html>"),
        ("*/*", "application/json", "{", "}"),
        ("text/event-stream", "application/json", "{", "}"),
    ],
)
def test_an_error_is_written_as_the_client_accepts_it(
    house: Program, accept: str, content_type: str, begin: str, end: str
) -> None:
    answer = house.post("/v1/chat/completions", UNKNOWN, {"Accept": accept})
    assert (answer.status, answer.header("Content-Type")) == (404, content_type)
    assert answer.text.startswith(begin)
    assert answer.text.endswith(end)


def test_html_is_escaped(house: Program) -> None:
    answer = house.ask("PUT", "/api/profiles/active", {"name": "<i>&"}, {"Accept": "text/html"})
    assert answer.status == 404
    assert "&lt;i&gt;&amp;" in answer.text
    assert "<i>" not in answer.text


@pytest.mark.parametrize(
    "path", ["/nothing", "/v1", "/v1/", "/v1/models/", "/api", "/health/x", "/v2/chat/completions"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_path_is_404_in_plain_text(house: Program, method: str, path: str) -> None:
    answer = house.ask(method, path)
    assert (answer.status, answer.body) == (404, b"404 page not found\n")
    assert answer.header("Content-Type") == "text/plain; charset=utf-8"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/health", {"GET", "HEAD"}),
        ("POST", "/running", {"GET", "HEAD"}),
        ("DELETE", "/v1/models", {"GET", "HEAD"}),
        ("POST", "/props", {"GET", "HEAD"}),
        ("GET", "/v1/chat/completions", {"POST"}),
        ("HEAD", "/v1/chat/completions", {"POST"}),
        ("GET", "/api/models/unload", {"POST"}),
        ("GET", "/api/models/unload/m", {"POST"}),
        ("POST", "/api/profiles/active", {"PUT"}),
        ("GET", "/api/inflight/1/cancel", {"POST"}),
        ("PUT", "/v1/audio/voices", {"GET", "HEAD", "POST"}),
    ],
)
def test_a_known_path_with_the_wrong_method_is_405_and_names_the_right_ones(
    house: Program, method: str, path: str, allowed: set[str]
) -> None:
    answer = house.ask(method, path)
    assert answer.status == 405
    assert answer.body == (b"" if method == "HEAD" else b"Method Not Allowed\n")
    assert set((answer.header("Allow") or "").split(", ")) == allowed


@pytest.mark.parametrize(
    ("path", "cleaned"),
    [
        ("//health", "/health"),
        ("/v1//models", "/v1/models"),
        ("/v1/./models", "/v1/models"),
        ("/v1/x/../models", "/v1/models"),
        ("/../health", "/health"),
        ("/v1//models?a=b&c=%2F", "/v1/models?a=b&c=%2F"),
        ("/nothing//here/", "/nothing/here/"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_path_that_is_not_clean_redirects_to_the_clean_one(
    house: Program, method: str, path: str, cleaned: str
) -> None:
    answer = house.ask(method, path)
    assert (answer.status, answer.header("Location")) == (307, cleaned)


@pytest.mark.parametrize(
    "path", ["/health", "/v1/models", "/running", "/api/version", "/logs", "/metrics", "/api/events"]
)
def test_routes_of_get_answer_head_without_a_body(house: Program, path: str) -> None:
    head = house.ask("HEAD", path)
    assert (head.status, head.body) == (200, b"")


def test_a_head_request_leaves_the_connection_usable(house: Program) -> None:
    question = f"HEAD /health HTTP/1.1\r\nHost: {house.host}\r\n\r\n"
    last = f"GET /health HTTP/1.1\r\nHost: {house.host}\r\nConnection: close\r\n\r\n"
    answers = house.exchange((question + last).encode())
    assert answers.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert answers.endswith(b"\r\n\r\nOK")


@pytest.mark.parametrize("path", ["/v1/models", "/running", "/api/version", "/api/profiles", "/api/metrics/stats"])
def test_json_answers_end_with_a_newline(house: Program, path: str) -> None:
    answer = house.get(path)
    assert (answer.status, (answer.header("Content-Type") or "").partition(";")[0]) == (200, "application/json")
    assert answer.body.endswith(b"}\n")


def test_a_connection_serves_many_requests(house: Program) -> None:
    body = b'{"model": "nobody"}'
    post = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
    questions = (post % len(body) + b"\r\n" + body) * 3 + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    answers = house.exchange(questions + post % len(body) + b"Connection: close\r\n\r\n" + body)
    assert answers.count(b"HTTP/1.1 404 Not Found\r\n") == 4
    assert answers.count(b"HTTP/1.1 200 OK\r\n") == 1


def test_a_client_of_http_1_0_is_answered_and_let_go(house: Program) -> None:
    answer = house.exchange(b"GET /health HTTP/1.0\r\n\r\n")
    assert answer.partition(b"\r\n")[0].endswith(b" 200 OK")
    assert answer.endswith(b"\r\n\r\nOK")
