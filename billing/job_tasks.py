"""What the kinds of jobs do with a slice: charge its calls again, or read its records again."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Protocol

import polars as pl

from billing.charges import Pricing
from billing.history import Source
from billing.ledger import Ledger, Work
from billing.rerate import CALLS, rerated
from billing.reread import RECORDS, Rereading
from ingest.dialect import Dialects

__all__ = ["Reprice", "Reprocess", "Task"]


class Task(Protocol):
    """What a job does, slice by slice."""

    @property
    def source(self) -> Source:
        """What it walks through."""
        ...

    @property
    def version(self) -> str | None:
        """The catalogue it prices with, where that is what it is about."""
        ...

    def prepare(self, rows: pl.DataFrame) -> Work | None:
        """What is to be done in a transaction about these rows; None if nothing."""
        ...


class Reprice:
    """Charges calls by another catalogue."""

    source = CALLS

    def __init__(self, ledger: Ledger, job_id: str, pricing: Pricing) -> None:
        self._ledger = ledger
        self._job_id = job_id
        self._pricing = pricing
        self.version: str | None = pricing.version

    def prepare(self, rows: pl.DataFrame) -> Work | None:
        """See Task."""
        changed = rerated(rows, self._pricing, now=datetime.now(UTC))
        if changed.calls == 0:
            return None
        return lambda commit_no, _: self._ledger.replace(changed, job_id=self._job_id, commit_no=commit_no)


class Reprocess:
    """Reads records by other dialects. `points_from`: since when points of metrics are certainly kept."""

    source = RECORDS
    version: str | None = None

    def __init__(self, ledger: Ledger, job_id: str, dialects: Dialects, points_from: datetime) -> None:
        self._ledger = ledger
        self._db = ledger.cursor()
        self._job_id = job_id
        self._dialects = dialects
        self._points_from = points_from

    def prepare(self, rows: pl.DataFrame) -> Work | None:
        """See Task."""
        reading = Rereading.of(self._db, rows, self._dialects)
        if not len(reading):
            return None
        return lambda commit_no, _: self._ledger.reread(
            reading,
            self._dialects,
            job_id=self._job_id,
            commit_no=commit_no,
            points_from=self._points_from,
        )
