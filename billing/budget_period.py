"""Periods of budgets: in which stretch of time a call counts, and when that stretch ends.

One truth for both sides: the front asks it for the current period, the ledger for the period of each
call, so a call can never count in one and be missing in the other. Pure functions over aware datetimes;
nothing here reads a clock. Days, weeks (from Monday) and months begin at local midnight of the budget's
time zone, which may be an hour longer or shorter than 24; where midnight is skipped by daylight saving
they begin with the first instant of that day.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

__all__ = [
    "EPOCH",
    "MAX_WINDOW_S",
    "MINUTE_S",
    "Period",
    "bounds",
    "epoch_s",
    "first_instant",
    "parse_period",
    "parse_zone",
    "period_start",
    "resets_at",
]

Kind = Literal["minute", "hour", "day", "week", "month", "rolling", "first_use", "total"]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MINUTE_S = 60
MAX_WINDOW_S = 31 * 86_400  # a window is kept in minutes: 44,640 of them at most

_CALENDAR: tuple[Kind, ...] = ("minute", "hour", "day", "week", "month", "total")
_WINDOW = re.compile(r"(rolling|first_use):([1-9][0-9]{0,5})([mhd])")
_UNIT_S = {"m": 60, "h": 3600, "d": 86_400}
_HOUR = timedelta(hours=1)
_SECOND = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Period:
    """A parsed period: its kind, its zone, and the window's length in seconds where it is one."""

    kind: Kind
    zone: tzinfo
    window_s: int = 0


@lru_cache(maxsize=1024)
def parse_period(text: str, time_zone: str = "UTC") -> Period:
    """`minute|hour|day|week|month|total`, `rolling:<n>m|h|d` or `first_use:<n>m|h|d` in an IANA time zone.

    A rolling window ends now. One from first use begins with the first call after the last one ended, as
    plans count. ValueError says what is allowed.
    """
    zone = parse_zone(time_zone)
    for kind in _CALENDAR:
        if text == kind:
            return Period(kind, zone)
    found = _WINDOW.fullmatch(text)
    if found is None:
        raise ValueError(
            "must be minute, hour, day, week, month, total, rolling:<n>m|h|d such as rolling:5h, "
            "or first_use:<n>m|h|d"
        )
    window_s = int(found[2]) * _UNIT_S[found[3]]
    if window_s > MAX_WINDOW_S:
        raise ValueError("a window may be at most 31 days; use month or total beyond that")
    return Period("rolling" if found[1] == "rolling" else "first_use", zone, window_s=window_s)


def parse_zone(name: str) -> tzinfo:
    """The IANA time zone of that name; ValueError names the nearest one."""
    if name == "UTC":  # also where the machine has no time zone data
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        near = difflib.get_close_matches(name, sorted(available_timezones()), n=1)
        hint = f"; did you mean {near[0]}?" if near else " such as Europe/Berlin"
        raise ValueError(f"must be an IANA time zone{hint}") from None


def epoch_s(at: datetime) -> int:
    """Whole seconds since 1970-01-01T00:00:00Z, rounded down."""
    return (at - EPOCH) // _SECOND


def period_start(period: Period, at: datetime) -> datetime:
    """Start (UTC) of the period that holds `at`: the bucket a call that started at `at` counts in.

    The bucket of a window of either kind is the minute of `at`; a total's only bucket starts at 1970-01-01.
    """
    return bounds(period, at)[0]


def resets_at(period: Period, at: datetime) -> datetime | None:
    """End (UTC) of the period that holds `at`; NULL for a total. For a window: the end of its bucket."""
    return bounds(period, at)[1]


def bounds(period: Period, at: datetime) -> tuple[datetime, datetime | None]:
    """Start and end (UTC) of the period that holds `at`: start <= at < end."""
    at = at.astimezone(UTC)
    if period.kind == "total":
        return EPOCH, None
    if period.kind in ("minute", "rolling", "first_use"):
        minute = at.replace(second=0, microsecond=0)
        return minute, minute + timedelta(minutes=1)
    if period.kind == "hour":
        return _hour(period.zone, at)
    return _days(period.kind, period.zone, at)


def _hour(zone: tzinfo, at: datetime) -> tuple[datetime, datetime]:
    """The local clock's hour. The hour that comes twice in autumn is two periods; a clock change inside
    an hour ends it.
    """
    local = at.astimezone(zone)
    start = at - timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)
    end = start + _HOUR
    offset = local.utcoffset()
    if end.astimezone(zone).utcoffset() != offset:
        end = _change(zone, at, end)
    if start.astimezone(zone).utcoffset() != offset:
        start = _change(zone, start, at)
    return start, end


def _days(kind: Kind, zone: tzinfo, at: datetime) -> tuple[datetime, datetime]:
    first = _first_day(kind, at.astimezone(zone).date())
    start, end = first_instant(zone, first), first_instant(zone, _next_day(kind, first))
    if at >= end:  # set back across midnight, the clock shows the old date again; the new day has begun
        return end, first_instant(zone, _next_day(kind, _next_day(kind, first)))
    return start, end


def _first_day(kind: Kind, day: date) -> date:
    if kind == "month":
        return day.replace(day=1)
    return day - timedelta(days=day.weekday()) if kind == "week" else day


def _next_day(kind: Kind, first: date) -> date:
    if kind == "month":
        return date(first.year + first.month // 12, first.month % 12 + 1, 1)
    return first + timedelta(days=7 if kind == "week" else 1)


def first_instant(zone: tzinfo, day: date) -> datetime:
    """The first instant (UTC) whose local date is `day`, or a later one where the calendar skipped that day.

    Midnight that comes twice is the first of the two. Midnight that is skipped reads as the instant of
    the change, for no zone has skipped it since 1970 by a change that did not begin at midnight.
    """
    return datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)


def _change(zone: tzinfo, low: datetime, high: datetime) -> datetime:
    """The first whole second in (low, high] at which the zone's offset is no longer that of `low`."""
    offset = low.astimezone(zone).utcoffset()
    low = low.replace(microsecond=0)
    while high - low > _SECOND:
        middle = low + (high - low) // _SECOND // 2 * _SECOND
        if middle.astimezone(zone).utcoffset() == offset:
            low = middle
        else:
            high = middle
    return high.replace(microsecond=0)
