"""Requests of Gemini's generateContent, as a provider is sent them.

Schemas go whole into the fields that take JSON Schema, so nothing has to be stripped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from . import effort, media
from .conversation import (
    GOOGLE_SETTINGS,
    CannotCarry,
    Json,
    Media,
    Message,
    Part,
    Request,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    Writing,
    arguments_of,
    merged_turns,
    text_of,
)
from .google_request_reader import ORIGIN, SAMPLING

# Google's documented stand-in for the signature of a call that another model made, or that was lost.
NO_SIGNATURE: Final = "context_engineering_is_the_way_to_go"
_SCHEMAS: Final = ("responseSchema", "responseJsonSchema")


def write(request: Request) -> tuple[Json, list[str]]:
    """The body, and the names of hints that it has no place for. The model stands in the path."""
    writing = Writing()
    system = "\n".join(text_of(m.parts, "\n") for m in request.messages if m.role == "system")
    names = {p.id: p.name for m in request.messages for p in m.parts if isinstance(p, ToolCall)}
    spoken = merged_turns((m for m in request.messages if m.role != "system"), _are_results)
    contents = [_written_turn(turn, names, writing) for turn in spoken]
    body: Json = {"contents": [content for content in contents if content["parts"]]}
    body |= {"systemInstruction": {"parts": [{"text": system}]}} if system else {}
    if request.tools:
        body["tools"] = [{"functionDeclarations": [_written_tool(tool) for tool in request.tools]}]
    if request.tool_choice is not None:
        body["toolConfig"] = {"functionCallingConfig": _written_choice(request.tool_choice)}
    own = writing.beyond(request, (GOOGLE_SETTINGS,)).get(GOOGLE_SETTINGS)
    if settings := _laid_over(own, _written_settings(request, writing), writing):
        body[GOOGLE_SETTINGS] = settings
    _check_rest(request, writing)
    if writing.refused:
        raise CannotCarry(writing.refused)
    return body, writing.left_out


def _are_results(one: Message, other: Message) -> bool:
    return one.role == other.role == "user" and all(
        isinstance(p, ToolResult) for p in (*one.parts, *other.parts)
    )


def _check_rest(request: Request, writing: Writing) -> None:
    if request.parallel_tool_calls is False and request.tools:
        writing.refused.append("parallel_tool_calls false")
    if request.service_tier in ("flex", "priority", "scale"):
        writing.refused.append(f"service_tier {request.service_tier}")
    if request.verbosity is not None:
        writing.left_out.append("verbosity")
    if any(getattr(part, "cache", None) for message in request.messages for part in message.parts):
        writing.left_out.append("cache_control")


def _laid_over(own: Any, settings: Json, writing: Writing) -> Json:
    """A chat caller's settings in Google's own words, under those that chat has words for."""
    if not isinstance(own, dict):
        writing.refused += [GOOGLE_SETTINGS] if own is not None else []
        return settings
    schemas = _SCHEMAS if "responseMimeType" in settings else ()
    return {key: value for key, value in own.items() if key not in schemas} | settings


def _written_settings(request: Request, writing: Writing) -> Json:
    settings = writing.sampling(request, SAMPLING)
    if request.max_output_tokens is not None:
        settings["maxOutputTokens"] = request.max_output_tokens
    if request.stop:
        settings["stopSequences"] = list(request.stop)
    if request.answer_format is not None:
        settings["responseMimeType"] = "application/json"
        if request.answer_format.schema is not None:
            settings["responseJsonSchema"] = request.answer_format.schema
    if request.reasoning is not None and (config := effort.for_google(request.reasoning, request.model)):
        settings["thinkingConfig"] = config
    return settings


def _written_turn(turn: Message, names: dict[str, str], writing: Writing) -> Json:
    role = "model" if turn.role == "assistant" else "user"
    return {
        "role": role,
        "parts": [told for part in turn.parts for told in _written_parts(part, names, writing)],
    }


def _written_parts(part: Part, names: dict[str, str], writing: Writing) -> Iterator[Json]:
    match part:
        case Text():
            yield {"text": part.text}
        case Media():
            yield _written_media(part)
        case ToolCall():
            called = {"name": part.name, "args": arguments_of(part)} | ({"id": part.id} if part.id else {})
            yield {"functionCall": called, "thoughtSignature": part.signature or NO_SIGNATURE}
        case ToolResult():
            yield from _written_result(part, names, writing)
        case Thinking() if part.origin is ORIGIN:
            yield {"text": part.text, "thought": True} | (
                {"thoughtSignature": part.opaque} if part.opaque else {}
            )
        case Thinking():
            writing.left_out.append("thinking")


def _written_result(result: ToolResult, names: dict[str, str], writing: Writing) -> Iterator[Json]:
    name = result.name or names.get(result.call_id)
    if name is None:
        writing.refused.append(f"the result of an unknown tool call {result.call_id}")
    response = {"error" if result.failed else "result": text_of(result.parts, "\n")}
    told: Json = {"name": name, "response": response} | ({"id": result.call_id} if result.call_id else {})
    yield {"functionResponse": told}
    yield from (_written_media(part) for part in result.parts if isinstance(part, Media))


def _written_media(part: Media) -> Json:
    if part.url:
        known = {"mimeType": part.media_type} if part.media_type else {}
        return {"fileData": known | {"fileUri": part.url}}
    return {"inlineData": {"mimeType": media.type_of(part), "data": part.data}}


def _written_tool(tool: Tool) -> Json:
    told = {"description": tool.description, "parametersJsonSchema": tool.schema}
    return {"name": tool.name} | {key: value for key, value in told.items() if value is not None}


def _written_choice(choice: ToolChoice) -> Json:
    mode = {"auto": "AUTO", "none": "NONE", "required": "ANY", "named": "ANY"}[choice.mode]
    return {"mode": mode} | ({"allowedFunctionNames": [choice.name]} if choice.mode == "named" else {})
