"""Jobs over history: what is asked for, how far each has come, and what it has changed.

A job is asked for by a control record in the journal, so that it is as durable as telemetry, and is written
down in the ledger's own tables in the transactions that do its work: a crash anywhere leaves whole slices,
and the next ledger goes on behind the last one. A dry run is a question; it is written nowhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import duckdb
import polars as pl
from pydantic import AwareDatetime, Field, StringConstraints, ValidationError

from billing import tables
from billing.budget import Strict
from billing.store import append, read

__all__ = ["Job", "JobBook", "JobKind", "StartJob", "new_job_id", "publish", "summary"]

JobKind = Literal["reprice", "reprocess"]
RECENT = 50
"""So many of the newest jobs the front knows; all are in the table `jobs`."""
MAX_GROUPS = 500
"""Groups of changes that an answer lists, the dearest first; the others are told as one."""
_PREFIX = b'{"v":1,"op":"job",'


class StartJob(Strict):
    """Control record: look at all calls that started in [since, until) again."""

    v: Literal[1] = 1
    op: Literal["job"] = "job"
    job_id: Annotated[str, StringConstraints(pattern=r"^job_[0-9a-f]{32}$")]
    kind: JobKind
    since: AwareDatetime | None = None
    until: AwareDatetime
    at: AwareDatetime
    dry_run: bool = Field(default=False, description="never journaled")

    def record(self) -> bytes:
        """The journal record."""
        return self.model_dump_json(exclude_none=True).encode()


def new_job_id() -> str:
    """An id that no other job has."""
    return f"job_{os.urandom(16).hex()}"


@dataclass(frozen=True, slots=True)
class Job:
    """One job; the fields are the columns of `jobs`, and where it stands: `place` is the last row that was
    looked at, `attempts` how often it was begun without coming further, `commit_no` its last commit.
    """

    job_id: str
    kind: JobKind
    since: datetime | None
    until: datetime
    status: str
    requested_at: datetime
    began_at: datetime | None = None
    ended_at: datetime | None = None
    total: int = 0
    looked_at: int = 0
    changed: int = 0
    catalog_version: str | None = None
    error: str | None = None
    place: str | None = None
    attempts: int = 0
    commit_no: int = 0
    dry_run: bool = False

    @classmethod
    def asked(cls, asked: StartJob) -> Job:
        """A job as it is asked for."""
        since = None if asked.since is None else asked.since.astimezone(UTC)
        return cls(
            asked.job_id,
            asked.kind,
            since,
            asked.until.astimezone(UTC),
            "waiting",
            asked.at.astimezone(UTC),
            dry_run=asked.dry_run,
        )

    @property
    def over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status in ("done", "failed")

    def ended(self, status: Literal["done", "failed"], now: datetime, error: str | None = None) -> Job:
        """The job, over."""
        return replace(self, status=status, ended_at=now, error=error)


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
    """A job, and its changes where they are known, as JSON-able values; amounts are decimal strings."""
    told = {name: _plain(value) for name, value in asdict(job).items() if name not in ("place", "attempts")}
    if changes is None:
        return {**told, "totals": None, "changes": []}
    return {**told, "totals": _totals(changes), "changes": _listed(changes)}


def _listed(changes: pl.DataFrame) -> list[dict[str, Any]]:
    """The groups, dearest first; those beyond MAX_GROUPS as one without names."""
    ordered = changes.sort(_weight(), *_KEYS, descending=[True] + [False] * len(_KEYS), nulls_last=True)
    rest = ordered.slice(MAX_GROUPS)
    rows = ordered.head(MAX_GROUPS).drop("job_id").to_dicts()
    if len(rest):
        rows.append({**dict.fromkeys(_KEYS[1:]), "model": f"{len(rest)} other groups", **_sum_of(rest)})
    return [{name: _plain(value) for name, value in row.items()} for row in rows]


def _weight() -> pl.Expr:
    after, before = (pl.col(f"list_cost_usd_{when}").fill_null(0) for when in ("after", "before"))
    return (after - before).abs()


def _totals(changes: pl.DataFrame) -> dict[str, Any]:
    return {name: _plain(value) for name, value in _sum_of(changes).items()}


def _sum_of(changes: pl.DataFrame) -> dict[str, Any]:
    known = [pl.when(pl.col(n).count() > 0).then(pl.col(n).sum()).alias(n) for n in _SUMS]
    return changes.select(known).row(0, named=True)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return value if value is None or isinstance(value, str | bool | int) else str(value)


def _start(body: bytes) -> StartJob | None:
    if not body.startswith(_PREFIX):
        return None
    try:
        return StartJob.model_validate_json(body)
    except ValidationError:
        return None  # of a newer tollbook: rejected with every other control that is not known


def _first(rows: pl.DataFrame) -> Job | None:
    return Job(**rows.row(0, named=True)) if len(rows) else None
