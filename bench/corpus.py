"""Synthetic OTLP traces for load: request bodies that are new every time and cost next to nothing to make.

Half of the spans are model calls with about 22 `gen_ai.*` attributes, half are the noise around them. A body
is built once as a template; each `fresh` copy gets new trace, span and response ids and new start times by
overwriting their bytes in place, so that nothing downstream recognises a repetition.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span

Octets = NDArray[np.uint8]
Places = NDArray[np.int64]

INPUT_TOKENS: Final = 1200
OUTPUT_TOKENS: Final = 345
_TRACE_MARK: Final = b"TRACE-ID-16-BYTE"
_SPAN_MARK: Final = b"SPAN%04d"  # 8 bytes, one of its own for every span of a template
_RESPONSE_MARK: Final = b"chatcmpl-RESPONSE-ID-OF-32-HEX-CHARACTERS"  # its last 32 bytes are replaced
_START_MARK: Final = (0x1111111111111111).to_bytes(8, "little")
_END_MARK: Final = (0x2222222222222222).to_bytes(8, "little")
_CALL_NS: Final = 850_000_000
_MODELS: Final = ("gpt-4o-2024-08-06", "gpt-4o-mini-2024-07-18", "o3-2025-04-16", "gpt-4.1-2025-04-14")
_AGENTS: Final = ("planner", "coder", "reviewer", "researcher", "triage")


def _patches(body: bytes, mark: bytes, *, last: int = 0) -> Places:
    """The positions of every byte of `mark` in `body`, one row an occurrence; of its `last` bytes if told."""
    found: list[int] = []
    at = body.find(mark)
    while at >= 0:
        found.append(at)
        at = body.find(mark, at + 1)
    width = last or len(mark)
    begins = np.array(found, np.int64).reshape(-1, 1) + (len(mark) - width)
    return begins + np.arange(width, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Template:
    """One request body and the places in it that differ from request to request, as rows of byte positions.

    `calls`: its model calls.
    """

    body: bytes
    spans: int
    calls: int
    traces: Places
    ids: Places
    responses: Places
    starts: Places
    ends: Places

    def fresh(self) -> bytearray:
        """A new body: one trace, new ids, calls that start now. Costs about 1 us a span."""
        made = bytearray(self.body)
        body = np.frombuffer(made, np.uint8)
        now = time.time_ns()
        body[self.traces] = _random(16)
        body[self.ids] = _random(8 * len(self.ids)).reshape(-1, 8)
        body[self.responses] = _hexadecimal(16 * len(self.responses)).reshape(-1, 32)
        body[self.starts] = _octets((now - _CALL_NS).to_bytes(8, "little"))
        body[self.ends] = _octets(now.to_bytes(8, "little"))
        return made


def _octets(text: bytes) -> Octets:
    return np.frombuffer(text, np.uint8)


def _random(count: int) -> Octets:
    return _octets(os.urandom(count))


def _hexadecimal(count: int) -> Octets:
    """Twice `count` random hexadecimal digits."""
    return _octets(os.urandom(count).hex().encode())


@cache
def template(spans: int) -> Template:
    """A template with `spans` spans, every other one a model call, beginning with a call."""
    body = _request(spans).SerializeToString()
    marks = [_SPAN_MARK % index for index in range(spans)]
    return Template(
        body=body,
        spans=spans,
        calls=(spans + 1) // 2,
        traces=_patches(body, _TRACE_MARK),
        ids=np.concatenate([_patches(body, mark) for mark in marks]),
        responses=_patches(body, _RESPONSE_MARK, last=32),
        starts=_patches(body, _START_MARK),
        ends=_patches(body, _END_MARK),
    )


def _request(spans: int) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    for key, value in (
        ("service.name", "bench-agent"),
        ("service.version", "1.0.0"),
        ("telemetry.sdk.name", "opentelemetry"),
        ("telemetry.sdk.language", "python"),
        ("tollbook.team", "bench"),
    ):
        _text(resource.resource.attributes.add(), key, value)
    scope = resource.scope_spans.add()
    scope.scope.name = "opentelemetry.instrumentation.openai_v2"
    scope.scope.version = "2.3b0"
    for index in range(spans):
        _add_call(scope, index) if index % 2 == 0 else _add_noise(scope, index)
    return request


def _add_span(scope: ScopeSpans, index: int, *, name: str) -> Span:
    return scope.spans.add(
        trace_id=_TRACE_MARK,
        span_id=_SPAN_MARK % index,
        name=name,
        kind=Span.SPAN_KIND_CLIENT,
        start_time_unix_nano=0x1111111111111111,
        end_time_unix_nano=0x2222222222222222,
    )


def _add_call(scope: ScopeSpans, index: int) -> None:
    model = _MODELS[index // 2 % len(_MODELS)]
    span = _add_span(scope, index, name=f"chat {model}")
    texts = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.system": "openai",
        "gen_ai.request.model": model.rsplit("-20", 1)[0],
        "gen_ai.response.model": model,
        "gen_ai.response.id": _RESPONSE_MARK.decode(),
        "gen_ai.agent.name": _AGENTS[index // 2 % len(_AGENTS)],
        "gen_ai.agent.id": f"agent-{index % 7}",
        "gen_ai.conversation.id": f"conversation-{index % 11}",
        "gen_ai.output.type": "text",
        "gen_ai.openai.request.service_tier": "default",
        "gen_ai.openai.response.service_tier": "default",
        "gen_ai.openai.response.system_fingerprint": "fp_44709d6fcb",
        "server.address": "api.openai.com",
    }
    numbers = {
        "gen_ai.usage.input_tokens": INPUT_TOKENS,
        "gen_ai.usage.output_tokens": OUTPUT_TOKENS,
        "gen_ai.usage.cache_read.input_tokens": 1024,
        "gen_ai.usage.reasoning.output_tokens": 64,
        "gen_ai.request.max_tokens": 4096,
        "gen_ai.request.choice.count": 1,
        "server.port": 443,
    }
    for key, text in texts.items():
        _text(span.attributes.add(), key, text)
    for key, number in numbers.items():
        attribute = span.attributes.add()
        attribute.key, attribute.value.int_value = key, number
    temperature = span.attributes.add()
    temperature.key, temperature.value.double_value = "gen_ai.request.temperature", 0.7


def _add_noise(scope: ScopeSpans, index: int) -> None:
    span = _add_span(scope, index, name="GET /api/documents")
    for key, text in {
        "http.request.method": "GET",
        "url.full": f"http://documents.internal/api/documents/{index}",
        "http.route": "/api/documents/{id}",
        "network.protocol.version": "1.1",
        "server.address": "documents.internal",
        "user_agent.original": "python-requests/2.32.3",
        "thread.name": "worker-3",
        "code.function.name": "documents.load",
    }.items():
        _text(span.attributes.add(), key, text)
    if index % 6 == 1:
        span.events.add(name="cache miss", time_unix_nano=0x1111111111111111)


def _text(attribute: object, key: str, text: str) -> None:
    attribute.key, attribute.value.string_value = key, text  # type: ignore[attr-defined]
