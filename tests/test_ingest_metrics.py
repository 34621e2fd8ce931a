"""Data points of metrics: what they say, in which stream, and that they are never calls."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric

from ingest.observation import METRIC_POINTS
from ingest.segment import Frame, Kind
from tests.ingest_decode_support import CAPTURES, RECEIVED_NS, capture_frames, frame, observed

NAMES = sorted(path.parent.name for path in CAPTURES.glob("*/expected.json"))
START, END = RECEIVED_NS - 2 * 10**9, RECEIVED_NS - 10**9
CLAUDE = "com.anthropic.claude_code"


def metric_frame(
    metric: Metric, *, scope: str = CLAUDE, resource: dict[str, str] | None = None, offset: int = 1
) -> Frame:
    request = ExportMetricsServiceRequest()
    holder = request.resource_metrics.add()
    for key, text in (resource or {"service.name": "shop"}).items():
        holder.resource.attributes.add(key=key).value.string_value = text
    group = holder.scope_metrics.add()
    group.scope.name = scope
    group.metrics.append(metric)
    return frame(Kind.METRICS_PROTO, request.SerializeToString(), offset=offset)


def tokens(value: float = 5, *, kind: str = "input", end: int = END, temporality: int = 1) -> Metric:
    metric = Metric(name="claude_code.token.usage")
    metric.sum.aggregation_temporality = temporality  # type: ignore[assignment]
    point = metric.sum.data_points.add(as_double=value, start_time_unix_nano=START, time_unix_nano=end)
    point.attributes.add(key="type").value.string_value = kind
    point.attributes.add(key="model").value.string_value = "claude-sonnet-4-5"
    return metric


def points(*frames: Frame) -> pl.DataFrame:
    found = observed(*frames)
    assert found.observations.is_empty()
    assert found.rejects.is_empty()
    return found.metric_points


def sums(capture: str, name: str) -> dict[str, float]:
    """What the last point of each of a metric's streams says, by quantity."""
    found = observed(*capture_frames(capture)).metric_points.filter(pl.col("name") == name)
    last = found.sort("measured_at").group_by("stream_hi", "stream_lo").last()
    if "delta" in set(found["temporality"]):
        last = found.unique(["id_hi", "id_lo"])
    return dict(last.group_by("quantity").agg(pl.col("value").sum()).rows())


def served(capture: str) -> dict[str, int]:
    """What was served in all, under the names of quantities."""
    calls = json.loads((CAPTURES / capture / "expected.json").read_text())["calls"]
    writes = ("cache_write_5m", "cache_write_1h", "cache_write_30m")
    return {
        "uncached": sum(call["input_uncached"] for call in calls),
        "cache_read_tokens": sum(call["cache_read"] for call in calls),
        "cache_write_tokens": sum(call[part] for call in calls for part in writes),
        "output_tokens": sum(call["output"] for call in calls),
        "reasoning_tokens": sum(call["reasoning"] for call in calls),
    }


@pytest.mark.parametrize("capture", ["claude-code-http", "claude-code-grpc-cumulative"])
def test_claude_codes_metrics_add_up_to_what_was_served(capture: str) -> None:
    told, truth = sums(capture, "claude_code.token.usage"), served(capture)
    assert told["input_tokens"] == truth["uncached"]
    assert {name: told[name] for name in ("cache_read_tokens", "cache_write_tokens", "output_tokens")} == {
        name: truth[name] for name in ("cache_read_tokens", "cache_write_tokens", "output_tokens")
    }


@pytest.mark.parametrize(
    ("capture", "name"),
    [("codex-http", "codex.turn.token_usage"), ("qwen-code-grpc", "qwen-code.token.usage")],
)
def test_inclusive_metrics_add_up_too(capture: str, name: str) -> None:
    told, truth = sums(capture, name), served(capture)
    whole = truth["uncached"] + truth["cache_read_tokens"] + truth["cache_write_tokens"]
    assert told["input_tokens"] == whole
    assert told["output_tokens"] == truth["output_tokens"]
    assert told["reasoning_tokens"] == truth["reasoning_tokens"]


def test_gemini_clis_output_leaves_thoughts_out_and_says_so() -> None:
    told, truth = sums("gemini-cli-http-tool", "gemini_cli.token.usage"), served("gemini-cli-http-tool")
    assert told["output_tokens"] + told["reasoning_tokens"] == truth["output_tokens"]
    found = observed(*capture_frames("gemini-cli-http-tool")).metric_points
    assert found["output_excludes_reasoning"].all()


@pytest.mark.parametrize("capture", NAMES)
def test_points_are_never_calls_and_belong_to_known_emitters(capture: str) -> None:
    found = observed(*capture_frames(capture))
    assert dict(found.metric_points.schema) == METRIC_POINTS
    assert "metric" not in set(found.observations["signal"])
    emitters = set(found.observations["emitter"])
    assert set(found.metric_points["emitter"]) <= emitters or not emitters


def test_a_point_tells_what_its_metric_means() -> None:
    (row,) = points(metric_frame(tokens(7.0))).to_dicts()
    assert (row["quantity"], row["value"], row["temporality"], row["count"]) == (
        "input_tokens",
        7,
        "delta",
        None,
    )
    assert (row["emitter"], row["service"], row["request_model"]) == (
        "claude-code",
        "shop",
        "claude-sonnet-4-5",
    )
    assert row["input_excludes_cache"] is True
    assert (row["started_at"] < row["measured_at"], row["response_model"]) == (True, None)


def test_identities_tell_streams_and_points_apart() -> None:
    base, later = tokens(), tokens(9, end=END + 10**9)
    other = tokens(kind="output")
    found = points(metric_frame(base), metric_frame(later), metric_frame(other), metric_frame(base, offset=9))
    streams = list(zip(found["stream_hi"], found["stream_lo"], strict=True))
    identities = list(zip(found["id_hi"], found["id_lo"], strict=True))
    assert (streams[0] == streams[1], streams[0] == streams[2]) == (True, False)
    assert identities[0] == identities[3]
    assert len(set(identities)) == 3
    elsewhere = points(metric_frame(base, resource={"service.name": "shop", "service.instance.id": "2"}))
    assert elsewhere["stream_hi"][0] != found["stream_hi"][0]


def test_attributes_in_another_order_are_the_same_stream() -> None:
    turned = tokens()
    pair = turned.sum.data_points[0].attributes.pop(0)
    turned.sum.data_points[0].attributes.append(pair)
    found = points(metric_frame(tokens()), metric_frame(turned))
    assert found["id_lo"].n_unique() == 1


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_values_that_cannot_be_are_left_out(value: float) -> None:
    assert points(metric_frame(tokens(value))).is_empty()


def test_points_of_other_kinds_and_metrics_are_left_out() -> None:
    assert points(metric_frame(tokens(kind="unheard of"))).is_empty()
    other = tokens()
    other.name = "http.server.duration"
    assert points(metric_frame(other)).is_empty()
    assert points(metric_frame(tokens(end=0))).is_empty()


def test_histograms_tell_their_sum_and_count() -> None:
    metric = Metric(name="gen_ai.client.token.usage")
    metric.histogram.aggregation_temporality = 2  # type: ignore[assignment]
    point = metric.histogram.data_points.add(count=3, sum=21.0, time_unix_nano=END)
    point.attributes.add(key="gen_ai.token.type").value.string_value = "output"
    (row,) = points(metric_frame(metric, scope="some.sdk")).to_dicts()
    assert (row["quantity"], row["value"], row["count"]) == ("output_tokens", 21, 3)
    assert (row["temporality"], row["started_at"], row["emitter"]) == ("cumulative", None, "some.sdk")


def test_json_points_are_the_same_as_protobuf_points() -> None:
    """Integers come as numbers or texts, the temporality as number or name."""
    for number, kind in ((5, 1), ("5", "AGGREGATION_TEMPORALITY_DELTA")):
        found = points(frame(Kind.METRICS_JSON, json.dumps(json_metric(number, kind)).encode()))
        whole = tokens()
        whole.sum.data_points[0].as_int = 5
        columns = pl.exclude("journal_offset")
        assert found.select(columns).equals(points(metric_frame(whole)).select(columns))


def json_metric(number: Any, temporality: Any) -> dict[str, Any]:
    texts = {"type": "input", "model": "claude-sonnet-4-5"}
    point = {
        "asInt": number,
        "startTimeUnixNano": str(START),
        "timeUnixNano": str(END),
        "attributes": [{"key": key, "value": {"stringValue": text}} for key, text in texts.items()],
    }
    data = {"aggregationTemporality": temporality, "dataPoints": [point]}
    metrics = [{"name": "claude_code.token.usage", "sum": data}]
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "shop"}}]}
    scoped = [{"scope": {"name": CLAUDE}, "metrics": metrics}]
    return {"resourceMetrics": [{"resource": resource, "scopeMetrics": scoped}]}
