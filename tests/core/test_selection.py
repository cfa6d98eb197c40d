from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from llamaswapd.config.schema import Config, ModelConfig, Peer, Selector, SpilloverSettings
from llamaswapd.core.lifecycle import State
from llamaswapd.core.selection import Chosen, Selection, States
from llamaswapd.errors import NoSpilloverTarget

MODELS = {name: ModelConfig(id=name, aliases=(f"{name}-alias",)) for name in "abc"}
PEERS = {"p": Peer(id="p", models=("x", "y"))}


def selection(strategy: str, targets: Sequence[str], spillover: int = 1) -> Selection:
    selector = Selector(strategy=strategy, targets=tuple(targets), settings=SpilloverSettings(spillover=spillover))
    return Selection.of("s", Config(models=MODELS, peers=PEERS, selectors={"s": selector}))


def states(**given: State) -> States:
    """All models are stopped but for those given; peers have no state."""
    return lambda model: {**dict.fromkeys(MODELS, State.STOPPED), **given}[model]


NOBODY = states()


def chosen(selection: Selection, states: States, count: int) -> list[str]:
    return [selection.choose(states).name for _ in range(count)]


# ---- pin


def test_a_pin_is_always_the_first_target() -> None:
    pin = selection("pin", ("b", "a"))
    assert chosen(pin, states(a=State.READY), 3) == ["b", "b", "b"]


# ---- warm


@pytest.mark.parametrize(
    ("running", "expected"),
    [
        ({}, "a"),
        ({"c": State.STARTING}, "c"),
        ({"b": State.STARTING, "c": State.STARTING}, "b"),
        ({"b": State.STARTING, "c": State.READY}, "c"),
        ({"a": State.STARTING, "b": State.READY, "c": State.READY}, "b"),
        ({"b": State.STOPPING}, "a"),
    ],
)
def test_warm_takes_the_first_ready_target_else_the_first_that_starts_else_the_first(
    running: dict[str, Any], expected: str
) -> None:
    assert selection("warm", "abc").choose(states(**running)).name == expected


def test_a_target_keeps_the_name_that_the_list_has_for_it() -> None:
    assert selection("warm", ("a", "b-alias")).choose(states(b=State.READY)) == Chosen("b-alias", "s")


# ---- spillover


def test_with_nothing_active_the_first_cold_target_is_taken() -> None:
    assert selection("spillover", "abc").choose(NOBODY).name == "a"
    assert selection("spillover", "abc").choose(states(a=State.STOPPING)).name == "b"


def test_a_running_target_is_preferred_to_a_cold_one_before_it() -> None:
    assert chosen(selection("spillover", "abc", 2), states(c=State.STARTING), 2) == ["c", "c"]


def test_the_next_target_is_used_when_each_active_one_has_its_share() -> None:
    assert chosen(selection("spillover", "abc", 2), NOBODY, 6) == ["a", "a", "b", "b", "c", "c"]


def test_when_all_have_their_share_the_least_busy_is_taken_in_turns() -> None:
    spill = selection("spillover", "abc")
    assert sorted(chosen(spill, NOBODY, 3)) == ["a", "b", "c"]
    assert sorted(chosen(spill, NOBODY, 3)) == ["a", "b", "c"]


def test_equally_busy_targets_take_turns() -> None:
    spill, ready = selection("spillover", "abc", 5), states(a=State.READY, b=State.READY, c=State.READY)
    names = []
    for _ in range(6):
        choice = spill.choose(ready)
        names.append(choice.name)
        choice.release()
    assert names == ["a", "b", "c", "a", "b", "c"]


def test_the_least_busy_of_the_active_ones_is_taken() -> None:
    spill, ready = selection("spillover", "ab", 9), states(a=State.READY, b=State.READY)
    first = [spill.choose(ready) for _ in range(4)]
    assert [choice.name for choice in first] == ["a", "b", "a", "b"]
    first[1].release()
    first[3].release()
    assert chosen(spill, ready, 2) == ["b", "b"]


def test_a_stopped_target_that_has_requests_is_active() -> None:
    spill = selection("spillover", "ab", 2)
    assert chosen(spill, NOBODY, 1) == ["a"]
    assert chosen(spill, states(b=State.STOPPING), 3) == ["a", "a", "a"]


def test_a_request_that_has_ended_is_no_longer_counted_and_is_uncounted_once() -> None:
    spill = selection("spillover", "ab")
    first = spill.choose(NOBODY)
    first.release()
    first.release()
    assert chosen(spill, NOBODY, 2) == ["a", "b"]


def test_aliases_of_one_model_share_its_count() -> None:
    assert chosen(selection("spillover", ("a", "b-alias", "c")), states(b=State.READY), 3) == ["b-alias", "a", "c"]


def test_a_peer_is_active_while_it_has_requests() -> None:
    spill = selection("spillover", ("p/x", "y"), 2)
    assert chosen(spill, NOBODY, 4) == ["p/x", "p/x", "y", "y"]


def test_when_every_target_is_stopping_none_is_available() -> None:
    with pytest.raises(NoSpilloverTarget) as error:
        selection("spillover", "ab").choose(states(a=State.STOPPING, b=State.STOPPING))
    assert str(error.value) == 'selector "s" has no available spillover targets'
    assert error.value.status == 503
