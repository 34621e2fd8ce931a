"""Requests of OpenAI's responses, as a provider is sent them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from . import effort, media
from .chat_request_writer import openai_tier
from .conversation import (
    SHARED_BY_OPENAI,
    CannotCarry,
    Json,
    Media,
    Message,
    Part,
    Reasoning,
    Request,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    Writing,
    leading_system,
    text_of,
)
from .responses_request_reader import ORIGIN
from .schema import with_items


def write(request: Request) -> tuple[Json, list[str]]:
    """The body, and the names of hints that it has no place for."""
    writing = Writing()
    leading, spoken = leading_system(request.messages)
    instructions = "\n\n".join(text_of(message.parts, "\n\n") for message in leading)
    body: Json = {"model": request.model} | ({"instructions": instructions} if instructions else {})
    body["input"] = [item for message in spoken for item in _written_items(message, writing)]
    if request.max_output_tokens is not None:
        body["max_output_tokens"] = request.max_output_tokens
    body |= writing.sampling(request, {"temperature": "temperature", "top_p": "top_p"})
    body |= {"store": False} | writing.beyond(request, SHARED_BY_OPENAI)
    if request.stop:
        writing.refused.append("stop")
    if request.tools:
        body["tools"] = [_written_tool(tool) for tool in request.tools]
    if request.tool_choice is not None:
        body["tool_choice"] = _written_choice(request.tool_choice)
    if text := _written_text(request):
        body["text"] = text
    if request.reasoning is not None and (told := _written_reasoning(request.reasoning)):
        body |= {"reasoning": told, "include": ["reasoning.encrypted_content"]}
    optional = {
        "parallel_tool_calls": request.parallel_tool_calls,
        "service_tier": openai_tier(request.service_tier),
    }
    body |= {key: value for key, value in optional.items() if value is not None}
    if request.streaming:
        body["stream"] = True
    if any(getattr(part, "cache", None) for message in request.messages for part in message.parts):
        writing.left_out.append("cache_control")
    if writing.refused:
        raise CannotCarry(writing.refused)
    return body, writing.left_out


def _written_items(message: Message, writing: Writing) -> Iterator[Json]:
    """A turn as items: what is said, called and returned, in order."""
    said: list[Text | Media] = []
    for part in message.parts:
        if isinstance(part, Text | Media):
            said.append(part)
            continue
        if said:
            yield _written_message(message, said, writing)
            said = []
        yield from _written_item(part, writing)
    if said:
        yield _written_message(message, said, writing)


def _written_message(message: Message, said: list[Text | Media], writing: Writing) -> Json:
    role = "developer" if message.role == "system" else message.role
    text_type = "output_text" if message.role == "assistant" else "input_text"
    return {
        "type": "message",
        "role": role,
        "content": [_written_part(part, text_type, writing) for part in said],
    }


def _written_item(part: Part, writing: Writing) -> Iterator[Json]:
    match part:
        case ToolCall():
            yield {
                "type": "function_call",
                "call_id": part.id,
                "name": part.name,
                "arguments": part.arguments or "{}",
            }
        case ToolResult():
            yield {
                "type": "function_call_output",
                "call_id": part.call_id,
                "output": _written_output(part, writing),
            }
        case Thinking() if part.origin is ORIGIN and part.opaque:
            summary = [{"type": "summary_text", "text": part.text}] if part.text else []
            told = {"type": "reasoning", "summary": summary, "encrypted_content": part.opaque}
            yield told | ({"id": part.item_id} if part.item_id else {})
        case _:
            writing.left_out.append("thinking")


def _written_output(result: ToolResult, writing: Writing) -> Any:
    if all(isinstance(part, Text) for part in result.parts):
        text = text_of(result.parts, "\n")
        return f"Error: {text}" if result.failed and not text.lower().startswith("error") else text
    return [_written_part(part, "input_text", writing) for part in result.parts]


def _written_part(part: Text | Media, text_type: str, writing: Writing) -> Json:
    if isinstance(part, Text):
        return {"type": text_type, "text": part.text}
    if part.kind == "image":
        return {"type": "input_image", "image_url": media.as_url(part), "detail": part.detail or "auto"}
    if part.kind == "document":
        where = {"file_url": part.url} if part.url else {"file_data": media.as_url(part)}
        return (
            {"type": "input_file"} | where | ({"filename": part.name or "document.pdf"} if part.data else {})
        )
    writing.refused.append(f"input.content.{part.kind}")
    return {}


def _written_tool(tool: Tool) -> Json:
    schema = with_items(tool.schema or {"type": "object", "properties": {}})
    described = {"description": tool.description} if tool.description is not None else {}
    # Left unsaid, this format makes tools strict, and rewrites what they accept.
    return (
        {"type": "function", "name": tool.name}
        | described
        | {"parameters": schema, "strict": tool.strict or False}
    )


def _written_choice(choice: ToolChoice) -> Any:
    return choice.mode if choice.mode != "named" else {"type": "function", "name": choice.name}


def _written_text(request: Request) -> Json:
    text: Json = {"verbosity": request.verbosity} if request.verbosity else {}
    wanted = request.answer_format
    if wanted is None:
        return text
    if wanted.schema is None:
        return text | {"format": {"type": "json_object"}}
    told = {"description": wanted.description, "strict": wanted.strict}
    schema = {"type": "json_schema", "name": wanted.name or "answer", "schema": wanted.schema}
    return text | {"format": schema | {key: value for key, value in told.items() if value is not None}}


def _written_reasoning(reasoning: Reasoning) -> Json:
    word = effort.effort_of(reasoning)
    told = (
        {"effort": {"max": "xhigh"}.get(word, word)} if word and (word != "none" or reasoning.effort) else {}
    )
    return told | ({"summary": reasoning.summary or "auto"} if reasoning.shown else {})
