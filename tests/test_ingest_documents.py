"""Values inside JSON and Python texts: found, bounded, and nothing else let in."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.ingest_decode_support import kept, observed, rows, span_frame

USAGE = {"prompt_tokens": 5011, "completion_tokens": 301, "prompt_tokens_details": {"cached_tokens": 4010}}
CHAT = {"gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": 5011, "gen_ai.usage.output_tokens": 301}


def langfuse(text: str) -> dict[str, Any]:
    told = {"langfuse.observation.type": "generation", "langfuse.observation.usage_details": text}
    (row,) = rows([span_frame(told, scope="langfuse-sdk")])
    return row


def litellm(text: str) -> dict[str, Any]:
    (row,) = rows([span_frame(CHAT | {"metadata.usage_object": text}, scope="litellm")])
    return row


def test_json_is_read_at_the_paths_that_dialects_name() -> None:
    row = langfuse(json.dumps(USAGE | {"messages": "the prompt"}))
    assert (row["input_tokens"], row["cache_read_tokens"], row["output_tokens"]) == (5011, 4010, 301)
    assert b"the prompt" not in row["attributes"]
    found = kept(row["attributes"])
    assert found["langfuse.observation.usage_details#prompt_tokens_details/cached_tokens"] == 4010
    assert "langfuse.observation.usage_details" not in found


def test_python_dictionaries_are_read_and_not_run() -> None:
    assert (
        litellm(str({"prompt_tokens_details": {"cached_tokens": 4010, "x": None}}))["cache_read_tokens"]
        == 4010
    )
    row = litellm("{'prompt_tokens_details': __import__('os').environ}")
    assert (row["cache_read_tokens"], row["anomalies"]) == (None, ["unreadable:metadata.usage_object"])


@pytest.mark.parametrize("text", ["{", '{"a": ', "{'a': (", "[" * 100_000, "{" * 9000, '{"a":' * 5000])
def test_what_cannot_be_read_is_noted(text: str) -> None:
    row = langfuse(text)
    assert row["input_tokens"] is None
    assert row["anomalies"] == ["unreadable:langfuse.observation.usage_details"]


@pytest.mark.parametrize("text", ["plain text", "5", "null", "true", "[]", '"a text"'])
def test_other_texts_tell_nothing(text: str) -> None:
    row = langfuse(text)
    assert (row["input_tokens"], row["anomalies"]) == (None, [])


@pytest.mark.parametrize("value", [10**30, -1, 1.5, "12 or so", {"deep": 1}, [1], 10**9])
def test_values_inside_are_believed_no_more_than_others(value: Any) -> None:
    assert langfuse(json.dumps({"prompt_tokens": value}))["input_tokens"] is None


def test_secrets_inside_are_dropped_as_elsewhere() -> None:
    told = {"mlflow.spanType": '"LLM"', "mlflow.llm.model": '"sk-ant-api03-abcdefghijkl"'}
    told |= {"mlflow.trace.user": '"ann@example.com"'}
    (row,) = rows([span_frame(told, scope="mlflow.tracing.provider")])
    assert (row["request_model"], row["user_id"]) == (None, None)
    assert row["anomalies"] == ["credential:mlflow.llm.model#", "email:mlflow.trace.user#"]
    assert b"example.com" not in row["attributes"]


def test_a_huge_document_is_not_opened() -> None:
    started = time.process_time()
    row = langfuse('{"prompt_tokens": 5, "x": "' + "y" * (4 << 20) + '"}')
    assert time.process_time() - started < 2
    assert (row["input_tokens"], row["anomalies"]) == (
        None,
        ["unreadable:langfuse.observation.usage_details"],
    )
    assert len(row["attributes"]) < 1000


def test_documents_of_other_dialects_stay_closed() -> None:
    """Only the records whose dialect looks into a document have it opened."""
    told = CHAT | {
        "metadata.usage_object": '{"prompt_tokens_details": {"cached_tokens": 1}}',
        "output.value": "{",
    }
    (row,) = rows([span_frame(told)])
    assert (row["cache_read_tokens"], row["anomalies"]) == (None, [])


def test_each_record_gets_its_own() -> None:
    told = [
        {
            "langfuse.observation.type": "generation",
            "langfuse.observation.usage_details": json.dumps(
                {"prompt_tokens": n, "completion_tokens": n + 1}
            ),
        }
        for n in range(1, 301)
    ]
    found = observed(span_frame(*told, {"http.method": "GET"}, scope="langfuse-sdk")).observations
    assert found.select("input_tokens", "output_tokens").rows() == [(n, n + 1) for n in range(1, 301)]
