"""Requests of Anthropic's messages, as callers send them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from ..wire import WireFormat
from . import media
from .chat_request_reader import finished, reasoning_of_thinking, stop_sequences
from .conversation import (
    AnswerFormat,
    Json,
    Media,
    Message,
    Part,
    Reading,
    Reasoning,
    Request,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)

ORIGIN: Final = WireFormat.ANTHROPIC_MESSAGES
MAX_USER_CHARACTERS: Final = 64  # OpenAI's limit; what is longer names a machine and a session, not a user


def read(body: Json, model: str) -> Request:
    """CannotCarry names what has no place outside this format."""
    reading = Reading(body)
    reading.take("model")
    choice, parallel = _tool_choice(reading)
    config = reading.inside(reading.take("output_config"), "output_config")
    metadata = reading.inside(reading.take("metadata"), "metadata")
    user = metadata.text("user_id")
    if user and len(user) > MAX_USER_CHARACTERS:
        user = None
        reading.left_out.append("metadata.user_id")
    request = Request(
        model=model,
        messages=(*_system(reading), *_messages(reading)),
        tools=tuple(_tools(reading)),
        tool_choice=choice,
        parallel_tool_calls=parallel,
        max_output_tokens=reading.number("max_tokens"),
        sampling={k: v for k in ("temperature", "top_p", "top_k") if (v := reading.number(k)) is not None},
        stop=stop_sequences(reading.take("stop_sequences")),
        answer_format=_answer_format(config.take("format") or reading.take("output_format"), config),
        reasoning=_reasoning(reading, config.text("effort")),
        streaming=reading.flag("stream") or False,
        stream_usage=True,
        service_tier=reading.text("service_tier"),
        beyond={"user": user} if user else {},
    )
    config.close()
    metadata.close()
    reading.close()
    return finished(request, reading)


def _system(reading: Reading) -> Iterator[Message]:
    system = reading.take("system")
    if isinstance(system, str) and system:
        yield Message("system", (Text(system),))
    elif isinstance(system, list) and (parts := tuple(_blocks(system, reading, "system"))):
        yield Message("system", parts)


def _messages(reading: Reading) -> Iterator[Message]:
    for given in reading.take("messages") or ():
        message = reading.inside(given, "messages")
        role, content = message.text("role"), message.take("content")
        if role not in ("user", "assistant", "system"):
            if message.source:
                message.refuse(f"role {role}")
            continue
        parts = (Text(content),) if isinstance(content, str) else tuple(_blocks(content, message, "content"))
        if parts:
            yield Message(role, parts)  # type: ignore[arg-type]


def _blocks(blocks: Any, reading: Reading, name: str) -> Iterator[Part]:
    for given in blocks if isinstance(blocks, list) else ():
        block = reading.inside(given, name)
        if block.source and (part := _block(block)) is not None:
            yield part
            block.close(silent=("caller",))


def _block(block: Reading) -> Part | None:
    kind, cache = block.text("type"), block.take("cache_control")
    found: Part | None = None
    match kind:
        case "text":
            block.take("citations")
            text = block.text("text")
            return Text(text, cache) if text else None
        case "image" | "document":
            found = _media(block, kind, cache)
        case "thinking":
            found = Thinking(block.text("thinking") or "", block.text("signature") or None, ORIGIN)
        case "redacted_thinking":
            found = Thinking("", block.text("data"), ORIGIN, redacted=True)
        case "tool_use":
            found = ToolCall(block.needed("id"), block.needed("name"), _arguments(block), None, cache)
        case "tool_result":
            found = _tool_result(block, cache)
    if found is None:
        block.refuse(str(kind))
    return found


def _arguments(block: Reading) -> str:
    given = block.take("input")
    return json.dumps(given if given is not None else {}, ensure_ascii=False, separators=(",", ":"))


def _tool_result(block: Reading, cache: Json | None) -> ToolResult:
    content = block.take("content")
    if isinstance(content, list):
        parts = tuple(p for p in _blocks(content, block, "content") if isinstance(p, Text | Media))
    else:
        text = (
            content
            if isinstance(content, str)
            else ""
            if content is None
            else json.dumps(content, separators=(",", ":"))
        )
        parts = (Text(text),) if text else ()
    return ToolResult(block.needed("tool_use_id"), parts, None, block.flag("is_error") or False, cache)


def _media(block: Reading, kind: str, cache: Json | None) -> Part | None:
    source = block.take("source")
    block.take("citations", "context")
    if not isinstance(source, dict):
        return None
    what: media.Kind = "image" if kind == "image" else "document"
    name = block.text("title")
    if source.get("type") == "url" and isinstance(source.get("url"), str):
        return Media(what, None, None, source["url"], None, name, cache)
    if source.get("type") == "base64" and isinstance(source.get("data"), str):
        return Media(what, source.get("media_type"), source["data"], None, None, name, cache)
    if source.get("type") == "text" and isinstance(source.get("data"), str):
        return Text(source["data"], cache)
    return None


def _tools(reading: Reading) -> Iterator[Tool]:
    for given in reading.take("tools") or ():
        tool = reading.inside(given, "tools")
        if tool.text("type") not in (None, "custom"):
            tool.refuse(str(tool.source.get("name") or tool.source["type"]))
            continue
        schema = tool.take("input_schema")
        yield Tool(
            tool.text("name") or "",
            tool.text("description"),
            schema if isinstance(schema, dict) else None,
            tool.flag("strict"),
            tool.take("cache_control"),
        )
        tool.close(silent=("eager_input_streaming", "input_examples", "allowed_callers", "defer_loading"))


def _tool_choice(reading: Reading) -> tuple[ToolChoice | None, bool | None]:
    choice = reading.inside(reading.take("tool_choice"), "tool_choice")
    kind, name, single = choice.text("type"), choice.text("name"), choice.flag("disable_parallel_tool_use")
    parallel = None if single is None else not single
    if kind in ("auto", "none"):
        return ToolChoice(kind), parallel  # type: ignore[arg-type]
    if kind == "any":
        return ToolChoice("required"), parallel
    if kind == "tool" and name:
        return ToolChoice("named", name), parallel
    if kind is not None:
        choice.refuse(kind)
    return None, parallel


def _answer_format(wanted: Any, config: Reading) -> AnswerFormat | None:
    if not isinstance(wanted, dict):
        return None
    schema = wanted.get("schema")
    if wanted.get("type") == "json_schema" and isinstance(schema, dict):
        return AnswerFormat(schema)
    config.refuse("format")
    return None


def _reasoning(reading: Reading, word: str | None) -> Reasoning | None:
    thinking = reading.take("thinking")
    if isinstance(thinking, dict):
        return reasoning_of_thinking(thinking, word)
    return Reasoning(None, word) if word else None
