"""What the decode and dialect tests share: captures as journal frames, and decoding in one step."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue

from ingest.decode import decode
from ingest.kept import RECORD, RESOURCE
from ingest.observe import Observed, observe
from ingest.scan import LENGTH, Buffer, fields
from ingest.segment import Frame, Kind

CAPTURES = Path(__file__).parent.parent / "fixtures" / "captures"
RECEIVED_NS = 1_795_330_000_000_000_000  # after every capture
KINDS = {
    ("traces", False): Kind.TRACES_PROTO,
    ("traces", True): Kind.TRACES_JSON,
    ("logs", False): Kind.LOGS_PROTO,
    ("logs", True): Kind.LOGS_JSON,
    ("metrics", False): Kind.METRICS_PROTO,
    ("metrics", True): Kind.METRICS_JSON,
}


def expected(capture: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CAPTURES / capture / "expected.json").read_text())
    return found


def frame(kind: Kind, body: bytes, *, offset: int = 1) -> Frame:
    return Frame(offset=offset, kind=kind, received_at_ns=RECEIVED_NS, body=body)


def capture_frames(capture: str) -> list[Frame]:
    """The requests of a capture, in the order they were sent."""
    frames = []
    for number, request in enumerate(expected(capture)["requests"], start=1):
        body = (CAPTURES / capture / request["file"]).read_bytes()
        if request["content_encoding"] == "gzip":
            body = gzip.decompress(body)
        is_json = "json" in (request["content_type"] or "")
        frames.append(frame(KINDS[request["signal"], is_json], body, offset=number))
    return frames


def observed(*frames: Frame) -> Observed:
    return observe(decode(frames))


def rows(frames: Sequence[Frame]) -> list[dict[str, Any]]:
    return observed(*frames).observations.to_dicts()


def comparable(observations: pl.DataFrame) -> list[dict[str, Any]]:
    """Rows without what depends on the request they came in, attributes as sets, in the order of identity."""
    found = observations.drop("journal_offset").sort("id_hi", "id_lo").to_dicts()
    for row in found:
        row["attributes"] = sorted(kept(row["attributes"]).items(), key=str)
    return found


def kept(message: bytes) -> dict[str, Any]:
    """The attributes in a stored message (see `ingest.kept`), the record's and its resource's."""
    buffer = Buffer.of([message])
    listed = fields(buffer, np.zeros(1, dtype=np.int64), np.array([len(message)]))
    rows = np.concatenate([listed.rows(RECORD, LENGTH), listed.rows(RESOURCE, LENGTH)])
    found = {}
    for start, end in zip(listed.start[rows].tolist(), listed.end[rows].tolist(), strict=True):
        pair = KeyValue.FromString(buffer.cut(start, end))
        found[pair.key] = getattr(pair.value, str(pair.value.WhichOneof("value")))
    return found


def span_frame(
    *records: dict[str, Any],
    scope: str = "some.instrumentation",
    resource: dict[str, Any] | None = None,
    **changes: Any,
) -> Frame:
    """A request of spans with these attributes (ids made up, a tenth of a second long), `changes` to each."""
    request = ExportTraceServiceRequest()
    holder = request.resource_spans.add()
    _fill(holder.resource.attributes, resource or {"service.name": "shop"})
    group = holder.scope_spans.add()
    group.scope.name = scope
    for number, attributes in enumerate(records, start=1):
        span = group.spans.add(
            trace_id=b"t" * 16,
            span_id=number.to_bytes(8, "big"),
            name="a span",
            start_time_unix_nano=RECEIVED_NS - 10**9,
            end_time_unix_nano=RECEIVED_NS - 9 * 10**8,
        )
        _fill(span.attributes, attributes)
        for name, value in changes.items():
            setattr(span, name, value)
    return frame(Kind.TRACES_PROTO, request.SerializeToString())


def log_frame(
    attributes: dict[str, Any], *, scope: str = "com.anthropic.claude_code.events", **changes: Any
) -> Frame:
    """A request of one log record with these attributes."""
    request = ExportLogsServiceRequest()
    group = request.resource_logs.add().scope_logs.add()
    group.scope.name = scope
    log = group.log_records.add(time_unix_nano=RECEIVED_NS - 10**9)
    _fill(log.attributes, attributes)
    for name, value in changes.items():
        setattr(log, name, value)
    return frame(Kind.LOGS_PROTO, request.SerializeToString())


def _fill(to: Any, attributes: dict[str, Any]) -> None:
    kinds = {
        bool: "bool_value",
        int: "int_value",
        float: "double_value",
        str: "string_value",
        bytes: "bytes_value",
    }
    for key, value in attributes.items():
        setattr(to.add(key=key).value, kinds[type(value)], value)
