"""The published file: what people read while the ledger is being written.

A staging file follows the ledger commit by commit (calls, revisions, rollups, budgets) in transactions of its
own; publishing is checkpoint, copy, fsync and an atomic rename of that file, beside which older days lie
sealed (`billing.seal`). It holds no observations, so no copy of the evidence ever leaves the ledger. Staging
is derived: if it is lost it is built again.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import polars as pl

from billing import emitters, jobs, rollup, spend, tables
from billing.checkpoint import Checkpoints
from billing.layout import LedgerUnfit, add_missing, columns_of
from billing.plans import PlanTables
from billing.seal import SEAL_ABOVE_CALLS, STAGING, Seals
from billing.slots import Slots
from billing.store import append, attach, frames, read
from catalog.plan_book import PlanBook

_REVISIONS = ", ".join(tables.names(tables.CALL_REVISIONS))
_UNPRICED_VIEW = """
CREATE OR REPLACE VIEW staging.unpriced_models AS
SELECT served_model, provider, model, sum(call_count) AS calls, sum(input_tokens) AS input_tokens,
       sum(output_tokens) AS output_tokens, max(started_at) AS last_seen
FROM calls WHERE cost_status = 'unpriced' GROUP BY ALL ORDER BY calls DESC
"""
_DIRTY = "SELECT DISTINCT slot FROM dirty_slots WHERE commit_no > ?"
_ALL_SLOTS = "SELECT DISTINCT date_trunc('hour', started_at) AS slot FROM calls"

_ATTACHED = "BLOCK_SIZE 65536, RECOVERY_MODE 'no_wal_writes'"
"""A publication touches many small tables, each with blocks of its own, and ends with a checkpoint anyway."""
_GROWN_BYTES = 4 << 20
_GROWN = 2
_GROWN_BUSY = 8
"""The staging file is put together again when it has grown by so much, to so many times what it was then.

That takes a second where there is much of it, so while much comes it waits: nobody sees anything meanwhile.
"""
_BUSY_S = 0.2
"""How long it takes to follow the ledger where much comes."""

log = logging.getLogger("tollbook.publish")


class Publisher:
    """Keeps the staging file and publishes copies of it. Used by one thread, with a cursor of its own.

    `commit_no` is the last ledger commit that the published file shows.
    """

    def __init__(
        self,
        cursor: duckdb.DuckDBPyConnection,
        *,
        staging: Path,
        published: Path,
        epoch: str,
        plans: PlanBook | None = None,
        seal_above_calls: int = SEAL_ABOVE_CALLS,
    ) -> None:
        self._db = cursor
        self._staging = staging
        self._published = published
        self._epoch = epoch
        self._ledger_id = str(read(cursor, "SELECT ledger_id::VARCHAR AS id FROM schema_version")["id"][0])
        self._slots = Slots(cursor)
        self._seals = Seals(cursor, published.parent / "sealed", above_calls=seal_above_calls)
        self.plans = PlanTables(cursor, plans or PlanBook({}))
        self.commit_no = 0
        self._compact_bytes = 0
        self._checkpoints = Checkpoints(cursor, database=STAGING, path=staging, schema="hot")
        self._attach()
        self._seals.sweep()

    def publish(self) -> int:
        """Bring the published file up to the ledger's last commit; the journal position it now shows."""
        began = time.monotonic()
        commit_no, position = self._follow()
        self._write_out(_GROWN_BUSY if time.monotonic() - began > _BUSY_S else _GROWN)
        _replace(self._staging, self._published)
        self.commit_no = commit_no  # not before it is on disk: the ledger forgets what it was told of
        return position

    @property
    def file_bytes(self) -> int:
        """The size of what is copied."""
        return self._checkpoints.file_bytes

    def _write_out(self, grown: int) -> None:
        if self.file_bytes <= grown * (self._compact_bytes + _GROWN_BYTES):
            self._checkpoints.fold()
            return
        self._checkpoints.compact()
        self._compact_bytes = self.file_bytes

    def _attach(self) -> None:
        self._staging.parent.mkdir(parents=True, exist_ok=True)
        try:
            attach(self._db, self._staging, name=STAGING, options=_ATTACHED)
        except duckdb.Error:
            log.warning("%s cannot be read; building it again from the ledger", self._staging.name)
            self._discard()
        if fault := self._fault():
            log.warning("%s %s; building it again", self._staging.name, fault)
            self._db.execute(f"DETACH {STAGING}")
            self._discard()
            self._lay_out()

    def _fault(self) -> str | None:
        """Lay the attached file out; why it cannot be gone on with, if it cannot."""
        try:
            self._lay_out()
        except (LedgerUnfit, duckdb.BinderException, duckdb.CatalogException):
            return "has another layout"
        return None if self._meta("ledger_id") in (None, self._ledger_id) else "follows another ledger"

    def _discard(self) -> None:
        for suffix in ("", ".wal", ".wal.checkpoint"):
            self._staging.with_name(self._staging.name + suffix).unlink(missing_ok=True)
        attach(self._db, self._staging, name=STAGING, options=_ATTACHED)

    def _lay_out(self) -> None:
        self._seals.lay_out()
        self._checkpoints.lay_out()
        self._slots.lay_out()
        published = {name: columns for name, columns in tables.PUBLISHED.items() if name != "calls"}
        for name, columns in published.items():
            self._db.execute(tables.create_table(f"{STAGING}.{name}", columns))
        wanted = columns_of(self._db, [tables.create_table(*table) for table in published.items()])
        add_missing(self._db, wanted, name=STAGING)
        for statement in spend.published_ddl(STAGING):
            self._db.execute(statement)
        self._db.execute(_UNPRICED_VIEW)

    def _follow(self) -> tuple[int, int]:
        """Apply the commits that staging has not seen, in one transaction; the last one and its position."""
        self._db.execute("BEGIN TRANSACTION")
        try:
            reached = self._apply(since=int(self._meta("commit_no") or 0))
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        return reached

    def _meta(self, key: str) -> str | None:
        row = self._db.execute(f"SELECT value FROM {STAGING}.meta WHERE key = ?", [key]).fetchone()
        return str(row[0]) if row else None

    def _apply(self, *, since: int) -> tuple[int, int]:
        commit_no, position = self._last_commit()
        if commit_no > since:
            self._seals.follow(since)
            self._append_revisions(since)
            self._apply_rollups(since)
            emitters.publish(self._db, STAGING)
            jobs.publish(self._db, STAGING, since=since)
            self._note_changes(since)
        self.plans.refresh(datetime.now(UTC))
        spend.publish(self._db, STAGING)
        self._write_meta(commit_no, position)
        return commit_no, position

    def _note_changes(self, since: int) -> None:
        dirty = read(self._db, "SELECT min(slot) AS slot FROM dirty_slots WHERE commit_no > ?", [since])
        if (earliest := dirty["slot"][0]) is not None:
            self.plans.changed_from(earliest)

    def _last_commit(self) -> tuple[int, int]:
        row = self._db.execute(
            "SELECT coalesce(max(commit_no), 0), coalesce(max(position) FILTER (epoch = ?), 0) FROM commits",
            [self._epoch],
        ).fetchone()
        return (int(row[0]), int(row[1])) if row else (0, 0)

    def _append_revisions(self, since: int) -> None:
        self._db.execute(
            f"INSERT INTO {STAGING}.call_revisions SELECT {_REVISIONS} "
            "FROM call_revisions WHERE commit_no > ?",
            [since],
        )

    def _apply_rollups(self, since: int) -> None:
        dirty = read(self._db, _DIRTY if since else _ALL_SLOTS, [since] if since else [])
        dirty = dirty.with_columns(pl.col("slot").dt.truncate("1h").alias("hour")).sort("slot")
        for (hour,), slots in dirty.group_by("hour", maintain_order=True):
            fresh = rollup.hourly(self._slots.of_hour(hour, dirty=slots["slot"].to_list()))
            self._swap("usage_hourly", fresh, where="hour = ?", keys=[hour])
        for day in dirty["hour"].dt.date().unique():
            told = read(
                self._db,
                f"SELECT * FROM {STAGING}.usage_hourly WHERE hour >= ?::DATE AND hour < ?::DATE + 1",
                [day, day],
            )
            self._swap("usage_daily", rollup.daily(told), where="day = ?", keys=[day])
        self._slots.forget_quiet_hours()

    def _swap(self, table: str, fresh: pl.DataFrame, *, where: str, keys: Sequence[object] = ()) -> None:
        self._db.execute(f"DELETE FROM {STAGING}.{table} WHERE {where}", list(keys))
        append(self._db, f"{STAGING}.{table}", fresh)

    def _write_meta(self, commit_no: int, position: int) -> None:
        facts = {
            "ledger_id": self._ledger_id,
            "commit_no": commit_no,
            "journal_position": position,
            "published_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }
        rows = pl.DataFrame({"key": list(facts), "value": [str(value) for value in facts.values()]})
        with frames(self._db, told=rows):
            self._db.execute(f"DELETE FROM {STAGING}.meta")
            self._db.execute(f"INSERT INTO {STAGING}.meta SELECT key, value FROM told")


def _replace(source: Path, target: Path) -> None:
    """Copy a file over another so that readers, and a crash, see the old one or the new one whole."""
    part = target.with_suffix(".part")
    shutil.copyfile(source, part)
    with part.open("rb") as copy:
        os.fsync(copy.fileno())
    part.chmod(0o600)
    part.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
