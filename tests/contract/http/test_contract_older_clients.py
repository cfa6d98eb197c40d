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


def test_the_pages_need_a_key(locked: Program) -> None:
    assert locked.get("/ui/").status in (401, 404)


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
