"""In which period a moment lies: clock changes, month ends, weeks, and zones with odd habits."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.budget_period import EPOCH, bounds, parse_period


def _at(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


@pytest.mark.parametrize(
    ("period", "zone", "at", "start", "end"),
    [
        ("day", "UTC", "2026-11-22T08:00:00Z", "2026-11-22T00:00:00Z", "2026-11-23T00:00:00Z"),
        # Berlin, spring: the day has 23 hours
        ("day", "Europe/Berlin", "2026-03-29T12:00:00Z", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"),
        # Berlin, autumn: 25 hours
        ("day", "Europe/Berlin", "2026-10-25T12:00:00Z", "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"),
        # New York, spring and autumn
        ("day", "America/New_York", "2026-03-08T12:00:00Z", "2026-03-08T05:00:00Z", "2026-03-09T04:00:00Z"),
        ("day", "America/New_York", "2026-11-01T12:00:00Z", "2026-11-01T04:00:00Z", "2026-11-02T05:00:00Z"),
        # the last microsecond belongs to the old day, the first to the new
        (
            "day",
            "Europe/Berlin",
            "2026-03-29T21:59:59.999999Z",
            "2026-03-28T23:00:00Z",
            "2026-03-29T22:00:00Z",
        ),
        ("day", "Europe/Berlin", "2026-03-29T22:00:00Z", "2026-03-29T22:00:00Z", "2026-03-30T22:00:00Z"),
        # the hour that comes twice in autumn is two periods, the skipped one none
        ("hour", "Europe/Berlin", "2026-10-25T00:30:00Z", "2026-10-25T00:00:00Z", "2026-10-25T01:00:00Z"),
        ("hour", "Europe/Berlin", "2026-10-25T01:30:00Z", "2026-10-25T01:00:00Z", "2026-10-25T02:00:00Z"),
        ("hour", "America/New_York", "2026-03-08T07:30:00Z", "2026-03-08T07:00:00Z", "2026-03-08T08:00:00Z"),
        # half-hour zones; Lord Howe sets its clock by half an hour: 2:00 becomes 1:30
        ("hour", "Asia/Kolkata", "2026-06-01T10:40:00Z", "2026-06-01T10:30:00Z", "2026-06-01T11:30:00Z"),
        (
            "hour",
            "Australia/Lord_Howe",
            "2026-04-04T15:10:00Z",
            "2026-04-04T15:00:00Z",
            "2026-04-04T15:30:00Z",
        ),
        # weeks begin on Monday (23 November 2026 is one), also across clock changes and years
        ("week", "UTC", "2026-11-22T23:59:59Z", "2026-11-16T00:00:00Z", "2026-11-23T00:00:00Z"),
        ("week", "UTC", "2026-11-23T00:00:00Z", "2026-11-23T00:00:00Z", "2026-11-30T00:00:00Z"),
        ("week", "Europe/Berlin", "2026-03-29T12:00:00Z", "2026-03-22T23:00:00Z", "2026-03-29T22:00:00Z"),
        ("week", "UTC", "2027-01-01T00:00:00Z", "2026-12-28T00:00:00Z", "2027-01-04T00:00:00Z"),
        # month ends: leap day, 31st, December, and months that hold a clock change
        ("month", "UTC", "2028-02-29T23:59:59Z", "2028-02-01T00:00:00Z", "2028-03-01T00:00:00Z"),
        ("month", "UTC", "2026-02-28T23:59:59Z", "2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z"),
        ("month", "UTC", "2026-12-31T23:59:59Z", "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"),
        ("month", "America/New_York", "2026-02-01T04:59:59Z", "2026-01-01T05:00:00Z", "2026-02-01T05:00:00Z"),
        ("month", "America/New_York", "2026-03-15T00:00:00Z", "2026-03-01T05:00:00Z", "2026-04-01T04:00:00Z"),
        ("day", "Europe/Berlin", "2028-02-29T12:00:00Z", "2028-02-28T23:00:00Z", "2028-02-29T23:00:00Z"),
        # Cairo skips midnight itself: the day begins at 01:00
        ("day", "Africa/Cairo", "2026-04-24T08:00:00Z", "2026-04-23T22:00:00Z", "2026-04-24T21:00:00Z"),
        # St John's set its clock back at 00:01 to 23:01 of the day before: the new day had begun all the same
        ("day", "America/St_Johns", "2010-11-07T02:45:00Z", "2010-11-07T02:30:00Z", "2010-11-08T03:30:00Z"),
        # Samoa had no 30 December 2011
        ("day", "Pacific/Apia", "2011-12-30T09:00:00Z", "2011-12-29T10:00:00Z", "2011-12-30T10:00:00Z"),
        ("day", "Pacific/Apia", "2011-12-30T11:00:00Z", "2011-12-30T10:00:00Z", "2011-12-31T10:00:00Z"),
        # a rolling window's bucket is the minute
        ("rolling:5h", "UTC", "2026-11-22T08:00:59.5Z", "2026-11-22T08:00:00Z", "2026-11-22T08:01:00Z"),
    ],
)
def test_bounds(period: str, zone: str, at: str, start: str, end: str) -> None:
    assert bounds(parse_period(period, zone), _at(at)) == (_at(start), _at(end))


def test_a_total_never_ends() -> None:
    assert bounds(parse_period("total"), _at("2026-11-22T08:00:00Z")) == (EPOCH, None)


_ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/St_Johns",
    "America/Havana",
    "Africa/Cairo",
    "Africa/Casablanca",
    "Asia/Kathmandu",
    "Asia/Beirut",
    "Australia/Lord_Howe",
    "Antarctica/Troll",
    "Pacific/Apia",
    "Pacific/Chatham",
]


@settings(max_examples=250, deadline=None)
@given(
    kind=st.sampled_from(["hour", "day", "week", "month", "rolling:90m"]),
    zone=st.sampled_from(_ZONES),
    at=st.integers(3 * 365 * 86_400_000_000, 67 * 365 * 86_400_000_000).map(
        lambda us: EPOCH + timedelta(microseconds=us)
    ),
)
def test_periods_tile_time(kind: str, zone: str, at: datetime) -> None:
    """Every moment lies in exactly one period, and the periods touch."""
    period = parse_period(kind, zone)
    start, end = bounds(period, at)
    assert end is not None
    assert start <= at < end
    assert bounds(period, start) == (start, end)
    assert bounds(period, end - timedelta(microseconds=1)) == (start, end)
    assert bounds(period, end)[0] == end
    assert bounds(period, start - timedelta(microseconds=1))[1] == start


@pytest.mark.parametrize(
    ("period", "zone", "hint"),
    [
        ("daily", "UTC", "rolling:5h"),
        ("rolling:0h", "UTC", "rolling:5h"),
        ("rolling:32d", "UTC", "31 days"),
        ("day", "Europe/Berln", "Europe/Berlin"),
        ("day", "../../etc/passwd", "IANA"),
        ("day", "", "IANA"),
    ],
)
def test_what_is_allowed_is_said(period: str, zone: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        parse_period(period, zone)
