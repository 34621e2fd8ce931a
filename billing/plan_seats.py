"""Who uses which plan, and what they used in given spans of time: sums from rollups and, at the edges, calls.

A seat is an account id under a plan: ten seats are ten windows. Whole hours come from `usage_hourly`, what is
left of the hours at either end from the calls themselves, so a span that begins at 14:07:12.5 counts from
there on, and the cost follows the hours and not the calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import duckdb
import polars as pl

from billing.plan_periods import Span
from billing.seal import STAGING
from billing.store import read, staged

__all__ = ["COVERED", "Seat", "SeatSpan", "next_uses", "used_by", "used_hourly", "users"]

COVERED = "('subscription', 'credits')"
_HOUR = timedelta(hours=1)
_MEASURES = {
    "calls": "BIGINT",
    "errors": "BIGINT",
    "unpriced_calls": "BIGINT",
    "input_tokens": "DECIMAL(38,0)",
    "output_tokens": "DECIMAL(38,0)",
    "list_cost_usd": "DECIMAL(38,12)",
}
_SUMS = ", ".join(f"coalesce(sum({name}), 0)::{kind} AS {name}" for name, kind in _MEASURES.items())
_OF_HOURS = "u.calls, u.errors, u.unpriced_calls, u.input_tokens, u.output_tokens, u.list_cost_usd"
_OF_CALLS = (
    "coalesce(c.call_count, 0) AS calls, (c.status = 'error')::BIGINT AS errors, "
    "(c.cost_status = 'unpriced')::BIGINT AS unpriced_calls, c.input_tokens, c.output_tokens, c.list_cost_usd"
)


@dataclass(frozen=True, slots=True)
class Seat:
    """An account id under a plan; None where telemetry tells of no account."""

    plan_id: str
    account_id: str | None


@dataclass(frozen=True, slots=True)
class SeatSpan:
    """One span of one seat; spans of one `number` are added up."""

    number: int
    seat: Seat
    span: Span


def users(connection: duckdb.DuckDBPyConnection, since: datetime) -> dict[Seat, datetime]:
    """Every seat that was used since an instant, with the hour of its first use since then."""
    query = (
        f"SELECT plan_id, account_id, min(hour) AS first FROM {STAGING}.usage_hourly "
        f"WHERE plan_id IS NOT NULL AND access IN {COVERED} AND hour >= ? GROUP BY ALL ORDER BY ALL"
    )
    found = read(connection, query, [since]).iter_rows()
    return {Seat(plan, account): first for plan, account, first in found}


def used_by(connection: duckdb.DuckDBPyConnection, spans: Sequence[SeatSpan]) -> pl.DataFrame:
    """Sums per span number, model and team: columns `number`, `model`, `team` and the measures."""
    return _used(connection, spans, keys="number, model, team")


def used_hourly(connection: duckdb.DuckDBPyConnection, spans: Sequence[SeatSpan]) -> pl.DataFrame:
    """The list cost per span number and hour, in order: columns `number`, `hour`, `list_cost_usd`."""
    return _used(connection, spans, keys="number, hour").sort("number", "hour")


def _used(connection: duckdb.DuckDBPyConnection, spans: Sequence[SeatSpan], *, keys: str) -> pl.DataFrame:
    hours, edges = _parts(spans)
    if not spans:
        hours, edges = hours.clear(), edges.clear()
    seat = "p.plan_id = {0}.plan_id AND p.account_key = coalesce({0}.account_id, '')"
    with staged(connection, plan_hours=hours, plan_edges=edges):
        low = "(SELECT min(starts_at) FROM plan_hours)"
        edge = "(SELECT min(starts_at) FROM plan_edges)"
        query = (
            f"SELECT {keys}, {_SUMS} FROM ("
            f"SELECT p.number, u.model, u.team, u.hour, {_OF_HOURS} FROM {STAGING}.usage_hourly u "
            f"JOIN plan_hours p ON {seat.format('u')} AND u.hour >= p.starts_at AND u.hour < p.ends_at "
            f"WHERE u.plan_id IS NOT NULL AND u.access IN {COVERED} AND u.hour >= {low} "
            f"UNION ALL BY NAME SELECT p.number, c.model, c.team, date_trunc('hour', c.started_at) AS hour, "
            f"{_OF_CALLS} FROM calls c JOIN plan_edges p ON {seat.format('c')} "
            "AND c.started_at >= p.starts_at AND c.started_at < p.ends_at "
            f"WHERE c.plan_id IS NOT NULL AND c.access IN {COVERED} AND c.started_at >= {edge}) "
            f"GROUP BY {keys}"
        )
        return read(connection, query)


def _parts(spans: Sequence[SeatSpan]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The whole hours of every span, and what is left of it before and after them."""
    hours: list[tuple[object, ...]] = []
    edges: list[tuple[object, ...]] = []
    for one in spans:
        start, end = one.span.starts_at, one.span.ends_at
        first, last = _whole(start, up=True), _whole(end)
        inner = [(first, last)] if first < last else []
        outer = [(start, first), (last, end)] if first <= last else [(start, end)]
        row = (one.number, one.seat.plan_id, one.seat.account_id or "")
        hours += [(*row, *part) for part in inner]
        edges += [(*row, *part) for part in outer if part[0] < part[1]]
    return _frame(hours), _frame(edges)


def _whole(at: datetime, *, up: bool = False) -> datetime:
    hour = at.replace(minute=0, second=0, microsecond=0)
    return hour + _HOUR if up and hour != at else hour


def _frame(rows: list[tuple[object, ...]]) -> pl.DataFrame:
    moment = pl.Datetime("us", "UTC")
    schema: dict[str, pl.DataType] = {
        "number": pl.Int64(),
        "plan_id": pl.String(),
        "account_key": pl.String(),
        "starts_at": moment,
        "ends_at": moment,
    }
    return pl.DataFrame(rows, schema=schema, orient="row")


def next_uses(
    connection: duckdb.DuckDBPyConnection, after: Sequence[tuple[Seat, datetime]], *, until: datetime
) -> dict[Seat, datetime]:
    """The first call of each seat at or after an instant, up to another; seats without one are left out."""
    if not after:
        return {}
    wanted = _frame([(0, seat.plan_id, seat.account_id or "", at, at) for seat, at in after])
    low = min(at for _, at in after)
    query = (
        "SELECT p.plan_id, nullif(p.account_key, '') AS account_id, min(c.started_at) AS at FROM calls c "
        "JOIN plan_after p ON p.plan_id = c.plan_id AND p.account_key = coalesce(c.account_id, '') "
        f"AND c.started_at >= p.starts_at WHERE c.plan_id IS NOT NULL AND c.access IN {COVERED} "
        "AND c.started_at >= ? AND c.started_at <= ? GROUP BY ALL"
    )
    with staged(connection, plan_after=wanted):
        found = read(connection, query, [low, until])
    return {Seat(plan, account): at for plan, account, at in found.iter_rows()}
