"""Contract: what is recorded of requests, and how it is read (http.md, 14)."""

from __future__ import annotations

import base64
import gzip
import json
import re
import zlib
from typing import Any

import pytest
from blackbox import Json, Program, eventually

pytestmark = pytest.mark.private

CHAT = "/v1/chat/completions"
MODEL = "recorded"
KEY = {"x-api-key": "secret"}

NOTHING = {
    "cache_tokens": 0,
    "draft_tokens": 0,
    "draft_acc_tokens": 0,
    "input_tokens": 0,
    "output_tokens": 0,
    "prompt_per_second": 0,
    "tokens_per_second": 0,
}
UNKNOWN = {
    "cache_tokens": -1,
    "draft_tokens": -1,
    "draft_acc_tokens": -1,
    "prompt_per_second": -1,
    "tokens_per_second": -1,
}

OPENAI = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
LLAMA_CPP = {
    "cache_n": 3,
    "prompt_n": 7,
    "prompt_ms": 10.0,
    "prompt_per_second": 700.0,
    "predicted_n": 9,
    "predicted_ms": 20.0,
    "predicted_per_second": 450.5,
}


def row_of(house: Program, path: str = CHAT, **wish: object) -> Json:
    return house.row_of(MODEL, lambda: house.wish(MODEL, path, **wish))


def tokens(**known: float) -> dict[str, float]:
    return {**UNKNOWN, **known}


WHOLE: dict[str, tuple[object, dict[str, float]]] = {
    "OpenAI": ({"usage": OPENAI}, tokens(input_tokens=10, output_tokens=5)),
    "OpenAI, cached": (
        {"usage": {**OPENAI, "prompt_tokens_details": {"cached_tokens": 4}}},
        tokens(input_tokens=10, output_tokens=5, cache_tokens=4),
    ),
    "responses": (
        {"usage": {"input_tokens": 8, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 1}}},
        tokens(input_tokens=8, output_tokens=2, cache_tokens=1),
    ),
    "Anthropic": (
        {"usage": {"input_tokens": 3, "output_tokens": 4, "cache_read_input_tokens": 6}},
        tokens(input_tokens=3, output_tokens=4, cache_tokens=6),
    ),
    "embeddings": ({"usage": {"prompt_tokens": 12, "total_tokens": 12}}, tokens(input_tokens=12, output_tokens=0)),
    "the first name that exists": (
        {"usage": {"prompt_tokens": 1, "input_tokens": 2, "completion_tokens": 3, "output_tokens": 4}},
        tokens(input_tokens=1, output_tokens=3),
    ),
    "llama.cpp": (
        {"usage": OPENAI, "timings": LLAMA_CPP},
        tokens(input_tokens=7, output_tokens=9, cache_tokens=3, prompt_per_second=700.0, tokens_per_second=450.5),
    ),
    "llama.cpp with drafts": (
        {"timings": {**LLAMA_CPP, "draft_n": 6, "draft_n_accepted": 4}},
        tokens(
            input_tokens=7,
            output_tokens=9,
            cache_tokens=3,
            prompt_per_second=700.0,
            tokens_per_second=450.5,
            draft_tokens=6,
            draft_acc_tokens=4,
        ),
    ),
    "llama.cpp with half of the drafts": (
        {"timings": {**LLAMA_CPP, "draft_n": 6}},
        tokens(input_tokens=7, output_tokens=9, cache_tokens=3, prompt_per_second=700.0, tokens_per_second=450.5),
    ),
    "vLLM": (
        {
            "usage": {**OPENAI, "prompt_tokens_details": {"cached_tokens": 2}},
            "metrics": {
                "time_to_first_token_ms": 16.0,
                "mean_itl_ms": 4.0,
                "speculative_decoding": {"num_draft_tokens": 8, "num_accepted_draft_tokens": 5},
            },
        },
        tokens(
            input_tokens=10,
            output_tokens=5,
            cache_tokens=2,
            prompt_per_second=500.0,
            tokens_per_second=250.0,
            draft_tokens=8,
            draft_acc_tokens=5,
        ),
    ),
    "nothing": ({"choices": []}, NOTHING),
}


@pytest.mark.parametrize("name", WHOLE)
def test_usage_is_read_from_whole_answers(house: Program, name: str) -> None:
    answer, expected = WHOLE[name]
    assert row_of(house, body=json.dumps(answer))["tokens"] == expected


def events(*data: object) -> list[str]:
    return [f"data: {each if isinstance(each, str) else json.dumps(each)}\n\n" for each in data]


STREAMED: dict[str, tuple[list[str], dict[str, float]]] = {
    "OpenAI": (
        events({"choices": [{}]}, {"choices": [], "usage": OPENAI}, "[DONE]"),
        tokens(input_tokens=10, output_tokens=5),
    ),
    "OpenAI with null before": (
        events({"choices": [{}], "usage": None}, {"usage": OPENAI}, "[DONE]"),
        tokens(input_tokens=10, output_tokens=5),
    ),
    "Anthropic": (
        [
            "event: message_start\n",
            *events({"type": "message_start", "message": {"usage": {"input_tokens": 25, "output_tokens": 1}}}),
            *events({"type": "message_delta", "usage": {"output_tokens": 15}}, {"type": "message_stop"}),
        ],
        tokens(input_tokens=25, output_tokens=15),
    ),
    "responses": (
        events({"type": "response.completed", "response": {"usage": {"input_tokens": 2, "output_tokens": 3}}}),
        tokens(input_tokens=2, output_tokens=3),
    ),
    "llama.cpp": (
        events({"timings": {**LLAMA_CPP, "prompt_n": 1}}, {"timings": LLAMA_CPP}),
        tokens(input_tokens=7, output_tokens=9, cache_tokens=3, prompt_per_second=700.0, tokens_per_second=450.5),
    ),
    "vLLM": (
        events({"usage": OPENAI, "metrics": {"time_to_first_token_ms": 10.0, "mean_itl_ms": 2.0}}),
        tokens(input_tokens=10, output_tokens=5, prompt_per_second=1000.0, tokens_per_second=500.0),
    ),
    "invalid lines between": (
        [*events("{broken"), ": comment\n\n", "data:" + json.dumps({"usage": OPENAI}) + "\n\n", *events("[DONE]")],
        tokens(input_tokens=10, output_tokens=5),
    ),
    "lines with a carriage return": (
        [f"data: {json.dumps({'usage': OPENAI})}\r\n\r\n"],
        tokens(input_tokens=10, output_tokens=5),
    ),
    "cut anywhere": (
        [*"".join(events({"usage": OPENAI}))],
        tokens(input_tokens=10, output_tokens=5),
    ),
    "nothing": (events({"choices": []}, "[DONE]"), NOTHING),
}


@pytest.mark.parametrize("name", STREAMED)
def test_usage_is_read_from_streams(house: Program, name: str) -> None:
    sent, expected = STREAMED[name]
    row = row_of(house, events=sent, headers={"Content-Type": "text/event-stream"})
    assert (row["tokens"], row["resp_content_type"]) == (expected, "text/event-stream")


def test_the_last_element_of_an_infill_array_counts(house: Program) -> None:
    row = row_of(house, "/infill", body=json.dumps([{"timings": {**LLAMA_CPP, "prompt_n": 1}}, {"timings": LLAMA_CPP}]))
    assert (row["tokens"]["input_tokens"], row["tokens"]["output_tokens"]) == (7, 9)


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


@pytest.mark.parametrize(
    ("coding", "compress"), [("gzip", gzip.compress), ("deflate", raw_deflate), ("deflate", zlib.compress)]
)
@pytest.mark.parametrize("is_stream", [False, True])
def test_compressed_answers_are_read(house: Program, coding: str, compress: Any, is_stream: bool) -> None:
    text = "".join(events({"usage": OPENAI})) if is_stream else json.dumps({"usage": OPENAI})
    headers = {"Content-Encoding": coding, "Content-Type": "text/event-stream" if is_stream else "application/json"}
    body = base64.b64encode(compress(text.encode())).decode()
    question = {"model": MODEL, "answer": {"body64": body, "headers": headers}}
    row = house.row_of(MODEL, lambda: house.post(CHAT, question, {"Accept-Encoding": "gzip, deflate"}))
    if (coding, compress) != ("deflate", zlib.compress):  # which of the two "deflate" means is anybody's guess
        assert row["tokens"] == tokens(input_tokens=10, output_tokens=5)


def test_an_unreadable_compression_is_told(house: Program) -> None:
    wish = {"body64": base64.b64encode(b"\x1f\x8bnonsense").decode(), "headers": {"Content-Encoding": "gzip"}}
    question = {"model": MODEL, "answer": wish}
    row = house.row_of(MODEL, lambda: house.post(CHAT, question, {"Accept-Encoding": "gzip"}))
    assert re.match(r"response (decode|decompression) failed: ", row["error_msg"])
    assert (row["tokens"], row["resp_status_code"]) == (NOTHING, 200)


# ---- rows


def test_a_row_tells_who_asked_what(house: Program) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    row = row_of(house, "/v1/embeddings", body="{}", headers=headers)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d)", row["timestamp"])
    shown = {key: row[key] for key in ("model", "req_path", "resp_content_type", "resp_status_code", "has_capture")}
    assert shown == {
        "model": MODEL,
        "req_path": "/v1/embeddings",
        "resp_content_type": headers["Content-Type"],
        "resp_status_code": 200,
        "has_capture": True,
    }
    assert row["metadata"] == {"fifo_priority": "5"}
    assert (isinstance(row["id"], int), row["duration_ms"] >= 0, "error_msg" in row) == (True, True, False)


def test_the_duration_is_at_least_what_the_model_says(house: Program) -> None:
    timings = {**LLAMA_CPP, "prompt_ms": 100_000, "predicted_ms": 23_456}
    assert row_of(house, body=json.dumps({"timings": timings}))["duration_ms"] == 123_456


@pytest.mark.parametrize(
    ("path", "recorded"),
    [
        ("/v/chat/completions", "/chat/completions"),
        ("/audioapi/v1/tasks/run", "/v1/tasks/run"),
        (f"/upstream/{MODEL}/v1/messages", "/v1/messages"),
        ("/infill?x=1", "/infill"),
    ],
)
def test_the_path_of_a_row_is_the_one_forwarded(house: Program, path: str, recorded: str) -> None:
    assert row_of(house, path, body="{}")["req_path"].partition("?")[0] == recorded


def test_numbers_rise_and_are_never_used_again(house: Program) -> None:
    ids = [row_of(house, body="{}")["id"] for _ in range(3)]
    assert ids == sorted({*ids})
    assert ids[0] >= 1


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        (("GET", f"/props?model={MODEL}"), None),
        (("GET", f"/upstream/{MODEL}/v1/chat/completions"), None),
        (("POST", f"/upstream/{MODEL}/other"), None),
        (("POST", CHAT), 404),
    ],
)
def test_some_requests_leave_no_row(house: Program, ask: tuple[str, str], error: int | None) -> None:
    before = row_of(house, body="{}")["id"]
    assert house.ask(*ask).status == error or 200
    after = row_of(house, body="{}")["id"]
    between = house.rows(f"?min_id={before + 1}&max_id={after - 1}") if after - before > 1 else []
    assert [row for row in between if row["model"] in (MODEL, "")] == []


def test_a_request_for_an_unknown_model_leaves_a_row(house: Program) -> None:
    row = house.row_of("stranger", lambda: house.chat("stranger"))
    assert (row["resp_status_code"], row["tokens"]) == (404, NOTHING)
    assert "no router for requested model" in row["error_msg"]


def test_a_request_to_a_peer_leaves_a_row(house: Program) -> None:
    before = max((row["id"] for row in house.rows("?limit=1")), default=0)
    house.chat("plain", answer={"body": json.dumps({"usage": OPENAI})})
    eventually(lambda: [row for row in house.rows(f"?min_id={before + 1}") if "plain" in row["model"]])
    [row] = [row for row in house.rows(f"?min_id={before + 1}") if "plain" in row["model"]]
    assert (row["resp_status_code"], row["tokens"]["input_tokens"]) == (200, 10)
    assert "fifo_priority" not in row.get("metadata", {})


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (400, '{"error":{"message":"bad thing","code":1}}', "bad thing"),
        (500, '{"error":"plain text"}', "plain text"),
        (422, '{"message":"top"}', "top"),
        (422, '{"detail":"fast api"}', "fast api"),
        (400, '{"error":{"message":"  "},"message":"next"}', "next"),
        (502, "<html>", "502 Bad Gateway"),
        (404, '{"error":{"message":7}}', "404 Not Found"),
        (503, "", "503 Service Unavailable"),
        (400, json.dumps({"message": "x" * 600}), "x" * 500 + "..."),
        (201, '{"usage":{"prompt_tokens":1}}', "201 Created"),
    ],
)
def test_an_answer_other_than_200_leaves_its_message(house: Program, status: int, body: str, message: str) -> None:
    row = row_of(house, status=status, body=body)
    assert (row["resp_status_code"], row["error_msg"], row["tokens"]) == (status, message, NOTHING)


# ---- reading


def sorted_ids(house: Program) -> list[int]:
    """Return the ids of three rows of the model `sorted`, oldest first, made once."""
    rows = house.rows("?model=sorted&order=asc")
    for number in range(len(rows), 3):
        usage = {"prompt_tokens": (30, 10, 20)[number], "completion_tokens": number}
        path = ("/v1/chat/completions", "/v1/completions", "/v1/chat/completions")[number]
        house.row_of("sorted", lambda p=path, u=usage: house.wish("sorted", p, body=json.dumps({"usage": u})))
    return [row["id"] for row in house.rows("?model=sorted&order=asc")]


def page(house: Program, query: str) -> Any:
    return house.get(f"/api/metrics/activity?model=sorted&{query}").json()


def test_the_page_is_the_newest_25_rows_unless_asked_otherwise(house: Program) -> None:
    ids = sorted_ids(house)
    answer = page(house, "")
    assert [row["id"] for row in answer.pop("data")] == ids[::-1]
    assert answer == {"page": 1, "limit": 25, "total": 3, "total_pages": 1}


@pytest.mark.parametrize(
    ("query", "order"),
    [
        ("order=asc", [0, 1, 2]),
        ("order=desc", [2, 1, 0]),
        ("order=ASC", [0, 1, 2]),
        ("limit=%202%20&sort=%20prompt&page=&min_id=%20", [0, 2]),
        ("sort=id&order=asc", [0, 1, 2]),
        ("sort=time&order=asc", [0, 1, 2]),
        ("sort=prompt", [0, 2, 1]),
        ("sort=prompt&order=asc", [1, 2, 0]),
        ("sort=generated&order=asc", [0, 1, 2]),
        ("sort=req_path&order=asc", [0, 2, 1]),
        ("sort=req_path", [1, 2, 0]),
        ("sort=model&order=asc", [0, 1, 2]),
        ("sort=resp_status_code", [2, 1, 0]),
        ("sort=resp_content_type&order=asc", [0, 1, 2]),
        ("sort=cached", [2, 1, 0]),
        ("sort=drafted", [2, 1, 0]),
        ("sort=prompt_speed&order=asc", [0, 1, 2]),
        ("sort=gen_speed", [2, 1, 0]),
        ("limit=2", [2, 1]),
        ("limit=2&page=2", [0]),
        ("limit=2&page=3", []),
        ("limit=999", [2, 1, 0]),
        ("start=2000-01-01T00:00:00Z&end=2100-01-01T00:00:00%2B02:00", [2, 1, 0]),
        ("start=2100-01-01T00:00:00Z", []),
        ("end=2000-01-01T00:00:00.5Z", []),
        ("unknown=1", [2, 1, 0]),
    ],
)
def test_rows_are_sorted_and_selected_by_the_query(house: Program, query: str, order: list[int]) -> None:
    ids = sorted_ids(house)
    assert [ids.index(row["id"]) for row in page(house, query)["data"]] == order


def test_the_duration_sorts_too(house: Program) -> None:
    sorted_ids(house)
    durations = [row["duration_ms"] for row in page(house, "sort=duration&order=asc")["data"]]
    assert durations == sorted(durations)


def test_pages_are_counted(house: Program) -> None:
    sorted_ids(house)
    answer = page(house, "limit=2&page=2")
    assert {key: answer[key] for key in ("page", "limit", "total", "total_pages")} == {
        "page": 2,
        "limit": 2,
        "total": 3,
        "total_pages": 2,
    }


def test_an_empty_page_is_a_list(house: Program) -> None:
    answer = house.get("/api/metrics/activity?model=no-such-model").json()
    assert answer == {"data": [], "page": 1, "limit": 25, "total": 0, "total_pages": 0}


def test_ids_and_models_select(house: Program) -> None:
    ids = sorted_ids(house)
    assert [row["id"] for row in page(house, f"min_id={ids[1]}&max_id={ids[1]}")["data"]] == [ids[1]]
    assert [row["id"] for row in page(house, f"min_id={ids[1]}")["data"]] == [ids[2], ids[1]]
    row_of(house, body="{}")
    both = house.get(f"/api/metrics/activity?model=sorted&model={MODEL}&limit=999").json()["data"]
    assert {row["model"] for row in both} == {"sorted", MODEL}


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("limit=x", "invalid limit"),
        ("limit=0", "limit must be between 1 and 999"),
        ("limit=1000", "limit must be between 1 and 999"),
        ("limit=-1", "limit must be between 1 and 999"),
        ("page=0", "page must be >= 1"),
        ("page=-5", "page must be >= 1"),
        ("sort=tokens", "invalid sort column"),
        ("order=up", "order must be asc or desc"),
        ("min_id=0", "min_id must be >= 1"),
        ("max_id=0", "max_id must be >= 1"),
        ("min_id=3&max_id=2", "min_id must be <= max_id"),
        ("start=yesterday", "invalid 'start' timestamp, use RFC3339 format"),
        ("end=2026-01-01", "invalid 'end' timestamp, use RFC3339 format"),
        ("start=2026-01-02T00:00:00Z&end=2026-01-01T00:00:00Z", "start must be before end"),
    ],
)
def test_a_wrong_query_is_400_with_the_reason(house: Program, query: str, message: str) -> None:
    answer = house.get(f"/api/metrics/activity?{query}")
    assert (answer.status, message in answer.message) == (400, True), answer


def test_statistics_sum_up_the_rows_of_a_model(house: Program) -> None:
    sorted_ids(house)
    assert house.get("/api/metrics/stats?model=sorted").json() == {
        "total_requests": 3,
        "total_input_tokens": 60,
        "total_output_tokens": 3,
        "total_cache_tokens": 0,
        "prompt_histogram": None,
        "gen_histogram": None,
    }


def test_statistics_of_nothing_are_zero(house: Program) -> None:
    stats = house.get("/api/metrics/stats?model=never-asked-for").json()
    assert (stats["total_requests"], stats["prompt_histogram"]) == (0, None)


def test_speeds_are_shown_as_histograms(house: Program) -> None:
    for speed in (10, 20, 30, 40):
        timings = {**LLAMA_CPP, "prompt_per_second": 7.0, "predicted_per_second": speed}
        house.row_of("filtered", lambda t=timings: house.wish("filtered", body=json.dumps({"timings": t})))
    stats = house.get("/api/metrics/stats?model=filtered").json()
    prompt, gen = stats["prompt_histogram"], stats["gen_histogram"]
    assert (prompt["bins"], prompt["min"], prompt["max"], prompt["binSize"]) == ([4], 7, 7, 0)
    assert (prompt["p50"], prompt["p95"], prompt["p99"]) == (7, 7, 7)
    assert (len(gen["bins"]), sum(gen["bins"]), gen["bins"][0], gen["bins"][-1]) == (5, 4, 1, 1)
    assert (gen["min"], gen["max"], gen["binSize"]) == (10, 40, 6)
    assert (gen["p50"], gen["p95"], gen["p99"]) == pytest.approx((25, 38.5, 39.7))


def test_the_newest_rows_are_kept(locked: Program) -> None:
    for _ in range(5):
        locked.post(CHAT, {"model": "m"}, KEY)

    def kept() -> list[int]:
        data = locked.get("/api/metrics/activity?limit=999", KEY).json()["data"]
        return [row["id"] for row in data]

    eventually(lambda: len(kept()) == 3 and kept()[0] >= 5)
    ids = kept()
    assert ids == [*range(ids[0], ids[0] - 3, -1)]


@pytest.mark.ours("it is kept from before v236")
def test_all_rows_are_still_had_under_the_old_name(house: Program) -> None:
    sorted_ids(house)
    rows = house.get("/api/metrics").json()
    assert isinstance(rows, list)
    assert [row["id"] for row in rows if row["model"] == "sorted"] == sorted_ids(house)
