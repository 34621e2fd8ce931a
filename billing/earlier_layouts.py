"""Takes over the records and calls of ledgers of layout 1 and 2, where each lay whole in one wide table.

Layout 2 held every value in its row. In layout 1 the keys of records were made in SQL and their attributes
stood in the rows; left so, they would not be found, and a second signal of an old call would be another call.
Wide tables are set aside under another name before today's are laid out, and are gone once their rows are
taken over: a crash in between leaves them to the next start.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import duckdb

from billing.evidence import append_observations, keyed
from billing.kinds import Kinds
from billing.store import KINDS, OBSERVATION_KINDS, read
from ingest.observation import OBSERVATIONS

log = logging.getLogger("tollbook.ledger")


def take_over_earlier_layouts(connection: duckdb.DuckDBPyConnection) -> None:
    """Write the rows of tables that were set aside into those of today, all of a table or nothing of it."""
    for kinds in KINDS.values():
        if columns := _columns(connection, kinds.set_aside):
            _take_over(connection, kinds, columns)


def _take_over(connection: duckdb.DuckDBPyConnection, kinds: Kinds, columns: list[str]) -> None:
    connection.execute("BEGIN TRANSACTION")
    try:
        if kinds is OBSERVATION_KINDS and "attributes" in columns:
            _write_with_keys(connection, kinds.set_aside)
        else:
            _write_in_two(connection, kinds, columns)
        connection.execute(f"DROP TABLE {kinds.set_aside}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    log.info("took over the table %s of an earlier layout", kinds.view)


def _columns(connection: duckdb.DuckDBPyConnection, table: str) -> list[str]:
    query = (
        "SELECT column_name FROM duckdb_columns() "
        "WHERE database_name = current_database() AND table_name = ? ORDER BY column_index"
    )
    return [name for (name,) in connection.execute(query, [table]).fetchall()]


def _write_in_two(connection: duckdb.DuckDBPyConnection, kinds: Kinds, columns: list[str]) -> None:
    shared = [name for name in columns if name in kinds.shared]
    own = [name for name in columns if name not in kinds.shared]
    connection.execute(
        f"INSERT INTO {kinds.table} BY NAME SELECT row_number() OVER ()::UBIGINT AS kind, * "
        f"FROM (SELECT DISTINCT {_listed(shared)} FROM {kinds.set_aside})"
    )
    same = " AND ".join(f"w.{name} IS NOT DISTINCT FROM k.{name}" for name in shared)
    connection.execute(
        f"INSERT INTO {kinds.rows} BY NAME SELECT {_listed(f'w.{name}' for name in own)}, k.kind "
        f"FROM {kinds.set_aside} w JOIN {kinds.table} k ON {same}"
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _write_with_keys(connection: duckdb.DuckDBPyConnection, table: str) -> None:
    """The records of layout 1, transaction by transaction of theirs."""
    commits = connection.execute(f"SELECT DISTINCT commit_no FROM {table} ORDER BY 1").fetchall()
    for (commit_no,) in commits:
        query = f"SELECT {_listed(OBSERVATIONS)} FROM {table} WHERE commit_no = ?"
        told = read(connection, query, [commit_no]).cast(dict(OBSERVATIONS))  # type: ignore[arg-type]
        append_observations(connection, keyed(told), commit_no=commit_no)
