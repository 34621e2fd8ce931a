"""In which period a moment lies: clock changes, month ends, weeks, and zones with odd habits."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.budget_period import EPOCH, bounds, epoch_s, parse_period
from billing.budget_spend import FirstUseSpend, spend_of


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
        ("minute", "UTC", "2026-11-22T08:00:59.5Z", "2026-11-22T08:00:00Z", "2026-11-22T08:01:00Z"),
        # a window's bucket is the minute
        ("first_use:5h", "UTC", "2026-11-22T08:00:59.5Z", "2026-11-22T08:00:00Z", "2026-11-22T08:01:00Z"),
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
    kind=st.sampled_from(["minute", "hour", "day", "week", "month", "rolling:90m"]),
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
        ("first_use:32d", "UTC", "31 days"),
        ("first_use", "UTC", "first_use:<n>"),
        ("day", "Europe/Berln", "Europe/Berlin"),
        ("day", "../../etc/passwd", "IANA"),
        ("day", "", "IANA"),
    ],
)
def test_what_is_allowed_is_said(period: str, zone: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        parse_period(period, zone)


# --- windows from first use -------------------------------------------------------------------------------


def _open_window(calls: dict[int, int], window_s: int, now_s: int) -> tuple[int, int | None]:
    """Spend and end of the window that is open, by walking through all calls (minute -> amount)."""
    start: int | None = None
    for minute in sorted(minute for minute, amount in calls.items() if amount):
        if minute <= now_s and (start is None or minute >= start + window_s):
            start = minute
    if start is None or now_s >= start + window_s:
        return 0, None
    return sum(
        amount for minute, amount in calls.items() if start <= minute < start + window_s
    ), start + window_s


_told = st.lists(st.tuples(st.integers(0, 300), st.integers(-3, 9)), max_size=25)


@settings(max_examples=300, deadline=None)
@given(told=_told, asked=st.lists(st.integers(0, 400 * 60), min_size=1, max_size=6), data=st.data())
def test_a_window_begins_with_the_first_call_after_the_last_one_ended(
    told: list[tuple[int, int]], asked: list[int], data: st.DataObject
) -> None:
    """Late calls, calls taken back, calls dated ahead, asked in between: only the set counts."""
    period = parse_period("first_use:1h")
    spend, calls = spend_of(period), dict[int, int]()
    for minute, change in data.draw(st.permutations(told)):
        at_s = minute * 60
        amount = max(change, -calls.get(at_s, 0))
        calls[at_s] = calls.get(at_s, 0) + amount
        spend.add(at_s, Decimal(amount), 0)
        now_s = data.draw(st.sampled_from(asked))
        spend.roll(EPOCH + timedelta(seconds=now_s))
        amount_now, end = _open_window(calls, 3600, now_s)
        assert (spend.amount, spend.resets_at()) == (amount_now, end and EPOCH + timedelta(seconds=end))


def test_windows_that_ended_long_ago_are_forgotten_and_move_nothing() -> None:
    period = parse_period("first_use:5h")
    spend = spend_of(period)
    now = _at("2026-11-22T08:00:00Z")
    for hours in range(24 * 40):  # without a pause, so that every window follows from the one before
        spend.add(epoch_s(now) - hours * 3600, Decimal(1), 0)
    before = [each for each in range(24 * 40) if (24 * 40 - 1 - each) % 5 == 0]
    spend.roll(now)
    assert spend.amount == before[0] + 1
    assert isinstance(spend, FirstUseSpend)
    assert len(spend) < 24 * 31 + 10
    spend.add(epoch_s(now) - 1800, Decimal(1), 0)
    spend.roll(now)
    assert spend.amount == before[0] + 2
