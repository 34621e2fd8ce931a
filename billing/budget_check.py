"""Judges one check against one budget: what the call would need, which threshold it passes, and what to say.

Pure functions on figures; no state and no clock. A cost that is not known is never taken for 0: the budget's
`on_unpriced` decides, and the reply says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal

from billing.budget import (
    EXACT,
    Action,
    Budget,
    BudgetFigures,
    Threshold,
    decimal_text,
)
from billing.budget_price import Costs
from billing.budget_spend import ZERO, Spend

__all__ = ["Standing", "Verdict", "amount_of", "figures", "judge", "passing_sentence"]

SHARPNESS: dict[Action | None, int] = {None: 0, "notify": 1, "warn": 2, "deny": 3}
UNITS = {"billed_usd": "USD billed", "list_usd": "USD at list price", "tokens": "tokens", "calls": "calls"}
_ONE = Decimal(1)


@dataclass(slots=True)
class Standing:
    """One budget, its spend now, what reservations hold of it, and both together (`used`).

    `counted` is false while a new budget's calls are still being counted.
    """

    budget: Budget
    spend: Spend
    allowances: tuple[tuple[Decimal, Threshold], ...]  # at x limit, ascending, never none
    counted: bool
    reserved: Decimal
    used: Decimal


@dataclass(slots=True)
class Verdict:
    """What one budget says of a check. `action` is None where it has nothing against it, or only in shadow.

    `retry_at` is None when it does not deny or waiting will not help; `soon`: held amounts may come free at
    any time. `left` is how much would have fitted, where it denies.
    """

    figures: BudgetFigures
    action: Action | None
    reason: str | None = None
    retry_at: datetime | None = None
    soon: bool = False
    advice: str | None = None
    left: Decimal | None = None


def judge(standing: Standing, costs: Costs) -> Verdict:
    """Denies, warns, notifies or lets pass; the spend must have been rolled to now."""
    verdict = _judge(standing, costs)
    if not standing.budget.shadow or verdict.action is None:
        return verdict
    shown = replace(verdict.figures, shadow=True)
    return Verdict(shown, None, reason=f"in shadow, {verdict.reason}")


def _judge(standing: Standing, costs: Costs) -> Verdict:
    budget = standing.budget
    amount, refused = _need(budget, costs)
    if refused is not None:
        return Verdict(figures(standing, action="deny"), "deny", reason=_refusal(budget, refused))
    if budget.per_call is not None and amount is not None and amount > budget.per_call:
        return _too_large(standing, amount, budget.per_call)
    would_be = EXACT.add(standing.used, amount or ZERO)
    if would_be <= standing.allowances[0][0]:
        return _within(standing, amount)
    return _passing(standing, amount, *_passed(standing, would_be))


def _passing(standing: Standing, amount: Decimal | None, allowance: Decimal, threshold: Threshold) -> Verdict:
    shown = figures(standing, estimate=amount, action=threshold.action, threshold=threshold)
    denies = threshold.action == "deny"
    excess = EXACT.subtract(EXACT.add(standing.used, amount or ZERO), allowance)
    return Verdict(
        shown,
        threshold.action,
        reason=passing_sentence(standing.budget, shown, threshold),
        retry_at=standing.spend.freed_at(excess) if denies else None,
        soon=denies and ZERO < excess <= standing.reserved,
        advice=_advice(standing, allowance),
        left=EXACT.subtract(allowance, standing.used) if denies else None,
    )


def _too_large(standing: Standing, amount: Decimal, per_call: Decimal) -> Verdict:
    budget = standing.budget
    told = (
        f"{decimal_text(amount)} of at most {decimal_text(per_call)} {UNITS[budget.meter]} for a single call"
    )
    shown = figures(standing, estimate=amount, action="deny")
    room = [each for each, threshold in standing.allowances if threshold.action == "deny"]
    left = min([per_call, *(EXACT.subtract(each, standing.used) for each in room)])
    return Verdict(shown, "deny", reason=f"budget {budget.id} denies: {told}", left=left)


def _need(budget: Budget, costs: Costs) -> tuple[Decimal | None, str | None]:
    """What the call adds, and why it is refused for want of a price."""
    if budget.meter == "calls":
        return _ONE, None
    if budget.meter == "tokens":
        return costs.tokens, None
    amount = costs.billed_usd if budget.meter == "billed_usd" else costs.list_usd
    if amount is not None or costs.unpriced is None or budget.on_unpriced == "allow":
        return amount, None
    if budget.on_unpriced == "dearest" and costs.dearest_usd is not None:
        return costs.dearest_usd, None
    return None, costs.unpriced


def amount_of(budget: Budget, costs: Costs) -> Decimal | None:
    """What these costs add to the budget, in its meter's unit; NULL where that is not known."""
    return _need(budget, costs)[0]


def _passed(standing: Standing, would_be: Decimal) -> tuple[Decimal, Threshold]:
    """The sharpest threshold that spend of this height passes, with its allowance."""
    return max((each for each in standing.allowances if would_be > each[0]), key=_telling)


def _telling(passed: tuple[Decimal, Threshold]) -> tuple[int, Decimal]:
    """Of denials the lowest is to be got below; of warnings the highest says most."""
    allowance, threshold = passed
    return SHARPNESS[threshold.action], -allowance if threshold.action == "deny" else allowance


def _within(standing: Standing, amount: Decimal | None) -> Verdict:
    shown = figures(standing, estimate=amount)
    if standing.counted:
        return Verdict(shown, None)
    reason = f"budget {standing.budget.id} was just defined and its calls so far are still being counted"
    return Verdict(replace(shown, action="warn"), "warn", reason=reason)


def figures(
    standing: Standing,
    *,
    estimate: Decimal | None = None,
    action: Action | None = None,
    threshold: Threshold | None = None,
) -> BudgetFigures:
    """The budget's figures for a reply; `remaining` is what is left of the limit, negative when overspent."""
    budget, spend = standing.budget, standing.spend
    remaining = decimal_text(EXACT.subtract(budget.limit, standing.used)) if standing.counted else None
    return BudgetFigures(
        id=budget.id,
        meter=budget.meter,
        limit=decimal_text(budget.limit),
        period=budget.period,
        spent=decimal_text(spend.amount) if standing.counted else None,
        reserved=decimal_text(standing.reserved),
        remaining=remaining,
        resets_at=spend.resets_at(),
        estimate=None if estimate is None else decimal_text(estimate),
        unpriced_calls=spend.unpriced,
        action=action,
        threshold=None if threshold is None else decimal_text(threshold.at),
    )


def _refusal(budget: Budget, why: str) -> str:
    return f"budget {budget.id} denies calls without a price (on_unpriced={budget.on_unpriced}), and {why}"


_STRETCH = {
    "minute": "this minute",
    "hour": "this hour",
    "day": "today",
    "week": "this week",
    "month": "this month",
    "total": "in all",
}


def passing_sentence(budget: Budget, shown: BudgetFigures, threshold: Threshold) -> str:
    """Which budget, how much of what is spent, and which threshold that passes."""
    kind, _, length = budget.period.partition(":")
    stretch = _STRETCH.get(kind) or (
        f"in the last {length}" if kind == "rolling" else f"in its window of {length}"
    )
    more = "" if shown.estimate in (None, "0") else f" and {shown.estimate} more for this call"
    percent = decimal_text(EXACT.multiply(threshold.at, Decimal(100)))
    verb = {"deny": "denies", "warn": "warns", "notify": "notes"}[threshold.action]
    spent = shown.spent if shown.spent is not None else "a not yet counted part"
    held = "" if shown.reserved == "0" else f", {shown.reserved} reserved"
    return (
        f"budget {budget.id} {verb}: {spent} of {shown.limit} {UNITS[budget.meter]} spent {stretch}{held}"
        f"{more} pass {percent}% of the limit"
    )


def _advice(standing: Standing, allowance: Decimal) -> str | None:
    left = EXACT.subtract(allowance, standing.used)
    if not standing.counted or left <= 0:
        return None
    return f"at most {decimal_text(left)} {UNITS[standing.budget.meter]} fits budget {standing.budget.id} now"
