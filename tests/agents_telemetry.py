"""What an agent's own telemetry tells of a live call, in the ways in which one call is recognised.

`response_id`: the span of an SDK's instrumentation. `trace`: a span that tells no id, but is the parent that
the `traceparent` of the call named. `request_id`: the log event of Claude Code, which ends with the call.
`figures`: a span with neither: the same program, tokens and time are all there is to know it by.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.telemetry import attribute, export

TEAM = "checkout"
PROGRAM, USER_AGENT = "codex_cli_rs", "codex_cli_rs/0.128.0"
"""A program that the proxy knows by its user agent under the name that it has in its telemetry."""


@dataclass(frozen=True)
class SeenCall:
    """One call as its caller saw it; `input_tokens` is all input, `cache_read_tokens` within it."""

    provider: str
    model: str
    response_id: str
    request_id: str
    input_tokens: int
    cache_read_tokens: int
    output_tokens: int
    started_ns: int
    ended_ns: int
    trace_id: bytes
    span_id: bytes


def ways(provider: str) -> list[str]:
    """The ways in which a provider's call is told of."""
    return ["response_id", "trace", "figures", *(["request_id"] if provider == "anthropic" else [])]


def telling(call: SeenCall, way: str) -> tuple[str, bytes]:
    """The signal and the body of an export that tells of the call."""
    return ("logs", _log(call)) if way == "request_id" else ("traces", _span(call, way))


def _span(call: SeenCall, way: str) -> bytes:
    told = {
        "gen_ai.operation.name": "chat",
        "gen_ai.system": call.provider,
        "gen_ai.request.model": call.model,
        "gen_ai.usage.input_tokens": call.input_tokens,
        "gen_ai.usage.cache_read.input_tokens": call.cache_read_tokens,
        "gen_ai.usage.output_tokens": call.output_tokens,
    }
    if way == "response_id":
        told["gen_ai.response.id"] = call.response_id
    span = Span(
        trace_id=call.trace_id if way == "trace" else call.trace_id[::-1],
        span_id=call.span_id,
        name=f"chat {call.model}",
        kind=Span.SPAN_KIND_CLIENT,
        start_time_unix_nano=call.started_ns,
        end_time_unix_nano=call.ended_ns,
        attributes=[attribute(key, value) for key, value in told.items()],
    )
    return export([span], team=TEAM, service=PROGRAM if way == "figures" else "shop-agent")


def _log(call: SeenCall) -> bytes:
    told = {
        "event.name": "api_request",
        "model": call.model,
        "request_id": call.request_id,
        "input_tokens": call.input_tokens - call.cache_read_tokens,
        "cache_read_tokens": call.cache_read_tokens,
        "output_tokens": call.output_tokens,
        "duration_ms": (call.ended_ns - call.started_ns) // 10**6,
    }
    record = LogRecord(
        time_unix_nano=call.ended_ns,
        observed_time_unix_nano=time.time_ns(),
        attributes=[attribute(key, value) for key, value in told.items()],
    )
    record.body.string_value = "claude_code.api_request"
    resource = ResourceLogs()
    resource.resource.attributes.extend(
        [attribute("service.name", "claude-code"), attribute("team.id", TEAM)]
    )
    resource.scope_logs.add(log_records=[record]).scope.name = "com.anthropic.claude_code.events"
    return ExportLogsServiceRequest(resource_logs=[resource]).SerializeToString()
