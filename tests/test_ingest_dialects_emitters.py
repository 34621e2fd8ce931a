"""Every emitter's own records against what was served: layer by layer, before anything is fused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.ingest_decode_support import (
    CAPTURES,
    capture_frames,
    expected,
    log_frame,
    observed,
    rows,
    span_frame,
)

NAMES = sorted(path.parent.name for path in CAPTURES.glob("*/expected.json"))
WRITES = ("cache_write_5m", "cache_write_1h", "cache_write_30m")
LESS = {  # layers that tell other numbers than were served, and what of theirs is right (telemetry survey)
    "span:gemini-cli": "input_tokens",  # output leaves thoughts out
    "log:gemini-cli#details": "input_tokens",
    "span:opentelemetry.instrumentation.anthropic": "input_tokens",  # one token too many on raw streams
}


def served(capture: str) -> dict[tuple[int, int], dict[str, Any]]:
    """The calls whose usage is visible, by input and output."""
    calls = [call for call in expected(capture)["calls"] if call["usage_visible_in"]]
    return {(whole_input(call), call["output"]): call for call in calls}


def whole_input(call: dict[str, Any]) -> int:
    return int(call["input_uncached"] + call["cache_read"] + sum(call[part] for part in WRITES))


def call_rows(capture: str) -> list[dict[str, Any]]:
    return [row for row in rows(capture_frames(capture)) if row["role"] == "call"]


@pytest.mark.parametrize("capture", NAMES)
def test_whatever_a_layer_tells_was_served(capture: str) -> None:
    """No layer tells a number twice, none tells one that is wrong; a part that it leaves out is NULL."""
    truth, seen = served(capture), set()
    inputs = {whole for whole, _ in truth}
    for row in call_rows(capture):
        if row["input_tokens"] is None:
            continue
        if LESS.get(row["layer"]):
            assert row["input_tokens"] in inputs
            continue
        tokens = row["input_tokens"], row["output_tokens"]
        assert (row["layer"], *tokens) not in seen
        seen.add((row["layer"], *tokens))
        _compare(row, truth[tokens])


def _compare(row: dict[str, Any], call: dict[str, Any]) -> None:
    parts = {
        "cache_read_tokens": call["cache_read"],
        "cache_write_tokens": sum(call[part] for part in WRITES),
        "cache_write_1h_tokens": call["cache_write_1h"],
        "reasoning_tokens": call["reasoning"],
        "streaming": call["streaming"],
        "response_id": call["response_id"],
    }
    wrong = {name: row[name] for name, value in parts.items() if row[name] not in {None, value}}
    assert not wrong
    assert row["request_model"] in {None, call["request_model"]}
    assert row["response_model"] in {None, call["request_model"], call["response_model"]}
    assert row["status"] in {None, "ok"}
    if (
        row["session_id"]
        and call["session_id_source"] != "only session of this capture"
        and call["session_id"]
    ):
        assert row["session_id"] == call["session_id"]


@pytest.mark.parametrize("capture", NAMES)
def test_every_visible_call_is_told_by_a_layer(capture: str) -> None:
    told = {(row["input_tokens"], row["output_tokens"]) for row in call_rows(capture)}
    assert set(served(capture)) <= told


@pytest.mark.parametrize("capture", NAMES)
def test_no_layer_has_more_calls_than_were_served(capture: str) -> None:
    layers = [row["layer"] for row in call_rows(capture)]
    assert all(layers.count(layer) <= len(expected(capture)["calls"]) for layer in layers)


# --- traps -----------------------------------------------------------------------------------------------


def one(*frames: Any) -> dict[str, Any]:
    (row,) = rows(list(frames))
    return row


def codex(**attributes: Any) -> dict[str, Any]:
    told = {"event.name": "codex.sse_event", "event.kind": "response.completed", "model": "gpt-5.6"}
    return told | {"conversation.id": "c", **attributes}


def test_codex_writes_numbers_as_text_and_has_no_time() -> None:
    told = codex(input_token_count="7012", output_token_count="301", cached_token_count=4010, ttft_ms="118")
    told |= {"event.timestamp": "2026-11-22T06:19:55.066Z", "auth_mode": "Chatgpt"}
    row = one(log_frame(told, scope="codex_otel.log_only", time_unix_nano=0))
    assert (row["input_tokens"], row["cache_read_tokens"], row["output_tokens"]) == (7012, 4010, 301)
    assert (row["effective_from"], row["ttft_ms"], row["streaming"]) == ("attribute", 118.0, True)
    assert (row["access_hint"], row["access_evidence"]) == ("subscription", "auth_mode=Chatgpt")


def test_codex_tells_of_a_completed_response_twice() -> None:
    assert rows([log_frame(codex(), scope="codex_otel.log_only")]) == []


@pytest.mark.parametrize(("status", "found"), [(200, 0), (500, 1), ("429", 1)])
def test_codex_attempts_count_where_they_failed(status: int | str, found: int) -> None:
    told = {"event.name": "codex.api_request", "endpoint": "/responses", "http.response.status_code": status}
    listed = rows([log_frame(told, scope="codex_otel.log_only")])
    assert [row["status"] for row in listed] == ["error"] * found


@pytest.mark.parametrize(
    ("total", "thoughts", "output"),
    [(5312, 101, 301), (5211, 101, 200), (5312, None, 301), (5211, None, 200)],
)
def test_thoughts_are_added_where_the_total_proves_them(
    total: int, thoughts: int | None, output: int
) -> None:
    told = {"event.name": "gemini_cli.api_response", "model": "gemini-2.5-flash", "input_token_count": 5011}
    told |= {"output_token_count": 200, "total_token_count": total}
    if thoughts is not None:
        told["thoughts_token_count"] = thoughts
    assert one(log_frame(told, scope="gemini-cli"))["output_tokens"] == output


def test_the_request_half_of_an_event_is_no_call() -> None:
    told = {
        "event.name": "gen_ai.client.inference.operation.details",
        "gen_ai.operation.name": "generate_content",
    }
    assert rows([log_frame(told, scope="gemini-cli")]) == []


def test_what_never_reached_a_provider_is_no_call() -> None:
    told = {"gen_ai.operation.name": "chat", "error.type": "APIConnectionError"}
    found = observed(span_frame(told, told | {"error.type": "BadRequestError"}))
    assert found.observations["error_type"].to_list() == ["BadRequestError"]
    assert found.unrecognised.is_empty()


@pytest.mark.parametrize(("provider", "whole"), [("anthropic", 7713), ("Anthropic", 7713), ("openai", 5011)])
def test_the_same_key_means_two_things(provider: str, whole: int) -> None:
    """agent-framework leaves cached tokens out for Anthropic and has them in for OpenAI."""
    told = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": provider,
        "gen_ai.usage.output_tokens": 1,
    }
    parts = {"gen_ai.usage.cache_read.input_tokens": 4010, "gen_ai.usage.cache_creation.input_tokens": 2702}
    if provider == "openai":
        told |= {"gen_ai.usage.input_tokens": 5011, "gen_ai.usage.cache_read.input_tokens": 4010}
    else:
        told |= parts | {"gen_ai.usage.input_tokens": 1001}
    assert one(span_frame(told, scope="agent_framework"))["input_tokens"] == whole


def test_numbers_that_openlit_guessed_are_unknown() -> None:
    told = {
        "gen_ai.operation.name": "chat",
        "gen_ai.usage.input_tokens": 13,
        "gen_ai.usage.output_tokens": 15,
    }
    guessed = one(span_frame(told, scope="openlit.instrumentation.openai"))
    assert (guessed["input_tokens"], guessed["output_tokens"]) == (None, None)
    served = told | {"gen_ai.usage.cache_read.input_tokens": 0}
    assert one(span_frame(served, scope="openlit.instrumentation.openai"))["input_tokens"] == 13


def test_a_gateways_own_model_name_is_not_the_model_that_answered() -> None:
    told = {"gen_ai.operation.name": "acompletion", "litellm.model_group": "gpt-fast", "gen_ai.system": ""}
    told |= {"gen_ai.response.model": "gpt-fast", "litellm.provider.model": "openai/gpt-4o-mini"}
    row = one(span_frame(told | {"gen_ai.request.model": "gpt-4o-mini"}, scope="litellm"))
    assert (row["provider_name"], row["request_model"], row["response_model"]) == (
        "openai",
        "gpt-4o-mini",
        None,
    )
    named = told | {"gen_ai.response.model": "gpt-4o-mini-2024-07-18"}
    assert one(span_frame(named, scope="litellm"))["response_model"] == "gpt-4o-mini-2024-07-18"


def test_ids_that_a_gateway_makes_up_are_not_the_providers() -> None:
    told = {"gen_ai.operation.name": "chat"}
    made_up = "chatcmpl-de123b32-1221-465f-b079-548049ef4fa6"
    found = [
        one(span_frame(told | {"gen_ai.response.id": text}, scope="litellm"))["response_id"]
        for text in (made_up, "chatcmpl-AbC123", "e77208ba-e86e-48f3-941d-bd5027d8cbe8")
    ]
    assert found == [None, "chatcmpl-AbC123", None]


def test_a_stream_that_began_well_is_told_when_it_ended() -> None:
    """Logfire writes two records per stream; the first has no usage."""
    began = {"gen_ai.request.model": "gpt-4o", "request_data": '{"model":"gpt-4o","stream":true}'}
    ended: dict[str, Any] = {
        "gen_ai.request.model": "gpt-4o",
        "logfire.msg_template": "streaming response from {x!r} took {y}s",
    }
    ended |= {"gen_ai.usage.input_tokens": 5, "gen_ai.usage.output_tokens": 7, "duration": 1.5}
    row = one(span_frame(began, scope="logfire.openai"), span_frame(ended, scope="logfire.openai"))
    assert (row["input_tokens"], row["streaming"], row["duration_ms"]) == (5, True, 1500.0)


def test_a_server_address_that_is_a_url_is_its_host() -> None:
    told = {"gen_ai.operation.name": "chat", "server.address": "https://me:pw@api.example.com:8443/v1/?k=s"}
    row = one(span_frame(told, scope="semantic_kernel.utils.telemetry"))
    assert (row["server_address"], row["url"]) == ("api.example.com", "https://api.example.com:8443/v1/")


def test_unknown_emitters_of_known_conventions_need_no_table() -> None:
    kinds = {"LLM": "call", "EMBEDDING": "call", "AGENT": "aggregate"}
    for kind, role in kinds.items():
        told = {"openinference.span.kind": kind, "llm.token_count.prompt": 5, "llm.model_name": "m"}
        row = one(span_frame(told, scope="somebody.elses"))
        assert (row["role"], row["input_tokens"], row["response_model"]) == (role, 5, "m")
    old = {"llm.request.type": "chat", "gen_ai.usage.prompt_tokens": 6, "gen_ai.usage.completion_tokens": 1}
    assert one(span_frame(old, scope="somebody.elses"))["input_tokens"] == 6


# --- emitters without a capture here: what the survey says of them ---------------------------------------


def test_langsmith_leaves_a_total_at_nothing_beside_its_parts() -> None:
    usage: dict[str, Any] = {"input_tokens": 7713, "output_tokens": 301, "total_tokens": 8014}
    details: dict[str, Any] = {"cache_read": 4010, "cache_creation": 0}
    details |= {"ephemeral_5m_input_tokens": 2001, "ephemeral_1h_input_tokens": 701}
    told = {"langsmith.span.kind": "llm", "gen_ai.system": "anthropic"}
    told["langsmith.metadata.usage_metadata"] = json.dumps(usage | {"input_token_details": details})
    row = one(span_frame(told, told | {"langsmith.span.kind": "chain"}, scope="langsmith"))
    assert (row["input_tokens"], row["cache_read_tokens"], row["output_tokens"]) == (7713, 4010, 301)
    assert (row["cache_write_tokens"], row["cache_write_1h_tokens"]) == (2702, 701)


def test_langsmith_says_that_all_is_well_where_the_answer_in_it_is_a_failure() -> None:
    told = {"langsmith.span.kind": "llm", "gen_ai.system": "anthropic", "gen_ai.request.model": "m"}
    metadata = {"status_code": 400, "request_id": "req_1", "body": {"error": {"message": "secret words"}}}
    message = {"message": {"kwargs": {"content": "", "response_metadata": metadata}}}
    told["gen_ai.completion"] = json.dumps({"generations": [[message]], "llm_output": None})
    row = one(span_frame(told, scope="langsmith"))
    assert (row["status"], row["http_status"], row["request_id"]) == ("error", 400, "req_1")
    assert b"secret" not in row["attributes"]


@pytest.mark.parametrize(
    ("scope", "key"),
    [
        ("langsmith", "gen_ai.completion"),
        ("openinference.instrumentation.langchain", "output.value"),
    ],
)
def test_langchains_answers_wrap_the_providers(scope: str, key: str) -> None:
    told = {"langsmith.span.kind": "llm", "openinference.span.kind": "LLM"}
    told["llm.invocation_parameters"] = '{"model": "gpt-4o-mini", "stream": false}'
    metadata = {"id": "chatcmpl-1", "model_name": "gpt-4o-mini-2024-07-18"}
    message = {"message": {"kwargs": {"id": "lc_run--1", "response_metadata": metadata}}}
    streamed = told | {key: json.dumps({"generations": [[message]], "llm_output": None})}
    whole = told | {key: json.dumps({"generations": [[{}]], "llm_output": {"id": "chatcmpl-1"}})}
    for record in (streamed, whole):
        row = one(span_frame(record, scope=scope))
        assert (row["response_id"], row["streaming"]) == ("chatcmpl-1", None)


def test_openai_agents_make_ids_up_for_what_they_translate() -> None:
    told = {"openinference.span.kind": "LLM"}
    scope = "openinference.instrumentation.openai_agents"
    ids = [
        one(span_frame(told | {"output.value": text}, scope=scope))["response_id"]
        for text in ('{"id": "resp_1"}', '{"id": "__fake_id__"}', '[{"id": "__fake_id__"}]')
    ]
    assert ids == ["resp_1", None, None]


def test_some_embedders_tell_their_usage_in_the_answer_only() -> None:
    haystack: dict[str, Any] = {"openinference.span.kind": "EMBEDDING"}
    haystack["output.value"] = '{"embedding": [1], "meta": {"usage": {"prompt_tokens": 9}}}'
    mlflow = {"mlflow.spanType": '"EMBEDDING"', "mlflow.spanOutputs": '{"usage": {"prompt_tokens": 9}}'}
    for told, scope in (
        (haystack, "openinference.instrumentation.haystack"),
        (mlflow, "mlflow.tracing.provider"),
    ):
        row = one(span_frame(told, scope=scope))
        assert (row["input_tokens"], row["output_tokens"]) == (9, 0)


def test_mlflows_summary_leaves_parts_out_that_the_answer_tells() -> None:
    summary = {"input_tokens": 7713, "output_tokens": 301, "cache_read_input_tokens": 4010}
    summary |= {"cache_creation_input_tokens": 2702, "cache_creation_input_tokens_above_1hr": 701}
    usage = {"output_tokens_details": {"thinking_tokens": 101}}
    told = {"mlflow.spanType": '"CHAT_MODEL"', "mlflow.chat.tokenUsage": json.dumps(summary)}
    told["mlflow.spanOutputs"] = json.dumps({"id": "msg_1", "usage": usage})
    row = one(span_frame(told, scope="mlflow.tracing.provider"))
    assert (row["cache_write_tokens"], row["cache_write_1h_tokens"], row["reasoning_tokens"]) == (
        2702,
        701,
        101,
    )


def test_vercel_embeds_within_a_span_that_tells_nothing() -> None:
    outer = {"gen_ai.operation.name": "embeddings", "gen_ai.request.model": "text-embedding-3-small"}
    row = one(span_frame(outer, outer | {"gen_ai.usage.input_tokens": 9}, scope="gen_ai"))
    assert (row["input_tokens"], row["output_tokens"]) == (9, 0)
    (silent,) = rows([span_frame(outer | {"gen_ai.operation.name": "chat"}, scope="gen_ai")])
    assert silent["input_tokens"] is None  # a chat that tells no tokens is a call


def test_mlflow_writes_every_attribute_as_json() -> None:
    told = {"mlflow.spanType": '"CHAT_MODEL"', "mlflow.llm.model": '"gpt-4o-mini"'}
    told["mlflow.chat.tokenUsage"] = (
        '{"input_tokens": 5011, "output_tokens": 301, "cache_read_input_tokens": 4010}'
    )
    told["mlflow.spanInputs"] = '{"model": "gpt-4o-mini", "stream": true, "messages": ["the prompt"]}'
    told["mlflow.spanOutputs"] = '{"id": "chatcmpl-1", "model": "gpt-4o-mini-2024-07-18", "choices": []}'
    row = one(span_frame(told, told | {"mlflow.spanType": '"TOOL"'}, scope="mlflow.tracing.provider"))
    assert (row["input_tokens"], row["cache_read_tokens"], row["output_tokens"]) == (5011, 4010, 301)
    assert (row["request_model"], row["response_model"]) == ("gpt-4o-mini", "gpt-4o-mini-2024-07-18")
    assert (row["response_id"], row["streaming"]) == ("chatcmpl-1", True)
    assert b"the prompt" not in row["attributes"]


def test_a_crew_tells_what_it_used_in_its_result() -> None:
    usage = {"prompt_tokens": 5011, "completion_tokens": 301, "cached_prompt_tokens": 4010}
    told = {
        "openinference.span.kind": "CHAIN",
        "output.value": json.dumps({"raw": "text", "token_usage": usage}),
    }
    row = one(span_frame(told, scope="openinference.instrumentation.crewai"))
    assert (row["role"], row["input_tokens"], row["output_tokens"]) == ("aggregate", 5011, 301)


@pytest.mark.parametrize(("provider", "whole"), [("Anthropic", 7713), ("OpenAI", 7713)])
def test_agno_counts_anthropics_cached_tokens_apart(provider: str, whole: int) -> None:
    prompt = 1001 if provider == "Anthropic" else 7713
    told: dict[str, Any] = {
        "openinference.span.kind": "LLM",
        "llm.provider": provider,
        "llm.token_count.prompt": prompt,
    }
    told |= {"llm.token_count.prompt_details.cache_read": 4010, "llm.token_count.completion": 301}
    told |= {"llm.token_count.prompt_details.cache_write": 2702}
    row = one(span_frame(told, scope="openinference.instrumentation.agno"))
    assert (row["input_tokens"], row["anomalies"]) == (whole, [])


def test_strands_tells_milliseconds_and_no_provider() -> None:
    told: dict[str, Any] = {"gen_ai.operation.name": "chat", "gen_ai.system": "strands-agents"}
    told |= {
        "gen_ai.server.time_to_first_token": 4281,
        "gen_ai.usage.prompt_tokens": 7,
        "gen_ai.usage.input_tokens": 7,
    }
    row = one(span_frame(told, scope="strands.telemetry.tracer"))
    assert (row["provider_name"], row["ttft_ms"], row["input_tokens"]) == (None, 4281.0, 7)


def test_laminar_needs_no_operation() -> None:
    told: dict[str, Any] = {
        "lmnr.span.type": "LLM",
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.usage.cache_read_input_tokens": 3,
    }
    told |= {"gen_ai.usage.input_tokens": 7, "gen_ai.usage.output_tokens": 1}
    row = one(span_frame(told, {"lmnr.span.type": "DEFAULT"}, scope="lmnr.tracer"))
    assert (row["emitter"], row["input_tokens"], row["cache_read_tokens"]) == ("laminar", 7, 3)


def test_the_claude_agent_sdks_completion_count_is_a_placeholder() -> None:
    told = {
        "openinference.span.kind": "AGENT",
        "llm.token_count.prompt": 7713,
        "llm.token_count.completion": 1,
    }
    row = one(span_frame(told, scope="openinference.instrumentation.claude_agent_sdk"))
    assert (row["role"], row["input_tokens"], row["output_tokens"]) == ("aggregate", 7713, None)
