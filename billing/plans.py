"""The tables of plans in the published file, written anew while the file is published.

They are small (a row for each window of each seat) and follow the clock as well as the calls. Everything is
computed from rollups, calls and what providers said, so a late call, a correction or another size in the
accounts file changes them without a trace.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import duckdb
import polars as pl

from billing import tables
from billing.plan_advice import used_up_by
from billing.plan_first_use import FirstUses
from billing.plan_quota import quotas
from billing.plan_seats import Seat, SeatSpan, used_by, used_hourly, users
from billing.plan_value import MONTHS, Month, months_of, share_rows, value_row
from billing.plan_windows import account_of, open_windows, window_row
from billing.seal import STAGING
from billing.store import append
from catalog.plan_book import PlanBook

__all__ = ["PlanTables"]

MANY_SEATS = 50
"""With more seats than this the tables are not written with every publication ..."""
REST = 10
"""... but rest this many times as long as writing them took, so that calls are seen at once."""
_LOOK_BACK = timedelta(days=31 * (MONTHS + 1))


class PlanTables:
    """Keeps `plans`, `plan_values` and `plan_shares` of one staging file; `used_up` is for the front."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, book: PlanBook) -> None:
        self._db = connection
        self._book = book
        self._first_uses = FirstUses(connection)
        self.in_use = False
        self.behind = False
        """Whether the tables were left as they were when the file was published last."""
        self._written_at = self._took_s = 0.0
        self._used_since: dict[Seat, datetime] = {}
        self.used_up: list[dict[str, Any]] = []

    def changed_from(self, at: datetime) -> None:
        """Take note that calls at or after an instant have changed."""
        self._first_uses.forget_from(at)

    def refresh(self, now: datetime) -> None:
        """Write the tables, unless that would take more than its share of the time of publishing."""
        began = time.monotonic()
        many = len(self._used_since) > MANY_SEATS
        self.behind = many and began - self._written_at < REST * self._took_s
        if not self.behind:
            self.publish(now)
            self._written_at = time.monotonic()
            self._took_s = self._written_at - began

    def publish(self, now: datetime) -> None:
        """Write the tables as they stand at an instant."""
        seats = self._seats(now)
        self.in_use = bool(seats)
        windows = self._windows(seats, now)
        self.used_up = used_up_by(windows)
        self._write("plans", tables.PLANS, windows)
        months = self._months(seats, now)
        used = self._used([(month.seats, month.span) for month in months])
        hours = self._hours(months)
        values = [
            value_row(month, used[number], hours[number], now=now) for number, month in enumerate(months)
        ]
        self._write("plan_values", tables.PLAN_VALUES, values)
        shares = [row for number, month in enumerate(months) for row in share_rows(month, used[number])]
        self._write("plan_shares", tables.PLAN_SHARES, shares)

    def _seats(self, now: datetime) -> list[Seat]:
        """Every seat in use, and those that the operator names."""
        self._used_since = users(self._db, now - _LOOK_BACK)
        named = [Seat(a.plan, a.account_id) for a in self._book.accounts if a.plan and a.account_id]
        return list(dict.fromkeys([*self._used_since, *named]))

    def _windows(self, seats: Sequence[Seat], now: datetime) -> list[dict[str, Any]]:
        def first_use(length: timedelta) -> dict[Seat, datetime]:
            if length not in followed:
                followed[length] = self._first_uses.follow(seats, length, now=now)
            return followed[length]

        followed: dict[timedelta, dict[Seat, datetime]] = {}
        windows = open_windows(seats, self._book, now=now, first_use=first_use, readings=quotas(self._db))
        used = self._used([((told.seat,), told.span) for told in windows])
        return [window_row(told, used[number], now=now) for number, told in enumerate(windows)]

    def _months(self, seats: Sequence[Seat], now: datetime) -> list[Month]:
        """The months of every plan that is held or used."""
        holders: dict[tuple[str, str | None], list[Seat]] = {
            (account.plan, account.id): [] for account in self._book.accounts if account.plan
        }
        accounts = {account.id: account for account in self._book.accounts}
        for seat in seats:
            account = account_of(seat, self._book, now)
            holders.setdefault((seat.plan_id, account.id if account else None), []).append(seat)
        return [
            month
            for (plan, account_id), held in holders.items()
            if plan in self._book.plans
            for month in months_of(
                self._book.plans[plan],
                accounts.get(account_id or ""),
                held,
                now=now,
                used_since=min((self._used_since[s] for s in held if s in self._used_since), default=None),
            )
        ]

    def _used(self, wanted: Sequence[tuple[Iterable[Seat], Any]]) -> list[list[dict[str, Any]]]:
        spans = [
            SeatSpan(number, seat, span)
            for number, (seats, span) in enumerate(wanted)
            if span
            for seat in seats
        ]
        found: list[list[dict[str, Any]]] = [[] for _ in wanted]
        for row in used_by(self._db, spans).iter_rows(named=True) if spans else ():
            found[row["number"]].append(row)
        return found

    def _hours(self, months: Sequence[Month]) -> list[list[tuple[datetime, Decimal]]]:
        spans = [
            SeatSpan(number, seat, month.span) for number, month in enumerate(months) for seat in month.seats
        ]
        found: list[list[tuple[datetime, Decimal]]] = [[] for _ in months]
        rows = used_hourly(self._db, spans).select("number", "hour", "list_cost_usd") if spans else None
        for number, hour, value in rows.iter_rows() if rows is not None else ():
            found[number].append((hour, value))
        return found

    def _write(self, table: str, columns: tuple[tables.Column, ...], rows: list[dict[str, Any]]) -> None:
        self._db.execute(f"DELETE FROM {STAGING}.{table}")
        if rows:
            schema = {column.name: _polars_type(column) for column in columns}
            append(self._db, f"{STAGING}.{table}", pl.DataFrame(rows, schema=schema, orient="row"))


def _polars_type(column: tables.Column) -> pl.DataType:
    kinds: dict[str, pl.DataType] = {
        "VARCHAR": pl.String(),
        "BIGINT": pl.Int64(),
        "BOOLEAN": pl.Boolean(),
        "TIMESTAMPTZ": pl.Datetime("us", "UTC"),
        tables.FRACTION: pl.Decimal(18, 6),
        tables.MONEY_SUM: pl.Decimal(38, 12),
    }
    return kinds[column.type]
