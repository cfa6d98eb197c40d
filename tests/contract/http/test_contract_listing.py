"""Contract: the models that there are and those that run, and unloading them (http.md, 9 and 10)."""

from __future__ import annotations

import time
from typing import Any

import pytest
from blackbox import Program, in_background
from daemon_support import alive

pytestmark = pytest.mark.private

KEY = {"x-api-key": "secret"}


def record(program: Program, id_: str, headers: dict[str, str] | None = None) -> Any:
    """Return the row of a model, without the time; None if it has none."""
    rows = {row["id"]: row for row in program.get("/v1/models", headers or {}).json()["data"]}
    if id_ in rows:
        assert abs(rows[id_].pop("created") - time.time()) < 100
    return rows.get(id_)


def common(id_: str, status: str = "unloaded") -> dict[str, object]:
    return {"id": id_, "object": "model", "owned_by": "llama-swap", "status": {"value": status}}


def test_both_paths_list_all_rows_by_id(house: Program) -> None:
    answers = [house.get(path).json() for path in ("/v1/models", "/models")]
    for answer in answers:
        assert answer.keys() == {"object", "data"}
        assert answer["object"] == "list"
        ids = [row["id"] for row in answer["data"]]
        assert ids == sorted(ids, key=str.encode)
    assert {"m", "first", "near/plain", "far/shared"} <= {row["id"] for row in answers[1]["data"]}


def test_a_model_tells_all_that_is_configured_of_it(house: Program) -> None:
    assert record(house, "never-used") == {
        **common("never-used"),
        "name": "A Name",
        "description": "What it does",
        "architecture": {
            "input_modalities": ["text", "image"],
            "output_modalities": ["text"],
            "modality": "text+image->text",
        },
        "capabilities": {"vision": True, "function_calling": True},
        "supported_parameters": ["tools", "tool_choice"],
        "context_length": 4096,
        "meta": {
            "llamaswap": {"type": "model", "tier": 3, "aliases": ["never-alias", "never-used:hot"]},
            "n_ctx": 4096,
        },
    }


def test_a_plain_model_has_no_more_than_it_needs(house: Program) -> None:
    house.chat("n")
    assert record(house, "n") == {**common("n", "loaded"), "meta": {"llamaswap": {"type": "model"}}}


def test_aliases_have_no_rows_of_their_own_unless_asked_for(house: Program) -> None:
    assert record(house, "alias") is None


def test_an_alias_row_copies_its_model(locked: Program) -> None:
    facts = {"type": "alias", "modelID": "m"}
    row = record(locked, "alias", KEY)
    assert {**row, "status": 0} == {**common("alias"), "name": "M", "meta": {"llamaswap": facts}, "status": 0}
    assert record(locked, "spaced", KEY)["meta"]["llamaswap"] == facts
    assert {row["id"] for row in locked.get("/models", KEY).json()["data"]} == {"m", "alias", "spaced", "near/plain"}


def test_unlisted_models_and_selectors_have_no_rows(house: Program) -> None:
    assert record(house, "hidden") is None
    assert record(house, "unlisted-selector") is None


def test_a_peer_model_is_listed_under_its_peer(house: Program) -> None:
    facts = {"type": "peer", "peerID": "far"}
    assert record(house, "far/p/q") == {**common("far/p/q"), "name": "far: p/q", "meta": {"llamaswap": facts}}
    assert record(house, "p/q") is None


def test_a_selector_tells_what_it_selects(house: Program) -> None:
    house.chat("m")
    facts = {"type": "selector", "strategy": "pin", "targets": ["m", "n"], "x": 1}
    assert record(house, "first") == {**common("first", "loaded"), "name": "First", "meta": {"llamaswap": facts}}
    facts = {"type": "selector", "strategy": "spillover", "targets": ["spill-a", "spill-b"], "spillover": 1}
    assert record(house, "spilling")["meta"] == {"llamaswap": facts}


def test_a_pin_of_the_active_profile_has_a_row(house: Program) -> None:
    assert record(house, "llm") is None
    house.ask("PUT", "/api/profiles/active", {"name": "work"})
    try:
        rows = {name: record(house, name) for name in ("llm", "chosen", "away", "off", "alias")}
    finally:
        house.ask("PUT", "/api/profiles/active", {"name": None})
    for name in ("llm", "chosen", "away"):
        assert rows[name] == {**common(name), "meta": {"llamaswap": {"type": "profile"}}}
    assert (rows["off"], rows["alias"]) == (None, None)


# ---- what runs


def test_running_tells_what_a_model_runs_on(house: Program) -> None:
    house.chat("n")
    running = house.get("/running").json()
    assert running.keys() == {"running"}
    names = [row["model"] for row in running["running"]]
    assert names == sorted(names)
    [row] = [row for row in running["running"] if row["model"] == "n"]
    port = row["proxy"].rpartition(":")[2]
    assert row["cmd"].endswith(f"echo.py {port}")
    shown = {key: row[key] for key in ("model", "state", "proxy", "ttl", "name", "description")}
    assert shown == {
        "model": "n",
        "state": "ready",
        "proxy": f"http://127.0.0.1:{port}",
        "ttl": 0,
        "name": "",
        "description": "",
    }


def test_running_shows_names_as_written_and_the_time_to_live(house: Program) -> None:
    house.get("/upstream/never-used/x")
    try:
        [row] = [row for row in house.get("/running").json()["running"] if row["model"] == "never-used"]
        assert (row["name"], row["description"], row["ttl"]) == (" A Name ", " What it does ", 77)
    finally:
        house.post("/api/models/unload/never-used")


def test_a_model_that_is_stopped_does_not_run(house: Program) -> None:
    assert "hidden" not in house.running()


def test_a_model_that_loads_is_running_and_loaded(broken: Program) -> None:
    with broken.events() as events, in_background(lambda: broken.chat("never-ready")):
        events.until_states(**{"never-ready": "starting"})
        assert broken.running()["never-ready"] == "starting"
        assert record(broken, "never-ready")["status"] == {"value": "loaded"}
        broken.get("/unload")
    assert record(broken, "never-ready")["status"] == {"value": "unloaded"}


@pytest.mark.parametrize("name", ["prefixed", "author/model:Q4_K%20M", "author%2Fmodel:Q4_K%20M"])
def test_one_model_is_unloaded_by_name(house: Program, name: str) -> None:
    house.get(f"/upstream/{name}/x")
    others = {**house.running()}
    answer = house.post(f"/api/models/unload/{name}")
    assert (answer.status, answer.body) == (200, b"OK")
    assert (answer.header("Content-Type") or "").startswith("text/plain")
    gone = {*others} - {*house.running()}
    assert len(gone) == 1


def test_unloading_by_alias_and_what_is_stopped_is_fine(house: Program) -> None:
    for name in ("never-alias", "never-used:hot", "hidden"):
        answer = house.post(f"/api/models/unload/{name}")
        assert (answer.status, answer.body) == (200, b"OK")


@pytest.mark.parametrize(("method", "path"), [("GET", "/unload"), ("POST", "/api/models/unload")])
def test_all_models_are_unloaded_and_gone_when_the_answer_comes(locked: Program, method: str, path: str) -> None:
    pid = locked.post("/v1/embeddings", {"model": "m"}, KEY).json()["pid"]
    answer = locked.ask(method, path, headers=KEY)
    assert (answer.status, answer.body) == (200, b"OK" if method == "GET" else b'{"msg":"ok"}\n')
    assert locked.get("/running", KEY).json() == {"running": []}
    assert alive([pid]) == []
