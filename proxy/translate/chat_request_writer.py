"""Requests of OpenAI's chat completions, as a provider is sent them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any, Final

from . import effort, media
from .conversation import (
    SAMPLING,
    SHARED_BY_OPENAI,
    AnswerFormat,
    CannotCarry,
    Json,
    Media,
    Message,
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

# OpenAI's newer models refuse the old name of the limit; most others know no other.
_NEW_LIMIT_NAME: Final = re.compile(r"(?:^|/)(?:gpt-(?![34])|gpt-[45]\.|o\d|codex|chatgpt)")
_OPENAIS_OWN: Final = re.compile(r"(?:^|/)(?:gpt-(?!oss)|o\d|codex|chatgpt)")
# These are told to think by a switch, not by a word.
_SWITCHED: Final = re.compile(r"(?:^|/)(?:glm-|kimi-|deepseek-|mimo-|doubao-|seed-)")
# Makers whose chat endpoints refuse or ignore the thoughts of earlier turns; the others want them back.
_WANTS_NO_THOUGHTS: Final = re.compile(
    r"(?:^|/)(?:gpt-(?!oss)|o\d|codex|chatgpt|claude|gemini|grok|mistral|command)"
)


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
