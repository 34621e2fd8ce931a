"""The columnar decoder against protobuf's own: the same rows from everything protobuf reads."""

from __future__ import annotations

import random
from typing import Any

import polars as pl
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from ingest.decode import decode
from ingest.observe import observe
from ingest.otlp_columns import LOG, METRIC, SPAN
from ingest.segment import Frame, Kind
from tests.ingest_decode_support import CAPTURES, KINDS, capture_frames, expected, frame
from tests.otlp_oracle import REQUESTS, column_rows, plain_rows, scrambled

PROTO_KINDS = {SPAN: Kind.TRACES_PROTO, LOG: Kind.LOGS_PROTO, METRIC: Kind.METRICS_PROTO}
SIGNAL_OF = {kind: signal for signal, kind in PROTO_KINDS.items()}

texts = st.one_of(
    st.text(max_size=12), st.sampled_from(["gen_ai.operation.name", "chat", "é" * 90, "x" * 700])
)
numbers = st.one_of(st.integers(-(1 << 63), (1 << 63) - 1), st.integers(-3, 300))
values = st.one_of(
    st.builds(AnyValue),
    st.builds(AnyValue, string_value=texts),
    st.builds(AnyValue, bool_value=st.booleans()),
    st.builds(AnyValue, int_value=numbers),
    st.builds(AnyValue, double_value=st.floats()),
    st.builds(AnyValue, bytes_value=st.binary(max_size=5)),
)
nested = st.builds(
    lambda items: AnyValue(array_value={"values": items}),
    st.lists(values, max_size=3),  # type: ignore[arg-type]
)
pairs = st.lists(st.builds(KeyValue, key=texts, value=st.one_of(values, nested)), max_size=6)
bare_pairs = st.lists(
    st.one_of(pairs.filter(bool).map(lambda found: found[0]), st.builds(KeyValue, key=texts)), max_size=5
)
times = st.integers(0, (1 << 64) - 1)
traces, spans = (
    st.sampled_from([b"", bytes(16), b"t" * 16, b"bad"]),
    st.sampled_from([b"", b"12345678", b"x"]),
)
records: dict[int, st.SearchStrategy[Any]] = {
    SPAN: st.builds(
        Span,
        name=texts,
        trace_id=traces,
        span_id=spans,
        parent_span_id=spans,
        start_time_unix_nano=times,
        end_time_unix_nano=times,
        attributes=bare_pairs,
        status=st.one_of(st.none(), st.builds(Status, code=st.sampled_from([0, 1, 2]), message=texts)),
        flags=st.integers(0, (1 << 32) - 1),
        events=st.lists(st.builds(Span.Event, name=texts, attributes=pairs), max_size=2),
    ),
    LOG: st.builds(
        LogRecord,
        event_name=texts,
        trace_id=traces,
        span_id=spans,
        time_unix_nano=times,
        observed_time_unix_nano=times,
        severity_number=st.integers(0, 24),
        severity_text=texts,
        body=st.one_of(st.none(), values, nested),
        attributes=bare_pairs,
    ),
    METRIC: st.builds(Metric, name=texts),
}
LEVELS = {
    SPAN: ("resource_spans", "scope_spans", "spans"),
    LOG: ("resource_logs", "scope_logs", "log_records"),
    METRIC: ("resource_metrics", "scope_metrics", "metrics"),
}


@st.composite
def bodies(draw: st.DrawFn) -> tuple[int, bytes]:
    """A signal and a request of that signal."""
    signal = draw(st.sampled_from([SPAN, LOG, METRIC]))
    holder_list, group_list, record_list = LEVELS[signal]
    request = REQUESTS[signal]()
    for _ in range(draw(st.integers(0, 2))):
        holder = getattr(request, holder_list).add()
        holder.resource.attributes.extend(draw(pairs))
        for _ in range(draw(st.integers(0, 2))):
            group = getattr(holder, group_list).add()
            group.scope.name, group.scope.version = draw(texts), draw(texts)
            getattr(group, record_list).extend(draw(st.lists(records[signal], max_size=4)))
    return signal, request.SerializeToString()


def frames_of(listed: list[tuple[int, bytes]]) -> list[Frame]:
    return [frame(PROTO_KINDS[signal], body, offset=i) for i, (signal, body) in enumerate(listed)]


def plainly(listed: list[tuple[int, bytes]]) -> list[dict[str, Any]]:
    rows = [row for signal, body in listed for row in plain_rows(signal, body)]
    return sorted(rows, key=lambda row: row["signal"])  # a stable sort: the decoder lists spans first


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(st.lists(bodies(), max_size=4))
def test_random_requests_decode_as_protobuf_reads_them(listed: list[tuple[int, bytes]]) -> None:
    decoded = decode(frames_of(listed))
    assert str(column_rows(decoded.columns)) == str(plainly(listed))


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(st.lists(bodies(), max_size=3), st.randoms(use_true_random=False))
def test_fields_in_any_order_decode_as_protobuf_reads_them(
    listed: list[tuple[int, bytes]], rng: random.Random
) -> None:
    """Reordered, repeated and unknown fields, groups, long varints: whatever protobuf makes of them."""
    written = [(signal, scrambled(body, REQUESTS[signal], rng)) for signal, body in listed]
    decoded = decode(frames_of(written))
    assert decoded.rejects.filter(reason="body is not valid protobuf").height == 0
    assert str(column_rows(decoded.columns)) == str(plainly(written))


def protobuf_captures() -> list[str]:
    """Those that were sent in protobuf altogether."""
    names = sorted(path.parent.name for path in CAPTURES.glob("*/expected.json"))
    return [n for n in names if not any("json" in (r["content_type"] or "") for r in expected(n)["requests"])]


@pytest.mark.parametrize("capture", protobuf_captures())
def test_captures_decode_as_protobuf_reads_them(capture: str) -> None:
    assert {KINDS[r["signal"], False] for r in expected(capture)["requests"]} <= set(SIGNAL_OF)
    frames = capture_frames(capture)
    listed = [(SIGNAL_OF[Kind(one.kind)], one.body) for one in frames]
    assert str(column_rows(decode(frames).columns)) == str(plainly(listed))


def test_many_requests_are_read_in_lockstep_as_few_are_one_by_one() -> None:
    """Above and below the number of messages from which numpy steps through them together."""
    for count in (1, 63, 64, 200):
        frames = capture_frames("pydantic-ai") * (count // 13 + 1)
        listed = [(SIGNAL_OF[Kind(one.kind)], one.body) for one in frames]
        assert str(column_rows(decode(frames).columns)) == str(plainly(listed))


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(bodies(), st.randoms(use_true_random=False))
def test_damaged_bodies_are_rejected_alone(listed: tuple[int, bytes], rng: random.Random) -> None:
    """Cut or flipped bytes: what protobuf still reads decodes the same, the rest goes to rejects alone."""
    signal, body = listed
    damaged = bytearray(body[: rng.randint(0, len(body))] if rng.random() < 0.5 else body)
    for _ in range(rng.randint(0, 3)):
        if damaged:
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
    sound = capture_frames("claude-code-traces-beta")
    found = decode([frame(PROTO_KINDS[signal], bytes(damaged), offset=99), *sound])
    try:
        plain = plain_rows(signal, bytes(damaged))
    except DecodeError:
        assert 99 in found.rejects["journal_offset"].to_list() or b"\xff" in damaged or not is_ascii(damaged)
    else:
        assert len(column_rows(found.columns)) == len(plain) + len(column_rows(decode(sound).columns))
    calls = observe(found).observations.filter(pl.col("journal_offset") != 99)
    assert calls.height >= observe(decode(sound)).observations.height


def is_ascii(data: bytearray) -> bool:
    """Text that is not UTF-8 makes protobuf refuse a body; the scan leaves that to the receiver."""
    return all(byte < 0x80 for byte in data)
