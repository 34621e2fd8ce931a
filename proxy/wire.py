"""The formats that model calls are written in, and what a request says of itself.

A path tells the format; the body tells model, streaming and what the model must be able to do. It is
read once, with a parser in native code, and nothing of its content is kept.

Errors: `UnreadableRequest`, with a sentence for the caller.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, TypeVar

import orjson

_Kind = TypeVar("_Kind", str, bool)


class WireFormat(StrEnum):
    OPENAI_CHAT = "openai-chat"
    OPENAI_RESPONSES = "openai-responses"
    OPENAI_EMBEDDINGS = "openai-embeddings"
    ANTHROPIC_MESSAGES = "anthropic-messages"
    GOOGLE_GENERATE = "google-generate"


class UnreadableRequest(ValueError):
    """The body is not a request of its format; the message says what is wrong and is safe to show."""


@dataclass(frozen=True, slots=True)
class Operation:
    """What a path asks for. Gemini's paths name the model and whether to stream; others' bodies do."""

    wire_format: WireFormat
    counts_tokens: bool = False
    model: str | None = None
    streaming: bool | None = None


@dataclass(frozen=True, slots=True)
class Said:
    """What a request says of itself. `model` is as written; counts are None where nothing was said; `parts`
    is where images would stand, looked into only where somebody asks.
    """

    model: str | None
    streaming: bool
    max_output_tokens: int | None = None
    tools: bool = False
    choices: int = 1
    parts: Any = field(default=None, repr=False, compare=False)

    @property
    def images(self) -> bool:
        """Whether the model is shown any."""
        return _has_images(self.parts)


MAX_MODEL_CHARACTERS: Final = 512

_PATHS: Final = {
    "chat/completions": Operation(WireFormat.OPENAI_CHAT),
    "responses": Operation(WireFormat.OPENAI_RESPONSES),
    "embeddings": Operation(WireFormat.OPENAI_EMBEDDINGS),
    "messages": Operation(WireFormat.ANTHROPIC_MESSAGES),
    "messages/count_tokens": Operation(WireFormat.ANTHROPIC_MESSAGES, counts_tokens=True),
}
_GEMINI: Final = re.compile(
    r"/v\d\w*/(?P<model>(?:\w[\w.-]*/)*\w[\w.:@-]*?):(?P<verb>generateContent|streamGenerateContent|countTokens)"
)


def operation_of(path: str) -> Operation | None:
    """The operation that an HTTP path (without query) asks for; None if it is none of ours."""
    bare = path.rstrip("/")
    if bare.startswith("/v1/") and bare[4:] in _PATHS:
        return _PATHS[bare[4:]]
    found = _GEMINI.fullmatch(bare)
    if found is None:
        return None
    return Operation(
        WireFormat.GOOGLE_GENERATE,
        counts_tokens=found["verb"] == "countTokens",
        model=found["model"].removeprefix("models/"),
        streaming=found["verb"] == "streamGenerateContent",
    )


def parse(body: bytes) -> dict[str, Any]:
    """The request as a JSON object; UnreadableRequest where it is not one."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise UnreadableRequest("the body is not JSON") from None
    if not isinstance(parsed, dict):
        raise UnreadableRequest("the body must be a JSON object")
    return parsed


def said(operation: Operation, request: Mapping[str, Any]) -> Said:
    """What `request` (parsed) says of itself; UnreadableRequest if a key has a type it cannot have."""
    if operation.wire_format is WireFormat.GOOGLE_GENERATE:
        return _said_by_google(operation, request)
    return Said(
        model=_named(request),
        streaming=_typed(request, "stream", bool) or False,
        max_output_tokens=_first_count(request, "max_completion_tokens", "max_output_tokens", "max_tokens"),
        tools=bool(request.get("tools") or request.get("functions")),
        choices=_first_count(request, "n") or 1,
        parts=request.get("messages") or request.get("input"),
    )


def _said_by_google(operation: Operation, request: Mapping[str, Any]) -> Said:
    settings = request.get("generationConfig") or request.get("generation_config")
    settings = settings if isinstance(settings, dict) else {}
    return Said(
        model=operation.model,
        streaming=bool(operation.streaming),
        max_output_tokens=_first_count(settings, "maxOutputTokens", "max_output_tokens"),
        tools=bool(request.get("tools")),
        choices=_first_count(settings, "candidateCount", "candidate_count") or 1,
        parts=request.get("contents"),
    )


def _named(request: Mapping[str, Any]) -> str | None:
    model = _typed(request, "model", str)
    if model is not None and len(model) > MAX_MODEL_CHARACTERS:
        raise UnreadableRequest(f"`model` is longer than {MAX_MODEL_CHARACTERS} characters")
    return model


def _typed(request: Mapping[str, Any], key: str, kind: type[_Kind]) -> _Kind | None:
    value = request.get(key)
    if value is None or isinstance(value, kind):
        return value
    raise UnreadableRequest(f"`{key}` must be a {'string' if kind is str else 'boolean'}")


def _first_count(request: Mapping[str, Any], *keys: str) -> int | None:
    for key in keys:
        value = request.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
    return None


_IMAGE_TYPES: Final = frozenset({"image", "image_url", "input_image"})


def _has_images(messages: Any) -> bool:
    return any(_is_image(part) for message in _objects(messages) for part in _parts(message))


def _parts(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The parts of a message, and those inside tool results."""
    yield message
    for part in _objects(message.get("content") or message.get("parts") or message.get("output")):
        yield part
        yield from _objects(part.get("content"))


def _is_image(part: dict[str, Any]) -> bool:
    if part.get("type") in _IMAGE_TYPES:
        return True
    data = part.get("inlineData") or part.get("inline_data") or part.get("fileData") or part.get("file_data")
    mime = (data.get("mimeType") or data.get("mime_type")) if isinstance(data, dict) else None
    return isinstance(mime, str) and mime.startswith("image/")


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    return (item for item in value if isinstance(item, dict)) if isinstance(value, list) else iter(())
