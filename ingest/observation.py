"""What the ledger is told: the schemas of observations, span links and rejects.

Why here: dialects produce these columns, billing consumes them, and neither needs to know the other.
NULL always means "not told". Times are UTC, money is DECIMAL, tokens are counts.
"""

from __future__ import annotations

from typing import Final

import polars as pl

TIME: Final = pl.Datetime("us", "UTC")

_LABEL: Final = pl.List(pl.Struct({"key": pl.String(), "value": pl.String()}))

Schema = dict[str, pl.DataType]

OBSERVATIONS: Final[Schema] = {
    # Identity: what makes a redelivered record recognisable. See `identity`.
    "id_hi": pl.UInt64(),
    "id_lo": pl.UInt64(),
    # Where and when it came.
    "journal_offset": pl.Int64(),  # after the frame it came in
    "received_at": TIME,
    "effective_at": TIME,  # never NULL: own time, else observed, else a timestamp attribute, else received
    "effective_from": pl.String(),  # 'own', 'observed', 'attribute' or 'received'
    # Who says it, and what kind of record it is.
    "signal": pl.String(),  # 'span', 'log' or 'metric'
    "scope": pl.String(),
    "scope_version": pl.String(),
    "name": pl.String(),  # span name or event name
    "layer": pl.String(),  # '<signal>:<scope>'; two records of one layer are never one call
    "emitter": pl.String(),
    "rank": pl.UInt8(),  # lower = better source of tokens
    "role": pl.String(),  # 'call', 'aggregate' (repeats its calls, is never added) or 'outer' (who calls)
    # Its place in a trace (a log's: the span it was written in).
    "trace_hi": pl.UInt64(),
    "trace_lo": pl.UInt64(),
    "span_id": pl.UInt64(),
    "parent_span_id": pl.UInt64(),
    # The call.
    "started_at": TIME,  # never NULL
    "ended_at": TIME,  # never NULL; equals started_at where no duration is told
    "duration_ms": pl.Float64(),
    "ttft_ms": pl.Float64(),
    "status": pl.String(),  # 'ok' or 'error'
    "http_status": pl.Int16(),
    "error_type": pl.String(),
    "streaming": pl.Boolean(),
    "response_id": pl.String(),
    "request_id": pl.String(),
    # Attribution.
    "service": pl.String(),
    "instance": pl.String(),
    "agent": pl.String(),
    "session_id": pl.String(),
    "user_id": pl.String(),
    "account_id": pl.String(),
    "team": pl.String(),
    "project": pl.String(),
    "environment": pl.String(),
    "labels": _LABEL,  # tollbook.label.*
    # Who served it.
    "provider_name": pl.String(),  # as told
    "server_address": pl.String(),
    "server_port": pl.Int32(),
    "url": pl.String(),  # without user information, query and fragment
    "request_model": pl.String(),
    "response_model": pl.String(),
    "access_hint": pl.String(),  # what the record itself states, e.g. 'subscription', 'payg'
    "access_evidence": pl.String(),  # e.g. 'anthropic.plan=max'
    "headers": pl.String(),  # headers that tell the access or a plan's quota: 'name=value;name=value'
    "credential_kind": pl.String(),  # the beginning of the key, which tells its kind; never a key
    "plan_hint": pl.String(),  # the plan that the record names
    "reservation_id": pl.String(),
    # Tokens. Cache parts lie inside input, 1h writes inside cache writes, reasoning inside output.
    "input_tokens": pl.Int64(),
    "cache_read_tokens": pl.Int64(),
    "cache_write_tokens": pl.Int64(),
    "cache_write_1h_tokens": pl.Int64(),
    "output_tokens": pl.Int64(),
    "reasoning_tokens": pl.Int64(),
    "audio_input_tokens": pl.Int64(),
    "audio_output_tokens": pl.Int64(),
    # What the price depends on besides.
    "service_tier": pl.String(),
    "speed": pl.String(),
    "batch": pl.Boolean(),
    "region": pl.String(),
    "operation": pl.String(),  # gen_ai.operation.name, e.g. 'chat', 'embeddings'
    "reported_cost_usd": pl.Decimal(18, 12),  # what the emitter claims
    "anomalies": pl.List(pl.String()),  # codes, never NULL, e.g. 'input_tokens:absurd'
    "attributes": pl.Binary(),  # allow-listed attributes of record and resource, raw times: see `kept`
}

METRIC_POINTS: Final[Schema] = {  # data points of metrics that tell tokens or cost; never calls
    "id_hi": pl.UInt64(),  # stream, start and time
    "id_lo": pl.UInt64(),
    "stream_hi": pl.UInt64(),  # resource, scope, metric and the point's attributes
    "stream_lo": pl.UInt64(),
    "journal_offset": pl.Int64(),
    "received_at": TIME,
    "started_at": TIME,  # since when the value counts; NULL: not told
    "measured_at": TIME,  # until when; never NULL
    "scope": pl.String(),
    "scope_version": pl.String(),
    "name": pl.String(),  # of the metric
    "emitter": pl.String(),  # the same name that the emitter's calls have
    "service": pl.String(),
    "instance": pl.String(),
    "agent": pl.String(),
    "session_id": pl.String(),
    "user_id": pl.String(),
    "account_id": pl.String(),
    "team": pl.String(),
    "project": pl.String(),
    "environment": pl.String(),
    "provider_name": pl.String(),
    "server_address": pl.String(),
    "request_model": pl.String(),
    "response_model": pl.String(),
    "access_hint": pl.String(),
    "access_evidence": pl.String(),
    "operation": pl.String(),
    "temporality": pl.String(),  # 'delta' (add up), 'cumulative' (since started_at) or 'gauge'
    "quantity": pl.String(),  # 'input_tokens', 'cache_read_tokens', ..., 'total_tokens' or 'cost_usd'
    "value": pl.Float64(),  # tokens, or USD; whole for tokens; of histograms the sum
    "count": pl.Int64(),  # how many measurements a histogram's sum is of (calls, mostly); NULL of sums
    "input_excludes_cache": pl.Boolean(),  # what 'input_tokens' means in this stream
    "output_excludes_reasoning": pl.Boolean(),
}

LINKS: Final[Schema] = {
    "trace_hi": pl.UInt64(),
    "trace_lo": pl.UInt64(),
    "span_id": pl.UInt64(),
    "parent_span_id": pl.UInt64(),  # NULL: a root
    "started_at": TIME,
}

REJECTS: Final[Schema] = {
    "journal_offset": pl.Int64(),
    "signal": pl.String(),
    "reason": pl.String(),  # a sentence without content
    "received_at": TIME,
}

FIDELITY: Final[Schema] = {  # how faithfully emitters tell: counts of records as they came
    "emitter": pl.String(),
    "content_records": pl.Int64(),  # that carried prompts, answers and the like, all of which was dropped
    "content_bytes": pl.Int64(),  # of that
    "sampled_records": pl.Int64(),  # that say they stand for more than themselves
    "sampling_probability": pl.Float64(),  # the lowest that was told; NULL: none
}

UNRECOGNISED: Final[Schema] = {  # records that look like model calls and fit no dialect
    "scope": pl.String(),
    "name": pl.String(),
    "signal": pl.String(),
    "count": pl.Int64(),
}
