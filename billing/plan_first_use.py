"""Where windows of first use stand: each begins with the first call after the one before it ended.

That is a chain through all of a seat's calls, so it is remembered and followed forward; a call that comes
late, before the window that is open now, has the chain followed again from where it can have changed. It is
followed for a bounded time back: a seat that never paused that long is taken to have begun there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from datetime import datetime, timedelta

import duckdb

from billing.plan_seats import Seat, next_uses

__all__ = ["FirstUses"]

_LENGTHS_BACK = 40
_LEAST_BACK = timedelta(days=8)
_MOST_BACK = timedelta(days=70)


class FirstUses:
    """The starts of the windows of every seat, one chain for each length."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._db = connection
        self._starts: dict[tuple[Seat, timedelta], list[datetime]] = {}

    def forget_from(self, at: datetime) -> None:
        """Follow anew what calls at or after an instant may have changed."""
        for starts in self._starts.values():
            del starts[bisect_left(starts, at) :]

    def follow(self, seats: Iterable[Seat], length: timedelta, *, now: datetime) -> dict[Seat, datetime]:
        """The start of each seat's last window of a length, open or over; without calls there is none."""
        seats = list(seats)
        back = now - min(max(_LENGTHS_BACK * length, _LEAST_BACK), _MOST_BACK)
        resumed = {seat: self._resume(seat, length, back) for seat in seats}
        waiting = {seat: at for seat, at in resumed.items() if at <= now}
        while waiting:
            found = next_uses(self._db, list(waiting.items()), until=now)
            for seat, at in found.items():
                self._starts[seat, length].append(at)
            waiting = {seat: at + length for seat, at in found.items() if at + length <= now}
        chains = {seat: self._starts[seat, length] for seat in seats}
        return {seat: starts[-1] for seat, starts in chains.items() if starts}

    def _resume(self, seat: Seat, length: timedelta, back: datetime) -> datetime:
        """Where the chain goes on: the end of its last window; what is older than needed is dropped."""
        starts = self._starts.setdefault((seat, length), [])
        del starts[:-_LENGTHS_BACK]
        return starts[-1] + length if starts else back
