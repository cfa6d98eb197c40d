"""swap.md §6 and config.md §11: who makes room where there are groups."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from daemon_support import Json
from live import Live, held, load, mirror, ready

pytestmark = pytest.mark.private

# A mate of the target's group, a member of another group, and one of a persistent group.
OTHERS = {"o": {"swap": False, "exclusive": False, "members": ["o"]}}
PERSISTENT = {"p": {"swap": False, "exclusive": False, "persistent": True, "members": ["p"]}}
MODELS = {name: mirror() for name in "mopt"}


@pytest.mark.parametrize(
    ("target", "left"),
    [
        ({"swap": True, "exclusive": True}, "p"),
        ({"swap": True, "exclusive": False}, "op"),
        ({"swap": False, "exclusive": True}, "mp"),
        ({"swap": False, "exclusive": False}, "mop"),
        ({}, "p"),  # both are true by default
    ],
)
async def test_the_table_of_groups(live: Live, target: Json, left: str) -> None:
    groups = {"t": {**target, "members": ["t", "m"]}, **OTHERS, **PERSISTENT}
    it = await live.configure({"models": MODELS, "groups": groups})
    await load(it, "m", "o", "p")
    assert await ready(it) == {*"mop"}
    await load(it, "t")
    assert await ready(it) == {"t", *left}


async def test_without_groups_every_other_model_stops(live: Live) -> None:
    it = await live.configure({"models": MODELS})
    for name in "mopt":
        await load(it, name)
        assert await ready(it) == {name}


async def test_ungrouped_models_form_a_group_that_swaps_and_excludes_all_but_persistent_ones(live: Live) -> None:
    it = await live.configure({"models": MODELS, "groups": {**OTHERS, **PERSISTENT}})
    await load(it, "m", "o", "p")
    await load(it, "t")
    assert await ready(it) == {"t", "p"}


async def test_a_member_of_a_group_that_is_not_exclusive_leaves_an_exclusive_one_alone(live: Live) -> None:
    groups = {"exclusive": {"members": ["t"]}, **OTHERS}
    it = await live.configure({"models": MODELS, "groups": groups})
    await load(it, "t", "o")
    assert await ready(it) == {"t", "o"}


async def test_the_rule_is_applied_to_every_request_also_when_the_target_is_ready(live: Live, tmp_path: Path) -> None:
    """The next request to the exclusive model stops the other first, once that is idle."""
    groups = {"exclusive": {"members": ["t"]}, **OTHERS}
    it = await live.configure({"models": MODELS, "groups": groups})
    await load(it, "t", "o")
    async with it.events() as events:
        async with held(it, "o", tmp_path / "end", events):
            waiting = asyncio.create_task(it.chat("t"))
            await events.until_in_flight(2)
            assert await ready(it) == {"t", "o"}
        assert (await waiting).status == 200
        await events.until(lambda: events.states["o"] == "stopped")
    assert await ready(it) == {"t"}


async def test_persistent_does_not_protect_against_swapping_in_the_own_group(live: Live) -> None:
    groups = {"g": {"swap": True, "persistent": True, "members": ["m", "t"]}}
    it = await live.configure({"models": MODELS, "groups": groups})
    await load(it, "m", "t")
    assert await ready(it) == {"t"}


async def test_persistent_does_not_protect_against_an_unload(live: Live) -> None:
    it = await live.configure({"models": MODELS, "groups": PERSISTENT})
    await load(it, "p")
    assert (await it.ask("/unload")).status == 200
    assert await ready(it) == set()


async def test_persistent_does_not_protect_against_ttl(live: Live) -> None:
    it = await live.configure({"models": {"p": mirror(ttl=1)}, "groups": PERSISTENT})
    await load(it, "p")
    async with it.events() as events:
        await events.until(lambda: events.states.get("p") == "stopped")


async def test_groups_may_stand_below_routing(live: Live) -> None:
    settings = {"groups": {"g": {"swap": False, "members": ["m", "t"]}}}
    it = await live.configure({"models": MODELS, "routing": {"router": {"settings": settings}}})
    await load(it, "m", "t")
    assert await ready(it) == {"m", "t"}


@pytest.mark.ours("it words the refusal in another way")
async def test_a_member_that_is_no_model_is_refused_at_a_reload_and_what_runs_goes_on(live: Live) -> None:
    it = await live.configure({"models": MODELS})
    await load(it, "m")
    log = await live.refused('models: {a: {cmd: "x ${PORT}"}}\ngroups: {g: {members: [nobody]}}')
    assert 'no model config for "nobody"' in log
    assert await ready(it) == {"m"}
