"""Transcripts: an event, and the actions that follow from it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import pytest

from llamaswapd.config.schema import Config, Group, Matrix, ModelConfig
from llamaswapd.core.lifecycle import LifecycleError, State
from llamaswapd.core.policy import GroupPolicy, MatrixPolicy, policy_of
from llamaswapd.core.scheduler import Action, Grant, Position, Refuse, Scheduler, Start, Stop
from llamaswapd.errors import CrashLoop, ShuttingDown, StartError, TooManyRequests, UnknownModel, Unloaded

APART = {"apart": Group(members=("a", "b", "c"), swap=False)}  # they run side by side
BESIDE = {  # two that swap for each other, beside two others that do
    "one": Group(members=("a", "b"), exclusive=False),
    "other": Group(members=("s", "t"), exclusive=False),
}
WHY = StartError("exit status 3")
SIDE = {"side": Group(members=("s",), exclusive=False)}  # s starts beside a and b, who stop it when they are used


def scheduler(
    groups: Mapping[str, Group] = {},
    overtake_limit_s: float = 30.0,
    priority: Mapping[str, int] = {},
    **models: ModelConfig,
) -> Scheduler:
    names = {"a", "b", "c", "s"} | set(models)
    configs = {name: models.get(name, model()) for name in sorted(names)}
    return Scheduler(configs, GroupPolicy(Config(groups=groups)), overtake_limit_s, priority)


def model(unload_timeout: int = 10, ttl: int = 0, concurrency_limit: int = 0) -> ModelConfig:
    return ModelConfig(unload_timeout=unload_timeout, ttl=ttl, concurrency_limit=concurrency_limit)


def serving(s: Scheduler, name: str, *tickets: int) -> Scheduler:
    """Bring a model up and grant it these requests."""
    s = ready(s, name)
    for ticket in tickets:
        assert s.request(ticket, name, now=0) == [Grant(ticket)]
    return s


def ready(s: Scheduler, name: str, now: float = 0) -> Scheduler:
    """Bring a model up beside what runs."""
    assert [*s.adopt(name, now), *s.ready(name, now)] == []
    return s


def leave(s: Scheduler, name: str, now: float) -> Sequence[Action]:
    """Give a slot back that was taken without a ticket."""
    return s.idle(name, now) if s.slots[name].give_back(now) else []


def refused(actions: Sequence[Action], error: type[Exception]) -> list[int]:
    """Which tickets are refused with this kind of error."""
    return [action.ticket for action in actions if isinstance(action, Refuse) and type(action.error) is error]


# ---- a load --------------------------------------------------------------------------------------------------------


def test_a_request_to_a_stopped_model_starts_it_and_is_granted_when_it_is_ready() -> None:
    s = scheduler()
    assert s.request(1, "a", now=0) == [Start("a")]
    assert s.state("a") is State.STARTING
    assert s.ready("a", now=3) == [Grant(1)]
    assert (s.in_flight("a"), s.waiting("a")) == (1, 0)


def test_a_request_to_a_ready_model_is_granted_at_once() -> None:
    s = serving(scheduler(), "a")
    assert s.request(1, "a", now=1) == [Grant(1)]
    assert s.release(1, now=2) == []
    assert s.in_flight("a") == 0


# ---- without a ticket


def test_a_request_enters_if_it_would_be_granted_at_once() -> None:
    s = serving(scheduler(a=model(concurrency_limit=2)), "a", 1)
    assert s.slots["a"].take()
    assert (s.in_flight("a"), s.waiting("a")) == (2, 0)
    assert not s.slots["a"].take(), "its slots are taken"
    assert leave(s, "a", now=1) == []
    assert s.slots["a"].take()


@pytest.mark.parametrize("name", ["a", "b"])
def test_nobody_enters_while_somebody_waits(name: str) -> None:
    s = serving(scheduler(APART | {"x": Group(members=("s",))}), "a", 1)
    ready(s, "b")
    s.request(2, "s", now=1)
    assert not s.slots[name].take()


def test_nobody_enters_what_is_not_ready_or_is_stopping_or_would_stop_another() -> None:
    s = serving(scheduler(SIDE), "a")
    assert not s.slots["b"].take()
    ready(s, "s")
    assert not s.slots["a"].take(), "s has to stop for it"
    s.unload(["s", "a"], now=1)
    assert not s.slots["a"].take()
    assert (s.in_flight("a"), s.waiting("a")) == (0, 0)


def test_the_last_to_leave_lets_the_queue_go_on() -> None:
    s = serving(scheduler(), "a")
    assert s.slots["a"].take()
    assert s.slots["a"].take()
    s.request(1, "b", now=1)
    assert leave(s, "a", now=2) == []
    assert leave(s, "a", now=3) == [Stop("a", 10)]


def test_a_ttl_counts_from_when_the_last_has_left() -> None:
    s = serving(scheduler(a=model(ttl=5)), "a")
    assert s.deadline_of("a") == 5
    assert s.slots["a"].take()
    assert s.deadline_of("a") is None
    leave(s, "a", now=7)
    assert s.deadline_of("a") == s.next_deadline() == 12


def test_nobody_enters_after_a_shutdown() -> None:
    s = scheduler()
    s.shutdown(now=0)
    assert not s.slots["a"].take()


def test_requests_that_wait_for_the_same_load_share_its_success() -> None:
    s = scheduler()
    assert s.request(1, "a", now=0) == [Start("a")]
    assert s.request(2, "a", now=1) == []
    assert s.waiting("a") == 2
    assert s.ready("a", now=2) == [Grant(1), Grant(2)]


def test_requests_that_wait_for_the_same_load_share_its_error_and_the_next_tries_again() -> None:
    s = scheduler()
    s.request(1, "a", now=0)
    s.request(2, "a", now=1)
    why = StartError("exit status 3")
    assert s.failed("a", why, now=2) == [Refuse(1, why), Refuse(2, why)]
    assert (s.state("a"), s.waiting("a")) == (State.STOPPED, 0)
    assert s.request(3, "a", now=2) == [Start("a")]


def test_a_client_that_leaves_during_the_load_is_dropped_and_the_load_goes_on() -> None:
    s = scheduler()
    s.request(1, "a", now=0)
    s.request(2, "a", now=0)
    assert s.release(1, now=1) == []
    assert s.release(2, now=1) == []
    assert s.state("a") is State.STARTING
    assert s.ready("a", now=2) == []
    assert s.request(3, "a", now=3) == [Grant(3)]


# ---- units that are found ------------------------------------------------------------------------------------------


def test_a_unit_that_is_found_is_a_load_under_way_and_requests_join_it() -> None:
    s = scheduler()
    assert s.adopt("a", now=0) == []
    assert s.state("a") is State.STARTING
    assert s.request(1, "a", now=1) == []
    assert s.ready("a", now=2) == [Grant(1)]


def test_a_unit_that_is_found_serves_at_once_when_it_is_ready() -> None:
    s = ready(scheduler(), "a")
    assert s.state("a") is State.READY
    assert s.slots["a"].take()


def test_a_request_for_another_model_waits_until_it_is_known_what_was_found() -> None:
    s = scheduler()
    s.adopt("a", now=0)
    assert s.request(1, "b", now=1) == [Position(1, 1)]
    assert s.swap_began("a") is None, "nobody stops for it"
    assert s.ready("a", now=2) == [Stop("a", 10)]
    assert s.gone("a", now=3) == [Start("b")]


def test_a_unit_that_was_found_and_does_not_answer_is_a_failed_load() -> None:
    s = scheduler()
    s.adopt("a", now=0)
    s.request(1, "a", now=1)
    assert s.failed("a", WHY, now=2) == [Refuse(1, WHY)]
    assert s.request(2, "a", now=3) == [Start("a")]


def test_several_units_may_be_found_though_they_could_not_have_been_started_beside_each_other() -> None:
    s = ready(ready(scheduler(), "a"), "b")
    assert (s.state("a"), s.state("b")) == (State.READY, State.READY)
    assert s.request(1, "a", now=1) == [Stop("b", 10)]
    assert s.gone("b", now=2) == [Grant(1)]


def test_the_idle_time_of_a_unit_that_was_found_began_when_it_was_last_used() -> None:
    s = scheduler(a=model(ttl=60))
    s.adopt("a", now=1000)
    assert s.deadline_of("a") is None
    s.ready("a", now=1001, idle_since=970)
    assert (s.idle_since("a"), s.next_deadline()) == (970, 1030)
    assert s.tick(now=1030) == [Stop("a", 10)]


def test_a_unit_may_be_found_whose_model_somebody_waits_for_already() -> None:
    s = serving(scheduler(), "b")
    assert s.request(1, "a", now=1) == [Stop("b", 10)]
    assert s.adopt("a", now=2) == []
    assert s.ready("a", now=3) == [], "b has to be gone"
    assert s.gone("b", now=4) == [Grant(1)]


def test_a_unit_that_is_found_can_be_unloaded() -> None:
    s = scheduler()
    s.adopt("a", now=0)
    assert s.unload(["a"], now=1) == [Stop("a", 5)]
    assert s.ready("a", now=1) == []  # crossed with the stop
    assert s.gone("a", now=2) == []


# ---- swaps ---------------------------------------------------------------------------------------------------------


def test_a_swap_starts_the_target_only_when_every_evicted_model_is_gone() -> None:
    s = scheduler({"pair": Group(members=("a", "b"), swap=False)})
    ready(s, "a")
    ready(s, "b")
    assert s.request(1, "c", now=1) == [Stop("a", 10), Stop("b", 10)]
    assert s.gone("b", now=2) == []
    assert s.gone("a", now=3) == [Start("c")]
    assert s.ready("c", now=4) == [Grant(1)]


def test_the_grace_of_an_eviction_is_the_evicted_model_s_unload_timeout() -> None:
    s = serving(scheduler(a=model(unload_timeout=77)), "a")
    assert s.request(1, "b", now=1) == [Stop("a", 77)]


def test_a_swap_waits_for_requests_in_flight() -> None:
    s = serving(scheduler(), "a", 1, 2)
    assert s.request(3, "b", now=1) == [Position(3, 1)]
    assert s.release(1, now=3) == []
    assert s.release(2, now=4) == [Stop("a", 10)]
    assert s.gone("a", now=5) == [Start("b")]
    assert s.ready("b", now=6) == [Grant(3)]


def test_requests_for_the_running_model_are_served_while_a_swap_away_from_it_is_queued() -> None:
    s = serving(scheduler(), "a", 1)
    s.request(2, "b", now=1)
    assert s.request(3, "a", now=2) == [Grant(3)]


def test_queued_requests_are_batched_per_model() -> None:
    s = serving(scheduler(), "a", 1)
    for ticket, name in enumerate(("b", "c", "a", "b", "c"), 2):
        s.request(ticket, name, now=1)
    s.release(1, now=2)
    assert s.release(4, now=2) == [Stop("a", 10), Position(3, 1), Position(6, 2)]
    assert s.gone("a", now=3) == [Start("b")]
    assert s.ready("b", now=4) == [Grant(2), Grant(5)]
    s.release(2, now=5)
    assert s.release(5, now=5) == [Stop("b", 10)]
    assert s.gone("b", now=6) == [Start("c")]
    assert s.ready("c", now=7) == [Grant(3), Grant(6)]


def test_a_request_that_would_evict_the_target_of_a_load_waits_until_that_is_served() -> None:
    s = scheduler()
    assert s.request(1, "a", now=0) == [Start("a")]
    assert s.request(2, "b", now=1) == [Position(2, 1)]
    assert s.ready("a", now=2) == [Grant(1)]
    assert s.release(1, now=3) == [Stop("a", 10)]


def test_a_failed_load_lets_the_queue_go_on() -> None:
    s = scheduler()
    s.request(1, "a", now=0)
    s.request(2, "b", now=1)
    why = StartError("exit status 3")
    assert s.failed("a", why, now=2) == [Refuse(1, why), Start("b")]


def test_swaps_that_do_not_clash_run_side_by_side() -> None:
    s = scheduler(APART)
    assert s.request(1, "a", now=0) == [Start("a")]
    assert s.request(2, "b", now=0) == [Start("b")]
    assert s.ready("b", now=1) == [Grant(2)]
    assert s.ready("a", now=2) == [Grant(1)]


def test_an_entry_that_cannot_proceed_does_not_block_others_behind_it() -> None:
    s = serving(scheduler({"pinned": Group(members=("b", "c"), exclusive=False, persistent=True)}), "b", 1)
    assert s.request(2, "c", now=1) == [Position(2, 1)]
    assert s.request(3, "a", now=2) == [Start("a")]


def test_a_swap_that_evicts_what_another_one_is_evicting_waits_for_that_one() -> None:
    s = serving(scheduler(APART), "s")
    assert s.request(1, "a", now=1) == [Stop("s", 10)]
    assert s.request(2, "b", now=2) == [Position(2, 1)]
    assert s.gone("s", now=3) == [Start("a"), Start("b")]  # now they have nothing in common


def test_a_swap_that_would_evict_the_target_of_another_one_waits_for_that_one() -> None:
    s = serving(scheduler(), "a")
    assert s.request(1, "b", now=1) == [Stop("a", 10)]
    assert s.request(2, "c", now=2) == [Position(2, 1)]
    assert s.gone("a", now=3) == [Start("b")]


def test_a_request_for_a_model_that_is_being_evicted_waits_and_swaps_back_later() -> None:
    s = serving(scheduler(), "a")
    assert s.request(1, "b", now=1) == [Stop("a", 10)]
    assert s.request(2, "a", now=2) == [Position(2, 1)]
    assert s.gone("a", now=3) == [Start("b")]
    assert s.ready("b", now=4) == [Grant(1)]
    assert s.release(1, now=5) == [Stop("b", 10)]
    assert s.gone("b", now=6) == [Start("a")]
    assert s.ready("a", now=7) == [Grant(2)]


def test_a_model_evicted_by_a_swap_is_not_started_before_that_swap_has_ended() -> None:
    s = scheduler({"side": Group(members=("b", "s"), exclusive=False, swap=False)})
    ready(s, "s")
    ready(s, "b")
    assert s.request(1, "a", now=1) == [Stop("b", 10), Stop("s", 10)]
    assert s.gone("s", now=2) == []
    assert s.request(2, "s", now=3) == [Position(2, 1)]
    assert s.gone("b", now=4) == [Start("a")]
    assert s.ready("a", now=5) == [Grant(1), Start("s")]


def test_a_swap_whose_clients_have_all_left_goes_on() -> None:
    s = serving(scheduler(), "a")
    s.request(1, "b", now=1)
    assert s.release(1, now=2) == []
    assert s.gone("a", now=3) == [Start("b")]


def test_a_queued_request_whose_client_left_starts_nothing() -> None:
    s = serving(scheduler(), "a", 1)
    s.request(2, "b", now=1)
    assert s.release(2, now=2) == []
    assert s.release(1, now=3) == []
    assert s.state("a") is State.READY


def test_the_rule_of_groups_is_applied_to_a_ready_model_too() -> None:
    s = serving(scheduler(SIDE), "a")
    assert s.request(1, "s", now=1) == [Start("s")]
    assert s.ready("s", now=2) == [Grant(1)]
    assert s.request(2, "a", now=3) == [Position(2, 1)]  # s must go first, and it is busy
    assert s.release(1, now=4) == [Stop("s", 10)]
    assert s.request(3, "a", now=5) == []
    assert s.gone("s", now=6) == [Grant(2), Grant(3)]


def test_a_ready_target_that_ends_while_others_stop_for_it_is_started_again() -> None:
    s = serving(scheduler(SIDE), "a")
    ready(s, "s")
    assert s.request(1, "a", now=1) == [Stop("s", 10)]
    assert s.gone("a", now=2) == []
    assert s.gone("s", now=3) == [Start("a")]


# ---- units that end by themselves ----------------------------------------------------------------------------------


def test_a_model_that_ends_by_itself_is_started_by_the_next_request() -> None:
    s = serving(scheduler(), "a", 1)
    assert s.gone("a", now=1) == []
    assert (s.state("a"), s.in_flight("a")) == (State.STOPPED, 1)
    assert s.request(2, "a", now=2) == [Start("a")]
    assert s.release(1, now=3) == []
    assert s.ready("a", now=4) == [Grant(2)]
    assert s.in_flight("a") == 1


def test_nobody_is_sent_to_a_model_that_ended_by_itself_and_is_not_quite_gone() -> None:
    s = serving(scheduler(), "a", 1)
    assert s.ended("a", now=1) == []
    assert s.state("a") is State.STOPPING
    assert s.request(2, "a", now=2) == [Position(2, 1)]
    assert s.gone("a", now=3) == [Start("a")]
    assert s.ready("a", now=4) == [Grant(2)]


def test_a_model_that_ends_while_others_stop_for_it_is_started_when_all_are_gone() -> None:
    s = serving(serving(scheduler(SIDE), "a"), "s")
    assert s.request(1, "a", now=1) == [Stop("s", 10)]
    assert s.ended("a", now=2) == []
    assert s.gone("s", now=3) == []
    assert s.gone("a", now=4) == [Start("a")]
    assert s.ready("a", now=5) == [Grant(1)]


def test_a_model_that_ends_by_itself_makes_room_for_the_queue() -> None:
    s = serving(scheduler(), "a", 1)
    s.request(2, "b", now=1)
    assert s.gone("a", now=2) == [Start("b")]


def test_word_of_an_end_that_cannot_be_is_an_error_and_changes_nothing() -> None:
    s = scheduler()
    s.request(1, "a", now=0)
    with pytest.raises(LifecycleError, match='"gone" cannot happen to a model that is starting'):
        s.gone("a", now=1)
    with pytest.raises(LifecycleError, match='"ready" cannot happen to a model that is stopped'):
        s.ready("b", now=1)
    assert s.ready("a", now=2) == [Grant(1)]


# ---- the queue -----------------------------------------------------------------------------------------------------


def test_positions_are_told_when_they_change_and_only_then() -> None:
    s = serving(scheduler(), "a", 1)
    assert s.request(2, "b", now=1) == [Position(2, 1)]
    assert s.request(3, "c", now=2) == [Position(3, 2)]
    assert s.request(4, "b", now=3) == [Position(4, 3)]
    assert s.release(2, now=4) == [Position(3, 1), Position(4, 2)]
    assert s.request(5, "a", now=5) == [Grant(5)]


def test_a_higher_priority_is_queued_before_the_first_lower_one_and_equal_ones_in_order_of_arrival() -> None:
    s = serving(scheduler(priority={"b": 5, "s": 9}), "a", 1)
    s.request(2, "c", now=1)
    assert s.request(3, "b", now=2) == [Position(3, 1), Position(2, 2)]
    assert s.request(4, "b", now=3) == [Position(4, 2), Position(2, 3)]
    assert s.request(5, "s", now=4) == [Position(5, 1), Position(3, 2), Position(4, 3), Position(2, 4)]
    assert s.release(1, now=5)[0] == Stop("a", 10)
    assert s.gone("a", now=6) == [Start("s")]


def test_priority_does_not_preempt() -> None:
    s = serving(scheduler(priority={"b": 5}), "a", 1)
    s.request(2, "b", now=1)
    assert s.request(3, "a", now=2) == [Grant(3)]


# ---- bounded overtaking --------------------------------------------------------------------------------------------


def test_overlapping_clients_of_one_model_do_not_starve_a_client_of_another() -> None:
    s = serving(scheduler(overtake_limit_s=30), "a", 0)
    assert s.request(1000, "b", now=0) == [Position(1000, 1)]
    stops = []
    for now in range(1, 60):  # every second a client comes before the last one leaves
        s.request(now, "a", now)
        stops += [(now, action) for action in s.release(now - 1, now) if isinstance(action, Stop)]
        if stops:
            break
    assert stops == [(30, Stop("a", 10))]
    assert s.gone("a", now=31) == [Start("b")]
    assert Grant(1000) in s.ready("b", now=32)
    assert s.release(1000, now=33) == [Stop("b", 10)]  # and the one who was held back is next


def test_who_came_within_the_bound_is_served_with_its_model_and_who_came_later_waits_behind() -> None:
    s = serving(scheduler(overtake_limit_s=30), "a", 1)
    s.request(2, "b", now=0)
    assert s.request(3, "a", now=29.9) == [Grant(3)]
    assert s.request(4, "a", now=30) == [Position(4, 2)]
    s.release(1, now=31)
    assert s.release(3, now=32) == [Stop("a", 10), Position(4, 1)]


def test_with_a_bound_of_nothing_nobody_overtakes() -> None:
    s = serving(scheduler(overtake_limit_s=0), "a", 1)
    s.request(2, "b", now=0)
    assert s.request(3, "a", now=0) == [Position(3, 2)]


def test_who_came_first_is_the_oldest_even_when_the_clock_cannot_tell() -> None:
    s = serving(scheduler(overtake_limit_s=0, priority={"c": 1}), "a", 1)
    s.request(2, "b", now=0)
    s.request(3, "c", now=0)
    s.release(1, now=0)
    assert s.gone("a", now=0) == [Start("b")]


def test_a_newcomer_that_delays_nobody_may_overtake() -> None:
    s = serving(scheduler(APART, overtake_limit_s=0), "a", 1)
    ready(s, "s")
    s.request(2, "s", now=0)  # waits for a
    assert s.request(3, "s", now=1) == [Position(3, 2)]
    s = scheduler({"pinned": Group(members=("c",), exclusive=False, persistent=True)}, overtake_limit_s=0)
    serving(s, "a", 1)
    s.request(2, "b", now=0)
    assert s.request(3, "c", now=1) == [Start("c")]


def test_a_newcomer_starts_nothing_that_the_oldest_would_have_to_evict() -> None:
    """Model s could start beside a at any time, and would have to become idle for b; it starts beside b instead."""
    s = serving(scheduler(SIDE), "a", 1)
    s.request(2, "b", now=0)
    assert s.request(3, "s", now=30) == [Position(3, 2)]
    assert s.release(1, now=31) == [Stop("a", 10), Start("s")]


def test_a_newcomer_does_not_join_a_load_that_the_oldest_waits_for() -> None:
    s = scheduler()
    s.request(1, "a", now=0)
    s.request(2, "b", now=0)
    assert s.request(3, "a", now=29) == []
    assert s.request(4, "a", now=30) == [Position(4, 2)]
    assert s.ready("a", now=31) == [Grant(1), Grant(3)]


def test_those_who_were_held_back_pass_when_the_oldest_leaves() -> None:
    s = serving(scheduler(), "a", 1)
    s.request(2, "b", now=0)
    s.request(3, "a", now=30)
    assert s.release(2, now=31) == [Grant(3)]


def test_a_higher_priority_does_not_overtake_for_ever() -> None:
    s = serving(scheduler(priority={"c": 1}), "a", 1)
    s.request(2, "b", now=0)
    assert s.request(3, "c", now=30) == [Position(3, 1), Position(2, 2)]
    assert s.release(1, now=31) == [Stop("a", 10)]
    assert s.gone("a", now=32) == [Start("b")]


# ---- the concurrency limit -----------------------------------------------------------------------------------------


def test_every_admitted_request_takes_a_slot_until_it_ends() -> None:
    s = serving(scheduler(b=model(concurrency_limit=2)), "a", 1)
    s.request(2, "b", now=1)  # queued
    s.request(3, "b", now=1)
    assert refused(s.request(4, "b", now=1), TooManyRequests) == [4]
    s.release(1, now=2)
    s.gone("a", now=3)  # waiting for the load
    assert refused(s.request(5, "b", now=3), TooManyRequests) == [5]
    s.ready("b", now=4)  # being served
    assert refused(s.request(6, "b", now=4), TooManyRequests) == [6]
    s.release(2, now=5)
    assert s.request(7, "b", now=5) == [Grant(7)]


def test_a_refused_load_gives_the_slots_back() -> None:
    s = scheduler(a=model(concurrency_limit=1))
    s.request(1, "a", now=0)
    s.failed("a", StartError("exit status 3"), now=1)
    assert s.request(2, "a", now=2) == [Start("a")]


def test_ten_requests_are_admitted_when_nothing_is_configured() -> None:
    s = serving(scheduler(), "a", *range(10))
    assert refused(s.request(10, "a", now=0), TooManyRequests) == [10]


def test_a_ticket_that_is_not_alive_cannot_be_released_nor_one_in_use_requested() -> None:
    s = serving(scheduler(), "a", 1)
    with pytest.raises(ValueError, match="ticket 1 is in use"):
        s.request(1, "b", now=1)
    s.release(1, now=1)
    with pytest.raises(LookupError, match="ticket 1 was never admitted, or has ended"):
        s.release(1, now=2)


# ---- ttl -----------------------------------------------------------------------------------------------------------


def test_an_idle_model_stops_when_its_ttl_has_passed_since_the_last_request_ended() -> None:
    s = serving(scheduler(a=model(ttl=60, unload_timeout=7)), "a", 1)
    s.release(1, now=100)
    assert s.next_deadline() == 160
    assert s.tick(now=159) == []
    assert s.tick(now=160) == [Stop("a", 7)]
    assert s.next_deadline() is None


def test_a_ttl_counts_from_becoming_ready_whatever_was_before() -> None:
    s = scheduler(a=model(ttl=60))
    s.request(1, "a", now=1000)
    s.release(1, now=1001)
    assert s.next_deadline() is None
    s.ready("a", now=1100)
    assert s.next_deadline() == 1160
    assert s.tick(now=1101) == []


def test_a_model_in_use_never_expires() -> None:
    s = serving(scheduler(a=model(ttl=60)), "a", 1)
    assert s.next_deadline() is None
    assert s.tick(now=1e6) == []


def test_a_ttl_of_nothing_never_expires() -> None:
    s = serving(scheduler(), "a")
    assert s.next_deadline() is None
    assert s.tick(now=1e6) == []


def test_the_earliest_deadline_counts() -> None:
    s = scheduler(APART, a=model(ttl=60), b=model(ttl=20))
    ready(s, "a")
    ready(s, "b", now=1)
    assert s.next_deadline() == 21


def test_a_request_during_the_stop_waits_and_starts_the_model_again() -> None:
    s = serving(scheduler(a=model(ttl=60)), "a")
    assert s.tick(now=60) == [Stop("a", 10)]
    assert s.request(1, "a", now=61) == [Position(1, 1)]
    assert s.gone("a", now=62) == [Start("a")]
    assert s.ready("a", now=63) == [Grant(1)]


def test_a_model_that_others_stop_for_does_not_expire() -> None:
    s = serving(scheduler(SIDE, a=model(ttl=60)), "a")
    ready(s, "s")
    s.request(1, "a", now=1)
    s.release(1, now=2)
    assert s.next_deadline() is None
    assert s.tick(now=60) == []
    s.gone("s", now=61)
    assert s.tick(now=62) == [Stop("a", 10)]


# ---- unload --------------------------------------------------------------------------------------------------------


def test_an_unload_cuts_what_is_in_flight_and_the_model_may_be_requested_again_at_once() -> None:
    s = serving(scheduler(a=model(unload_timeout=7)), "a", 1)
    assert s.unload(["a"], now=1) == [Stop("a", 7)]
    assert s.request(2, "a", now=2) == [Position(2, 1)]
    assert s.release(1, now=3) == []
    assert s.gone("a", now=4) == [Start("a")]


def test_a_request_that_was_cut_may_be_released_after_the_model_is_gone() -> None:
    s = serving(scheduler(), "a", 1)
    s.unload(["a"], now=1)
    s.gone("a", now=2)
    assert s.release(1, now=3) == []
    assert s.in_flight("a") == 0


def test_an_unload_refuses_who_is_queued_for_the_model_and_nobody_else() -> None:
    s = serving(scheduler(), "a", 1)
    s.request(2, "b", now=1)
    s.request(3, "c", now=1)
    s.request(4, "b", now=1)
    actions = s.unload(["b"], now=2)
    assert refused(actions, Unloaded) == [2, 4]
    assert actions[2:] == [Position(3, 1)]
    assert s.waiting("b") == 0


def test_an_unload_aborts_a_load_and_refuses_who_waits_for_it() -> None:
    s = scheduler()
    s.request(1, "a", now=0)
    actions = s.unload(["a"], now=1)
    assert refused(actions, Unloaded) == [1]
    assert actions[1:] == [Stop("a", 5)]
    assert s.request(2, "a", now=2) == [Position(2, 1)]
    assert s.gone("a", now=3) == [Start("a")]


@pytest.mark.parametrize("end", ["gone", "failed"])
def test_an_aborted_load_may_end_as_gone_or_as_failed_and_wakes_whoever_waits(end: str) -> None:
    s = scheduler()
    s.request(1, "a", now=0)
    s.unload(["a"], now=1)
    assert s.request(2, "b", now=2) == []  # its swap waits for the end of a
    assert s.ready("a", now=2) == []  # crossed with the stop
    assert (s.gone("a", now=3) if end == "gone" else s.failed("a", StartError("killed"), now=3)) == [Start("b")]


def test_an_unload_abandons_a_swap_that_still_waits_for_its_evictions() -> None:
    s = serving(scheduler(), "a")
    s.request(1, "b", now=1)
    assert refused(s.unload(["b"], now=2), Unloaded) == [1]
    assert s.gone("a", now=3) == []
    assert s.request(2, "b", now=4) == [Start("b")]


def test_an_unload_makes_way_for_who_clashed_with_the_load() -> None:
    s = scheduler()
    s.request(1, "a", now=0)
    s.request(2, "b", now=0)
    assert s.unload(["a"], now=1)[1:] == [Stop("a", 5)]
    assert s.gone("a", now=2) == [Start("b")]


def test_an_unload_does_not_hold_up_other_models() -> None:
    s = scheduler(APART)
    serving(s, "a", 1)
    serving(s, "b", 2)
    s.unload(["a"], now=1)
    assert s.request(3, "b", now=1) == [Grant(3)]
    assert s.request(4, "c", now=1) == [Start("c")]


def test_a_swap_waits_for_the_end_of_an_unloaded_model_but_not_for_the_requests_it_cut() -> None:
    s = serving(scheduler(), "a", 1)
    s.unload(["a"], now=1)
    assert s.request(2, "b", now=2) == []
    assert s.gone("a", now=3) == [Start("b")]


def test_unloading_what_does_not_run_or_stops_already_stops_nothing() -> None:
    s = serving(scheduler(), "a")
    assert s.unload(["a", "b", "a"], now=1) == [Stop("a", 10)]
    assert s.unload(["a", "b"], now=2) == []


# ---- shutdown ------------------------------------------------------------------------------------------------------


def test_a_shutdown_refuses_everybody_who_waits_and_stops_everything() -> None:
    s = scheduler(APART)
    serving(s, "a", 1)
    s.request(2, "b", now=1)  # loading
    s.request(3, "s", now=1)  # queued
    actions = s.shutdown(now=2, grace_s=12)
    assert refused(actions, ShuttingDown) == [2, 3]
    assert actions[2:] == [Stop("a", 12), Stop("b", 5)]
    assert s.release(1, now=3) == []
    assert [*s.gone("a", now=4), *s.gone("b", now=4)] == []
    assert refused(s.request(4, "a", now=5), ShuttingDown) == [4]


def test_a_shutdown_with_little_time_left_shortens_every_grace() -> None:
    s = scheduler(APART)
    ready(s, "a")
    s.request(1, "b", now=0)
    assert s.shutdown(now=1, grace_s=0.5)[1:] == [Stop("a", 0.5), Stop("b", 0.5)]


def test_a_shutdown_gives_up_swaps_whose_evictions_are_under_way() -> None:
    s = serving(scheduler(), "a")
    s.request(1, "b", now=1)
    assert refused(s.shutdown(now=2), ShuttingDown) == [1]
    assert s.gone("a", now=3) == []


# ---- every way out -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "way_out",
    [
        lambda s: s.failed("a", StartError("exit status 3"), now=2),
        lambda s: s.unload(["a"], now=2),
        lambda s: s.shutdown(now=2),
        lambda s: s.ready("a", now=2),
    ],
    ids=["failed", "unload", "shutdown", "ready"],
)
def test_every_waiter_is_released_on_every_way_out_of_a_load(way_out: Callable[[Scheduler], list[Action]]) -> None:
    s = scheduler()
    for ticket in range(3):
        s.request(ticket, "a", now=0)
    ended = [action.ticket for action in way_out(s) if isinstance(action, Grant | Refuse)]
    assert ended == [0, 1, 2]
    assert s.waiting("a") == 0


# ---- policies ------------------------------------------------------------------------------------------------------


def test_a_policy_is_asked_again_only_when_what_runs_has_changed() -> None:
    class Counting:
        name = "counting"
        asked = 0

        def evictions(self, target: str, running: Collection[str]) -> tuple[str, ...]:
            self.asked += 1
            return tuple(other for other in running if other != target)

    policy = Counting()
    s = Scheduler({"a": model(), "b": model()}, policy)
    ready(s, "a")
    for ticket in range(100):
        s.request(ticket, "a", now=0)
        s.release(ticket, now=0)
    assert policy.asked == 1
    assert s.request(100, "b", now=1) == [Stop("a", 10)]


def with_matrix(*names: str, costs: Mapping[str, int] = {}, **sets: str) -> Scheduler:
    policy = MatrixPolicy(Config(matrix=Matrix(sets=sets, evict_costs=costs)))
    return Scheduler({name: model() for name in names}, policy, overtake_limit_s=0)


def test_a_newcomer_must_not_change_for_whom_the_oldest_waits() -> None:
    s = with_matrix("x", "y", "n", "o", costs={"x": 2, "n": 2}, one="o & x", other="o & y & n", now="x & y & n")
    serving(s, "x", 1)
    serving(s, "y", 2)
    assert s.request(3, "o", now=1) == [Position(3, 1)]
    assert s.request(4, "n", now=2) == [Position(4, 2)], "with n beside them, o would wait for x and not for y"
    assert s.release(2, now=3) == [Stop("y", 10), Position(4, 1)]
    assert s.gone("y", now=4) == [Start("o")]


def test_a_model_that_need_not_stop_in_a_matrix_serves_on_during_the_swap() -> None:
    s = with_matrix("g", "q", "v", standard="(g | q) & v")
    serving(s, "g")
    serving(s, "v", 1)
    assert s.request(2, "q", now=1) == [Stop("g", 10)]
    assert s.request(3, "v", now=2) == [Grant(3)]
    assert s.gone("g", now=3) == [Start("q")]


def test_errors_name_the_router_in_use() -> None:
    s = with_matrix("a", all="a")
    s.request(1, "a", now=0)
    (refusal, _) = s.unload(["a"], now=1)
    assert isinstance(refusal, Refuse)
    assert str(refusal.error) == "unspecific error: matrix: model unloaded"
    s.shutdown(now=2)
    (refusal,) = s.request(2, "a", now=3)
    assert isinstance(refusal, Refuse)
    assert str(refusal.error) == "unspecific error: matrix is shutting down"


# ---- other definitions ---------------------------------------------------------------------------------------------


def reload(
    s: Scheduler,
    now: float = 1,
    outdated: Collection[str] = (),
    without: Collection[str] = (),
    groups: Mapping[str, Group] = {},
    priority: Mapping[str, int] = {},
    **models: ModelConfig,
) -> list[Action]:
    names = ({"a", "b", "c", "s"} | set(models)) - set(without)
    configs = {name: models.get(name, model()) for name in sorted(names)}
    return s.reconfigure(configs, GroupPolicy(Config(groups=groups)), 30.0, priority, now, outdated)


def is_known(s: Scheduler, name: str) -> bool:
    try:
        s.state(name)
    except KeyError:
        return False
    return True


def test_what_runs_runs_on_under_other_definitions_and_they_count_from_then_on() -> None:
    s = serving(scheduler(), "a", 1)
    assert reload(s, a=model(concurrency_limit=1), d=model()) == []
    assert refused(s.request(2, "a", now=1), TooManyRequests) == [2]
    assert s.request(3, "d", now=1) == [Position(3, 1)]
    assert s.release(1, now=2) == [Stop("a", 10)]
    assert s.gone("a", now=3) == [Start("d")]


def test_other_priorities_put_the_queue_in_their_order() -> None:
    s = serving(scheduler(priority={"c": 1}), "a", 1)
    assert s.request(2, "b", now=1) == [Position(2, 1)]
    assert s.request(3, "c", now=2) == [Position(3, 1), Position(2, 2)]
    assert s.request(4, "b", now=3) == [Position(4, 3)]
    assert reload(s, priority={"b": 1}) == [Position(2, 1), Position(4, 2), Position(3, 3)]
    assert reload(s) == [Position(3, 2), Position(4, 3)]


def test_another_ttl_counts_at_once() -> None:
    s = ready(scheduler(a=model(ttl=60)), "a")
    reload(s, now=10, a=model(ttl=20))
    assert s.next_deadline() == s.deadline_of("a") == 20
    reload(s, now=11, a=model(ttl=5))
    assert s.tick(now=11) == [Stop("a", 10)], "it is over already"


def test_a_definition_is_the_one_of_the_last_reload() -> None:
    s = scheduler()
    reload(s, a=model(ttl=7))
    assert s.config("a").ttl == 7


# ---- another unit


def test_an_idle_model_whose_unit_changed_stops_at_once_and_is_not_started_for_nobody() -> None:
    s = ready(scheduler(), "a")
    assert reload(s, outdated=["a"], a=model(unload_timeout=7)) == [Stop("a", 7)]
    assert s.gone("a", now=2) == []
    assert s.request(1, "a", now=3) == [Start("a")]
    assert s.ready("a", now=4) == [Grant(1)]


def test_a_model_whose_unit_changed_serves_what_it_has_and_newcomers_get_the_successor() -> None:
    s = serving(scheduler(), "a", 1, 2)
    assert reload(s, outdated=["a"]) == []
    assert (s.state("a"), s.in_flight("a")) == (State.READY, 2)
    assert not s.slots["a"].take()
    assert s.request(3, "a", now=2) == [Position(3, 1)]
    assert s.release(1, now=3) == []
    assert s.release(2, now=4) == [Stop("a", 10)]
    assert s.gone("a", now=5) == [Start("a")]
    assert s.ready("a", now=6) == [Grant(3)]
    assert s.slots["a"].take()


def test_the_last_to_leave_stops_a_model_whose_unit_changed() -> None:
    s = ready(scheduler(), "a")
    assert s.slots["a"].take()
    assert s.slots["a"].take()
    reload(s, outdated=["a"])
    assert leave(s, "a", now=2) == []
    assert leave(s, "a", now=3) == [Stop("a", 10)]


def test_a_load_of_a_unit_that_changed_is_aborted_and_its_waiters_get_the_successor() -> None:
    s = scheduler()
    s.request(1, "a", now=0)
    assert reload(s, outdated=["a"]) == [Stop("a", 5)]
    assert s.state("a") is State.STOPPING
    assert s.request(2, "a", now=2) == []
    assert s.ready("a", now=2) == []  # crossed with the stop
    assert s.gone("a", now=3) == [Start("a")]
    assert s.ready("a", now=4) == [Grant(1), Grant(2)]


def test_the_end_of_an_aborted_load_is_no_failure_of_the_successor() -> None:
    s = scheduler()
    s.request(1, "a", now=0)
    reload(s, outdated=["a"])
    assert s.failed("a", StartError("killed"), now=2) == [Start("a")]
    assert s.failed("a", WHY, now=3) == [Refuse(1, WHY)]
    assert s.request(2, "a", now=3) == [Start("a")], "that was its first death"


def test_who_waits_for_the_successor_of_an_aborted_load_is_before_other_models() -> None:
    s = scheduler()
    s.request(1, "a", now=0)
    s.request(2, "b", now=0)
    assert reload(s, outdated=["a"]) == [Stop("a", 5)]
    assert s.request(3, "c", now=2) == [Position(3, 2)]
    assert s.gone("a", now=3) == [Start("a")]


def test_an_aborted_load_that_nobody_waits_for_has_no_successor() -> None:
    s = scheduler()
    s.request(1, "a", now=0)
    s.request(2, "b", now=0)
    reload(s, outdated=["a"])
    assert s.release(1, now=2) == []
    assert s.gone("a", now=3) == [Start("b")]


def test_a_unit_that_was_found_and_has_changed_before_it_is_ready_has_no_successor() -> None:
    s = scheduler()
    s.adopt("a", now=0)
    assert reload(s, outdated=["a"]) == [Stop("a", 5)]
    assert s.gone("a", now=2) == []
    assert s.request(1, "b", now=3) == [Start("b")]


def test_a_model_that_others_stop_for_is_replaced_before_it_serves() -> None:
    s = ready(ready(scheduler(SIDE), "a"), "s")
    assert s.request(1, "a", now=1) == [Stop("s", 10)]
    assert reload(s, now=2, outdated=["a"], groups=SIDE) == [Stop("a", 10)]
    assert s.gone("s", now=3) == []
    assert s.gone("a", now=4) == [Start("a")]
    assert s.ready("a", now=5) == [Grant(1)]


def test_a_busy_model_that_others_stop_for_serves_what_it_has_before_it_is_replaced() -> None:
    s = ready(serving(scheduler(SIDE), "a", 1), "s")
    assert s.request(2, "a", now=1) == [Stop("s", 10)]
    assert reload(s, now=2, outdated=["a"], groups=SIDE) == []
    assert s.gone("s", now=3) == []
    assert s.release(1, now=4) == [Stop("a", 10)]
    assert s.gone("a", now=5) == [Start("a")]
    assert s.ready("a", now=6) == [Grant(2)]


def test_who_is_queued_for_a_model_whose_unit_changed_stays_queued() -> None:
    s = serving(scheduler(), "b", 1)
    assert s.request(2, "a", now=1) == [Position(2, 1)]
    assert reload(s, outdated=["a"], a=model(ttl=7)) == [], "nothing of it runs"
    assert s.release(1, now=2) == [Stop("b", 10)]
    assert s.gone("b", now=3) == [Start("a")]
    assert s.ready("a", now=4) == [Grant(2)], "and it is what is configured"
    assert s.slots["a"].take()


def test_another_swap_waits_for_what_a_changed_model_serves_and_stops_it_once() -> None:
    s = serving(scheduler(), "a", 1)
    assert s.request(2, "b", now=1) == [Position(2, 1)]
    assert reload(s, outdated=["a"]) == []
    assert s.release(1, now=2) == [Stop("a", 10)]
    assert s.gone("a", now=3) == [Start("b")]


def test_nobody_overtakes_who_waits_for_a_successor_for_too_long() -> None:
    s = serving(scheduler(), "a", 1)
    reload(s, outdated=["a"])
    s.request(2, "a", now=2)
    assert s.request(3, "b", now=40) == [Position(3, 2)]
    assert s.release(1, now=41) == [Stop("a", 10)]
    assert s.gone("a", now=42) == [Start("a"), Position(3, 1)]


def test_a_changed_model_may_be_unloaded_before_it_has_served_what_it_has() -> None:
    s = serving(scheduler(), "a", 1)
    reload(s, outdated=["a"])
    s.request(2, "a", now=2)
    actions = s.unload(["a"], now=3)
    assert refused(actions, Unloaded) == [2]
    assert actions[1:] == [Stop("a", 10)]
    assert s.release(1, now=4) == []
    assert s.gone("a", now=5) == []


def test_a_changed_model_that_dies_before_it_has_served_what_it_has_is_gone() -> None:
    s = serving(scheduler(), "a", 1)
    reload(s, outdated=["a"])
    s.request(2, "a", now=2)
    assert s.ended("a", now=3) == []
    assert s.release(1, now=4) == []
    assert s.gone("a", now=5, error=WHY) == [Start("a")]


def test_a_changed_model_that_serves_does_not_expire() -> None:
    s = serving(scheduler(a=model(ttl=5)), "a", 1)
    reload(s, outdated=["a"], a=model(ttl=5))
    assert s.next_deadline() is None


# ---- one reload after the other


def test_a_second_reload_while_a_changed_model_serves_or_stops_changes_nothing() -> None:
    s = serving(scheduler(), "a", 1)
    reload(s, outdated=["a"])
    assert reload(s, now=2, outdated=["a"]) == []
    assert s.release(1, now=3) == [Stop("a", 10)]
    assert reload(s, now=4, outdated=["a"]) == []
    s.request(2, "a", now=5)
    assert s.gone("a", now=6) == [Start("a")]
    assert s.ready("a", now=7) == [Grant(2)]


def test_a_second_reload_aborts_the_successor_too() -> None:
    s = scheduler()
    s.request(1, "a", now=0)
    reload(s, outdated=["a"])
    assert reload(s, now=2, outdated=["a"]) == []
    assert s.gone("a", now=3) == [Start("a")]
    assert reload(s, now=4, outdated=["a"]) == [Stop("a", 5)]
    assert s.gone("a", now=5) == [Start("a")]
    assert s.ready("a", now=6) == [Grant(1)]


def test_a_reload_that_brings_the_old_definition_back_lets_the_model_serve_on() -> None:
    s = serving(scheduler(), "a", 1)
    reload(s, outdated=["a"])
    s.request(2, "a", now=2)
    assert reload(s, now=3) == [Grant(2)]
    assert s.slots["a"].take()


def test_a_reload_that_brings_the_old_definition_back_too_late_starts_it_again() -> None:
    s = ready(scheduler(), "a")
    assert reload(s, outdated=["a"]) == [Stop("a", 10)]
    assert reload(s, now=2) == []
    s.request(1, "a", now=3)
    assert s.gone("a", now=4) == [Start("a")]


# ---- removed


def test_an_idle_model_that_is_removed_stops_and_is_forgotten_when_it_is_gone() -> None:
    s = ready(scheduler(), "a")
    assert reload(s, without="a") == [Stop("a", 10)]
    assert s.state("a") is State.STOPPING
    assert refused(s.request(1, "a", now=2), UnknownModel) == [1]
    assert s.gone("a", now=3) == []
    assert not is_known(s, "a")
    assert refused(s.request(2, "a", now=4), UnknownModel) == [2]
    assert s.deadline_of("a") is None


def test_a_model_of_which_nothing_is_left_is_forgotten_when_it_is_removed() -> None:
    s = scheduler()
    reload(s, without="a")
    assert not is_known(s, "a")


def test_a_removed_model_serves_what_it_has() -> None:
    s = serving(scheduler(), "a", 1)
    assert reload(s, without="a") == []
    assert not s.slots["a"].take()
    assert refused(s.request(2, "a", now=2), UnknownModel) == [2]
    assert s.release(1, now=3) == [Stop("a", 10)]
    assert s.gone("a", now=4) == []
    assert not is_known(s, "a")


def test_who_is_queued_for_a_removed_model_is_refused() -> None:
    s = serving(scheduler(), "b", 1)
    s.request(2, "a", now=1)
    s.request(3, "c", now=1)
    actions = reload(s, without="a")
    assert refused(actions, UnknownModel) == [2]
    assert actions[1:] == [Position(3, 1)]
    assert not is_known(s, "a")


def test_the_load_of_a_removed_model_goes_on_for_those_who_joined_it() -> None:
    s = scheduler()
    s.request(1, "a", now=0)
    s.request(2, "b", now=0)
    assert reload(s, without="a") == []
    assert refused(s.request(3, "a", now=2), UnknownModel) == [3]
    assert s.ready("a", now=3) == [Grant(1)]
    assert not s.slots["a"].take()
    assert s.release(1, now=4) == [Stop("a", 10)]
    assert s.gone("a", now=5) == [Start("b")]


def test_a_removed_model_that_loads_for_nobody_stops_when_it_is_ready() -> None:
    s = scheduler()
    s.adopt("a", now=0)
    assert reload(s, without="a") == []
    assert s.ready("a", now=2) == [Stop("a", 10)]


def test_the_load_of_a_removed_model_may_fail() -> None:
    s = scheduler()
    s.request(1, "a", now=0)
    reload(s, without="a")
    assert s.failed("a", WHY, now=2) == [Refuse(1, WHY)]
    assert not is_known(s, "a")


def test_what_would_start_a_removed_model_is_given_up() -> None:
    s = ready(scheduler(), "b")
    assert s.request(1, "a", now=1) == [Stop("b", 10)]
    assert refused(reload(s, without="a"), UnknownModel) == [1]
    assert s.gone("b", now=2) == []


def test_a_model_that_is_changed_and_then_removed_has_no_successor() -> None:
    s = scheduler()
    s.request(1, "a", now=0)
    reload(s, outdated=["a"])
    assert refused(reload(s, without="a"), UnknownModel) == [1]
    assert s.gone("a", now=2) == []
    assert not is_known(s, "a")


def test_a_removed_model_that_others_stop_for_serves_who_joined_it() -> None:
    s = ready(ready(scheduler(SIDE), "a"), "s")
    assert s.request(1, "a", now=1) == [Stop("s", 10)]
    assert reload(s, now=2, without="a", groups=SIDE) == []
    assert s.gone("s", now=3) == [Grant(1)]
    assert s.release(1, now=4) == [Stop("a", 10)]


def test_who_joined_a_removed_model_that_runs_waits_for_nobody_else_by_another_policy() -> None:
    s = ready(ready(ready(scheduler(APART | SIDE), "a"), "c"), "s")
    assert s.request(1, "a", now=1) == [Stop("s", 10)]
    assert reload(s, now=2, without="a") == []
    assert s.gone("s", now=3) == [Grant(1)]


def test_a_removed_model_that_dies_before_others_have_stopped_for_it_is_not_started_again() -> None:
    s = ready(ready(scheduler(SIDE), "a"), "s")
    s.request(1, "a", now=1)
    reload(s, now=2, without="a", groups=SIDE)
    assert refused(s.gone("a", now=3, error=WHY), UnknownModel) == [1]
    assert not is_known(s, "a")
    assert s.gone("s", now=4) == []


def test_a_removed_model_that_was_cut_is_forgotten_when_its_requests_have_been_released() -> None:
    s = serving(scheduler(), "a", 1)
    assert s.slots["a"].take()
    s.unload(["a"], now=1)
    reload(s, without="a")
    assert s.gone("a", now=2) == []
    assert s.release(1, now=3) == []
    assert is_known(s, "a")
    assert leave(s, "a", now=4) == []
    assert not is_known(s, "a")


def test_a_removed_model_that_comes_back_unchanged_serves_on_and_changed_it_is_replaced() -> None:
    s = serving(scheduler(), "a", 1)
    reload(s, without="a")
    assert reload(s, now=2) == []
    assert s.request(2, "a", now=3) == [Grant(2)]
    reload(s, now=4, without="a")
    assert reload(s, now=5, outdated=["a"]) == []
    assert s.request(3, "a", now=6) == [Position(3, 1)]
    s.release(1, now=7)
    assert s.release(2, now=8) == [Stop("a", 10)]
    assert s.gone("a", now=9) == [Start("a")]


def test_a_removed_model_that_comes_back_while_it_loads_is_aborted_only_if_it_changed() -> None:
    s = scheduler()
    s.request(1, "a", now=0)
    reload(s, without="a")
    assert reload(s, now=2) == []
    reload(s, now=3, without="a")
    assert reload(s, now=4, outdated=["a"]) == [Stop("a", 5)]
    assert s.gone("a", now=5) == [Start("a")]


def test_a_removed_model_can_be_unloaded() -> None:
    s = serving(scheduler(), "a", 1)
    reload(s, without="a")
    assert s.unload(["a"], now=2) == [Stop("a", 10)]
    assert s.release(1, now=3) == []
    assert s.gone("a", now=4) == []
    assert not is_known(s, "a")


@pytest.mark.parametrize("sets", [None, {"all": "b & c"}], ids=["group", "matrix"])
def test_a_removed_model_makes_room_when_it_is_idle(sets: dict[str, str] | None) -> None:
    config = Config(matrix=None if sets is None else Matrix(sets=sets))
    s = serving(scheduler({"pinned": Group(members=("a",), persistent=True)}), "a", 1)
    assert s.reconfigure({"b": model(), "c": model()}, policy_of(config), 30.0, {}, now=1) == []
    assert s.request(2, "b", now=2) == [Position(2, 1)]
    assert s.release(1, now=3) == [Stop("a", 10)]
    assert s.gone("a", now=4) == [Start("b")]


# ---- another policy


def test_a_swap_that_has_started_nothing_is_decided_anew_if_more_would_have_to_stop() -> None:
    s = ready(ready(scheduler(APART), "a"), "s")
    assert s.request(1, "b", now=1) == [Stop("s", 10)]
    assert reload(s, now=2) == [Stop("a", 10)]
    assert s.gone("s", now=3) == []
    assert s.gone("a", now=4) == [Start("b")]
    assert s.ready("b", now=5) == [Grant(1)]


def test_a_swap_that_has_started_nothing_waits_for_requests_that_would_be_cut_by_another_policy() -> None:
    s = ready(serving(scheduler(APART), "a", 1), "s")
    assert s.request(2, "b", now=1) == [Stop("s", 10)]
    assert reload(s, now=2) == [Position(2, 1)]
    assert s.gone("s", now=3) == []
    assert s.release(1, now=4) == [Stop("a", 10)]
    assert s.gone("a", now=5) == [Start("b")]


def test_a_swap_that_has_started_nothing_goes_on_if_nobody_else_would_have_to_stop() -> None:
    s = ready(scheduler(), "a")
    s.request(1, "b", now=1)
    assert reload(s, now=2) == []
    assert s.swap_began("b") == 1
    assert s.gone("a", now=3) == [Start("b")]


def test_of_swaps_that_exclude_each_other_by_another_policy_one_waits() -> None:
    s = ready(ready(scheduler(BESIDE, t=model()), "a"), "s")
    assert s.request(1, "b", now=1) == [Stop("a", 10)]
    assert s.request(2, "t", now=1) == [Stop("s", 10)]
    assert reload(s, now=2, t=model()) == [Position(2, 1)]
    assert s.gone("s", now=3) == []
    assert s.gone("a", now=3) == [Start("b")]


def test_loads_of_changed_models_that_exclude_each_other_by_another_policy_follow_each_other() -> None:
    s = scheduler(APART)
    s.request(1, "a", now=1)
    s.request(2, "b", now=1)
    assert reload(s, now=3, outdated=["a", "b"]) == [Stop("a", 5), Stop("b", 5), Position(1, 1), Position(2, 2)]
    assert s.gone("a", now=4) == [Position(2, 1)]
    assert s.gone("b", now=5) == [Start("a")]
    assert s.ready("a", now=6) == [Grant(1)]
    assert s.release(1, now=7) == [Stop("a", 10)]
    assert s.gone("a", now=8) == [Start("b")]


# ---- models that keep dying ----------------------------------------------------------------------------------------


def crash_loop(actions: Sequence[Action]) -> CrashLoop | None:
    """Return the error if a request is refused since its model keeps dying."""
    error = actions[0].error if actions and isinstance(actions[0], Refuse) else None
    return error if isinstance(error, CrashLoop) else None


def dying(s: Scheduler, name: str, times: int, now: float = 0) -> float:
    """Have starts of a model fail, each as soon as it may be tried; return when the last one did."""
    for _ in range(times):
        while error := crash_loop(s.request(9000, name, now)):
            now += error.retry_after_s
        s.failed(name, WHY, now)
    return now


def test_after_a_first_death_the_next_request_tries_again_at_once() -> None:
    s = scheduler()
    dying(s, "a", 1)
    assert s.request(1, "a", now=0) == [Start("a")]


def test_the_back_off_doubles_from_a_second_to_a_minute() -> None:
    s = scheduler()
    now, waits = dying(s, "a", 1), []
    for _ in range(9):
        now = dying(s, "a", 1, now)
        error = crash_loop(s.request(1, "a", now))
        waits.append(error and error.retry_after_s)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_model_is_tried_again_when_its_back_off_is_over() -> None:
    s = scheduler()
    now = dying(s, "a", 3)
    assert crash_loop(s.request(1, "a", now + 1.9))
    assert s.request(2, "a", now + 2) == [Start("a")]
    assert s.request(3, "a", now + 2) == [], "who comes meanwhile joins"
    assert s.failed("a", WHY, now + 3) == [Refuse(2, WHY), Refuse(3, WHY)], "and gets the error of that start"
    assert crash_loop(s.request(4, "a", now + 3))


def test_the_error_says_how_often_and_of_what_and_when_it_is_tried_again() -> None:
    s = scheduler()
    dying(s, "a", 1)
    s.request(1, "a", now=10)
    s.failed("a", StartError("exit status 3 (exit-code)", ["cannot open /m.gguf", "giving up"]), now=10)
    error = crash_loop(s.request(2, "a", now=10.5))
    assert error is not None
    assert (error.status, error.retry_after_s) == (503, 1)
    assert str(error).splitlines() == [
        'model "a" died 2 times in a row; it is tried again in 1 s, or at once after it was loaded or unloaded by '
        "hand; the last time it died of: exit status 3 (exit-code); last lines of its log:",
        "  cannot open /m.gguf",
        "  giving up",
    ]


def test_nothing_is_stopped_for_a_model_that_keeps_dying() -> None:
    s = scheduler()
    now = dying(s, "a", 2)
    ready(s, "b", now)
    assert crash_loop(s.request(1, "a", now))
    assert (s.state("b"), s.waiting("a")) == (State.READY, 0)


def test_a_request_whose_turn_comes_while_its_model_must_not_be_started_is_refused() -> None:
    s = scheduler()
    dying(s, "a", 1)
    ready(s, "a", now=2)
    s.ended("a", now=3)
    assert s.request(1, "a", now=3) == [Position(1, 1)]
    assert s.request(2, "b", now=3) == []
    start, *refusal = s.gone("a", now=4, error=WHY)
    assert start == Start("b")
    assert crash_loop(refusal)


def test_who_comes_while_others_stop_for_a_model_that_keeps_dying_joins_its_start() -> None:
    s = scheduler(SIDE)
    dying(s, "a", 3)
    ready(ready(s, "a", now=10), "s", now=10)
    assert s.request(1, "a", now=11) == [Stop("s", 10)]
    assert s.gone("a", now=12, error=WHY) == []
    assert s.request(2, "a", now=13) == []
    assert s.gone("s", now=14) == [Start("a")]
    assert s.ready("a", now=15) == [Grant(1), Grant(2)]


def test_a_ready_model_that_dies_has_died_and_one_that_was_stopped_has_not() -> None:
    s = scheduler()
    for now in range(5):
        ready(s, "a", now)
        s.gone("a", now)
    assert s.request(1, "a", now=5) == [Start("a")]
    s.ready("a", now=5)
    s.gone("a", now=6, error=WHY)
    assert s.request(2, "a", now=6) == [Start("a")]
    s.ready("a", now=6)
    s.ended("a", now=7)
    s.gone("a", now=7, error=WHY)
    assert crash_loop(s.request(3, "a", now=7))


def test_an_aborted_load_is_no_death() -> None:
    s = scheduler()
    for now in range(5):
        assert s.request(now, "a", now) == [Start("a")]
        reload(s, now, outdated=["a"])
        s.release(now, now)
        s.failed("a", WHY, now)


def test_a_minute_of_readiness_forgives_every_death_before_it() -> None:
    s = scheduler()
    now = dying(s, "a", 5)
    ready(s, "a", now)
    assert s.gone("a", now + 60, error=WHY) == []
    assert s.request(1, "a", now + 60) == [Start("a")]
    assert s.failed("a", WHY, now + 61) == [Refuse(1, WHY)]
    assert crash_loop(s.request(2, "a", now + 61)), "that was the second since"


def test_a_minute_of_readiness_counts_up_to_the_stop() -> None:
    s = scheduler(a=model(ttl=60))
    now = dying(s, "a", 5)
    ready(s, "a", now)
    assert s.tick(now + 60) == [Stop("a", 10)]
    s.gone("a", now + 61)
    dying(s, "a", 1, now + 61)
    assert s.request(1, "a", now + 61) == [Start("a")]
    s.ready("a", now + 62)
    s.ended("a", now + 63)
    s.gone("a", now + 200, error=WHY)
    assert crash_loop(s.request(2, "a", now + 200)), "its stop took long, it was ready for a second"


def test_less_than_a_minute_of_readiness_forgives_nothing() -> None:
    s = scheduler()
    now = dying(s, "a", 3)
    ready(s, "a", now)
    s.gone("a", now + 59, error=WHY)
    error = crash_loop(s.request(1, "a", now + 59))
    assert error is not None
    assert error.retry_after_s == 4


@pytest.mark.parametrize(
    "pardon",
    [
        lambda s, now: s.forgive("a"),
        lambda s, now: s.unload(["a"], now),
        lambda s, now: reload(s, now, a=model(ttl=3)),
    ],
    ids=["load", "unload", "reload"],
)
def test_whoever_does_something_about_it_has_the_model_tried_at_once(
    pardon: Callable[[Scheduler, float], object],
) -> None:
    s = scheduler()
    now = dying(s, "a", 6)
    assert crash_loop(s.request(1, "a", now))
    pardon(s, now)
    assert s.request(2, "a", now) == [Start("a")]
    s.failed("a", WHY, now)
    assert s.request(3, "a", now) == [Start("a")], "and counting begins anew"


def test_a_reload_that_changes_other_models_forgives_nothing() -> None:
    s = scheduler()
    now = dying(s, "a", 2)
    reload(s, now, b=model(ttl=3))
    assert crash_loop(s.request(1, "a", now))


# ---- leaving the models as they are --------------------------------------------------------------------------------


def test_a_shutdown_that_keeps_models_refuses_everybody_who_waits_and_stops_nothing() -> None:
    s = scheduler(APART)
    serving(s, "a", 1)
    s.request(2, "b", now=1)  # loading
    s.request(3, "s", now=1)  # queued
    actions = s.shutdown(now=2, keep=True)
    assert refused(actions, ShuttingDown) == [2, 3]
    assert len(actions) == 2
    assert (s.state("a"), s.state("b")) == (State.READY, State.STARTING)
    assert refused(s.request(4, "a", now=3), ShuttingDown) == [4]
    assert not s.slots["a"].take()
    assert s.ready("b", now=4) == []
    assert s.release(1, now=5) == []


def test_a_shutdown_that_keeps_models_starts_nothing_either() -> None:
    s = ready(scheduler(), "a")
    s.request(1, "b", now=1)
    assert refused(s.shutdown(now=2, keep=True), ShuttingDown) == [1]
    assert s.gone("a", now=3) == []


def test_after_a_shutdown_that_keeps_models_nothing_expires_or_retires() -> None:
    s = ready(serving(scheduler(APART, b=model(ttl=5)), "a", 1), "b")
    reload(s, outdated=["a"], groups=APART, b=model(ttl=5))
    s.shutdown(now=2, keep=True)
    assert s.release(1, now=3) == []
    assert s.next_deadline() is None
    assert s.tick(now=100) == []


def test_a_shutdown_may_change_its_mind_and_stop_what_was_to_be_kept() -> None:
    s = ready(scheduler(), "a")
    assert s.shutdown(now=1, keep=True) == []
    assert s.shutdown(now=2, grace_s=3) == [Stop("a", 3)]
