"""Requests of Gemini's generateContent, as callers send them.

Its function calls may come without ids: they are counted, and results paired with calls by name, in order.
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from ..wire import WireFormat
from . import media
from .chat_request_reader import finished, stop_sequences
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
from .schema import json_schema

ORIGIN: Final = WireFormat.GOOGLE_GENERATE
SAMPLING: Final = {
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "seed": "seed",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
}


def read(body: Json, model: str, *, streaming: bool = False) -> Request:
    """CannotCarry names what has no place outside this format. `streaming`: as the path asked."""
    reading = Reading(body)
    reading.take("model")
    settings = reading.inside(reading.take("generationConfig", "generation_config"), "generationConfig")
    calls = _Calls()
    messages = (*_system(reading), *_contents(reading, calls))
    request = Request(
        model=model,
        messages=messages,
        tools=tuple(_tools(reading)),
        tool_choice=_tool_choice(reading),
        max_output_tokens=settings.number("maxOutputTokens", "max_output_tokens"),
        sampling={k: v for k, name in SAMPLING.items() if (v := settings.number(name, k)) is not None},
        stop=stop_sequences(settings.take("stopSequences", "stop_sequences")),
        answer_format=_answer_format(settings),
        reasoning=_reasoning(settings),
        streaming=streaming,
        stream_usage=True,
        service_tier=reading.text("serviceTier", "service_tier"),
    )
    settings.close(defaults={"candidateCount": 1, "responseModalities": ["TEXT"], "responseLogprobs": False})
    if reading.take("safetySettings", "safety_settings"):
        reading.left_out.append("safety_settings")
    if reading.take("labels"):
        reading.left_out.append("labels")
    reading.close()
    return finished(request, reading)


@dataclass(slots=True)
class _Calls:
    """The calls so far: ids for those without, and which of a name still waits for its result."""

    count: int = 0
    waiting: dict[str, deque[str]] = field(default_factory=lambda: defaultdict[str, deque[str]](deque))

    def called(self, name: str, told: str | None) -> str:
        self.count += 1
        call_id = told or f"call_{self.count}"
        self.waiting[name].append(call_id)
        return call_id

    def returned(self, name: str, told: str | None) -> str:
        waiting = self.waiting[name]
        if told is not None and told in waiting:
            waiting.remove(told)
        return told or (waiting.popleft() if waiting else "")


def _system(reading: Reading) -> Iterator[Message]:
    system = reading.take("systemInstruction", "system_instruction")
    parts = (
        system.get("parts")
        if isinstance(system, dict)
        else [{"text": system}]
        if isinstance(system, str)
        else []
    )
    texts = tuple(Text(p["text"]) for p in parts or () if isinstance(p, dict) and p.get("text"))
    if texts:
        yield Message("system", texts)


def _contents(reading: Reading, calls: _Calls) -> Iterator[Message]:
    given = reading.take("contents")
    for one in [given] if isinstance(given, dict) else given or ():
        content = reading.inside(one, "contents")
        role = "assistant" if content.text("role") == "model" else "user"
        parts = tuple(
            part
            for inner in content.take("parts") or ()
            if isinstance(inner, dict) and (part := _part(content.inside(inner, "parts"), calls)) is not None
        )
        if parts:
            yield Message(role, parts)  # type: ignore[arg-type]


def _part(part: Reading, calls: _Calls) -> Part | None:
    signature = part.text("thoughtSignature", "thought_signature")
    if (text := part.text("text")) is not None:
        if part.flag("thought"):
            return Thinking(text, signature, ORIGIN)
        return Text(text) if text else None
    for read_one in (_function_call, _function_response, _inline, _file):
        if (found := read_one(part, signature, calls)) is not None:
            return found
    if signature is None:  # a signature may come alone
        part.refuse(
            next((key for key in part.source if key not in ("thought", "videoMetadata")), "empty part")
        )
    return None


def _function_call(part: Reading, signature: str | None, calls: _Calls) -> Part | None:
    call = part.take("functionCall", "function_call")
    if not isinstance(call, dict):
        return None
    name, arguments = str(call.get("name") or ""), call.get("args")
    text = json.dumps(
        arguments if isinstance(arguments, dict) else {}, ensure_ascii=False, separators=(",", ":")
    )
    return ToolCall(calls.called(name, call.get("id")), name, text, signature)


def _function_response(part: Reading, _signature: str | None, calls: _Calls) -> Part | None:
    told = part.take("functionResponse", "function_response")
    if not isinstance(told, dict):
        return None
    name, response = str(told.get("name") or ""), told.get("response")
    failed = isinstance(response, dict) and set(response) == {"error"}
    bare = response if not isinstance(response, dict) else None
    for key in ("result", "output", "error"):
        if isinstance(response, dict) and set(response) == {key} and isinstance(response[key], str):
            bare = response[key]
    text = bare if isinstance(bare, str) else json.dumps(response, ensure_ascii=False, separators=(",", ":"))
    return ToolResult(calls.returned(name, told.get("id")), (Text(text),), name, failed)


def _inline(part: Reading, _signature: str | None, _calls: _Calls) -> Part | None:
    blob = part.take("inlineData", "inline_data")
    if not isinstance(blob, dict):
        return None
    media_type = str(blob.get("mimeType") or blob.get("mime_type"))
    return Media(media.kind_of(media_type), media_type, blob.get("data"))


def _file(part: Reading, _signature: str | None, _calls: _Calls) -> Part | None:
    file = part.take("fileData", "file_data")
    if not isinstance(file, dict):
        return None
    media_type, uri = (
        file.get("mimeType") or file.get("mime_type"),
        file.get("fileUri") or file.get("file_uri"),
    )
    if not str(uri).startswith("https://") or "generativelanguage.googleapis.com" in str(uri):
        part.refuse("fileData")  # Google's own store
    return Media(media.kind_of(str(media_type or "image/")), media_type, None, str(uri))


def _tools(reading: Reading) -> Iterator[Tool]:
    for given in reading.take("tools") or ():
        tool = reading.inside(given, "tools")
        declared = tool.take("functionDeclarations", "function_declarations")
        for function in declared if isinstance(declared, list) else ():
            schema = function.get("parametersJsonSchema") or function.get("parameters_json_schema")
            plain = json_schema(function.get("parameters"))
            yield Tool(str(function.get("name")), function.get("description"), schema or plain)
        tool.close()


def _tool_choice(reading: Reading) -> ToolChoice | None:
    config = reading.inside(reading.take("toolConfig", "tool_config"), "toolConfig")
    calling = config.take("functionCallingConfig", "function_calling_config")
    config.close()
    if not isinstance(calling, dict):
        return None
    mode = str(calling.get("mode") or "AUTO").upper()
    names = calling.get("allowedFunctionNames") or calling.get("allowed_function_names") or []
    if mode == "ANY" and len(names) == 1:
        return ToolChoice("named", names[0])
    if names or mode not in ("AUTO", "NONE", "ANY", "MODE_UNSPECIFIED"):
        reading.refuse(f"toolConfig {mode}{' among several' if names else ''}")
    return ToolChoice({"NONE": "none", "ANY": "required"}.get(mode, "auto"))  # type: ignore[arg-type]


def _answer_format(settings: Reading) -> AnswerFormat | None:
    mime = settings.text("responseMimeType", "response_mime_type")
    whole = settings.take("responseJsonSchema", "response_json_schema")
    schema = whole or json_schema(settings.take("responseSchema", "response_schema"))
    if mime not in (None, "application/json", "text/plain"):
        settings.refuse(f"responseMimeType {mime}")
    if mime != "application/json" and not schema:
        return None
    return AnswerFormat(schema if isinstance(schema, dict) else None)


def _reasoning(settings: Reading) -> Reasoning | None:
    config = settings.inside(settings.take("thinkingConfig", "thinking_config"), "thinkingConfig")
    if not config.source:
        return None
    budget = config.number("thinkingBudget", "thinking_budget")
    level, shown = (
        config.text("thinkingLevel", "thinking_level"),
        config.flag("includeThoughts", "include_thoughts"),
    )
    known = budget if isinstance(budget, int) and budget > 0 else None  # -1: as the model sees fit
    return Reasoning(False if budget == 0 else None, level.lower() if level else None, known, shown)
