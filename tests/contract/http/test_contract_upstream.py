"""Contract: the models' own pages and paths, by way of `/upstream` and `/comfyui` (http.md, 11)."""

from __future__ import annotations

import pytest
from blackbox import Program

pytestmark = pytest.mark.private


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_any_method_is_passed_on_as_it_is(house: Program, method: str) -> None:
    got = house.received(method, "/upstream/m/some/path?x=1&x=2", b"\x00body" if method != "GET" else None)
    assert (got.method, got.path) == (method, "/some/path?x=1&x=2")
    assert got.body == (b"" if method == "GET" else b"\x00body")


def test_head_is_passed_on_too(house: Program) -> None:
    answer = house.ask("HEAD", "/upstream/m/x")
    assert (answer.status, answer.body) == (200, b"")


@pytest.mark.parametrize(
    ("path", "forwarded"),
    [
        ("/upstream/m/", "/"),
        ("/upstream/alias/x", "/x"),
        ("/upstream/other/alias/x", "/x"),
        ("/upstream/other%2Falias/x", "/x"),
        ("/upstream/author/model:Q4_K%20M/a%2Fb%20c/", "/a%2Fb%20c/"),
        ("/upstream/author%2Fmodel%3AQ4_K%20M/x", "/x"),
        ("/upstream/m/m/m", "/m/m"),
        ("/upstream/plain/x", "/x"),
        ("/upstream/near/plain/x?y", "/x?y"),
        ("/upstream/far/p/q/x", "/base/x"),
        ("/upstream/m/v/chat/completions", "/v/chat/completions"),
    ],
)
def test_the_longest_name_in_the_path_is_the_model_and_the_rest_is_its_path(
    house: Program, path: str, forwarded: str
) -> None:
    assert house.received("GET", path).path == forwarded


def test_a_body_is_neither_read_nor_rewritten(house: Program) -> None:
    sent = b'{"model": "nobody", "temperature": 1}'
    got = house.received("POST", "/upstream/renamed/v1/chat/completions", sent, {"Content-Type": "application/json"})
    assert got.body == sent


@pytest.mark.parametrize(
    ("method", "status"),
    [("GET", 301), ("HEAD", 301), ("POST", 308), ("PUT", 308), ("DELETE", 308)],
)
@pytest.mark.parametrize("path", ["/upstream/hidden", "/comfyui"])
def test_a_path_without_a_slash_redirects_to_one_with_it(house: Program, method: str, status: int, path: str) -> None:
    answer = house.ask(method, f"{path}?a=b%20c")
    assert (answer.status, answer.header("Location")) == (status, f"{path}/?a=b%20c")
    assert not {"hidden", "comfyui_auto"} & {*house.running()}


def test_a_name_with_a_slash_redirects_too(house: Program) -> None:
    assert house.get("/upstream/other/alias").header("Location") == "/upstream/other/alias/"


def test_a_model_is_warmed_by_its_front_page(house: Program) -> None:
    house.post("/api/models/unload/n")
    assert house.get("/upstream/n/").status == 200
    assert house.running()["n"] == "ready"


def test_it_counts_for_the_concurrency_limit(house: Program) -> None:
    end = house.folder / "upstream-may-end"
    wish = f'{{"events": ["x"], "until": "{end}"}}'
    with house.asking("GET", "/upstream/one/x", headers={"X-Answer": wish}) as response:
        assert house.get("/upstream/one/y").status == 429
        end.touch()
        response.read()


def test_it_never_sends_a_loading_stream(broken: Program) -> None:
    broken.post("/api/models/unload/loads")
    answer = broken.post("/upstream/loads/v1/chat/completions", {"stream": True, "n": 1})
    assert "reasoning_content" not in answer.text


def test_pins_count_on_the_path_only(house: Program) -> None:
    house.ask("PUT", "/api/profiles/active", {"name": "work"})
    try:
        assert house.received("POST", "/upstream/llm/x", {"model": "llm"}).json() == {"model": "llm"}
        assert house.received("GET", "/upstream/away/x").path == "/base/x"
        assert "model not found" in house.get("/upstream/off/x").message
    finally:
        house.ask("PUT", "/api/profiles/active", {"name": None})
    assert "model not found" in house.get("/upstream/llm/x").message


# ---- comfyui


def test_only_the_front_page_of_comfyui_loads_it(house: Program) -> None:
    for path in ("/comfyui/queue", "/comfyui/ws", "/comfyui/index.html"):
        answer = house.get(path)
        message = "model comfyui_auto is not loaded; only /comfyui/ can start it"
        assert (answer.status, answer.message) == (409, message)
    try:
        assert house.received("GET", "/comfyui/?x=1").path == "/?x=1"
        got = house.received("POST", "/comfyui/api/prompt?y", b"{}")
        assert (got.method, got.path, got.body) == ("POST", "/api/prompt?y", b"{}")
    finally:
        house.post("/api/models/unload/comfyui_auto")


def test_without_its_model_comfyui_is_not_found(broken: Program) -> None:
    for path in ("/comfyui/", "/comfyui/queue"):
        answer = broken.get(path)
        assert (answer.status, answer.message) == (404, "local model comfyui_auto not found")
