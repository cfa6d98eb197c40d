"""Which states a model goes through, and what moves it from one to the next.

Everything that moves a state is in `TRANSITIONS`, and `advance` does not know who is asking. Two things are true of
every start, and the table follows from them:

* Its end is told exactly once: as FAILED by whoever waits for the model to become ready, as GONE from then on. A unit
  that ends by itself while it starts is therefore a failed start, not a unit gone: its waiters need the reason.
* A stop wins over whatever crosses it. A stop during the start aborts it: from then on the model is stopping, and the
  word that it is ready, already under way, changes nothing. Nor can anybody know whether the start's failure or the
  stop's success is noticed first; both mean that the unit is gone, so a stopping model takes either.

A stop is asked for once, and a start only when nothing of the last one is left: STOP while stopping and START in any
state but stopped are mistakes of the caller, like everything else that the table does not list.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from llamaswapd.errors import Error


class State(enum.Enum):
    """Where a model stands; the values are those of `/running`."""

    STOPPED = "stopped"  # no unit
    STARTING = "starting"  # a unit that does not serve yet
    READY = "ready"
    STOPPING = "stopping"  # asked to end, or its server ended by itself; not gone yet


class Cause(enum.Enum):
    """What happened to a model."""

    START = "start"
    ADOPT = "adopt"  # its unit was found; whether it serves will turn out as after a start
    READY = "ready"
    FAILED = "failed"  # it did not become ready; its unit is gone
    STOP = "stop"
    GONE = "gone"  # its unit ended, asked to or not


TRANSITIONS: Mapping[State, Mapping[Cause, State]] = {
    State.STOPPED: {Cause.START: State.STARTING, Cause.ADOPT: State.STARTING},
    State.STARTING: {Cause.READY: State.READY, Cause.FAILED: State.STOPPED, Cause.STOP: State.STOPPING},
    State.READY: {Cause.STOP: State.STOPPING, Cause.GONE: State.STOPPED},
    State.STOPPING: {Cause.READY: State.STOPPING, Cause.FAILED: State.STOPPED, Cause.GONE: State.STOPPED},
}


class LifecycleError(Error):
    """An event came in a state that cannot see it: a mistake in this program, never the user's."""

    def __init__(self, state: State, cause: Cause) -> None:
        super().__init__(f'"{cause.value}" cannot happen to a model that is {state.value}')


def advance(state: State, cause: Cause) -> State:
    """Return the state that follows; raises LifecycleError where the table lists none."""
    try:
        return TRANSITIONS[state][cause]
    except KeyError:
        raise LifecycleError(state, cause) from None
