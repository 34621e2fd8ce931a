"""The ledger's side of reservations: one table, kept in the transactions that write the calls.

Every reserve, settle and release that was journaled is applied here once, in order, and every call that is
committed is held against the reservations it may settle. A settlement stands in `calls` until telemetry of
its call is there, so that spend is always the sum of `calls` and a call is in it once, whichever came first.
What the front must know of it crosses in the same message as the change of spend.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from functools import cache
from operator import attrgetter
from typing import Any, ClassVar

import duckdb
import orjson
import polars as pl

from billing import tables
from billing.charges import COUNTED, Pricing, call_id
from billing.reservation import (
    Release,
    ReservationControl,
    Reserve,
    Settle,
    call_id_of,
    reservation_id_of,
    told_costs,
)
from billing.reservation_book import MAX_REMEMBERED, REMEMBER_S
from billing.reservation_calls import SettledCall, settlement_calls
from billing.reservation_hold import microseconds, moment
from billing.reservation_match import Claim, Matching
from billing.tables import Column, create_table

__all__ = ["DDL", "ReservationLedger", "Row"]

KEEP_S = 2 * 86_400
"""How long after its end a reservation waits for telemetry or for a repetition."""
_US = 1_000_000
_REACH = timedelta(minutes=10)
"""How long before a reservation its call may have started by its emitter's clock."""
_TIDY_S = 600
_CALL_COLUMNS = ", ".join(tables.names(tables.LEDGER_CALLS))


@dataclass(slots=True, eq=False)
class Row:
    """A reservation as stored; the fields are the table's columns. Settlements are JSON control records.

    `told_number` is the settlement that stands in `calls` now, 0 for none.
    """

    id: str
    key: str | None
    digest: str
    decision: str
    at_us: int
    expires_us: int
    told: str
    model: str | None
    costs: str
    trace_id: str | None
    response_id: str | None
    place_offset: int
    settlement: str | None = None
    number: int = 0
    final: bool = False
    released: bool = False
    call_id: str | None = None
    matched_by: str | None = None
    told_number: int = 0
    revision: int = 0
    changed_us: int = 0

    TYPES: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("at_us", "expires_us", "place_offset", "changed_us"), "BIGINT"),
        **dict.fromkeys(("number", "told_number", "revision"), "INTEGER"),
        **dict.fromkeys(("final", "released"), "BOOLEAN"),
    }

    def wants_a_call(self, now_us: int) -> bool:
        """Open, or settled and not told of by telemetry."""
        return not self.released and (self.number > 0 or self.expires_us > now_us)

    @property
    def should_tell(self) -> int:
        """The settlement that ought to stand in `calls`."""
        return 0 if self.released or self.call_id is not None else self.number

    def take(self, control: Settle | Release, now_us: int) -> None:
        """Applies a later control record of this reservation."""
        if isinstance(control, Release):
            self.released = self.released or self.number == 0
        elif control.number > self.number and not self.released:
            self.settlement = control.model_dump_json(exclude_none=True)
            self.number, self.final = control.number, control.final
            self.trace_id = self.trace_id or control.trace_id
            self.response_id = control.response_id or self.response_id
        self.changed_us = now_us


_NAMES = [each.name for each in fields(Row)]
_COLUMNS = tuple(Column(name, Row.TYPES.get(name, "VARCHAR"), "") for name in _NAMES)
_LIST = ", ".join(_NAMES)
_values = attrgetter(*_NAMES)
_POLARS = {"VARCHAR": pl.String, "BIGINT": pl.Int64, "INTEGER": pl.Int32, "BOOLEAN": pl.Boolean}
_SCHEMA = {column.name: _POLARS[column.type] for column in _COLUMNS}
DDL = (create_table("reservations", _COLUMNS),)

_TOUCHED = f"""
SELECT {_LIST} FROM reservations r
WHERE r.id IN (SELECT id FROM wanted_ids)
   OR r.call_id IN (SELECT id FROM wanted_calls)
   OR r.response_id IN (SELECT id FROM wanted_responses)
   OR (r.trace_id IN (SELECT id FROM wanted_traces) AND r.call_id IS NULL AND NOT r.released)
"""
_EARLIER = """
SELECT call_id, response_id, trace_id, epoch_us(recorded_at), epoch_us(started_at)
FROM calls WHERE started_at >= ? AND basis <> 'settlement'
  AND (response_id IN (SELECT id FROM wanted_responses) OR trace_id IN (SELECT id FROM wanted_traces))
"""


_state = attrgetter("call_id", "number", "final", "released", "matched_by", "trace_id", "response_id")
"""What of a row may change."""


@dataclass(slots=True)
class _Batch:
    """What one transaction brings."""

    reserved: dict[str, Row] = field(default_factory=dict)
    controls: list[Settle | Release] = field(default_factory=list)
    news: set[str] = field(default_factory=set)
    fused: pl.DataFrame | None = None
    written: pl.DataFrame | None = None
    removed: pl.DataFrame | None = None


class ReservationLedger:
    """Keeps reservations with the commits of one ledger; used by the thread that writes.

    `news_until`: reservations journaled before this position are told to the front, which was not there when
    they were made.
    """

    def __init__(self, con: duckdb.DuckDBPyConnection, *, news_until: int = 0) -> None:
        self._con = con
        self._news_until = news_until
        self._tidied = 0
        self.load()

    def load(self) -> None:
        """Forgets what was not committed."""
        row = self._con.execute("SELECT count(*) FROM reservations").fetchone()
        self._stored = int(row[0]) if row else 0
        self._batch = _Batch()
        self._changed: list[Row] = []
        self._held: list[Row] = []

    # --- what a transaction brings ---

    def take(self, offset: int, control: ReservationControl) -> None:
        """One control record, in order of the journal."""
        if isinstance(control, Reserve):
            self._batch.reserved[control.id] = _row(control, offset)
        else:
            self._batch.controls.append(control)
            if offset <= self._news_until:
                self._batch.news.add(control.id)

    def claim(self, fused: pl.DataFrame, written: pl.DataFrame, removed: pl.DataFrame) -> None:
        """The calls written and removed: fused observations with the row of their group's leader, and rows of
        `calls`.
        """
        self._batch.fused, self._batch.written, self._batch.removed = fused, written, removed

    def revised(self, call_ids: Sequence[str]) -> None:
        """Settlements in `calls` that were charged again have one revision more."""
        if call_ids:
            ids = [reservation_id_of(call_id) for call_id in call_ids]
            rows = list(self._load_rows(ids=ids).values())
            for row in rows:
                row.revision += 1
            self._store(rows, created=0)

    # --- its effect ---

    def settle(self, pricing: Pricing, *, now: datetime) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Applies it all; returns settlements to be taken out of `calls` (with `superseded_by`) and rows to
        be written.
        """
        batch, self._batch = self._batch, _Batch()
        now_us = microseconds(now)
        self._held, self._changed = [], []
        if not (self._stored or batch.reserved or batch.controls):
            return _no_calls(superseded=True), _no_calls()
        rows, before = self._follow(batch, now_us)
        self._changed = [row for row in rows.values() if _state(row) != before.get(row.id)]
        self._held = [
            row for row in self._changed if row.id in batch.news or self._is_news(row, before.get(row.id))
        ]
        gone = self._gone([row for row in self._changed if 0 < row.told_number != row.should_tell])
        come = self._come(
            [row for row in self._changed if 0 < row.should_tell != row.told_number], pricing, now
        )
        for row in self._changed:
            row.told_number = row.should_tell
        self._store(self._changed, created=len([row for row in self._changed if row.id not in before]))
        self._tidy(now_us)
        return gone, come

    def _follow(self, batch: _Batch, now_us: int) -> tuple[dict[str, Row], dict[str, Any]]:
        """The reservations this touches, changed; and how the stored ones were before."""
        claims, heirs = _claims(batch.fused, batch.written)
        retired = _retired(batch, heirs)
        rows = self._load_rows(ids=[each.id for each in batch.controls if each.id not in batch.reserved])
        before = {row.id: _state(row) for row in rows.values()}
        rows |= batch.reserved
        for control in batch.controls:
            if (row := rows.get(control.id)) is not None:
                row.take(control, now_us)
        settled = {each.id for each in batch.controls if isinstance(each, Settle)}
        claims += self._earlier(
            [rows[each] for each in settled & rows.keys()], {each.call_id for each in claims}
        )
        for row in self._related(claims, [*heirs, *heirs.values(), *retired]).values():
            if row.id not in rows:
                rows[row.id], before[row.id] = row, _state(row)
        for row in rows.values():
            if row.call_id in retired:
                row.call_id = row.matched_by = None
        matching = Matching(rows.values(), now_us=now_us)
        matching.move(heirs)
        matching.claim(claims)
        for row in rows.values():
            row.changed_us = now_us if _state(row) != before.get(row.id) else row.changed_us
        return rows, before

    def _related(self, claims: Sequence[Claim], moved: Sequence[str]) -> dict[str, Row]:
        return self._load_rows(
            ids=[each.reservation_id for each in claims if each.reservation_id is not None],
            calls=[*(each.call_id for each in claims), *moved],
            responses=[each.response_id for each in claims if each.response_id is not None],
            traces=[each.trace_id for each in claims if each.trace_id is not None],
        )

    def _load_rows(
        self,
        *,
        ids: Sequence[str] = (),
        calls: Sequence[str] = (),
        responses: Sequence[str] = (),
        traces: Sequence[str] = (),
    ) -> dict[str, Row]:
        if not self._stored or not (ids or calls or responses or traces):
            return {}
        wanted = {
            "wanted_ids": ids,
            "wanted_calls": calls,
            "wanted_responses": responses,
            "wanted_traces": traces,
        }
        return {row[0]: Row(*row) for row in self._ask(_TOUCHED, wanted)}

    def _ask(
        self, query: str, wanted: dict[str, Sequence[str]], parameters: Sequence[object] = ()
    ) -> list[tuple[Any, ...]]:
        for name, values in wanted.items():
            self._con.register(name, pl.DataFrame({"id": list(values)}, schema={"id": pl.String}).to_arrow())
        try:
            return self._con.execute(query, list(parameters)).fetchall()
        finally:
            for name in wanted:
                self._con.unregister(name)

    def _earlier(self, rows: Sequence[Row], known: set[str]) -> list[Claim]:
        """Calls committed before their reservations were settled, so that nothing is counted twice."""
        asking = [row for row in rows if row.call_id is None or row.matched_by == "trace"]
        responses = [row.response_id for row in asking if row.response_id is not None]
        traces = [row.trace_id for row in asking if row.trace_id is not None and row.call_id is None]
        if not (responses or traces):
            return []
        since = moment(min(row.at_us for row in asking)) - _REACH
        found = self._ask(_EARLIER, {"wanted_responses": responses, "wanted_traces": traces}, [since])
        return [
            Claim(call, response_id=response, trace_id=trace, recorded_us=recorded_us, started_us=started_us)
            for call, response, trace, recorded_us, started_us in found
            if call not in known
        ]

    def _is_news(self, row: Row, before: Any) -> bool:
        """Whether the front has to be told all of it: made before its time, or counting again."""
        if before is None:
            return row.place_offset <= self._news_until
        return before[0] is not None and row.call_id is None

    # --- rows of calls ---

    def _gone(self, rows: Sequence[Row]) -> pl.DataFrame:
        """Settlements that stand in `calls` and no longer should, with the call that took their place."""
        if not rows:
            return _no_calls(superseded=True)
        heirs = {call_id_of(row.id): row.call_id for row in rows}
        starts = [_settled_call(row).started_us for row in rows]
        named = pl.DataFrame(
            {"call_id": list(heirs), "superseded_by": list(heirs.values())},
            schema={"call_id": pl.String, "superseded_by": pl.String},
        )
        self._con.register("settlements_gone", named.to_arrow())
        try:
            found = self._con.execute(
                f"SELECT {_CALL_COLUMNS}, superseded_by FROM calls JOIN settlements_gone USING (call_id) "
                "WHERE started_at BETWEEN ? AND ?",
                [moment(min(starts)) - _REACH, moment(max(starts)) + _REACH],
            ).to_arrow_table()
        finally:
            self._con.unregister("settlements_gone")
        return pl.DataFrame(pl.from_arrow(found))

    def _come(self, rows: Sequence[Row], pricing: Pricing, now: datetime) -> pl.DataFrame:
        if not rows:
            return _no_calls()
        for row in rows:
            row.revision += 1
        return settlement_calls([_settled_call(row) for row in rows], pricing, now=now)

    # --- the table ---

    def _store(self, rows: Sequence[Row], *, created: int) -> None:
        if not rows:
            return
        frame = pl.DataFrame([_values(row) for row in rows], schema=_SCHEMA, orient="row")
        self._con.register("reservation_rows", frame.to_arrow())
        try:
            if created < len(rows):
                self._con.execute("DELETE FROM reservations WHERE id IN (SELECT id FROM reservation_rows)")
            self._con.execute(f"INSERT INTO reservations ({_LIST}) SELECT {_LIST} FROM reservation_rows")
        finally:
            self._con.unregister("reservation_rows")
        self._stored += created

    def _tidy(self, now_us: int) -> None:
        """Now and then drops what is too old for a repetition or late telemetry."""
        if now_us - self._tidied < _TIDY_S * _US:
            return
        self._tidied = now_us
        self._con.execute("DELETE FROM reservations WHERE expires_us < ?", [now_us - KEEP_S * _US])

    # --- what the front is told ---

    def delta(self) -> dict[str, list[dict[str, Any]]]:
        """`holds` and `marks` of the last transaction, for the message about spend."""
        return {
            "holds": [_entry(row) for row in self._held],
            "marks": [_mark(row) for row in self._changed if row.number or row.released or row.call_id],
        }

    def snapshot(self, *, now: datetime) -> list[dict[str, Any]]:
        """Everything that is open, and of what has ended the newest."""
        now_us = microseconds(now)
        ended = "(released OR final OR call_id IS NOT NULL OR expires_us <= ?)"
        rows = self._con.execute(
            f"SELECT {_LIST} FROM reservations WHERE NOT {ended} UNION ALL "
            f"(SELECT {_LIST} FROM reservations WHERE {ended} AND expires_us > ? "
            f"ORDER BY changed_us DESC LIMIT {MAX_REMEMBERED})",
            [now_us, now_us, now_us - REMEMBER_S * _US],
        ).fetchall()
        return [_entry(Row(*row)) for row in sorted(rows, key=_changed_at)]


def _changed_at(row: tuple[Any, ...]) -> Any:
    return row[-1]


def _row(control: Reserve, offset: int) -> Row:
    return Row(
        id=control.id,
        key=control.key,
        digest=control.digest,
        decision=control.decision,
        at_us=control.at_us,
        expires_us=control.expires_us,
        told=orjson.dumps(control.told).decode(),
        model=control.model,
        costs=orjson.dumps(told_costs(control.costs.costs())).decode(),
        trace_id=control.trace_id,
        response_id=None,
        place_offset=offset,
        changed_us=control.at_us,
    )


def _entry(row: Row) -> dict[str, Any]:
    """A reservation as the front takes it (`billing.reservation_hold.Hold.of`)."""
    entry = {
        "id": row.id,
        "key": row.key,
        "digest": row.digest,
        "decision": row.decision,
        "told": orjson.loads(row.told),
        "model": row.model,
        "costs": orjson.loads(row.costs),
        "at_us": row.at_us,
        "expires_us": row.expires_us,
        "trace_id": row.trace_id,
        "matched": row.call_id is not None,
        "released": row.released,
    }
    if row.settlement is not None:
        settle = Settle.model_validate_json(row.settlement)
        entry["settled"] = {
            "number": settle.number,
            "digest": settle.digest,
            "costs": told_costs(settle.costs.costs()),
            "final": settle.final,
        }
    return entry


def _mark(row: Row) -> dict[str, Any]:
    return {
        "id": row.id,
        "number": row.number,
        "matched": row.call_id is not None,
        "released": row.released,
    }


def _settled_call(row: Row) -> SettledCall:
    settle = Settle.model_validate_json(row.settlement or "")
    return SettledCall(
        reservation_id=row.id,
        told=orjson.loads(row.told),
        asked_model=row.model,
        started_us=settle.started_us,
        ended_us=settle.at_us,
        usage=settle.usage,
        usd=settle.usd,
        model=settle.model,
        provider=settle.provider,
        trace_id=row.trace_id,
        response_id=row.response_id,
        revision=row.revision,
    )


@cache
def _no_calls(*, superseded: bool = False) -> pl.DataFrame:
    columns = tables.names(tables.LEDGER_CALLS) + (["superseded_by"] if superseded else [])
    return pl.DataFrame(schema=dict.fromkeys(columns, pl.Null()))


def _retired(batch: _Batch, heirs: dict[str, str]) -> set[str]:
    """Calls that were removed and that no other call has taken in: their records tell of no call any more."""
    if batch.removed is None or batch.written is None or batch.removed.is_empty():
        return set()
    gone = batch.removed["call_id"].to_list()
    return set(gone) - set(batch.written["call_id"].to_list()) - heirs.keys()


def _claims(fused: pl.DataFrame | None, written: pl.DataFrame | None) -> tuple[list[Claim], dict[str, str]]:
    """The calls written, with what their records name; and calls that are part of another now."""
    if fused is None or written is None or fused.is_empty():
        return [], {}
    ids = fused.select(call_id("id_hi", "id_lo").alias("call_id")).to_series()
    told = fused.select("group", "role", "reservation_id", "journal_offset").with_columns(
        ids, ids.gather(fused["group"]).alias("of")
    )
    calls = (
        told.filter(pl.col("role") == COUNTED)
        .group_by("of")
        .agg(pl.col("reservation_id").drop_nulls().min(), pl.col("journal_offset").min())
    )
    named = written.select("call_id", "response_id", "trace_id", "started_at").join(
        calls, left_on="call_id", right_on="of"
    )
    claims = [
        Claim(call, reservation, response, trace, offset, started_us=started)
        for call, response, trace, started, reservation, offset in named.with_columns(
            pl.col("started_at").dt.epoch("us")
        ).iter_rows()
    ]
    moved = told.filter(pl.col("call_id") != pl.col("of")).select("call_id", "of")
    return claims, dict(moved.iter_rows())
