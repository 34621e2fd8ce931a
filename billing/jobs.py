"""The jobs over history of one ledger: how far each has come, and what it has changed.

A job is written down in the ledger's own tables in the transactions that do its work: a crash anywhere leaves
whole slices, and the next ledger goes on behind the last one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import duckdb
import polars as pl
from pydantic import ValidationError

from billing import tables
from billing.job import Job, StartJob, plain
from billing.store import append, read

__all__ = ["JobBook", "publish", "summary"]

RECENT = 50
"""So many of the newest jobs the front knows; all are in the table `jobs`."""
MAX_GROUPS = 500
"""Groups of changes that an answer lists, the dearest first; the others are told as one."""
_PREFIX = b'{"v":1,"op":"job",'


_NAMES = tables.names(tables.LEDGER_JOBS)
_LIST = ", ".join(_NAMES)
_SCHEMA: dict[str, pl.DataType] = {
    "VARCHAR": pl.String(),
    "BIGINT": pl.Int64(),
    "INTEGER": pl.Int32(),
    "UBIGINT": pl.UInt64(),
    "TIMESTAMPTZ": pl.Datetime("us", "UTC"),
}

_KEYS = [c.name for c in tables.JOB_CHANGES if c.type == "VARCHAR"]
_SUMS = [c.name for c in tables.JOB_CHANGES if c.type != "VARCHAR"]
_SUMMED = ", ".join(f"sum({c.name})::{c.type} AS {c.name}" for c in tables.JOB_CHANGES if c.name in _SUMS)
_CHANGES = f"SELECT {', '.join(_KEYS)}, {_SUMMED} FROM job_changes WHERE job_id = ? GROUP BY ALL"


class JobBook:
    """The jobs of one ledger; its methods run inside the ledger's transactions.

    `pending` is false while it is certain that no job waits or runs.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._db = connection
        self.pending = True

    def take(self, controls: Iterable[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        """Write down the jobs that control records ask for, each once; the other records."""
        others = []
        for offset, body in controls:
            asked = _start(body)
            if asked is None:
                others.append((offset, body))
            elif self.get(asked.job_id) is None:
                self.save(Job.asked(asked))
                self.pending = True
        return others

    def get(self, job_id: str) -> Job | None:
        """One job."""
        return _first(read(self._db, f"SELECT {_LIST} FROM jobs WHERE job_id = ?", [job_id]))

    def next(self) -> Job | None:
        """The job whose turn it is: one that was begun, else the oldest."""
        query = (
            f"SELECT {_LIST} FROM jobs WHERE status IN ('waiting', 'running') "
            "ORDER BY status = 'waiting', requested_at, job_id LIMIT 1"
        )
        job = _first(read(self._db, query))
        self.pending = job is not None
        return job

    def save(self, job: Job) -> None:
        """Write down where a job stands."""
        if job.over:
            self._fold_changes(job)
        self._db.execute("DELETE FROM jobs WHERE job_id = ?", [job.job_id])
        told = asdict(job)
        schema = {column.name: _SCHEMA[column.type] for column in tables.LEDGER_JOBS}
        append(self._db, "jobs", pl.DataFrame([{name: told[name] for name in _NAMES}], schema=schema))

    def add_changes(self, job: Job, changes: pl.DataFrame) -> None:
        """Add what a slice has changed (`billing.changes.summed`)."""
        append(self._db, "job_changes", changes.with_columns(job_id=pl.lit(job.job_id)))

    def _fold_changes(self, job: Job) -> None:
        """Keep one row for each group of a job's changes."""
        whole = self.changes(job.job_id)
        self._db.execute("DELETE FROM job_changes WHERE job_id = ?", [job.job_id])
        append(self._db, "job_changes", whole)

    def changes(self, job_id: str) -> pl.DataFrame:
        """What a job has changed so far, summed up."""
        return read(self._db, _CHANGES, [job_id])

    def recent(self) -> list[dict[str, Any]]:
        """The newest jobs as the front is told of them, oldest first."""
        query = f"SELECT {_LIST} FROM jobs ORDER BY requested_at DESC, job_id LIMIT {RECENT}"
        jobs = [Job(**row) for row in reversed(read(self._db, query).to_dicts())]
        return [summary(job, self.changes(job.job_id) if job.over else None) for job in jobs]


def publish(connection: duckdb.DuckDBPyConnection, staging: str, *, since: int) -> None:
    """Bring the published tables up to date with the commits after `since`."""
    news = "SELECT job_id FROM jobs WHERE commit_no > ?"
    columns = ", ".join(tables.names(tables.JOBS))
    for table in ("jobs", "job_changes"):
        connection.execute(f"DELETE FROM {staging}.{table} WHERE job_id IN ({news})", [since])
    connection.execute(
        f"INSERT INTO {staging}.jobs BY NAME SELECT {columns} FROM jobs WHERE commit_no > ?", [since]
    )
    connection.execute(
        f"INSERT INTO {staging}.job_changes BY NAME SELECT {', '.join(_KEYS)}, {_SUMMED} "
        f"FROM job_changes WHERE job_id IN ({news}) GROUP BY ALL",
        [since],
    )


def summary(job: Job, changes: pl.DataFrame | None) -> dict[str, Any]:
    """A job, and its changes where they are known, as people are told."""
    told = job.told()
    return told if changes is None else {**told, "totals": _totals(changes), "changes": _listed(changes)}


def _listed(changes: pl.DataFrame) -> list[dict[str, Any]]:
    """The groups, dearest first; those beyond MAX_GROUPS as one without names."""
    ordered = changes.sort(_weight(), *_KEYS, descending=[True] + [False] * len(_KEYS), nulls_last=True)
    rest = ordered.slice(MAX_GROUPS)
    rows = ordered.head(MAX_GROUPS).drop("job_id").to_dicts()
    if len(rest):
        rows.append({**dict.fromkeys(_KEYS[1:]), "model": f"{len(rest)} other groups", **_sum_of(rest)})
    return [{name: plain(value) for name, value in row.items()} for row in rows]


def _weight() -> pl.Expr:
    after, before = (pl.col(f"list_cost_usd_{when}").fill_null(0) for when in ("after", "before"))
    return (after - before).abs()


def _totals(changes: pl.DataFrame) -> dict[str, Any]:
    return {name: plain(value) for name, value in _sum_of(changes).items()}


def _sum_of(changes: pl.DataFrame) -> dict[str, Any]:
    known = [pl.when(pl.col(n).count() > 0).then(pl.col(n).sum()).alias(n) for n in _SUMS]
    return changes.select(known).row(0, named=True)


def _start(body: bytes) -> StartJob | None:
    if not body.startswith(_PREFIX):
        return None
    try:
        return StartJob.model_validate_json(body)
    except ValidationError:
        return None  # of a newer tollbook: rejected with every other control that is not known


def _first(rows: pl.DataFrame) -> Job | None:
    return Job(**rows.row(0, named=True)) if len(rows) else None
