"""Recorded telemetry of real agents and SDKs against what the model server served: every layer on its own."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from tests.ingest_decode_support import CAPTURES, capture_frames, comparable, expected, observed, rows

SDK_SPANS = {
    "otel-genai-langchain": "span:opentelemetry.instrumentation.genai.langchain",
    "otel-openai-v2": "span:opentelemetry.instrumentation.openai_v2",
    "google-adk": "span:gcp.vertex.agent",
    "copilot-proto-tool": "span:github.copilot",
    "pydantic-ai": "span:pydantic-ai",
}
REPEATS = {
    "google-adk": "log:gcp.vertex.agent",
    "pydantic-ai": "span:com.anthropic.sdk.python",
}
CLAUDE_LOGS = "log:com.anthropic.claude_code.events"
CLAUDE_SPANS = "span:com.anthropic.claude_code.tracing"
LAYERS = [
    *SDK_SPANS.items(),
    *REPEATS.items(),
    *((path.name, CLAUDE_LOGS) for path in sorted(CAPTURES.glob("claude-code-*"))),
    ("claude-code-subscription", CLAUDE_SPANS),
    ("claude-code-traces-beta", CLAUDE_SPANS),
]


def layer_calls(capture: str, layer: str) -> list[dict[str, Any]]:
    found = [row for row in rows(capture_frames(capture)) if row["layer"] == layer and row["role"] == "call"]
    return sorted(found, key=lambda row: row["started_at"])


def truth(call: dict[str, Any], *, told: set[str]) -> dict[str, int | None]:
    """The token columns that a layer which tells `told` must have for a call that was served."""
    write = call["cache_write_5m"] + call["cache_write_1h"] + call["cache_write_30m"]
    return {
        "input_tokens": call["input_uncached"] + call["cache_read"] + write,
        "output_tokens": call["output"],
        "cache_read_tokens": call["cache_read"] if "cache_read" in told else None,
        "cache_write_tokens": write if "cache_write" in told else None,
        "cache_write_1h_tokens": call["cache_write_1h"] if "cache_write_1h" in told else None,
    }


def is_visible(call: dict[str, Any], layer: str) -> bool:
    """Whether the expected file says that a record of this layer repeats the call's usage."""
    signal, _, scope = layer.partition(":")
    for record in call["usage_visible_in"]:
        if not record.startswith(signal + ":") or "invoke_agent" in record:
            continue
        if (scope == "com.anthropic.sdk.python") == ("anthropic.messages.create" in record):
            return True
    return False


@pytest.mark.parametrize(("capture", "layer"), LAYERS)
def test_every_layer_tells_the_tokens_that_were_served(capture: str, layer: str) -> None:
    """Each layer alone: as many calls with usage as it repeats, each with the served numbers, NULL if
    not told.
    """
    calls = [call for call in expected(capture)["calls"] if is_visible(call, layer)]
    found = [row for row in layer_calls(capture, layer) if row["input_tokens"] is not None]
    assert len(found) == len(calls)
    for row, call in zip(sorted(found, key=lambda row: row["output_tokens"] or 0), order(calls), strict=True):
        told = set(call["told"]) - ({"cache_write_1h"} if layer == CLAUDE_SPANS else set())
        wanted = truth(call, told=told)
        assert {name: row[name] for name in wanted} == wanted
        if "reasoning" in told:
            assert row["reasoning_tokens"] == call["reasoning"]
        else:
            assert row["reasoning_tokens"] in {None, call["reasoning"]}
        assert row["status"] in {"ok", None}
        assert row["anomalies"] == []


def order(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(calls, key=lambda call: call["output"])


def test_the_layers_above_see_usage_at_all() -> None:
    """Guards the test above against comparing nothing with nothing."""
    for capture, layer in LAYERS:
        if capture != "claude-code-error":
            assert [row for row in layer_calls(capture, layer) if row["input_tokens"]], (capture, layer)


@pytest.mark.parametrize("capture", sorted(SDK_SPANS))
def test_spans_carry_response_ids_models_and_sessions(capture: str) -> None:
    calls = {call["output"]: call for call in expected(capture)["calls"] if call["billable"]}
    for row in layer_calls(capture, SDK_SPANS[capture]):
        call = calls.get(row["output_tokens"])
        if call is None:
            continue
        if call["response_id_visible_in"]:
            assert row["response_id"] == call["response_id"]
        assert row["request_model"] == call["request_model"]
        if row["response_model"] is not None:
            assert row["response_model"] == call["response_model"]
        if call["session_id"] is not None:
            assert row["session_id"] == call["session_id"]
        if row["streaming"] is not None:
            assert row["streaming"] == call["streaming"]


@pytest.mark.parametrize(("capture", "failures"), [("otel-genai-langchain", 2), ("otel-openai-v2", 1)])
def test_failed_calls_are_there_without_tokens(capture: str, failures: int) -> None:
    """A 400 is a call that tells nothing (an SDK hides the retried 429 of otel-openai-v2)."""
    failed = [row for row in layer_calls(capture, SDK_SPANS[capture]) if row["status"] == "error"]
    assert len(failed) == failures
    assert {row["input_tokens"] for row in failed} == {row["output_tokens"] for row in failed} == {None}


def test_a_stream_without_usage_is_a_call_without_tokens() -> None:
    silent = [
        row for row in layer_calls("otel-openai-v2", SDK_SPANS["otel-openai-v2"]) if not row["input_tokens"]
    ]
    assert {row["response_id"] for row in silent} >= {"chatcmpl-otel-openai-v2-4"}
    assert all(row["output_tokens"] is None for row in silent)


def test_an_embedding_has_no_output() -> None:
    found = layer_calls("otel-openai-v2", SDK_SPANS["otel-openai-v2"])
    (embedding,) = [row for row in found if row["operation"] == "embeddings"]
    assert (embedding["input_tokens"], embedding["output_tokens"]) == (1010, 0)


def test_agents_and_tools_are_never_calls() -> None:
    """Copilot's invoke_agent repeats its calls' tokens under the same keys."""
    found = rows(capture_frames("copilot-proto-tool"))
    assert [row["role"] for row in found].count("call") == 2
    (aggregate,) = [row for row in found if row["role"] == "aggregate"]
    assert aggregate["input_tokens"] == 14036
    assert not [row for row in found if row["operation"] == "execute_tool"]


def test_the_event_of_a_call_carries_the_ids_of_its_span() -> None:
    found = rows(capture_frames("google-adk"))
    spans = {row["span_id"]: row for row in found if row["signal"] == "span" and row["role"] == "call"}
    logs = [row for row in found if row["signal"] == "log"]
    assert len(logs) == len(spans) == 5
    for log in logs:
        assert spans[log["span_id"]]["trace_lo"] == log["trace_lo"]
        assert log["status"] is None  # not telling an error is no success
        assert log["effective_from"] == "observed"


def test_the_sdk_span_is_the_better_source() -> None:
    found = rows(capture_frames("pydantic-ai"))
    ranks = {row["layer"]: row["rank"] for row in found if row["role"] == "call"}
    assert ranks["span:com.anthropic.sdk.python"] < ranks["span:pydantic-ai"]


def test_claude_code_joins_log_and_span_by_request() -> None:
    found = rows(capture_frames("claude-code-traces-beta"))
    by_layer = {
        layer: [row for row in found if row["layer"] == layer] for layer in (CLAUDE_LOGS, CLAUDE_SPANS)
    }
    wanted = {"req_claude-code-traces-beta_1", "req_claude-code-traces-beta_2"}
    for listed in by_layer.values():
        assert {row["request_id"] for row in listed} == wanted
        assert {row["response_id"] for row in listed} == {None}  # gen_ai.response.id is the request's
        assert {row["streaming"] for row in listed} == {True}
        assert {row["session_id"] for row in listed} == {expected("claude-code-traces-beta")["session_id"]}
    assert {row["response_model"] for row in by_layer[CLAUDE_LOGS]} == {"claude-sonnet-4-5-20250929"}
    assert {row["request_model"] for row in by_layer[CLAUDE_SPANS]} == {"claude-sonnet-4-5"}


def test_claude_code_tells_its_plan_and_its_price() -> None:
    (log,) = layer_calls("claude-code-subscription", CLAUDE_LOGS)
    assert (log["access_hint"], log["access_evidence"]) == ("subscription", "anthropic.plan=max")
    assert log["reported_cost_usd"] == Decimal("0.02043075")
    assert (log["ttft_ms"], log["duration_ms"], log["speed"]) == (531.0, 600.0, "normal")
    assert log["provider_name"] == "anthropic"
    assert (log["ended_at"] - log["started_at"]).total_seconds() == 0.6
    (keyed,) = layer_calls("claude-code-http", CLAUDE_LOGS)
    assert keyed["access_hint"] is None  # no plan says nothing


def test_claude_code_errors_cost_nothing_and_say_why() -> None:
    found = rows(capture_frames("claude-code-error"))
    assert {row["layer"] for row in found} == {CLAUDE_LOGS, CLAUDE_SPANS}
    for row in found:
        assert (row["status"], row["http_status"], row["input_tokens"]) == ("error", 400, None)
        assert row["request_id"] == "req_6"
        assert row["request_model"] == "claude-sonnet-4-5"


@pytest.mark.parametrize("capture", sorted(path.name for path in CAPTURES.iterdir() if path.is_dir()))
def test_nothing_is_rejected_or_unrecognised_and_every_span_is_linked(capture: str) -> None:
    found = observed(*capture_frames(capture))
    assert (found.rejects.height, found.unrecognised.height) == (0, 0)
    spans = found.observations.filter(signal="span")
    keys = ["trace_hi", "trace_lo", "span_id"]
    assert spans.join(found.links, on=keys, how="anti").height == 0


@pytest.mark.parametrize("capture", sorted(path.name for path in CAPTURES.iterdir() if path.is_dir()))
def test_content_stays_outside(capture: str) -> None:
    """Prompts, answers and e-mail addresses are in the bodies, and nowhere in what comes out."""
    secrets = (
        "Hello from the fake upstream",
        "USE_TOOL",
        "dev@example.com",
        "Paris",
        "fake 400",
        "<REDACTED>",
    )
    found = str(observed(*capture_frames(capture)).observations.drop("id_hi").to_dicts())
    assert not [text for text in secrets if text in found]


@pytest.mark.parametrize("capture", ["claude-code-traces-beta", "pydantic-ai", "google-adk"])
def test_batches_do_not_matter(capture: str) -> None:
    """One request at a time, all at once, or in reverse: the same observations."""
    frames = capture_frames(capture)
    together = comparable(observed(*frames).observations)
    assert comparable(observed(*reversed(frames)).observations) == together
    alone = [row for one in frames for row in comparable(observed(one).observations)]
    assert sorted(alone, key=lambda row: (row["id_hi"], row["id_lo"])) == together
