"""The OpenTelemetry SDKs' own exporters deliver: what they sent is found in the journal, record by record."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.grpc import _log_exporter as grpc_logs
from opentelemetry.exporter.otlp.proto.grpc import metric_exporter as grpc_metrics
from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as grpc_traces
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http import _log_exporter as http_logs
from opentelemetry.exporter.otlp.proto.http import metric_exporter as http_metrics
from opentelemetry.exporter.otlp.proto.http import trace_exporter as http_traces
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from ingest.journal import Kind
from tests.ingest_server import Receivers, receivers
from tests.node import JS, installed


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Receivers]:
    """Receivers with the usual limits."""
    async with receivers(tmp_path) as running:
        yield running


def exporters(server: Receivers, protocol: str, compression: str) -> tuple[Any, Any, Any]:
    """The SDK's exporters for traces, logs and metrics."""
    if protocol == "grpc":
        more = {
            "endpoint": server.grpc,
            "insecure": True,
            "compression": grpc_traces.Compression.Gzip if compression else None,
        }
        return (
            grpc_traces.OTLPSpanExporter(**more),
            grpc_logs.OTLPLogExporter(**more),
            grpc_metrics.OTLPMetricExporter(**more),
        )
    squeezed = Compression(compression or "none")
    return (
        http_traces.OTLPSpanExporter(f"{server.http}/v1/traces", compression=squeezed),
        http_logs.OTLPLogExporter(f"{server.http}/v1/logs", compression=squeezed),
        http_metrics.OTLPMetricExporter(f"{server.http}/v1/metrics", compression=squeezed),
    )


def send_with_python_sdk(traces: Any, logs: Any, metrics: Any) -> list[bytes]:
    """Ten model calls, a log record and a counter through the SDK; the span ids."""
    tracing, logging, metering = (
        TracerProvider(),
        LoggerProvider(),
        MeterProvider([PeriodicExportingMetricReader(metrics, export_interval_millis=60_000)]),
    )
    tracing.add_span_processor(BatchSpanProcessor(traces))
    logging.add_log_record_processor(BatchLogRecordProcessor(logs))
    ids = []
    for number in range(10):
        with tracing.get_tracer("genai").start_span("chat gpt-4o") as span:
            span.set_attribute("gen_ai.usage.input_tokens", 1000 + number)
            ids.append(span.get_span_context().span_id.to_bytes(8, "big"))
    logging.get_logger("agent").emit(
        LogRecord(event_name="api_request", body="hi", severity_number=SeverityNumber.INFO, timestamp=17)
    )
    metering.get_meter("agent").create_counter("tokens").add(42)
    for provider in (tracing, logging, metering):
        assert provider.force_flush()
        provider.shutdown()
    return ids


@pytest.mark.parametrize("compression", ["", "gzip"])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
async def test_the_python_exporters_deliver(server: Receivers, protocol: str, compression: str) -> None:
    sent = await asyncio.to_thread(send_with_python_sdk, *exporters(server, protocol, compression))
    spans, records, points = [], [], []
    for frame in server.frames():
        if frame.kind == Kind.TRACES_PROTO:
            for resource in ExportTraceServiceRequest.FromString(frame.body).resource_spans:
                spans += [span for scope in resource.scope_spans for span in scope.spans]
        elif frame.kind == Kind.LOGS_PROTO:
            for resource in ExportLogsServiceRequest.FromString(frame.body).resource_logs:
                records += [record for scope in resource.scope_logs for record in scope.log_records]
        else:
            for resource in ExportMetricsServiceRequest.FromString(frame.body).resource_metrics:
                points += [
                    (metric.name, point.as_int)
                    for scope in resource.scope_metrics
                    for metric in scope.metrics
                    for point in metric.sum.data_points
                ]
    assert [span.span_id for span in spans] == sent
    assert [span.attributes[0].value.int_value for span in spans] == list(range(1000, 1010))
    assert [(record.event_name, record.body.string_value) for record in records] == [("api_request", "hi")]
    assert ("tokens", 42) in points
    counts = server.intake.counts
    assert sum(counts.requests.values()) == sum(counts.acknowledged.values()) >= 3
    assert not any(counts.refused.values())


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """The JavaScript exporters."""
    return installed("exporters")


@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("exporter", ["http", "proto", "grpc"])
async def test_the_javascript_exporters_deliver(
    server: Receivers, node_modules: Path, exporter: str, compression: str
) -> None:
    script = node_modules / "send.cjs"
    await asyncio.to_thread(shutil.copy, JS / "exporters" / "send.cjs", script)
    endpoint = f"http://{server.grpc}" if exporter == "grpc" else f"{server.http}/v1/traces"
    process = await asyncio.create_subprocess_exec(
        "node", str(script), exporter, endpoint, compression, stdout=subprocess.PIPE, cwd=node_modules
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0
    frames = server.frames()
    assert {frame.kind for frame in frames} == {Kind.TRACES_JSON if exporter == "http" else Kind.TRACES_PROTO}
    received = [span for frame in frames for span in span_ids(frame.kind, frame.body)]
    assert received == json.loads(output)
    assert len(received) == 5


def span_ids(kind: int, body: bytes) -> list[str]:
    """The span ids of an export request as hex."""
    if kind == Kind.TRACES_PROTO:
        request = ExportTraceServiceRequest.FromString(body)
        return [
            span.span_id.hex()
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
    return [
        span["spanId"]
        for resource in json.loads(body)["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]
