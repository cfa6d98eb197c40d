from __future__ import annotations

import pytest

from llamaswapd.activity.query import Query, parse, rfc3339_seconds
from llamaswapd.errors import RequestError


def query(text: str) -> Query:
    values: dict[str, list[str]] = {}
    for name, _, value in (part.partition("=") for part in text.split("&") if part):
        values.setdefault(name, []).append(value)
    return parse(values)


def test_without_parameters_the_newest_25_are_asked_for() -> None:
    assert query("") == query("limit=&page=&sort=&order=&min_id=&start=&model=") == Query()
    assert (Query().limit, Query().page, Query().sort, Query().is_descending) == (25, 1, "id", True)


def test_every_parameter_is_heeded() -> None:
    text = "limit=999&page=3&model=a&model= b &min_id=2&max_id=2&sort=gen_speed&order=asc"
    text += "&start=2023-11-14T22:13:20Z&end=2023-11-14T23:13:20%2B01:00".replace("%2B", "+")
    expected = Query(999, 3, ("a", "b"), 2, 2, 1_700_000_000, 1_700_000_000, "gen_speed", False)
    assert query(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("limit=x", "invalid limit"),
        ("limit=1.5", "invalid limit"),
        ("limit=99999999999999999999", "invalid limit"),
        ("limit=0", "limit must be between 1 and 999"),
        ("limit=1000", "limit must be between 1 and 999"),
        ("limit=-1", "limit must be between 1 and 999"),
        ("page=0", "page must be >= 1"),
        ("page=x", "page must be >= 1"),
        ("sort=tokens", "invalid sort column"),
        ("sort=model_id", "invalid sort column"),
        ("order=up", "order must be asc or desc"),
        ("min_id=0", "min_id must be >= 1"),
        ("max_id=-3", "max_id must be >= 1"),
        ("min_id=3&max_id=2", "min_id must be <= max_id"),
        ("start=yesterday", "invalid 'start' timestamp, use RFC3339 format"),
        ("end=2023-11-14", "invalid 'end' timestamp, use RFC3339 format"),
        ("start=2023-11-14T22:13:21Z&end=2023-11-14T22:13:20Z", "start must be before end"),
    ],
)
def test_what_makes_no_sense_is_refused_in_llama_swaps_words(text: str, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        query(text)
    assert str(caught.value).startswith(message)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2023-11-14T22:13:20.999Z", 1_700_000_000),
        ("2023-11-14T22:13:20,5Z", 1_700_000_000),
        ("2023-11-14T22:13:20+00:00", 1_700_000_000),
        ("2023-11-14T20:13:20-02:00", 1_700_000_000),
        ("2024-02-29T00:00:00Z", 1_709_164_800),
        ("1969-12-31T23:59:59Z", -1),
        ("0000-01-01T00:00:00Z", -62_167_219_200),
        ("0000-02-29T00:00:00Z", -62_162_121_600),
        ("9999-12-31T23:59:59Z", 253_402_300_799),
    ],
)
def test_times_are_read_as_by_go(text: str, seconds: int) -> None:
    assert rfc3339_seconds(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "", "2023-11-14", "2023-11-14T22:13:20", "2023-11-14 22:13:20Z", "2023-11-14t22:13:20Z", "2023-11-14T22:13:20z",
        "2023-11-14T22:13:20.Z", "2023-11-14T22:13:20+0000", "2023-11-14T22:13:20+25:00", "2023-11-14T22:13Z",
        "2023-02-29T00:00:00Z", "2023-11-14T24:00:00Z", "2023-11-14T22:13:60Z", "2023-13-14T22:13:20Z",
        "23-11-14T22:13:20Z", " 2023-11-14T22:13:20Z", "2023-11-14T22:13:20Z\n", "２023-11-14T22:13:20Z",
    ],
)  # fmt: skip
def test_other_spellings_of_times_are_refused(text: str) -> None:
    assert rfc3339_seconds(text) is None
