"""The tables of the ledger, each column with its type and meaning, in one place.

The names are a contract (add, never rename). DDL, the published file and the reference page are all made
from these tables, so that none of them can say something else. Money is DECIMAL, times are UTC.
"""

from __future__ import annotations

from dataclasses import dataclass

MONEY = "DECIMAL(18,12)"
MONEY_SUM = "DECIMAL(38,12)"
TEXT_MAP = "MAP(VARCHAR, VARCHAR)"


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, its DuckDB type and what it means."""

    name: str
    type: str
    meaning: str


def _columns(*rows: tuple[str, str, str]) -> tuple[Column, ...]:
    return tuple(Column(*row) for row in rows)


CALLS = _columns(
    ("call_id", "VARCHAR", "stable id: 'c' and 32 hex digits of the call's smallest observation identity"),
    ("started_at", "TIMESTAMPTZ", "when the call started"),
    ("ended_at", "TIMESTAMPTZ", "when it ended"),
    ("duration_ms", "DOUBLE", "milliseconds, as told by the emitter, else ended_at - started_at"),
    ("ttft_ms", "DOUBLE", "milliseconds to the first token"),
    ("status", "VARCHAR", "'ok' or 'error'"),
    ("http_status", "SMALLINT", "the provider's HTTP status"),
    ("error_type", "VARCHAR", "class of the error"),
    ("streaming", "BOOLEAN", "whether the answer was streamed"),
    ("emitter", "VARCHAR", "who told of the call: a coding agent, an SDK or an instrumentation"),
    (
        "basis",
        "VARCHAR",
        "'span', 'log', 'metric', 'proxy', 'settlement' or 'aggregate': where the tokens are from",
    ),
    ("observation_count", "INTEGER", "how many records told of this one call"),
    ("call_count", "BIGINT", "1; NULL where a metric tells only sums"),
    ("trace_id", "VARCHAR", "32 hex digits"),
    ("span_id", "VARCHAR", "16 hex digits"),
    ("response_id", "VARCHAR", "the provider's id of the response"),
    ("request_id", "VARCHAR", "the provider's id of the HTTP request"),
    ("service", "VARCHAR", "service.name"),
    ("agent", "VARCHAR", "gen_ai.agent.name, else service.name"),
    ("session_id", "VARCHAR", "session or conversation"),
    ("user_id", "VARCHAR", "user, never an e-mail address unless enabled"),
    ("account_id", "VARCHAR", "account at the provider or the agent's vendor"),
    ("team", "VARCHAR", "attribution"),
    ("project", "VARCHAR", "attribution"),
    ("environment", "VARCHAR", "attribution"),
    ("labels", TEXT_MAP, "attribution: tollbook.label.*"),
    ("provider", "VARCHAR", "who served the call (models.dev id); NULL where it would be a guess"),
    ("served_model", "VARCHAR", "'provider/id as served'"),
    ("request_model", "VARCHAR", "the model asked for"),
    ("response_model", "VARCHAR", "the model that answered"),
    ("model", "VARCHAR", "canonical 'lab/model'; NULL if unknown"),
    ("snapshot", "VARCHAR", "dated snapshot of the model"),
    ("resolution", "VARCHAR", "'resolved', 'inferred', 'ambiguous' or 'unresolved'"),
    ("modifiers", TEXT_MAP, "effort, region profile, routing variant and the like, read off the model id"),
    (
        "access",
        "VARCHAR",
        "'payg', 'subscription', 'credits', 'overage', 'provisioned', 'free', 'local' or 'unknown'",
    ),
    ("access_evidence", "VARCHAR", "what access was decided by"),
    ("access_confidence", "VARCHAR", "how sure that is"),
    ("plan_id", "VARCHAR", "the plan that covers the call"),
    ("usage_known", "BOOLEAN", "false when input or output tokens are unknown"),
    ("usage_complete", "BOOLEAN", "false when a part that has its own price was not told"),
    ("input_tokens", "BIGINT", "all input tokens, cached included"),
    ("cache_read_tokens", "BIGINT", "inside input_tokens"),
    ("cache_write_tokens", "BIGINT", "inside input_tokens, every time to live"),
    ("cache_write_1h_tokens", "BIGINT", "inside cache_write_tokens"),
    ("output_tokens", "BIGINT", "all output tokens, reasoning included"),
    ("reasoning_tokens", "BIGINT", "inside output_tokens"),
    ("audio_input_tokens", "BIGINT", "inside input_tokens"),
    ("audio_output_tokens", "BIGINT", "inside output_tokens"),
    ("usage_details", "MAP(VARCHAR, BIGINT)", "other units: cache_write_12h, web_searches, images"),
    ("service_tier", "VARCHAR", "what the price depends on"),
    ("speed", "VARCHAR", "what the price depends on"),
    ("batch", "BOOLEAN", "whether it was a batch call"),
    ("region", "VARCHAR", "what the price depends on"),
    ("list_cost_usd", MONEY, "what the call costs at list price; NULL if unknown"),
    ("billed_cost_usd", MONEY, "what the provider invoices for this call; NULL if unknown"),
    ("reported_cost_usd", MONEY, "what the emitter claimed"),
    ("plan_draw", MONEY_SUM, "what the call draws from its plan, in the plan's unit"),
    (
        "cost_status",
        "VARCHAR",
        "'priced', 'included', 'free', 'provisioned', 'assumed', 'estimated', 'unpriced', 'usage_unknown' "
        "or 'not_billable'",
    ),
    ("price_id", "VARCHAR", "the price row the charge was computed from"),
    ("catalog_version", "VARCHAR", "the catalogue it was computed with"),
    ("revision", "INTEGER", "1, and one more for every time the call was written anew"),
    ("recorded_at", "TIMESTAMPTZ", "when this revision was written"),
)

EVIDENCE_FIELDS = {
    "provider_name": "VARCHAR",
    "server_address": "VARCHAR",
    "server_port": "INTEGER",
    "url": "VARCHAR",
    "access_hint": "VARCHAR",
    "access_evidence": "VARCHAR",
    "operation": "VARCHAR",
    "headers": "VARCHAR",
    "credential_kind": "VARCHAR",
    "plan_hint": "VARCHAR",
}
"""What the catalogue reads of a call beside its row."""
EVIDENCE = Column(
    "evidence",
    f"STRUCT({', '.join(f'{name} {kind}' for name, kind in EVIDENCE_FIELDS.items())})",
    "what provider, model and access were decided by; NULL: written before it was kept",
)
LEDGER_CALLS = (*CALLS, EVIDENCE)
"""What the ledger keeps of a call, so that it can be rated again when its records are long gone."""

CALL_REVISIONS = (
    *CALLS,
    Column("superseded_by", "VARCHAR", "the call that replaced this one, or took it in"),
    Column("job_id", "VARCHAR", "the job over history that replaced it; NULL: telemetry did"),
    Column("reason", "VARCHAR", "what that job found different, such as 'price row a -> b'"),
)

JOBS = _columns(
    ("job_id", "VARCHAR", "the job"),
    ("kind", "VARCHAR", "'reprice' or 'reprocess'"),
    ("since", "TIMESTAMPTZ", "the first start of a call that it looks at; NULL: from the beginning"),
    ("until", "TIMESTAMPTZ", "the start before which it looks"),
    ("status", "VARCHAR", "'waiting', 'running', 'done' or 'failed'"),
    ("requested_at", "TIMESTAMPTZ", "when it was asked for"),
    ("began_at", "TIMESTAMPTZ", "when it began"),
    ("ended_at", "TIMESTAMPTZ", "when it was done, or failed"),
    ("total", "BIGINT", "calls, or records, that it looks at"),
    ("looked_at", "BIGINT", "of those, how many it has looked at"),
    ("changed", "BIGINT", "calls that it has written anew, added or retired"),
    ("catalog_version", "VARCHAR", "the catalogue it prices with"),
    ("error", "VARCHAR", "why it failed"),
)
LEDGER_JOBS = (
    *JOBS,
    Column("place", "VARCHAR", "JSON: the last row that was looked at"),
    Column("attempts", "INTEGER", "how often it was begun without coming further"),
    Column("commit_no", "UBIGINT", "the last transaction that wrote of it"),
)

_BEFORE_AND_AFTER = (
    ("calls", "BIGINT", "rows of calls"),
    ("input_tokens", "HUGEINT", "sum of what is known"),
    ("output_tokens", "HUGEINT", "sum of what is known"),
    ("list_cost_usd", MONEY_SUM, "sum of what is known"),
    ("billed_cost_usd", MONEY_SUM, "sum of what is known"),
)
JOB_CHANGES = _columns(
    ("job_id", "VARCHAR", "the job"),
    ("model", "VARCHAR", "canonical model, else the id as served"),
    ("provider", "VARCHAR", "as in calls"),
    *(
        (f"{name}_{when}", "VARCHAR", f"as in calls, {when} the job")
        for name in ("access", "cost_status", "price_id")
        for when in ("before", "after")
    ),
    *(
        (f"{name}_{when}", kind, f"{meaning}, {when} the job")
        for name, kind, meaning in _BEFORE_AND_AFTER
        for when in ("before", "after")
    ),
)

ROLLUP_KEYS = (
    "team",
    "project",
    "environment",
    "agent",
    "user_id",
    "account_id",
    "emitter",
    "provider",
    "model",
    "access",
    "plan_id",
    "cost_status",
)

ROLLUP_SUMS = _columns(
    ("calls", "BIGINT", "number of calls"),
    ("errors", "BIGINT", "calls that failed"),
    ("usage_unknown_calls", "BIGINT", "calls whose tokens are unknown"),
    ("unpriced_calls", "BIGINT", "calls whose list price is unknown"),
    ("input_tokens", "HUGEINT", "sum"),
    ("cache_read_tokens", "HUGEINT", "sum of what was told"),
    ("cache_write_tokens", "HUGEINT", "sum of what was told"),
    ("output_tokens", "HUGEINT", "sum"),
    ("reasoning_tokens", "HUGEINT", "sum of what was told"),
    ("list_cost_usd", MONEY_SUM, "sum of what is known"),
    ("billed_cost_usd", MONEY_SUM, "sum of what is known"),
    ("reported_cost_usd", MONEY_SUM, "sum of what emitters claimed"),
    ("plan_draw", MONEY_SUM, "sum, in the plan's unit"),
)

_KEY_COLUMNS = tuple(Column(key, "VARCHAR", "as in calls") for key in ROLLUP_KEYS)
USAGE_HOURLY = (Column("hour", "TIMESTAMPTZ", "start of the hour, UTC"), *_KEY_COLUMNS, *ROLLUP_SUMS)
USAGE_DAILY = (Column("day", "DATE", "the day, UTC"), *_KEY_COLUMNS, *ROLLUP_SUMS)

EMITTERS = _columns(
    ("emitter", "VARCHAR", "who tells of calls: a coding agent, an SDK or an instrumentation"),
    ("last_seen", "TIMESTAMPTZ", "time of its newest record"),
    ("versions", "VARCHAR", "versions of its scopes that were seen"),
    ("signals", "VARCHAR", "'log', 'metric' and 'span': what it sends"),
    ("records", "BIGINT", "records that tell of calls, each once"),
    ("calls", "BIGINT", "calls that are known by it"),
    ("errors", "BIGINT", "calls that failed"),
    ("duplicates_merged", "BIGINT", "records of a call beyond its first, which were not counted again"),
    ("usage_unknown_calls", "BIGINT", "calls that did not fail and whose tokens are unknown"),
    ("aggregates", "BIGINT", "rows of calls where a sum stands for calls that are not known"),
    ("from_metrics", "BIGINT", "rows of calls that are sums of metrics"),
    (
        "capture_gap_tokens",
        "BIGINT",
        "tokens that its metrics of the last 24 hours tell beyond its calls; NULL without both",
    ),
    (
        "sampled_records",
        "BIGINT",
        "records that say they are samples (trace state ot=th or ot=p, sampler attributes)",
    ),
    ("sampling_probability", "DOUBLE", "the lowest probability that these were kept with; NULL where none"),
    ("content_records", "BIGINT", "records that carried prompts, answers or the like, which were dropped"),
    ("content_bytes", "BIGINT", "how much of that came and was dropped"),
    ("advice", "VARCHAR", "what to change so that it tells all; NULL where nothing lacks"),
)

FRACTION = "DECIMAL(18,6)"

PLANS = _columns(
    ("plan_id", "VARCHAR", "the plan, as in calls"),
    ("plan", "VARCHAR", "its name"),
    ("provider", "VARCHAR", "whose plan it is"),
    ("account", "VARCHAR", "your account (accounts file) that it belongs to; NULL where none fits"),
    ("account_id", "VARCHAR", "the seat, as in calls; every seat has windows of its own"),
    ("quota", "VARCHAR", "the window's name in the plan: '5h', '7d', 'month', ..."),
    ("kind", "VARCHAR", "when it begins: 'first_use', 'sliding', 'day', 'week', 'month', 'renewal', ..."),
    ("unit", "VARCHAR", "what it is counted in: 'requests', 'tokens', 'list_usd', 'credits', 'percent', ..."),
    ("starts_at", "TIMESTAMPTZ", "start of the window that is open; NULL: none is, the next call begins one"),
    ("ends_at", "TIMESTAMPTZ", "its end"),
    ("used", MONEY_SUM, "what calls used of it, in the unit; NULL where calls do not tell that"),
    ("size", MONEY_SUM, "how much fits, in the unit: yours, else the tier's or the plan's; NULL unless told"),
    ("used_fraction", FRACTION, "the part that is used (1: all): the provider's word, else used / size"),
    ("used_from", "VARCHAR", "'provider' (headers of an answer) or 'calls'"),
    ("seen_at", "TIMESTAMPTZ", "when the provider said so"),
    ("elapsed_fraction", FRACTION, "the part of the window's time that is over"),
    ("pace", FRACTION, "used_fraction / elapsed_fraction: above 1 it does not last until the end"),
    ("exhausted_at", "TIMESTAMPTZ", "when it is used up at this pace, where that is before its end"),
    ("calls", "BIGINT", "calls in the window"),
    ("unpriced_calls", "BIGINT", "of them without a list price: list_cost_usd leaves them out"),
    ("list_cost_usd", MONEY_SUM, "what they would have cost at list price"),
)

PLAN_VALUES = _columns(
    ("plan_id", "VARCHAR", "the plan, as in calls"),
    ("account", "VARCHAR", "your account (accounts file); NULL: seats that no account of yours fits"),
    ("period_starts_at", "TIMESTAMPTZ", "start of the plan's month"),
    ("period_ends_at", "TIMESTAMPTZ", "its end"),
    ("seats", "BIGINT", "seats that are paid for; without an account of yours: seats that made calls"),
    ("fee", MONEY_SUM, "what is invoiced for the month, in the currency; NULL unless told"),
    ("currency", "VARCHAR", "of the fee"),
    ("calls", "BIGINT", "calls in the month"),
    ("unpriced_calls", "BIGINT", "of them without a list price: value_usd leaves them out"),
    ("value_usd", MONEY_SUM, "what the calls would have cost at list price"),
    ("value_ratio", FRACTION, "value_usd / fee, where the fee is in US dollars"),
    ("break_even_at", "TIMESTAMPTZ", "end of the hour in which the value reached the fee, else when it will"),
    ("broke_even", "BOOLEAN", "whether it has"),
)

PLAN_SHARES = _columns(
    ("plan_id", "VARCHAR", "as in plan_values"),
    ("account", "VARCHAR", "as in plan_values"),
    ("period_starts_at", "TIMESTAMPTZ", "as in plan_values"),
    ("team", "VARCHAR", "as in calls; NULL: calls of no team, or a month without calls"),
    ("calls", "BIGINT", "the team's calls"),
    ("value_usd", MONEY_SUM, "what they would have cost at list price"),
    ("fee_share", MONEY_SUM, "the team's part of the fee; the parts of a month sum to the fee exactly"),
    ("currency", "VARCHAR", "of the fee"),
)

PLAN_QUOTAS = _columns(
    ("provider", "VARCHAR", "who said it"),
    ("account_id", "VARCHAR", "the seat"),
    ("quota", "VARCHAR", "as in plans"),
    ("used_fraction", FRACTION, "the part that is used"),
    ("resets_at", "TIMESTAMPTZ", "when the window ends"),
    ("seen_at", "TIMESTAMPTZ", "when it was said"),
)
"""What providers said of windows, the newest word each; kept in the ledger."""

META = _columns(
    ("key", "VARCHAR", "what"),
    ("value", "VARCHAR", "its value"),
)

PUBLISHED: dict[str, tuple[Column, ...]] = {
    "calls": CALLS,
    "call_revisions": CALL_REVISIONS,
    "usage_hourly": USAGE_HOURLY,
    "usage_daily": USAGE_DAILY,
    "emitters": EMITTERS,
    "plans": PLANS,
    "plan_values": PLAN_VALUES,
    "plan_shares": PLAN_SHARES,
    "jobs": JOBS,
    "job_changes": JOB_CHANGES,
    "meta": META,
}


def names(columns: tuple[Column, ...]) -> list[str]:
    """The columns' names, in order."""
    return [column.name for column in columns]


def create_table(name: str, columns: tuple[Column, ...]) -> str:
    """The `CREATE TABLE` statement of a table, harmless where it stands already."""
    body = ",\n  ".join(f'"{column.name}" {column.type}' for column in columns)
    return f"CREATE TABLE IF NOT EXISTS {name} (\n  {body}\n)"
