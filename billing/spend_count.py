"""Which calls count in which budget: spend as exact changes of a commit, and counted anew from the calls.

Each commit's removed and written rows of `calls` become the change of spend of every budget they fall
under, in columns: cost follows the rows of the commit, not the calls stored. `recount` computes the same
figures from `calls` itself, for a budget that is new; a test holds the two equal. A call counts in the
period of its start, however late it comes and however often it is revised. A cost that is NULL is counted
as an unpriced call, never as 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import duckdb
import polars as pl

from billing.budget import DIMENSIONS, LABEL_PREFIX, Budget
from billing.budget_period import EPOCH, MINUTE_S, Period, bounds, epoch_s, parse_period, period_start

__all__ = ["Change", "Definition", "Scopes", "compile_scopes", "deltas", "floor_of", "recount"]

_MONEY_SUM = pl.Decimal(38, 12)
_EPSILON = timedelta(microseconds=1)


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
    """The budgets whose scopes name the same dimensions and whose periods have the same clock.

    `members`: one row per budget: d0.. (the scope's values, in order of `dims`), number u32 (its place in
    `Scopes.definitions`), meter.
    """

    dims: tuple[str, ...]
    clock: Period
    members: pl.DataFrame


@dataclass(frozen=True, slots=True)
class Scopes:
    """All budgets, arranged for joins."""

    definitions: tuple[Definition, ...]
    plans: tuple[Plan, ...]


def compile_scopes(definitions: Iterable[Definition]) -> Scopes:
    """Arranges budgets by the dimensions their scopes name and by clock."""
    known = tuple(definitions)
    groups: dict[tuple[tuple[str, ...], Period], list[tuple[Any, ...]]] = {}
    for number, definition in enumerate(known):
        told = definition.budget.scope.dimensions()
        dims = tuple(sorted(told))
        row = (*(told[dim] for dim in dims), number, definition.budget.meter)
        groups.setdefault((dims, _clock(definition.budget)), []).append(row)
    return Scopes(known, tuple(_plan(dims, clock, rows) for (dims, clock), rows in groups.items()))


def _clock(budget: Budget) -> Period:
    """What decides the bucket of a call: rolling windows of any length share the minutes."""
    period = budget.parsed_period()
    if period.kind in ("rolling", "total"):
        return Period(period.kind, parse_period("total").zone)
    return period


def _plan(dims: tuple[str, ...], clock: Period, rows: list[tuple[Any, ...]]) -> Plan:
    schema = {**_keys(dims), "number": pl.UInt32(), "meter": pl.String()}
    return Plan(dims, clock, pl.DataFrame(rows, schema=schema, orient="row"))


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
    parts = [_plan_changes(calls, plan) for plan in scopes.plans]
    changed = pl.concat(parts).filter((pl.col("amount") != 0) | (pl.col("unpriced") != 0))
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


def _plan_changes(calls: pl.DataFrame, plan: Plan) -> pl.DataFrame:
    """number, bucket_s, amount, unpriced of one plan's budgets."""
    keys = list(_keys(plan.dims))
    wanted = calls.with_columns(_dimension(dim).alias(key) for key, dim in zip(keys, plan.dims, strict=True))
    matched = wanted.join(plan.members, on=keys) if keys else wanted.join(plan.members, how="cross")
    return (
        matched.join(_buckets(matched["minute_s"], plan.clock), on="minute_s")
        .group_by("number", "bucket_s")
        .agg(_of_meter("").sum().alias("amount"), _of_meter("_unpriced").sum().alias("unpriced"))
    )


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


def _buckets(minutes: pl.Series, clock: Period) -> pl.DataFrame:
    """minute_s -> bucket_s. Asked once per distinct minute, of the same function that the front asks."""
    distinct = minutes.unique().to_list()
    starts = [epoch_s(period_start(clock, EPOCH + timedelta(seconds=each))) for each in distinct]
    return pl.DataFrame(
        {"minute_s": distinct, "bucket_s": starts}, schema={"minute_s": pl.Int64, "bucket_s": pl.Int64}
    )


# --- the same figures from the calls themselves -----------------------------------------------------------


def recount(con: duckdb.DuckDBPyConnection, scopes: Scopes, *, now: datetime) -> list[Change]:
    """Spend by budget and bucket from `calls`, of every period that may still be asked for.

    That is the present period, the one before and any later one; of a rolling window its minutes.
    """
    return [
        Change(scopes.definitions[number], bucket_s, amount, unpriced)
        for plan in scopes.plans
        for number, bucket_s, amount, unpriced in _plan_spend(con, plan, scopes, now=now)
    ]


_SPEND_SQL = """
    SELECT b.number, {bucket} AS bucket_s,
        sum(CASE b.meter
            WHEN 'billed_usd' THEN coalesce(c.billed_cost_usd, 0)::DECIMAL(38,12)
            WHEN 'list_usd' THEN coalesce(c.list_cost_usd, 0)::DECIMAL(38,12)
            WHEN 'tokens' THEN (coalesce(c.input_tokens, 0) + coalesce(c.output_tokens, 0))::DECIMAL(38,12)
            ELSE coalesce(c.call_count, 0)::DECIMAL(38,12) END) AS amount,
        count(*) FILTER (CASE b.meter
            WHEN 'billed_usd' THEN c.billed_cost_usd IS NULL
            WHEN 'list_usd' THEN c.list_cost_usd IS NULL
            WHEN 'tokens' THEN c.input_tokens IS NULL OR c.output_tokens IS NULL
            ELSE c.call_count IS NULL END) AS unpriced
    FROM calls c
    JOIN budget_members b ON {matches} AND c.started_at >= b.floor
    {edges}
    WHERE c.started_at >= $floor
    GROUP BY ALL
"""


def _plan_spend(
    con: duckdb.DuckDBPyConnection, plan: Plan, scopes: Scopes, *, now: datetime
) -> list[tuple[int, int, Decimal, int]]:
    """Rows (number, bucket_s, amount, unpriced) of one plan's budgets."""
    floors = [
        floor_of(scopes.definitions[number].budget.parsed_period(), now) for number in plan.members["number"]
    ]
    tables = {
        "budget_members": plan.members.with_columns(pl.Series("floor", floors, pl.Datetime("us", "UTC")))
    }
    calendar = plan.clock.kind not in ("rolling", "total")
    if calendar:
        tables["budget_edges"] = _edges(con, plan.clock, lowest=min(floors), now=now)
    conditions, parameters = _conditions(plan.dims)
    query = _SPEND_SQL.format(
        bucket=_BUCKET_SQL.get(plan.clock.kind, "e.edge_s"),
        matches=" AND ".join(conditions) or "true",
        edges="ASOF JOIN budget_edges e ON c.started_at >= e.edge" if calendar else "",
    )
    with _registered(con, tables):
        return con.execute(query, {**parameters, "floor": min(floors)}).fetchall()


@contextmanager
def _registered(con: duckdb.DuckDBPyConnection, tables: dict[str, pl.DataFrame]) -> Iterator[None]:
    for name, frame in tables.items():
        con.register(name, frame.to_arrow())
    try:
        yield
    finally:
        for name in tables:
            con.unregister(name)


_BUCKET_SQL = {"total": "0", "rolling": f"epoch_us(c.started_at) // {MINUTE_S * 1_000_000} * {MINUTE_S}"}


def _conditions(dims: tuple[str, ...]) -> tuple[list[str], dict[str, str]]:
    """SQL conditions and their parameters; a dimension is a column of a fixed list or a label given as a
    parameter.
    """
    conditions, parameters = [], {}
    for i, dim in enumerate(dims):
        if dim.startswith(LABEL_PREFIX):
            conditions.append(f"c.labels[$label{i}] = b.d{i}")
            parameters[f"label{i}"] = dim.removeprefix(LABEL_PREFIX)
        else:
            conditions.append(f"c.{dim} = b.d{i}")
    return conditions, parameters


def floor_of(period: Period, now: datetime) -> datetime:
    """The earliest start of a call that may still count: the period before this one is kept too."""
    if period.kind == "total":
        return EPOCH
    if period.kind == "rolling":
        return bounds(period, now)[0] - timedelta(seconds=period.window_s)
    return period_start(period, period_start(period, now) - _EPSILON)


def _edges(con: duckdb.DuckDBPyConnection, clock: Period, *, lowest: datetime, now: datetime) -> pl.DataFrame:
    """Starts of the periods that hold calls, from `lowest` on: edge (UTC), edge_s."""
    start, end = bounds(clock, now)
    later = con.execute(
        "SELECT DISTINCT epoch_us(started_at) // 60000000 * 60 FROM calls WHERE started_at >= $end",
        {"end": end},
    ).fetchall()
    future = {period_start(clock, EPOCH + timedelta(seconds=minute_s)) for (minute_s,) in later}
    edges = sorted({lowest, start, *future})
    return pl.DataFrame(
        {"edge": edges, "edge_s": [epoch_s(each) for each in edges]},
        schema={"edge": pl.Datetime("us", "UTC"), "edge_s": pl.Int64},
    )
