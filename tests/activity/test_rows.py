from __future__ import annotations

from typing import Any

import pytest

from llamaswapd.activity.rows import Row, shown
from llamaswapd.activity.usage import NO_TOKENS, Tokens

UNREADABLE = "\N{REPLACEMENT CHARACTER}" * 3


def row(**values: Any) -> Row:
    plain = Row(1, 1_700_000_000, "m", "/x", "t", 200, NO_TOKENS, 0.0, 10.0, 0.0, 10.0, 11.0, 12.0, "", {})
    return plain._replace(**values)


def look(made: Row, *, has_capture: bool = False) -> dict[str, Any]:
    return shown(made.stored(), has_capture=has_capture)


def test_a_row_has_llama_swaps_fields_and_four_of_ours() -> None:
    assert look(row(tokens=Tokens(1, 2, 3, 4, 5, 6.5, 7.5)), has_capture=True) == {
        "id": 1,
        "timestamp": "2023-11-14T22:13:20Z",
        "model": "m",
        "req_path": "/x",
        "resp_content_type": "t",
        "resp_status_code": 200,
        "tokens": {
            "cache_tokens": 1,
            "draft_tokens": 2,
            "draft_acc_tokens": 3,
            "input_tokens": 4,
            "output_tokens": 5,
            "prompt_per_second": 6.5,
            "tokens_per_second": 7.5,
        },
        "duration_ms": 2000,
        "has_capture": True,
        "queued_ms": 0,
        "loading_ms": 0,
        "first_byte_ms": 1000,
        "streaming_ms": 1000,
    }


def test_errors_and_metadata_are_there_if_there_are_any() -> None:
    found = look(row(error="no luck", metadata={"fifo_priority": "5"}))
    assert (found["error_msg"], found["metadata"]) == ("no luck", {"fifo_priority": "5"})


def test_a_server_may_say_that_it_took_longer_but_not_less() -> None:
    assert [look(row(took_ms=took_ms))["duration_ms"] for took_ms in (1999.0, 2001.9)] == [2000, 2001]


@pytest.mark.parametrize(
    ("values", "phases"),
    [
        ({"load_began": 10.1, "granted": 10.4}, (100, 300, 600, 1000)),
        ({"load_began": 7.0, "granted": 10.4}, (0, 400, 600, 1000)),
        ({"granted": 10.4}, (400, 0, 600, 1000)),
        ({"load_began": 10.5, "granted": 0.0, "first_byte": 0.0}, (500, 1500, 0, 0)),
        ({"granted": 0.0, "first_byte": 0.0}, (2000, 0, 0, 0)),
        ({"first_byte": 0.0}, (0, 0, 0, 0)),
    ],
)
def test_the_duration_is_split_into_what_passed_when(values: dict[str, float], phases: tuple[int, ...]) -> None:
    found = look(row(**values))
    assert tuple(found[name] for name in ("queued_ms", "loading_ms", "first_byte_ms", "streaming_ms")) == phases


def test_text_that_is_none_is_kept_as_far_as_it_is() -> None:
    found = look(row(model_id="a\udcff", error="\ud800", metadata={"x": "\udcff"}, path="\0"))
    assert [found["model"], found["error_msg"], found["req_path"]] == [f"a{UNREADABLE}", UNREADABLE, "\0"]


def test_a_row_of_llama_swap_itself_has_no_fields_of_ours() -> None:
    found = shown((*row().stored()[:16], None, None, None, None), has_capture=False)
    assert "queued_ms" not in found
    assert found["duration_ms"] == 2000


def test_a_row_that_somebody_has_written_by_hand_is_shown() -> None:
    stored = list(row().stored())
    stored[1], stored[15] = 10**18, "no JSON"
    assert shown(stored, has_capture=False)["timestamp"] == "1970-01-01T00:00:00Z"
