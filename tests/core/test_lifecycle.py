from __future__ import annotations

import itertools

import pytest

from llamaswapd.core.lifecycle import TRANSITIONS, Cause, LifecycleError, State, advance

STOPPED, STARTING, READY, STOPPING = State

LEGAL = {
    (STOPPED, Cause.START): STARTING,
    (STOPPED, Cause.ADOPT): STARTING,
    (STARTING, Cause.READY): READY,
    (STARTING, Cause.FAILED): STOPPED,
    (STARTING, Cause.STOP): STOPPING,
    (READY, Cause.STOP): STOPPING,
    (READY, Cause.GONE): STOPPED,
    (STOPPING, Cause.READY): STOPPING,
    (STOPPING, Cause.FAILED): STOPPED,
    (STOPPING, Cause.GONE): STOPPED,
}


@pytest.mark.parametrize(("state", "cause"), list(itertools.product(State, Cause)))
def test_every_event_in_every_state_moves_as_listed_or_is_an_error(state: State, cause: Cause) -> None:
    if (state, cause) in LEGAL:
        assert advance(state, cause) is LEGAL[state, cause]
        return
    with pytest.raises(LifecycleError, match=f'"{cause.value}" cannot happen to a model that is {state.value}'):
        advance(state, cause)


def test_every_state_can_be_reached_and_left() -> None:
    arrivals = {after for row in TRANSITIONS.values() for after in row.values()}
    assert set(TRANSITIONS) == arrivals == set(State)


def test_the_values_are_those_of_running() -> None:
    assert [state.value for state in State] == ["stopped", "starting", "ready", "stopping"]
