"""Older days of `calls` in Parquet files beside the published file, so that publishing never copies history.

The hot days lie in the staging file itself. Once there are many calls, the oldest days are sealed: written
whole from the ledger to a file of their own and named in a manifest; the view `calls` shows both as one. A
late or revised call of a sealed day writes that day's file anew under another name, and the next publication
switches to it. A file is never changed after it is named.
"""

from __future__ import annotations

import os
import time
from datetime import date
from pathlib import Path

import duckdb

from billing import tables
from billing.kinds import Kinds
from billing.store import CALL_KINDS, read

STAGING = "staging"
HOT = Kinds("hot.calls", {column.name: column.type for column in tables.CALLS}, shared=CALL_KINDS.shared)
"""The hot calls, kept in two as the ledger keeps them, with the ledger's numbers of kinds."""
_ROWS = f"{STAGING}.{HOT.rows}"
_KINDS = f"{STAGING}.{HOT.table}"
SEAL_ABOVE_CALLS = 1_000_000
"""More calls than this are not kept in the published file itself, the newest days apart."""
HOT_DAYS = 2
"""The newest days with calls, which are never sealed."""
UNNAMED_KEEP_S = 3600
"""How long a file stays that no manifest names any more: queries on older copies may still read it."""

_CALLS = ", ".join(tables.names(tables.CALLS))
_SHARED = ", ".join(["kind", *HOT.shared])
_OWN = ", ".join([*(name for name in tables.names(tables.CALLS) if name not in HOT.shared), "kind"])
_DAY = "started_at::DATE"


class Seals:
    """The sealed days of one staging file, and the folder of their files."""

    def __init__(
        self, cursor: duckdb.DuckDBPyConnection, folder: Path, *, above_calls: int = SEAL_ABOVE_CALLS
    ) -> None:
        self._db = cursor
        self._folder = folder.resolve()
        self._above = above_calls
        self._folder.mkdir(mode=0o700, exist_ok=True)

    def lay_out(self) -> None:
        """Make the hot table, the manifest and the view in the attached staging file."""
        self._db.execute(f"CREATE SCHEMA IF NOT EXISTS {STAGING}.hot")
        self._db.execute(f"CREATE TABLE IF NOT EXISTS {STAGING}.hot.sealed_days (day DATE, file VARCHAR)")
        self._make(*HOT.ddl())
        self._show()

    def follow(self, since: int) -> None:
        """Apply the calls of the commits after `since`: into the hot table, or by sealing their day anew."""
        self._db.execute(
            f"DELETE FROM {_ROWS} WHERE call_id IN (SELECT call_id FROM call_revisions WHERE commit_no > ?)",
            [since],
        )
        self._db.execute(
            f"INSERT INTO {_ROWS} ({_OWN}) SELECT {_OWN} FROM {CALL_KINDS.rows} WHERE commit_no > ? "
            f"AND {_DAY} NOT IN (SELECT day FROM {STAGING}.hot.sealed_days)",
            [since],
        )
        self._db.execute(
            f"INSERT INTO {_KINDS} ({_SHARED}) SELECT {_SHARED} FROM {CALL_KINDS.table} "
            f"WHERE kind IN (SELECT kind FROM {CALL_KINDS.rows} WHERE commit_no > ?) "
            f"AND kind NOT IN (SELECT kind FROM {_KINDS})",
            [since],
        )
        late = self._late_days(since)
        cold = self._cold_days()
        for day in (*late, *cold):
            self._seal(day)
        if late or cold:
            self._show()

    def sweep(self) -> None:
        """Delete files that no published file can name any more."""
        named = set(self._files())
        old = time.time() - UNNAMED_KEEP_S
        for file in self._folder.iterdir():
            if file.name not in named and file.stat().st_mtime < old:
                file.unlink()

    def _late_days(self, since: int) -> list[date]:
        """Sealed days that a commit after `since` has touched."""
        query = (
            f"SELECT day FROM {STAGING}.hot.sealed_days WHERE day IN "
            "(SELECT DISTINCT slot::DATE FROM dirty_slots WHERE commit_no > ?)"
        )
        return read(self._db, query, [since])["day"].to_list()

    def _cold_days(self) -> list[date]:
        """The oldest days, as many as have to go."""
        [(hot,)] = self._db.execute(f"SELECT count(*) FROM {_ROWS}").fetchall()
        if hot <= self._above:
            return []
        days = read(
            self._db, f"SELECT {_DAY} AS day, count(*) AS calls FROM {_ROWS} GROUP BY ALL ORDER BY day"
        )
        excess = hot - self._above
        cold: list[date] = []
        for day, calls in days.head(max(len(days) - HOT_DAYS, 0)).iter_rows():
            if excess <= 0:
                break
            cold.append(day)
            excess -= calls
        return cold

    def _seal(self, day: date) -> None:
        """Write a day whole from the ledger, name its file, and take it out of the hot table."""
        file = f"calls-{day}-{time.time_ns()}.parquet"
        part = self._folder / f"{file}.part"
        self._db.execute(
            f"COPY (SELECT {_CALLS} FROM calls WHERE {_DAY} = ? ORDER BY started_at) "
            f"TO {_quoted(part)} (FORMAT parquet, COMPRESSION zstd)",
            [day],
        )
        _sync(part)
        part.rename(self._folder / file)
        _sync(self._folder)
        self._db.execute(f"DELETE FROM {STAGING}.hot.sealed_days WHERE day = ?", [day])
        self._db.execute(f"INSERT INTO {STAGING}.hot.sealed_days VALUES (?, ?)", [day, file])
        self._db.execute(f"DELETE FROM {_ROWS} WHERE {_DAY} = ?", [day])
        self._db.execute(f"DELETE FROM {_KINDS} WHERE kind NOT IN (SELECT DISTINCT kind FROM {_ROWS})")

    def _files(self) -> list[str]:
        query = f"SELECT file FROM {STAGING}.hot.sealed_days ORDER BY day"
        return read(self._db, query)["file"].to_list()

    def _show(self) -> None:
        """The view `calls`: hot and sealed as one."""
        sealed = ", ".join(_quoted(self._folder / file) for file in self._files())
        shown = f"SELECT {_CALLS} FROM hot.calls"
        if sealed:
            shown += f" UNION ALL SELECT {_CALLS} FROM read_parquet([{sealed}])"
        self._make(f"CREATE OR REPLACE VIEW calls AS {shown}")

    def _make(self, *statements: str) -> None:
        """Run DDL as a reader of the published file will bind it."""
        self._db.execute(f"USE {STAGING}")
        try:
            for statement in statements:
                self._db.execute(statement)
        finally:
            self._db.execute("USE ledger")


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
