"""Contract: what was said, kept for a while (http.md, 15)."""

from __future__ import annotations

import base64
import gzip
import json
import random
from typing import Any

import pytest
from blackbox import Headers, Json, Program, eventually

pytestmark = pytest.mark.private

MODEL = "recorded"
CHAT = "/v1/chat/completions"


def has_capture(house: Program, id_: int) -> bool:
    return bool(house.rows(f"?min_id={id_}&max_id={id_}")[0]["has_capture"])


def capture(house: Program, path: str = CHAT, asked_with: Headers = (), **wish: object) -> Any:
    """Have a model answer this; return what was captured."""
    question = {"model": MODEL, "answer": {"body": "said", **wish}}
    row = house.row_of(MODEL, lambda: house.post(path, question, asked_with))
    eventually(lambda: has_capture(house, row["id"]))
    answer = house.get(f"/api/captures/{row['id']}")
    assert answer.status == 200
    found: Json = answer.json()
    assert found["id"] == row["id"]
    return found


def text(value: str | None) -> str | None:
    return None if value is None else base64.b64decode(value).decode()


def test_what_was_asked_and_what_was_answered(house: Program) -> None:
    found = capture(house, CHAT, [("X-Mine", "yes"), ("X-Mine", "again")], headers={"X-Model": "m"})
    assert found.keys() == {"id", "req_path", "req_headers", "req_body", "resp_headers", "resp_body"}
    assert found["req_path"] == CHAT
    assert json.loads(text(found["req_body"]) or "")["model"] == MODEL
    assert text(found["resp_body"]) == "said"
    assert (found["req_headers"]["X-Mine"], found["resp_headers"]["X-Model"]) == ("yes", "m")


def test_secrets_are_left_out(house: Program) -> None:
    secret = {"Authorization": "Bearer x", "x-api-key": "y", "Cookie": "a=b", "Proxy-Authorization": "Basic z"}
    found = capture(house, CHAT, secret, headers={"Set-Cookie": "c=d"})
    for name in ("Authorization", "X-Api-Key", "Cookie", "Proxy-Authorization"):
        assert found["req_headers"][name] == "[REDACTED]"
    assert found["resp_headers"]["Set-Cookie"] == "[REDACTED]"


def test_the_request_is_what_was_sent_after_the_filters(house: Program) -> None:
    row = house.row_of("renamed", lambda: house.chat("renamed", x=1))
    found = house.get(f"/api/captures/{row['id']}").json()
    assert json.loads(text(found["req_body"]) or "") == {"model": "real-name", "x": 1}


def test_a_compressed_answer_is_unpacked(house: Program) -> None:
    packed = base64.b64encode(gzip.compress(b'{"plain": 1}')).decode()
    found = capture(house, CHAT, {"Accept-Encoding": "gzip"}, body64=packed, headers={"Content-Encoding": "gzip"})
    assert text(found["resp_body"]) == '{"plain": 1}'
    assert "Content-Encoding" not in found["resp_headers"]


def test_a_stream_is_kept_whole(house: Program) -> None:
    found = capture(house, events=["data: 1\n\n", "data: [DONE]\n\n"])
    assert text(found["resp_body"]) == "data: 1\n\ndata: [DONE]\n\n"


def test_the_answer_is_not_kept_of_another_status(house: Program) -> None:
    found = capture(house, status=500)
    assert (found["resp_body"], found["req_body"] is None) == (None, False)


@pytest.mark.parametrize(
    "path", ["/v1/audio/transcriptions", "/v1/images/edits", "/sdapi/v1/img2img", "/v1/audio/voices"]
)
def test_uploads_are_not_kept(house: Program, path: str) -> None:
    assert capture(house, path)["req_body"] is None


@pytest.mark.parametrize(
    "path",
    ["/v1/audio/speech", "/v1/images/generations", "/v1/images/edits", "/sdapi/v1/txt2img", "/sdapi/v1/img2img"],
)
def test_pictures_and_sound_are_not_kept(house: Program, path: str) -> None:
    assert capture(house, path)["resp_body"] is None


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/embeddings", "/infill"])
def test_other_answers_are(house: Program, path: str) -> None:
    assert capture(house, path)["resp_body"] == base64.b64encode(b"said").decode()


@pytest.mark.parametrize(
    ("id_", "status", "message"),
    [
        ("x", 400, "invalid capture ID"),
        ("1.5", 400, "invalid capture ID"),
        ("0", 404, "capture not found"),
        ("-1", 404, "capture not found"),
        ("99999999", 404, "capture not found"),
    ],
)
def test_what_was_not_captured_is_told(house: Program, id_: str, status: int, message: str) -> None:
    answer = house.get(f"/api/captures/{id_}")
    assert (answer.status, message in answer.message) == (status, True)


def test_without_a_buffer_nothing_is_captured(locked: Program) -> None:
    key = {"x-api-key": "secret"}
    locked.post(CHAT, {"model": "m"}, key)
    rows = locked.get("/api/metrics/activity", key).json()["data"]
    assert {row["has_capture"] for row in rows} <= {False}


def test_what_does_not_fit_the_buffer_is_not_kept(house: Program) -> None:
    first = capture(house)["id"]
    noise = base64.b64encode(random.randbytes(6 << 20)).decode()  # nothing makes it smaller
    row = house.row_of(MODEL, lambda: house.wish(MODEL, body64=noise))
    assert (row["has_capture"], house.get(f"/api/captures/{row['id']}").status) == (False, 404)
    assert house.get(f"/api/captures/{first}").status == 200


def test_the_oldest_makes_room(house: Program) -> None:
    first = capture(house)["id"]
    for _ in range(4):
        found = capture(house, body=json.dumps({"noise": random.randbytes(3 << 19).hex()}))
        assert len(found["resp_body"]) > 3 << 20
    assert house.get(f"/api/captures/{first}").status == 404
    assert not has_capture(house, first)
