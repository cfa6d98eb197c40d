from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llamaswapd.config.matrix_families import may_run_together
from llamaswapd.config.matrix_language import parse
from llamaswapd.config.schema import Selector, SpilloverSettings

if TYPE_CHECKING:
    from conftest import Complain, Load

BASE = """
models:
  a: {proxy: http://h, aliases: [alias-a], filters: {setParamsByID: {variant: {t: 0}}}}
  b: {proxy: http://h}
  c: {proxy: http://h}
peers:
  remote: {proxy: http://r, models: [far, twice]}
  other: {proxy: http://r, models: [twice]}
groups:
  side: {swap: false, members: [a, b]}
"""


@pytest.mark.parametrize(
    ("selectors", "expected"),
    [
        ("{' ': {strategy: pin, targets: [a]}}", "selectors: selector names cannot be empty"),
        ("{a: {strategy: pin, targets: [b]}}", 'selectors.a: name conflicts with model ID "a"'),
        ("{alias-a: {strategy: pin, targets: [b]}}", 'selectors.alias-a: name conflicts with model alias "alias-a"'),
        ("{variant: {strategy: pin, targets: [b]}}", 'selectors.variant: name conflicts with model alias "variant"'),
        ("{remote/far: {strategy: pin, targets: [b]}}", "conflicts with fully qualified peer model name"),
        ("{s: {targets: [a]}}", "selectors.s.strategy is required"),
        (
            "{s: {strategy: random, targets: [a]}}",
            'selectors.s.strategy: unknown strategy "random" (valid: warm, pin, spillover)',
        ),
        ("{s: {strategy: pin}}", "selectors.s.targets must contain at least one entry"),
        ("{s: {strategy: pin, targets: []}}", "selectors.s.targets must contain at least one entry"),
        (
            "{s: {strategy: pin, targets: [a, t]}, t: {strategy: pin, targets: [a]}}",
            'selectors.s.targets[1] references selector "t"; selector chaining is not supported',
        ),
        ("{s: {strategy: pin, targets: [nobody]}}", 'selectors.s.targets[0] references unknown model "nobody"'),
        ("{s: {strategy: pin, targets: [twice]}}", 'selectors.s.targets[0] references unknown model "twice"'),
        (
            "{s: {strategy: warm, targets: [a, far]}}",
            'selectors.s.targets[1] must resolve to a local model for strategy "warm"',
        ),
        (
            "{s: {strategy: spillover, targets: [a], settings: {spillover: 0}}}",
            "selectors.s.settings.spillover must be >= 1",
        ),
        ("{s: {strategy: spillover, targets: [a, alias-a]}}", 'targets contains duplicate resolved model "a"'),
        ("{s: {strategy: spillover, targets: [far, remote/far]}}", 'duplicate resolved model "remote/far"'),
        (
            "{s: {strategy: spillover, targets: [c, a]}}",
            "selectors.s spillover targets must share a group with swap: false",
        ),
        (
            "{s: {strategy: spillover, targets: [a, far, c]}}",
            "selectors.s spillover targets must share one routing group",
        ),
    ],
)
def test_a_selector_that_is_refused(complaints: Complain, selectors: str, expected: str) -> None:
    (found,) = complaints(f"{BASE}selectors: {selectors}")
    assert expected in found


def test_spillover_needs_a_group_without_swapping(complaints: Complain) -> None:
    source = BASE.replace("swap: false", "swap: true")
    (found,) = complaints(f"{source}selectors: {{s: {{strategy: spillover, targets: [a, b]}}}}")
    assert "selectors.s spillover targets must share a group with swap: false" in found


@pytest.mark.parametrize(
    "selector",
    [
        "{strategy: pin, targets: [c]}",
        "{strategy: pin, targets: [remote/twice, far, variant]}",
        "{strategy: warm, targets: [a, b, c, alias-a]}",
        "{strategy: spillover, targets: [b, alias-a, far, remote/twice]}",
        "{strategy: spillover, targets: [c, far]}",
        "{strategy: pin, targets: [a, a], settings: {spillover: 0}}",
    ],
)
def test_selectors_that_are_fine(load_text: Load, selector: str) -> None:
    assert not load_text(f"{BASE}selectors: {{s: {selector}}}").warnings


def test_a_selector_may_hide_the_bare_name_of_a_peers_model(load_text: Load) -> None:
    config = load_text(f"{BASE}selectors: {{far: {{strategy: pin, targets: [remote/far]}}}}").config
    assert config.selectors["far"].targets == ("remote/far",)


def test_a_selector_has_its_defaults_and_trimmed_names(load_text: Load) -> None:
    source = f"{BASE}selectors: {{s: {{strategy: spillover, targets: [a], name: ' S ', metadata: {{k: 1}}}}}}"
    assert load_text(source).config.selectors["s"] == Selector(
        strategy="spillover", targets=("a",), name="S", metadata={"k": 1}, settings=SpilloverSettings(spillover=1)
    )


# ---- with a matrix -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sets", "is_fine"), [("{s: A & b}", True), ("{s: A | b}", False), ("{s: A, t: b}", False)])
def test_spillover_needs_a_set_with_all_targets(
    load_text: Load, complaints: Complain, sets: str, is_fine: bool
) -> None:
    source = BASE.partition("groups:")[0] + f"matrix: {{vars: {{A: a}}, sets: {sets}}}\n"
    source += "selectors: {s: {strategy: spillover, targets: [a, b, far]}}"
    if is_fine:
        load_text(source)
        return
    (found,) = complaints(source)
    assert "selectors.s.targets must all appear together in one expanded matrix set" in found


def together(models: str, **sets: str) -> bool:
    return may_run_together({name: parse(text) for name, text in sets.items()}, {"V": "v"}, models.split())


@pytest.mark.parametrize(
    ("models", "sets", "expected"),
    [
        ("a", {"s": "a"}, True),
        ("x", {"s": "a"}, False),
        ("a b", {"s": "a & b"}, True),
        ("a b", {"s": "a | b"}, False),
        ("a c", {"s": "(a | b) & (c | d)"}, True),
        ("a b", {"s": "(a | b) & (c | d)"}, False),
        ("a b", {"s": "(a | b) & (b | c)"}, True),
        ("a b c", {"s": "(a | b) & (b | c)"}, False),
        ("a b c", {"s": "(a | b) & (b | c) & (a | c)"}, True),
        ("a b c", {"s": "(a & b | c) & (b & c | a)"}, True),
        ("a b c d", {"s": "(a & b | c) & (c & d | b)"}, True),
        ("a b c d", {"s": "(a & b | c & d) & (a | b)"}, False),
        ("v b", {"s": "V & b"}, True),
        ("V", {"s": "V"}, False),
        ("a b", {"x": "+y & b", "y": "a | c"}, True),
        ("b c", {"x": "+y & b", "y": "a | c"}, True),
        ("a c", {"x": "+y & b", "y": "a | c"}, False),
    ],
)
def test_whether_models_may_run_together(models: str, sets: dict[str, str], expected: bool) -> None:
    assert together(models, **sets) is expected


def test_a_product_is_decided_without_being_written_out() -> None:
    factors = ["(" + " | ".join(f"m{factor}-{choice}" for choice in range(10)) + ")" for factor in range(40)]
    one_of_each = " ".join(f"m{factor}-{factor % 10}" for factor in range(40))
    assert together(one_of_each, s=" & ".join(factors))
    assert not together(f"{one_of_each} m0-5", s=" & ".join(factors))


def test_a_puzzle_ends_and_gets_the_benefit_of_the_doubt() -> None:
    # Every factor can hold any two neighbours: far more ways to share the models out than can be tried.
    factor = "(" + " | ".join(f"m{i} & m{(i * 7 + 3) % 40}" for i in range(40)) + ")"
    assert together(" ".join(f"m{i}" for i in range(40)), s=" & ".join([factor] * 30))
