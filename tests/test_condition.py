"""How the daemon is, in the words for everybody."""

from __future__ import annotations

from llamaswapd.condition import Condition


def test_the_status_line_counts_models_and_requests() -> None:
    assert Condition().status_line(2, 1, 3) == "2 ready, 1 loading, 3 queued"


def test_it_says_what_is_wrong_in_one_line_each() -> None:
    condition = Condition(bus_error="no bus\nmore", state_error="disk full")
    assert condition.status_line(0, 0, 0) == "0 ready, 0 loading, 0 queued; no bus; disk full"


def test_it_says_first_that_the_daemon_is_stopping() -> None:
    assert Condition(is_draining=True).status_line(0, 0, 1).startswith("stopping, ")


def test_what_a_refused_configuration_says_is_not_for_everybody() -> None:
    condition = Condition(config_error='models.m.env: "KEY=secret" is wrong', config_summary="refused (models.m.env)")
    assert "secret" not in condition.status_line(0, 0, 0)
    assert "refused (models.m.env)" in condition.status_line(0, 0, 0)
    assert condition.troubles == ['models.m.env: "KEY=secret" is wrong']
