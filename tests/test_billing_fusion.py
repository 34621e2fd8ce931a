"""What is one call and what is not."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import polars as pl
import pytest

from billing.fusion import fuse
from tests.observed import NOON, link, links, observation, observations

LOG = {"layer": "log:agent", "signal": "log"}
UNTOLD = {"input_tokens": None, "output_tokens": None}


def groups(*rows: dict[str, Any], joined: pl.DataFrame | None = None) -> list[int]:
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


def test_a_log_without_trace_joins_the_span_that_starts_after_it() -> None:
    log = observation(**LOG, ended_at=NOON)
    span = observation(started_at=NOON + timedelta(milliseconds=174))
    assert groups(log, span) == [0, 0]


@pytest.mark.parametrize(
    "other",
    [
        {"service": "another"},
        {"instance": "b"},
        {"input_tokens": 999},
        {"output_tokens": 99},
        {"provider_name": "anthropic"},
        {"started_at": NOON + timedelta(seconds=30)},
        {"layer": "span:sdk", "signal": "span"},
    ],
)
def test_what_a_fingerprint_does_not_join(other: dict[str, object]) -> None:
    assert groups(observation(instance="a"), observation(**{**LOG, "instance": "a", **other})) == [0, 1]


def test_a_streams_placeholder_joins_spans_of_anthropic_within_each_other_only() -> None:
    """Traceloop adds the 1 of `message_start` to a raw stream's output; the SDK's span beside it does not."""
    told = {"provider_name": "anthropic", "output_tokens": 101}
    within = {"started_at": NOON + timedelta(milliseconds=90), "ended_at": NOON + timedelta(milliseconds=950)}
    sdk = observation(**within, provider_name="anthropic", layer="span:sdk.anthropic", response_id="msg_1")
    assert groups(observation(**told), sdk) == [0, 0]
    assert groups(observation(**told | {"output_tokens": 102}), sdk) == [0, 1]
    assert groups(observation(output_tokens=101), sdk | {"provider_name": "openai"}) == [0, 1]
    outlasting = sdk | {"ended_at": NOON + timedelta(seconds=2)}
    assert groups(observation(**told), outlasting) == [0, 1]


def test_a_framework_named_as_provider_contradicts_nothing() -> None:
    assert groups(observation(), observation(**LOG, provider_name="strands-agents")) == [0, 0]


def test_the_names_of_one_provider_are_one() -> None:
    named = observation(provider_name="gcp.gen_ai")
    assert groups(named, observation(**LOG, provider_name="gemini")) == [0, 0]


def test_the_sdks_span_in_a_trace_of_its_own_joins_the_chain_span() -> None:
    chain = observation(trace_hi=1, trace_lo=1, span_id=5, parent_span_id=4, layer="span:chain")
    sdk = observation(
        trace_hi=2, trace_lo=2, span_id=9, response_id="r", started_at=NOON + timedelta(milliseconds=90)
    )
    assert groups(chain, sdk) == [0, 0]


def test_failures_without_tokens_on_two_layers_are_one_failure() -> None:
    failed = {"status": "error", **UNTOLD}
    assert groups(observation(**failed), observation(layer="span:chain", **failed)) == [0, 0]
    assert groups(observation(**UNTOLD), observation(layer="span:chain", **UNTOLD)) == [0, 1], (
        "unknown, not failed"
    )


def test_twenty_twins_on_two_layers_are_twenty_calls_of_two_records() -> None:
    rows = [observation() for _ in range(20)] + [observation(**LOG) for _ in range(20)]
    found = groups(*rows)
    assert sorted(Counter(found).values()) == [2] * 20


@pytest.mark.parametrize("seed", range(5))
def test_twins_one_after_another_pair_nearest_first(seed: int) -> None:
    rng = random.Random(seed)
    apart = [timedelta(milliseconds=60 * n) for n in range(30)]
    spans = [observation(id_hi=n, id_lo=0, started_at=NOON + at) for n, at in enumerate(apart)]
    logs = [
        observation(id_hi=n, id_lo=1, started_at=NOON + at + timedelta(milliseconds=7), **LOG)
        for n, at in enumerate(apart)
        if n % 7
    ]
    rows = [*spans, *logs]
    rng.shuffle(rows)
    fused = fuse(observations(*rows), links())
    pairs = fused.group_by("group").agg(pl.col("id_hi").n_unique().alias("calls"), pl.len())
    assert pairs["calls"].to_list() == [1] * 30
    assert sum(pairs["len"]) == len(rows)


def test_three_layers_that_share_nothing_but_figures_are_one_call() -> None:
    api = observation(**LOG, name="api_response", output_tokens=301, reasoning_tokens=101)
    details = observation(**LOG, name="operation.details", output_tokens=200, response_id="gem-1")
    span = observation(output_tokens=200, trace_hi=1, trace_lo=1, span_id=1)
    half = observation(**LOG, name="operation.details", **UNTOLD, trace_hi=1, trace_lo=1, span_id=1) | {
        "status": None
    }
    assert groups(api, details, span, half) == [0, 0, 0, 0]
    assert sorted(Counter(groups(*[api, details, span] * 4)).values()) == [3] * 4


def test_a_short_id_from_two_servers_is_two_calls() -> None:
    one = observation(response_id="chatcmpl-123", server_address="10.0.0.1")
    two = observation(response_id="chatcmpl-123", server_address="10.0.0.2", service="cafe", **LOG)
    assert groups(one, two) == [0, 1]


def test_a_long_id_joins_a_gateways_record_with_its_callers() -> None:
    told = {"response_id": "chatcmpl-9f8e7d6c5b4a39281706"}
    gateway = observation(**told, service="gateway", server_address="api.openai.com", layer="span:gateway")
    assert groups(observation(**told, server_address="localhost"), gateway) == [0, 0]


@pytest.mark.parametrize("wrong", [101, 1])
def test_a_placeholder_in_the_output_keeps_nothing_apart(wrong: int) -> None:
    assert groups(observation(response_id="r"), observation(response_id="r", output_tokens=wrong, **LOG)) == [
        0,
        0,
    ]


def test_a_record_that_leaves_out_cached_input_is_of_the_same_call() -> None:
    without = observation(response_id="r", input_tokens=300, cache_read_tokens=700, **LOG)
    assert groups(observation(response_id="r", cache_read_tokens=700), without) == [0, 0]


# --- aggregates --------------------------------------------------------------------------------------------

SUM = {"role": "aggregate", "layer": "span:agent", "rank": 200}
IN_TRACE = {"trace_hi": 1, "trace_lo": 1}


def standing(*rows: dict[str, Any], joined: pl.DataFrame | None = None) -> list[bool]:
    frame = observations(*[{**row, "id_hi": n, "id_lo": n} for n, row in enumerate(rows)])
    return fuse(frame, joined if joined is not None else links()).sort("id_hi")["stands"].to_list()


def test_an_aggregate_alone_stands_until_a_call_lies_below_it() -> None:
    agent = observation(**SUM, **IN_TRACE, span_id=1)
    leaf = observation(**IN_TRACE, span_id=3, parent_span_id=2, input_tokens=7)
    assert standing(agent) == [True]
    assert standing(agent, leaf) == [True, True], "nothing says that the call is the agent's"
    assert standing(agent, leaf, joined=links(link(1, 2, 1))) == [False, True]


def test_of_aggregates_within_each_other_the_innermost_stands() -> None:
    outer = observation(**SUM, **IN_TRACE, span_id=1)
    inner = observation(**SUM, **IN_TRACE, span_id=2, parent_span_id=1)
    assert standing(outer, inner) == [False, True]


def test_an_aggregate_without_tokens_stands_for_nothing() -> None:
    assert standing(observation(**SUM, **UNTOLD)) == [False]


def test_an_aggregate_that_repeats_one_call_of_another_trace_goes() -> None:
    agent = observation(**SUM, **IN_TRACE, span_id=1, ended_at=NOON + timedelta(seconds=5))
    log = observation(**LOG, started_at=NOON + timedelta(seconds=2))
    assert standing(agent, log) == [False, True]
    assert standing(agent, log | {"service": "another"}) == [True, True]


def test_an_aggregate_that_its_sessions_calls_account_for_goes() -> None:
    turn = observation(
        **SUM, session_id="s", input_tokens=30, output_tokens=3, ended_at=NOON + timedelta(seconds=9)
    )
    logs = [observation(**LOG, session_id="s", input_tokens=n, output_tokens=n // 10) for n in (10, 20)]
    assert standing(turn, *logs) == [False, True, True]
    assert standing(turn, logs[0]) == [True, True]


def test_aggregates_in_a_cycle_end() -> None:
    one = observation(**SUM, **IN_TRACE, span_id=1, parent_span_id=2)
    two = observation(**SUM, **IN_TRACE, span_id=2, parent_span_id=1)
    assert len(standing(one, two)) == 2


# --- hostile -----------------------------------------------------------------------------------------------


def seconds(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def many(count: int, **told: Any) -> pl.DataFrame:
    """Records that differ in identity only, and by the columns told."""
    number = pl.int_range(count, dtype=pl.UInt64)
    one = observations(observation())
    return (
        pl.concat([one] * count)
        .with_columns(
            id_hi=number,
            id_lo=number,
            **{
                name: pl.lit(value) if not isinstance(value, pl.Expr) else value
                for name, value in told.items()
            },
        )
        .cast(one.schema)
    )


def test_one_response_id_on_very_many_records_costs_no_square() -> None:
    odd = pl.int_range(pl.len()) % 2 == 1
    rows = many(
        100_000,
        response_id="r" * 30,
        signal=pl.when(odd).then(pl.lit("log")).otherwise(pl.lit("span")),
        layer=pl.when(odd).then(pl.lit("log:x")).otherwise(pl.lit("span:x")),
    )
    fused: list[pl.DataFrame] = []
    assert seconds(lambda: fused.append(fuse(rows, links()))) < 15
    assert fused[0]["group"].n_unique() == 50_000, "equal calls, paired by their figures"
    assert fused[0]["anomalies"].list.contains("response_id:not_unique").all()


@pytest.mark.parametrize("shape", ["chain", "cycle"])
def test_a_trace_of_very_many_spans_is_walked_once(shape: str) -> None:
    count = 100_000
    number = pl.int_range(1, count + 1, dtype=pl.UInt64)
    parents = number + 1 if shape == "chain" else number % count + 1
    told = (
        pl.DataFrame({"n": range(count)})
        .select(
            trace_hi=pl.lit(1, pl.UInt64),
            trace_lo=pl.lit(1, pl.UInt64),
            span_id=number,
            parent_span_id=parents,
        )
        .with_columns(started_at=pl.lit(NOON).cast(pl.Datetime("us", "UTC")))
    )
    top = observation(**IN_TRACE, span_id=count + 1, **UNTOLD)
    deep = observation(**IN_TRACE, span_id=count + 7, parent_span_id=1, layer="span:inner", **UNTOLD)
    found: list[int] = []
    assert seconds(lambda: found.extend(groups(top, deep, joined=told))) < 10
    assert found == ([0, 0] if shape == "chain" else [0, 1])


def test_absurd_tokens_overflow_no_sum() -> None:
    most = 2**62
    turn = observation(**SUM, session_id="s", input_tokens=most, output_tokens=most)
    logs = [
        observation(**LOG, session_id="s", input_tokens=most - n, output_tokens=most - n) for n in range(4)
    ]
    assert standing(turn, *logs)[0] is False
