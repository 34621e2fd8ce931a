"""The SDKs of the four formats take translated answers as their own: their types, streams and errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from google import genai
from google.genai import errors as google_errors
from google.genai.types import GenerateContentResponse, HttpOptions
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from proxy.failure import FailureKind, failure, render, render_event
from proxy.sse import EventReader, encoded
from proxy.translate import answer_translator
from proxy.wire import WireFormat

CHAT, RESPONSES, EMBEDDINGS, MESSAGES, GOOGLE = WireFormat
FORMATS = [CHAT, RESPONSES, MESSAGES, GOOGLE]
ASKING: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


def events(*payloads: Any) -> bytes:
    """As providers send them: those with a type under its name, then the end mark where one is given."""
    whole = b""
    for payload in payloads:
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        name = payload["type"].encode() if isinstance(payload, dict) and "type" in payload else b""
        whole += encoded(data, name)
    return whole


# One answer in every format: thoughts, a text in two pieces, two calls, and what it cost.

USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 20,
    "total_tokens": 120,
    "prompt_tokens_details": {"cached_tokens": 40},
    "completion_tokens_details": {"reasoning_tokens": 5},
}
CALLS = [
    {"id": "call_a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
    {"id": "call_b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
]
CHAT_HEAD = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "glm-5"}
CHAT_MESSAGE = {
    "role": "assistant",
    "content": "Hello",
    "reasoning_content": "think hard",
    "tool_calls": CALLS,
}
CHAT_BODY = {
    **CHAT_HEAD,
    "choices": [{"index": 0, "finish_reason": "tool_calls", "message": CHAT_MESSAGE}],
    "usage": USAGE,
}


def chat_chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {**CHAT_HEAD, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


def call_piece(index: int, arguments: str, **told: Any) -> dict[str, Any]:
    function = {"arguments": arguments} | ({"name": told.pop("name")} if told else {})
    return chat_chunk({"tool_calls": [{"index": index, "function": function, **told}]})


CHAT_STREAM = events(
    chat_chunk({"role": "assistant", "content": ""}),
    chat_chunk({"reasoning_content": "think "}),
    chat_chunk({"reasoning_content": "hard"}),
    chat_chunk({"content": "Hel"}),
    chat_chunk({"content": "lo"}),
    call_piece(0, "", name="f", id="call_a", type="function"),
    call_piece(0, '{"x":'),
    call_piece(1, "{", name="g", id="call_b", type="function"),
    call_piece(0, "1}"),
    call_piece(1, "}"),
    chat_chunk({}, "tool_calls"),
    {**CHAT_HEAD, "choices": [], "usage": USAGE},
    b"[DONE]",
)

ANTHROPIC_USAGE = {"input_tokens": 60, "cache_read_input_tokens": 40, "output_tokens": 20}
ANTHROPIC_CONTENT = [
    {"type": "thinking", "thinking": "think hard", "signature": "proof"},
    {"type": "text", "text": "Hello"},
    {"type": "tool_use", "id": "call_a", "name": "f", "input": {"x": 1}},
    {"type": "tool_use", "id": "call_b", "name": "g", "input": {}},
]
MESSAGES_BODY = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-5",
    "content": ANTHROPIC_CONTENT,
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": ANTHROPIC_USAGE,
}


def block(index: int, begun: dict[str, Any], *deltas: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"type": "content_block_start", "index": index, "content_block": begun}
    yield from ({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas)
    yield {"type": "content_block_stop", "index": index}


MESSAGES_STREAM = events(
    {"type": "message_start", "message": {**MESSAGES_BODY, "content": [], "stop_reason": None}},
    {"type": "ping"},
    *block(
        0,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "think "},
        {"type": "thinking_delta", "thinking": "hard"},
        {"type": "signature_delta", "signature": "proof"},
    ),
    *block(
        1,
        {"type": "text", "text": ""},
        {"type": "text_delta", "text": "Hel"},
        {"type": "text_delta", "text": "lo"},
    ),
    *block(2, {**ANTHROPIC_CONTENT[2], "input": {}}, {"type": "input_json_delta", "partial_json": '{"x":1}'}),
    *block(3, {**ANTHROPIC_CONTENT[3], "input": {}}),
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 20}},
    {"type": "message_stop"},
)

ITEMS: list[dict[str, Any]] = [
    {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "think hard"}]},
    {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "Hello"}],
    },
    {"type": "function_call", "id": "fc_1", "call_id": "call_a", "name": "f", "arguments": '{"x":1}'},
    {"type": "function_call", "id": "fc_2", "call_id": "call_b", "name": "g", "arguments": "{}"},
]
RESPONSES_BODY = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "status": "completed",
    "model": "gpt-5.5",
    "output": ITEMS,
    "usage": {
        "input_tokens": 100,
        "input_tokens_details": {"cached_tokens": 40},
        "output_tokens": 20,
        "output_tokens_details": {"reasoning_tokens": 5},
    },
}


def item(index: int, delta: str, *pieces: str) -> Iterator[dict[str, Any]]:
    whole = ITEMS[index]
    yield {"type": "response.output_item.added", "output_index": index, "item": {**whole, "arguments": ""}}
    yield from (
        {"type": f"response.{delta}.delta", "output_index": index, "delta": piece} for piece in pieces
    )
    yield {"type": "response.output_item.done", "output_index": index, "item": whole}


RESPONSES_STREAM = events(
    {"type": "response.created", "response": {**RESPONSES_BODY, "output": [], "usage": None}},
    *item(0, "reasoning_summary_text", "think ", "hard"),
    *item(1, "output_text", "Hel", "lo"),
    *item(2, "function_call_arguments", '{"x"', ":1}"),
    {"type": "response.completed", "response": RESPONSES_BODY},  # the last call is told only here
)

GOOGLE_PARTS = [
    {"text": "think hard", "thought": True},
    {"text": "Hello"},
    {"functionCall": {"id": "call_a", "name": "f", "args": {"x": 1}}, "thoughtSignature": "cHJvb2Y="},
    {"functionCall": {"id": "call_b", "name": "g", "args": {}}},
]
GOOGLE_HEAD = {"modelVersion": "gemini-3-pro", "responseId": "rid"}
GOOGLE_USAGE = {
    "promptTokenCount": 100,
    "cachedContentTokenCount": 40,
    "candidatesTokenCount": 15,
    "thoughtsTokenCount": 5,
    "totalTokenCount": 120,
}


def google_chunk(*parts: dict[str, Any], **told: Any) -> dict[str, Any]:
    return {
        "candidates": [{"content": {"role": "model", "parts": list(parts)}, "index": 0, **told}],
        **GOOGLE_HEAD,
    }


GOOGLE_BODY = {**google_chunk(*GOOGLE_PARTS, finishReason="STOP"), "usageMetadata": GOOGLE_USAGE}
GOOGLE_STREAM = events(
    google_chunk({"text": "think ", "thought": True}),
    google_chunk({"text": "hard", "thought": True}),
    google_chunk({"text": "Hel"}),
    google_chunk({"text": "lo"}),
    google_chunk(*GOOGLE_PARTS[2:]),
    {**google_chunk({"text": ""}, finishReason="STOP"), "usageMetadata": GOOGLE_USAGE},
)
BODIES: dict[WireFormat, dict[str, Any]] = {
    CHAT: CHAT_BODY,
    RESPONSES: RESPONSES_BODY,
    MESSAGES: MESSAGES_BODY,
    GOOGLE: GOOGLE_BODY,
}
STREAMS = {CHAT: CHAT_STREAM, RESPONSES: RESPONSES_STREAM, MESSAGES: MESSAGES_STREAM, GOOGLE: GOOGLE_STREAM}

WHOLE: dict[WireFormat, TypeAdapter[Any]] = {
    CHAT: TypeAdapter(ChatCompletion),
    RESPONSES: TypeAdapter(Response),
    MESSAGES: TypeAdapter(Message),
    GOOGLE: TypeAdapter(GenerateContentResponse),
}
EVENTS: dict[WireFormat, TypeAdapter[Any]] = {
    CHAT: TypeAdapter(ChatCompletionChunk),
    RESPONSES: TypeAdapter(ResponseStreamEvent),
    MESSAGES: TypeAdapter(RawMessageStreamEvent),
    GOOGLE: TypeAdapter(GenerateContentResponse),
}


def streamed(source: WireFormat, target: WireFormat) -> bytes:
    translator, stream = answer_translator(source, target, ASKING), STREAMS[target]
    pieces = (stream[at : at + 37] for at in range(0, len(stream), 37))
    return b"".join(map(translator.feed, pieces)) + translator.finish()


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("source", FORMATS)
def test_every_answer_and_event_is_of_the_sdks_own_types(source: WireFormat, target: WireFormat) -> None:
    WHOLE[source].validate_python(answer_translator(source, target, ASKING).body(BODIES[target]))
    for event in EventReader().feed(streamed(source, target)):
        if event.data != b"[DONE]":
            EVENTS[source].validate_python(json.loads(event.data))


def answering(content: bytes, *, status: int = 200, headers: dict[str, str] | None = None) -> httpx2.Client:
    """What the SDK calls over: every request gets this answer."""
    streams = content.lstrip().startswith((b"data:", b"event:"))
    told = {"content-type": "text/event-stream" if streams else "application/json", **(headers or {})}
    return httpx2.Client(
        transport=httpx2.MockTransport(lambda _: httpx2.Response(status, headers=told, content=content))
    )


Seen = tuple[str, str, list[tuple[str | None, str | None, Any]], tuple[Any, ...]]


def by_chat(content: bytes) -> Seen:
    client = openai.OpenAI(api_key="x", max_retries=0, http_client=answering(content))
    asked: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    with client.chat.completions.stream(**asked, stream_options={"include_usage": True}) as stream:
        for _ in stream:
            pass
        done = stream.get_final_completion()
    message, usage = done.choices[0].message, done.usage
    assert usage is not None and usage.prompt_tokens_details is not None
    calls = [(c.id, c.function.name, json.loads(c.function.arguments)) for c in message.tool_calls or ()]
    counts = usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens, usage.completion_tokens
    return message.content or "", getattr(message, "reasoning_content", ""), calls, counts


def by_responses(content: bytes) -> Seen:
    client = openai.OpenAI(api_key="x", max_retries=0, http_client=answering(content))
    with client.responses.stream(model="m", input="hi") as stream:
        for _ in stream:
            pass
        done = stream.get_final_response()
    calls = [(i.call_id, i.name, json.loads(i.arguments)) for i in done.output if i.type == "function_call"]
    thoughts = "".join(s.text for i in done.output if i.type == "reasoning" for s in i.summary)
    assert done.usage is not None
    counts = done.usage.input_tokens, done.usage.input_tokens_details.cached_tokens, done.usage.output_tokens
    return done.output_text, thoughts, calls, counts


def by_messages(content: bytes) -> Seen:
    client = anthropic.Anthropic(api_key="x", max_retries=0, http_client=answering(content))
    with client.messages.stream(
        model="m", max_tokens=9, messages=[{"role": "user", "content": "hi"}]
    ) as stream:
        for _ in stream:
            pass
        done = stream.get_final_message()
    text = "".join(b.text for b in done.content if b.type == "text")
    thoughts = "".join(b.thinking for b in done.content if b.type == "thinking")
    calls = [(b.id, b.name, b.input) for b in done.content if b.type == "tool_use"]
    read = done.usage.cache_read_input_tokens or 0
    return text, thoughts, calls, (done.usage.input_tokens + read, read, done.usage.output_tokens)


def by_google(content: bytes) -> Seen:
    client = genai.Client(api_key="x", http_options=HttpOptions(httpx_client=answering(content)))
    chunks = list(client.models.generate_content_stream(model="m", contents="hi"))
    candidates = [chunk.candidates[0] for chunk in chunks if chunk.candidates]
    parts = [part for one in candidates if one.content for part in one.content.parts or ()]
    called = [part.function_call for part in parts if part.function_call]
    usage = chunks[-1].usage_metadata
    assert usage is not None
    output = (usage.candidates_token_count or 0) + (usage.thoughts_token_count or 0)
    counts = usage.prompt_token_count, usage.cached_content_token_count, output
    text = "".join(part.text or "" for part in parts if not part.thought)
    thoughts = "".join(part.text or "" for part in parts if part.thought)
    return text, thoughts, [(call.id, call.name, call.args) for call in called], counts


READ_BY: dict[WireFormat, Callable[[bytes], Seen]] = {
    CHAT: by_chat,
    RESPONSES: by_responses,
    MESSAGES: by_messages,
    GOOGLE: by_google,
}


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("source", FORMATS)
def test_sdks_make_the_same_of_every_providers_stream(source: WireFormat, target: WireFormat) -> None:
    calls = [("call_a", "f", {"x": 1}), ("call_b", "g", {})]
    assert READ_BY[source](streamed(source, target)) == ("Hello", "think hard", calls, (100, 40, 20))


def test_sdks_raise_their_own_errors_and_do_not_ask_again() -> None:
    spent = failure(FailureKind.BUDGET_EXCEEDED, "budget team-a is spent", retry_after_s=60)
    asked: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}

    def client_for(wire_format: WireFormat, made: list[int]) -> httpx2.Client:
        status, headers, body = render(spent, wire_format)

        def answer(_: httpx2.Request) -> httpx2.Response:
            made.append(1)
            return httpx2.Response(status, headers=headers, content=body)

        return httpx2.Client(transport=httpx2.MockTransport(answer))

    made: list[int] = []
    with pytest.raises(openai.RateLimitError, match="team-a") as by_openai:
        openai.OpenAI(api_key="x", http_client=client_for(CHAT, made)).chat.completions.create(**asked)
    assert by_openai.value.code == "budget_exceeded"
    with pytest.raises(anthropic.RateLimitError, match="team-a"):
        client = anthropic.Anthropic(api_key="x", http_client=client_for(MESSAGES, made))
        client.messages.create(max_tokens=9, **asked)
    with pytest.raises(google_errors.ClientError, match="team-a"):
        options = HttpOptions(httpx_client=client_for(GOOGLE, made))
        genai.Client(api_key="x", http_options=options).models.generate_content(model="m", contents="hi")
    assert len(made) == 3  # each SDK retries a 429 of its own accord


def test_sdks_see_an_error_that_ends_a_stream() -> None:
    busy = failure(FailureKind.OVERLOADED, "the provider is busy")

    def broken(source: WireFormat) -> bytes:
        translator = answer_translator(source, MESSAGES, ASKING)
        return translator.feed(MESSAGES_STREAM[:600]) + render_event(busy, source, sequence_number=9)

    with pytest.raises(openai.APIError, match="busy"):
        by_chat(broken(CHAT))
    with pytest.raises(openai.APIError, match="busy"):
        by_responses(broken(RESPONSES))
    with pytest.raises(anthropic.APIStatusError, match="busy"):
        by_messages(broken(MESSAGES))
    with pytest.raises(google_errors.APIError, match="busy"):
        by_google(broken(GOOGLE))
