"""Takes over the records of a ledger of layout 1: keys were made in SQL, attributes stood in the rows.

Records could otherwise not be found by keys that are made in columns now, and a second signal of an old call
would be counted as another call. All of it is one transaction: a crash leaves layout 1 as it was.
"""

from __future__ import annotations

import logging

import duckdb

from billing.evidence import append_observations, keyed
from billing.store import read
from ingest.observation import OBSERVATIONS

log = logging.getLogger("tollbook.ledger")


def take_over_first_layout(connection: duckdb.DuckDBPyConnection) -> None:
    """Write the stored records anew, transaction by transaction of theirs, if they are of layout 1."""
    if not _is_of_first_layout(connection):
        return
    connection.execute("BEGIN TRANSACTION")
    try:
        count = _write_anew(connection)
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    log.info("took over %d records of the ledger's first layout", count)


def _is_of_first_layout(connection: duckdb.DuckDBPyConnection) -> bool:
    query = (
        "SELECT 1 FROM duckdb_columns() WHERE database_name = current_database() "
        "AND table_name = 'observations' AND column_name = 'attributes'"
    )
    return connection.execute(query).fetchone() is not None


def _write_anew(connection: duckdb.DuckDBPyConnection) -> int:
    connection.execute("CREATE TEMP TABLE first_layout AS SELECT * FROM observations")
    connection.execute("DROP TABLE observations")
    connection.execute("CREATE TABLE observations AS SELECT * EXCLUDE (attributes) FROM first_layout LIMIT 0")
    commits = connection.execute("SELECT DISTINCT commit_no FROM first_layout ORDER BY 1").fetchall()
    count = 0
    for (commit_no,) in commits:
        query = f"SELECT {', '.join(OBSERVATIONS)} FROM first_layout WHERE commit_no = ?"
        told = read(connection, query, [commit_no]).cast(dict(OBSERVATIONS))  # type: ignore[arg-type]
        append_observations(connection, keyed(told), commit_no=commit_no)
        count += len(told)
    connection.execute("DROP TABLE temp.first_layout")
    return count
