"""A ledger, its published file and its jobs over history, for tests: run to the end, or killed on the way."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from billing.budget import Budget, encode_control
from billing.job import Job, StartJob, new_job_id
from billing.job_runner import JobRunner
from billing.ledger import Batch, Ledger
from billing.publish import Publisher
from billing.spend import load_spend
from billing.spend_count import Definition, compile_scopes, recount
from billing.store import read
from catalog.catalog import Catalog
from ingest.dialect import Dialects, default_dialects
from tests.observed import NO_REJECTS, NOON, NOTHING_UNRECOGNISED, links, observations

LATER = datetime(2027, 6, 1, tzinfo=UTC)
BUDGET = Budget.model_validate(
    {"id": "all", "scope": {}, "meter": "billed_usd", "limit": "100", "period": "total"}
)


class Books:
    """A ledger in a folder, with a budget over everything."""

    def __init__(
        self, folder: Path, *, catalog: Catalog, dialects: Dialects | None = None, seal_above: int = 1_000_000
    ) -> None:
        self.folder = folder
        self.catalog = catalog
        self.dialects = dialects or default_dialects()
        self.seal_above = seal_above
        self.told: list[dict[str, Any]] = []
        self.spent: dict[str, Any] = {}
        self._open()
        self.take(controls=[encode_control("put", budget=BUDGET)])

    def _open(self, slice_rows: int = 20_000) -> None:
        self.ledger = Ledger.open(self.folder / "ledger.duckdb", epoch="e", pricing=self.catalog)
        self.runner = JobRunner(
            self.ledger,
            catalog=lambda: self.catalog,
            dialects=self.dialects,
            observation_days=90,
            tell=self.told.append,
            slice_rows=slice_rows,
        )

    def reopen(self, slice_rows: int = 20_000) -> None:
        """As after a crash: what was committed, and nothing else."""
        self.ledger.close()
        self._open(slice_rows)

    def take(
        self,
        *rows: dict[str, Any],
        frame: pl.DataFrame | None = None,
        between: pl.DataFrame | None = None,
        controls: Sequence[bytes] = (),
        points: pl.DataFrame | None = None,
    ) -> None:
        position = self.ledger.position
        extra = {} if points is None else {"metric_points": points}
        self.ledger.load(
            Batch(
                observations=observations(*rows) if frame is None else frame,
                links=links() if between is None else between,
                rejects=NO_REJECTS,
                unrecognised=NOTHING_UNRECOGNISED,
                position=position + len(controls) + 1,
                controls=[(position + n, body) for n, body in enumerate(controls, start=1)],
                **extra,
            )
        )

    def ask(
        self, kind: Any, *, since: datetime | None = None, until: datetime = LATER, dry: bool = False
    ) -> str:
        """Ask for a job; its id."""
        asked = StartJob(job_id=new_job_id(), kind=kind, since=since, until=until, at=NOON, dry_run=dry)
        if dry:
            self.runner.rehearse(Job.asked(asked))
        else:
            self.take(controls=[asked.record()])
        return asked.job_id

    def run(self, kind: Any, **asked: Any) -> dict[str, Any]:
        """Run a job to its end; what is told of it then."""
        job_id = self.ask(kind, **asked)
        self.finish()
        told = self.told[-1]
        assert told["job_id"] == job_id
        return told

    def finish(self) -> None:
        """Do all that is to be done."""
        while self.runner.pending:
            self.runner.step()

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return read(self.ledger.cursor(), query).rows()

    def state(self) -> list[tuple[Any, ...]]:
        """Everything the book says of calls."""
        return self.rows("SELECT c.* EXCLUDE (recorded_at, commit_no) FROM calls c ORDER BY call_id")

    def publish(self) -> duckdb.DuckDBPyConnection:
        """Publish, and open what was published."""
        publisher = Publisher(
            self.ledger.cursor(),
            staging=self.folder / "staging" / "usage.duckdb",
            published=self.folder / "usage.duckdb",
            epoch="e",
            seal_above_calls=self.seal_above,
        )
        publisher.publish()
        publisher._db.execute("DETACH staging")
        return duckdb.connect(str(self.folder / "usage.duckdb"), read_only=True)

    def hold_together(self) -> None:
        """Rollups, published calls and the budget's spend equal a recomputation from the ledger's calls."""
        sums = "sum(list_cost_usd), sum(billed_cost_usd), sum(input_tokens), sum(output_tokens)"
        [ledger] = self.rows(f"SELECT {sums} FROM calls")
        with self.publish() as published:
            for table in ("calls", "usage_hourly", "usage_daily"):
                assert published.execute(f"SELECT {sums} FROM {table}").fetchall() == [ledger], table
        db = self.ledger.cursor()
        scopes = compile_scopes([Definition(BUDGET, 1)])
        again = {(c.bucket_s, c.amount, c.unpriced) for c in recount(db, scopes, now=datetime.now(UTC))}
        assert set(load_spend(db).get("all", [])) - {(0, 0, 0)} == again


def days_after(days: float) -> datetime:
    """Noon of some day later."""
    return NOON + timedelta(days=days)
