"""Contract: the logs (http.md, 17)."""

from __future__ import annotations

import http.client
import re

import pytest
from blackbox import Program, eventually

pytestmark = pytest.mark.private

WRONG = "invalid logger. Use 'proxy', 'upstream' or a model's ID"


SAID = "received /v1/messages"  # by the model `streams`
TOLD = '"GET /told-by-the-program HTTP/1.1" 404 '


@pytest.fixture(autouse=True, scope="module")
def talkative(house: Program) -> None:
    """A model and a program that have said something."""
    house.post("/v1/messages", {"model": "streams"})
    house.get("/told-by-the-program")
    eventually(lambda: SAID in house.get("/logs").text and TOLD in house.get("/logs").text)


def read_until(response: http.client.HTTPResponse, text: str) -> str:
    seen = ""
    while text not in seen:
        line = response.readline().decode()
        assert line, seen
        seen += line
    return seen


def test_logs_are_the_combined_history(house: Program) -> None:
    answer = house.get("/logs")
    assert (answer.status, answer.header("Content-Type")) == (200, "text/plain")
    assert TOLD in answer.text
    assert SAID in answer.text


def test_only_what_log_to_stdout_selects_is_combined(broken: Program) -> None:
    broken.chat("loads")
    assert "received /v1/chat" not in broken.get("/logs").text
    with broken.asking("GET", "/logs/stream/upstream") as response:
        read_until(response, "received /v1/chat")


def test_a_browser_is_led_to_the_pages(house: Program) -> None:
    answer = house.get("/logs", {"Accept": "text/html,*/*"})
    assert (answer.status, answer.header("Location")) == (302, "/ui/")


@pytest.mark.parametrize(
    ("path", "history"),
    [
        ("/logs/stream", SAID),
        ("/logs/stream/", SAID),
        ("/logs/stream/proxy", TOLD),
        ("/logs/stream/upstream", SAID),
        ("/logs/stream/streams", SAID),
        ("/logs/stream/streams/further/segments", SAID),
        ("/logs/stream/alias", "echo listens"),
        ("/logs/stream/other/alias", "echo listens"),
        ("/logs/stream/other%2Falias", "echo listens"),
    ],
)
def test_a_stream_begins_with_the_history(house: Program, path: str, history: str) -> None:
    house.chat("m")
    with house.asking("GET", path) as response:
        assert (response.status, response.headers["Content-Type"]) == (200, "text/plain")
        assert response.headers["Transfer-Encoding"] == "chunked"
        assert response.headers["X-Accel-Buffering"] == "no"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        read_until(response, history)


@pytest.mark.ours("the head of a stream is sent at once")
@pytest.mark.parametrize(
    ("path", "live"),
    [
        ("/logs/stream/proxy", "/v1/rerank"),
        ("/logs/stream/upstream", "received /v1/rerank"),
        ("/logs/stream/streams", "received /v1/rerank"),
    ],
)
@pytest.mark.parametrize("query", ["no-history", "no-history=", "no-history=1", "no-history=false"])
def test_without_history_a_stream_is_live_only(house: Program, path: str, live: str, query: str) -> None:
    with house.asking("GET", f"{path}?{query}") as response:
        house.post("/v1/rerank", {"model": "streams"})
        seen = read_until(response, live)
    assert TOLD not in seen
    assert SAID not in seen


def test_a_models_log_holds_nothing_of_others(house: Program) -> None:
    with house.asking("GET", "/logs/stream/streams") as response:
        seen = read_until(response, SAID)
    assert "echo listens" not in seen
    assert "[INFO]" not in seen


def test_the_sources_are_apart(house: Program) -> None:
    with house.asking("GET", "/logs/stream/proxy?x") as response:
        house.get("/a-line-of-its-own")
        assert "received /v1" not in read_until(response, "/a-line-of-its-own")


def test_a_models_history_survives_its_unloading(house: Program) -> None:
    house.get("/upstream/hidden/x")
    house.post("/api/models/unload/hidden")
    with house.asking("GET", "/logs/stream/hidden") as response:
        read_until(response, "echo listens")


@pytest.mark.parametrize("name", ["nobody", "first", "near/plain", "plain", "PROXY"])
def test_an_unknown_log_is_400(house: Program, name: str) -> None:
    answer = house.get(f"/logs/stream/{name}")
    assert (answer.status, answer.message) == (400, WRONG)


# ---- the access log


def access_line(house: Program, text: str) -> str:
    def lines() -> list[str]:
        return [line for line in house.get("/logs").text.splitlines() if text in line]

    eventually(lines)
    return lines()[-1]


def test_each_request_is_one_line(house: Program) -> None:
    house.get("/nothing?q=1", {"User-Agent": "agent/1 (x)"})
    line = access_line(house, "agent/1")
    assert re.fullmatch(
        r'\[INFO\] Request 127\.0\.0\.1 "GET /nothing(\?q=1)? HTTP/1\.1" 404 19 "agent/1 \(x\)" [\d.]+(ns|µs|ms|s)',
        line,
    )


def test_the_ip_of_a_line_is_the_first_that_is_told(house: Program) -> None:
    house.get("/told-ip", {"X-Forwarded-For": "1.2.3.4, 5.6.7.8"})
    assert ' 1.2.3.4 "GET /told-ip' in access_line(house, "/told-ip")


def test_a_request_to_a_model_is_a_line_too(house: Program) -> None:
    answer = house.post("/v1/responses", {"model": "m"}, {"User-Agent": "for-the-log"})
    assert f'"POST /v1/responses HTTP/1.1" 200 {len(answer.body)} "for-the-log" ' in access_line(house, "for-the-log")


def test_an_answer_that_is_complete_is_logged_so_though_its_client_leaves_at_once(house: Program) -> None:
    agent = {"User-Agent": "leaves-at-once"}
    for _ in range(60):
        assert house.post("/upstream/m/v1/embeddings", {}, agent).status == 200
    assert '"POST /upstream/m/v1/embeddings HTTP/1.1" 499' not in house.get("/logs").text


def test_some_paths_are_not_logged(house: Program) -> None:
    for path in ("/wol-health", "/api/performance", "/metrics", "/metrics?x", "/wol-health/y"):
        house.get(path, {"User-Agent": "silent"})
    house.get("/health", {"User-Agent": "after-the-silent"})
    access_line(house, "after-the-silent")
    assert '"silent"' not in house.get("/logs").text


def test_lines_that_people_look_for_are_there(house: Program) -> None:
    house.chat("m")
    logs = house.log
    assert re.search(r"\[INFO\] <m> Health check passed on http://127\.0\.0\.1:\d+/health", logs)
    assert re.search(r"\[INFO\] llama-swap listening on http://127\.0\.0\.1:\d+", logs)


def test_what_a_client_writes_cannot_forge_a_line(house: Program) -> None:
    head = b'GET /forged%0A[INFO]%1b[2J HTTP/1.1\r\nHost: x\r\nUser-Agent: a"b\r\nConnection: close\r\n\r\n'
    assert house.exchange(head).startswith(b"HTTP/1.1 404 ")
    line = access_line(house, "/forged")
    assert "\x1b" not in line
    assert line.startswith("[INFO] Request 127.0.0.1 ")
