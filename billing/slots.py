"""Sums per slot of a few seconds, for the hours that calls keep coming to.

An hour that is being written to is dirty at every publication; reading all its calls again each time would
cost more and more until the hour is over. So the slots of the hours touched last are kept in the staging
file: a publication computes the dirty slots anew, whole, from their calls, and the hour is the sum of its
slots. An hour's slots are kept all or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import duckdb
import polars as pl

from billing import rollup, tables
from billing.seal import STAGING
from billing.store import append, read

KEPT_HOURS = 4
"""Of how many hours slots are kept: those touched last."""
MANY_SLOTS = 24
"""With more dirty slots than this it is cheaper to read the hour whole."""
_CHUNK_ROWS = 50_000
_SLOT_LENGTH = timedelta(seconds=10)
_TABLE = f"{STAGING}.hot.usage_slots"
_HOURS = f"{STAGING}.hot.slot_hours"
_COLUMNS = (tables.Column("slot", "TIMESTAMPTZ", "start of the slot"), *tables.USAGE_HOURLY[1:])


class Slots:
    """The kept slots of one staging file."""

    def __init__(self, cursor: duckdb.DuckDBPyConnection) -> None:
        self._db = cursor

    def lay_out(self) -> None:
        """Make the tables in the attached staging file."""
        self._db.execute(tables.create_table(_TABLE, _COLUMNS))
        self._db.execute(f"CREATE TABLE IF NOT EXISTS {_HOURS} (hour TIMESTAMPTZ, touched UBIGINT)")
        self._db.execute(f"CREATE SEQUENCE IF NOT EXISTS {STAGING}.hot.touches")

    def of_hour(self, hour: datetime, *, dirty: list[datetime]) -> pl.DataFrame:
        """The sums of all slots of an hour, those of the dirty ones computed anew."""
        [(kept,)] = self._db.execute(f"SELECT count(*) FROM {_HOURS} WHERE hour = ?", [hour]).fetchall()
        if kept and len(dirty) <= MANY_SLOTS:
            for slot in dirty:
                self._compute(slot, _SLOT_LENGTH)
        else:
            self._compute(hour, timedelta(hours=1))
        self._touch(hour)
        return read(self._db, f"SELECT * FROM {_TABLE} WHERE slot >= ? AND slot < ?", _span(hour))

    def forget_quiet_hours(self) -> None:
        """Drop the slots of all but the hours touched last."""
        quiet = read(self._db, f"SELECT hour FROM {_HOURS} ORDER BY touched DESC OFFSET {KEPT_HOURS}")
        for hour in quiet["hour"]:
            self._db.execute(f"DELETE FROM {_TABLE} WHERE slot >= ? AND slot < ?", _span(hour))
            self._db.execute(f"DELETE FROM {_HOURS} WHERE hour = ?", [hour])

    def _compute(self, start: datetime, length: timedelta) -> None:
        """Put the sums of the slots from `start` on in place of what is kept of them."""
        until = start + length
        fresh = rollup.slots(self._calls(start, until))
        self._db.execute(f"DELETE FROM {_TABLE} WHERE slot >= ? AND slot < ?", [start, until])
        append(self._db, _TABLE, fresh)

    def _touch(self, hour: datetime) -> None:
        self._db.execute(f"DELETE FROM {_HOURS} WHERE hour = ?", [hour])
        self._db.execute(f"INSERT INTO {_HOURS} VALUES (?, nextval('{STAGING}.hot.touches'))", [hour])

    def _calls(self, start: datetime, until: datetime) -> Iterator[pl.DataFrame]:
        query = f"SELECT {', '.join(rollup.READS)} FROM calls WHERE started_at >= ? AND started_at < ?"
        for batch in self._db.execute(query, [start, until]).to_arrow_reader(_CHUNK_ROWS):
            part = pl.from_arrow(batch)
            assert isinstance(part, pl.DataFrame)
            yield part


def _span(hour: datetime) -> list[datetime]:
    return [hour, hour + timedelta(hours=1)]
