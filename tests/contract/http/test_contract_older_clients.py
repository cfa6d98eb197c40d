"""Contract: what older clients and llama-swap's own pages ask for (http.md, 19 and 20)."""

from __future__ import annotations

import pytest
from blackbox import Program

pytestmark = pytest.mark.private


@pytest.mark.parametrize(
    "path",
    [
        "/unload",
        "/running",
        "/logs",
        pytest.param("/api/metrics", marks=pytest.mark.ours("it is kept from before v236")),
    ],
)
def test_paths_of_old_are_still_there(locked: Program, path: str) -> None:
    assert locked.get(path, {"x-api-key": "secret"}).status == 200


def test_the_pages_need_a_key_and_are_there_with_one(locked: Program) -> None:
    assert locked.get("/ui/").status == 401
    answer = locked.get("/ui/", {"x-api-key": "secret"})
    assert (answer.status, (answer.header("Content-Type") or "").partition(";")[0]) == (200, "text/html")


@pytest.mark.parametrize("path", ["/ui/models", "/ui/some/where"])
def test_a_page_that_is_no_file_is_the_front_page(house: Program, path: str) -> None:
    answer = house.get(path)
    assert (answer.status, answer.body) == (200, house.get("/ui/").body)


@pytest.mark.parametrize("path", ["/ui/nothing.js", "/ui/some/where.css"])
def test_a_file_that_is_not_there_is_404(house: Program, path: str) -> None:
    assert house.get(path).status == 404


@pytest.mark.parametrize("path", ["/ui/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "/ui/..%2f..%2f..%2f..%2fetc%2fpasswd"])
def test_nothing_but_the_pages_is_served(house: Program, path: str) -> None:
    assert b"root:" not in house.get(path).body


def test_the_icon_needs_no_key(locked: Program) -> None:
    assert locked.get("/favicon.ico").status in (200, 404)


def test_a_profile_in_front_of_a_name_has_no_meaning(house: Program) -> None:
    answer = house.chat("work:m")
    assert (answer.status, "no router for requested model" in answer.message) == (404, True)


def test_the_pages_load_a_model_by_its_front_page(house: Program) -> None:
    assert house.received("GET", "/upstream/author%2Fmodel%3AQ4_K%20M/?_=1700000000").path == "/?_=1700000000"


def test_loading_is_given_up_by_leaving(broken: Program) -> None:
    with broken.events() as events:
        waiting = broken.sent("GET", "/upstream/never-ready/?_=1")
        events.until_states(**{"never-ready": "starting"})
        waiting.close()
        assert broken.running()["never-ready"] == "starting"  # the load itself goes on
    broken.get("/unload")
