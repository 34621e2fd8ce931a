"""The rows of the table `plans`: where every window of every seat stands.

What is used is counted from calls where the plan counts in something that calls tell; a provider's own word
about a window that is still open beats the count, and moves the window to where the provider has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Any

from billing.plan_periods import Span, calendar_span, first_use_span, length_of
from billing.plan_quota import Reading
from billing.plan_seats import Seat
from catalog.plan_book import PlanBook
from catalog.plan_draw import weight_of
from catalog.plan_facts import Account, Plan, Unit, Window

__all__ = ["OpenWindow", "account_of", "open_windows", "window_row"]

SIX = Decimal("1e-6")
_MICROSECOND = timedelta(microseconds=1)
FirstUse = Callable[[timedelta], Mapping[Seat, datetime]]
"""Length of a window -> the start of each seat's last one."""


@dataclass(frozen=True, slots=True)
class OpenWindow:
    """One window of one seat; `span` is None while no call has begun one."""

    seat: Seat
    plan: Plan
    account: Account | None
    window: Window
    span: Span | None
    reading: Reading | None = None

    @property
    def unit(self) -> Unit:
        size = self._own_size
        return (size.unit if size else None) or self.window.unit or self.plan.unit

    @property
    def size(self) -> Decimal | None:
        """How much fits: the account's word, else its tier's, else the plan's."""
        own = self._own_size
        tiers = {tier.id: tier for tier in self.plan.tiers}
        tier = tiers.get(self.account.tier or "") if self.account else None
        told = tier.sizes.get(self.window.id) if tier else None
        return own.size if own else told or self.window.size

    @property
    def _own_size(self) -> Any:
        sized = self.account.windows if self.account else []
        return next((size for size in sized if size.id == self.window.id), None)


def account_of(seat: Seat, book: PlanBook, now: datetime) -> Account | None:
    """The operator's account that a seat belongs to: one that names its id, else one for all of a plan."""
    mine = [
        account
        for account in book.accounts
        if account.plan == seat.plan_id
        and account.account_id in (None, seat.account_id)
        and (account.since is None or account.since <= now)
        and (account.until is None or now < account.until)
    ]
    return max(mine, key=lambda account: account.account_id is not None, default=None)


def open_windows(
    seats: Iterable[Seat],
    book: PlanBook,
    *,
    now: datetime,
    first_use: FirstUse,
    readings: Mapping[tuple[str, str | None, str], Reading],
) -> list[OpenWindow]:
    """Every window of every seat, as it stands at an instant."""
    found: list[OpenWindow] = []
    for seat in seats:
        plan = book.plans.get(seat.plan_id)
        account = account_of(seat, book, now)
        for window in plan.windows if plan else ():
            reading = readings.get((plan.provider, seat.account_id, window.id)) if plan else None
            span = _span(window, seat, account, now=now, first_use=first_use)
            if plan is not None:
                told = OpenWindow(seat, plan, account, window, span)
                found.append(_as_told(told, reading, now))
    return found


def _span(
    window: Window, seat: Seat, account: Account | None, *, now: datetime, first_use: FirstUse
) -> Span | None:
    if window.kind != "first_use":
        day, zone = (account.renews_on, account.time_zone) if account else (1, "UTC")
        return calendar_span(window, now, renews_on=day, time_zone=zone)
    start = first_use(length_of(window)).get(seat)
    span = first_use_span(start, window) if start else None
    return span if span and now < span.ends_at else None


def _as_told(told: OpenWindow, reading: Reading | None, now: datetime) -> OpenWindow:
    """The same as the provider sees it, while what it said is of a window that is not over."""
    if reading is None:
        return told
    length = told.span.length if told.span else length_of(told.window)
    if reading.resets_at is not None:
        if reading.resets_at <= now:
            return told
        return replace(told, reading=reading, span=Span(reading.resets_at - length, reading.resets_at))
    fresh = told.span is not None and told.span.starts_at <= reading.seen_at
    return replace(told, reading=reading) if fresh else told


def window_row(told: OpenWindow, used: Sequence[Mapping[str, Any]], *, now: datetime) -> dict[str, Any]:
    """The table's row; `used` are the sums of its calls by model (and team)."""
    mine = [sums for sums in used if _is_about(told.window, sums["model"])]
    count = counted(told.plan, told.unit, mine)
    size = told.size
    by_calls = (count / size).quantize(SIX) if count is not None and size else None
    fraction = told.reading.used_fraction if told.reading else by_calls
    elapsed = _elapsed(told.span, now)
    return {
        "plan_id": told.plan.id,
        "plan": told.plan.name,
        "provider": told.plan.provider,
        "account": told.account.id if told.account else None,
        "account_id": told.seat.account_id,
        "quota": told.window.id,
        "kind": told.window.kind,
        "unit": told.unit,
        "starts_at": told.span.starts_at if told.span else None,
        "ends_at": told.span.ends_at if told.span else None,
        "used": count,
        "size": size,
        "used_fraction": fraction,
        "used_from": "provider" if told.reading else "calls" if by_calls is not None else None,
        "seen_at": told.reading.seen_at if told.reading else None,
        "elapsed_fraction": elapsed,
        "pace": (fraction / elapsed).quantize(SIX) if fraction is not None and elapsed else None,
        "exhausted_at": _exhausted_at(told, fraction, now),
        "calls": sum(sums["calls"] for sums in mine),
        "unpriced_calls": sum(sums["unpriced_calls"] for sums in mine),
        "list_cost_usd": sum((sums["list_cost_usd"] for sums in mine), Decimal(0)),
    }


def _is_about(window: Window, model: str | None) -> bool:
    return not window.models or any(fnmatchcase(model or "", pattern) for pattern in window.models)


def counted(plan: Plan, unit: Unit, used: Sequence[Mapping[str, Any]]) -> Decimal | None:
    """What calls used, in a unit; None where calls do not tell that."""
    amounts: dict[Unit, Callable[[Mapping[str, Any]], Decimal]] = {
        "requests": lambda sums: Decimal(sums["calls"] - sums["errors"]),
        "tokens": lambda sums: Decimal(sums["input_tokens"]) + Decimal(sums["output_tokens"]),
        "input_tokens": lambda sums: Decimal(sums["input_tokens"]),
        "list_usd": lambda sums: Decimal(sums["list_cost_usd"]),
    }
    if plan.credits_per_usd is not None:
        worth = plan.credits_per_usd
        amounts["credits"] = lambda sums: Decimal(sums["list_cost_usd"]) * worth
    amount = amounts.get(unit)
    if amount is None:
        return None
    return sum((amount(sums) * weight_of(plan, sums["model"]) for sums in used), Decimal(0))


def _elapsed(span: Span | None, now: datetime) -> Decimal | None:
    if span is None:
        return None
    part = Decimal((now - span.starts_at) // _MICROSECOND) / Decimal(span.length // _MICROSECOND)
    return part.quantize(SIX)


def _exhausted_at(told: OpenWindow, fraction: Decimal | None, now: datetime) -> datetime | None:
    """When a window that fills up evenly is full, where that is before its end."""
    if told.span is None or not fraction or told.window.kind == "sliding":
        return None
    elapsed = Decimal((now - told.span.starts_at) // _MICROSECOND)
    whole = elapsed / fraction
    if whole >= told.span.length // _MICROSECOND:
        return None
    return told.span.starts_at + int(whole) * _MICROSECOND
