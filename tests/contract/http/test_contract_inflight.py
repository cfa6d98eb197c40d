"""Contract: the requests in flight, shown and cancelled (http.md, 13 and 16)."""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from blackbox import Events, Headers, Json, Program, Received

pytestmark = pytest.mark.private

CHAT = "/v1/chat/completions"


@contextmanager
def held(
    house: Program, model: str, path: str = CHAT, headers: Headers = ()
) -> Iterator[tuple[http.client.HTTPResponse, Events, Json]]:
    """Have a request in flight while the block runs; yield its answer, events, and the entry that tells of it."""
    end = house.folder / f"{model.replace('/', '-')}-may-end"
    end.unlink(missing_ok=True)
    wish = {"events": ["first"], "until": str(end), "headers": {"X-Model": "yes", "Set-Cookie": "a=b"}}
    with house.events() as events:
        events.until(lambda kind, data: kind == "inflight")
        with house.asking("POST", path, {"model": model, "answer": wish}, headers) as response:
            assert response.read(5) == b"first"
            entry = events.until(lambda kind, data: kind == "inflight" and data["request"].get("resp_headers"))
            yield response, events, entry["request"]
            end.touch()


def removed(events: Events) -> str:
    return str(events.until(lambda kind, data: kind == "inflight" and data["operation"] == "remove")["id"])


def test_an_entry_tells_of_the_request_and_of_the_answer_so_far(house: Program) -> None:
    headers = {
        "Authorization": "Bearer x",
        "x-api-key": "y",
        "cookie": "a=b",
        "x-my-session": "s1",
        "X-Forwarded-For": "9.8.7.6, 1.1.1.1",
        "X-Real-IP": "5.5.5.5",
    }
    with held(house, "alias", "/v/chat/completions", headers) as (_, events, entry):
        assert isinstance(entry["id"], str)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)", entry["timestamp"])
        shown = {key: entry[key] for key in ("model", "req_path", "method", "remote_ip")}
        assert shown == {
            "model": "m",
            "req_path": "/v/chat/completions",
            "method": "POST",
            "remote_ip": "9.8.7.6",
        }
        assert isinstance(entry["resp_bytes"], int)
        assert entry["elapsed_ms"] >= 0
        requested = entry["req_headers"]
        assert requested["X-My-Session"] == "s1"
        for name in ("Authorization", "X-Api-Key", "Cookie"):
            assert requested[name] == "[REDACTED]"
        assert (entry["resp_headers"]["X-Model"], entry["resp_headers"]["Set-Cookie"]) == ("yes", "[REDACTED]")
        (house.folder / "alias-may-end").touch()
        assert removed(events) == entry["id"]


@pytest.mark.parametrize(
    ("headers", "ip"),
    [({}, "127.0.0.1"), ({"X-Real-IP": "5.5.5.5"}, "5.5.5.5"), ({"X-Forwarded-For": " 1.2.3.4 "}, "1.2.3.4")],
    ids=str,
)
def test_the_remote_ip_is_the_first_that_is_told(house: Program, headers: Headers, ip: str) -> None:
    with held(house, "m", headers=headers) as (_, _, entry):
        assert entry["remote_ip"] == ip


def test_a_path_of_upstream_is_shown_without_its_prefix(house: Program) -> None:
    with held(house, "m", "/upstream/other%2Falias/v1/chat/completions") as (_, _, entry):
        assert (entry["model"], entry["req_path"]) == ("m", CHAT)


def test_a_request_to_a_peer_is_shown(house: Program) -> None:
    with held(house, "plain") as (_, _, entry):
        assert entry["model"] in ("plain", "near/plain")


def test_what_is_of_no_model_route_is_not_shown(house: Program) -> None:
    with house.events() as events:
        events.until(lambda kind, data: kind == "inflight")
        house.get("/upstream/m/other/path")
        house.get("/running")
        house.chat("nobody-at-all")
        house.post(CHAT, {"no": "model"})
        house.chat("m")
        entry = events.until(lambda kind, data: kind == "inflight" and data["operation"] == "upsert")["request"]
    assert (entry["model"], entry["req_path"]) in (("m", CHAT), ("nobody-at-all", CHAT))


def test_a_get_is_shown(house: Program) -> None:
    with house.events() as events:
        events.until(lambda kind, data: kind == "inflight")
        house.get("/props?model=n")
        entry = events.until(lambda kind, data: kind == "inflight" and data["operation"] == "upsert")["request"]
        assert (entry["method"], entry["model"], entry["req_path"]) == ("GET", "n", "/props")
        assert removed(events) == entry["id"]


def test_a_snapshot_holds_what_is_in_flight(house: Program) -> None:
    with held(house, "m") as (_, _, entry), house.events() as others:
        snapshot = others.until(lambda kind, data: kind == "inflight")
        assert snapshot["operation"] == "snapshot"
        assert entry["id"] in [each["id"] for each in snapshot["requests"]]


@pytest.mark.ours("an answer that is cut is cut visibly")
def test_a_request_that_is_cancelled_ends(house: Program) -> None:
    with held(house, "m") as (response, events, entry):
        answer = house.post(f"/api/inflight/{entry['id']}/cancel")
        assert (answer.status, answer.json()) == (200, {"msg": "ok"})
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            response.read()
        assert removed(events) == entry["id"]
        assert house.post(f"/api/inflight/{entry['id']}/cancel").status == 404


def test_a_request_that_waits_for_its_model_can_be_cancelled(broken: Program) -> None:
    def is_upsert(kind: str, data: Any) -> bool:
        return kind == "inflight" and data["operation"] == "upsert"

    with broken.events() as events:
        events.until(lambda kind, data: kind == "inflight")
        waiting = broken.sent("POST", CHAT, {"model": "never-ready"})
        number = events.until(is_upsert)["request"]["id"]
        assert broken.post(f"/api/inflight/{number}/cancel").status == 200
        assert removed(events) == number
        waiting.close()
    broken.get("/unload")


@pytest.mark.parametrize("id_", ["0", "999999", "abc", "%20"])
def test_an_unknown_request_cannot_be_cancelled(house: Program, id_: str) -> None:
    answer = house.post(f"/api/inflight/{id_}/cancel")
    assert (answer.status, "inflight request not found" in answer.message) == (404, True)


def test_cancelling_one_request_leaves_the_others(house: Program) -> None:
    with held(house, "m") as (_, _, entry):
        other = house.received("POST", CHAT, {"model": "m"})
        house.post(f"/api/inflight/{entry['id']}/cancel")
        assert Received.told_by(house.chat("m")).path == other.path
