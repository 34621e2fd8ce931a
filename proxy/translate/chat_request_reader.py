"""Requests of OpenAI's chat completions, as callers send them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from ..json_values import dumps
from . import media
from .conversation import (
    GOOGLE_SETTINGS,
    SAMPLING,
    SHARED_BY_OPENAI,
    AnswerFormat,
    CannotCarry,
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

_BEYOND: Final = (*SHARED_BY_OPENAI, GOOGLE_SETTINGS)
_DEFAULTS: Final = {"n": 1, "logprobs": False, "modalities": ["text"], "top_logprobs": 0}


def read(body: Json, model: str) -> Request:
    """CannotCarry names what has no place outside this format."""
    reading = Reading(body)
    reading.take("model")
    options = reading.inside(reading.take("stream_options"), "stream_options")
    sampling = {key: value for key in SAMPLING if (value := reading.number(key)) is not None}
    request = Request(
        model=model,
        messages=tuple(_messages(reading)),
        tools=tuple(_tools(reading)),
        tool_choice=_tool_choice(reading),
        parallel_tool_calls=reading.flag("parallel_tool_calls"),
        max_output_tokens=reading.number("max_completion_tokens", "max_tokens"),
        sampling=sampling,
        stop=stop_sequences(reading.take("stop")),
        answer_format=_answer_format(reading),
        reasoning=_reasoning(reading),
        verbosity=reading.text("verbosity"),
        streaming=reading.flag("stream") or False,
        stream_usage=options.flag("include_usage") or False,
        service_tier=reading.text("service_tier"),
        beyond={key: value for key in _BEYOND if (value := reading.take(key)) not in (None, 0, "")},
    )
    options.close(silent=("include_obfuscation",))
    reading.close(defaults=_DEFAULTS)
    return finished(request, reading)


def finished(request: Request, reading: Reading) -> Request:
    """The request, if all of it was understood."""
    if reading.refused:
        raise CannotCarry(reading.refused)
    return replace(request, left_out=tuple(dict.fromkeys(reading.left_out)))


def stop_sequences(value: Any) -> tuple[str, ...]:
    listed = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return tuple(word for word in listed if isinstance(word, str) and word)


def _messages(reading: Reading) -> Iterator[Message]:
    for given in reading.take("messages") or ():
        message = reading.inside(given, "messages")
        role = message.text("role")
        if role == "tool":
            yield Message("user", (_tool_result(message),))
        elif role in ("system", "developer", "user", "assistant"):
            parts = (*_thoughts(message), *_content(message), *_tool_calls(message))
            speaker = "system" if role == "developer" else role
            if parts:
                yield Message(speaker, parts, message.text("name"))  # type: ignore[arg-type]
        elif message.source:
            message.refuse(f"role {role}")
            continue
        message.close(silent=("name", "annotations"))


def _tool_result(message: Reading) -> ToolResult:
    parts = tuple(p for p in _content(message) if isinstance(p, Text | Media))
    return ToolResult(message.needed("tool_call_id"), parts, message.text("name"))


def _content(message: Reading) -> Iterator[Part]:
    content, refusal = message.take("content"), message.text("refusal")
    if isinstance(content, str) and content:
        yield Text(content)
    if isinstance(content, dict):  # some tools return objects
        yield Text(dumps(content).decode())
    for given in content if isinstance(content, list) else ():
        if isinstance(given, str):
            yield Text(given)
        elif isinstance(given, dict) and (part := _part(message.inside(given, "content"))) is not None:
            yield part
    if refusal:
        yield Text(refusal)


def _part(part: Reading) -> Part | None:
    kind, cache = part.text("type"), part.take("cache_control")
    if kind in ("text", "input_text", "output_text", "refusal"):
        text = part.text("text", "refusal")
        return Text(text, cache if isinstance(cache, dict) else None) if text else None
    if kind in ("image_url", "input_image"):
        image = part.take("image_url")
        url, detail = (
            (image.get("url"), image.get("detail"))
            if isinstance(image, dict)
            else (image, part.text("detail"))
        )
        if isinstance(url, str):
            return media.of_url(url, "image", detail=detail)
    if kind == "input_audio" and isinstance(sound := part.take("input_audio"), dict):
        return Media("audio", f"audio/{sound.get('format', 'wav')}", sound.get("data"))
    if (
        kind == "file"
        and isinstance(file := part.take("file"), dict)
        and isinstance(file.get("file_data"), str)
    ):
        return media.of_url(file["file_data"], "document", name=file.get("filename"))
    part.refuse(str(kind))
    return None


def _thoughts(message: Reading) -> Iterator[Part]:
    text = message.text("reasoning_content", "reasoning")
    message.take("reasoning_details")
    if text:
        yield Thinking(text)


def _tool_calls(message: Reading) -> Iterator[Part]:
    for given in message.take("tool_calls") or ():
        call = message.inside(given, "tool_calls")
        function = call.take("function")
        if not isinstance(function, dict):
            call.refuse(str(call.text("type")))
            continue
        arguments = function.get("arguments")
        yield ToolCall(
            call.needed("id"),
            str(function.get("name") or ""),
            arguments if isinstance(arguments, str) else "" if arguments is None else json.dumps(arguments),
            call.text("thought_signature") or _google_signature(call.take("extra_content")),
        )


def _google_signature(extra: Any) -> str | None:
    """Where Google's own endpoint of this format puts it."""
    google = extra.get("google") if isinstance(extra, dict) else None
    signature = google.get("thought_signature") if isinstance(google, dict) else None
    return signature if isinstance(signature, str) else None


def _tools(reading: Reading) -> Iterator[Tool]:
    for given in reading.take("tools") or ():
        tool = reading.inside(given, "tools")
        function = tool.take("function")
        if tool.text("type") != "function" or not isinstance(function, dict):
            tool.refuse(str(tool.source.get("type")))
            continue
        cache = tool.take("cache_control")
        yield Tool(
            str(function.get("name")),
            function.get("description"),
            function.get("parameters"),
            function.get("strict"),
            cache if isinstance(cache, dict) else None,
        )


def _tool_choice(reading: Reading) -> ToolChoice | None:
    choice = reading.take("tool_choice")
    if choice in ("auto", "none", "required"):
        return ToolChoice(choice)
    function = choice.get("function") if isinstance(choice, dict) else None
    if isinstance(function, dict) and isinstance(function.get("name"), str):
        return ToolChoice("named", function["name"])
    if choice is not None:
        reading.refuse("tool_choice")
    return None


def _answer_format(reading: Reading) -> AnswerFormat | None:
    chosen = reading.inside(reading.take("response_format"), "response_format")
    kind = chosen.text("type")
    if kind == "json_object":
        return AnswerFormat()
    if kind == "json_schema":
        told = chosen.inside(chosen.take("json_schema"), "json_schema")
        schema = told.take("schema")
        return AnswerFormat(
            schema if isinstance(schema, dict) else None,
            told.text("name"),
            told.text("description"),
            told.flag("strict"),
        )
    if kind not in (None, "text"):
        chosen.refuse(str(kind))
    return None


def _reasoning(reading: Reading) -> Reasoning | None:
    """OpenAI's word, OpenRouter's object, or the switch of Z.ai, Moonshot and DeepSeek."""
    word = reading.text("reasoning_effort")
    asked, thinking = reading.take("reasoning"), reading.take("thinking")
    if isinstance(thinking, dict):
        return reasoning_of_thinking(thinking, word)
    if isinstance(asked, dict):
        excluded = asked.get("exclude")
        summary = asked.get("summary")
        shown = not excluded if isinstance(excluded, bool) else True if summary else None
        return Reasoning(
            asked.get("enabled"), asked.get("effort") or word, asked.get("max_tokens"), shown, summary
        )
    return Reasoning(False if word == "none" else None, word) if word else None


def reasoning_of_thinking(thinking: Json, word: str | None) -> Reasoning:
    """Anthropic's `thinking`, which others took over."""
    budget, display = thinking.get("budget_tokens"), thinking.get("display")
    enabled = thinking.get("type") not in ("disabled", None)
    budget = budget if thinking.get("type") == "enabled" and isinstance(budget, int) else None
    return Reasoning(enabled, word, budget, None if display is None else display != "omitted")
