"""Runs jobs over history, one at a time, a slice at a time, between the batches of telemetry.

Each slice that changes something is one transaction with the job's own place in it, so whatever ends the
process leaves whole slices and the next one goes on behind them. A job that prices keeps one catalogue from
beginning to end: should it be resumed with another, it begins again. A dry run goes the same way and leaves
nothing behind.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from billing.history import SLICE_ROWS, Place, Walk
from billing.job import Job
from billing.job_tasks import Reprice, Reprocess, Task
from billing.job_writers import Rehearsal, Writer
from billing.jobs import summary
from billing.ledger import Commit, Ledger
from billing.related import window_of
from catalog.catalog import Catalog
from catalog.errors import CatalogError
from ingest.dialect import Dialects

__all__ = ["JobRunner"]

log = logging.getLogger("tollbook.jobs")

MAX_ATTEMPTS = 5
"""A job that has ended the ledger this often at one place is given up."""
SAVED_EVERY = 25
"""Slices without a change after which a job's place is written down all the same."""


class GivenUp(Exception):
    """A job that cannot be finished."""


_FOR_PEOPLE = (CatalogError, GivenUp)
"""Errors whose message says what to do."""


class JobRunner:
    """The jobs of one ledger.

    `catalog` loads the catalogue of today; `adopt` is given it when new calls shall be charged by it too.
    `tell` is given a job's summary whenever it has come further. `faults` are errors of the machine, which
    are raised and not the job's.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        catalog: Callable[[], Catalog],
        dialects: Dialects,
        observation_days: int,
        tell: Callable[[dict[str, Any]], None],
        adopt: Callable[[Catalog], None] | None = None,
        faults: tuple[type[Exception], ...] = (),
        slice_rows: int = SLICE_ROWS,
    ) -> None:
        self._ledger = ledger
        self._catalog = catalog
        self._dialects = dialects
        self._kept = timedelta(days=observation_days)
        self._tell = tell
        self._adopt = adopt or ledger.use
        self._faults = faults
        self._slice_rows = slice_rows
        self._dry: deque[Job] = deque()
        self._steps: Iterator[Commit | None] | None = None
        self._writer: Writer | Rehearsal

    @property
    def pending(self) -> bool:
        """Whether there may be something to do."""
        return self._steps is not None or bool(self._dry) or self._ledger.jobs.pending

    def rehearse(self, job: Job) -> None:
        """Take up a dry run, whose outcome is only told."""
        self._dry.append(job)

    def step(self) -> Commit | None:
        """Do the next slice; its commit, if it made one. Raises the faults of the machine."""
        if self._steps is None:
            job = self._dry.popleft() if self._dry else self._ledger.jobs.next()
            if job is None:
                return None
            self._writer = Rehearsal(self._ledger, job) if job.dry_run else Writer(self._ledger, job)
            self._steps = self._run()
        commit = self._advance(self._steps)
        job = self._writer.job
        self._tell(summary(job, self._writer.changes() if job.over else None))
        return commit

    def _advance(self, steps: Iterator[Commit | None]) -> Commit | None:
        try:
            commit = next(steps)
        except self._faults:
            raise
        except Exception as error:
            log.exception("job %s failed", self._writer.job.job_id)
            told = str(error) if isinstance(error, _FOR_PEOPLE) else f"{type(error).__name__}; see the log"
            commit = self._writer.end("failed", told)
        if self._writer.job.over:
            self._steps = None
        return commit

    def _run(self) -> Iterator[Commit | None]:
        """The writer's job from where it stands to its end, a step at a time."""
        writer = self._writer
        if writer.job.attempts >= MAX_ATTEMPTS:
            raise GivenUp(f"the ledger ended {writer.job.attempts} times at the same place; see the log")
        task = self._task(writer.job)
        job = _resumed(writer.job, task.version)
        walk = self._walk(job, task)
        yield writer.note(replace(job, total=job.looked_at + walk.left))
        for number, rows in enumerate(walk, start=1):
            assert walk.place is not None
            writer.job = replace(
                writer.job, place=walk.place.text(), looked_at=writer.job.looked_at + len(rows)
            )
            work = task.prepare(rows)
            if work is not None:
                yield writer.do(work, since=window_of(rows, column="started_at")[0])
            elif number % SAVED_EVERY == 0:
                yield writer.note(writer.job)
            else:
                yield None
        yield writer.end("done")

    def _task(self, job: Job) -> Task:
        if job.kind == "reprocess":
            kept_from = datetime.now(UTC) - self._kept
            return Reprocess(self._ledger, job.job_id, self._dialects, kept_from)
        pricing = self._catalog()
        if not job.dry_run:
            self._adopt(pricing)
        return Reprice(self._ledger, job.job_id, pricing)

    def _walk(self, job: Job, task: Task) -> Walk:
        return Walk(
            self._ledger.cursor(),
            task.source,
            since=job.since,
            until=job.until,
            after=Place.of(job.place) if job.place else None,
            slice_rows=self._slice_rows,
        )


def _resumed(job: Job, version: str | None) -> Job:
    """The job, under way; from the beginning should it have priced with another catalogue before."""
    if version != job.catalog_version:
        job = replace(job, place=None, looked_at=0)
    return replace(
        job,
        status="running",
        began_at=job.began_at or datetime.now(UTC),
        catalog_version=version,
        attempts=job.attempts + 1,
    )
