"""Judges one check against one budget: what the call would need, which threshold it passes, and what to say.

Pure functions on figures; no state and no clock. A cost that is not known is never taken for 0: the budget's
`on_unpriced` decides, and the reply says so.
"""

from __future__ import annotations

from dataclasses import dataclass
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

__all__ = ["Standing", "Verdict", "figures", "judge", "passing_sentence"]

SHARPNESS: dict[Action | None, int] = {None: 0, "notify": 1, "warn": 2, "deny": 3}
UNITS = {"billed_usd": "USD billed", "list_usd": "USD at list price", "tokens": "tokens", "calls": "calls"}
_ONE = Decimal(1)


@dataclass(frozen=True, slots=True)
class Standing:
    """One budget and its spend now. `counted` is false while a new budget's calls are still being counted."""

    budget: Budget
    spend: Spend
    allowances: tuple[tuple[Decimal, Threshold], ...]  # at x limit, ascending
    counted: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one budget says of a check. `retry_at` is None when it does not deny or waiting will not help."""

    figures: BudgetFigures
    action: Action | None
    reason: str | None = None
    retry_at: datetime | None = None
    advice: str | None = None


@dataclass(frozen=True, slots=True)
class _Need:
    amount: Decimal | None
    refused: str | None = None


def judge(standing: Standing, costs: Costs) -> Verdict:
    """Denies, warns, notifies or lets pass; the spend must have been rolled to now."""
    need = _need(standing.budget, costs)
    if need.refused is not None:
        return Verdict(
            figures(standing, action="deny"), "deny", reason=_refusal(standing.budget, need.refused)
        )
    would_be = EXACT.add(standing.spend.amount, need.amount or ZERO)
    passed = _passed(standing, would_be)
    if passed is None:
        return _within(standing, need.amount)
    allowance, threshold = passed
    shown = figures(standing, estimate=need.amount, action=threshold.action, threshold=threshold)
    return Verdict(
        shown,
        threshold.action,
        reason=passing_sentence(standing.budget, shown, threshold),
        retry_at=_retry_at(standing, need.amount or ZERO, allowance) if threshold.action == "deny" else None,
        advice=_advice(standing, allowance),
    )


def _need(budget: Budget, costs: Costs) -> _Need:
    if budget.meter == "calls":
        return _Need(_ONE)
    if budget.meter == "tokens":
        return _Need(costs.tokens)
    amount = costs.billed_usd if budget.meter == "billed_usd" else costs.list_usd
    if amount is not None or costs.unpriced is None or budget.on_unpriced == "allow":
        return _Need(amount)
    if budget.on_unpriced == "dearest" and costs.dearest_usd is not None:
        return _Need(costs.dearest_usd)
    return _Need(None, refused=costs.unpriced)


def _passed(standing: Standing, would_be: Decimal) -> tuple[Decimal, Threshold] | None:
    """The sharpest threshold that spend of this height passes, with its allowance."""
    passed = [each for each in standing.allowances if would_be > each[0]]
    return max(passed, key=_telling, default=None)


def _telling(passed: tuple[Decimal, Threshold]) -> tuple[int, Decimal]:
    """Of denials the lowest is to be got below; of warnings the highest says most."""
    allowance, threshold = passed
    return SHARPNESS[threshold.action], -allowance if threshold.action == "deny" else allowance


def _within(standing: Standing, amount: Decimal | None) -> Verdict:
    shown = figures(standing, estimate=amount)
    if standing.counted:
        return Verdict(shown, None)
    reason = f"budget {standing.budget.id} was just defined and its calls so far are still being counted"
    return Verdict(shown.model_copy(update={"action": "warn"}), "warn", reason=reason)


def figures(
    standing: Standing,
    *,
    estimate: Decimal | None = None,
    action: Action | None = None,
    threshold: Threshold | None = None,
) -> BudgetFigures:
    """The budget's figures for a reply; `remaining` is what is left of the limit, negative when overspent."""
    budget, spend = standing.budget, standing.spend
    return BudgetFigures(
        id=budget.id,
        meter=budget.meter,
        limit=decimal_text(budget.limit),
        period=budget.period,
        spent=decimal_text(spend.amount) if standing.counted else None,
        reserved="0",
        remaining=decimal_text(EXACT.subtract(budget.limit, spend.amount)) if standing.counted else None,
        resets_at=spend.resets_at(),
        estimate=None if estimate is None else decimal_text(estimate),
        unpriced_calls=spend.unpriced,
        action=action,
        threshold=None if threshold is None else decimal_text(threshold.at),
    )


def _retry_at(standing: Standing, amount: Decimal, allowance: Decimal) -> datetime | None:
    """When enough has left for this to fit; None when it would not fit an empty period either."""
    would_be = EXACT.add(standing.spend.amount, amount)
    return standing.spend.freed_at(EXACT.subtract(would_be, allowance))


def _refusal(budget: Budget, why: str) -> str:
    return f"budget {budget.id} denies calls without a price (on_unpriced={budget.on_unpriced}), and {why}"


_STRETCH = {
    "hour": "this hour",
    "day": "today",
    "week": "this week",
    "month": "this month",
    "total": "in all",
}


def passing_sentence(budget: Budget, shown: BudgetFigures, threshold: Threshold) -> str:
    """Which budget, how much of what is spent, and which threshold that passes."""
    stretch = _STRETCH.get(budget.period) or f"in the last {budget.period.removeprefix('rolling:')}"
    more = "" if shown.estimate in (None, "0") else f" and {shown.estimate} more for this call"
    percent = decimal_text(EXACT.multiply(threshold.at, Decimal(100)))
    verb = {"deny": "denies", "warn": "warns", "notify": "notes"}[threshold.action]
    spent = shown.spent if shown.spent is not None else "a not yet counted part"
    return (
        f"budget {budget.id} {verb}: {spent} of {shown.limit} {UNITS[budget.meter]} spent {stretch}{more} "
        f"pass {percent}% of the limit"
    )


def _advice(standing: Standing, allowance: Decimal) -> str | None:
    left = EXACT.subtract(allowance, standing.spend.amount)
    if not standing.counted or left <= 0:
        return None
    return f"at most {decimal_text(left)} {UNITS[standing.budget.meter]} fits budget {standing.budget.id} now"
