"""Wide tables kept in two: what is each row's own, and the combinations of values that many rows share.

Thousands of calls in a row have the same agent, model, provider, price and two dozen more texts. Writing
each with every row is most of what a commit costs, so a combination is written once, as a kind, and rows
name it by its number. A view shows both as one table, so that no query knows the difference. A kind never
changes. That one combination has several numbers does no harm: only the newest are looked at when rows come,
so that telemetry which never repeats itself costs little more than it would in one table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import duckdb
import polars as pl

NEWEST: Final = 4096
"""How many kinds are compared with what comes."""


@dataclass(frozen=True, slots=True)
class Kinds:
    """How a table is kept in two.

    `view`: the table's name; `columns`: its columns, name -> DuckDB type; `shared`: those that kinds hold.
    """

    view: str
    columns: Mapping[str, str]
    shared: tuple[str, ...]
    row_no: bool = False
    """Whether the view shows the number of each row too, by which it is found again at once."""

    @property
    def rows(self) -> str:
        """The table of what is each row's own."""
        return f"{self.view}_rows"

    @property
    def table(self) -> str:
        """The table of kinds."""
        return f"{self.view}_kinds"

    @property
    def set_aside(self) -> str:
        """The name that one wide table of an earlier layout gets, until its rows are taken over."""
        return f"{self.view}_wide"

    @property
    def newest(self) -> str:
        """Selects the kinds that what comes is compared with, `kind` first."""
        columns = ", ".join(self.shared)
        return (
            f"SELECT kind, {columns} FROM {self.table} "
            f"WHERE kind + {NEWEST} > (SELECT max(kind) FROM {self.table})"
        )

    def ddl(self) -> Iterator[str]:
        """The statements that make both tables and the view, in a database that may have them."""
        own = [f"{name} {kind}" for name, kind in self.columns.items() if name not in self.shared]
        yield f"CREATE TABLE IF NOT EXISTS {self.rows} ({', '.join(own)}, kind UBIGINT)"
        shared = [f"{name} {self.columns[name]}" for name in self.shared]
        yield f"CREATE TABLE IF NOT EXISTS {self.table} (kind UBIGINT, {', '.join(shared)})"
        shown = [f"k.{name}" if name in self.shared else f"r.{name}" for name in self.columns]
        if self.row_no:
            shown.append("r.rowid AS row_no")
        yield (
            f"CREATE OR REPLACE VIEW {self.view} AS SELECT {', '.join(shown)} "
            f"FROM {self.rows} r JOIN {self.table} k USING (kind)"
        )

    def select(self, columns: str, *, where: str) -> str:
        """A query for these columns of the rows for which `where` holds, a condition on what is their own.

        Asked of the view, DuckDB would look up the kinds of all rows before it leaves most of them out.
        """
        own = f"SELECT *, rowid AS row_no FROM {self.rows} WHERE {where}"
        return f"SELECT {columns} FROM ({own}) JOIN {self.table} USING (kind)"

    def numbered(self, frame: pl.DataFrame, known: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Rows with the number of their kind in place of what they share, in their order, and the kinds that
        are new; `known`: what `newest` selects.
        """
        shared = list(self.shared)
        lacking = [pl.lit(None).cast(known.schema[name]).alias(name) for name in shared if name not in frame]
        frame = frame.with_columns(lacking)
        types = {name: frame.schema[name] for name in shared}
        last = known["kind"].max() or 0
        assert isinstance(last, int)
        known = known.cast({"kind": pl.UInt64(), **types}).unique(shared)  # type: ignore[dict-item]
        told = frame.join(known, on=shared, how="left", nulls_equal=True, maintain_order="left")
        strange = told["kind"].is_null()
        new = told.filter(strange).select(shared).unique(maintain_order=True)
        if len(new):
            new = new.select(
                pl.int_range(last + 1, last + 1 + len(new), dtype=pl.UInt64()).alias("kind"), *shared
            )
            told = frame.join(
                pl.concat([known, new]), on=shared, how="left", nulls_equal=True, maintain_order="left"
            )
        return told.drop(shared), new

    def forget_unused(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Delete the kinds that no row names; the newest stays, so that no number ever means another kind."""
        connection.execute(
            f"DELETE FROM {self.table} WHERE kind NOT IN (SELECT DISTINCT kind FROM {self.rows}) "
            f"AND kind < (SELECT max(kind) FROM {self.table})"
        )
