"""swap.md §7 and config.md §12: who makes room where there is a matrix."""

from __future__ import annotations

import asyncio
import time

import pytest
from daemon_support import Json
from live import Live, load, mirror, ready

pytestmark = pytest.mark.private

PAIRS = {"bc": "b & c", "ac": "a & c", "ab": "a & b"}
SPEECH = {"standard": "(g | q) & v"}


# What may run together, what runs already, and what a request for the last model leaves running.
CASES: dict[str, tuple[Json, str, str]] = {
    "the first of equal sets": ({"sets": PAIRS}, "bca", "ac"),
    "costs": ({"sets": PAIRS, "evict_costs": {"b": 10}}, "bca", "ab"),
    "alternatives": ({"sets": SPEECH}, "gvq", "qv"),
    "a set permits its subsets": ({"sets": SPEECH}, "v", "v"),
    "only the target starts": ({"sets": SPEECH}, "q", "q"),
    "the target in no set stops all": ({"sets": SPEECH}, "gvx", "x"),
    "a model in no set makes way": ({"sets": SPEECH}, "xg", "g"),
    "costs of a variable": ({"sets": {"s": "V & a", "t": "W & a"}, "vars": {"V": "v", "W": "w"},
                             "evict_costs": {"W": 2}}, "vwa", "wa"),
    "the first alternative from left to right": ({"sets": {"all": "a & (c | b)", "bc": "b & c"}}, "bca", "ac"),
    "what another set is called counts as standing before it":
        ({"sets": {"late": "a & +pair | a & b", "bc": "b & c", "pair": "c"}}, "bca", "ac"),
    "a reference": ({"sets": {"llms": "g | q", "with_tts": "+llms & v"}}, "gvq", "qv"),
    "a variable hides a model of the same name": ({"sets": {"s": "a & b"}, "vars": {"b": "c"}}, "ca", "ac"),
    "a set of one": ({"sets": {"full": "x", **SPEECH}}, "gvx", "x"),
}  # fmt: skip


BY_FILE = pytest.mark.ours("it breaks ties by the names of the sets, where it promises the order of the file")


@pytest.mark.parametrize(
    ("matrix", "asked", "left"),
    [pytest.param(*case, id=name, marks=BY_FILE if "equal sets" in name else ()) for name, case in CASES.items()],
)
async def test_the_solver(live: Live, matrix: Json, asked: str, left: str) -> None:
    it = await live.configure({"models": {name: mirror() for name in "abcgqvwx"}, "matrix": matrix})
    await load(it, *asked)
    assert await ready(it) == {*left}


@pytest.mark.ours("a reload leaves alone what it does not change")
async def test_a_model_that_runs_stops_nothing_even_if_the_combination_matches_no_set(live: Live) -> None:
    models = {name: mirror() for name in "ab"}
    it = await live.configure({"models": models, "matrix": {"sets": {"s": "a & b"}}})
    await load(it, "a", "b")
    await live.reload({"models": models, "matrix": {"sets": {"s": "a", "t": "b"}}})
    await load(it, "a", "b")
    assert await ready(it) == {"a", "b"}


async def test_ids_with_other_characters_need_a_variable(live: Live) -> None:
    models = {"x/y:z": mirror(), "b": mirror()}
    it = await live.configure({"models": models, "matrix": {"vars": {"v.1-x": "x/y:z"}, "sets": {"s": "v.1-x & b"}}})
    await load(it, "x/y:z", "b")
    assert await ready(it) == {"x/y:z", "b"}


async def test_a_matrix_may_stand_below_routing_beside_groups_that_are_not_used(live: Live) -> None:
    settings = {"matrix": {"sets": {"s": "a & b"}}, "groups": {"g": {"members": ["a", "b"]}}}
    routing = {"router": {"use": "matrix", "settings": settings}}
    it = await live.configure({"models": {name: mirror() for name in "ab"}, "routing": routing})
    await load(it, "a", "b")
    assert await ready(it) == {"a", "b"}


async def test_ten_factors_of_ten_alternatives_cost_next_to_nothing(live: Live) -> None:
    names = [[f"m{factor}-{n}" for n in range(10)] for factor in range(10)]
    models = {name: {"cmd": "sleep 60", "proxy": "http://127.0.0.1:9"} for factor in names for name in factor}
    models |= {name: mirror() for name in ("m0-0", "m1-1", "m1-2")}
    sets = {"all": " & ".join(f"({' | '.join(factor)})" for factor in names)}
    began = time.monotonic()
    it = await live.configure({"models": models, "matrix": {"sets": sets}})
    await load(it, "m0-0", "m1-1", "m1-2")
    assert await ready(it) == {"m0-0", "m1-2"}
    assert time.monotonic() - began < 10


async def test_those_who_wait_are_told_which_router_it_was(live: Live) -> None:
    models = {"a": mirror("--health=" + ",".join(["503"] * 500))}
    it = await live.configure({"models": models, "matrix": {"sets": {"s": "a"}}})
    async with it.events() as events:
        waiting = asyncio.create_task(it.chat("a"))
        await events.until(lambda: events.states.get("a") == "starting")
        await it.ask("/unload")
        assert (await waiting).message == "unspecific error: matrix: model unloaded"
