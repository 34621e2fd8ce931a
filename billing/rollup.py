"""Hourly and daily sums, recomputed whole for every dirty bucket by Polars.

A bucket is never added to. A slot of a few seconds is computed anew from all its calls, an hour from its
slots, a day from its hours, so any order of arrival, redelivery and revision gives the same sums, and the
cost follows what changed, not what is stored.
"""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from billing.tables import ROLLUP_KEYS, ROLLUP_SUMS

_TOKENS = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
_MONEY = ("list_cost_usd", "billed_cost_usd", "reported_cost_usd", "plan_draw")
SUMS = tuple(column.name for column in ROLLUP_SUMS)
READS = ("started_at", "status", "usage_known", "call_count", *_TOKENS, *_MONEY, *ROLLUP_KEYS)
"""The columns of `calls` that a rollup reads."""


SLOT = "10s"
"""The smallest bucket: what a commit makes dirty, and what is read again."""


def slots(parts: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Sums per slot from parts of `calls` (columns `READS`) that together hold the whole of their slots."""
    partial = [_sum(_measures(part), ["slot", *ROLLUP_KEYS]) for part in parts if len(part)]
    if not partial:
        return pl.DataFrame(schema={"slot": pl.Datetime("us", "UTC"), **_SCHEMA})
    return _sum(pl.concat(partial), ["slot", *ROLLUP_KEYS]).select("slot", *ROLLUP_KEYS, *SUMS)


def hourly(told: pl.DataFrame) -> pl.DataFrame:
    """`usage_hourly` rows from the sums of all slots of whole hours."""
    timed = told.with_columns(pl.col("slot").dt.truncate("1h").alias("hour"))
    return _sum(timed, ["hour", *ROLLUP_KEYS]).select("hour", *ROLLUP_KEYS, *SUMS)


def daily(hours: pl.DataFrame) -> pl.DataFrame:
    """`usage_daily` rows from the `usage_hourly` rows of whole days."""
    dated = hours.with_columns(pl.col("hour").dt.date().alias("day"))
    return _sum(dated, ["day", *ROLLUP_KEYS]).select("day", *ROLLUP_KEYS, *SUMS)


def _measures(calls: pl.DataFrame) -> pl.DataFrame:
    """One row per call with its slot, its keys and what it adds to each sum."""
    status = pl.col("cost_status")
    return calls.select(
        pl.col("started_at").dt.truncate(SLOT).alias("slot"),
        *ROLLUP_KEYS,
        pl.col("call_count").fill_null(0).alias("calls"),
        (pl.col("status") == "error").cast(pl.Int64).alias("errors"),
        (status == "usage_unknown").cast(pl.Int64).alias("usage_unknown_calls"),
        (status == "unpriced").cast(pl.Int64).alias("unpriced_calls"),
        *(pl.col(column).cast(_WIDE) for column in _TOKENS),
        *(pl.col(column).cast(_SUM) for column in _MONEY),
    )


_WIDE = pl.Decimal(38, 0)
"""Token sums: Int64 would wrap silently in Polars, and DuckDB reads this as HUGEINT."""
_SUM = pl.Decimal(38, 12)
_COUNTS = ("calls", "errors", "usage_unknown_calls", "unpriced_calls")
_SCHEMA = (
    dict.fromkeys(ROLLUP_KEYS, pl.String())
    | dict.fromkeys(_COUNTS, pl.Int64())
    | dict.fromkeys(_TOKENS, _WIDE)
    | dict.fromkeys(_MONEY, _SUM)
)


def _sum(rows: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """Group and add; a sum of nothing known stays NULL."""
    known = [pl.when(pl.col(c).count() > 0).then(pl.col(c).sum()).alias(c) for c in (*_TOKENS, *_MONEY)]
    return rows.group_by(keys).agg(*(pl.col(c).sum() for c in _COUNTS), *known)
