from __future__ import annotations

import json
import random
from typing import Any

import pytest

from llamaswapd.activity import usage
from llamaswapd.activity.glance import at_a_glance, at_a_glance_in_chunks
from llamaswapd.activity.usage import (
    MOST_TOKENS,
    NO_TOKENS,
    NOTHING,
    Tokens,
    error_message,
    of_stream,
)
from tests.activity.ended import chunked

TIMINGS = {
    "prompt_n": 7, "predicted_n": 9, "cache_n": 2, "prompt_per_second": 70.5, "predicted_per_second": 9.25,
    "prompt_ms": 100, "predicted_ms": 50.5, "draft_n": 6, "draft_n_accepted": 4,
}  # fmt: skip


def of_json(value: object, **how: bool) -> tuple[Tokens, float]:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return usage.of_json(body, **({"is_infill": False} | how))


def tokens(**values: Any) -> Tokens:
    return Tokens(-1, -1, -1, 0, 0, -1.0, -1.0)._replace(**values)


def stream(*events: object, end: str = "\n") -> bytes:
    lines = (f"data: {event if isinstance(event, str) else json.dumps(event)}{end}{end}" for event in events)
    return "".join(lines).encode()


# ---- JSON


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 4}, tokens(input=3, output=4)),
        ({"input_tokens": 3, "output_tokens": 4}, tokens(input=3, output=4)),
        ({"prompt_tokens": 3, "input_tokens": 5}, tokens(input=3)),
        ({"prompt_tokens": 3, "cache_read_input_tokens": 2}, tokens(input=3, cached=2)),
        ({"input_tokens_details": {"cached_tokens": 2}}, tokens(cached=2)),
        ({"prompt_tokens_details": {"cached_tokens": 0}}, tokens(cached=0)),
        ({"input_tokens_details": None, "prompt_tokens_details": {"cached_tokens": 1}}, tokens(cached=1)),
        ({"prompt_tokens": 3.0, "completion_tokens": None}, tokens(input=3)),
        ({}, tokens()),
    ],
)
def test_usage_has_openais_names_or_anthropics(found: object, expected: Tokens) -> None:
    assert of_json({"id": "x", "usage": found, "model": "m"}) == (expected, 0.0)
    assert of_json({"id": "x", "usage": found}) == (expected, 0.0)


def test_timings_override_usage_and_say_how_long_it_took() -> None:
    expected = Tokens(2, 6, 4, 7, 9, 70.5, 9.25), 150.5
    assert of_json({"usage": {"prompt_tokens": 1, "completion_tokens": 1}, "timings": TIMINGS}) == expected
    assert of_json({"timings": TIMINGS}) == expected


def test_drafts_count_only_if_both_numbers_are_there() -> None:
    assert of_json({"timings": {"prompt_n": 1, "draft_n": 6}})[0] == tokens(input=1)


def test_metrics_give_drafts_and_speeds() -> None:
    metrics = {
        "speculative_decoding": {"num_draft_tokens": 8, "num_accepted_draft_tokens": 5},
        "time_to_first_token_ms": 500,
        "mean_itl_ms": 20,
    }
    counts = {"prompt_tokens": 100, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 40}}
    expected = Tokens(40, 8, 5, 100, 4, 120.0, 50.0)
    assert of_json({"usage": counts, "metrics": metrics}) == (expected, 0.0)
    assert of_json({"usage": counts, "metrics": metrics, "timings": {"predicted_per_second": 3}})[0].speed == 50.0


@pytest.mark.parametrize("first_ms", [5e-324, 1e-300, 1e300])
def test_a_time_that_is_next_to_none_makes_no_speed(first_ms: float) -> None:
    found, _ = of_json({"usage": {"prompt_tokens": 100}, "metrics": {"time_to_first_token_ms": first_ms}})
    assert found.input == 100
    assert found.prompt_speed in (-1.0, 0.0, 100 * 1000 / 1e300)


def test_of_an_infill_array_the_last_element_counts() -> None:
    answer = [{"timings": {"prompt_n": 1}}, {"content": "x", "timings": TIMINGS}]
    assert of_json(answer, is_infill=True)[0].input == 7
    assert of_json(answer) == NOTHING
    assert of_json([], is_infill=True) == NOTHING
    assert of_json(b'[1, "usage"]', is_infill=True) == NOTHING


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"content": "no words"}',
        b'{"choices": [{"usage": {"prompt_tokens": 3}}]}',
        b'{"message": {"usage": {"prompt_tokens": 3}}}',
        b'{"content": "\\"usage\\": {\\"prompt_tokens\\": 3}"}',
        b'{"an odd \\"usage":{"prompt_tokens":3}}',
        b'{"type": "usage", "prompt_tokens": 3}',
        b'{"usage": 3}',
        b'{"usage": null}',
        b'{"usage": {"prompt_tokens": 3}',
        b'{"usage": {"prompt_tokens": 3}} x',
        b'["usage"]',
        b'"usage"',
        b'"usage":{}',
        b'{"usage":' + b"[" * 100_000,
        b'{"usage":{"prompt_tokens":' + b"9" * 5000 + b"}}",
        b"\xff\xfe\x00",
    ],
)
def test_anything_else_says_nothing(body: bytes) -> None:
    assert of_json(body) == NOTHING
    assert at_a_glance(body) in (None, NOTHING)
    assert at_a_glance_in_chunks(chunked(body)) in (None, NOTHING)


@pytest.mark.parametrize(
    ("number", "count", "speed"),
    [
        (b"NaN", 0, -1.0),
        (b"Infinity", MOST_TOKENS, -1.0),
        (b"-Infinity", 0, -1.0),
        (b"-5", 0, -1.0),
        (b"1e999", MOST_TOKENS, -1.0),
        (b"1" + b"0" * 400, MOST_TOKENS, -1.0),
        (b'"12"', 0, -1.0),
        (b"true", 0, -1.0),
        (b"[1]", 0, -1.0),
        (b"{}", 0, -1.0),
        (b"0.5", 0, 0.5),
    ],
)
def test_odd_numbers_are_bounded_or_left_out(number: bytes, count: int, speed: float) -> None:
    body = (
        b'{"usage": {"prompt_tokens": %b}, "timings": {"predicted_n": %b, "predicted_per_second": %b, "prompt_ms": %b}}'
    )
    found, took_ms = of_json(body % (number, number, number, number))
    assert (found.input, found.output, found.speed, took_ms) == (count, count, speed, max(speed, 0.0))


def test_a_byte_order_mark_and_blanks_around_do_no_harm() -> None:
    assert of_json(b'\xef\xbb\xbf \n{"a": [1], "usage": {"prompt_tokens": 3}, "b": [{}]} \r\n')[0].input == 3


def test_of_a_long_answer_only_the_ends_are_read() -> None:
    data = [{"embedding": [0.25] * 20_000, "usage": "of what"}]
    head = {"model": "m", "object": "list", "usage": {"prompt_tokens": 3}, "data": data}
    tail = {"model": "m", "data": data, "usage": {"prompt_tokens": 3}}
    both = {"usage": {"prompt_tokens": 3}, "data": data, "timings": {"predicted_n": 5}}
    middle = {"data": data, "usage": {"prompt_tokens": 3}, "more": data}
    assert of_json(head)[0] == of_json(tail)[0] == of_json(middle)[0] == tokens(input=3)
    assert of_json(both)[0] == tokens(input=3, output=5)


def test_of_a_cut_answer_the_ends_are_read() -> None:
    head = json.dumps({"model": "m", "usage": {"prompt_tokens": 3}, "data": [0.25] * 10_000}).encode()
    tail = json.dumps({"data": [0.25] * 10_000, "timings": {"prompt_n": 7}, "id": "x"}).encode()
    assert of_json(head[:4096] + head[-16_000:], is_cut=True)[0].input == 3
    assert of_json(tail[:4096] + tail[-16_000:], is_cut=True)[0].input == 7
    assert of_json(b'{"a": "usage', is_cut=True) == NOTHING


def test_a_glance_and_a_close_look_find_the_same() -> None:
    random_ = random.Random(7)
    values: list[Any] = [0, 5, -1, 2.5, None, "x", True, {}, [1], {"cached_tokens": 2}, 10**30]
    names = ["prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "prompt_tokens_details"]
    texts = ["", "a text", '"timings": {}', 'ends with "', "ends with \\", "timings", 'a "metrics"', '\\"usage":{}']
    glances = 0
    for _ in range(5000):
        counts = {name: random_.choice(values) for name in random_.sample(names, random_.randrange(4))}
        members = [("id", "a}"), ("usage", counts), ("x", {"usage": counts}), ("timings", TIMINGS), ("y", "€\\")]
        members.append(("message", {"content": random_.choice(texts)}))
        answer = dict(random_.sample(members, random_.randrange(1, 4)))
        separators = random_.choice([(",", ":"), (", ", ": ")])
        body = json.dumps(answer, separators=separators, ensure_ascii=random_.random() < 0.5).encode()
        cut = random_.randrange(len(body))
        framed = random_.choice([chunked(body), chunked(body[:cut] or b"{", body[cut:] if cut else body[1:])])
        for glance in (at_a_glance(body), at_a_glance_in_chunks(framed)):
            glances += glance is not None
            assert glance in (None, of_json(body))
    assert glances > 500


# ---- streams


def test_the_last_usage_of_a_stream_counts() -> None:
    body = stream(
        {"choices": [1], "usage": None},
        {"usage": {"prompt_tokens": 3, "completion_tokens": 1}},
        {"usage": {"prompt_tokens": 3, "completion_tokens": 2}},
        "[DONE]",
    )
    assert of_stream(body) == (tokens(input=3, output=2), 0.0)


def test_anthropics_split_usage_adds_up() -> None:
    start = {"input_tokens": 25, "cache_read_input_tokens": 4, "output_tokens": 1}
    body = stream(
        {"type": "message_start", "message": {"id": "x", "usage": start}},
        {"type": "message_delta", "delta": {}, "usage": {"input_tokens": 0, "output_tokens": 15}},
    )
    assert of_stream(body) == (tokens(input=25, output=15, cached=4), 0.0)


def test_responses_tell_their_usage_when_they_are_complete() -> None:
    body = stream({"type": "response.completed", "response": {"usage": {"input_tokens": 5, "output_tokens": 6}}})
    assert of_stream(body) == (tokens(input=5, output=6), 0.0)


def test_the_last_timings_of_a_stream_count() -> None:
    body = stream({"timings": {"prompt_n": 1}}, {"timings": TIMINGS}, {"timings": None})
    assert of_stream(body) == (Tokens(2, 6, 4, 7, 9, 70.5, 9.25), 150.5)


@pytest.mark.parametrize(
    "body",
    [
        stream({"usage": {"prompt_tokens": 3}}, end="\r\n"),
        stream({"usage": {"prompt_tokens": 3}}, end="\r"),
        b'data:{"usage":{"prompt_tokens":3}}',
        b'\xef\xbb\xbfdata: {"usage":{"prompt_tokens":3}}\n\n',
        b'data: {"a":1}\ndata: {"usage":{"prompt_tokens":3}}\ndata: [DONE]\n',
        b'event: x\nid: 5\ndata: {"usage":\ndata: {"prompt_tokens":3}}\n\ndata: [DONE]\n\n',
        b': "usage"\n\ndata: "usage"\n\ndata: {"usage": bad}\n\ndata: {"usage":{"prompt_tokens":3}}\n\n',
    ],
)
def test_streams_are_read_however_their_lines_end(body: bytes) -> None:
    assert of_stream(body) == (tokens(input=3), 0.0)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        stream({"a": 1}, "[DONE]"),
        stream({"usage": None}),
        stream({"usage": {"x": 1}}),
        b'"usage"\n' * 9,
        b"\r\n\r\n",
    ],
)
def test_a_stream_without_usage_says_nothing(body: bytes) -> None:
    assert of_stream(body) == NOTHING
    assert NOTHING[0] is NO_TOKENS


def test_noise_is_read_without_harm() -> None:
    random_ = random.Random(3)
    words = [b'"usage"', b'"timings"', b'"metrics"', b":", b"{", b"}", b"[", b"]", b",", b'"', b"\\", b"1", b"data:"]
    words += [b"\n", b"\n\n", b"\r", b" ", b"null", b"\xff", b'"prompt_tokens"', b"0\r\n\r\n"]
    for _ in range(5000):
        body = b"".join(random_.choices(words, k=random_.randrange(20)))
        of_stream(body)
        for is_cut in (False, True):
            of_json(body, is_infill=is_cut, is_cut=is_cut)
        at_a_glance(body)
        at_a_glance_in_chunks(body)
        error_message(body, 500)


# ---- errors


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": {"message": " no luck "}, "message": "x"}, "no luck"),
        ({"error": "no luck"}, "no luck"),
        ({"error": {"message": " "}, "message": "no luck"}, "no luck"),
        ({"error": {"code": 5}, "detail": "no luck"}, "no luck"),
        ({"detail": [{"loc": 1}]}, "502 Bad Gateway"),
        ({"message": "x" * 501}, "x" * 500 + "..."),
        ({"message": "x" * 500}, "x" * 500),
        ({}, "502 Bad Gateway"),
        ([], "502 Bad Gateway"),
    ],
)
def test_an_errors_own_words_come_first(body: object, message: str) -> None:
    assert error_message(json.dumps(body).encode(), 502) == message


@pytest.mark.parametrize(("status", "message"), [(404, "404 Not Found"), (599, "HTTP 599"), (502, "502 Bad Gateway")])
def test_an_error_without_words_is_its_status(status: int, message: str) -> None:
    for body in (b"", b"<html>", b'{"error":', b"\xff"):
        assert error_message(body, status) == message


def test_what_vllm_measured_goes_before_what_llama_cpp_did() -> None:
    body = (
        b'{"usage":{"prompt_tokens":100,"completion_tokens":5},"timings":{"prompt_per_second":1.0,"predicted_per_second":'
        b'2.0,"draft_n":1,"draft_n_accepted":1},"metrics":{"time_to_first_token_ms":500,"mean_itl_ms":20,'
        b'"speculative_decoding":{"num_draft_tokens":8,"num_accepted_draft_tokens":6}}}'
    )
    tokens, _ = usage.of_json(body, is_infill=False)
    assert (tokens.prompt_speed, tokens.speed, tokens.drafted, tokens.accepted) == (200.0, 50.0, 8, 6)


def test_a_status_without_a_name_is_told_by_its_number() -> None:
    assert (usage.error_message(b"", 520), usage.error_message(b"", 499)) == ("HTTP 520", "499 client left")
