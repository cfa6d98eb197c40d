"""Whether a matrix lets given models run all together, found without writing out the sets that it stands for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from llamaswapd.config.matrix_language import AllOf, AnyOf, Expression, Name, Ref, referred_first

# What is asked is as hard as covering sets. Matrices that people write are decided in a few hundred steps; where these
# do not do, the matrix gets the benefit of the doubt.
_MOST_STEPS = 100_000
_MOST_IN_DOUBT = 64


class _TooHard(Exception):
    pass


@dataclass(frozen=True, eq=False)
class _Family:
    """A family of sets, as far as the models asked for are concerned; each model is a bit."""

    mask: int  # those that occur in any set
    is_choice: bool = False  # one of the parts, else all of them
    parts: tuple[_Family, ...] = ()


def may_run_together(sets: Mapping[str, Expression], variables: Mapping[str, str], models: Collection[str]) -> bool:
    """Tell whether one of the sets that the expressions stand for holds all these models.

    `sets` must be free of circles and of references that lead nowhere.
    """
    bits = {model: 1 << index for index, model in enumerate(dict.fromkeys(models))}
    families: dict[str, _Family] = {}
    for name in referred_first(sets):
        families[name] = _projected(sets[name], bits, variables, families)
    try:
        return _Search().holds(_joined(families.values()), (1 << len(bits)) - 1)
    except _TooHard:
        return True


def _projected(
    expression: Expression, bits: Mapping[str, int], variables: Mapping[str, str], families: Mapping[str, _Family]
) -> _Family:
    match expression:
        case Name(id=name):
            return _Family(bits.get(variables.get(name, name), 0))
        case Ref(set=name):
            return families[name]
        case AnyOf(parts=parts):
            return _joined(_projected(part, bits, variables, families) for part in parts)
        case AllOf(parts=parts):
            found = [_projected(part, bits, variables, families) for part in parts]
            used = tuple(part for part in found if part.mask)
            return used[0] if len(used) == 1 else _Family(_union(used), parts=used)


def _joined(parts: Iterable[_Family]) -> _Family:
    used = tuple(dict.fromkeys(part for part in parts if part.mask))
    return used[0] if len(used) == 1 else _Family(_union(used), is_choice=True, parts=used)


def _union(families: Iterable[_Family]) -> int:
    mask = 0
    for family in families:
        mask |= family.mask
    return mask


class _Search:
    def __init__(self) -> None:
        self._known: dict[tuple[_Family, int], bool] = {}
        self._steps = 0

    def holds(self, family: _Family, wanted: int) -> bool:
        """Tell whether one set of a family holds all the wanted models."""
        self._steps += 1
        if self._steps > _MOST_STEPS:
            raise _TooHard
        if wanted & ~family.mask:
            return False
        if not wanted or not family.parts:
            return True
        if (family, wanted) not in self._known:
            if family.is_choice:
                found = any(self.holds(part, wanted) for part in family.parts)
            else:
                found = self._shared_out(family.parts, wanted)
            self._known[family, wanted] = found
        return self._known[family, wanted]

    def _shared_out(self, parts: tuple[_Family, ...], wanted: int) -> bool:
        """Tell whether the parts can hold the wanted models between them."""
        shares = [0] * len(parts)
        in_doubt: list[tuple[int, list[int]]] = []
        while wanted:
            bit = wanted & -wanted
            wanted ^= bit
            holders = [index for index, part in enumerate(parts) if part.mask & bit]
            if len(holders) == 1:
                shares[holders[0]] |= bit
            else:
                in_doubt.append((bit, holders))
        if len(in_doubt) > _MOST_IN_DOUBT:
            raise _TooHard
        return all(map(self.holds, parts, shares)) and self._placed(parts, shares, in_doubt)

    def _placed(self, parts: tuple[_Family, ...], shares: list[int], in_doubt: list[tuple[int, list[int]]]) -> bool:
        """Try to give each model that several parts could hold to one of them."""
        if not in_doubt:
            return True
        (bit, holders), *rest = in_doubt
        for index in holders:
            tried = list(shares)
            tried[index] |= bit
            if self.holds(parts[index], tried[index]) and self._placed(parts, tried, rest):
                return True
        return False
