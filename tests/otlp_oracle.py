"""The plain way to read OTLP, one protobuf object at a time: the decoder's differential oracle.

`scrambled` writes the same message differently on the wire: fields in another order, singular fields set
before they are set again, unknown fields and groups in between, varints longer than they need to be.
"""

from __future__ import annotations

import random
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from ingest.anyvalue import FLAG, INTEGER, OTHER, REAL, TEXT, read_values
from ingest.otlp_columns import LOG, METRIC, SPAN, Attributes, Columns

REQUESTS = {
    SPAN: ExportTraceServiceRequest,
    LOG: ExportLogsServiceRequest,
    METRIC: ExportMetricsServiceRequest,
}

Row = dict[str, Any]


def plain_rows(signal: int, body: bytes) -> list[Row]:
    """What a body says, read by protobuf's own code."""
    request = REQUESTS[signal].FromString(body)
    holders = ("resource_spans", "resource_logs", "resource_metrics")[signal]
    groups = ("scope_spans", "scope_logs", "scope_metrics")[signal]
    records = ("spans", "log_records", "metrics")[signal]
    rows = []
    for holder in getattr(request, holders):
        for group in getattr(holder, groups):
            for record in getattr(group, records):
                row = {
                    "signal": signal,
                    "resource": _pairs(holder.resource.attributes),
                    "scope": (group.scope.name, group.scope.version, _pairs(group.scope.attributes)),
                    **(_span, _log, _metric)[signal](record),
                }
                rows.append(row)
    return rows


def _span(span: Any) -> Row:
    return {
        "name": span.name,
        "ids": _ids(span.trace_id, span.span_id),
        "parent": _id(span.parent_span_id),
        "times": (span.start_time_unix_nano, span.end_time_unix_nano),
        "status": span.status.code,
        "attributes": _pairs(span.attributes),
    }


def _log(log: Any) -> Row:
    return {
        "name": log.event_name,
        "ids": _ids(log.trace_id, log.span_id),
        "parent": 0,
        "times": (log.time_unix_nano, log.observed_time_unix_nano),
        "status": log.severity_number,
        "attributes": _pairs(log.attributes),
    }


def _metric(metric: Any) -> Row:
    return {
        "name": metric.name,
        "ids": (0, 0, 0),
        "parent": 0,
        "times": (0, 0),
        "status": 0,
        "attributes": [],
    }


def _ids(trace: bytes, span: bytes) -> tuple[int, int, int]:
    whole = len(trace) == 16
    high, low = (trace[:8], trace[8:]) if whole else (b"", b"")
    return _id(high), _id(low), _id(span)


def _id(text: bytes) -> int:
    return int.from_bytes(text, "big") if len(text) == 8 else 0


def _pairs(attributes: Any) -> list[tuple[str, str]]:
    return [(pair.key, _value(pair.value)) for pair in attributes]


def _value(value: Any) -> str:
    kind = value.WhichOneof("value")
    if kind in {None, "string_value_strindex"}:
        return "nothing"
    if kind in {"array_value", "kvlist_value", "bytes_value"}:
        return "other"
    return f"{kind} {getattr(value, kind)!r}"


def column_rows(columns: Columns) -> list[Row]:
    """What the decoder's columns say, in the same form; spans first, then logs, then metrics."""
    records, buffer, scopes = columns.records, columns.buffer, columns.scopes
    own = _grouped(columns, columns.attributes)
    resources = _grouped(columns, columns.resource_attributes)
    scoped = _grouped(columns, columns.scope_attributes)

    def text(start: Any, end: Any, i: int) -> str:
        return buffer.cut(int(start[i]), int(end[i])).decode()

    rows = []
    for i in range(len(records)):
        scope = int(records.scope[i])
        named = text(scopes.name_start, scopes.name_end, scope)
        version = text(scopes.version_start, scopes.version_end, scope)
        row = {
            "signal": int(records.signal[i]),
            "resource": resources.get(int(records.resource[i]), []),
            "scope": (named, version, scoped.get(scope, [])),
            "name": text(records.name_start, records.name_end, i),
            "ids": (int(records.trace_hi[i]), int(records.trace_lo[i]), int(records.span_id[i])),
            "parent": int(records.parent_span_id[i]),
            "times": (int(records.time_ns[i]), int(records.late_ns[i])),
            "status": int(records.status[i]),
            "attributes": own.get(i, []),
        }
        rows.append(row)
    return rows


def _grouped(columns: Columns, attributes: Attributes) -> dict[int, list[tuple[str, str]]]:
    values = read_values(columns.buffer, attributes.start, attributes.end)
    grouped: dict[int, list[tuple[str, str]]] = {}
    for i in range(len(attributes.owner)):
        key = columns.buffer.cut(int(attributes.key_start[i]), int(attributes.key_end[i])).decode()
        kind, number = int(values.kind[i]), int(values.number[i])
        told = {
            FLAG: lambda number=number: f"bool_value {bool(number)!r}",
            INTEGER: lambda number=number: f"int_value {number!r}",
            REAL: lambda i=i: f"double_value {float(values.real[i])!r}",
            OTHER: lambda: "other",
            TEXT: lambda i=i: (
                f"string_value {columns.buffer.cut(int(values.start[i]), int(values.end[i])).decode()!r}"
            ),
        }
        grouped.setdefault(int(attributes.owner[i]), []).append((key, told.get(kind, lambda: "nothing")()))
    return grouped


# --- the same message, written differently -----------------------------------------------------------------


def scrambled(body: bytes, message: type[Message], rng: random.Random) -> bytes:
    """A body that protobuf reads as the same message, or as one with more in it; never shorter."""
    return _scramble(body, message.DESCRIPTOR, rng)


def _scramble(data: bytes, kind: Descriptor | None, rng: random.Random) -> bytes:
    numbered: dict[int, list[bytes]] = {}
    for number, wire, plain in _fields(data):
        field = kind.fields_by_number.get(number) if kind else None
        message = field.message_type if field is not None and wire == 2 else None
        payload = _scramble(plain, message, rng) if message is not None else plain
        if field is not None and not field.is_repeated and rng.random() < 0.1:
            numbered.setdefault(number, []).append(_decoy(field, number, wire, payload, rng))
        numbered.setdefault(number, []).append(_written(number, wire, payload, rng))
    if rng.random() < 0.2:
        numbered.setdefault(1900, []).append(_unknown(rng))
    parts = []
    while numbered:
        number = rng.choice(sorted(numbered))
        parts.append(numbered[number].pop(0))
        if not numbered[number]:
            del numbered[number]
    return b"".join(parts)


def _decoy(field: FieldDescriptor, number: int, wire: int, payload: bytes, rng: random.Random) -> bytes:
    """An earlier setting of a singular field: the last counts (of messages: both, merged)."""
    if wire == 2 and field.message_type is None:
        return _written(number, wire, b"decoy", rng)
    other = {0: b"\x00", 1: bytes(8), 2: payload, 5: bytes(4)}[wire]
    return _written(number, wire, other, rng)


def _unknown(rng: random.Random) -> bytes:
    wire = rng.choice([0, 1, 2, 5, 3])
    if wire == 3:
        return _varint(1900 << 3 | 3) + _varint(1900 << 3 | 4)
    return _written(1900, wire, {0: b"\x07", 1: bytes(8), 2: b"whatever", 5: bytes(4)}[wire], rng)


def _written(number: int, wire: int, payload: bytes, rng: random.Random) -> bytes:
    tag = _varint(number << 3 | wire, longer=rng.random() < 0.05)
    if wire != 2:
        return tag + payload
    return tag + _varint(len(payload), longer=rng.random() < 0.1) + payload


def _varint(value: int, *, longer: bool = False) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + (bytes([value | 0x80, 0]) if longer else bytes([value]))


def _fields(data: bytes) -> list[tuple[int, int, bytes]]:
    """Fields of a message that protobuf wrote: number, wire type, payload (of varints: their bytes)."""
    found, at = [], 0
    while at < len(data):
        tag, at = _read(data, at)
        start = at
        if tag & 7 == 0:
            _, at = _read(data, at)
        elif tag & 7 == 2:
            size, start = _read(data, at)
            at = start + size
        else:
            at += 8 if tag & 7 == 1 else 4
        found.append((tag >> 3, tag & 7, data[start:at]))
    return found


def _read(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
