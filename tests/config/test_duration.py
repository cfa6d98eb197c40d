from __future__ import annotations

import pytest

from llamaswapd.config.duration import duration_s, go_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("15s", 15), ("1m30s", 90), ("1.5h", 5400), (".5s", 0.5), ("2.s", 2), ("100ms", 0.1), ("0", 0), ("-3s", -3),
        ("+3s", 3), ("1h2m3s4ms", 3723.004), ("1us", 1e-6), ("1µs", 1e-6), ("3ns", 3e-9),
    ],
)  # fmt: skip
def test_a_duration_means_what_it_means_in_go(text: str, seconds: float) -> None:
    assert duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "5", "s", "5 s", "5S", "1d", "5s ", "1s2", "--1s", "300y", "9999999h", "1e3s", ".s"]
)
def test_anything_else_is_no_duration(text: str) -> None:
    assert duration_s(text) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"), (1.5, "1.5s"), (60, "1m0s"), (5400, "1h30m0s"), (0.25, "250ms"), (0.0000015, "1.5µs"), (3e-9, "3ns"),
        (-4, "-4s"), (4.999, "4.999s"),
    ],
)  # fmt: skip
def test_a_duration_is_written_as_go_writes_it(seconds: float, text: str) -> None:
    assert go_duration(seconds) == text
