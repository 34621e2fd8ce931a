"""Requests of OpenAI's responses, as callers send them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from ..json_values import dumps, objects
from ..wire import WireFormat
from . import media, special_tools
from .chat_request_reader import finished
from .conversation import (
    SHARED_BY_OPENAI,
    AnswerFormat,
    Json,
    Media,
    Message,
    Reading,
    Reasoning,
    Request,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    merged_turns,
)

ORIGIN: Final = WireFormat.OPENAI_RESPONSES
_DEFAULTS: Final = {"truncation": "disabled", "background": False, "top_logprobs": 0}


def read(body: Json, model: str) -> Request:
    """CannotCarry names what has no place outside this format."""
    reading = Reading(body)
    reading.take(
        "model", "include"
    )  # what to include of server-side tools, and of thoughts that nobody else reads
    text = reading.inside(reading.take("text"), "text")
    options = reading.inside(reading.take("stream_options"), "stream_options")
    request = Request(
        model=model,
        messages=(*_instructions(reading), *merged_turns(_items(reading), _are_one_turn)),
        tools=tuple(_tools(reading)),
        tool_choice=_tool_choice(reading),
        parallel_tool_calls=reading.flag("parallel_tool_calls"),
        max_output_tokens=reading.number("max_output_tokens"),
        sampling={k: v for k in ("temperature", "top_p") if (v := reading.number(k)) is not None},
        answer_format=_answer_format(text),
        reasoning=_reasoning(reading.inside(reading.take("reasoning"), "reasoning")),
        verbosity=text.text("verbosity"),
        streaming=reading.flag("stream") or False,
        stream_usage=True,
        service_tier=reading.text("service_tier"),
        beyond={key: value for key in SHARED_BY_OPENAI if (value := reading.take(key)) not in (None, 0, "")},
    )
    text.close()
    options.close(silent=("include_obfuscation",))
    reading.close(defaults=_DEFAULTS)
    return finished(request, reading)


def _instructions(reading: Reading) -> Iterator[Message]:
    if instructions := reading.text("instructions"):
        yield Message("system", (Text(instructions),))


def _are_one_turn(one: Message, other: Message) -> bool:
    """Thoughts, text and calls of the model are items of their own here, and one turn elsewhere."""
    if one.role != other.role:
        return False
    return one.role == "assistant" or all(isinstance(p, ToolResult) for p in (*one.parts, *other.parts))


def _items(reading: Reading) -> Iterator[Message]:
    given = reading.take("input")
    items = [given] if isinstance(given, str) else given if isinstance(given, list) else []
    for one in items:
        if isinstance(one, str):
            yield Message("user", (Text(one),))
        elif (
            isinstance(one, dict)
            and (message := _item(reading.inside(one, "input"))) is not None
            and message.parts
        ):
            yield message


def _item(item: Reading) -> Message | None:
    kind = item.text("type") or "message"
    match kind:
        case "message":
            return _message(item)
        case "function_call":
            call = ToolCall(item.needed("call_id"), item.needed("name"), item.text("arguments") or "")
            return Message("assistant", (call,))
        case "custom_tool_call":
            text = special_tools.arguments_of_text(item.text("input") or "")
            return Message("assistant", (ToolCall(item.needed("call_id"), item.needed("name"), text),))
        case "tool_search_call":
            asked = dumps(item.take("arguments") or {}).decode()
            return Message("assistant", (ToolCall(item.needed("call_id"), special_tools.SEARCH, asked),))
        case "tool_search_output":
            found = Text(dumps(item.take("tools") or []).decode())
            return Message("user", (ToolResult(item.needed("call_id"), (found,)),))
        case "function_call_output" | "custom_tool_call_output":
            return Message("user", (_tool_result(item),))
        case "reasoning":
            return Message("assistant", (_thinking(item),))
    item.refuse(kind)
    return None


def _message(item: Reading) -> Message | None:
    role, content = item.text("role"), item.take("content")
    if role not in ("user", "assistant", "system", "developer"):
        item.refuse(f"role {role}")
        return None
    parts = (Text(content),) if isinstance(content, str) else tuple(_parts(content, item))
    return Message("system" if role == "developer" else role, parts)  # type: ignore[arg-type]


def _parts(content: Any, item: Reading) -> Iterator[Text | Media]:
    for given in content if isinstance(content, list) else ():
        part = item.inside(given, "content")
        kind = part.text("type")
        if kind in ("input_text", "output_text", "text", "refusal", "summary_text"):
            if text := part.text("text", "refusal"):
                yield Text(text)
        elif (found := _media(part, kind)) is not None:
            yield found
        else:
            part.refuse(str(kind))


def _media(part: Reading, kind: str | None) -> Media | None:
    if kind in ("input_image", "image_url"):
        image = part.take("image_url")
        url = image.get("url") if isinstance(image, dict) else image
        return media.of_url(url, "image", detail=part.text("detail")) if isinstance(url, str) else None
    if kind == "input_file" and (url := part.text("file_data", "file_url")):
        return media.of_url(url, "document", name=part.text("filename"))
    sound = part.take("input_audio")
    if kind == "input_audio" and isinstance(sound, dict):
        return Media("audio", f"audio/{sound.get('format', 'wav')}", sound.get("data"))
    return None


def _tool_result(item: Reading) -> ToolResult:
    output = item.take("output")
    if isinstance(output, list):
        parts = tuple(_parts(output, item))
    else:
        text = (
            output
            if isinstance(output, str)
            else ""
            if output is None
            else json.dumps(output, separators=(",", ":"))
        )
        parts = (Text(text),) if text else ()
    return ToolResult(item.needed("call_id"), parts)


def _thinking(item: Reading) -> Thinking:
    told = [*_told(item.take("content")), *_told(item.take("summary"))]
    return Thinking("\n\n".join(told), item.text("encrypted_content"), ORIGIN, item_id=item.text("id"))


def _told(parts: Any) -> list[str]:
    listed = parts if isinstance(parts, list) else []
    return [part["text"] for part in listed if isinstance(part, dict) and isinstance(part.get("text"), str)]


def _tools(reading: Reading) -> Iterator[Tool]:
    found = [
        tool
        for item in objects(reading.source.get("input"))
        if item.get("type") == "tool_search_output"
        for tool in objects(item.get("tools"))
    ]
    for given in [*(reading.take("tools") or ()), *found]:
        tool = reading.inside(given, "tools")
        if special_tools.is_search(tool.source):
            yield Tool(special_tools.SEARCH, tool.text("description"), tool.take("parameters"))
            continue
        if tool.text("type") == "custom":
            yield special_tools.as_function(tool.source)
            continue
        if tool.text("type") != "function":
            tool.refuse(str(tool.source.get("name") or tool.source.get("type")))
            continue
        schema = tool.take("parameters")
        described = tool.text("description")
        yield Tool(
            tool.text("name") or "",
            described,
            schema if isinstance(schema, dict) else None,
            tool.flag("strict"),
        )


def _tool_choice(reading: Reading) -> ToolChoice | None:
    choice = reading.take("tool_choice")
    if choice in ("auto", "none", "required"):
        return ToolChoice(choice)
    kinds = ("function", "custom")
    if isinstance(choice, dict) and choice.get("type") in kinds and isinstance(choice.get("name"), str):
        return ToolChoice("named", choice["name"])
    if choice is not None:
        reading.refuse("tool_choice")
    return None


def _answer_format(text: Reading) -> AnswerFormat | None:
    wanted = text.inside(text.take("format"), "format")
    kind = wanted.text("type")
    if kind == "json_object":
        return AnswerFormat()
    if kind == "json_schema":
        schema = wanted.take("schema")
        named, described = wanted.text("name"), wanted.text("description")
        return AnswerFormat(
            schema if isinstance(schema, dict) else None, named, described, wanted.flag("strict")
        )
    if kind not in (None, "text"):
        wanted.refuse(str(kind))
    return None


def _reasoning(asked: Reading) -> Reasoning | None:
    word, shown = asked.text("effort"), asked.text("summary", "generate_summary")
    asked.close()
    if word is None and shown is None:
        return None
    return Reasoning(False if word == "none" else None, word, None, True if shown else None, shown)
