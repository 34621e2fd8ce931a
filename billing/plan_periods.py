"""When the windows of a plan begin and end. Pure functions over aware datetimes; nothing here reads a clock.

A window of first use begins with the first call after the last one ended and lasts its length, whatever
the calendar says: five hours are five hours, also where a clock is set forward in between. Calendar windows
begin at local midnight of their time zone. A plan's own month begins on the day it renews, in shorter
months on their last day.
"""

from __future__ import annotations

from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from billing.budget_period import bounds, first_instant, parse_period, parse_zone
from catalog.plan_facts import Window, length_s

__all__ = ["Span", "calendar_span", "first_use_span", "length_of", "renewal_span"]


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time: starts_at <= at < ends_at, both UTC."""

    starts_at: datetime
    ends_at: datetime

    @property
    def length(self) -> timedelta:
        return self.ends_at - self.starts_at


def length_of(window: Window) -> timedelta:
    """The length of a window that has one (`first_use`, `sliding`)."""
    return timedelta(seconds=length_s(window.length or "0m"))


def calendar_span(window: Window, now: datetime, *, renews_on: int, time_zone: str) -> Span | None:
    """The window that holds `now`; None for a window of first use, which only calls begin.

    `renews_on` and `time_zone` are the account's: when the plan's own month begins.
    """
    if window.kind == "first_use":
        return None
    if window.kind == "sliding":
        return Span(now - length_of(window), now)
    if window.kind == "renewal":
        return renewal_span(now, renews_on=renews_on, time_zone=time_zone)
    start, end = bounds(parse_period(window.kind, window.time_zone), now)
    return Span(start, end or now)


def renewal_span(at: datetime, *, renews_on: int, time_zone: str) -> Span:
    """The plan's own month that holds `at`."""
    zone = parse_zone(time_zone)
    today = at.astimezone(zone).date()
    first = _renewal(today.year, today.month, renews_on)
    if first_instant(zone, first) > at:
        first = _months_later(first, -1, renews_on)
    following = _months_later(first, 1, renews_on)
    return Span(first_instant(zone, first), first_instant(zone, following))


def _renewal(year: int, month: int, day: int) -> date:
    return date(year, month, min(day, monthrange(year, month)[1]))


def _months_later(first: date, months: int, renews_on: int) -> date:
    number = first.year * 12 + first.month - 1 + months
    return _renewal(number // 12, number % 12 + 1, renews_on)


def first_use_span(starts_at: datetime, window: Window) -> Span:
    """The window that the first call of it began."""
    return Span(starts_at.astimezone(UTC), starts_at.astimezone(UTC) + length_of(window))
