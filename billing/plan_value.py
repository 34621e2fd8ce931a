"""The rows of `plan_values` and `plan_shares`: what a plan's calls are worth against its fee, month by month.

The value of a call is its list price. A fee is split over the teams by the value of their calls, so that
what is shown to each sums to the invoice; where no call has a price, by their number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from billing.plan_periods import Span, renewal_span
from billing.plan_seats import Seat
from billing.plan_share import allocate
from catalog.plan_facts import Account, Plan

__all__ = ["MONTHS", "Month", "months_of", "share_rows", "value_row"]

MONTHS = 3
"""How many months are shown: the running one and those before it."""
_SIX = Decimal("1e-6")
_MICROSECOND = timedelta(microseconds=1)
_HOUR = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Month:
    """One month of one plan: of an account of the operator's, or of the seats that none fits."""

    plan: Plan
    account: Account | None
    seats: tuple[Seat, ...]
    span: Span

    @property
    def fee(self) -> Decimal | None:
        """What is invoiced, in `currency`; None unless the operator or the plan tells."""
        if self.account is None:
            return None
        if self.account.invoice is not None:
            return self.account.invoice
        tier = next((tier for tier in self.plan.tiers if tier.id == self.account.tier), None)
        return tier.fee * self.account.seats if tier else None

    @property
    def currency(self) -> str | None:
        if self.fee is None or self.account is None:
            return None
        tier = next((tier for tier in self.plan.tiers if tier.id == self.account.tier), None)
        return self.account.currency if self.account.invoice is not None or tier is None else tier.currency


def months_of(
    plan: Plan, account: Account | None, seats: Sequence[Seat], *, now: datetime, used_since: datetime | None
) -> list[Month]:
    """The running month and those before it in which the plan was held or used, newest first."""
    day, zone = (account.renews_on, account.time_zone) if account else (1, "UTC")
    begins = min((at for at in (account.since if account else None, used_since) if at), default=now)
    found: list[Month] = []
    at = now
    while len(found) < MONTHS:
        span = renewal_span(at, renews_on=day, time_zone=zone)
        if span.ends_at <= begins:
            break
        found.append(Month(plan, account, tuple(seats), span))
        at = span.starts_at - _MICROSECOND
    return found


def value_row(
    month: Month,
    used: Sequence[Mapping[str, Any]],
    hours: Sequence[tuple[datetime, Decimal]],
    *,
    now: datetime,
) -> dict[str, Any]:
    """The row of a month; `used` are its sums by model and team, `hours` its list cost by hour, in order."""
    fee, value = month.fee, sum((sums["list_cost_usd"] for sums in used), Decimal(0))
    comparable = fee if month.currency == "USD" else None
    reached = _reached(hours, comparable)
    return {
        "plan_id": month.plan.id,
        "account": month.account.id if month.account else None,
        "period_starts_at": month.span.starts_at,
        "period_ends_at": month.span.ends_at,
        "seats": month.account.seats if month.account else len(month.seats),
        "fee": fee,
        "currency": month.currency,
        "calls": sum(sums["calls"] for sums in used),
        "unpriced_calls": sum(sums["unpriced_calls"] for sums in used),
        "value_usd": value,
        "value_ratio": (value / comparable).quantize(_SIX) if comparable else None,
        "break_even_at": reached or _expected(month.span, value, comparable, now=now),
        "broke_even": None if comparable is None else value >= comparable,
    }


def _reached(hours: Sequence[tuple[datetime, Decimal]], fee: Decimal | None) -> datetime | None:
    total = Decimal(0)
    for hour, value in hours:
        total += value
        if fee is not None and total >= fee:
            return hour + _HOUR
    return None


def _expected(span: Span, value: Decimal, fee: Decimal | None, *, now: datetime) -> datetime | None:
    """When the value reaches the fee if it goes on as it has; None where it has not begun, or the month is
    over.
    """
    if not fee or not value or now >= span.ends_at:
        return None
    elapsed = Decimal((now - span.starts_at) // _MICROSECOND)
    return span.starts_at + int(elapsed * fee / value) * _MICROSECOND


def share_rows(month: Month, used: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a month's fee over teams; none where the fee is not told."""
    fee = month.fee
    if fee is None:
        return []
    teams: dict[str | None, tuple[int, Decimal]] = {}
    for sums in used:
        calls, value = teams.get(sums["team"], (0, Decimal(0)))
        teams[sums["team"]] = calls + sums["calls"], value + sums["list_cost_usd"]
    teams = teams or {None: (0, Decimal(0))}
    parts = allocate(fee, _weights(teams))
    return [
        {
            "plan_id": month.plan.id,
            "account": month.account.id if month.account else None,
            "period_starts_at": month.span.starts_at,
            "team": team,
            "calls": calls,
            "value_usd": value,
            "fee_share": parts[team],
            "currency": month.currency,
        }
        for team, (calls, value) in teams.items()
    ]


def _weights(teams: Mapping[str | None, tuple[int, Decimal]]) -> dict[str | None, Decimal]:
    """What the fee is split by: value, else calls, else nothing but the number of teams."""
    for weights in (
        {team: value for team, (_, value) in teams.items()},
        {team: Decimal(calls) for team, (calls, _) in teams.items()},
    ):
        if any(weights.values()):
            return weights
    return dict.fromkeys(teams, Decimal(1))
