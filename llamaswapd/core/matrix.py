"""Which models make room for another, where expressions say what may run together.

An expression stands for a family of sets, whose number is a product and may have a hundred digits. A decision is about
the target and the models that run, a handful, so each expression is solved for these *live* models only. All others
count for nothing, and most of an expression falls away with them.

What is looked for is the most valuable set. A running model is worth its eviction cost, and the target more than all of
them together, so the best set has the target if any has. Of equally good sets the first counts, in the order in which
an expression written out would list them: alternatives from left to right, the last factor changing fastest.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from llamaswapd.config.matrix_language import AllOf, AnyOf, Expression, Name, Ref, parse, referred_first
from llamaswapd.config.schema import Config, Matrix

# How many pairs are tried when a factor is joined to those before it. It is reached only if more than about ten running
# models occur in several factors each: the problem is NP-hard then (maximum coverage, with choices). What looks best is
# kept, so that the set found still is a set of the matrix and has the target, but may stop more than it had to.
_MOST_PAIRS = 8192

# Longer factors and alternatives are not merged into the expression that refers to them.
_MOST_PARTS = 64


class MatrixPolicy:
    """Expressions over models, as llama-swap has them. A set permits all its subsets.

    The expressions must be valid, and `config.matrix` given. A decision takes time in proportion to the alternatives
    that are written, times a small factor, as long as no running model occurs in several factors of an expression.
    Where some do, what counts is their number at the widest place, `n`: up to `2**n` choices are compared there.
    """

    name = "matrix"

    def __init__(self, config: Config) -> None:
        matrix = config.matrix or Matrix()
        compiler = _Compiler(matrix.vars)
        sets = {name: parse(text) for name, text in matrix.sets.items()}
        self._expressions = [compiler.add(name, sets[name]) for name in referred_first(sets)]
        self._bits = compiler.bits
        self._costs = {matrix.vars.get(key, key): cost for key, cost in matrix.evict_costs.items()}
        self._kept = lru_cache(maxsize=1024)(self._solve)

    def evictions(self, target: str, running: Collection[str]) -> tuple[str, ...]:
        if target in running or not running:
            return ()
        kept = self._kept(target, frozenset(running))
        return tuple(model for model in running if model not in kept)

    def _solve(self, target: str, running: frozenset[str]) -> frozenset[str]:
        """Return those of `running` that may stay when `target` starts."""
        if target not in self._bits:
            return frozenset()
        bits = {model: self._bits[model] for model in running if model in self._bits}
        worth = {bit: self._costs.get(model, 1) for model, bit in bits.items()}
        own = self._bits[target]
        worth[own] = 1 + sum(worth.values())
        solver = _Solver(worth)
        best, most = 0, 0
        for expression in self._expressions:
            if not expression.models & own:
                continue
            value, found = solver.best(expression)
            if value > most:
                best, most = found, value
            if most == solver.everything:
                break
        return frozenset(model for model, bit in bits.items() if best & bit)


# ---- expressions as the solver sees them ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Node:
    """A model, if it has no parts; else the alternatives of an `|` or the factors of an `&`."""

    models: int  # all that occur in it, one bit each
    several: int = 0  # those of them that occur in more than one part
    parts: tuple[_Node, ...] = ()
    is_product: bool = False


class _Compiler:
    """Turns expressions into nodes. A set that is referred to more than once is one node for all."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.bits: dict[str, int] = {}  # model id → its bit
        self._variables = variables
        self._sets: dict[str, _Node] = {}

    def add(self, name: str, expression: Expression) -> _Node:
        """Compile a set; those that it refers to must have been added."""
        node = self._sets[name] = self._node(expression)
        return node

    def _node(self, expression: Expression) -> _Node:
        match expression:
            case Name(id=name):
                return _Node(self.bits.setdefault(self._variables.get(name, name), 1 << len(self.bits)))
            case Ref(set=name):
                return self._sets[name]
            case AnyOf(parts=parts) | AllOf(parts=parts):
                return self._joined([self._node(part) for part in parts], isinstance(expression, AllOf))

    @staticmethod
    def _joined(parts: list[_Node], is_product: bool) -> _Node:
        flat: list[_Node] = []
        for part in parts:
            is_alike = part.parts and part.is_product is is_product
            flat += part.parts if is_alike and len(part.parts) <= _MOST_PARTS else [part]
        masks = [part.models for part in flat]
        return _Node(_union_of(masks), _in_several(masks), tuple(flat), is_product)


# ---- the solver ----------------------------------------------------------------------------------------------------

# One way through an expression, as far as the rest of it is concerned: (open, value, all). `open` are its live models
# that the rest may have too, whose worth therefore is not counted yet; `value` is the worth of its other live models;
# `all` are both. A family is a list of them, in the order in which the expression lists them.
_Choice: TypeAlias = tuple[int, int, int]

# The same with its place in that order, while a family is made: (open, value, all, place).
_Candidate: TypeAlias = tuple[int, int, int, int]

_NOTHING: list[_Choice] = [(0, 0, 0)]


class _Solver:
    """Finds the best set of expressions; `worth` maps the bit of each live model to what it counts.

    Solved from the inside out. Two ways through a part of an expression that agree in the models which the rest of it
    has too are told apart by value and place alone, so only the better one is kept, and a part that shares no live
    model with the rest is left with a single one.
    """

    def __init__(self, worth: Mapping[int, int]) -> None:
        self._worth_of_one = worth
        self._worths: dict[int, int] = {0: 0}
        self._live = sum(worth)
        self._families: dict[tuple[_Node, int], list[_Choice]] = {}
        self.everything = sum(worth.values())

    def best(self, expression: _Node) -> tuple[int, int]:
        """Return the value of the best set and its live models."""
        ((_, value, models),) = self._family(expression, 0)
        return value, models

    def _family(self, root: _Node, shared: int) -> list[_Choice]:
        """Return the ways through an expression, whose `shared` models the rest has too.

        Without recursion, since references make long chains.
        """
        unfinished = [(root, shared)]
        while unfinished:
            node, shared = unfinished[-1]
            missing = [part for part in self._inner(node, shared) if part not in self._families]
            if missing:
                unfinished += missing
                continue
            unfinished.pop()
            if (node, shared) not in self._families:
                self._families[node, shared] = self._made(node, shared)
        return self._families[root, root.models & shared]

    def _inner(self, node: _Node, shared: int) -> Iterator[tuple[_Node, int]]:
        """Yield the live parts of an expression, each with those of its models that occur outside it."""
        if node.is_product:
            shared |= node.several & self._live
        for part in node.parts:
            if part.models & self._live:
                yield part, part.models & shared

    def _made(self, node: _Node, shared: int) -> list[_Choice]:
        if not node.parts:
            model = node.models & self._live
            return [(model & shared, self._worth(model & ~shared), model)]
        families = [(part, self._families[part, common]) for part, common in self._inner(node, shared)]
        if node.is_product:
            return self._product(families, shared)
        return self._union(node, families)

    def _union(self, node: _Node, families: list[tuple[_Node, list[_Choice]]]) -> list[_Choice]:
        """Return the ways through alternatives. One without live models has a place among them as well."""
        by_part = dict(families)
        ways = (way for part in node.parts for way in by_part.get(part, _NOTHING))
        return self._in_order(self._best((*way, place) for place, way in enumerate(ways)))

    def _product(self, families: list[tuple[_Node, list[_Choice]]], shared: int) -> list[_Choice]:
        """Return the ways through factors, which are joined one by one, those with few open models first.

        The order of joining is free, since each choice carries its place: the index in each factor, as the digits of
        one number.
        """
        step, waiting = 1, []
        for part, family in reversed(families):
            waiting.append((part.models & self._live, family, step))
            step *= len(family)
        waiting.reverse()
        joined: list[_Candidate] = [(0, 0, 0, 0)]
        passed = 0  # the models of the factors joined so far
        while waiting:
            models, family, step = waiting.pop(self._next(waiting, passed, shared))
            passed |= models
            still_open = shared | _union_of(other[0] for other in waiting)
            if len(joined) == len(family) == 1:
                joined = list(self._pairs(joined, family, step, still_open))
                continue
            joined = self._widest(joined, max(1, _MOST_PAIRS // len(family)))
            joined = self._best(self._pairs(joined, family, step, still_open))
        return self._in_order(joined)

    @staticmethod
    def _next(waiting: list[tuple[int, list[_Choice], int]], passed: int, shared: int) -> int:
        """Say which factor leaves the fewest models open when it is joined next."""
        if len(waiting) == 1:
            return 0
        several = _in_several([passed, shared, *(models for models, _, _ in waiting)])
        alone = next((n for n, (models, _, _) in enumerate(waiting) if not models & several), None)
        if alone is not None:
            return alone

        def left_open(n: int) -> int:
            others = _union_of(models for m, (models, _, _) in enumerate(waiting) if m != n)
            return ((passed | waiting[n][0]) & (shared | others)).bit_count()

        return min(range(len(waiting)), key=left_open)

    def _pairs(
        self, joined: list[_Candidate], family: list[_Choice], step: int, still_open: int
    ) -> Iterator[_Candidate]:
        """Yield every union of one choice from each side."""
        for open_a, value_a, all_a, place in joined:
            for open_b, value_b, all_b in family:
                both = open_a | open_b
                value = value_a + value_b + self._worth(both & ~still_open)
                yield both & still_open, value, all_a | all_b, place
                place += step

    def _best(self, candidates: Iterable[_Candidate]) -> list[_Candidate]:
        """Return the best, of equals the first, for each combination of open models."""
        best: dict[int, _Candidate] = {}
        for candidate in candidates:
            known = best.get(candidate[0])
            if known is None or (candidate[1], -candidate[3]) > (known[1], -known[3]):
                best[candidate[0]] = candidate
        return list(best.values())

    def _widest(self, candidates: list[_Candidate], most: int) -> list[_Candidate]:
        if len(candidates) <= most:
            return candidates
        return heapq.nsmallest(most, candidates, key=lambda each: (-each[1] - self._worth(each[0]), each[3]))

    def _in_order(self, candidates: list[_Candidate]) -> list[_Choice]:
        candidates = sorted(self._widest(candidates, _MOST_PAIRS // 16), key=lambda each: each[3])
        return [(open_, value, all_) for open_, value, all_, _ in candidates]

    def _worth(self, models: int) -> int:
        if models not in self._worths:
            lowest = models & -models
            self._worths[models] = self._worth_of_one[lowest] + self._worth(models ^ lowest)
        return self._worths[models]


def _in_several(masks: Iterable[int]) -> int:
    """Return the models that occur in more than one of these."""
    once = several = 0
    for models in masks:
        several |= once & models
        once |= models
    return several


def _union_of(masks: Iterable[int]) -> int:
    union = 0
    for models in masks:
        union |= models
    return union
