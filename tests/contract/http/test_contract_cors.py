"""Contract: what browsers ask first (http.md, 4)."""

from __future__ import annotations

import pytest
from blackbox import Program

pytestmark = pytest.mark.private


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/nothing", "/v1//models", "/upstream/m/x", "/ui/", "/"])
def test_options_is_answered_on_every_path(locked: Program, path: str) -> None:
    answer = locked.ask("OPTIONS", path, headers={"Origin": "https://a.example"})
    assert (answer.status, answer.body) == (204, b"")
    assert answer.header("Access-Control-Allow-Origin") == "*"
    assert answer.header("Access-Control-Allow-Methods") == "GET, POST, PUT, PATCH, DELETE, OPTIONS"
    assert answer.header("Access-Control-Allow-Headers") == "Content-Type, Authorization, Accept, X-Requested-With"
    assert answer.header("Access-Control-Max-Age") == "86400"


@pytest.mark.parametrize(
    ("asked", "allowed"),
    [
        ("x-a", "x-a"),
        ("X-A,x-b ,  x-c", "X-A, x-b, x-c"),
        ("x-a, bad name, x:b, , x-c", "x-a, x-c"),
        ("x_1.2~!#$%&'*+-^`|", "x_1.2~!#$%&'*+-^`|"),
    ],
)
def test_headers_that_are_tokens_are_allowed(house: Program, asked: str, allowed: str) -> None:
    answer = house.ask("OPTIONS", "/v1/models", headers={"Access-Control-Request-Headers": asked})
    assert answer.header("Access-Control-Allow-Headers") == allowed


@pytest.mark.parametrize("path", ["/v1/models", "/models"])
def test_the_list_of_models_echoes_the_origin(house: Program, path: str) -> None:
    answer = house.get(path, {"Origin": "https://a.example:8000"})
    assert answer.header("Access-Control-Allow-Origin") == "https://a.example:8000"
    assert house.get(path).header("Access-Control-Allow-Origin") is None


@pytest.mark.parametrize("path", ["/running", "/health", "/api/version", "/nothing", "/upstream/m/x"])
def test_nothing_is_added_to_other_answers(house: Program, path: str) -> None:
    answer = house.get(path, {"Origin": "https://a.example"})
    assert answer.header("Access-Control-Allow-Origin") is None


def test_what_the_model_says_of_origins_passes(house: Program) -> None:
    headers = {"Access-Control-Allow-Origin": "https://b.example", "Vary": "Origin"}
    answer = house.post("/v1/chat/completions", {"model": "m", "answer": {"headers": headers}})
    assert (answer.header("Access-Control-Allow-Origin"), answer.header("Vary")) == ("https://b.example", "Origin")


def test_options_reaches_no_model(house: Program) -> None:
    house.ask("OPTIONS", "/upstream/hidden/v1/chat/completions")
    assert "hidden" not in house.running()
