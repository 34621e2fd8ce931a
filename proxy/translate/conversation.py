"""A conversation that belongs to no provider: what requests of every format are read into and written from.

Only what at least two formats can say has a place here. A reader collects the names of what it cannot
place, a writer the names of what its format cannot say; both end as `CannotCarry`. What merely helps
(cache marks, a user's id, an old thought) may be left out: those names are `Request.left_out`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from ..wire import WireFormat

Json = dict[str, Any]
Role = Literal["system", "user", "assistant"]


class CannotCarry(ValueError):
    """What a request asks for that the other format cannot say; `names` are the caller's own."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(dict.fromkeys(names))
        super().__init__(f"cannot be carried to this target's format: {', '.join(self.names)}")


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    cache: Json | None = None  # Anthropic's mark as it was


@dataclass(frozen=True, slots=True)
class Media:
    """An image, document, sound or film: base64 `data`, or a `url`."""

    kind: Literal["image", "document", "audio", "video"]
    media_type: str | None = None
    data: str | None = None
    url: str | None = None
    detail: str | None = None
    name: str | None = None
    cache: Json | None = None


@dataclass(frozen=True, slots=True)
class Thinking:
    """What a model thought. `opaque` proves it to providers of format `origin` and is of no use to others."""

    text: str
    opaque: str | None = None
    origin: WireFormat | None = None
    redacted: bool = False
    item_id: str | None = None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """arguments: JSON as text, as the model wrote it. signature: Google's, for its own later use."""

    id: str
    name: str
    arguments: str
    signature: str | None = None
    cache: Json | None = None


@dataclass(frozen=True, slots=True)
class ToolResult:
    call_id: str
    parts: tuple[Text | Media, ...]
    name: str | None = None
    failed: bool = False
    cache: Json | None = None


Part = Text | Media | Thinking | ToolCall | ToolResult


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    parts: tuple[Part, ...]
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    description: str | None = None
    schema: Json | None = None
    strict: bool | None = None
    cache: Json | None = None


@dataclass(frozen=True, slots=True)
class ToolChoice:
    mode: Literal["auto", "none", "required", "named"]
    name: str | None = None


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """JSON, of `schema` if there is one."""

    schema: Json | None = None
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


@dataclass(frozen=True, slots=True)
class Reasoning:
    """How hard to think. `enabled` None: as the model would; `budget`: tokens; `shown`: tell thoughts."""

    enabled: bool | None = None
    effort: str | None = None
    budget: int | None = None
    shown: bool | None = None
    summary: str | None = None  # how OpenAI is to sum thoughts up


@dataclass(frozen=True, slots=True)
class Request:
    model: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: int | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict[str, Any])  # by SAMPLING's names
    stop: tuple[str, ...] = ()
    answer_format: AnswerFormat | None = None
    reasoning: Reasoning | None = None
    verbosity: str | None = None
    streaming: bool = False
    stream_usage: bool = False
    service_tier: str | None = None
    beyond: Mapping[str, Any] = field(default_factory=dict[str, Any])  # what only some formats have, as told
    left_out: tuple[str, ...] = ()


SAMPLING: Final = ("temperature", "top_p", "top_k", "seed", "presence_penalty", "frequency_penalty")
SHARED_BY_OPENAI: Final = (
    "metadata",
    "store",
    "user",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "top_logprobs",
)
# What Gemini's models are asked for beyond what chat has words for, in Google's own.
GOOGLE_SETTINGS: Final = "generationConfig"
# Help, no meaning: where the other format has no place for them they are left out, and that is told.
HINTS: Final = frozenset(
    {
        "metadata",
        "user",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "store",
        "service_tier",
        "cache_control",
        "context_management",
        "verbosity",
        "thinking",
        "safety_settings",
        "inference_geo",
        "client_metadata",
    }
)


@dataclass(slots=True)
class Reading:
    """A JSON object being read: every key that is taken is ticked off, what remains could not be placed."""

    source: Json
    path: str = ""
    refused: list[str] = field(default_factory=list[str])
    left_out: list[str] = field(default_factory=list[str])
    _taken: set[str] = field(default_factory=set[str])

    def take(self, *keys: str) -> Any:
        """The first of the keys that is there; all of them are ticked off."""
        self._taken.update(keys)
        return next((self.source[key] for key in keys if self.source.get(key) is not None), None)

    def text(self, *keys: str) -> str | None:
        value = self.take(*keys)
        return value if isinstance(value, str) else None

    def needed(self, key: str) -> str:
        """A text without which the rest means nothing; refused where it is missing."""
        value = self.text(key)
        if not value:
            self.refuse(f"{key} (missing)")
        return value or ""

    def number(self, *keys: str) -> Any:
        value = self.take(*keys)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    def flag(self, *keys: str) -> bool | None:
        value = self.take(*keys)
        return value if isinstance(value, bool) else None

    def inside(self, source: Any, name: str) -> Reading:
        """The reading of an object inside this one; what it refuses, this one refuses."""
        path = f"{self.path}.{name}" if self.path else name
        return Reading(source if isinstance(source, dict) else {}, path, self.refused, self.left_out)

    def refuse(self, name: str) -> None:
        self.refused.append(f"{self.path}.{name}" if self.path else name)

    def close(self, *, silent: Iterable[str] = (), defaults: Mapping[str, Any] | None = None) -> None:
        """Refuse what nobody took: `silent` keys say nothing, nor do those that stand at their default."""
        quiet, usual = set(silent), defaults or {}
        for key, value in self.source.items():
            if key in self._taken or key in quiet or value is None or (key in usual and usual[key] == value):
                continue
            if key in HINTS:
                self.left_out.append(key)
            elif value not in ([], {}, ""):
                self.refuse(key)


@dataclass(slots=True)
class Writing:
    """What a writer finds that its format cannot say."""

    refused: list[str] = field(default_factory=list[str])
    left_out: list[str] = field(default_factory=list[str])

    def sampling(self, request: Request, names: Mapping[str, str]) -> Json:
        """The sampling settings under this format's names; zero penalties say nothing."""
        written = {}
        for key, value in request.sampling.items():
            if key in names:
                written[names[key]] = value
            elif not (key.endswith("penalty") and value == 0):
                self.refused.append(key)
        return written

    def beyond(self, request: Request, names: Iterable[str]) -> Json:
        """What was told beyond the common words and this format has under the same name."""
        kept = {key: request.beyond[key] for key in names if key in request.beyond}
        for key in sorted(request.beyond.keys() - kept.keys()):
            (self.left_out if key in HINTS else self.refused).append(key)
        return kept


def leading_system(messages: Sequence[Message]) -> tuple[list[Message], list[Message]]:
    """System messages that stand before everything else, and the rest."""
    count = next((place for place, m in enumerate(messages) if m.role != "system"), len(messages))
    return list(messages[:count]), list(messages[count:])


def merged_turns(messages: Iterable[Message], same: Callable[[Message, Message], bool]) -> list[Message]:
    """The messages with neighbours joined where `same` says that they are one turn."""
    turns: list[Message] = []
    for message in messages:
        if turns and same(turns[-1], message):
            turns[-1] = Message(message.role, turns[-1].parts + message.parts, turns[-1].name)
        else:
            turns.append(message)
    return turns


def text_of(parts: Iterable[Part], joined_by: str = "") -> str:
    return joined_by.join(part.text for part in parts if isinstance(part, Text))


def arguments_of(call: ToolCall) -> Json:
    """The arguments as an object; a model's broken JSON becomes none."""
    try:
        parsed = json.loads(call.arguments or "{}")
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}
