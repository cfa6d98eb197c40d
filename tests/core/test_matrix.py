"""The matrix policy, against every set of the matrix written out."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator, Mapping

import pytest

from llamaswapd.config.matrix_language import AllOf, AnyOf, Expression, Name, Ref, parse, referred_first
from llamaswapd.config.schema import Config, Matrix
from llamaswapd.core.matrix import MatrixPolicy

SEEDS = int(os.environ.get("LLAMASWAPD_MATRIX_SEEDS", "3000"))


def policy(
    sets: Mapping[str, str], evict_costs: Mapping[str, int] = {}, variables: Mapping[str, str] = {}
) -> MatrixPolicy:
    return MatrixPolicy(Config(matrix=Matrix(vars=variables, evict_costs=evict_costs, sets=sets)))


# ---- what llama-swap does


PAIRS = {"bc": "b & c", "ac": "a & c", "ab": "a & b"}


def test_of_equally_good_sets_the_first_wins() -> None:
    assert policy(PAIRS).evictions("a", ("b", "c")) == ("b",)


def test_a_set_that_stops_what_is_dear_loses() -> None:
    assert policy(PAIRS, {"b": 10}).evictions("a", ("b", "c")) == ("c",)


def test_what_no_set_with_the_target_lacks_runs_on() -> None:
    assert policy({"standard": "(g | q) & v"}).evictions("q", ("g", "v")) == ("g",)


def test_a_set_permits_its_subsets() -> None:
    assert policy({"all": "a & b & c"}).evictions("c", ("a",)) == ()


def test_for_a_target_that_runs_nothing_stops_even_if_no_set_has_them_all() -> None:
    assert policy({"a": "a", "b": "b"}).evictions("a", ("a", "b")) == ()


@pytest.mark.parametrize("target", ["mentioned nowhere", "x"])
def test_for_a_target_in_no_set_everything_stops(target: str) -> None:
    assert policy({"ab": "a & b"}).evictions(target, ("b", "a", "elsewhere")) == ("b", "a", "elsewhere")


def test_a_model_in_no_set_stops_for_any_target() -> None:
    assert policy({"ab": "a & b"}).evictions("a", ("b", "elsewhere")) == ("elsewhere",)


def test_the_costs_of_all_that_would_stop_are_added_up() -> None:
    sets = {"one": "t & a", "other": "t & b & c"}
    assert policy(sets, {"a": 3}).evictions("t", ("a", "b", "c")) == ("b", "c")
    assert policy(sets, {"a": 2}).evictions("t", ("a", "b", "c")) == ("b", "c")
    assert policy(sets, {"a": 2, "c": 2}).evictions("t", ("a", "b", "c")) == ("a",)


def test_of_equally_good_alternatives_the_first_from_the_left_wins() -> None:
    assert policy({"x": "t & (a | b)"}).evictions("t", ("b", "a")) == ("b",)
    assert policy({"x": "t & (b | a)"}).evictions("t", ("b", "a")) == ("a",)


def test_the_leftmost_factor_decides_first() -> None:
    assert policy({"x": "(a & (t | c)) | ((t | b) & d)"}).evictions("t", ("a", "d")) == ("d",)
    assert policy({"x": "(a | t) & (b | t) & (c | t)"}).evictions("t", ("a", "b", "c")) == ("c",)


def test_an_expression_that_is_referred_to_stands_before_the_one_that_refers_to_it() -> None:
    sets = {"x": "+z & c", "y": "t & a", "z": "t & b"}
    assert policy(sets).evictions("t", ("a", "b")) == ("a",)
    assert policy({"y": sets["y"], "x": sets["x"], "z": sets["z"]}).evictions("t", ("a", "b")) == ("b",)
    assert policy({"x": "+z & t & c", "y": "t & c", "z": "t & b"}).evictions("t", ("c", "b")) == ()
    assert policy({"x": "(t & a) | +z", "z": "t & b"}).evictions("t", ("a", "b")) == ("a",)


def test_variables_stand_for_models_in_sets_and_costs_and_hide_a_model_of_their_name() -> None:
    known_as = {"g": "org/gemma:7b", "a": "b"}
    assert policy({"x": "g & a", "y": "g & c"}, {"a": 2}, known_as).evictions("org/gemma:7b", ("b", "c", "a")) == (
        "c",
        "a",
    )


def test_a_reference_is_a_choice_each_time_it_occurs() -> None:
    assert policy({"any": "a | b | c", "two": "+any & +any"}).evictions("c", ("a",)) == ()
    assert policy({"any": "a | b | c", "two": "+any & +any"}).evictions("c", ("a", "b")) == ("b",)


# ---- every set written out


def expanded(expression: Expression, sets: Mapping[str, Expression]) -> Iterator[frozenset[str]]:
    """Yield the sets of an expression in order; a family is what it says in the manual, no more."""
    match expression:
        case Name(id=name):
            yield frozenset((name,))
        case Ref(set=name):
            yield from expanded(sets[name], sets)
        case AnyOf(parts=parts):
            for part in parts:
                yield from expanded(part, sets)
        case AllOf(parts=parts):
            for choice in itertools.product(*(tuple(expanded(part, sets)) for part in parts)):
                yield frozenset().union(*choice)


def by_hand(sets: Mapping[str, str], costs: Mapping[str, int], target: str, running: list[str]) -> tuple[str, ...]:
    """Decide as the manual says, candidate by candidate."""
    if target in running:
        return ()
    parsed = {name: parse(text) for name, text in sets.items()}
    candidates = [found for name in referred_first(parsed) for found in expanded(parsed[name], parsed)]
    candidates = [found for found in candidates if target in found]
    if not candidates:
        return tuple(running)
    winner = min(candidates, key=lambda found: sum(costs.get(m, 1) for m in running if m not in found))
    return tuple(model for model in running if model not in winner)


def random_expression(rng: random.Random, names: str, refs: list[str], depth: int) -> str:
    dice = rng.random()
    if depth == 0 or dice < 0.25:
        return f"+{rng.choice(refs)}" if refs and rng.random() < 0.4 else rng.choice(names)
    parts = [random_expression(rng, names, refs, depth - 1) for _ in range(rng.randint(2, 3))]
    return "(" + rng.choice("&|").join(parts) + ")"


def random_sets(rng: random.Random, names: str) -> dict[str, str]:
    count = rng.randint(1, 4)
    order = rng.sample("klmn", count)
    texts: dict[str, str] = {}
    size = 1
    for name in order:
        text = random_expression(rng, names, list(texts), rng.randint(0, 3))
        parsed = {each: parse(written) for each, written in (texts | {name: text}).items()}
        size = size_of(parsed[name], parsed)
        texts[name] = text if size <= 2000 else rng.choice(names)
    return {name: texts[name] for name in rng.sample(order, count)}


def size_of(expression: Expression, sets: Mapping[str, Expression]) -> int:
    match expression:
        case Name():
            return 1
        case Ref(set=name):
            return size_of(sets[name], sets)
        case AnyOf(parts=parts):
            return sum(size_of(part, sets) for part in parts)
        case AllOf(parts=parts):
            product = 1
            for part in parts:
                product *= size_of(part, sets)
            return product


def test_it_decides_as_if_every_set_were_written_out() -> None:
    for seed in range(SEEDS):
        rng = random.Random(seed)
        names = "abcdefghij"[: rng.randint(2, 10)]
        sets = random_sets(rng, names)
        costs = {name: rng.choice((1, 1, 2, 3)) for name in names}
        decide = policy(sets, costs)
        for _ in range(4):
            running = rng.sample(names, rng.randint(0, len(names)))
            target = rng.choice(names)
            expected = by_hand(sets, costs, target, running)
            assert decide.evictions(target, running) == expected, f"seed {seed}: {sets} {costs} {target} {running}"


# ---- products that nobody could write out


def test_ten_factors_of_ten_alternatives_are_solved() -> None:
    factors = [[f"m{f}-{a}" for a in range(10)] for f in range(10)]
    text = " & ".join("(" + " | ".join(factor) + ")" for factor in factors)
    running = [factor[3] for factor in factors[1:]] + [factors[1][4], "stranger"]
    assert policy({"all": text}).evictions("m0-7", running) == ("m1-4", "stranger")


def test_a_hundred_factors_of_the_same_alternatives_hold_all_of_them() -> None:
    any_ = " | ".join(f"m{n}" for n in range(20))
    decide = policy({"any": any_, "all": " & ".join(["+any"] * 100)})
    assert decide.evictions("m0", [f"m{n}" for n in range(1, 20)]) == ()


def test_a_family_that_squares_with_every_reference_is_solved() -> None:
    sets = {"s0": "a | b | c"} | {f"s{n}": f"+s{n - 1} & +s{n - 1}" for n in range(1, 60)}
    assert policy(sets).evictions("a", ("b", "c")) == ()


def test_a_chain_of_references_may_be_as_deep_as_the_language_permits() -> None:
    sets = {"s0": "a | b"} | {f"s{n}": f"(+s{n - 1} | c) & d{n}" for n in range(1, 67)}
    assert policy(sets).evictions("a", ("b", "c", "d1")) == ("b", "c")


@pytest.mark.parametrize("seed", range(20))
def test_with_fifty_models_running_a_set_that_has_the_target_is_found(seed: int) -> None:
    rng = random.Random(seed)
    names = [f"m{n}" for n in range(50)]
    factors = [rng.sample(names, 10) for _ in range(10)]
    text = " & ".join("(" + " | ".join(factor) + ")" for factor in factors)
    target = rng.choice(factors[5])
    running = [name for name in names if name != target]
    kept = {target, *running} - set(policy({"all": text}).evictions(target, running))
    assert len(kept) == 10, "as many as there are factors"
    assert is_in_a_set(kept, factors)


def is_in_a_set(models: set[str], factors: list[list[str]]) -> bool:
    """Tell whether each of these models can be the choice of a factor of its own."""
    taken: dict[int, str] = {}

    def place(model: str, tried: set[int]) -> bool:
        for n, factor in enumerate(factors):
            if model in factor and n not in tried:
                tried.add(n)
                if n not in taken or place(taken[n], tried):
                    taken[n] = model
                    return True
        return False

    return all(place(model, set()) for model in models)
