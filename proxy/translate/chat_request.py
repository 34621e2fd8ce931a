"""Requests of OpenAI's chat completions, read and written."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any, Final

from ..json_values import dumps
from . import effort, media
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
    Writing,
    text_of,
)
from .schema import with_items

_BEYOND: Final = (*SHARED_BY_OPENAI, GOOGLE_SETTINGS)
_DEFAULTS: Final = {"n": 1, "logprobs": False, "modalities": ["text"], "top_logprobs": 0}
# OpenAI's newer models refuse the old name of the limit; most others know no other.
_NEW_LIMIT_NAME: Final = re.compile(r"(?:^|/)(?:gpt-(?![34])|gpt-[45]\.|o\d|codex|chatgpt)")
_OPENAIS_OWN: Final = re.compile(r"(?:^|/)(?:gpt-(?!oss)|o\d|codex|chatgpt)")
# These are told to think by a switch, not by a word.
_SWITCHED: Final = re.compile(r"(?:^|/)(?:glm-|kimi-|deepseek-|mimo-|doubao-|seed-)")
# Makers whose chat endpoints refuse or ignore the thoughts of earlier turns; the others want them back.
_WANTS_NO_THOUGHTS: Final = re.compile(
    r"(?:^|/)(?:gpt-(?!oss)|o\d|codex|chatgpt|claude|gemini|grok|mistral|command)"
)


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


def write(request: Request) -> tuple[Json, list[str]]:
    """The body, and the names of hints that it has no place for."""
    writing = Writing()
    names = {key: key for key in SAMPLING if key != "top_k" or not _OPENAIS_OWN.search(request.model)}
    body: Json = {"model": request.model, "messages": list(_written_messages(request, writing))}
    if request.max_output_tokens is not None:
        limit = "max_completion_tokens" if _NEW_LIMIT_NAME.search(request.model) else "max_tokens"
        body[limit] = request.max_output_tokens
    body |= writing.sampling(request, names) | writing.beyond(request, SHARED_BY_OPENAI)
    if request.stop:
        body["stop"] = list(request.stop)
    if request.tools:
        body["tools"] = [_written_tool(tool) for tool in request.tools]
    if request.tool_choice is not None:
        body["tool_choice"] = _written_choice(request.tool_choice)
    if request.answer_format is not None:
        body["response_format"] = _written_format(request.answer_format)
    if request.reasoning is not None:
        _write_reasoning(request, request.reasoning, body, writing)
    optional = {"parallel_tool_calls": request.parallel_tool_calls, "verbosity": request.verbosity,
                "service_tier": openai_tier(request.service_tier)}  # fmt: skip
    body |= {key: value for key, value in optional.items() if value is not None}
    if request.streaming:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    if writing.refused:
        raise CannotCarry(writing.refused)
    return body, writing.left_out


def strip(body: Json, fields: Collection[str]) -> list[str]:
    """Take fields that a provider refuses out of a written body; the names of the hints that are lost so."""
    lost = [key for told in (body, *body["messages"]) for key in fields if told.pop(key, None) is not None]
    return ["thinking" if key == "reasoning_content" else key for key in lost if key != "stream_options"]


def openai_tier(tier: str | None) -> str | None:
    """Anthropic's words in OpenAI's."""
    return {"standard_only": "default", "standard": "default"}.get(tier or "", tier)


def _write_reasoning(request: Request, reasoning: Reasoning, body: Json, writing: Writing) -> None:
    if _SWITCHED.search(request.model) and reasoning.enabled is not None:
        body["thinking"] = {"type": "enabled" if reasoning.enabled else "disabled"}
        return
    word = effort.effort_of(reasoning)
    if word is None or (word == "none" and reasoning.effort != "none"):
        writing.left_out.append("thinking")
    else:
        body["reasoning_effort"] = {"max": "xhigh"}.get(word, word)


def _written_messages(request: Request, writing: Writing) -> Iterator[Json]:
    echo = not _WANTS_NO_THOUGHTS.search(request.model)
    for message in request.messages:
        if message.role == "system":
            yield {"role": "system", "content": text_of(message.parts, "\n\n")}
        elif message.role == "assistant":
            yield from _written_assistant(message, echo, writing)
        else:
            yield from _written_user(message, writing)
        if any(getattr(part, "cache", None) for part in message.parts):
            writing.left_out.append("cache_control")


def _written_assistant(message: Message, echo: bool, writing: Writing) -> Iterator[Json]:
    calls = [_written_call(part) for part in message.parts if isinstance(part, ToolCall)]
    thoughts = "".join(p.text for p in message.parts if isinstance(p, Thinking) and not p.redacted)
    text = text_of(message.parts)
    if any(isinstance(part, Media) for part in message.parts):
        writing.refused.append("messages.content of the assistant other than text")
    if thoughts and not echo:
        writing.left_out.append("thinking")
    if calls or text:
        written: Json = {"role": "assistant", "content": text or None}
        yield (
            written
            | ({"tool_calls": calls} if calls else {})
            | ({"reasoning_content": thoughts} if thoughts and echo else {})
        )


def _written_call(call: ToolCall) -> Json:
    function = {"name": call.name, "arguments": call.arguments or "{}"}
    written: Json = {"id": call.id, "type": "function", "function": function}
    if call.signature:
        written["extra_content"] = {"google": {"thought_signature": call.signature}}
    return written


def _written_user(message: Message, writing: Writing) -> Iterator[Json]:
    """Tool results are messages of their own, in the order of the parts; media in them follow the results."""
    said: list[Text | Media] = []
    carried: list[Text | Media] = []
    for part in message.parts:
        if isinstance(part, ToolResult):
            if said:
                yield _spoken(said, message.name, writing)
                said = []
            carried += [inner for inner in part.parts if isinstance(inner, Media)]
            yield _written_result(part)
        elif isinstance(part, Text | Media):
            said = [*carried, *said, part] if carried else [*said, part]
            carried = []
    if carried or said:
        yield _spoken([*carried, *said], message.name, writing)


def _written_result(result: ToolResult) -> Json:
    texts = [part.text for part in result.parts if isinstance(part, Text)]
    content = "\n".join(texts) if texts or not result.parts else "(what the tool returned follows)"
    if result.failed and not content.lower().startswith("error"):
        content = f"Error: {content}"
    return {"role": "tool", "tool_call_id": result.call_id, "content": content}


def _spoken(parts: list[Text | Media], name: str | None, writing: Writing) -> Json:
    written: Json = {"role": "user"} | ({"name": name} if name else {})
    if len(parts) == 1 and isinstance(parts[0], Text):
        return written | {"content": parts[0].text}
    return written | {"content": [_written_part(part, writing) for part in parts]}


def _written_part(part: Text | Media, writing: Writing) -> Json:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if part.kind == "image":
        image = {"url": media.as_url(part)} | ({"detail": part.detail} if part.detail else {})
        return {"type": "image_url", "image_url": image}
    if part.kind == "audio" and part.data:
        return {
            "type": "input_audio",
            "input_audio": {"data": part.data, "format": media.type_of(part).partition("/")[2]},
        }
    if part.kind == "document" and part.data:
        file = {"filename": part.name or "document.pdf", "file_data": media.as_url(part)}
        return {"type": "file", "file": file}
    writing.refused.append(f"messages.content.{part.kind}{' by URL' if part.url else ''}")
    return {}


def _written_tool(tool: Tool) -> Json:
    told = {"description": tool.description, "parameters": with_items(tool.schema), "strict": tool.strict}
    return {
        "type": "function",
        "function": {"name": tool.name} | {k: v for k, v in told.items() if v is not None},
    }


def _written_choice(choice: ToolChoice) -> Any:
    return choice.mode if choice.mode != "named" else {"type": "function", "function": {"name": choice.name}}


def _written_format(wanted: AnswerFormat) -> Json:
    if wanted.schema is None:
        return {"type": "json_object"}
    told = {"description": wanted.description, "strict": wanted.strict}
    schema = {"name": wanted.name or "answer", "schema": wanted.schema} | {
        k: v for k, v in told.items() if v is not None
    }
    return {"type": "json_schema", "json_schema": schema}
