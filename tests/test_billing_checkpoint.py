"""Checkpoints: what is folded is in the file, whole; compacting puts the pieces together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from billing.checkpoint import Checkpoints
from billing.store import attach

PIECES = 8
ROWS = 3_000


@pytest.fixture
def database(tmp_path: Path) -> Iterator[tuple[duckdb.DuckDBPyConnection, Checkpoints]]:
    connection = duckdb.connect()
    connection.execute("SET checkpoint_threshold = '1GB'")
    attach(connection, tmp_path / "a.duckdb", name="kept")
    checkpoints = Checkpoints(connection, database="kept", path=tmp_path / "a.duckdb")
    checkpoints.lay_out()
    connection.execute("CREATE TABLE kept.numbers (piece INTEGER, number BIGINT)")
    yield connection, checkpoints
    connection.close()


def add(connection: duckdb.DuckDBPyConnection, piece: int) -> None:
    connection.execute(f"INSERT INTO kept.numbers SELECT {piece}, range FROM range({ROWS})")


def row_groups(connection: duckdb.DuckDBPyConnection) -> int:
    query = "SELECT count(DISTINCT row_group_id) FROM pragma_storage_info('kept.numbers')"
    [(count,)] = connection.execute(query).fetchall()
    return int(count)


def test_a_fold_empties_the_log_and_keeps_everything(
    database: tuple[duckdb.DuckDBPyConnection, Checkpoints], tmp_path: Path
) -> None:
    connection, checkpoints = database
    for piece in range(PIECES):
        add(connection, piece)
        assert checkpoints.log_bytes > 0
        checkpoints.fold()
        assert checkpoints.log_bytes == 0
    connection.close()
    with duckdb.connect(str(tmp_path / "a.duckdb"), read_only=True) as reopened:
        assert reopened.execute("SELECT count(*), sum(number) FROM numbers").fetchall() == [
            (PIECES * ROWS, PIECES * sum(range(ROWS)))
        ]
        assert reopened.execute("SELECT count(*) FROM held_open").fetchall() == [(0,)]


def test_folds_leave_the_pieces_that_compacting_joins(
    database: tuple[duckdb.DuckDBPyConnection, Checkpoints],
) -> None:
    connection, checkpoints = database
    for piece in range(PIECES):
        add(connection, piece)
        checkpoints.fold()
    assert (checkpoints.folds, row_groups(connection)) == (PIECES, PIECES)
    checkpoints.compact()
    assert (checkpoints.folds, row_groups(connection)) == (0, 1)


def test_a_fold_that_fails_leaves_no_write_open(
    database: tuple[duckdb.DuckDBPyConnection, Checkpoints],
) -> None:
    connection, checkpoints = database
    add(connection, 0)
    other = connection.cursor()
    other.execute("BEGIN TRANSACTION")
    other.execute("UPDATE kept.numbers SET number = 1")
    with pytest.raises(duckdb.TransactionException):
        checkpoints.fold()
    other.execute("COMMIT")
    checkpoints.fold()
    assert connection.execute("SELECT DISTINCT number FROM kept.numbers").fetchall() == [(1,)]
