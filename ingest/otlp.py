"""The OTLP vocabulary of the receivers: three signals, two encodings, and what belongs to each of them.

A table, so that the receivers have no branches per signal. It knows the names on the wire and nothing of what
the records mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from .journal import Kind


class Signal(StrEnum):
    """What an export request carries."""

    TRACES = "traces"
    LOGS = "logs"
    METRICS = "metrics"


class Encoding(StrEnum):
    """How an export request is written; also the content type of its answer."""

    PROTOBUF = "application/x-protobuf"
    JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Shape:
    """What a signal looks like on the wire: the request message, its JSON lists from the outside in, its
    service.
    """

    request: type[Message]
    field: str
    json_lists: tuple[str, str, str]
    grpc_service: str


SHAPES: Final[dict[Signal, Shape]] = {
    Signal.TRACES: Shape(
        request=ExportTraceServiceRequest,
        field="resource_spans",
        json_lists=("resourceSpans", "scopeSpans", "spans"),
        grpc_service="opentelemetry.proto.collector.trace.v1.TraceService",
    ),
    Signal.LOGS: Shape(
        request=ExportLogsServiceRequest,
        field="resource_logs",
        json_lists=("resourceLogs", "scopeLogs", "logRecords"),
        grpc_service="opentelemetry.proto.collector.logs.v1.LogsService",
    ),
    Signal.METRICS: Shape(
        request=ExportMetricsServiceRequest,
        field="resource_metrics",
        json_lists=("resourceMetrics", "scopeMetrics", "metrics"),
        grpc_service="opentelemetry.proto.collector.metrics.v1.MetricsService",
    ),
}

KINDS: Final[dict[tuple[Signal, Encoding], Kind]] = {
    (Signal.TRACES, Encoding.PROTOBUF): Kind.TRACES_PROTO,
    (Signal.TRACES, Encoding.JSON): Kind.TRACES_JSON,
    (Signal.LOGS, Encoding.PROTOBUF): Kind.LOGS_PROTO,
    (Signal.LOGS, Encoding.JSON): Kind.LOGS_JSON,
    (Signal.METRICS, Encoding.PROTOBUF): Kind.METRICS_PROTO,
    (Signal.METRICS, Encoding.JSON): Kind.METRICS_JSON,
}
