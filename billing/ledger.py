"""The ledger: one DuckDB file, one writer, one transaction per batch.

A transaction holds the batch's observations, span links, calls, superseded revisions, dirty hours and the
journal offset, so a crash at any moment leaves all of a batch or nothing of it, and a replay from the offset
is exact. It refuses to decide anything: fusion says what is one call, charges say what it cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import duckdb
import polars as pl

from billing import emitters, spend, tables
from billing.changes import Changed, reasons
from billing.charges import Pricing, call_id, charge
from billing.checkpoint import Checkpoints
from billing.earlier_layouts import take_over_earlier_layouts
from billing.evidence import append_observations, keyed
from billing.fusion import HORIZON, fuse
from billing.jobs import JobBook
from billing.link_keeping import forget_links
from billing.metrics import MetricBook, unseen_points
from billing.plan_quota import HeaderReader, note_quotas
from billing.related import IDENTITY, related, settled, stored_links, unseen, window_of
from billing.reread import Rereading, retired, told_of, written_again
from billing.rollup import SLOT
from billing.store import (
    CALL_KINDS,
    CALL_LISTS,
    KINDS,
    OBSERVATION_KINDS,
    OBSERVED,
    append,
    connect,
    frames,
    read,
)
from ingest.dialect import Dialects
from ingest.observation import FIDELITY, LINKS, METRIC_POINTS

_FOLD_ABOVE_BYTES = 32 << 20
_FOLD_AT_REST_BYTES = 4 << 20
"""How long the write-ahead log may be, and how long it stays when nothing comes."""
_COMPACT_AFTER_FOLDS = 32
_COUNT_EVERY = 256
"""Commits whose counts of emitters lie side by side, until they are folded into one row of each kind."""
_BOOKKEEPING = ("revision", "recorded_at")
_CHARGE = (
    "access",
    "access_evidence",
    "access_confidence",
    "plan_id",
    "usage_complete",
    "list_cost_usd",
    "billed_cost_usd",
    "plan_draw",
    "cost_status",
    "price_id",
    "catalog_version",
)
"""What is frozen on a call when it is written."""
_DECIDED = ("access", "plan_id")
_EVIDENCE = ("access_evidence", "access_confidence")
"""What may still become better known while what it decides stays."""
_CHARGED_BY = (
    "started_at",
    "status",
    "provider",
    "served_model",
    "model",
    "resolution",
    "input_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "output_tokens",
    "audio_input_tokens",
    "audio_output_tokens",
    "service_tier",
    "speed",
    "batch",
    "region",
)
"""What a charge is computed from: while these stay, a new revision keeps the old charge."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one transaction loads: the frames of `ingest.observe` and controls, up to a journal position."""

    observations: pl.DataFrame
    links: pl.DataFrame
    rejects: pl.DataFrame
    unrecognised: pl.DataFrame
    position: int
    controls: Sequence[tuple[int, bytes]] = field(default=())
    metric_points: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=METRIC_POINTS))
    fidelity: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=FIDELITY))

    @property
    def has_telemetry(self) -> bool:
        """Whether there is anything but controls, of which thousands may come in a second."""
        told = (self.observations, self.links, self.rejects, self.unrecognised, self.metric_points)
        return any(map(len, (*told, self.fidelity)))


@dataclass(frozen=True, slots=True)
class Commit:
    """What a transaction did: calls written and replaced, records told before, and the change of spend.

    `spend` is the message that keeps the front's budgets equal to the ledger (`billing.spend`).
    """

    position: int
    written: int
    replaced: int
    repeated: int
    spend: dict[str, Any]


class LedgerCatalog(Pricing, HeaderReader, Protocol):
    """What the ledger needs of the catalogue."""


Work = Callable[[int, datetime], Changed]
"""What a job over history does in one transaction, of this number at this time: the rows of `calls` it has
taken out and put in.
"""


Noting = Callable[[pl.DataFrame, pl.DataFrame], pl.DataFrame]
"""Rows removed (with `superseded_by`) and written -> the removed ones with what is to be noted of them."""


def _as_told(removed: pl.DataFrame, written: pl.DataFrame) -> pl.DataFrame:
    del written
    return removed


class Ledger:
    """The open ledger. One thread writes; others take a `cursor`. `jobs` are the jobs over history."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        *,
        epoch: str,
        pricing: LedgerCatalog,
        checkpoints: Checkpoints,
        news_until: int = 0,
    ) -> None:
        self._db = connection
        self._checkpoints = checkpoints
        self._epoch = epoch
        self._pricing = pricing
        self._commit_no = _number(connection, "SELECT max(commit_no) FROM commits")
        self.position = _number(connection, "SELECT max(position) FROM commits WHERE epoch = ?", epoch)
        self._metrics = MetricBook(connection, pricing)
        self._no_calls: tuple[pl.DataFrame, pl.DataFrame] | None = None
        self._feed = spend.SpendFeed(connection, epoch=epoch, news_until=news_until)
        self.jobs = JobBook(connection)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        epoch: str,
        pricing: LedgerCatalog,
        memory_limit: str = "512MB",
        threads: int = 2,
        wait_s: float = 60,
        news_until: int = 0,
    ) -> Ledger:
        """Open or create the ledger for the journal of this epoch; see `store.connect` for the errors.

        Reservations journaled before `news_until` are told to the front in full: it was not there then.
        """
        connection = connect(path, memory_limit=memory_limit, threads=threads, wait_s=wait_s)
        take_over_earlier_layouts(connection)
        checkpoints = Checkpoints(connection, database="ledger", path=path)
        checkpoints.lay_out()
        return cls(connection, epoch=epoch, pricing=pricing, checkpoints=checkpoints, news_until=news_until)

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection of its own on the same database, for another thread."""
        cursor = self._db.cursor()
        cursor.execute("USE ledger")
        return cursor

    def settle(self) -> None:
        """Fold the write-ahead log into the file, and have DuckDB return the memory it has freed."""
        self._fold(above_bytes=_FOLD_AT_REST_BYTES)
        limit = self._db.execute("SELECT current_setting('memory_limit')").fetchone()
        if limit:
            self._db.execute(f"SET memory_limit = '{limit[0]}'")  # setting it is what makes DuckDB give back

    def compact(self) -> None:
        """Put together what was folded piece by piece, if it is much: seconds in which nothing is loaded."""
        if self._checkpoints.folds >= _COMPACT_AFTER_FOLDS:
            self._checkpoints.compact()

    def close(self) -> None:
        """Close the file; what is committed stays."""
        self._db.close()

    def load(self, batch: Batch) -> Commit:
        """Commit a batch whole, or raise and leave nothing of it."""
        try:
            with self._transaction():
                commit = self._write(batch, self._commit_no + 1, datetime.now(UTC))
        except BaseException:
            self._feed.rolled_back()
            raise
        self._feed.committed()
        self._commit_no, self.position = self._commit_no + 1, batch.position
        self._fold(above_bytes=_FOLD_ABOVE_BYTES)
        return commit

    def rewrite(self, work: Work) -> Commit:
        """Commit what a job over history does in one transaction, whole, or raise and leave nothing of it."""
        now = datetime.now(UTC)
        try:
            with self._transaction():
                changed = work(self._commit_no + 1, now)
                commit = self._close(
                    changed.removed, changed.written, self._commit_no + 1, self.position, now
                )
        except BaseException:
            self._feed.rolled_back()
            raise
        self._feed.committed()
        self._commit_no += 1
        self._fold(above_bytes=_FOLD_ABOVE_BYTES)
        return commit

    def rehearse(self, work: Work) -> Changed:
        """What `rewrite` would do; nothing of it stays."""
        self._db.execute("BEGIN TRANSACTION")
        try:
            return work(self._commit_no + 1, datetime.now(UTC))
        finally:
            self._rollback()
            self._feed.rolled_back()

    def use(self, pricing: LedgerCatalog) -> None:
        """Charge by another catalogue from now on; what is written stays as it is."""
        self._pricing = pricing
        self._metrics.use(pricing)

    def replace(self, changed: Changed, *, job_id: str, commit_no: int) -> Changed:
        """Inside a transaction: put rows of `calls` in the place of others, which a job has charged again."""
        if len(changed.removed):
            self._retire(changed.removed.with_columns(job_id=pl.lit(job_id)), commit_no)
        append(self._db, "calls", changed.written, commit_no=commit_no)
        self._feed.revised(changed.written)
        return changed

    def nothing(self, _commit_no: int, _now: datetime) -> Changed:
        """Work that changes no call."""
        none = read(self._db, f"SELECT {_CALL_COLUMNS} FROM calls LIMIT 0").cast(CALL_LISTS)  # type: ignore[arg-type]
        return Changed(none, none)

    def reread(
        self,
        reading: Rereading,
        dialects: Dialects,
        *,
        job_id: str,
        commit_no: int,
        points_from: datetime,
    ) -> Changed:
        """Inside a transaction: write records that read otherwise now, and fuse and charge what that touches.

        Sums of metrics before `points_from`, whose points may be forgotten, are left as they are.
        """
        reading, around = written_again(self._db, reading, dialects)
        before, after = reading.before, reading.after

        def noting(removed: pl.DataFrame, written: pl.DataFrame) -> pl.DataFrame:
            told = reasons(removed, written, gone=retired(removed, reading.dropped))
            return told.with_columns(job_id=pl.lit(job_id))

        now = told_of(pl.concat([after, around])).select(*OBSERVED)
        known = pl.concat([before, after, around]).select(*OBSERVED)
        removed, written, _ = self._fuse(
            now, pl.DataFrame(schema=LINKS), known, commit_no, noting, settled=settled(self._db, around)
        )
        emitters.recount_records(self._db, before=told_of(before), after=told_of(after))
        return Changed(
            *self._book_metrics(
                pl.DataFrame(schema=METRIC_POINTS),
                pl.concat([before, after]),
                removed,
                written,
                commit_no,
                noting=noting,
                again_from=points_from,
            )
        )

    def spend_snapshot(self) -> dict[str, Any]:
        """All budgets with their spend as of the last commit, for the front."""
        return self._feed.snapshot(position=self.position, now=datetime.now(UTC))

    def forget_old_evidence(
        self, *, links_before: datetime, observations_before: datetime, published_commit: int
    ) -> None:
        """Delete span links and observations that are past their retention, and marks that are published.

        Links that lead from a record to those above it stay as long as records do (`billing.link_keeping`).
        """
        with self._transaction():
            self._db.execute(
                f"DELETE FROM {OBSERVATION_KINDS.rows} WHERE effective_at < ?", [observations_before]
            )
            now = datetime.now(UTC)
            as_long = now + (now - observations_before)
            forget_links(self._db, before=links_before, kept_until=as_long, now=now)
            self._db.execute("DELETE FROM kept_attributes WHERE last_effective_at < ?", [observations_before])
            self._db.execute("DELETE FROM metric_points WHERE measured_at < ?", [observations_before])
            self._db.execute("DELETE FROM aggregates_alone WHERE ended_at < ?", [observations_before])
            self._db.execute("DELETE FROM dirty_slots WHERE commit_no <= ?", [published_commit])
            self._db.execute("DELETE FROM commits WHERE commit_no < ?", [self._commit_no])
            for kinds in KINDS.values():
                kinds.forget_unused(self._db)

    def observations_of(self, call: str, started_at: datetime) -> pl.DataFrame:
        """The observations that were fused into a call, found the way fusion found them."""
        smallest = pl.DataFrame(
            {"id_hi": [int(call[1:17], 16)], "id_lo": [int(call[17:33], 16)]},
            schema={"id_hi": pl.UInt64, "id_lo": pl.UInt64},
        )
        with frames(self._db, wanted=smallest):
            query = (
                f"SELECT {_OBSERVED} FROM observations o JOIN wanted USING (id_hi, id_lo) "
                "WHERE o.started_at BETWEEN ? AND ?"
            )
            seed = read(self._db, query, [started_at - HORIZON, started_at + HORIZON])
        if seed.is_empty():
            return seed
        near = related(self._db, seed, pl.DataFrame(schema=LINKS)).select(seed.columns)
        everything = pl.concat([seed, near])
        fused = fuse(everything, stored_links(self._db, everything), settled=settled(self._db, near))
        group = fused.join(smallest, on=IDENTITY)["group"][0]
        members = fused.filter(pl.col("group") == group, "stands").select(IDENTITY)
        return everything.join(members, on=IDENTITY, how="semi")

    def _write(self, batch: Batch, commit_no: int, now: datetime) -> Commit:
        if batch.has_telemetry or self._no_calls is None:
            removed, written, repeated = self._write_telemetry(batch, commit_no)
            self._no_calls = removed.clear(), written.clear()
        else:
            (removed, written), repeated = self._no_calls, 0
        self._feed.apply_controls(self.jobs.take(batch.controls))
        commit = self._close(removed, written, commit_no, batch.position, now)
        return replace(commit, repeated=repeated)

    def _write_telemetry(self, batch: Batch, commit_no: int) -> tuple[pl.DataFrame, pl.DataFrame, int]:
        """The calls removed and written, and how many records were told before."""
        fresh = keyed(unseen(self._db, batch.observations))
        removed, written, fresh = self._write_calls(fresh, batch.links, commit_no)
        append_observations(self._db, fresh, commit_no=commit_no)
        note_quotas(self._db, fresh, self._pricing)
        points = unseen_points(self._db, batch.metric_points)
        removed, written = self._book_metrics(points, fresh, removed, written, commit_no)
        self._append_links(batch.links, commit_no)
        self._count_unrecognised(batch.unrecognised)
        append(self._db, "rejects", batch.rejects)
        emitters.count_records(self._db, fresh, points)
        emitters.count_fidelity(self._db, batch.fidelity)
        return removed, written, len(batch.observations) - len(fresh)

    def _fold(self, *, above_bytes: int) -> None:
        if self._checkpoints.log_bytes > above_bytes:
            self._checkpoints.fold()

    def _close(
        self, removed: pl.DataFrame, written: pl.DataFrame, commit_no: int, position: int, now: datetime
    ) -> Commit:
        """Let reservations, rollups, counts and budgets follow the calls, and number the transaction."""
        removed = removed.select(written.columns)
        removed, written = self._settle(removed, written, commit_no)
        self._mark_dirty(removed, written, commit_no)
        emitters.count_calls(self._db, removed=removed, written=written)
        if not commit_no % _COUNT_EVERY:
            emitters.fold(self._db)
        self._db.execute("INSERT INTO commits VALUES (?, ?, ?, ?)", [commit_no, self._epoch, position, now])
        return Commit(
            position=position,
            written=len(written),
            replaced=len(removed),
            repeated=0,
            spend=self._feed.delta(before=removed, after=written, position=position, now=now),
        )

    def _write_calls(
        self, fresh: pl.DataFrame, links: pl.DataFrame, commit_no: int
    ) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
        """The calls removed and written, and the fresh observations with what fusion noted about them."""
        told = fresh.select(*OBSERVED)
        old = related(self._db, told, links)
        removed, written, fused = self._fuse(
            pl.concat([told, old]), links, old, commit_no, settled=settled(self._db, old)
        )
        return removed, written, _noted(fresh, fused)

    def _fuse(
        self,
        everything: pl.DataFrame,
        links: pl.DataFrame,
        known: pl.DataFrame,
        commit_no: int,
        noting: Noting = _as_told,
        *,
        settled: pl.DataFrame,
    ) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
        """The calls removed and written, and the observations fused, of which `known` were stored before, and
        `settled` are aggregates that calls elsewhere cover.
        """
        walked = pl.concat([links.select(list(LINKS)), stored_links(self._db, everything)])
        fused = fuse(everything, walked, settled=settled)
        charged = charge(fused, self._pricing, now=datetime.now(UTC))
        removed, written = self._revised(charged, known) if len(known) else (charged.clear(), charged)
        if len(removed):
            heirs = removed.join(_heirs(fused), on="call_id", how="left", maintain_order="left")
            self._retire(noting(heirs, written), commit_no)
        append(self._db, "calls", written, commit_no=commit_no)
        self._feed.claim(fused, written, removed)
        self._keep_alone(fused)
        return removed, written, fused

    def _keep_alone(self, fused: pl.DataFrame) -> None:
        """Remember which aggregates stand for calls not known, so that those can be looked for."""
        aggregates = fused.filter(pl.col("role") == "aggregate")
        if aggregates.is_empty():
            return
        columns = [*IDENTITY, "trace_lo", "service", "session_id", "ended_at"]
        with frames(self._db, told=aggregates.select(IDENTITY)):
            self._db.execute(
                "DELETE FROM aggregates_alone WHERE (id_hi, id_lo) IN (SELECT (id_hi, id_lo) FROM told)"
            )
        append(self._db, "aggregates_alone", aggregates.filter("stands").select(columns))

    def _settle(
        self, removed: pl.DataFrame, written: pl.DataFrame, commit_no: int
    ) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The same, with the settlements of reservations that telemetry replaces or has not told of yet."""
        gone, come = self._feed.settle(self._pricing, now=datetime.now(UTC))
        if len(gone):
            gone = gone.cast(dict(written.schema))  # type: ignore[arg-type]
            self._retire(gone, commit_no)
            removed = pl.concat([removed, gone.select(removed.columns)])
        if len(come):
            append(self._db, "calls", come, commit_no=commit_no)
            written = pl.concat([written, come.select(written.columns)])
        return removed, written

    def _book_metrics(
        self,
        points: pl.DataFrame,
        fresh: pl.DataFrame,
        removed: pl.DataFrame,
        written: pl.DataFrame,
        commit_no: int,
        *,
        noting: Noting = _as_told,
        again_from: datetime | None = None,
    ) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The same, with the sums that metrics tell of sources that tell of no calls."""
        booked = self._metrics.take(
            points, fresh, now=datetime.now(UTC), commit_no=commit_no, again_from=again_from
        )
        if booked is None:
            return removed, written
        current, before = booked
        gone, come = self._replacing(current, self._calls_named(before))
        if len(gone):
            heirless = gone.with_columns(superseded_by=pl.lit(None, pl.String))
            self._retire(noting(heirless, come), commit_no)
        append(self._db, "calls", come, commit_no=commit_no)
        come, gone = come.select(written.columns), gone.select(removed.columns)
        return pl.concat([removed, gone]), pl.concat([written, come])

    def _calls_named(self, named: pl.DataFrame) -> pl.DataFrame:
        """The current calls of these ids (`call_id`) that start at these hours (`hour`)."""
        with frames(self._db, wanted=named):
            these = "started_at IN (SELECT hour FROM wanted) AND call_id IN (SELECT call_id FROM wanted)"
            return read(self._db, CALL_KINDS.select(_CALL_COLUMNS, where=these))

    def _revised(self, charged: pl.DataFrame, old: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The stored calls that these replace, and the calls to write; what did not change is in neither."""
        return self._replacing(charged, self._calls_of(old))

    def _replacing(self, charged: pl.DataFrame, found: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        stored = found.cast(dict(charged.schema))  # type: ignore[arg-type]
        current = _keep_charges(charged, stored)
        content = [name for name in current.columns if name not in _BOOKKEEPING]
        same = pl.concat([_digests(stored, content), _digests(current, content)])
        unchanged = same.filter(pl.len().over("call_id", "digest") == 2).select("call_id").unique()
        removed = stored.join(unchanged, on="call_id", how="anti")
        written = current.join(unchanged, on="call_id", how="anti")
        return removed, _count_revisions(written, removed)

    def _calls_of(self, observed: pl.DataFrame) -> pl.DataFrame:
        """The current calls that any of these observations may have lent its identity."""
        low, high = window_of(observed, column="started_at")
        with frames(self._db, wanted=observed.select(call_id(*IDENTITY).alias("call_id"))):
            near = "started_at BETWEEN ? AND ? AND call_id IN (SELECT call_id FROM wanted)"
            query = CALL_KINDS.select(_CALL_COLUMNS, where=near)
            return read(self._db, query, [low - HORIZON, high + HORIZON])

    def _retire(self, replaced: pl.DataFrame, commit_no: int) -> None:
        """Move replaced rows, which name their heirs, from `calls` to `call_revisions`."""
        append(self._db, "call_revisions", replaced, commit_no=commit_no)
        low, high = window_of(replaced, column="started_at")
        with frames(self._db, wanted=replaced.select("call_id")):
            self._db.execute(
                f"DELETE FROM {CALL_KINDS.rows} WHERE started_at BETWEEN ? AND ? "
                "AND call_id IN (SELECT call_id FROM wanted)",
                [low, high],
            )

    def _append_links(self, links: pl.DataFrame, commit_no: int) -> None:
        now = pl.lit(datetime.now(UTC)).cast(pl.Datetime("us", "UTC"))
        append(
            self._db,
            "span_links",
            links.select(list(LINKS)).with_columns(received_at=now),
            commit_no=commit_no,
        )

    def _mark_dirty(self, removed: pl.DataFrame, written: pl.DataFrame, commit_no: int) -> None:
        touched = pl.concat([removed.select("started_at"), written.select("started_at")])
        slots = touched.select(pl.col("started_at").dt.truncate(SLOT).alias("slot")).unique()
        append(self._db, "dirty_slots", slots, commit_no=commit_no)

    def _count_unrecognised(self, counts: pl.DataFrame) -> None:
        if counts.is_empty():
            return
        with frames(self._db, told=counts):
            self._db.execute(
                "UPDATE unrecognised u SET count = u.count + t.count, last_seen = now() FROM told t WHERE "
                f"{_SAME_KIND}"
            )
            self._db.execute(
                "INSERT INTO unrecognised SELECT t.scope, t.name, t.signal, t.count, now() FROM told t "
                f"WHERE NOT EXISTS (SELECT 1 FROM unrecognised u WHERE {_SAME_KIND})"
            )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN TRANSACTION")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            self._rollback()
            raise

    def _rollback(self) -> None:
        try:
            self._db.execute("ROLLBACK")
        except duckdb.TransactionException:
            return  # DuckDB had ended the transaction by itself


_OBSERVED = ", ".join(OBSERVED)
_CALL_COLUMNS = ", ".join(tables.names(tables.LEDGER_CALLS))
_SAME_KIND = (
    "u.scope IS NOT DISTINCT FROM t.scope AND u.name IS NOT DISTINCT FROM t.name AND u.signal = t.signal"
)


def _number(connection: duckdb.DuckDBPyConnection, query: str, *parameters: object) -> int:
    row = connection.execute(query, list(parameters)).fetchone()
    return int(row[0] or 0) if row else 0


def _keep_charges(current: pl.DataFrame, stored: pl.DataFrame) -> pl.DataFrame:
    """Give each call the charge it was written with, where nothing it was computed from has changed."""
    before = stored.select("call_id", *_CHARGED_BY, *_CHARGE)
    both = current.join(before, on="call_id", how="left", suffix="_before")
    known = pl.col("catalog_version_before").is_not_null()
    same = pl.all_horizontal(known, *(pl.col(c).eq_missing(pl.col(f"{c}_before")) for c in _CHARGED_BY))
    decided = pl.all_horizontal(pl.col(c).eq_missing(pl.col(f"{c}_before")) for c in _DECIDED)
    keep = {c: same & ~decided if c in _EVIDENCE else same for c in _CHARGE}
    kept = [pl.when(keep[c]).then(pl.col(f"{c}_before")).otherwise(pl.col(c)).alias(c) for c in _CHARGE]
    return both.with_columns(kept).select(current.columns)


def _digests(calls: pl.DataFrame, content: list[str]) -> pl.DataFrame:
    return calls.select("call_id", calls.select(content).hash_rows().alias("digest"))


def _count_revisions(written: pl.DataFrame, removed: pl.DataFrame) -> pl.DataFrame:
    last = removed.select("call_id", pl.col("revision").alias("last"))
    numbered = written.join(last, on="call_id", how="left")
    return numbered.with_columns((pl.col("last").fill_null(0) + 1).cast(pl.Int32).alias("revision")).drop(
        "last"
    )


def _noted(fresh: pl.DataFrame, fused: pl.DataFrame) -> pl.DataFrame:
    """The fresh observations, with the anomalies that fusion noted."""
    noted = fused.select(*IDENTITY, "anomalies").filter(pl.col("anomalies").list.len() > 0)
    if noted.is_empty():
        return fresh
    joined = fresh.join(noted, on=IDENTITY, how="left", suffix="_now", maintain_order="left")
    now = pl.coalesce("anomalies_now", "anomalies").alias("anomalies")
    return joined.with_columns(now).drop("anomalies_now")


def _heirs(fused: pl.DataFrame) -> pl.DataFrame:
    """For every observation's id as a call, the id of the call it is part of now, where that is another."""
    ids = fused.select(call_id(*IDENTITY).alias("call_id"), "group")
    leaders = ids.with_row_index("leader").select("leader", pl.col("call_id").alias("superseded_by"))
    named = ids.join(leaders, left_on="group", right_on="leader")
    return named.filter(pl.col("call_id") != pl.col("superseded_by")).select("call_id", "superseded_by")
