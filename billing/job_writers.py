"""Where the work of a job goes: into the ledger, with the job's place, or, for a dry run, nowhere.

Both are used alike; `job` is the job as it stands, which the runner moves on.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal

import polars as pl

from billing import tables
from billing.changes import Changed, summed
from billing.fusion import HORIZON
from billing.job import Job
from billing.ledger import Commit, Ledger, Work

__all__ = ["Rehearsal", "Writer"]


class Writer:
    """Writes what a job does; every transaction holds how far the job has come with it."""

    def __init__(self, ledger: Ledger, job: Job) -> None:
        self._ledger = ledger
        self.job = job

    def note(self, job: Job) -> Commit:
        """Write down where the job stands, and nothing else."""
        return self._write(job, self._ledger.nothing)

    def do(self, work: Work, *, since: datetime) -> Commit:
        """Do a slice's work."""
        del since
        return self._write(replace(self.job, attempts=0), work)

    def end(self, status: Literal["done", "failed"], error: str | None = None) -> Commit:
        """Write down that the job is over; what it has done stays, whatever became of the rest."""
        job = self.job.ended(status, datetime.now(UTC), error)
        return self._write(job, self._ledger.nothing)

    def changes(self) -> pl.DataFrame:
        """What the job has changed (`job_changes`)."""
        return self._ledger.jobs.changes(self.job.job_id)

    def _write(self, job: Job, work: Work) -> Commit:
        """The work and how far the job has come with it, in one transaction."""

        def whole(commit_no: int, now: datetime) -> Changed:
            nonlocal job
            changed = work(commit_no, now)
            job = replace(job, changed=job.changed + changed.calls, commit_no=commit_no)
            self._ledger.jobs.save(job)
            self._ledger.jobs.add_changes(job, summed(changed))
            return changed

        commit = self._ledger.rewrite(whole)
        self.job = job
        return commit


class Rehearsal:
    """Finds out what a job would do. A call that two slices would change is told of once."""

    def __init__(self, ledger: Ledger, job: Job) -> None:
        self._ledger = ledger
        self.job = job
        self._groups = pl.DataFrame(schema=_GROUPS)
        self._seen = pl.DataFrame(schema={"call_id": pl.String, "started_at": pl.Datetime("us", "UTC")})

    def note(self, job: Job) -> None:
        """Know where the job stands."""
        self.job = job

    def do(self, work: Work, *, since: datetime) -> None:
        """Find out what a slice's work, of rows that start from `since` on, would change."""
        changed = self._news(self._ledger.rehearse(work), since)
        self.job = replace(self.job, changed=self.job.changed + changed.calls)
        told = summed(changed).with_columns(job_id=pl.lit(self.job.job_id)).select(list(_GROUPS))
        keys = [name for name, kind in _GROUPS.items() if kind == pl.String()]
        sums = [name for name in _GROUPS if name not in keys]
        both = pl.concat([self._groups, told.cast(_GROUPS)])  # type: ignore[arg-type]
        known = [pl.when(pl.col(name).count() > 0).then(pl.col(name).sum()).alias(name) for name in sums]
        self._groups = both.group_by(keys).agg(known).select(list(_GROUPS))

    def end(self, status: Literal["done", "failed"], error: str | None = None) -> None:
        """Know that the job is over."""
        self.job = self.job.ended(status, datetime.now(UTC), error)

    def changes(self) -> pl.DataFrame:
        """What the job would change (`job_changes`)."""
        return self._groups

    def _news(self, changed: Changed, since: datetime) -> Changed:
        """Without the calls that an earlier slice has shown to change: two slices may touch one call."""
        fresh = Changed(
            *(rows.join(self._seen, on="call_id", how="anti") for rows in (changed.removed, changed.written))
        )
        parts = [self._seen, *(rows.select(self._seen.columns) for rows in (fresh.removed, fresh.written))]
        near = pl.col("started_at") >= since - 2 * HORIZON
        self._seen = pl.concat(parts).filter(near).unique("call_id")
        return fresh


_TYPES: dict[str, pl.DataType] = {
    "VARCHAR": pl.String(),
    "BIGINT": pl.Int64(),
    "HUGEINT": pl.Decimal(38, 0),
    tables.MONEY_SUM: pl.Decimal(38, 12),
}
_GROUPS = {column.name: _TYPES[column.type] for column in tables.JOB_CHANGES}
