"""Transcripts: an event, and the actions that follow from it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import pytest

from llamaswapd.config.schema import Config, Group, Matrix, ModelConfig
from llamaswapd.core.lifecycle import LifecycleError, State
from llamaswapd.core.policy import GroupPolicy, MatrixPolicy
from llamaswapd.core.scheduler import Action, Grant, Position, Refuse, Scheduler, Start, Stop
from llamaswapd.errors import ShuttingDown, StartError, TooManyRequests, Unloaded

APART = {"apart": Group(members=("a", "b", "c"), swap=False)}  # they run side by side
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
    s.adopt(name, now=0)
    for ticket in tickets:
        assert s.request(ticket, name, now=0) == [Grant(ticket)]
    return s


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
    assert s.enter("a")
    assert (s.in_flight("a"), s.waiting("a")) == (2, 0)
    assert not s.enter("a"), "its slots are taken"
    assert s.leave("a", now=1) == []
    assert s.enter("a")


@pytest.mark.parametrize("name", ["a", "b"])
def test_nobody_enters_while_somebody_waits(name: str) -> None:
    s = serving(scheduler(APART | {"x": Group(members=("s",))}), "a", 1)
    assert s.adopt("b", now=0) == []
    s.request(2, "s", now=1)
    assert not s.enter(name)


def test_nobody_enters_what_is_not_ready_or_is_stopping_or_would_stop_another() -> None:
    s = serving(scheduler(SIDE), "a")
    assert not s.enter("b")
    s.adopt("s", now=0)
    assert not s.enter("a"), "s has to stop for it"
    s.unload(["s", "a"], now=1)
    assert not s.enter("a")
    assert (s.in_flight("a"), s.waiting("a")) == (0, 0)


def test_the_last_to_leave_lets_the_queue_go_on() -> None:
    s = serving(scheduler(), "a")
    assert s.enter("a")
    assert s.enter("a")
    s.request(1, "b", now=1)
    assert s.leave("a", now=2) == []
    assert s.leave("a", now=3) == [Stop("a", 10)]


def test_a_ttl_counts_from_when_the_last_has_left() -> None:
    s = serving(scheduler(a=model(ttl=5)), "a")
    assert s.deadline_of("a") == 5
    assert s.enter("a")
    assert s.deadline_of("a") is None
    s.leave("a", now=7)
    assert s.deadline_of("a") == s.next_deadline() == 12


def test_nobody_enters_after_a_shutdown() -> None:
    s = scheduler()
    s.shutdown(now=0)
    assert not s.enter("a")


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


def test_an_adopted_model_is_ready_without_a_start() -> None:
    s = scheduler()
    assert s.adopt("a", now=0) == []
    assert s.request(1, "a", now=1) == [Grant(1)]


# ---- swaps ---------------------------------------------------------------------------------------------------------


def test_a_swap_starts_the_target_only_when_every_evicted_model_is_gone() -> None:
    s = scheduler({"pair": Group(members=("a", "b"), swap=False)})
    s.adopt("a", now=0)
    s.adopt("b", now=0)
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
    s.adopt("s", now=0)
    s.adopt("b", now=0)
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
    s.adopt("s", now=0)
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
    s.adopt("s", now=0)
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
    s.adopt("a", now=0)
    s.adopt("b", now=1)
    assert s.next_deadline() == 21


def test_a_request_during_the_stop_waits_and_starts_the_model_again() -> None:
    s = serving(scheduler(a=model(ttl=60)), "a")
    assert s.tick(now=60) == [Stop("a", 10)]
    assert s.request(1, "a", now=61) == [Position(1, 1)]
    assert s.gone("a", now=62) == [Start("a")]
    assert s.ready("a", now=63) == [Grant(1)]


def test_a_model_that_others_stop_for_does_not_expire() -> None:
    s = serving(scheduler(SIDE, a=model(ttl=60)), "a")
    s.adopt("s", now=0)
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
    s.adopt("a", now=0)
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
    s.adopt("a", now=0)
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


def test_what_runs_runs_on_under_other_definitions_and_they_count_from_then_on() -> None:
    s = serving(scheduler(), "a", 1)
    assert s.reconfigure({"a": model(concurrency_limit=1), "d": model()}, GroupPolicy(Config()), 30.0) == []
    assert refused(s.request(2, "a", now=1), TooManyRequests) == [2]
    assert s.request(3, "d", now=1) == [Position(3, 1)]
    assert s.release(1, now=2) == [Stop("a", 10)]
    assert s.gone("a", now=3) == [Start("d")]


def test_other_priorities_put_the_queue_in_their_order() -> None:
    s = serving(scheduler(priority={"c": 1}), "a", 1)
    assert s.request(2, "b", now=1) == [Position(2, 1)]
    assert s.request(3, "c", now=2) == [Position(3, 1), Position(2, 2)]
    assert s.request(4, "b", now=3) == [Position(4, 3)]
    models = {name: model() for name in "abc"}
    actions = s.reconfigure(models, GroupPolicy(Config()), 30.0, {"b": 1})
    assert actions == [Position(2, 1), Position(4, 2), Position(3, 3)]
    assert s.reconfigure(models, GroupPolicy(Config()), 30.0) == [Position(3, 2), Position(4, 3)]


def test_a_model_that_is_gone_from_the_file_is_forgotten_once_nothing_of_it_runs() -> None:
    s = serving(scheduler(), "a")
    s.unload(["a"], now=1)
    s.reconfigure({"b": model()}, GroupPolicy(Config()), 30.0)
    assert s.state("a") is State.STOPPING
    assert s.gone("a", now=2) == []
    s.reconfigure({"b": model()}, GroupPolicy(Config()), 30.0)
    with pytest.raises(KeyError):
        s.state("a")
