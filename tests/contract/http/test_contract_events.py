"""Contract: `/api/events`, exact to the byte (http.md, 16)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from blackbox import Program, eventually

pytestmark = pytest.mark.private

KEY = {"x-api-key": "secret"}


def test_the_head_is_that_of_an_event_stream(house: Program) -> None:
    with house.asking("GET", "/api/events") as response:
        assert response.status == 200
        expected = {
            "Content-Type": "text/event-stream",
            "Cache-Control": "no-cache",
            "Connection": "keep-alive",
            "X-Content-Type-Options": "nosniff",
            "X-Accel-Buffering": "no",
        }
        assert {name: response.headers[name] for name in expected} == expected


def test_frames_are_exact_to_the_byte(house: Program) -> None:
    with house.asking("GET", "/api/events") as response:
        lines = [response.readline() for _ in range(6)]
    for event, data, end in (lines[:3], lines[3:]):
        assert (event, end) == (b"event:message\n", b"\n")
        assert data.startswith(b'data:{"type":"')
        assert data.endswith(b'"}\n')
        outer = json.loads(data.removeprefix(b"data:"))
        assert outer.keys() == {"type", "data"}
        assert isinstance(json.loads(outer["data"]), dict)


def test_first_comes_how_things_are_in_this_order(house: Program) -> None:
    house.get("/told-before")
    house.post("/v1/messages", {"model": "streams"})
    eventually(lambda: "/told-before" in house.get("/logs").text and "received /v1/messages" in house.get("/logs").text)
    with house.events() as events:
        first = [events.next() for _ in range(6)]
    assert [kind for kind, _ in first] == [
        "logData",
        "logData",
        "modelStatus",
        "uiConfig",
        "profileChanged",
        "inflight",
    ]
    assert [data["source"] for _, data in first[:2]] == ["proxy", "upstream"]
    assert "/told-before" in first[0][1]["data"]
    assert "received /v1/messages" in first[1][1]["data"]
    assert first[3][1] == {"activity": {"session_id": ["X-My-Session"]}}
    assert first[4][1] == {"active": None}
    assert first[5][1] == {"operation": "snapshot"}


def test_the_session_headers_have_a_default(locked: Program) -> None:
    with locked.events(KEY) as events:
        told = events.until(lambda kind, data: kind == "uiConfig")
    assert told == {"activity": {"session_id": ["X-Session-ID", "X-Litellm-Session-Id"]}}


def statuses(program: Program) -> Any:
    with program.events() as events:
        return events.until(lambda kind, data: kind == "modelStatus")


def test_the_status_holds_local_models_by_id_and_then_those_of_peers(house: Program) -> None:
    told = statuses(house)
    ours = [each["id"] for each in told if not each["peerID"]]
    theirs = [each["id"] for each in told if each["peerID"]]
    assert ours == sorted(ours, key=str.encode)
    assert [each["id"] for each in told] == ours + theirs
    assert {"hidden", "m", "comfyui_auto"} <= {*ours}
    assert {*theirs} == {"far/p/q", "far/shared", "near/shared", "near/plain", "dead/ghost"}
    assert not {"first", "alias"} & {*ours}


def test_the_status_of_a_model_tells_what_it_can(house: Program) -> None:
    by_id = {each["id"]: each for each in statuses(house)}
    assert by_id["hidden"] == {
        "id": "hidden",
        "name": "",
        "description": "",
        "state": "stopped",
        "unlisted": True,
        "peerID": "",
    }
    capable = by_id["never-used"]
    assert capable["aliases"] == ["never-alias", "never-used:hot"]
    assert capable["capabilities"] == {"vision": True, "function_calling": True}
    assert (capable["context_length"], capable["unlisted"], capable["state"]) == (4096, False, "stopped")
    assert by_id["far/p/q"] == {
        "id": "far/p/q",
        "name": "",
        "description": "",
        "state": "",
        "unlisted": False,
        "peerID": "far",
    }


def test_every_change_of_state_is_told(broken: Program) -> None:
    states: list[str] = []

    def take(kind: str, data: Any) -> bool:
        if kind == "modelStatus":
            state = next(each["state"] for each in data if each["id"] == "dies")
            if state != states[-1:]:
                states.append(state)
        return states[-1:] == ["stopped"] and len(states) > 1

    broken.get("/unload")
    with broken.events() as events:
        events.until(lambda kind, data: kind == "inflight")
        broken.chat("dies")
        broken.post("/api/models/unload/dies")
        events.until(take)
    order = [state for before, state in zip(["", *states], states, strict=False) if state != before]
    assert order == ["starting", "ready", "stopping", "stopped"]


def test_own_log_lines_are_told(house: Program) -> None:
    with house.events() as events:
        events.until(lambda kind, data: kind == "inflight")
        house.get("/nothing-like-this")
        told = events.until(lambda kind, data: kind == "logData" and "/nothing-like-this" in data["data"])
    assert told["source"] == "proxy"


def test_lines_of_models_are_told(house: Program) -> None:
    with house.events() as events:
        events.until(lambda kind, data: kind == "inflight")
        house.chat("streams")
        told = events.until(lambda kind, data: kind == "logData" and "received /v1/chat" in data["data"])
    assert told["source"] == "upstream"


def test_a_row_that_was_stored_is_told(house: Program) -> None:
    with house.events() as events:
        events.until(lambda kind, data: kind == "inflight")
        house.chat("n")
        number = events.until(lambda kind, data: kind == "activity")["id"]
        assert house.rows(f"?min_id={number}&max_id={number}")[0]["id"] == number


def test_the_bytes_of_a_stream_are_told_as_they_come(house: Program) -> None:
    sizes: list[int] = []

    def take(kind: str, data: Any) -> bool:
        if kind == "inflight" and data["operation"] == "upsert":
            sizes.append(data["request"]["resp_bytes"])
        return kind == "inflight" and data["operation"] == "remove"

    with house.events() as events:
        events.until(lambda kind, data: kind == "inflight")
        house.chat("streams", stream=True, n=3, gap=0.3)
        events.until(take)
    assert sizes == sorted(sizes)
    assert len({*sizes} - {0}) >= 2


def test_many_may_follow(house: Program) -> None:
    with house.events() as one, house.events() as two:
        for events in (one, two):
            events.until(lambda kind, data: kind == "inflight")
        house.chat("n")
        numbers = {events.until(lambda kind, data: kind == "activity")["id"] for events in (one, two)}
    assert len(numbers) == 1
