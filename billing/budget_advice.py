"""What a denied caller could do instead: the largest output that fits, and a cheaper model that does.

Prices are linear in the output (a tier depends on the input alone), so two quotes give the slope and a third
proves the answer. Nothing is advised that was not priced and judged like any other check.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from decimal import ROUND_FLOOR, Decimal
from itertools import islice

from billing.budget import CheckRequest, Estimate
from billing.budget_book import BudgetBook, Judged
from billing.budget_check import Verdict
from billing.budget_price import Quotes

__all__ = ["advise", "cheaper_model", "largest_output"]

_MAX_CORRECTIONS = 3
_MAX_TRIED = 3


def advise(
    request: CheckRequest, judged: Judged, book: BudgetBook, *, now: datetime, quotes: Quotes | None
) -> None:
    """Completes the reply to a check that was denied; leaves it as it is where nothing else would fit."""
    reply = judged.reply
    if reply.decision != "deny":
        return
    reply.max_output_tokens = largest_output(request, judged, now=now, quotes=quotes)
    if reply.max_output_tokens is not None:
        reply.advice.append(f"with max_tokens {reply.max_output_tokens} the call fits")
    reply.cheaper_model = cheaper_model(request, judged, book, now=now, quotes=quotes)
    if reply.cheaper_model is not None:
        reply.advice.append(f"with the model {reply.cheaper_model} the call fits")


def cheaper_model(
    request: CheckRequest, judged: Judged, book: BudgetBook, *, now: datetime, quotes: Quotes | None
) -> str | None:
    """A model of the same provider and access with which the same call is not denied; None if there is none,
    or the check names no model and tokens.
    """
    cheaper, cost = getattr(quotes, "cheaper", None), judged.costs.list_usd
    estimate = request.estimate
    if cheaper is None or request.model is None or estimate is None or estimate.usd or not cost:
        return None
    denying = [each for each in judged.verdicts.values() if each.action == "deny"]
    room = min((each.left for each in denying if _is_money(each) and each.left is not None), default=cost)
    at_most = cost if any("model" in book.scope_of(each.figures.id) for each in denying) else min(room, cost)
    usage = {"input": estimate.input_tokens or 0, "output": estimate.output_tokens or 0}
    offered: Iterable[str] = cheaper(
        judged.told.get("provider"), model=request.model, at=now, usage=usage, at_most=at_most
    )
    for name in islice(offered, _MAX_TRIED):
        other = request.model_copy(update={"model": name})
        if book.judge(other, now, quotes).reply.decision != "deny":
            return name
    return None


def _is_money(verdict: Verdict) -> bool:
    return verdict.figures.meter.endswith("_usd")


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
