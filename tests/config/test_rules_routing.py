"""Groups, matrix, routing and scheduler."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llamaswapd.config.schema import Group, Matrix

if TYPE_CHECKING:
    from conftest import Complain, Load

MODELS = """
models:
  a: {proxy: http://h, aliases: [alias-a]}
  b: {proxy: http://h}
  org/c: {proxy: http://h}
"""


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ("{}", "matrix.sets: matrix: matrix must define at least one set"),
        ("{sets: {}}", "matrix.sets: matrix: matrix must define at least one set"),
        (
            "{vars: {a_b: a}, sets: {s: a}}",
            "matrix.vars.a_b: matrix: var key \"a_b\" must contain only alphanumeric, '-' or '.' characters",
        ),
        (f"{{vars: {{{'v' * 33}: a}}, sets: {{s: a}}}}", "characters and be 1-32 characters long"),
        ("{vars: {é: a}, sets: {s: a}}", "characters and be 1-32 characters long"),
        ("{vars: {v: x}, sets: {s: a}}", 'matrix.vars.v: matrix: var key "v" references unknown model "x"'),
        ("{vars: {v: alias-a}, sets: {s: a}}", 'matrix: var key "v" references unknown model "alias-a"'),
        ("{vars: {v: }, sets: {s: a}}", 'matrix: var key "v" references unknown model ""'),
        (
            "{evict_costs: {a: 0}, sets: {s: a}}",
            'matrix.evict_costs.a: matrix: evict_cost for "a" must be a positive integer, got 0',
        ),
        ("{evict_costs: {a: -3}, sets: {s: a}}", "must be a positive integer, got -3"),
        ("{evict_costs: {x: 2}, sets: {s: a}}", 'matrix: evict_costs: unknown var or model "x"'),
        ("{sets: {s: ''}}", 'matrix.sets.s: matrix: set "s": empty DSL expression'),
        ("{sets: {s: }}", 'matrix: set "s": empty DSL expression'),
        ("{sets: {s: a @ b}}", "matrix: set \"s\": tokenize: unexpected character '@' at position 2"),
        ("{sets: {s: org/c}}", "matrix: set \"s\": tokenize: unexpected character '/' at position 3"),
        ("{sets: {s: a & +}}", "matrix: set \"s\": tokenize: expected set name after '+' at position 5"),
        ("{sets: {s: (a | b}}", 'matrix: set "s": parse: missing closing parenthesis'),
        ("{sets: {s: a b}}", 'matrix: set "s": parse: unexpected token'),
        ("{sets: {s: a & x}}", 'matrix.sets.s: matrix: set "s": unknown var or model "x"'),
        ("{sets: {s: alias-a}}", 'matrix: set "s": unknown var or model "alias-a"'),
        ("{sets: {s: +t}}", 'matrix.sets: matrix: set "s" references undefined set "t"'),
        ("{sets: {s: +t, t: a | +s}}", 'matrix: circular reference detected involving set "s"'),
    ],
)
@pytest.mark.parametrize("place", ["top", "routed"])
def test_a_matrix_that_is_refused(complaints: Complain, matrix: str, expected: str, place: str) -> None:
    at_top = f"{MODELS}matrix: {matrix}"
    routed = f"{MODELS}routing: {{router: {{use: matrix, settings: {{matrix: {matrix}}}}}}}"
    (found,) = complaints(at_top if place == "top" else routed)
    assert expected.partition("matrix: ")[2] in found
    assert found.startswith("a.yaml: matrix" if place == "top" else "a.yaml: routing.router.settings.matrix")


def test_a_matrix_is_kept_in_order(load_text: Load) -> None:
    source = """
        matrix:
          vars: {c: org/c, a: b}
          evict_costs: {c: 50, b: 2}
          sets:
            z: "+y & c"
            y: "a | b"
    """
    loaded = load_text(MODELS + "\n".join(line[8:] for line in source.splitlines()))
    assert loaded.config.matrix == Matrix(
        vars={"c": "org/c", "a": "b"}, evict_costs={"c": 50, "b": 2}, sets={"z": "+y & c", "y": "a | b"}
    )
    assert list(loaded.config.matrix.sets) == ["z", "y"]
    assert loaded.config.groups == {}
    assert not loaded.warnings


def test_all_problems_of_a_matrix_come_together(complaints: Complain) -> None:
    found = complaints(MODELS + "matrix: {vars: {v: x}, evict_costs: {q: 0}, sets: {s: a @, t: a & z}}")
    assert len(found) == 5


# ---- where it is written -------------------------------------------------------------------------------------------

GROUPS = "{g: {members: [a, b], swap: false}}"


def test_groups_may_stand_in_either_place(load_text: Load) -> None:
    top = load_text(f"{MODELS}groups: {GROUPS}").config
    routed = load_text(f"{MODELS}routing: {{router: {{settings: {{groups: {GROUPS}}}}}}}").config
    assert top.groups == routed.groups == {"g": Group(members=("a", "b"), swap=False)}
    assert top == routed
    assert top.routing.router.use == "group"


def test_a_matrix_may_stand_in_either_place(load_text: Load) -> None:
    top = load_text(f"{MODELS}matrix: {{sets: {{s: a & b}}}}").config
    routed = load_text(
        f"{MODELS}routing: {{router: {{use: matrix, settings: {{matrix: {{sets: {{s: a & b}}}}}}}}}}"
    ).config
    assert top == routed
    assert top.matrix is not None
    assert top.routing.router.use == "matrix"


@pytest.mark.parametrize(
    ("use", "settings"),
    [
        ("matrix", "{matrix: {sets: {s: a}}, groups: {g: {members: [a, a, nobody]}}}"),
        ("group", "{groups: {g: {members: [a]}}, matrix: {sets: {s: '@'}}}"),
        ("''", "{groups: {g: {members: [a]}}, matrix: {}}"),
    ],
)
def test_the_unused_block_is_not_validated(load_text: Load, use: str, settings: str) -> None:
    config = load_text(f"{MODELS}routing: {{router: {{use: {use}, settings: {settings}}}}}").config
    assert (config.matrix is None) == (use != "matrix")
    assert bool(config.groups) == (use != "matrix")


@pytest.mark.parametrize("top", [f"groups: {GROUPS}", "matrix: {sets: {s: a}}"])
@pytest.mark.parametrize(
    "router", ["{use: group}", "{use: matrix}", "{settings: {groups: {h: {}}}}", "{settings: {matrix: {sets: {t: b}}}}"]
)
def test_both_places_at_once_are_refused(complaints: Complain, top: str, router: str) -> None:
    (found,) = complaints(f"{MODELS}{top}\nrouting: {{router: {router}}}")
    assert "please migrate the top-level keys into 'routing.router' and remove them" in found


@pytest.mark.parametrize("top", ["groups: {}", "matrix:", ""])
def test_an_empty_block_at_the_top_is_no_second_place(load_text: Load, top: str) -> None:
    config = load_text(f"{MODELS}{top}\nrouting: {{router: {{settings: {{groups: {GROUPS}}}}}}}").config
    assert list(config.groups) == ["g"]


def test_priorities_alone_go_with_groups_at_the_top(load_text: Load) -> None:
    source = f"{MODELS}groups: {GROUPS}\nrouting: {{scheduler: {{settings: {{fifo: {{priority: {{a: 10, b: -1}}}}}}}}}}"
    assert load_text(source).config.priority == {"a": 10, "b": -1}


@pytest.mark.parametrize(
    ("routing", "expected"),
    [
        (
            "{router: {use: matrix}}",
            "routing.router.use is 'matrix' but routing.router.settings.matrix is not set",
        ),
        ("{router: {use: lru}}", 'routing.router.use: unknown router "lru" (valid: group, matrix)'),
        ("{scheduler: {use: lifo}}", 'routing.scheduler.use: unknown scheduler "lifo" (valid: fifo)'),
        (
            "{scheduler: {settings: {fifo: {priority: {x: 1}}}}}",
            'routing.scheduler.settings.fifo.priority references unknown model "x"',
        ),
        ("{router: {settings: {groups: {g: {members: [a, a]}}}}}", "duplicate model member a found in group: g"),
        ("{router: {settings: {groups: {g: {members: [x]}}}}}", 'no model config for "x"'),
    ],
)
def test_routing_that_is_refused(complaints: Complain, routing: str, expected: str) -> None:
    (found,) = complaints(f"{MODELS}routing: {routing}")
    assert expected in found


def test_what_does_not_fit_its_type_leads_to_no_further_problems(complaints: Complain) -> None:
    (found,) = complaints(f"{MODELS}routing: {{router: {{use: matrix, settings: {{matrix: [a]}}}}}}")
    assert "cannot unmarshal !!seq" in found
    (found,) = complaints(f"{MODELS}matrix: {{sets: {{s: [a], t: +s}}}}")
    assert "cannot unmarshal !!seq" in found


def test_a_priority_by_alias_is_accepted_with_a_warning(load_text: Load) -> None:
    loaded = load_text(f"{MODELS}routing: {{scheduler: {{settings: {{fifo: {{priority: {{alias-a: 1}}}}}}}}}}")
    (warning,) = loaded.warnings
    assert warning.message == '"alias-a" is an alias and ignored here; write the id, "a"'
