"""OTLP/JSON as senders write it: the same observations as from protobuf, and one bad record costs
only itself.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from ingest.segment import Frame, Kind
from tests.ingest_decode_support import capture_frames, comparable, frame, observed

SPAN: dict[str, Any] = {
    "traceId": "5b8efff798038103d269b633813fc60c",
    "spanId": "eee19b7ec3c1b174",
    "name": "chat gpt-4o-mini",
    "kind": 3,
    "startTimeUnixNano": "1795328911433288766",
    "endTimeUnixNano": "1795328911533288766",
    "attributes": [
        {"key": "gen_ai.operation.name", "value": {"stringValue": "chat"}},
        {"key": "gen_ai.usage.input_tokens", "value": {"intValue": "12"}},
        {"key": "gen_ai.usage.output_tokens", "value": {"intValue": 34}},
    ],
}


def traces(*spans: Any) -> Frame:
    scope = {"scope": {"name": "test.scope"}, "spans": list(spans)}
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "shop"}}]}
    body = {"resourceSpans": [{"resource": resource, "scopeSpans": [scope]}]}
    return frame(Kind.TRACES_JSON, json.dumps(body).encode())


def as_json(one: Frame, *, numbers: bool) -> Frame:
    """A protobuf frame as an exporter would have sent it in JSON: hex ids, enums as numbers."""
    request = {
        Kind.TRACES_PROTO: ExportTraceServiceRequest,
        Kind.LOGS_PROTO: ExportLogsServiceRequest,
    }[Kind(one.kind)].FromString(one.body)
    body = json_format.MessageToDict(request, use_integers_for_enums=True)
    kind = Kind.TRACES_JSON if one.kind == Kind.TRACES_PROTO else Kind.LOGS_JSON
    return frame(kind, json.dumps(_hexed(body, numbers=numbers)).encode(), offset=one.offset)


def _hexed(value: Any, *, numbers: bool) -> Any:
    if isinstance(value, list):
        return [_hexed(item, numbers=numbers) for item in value]
    if not isinstance(value, dict):
        return value
    out = {}
    for key, item in value.items():
        if key in {"traceId", "spanId", "parentSpanId"}:
            out[key] = base64.b64decode(item).hex()
        elif key == "intValue" and numbers:
            out[key] = int(item)
        else:
            out[key] = _hexed(item, numbers=numbers)
    return out


@pytest.mark.parametrize("numbers", [True, False])
@pytest.mark.parametrize("capture", ["claude-code-traces-beta", "pydantic-ai", "google-adk"])
def test_json_and_protobuf_are_the_same_observations(capture: str, numbers: bool) -> None:
    frames = [f for f in capture_frames(capture) if f.kind in {Kind.TRACES_PROTO, Kind.LOGS_PROTO}]
    spoken = [as_json(one, numbers=numbers) for one in frames]
    assert comparable(observed(*spoken).observations) == comparable(observed(*frames).observations)
    assert observed(*spoken).links.equals(observed(*frames).links)


def test_numbers_come_as_numbers_and_as_strings() -> None:
    (row,) = observed(traces(SPAN)).observations.to_dicts()
    assert (row["input_tokens"], row["output_tokens"]) == (12, 34)
    assert row["span_id"] == 0xEEE19B7EC3C1B174
    assert row["duration_ms"] == 100.0


def test_nulls_unknown_fields_and_names_of_enums_are_taken() -> None:
    odd = {
        **SPAN,
        "status": {"code": "STATUS_CODE_ERROR", "message": None},
        "kind": "SPAN_KIND_CLIENT",
        "parentSpanId": "",
        "events": None,
        "links": None,
        "somethingNew": {"a": [1]},
        "startTimeUnixNano": 1795328911433288766,
    }
    (row,) = observed(traces(odd)).observations.to_dicts()
    assert (row["status"], row["parent_span_id"], row["input_tokens"]) == ("error", None, 12)


def test_a_log_without_a_body_is_a_log() -> None:
    record = {
        "body": None,
        "attributes": [
            {"key": "event.name", "value": {"stringValue": "api_request"}},
            {"key": "input_tokens", "value": {"intValue": 5}},
            {"key": "output_tokens", "value": {"intValue": 6}},
        ],
    }
    scope = {"scope": {"name": "com.anthropic.claude_code.events"}, "logRecords": [record]}
    body = json.dumps({"resourceLogs": [{"scopeLogs": [scope]}]}).encode()
    (row,) = observed(frame(Kind.LOGS_JSON, body)).observations.to_dicts()
    assert (row["input_tokens"], row["effective_from"]) == (5, "received")


BAD: dict[str, dict[str, Any]] = {
    "traceId": {"traceId": "not hex"},
    "startTimeUnixNano": {"startTimeUnixNano": "yesterday"},
    "attributes": {"attributes": "none"},
    "intValue": {"attributes": [{"key": "n", "value": {"intValue": "99999999999999999999"}}]},
    "doubleValue": {"attributes": [{"key": "n", "value": {"doubleValue": "secret words"}}]},
    "name": {"name": 17},
}


@pytest.mark.parametrize("field", sorted(BAD))
def test_a_bad_record_is_rejected_alone_and_not_quoted(field: str) -> None:
    found = observed(traces({**SPAN, **BAD[field]}, SPAN))
    assert found.observations.height == 1
    (reject,) = found.rejects.to_dicts()
    assert field in reject["reason"]
    assert "secret" not in reject["reason"]


def test_half_a_surrogate_pair_does_not_cost_the_record() -> None:
    """JavaScript cuts strings between the halves of an emoji."""
    cut = json.loads(json.dumps(SPAN))
    cut["attributes"].append({"key": "gen_ai.prompt", "value": {"stringValue": "CUT"}})
    one = traces(cut)
    body = one.body.replace(b'"CUT"', b'"\\ud83d"')
    assert observed(frame(Kind.TRACES_JSON, body)).observations.height == 1


@pytest.mark.parametrize(
    "body", [b"", b"[", b"[]", b"null", b'{"resourceSpans": 3}', b'{"resourceSpans": [3, null]}']
)
def test_what_is_not_otlp_yields_nothing(body: bytes) -> None:
    assert observed(frame(Kind.TRACES_JSON, body), traces(SPAN)).observations.height == 1


def test_values_nested_too_deeply_are_rejected() -> None:
    value: dict[str, Any] = {"stringValue": "x"}
    for _ in range(200):
        value = {"arrayValue": {"values": [value]}}
    deep = {**SPAN, "attributes": [{"key": "deep", "value": value}]}
    found = observed(traces(deep, SPAN))
    assert (found.observations.height, found.rejects.height) == (1, 1)
