"""Brings a file that an earlier tollbook made to the layout of today, or refuses it and says what to do.

The layout is whatever the DDL makes of an empty database, so no second list can fall behind it. A table or a
column that the file lacks is added, empty: what was not written then is unknown now. It refuses to change the
type of a column that is there, and to touch a file that a newer tollbook has written.

    LedgerRefused
    ├── LedgerLocked   another process holds the file
    ├── LedgerTooNew   a newer tollbook wrote it
    └── LedgerUnfit    a column is of another type than this tollbook writes
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

import duckdb

log = logging.getLogger("tollbook.ledger")

SCHEMA_VERSION = 3
"""The layout of the ledger's file: one more with every release that adds to it."""
_SCRATCH = "layout_of_today"
_COLUMNS = (
    "SELECT table_name, column_name, data_type FROM duckdb_columns() "
    "WHERE database_name = $1 AND schema_name = 'main' AND NOT internal "
    "AND table_oid IN (SELECT table_oid FROM duckdb_tables() WHERE database_name = $1) "
    "ORDER BY table_oid, column_index"
)
Columns = dict[tuple[str, str], str]


class LedgerRefused(Exception):
    """The ledger's file cannot be used; the message says why and what to do."""


class LedgerLocked(LedgerRefused):
    """Another process holds the ledger's file."""


class LedgerTooNew(LedgerRefused):
    """The file was written by a newer tollbook."""


class LedgerUnfit(LedgerRefused):
    """The file's columns are not what this tollbook writes, and adding some does not help."""


def bring_up_ledger(
    connection: duckdb.DuckDBPyConnection, ddl: Sequence[str], *, name: str, set_aside: Mapping[str, str]
) -> None:
    """Lay out the attached ledger `name`, in one transaction. Raises LedgerTooNew and LedgerUnfit.

    `set_aside`: tables whose names are views' today -> what they are called until their rows are taken over.
    """
    found = _version(connection, name)
    if found is not None and found > SCHEMA_VERSION:
        raise LedgerTooNew(
            f"the ledger has layout {found}, this tollbook knows {SCHEMA_VERSION}: upgrade tollbook"
        )
    wanted = columns_of(connection, ddl)
    connection.execute("BEGIN TRANSACTION")
    try:
        _set_aside(connection, set_aside, name=name)
        for statement in ddl:
            connection.execute(statement)
        added = add_missing(connection, wanted, name=name)
        if found is None:
            connection.execute("INSERT INTO schema_version VALUES (?, uuid())", [SCHEMA_VERSION])
        connection.execute("UPDATE schema_version SET version = ?", [SCHEMA_VERSION])
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    if found is not None and added:
        log.info("brought the ledger from layout %d to %d: added %s", found, SCHEMA_VERSION, ", ".join(added))


def _set_aside(connection: duckdb.DuckDBPyConnection, tables: Mapping[str, str], *, name: str) -> None:
    there = {table for table, _ in _columns(connection, name)}
    for table in there & tables.keys():
        connection.execute(f"ALTER TABLE {name}.main.{table} RENAME TO {tables[table]}")


def columns_of(connection: duckdb.DuckDBPyConnection, ddl: Iterable[str]) -> Columns:
    """The columns that the DDL makes in an empty database: (table, column) -> type, as DuckDB spells it."""
    [(current,)] = connection.execute("SELECT current_database()").fetchall()
    connection.execute(f"ATTACH ':memory:' AS {_SCRATCH}")
    try:
        connection.execute(f"USE {_SCRATCH}")
        for statement in ddl:
            connection.execute(statement)
        return _columns(connection, _SCRATCH)
    finally:
        connection.execute(f"USE {current}")
        connection.execute(f"DETACH {_SCRATCH}")


def add_missing(connection: duckdb.DuckDBPyConnection, wanted: Columns, *, name: str) -> list[str]:
    """Add to the tables of the attached database what they lack; `table.column` of each. LedgerUnfit."""
    there = _columns(connection, name)
    missing = [
        each for place, kind in wanted.items() for each in _lacking(*place, kind, there=there.get(place))
    ]
    for table, column, kind in missing:
        connection.execute(f'ALTER TABLE {name}.main."{table}" ADD COLUMN {column} {kind}')
    return [f"{table}.{column}" for table, column, _ in missing]


def _lacking(table: str, column: str, kind: str, *, there: str | None) -> list[tuple[str, str, str]]:
    """What has to be added for a column: (table, column or column.field, type); nothing if it fits."""
    if there is None or there == kind:
        return [] if there else [(table, f'"{column}"', kind)]
    if there.startswith("STRUCT(") and kind.startswith("STRUCT("):
        known = _fields(there)
        wanted = _fields(kind)
        if all(wanted.get(name) == each for name, each in known.items()):
            return [(table, f'"{column}".{name}', wanted[name]) for name in wanted if name not in known]
    raise LedgerUnfit(
        f"{table}.{column} is {there} in this file, and {kind} in this tollbook: it cannot be brought up to "
        "date; use the tollbook that wrote it, or start with another --data-dir"
    )


def _fields(struct: str) -> dict[str, str]:
    """The fields of a struct of plain types."""
    return dict(field.split(" ", 1) for field in struct[len("STRUCT(") : -1].split(", "))


def _columns(connection: duckdb.DuckDBPyConnection, name: str) -> Columns:
    return {(table, column): kind for table, column, kind in connection.execute(_COLUMNS, [name]).fetchall()}


def _version(connection: duckdb.DuckDBPyConnection, name: str) -> int | None:
    if ("schema_version", "version") not in _columns(connection, name):
        return None
    row = connection.execute(f"SELECT max(version) FROM {name}.schema_version").fetchone()
    return row[0] if row else None
