"""OTLP/JSON, as senders really write it, to OTLP/protobuf, so that one scan reads both.

Why not `google.protobuf.json_format`: ids are hex in OTLP (base64 in protobuf's JSON), senders write
64-bit numbers as numbers or strings, enums as numbers or names, `"body": null`, and fields nobody knows;
and one bad record must not cost its neighbours. Span events, links, buckets and exemplars are not
carried over: the ledger reads nothing in them.

What it refuses: a record whose ids, times or attributes cannot be what OTLP says is left out, with a
reason that names the field and never its value. A body that is not OTLP/JSON at all (the receiver has
checked that) yields no records and one reason.
"""

from __future__ import annotations

import binascii
import json
import math
from base64 import b64decode
from collections.abc import Callable, Iterable
from typing import Any, Final

import orjson
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs, SeverityNumber
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AggregationTemporality,
    ExponentialHistogramDataPoint,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

_MAX_DEPTH: Final = 32  # of values within values
_WORD: Final = 1 << 64

Json = Any


class _Invalid(ValueError):
    """A value that OTLP does not allow; the message names the field."""


def transcode(body: bytes, signal: str) -> tuple[bytes, list[str]]:
    """The protobuf request of a JSON one (`signal`: 'span', 'log' or 'metric'), and a reason per
    record left out.
    """
    try:
        request = _parse(body)
    except (ValueError, RecursionError):
        return b"", ["body is not JSON"]
    reasons: list[str] = []
    build = {"span": _traces, "log": _logs, "metric": _metrics}[signal]
    return build(request, reasons), reasons


def _parse(body: bytes) -> Json:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return json.loads(body)  # half surrogate pairs and very large numbers are somebody's record, too


def _traces(request: Json, reasons: list[str]) -> bytes:
    holders = [
        ResourceSpans(
            resource=_resource(holder),
            scope_spans=[
                ScopeSpans(scope=_scope(group), spans=_records(group, "spans", _span, reasons))
                for group in _objects(holder, "scopeSpans")
            ],
        )
        for holder in _objects(request, "resourceSpans")
    ]
    return ExportTraceServiceRequest(resource_spans=holders).SerializeToString()


def _logs(request: Json, reasons: list[str]) -> bytes:
    holders = [
        ResourceLogs(
            resource=_resource(holder),
            scope_logs=[
                ScopeLogs(scope=_scope(group), log_records=_records(group, "logRecords", _log, reasons))
                for group in _objects(holder, "scopeLogs")
            ],
        )
        for holder in _objects(request, "resourceLogs")
    ]
    return ExportLogsServiceRequest(resource_logs=holders).SerializeToString()


def _metrics(request: Json, reasons: list[str]) -> bytes:
    holders = [
        ResourceMetrics(
            resource=_resource(holder),
            scope_metrics=[
                ScopeMetrics(scope=_scope(group), metrics=_records(group, "metrics", _metric, reasons))
                for group in _objects(holder, "scopeMetrics")
            ],
        )
        for holder in _objects(request, "resourceMetrics")
    ]
    return ExportMetricsServiceRequest(resource_metrics=holders).SerializeToString()


def _objects(parent: Json, key: str) -> list[dict[str, Json]]:
    found = parent.get(key) if isinstance(parent, dict) else None
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _records(group: Json, key: str, build: Callable[[Json], Any], reasons: list[str]) -> Iterable[Any]:
    for record in _objects(group, key):
        try:
            yield build(record)
        except _Invalid as invalid:
            reasons.append(f"record left out: {invalid}")


def _resource(holder: Json) -> Resource:
    return Resource(attributes=_sound_attributes(holder.get("resource")))


def _scope(group: Json) -> InstrumentationScope:
    scope = group.get("scope")
    scope = scope if isinstance(scope, dict) else {}
    return InstrumentationScope(
        name=_lenient_text(scope.get("name")),
        version=_lenient_text(scope.get("version")),
        attributes=_sound_attributes(scope),
    )


def _span(record: Json) -> Span:
    return Span(
        trace_id=_id(record, "traceId", size=16),
        span_id=_id(record, "spanId", size=8),
        parent_span_id=_id(record, "parentSpanId", size=8),
        trace_state=_lenient_text(record.get("traceState")),
        name=_text(record.get("name"), "name"),
        kind=_enum(record.get("kind"), Span.SpanKind, "kind"),  # type: ignore[arg-type]
        start_time_unix_nano=_time(record, "startTimeUnixNano"),
        end_time_unix_nano=_time(record, "endTimeUnixNano"),
        attributes=_attributes(record.get("attributes")),
        status=_status(record.get("status")),
    )


def _status(status: Json) -> Status | None:
    if not isinstance(status, dict):
        return None
    return Status(code=_enum(status.get("code"), Status.StatusCode, "status.code"))  # type: ignore[arg-type]


def _log(record: Json) -> LogRecord:
    content = record.get("body")
    return LogRecord(
        time_unix_nano=_time(record, "timeUnixNano"),
        observed_time_unix_nano=_time(record, "observedTimeUnixNano"),
        severity_number=_enum(record.get("severityNumber"), SeverityNumber, "severityNumber"),  # type: ignore[arg-type]
        severity_text=_text(record.get("severityText"), "severityText"),
        body=None if content is None else _value(content),
        attributes=_attributes(record.get("attributes")),
        trace_id=_id(record, "traceId", size=16),
        span_id=_id(record, "spanId", size=8),
        event_name=_text(record.get("eventName"), "eventName"),
    )


def _metric(record: Json) -> Metric:
    metric = Metric(name=_text(record.get("name"), "name"))
    for name, (field, point) in _DATA.items():
        data = record.get(name)
        if isinstance(data, dict):
            found = getattr(metric, field)
            found.data_points.extend(point(item) for item in _objects(data, "dataPoints"))
            if field != "gauge":
                kind = data.get("aggregationTemporality")
                found.aggregation_temporality = _enum(kind, AggregationTemporality, "temporality")
    return metric


def _number_point(point: Json) -> NumberDataPoint:
    found = NumberDataPoint(**_measured(point))
    if point.get("asInt") is not None:
        found.as_int = _integer(point["asInt"], "asInt", low=-(_WORD >> 1), high=_WORD >> 1)
    elif point.get("asDouble") is not None:
        found.as_double = _double(point["asDouble"], 0).double_value
    return found


def _histogram_point(point: Json) -> HistogramDataPoint:
    return HistogramDataPoint(**_measured(point), **_summed(point))


def _exponential_point(point: Json) -> ExponentialHistogramDataPoint:
    return ExponentialHistogramDataPoint(**_measured(point), **_summed(point))


def _measured(point: Json) -> dict[str, Any]:
    return {
        "attributes": _attributes(point.get("attributes")),
        "start_time_unix_nano": _time(point, "startTimeUnixNano"),
        "time_unix_nano": _time(point, "timeUnixNano"),
    }


def _summed(point: Json) -> dict[str, Any]:
    total = {} if point.get("sum") is None else {"sum": _double(point["sum"], 0).double_value}
    return {"count": _integer(point.get("count") or 0, "count", low=0, high=_WORD), **total}


_DATA: Final[dict[str, tuple[str, Callable[[Json], Any]]]] = {
    "gauge": ("gauge", _number_point),
    "sum": ("sum", _number_point),
    "histogram": ("histogram", _histogram_point),
    "exponentialHistogram": ("exponential_histogram", _exponential_point),
}


def _sound_attributes(owner: Json) -> list[KeyValue]:
    """Attributes of a resource or scope: a bad one is passed over, for its records are not to blame."""
    pairs = []
    for item in _objects(owner, "attributes"):
        try:
            pairs.append(_pair(item))
        except _Invalid:
            continue
    return pairs


def _attributes(items: Json) -> list[KeyValue]:
    if items is None:
        return []
    if not isinstance(items, list):
        raise _Invalid("attributes is not a list")
    return [_pair(item) for item in items]


def _pair(item: Json, depth: int = 0) -> KeyValue:
    if not isinstance(item, dict):
        raise _Invalid("an attribute is not an object")
    return KeyValue(key=_text(item.get("key"), "attribute key"), value=_value(item.get("value"), depth))


def _value(value: Json, depth: int = 0) -> AnyValue:
    if value is None:
        return AnyValue()
    if not isinstance(value, dict) or depth > _MAX_DEPTH:
        raise _Invalid("an attribute value is not an AnyValue")
    for name, read in _VALUES.items():
        if value.get(name) is not None:
            return read(value[name], depth)
    return AnyValue()


def _array(value: Json, depth: int) -> AnyValue:
    found = AnyValue()
    found.array_value.SetInParent()
    for item in _items(value):
        found.array_value.values.append(_value(item, depth + 1))
    return found


def _kvlist(value: Json, depth: int) -> AnyValue:
    found = AnyValue()
    found.kvlist_value.SetInParent()
    for item in _items(value):
        found.kvlist_value.values.append(_pair(item, depth + 1))
    return found


def _items(value: Json) -> list[Json]:
    found = value.get("values") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(found, list | None):
        raise _Invalid("a list value is not an object with values")
    return found or []


def _bool(value: Json, _: int) -> AnyValue:
    if not isinstance(value, bool):
        raise _Invalid("a boolValue is not a boolean")
    return AnyValue(bool_value=value)


def _double(value: Json, _: int) -> AnyValue:
    try:
        if isinstance(value, bool):
            raise ValueError
        return AnyValue(double_value=float(value))
    except (TypeError, ValueError, OverflowError):
        raise _Invalid("a doubleValue is not a number") from None


def _bytes(value: Json, _: int) -> AnyValue:
    try:
        return AnyValue(
            bytes_value=b64decode(
                value + "=" * (-len(value) % 4), altchars=b"-_" if {"-", "_"} & set(value) else None
            )
        )
    except (TypeError, ValueError):
        raise _Invalid("a bytesValue is not base64") from None


_VALUES: Final[dict[str, Callable[[Json, int], AnyValue]]] = {
    "stringValue": lambda value, _: AnyValue(string_value=_text(value, "a stringValue")),
    "intValue": lambda value, _: AnyValue(
        int_value=_integer(value, "an intValue", low=-(_WORD >> 1), high=_WORD >> 1)
    ),
    "boolValue": _bool,
    "doubleValue": _double,
    "arrayValue": _array,
    "kvlistValue": _kvlist,
    "bytesValue": _bytes,
}


def _text(value: Json, name: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _Invalid(f"{name} is not a string")
    return _encodable(value)


def _lenient_text(value: Json) -> str:
    return _encodable(value) if isinstance(value, str) else ""


def _encodable(value: str) -> str:
    """Text that UTF-8 can carry: half surrogate pairs (from senders that cut strings) become question
    marks.
    """
    return value if value.isascii() else value.encode("utf-8", "replace").decode()


def _id(record: Json, name: str, *, size: int) -> bytes:
    """An id in hex; base64 is taken too where the length says so (senders that use protobuf's own JSON)."""
    text = record.get(name)
    if not text:
        return b""
    try:
        found = bytes.fromhex(text) if len(text) == 2 * size else b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error):
        found = b""
    if len(found) != size:
        raise _Invalid(f"{name} is not an id of {size} bytes")
    return found


def _time(record: Json, name: str) -> int:
    return _integer(record.get(name) or 0, name, low=0, high=_WORD)


def _integer(value: Json, name: str, *, low: int, high: int) -> int:
    """An integer written as a number or as a string, low <= integer < high."""
    try:
        if isinstance(value, bool) or (
            isinstance(value, float) and not (math.isfinite(value) and value.is_integer())
        ):
            raise ValueError
        number = int(value)
    except (TypeError, ValueError):
        raise _Invalid(f"{name} is not an integer") from None
    if not low <= number < high:
        raise _Invalid(f"{name} is out of range")
    return number


def _enum(value: Json, kind: Any, name: str) -> int:
    """An enum written as its number or its name; unknown names are 0 (unspecified), as unknown
    numbers are to protobuf.
    """
    if value is None:
        return 0
    if isinstance(value, str) and not value.lstrip("-").isdigit():
        return int(kind.Value(value)) if value in kind.keys() else 0  # noqa: SIM118  (an enum type, not a dict)
    return _integer(value, name, low=-(1 << 31), high=1 << 31)
