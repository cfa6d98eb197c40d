from __future__ import annotations

from llamaswapd.activity.counts import BOUNDS_S, MODELS_LIMIT, NAME_LIMIT, OTHERS, Counts, Histogram, ModelCounts


def test_a_time_is_counted_in_the_first_class_that_holds_it() -> None:
    times = Histogram()
    for seconds in (0.0, BOUNDS_S[0], BOUNDS_S[0] + 0.001, 10_000.0):
        times.observe(seconds)
    assert (times.counts[0], times.counts[1], times.counts[-1], sum(times.counts)) == (2, 1, 1, 4)
    assert len(times.counts) == len(BOUNDS_S) + 1
    assert times.sum == sum((0.0, BOUNDS_S[0], BOUNDS_S[0] + 0.001, 10_000.0))


def test_a_request_is_counted_with_the_times_that_it_had() -> None:
    counts = ModelCounts()
    counts.add(200, 2.0, 0.5, 1.0)
    counts.add(200, 3.0, 0.5, None)
    counts.add(502, 4.0, None, None)
    assert counts.requests == {200: 2, 502: 1}
    assert (counts.duration.sum, counts.waiting.sum, counts.first_byte.sum) == (9.0, 1.0, 1.0)
    assert [sum(each.counts) for each in (counts.duration, counts.waiting, counts.first_byte)] == [3, 2, 1]


def test_names_without_end_become_one() -> None:
    counts = Counts()
    for number in range(MODELS_LIMIT + 10):
        counts[f"m{number}"].add(404, 1.0, None, None)
    assert len(counts) == MODELS_LIMIT + 1
    assert counts[OTHERS].requests == {404: 10}
    assert counts["m5"].requests == {404: 1}


def test_names_that_are_very_long_are_counted_as_one() -> None:
    counts = Counts()
    for letter in "ab":
        counts[letter * NAME_LIMIT].add(404, 1.0, None, None)
        counts[letter * (NAME_LIMIT + 1)].add(404, 1.0, None, None)
    assert set(counts) == {"a" * NAME_LIMIT, "b" * NAME_LIMIT, OTHERS}
    assert counts[OTHERS].requests == {404: 2}


def test_a_model_that_is_configured_is_counted_by_itself_whatever_else_was_asked_for() -> None:
    counts = Counts()
    counts.configured = {"mine", "m" * (NAME_LIMIT + 1)}
    for number in range(MODELS_LIMIT):
        counts[f"m{number}"].add(404, 1.0, None, None)
    for name in ("mine", "m" * (NAME_LIMIT + 1), "yours"):
        counts[name].add(200, 1.0, None, None)
    assert counts["mine"].requests == counts["m" * (NAME_LIMIT + 1)].requests == {200: 1}
    assert counts[OTHERS].requests == {200: 1}
