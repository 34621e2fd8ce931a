"""Journaled OTLP bodies to columns: every span, log record and metric of many requests at once.

Why: the ledger decodes across requests, so that the cost of a span does not depend on how many came in
one request. Nothing is interpreted here and no text is copied: names, keys and values stay slices of the
batch's buffer, and `observe` takes only the attributes that the dialects name any further.

What happens to what is odd: JSON is transcoded to protobuf first. A body that the scan cannot follow is
parsed and written anew by protobuf's own code and scanned again; one that protobuf refuses too goes to
`rejects`, alone. A frame that makes the decoder itself fail is found by bisection and rejected alone.
Reasons never quote content.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import polars as pl
from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from .dialect import Dialects, default_dialects
from .observation import LINKS, REJECTS
from .otlp_columns import LOG, METRIC, SIGNALS, SPAN, Columns, CrowdedBody, Records, read_columns
from .otlp_json import transcode
from .scan import Ints, Mask, Words
from .segment import Kind

__all__ = ["Decoded", "decode"]

_REQUESTS: Final[tuple[type[Message], ...]] = (
    ExportTraceServiceRequest,
    ExportLogsServiceRequest,
    ExportMetricsServiceRequest,
)
_PROTO: Final = {Kind.TRACES_PROTO: SPAN, Kind.LOGS_PROTO: LOG, Kind.METRICS_PROTO: METRIC}
_JSON: Final = {Kind.TRACES_JSON: SPAN, Kind.LOGS_JSON: LOG, Kind.METRICS_JSON: METRIC}


class _Frame(Protocol):
    """What is read of a journal frame."""

    @property
    def offset(self) -> int: ...
    @property
    def kind(self) -> int: ...
    @property
    def received_at_ns(self) -> int: ...
    @property
    def body(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Decoded:
    """A batch: `columns` over one buffer, `offset` and `received_ns` (int64) per body, `links`
    (LINKS), `rejects` (REJECTS); `identity`: high and low words per record where they are known already.
    """

    dialects: Dialects
    columns: Columns
    offset: Ints
    received_ns: Ints
    links: pl.DataFrame
    rejects: pl.DataFrame
    identity: tuple[Words, Words] | None = None


@dataclass(frozen=True, slots=True)
class _Body:
    """A protobuf body and the frame it came in."""

    frame: _Frame
    signal: int
    data: bytes


class _Rejects:
    """Collects rows of REJECTS."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, str, str, int]] = []

    def add(self, body: _Body, reason: str) -> None:
        frame = body.frame
        self.rows.append((frame.offset, SIGNALS[body.signal], reason, frame.received_at_ns // 1000))

    def frame(self) -> pl.DataFrame:
        raw = {**REJECTS, "received_at": pl.Int64()}
        return pl.DataFrame(self.rows, schema=raw, orient="row").cast({"received_at": REJECTS["received_at"]})


def decode(frames: Sequence[_Frame], dialects: Dialects | None = None) -> Decoded:
    """Decodes journal frames; those that are not OTLP are passed over."""
    known, rejects = dialects or default_dialects(), _Rejects()
    bodies = _bodies(frames, rejects)
    try:
        columns, read = _columns(bodies, known, rejects)
    except Exception:
        rejects = _Rejects()
        columns, read = _columns(_without_poison(_bodies(frames, rejects), known, rejects), known, rejects)
    nameless = _nameless(columns.records)
    for index in columns.records.body[nameless].tolist():
        rejects.add(read[index], "span without ids")
    return Decoded(
        dialects=known,
        columns=columns,
        offset=np.array([body.frame.offset for body in read], dtype=np.int64),
        received_ns=np.array([body.frame.received_at_ns for body in read], dtype=np.int64),
        links=_links(columns.records, ~nameless),
        rejects=rejects.frame(),
    )


def _bodies(frames: Sequence[_Frame], rejects: _Rejects) -> list[_Body]:
    bodies = []
    for frame in frames:
        if frame.kind in _PROTO:
            bodies.append(_Body(frame, _PROTO[Kind(frame.kind)], frame.body))
        elif frame.kind in _JSON:
            signal = _JSON[Kind(frame.kind)]
            data, reasons = transcode(frame.body, SIGNALS[signal])
            bodies.append(_Body(frame, signal, data))
            for reason in reasons:
                rejects.add(bodies[-1], reason)
    return bodies


def _columns(bodies: list[_Body], dialects: Dialects, rejects: _Rejects) -> tuple[Columns, list[_Body]]:
    """Scans; bodies found odd are normalised (or rejected) and all are scanned again."""
    while True:
        try:
            columns = read_columns([b.data for b in bodies], [b.signal for b in bodies], dialects.vocabulary)
        except CrowdedBody as crowded:
            rejects.add(bodies[crowded.body], "body has too many fields")
            bodies = bodies[: crowded.body] + bodies[crowded.body + 1 :]
            continue
        if not columns.odd.any():
            return columns, bodies
        bodies = _normalised(bodies, set(np.flatnonzero(columns.odd).tolist()), rejects)


def _normalised(bodies: list[_Body], odd: Collection[int], rejects: _Rejects) -> list[_Body]:
    kept = []
    for index, body in enumerate(bodies):
        if index not in odd:
            kept.append(body)
            continue
        message = _REQUESTS[body.signal]()
        try:
            message.ParseFromString(body.data)
        except DecodeError:
            rejects.add(body, "body is not valid protobuf")
            continue
        message.DiscardUnknownFields()
        again = message.SerializeToString(deterministic=True)
        if again == body.data:
            rejects.add(body, "body cannot be scanned")  # never seen; without it the scan would not end
            continue
        kept.append(_Body(body.frame, body.signal, again))
    return kept


def _without_poison(bodies: list[_Body], dialects: Dialects, rejects: _Rejects) -> list[_Body]:
    """The bodies that decode; each that makes the decoder fail is rejected alone."""
    try:
        _columns(bodies, dialects, _Rejects())
    except Exception as error:
        if len(bodies) > 1:
            half = len(bodies) // 2
            first = _without_poison(bodies[:half], dialects, rejects)
            return first + _without_poison(bodies[half:], dialects, rejects)
        rejects.add(bodies[0], f"decoder failed: {type(error).__name__}")
        return []
    return bodies


def _nameless(records: Records) -> Mask:
    """Spans without a trace id or span id (absent, zero or of a wrong length): they cannot be
    recognised again.
    """
    no_trace = (records.trace_hi | records.trace_lo) == 0
    nameless: Mask = (records.signal == SPAN) & (no_trace | (records.span_id == 0))
    return nameless


def _links(records: Records, named: Mask) -> pl.DataFrame:
    rows = np.flatnonzero(named & (records.signal == SPAN))
    names = ("trace_hi", "trace_lo", "span_id", "parent_span_id")
    started_us = np.minimum(records.time_ns[rows] // np.uint64(1000), np.uint64(1 << 62)).astype(np.int64)
    links = pl.DataFrame({name: getattr(records, name)[rows] for name in names} | {"started_at": started_us})
    return links.with_columns(
        parent_span_id=pl.when(pl.col("parent_span_id") != 0).then("parent_span_id"),
        started_at=pl.when(pl.col("started_at") != 0).then("started_at").cast(LINKS["started_at"]),
    )
