"""What one budget has spent, kept so that "how much now" never walks through history.

Buckets come from the ledger (amount and number of unpriced calls per period, or per minute for a rolling
window) and may come late, be revised downwards, or lie in a period that has not begun. Buckets that can
never count again are dropped. Amounts are Decimals in the meter's unit and are added exactly.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Protocol

from billing.budget import EXACT
from billing.budget_period import EPOCH, MAX_WINDOW_S, MINUTE_S, Period, bounds, epoch_s

__all__ = ["CalendarSpend", "FirstUseSpend", "RollingSpend", "Spend", "spend_of", "window_starts"]


ZERO = Decimal(0)
_COMPACT_AFTER = 512
_NEVER_S = 1 << 62
_MAX_STEPS = 4096  # how far a denial looks ahead for the moment at which its estimate fits


class Spend(Protocol):
    """Spend of one budget in the period that holds now. `roll` first, then ask."""

    amount: Decimal
    unpriced: int

    def add(self, bucket_s: int, amount: Decimal, unpriced: int) -> None:
        """Adds a change to the bucket that starts at `bucket_s`."""
        ...

    def roll(self, now: datetime) -> None:
        """Makes `amount` and `unpriced` those of the period that holds now."""
        ...

    def resets_at(self) -> datetime | None:
        """When the present spend begins to leave; NULL when it never does or nothing is spent."""
        ...

    def freed_at(self, excess: Decimal) -> datetime | None:
        """The earliest moment at which `excess` of the present spend will have left; NULL when it never
        does.
        """
        ...


class CalendarSpend:
    """Spend by calendar period (or the one period of a total)."""

    __slots__ = ("_buckets", "_end", "_floor_s", "_period", "_start_s", "amount", "unpriced")

    def __init__(self, period: Period) -> None:
        self._period = period
        self._buckets: dict[int, tuple[Decimal, int]] = {}
        self._start_s = -1
        self._end: datetime | None = EPOCH  # no period yet: the first roll finds one
        self._floor_s = 0
        self.amount = ZERO
        self.unpriced = 0

    def add(self, bucket_s: int, amount: Decimal, unpriced: int) -> None:
        if bucket_s < self._floor_s:
            return
        had, had_unpriced = self._buckets.get(bucket_s, (ZERO, 0))
        self._buckets[bucket_s] = EXACT.add(had, amount), had_unpriced + unpriced
        if bucket_s == self._start_s:
            self.amount, self.unpriced = self._buckets[bucket_s]

    def roll(self, now: datetime) -> None:
        if (self._end is None or now < self._end) and 0 <= self._start_s <= epoch_s(now):
            return
        start, self._end = bounds(self._period, now)
        self._start_s = epoch_s(start)
        self._drop_before(start)
        self.amount, self.unpriced = self._buckets.get(self._start_s, (ZERO, 0))

    def _drop_before(self, start: datetime) -> None:
        """Keeps the period before this one too: a clock may be set back a little."""
        if self._end is None:
            return
        previous = bounds(self._period, start - timedelta(microseconds=1))[0]
        self._floor_s = max(self._floor_s, epoch_s(previous))
        for bucket_s in [each for each in self._buckets if each < self._floor_s]:
            del self._buckets[bucket_s]

    def resets_at(self) -> datetime | None:
        return self._end

    def freed_at(self, excess: Decimal) -> datetime | None:
        return self._end if excess <= self.amount else None


class RollingSpend:
    """Spend of the last `window_s` seconds, by minutes: a minute counts until all of it has left the window.

    So a call counts up to 60 s longer than the window, never shorter. Calls dated in the future count at
    once.
    """

    __slots__ = ("_buckets", "_gone_s", "_head", "_minutes", "_stay_s", "amount", "unpriced")

    def __init__(self, period: Period) -> None:
        self._stay_s = period.window_s + MINUTE_S
        self._buckets: dict[int, tuple[Decimal, int]] = {}
        self._minutes: list[int] = []  # sorted; those before _head have left
        self._head = 0
        self._gone_s = -1  # minutes that start here or before have left for good
        self.amount = ZERO
        self.unpriced = 0

    def add(self, bucket_s: int, amount: Decimal, unpriced: int) -> None:
        if bucket_s <= self._gone_s:
            return
        if bucket_s not in self._buckets:
            bisect.insort(self._minutes, bucket_s, lo=self._head)
        had, had_unpriced = self._buckets.get(bucket_s, (ZERO, 0))
        self._buckets[bucket_s] = EXACT.add(had, amount), had_unpriced + unpriced
        self.amount = EXACT.add(self.amount, amount)
        self.unpriced += unpriced

    def roll(self, now: datetime) -> None:
        self._gone_s = max(self._gone_s, epoch_s(now) - self._stay_s)
        while self._head < len(self._minutes) and self._minutes[self._head] <= self._gone_s:
            amount, unpriced = self._buckets.pop(self._minutes[self._head])
            self.amount = EXACT.subtract(self.amount, amount)
            self.unpriced -= unpriced
            self._head += 1
        if self._head >= _COMPACT_AFTER and self._head * 2 > len(self._minutes):
            del self._minutes[: self._head]
            self._head = 0

    def _leaves(self, minute_s: int) -> datetime:
        return EPOCH + timedelta(seconds=minute_s + self._stay_s)

    def resets_at(self) -> datetime | None:
        return self._leaves(self._minutes[self._head]) if self._head < len(self._minutes) else None

    def freed_at(self, excess: Decimal) -> datetime | None:
        if excess > self.amount:
            return None
        leaves = None
        for minute_s in self._minutes[self._head : self._head + _MAX_STEPS]:
            leaves = self._leaves(minute_s)
            excess = EXACT.subtract(excess, self._buckets[minute_s][0])
            if excess <= 0:
                break
        return leaves


class FirstUseSpend:
    """Spend of the window that is open now, by minutes: a window begins with the first call after the last
    one ended, and where that is follows from all calls since, in whatever order they are told.

    Windows that ended a month ago are forgotten whole, so that those after them stay where they are.
    """

    __slots__ = (
        "_buckets",
        "_end_s",
        "_is_open",
        "_known_until_s",
        "_minutes",
        "_start_s",
        "_window_s",
        "amount",
        "unpriced",
    )

    def __init__(self, period: Period) -> None:
        self._window_s = period.window_s
        self._buckets: dict[int, tuple[Decimal, int]] = {}
        self._minutes: list[int] = []
        self._start_s = self._end_s = 0  # of the window that is open, or was last
        self._is_open = False
        self._known_until_s = -1  # until when nothing changes unless something is added
        self.amount = ZERO
        self.unpriced = 0

    def add(self, bucket_s: int, amount: Decimal, unpriced: int) -> None:
        had, had_unpriced = self._buckets.pop(bucket_s, (ZERO, 0))
        new = EXACT.add(had, amount), had_unpriced + unpriced
        place = bisect.bisect_left(self._minutes, bucket_s)
        is_known = self._minutes[place : place + 1] == [bucket_s]
        if any(new):
            self._buckets[bucket_s] = new
            if not is_known:
                self._minutes.insert(place, bucket_s)
        elif is_known:  # what was told there has been taken back
            del self._minutes[place]
        self._known_until_s = -1

    def roll(self, now: datetime) -> None:
        now_s = epoch_s(now)
        if self._start_s <= now_s < self._known_until_s:
            return
        self._forget(now_s - MAX_WINDOW_S)
        starts = [each for each in window_starts(self._minutes, self._window_s) if each <= now_s]
        self._start_s = starts[-1] if starts else 0
        self._end_s = self._start_s + self._window_s
        self._is_open = bool(starts) and now_s < self._end_s
        last = bisect.bisect_left(self._minutes, self._end_s) if starts else 0
        following = self._minutes[last] if last < len(self._minutes) else _NEVER_S
        self._known_until_s = self._end_s if self._is_open else following
        self._count(last if self._is_open else 0)

    def __len__(self) -> int:
        """How many minutes are kept."""
        return len(self._minutes)

    def _count(self, last: int) -> None:
        first = bisect.bisect_left(self._minutes, self._start_s)
        counted = [self._buckets[each] for each in self._minutes[first:last]]
        self.amount, self.unpriced = ZERO, sum(unpriced for _, unpriced in counted)
        for amount, _ in counted:
            self.amount = EXACT.add(self.amount, amount)

    def _forget(self, before_s: int) -> None:
        """Drops the windows that ended before that moment."""
        if not self._minutes or self._minutes[0] + self._window_s >= before_s:
            return
        kept = [
            each for each in window_starts(self._minutes, self._window_s) if each + self._window_s >= before_s
        ]
        gone = bisect.bisect_left(self._minutes, kept[0]) if kept else len(self._minutes)
        for minute_s in self._minutes[:gone]:
            del self._buckets[minute_s]
        del self._minutes[:gone]

    def resets_at(self) -> datetime | None:
        return EPOCH + timedelta(seconds=self._end_s) if self._is_open else None

    def freed_at(self, excess: Decimal) -> datetime | None:
        return self.resets_at() if excess <= self.amount else None


def window_starts(minutes: Sequence[int], window_s: int) -> list[int]:
    """When the windows begin that calls in these minutes (ascending) open."""
    starts: list[int] = []
    place = 0
    while place < len(minutes):
        starts.append(minutes[place])
        place = bisect.bisect_left(minutes, minutes[place] + window_s, lo=place)
    return starts


def spend_of(period: Period) -> Spend:
    """An empty spend for this period."""
    if period.kind == "first_use":
        return FirstUseSpend(period)
    return RollingSpend(period) if period.kind == "rolling" else CalendarSpend(period)
