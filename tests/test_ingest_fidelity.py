"""What is counted of records that carry content, or that say they are samples."""

from __future__ import annotations

from typing import Any

import pytest

from ingest.segment import Frame
from tests.ingest_decode_support import capture_frames, log_frame, observed, span_frame

CHAT = {"gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": 5, "gen_ai.usage.output_tokens": 1}


def told(*frames: Frame) -> list[dict[str, Any]]:
    return observed(*frames).fidelity.sort("emitter").to_dicts()


def test_content_is_counted_and_none_of_it_is_kept() -> None:
    content = {"gen_ai.input.messages": "x" * 100, "llm.input_messages.0.message.content": "y" * 50}
    found = observed(span_frame(CHAT | content, CHAT))
    (row,) = found.fidelity.to_dicts()
    assert row == {
        "emitter": "some.instrumentation",
        "content_records": 1,
        "content_bytes": 154,
        "sampled_records": 0,
        "sampling_probability": None,
    }
    assert "xxx" not in str(found.observations.to_dicts())


@pytest.mark.parametrize("text", ["", "[]", "<REDACTED>", "[REDACTED]"])
def test_what_was_left_out_at_the_source_is_no_content(text: str) -> None:
    assert told(span_frame(CHAT | {"gen_ai.input.messages": text})) == []
    assert told(log_frame({"event.name": "user_prompt", "prompt": text})) == []


def test_content_in_records_that_are_no_calls_is_their_emitters() -> None:
    (row,) = told(log_frame({"event.name": "user_prompt", "prompt": "what is the weather"}))
    assert (row["emitter"], row["content_records"]) == ("claude-code", 1)


@pytest.mark.parametrize(
    ("state", "probability"),
    [
        ("ot=th:c", 0.25),
        ("ot=rv:a8b2c3d4e5f607;th:8", 0.5),
        ("vendor=1,ot=th:8;rv:00000000000001,other=2", 0.5),
        ("ot=p:3;r:10", 0.125),
        ("ot=th:0", None),
        ("ot=p:0", None),
        ("dd=th:8", None),
        ("ot=th:zz", None),
        ("", None),
    ],
)
def test_trace_state_says_how_much_is_kept(state: str, probability: float | None) -> None:
    found = told(span_frame(CHAT, CHAT, trace_state=state))
    wanted = [] if probability is None else [(2, probability)]
    assert [(row["sampled_records"], row["sampling_probability"]) for row in found] == wanted


@pytest.mark.parametrize(
    ("attribute", "probability"),
    [
        ({"sampling.probability": 0.1}, 0.1),
        ({"sampler.type": "probabilistic", "sampler.param": "0.5"}, 0.5),
        ({"SampleRate": 20}, 0.05),
        ({"SampleRate": 0}, None),
        ({"sampler.param": True}, None),
        ({"sampler.param": "remote"}, None),
        ({"sampling.probability": 1}, None),
        ({"sampling.probability": -0.5}, None),
    ],
)
def test_attributes_of_samplers_say_so(attribute: dict[str, Any], probability: float | None) -> None:
    wanted = [] if probability is None else [probability]
    assert [row["sampling_probability"] for row in told(span_frame(CHAT | attribute))] == wanted
    resource = {"service.name": "shop", **attribute}
    assert [row["sampling_probability"] for row in told(span_frame(CHAT, resource=resource))] == wanted


def test_records_without_a_rule_are_nobodys() -> None:
    assert told(span_frame({"http.method": "GET", "prompt": "x" * 30}, trace_state="ot=th:8")) == []


@pytest.mark.parametrize(
    ("capture", "emitter"),
    [("pydantic-ai", "pydantic-ai"), ("gemini-cli-http-tool", "gemini-cli"), ("traceloop", "traceloop")],
)
def test_captures_with_content_say_so(capture: str, emitter: str) -> None:
    by_emitter = {row["emitter"]: row for row in told(*capture_frames(capture))}
    assert by_emitter[emitter]["content_bytes"] > 1000
    assert by_emitter[emitter]["sampled_records"] == 0


@pytest.mark.parametrize("capture", ["claude-code-http", "copilot-proto-tool", "otel-genai-langchain"])
def test_captures_without_content_say_nothing(capture: str) -> None:
    assert told(*capture_frames(capture)) == []
