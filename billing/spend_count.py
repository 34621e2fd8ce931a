"""Which calls count in which budget: spend as exact changes of a commit, and counted anew from the calls.

Each commit's removed and written rows of `calls` become the change of spend of every budget they fall
under, in columns: cost follows the rows of the commit, not the calls stored. `recount` computes the same
figures from `calls` itself, for a budget that is new; a test holds the two equal. A call counts in the
period of its start, however late it comes and however often it is revised. A cost that is NULL is counted
as an unpriced call, never as 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import duckdb
import polars as pl

from billing.budget import DIMENSIONS, LABEL_PREFIX, Budget
from billing.budget_period import EPOCH, MAX_WINDOW_S, MINUTE_S, Period, bounds, epoch_s, period_start

__all__ = ["Change", "Definition", "Scopes", "compile_scopes", "deltas", "floor_of", "recount"]

_MONEY_SUM = pl.Decimal(38, 12)
_EPSILON = timedelta(microseconds=1)
_MAX_CHUNKS = 16


@dataclass(frozen=True, slots=True)
class Definition:
    """A budget and the journal offset of the record that defined it so (0: in an earlier journal)."""

    budget: Budget
    offset: int


@dataclass(frozen=True, slots=True)
class Change:
    """By how much a budget's spend of one bucket changes; the bucket is known by its start, in seconds."""

    definition: Definition
    bucket_s: int
    amount: Decimal
    unpriced: int


# --- which calls count in which budget --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """The budgets whose scopes name the same dimensions.

    `members` has one row per budget: d0.. (the scope's values, in order of `dims`), number u32 (its place in
    `Scopes.definitions`), clock u32 (place in `Scopes.clocks`), meter.
    """

    dims: tuple[str, ...]
    members: pl.DataFrame


class Scopes:
    """Budgets, arranged for joins; one that comes or goes costs no pass over the others.

    `definitions` knows each by a number of its own, `clocks` what decides the bucket of a call.
    """

    __slots__ = ("_clocks", "_numbers", "_plans", "_serial", "clocks", "definitions")

    def __init__(self) -> None:
        self.definitions: dict[int, Definition] = {}
        self.clocks: list[Period] = []
        self._clocks: dict[Period, int] = {}
        self._numbers: dict[str, int] = {}
        self._plans: dict[tuple[str, ...], pl.DataFrame] = {}
        self._serial = 0

    @property
    def plans(self) -> list[Plan]:
        """The budgets by the dimensions their scopes name."""
        return [Plan(dims, members) for dims, members in self._plans.items()]

    def enter(self, definitions: Iterable[Definition]) -> None:
        """Takes in budgets, each in the place of the one that has its id."""
        told = list(definitions)
        self.remove(each.budget.id for each in told)
        rows: dict[tuple[str, ...], list[tuple[Any, ...]]] = {}
        for definition in told:
            dims, row = self._row(definition)
            rows.setdefault(dims, []).append(row)
        for dims, fresh in rows.items():
            known = self._plans.get(dims)
            members = _members(dims, fresh)
            joined = members if known is None else pl.concat([known, members])
            self._plans[dims] = joined.rechunk() if joined.n_chunks() > _MAX_CHUNKS else joined

    def remove(self, budget_ids: Iterable[str]) -> None:
        """Takes budgets out; one that is not there is no error."""
        gone: dict[tuple[str, ...], list[int]] = {}
        for budget_id in budget_ids:
            number = self._numbers.pop(budget_id, None)
            if number is not None:
                dims = tuple(sorted(self.definitions.pop(number).budget.scope.dimensions()))
                gone.setdefault(dims, []).append(number)
        for dims, numbers in gone.items():
            left = self._plans[dims].filter(~pl.col("number").is_in(numbers))
            self._plans[dims] = left
            if left.is_empty():
                del self._plans[dims]

    def _row(self, definition: Definition) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        budget = definition.budget
        number, self._serial = self._serial, self._serial + 1
        self.definitions[number], self._numbers[budget.id] = definition, number
        told = budget.scope.dimensions()
        dims = tuple(sorted(told))
        return dims, (*(told[dim] for dim in dims), number, self._clock(budget), budget.meter)

    def _clock(self, budget: Budget) -> int:
        period = _clock(budget)
        if period not in self._clocks:
            self._clocks[period] = len(self.clocks)
            self.clocks.append(period)
        return self._clocks[period]


def compile_scopes(definitions: Iterable[Definition]) -> Scopes:
    """Arranges budgets by the dimensions their scopes name."""
    scopes = Scopes()
    scopes.enter(definitions)
    return scopes


def _clock(budget: Budget) -> Period:
    """Minutes, and windows of any length, share the minutes; totals everything."""
    period = budget.parsed_period()
    if period.kind in ("minute", "rolling", "first_use"):
        return Period("minute", UTC)
    return Period("total", UTC) if period.kind == "total" else period


def _members(dims: tuple[str, ...], rows: list[tuple[Any, ...]]) -> pl.DataFrame:
    schema = {**_keys(dims), "number": pl.UInt32(), "clock": pl.UInt32(), "meter": pl.String()}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _keys(dims: tuple[str, ...]) -> dict[str, pl.DataType]:
    return {f"d{i}": pl.String() for i in range(len(dims))}


# --- the change of one commit -----------------------------------------------------------------------------

_LABELS = pl.List(pl.Struct({"key": pl.String, "value": pl.String}))
_AMOUNTS = ("billed_usd", "list_usd", "tokens", "calls")


def deltas(scopes: Scopes, *, before: pl.DataFrame | None, after: pl.DataFrame | None) -> list[Change]:
    """The exact change of spend when the rows `before` of `calls` are replaced by the rows `after`.

    One change per budget and bucket, in that order; those that change nothing are left out.
    """
    measured = [
        _measured(rows, sign) for rows, sign in ((before, -1), (after, 1)) if rows is not None and len(rows)
    ]
    if not measured or not scopes.plans:
        return []
    calls = pl.concat(measured)
    return _changes(scopes, pl.concat([_matched(calls, plan) for plan in scopes.plans]))


_MATCHED: dict[str, pl.DataType] = {
    "number": pl.UInt32(),
    "clock": pl.UInt32(),
    "minute_s": pl.Int64(),
    "amount": _MONEY_SUM,
    "unpriced": pl.Int64(),
}


def _changes(scopes: Scopes, matched: pl.DataFrame) -> list[Change]:
    """Sums matched amounts by budget and bucket."""
    changed = (
        matched.join(_buckets(matched, scopes.clocks), on=["clock", "minute_s"])
        .group_by("number", "bucket_s")
        .agg(pl.col("amount", "unpriced").sum())
        .filter((pl.col("amount") != 0) | (pl.col("unpriced") != 0))
    )
    return [Change(scopes.definitions[n], *rest) for n, *rest in changed.sort("number", "bucket_s").rows()]


def _measured(rows: pl.DataFrame, sign: int) -> pl.DataFrame:
    """The rows with minute_s, and for each meter its amount and how many of its parts are unknown, signed."""
    if rows["started_at"].null_count():
        raise ValueError("a call without a start counts in no period")
    tokens = ("input_tokens", "output_tokens")
    return rows.select(
        *DIMENSIONS,
        pl.col("labels").cast(_LABELS),
        (pl.col("started_at").dt.epoch("s") // MINUTE_S * MINUTE_S).alias("minute_s"),
        *_meter("billed_usd", "billed_cost_usd", sign=sign),
        *_meter("list_usd", "list_cost_usd", sign=sign),
        *_meter("tokens", *tokens, sign=sign),
        *_meter("calls", "call_count", sign=sign),
    )


def _meter(meter: str, *columns: str, sign: int) -> tuple[pl.Expr, pl.Expr]:
    known = [pl.col(column).cast(_MONEY_SUM).fill_null(Decimal(0)) for column in columns]
    unknown = pl.any_horizontal(pl.col(column).is_null() for column in columns).cast(pl.Int64)
    amount = pl.sum_horizontal(known) if len(known) > 1 else known[0]
    return (amount if sign > 0 else -amount).alias(meter), (unknown * sign).alias(f"{meter}_unpriced")


def _matched(calls: pl.DataFrame, plan: Plan) -> pl.DataFrame:
    """number, clock, minute_s, amount, unpriced: one row per call and budget of the plan that it falls
    under.
    """
    keys = list(_keys(plan.dims))
    wanted = calls.with_columns(_dimension(dim).alias(key) for key, dim in zip(keys, plan.dims, strict=True))
    matched = wanted.join(plan.members, on=keys) if keys else wanted.join(plan.members, how="cross")
    chosen = matched.with_columns(_of_meter("").alias("amount"), _of_meter("_unpriced").alias("unpriced"))
    return chosen.select(list(_MATCHED))


def _dimension(dim: str) -> pl.Expr:
    """The call's value in a dimension; NULL matches no budget."""
    if not dim.startswith(LABEL_PREFIX):
        return pl.col(dim)
    label = pl.element().struct.field("key") == dim.removeprefix(LABEL_PREFIX)
    return pl.col("labels").list.filter(label).list.first().struct.field("value")


def _of_meter(suffix: str) -> pl.Expr:
    first, *others = _AMOUNTS
    chosen: pl.Expr = pl.col(first + suffix)
    for meter in others:
        chosen = pl.when(pl.col("meter") == meter).then(pl.col(meter + suffix)).otherwise(chosen)
    return chosen


def _buckets(matched: pl.DataFrame, clocks: Sequence[Period]) -> pl.DataFrame:
    """clock, minute_s -> bucket_s. Asked once per distinct minute, of the same function that the front
    asks.
    """
    distinct = matched.select("clock", "minute_s").unique()
    starts = [
        epoch_s(period_start(clocks[clock], EPOCH + timedelta(seconds=minute_s)))
        for clock, minute_s in distinct.iter_rows()
    ]
    return distinct.with_columns(pl.Series("bucket_s", starts, pl.Int64))


# --- the same figures from the calls themselves -----------------------------------------------------------


def recount(con: duckdb.DuckDBPyConnection, scopes: Scopes, *, now: datetime) -> list[Change]:
    """Spend by budget and bucket from `calls`, of every period that may still be asked for.

    That is the present period, the one before and any later one; of a rolling window its minutes.
    """
    if not scopes.plans:
        return []
    matched = pl.concat([_counted(con, plan, scopes, now=now) for plan in scopes.plans])
    return _changes(scopes, matched)


_COUNT_SQL = """
    SELECT b.number, b.clock,
        CASE WHEN b.minutes THEN epoch_us(c.started_at) // 60000000 * 60 ELSE 0 END AS minute_s,
        sum(CASE b.meter
            WHEN 'billed_usd' THEN coalesce(c.billed_cost_usd, 0)::DECIMAL(38,12)
            WHEN 'list_usd' THEN coalesce(c.list_cost_usd, 0)::DECIMAL(38,12)
            WHEN 'tokens' THEN coalesce(c.input_tokens, 0)::DECIMAL(38,12) + coalesce(c.output_tokens, 0)
            ELSE coalesce(c.call_count, 0)::DECIMAL(38,12) END)::DECIMAL(38,12) AS amount,
        count(*) FILTER (CASE b.meter
            WHEN 'billed_usd' THEN c.billed_cost_usd IS NULL
            WHEN 'list_usd' THEN c.list_cost_usd IS NULL
            WHEN 'tokens' THEN c.input_tokens IS NULL OR c.output_tokens IS NULL
            ELSE c.call_count IS NULL END) AS unpriced
    FROM calls c JOIN budget_members b ON {matches}
    WHERE c.started_at >= $lowest AND c.started_at >= b.floor
    GROUP BY ALL
"""


def _counted(con: duckdb.DuckDBPyConnection, plan: Plan, scopes: Scopes, *, now: datetime) -> pl.DataFrame:
    """number, clock, minute_s, amount, unpriced of one plan's budgets; a total needs no minutes."""
    periods = [scopes.definitions[number].budget.parsed_period() for number in plan.members["number"]]
    floors = [floor_of(period, now) for period in periods]
    members = plan.members.with_columns(
        pl.Series("floor", floors, pl.Datetime("us", "UTC")),
        pl.Series("minutes", [period.kind != "total" for period in periods], pl.Boolean),
    )
    conditions, parameters = _conditions(plan.dims)
    query = _COUNT_SQL.format(matches=" AND ".join(conditions) or "true")
    con.register("budget_members", members.to_arrow())
    try:
        answer = con.execute(query, {**parameters, "lowest": min(floors)}).to_arrow_table()
    finally:
        con.unregister("budget_members")
    return pl.DataFrame(pl.from_arrow(answer)).cast(_MATCHED)  # type: ignore[arg-type]


def _conditions(dims: tuple[str, ...]) -> tuple[list[str], dict[str, str]]:
    """SQL conditions and their parameters: columns are of a fixed list, names of labels are parameters."""
    conditions, parameters = [], {}
    for i, dim in enumerate(dims):
        if dim.startswith(LABEL_PREFIX):
            conditions.append(f"c.labels[$label{i}] = b.d{i}")
            parameters[f"label{i}"] = dim.removeprefix(LABEL_PREFIX)
        else:
            conditions.append(f"c.{dim} = b.d{i}")
    return conditions, parameters


def floor_of(period: Period, now: datetime) -> datetime:
    """The earliest start of a call that may still count: the period before this one is kept too.

    Where a window from first use begins follows from those before it, so a month of them is counted.
    """
    if period.kind == "total":
        return EPOCH
    if period.kind == "rolling":
        return bounds(period, now)[0] - timedelta(seconds=period.window_s)
    if period.kind == "first_use":
        return bounds(period, now)[0] - timedelta(seconds=period.window_s + MAX_WINDOW_S)
    return period_start(period, period_start(period, now) - _EPSILON)
