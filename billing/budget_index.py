"""Finds the budgets that a check falls under, at a cost that does not grow with the number of budgets.

Budgets are grouped by the set of dimensions their scopes name, and in a group by the values of those: one
look-up for each group, of which there are as many as ways in which people cut their budgets, not as
budgets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

__all__ = ["ScopeIndex"]

Dims = tuple[str, ...]
Values = tuple[str, ...]
Positions = tuple[int, ...]

_MAX_SHAPES = (
    64  # partial shapes remembered for one group; checks leave out the same dimensions again and again
)


class _Group:
    """The budgets whose scopes name the same dimensions."""

    __slots__ = ("_partial", "ids")

    def __init__(self) -> None:
        self.ids: dict[Values, list[str]] = {}
        self._partial: dict[Positions, Counter[Values]] = {}

    def add(self, values: Values, budget_id: str) -> None:
        self.ids.setdefault(values, []).append(budget_id)
        for positions, counts in self._partial.items():
            counts.update([_at(values, positions)])

    def remove(self, values: Values, budget_id: str) -> None:
        self.ids[values].remove(budget_id)
        if not self.ids[values]:
            del self.ids[values]
        for positions, counts in self._partial.items():
            counts.subtract([_at(values, positions)])

    def holds_part(self, told: tuple[str | None, ...]) -> bool:
        """Whether some budget has the values told, whatever it has where `told` is None."""
        positions = tuple(i for i, value in enumerate(told) if value is not None)
        if positions not in self._partial:
            if len(self._partial) >= _MAX_SHAPES:
                self._partial.clear()
            self._partial[positions] = self._count(positions)
        return self._partial[positions][tuple(value for value in told if value is not None)] > 0

    def _count(self, positions: Positions) -> Counter[Values]:
        counts: Counter[Values] = Counter()
        for values, ids in self.ids.items():
            counts[_at(values, positions)] += len(ids)
        return counts


def _at(values: Values, positions: Positions) -> Values:
    return tuple(values[i] for i in positions)


def _split(scope: Mapping[str, str]) -> tuple[Dims, Values]:
    dims = tuple(sorted(scope))
    return dims, tuple(scope[dim] for dim in dims)


class ScopeIndex:
    """Budget ids by scope (dimension -> value)."""

    __slots__ = ("_groups",)

    def __init__(self) -> None:
        self._groups: dict[Dims, _Group] = {}

    def add(self, scope: Mapping[str, str], budget_id: str) -> None:
        """Enters a budget; each budget once."""
        dims, values = _split(scope)
        self._groups.setdefault(dims, _Group()).add(values, budget_id)

    def remove(self, scope: Mapping[str, str], budget_id: str) -> None:
        """Takes out a budget that was entered with this scope."""
        dims, values = _split(scope)
        group = self._groups[dims]
        group.remove(values, budget_id)
        if not group.ids:
            del self._groups[dims]

    def match(self, told: Mapping[str, str]) -> tuple[list[str], list[str]]:
        """Ids of the budgets that cover what is told, and the dimensions left out that keep others from
        it.
        """
        ids: list[str] = []
        missing: set[str] = set()
        for dims, group in self._groups.items():
            values = tuple([told.get(dim) for dim in dims])
            if None not in values:
                ids.extend(group.ids.get(values, ()))  # type: ignore[arg-type]  # no None inside, just asked
            elif group.holds_part(values):
                missing.update(_left_out(dims, values))
        return sorted(ids), sorted(missing)


def _left_out(dims: Dims, values: Iterable[str | None]) -> list[str]:
    return [dim for dim, value in zip(dims, values, strict=True) if value is None]
