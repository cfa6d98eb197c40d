from __future__ import annotations

import base64
import gzip
import random
from typing import Any

import pytest

from llamaswapd.activity.captures import COMPRESSED_FROM_BYTES, ENTRY_BYTES, Capture, Captures
from tests.activity.ended import chunked, finished

NOISE = random.Random(1).randbytes(100_000)


def capture(body: bytes = b"{}", **values: Any) -> Capture:
    return Capture.of(finished(body, **values))


def small(size: int) -> Capture:
    return capture(bytes(size - ENTRY_BYTES), request=None)


def decoded(text: object) -> bytes:
    assert isinstance(text, str)
    return base64.b64decode(text, validate=True)


# ---- what is shown


def test_a_capture_shows_what_was_sent_and_what_came() -> None:
    shown = capture(
        chunked(b'{"a"', b": 1}"),
        is_chunked=True,
        request=b"what\xff",
        request_headers=[("authorization", "Bearer x"), ("X-A", "1"), ("x-a", "2"), ("Host", "h")],
        response_headers=[("set-cookie", "c"), ("Content-Type", "t"), ("Transfer-Encoding", "chunked")],
    ).shown(5)
    assert shown == {
        "id": 5,
        "req_path": "/v1/chat/completions",
        "req_headers": {"Authorization": "[REDACTED]", "X-A": "1"},
        "req_body": base64.b64encode(b"what\xff").decode(),
        "resp_headers": {"Set-Cookie": "[REDACTED]", "Content-Type": "t"},
        "resp_body": base64.b64encode(b'{"a": 1}').decode(),
    }


@pytest.mark.parametrize("status", [201, 400, 502])
def test_the_body_of_an_answer_is_not_kept_unless_it_is_a_success(status: int) -> None:
    shown = capture(b"bad", outcome=status).shown(1)
    assert (shown["resp_body"], decoded(shown["req_body"])) == (None, b'{"model":"m"}')


def test_a_packed_answer_is_shown_unpacked() -> None:
    packed = {"content_encoding": "gzip", "response_headers": [("content-encoding", "gzip"), ("X-A", "1")]}
    shown = capture(chunked(gzip.compress(b"text")), is_chunked=True, **packed).shown(1)
    assert (decoded(shown["resp_body"]), shown["resp_headers"]) == (b"text", {"X-A": "1"})
    broken = capture(b"no gzip", **packed).shown(1)
    assert (decoded(broken["resp_body"]), broken["resp_headers"]) == (
        b"no gzip",
        {"Content-Encoding": "gzip", "X-A": "1"},
    )


@pytest.mark.parametrize(
    ("path", "has_request", "has_response"),
    [
        ("/v1/audio/transcriptions", False, True),
        ("/v1/images/edits", False, False),
        ("/sdapi/v1/img2img", False, False),
        ("/v1/audio/voices", False, True),
        ("/v1/audio/speech", True, False),
        ("/v1/images/generations", True, False),
        ("/sdapi/v1/txt2img", True, False),
        ("/v1/embeddings", True, True),
    ],
)
def test_sounds_and_pictures_are_not_kept(path: str, has_request: bool, has_response: bool) -> None:
    shown = capture(b"x", sent_path=path).shown(1)
    assert (shown["req_body"] is not None, shown["resp_body"] is not None) == (has_request, has_response)


def test_a_compressed_capture_shows_the_same() -> None:
    made = capture(b"x" * 50_000, request=None)
    before, size = made.shown(1), made.size
    made.replace(*made.compressed())
    assert made.shown(1) == before
    assert made.size < size / 10


# ---- what is kept


def test_the_oldest_make_room_for_the_newest() -> None:
    captures = Captures(10_000)
    for id_ in range(1, 6):
        captures.add(id_, small(3000))
    assert [id_ in captures for id_ in range(1, 7)] == [False, False, True, True, True, False]
    captures.add(6, small(9999))
    assert [id_ for id_ in range(1, 7) if id_ in captures] == [6]
    assert captures.get(5) is None
    assert "6" not in captures


def test_one_that_is_larger_than_all_the_room_is_skipped() -> None:
    captures = Captures(10_000)
    captures.add(1, small(3000))
    captures.add(2, small(10_001))
    assert (1 in captures, 2 in captures) == (True, False)


def test_heads_count_as_well() -> None:
    captures = Captures(10_000)
    for id_ in (1, 2):
        captures.add(id_, capture(heads_bytes=5000))
    assert (1 in captures, 2 in captures) == (False, True)


def compress(captures: Captures) -> None:
    while captures.uncompressed:
        id_ = captures.uncompressed.popleft()
        found = captures.get(id_)
        if found is not None:
            captures.compressed(id_, found.compressed())


def test_large_ones_count_by_what_they_are_when_compressed() -> None:
    captures = Captures(30_000)
    for id_ in range(1, 21):
        captures.add(id_, capture(b"x" * 20_000))
        compress(captures)
    assert all(id_ in captures for id_ in range(1, 21))


def test_large_ones_that_do_not_compress_push_others_out_or_are_skipped() -> None:
    captures = Captures(50_000)
    captures.add(1, small(3000))
    for body in (NOISE, NOISE[:60_000]):
        captures.add(2, capture(body))
        compress(captures)
        assert (1 in captures, 2 in captures) == (True, False)
    captures.add(3, capture(NOISE[:30_000]))
    captures.add(4, capture(NOISE[:30_000]))
    assert [id_ for id_ in range(1, 5) if id_ in captures] == [1, 3, 4]
    compress(captures)
    assert [id_ for id_ in range(1, 5) if id_ in captures] == [4]


def test_what_waits_for_compression_is_bounded_too() -> None:
    captures = Captures(50_000)
    for id_ in range(1, 10):
        captures.add(id_, capture(NOISE[:40_000]))
    kept = [id_ for id_ in range(1, 10) if id_ in captures]
    assert kept == [8, 9]
    compress(captures)
    assert [id_ for id_ in range(1, 10) if id_ in captures] == [9]


def test_the_bytes_that_are_counted_are_those_that_are_held() -> None:
    random_ = random.Random(5)
    captures = Captures(200_000)
    for id_ in range(1, 500):
        body = NOISE[: random_.randrange(60_000)] if random_.random() < 0.3 else bytes(random_.randrange(60_000))
        captures.add(id_, capture(body))
        if random_.random() < 0.3:
            compress(captures)
        held = list(captures._kept.values())
        large = [each for each in held if each.size >= COMPRESSED_FROM_BYTES and not each.is_compressed]
        assert captures._large_bytes == sum(each.size for each in large) <= 400_000
        assert captures._bytes == sum(each.size for each in held if each not in large) <= 200_000
        assert len(captures._order) < 3 * len(held) + 100
