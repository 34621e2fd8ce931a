"""What one call costs, in plain integers: the scalar twin of `catalog.rate`, for quotes and explanations.

A price row holds nano-USD per million units, so units x price is a count of 1e-15 USD: exact in any size.
The sum is rounded once, half-even, to 1e-12. A used part without a price makes the whole unknown, never
zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal

from catalog.table import PARTS, PriceRow, price_decimal, with_fallbacks

__all__ = [
    "MAX_COST_USD",
    "Line",
    "UnpricedPart",
    "cost",
    "lines",
    "parts_of_call",
    "quick_cost",
    "shown_line",
]

MAX_COST_USD = Decimal("999999.999999999999")
"""The largest charge DECIMAL(18,12) holds."""

_WIDE = Context(prec=60, rounding=ROUND_HALF_EVEN)
_PLACE = Decimal("1e-12")
_PLACES = {part: place for place, part in enumerate(PARTS)}
_REQUEST = _PLACES["request"]


class UnpricedPart(Exception):
    """A used part has no price on its list."""


@dataclass(frozen=True, slots=True)
class Line:
    """One part of a charge: units, USD per million of them, and their exact product in USD."""

    part: str
    units: int
    usd_per_million: Decimal
    usd: Decimal


def lines(row: PriceRow, parts: Mapping[str, int]) -> list[Line]:
    """Price disjoint parts by a row; raises UnpricedPart naming the first used part without a price."""
    found = []
    for part, price in zip(PARTS, with_fallbacks(row.prices), strict=True):
        units = 1 if part == "request" else parts.get(part, 0)
        if not units or (price is None and part == "request"):
            continue
        if price is None:
            raise UnpricedPart(part)
        found.append(Line(part, units, price_decimal(price), _WIDE.scaleb(Decimal(units * price), -15)))
    return found


def cost(charged: list[Line]) -> Decimal | None:
    """Sum lines to a charge in USD, rounded once to 1e-12; None above what a call can cost."""
    total = Decimal(0)
    for line in charged:
        total = _WIDE.add(total, line.usd)
    return _rounded(total)


def quick_cost(prices: tuple[int | None, ...], parts: Mapping[str, int]) -> Decimal | None:
    """The same sum without its lines; `prices` are a row's, fallbacks filled in. Raises as `lines` does."""
    total = prices[_REQUEST] or 0
    for part, units in parts.items():
        if units:
            price = prices[_PLACES[part]]
            if price is None:
                raise UnpricedPart(part)
            total += units * price
    return _rounded(_WIDE.scaleb(Decimal(total), -15))


def _rounded(total: Decimal) -> Decimal | None:
    total = _WIDE.quantize(total, _PLACE)
    return total if total <= MAX_COST_USD else None


def shown_line(line: Line) -> dict[str, str]:
    """Give one part of a charge as decimal strings."""
    return {
        "part": line.part,
        "units": str(line.units),
        "usd_per_million": f"{line.usd_per_million:f}",
        "usd": f"{line.usd.normalize():f}",
    }


def parts_of_call(call: Mapping[str, int | None]) -> dict[str, int]:
    """Split a call's inclusive usage columns into disjoint parts, as `catalog.rate` does."""

    def told(name: str) -> int:
        return call.get(name) or 0

    read, write, heard = (told(n) for n in ("cache_read_tokens", "cache_write_tokens", "audio_input_tokens"))
    cached_audio = min(told("audio_cache_read_tokens"), read, heard)
    long_write = min(told("cache_write_1h_tokens"), write)
    spoken = min(told("audio_output_tokens"), told("output_tokens"))
    return {
        "input": max(told("input_tokens") - read - write - (heard - cached_audio), 0),
        "output": told("output_tokens") - spoken,
        "cache_read": read - cached_audio,
        "cache_write": write - long_write,
        "cache_write_1h": long_write,
        "audio_input": heard - cached_audio,
        "audio_output": spoken,
        "audio_cache_read": cached_audio,
        "web_search": told("web_searches"),
    }
