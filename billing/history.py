"""A walk through what is stored, oldest first, in slices of bounded size that a crash can resume.

Windows of whole hours with about as many rows as a slice holds are planned ahead; an hour with more rows is
cut by row. The place of a walk is the last row it has looked at, so that the next ledger goes on behind it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import duckdb
import polars as pl

from billing.store import read

SLICE_ROWS = 20_000
"""Rows that one transaction of a job looks at."""
_HOUR = timedelta(hours=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Source:
    """A table that is walked: which columns are read, and which make the order of its rows unique."""

    table: str
    columns: tuple[str, ...]
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """A row: when it started, and its keys."""

    started_at: datetime
    keys: tuple[str | int, ...]

    def text(self) -> str:
        """As it is stored."""
        return json.dumps([self.started_at.isoformat(), *self.keys])

    @classmethod
    def of(cls, text: str) -> Place:
        """As it was stored."""
        started_at, *keys = json.loads(text)
        return cls(datetime.fromisoformat(started_at), tuple(keys))


class Walk:
    """One walk over a table, behind a place if one is given. `left` is how many rows it found to look at."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        source: Source,
        *,
        since: datetime | None,
        until: datetime,
        after: Place | None = None,
        slice_rows: int = SLICE_ROWS,
    ) -> None:
        self._db = connection
        self._source = source
        self._until = until
        self._rows = slice_rows
        self._order = ("started_at", *source.keys)
        self.place = after
        first = after.started_at if after else since or _EPOCH
        self.left, self._windows = self._planned(first)

    def __iter__(self) -> Iterator[pl.DataFrame]:
        """Slices in order of time, none empty; read each before asking for the next."""
        for first, last in self._windows:
            while True:
                rows = self._slice(first, last)
                if rows.is_empty():
                    break
                self.place = self._last(rows)
                yield rows

    def _planned(self, first: datetime) -> tuple[int, list[tuple[datetime, datetime]]]:
        """How many rows there are, and windows [first, last) with at least as many as a slice holds."""
        hours = read(
            self._db,
            f"SELECT date_trunc('hour', started_at) AS hour, count(*) AS rows FROM {self._source.table} "
            f"WHERE {self._beyond()} AND started_at < ? GROUP BY 1 ORDER BY 1",
            [*self._bounds(first), self._until],
        ).rows()
        edges, held = [first], 0
        for hour, count in hours:
            held += count
            if held >= self._rows:
                edges.append(min(hour + _HOUR, self._until))
                held = 0
        if hours and edges[-1] < self._until:
            edges.append(self._until)
        return sum(count for _, count in hours), list(pairwise(edges))

    def _beyond(self) -> str:
        """The condition that a row lies behind the place."""
        if self.place is None:
            return "started_at >= ?"
        return f"started_at >= ? AND {self._compared('>')}"

    def _bounds(self, first: datetime) -> list[object]:
        if self.place is None:
            return [first]
        row = (self.place.started_at, *self.place.keys)
        return [max(first, self.place.started_at), *_for_comparison(row)]

    def _compared(self, sign: str) -> str:
        """The condition that a row lies before or behind another in the order (`_for_comparison`)."""
        ways = []
        for number, column in enumerate(self._order):
            equal = [f"{before} = ?" for before in self._order[:number]]
            ways.append(" AND ".join([*equal, f"{column} {sign} ?"]))
        return f"({' OR '.join(ways)})"

    def _slice(self, first: datetime, last: datetime) -> pl.DataFrame:
        """The next rows of a window. The last of them is found first: sorting a few columns is cheap."""
        where = f"{self._beyond()} AND started_at < ?"
        bounds = [*self._bounds(first), last]
        order = ", ".join(self._order)
        edge = read(
            self._db,
            f"SELECT {order} FROM {self._source.table} WHERE {where} ORDER BY {order} LIMIT 1 OFFSET ?",
            [*bounds, self._rows - 1],
        ).rows()
        if edge:
            last_of_slice = " AND ".join(f"{column} = ?" for column in self._order)
            where += f" AND started_at <= ? AND ({self._compared('<')} OR ({last_of_slice}))"
            bounds += [edge[0][0], *_for_comparison(edge[0]), *edge[0]]
        columns = ", ".join(self._source.columns)
        return read(self._db, f"SELECT {columns} FROM {self._source.table} WHERE {where}", bounds)

    def _last(self, rows: pl.DataFrame) -> Place:
        started_at, *keys = rows.select(self._order).sort(self._order).row(-1)
        return Place(started_at, tuple(keys))


def _for_comparison(row: Sequence[object]) -> list[object]:
    """The parameters of a comparison with a row, column by column."""
    return [value for number in range(len(row)) for value in row[: number + 1]]
