"""Contract: profiles and selectors decide what a name means (http.md, 12; config.md, 10, 14, 15)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from blackbox import Program

pytestmark = pytest.mark.private

ACTIVE = "/api/profiles/active"


@pytest.fixture(autouse=True)
def none_active(house: Program) -> Iterator[None]:
    yield
    house.ask("PUT", ACTIVE, {"name": None})


def test_profiles_are_listed_by_id_and_none_is_active_at_first(house: Program) -> None:
    pins = {"llm": "m", "alias": "n", "chosen": "first", "off": "", "away": "far/p/q"}
    assert house.get("/api/profiles").json() == {
        "active": None,
        "profiles": [
            {"id": "empty-handed", "description": "", "pins": {"m": ""}},
            {"id": "work", "description": "for work", "pins": pins},
        ],
    }


def test_without_profiles_the_list_is_empty(broken: Program) -> None:
    assert broken.get("/api/profiles").json() == {"active": None, "profiles": []}


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", None])
def test_a_profile_is_switched_on_and_off(house: Program, content_type: str | None) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    for body, active in (('{"name":"work"}', "work"), ('{"name":""}', None), ('{"name":"work"}', "work")):
        answer = house.ask("PUT", ACTIVE, body, headers)
        assert (answer.status, answer.json()) == (200, {"active": active})
        assert house.get("/api/profiles").json()["active"] == active
    assert house.ask("PUT", ACTIVE, '{"name":null}', headers).json() == {"active": None}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ("", 400, "invalid profile request"),
        ("nonsense", 400, "invalid profile request"),
        ("[]", 400, "invalid profile request"),
        ("null", 400, "profile name is required"),
        ("{}", 400, "profile name is required"),
        ('{"id": "work"}', 400, "profile name is required"),
        ('{"name": 1}', 400, "profile name must be a string or null"),
        ('{"name": ["work"]}', 400, "profile name must be a string or null"),
        ('{"name": "no such"}', 404, 'profile "no such" not found'),
    ],
)
def test_a_wrong_request_leaves_the_selection(house: Program, body: str, status: int, message: str) -> None:
    house.ask("PUT", ACTIVE, {"name": "work"})
    answer = house.ask("PUT", ACTIVE, body)
    assert answer.status == status
    assert message in answer.message or body == "null"
    assert house.get("/api/profiles").json()["active"] == "work"


@pytest.mark.parametrize(
    ("name", "model", "sent"),
    [("llm", "m", "m"), ("alias", "n", "n"), ("chosen", "m", "m"), ("away", "p/q", "p/q"), ("m", "m", "m")],
)
def test_a_pin_replaces_the_name(house: Program, name: str, model: str, sent: str) -> None:
    house.ask("PUT", ACTIVE, {"name": "work"})
    assert house.received("POST", "/v1/embeddings", {"model": name}).json()["model"] == sent
    assert house.get(f"/props?model={name}").status == 200


def test_a_disabled_name_is_no_model(house: Program) -> None:
    house.ask("PUT", ACTIVE, {"name": "work"})
    answer = house.chat("off")
    assert (answer.status, "no model id could be identified" in answer.message) == (404, True)
    house.ask("PUT", ACTIVE, {"name": "empty-handed"})
    assert house.chat("m").status == 404
    assert house.chat("alias").status == 200  # pins are compared exactly
    assert "model not found" in house.get("/upstream/m/x").message


def test_a_pin_hides_a_model_in_rewritten_paths_too(house: Program) -> None:
    house.ask("PUT", ACTIVE, {"name": "work"})
    got = house.received("POST", "/v/chat/completions", {"model": "llm"})
    assert (got.path, got.json()["model"]) == ("/chat/completions", "m")


def test_a_switch_is_told_to_those_who_follow(house: Program) -> None:
    with house.events() as events:
        events.until(lambda kind, data: kind == "inflight")
        house.ask("PUT", ACTIVE, {"name": "work"})
        assert events.until(lambda kind, data: kind == "profileChanged") == {"active": "work"}
        house.ask("PUT", ACTIVE, {"name": None})
        assert events.until(lambda kind, data: kind == "profileChanged") == {"active": None}


# ---- selectors


def test_a_pin_selector_always_takes_the_first_target(house: Program) -> None:
    assert {house.received("POST", "/infill", {"model": "first"}).json()["model"] for _ in range(3)} == {"m"}


def test_a_warm_selector_takes_what_is_ready(house: Program) -> None:
    house.chat("m")
    assert house.received("POST", "/infill", {"model": "warmest"}).json()["model"] == "m"


def test_a_spillover_selector_takes_the_next_target_when_the_first_is_busy(house: Program) -> None:
    end = house.folder / "spill-may-end"
    body = {"model": "spilling", "answer": {"events": ["x"], "until": str(end)}}
    with house.asking("POST", "/infill", body) as response:
        assert house.received("POST", "/infill", {"model": "spilling"}).json()["model"] == "spill-b"
        end.touch()
        response.read()
    house.post("/api/models/unload/spill-a")
    house.post("/api/models/unload/spill-b")


def test_filters_see_the_name_that_was_selected(house: Program) -> None:
    row = house.row_of("m", lambda: house.chat("first"))
    assert row["metadata"]["selector"] == "first"
