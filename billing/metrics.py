"""Metrics of tokens: what they add up to, where they stand for calls, and where they say calls are missing.

Points are stored as told. A delta counts as it is; a cumulative counter counts by its difference to the point
before it in its stream, or whole where its start is new or its value fell (a reset). So neither order nor a
restart, ours or theirs, changes a sum. Copies of one quantity under several metric names are never added:
the fullest name counts. A metric's sums become calls (`basis` 'metric', no count) only where the same source
told of no call by span or log within an hour; else they are kept as a cross-check. It refuses to price sums
by the tiers of long prompts: a sum of many short prompts is not a long one.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import duckdb
import polars as pl

from billing.charges import Pricing, charge
from billing.store import OBSERVED, append, read, staged
from ingest.observation import METRIC_POINTS

NEAR = timedelta(hours=1)
"""How near a call must be, on either side of an hour, to show that its source tells of calls one by one."""
LOOK_BACK = timedelta(hours=2)
LOOK_AHEAD = timedelta(hours=24)
"""How late a point may come and still be taken out of the difference that the next one was counted with."""

SOURCE: Final = ("service", "instance", "emitter")
_STREAM = ("stream_hi", "stream_lo")
_IDENTITY = ("id_hi", "id_lo")
_WHO = (
    *("agent", "session_id", "user_id", "account_id", "team", "project", "environment"),
    *("provider_name", "server_address", "request_model", "response_model"),
    *("access_hint", "access_evidence", "operation"),
)
TOKENS: Final = (
    *("input_tokens", "cache_read_tokens", "cache_write_tokens", "cache_write_1h_tokens"),
    *("output_tokens", "reasoning_tokens", "audio_input_tokens", "audio_output_tokens"),
)
_COST = "cost_usd"
_OF_CALLS = (
    "(role = 'call' OR (role = 'aggregate' AND (input_tokens IS NOT NULL OR output_tokens IS NOT NULL)))"
)
"""Which records tell of calls: a span of an agent that tells no tokens does not."""
HOURS: Final[dict[str, pl.DataType]] = {
    "service": pl.String(),
    "instance": pl.String(),
    "emitter": pl.String(),
    "hour": pl.Datetime("us", "UTC"),
    "covered": pl.Boolean(),  # the source tells of calls one by one: the sums are a cross-check
    "input_tokens": pl.Int64(),
    "output_tokens": pl.Int64(),
}
"""What the metrics of a source say of an hour."""


def unseen_points(connection: duckdb.DuckDBPyConnection, told: pl.DataFrame) -> pl.DataFrame:
    """The points, each once, that are not stored yet."""
    once = told.sort(*_IDENTITY, "journal_offset").unique(_IDENTITY, keep="first", maintain_order=True)
    if once.is_empty():
        return once
    window = [once["measured_at"].min(), once["measured_at"].max()]
    with staged(connection, wanted=once.select("id_lo")):
        query = (
            "SELECT id_hi, id_lo FROM metric_points WHERE measured_at BETWEEN ? AND ? "
            "AND id_lo IN (SELECT id_lo FROM wanted)"
        )
        known = read(connection, query, window).cast(dict.fromkeys(_IDENTITY, pl.UInt64))
    return once.join(known, on=_IDENTITY, how="anti")


def increments(points: pl.DataFrame) -> pl.DataFrame:
    """The points with `amount`: what each adds to what the points before it in its stream have told.

    A cumulative point whose start is not told and that has none before it adds nothing: it is a baseline.
    """
    counted = points.filter(pl.col("temporality").is_in(["delta", "cumulative"]))
    ordered = counted.sort(*_STREAM, "measured_at", *_IDENTITY)
    before = {name: pl.col(name).shift(1).over(_STREAM) for name in ("value", "count", "started_at")}
    first = pl.int_range(pl.len()).over(_STREAM) == 0
    restarted = pl.col("started_at") > before["started_at"]
    reset = restarted.fill_null(value=False) | (pl.col("value") < before["value"])
    whole = pl.when(pl.col("started_at").is_not_null()).then("value").otherwise(0.0)
    grown = pl.when(first).then(whole).when(reset).then("value").otherwise(pl.col("value") - before["value"])
    delta = pl.col("temporality") == "delta"
    return ordered.with_columns(pl.when(delta).then("value").otherwise(grown).alias("amount"))


def sums(points: pl.DataFrame) -> pl.DataFrame:
    """Sums by source, who, hour and quantity (columns of SOURCE, _WHO, `hour`, TOKENS, `reported`)."""
    grown = increments(points).with_columns(pl.col("measured_at").dt.truncate("1h").alias("hour"))
    grown = grown.filter(pl.col("quantity").is_in([*TOKENS, _COST]), pl.col("amount") > 0)
    fullest = _fullest(grown)
    conventions = ("input_excludes_cache", "output_excludes_reasoning")
    return (
        fullest.group_by(*SOURCE, *_WHO, "hour")
        .agg(
            *(_sum(quantity).round().cast(pl.Int64).alias(quantity) for quantity in TOKENS),
            _sum(_COST).alias("reported"),
            *(pl.col(name).any() for name in conventions),
            pl.col("measured_at").max().alias("ended_at"),
        )
        .with_columns(_inclusive())
    )


def _fullest(grown: pl.DataFrame) -> pl.DataFrame:
    """Of metrics that tell one quantity of one source and hour under several names, the fullest."""
    place = [*SOURCE, "hour", "quantity"]
    totals = grown.group_by(*place, "name").agg(pl.col("amount").sum())
    best = totals.sort("amount", "name", descending=[True, False]).unique(
        place, keep="first", maintain_order=True
    )
    return grown.join(best.select(*place, "name"), on=[*place, "name"], how="semi", nulls_equal=True)


def _sum(quantity: str) -> pl.Expr:
    mine = pl.col("amount").filter(pl.col("quantity") == quantity)
    return pl.when(mine.len() > 0).then(mine.sum())


def _inclusive() -> list[pl.Expr]:
    """Input with its cached parts and output with its reasoning inside, as everywhere in the ledger."""
    cached = pl.col("cache_read_tokens").fill_null(0) + pl.col("cache_write_tokens").fill_null(0)
    apart = pl.col("input_excludes_cache").fill_null(value=False)
    hidden = pl.col("output_excludes_reasoning").fill_null(value=False)
    return [
        pl.col("input_tokens") + pl.when(apart).then(cached).otherwise(0),
        pl.col("output_tokens") + pl.when(hidden).then(pl.col("reasoning_tokens").fill_null(0)).otherwise(0),
    ]


def covered(told: pl.DataFrame, calls: pl.DataFrame) -> pl.DataFrame:
    """The sums with `covered`: whether calls of their source are told one by one within an hour.

    `calls`: service, instance, emitter, request_model, response_model, hour of records of calls. A record of
    another emitter of the same service covers the models that it names.
    """
    numbered = told.with_row_index("sum")
    pairs = numbered.join(calls, on="service", nulls_equal=True, suffix="_call").filter(
        (pl.col("instance") == pl.col("instance_call")).fill_null(value=True),
        (pl.col("hour") - pl.col("hour_call")).abs() <= NEAR,
        (pl.col("emitter") == pl.col("emitter_call")) | _one_model(),
    )
    names = pairs.select("sum").unique().with_columns(covered=pl.lit(value=True))
    return numbered.join(names, on="sum", how="left").with_columns(pl.col("covered").fill_null(value=False))


def _one_model() -> pl.Expr:
    mine = [pl.col(f"{side}_model") for side in ("request", "response")]
    theirs = [pl.col(f"{side}_model_call") for side in ("request", "response")]
    return pl.any_horizontal(one == other for one in mine for other in theirs).fill_null(value=False)


def charged(told: pl.DataFrame, pricing: Pricing, *, now: datetime) -> pl.DataFrame:
    """Rows of `calls` from sums that nothing covers."""
    rows = charge(_as_observations(told), pricing, now=now)
    return rows if rows.is_empty() else without_tiers(rows, pricing)


def _as_observations(told: pl.DataFrame) -> pl.DataFrame:
    """The sums as records that `charge` takes, each a group of its own."""
    identities = [hashlib.md5(repr(row).encode(), usedforsecurity=False).digest() for row in _keys(told)]
    made = told.with_columns(
        pl.Series("id_hi", [int.from_bytes(digest[:8]) for digest in identities], dtype=pl.UInt64),
        pl.Series("id_lo", [int.from_bytes(digest[8:]) for digest in identities], dtype=pl.UInt64),
        pl.col("hour").alias("started_at"),
        pl.col("reported").cast(pl.Decimal(18, 12)).alias("reported_cost_usd"),
        signal=pl.lit("metric"),
        role=pl.lit("call"),
        rank=pl.lit(255, pl.UInt8),
        stands=pl.lit(value=True),
    ).with_row_index("group")
    absent = [pl.lit(None, kind).alias(name) for name, kind in OBSERVED.items() if name not in made]
    return made.with_columns(absent).select(*OBSERVED, "group", "stands").cast(dict(OBSERVED))  # type: ignore[arg-type]


def _keys(told: pl.DataFrame) -> list[tuple[Any, ...]]:
    return told.select(*SOURCE, *_WHO, pl.col("hour").dt.epoch("s")).rows()


_UNIT: Final = 1000
"""Tokens whose price is exact in the ledger's digits."""
_EXACT: Final = pl.Decimal(38, 15)
_PRICED: Final[dict[str, dict[str, int]]] = {
    "uncached": {"input_tokens": _UNIT},
    "read": {"input_tokens": _UNIT, "cache_read_tokens": _UNIT},
    "written": {"input_tokens": _UNIT, "cache_write_tokens": _UNIT},
    "written_1h": {
        "input_tokens": _UNIT,
        "cache_write_tokens": _UNIT,
        "cache_write_1h_tokens": _UNIT,
    },
    "output": {"output_tokens": _UNIT},
}
"""Calls of a thousand tokens of one kind."""


def without_tiers(rows: pl.DataFrame, pricing: Pricing) -> pl.DataFrame:
    """The rows priced by what a thousand tokens of each kind cost, which no tier of long prompts reaches."""
    amounts = rows.select(_amounts())
    unit = {kind: _unit_cost(rows, pricing, told) for kind, told in _PRICED.items()}
    costs = [amounts[kind].cast(_EXACT) * unit[kind].cast(_EXACT) for kind in _PRICED]
    thousand = pl.sum_horizontal(costs[1:]) + costs[0]
    exact = pl.select((thousand * Decimal("0.001")).round(12).cast(pl.Decimal(18, 12)).alias("exact"))
    known = pl.col("list_cost_usd").is_not_null()
    paid = pl.col("billed_cost_usd") == pl.col("list_cost_usd")
    return (
        rows.with_columns(exact)
        .with_columns(
            pl.when(known).then("exact").alias("list_cost_usd"),
            pl.when(paid).then("exact").otherwise("billed_cost_usd").alias("billed_cost_usd"),
        )
        .drop("exact")
    )


def _amounts() -> list[pl.Expr]:
    read, written, hourly = (
        pl.col(f"cache_{part}_tokens").fill_null(0) for part in ("read", "write", "write_1h")
    )
    return [
        (pl.col("input_tokens").fill_null(0) - read - written).clip(0).alias("uncached"),
        read.alias("read"),
        (written - hourly).clip(0).alias("written"),
        hourly.alias("written_1h"),
        pl.col("output_tokens").fill_null(0).alias("output"),
    ]


def _unit_cost(rows: pl.DataFrame, pricing: Pricing, told: dict[str, int]) -> pl.Series:
    tokens = {name: pl.lit(told.get(name, 0), pl.Int64) for name in TOKENS}
    return pricing.rate(rows.with_columns(**tokens))["list_cost_usd"].fill_null(Decimal(0))


class MetricBook:
    """The stored points of one ledger, and what they come to. Used inside the ledger's transactions."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, pricing: Pricing) -> None:
        self._db = connection
        self._pricing = pricing

    def take(
        self,
        points: pl.DataFrame,
        calls: pl.DataFrame,
        *,
        now: datetime,
        commit_no: int,
        again_from: datetime | None = None,
    ) -> tuple[pl.DataFrame, pl.DataFrame] | None:
        """Store fresh points (`unseen_points`); the rows of `calls` that stand for what they, or records
        of calls just come, touch, and the ids of the rows that stood for it; None if that is nothing.

        With `again_from` the records of calls were read anew and may have ceased to tell of any; hours before
        it, whose points may be forgotten, are left as they are.
        """
        append(self._db, "metric_points", points, commit_no=commit_no)
        touched = self._touched(points, calls, again_from)
        if touched.is_empty():
            return None
        told = covered(self._sums(touched), self._tellers(touched))
        rows = charged(told.filter(~pl.col("covered")), self._pricing, now=now)
        return rows, self._remember(touched, told, rows)

    def use(self, pricing: Pricing) -> None:
        """Charge by another catalogue from now on."""
        self._pricing = pricing

    def _touched(self, fresh: pl.DataFrame, calls: pl.DataFrame, again_from: datetime | None) -> pl.DataFrame:
        """The service and hour of what has to be computed anew."""
        hour = pl.col("measured_at").dt.truncate("1h").alias("hour")
        place = ["service", "hour"]
        found = [fresh.select("service", hour), self._next_points(fresh).select("service", hour)]
        if len(calls) and (again_from is not None or self._any_waiting()):
            found.append(self._hours_near(calls, again_from))
        return pl.concat(found).select(place).unique()

    def _next_points(self, fresh: pl.DataFrame) -> pl.DataFrame:
        """The stored points that come next in the streams of late ones."""
        late = fresh.filter(pl.col("temporality") == "cumulative")
        if late.is_empty():
            return fresh.select("service", "measured_at").clear()
        first, last = late["measured_at"].min(), late["measured_at"].max()
        with staged(self._db, late=late.select("stream_lo", "stream_hi", "measured_at")):
            query = (
                "SELECT p.service, min(p.measured_at) AS measured_at FROM metric_points p JOIN late l "
                "ON p.stream_lo = l.stream_lo AND p.stream_hi = l.stream_hi "
                "AND p.measured_at > l.measured_at "
                "WHERE p.measured_at BETWEEN ? AND ?::TIMESTAMPTZ + ?::INTERVAL "
                "GROUP BY p.service, l.stream_hi, l.stream_lo, l.measured_at"
            )
            found = read(self._db, query, [first, last, LOOK_AHEAD])
        return found.cast({"measured_at": pl.Datetime("us", "UTC")})

    def _any_waiting(self) -> bool:
        """Whether the sums of any hour stand for calls."""
        query = "SELECT 1 FROM metric_hours WHERE NOT covered LIMIT 1"
        return self._db.execute(query).fetchone() is not None

    def _hours_near(self, calls: pl.DataFrame, again_from: datetime | None) -> pl.DataFrame:
        """The hours of metrics that stand for calls, of services that now tell of calls near them; with
        `again_from` any hours since then.
        """
        which = "NOT m.covered" if again_from is None else "m.hour >= ?"
        near = calls.select("service", pl.col("started_at").dt.truncate("1h").alias("hour")).unique()
        with staged(self._db, near=near):
            query = (
                "SELECT DISTINCT m.service, m.hour FROM metric_hours m JOIN near n "
                "ON m.service IS NOT DISTINCT FROM n.service "
                f"AND m.hour BETWEEN n.hour - ?::INTERVAL AND n.hour + ?::INTERVAL WHERE {which}"
            )
            bounds = [NEAR, NEAR] if again_from is None else [NEAR, NEAR, again_from]
            return read(self._db, query, bounds).cast({"hour": pl.Datetime("us", "UTC")})

    def _sums(self, touched: pl.DataFrame) -> pl.DataFrame:
        first, last = touched["hour"].min(), touched["hour"].max()
        assert isinstance(first, datetime)
        assert isinstance(last, datetime)
        with staged(self._db, touched=touched.select("service").unique()):
            query = (
                f"SELECT {', '.join(METRIC_POINTS)} FROM metric_points p WHERE p.measured_at >= ? "
                "AND p.measured_at < ? AND EXISTS "
                "(SELECT 1 FROM touched t WHERE t.service IS NOT DISTINCT FROM p.service)"
            )
            points = read(self._db, query, [first - LOOK_BACK, last + timedelta(hours=1)])
        points = points.cast(dict(METRIC_POINTS))  # type: ignore[arg-type]
        whole = pl.concat([self._predecessors(points, first), points])
        return sums(whole).join(touched, on=["service", "hour"], how="semi", nulls_equal=True)

    def _predecessors(self, points: pl.DataFrame, first: datetime) -> pl.DataFrame:
        """The last points before what was read, of counters that started before it and were silent long."""
        opening = points.sort("measured_at").unique(_STREAM, keep="first", maintain_order=True)
        early = pl.col("started_at").is_null() | (pl.col("started_at") < first - LOOK_BACK)
        wanting = opening.filter(pl.col("temporality") == "cumulative", pl.col("measured_at") >= first, early)
        if wanting.is_empty():
            return points.clear()
        with staged(self._db, wanting=wanting.select(_STREAM)):
            query = (
                f"SELECT {', '.join(METRIC_POINTS)} FROM metric_points WHERE measured_at < ? AND "
                "(stream_hi, stream_lo) IN (SELECT (stream_hi, stream_lo) FROM wanting) QUALIFY "
                "row_number() OVER (PARTITION BY stream_hi, stream_lo ORDER BY measured_at DESC, id_hi) = 1"
            )
            return read(self._db, query, [first - LOOK_BACK]).cast(dict(METRIC_POINTS))  # type: ignore[arg-type]

    def _tellers(self, touched: pl.DataFrame) -> pl.DataFrame:
        """Who told of calls near these hours."""
        first, last = touched["hour"].min(), touched["hour"].max()
        assert isinstance(first, datetime)
        assert isinstance(last, datetime)
        with staged(self._db, touched=touched.select("service").unique()):
            query = (
                "SELECT DISTINCT service, instance, emitter, request_model, response_model, "
                "date_trunc('hour', started_at) AS hour FROM observations o WHERE started_at BETWEEN ? AND ? "
                f"AND {_OF_CALLS} AND EXISTS "
                "(SELECT 1 FROM touched t WHERE t.service IS NOT DISTINCT FROM o.service)"
            )
            found = read(self._db, query, [first - NEAR, last + NEAR + timedelta(hours=1)])
        return found.cast({"hour": pl.Datetime("us", "UTC")})

    def _remember(self, touched: pl.DataFrame, told: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
        """Replace what was noted of these hours; the ids of the calls that stood for them."""
        totals = ("input_tokens", "output_tokens")
        hours = told.group_by(*SOURCE, "hour", "covered").agg(pl.col(totals).sum()).select(*HOURS)
        same = "m.service IS NOT DISTINCT FROM t.service AND m.hour = t.hour"
        ids = rows.select("call_id", "service", pl.col("started_at").alias("hour"))
        with staged(self._db, touched=touched):
            before = read(self._db, f"SELECT call_id, m.hour FROM metric_calls m JOIN touched t ON {same}")
            for table in ("metric_calls", "metric_hours"):
                self._db.execute(f"DELETE FROM {table} m WHERE EXISTS (SELECT 1 FROM touched t WHERE {same})")
        append(self._db, "metric_hours", hours)
        append(self._db, "metric_calls", ids)
        return before
