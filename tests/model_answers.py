"""What a provider on loopback answers, in each dialect: as one document, and as a stream of events."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

WORDS = ("Hello", ", ", "toll", "book", "!")
TEXT = "".join(WORDS)
_PLACEHOLDER = 1
"""The output that Anthropic tells when a stream begins: never what it comes to."""


@dataclass(frozen=True)
class Answer:
    """One answer: a text, or where `tool` is told a call of that tool with these arguments. `cost_usd`: what
    the provider claims that it costs, as gateways do.
    """

    number: int
    model: str
    input_tokens: int
    tool: tuple[str, dict[str, Any]] | None = None
    cost_usd: float | None = None

    @property
    def output_tokens(self) -> int:
        """A token for every word."""
        return len(WORDS)

    @property
    def call_id(self) -> str:
        """The id of the tool's call."""
        return f"call_{self.number:020d}"


def whole(dialect: str, answer: Answer) -> Any:
    """The answer as one document."""
    made = {"chat": _chat, "responses": _response, "messages": _message, "embeddings": _embeddings}
    return made.get(dialect, _google)(answer)


def events(dialect: str, answer: Answer, *, tells_usage: bool) -> list[bytes]:
    """The answer as events; `tells_usage`: a stream of chat completions was asked for its usage."""
    if dialect == "chat":
        return _chat_events(answer, tells_usage=tells_usage)
    made = {"messages": _message_events, "responses": _response_events}
    return made.get(dialect, _google_events)(answer)


# OpenAI's chat completions


def _chat(answer: Answer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": TEXT}
    if answer.tool is not None:
        message = {"role": "assistant", "content": None, "tool_calls": [_chat_call(answer)]}
    finish = "tool_calls" if answer.tool else "stop"
    return {
        **_chat_head(answer, "chat.completion"),
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {**_chat_usage(answer), "prompt_tokens_details": {"cached_tokens": 4}},
    }


def _chat_head(answer: Answer, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{answer.number:024d}", "object": kind, "created": 1, "model": answer.model}


def _chat_usage(answer: Answer) -> dict[str, Any]:
    given, made = answer.input_tokens, answer.output_tokens
    claimed = {} if answer.cost_usd is None else {"cost": answer.cost_usd}
    return {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made, **claimed}


def _chat_call(answer: Answer) -> dict[str, Any]:
    assert answer.tool is not None
    name, arguments = answer.tool
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"id": answer.call_id, "type": "function", "function": function}


def _chat_events(answer: Answer, *, tells_usage: bool) -> list[bytes]:
    head = _chat_head(answer, "chat.completion.chunk")

    def chunk(delta: Any, finish: str | None = None) -> bytes:
        return _data({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    stream = [chunk({"role": "assistant", "content": ""})]
    if answer.tool is None:
        stream += [chunk({"content": word}) for word in WORDS]
    else:
        call = _chat_call(answer)
        function = call["function"]
        begun = {**call, "index": 0, "function": {**function, "arguments": ""}}
        stream.append(chunk({"tool_calls": [begun]}))
        stream += [
            chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
            for piece in _halves(function["arguments"])
        ]
    stream.append(chunk({}, "tool_calls" if answer.tool else "stop"))
    if tells_usage:
        stream.append(_data({**head, "choices": [], "usage": _chat_usage(answer)}))
    return [*stream, b"data: [DONE]\n\n"]


# OpenAI's responses


def _response(answer: Answer) -> dict[str, Any]:
    given, made = answer.input_tokens, answer.output_tokens
    return {
        "id": f"resp_{answer.number:024d}",
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "model": answer.model,
        "output": [_item(answer)],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": given,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": made,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": given + made,
        },
    }


def _item(answer: Answer) -> dict[str, Any]:
    if answer.tool is not None:
        name, arguments = answer.tool
        return {
            "id": f"fc_{answer.number:024d}",
            "type": "function_call",
            "status": "completed",
            "call_id": answer.call_id,
            "name": name,
            "arguments": json.dumps(arguments),
        }
    return {
        "id": f"msg_{answer.number:024d}",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": TEXT, "annotations": []}],
    }


def _response_events(answer: Answer) -> list[bytes]:
    done, item = _response(answer), _item(answer)
    begun = {**done, "status": "in_progress", "output": [], "usage": None}
    told_events = [
        {"type": "response.created", "response": begun},
        *(_called(item) if answer.tool else _spoken(item)),
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": done},
    ]
    return [_named({**event, "sequence_number": place}) for place, event in enumerate(told_events)]


def _spoken(item: dict[str, Any]) -> list[dict[str, Any]]:
    part = {"type": "output_text", "text": "", "annotations": []}
    place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    begun = {**item, "status": "in_progress", "content": []}
    return [
        {"type": "response.output_item.added", "output_index": 0, "item": begun},
        {"type": "response.content_part.added", **place, "part": part},
        *({"type": "response.output_text.delta", **place, "delta": word, "logprobs": []} for word in WORDS),
    ]


def _called(item: dict[str, Any]) -> list[dict[str, Any]]:
    place = {"item_id": item["id"], "output_index": 0}
    begun = {**item, "status": "in_progress", "arguments": ""}
    kind = "response.function_call_arguments"
    return [
        {"type": "response.output_item.added", "output_index": 0, "item": begun},
        *({"type": f"{kind}.delta", **place, "delta": piece} for piece in _halves(item["arguments"])),
        {"type": f"{kind}.done", **place, "name": item["name"], "arguments": item["arguments"]},
    ]


# Anthropic's messages


def _message(answer: Answer) -> dict[str, Any]:
    return {
        "id": f"msg_{answer.number:024d}",
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "content": [_block(answer)],
        "stop_reason": "tool_use" if answer.tool else "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": answer.input_tokens,
            "output_tokens": answer.output_tokens,
            "cache_read_input_tokens": 3,
        },
    }


def _block(answer: Answer) -> dict[str, Any]:
    if answer.tool is None:
        return {"type": "text", "text": TEXT}
    name, arguments = answer.tool
    return {"type": "tool_use", "id": f"toolu_{answer.number:020d}", "name": name, "input": arguments}


def _message_events(answer: Answer) -> list[bytes]:
    message = _message(answer)
    block, usage = message["content"][0], {**message["usage"], "output_tokens": _PLACEHOLDER}
    if answer.tool is None:
        begun: dict[str, Any] = {**block, "text": ""}
        deltas = [{"type": "text_delta", "text": word} for word in WORDS]
    else:
        begun = {**block, "input": {}}
        deltas = [
            {"type": "input_json_delta", "partial_json": piece}
            for piece in _halves(json.dumps(block["input"]))
        ]
    begun_message = {**message, "content": [], "stop_reason": None, "usage": usage}
    stop = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    told_events = [
        {"type": "message_start", "message": begun_message},
        {"type": "content_block_start", "index": 0, "content_block": begun},
        {"type": "ping"},
        *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": stop, "usage": {"output_tokens": answer.output_tokens}},
        {"type": "message_stop"},
    ]
    return [_named(event) for event in told_events]


# Gemini's generateContent


def _google(answer: Answer) -> dict[str, Any]:
    given, made = answer.input_tokens, answer.output_tokens
    return {
        **_google_head(answer),
        "candidates": [{"content": {"role": "model", "parts": [_part(answer)]}, "finishReason": "STOP"}],
        "usageMetadata": {
            "promptTokenCount": given,
            "candidatesTokenCount": made,
            "totalTokenCount": given + made,
        },
    }


def _google_head(answer: Answer) -> dict[str, Any]:
    return {"responseId": f"resp{answer.number:024d}", "modelVersion": answer.model}


def _part(answer: Answer) -> dict[str, Any]:
    if answer.tool is None:
        return {"text": TEXT}
    name, arguments = answer.tool
    return {"functionCall": {"name": name, "args": arguments}}


def _google_events(answer: Answer) -> list[bytes]:
    last = _google(answer)
    if answer.tool is None:
        last["candidates"][0]["content"]["parts"] = [{"text": ""}]
    words = () if answer.tool else WORDS
    first = [
        {
            **_google_head(answer),
            "candidates": [{"content": {"role": "model", "parts": [{"text": word}]}}],
        }
        for word in words
    ]
    return [b"data: " + json.dumps(each).encode() + b"\r\n\r\n" for each in (*first, last)]


def _embeddings(answer: Answer) -> dict[str, Any]:
    return {
        "object": "list",
        "model": answer.model,
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -0.5]}],
        "usage": {"prompt_tokens": answer.input_tokens, "total_tokens": answer.input_tokens},
    }


def _halves(text: str) -> tuple[str, str]:
    return text[: len(text) // 2], text[len(text) // 2 :]


def _data(event: Any) -> bytes:
    return b"data: " + json.dumps(event).encode() + b"\n\n"


def _named(event: dict[str, Any]) -> bytes:
    return b"event: " + event["type"].encode() + b"\n" + _data(event)
