"""Who tells of calls, how well, and what to change so that it tells all: the table `emitters`.

Every commit adds what it counted as rows of its own, so the table costs what changed and not what is stored;
now and then they are folded into one. Advice
is data: one line per emitter and lack. It refuses to call anything a gap that a late record could explain:
metrics are compared with the calls of their hours and of one hour on either side.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import polars as pl

from billing import tables
from billing.store import append, read

LOOK_BACK = timedelta(hours=24)
"""How far back metrics are compared with calls."""

_COUNTS = ("calls", "errors", "duplicates_merged", "usage_unknown_calls", "aggregates", "from_metrics")

_HIDE = "to keep prompts from being sent (none is stored here): "
_OPENINFERENCE = f"{_HIDE}OPENINFERENCE_HIDE_INPUTS=true, OPENINFERENCE_HIDE_OUTPUTS=true"
_CONVENTIONS = f"{_HIDE}OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT unset"
INCLUDE_USAGE = "ask for usage in streams: stream_options={'include_usage': true}"
ADVICE: tuple[tuple[str, str, str], ...] = (
    # emitter (or the beginning of its name), what is lacking, what to change
    ("claude-code", "metrics_only", "send its events too: OTEL_LOGS_EXPORTER=otlp"),
    ("claude-code", "gap", "send its events too: OTEL_LOGS_EXPORTER=otlp; and look for a sampling processor"),
    (
        "codex",
        "metrics_only",
        "set [otel] exporter in ~/.codex/config.toml; metrics_exporter alone is not enough",
    ),
    ("codex", "aggregates", "set [otel] exporter (log events) in ~/.codex/config.toml: turns are only sums"),
    (
        "gemini-cli",
        "metrics_only",
        "turn logs on: telemetry.enabled with telemetry.target=local and an OTLP endpoint",
    ),
    ("qwen-code", "metrics_only", "turn logs on: telemetry.enabled with an OTLP endpoint"),
    ("copilot", "metrics_only", "send traces too: OTEL_TRACES_EXPORTER=otlp"),
    ("opencode", "usage", "title calls tell no tokens; nothing can be set for them"),
    ("otel-openai-v2", "usage", f"{INCLUDE_USAGE}; its Responses API is invisible: use otel-genai-openai"),
    ("otel-genai-openai", "usage", INCLUDE_USAGE),
    ("otel-genai-langchain", "usage", "ChatOpenAI(stream_usage=True)"),
    ("openinference-langchain", "usage", "ChatOpenAI(stream_usage=True)"),
    ("langsmith", "usage", "ChatOpenAI(stream_usage=True)"),
    ("openinference-openai", "usage", INCLUDE_USAGE),
    ("openinference-litellm", "usage", INCLUDE_USAGE),
    (
        "litellm",
        "usage",
        "general_settings.always_include_stream_usage: true on the proxy, else " + INCLUDE_USAGE,
    ),
    ("traceloop", "usage", INCLUDE_USAGE),
    ("openlit", "usage", INCLUDE_USAGE),
    ("dspy", "usage", "DSPy's spans tell no tokens: instrument the client below it (LiteLLM)"),
    ("crewai", "aggregates", "CrewAI tells sums only: instrument the client below it (LiteLLM or the SDK)"),
    ("autogen", "usage", "AutoGen's spans tell no tokens: instrument the client below it"),
    ("claude-agent-sdk", "aggregates", "turn on Claude Code's own telemetry: CLAUDE_CODE_ENABLE_TELEMETRY=1"),
    ("", "usage", f"turn on usage in the agent or SDK ({INCLUDE_USAGE} for OpenAI streams)"),
    ("", "aggregates", "only sums of agent runs arrive: instrument the client that makes the calls"),
    ("", "metrics_only", "only metrics arrive: send traces or logs, so that calls are known one by one"),
    ("", "gap", "some calls do not arrive: set sampling to 1.0 and look for full export queues"),
    ("", "sampled", "it tells of a sample of its calls only: OTEL_TRACES_SAMPLER=always_on, sampling 1.0"),
    ("claude-code", "content", f"{_HIDE}OTEL_LOG_USER_PROMPTS, OTEL_LOG_RAW_API_BODIES unset"),
    ("codex", "content", f"{_HIDE}[otel] log_user_prompt = false (tools' results are sent all the same)"),
    ("gemini-cli", "content", f"{_HIDE}telemetry.logPrompts: false"),
    ("qwen-code", "content", f"{_HIDE}telemetry.logPrompts: false"),
    ("opencode", "content", "prompts are sent (and dropped here); nothing can be set for them"),
    ("vercel-ai-sdk", "content", f"{_HIDE}recordInputs: false, recordOutputs: false"),
    ("otel-", "content", _CONVENTIONS),
    ("copilot", "content", _CONVENTIONS),
    ("google-adk", "content", _CONVENTIONS),
    ("pydantic-ai", "content", f"{_HIDE}InstrumentationSettings(include_content=False)"),
    ("litellm", "content", f"{_HIDE}litellm_settings.turn_off_message_logging: true"),
    ("traceloop", "content", f"{_HIDE}TRACELOOP_TRACE_CONTENT=false"),
    ("openlit", "content", f"{_HIDE}openlit.init(capture_message_content=False)"),
    ("langsmith", "content", f"{_HIDE}LANGSMITH_HIDE_INPUTS=true, LANGSMITH_HIDE_OUTPUTS=true"),
    ("openinference-", "content", _OPENINFERENCE),
    *((name, "content", _OPENINFERENCE) for name in ("agno", "crewai", "dspy", "haystack", "llama-index")),
    ("smolagents", "content", _OPENINFERENCE),
    ("claude-agent-sdk", "content", _OPENINFERENCE),
    ("", "content", f"{_HIDE}turn the capture of content off in the agent or SDK"),
)
_LACKS = (
    ("usage_unknown_calls", "usage"),
    ("aggregates", "aggregates"),
    ("from_metrics", "metrics_only"),
    ("capture_gap_tokens", "gap"),
    ("sampled_records", "sampled"),
    ("content_records", "content"),
)
"""The columns that say that something is missing or too much, and the advice on each."""


def advice(told: Mapping[str, Any], emitter: str) -> str | None:
    """What to change for an emitter that lacks something or sends too much, in one line; None: nothing."""
    found = [lack for column, lack in _LACKS if (told[column] or 0) > 0]
    return "; ".join(_line(emitter, lack) for lack in found) or None


def _line(emitter: str, lack: str) -> str:
    return next(text for name, what, text in ADVICE if what == lack and emitter.startswith(name))


def count_calls(
    connection: duckdb.DuckDBPyConnection, *, removed: pl.DataFrame, written: pl.DataFrame
) -> None:
    """Follow the calls that a commit removed and wrote."""
    told = pl.concat([_measured(written, 1), _measured(removed, -1)]).group_by("emitter")
    totals = told.agg(pl.col(_COUNTS).sum()).filter(pl.any_horizontal(pl.col(_COUNTS) != 0))
    append(connection, "emitter_calls", totals)


def count_records(
    connection: duckdb.DuckDBPyConnection, observed: pl.DataFrame, points: pl.DataFrame
) -> None:
    """Follow a commit's fresh records and points."""
    metrics = points.select(
        "emitter",
        pl.lit("metric").alias("signal"),
        pl.col("scope_version").alias("version"),
        pl.col("measured_at").alias("last_seen"),
        pl.lit(1, pl.Int64).alias("records"),
    )
    _add_records(connection, pl.concat([_records(observed, 1), metrics]))


def recount_records(
    connection: duckdb.DuckDBPyConnection, *, before: pl.DataFrame, after: pl.DataFrame
) -> None:
    """Follow stored records that were read anew."""
    _add_records(connection, pl.concat([_records(before, -1), _records(after, 1)]))


def _records(observed: pl.DataFrame, each: int) -> pl.DataFrame:
    return observed.filter(pl.col("role") != "outer").select(
        "emitter",
        "signal",
        pl.col("scope_version").alias("version"),
        pl.col("effective_at").alias("last_seen"),
        pl.lit(each, pl.Int64).alias("records"),
    )


def _add_records(connection: duckdb.DuckDBPyConnection, told: pl.DataFrame) -> None:
    fresh = told.group_by("emitter", "signal", "version")
    append(connection, "emitter_records", fresh.agg(pl.col("records").sum(), pl.col("last_seen").max()))


def count_fidelity(connection: duckdb.DuckDBPyConnection, told: pl.DataFrame) -> None:
    """Follow what a batch's emitters sent of content and of samples (FIDELITY)."""
    append(connection, "emitter_fidelity", told)


def _measured(calls: pl.DataFrame, sign: int) -> pl.DataFrame:
    """What each call adds to its emitter's counts."""
    flags = {
        "errors": pl.col("status") == "error",
        "usage_unknown_calls": ~pl.col("usage_known") & (pl.col("status") != "error"),
        "aggregates": pl.col("basis") == "aggregate",
        "from_metrics": pl.col("basis") == "metric",
    }
    return calls.select(
        "emitter",
        (pl.col("call_count").fill_null(0) * sign).alias("calls"),
        ((pl.col("observation_count") - 1).cast(pl.Int64) * sign).alias("duplicates_merged"),
        *((flag.cast(pl.Int64) * sign).alias(name) for name, flag in flags.items()),
    ).select("emitter", *_COUNTS)


def fold(connection: duckdb.DuckDBPyConnection) -> None:
    """Make one row of all that commits have counted of one thing. Changes no sum."""
    for table, summed in _SUMMED.items():
        connection.execute(f"CREATE OR REPLACE TEMP TABLE folded AS {summed}")
        connection.execute(f"DELETE FROM {table}")
        connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM folded")


_SUMS = ", ".join(f"sum({name})::BIGINT AS {name}" for name in _COUNTS)
_SUMMED = {
    "emitter_calls": f"SELECT emitter, {_SUMS} FROM emitter_calls GROUP BY emitter",
    "emitter_records": "SELECT emitter, signal, version, sum(records)::BIGINT AS records, "
    "max(last_seen) AS last_seen FROM emitter_records GROUP BY ALL",
    "emitter_fidelity": "SELECT emitter, sum(content_records)::BIGINT AS content_records, "
    "sum(content_bytes)::BIGINT AS content_bytes, sum(sampled_records)::BIGINT AS sampled_records, "
    "min(sampling_probability) AS sampling_probability FROM emitter_fidelity GROUP BY emitter",
}
_EMITTERS = """
SELECT r.emitter, max(r.last_seen) AS last_seen,
       string_agg(DISTINCT r.version, ', ' ORDER BY r.version) AS versions,
       string_agg(DISTINCT r.signal, ', ' ORDER BY r.signal) AS signals,
       sum(r.records)::BIGINT AS records,
       {counts}, g.capture_gap_tokens,
       coalesce(f.sampled_records, 0) AS sampled_records, f.sampling_probability,
       coalesce(f.content_records, 0) AS content_records, coalesce(f.content_bytes, 0) AS content_bytes
FROM emitter_records r
LEFT JOIN ({emitter_calls}) c ON c.emitter IS NOT DISTINCT FROM r.emitter
LEFT JOIN gaps g ON g.emitter IS NOT DISTINCT FROM r.emitter
LEFT JOIN ({emitter_fidelity}) f ON f.emitter IS NOT DISTINCT FROM r.emitter
GROUP BY ALL ORDER BY r.emitter
"""
_GAPS = """
CREATE OR REPLACE TEMP TABLE gaps AS
WITH told AS (SELECT emitter, hour, sum(coalesce(input_tokens, 0) + coalesce(output_tokens, 0)) AS tokens
              FROM metric_hours WHERE covered AND hour >= ? GROUP BY ALL),
     near AS (SELECT DISTINCT emitter, unnest([hour - INTERVAL 1 HOUR, hour, hour + INTERVAL 1 HOUR]) AS hour
              FROM told),
     calls AS (SELECT n.emitter,
                      sum(coalesce(u.input_tokens, 0) + coalesce(u.output_tokens, 0)) AS tokens
               FROM near n JOIN {staging}.usage_hourly u ON u.emitter = n.emitter AND u.hour = n.hour
               GROUP BY n.emitter)
SELECT t.emitter, greatest(sum(t.tokens) - any_value(c.tokens), 0)::BIGINT AS capture_gap_tokens
FROM told t JOIN calls c ON c.emitter = t.emitter GROUP BY t.emitter
"""


def publish(connection: duckdb.DuckDBPyConnection, staging: str) -> None:
    """Write the published table anew: it has one row per emitter."""
    connection.execute(_GAPS.format(staging=staging), [datetime.now(UTC) - LOOK_BACK])
    counts = ", ".join(f"coalesce(any_value(c.{name}), 0)::BIGINT AS {name}" for name in _COUNTS)
    rows = read(connection, _EMITTERS.format(counts=counts, **_SUMMED))
    lines = [advice(row, str(row["emitter"] or "")) for row in rows.iter_rows(named=True)]
    table = rows.with_columns(pl.Series("advice", lines, dtype=pl.String))
    connection.execute(f"DROP TABLE {staging}.emitters")  # made anew: an older version's had fewer columns
    connection.execute(tables.create_table(f"{staging}.emitters", tables.EMITTERS))
    append(connection, f"{staging}.emitters", table)
