from __future__ import annotations

import pytest

from llamaswapd.config.matrix_language import (
    AllOf,
    AnyOf,
    Expression,
    MatrixError,
    Name,
    Ref,
    leaves,
    parse,
    referred_first,
)

A, B, C = Name("a"), Name("b"), Name("c")


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("a", A),
        (" \t a\n", A),
        ("llama-70B_v1.5", Name("llama-70B_v1.5")),
        ("größe٣", Name("größe٣")),
        ("+llms", Ref("llms")),
        ("a|b|c", AnyOf((A, B, C))),
        ("a & b & c", AllOf((A, B, C))),
        ("a | b & c", AnyOf((A, AllOf((B, C))))),
        ("(a | b) & c", AllOf((AnyOf((A, B)), C))),
        ("((a))", A),
        ("a & (b & c)", AllOf((A, AllOf((B, C))))),
        ("+x & (a | +y)", AllOf((Ref("x"), AnyOf((A, Ref("y")))))),
    ],
)
def test_expressions(text: str, expression: Expression) -> None:
    assert parse(text) == expression


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "empty DSL expression"),
        (" \n", "empty DSL expression"),
        ("a @ b", "tokenize: unexpected character '@' at position 2"),
        ("  a/b", "tokenize: unexpected character '/' at position 1"),
        ("a'", "tokenize: unexpected character '\\'' at position 1"),
        ("a²", "tokenize: unexpected character '²' at position 1"),
        ("a & +", "tokenize: expected set name after '+' at position 5"),
        ("+ a", "tokenize: expected set name after '+' at position 1"),
        ("(a | b", "parse: missing closing parenthesis"),
        ("(a b)", "parse: missing closing parenthesis"),
        ("a b", 'parse: unexpected token "b"'),
        ("a +b", 'parse: unexpected token "+b"'),
        ("a)", 'parse: unexpected token ")"'),
        ("a &", "parse: unexpected token"),
        ("| a", 'parse: unexpected token "|"'),
        ("()", 'parse: unexpected token ")"'),
        ("(" * 51 + "a" + ")" * 51, "parse: parentheses are nested more than 50 deep"),
        ("(" * 100_000, "parse: parentheses are nested"),
    ],
)
def test_what_is_no_expression_is_refused_in_llama_swaps_words(text: str, error: str) -> None:
    with pytest.raises(MatrixError) as caught:
        parse(text)
    assert str(caught.value).startswith(error)


def test_a_long_expression_needs_no_deep_stack() -> None:
    assert len(list(leaves(parse(" | ".join(["(a & b)"] * 50_000))))) == 100_000


def sets(**texts: str) -> dict[str, Expression]:
    return {name: parse(text) for name, text in texts.items()}


def test_a_set_comes_after_those_it_refers_to() -> None:
    assert referred_first(sets(x="a", full="+late & +x", y="b", late="+y", last="c")) == [
        "x",
        "y",
        "late",
        "full",
        "last",
    ]


def test_a_reference_to_nothing_is_refused() -> None:
    with pytest.raises(MatrixError, match=r'^set "s" references undefined set "t"$'):
        referred_first(sets(s="a & +t"))


@pytest.mark.parametrize("circle", [{"s": "+s"}, {"r": "+s", "s": "a | +t", "t": "+s"}])
def test_a_circle_is_refused(circle: dict[str, str]) -> None:
    with pytest.raises(MatrixError, match=r'^circular reference detected involving set "s"$'):
        referred_first(sets(**circle))


def chain(length: int) -> dict[str, Expression]:
    return {"s0": parse("a"), **{f"s{i}": parse(f"+s{i - 1}") for i in range(1, length)}}


def test_references_may_form_a_chain() -> None:
    assert referred_first(dict(reversed(chain(200).items()))) == list(chain(200))


def test_a_chain_that_no_recursion_could_follow_is_refused() -> None:
    with pytest.raises(MatrixError, match=r'^set "s200": nested more than 200 deep'):
        referred_first(dict(reversed(chain(5000).items())))


def test_a_set_may_be_referred_to_twice() -> None:
    assert referred_first(sets(a="x", b="+a | +a", c="+a & +b")) == ["a", "b", "c"]
