"""Telemetry made for tests with the real protobuf classes, as SDKs that follow the conventions send it."""

from __future__ import annotations

import itertools
import random
import time
from dataclasses import dataclass
from decimal import Decimal

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span

SCOPE = "opentelemetry.instrumentation.openai_v2"
GPT_4O_MINI = {"input": Decimal("0.15"), "cache_read": Decimal("0.075"), "output": Decimal("0.60")}
"""USD per million tokens, as published by OpenAI."""

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Call:
    """A model call as it really was: the truth a test holds the ledger against."""

    response_id: str
    input_tokens: int
    cache_read_tokens: int
    output_tokens: int
    started_ns: int

    @property
    def list_cost_usd(self) -> Decimal:
        """By hand, from the price sheet."""
        uncached = self.input_tokens - self.cache_read_tokens
        per_million = (
            uncached * GPT_4O_MINI["input"]
            + self.cache_read_tokens * GPT_4O_MINI["cache_read"]
            + self.output_tokens * GPT_4O_MINI["output"]
        )
        return per_million / 1_000_000


def new_call(rng: random.Random, *, started_ns: int | None = None) -> Call:
    """A call with figures of its own."""
    return Call(
        response_id=f"chatcmpl-{next(_numbers)}-{rng.getrandbits(64):016x}",
        input_tokens=rng.randint(100, 9000),
        cache_read_tokens=rng.randint(0, 100),
        output_tokens=rng.randint(1, 900),
        started_ns=started_ns if started_ns is not None else time.time_ns() - rng.randint(0, 10**10),
    )


def attribute(key: str, value: str | int | float | bool) -> KeyValue:
    """One OTLP attribute."""
    kind = {bool: "bool_value", int: "int_value", float: "double_value", str: "string_value"}[type(value)]
    return KeyValue(key=key, value=AnyValue(**{kind: value}))


def span_of(call: Call, rng: random.Random) -> Span:
    """The span that an instrumentation of the OpenAI SDK sends for a call."""
    told = {
        "gen_ai.operation.name": "chat",
        "gen_ai.system": "openai",
        "gen_ai.request.model": "gpt-4o-mini",
        "gen_ai.response.model": "gpt-4o-mini-2024-07-18",
        "gen_ai.response.id": call.response_id,
        "gen_ai.usage.input_tokens": call.input_tokens,
        "gen_ai.usage.cache_read.input_tokens": call.cache_read_tokens,
        "gen_ai.usage.output_tokens": call.output_tokens,
        "server.address": "api.openai.com",
    }
    return Span(
        trace_id=rng.randbytes(16),
        span_id=rng.randbytes(8),
        name="chat gpt-4o-mini",
        kind=Span.SPAN_KIND_CLIENT,
        start_time_unix_nano=call.started_ns,
        end_time_unix_nano=call.started_ns + 750_000_000,
        attributes=[attribute(key, value) for key, value in told.items()],
    )


def export(
    spans: list[Span], *, service: str = "shop-agent", team: str = "checkout", scope: str = SCOPE
) -> bytes:
    """An export request's body."""
    resource = ResourceSpans()
    resource.resource.attributes.extend([attribute("service.name", service), attribute("team.id", team)])
    resource.scope_spans.add(spans=spans).scope.name = scope
    return ExportTraceServiceRequest(resource_spans=[resource]).SerializeToString()
