"""What a denied caller could do instead: the largest output that fits, in tokens.

Prices are linear in the output (a tier depends on the input alone), so two quotes give the slope and a third
proves the answer. Nothing is advised that was not priced.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from decimal import ROUND_FLOOR, Decimal

from billing.budget import CheckRequest, Estimate
from billing.budget_book import Judged
from billing.budget_price import Quotes

__all__ = ["advice_on", "largest_output"]

_MAX_CORRECTIONS = 3


def advice_on(request: CheckRequest, judged: Judged, *, now: datetime, quotes: Quotes | None) -> list[str]:
    """Sentences for the reply to a check that was denied; none where nothing smaller would fit either."""
    if judged.reply.decision != "deny":
        return []
    tokens = largest_output(request, judged, now=now, quotes=quotes)
    return [] if tokens is None else [f"with max_tokens {tokens} the call fits"]


def largest_output(
    request: CheckRequest, judged: Judged, *, now: datetime, quotes: Quotes | None
) -> int | None:
    """The most output tokens with which every denying budget would let the call pass; None if there are
    none, or it cannot be told.
    """
    estimate = request.estimate
    if estimate is None or not estimate.output_tokens or estimate.usd is not None:
        return None
    denying = [each for each in judged.verdicts.values() if each.action == "deny"]
    rooms = [_room(each.figures.meter, each.left, estimate) for each in denying]
    if any(room is None for room in rooms):
        return None
    dollars = [each.left for each in denying if each.figures.meter.endswith("_usd") and each.left is not None]
    known = [room for room in rooms if room is not None]
    if dollars:
        known.append(_for_dollars(request, judged, min(dollars), now=now, quotes=quotes))
    fits = min(_positive(known), default=0) if len(_positive(known)) == len(known) else 0
    return fits or None


def _positive(rooms: Iterable[int]) -> list[int]:
    return [room for room in rooms if room > 0]


def _room(meter: str, left: Decimal | None, estimate: Estimate) -> int | None:
    """Output tokens that a budget has room for; None where no smaller output would help."""
    if left is None or left <= 0 or meter == "calls":
        return None
    output = estimate.output_tokens or 0
    return min(output, int(left) - (estimate.input_tokens or 0)) if meter == "tokens" else output


def _for_dollars(
    request: CheckRequest, judged: Judged, left: Decimal, *, now: datetime, quotes: Quotes | None
) -> int:
    """Output tokens that so many dollars pay for, the input paid first; 0 where it cannot be told."""
    estimate, model = request.estimate, request.model or judged.told.get("model")
    if estimate is None or quotes is None or model is None:
        return 0
    provider = judged.told.get("provider")

    def cost(output: int) -> Decimal | None:
        usage = {"input": estimate.input_tokens or 0, "output": output}
        return quotes.quote(provider=provider, model=model, at=now, usage=usage).list_cost_usd

    most = estimate.output_tokens or 0
    base, whole = cost(0), cost(most)
    if base is None or whole is None or whole <= base or base >= left:
        return 0
    fits = min(most, int(((left - base) * most / (whole - base)).to_integral_value(ROUND_FLOOR)))
    for output in range(fits, max(0, fits - _MAX_CORRECTIONS), -1):
        priced = cost(output)
        if priced is not None and priced <= left:
            return output
    return 0
