"""The dearest price of any model, for budgets that must not be passed by a model nobody has a price for."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal

from catalog.table import STANDARD, PriceModel, PriceTable, price_decimal, seconds, with_fallbacks

__all__ = ["Dearest"]

HOUR_S = 3600
_MILLION = 1_000_000
_OUTPUT = frozenset({"output", "audio_output"})
_NO_TOKENS = frozenset({"web_search", "request"})

_Rate = tuple[int, int, str]
"""Nano-USD per million of input and of output, and the model asking that."""


class Dearest:
    """Knows the prices in force this hour; a question costs one pass over them (under a millisecond)."""

    def __init__(self, table: PriceTable) -> None:
        self._table = table
        self._hour = -1
        self._rates: list[_Rate] = []

    def cost(self, parts: Mapping[str, int], at: datetime) -> tuple[Decimal, str] | None:
        """Give the highest list cost of token `parts` at `at` and the model that asks it.

        Every kind of input counts as plain input, every output as plain output, at any tier and time of day.
        """
        self._look_up(seconds(at))
        told = sum(n for part, n in parts.items() if part not in _OUTPUT | _NO_TOKENS)
        given = sum(n for part, n in parts.items() if part in _OUTPUT)
        best = max(self._rates, key=lambda rate: rate[0] * told + rate[1] * given, default=None)
        if best is None:
            return None
        usd = (price_decimal(best[0]) * told + price_decimal(best[1]) * given) / _MILLION
        return usd.quantize(Decimal("1e-12")), best[2]

    def _look_up(self, at_s: int) -> None:
        if at_s // HOUR_S != self._hour:
            self._hour = at_s // HOUR_S
            self._rates = [rate for model in self._table.models for rate in _in_force(model, at_s)]


def _in_force(model: PriceModel, at_s: int) -> list[_Rate]:
    """Give a model's standard prices in force, all tiers and times of day; none where one is unknown."""
    rows = model.rows.get(STANDARD, ())
    newest = max((row.valid_from_s for row in rows if row.valid_from_s <= at_s), default=None)
    prices = (with_fallbacks(row.prices)[:2] for row in rows if row.valid_from_s == newest)
    return [(told, given, model.name) for told, given in prices if told is not None and given is not None]
