"""What is stored of a record is enough to read it again, with the dialects of the day."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from polars.testing import assert_frame_equal

from ingest.dialect import load_dialects
from ingest.reobserve import STORED, reobserve
from ingest.segment import Frame, Kind
from tests.ingest_decode_support import CAPTURES, RECEIVED_NS, capture_frames, kept, observed, span_frame

CHAT = {"gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": 7, "gen_ai.usage.output_tokens": 3}


@pytest.mark.parametrize("capture", sorted(path.parent.name for path in CAPTURES.glob("*/expected.json")))
def test_stored_observations_read_again_are_the_same(capture: str) -> None:
    first = observed(*capture_frames(capture)).observations
    assert_frame_equal(reobserve(first.select(STORED)), first)


def test_what_was_dropped_on_the_way_in_stays_noted() -> None:
    told = CHAT | {"user.id": "ann@example.com", "gen_ai.response.model": "m" * 5000}
    first = observed(
        span_frame(told | {"url.full": "https://me:pw@h.example/x?q=1", "tollbook.label.a": "b"})
    )
    again = reobserve(first.observations.select(STORED))
    assert_frame_equal(again, first.observations)
    assert again["anomalies"].to_list() == [["email:user.id", "too_long:gen_ai.response.model"]]


@pytest.mark.parametrize("time_ns", [0, 1, RECEIVED_NS - 123_456_789, (1 << 64) - 1])
def test_raw_times_survive(time_ns: int) -> None:
    first = observed(span_frame(CHAT, start_time_unix_nano=time_ns, end_time_unix_nano=time_ns)).observations
    assert_frame_equal(reobserve(first.select(STORED)), first)


def test_better_dialects_read_more() -> None:
    first = observed(span_frame(CHAT | {"team.id": "red", "gen_ai.agent.id": "a7"})).observations
    again = reobserve(first.select(STORED), load_dialects({"team": ["gen_ai.agent.id"]}))
    assert (first["team"].item(), again["team"].item()) == ("red", "a7")


def test_no_observations_are_none() -> None:
    assert reobserve(observed().observations).is_empty()


@pytest.mark.parametrize("size", [1, 12, 126, 127, 128, 300, 1024])
def test_texts_of_every_length_are_kept(size: int) -> None:
    (row,) = observed(
        span_frame(CHAT | {"gen_ai.response.id": "é" * (size // 2) + "x" * (size % 2)})
    ).observations.to_dicts()
    assert len(kept(row["attributes"])["gen_ai.response.id"].encode()) == size


def test_only_what_was_read_is_kept_of_an_odd_attribute() -> None:
    """The bytes of an attribute may hold more than its value: unknown fields are content."""
    odd = KeyValue(key="gen_ai.response.id", value=AnyValue(string_value="r1")).SerializeToString()
    odd += bytes([15 << 3 | 2, 6]) + b"secret"
    (row,) = observed(with_attribute(odd)).observations.to_dicts()
    assert (row["response_id"], b"secret" in row["attributes"]) == ("r1", False)
    assert kept(row["attributes"])["gen_ai.response.id"] == "r1"


def with_attribute(pair: bytes) -> Frame:
    """A span with one more attribute, written as it is (all lengths around it under 128 bytes grow)."""
    request = ExportTraceServiceRequest.FromString(span_frame(CHAT).body)
    span = request.resource_spans[0].scope_spans[0].spans[0].SerializeToString()
    span += bytes([9 << 3 | 2, len(pair)]) + pair
    group = message(1, b"\x0a\x01s") + message(2, span)
    body = message(1, message(2, group))
    return Frame(offset=1, kind=Kind.TRACES_PROTO, received_at_ns=RECEIVED_NS, body=body)


def message(number: int, content: bytes) -> bytes:
    size = len(content)
    length = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
    return bytes([number << 3 | 2]) + length + content


def test_values_of_every_kind_are_kept() -> None:
    told: dict[str, Any] = {"gen_ai.request.stream": True, "operation.cost": 0.25, "server.port": 1 << 40}
    (row,) = observed(span_frame(CHAT | told)).observations.to_dicts()
    assert kept(row["attributes"]) == CHAT | told | {"service.name": "shop"}


def test_many_records_keep_their_own() -> None:
    """Attributes of neighbours, shared resources and long texts do not get mixed up."""
    rng = np.random.default_rng(5)
    told = [CHAT | {"gen_ai.response.id": "r" * int(size)} for size in rng.integers(1, 900, 300)]
    frames = [
        span_frame(*told[:150]),
        span_frame(*told[150:], trace_id=b"u" * 16, resource={"service.name": "b"}),
    ]
    found = observed(*frames).observations
    for row, wanted in zip(found.iter_rows(named=True), told, strict=True):
        assert kept(row["attributes"]) == wanted | {"service.name": row["service"]}
    assert_frame_equal(reobserve(found.select(STORED)), found)
    assert found.schema["attributes"] == pl.Binary
