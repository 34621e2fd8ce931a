"""What is one call and what is not."""

from __future__ import annotations

from datetime import timedelta

import polars as pl

from billing.fusion import fuse
from tests.observed import NOON, link, links, observation, observations

LOG = {"layer": "log:agent", "signal": "log"}
UNTOLD = {"input_tokens": None, "output_tokens": None}


def groups(*rows: dict[str, object], joined: pl.DataFrame | None = None) -> list[int]:
    """The group of each row, in the rows' own order, numbered from 0 by first appearance."""
    frame = observations(*[{**row, "id_hi": n, "id_lo": n} for n, row in enumerate(rows)])
    fused = fuse(frame, joined if joined is not None else links()).sort("id_hi")
    return [int(group) for group in fused["group"]]


def test_a_log_and_a_span_of_one_response_are_one_call() -> None:
    span, log = observation(response_id="r1"), observation(response_id="r1", **LOG)
    assert groups(span, log) == [0, 0]


def test_a_log_and_a_span_of_one_request_are_one_call() -> None:
    assert groups(observation(request_id="q"), observation(request_id="q", **LOG)) == [0, 0]


def test_two_records_of_one_layer_are_two_calls() -> None:
    assert groups(observation(response_id="r1"), observation(response_id="r1")) == [0, 1]


def test_twenty_identical_calls_are_twenty() -> None:
    assert groups(*[observation() for _ in range(20)]) == list(range(20))


def test_an_id_that_repeats_later_is_another_call() -> None:
    later = NOON + timedelta(minutes=10)
    assert groups(
        observation(response_id="chatcmpl-123"),
        observation(response_id="chatcmpl-123", started_at=later, **LOG),
    ) == [0, 1]


def test_contradicting_tokens_keep_records_apart() -> None:
    span, log = observation(response_id="r"), observation(response_id="r", input_tokens=7, **LOG)
    assert groups(span, log) == [0, 1]


def test_tokens_that_one_side_does_not_tell_contradict_nothing() -> None:
    silent = observation(response_id="r", input_tokens=None, output_tokens=None, **LOG)
    assert groups(observation(response_id="r"), silent) == [0, 0]


def test_output_may_differ_by_the_reasoning_left_out() -> None:
    without = observation(response_id="r", output_tokens=60, reasoning_tokens=40, **LOG)
    assert groups(observation(response_id="r", output_tokens=100), without) == [0, 0]


def test_two_different_response_ids_are_two_calls_even_in_one_line_of_descent() -> None:
    outer = observation(response_id="a", trace_hi=1, trace_lo=1, span_id=10)
    inner = observation(
        response_id="b", trace_hi=1, trace_lo=1, span_id=11, parent_span_id=10, layer="span:inner"
    )
    assert groups(outer, inner) == [0, 1]


def test_a_leaf_joins_the_record_above_it_over_nine_spans_between() -> None:
    outer = observation(trace_hi=1, trace_lo=1, span_id=100)
    inner = observation(trace_hi=1, trace_lo=1, span_id=1, parent_span_id=2, layer="span:inner", **UNTOLD)
    between = [link(1, span, span + 1) for span in range(2, 10)] + [link(1, 10, 100)]
    assert groups(outer, inner, joined=links(*between)) == [0, 0]
    assert groups(outer, inner, joined=links(*between[1:])) == [0, 1], "a missing link breaks the line"


def test_a_log_joins_the_span_it_was_written_in() -> None:
    span = observation(trace_hi=1, trace_lo=1, span_id=5)
    assert groups(span, observation(trace_hi=1, trace_lo=1, span_id=5, **LOG)) == [0, 0]


def test_a_cycle_of_parents_ends() -> None:
    one = observation(trace_hi=1, trace_lo=1, span_id=1, parent_span_id=2)
    log = observation(trace_hi=1, trace_lo=1, span_id=3, **LOG, **UNTOLD)
    assert groups(one, log, joined=links(link(1, 2, 3), link(1, 3, 2))) == [0, 1]


def test_of_two_leaves_of_one_layer_the_nearer_joins() -> None:
    outer = observation(trace_hi=1, trace_lo=1, span_id=9)
    failed = observation(
        trace_hi=1,
        trace_lo=1,
        span_id=1,
        parent_span_id=9,
        layer="span:inner",
        input_tokens=None,
        output_tokens=None,
        status="error",
        started_at=NOON + timedelta(milliseconds=400),
    )
    good = observation(
        trace_hi=1,
        trace_lo=1,
        span_id=2,
        parent_span_id=9,
        layer="span:inner",
        started_at=NOON + timedelta(milliseconds=200),
    )
    assert groups(outer, failed, good) == [0, 1, 0]


def test_log_span_and_the_sdk_below_it_are_one_call() -> None:
    span = observation(trace_hi=1, trace_lo=1, span_id=9, request_id="q")
    log = observation(request_id="q", **LOG)
    below = observation(trace_hi=1, trace_lo=1, span_id=1, parent_span_id=9, layer="span:inner")
    assert groups(span, log, below) == [0, 0, 0]


def test_one_id_on_very_many_records_is_no_id_and_noted_as_such() -> None:
    rows = [
        observation(response_id="x" * 30, input_tokens=n + 1, **(LOG if n % 2 else {})) for n in range(200)
    ]
    frame = observations(*rows)
    fused = fuse(frame, links())
    assert fused["group"].n_unique() == 200
    assert fused["anomalies"].to_list() == [["response_id:not_unique"]] * 200
