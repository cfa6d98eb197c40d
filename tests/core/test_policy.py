from __future__ import annotations

import itertools

import pytest

from llamaswapd.config.schema import Config, Group, Matrix
from llamaswapd.core.policy import POLICIES, GroupPolicy, policy_of


def groups(**groups: Group) -> GroupPolicy:
    return GroupPolicy(Config(groups=groups))


def test_without_groups_every_other_model_stops() -> None:
    assert groups().evictions("a", ("a", "b", "c")) == ("b", "c")


def test_a_running_target_is_never_its_own_eviction() -> None:
    assert groups().evictions("a", ("a",)) == ()


@pytest.mark.parametrize(("swap", "exclusive"), list(itertools.product((True, False), repeat=2)))
def test_the_target_s_group_decides_who_stops(swap: bool, exclusive: bool) -> None:
    policy = groups(
        own=Group(members=("t", "mate"), swap=swap, exclusive=exclusive),
        other=Group(members=("o",), exclusive=False),
        pinned=Group(members=("p",), persistent=True),
    )
    same_group = {"mate"} if swap else set()
    other_groups = {"o", "ungrouped"} if exclusive else set()
    assert set(policy.evictions("t", ("t", "mate", "o", "p", "ungrouped"))) == same_group | other_groups


def test_persistent_does_not_protect_from_the_own_group() -> None:
    policy = groups(pinned=Group(members=("p", "q"), persistent=True))
    assert policy.evictions("p", ("q",)) == ("q",)


def test_loading_a_member_of_a_group_that_is_not_exclusive_leaves_an_exclusive_one_alone_but_not_the_reverse() -> None:
    policy = groups(side=Group(members=("side",), exclusive=False))
    assert policy.evictions("side", ("main",)) == ()
    assert policy.evictions("main", ("main", "side")) == ("side",)


MATRIX = Config(matrix=Matrix(sets={"both": "a & b"}))


@pytest.mark.parametrize(("name", "evicted"), [("group", ("b",)), ("matrix", ())])
def test_routing_knows_the_policies_by_name(name: str, evicted: tuple[str, ...]) -> None:
    policy = POLICIES[name](MATRIX)
    assert policy.name == name
    assert policy.evictions("a", ("b",)) == evicted


def test_a_matrix_is_used_if_there_is_one() -> None:
    assert policy_of(MATRIX).name == "matrix"
    assert policy_of(Config()).name == "group"
