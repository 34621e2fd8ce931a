"""The ledger's side of budgets: definitions, their spend and what happened to them, in the ledger's own
tables.

Every commit appends the changes of spend it makes to `budget_spend`, in the same transaction, so that
spend is exactly as durable as the calls, a restart or a publication sums a few rows instead of counting
history, and the front can be told the same changes. What is unreadable among the control records goes to
`rejects`.

One `SpendFeed` serves one ledger; all of it runs in the thread that writes:

    feed = SpendFeed(connection, epoch=journal_epoch)
    front.send(feed.snapshot(position=position, now=now))      # once, before the first commit
    with transaction:
        ... write the calls ...
        feed.apply_controls(controls)                           # definitions, reservations, events
        feed.claim(fused, written)                              # which reservations the calls may settle
        gone, come = feed.settle(pricing, now=now)              # settlements in `calls`, to be (un)written
        message = feed.delta(before=removed, after=written, position=position, now=now)
    feed.committed()                                            # or, when it failed, feed.rolled_back()
    front.send(message)

`publish` copies budgets, their figures and the events into the published file; it may run in another
thread on a cursor of its own.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal
from functools import lru_cache
from typing import Any

import duckdb
import polars as pl

from billing.budget import (
    EXACT,
    Budget,
    BudgetEvent,
    BudgetFigures,
    ControlError,
    DeleteBudget,
    PutBudget,
    RecordEvent,
    decimal_text,
)
from billing.budget_period import epoch_s
from billing.budget_spend import spend_of, window_starts
from billing.charges import Pricing
from billing.reservation import decode_controls
from billing.reservation_ledger import DDL as RESERVATIONS_DDL
from billing.reservation_ledger import ReservationLedger
from billing.spend_count import Change, Definition, compile_scopes, deltas, floor_of, recount
from billing.tables import MONEY_SUM, Column, create_table

__all__ = [
    "BUDGETS",
    "BUDGET_EVENTS",
    "DDL",
    "SpendFeed",
    "load_definitions",
    "load_spend",
    "publish",
    "published_ddl",
]


def _columns(*rows: tuple[str, str, str]) -> tuple[Column, ...]:
    return tuple(Column(*row) for row in rows)


BUDGETS = _columns(
    ("id", "VARCHAR", "the budget"),
    ("scope", "VARCHAR", "JSON: what it covers; {} is everything"),
    ("meter", "VARCHAR", "'billed_usd', 'list_usd', 'tokens' or 'calls'"),
    ("limit_amount", MONEY_SUM, "the limit, in the meter's unit"),
    (
        "period",
        "VARCHAR",
        "'minute', 'hour', 'day', 'week', 'month', 'total', 'rolling:<n>m|h|d' or 'first_use:<n>m|h|d'",
    ),
    ("time_zone", "VARCHAR", "IANA zone in which the period begins"),
    ("thresholds", "VARCHAR", "JSON: fractions of the limit and what happens when spend passes them"),
    ("on_unpriced", "VARCHAR", "what a check gets whose cost is not known: 'deny', 'allow' or 'dearest'"),
    ("spent", MONEY_SUM, "recorded spend of the present period, in the meter's unit"),
    ("remaining", MONEY_SUM, "limit_amount - spent; negative when overspent"),
    ("unpriced_calls", "BIGINT", "calls of the period whose cost or tokens are unknown: not in spent"),
    (
        "resets_at",
        "TIMESTAMPTZ",
        "end of the period; of a rolling window, when its oldest spend leaves; NULL: never",
    ),
    ("as_of", "TIMESTAMPTZ", "the moment the figures are of"),
    ("per_call", MONEY_SUM, "the most that one call may need, in the meter's unit; NULL: no such limit"),
    ("shadow", "BOOLEAN", "whether it only watches: decides and records, and denies nobody"),
    ("origin", "VARCHAR", "'api', or 'settings': the operator's, changed in the settings file alone"),
)

BUDGET_EVENTS = _columns(
    ("number", "BIGINT", "1, 2, ... in the order recorded"),
    ("happened_at", "TIMESTAMPTZ", "when it happened"),
    ("source", "VARCHAR", "'check': a check was answered so; 'spend': recorded spend passed a threshold"),
    ("decision", "VARCHAR", "'deny', 'warn' or 'notify'"),
    ("budget_id", "VARCHAR", "the budget that decided; an event of several budgets has a row for each"),
    ("threshold", "DECIMAL(9,6)", "the fraction of the limit that was passed"),
    ("meter", "VARCHAR", "as in budgets"),
    ("limit_amount", MONEY_SUM, "the limit at that moment"),
    ("period", "VARCHAR", "as in budgets"),
    ("spent", MONEY_SUM, "recorded spend at that moment"),
    ("reserved", MONEY_SUM, "held by reservations at that moment"),
    ("estimate", MONEY_SUM, "what the check would have added, in the meter's unit; NULL if not known"),
    ("unpriced_calls", "BIGINT", "as in budgets, at that moment"),
    ("resets_at", "TIMESTAMPTZ", "as in budgets, at that moment"),
    ("estimate_usd", MONEY_SUM, "what the checked call was expected to be billed"),
    ("scope", "VARCHAR", "JSON: the scope of the check"),
    ("model", "VARCHAR", "the model of the check"),
    ("trace_id", "VARCHAR", "the trace of the check"),
    ("reason", "VARCHAR", "the reason given"),
    ("shadow", "BOOLEAN", "whether the budget only watches: it would have decided so"),
)

_PLACE = _columns(
    ("journal_epoch", "VARCHAR", "the journal of the record"),
    ("journal_offset", "BIGINT", "position after the record in that journal"),
)
_DEFINITIONS = (
    *_columns(("id", "VARCHAR", "the budget"), ("definition", "VARCHAR", "JSON; NULL: deleted")),
    *_PLACE,
)
_SPEND = _columns(
    ("id", "VARCHAR", "the budget"),
    ("bucket_s", "BIGINT", "start of the period, or minute of a rolling window, in seconds since 1970"),
    ("amount", MONEY_SUM, "change of spend, in the meter's unit"),
    ("unpriced", "BIGINT", "change of the number of calls whose cost or tokens are unknown"),
)

DDL = (
    create_table("budget_definitions", _DEFINITIONS),
    create_table("budget_spend", _SPEND),
    create_table("budget_events", (*BUDGET_EVENTS[:-1], *_PLACE)),
    "ALTER TABLE budget_events ADD COLUMN IF NOT EXISTS shadow BOOLEAN",
    *RESERVATIONS_DDL,
)
"""Tables of the ledger. A deleted budget keeps its row in budget_definitions, so that an older record of
it that comes again stays without effect. Rows of budget_spend are changes; their sum is the spend."""

REMEMBERED_DEFINITIONS = 32_768
COMPACT_ROWS = 100_000  # budget_spend is summed up when it has grown by so many rows


_TYPES: dict[str, pl.DataType] = {
    "VARCHAR": pl.String(),
    "BIGINT": pl.Int64(),
    "BOOLEAN": pl.Boolean(),
    "TIMESTAMPTZ": pl.Datetime("us", "UTC"),
    "DECIMAL(9,6)": pl.Decimal(38, 12),
    MONEY_SUM: pl.Decimal(38, 12),
}
_ROUNDING = Context(prec=60, rounding=ROUND_HALF_EVEN)
_PLACES = Decimal("1e-12")


@contextmanager
def _registered(con: duckdb.DuckDBPyConnection, name: str, frame: pl.DataFrame) -> Iterator[None]:
    con.register(name, frame.to_arrow())
    try:
        yield
    finally:
        con.unregister(name)


def _named(con: duckdb.DuckDBPyConnection, budget_ids: Collection[str]) -> AbstractContextManager[None]:
    """The ids as the table `named`; as a list parameter the client looks for pandas again for every one."""
    return _registered(con, "named", pl.DataFrame({"id": list(budget_ids)}, schema={"id": pl.String}))


def _insert(
    con: duckdb.DuckDBPyConnection, table: str, columns: Sequence[Column], rows: Sequence[tuple[Any, ...]]
) -> None:
    if not rows:
        return
    schema = {column.name: _TYPES[column.type] for column in columns}
    with _registered(con, "budget_rows", pl.DataFrame(rows, schema=schema, orient="row")):
        con.execute(f"INSERT INTO {table} BY NAME SELECT * FROM budget_rows")


# --- definitions ------------------------------------------------------------------------------------------


def load_definitions(con: duckdb.DuckDBPyConnection, *, epoch: str) -> dict[str, Definition]:
    """The budgets by id; those defined in an earlier journal are older than any position of this one."""
    rows = con.execute(
        "SELECT id, definition, CASE WHEN journal_epoch = ? THEN journal_offset ELSE 0 END "
        "FROM budget_definitions WHERE definition IS NOT NULL ORDER BY id",
        [epoch],
    ).fetchall()
    return {budget_id: Definition(_defined(text), offset) for budget_id, text, offset in rows}


@lru_cache(maxsize=REMEMBERED_DEFINITIONS)
def _defined(text: str) -> Budget:
    """A stored definition; every publication reads them all, and they seldom change."""
    return Budget.model_validate_json(text)


Told = dict[str, tuple[Budget | None, int]]  # id -> definition (None: deleted) and its journal offset


def _newest(
    con: duckdb.DuckDBPyConnection, told: Sequence[tuple[str, Budget | None, int]], *, epoch: str
) -> Told:
    """Of definitions in order of their offsets the last of each budget, unless it or a later one is known."""
    query = (
        "SELECT id, journal_offset FROM budget_definitions SEMI JOIN named USING (id) WHERE journal_epoch = ?"
    )
    with _named(con, [budget_id for budget_id, _, _ in told]):
        known = con.execute(query, [epoch]).fetchall()
    offsets: dict[str, int] = dict(known)
    newest: Told = {}
    for budget_id, budget, offset in told:
        if offset > offsets.get(budget_id, -1):
            newest[budget_id], offsets[budget_id] = (budget, offset), offset
    return newest


def _write_definitions(con: duckdb.DuckDBPyConnection, newest: Told, *, epoch: str) -> None:
    rows = [
        (budget_id, None if budget is None else budget.model_dump_json(), epoch, offset)
        for budget_id, (budget, offset) in newest.items()
    ]
    with _named(con, newest):
        con.execute("DELETE FROM budget_definitions WHERE id IN (SELECT id FROM named)")
    _insert(con, "budget_definitions", _DEFINITIONS, rows)


def _reject(con: duckdb.DuckDBPyConnection, offset: int, error: ControlError) -> None:
    con.execute(
        "INSERT INTO rejects (journal_offset, signal, reason, received_at) VALUES (?, 'control', ?, ?)",
        [offset, f"{error.code}: {error}", datetime.now(UTC)],
    )


# --- events -----------------------------------------------------------------------------------------------


def _write_events(
    con: duckdb.DuckDBPyConnection, events: Sequence[tuple[int, BudgetEvent]], *, epoch: str
) -> None:
    """Appends one row per event and budget, unless that record is there already."""
    if not events:
        return
    offsets = [offset for offset, _ in events]
    found = con.execute(
        "SELECT journal_offset FROM budget_events WHERE journal_epoch = ? AND journal_offset BETWEEN ? AND ?",
        [epoch, min(offsets), max(offsets)],
    ).fetchall()
    known = {offset for (offset,) in found}
    rows = [
        row for offset, event in events if offset not in known for row in _event_rows(event, (epoch, offset))
    ]
    number = _one(con, "SELECT coalesce(max(number), 0) FROM budget_events")
    numbered = [(number + i, *row) for i, row in enumerate(rows, start=1)]
    _insert(con, "budget_events", (*BUDGET_EVENTS[:-1], *_PLACE, BUDGET_EVENTS[-1]), numbered)


def _one(con: duckdb.DuckDBPyConnection, query: str) -> int:
    row = con.execute(query).fetchone()
    return int(row[0]) if row else 0


def _event_rows(event: BudgetEvent, place: tuple[str, int]) -> list[tuple[Any, ...]]:
    scope = _json(event.scope.model_dump(mode="json"))
    ending = (_money(event.estimate_usd), scope, event.model, event.trace_id, event.reason, *place)
    return [
        (event.at, event.source, _decision(event, each), *_figures(each), *ending, each.shadow)
        for each in event.budgets
    ]


def _decision(event: BudgetEvent, of: BudgetFigures) -> str:
    return of.action or event.decision if of.shadow else event.decision


def _figures(told: BudgetFigures) -> tuple[Any, ...]:
    return (
        *(told.id, _money(told.threshold), told.meter, _money(told.limit), told.period),
        *(
            _money(told.spent),
            _money(told.reserved),
            _money(told.estimate),
            told.unpriced_calls,
            told.resets_at,
        ),
    )


def _money(text: str | None) -> Decimal | None:
    """The amount at the scale of the columns, rounded half to even should it have more places."""
    return None if text is None else _ROUNDING.quantize(Decimal(text), _PLACES)


def _json(told: object) -> str:
    return json.dumps(told, sort_keys=True, ensure_ascii=False)


# --- spend ------------------------------------------------------------------------------------------------

Buckets = dict[str, list[tuple[int, Decimal, int]]]


def load_spend(con: duckdb.DuckDBPyConnection) -> Buckets:
    """Recorded spend: budget id -> (bucket_s, amount, unpriced), in order of buckets."""
    rows = con.execute(
        "SELECT id, bucket_s, sum(amount), sum(unpriced)::BIGINT FROM budget_spend GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    spend: Buckets = defaultdict(list)
    for budget_id, *bucket in rows:
        spend[budget_id].append((bucket[0], bucket[1], bucket[2]))
    return spend


def _append_spend(con: duckdb.DuckDBPyConnection, changes: Sequence[Change]) -> None:
    rows = [(each.definition.budget.id, each.bucket_s, each.amount, each.unpriced) for each in changes]
    _insert(con, "budget_spend", _SPEND, rows)


def _forget_spend(con: duckdb.DuckDBPyConnection, budget_ids: Sequence[str]) -> None:
    with _named(con, budget_ids):
        con.execute("DELETE FROM budget_spend WHERE id IN (SELECT id FROM named)")


def _compact(con: duckdb.DuckDBPyConnection, definitions: Collection[Definition], *, now: datetime) -> None:
    """Sums the changes up, and drops buckets that can never count again."""
    spend = load_spend(con)
    floors = {
        each.budget.id: _floor_s(each.budget, spend.get(each.budget.id, ()), now) for each in definitions
    }
    kept = [
        Change(each, *bucket)
        for each in definitions
        for bucket in spend.get(each.budget.id, ())
        if bucket[0] >= floors[each.budget.id]
    ]
    con.execute("DELETE FROM budget_spend")
    _append_spend(con, kept)


def _floor_s(budget: Budget, buckets: Sequence[tuple[int, Decimal, int]], now: datetime) -> int:
    """From when on buckets are kept. Windows from first use are kept whole, or later ones would move."""
    period = budget.parsed_period()
    floor = epoch_s(floor_of(period, now))
    if period.kind != "first_use":
        return floor
    used = [bucket_s for bucket_s, *counted in buckets if any(counted)]
    starts = window_starts(used, period.window_s)
    return next((start for start in starts if start + period.window_s >= floor), floor)


# --- the feed ---------------------------------------------------------------------------------------------


class SpendFeed:
    """Keeps spend equal to the calls, commit by commit, and says what has changed (see
    billing.budget_book).
    """

    def __init__(self, con: duckdb.DuckDBPyConnection, *, epoch: str, news_until: int = 0) -> None:
        self._con = con
        self._epoch = epoch
        self._seq = 0
        self._reservations = ReservationLedger(con, news_until=news_until)
        self._load()

    def _load(self) -> None:
        self._definitions = load_definitions(self._con, epoch=self._epoch)
        self._scopes = compile_scopes(self._definitions.values())
        self._changed: set[str] = set()
        self._grown = _one(self._con, "SELECT count(*) FROM budget_spend")

    def snapshot(self, *, position: int, now: datetime) -> dict[str, Any]:
        """The whole state as of the committed journal position, as a message."""
        spend = load_spend(self._con)
        entries = [_entry(each, spend.get(budget_id, ())) for budget_id, each in self._definitions.items()]
        return {
            "seq": self._seq,
            "offset": position,
            "at_s": epoch_s(now),
            "budgets": entries,
            "holds": self._reservations.snapshot(now=now),
        }

    def apply_controls(self, controls: Iterable[tuple[int, bytes]]) -> None:
        """Applies control records (journal offset, body), each once, whatever comes again."""
        told: list[tuple[str, Budget | None, int]] = []
        events: list[tuple[int, BudgetEvent]] = []
        for offset, body in controls:
            try:
                decoded = decode_controls(body)
            except ControlError as error:
                _reject(self._con, offset, error)
                continue
            for control in decoded:
                if isinstance(control, PutBudget):
                    told.append((control.budget.id, control.budget, offset))
                elif isinstance(control, DeleteBudget):
                    told.append((control.budget_id, None, offset))
                elif isinstance(control, RecordEvent):
                    events.append((offset, control.event))
                else:
                    self._reservations.take(offset, control)
        if told:
            self._define(_newest(self._con, told, epoch=self._epoch))
        _write_events(self._con, events, epoch=self._epoch)

    def claim(self, fused: pl.DataFrame, written: pl.DataFrame, removed: pl.DataFrame) -> None:
        """The calls that this transaction has written and removed, fused from these observations."""
        self._reservations.claim(fused, written, removed)

    def revised(self, written: pl.DataFrame) -> None:
        """Rows of `calls` that a job has charged again, settlements among them."""
        self._reservations.revised(written.filter(pl.col("basis") == "settlement")["call_id"].to_list())

    def settle(self, pricing: Pricing, *, now: datetime) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Holds calls and controls against the reservations: settlements to be taken out of `calls` (with
        `superseded_by`), and those to be written.
        """
        return self._reservations.settle(pricing, now=now)

    def _define(self, newest: Told) -> None:
        _write_definitions(self._con, newest, epoch=self._epoch)
        self._changed |= newest.keys()
        for budget_id, (budget, offset) in newest.items():
            if budget is None:
                self._definitions.pop(budget_id, None)
            else:
                self._definitions[budget_id] = Definition(budget, offset)

    def delta(
        self, *, before: pl.DataFrame | None, after: pl.DataFrame | None, position: int, now: datetime
    ) -> dict[str, Any]:
        """Records the change of spend of this transaction and returns its message; call it once the calls
        are written.

        A budget defined in this transaction comes with its whole spend, counted from the calls already there.
        """
        defined, deleted = self._take_changed(now)
        fresh = {entry["budget"]["id"] for entry in defined}
        changes = [
            each
            for each in deltas(self._scopes, before=before, after=after)
            if each.definition.budget.id not in fresh
        ]
        _append_spend(self._con, changes)
        self._compact_when_grown(len(changes), now)
        return {
            "seq": self._seq + 1,
            "offset": position,
            "at_s": epoch_s(now),
            "changes": [_change(each) for each in changes],
            "defined": defined,
            "deleted": deleted,
            **self._reservations.delta(),
        }

    def _compact_when_grown(self, rows: int, now: datetime) -> None:
        self._grown += rows
        if self._grown > COMPACT_ROWS:
            _compact(self._con, self._definitions.values(), now=now)
            self._grown = 0

    def _take_changed(self, now: datetime) -> tuple[list[dict[str, Any]], list[str]]:
        """Counts the budgets that are new or changed; returns their entries and the ids of those deleted."""
        if not self._changed:
            return [], []
        fresh = [self._definitions[each] for each in sorted(self._changed & self._definitions.keys())]
        deleted = sorted(self._changed - self._definitions.keys())
        self._scopes.remove(deleted)
        self._scopes.enter(fresh)
        _forget_spend(self._con, sorted(self._changed))
        counted = recount(self._con, compile_scopes(fresh), now=now)
        _append_spend(self._con, counted)
        self._changed = set()
        return _entries(fresh, counted), deleted

    def committed(self) -> None:
        """The transaction of the last delta is committed."""
        self._seq += 1

    def rolled_back(self) -> None:
        """The transaction failed: nothing of it holds."""
        self._reservations.load()
        self._load()


def _entries(definitions: Sequence[Definition], counted: Iterable[Change]) -> list[dict[str, Any]]:
    buckets: Buckets = defaultdict(list)
    for each in counted:
        buckets[each.definition.budget.id].append((each.bucket_s, each.amount, each.unpriced))
    return [_entry(each, sorted(buckets.get(each.budget.id, ()))) for each in definitions]


def _entry(definition: Definition, buckets: Sequence[tuple[int, Decimal, int]]) -> dict[str, Any]:
    spend = [
        {"bucket_s": bucket_s, "amount": decimal_text(amount), "unpriced": unpriced}
        for bucket_s, amount, unpriced in buckets
    ]
    return {"budget": definition.budget.model_dump(mode="json"), "offset": definition.offset, "spend": spend}


def _change(change: Change) -> dict[str, Any]:
    return {
        "budget": change.definition.budget.id,
        "defined": change.definition.offset,
        "bucket_s": change.bucket_s,
        "amount": decimal_text(change.amount),
        "unpriced": change.unpriced,
    }


# --- the published file -----------------------------------------------------------------------------------


def published_ddl(schema: str) -> list[str]:
    """Statements that lay out `budgets` and `budget_events` in the published file attached as `schema`."""
    added = (("budgets", BUDGETS[-3:]), ("budget_events", BUDGET_EVENTS[-1:]))
    return [
        create_table(f"{schema}.budgets", BUDGETS),
        create_table(f"{schema}.budget_events", BUDGET_EVENTS),
        *(
            f"ALTER TABLE {schema}.{table} ADD COLUMN IF NOT EXISTS {column.name} {column.type}"
            for table, columns in added
            for column in columns
        ),
    ]


def publish(con: duckdb.DuckDBPyConnection, schema: str, *, now: datetime | None = None) -> None:
    """Writes the budgets with their figures of now, and the events not yet there, inside the caller's
    transaction.
    """
    rows = _published_rows(con, now or datetime.now(UTC))
    con.execute(f"DELETE FROM {schema}.budgets")
    _insert(con, f"{schema}.budgets", BUDGETS, rows)
    columns = ", ".join(column.name for column in BUDGET_EVENTS)
    con.execute(
        f"INSERT INTO {schema}.budget_events BY NAME SELECT {columns} FROM budget_events "
        f"WHERE number > (SELECT coalesce(max(number), 0) FROM {schema}.budget_events) ORDER BY number"
    )


def _published_rows(con: duckdb.DuckDBPyConnection, now: datetime) -> list[tuple[Any, ...]]:
    spend = load_spend(con)
    rows = con.execute(
        "SELECT id, definition FROM budget_definitions WHERE definition IS NOT NULL ORDER BY id"
    ).fetchall()
    return [_published_row(text, spend.get(budget_id, ()), now) for budget_id, text in rows]


def _published_row(text: str, buckets: Sequence[tuple[int, Decimal, int]], now: datetime) -> tuple[Any, ...]:
    budget, told, more = _published_definition(text)
    spend = spend_of(budget.parsed_period())
    for bucket in buckets:
        spend.add(*bucket)
    spend.roll(now)
    left = EXACT.subtract(budget.limit, spend.amount)
    return *told, spend.amount, left, spend.unpriced, spend.resets_at(), now, *more


@lru_cache(maxsize=REMEMBERED_DEFINITIONS)
def _published_definition(text: str) -> tuple[Budget, tuple[Any, ...], tuple[Any, ...]]:
    """A stored definition with the columns before and after its figures."""
    budget = _defined(text)
    scope = _json(budget.scope.model_dump(mode="json"))
    thresholds = _json([each.model_dump(mode="json") for each in budget.thresholds])
    told = (budget.id, scope, budget.meter, budget.limit, budget.period, budget.time_zone)
    return budget, (*told, thresholds, budget.on_unpriced), (budget.per_call, budget.shadow, budget.origin)
