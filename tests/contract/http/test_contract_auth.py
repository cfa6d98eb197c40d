"""Contract: which key counts, and what needs one (http.md, 3)."""

from __future__ import annotations

import base64

import pytest
from blackbox import Headers, Program

pytestmark = pytest.mark.private

KEY = {"Authorization": "Bearer secret"}


def basic(text: str) -> str:
    return f"Basic {base64.b64encode(text.encode()).decode()}"


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer secret"},
        {"authorization": "bearer secret"},
        {"Authorization": "BEARER secret"},
        {"Authorization": "Bearer with:colon"},
        {"Authorization": basic("anybody:secret")},
        {"Authorization": basic(":secret")},
        {"Authorization": basic("user:with:colon")},
        {"Authorization": basic("user:secret").replace("Basic", "bAsIc")},
        {"x-api-key": "secret"},
        {"X-Api-Key": "secret"},
        {"Authorization": "Digest nonsense", "x-api-key": "secret"},
        {"Authorization": "Basic !!!not-base64!!!", "x-api-key": "secret"},
        {"Authorization": basic("user:"), "x-api-key": "secret"},
        {"Authorization": basic("no colon"), "x-api-key": "secret"},
        {"Authorization": "Bearer", "x-api-key": "secret"},
        {"Authorization": "Bearer ", "x-api-key": "secret"},
    ],
    ids=str,
)
def test_a_key_lets_in(locked: Program, headers: Headers) -> None:
    assert locked.get("/v1/models", headers).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer secret2"},
        {"Authorization": "Bearer Secret"},
        {"Authorization": "secret"},
        {"Authorization": "Basic !!!not-base64!!!"},
        {"Authorization": "Basic c2VjcmV0OnNlY3JldA=\xff"},
        {"Authorization": basic("secret")},
        {"Authorization": basic("secret:")},
        {"Authorization": basic("user:wrong")},
        {"Authorization": "Bearer wrong", "x-api-key": "secret"},
        {"Authorization": basic("user:wrong"), "x-api-key": "secret"},
        {"x-api-key": "wrong"},
        {"x-api-key": ""},
        {"Cookie": "key=secret"},
    ],
    ids=str,
)
def test_without_one_the_answer_is_401(locked: Program, headers: Headers) -> None:
    answer = locked.get("/v1/models", headers)
    assert (answer.status, answer.message) == (401, "unauthorized: invalid or missing API key")
    assert answer.header("WWW-Authenticate") == 'Basic realm="llama-swap"'
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("authentication_error", "unauthorized")


def test_no_key_counts_in_the_query(locked: Program) -> None:
    for query in ("key=secret", "api_key=secret", "apiKey=secret", "token=secret"):
        assert locked.get(f"/v1/models?{query}").status == 401


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 302),
        ("GET", "/health", 200),
        ("HEAD", "/health", 200),
        ("GET", "/wol-health", 200),
        ("GET", "/upstream", 302),
        ("GET", "/ui", 307),
        ("OPTIONS", "/v1/models", 204),
        ("OPTIONS", "/upstream/m/x", 204),
        ("OPTIONS", "/nothing", 204),
        ("GET", "/nothing", 404),
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/running", 405),
    ],
)
def test_what_is_open_needs_no_key(locked: Program, method: str, path: str, status: int) -> None:
    assert locked.ask(method, path).status == status


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/messages"),
        ("POST", "/v/embeddings"),
        ("POST", "/infill"),
        ("GET", "/props?model=m"),
        ("GET", "/v1/models"),
        ("GET", "/models"),
        ("GET", "/running"),
        ("GET", "/unload"),
        ("POST", "/api/models/unload"),
        ("POST", "/api/models/unload/m"),
        ("GET", "/upstream/m/"),
        ("GET", "/upstream/m"),
        ("GET", "/comfyui"),
        ("GET", "/comfyui/"),
        ("GET", "/api/profiles"),
        ("PUT", "/api/profiles/active"),
        ("POST", "/api/inflight/1/cancel"),
        pytest.param("GET", "/api/metrics", marks=pytest.mark.ours("it is kept from before v236")),
        ("GET", "/api/metrics/activity"),
        ("GET", "/api/metrics/stats"),
        ("GET", "/api/captures/1"),
        ("GET", "/api/events"),
        ("GET", "/logs"),
        ("GET", "/logs/stream"),
        ("GET", "/logs/stream/proxy"),
        ("GET", "/api/version"),
        ("GET", "/api/hardware"),
        ("GET", "/api/performance"),
        ("GET", "/metrics"),
    ],
)
def test_everything_else_needs_one(locked: Program, method: str, path: str) -> None:
    assert locked.ask(method, path).status == 401


def test_401_comes_before_everything_else(locked: Program) -> None:
    assert locked.chat("nobody").status == 401
    assert locked.post("/v1/chat/completions", "no model").status == 401
    assert locked.get("/upstream/nobody/").status == 401


def test_401_is_negotiated_too(locked: Program) -> None:
    answer = locked.get("/v1/models", {"Accept": "text/plain"})
    assert (answer.status, answer.text) == (401, "llama-swap: unauthorized: invalid or missing API key")


def test_401_after_a_body_leaves_the_connection_in_step(locked: Program) -> None:
    body = b'{"model": "m"}'
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    first = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    last = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answers = locked.exchange(first + last)
    assert answers.startswith(b"HTTP/1.1 401 Unauthorized\r\n")
    assert answers.endswith(b"OK")


@pytest.mark.ours("a header that carried one of our keys is not passed on")
@pytest.mark.parametrize("headers", [KEY, {"x-api-key": "secret"}, {"Authorization": basic("u:secret")}], ids=str)
def test_the_model_gets_no_key_of_ours(locked: Program, headers: Headers) -> None:
    got = locked.received("POST", "/v1/chat/completions", {"model": "m"}, headers)
    assert not got.values("authorization") + got.values("x-api-key")


@pytest.mark.ours("a header that carried one of our keys is not passed on")
def test_a_header_with_a_key_that_is_not_ours_is_passed_on(locked: Program) -> None:
    headers = {**KEY, "x-api-key": "the model's own"}
    got = locked.received("POST", "/v1/chat/completions", {"model": "m"}, headers)
    assert (got.values("authorization"), got.values("x-api-key")) == ([], ["the model's own"])


def test_without_keys_of_ours_all_are_passed_on(house: Program) -> None:
    headers = {"Authorization": "Bearer secret", "x-api-key": "other"}
    got = house.received("POST", "/v1/chat/completions", {"model": "m"}, headers)
    assert (got.values("authorization"), got.values("x-api-key")) == (["Bearer secret"], ["other"])


@pytest.mark.ours("a header that carried one of our keys is not passed on")
def test_a_peer_gets_no_key_of_ours_either(locked: Program) -> None:
    got = locked.received("POST", "/v1/chat/completions", {"model": "plain"}, KEY)
    assert got.values("authorization") == []
