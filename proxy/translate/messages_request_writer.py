"""Requests of Anthropic's messages, as a provider is sent them."""

from __future__ import annotations

from typing import Final

from . import effort, media
from .conversation import (
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
    ToolResult,
    Writing,
    arguments_of,
    merged_turns,
)
from .messages_request_reader import ORIGIN

DEFAULT_MAX_TOKENS: Final = 4096  # what every model of the format accepts


def write(request: Request) -> tuple[Json, list[str]]:
    """The body, and the names of hints that it has no place for.

    max_output_tokens: the limit where the request names none, which this format does not allow.
    """
    writing = Writing()
    limit = request.max_output_tokens or DEFAULT_MAX_TOKENS
    system = [_system_block(part) for m in request.messages if m.role == "system" for part in m.parts]
    body: Json = {"model": request.model, "max_tokens": limit}
    body |= {"system": system} if system else {}
    body["messages"] = [
        {"role": turn.role, "content": _written_parts(turn, writing)} for turn in _turns(request, writing)
    ]
    body |= writing.sampling(request, {key: key for key in ("temperature", "top_p", "top_k")})
    if body.get("temperature", 0) > 1:
        writing.refused.append("temperature above 1")
    if request.stop:
        body["stop_sequences"] = list(request.stop)
    if request.tools:
        body["tools"] = [_written_tool(tool) for tool in request.tools]
    body |= _written_choice(request)
    _write_reasoning(request, body, writing)
    if request.answer_format is not None:
        config = body.setdefault("output_config", {})
        config["format"] = {
            "type": "json_schema",
            "schema": request.answer_format.schema or {"type": "object"},
        }
    _write_rest(request, body, writing)
    if writing.refused:
        raise CannotCarry(writing.refused)
    return body, writing.left_out


def _write_rest(request: Request, body: Json, writing: Writing) -> None:
    beyond = writing.beyond(request, ("user", "safety_identifier"))
    user = beyond.get("user") or beyond.get("safety_identifier")
    if isinstance(user, str):
        body["metadata"] = {"user_id": user}
    if request.verbosity is not None:
        writing.left_out.append("verbosity")
    if request.service_tier in ("flex", "priority", "scale"):
        writing.refused.append(f"service_tier {request.service_tier}")
    elif request.service_tier is not None:
        body["service_tier"] = "auto" if request.service_tier == "auto" else "standard_only"
    if request.streaming:
        body["stream"] = True


def _turns(request: Request, writing: Writing) -> list[Message]:
    """The turns of both sides; the results of parallel calls belong into one."""
    spoken = [message for message in request.messages if message.role != "system"]
    kept = [Message(m.role, tuple(p for p in m.parts if _is_kept(p, writing)), m.name) for m in spoken]
    return merged_turns((m for m in kept if m.parts), _are_results)


def _is_kept(part: Part, writing: Writing) -> bool:
    """Thoughts without Anthropic's proof would be refused."""
    if isinstance(part, Thinking) and (part.opaque is None or part.origin is not ORIGIN):
        writing.left_out.append("thinking")
        return False
    return True


def _are_results(one: Message, other: Message) -> bool:
    return one.role == other.role == "user" and all(
        isinstance(p, ToolResult) for p in (*one.parts, *other.parts)
    )


def _system_block(part: Part) -> Json:
    assert isinstance(part, Text), "system messages are text"
    return _marked({"type": "text", "text": part.text}, part.cache)


def _marked(block: Json, cache: Json | None) -> Json:
    return block | ({"cache_control": cache} if cache else {})


def _written_parts(turn: Message, writing: Writing) -> list[Json]:
    return [_written(part, writing) for part in turn.parts]


def _written(part: Part, writing: Writing) -> Json:
    match part:
        case Text():
            return _marked({"type": "text", "text": part.text}, part.cache)
        case Media():
            return _marked(_written_media(part, writing), part.cache)
        case Thinking(redacted=True):
            return {"type": "redacted_thinking", "data": part.opaque}
        case Thinking():
            return {"type": "thinking", "thinking": part.text, "signature": part.opaque}
        case ToolCall():
            return _marked(
                {"type": "tool_use", "id": part.id, "name": part.name, "input": arguments_of(part)},
                part.cache,
            )
        case ToolResult():
            return _marked(_written_result(part, writing), part.cache)


def _written_result(result: ToolResult, writing: Writing) -> Json:
    only = result.parts[0] if len(result.parts) == 1 else None
    plain = isinstance(only, Text) and only.cache is None
    content = (
        only.text if plain and isinstance(only, Text) else [_written(part, writing) for part in result.parts]
    )
    written: Json = {"type": "tool_result", "tool_use_id": result.call_id}
    return (
        written
        | ({"content": content} if result.parts else {})
        | ({"is_error": True} if result.failed else {})
    )


def _written_media(part: Media, writing: Writing) -> Json:
    if part.kind not in ("image", "document"):
        writing.refused.append(f"messages.content.{part.kind}")
    source = (
        {"type": "url", "url": part.url}
        if part.url
        else {"type": "base64", "media_type": media.type_of(part), "data": part.data}
    )
    titled = {"title": part.name} if part.name and part.kind == "document" else {}
    return {"type": part.kind, "source": source} | titled


def _written_tool(tool: Tool) -> Json:
    told = {"description": tool.description, "strict": tool.strict}
    schema = tool.schema or {"type": "object", "properties": {}}
    written = {"name": tool.name, "input_schema": schema} | {k: v for k, v in told.items() if v is not None}
    return _marked(written, tool.cache)


def _written_choice(request: Request) -> Json:
    choice, parallel = request.tool_choice, request.parallel_tool_calls
    if choice is None and (parallel is not False or not request.tools):
        return {}
    words = {"auto": "auto", "none": "none", "required": "any", "named": "tool"}
    written: Json = {"type": words[choice.mode] if choice else "auto"}
    if choice and choice.mode == "named":
        written["name"] = choice.name
    if parallel is not None and written["type"] != "none":
        written["disable_parallel_tool_use"] = not parallel
    return {"tool_choice": written}


def _write_reasoning(request: Request, body: Json, writing: Writing) -> None:
    if request.reasoning is None:
        return
    if _continues_without_proof(request):
        writing.left_out.append(
            "thinking"
        )  # a turn that called tools must begin with the thoughts that led to it
        return
    told, limit = effort.for_anthropic(request.reasoning, request.model, body["max_tokens"])
    body |= told
    body["max_tokens"] = limit
    if told.get("thinking", {}).get("type") == "enabled":
        for setting in ("temperature", "top_p", "top_k"):
            if body.get(setting, 1) != 1:
                writing.refused.append(f"{setting} beside thinking")


def _continues_without_proof(request: Request) -> bool:
    """Whether the last turn of the model called tools and its thoughts are not Anthropic's own."""
    last = next((m for m in reversed(request.messages) if m.role == "assistant"), None)
    ends_open = bool(request.messages) and any(isinstance(p, ToolResult) for p in request.messages[-1].parts)
    if last is None or not ends_open or not any(isinstance(p, ToolCall) for p in last.parts):
        return False
    return not any(isinstance(p, Thinking) and p.origin is ORIGIN and p.opaque for p in last.parts)
