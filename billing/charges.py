"""Fused observations to rows of `calls`: one row per call, its figures merged field by field, then priced.

Tokens and everything the price hangs on come from the innermost record (lowest rank), the surroundings
(who, which session, which agent) from the outermost. A field that no record tells stays NULL.
"""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

import numpy as np
import polars as pl
import pyarrow as pa

from billing import tables
from billing.surroundings import agent_told
from ingest.call_report import SCOPE as PROXY_SCOPE

COUNTED = "call"
"""The role of an observation that is a model call. Aggregates repeat calls and are never added to them."""

_INNER = (
    "started_at",
    "ended_at",
    "duration_ms",
    "ttft_ms",
    "http_status",
    "streaming",
    "trace_hi",
    "trace_lo",
    "span_id",
    "response_id",
    "request_id",
    "provider_name",
    "server_address",
    "server_port",
    "url",
    "request_model",
    "response_model",
    "operation",
    "input_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "output_tokens",
    "reasoning_tokens",
    "audio_input_tokens",
    "audio_output_tokens",
    "service_tier",
    "speed",
    "batch",
    "region",
    "access_hint",
    "access_evidence",
    "headers",
    "credential_kind",
    "plan_hint",
    "scope",
)
_OUTER = (
    "emitter",
    "service",
    "agent",
    "session_id",
    "user_id",
    "account_id",
    "team",
    "project",
    "environment",
    "labels",
    "reported_cost_usd",
)
_IDENTITY = ("id_hi", "id_lo")


class Pricing(Protocol):
    """What charges need of the catalogue."""

    version: str

    def resolve(self, calls: pl.DataFrame) -> pl.DataFrame: ...

    def rate(self, calls: pl.DataFrame) -> pl.DataFrame: ...


def charge(fused: pl.DataFrame, pricing: Pricing, *, now: datetime) -> pl.DataFrame:
    """Rows of `calls` (without `revision`) from fused observations (`billing.fusion.fuse`)."""
    facts = _facts(_merge(fused.filter("stands")))
    return _finish(pricing.rate(pricing.resolve(facts)), now)


def call_id(id_hi: str, id_lo: str) -> pl.Expr:
    """The stable id of the call whose smallest observation identity is in these two columns."""
    return pl.concat_str(pl.lit("c"), hex_digits(id_hi), hex_digits(id_lo))


def hex_digits(column: str) -> pl.Expr:
    """An unsigned 64-bit column as 16 hex digits; NULL stays NULL."""
    return pl.col(column).map_batches(_hex, return_dtype=pl.String)


def _hex(words: pl.Series) -> pl.Series:
    digits = words.fill_null(0).to_numpy().astype(">u8").tobytes().hex().encode()
    ends = (np.arange(len(words) + 1, dtype=np.int32) * 16).tobytes()
    text = pa.StringArray.from_buffers(len(words), pa.py_buffer(ends), pa.py_buffer(digits))
    frame = pl.DataFrame({"text": pl.Series(values=text), "known": words.is_not_null()})
    return frame.select(pl.when("known").then("text")).to_series()


def _merge(fused: pl.DataFrame) -> pl.DataFrame:
    """One row per group. Groups of one record, nearly all of them, are taken as they are."""
    crowded = pl.len().over("group") > 1
    single = fused.filter(~crowded).with_columns(pl.lit(1, pl.Int32).alias("observation_count"))
    several = fused.filter(crowded)
    columns = [*_IDENTITY, *_INNER, *_OUTER, "role", "signal", "status", "error_type", "observation_count"]
    if several.is_empty():
        return single.select(columns)
    return pl.concat([single.select(columns), _merged(several).select(columns)])


def _merged(several: pl.DataFrame) -> pl.DataFrame:
    inward = several.sort("group", "rank", *_IDENTITY)
    first = [pl.col(column).drop_nulls().first() for column in (*_INNER, "role", "signal")]
    inner = (
        inward.group_by("group", maintain_order=True)
        .agg(
            *(pl.col(column).sort_by(*_IDENTITY).first() for column in _IDENTITY),
            *first,
            pl.len().cast(pl.Int32).alias("observation_count"),
            _failed().alias("failed"),
            _outcome("error_type").alias("error_type"),
            *(_largest(column) for column in ("input_tokens", "output_tokens")),
        )
        .with_columns(_inputs(), _outputs(), *_status())
    )
    outward = several.sort("group", "rank", *_IDENTITY, descending=[False, True, False, False])
    outer = outward.group_by("group", maintain_order=True).agg(
        *(pl.col(column).drop_nulls().first() for column in _OUTER),
        agent_told().drop_nulls().first().alias("agent_told"),
    )
    outer = outer.with_columns(agent=pl.coalesce("agent_told", "agent")).drop("agent_told")
    return inner.join(outer, on="group")


def _failed() -> pl.Expr:
    """An error wins over silence, not over tokens: what failed for good carries none."""
    error = (pl.col("status") == "error").fill_null(value=False)
    silent = pl.col("input_tokens").is_null() & pl.col("output_tokens").is_null()
    return (error.any() & silent.all()) | error.all()


def _outcome(column: str) -> pl.Expr:
    return pl.col(column).filter(pl.col("status") == "error").drop_nulls().first()


def _status() -> list[pl.Expr]:
    return [
        pl.when("failed").then(pl.lit("error")).otherwise(pl.lit("ok")).alias("status"),
        pl.when("failed").then("error_type"),
    ]


def _largest(column: str) -> pl.Expr:
    return pl.col(column).max().alias(f"{column}_largest")


def _inputs() -> pl.Expr:
    """The innermost record's, unless that leaves out exactly the cached tokens."""
    cached = pl.col("cache_read_tokens").fill_null(0) + pl.col("cache_write_tokens").fill_null(0)
    left_out = pl.col("input_tokens_largest") - pl.col("input_tokens") == cached
    return pl.when(left_out).then("input_tokens_largest").otherwise("input_tokens").alias("input_tokens")


def _outputs() -> pl.Expr:
    """The innermost record's, unless that leaves out exactly the reasoning, or is a placeholder 1."""
    left_out = pl.col("output_tokens_largest") - pl.col("output_tokens") == pl.col("reasoning_tokens")
    largest = left_out | (pl.col("output_tokens") == 1)
    return pl.when(largest).then("output_tokens_largest").otherwise("output_tokens").alias("output_tokens")


def _facts(merged: pl.DataFrame) -> pl.DataFrame:
    """The merged rows under the names of `calls`."""
    wall_ms = (pl.col("ended_at") - pl.col("started_at")).dt.total_microseconds() / 1000
    return merged.with_columns(
        call_id(*_IDENTITY).alias("call_id"),
        pl.col("duration_ms").fill_null(wall_ms),
        pl.col("status").fill_null("ok"),
        _basis(),
        pl.when(pl.col("signal") != "metric").then(pl.lit(1, pl.Int64)).alias("call_count"),
        pl.concat_str(hex_digits("trace_hi"), hex_digits("trace_lo")).alias("trace_id"),
        hex_digits("span_id"),
        pl.struct(list(tables.EVIDENCE_FIELDS)).alias("evidence"),
    )


def _basis() -> pl.Expr:
    """Where the figures are from: what carried the call itself, a signal, or a sum over calls."""
    by_signal = pl.when(pl.col("scope") == PROXY_SCOPE).then(pl.lit("proxy")).otherwise("signal")
    return pl.when(pl.col("role") == COUNTED).then(by_signal).otherwise(pl.lit("aggregate")).alias("basis")


def _finish(priced: pl.DataFrame, now: datetime) -> pl.DataFrame:
    absent = {
        "usage_details": pl.lit(None, pl.List(pl.Struct({"key": pl.String, "value": pl.Int64}))),
        "revision": pl.lit(1, pl.Int32),
        "recorded_at": pl.lit(now).cast(pl.Datetime("us", "UTC")),
    }
    return priced.with_columns(**absent).select(tables.names(tables.LEDGER_CALLS))
