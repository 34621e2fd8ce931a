"""What went wrong with a call: one kind for it, whoever tells, and how the caller is told.

Providers tell the same thing by status, by code, by type, or by a sentence, and some dress one as
another (an empty account as a rate limit). `failures.toml` holds what is known; `classify` applies it,
most specific first: the provider's own codes, words that mean one thing everywhere, sentences, the HTTP
status. `render` tells the caller in the caller's dialect, with the provider's status kept, and without
keys, internal addresses or pages of HTML.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, Final

from .json_values import dumps, loads, objects
from .redact import redact, without_internal_urls
from .retry_after import retry_after_s
from .sse import encoded
from .wire import WireFormat

MAX_MESSAGE_CHARACTERS: Final = 500
_LOOKED_AT_CHARACTERS: Final = 10 * MAX_MESSAGE_CHARACTERS
_READ_BYTES: Final = 64 << 10  # of an error's body


class FailureKind(StrEnum):
    RATE_LIMIT = "rate_limit"
    PLAN_LIMIT = "plan_limit"  # a plan's window is used up: waits for hours, not seconds
    BILLING = "billing"  # nothing to pay with, or a key at the wrong address: waiting does not help
    BUDGET_EXCEEDED = "budget_exceeded"  # ours
    AUTH = "auth"
    PERMISSION = "permission"
    NOT_FOUND = "not_found"
    INVALID_REQUEST = "invalid_request"
    CONTEXT_LENGTH = "context_length"
    PAYLOAD_TOO_LARGE = "payload_too_large"
    CONTENT_FILTER = "content_filter"
    CLIENT_ERROR = "client_error"  # another 4xx
    OVERLOADED = "overloaded"
    SERVER_ERROR = "server_error"
    TIMEOUT = "timeout"
    NETWORK = "network"
    INTERNAL = "internal"  # ours

    @property
    def retryable(self) -> bool:
        """Whether the same target may well answer after a wait."""
        return bool(_facts().kinds[self]["retry"])

    @property
    def another_may_serve(self) -> bool:
        """Whether another target could answer the same request."""
        return bool(_facts().kinds[self]["another"])


@dataclass(frozen=True, slots=True)
class Failure:
    """message: safe to show. status: what the caller gets. code: the provider's own word, if it told one."""

    kind: FailureKind
    message: str
    status: int
    retry_after_s: float | None = None
    code: str | None = None


def failure(
    kind: FailureKind, message: str, *, retry_after_s: float | None = None, code: str | None = None
) -> Failure:
    """A failure of our own finding: a budget, a route, a connection."""
    return Failure(kind, shown(message), int(_facts().kinds[kind]["status"]), retry_after_s, code)


def classify(
    provider: str | None, status: int, headers: Mapping[str, str], body: bytes, *, now: datetime
) -> Failure:
    """What a provider's answer says went wrong. `status` 200: an error inside a stream that began well.

    headers: names in lower case. body: the answer's, or the event's, that told of the error.
    """
    told = _Told.read(body)
    kind = _kind(provider, status, told)
    wait = retry_after_s(headers, told.document, told.message or "", now, _reset_offset_hours(provider))
    kept = status if status >= 400 else int(_facts().kinds[kind]["status"])
    return Failure(kind, _message(kind, kept, told), kept, wait, next(iter(told.words), None))


def render(failure: Failure, wire_format: WireFormat) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and JSON body, as a provider of `wire_format` would tell of it."""
    headers = {"content-type": "application/json"}
    if failure.retry_after_s is not None:
        headers["retry-after"] = str(max(0, math.ceil(failure.retry_after_s)))
    if not failure.kind.retryable:
        headers["x-should-retry"] = "false"  # OpenAI's and Anthropic's SDKs obey it
    return failure.status, headers, dumps(error_body(failure, wire_format))


def render_event(failure: Failure, wire_format: WireFormat, *, sequence_number: int = 0) -> bytes:
    """The event that ends a stream of `wire_format` which has already begun."""
    body = error_body(failure, wire_format)
    if wire_format is WireFormat.OPENAI_RESPONSES:
        return _failed_response(body["error"], sequence_number)
    return encoded(dumps(body), b"error" if wire_format is WireFormat.ANTHROPIC_MESSAGES else b"")


def _failed_response(error: dict[str, Any], sequence_number: int) -> bytes:
    """Two events: OpenAI's SDKs raise at the `error` inside the first, Codex reads only the second."""
    told = {key: error[key] for key in ("code", "message", "param")}
    first = {"type": "error", "sequence_number": sequence_number, **told, "error": error}
    response = {
        "id": "",
        "object": "response",
        "created_at": 0,
        "status": "failed",
        "model": "",
        "output": [],
    }
    response |= {"parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
    response |= {"error": {"code": error["code"], "message": error["message"]}}
    second = {"type": "response.failed", "sequence_number": sequence_number + 1, "response": response}
    return encoded(dumps(first), b"error") + encoded(dumps(second), b"response.failed")


def error_body(failure: Failure, wire_format: WireFormat) -> dict[str, Any]:
    words = _facts().kinds[failure.kind]
    if wire_format is WireFormat.ANTHROPIC_MESSAGES:
        told = {"type": words["anthropic"], "message": failure.message}
        own = {"code": failure.kind.value} if failure.kind is FailureKind.BUDGET_EXCEEDED else {}
        return {"type": "error", "error": told | own}
    if wire_format is WireFormat.GOOGLE_GENERATE:
        return {"error": {"code": failure.status, "message": failure.message, "status": words["google"],
                          "details": _google_details(failure)}}  # fmt: skip
    code = failure.code if failure.code and not failure.code.isdigit() else failure.kind.value
    return {"error": {"message": failure.message, "type": words["openai"], "param": None, "code": code}}


def _google_details(failure: Failure) -> list[dict[str, Any]]:
    reason = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": failure.kind.value.upper()}
    if failure.retry_after_s is None:
        return [reason]
    delay = f"{math.ceil(failure.retry_after_s)}s"
    return [reason, {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}]


def shown(message: str) -> str:
    """A message as it may be shown: no secret, no address of ours, no more than is read."""
    words = message[:_LOOKED_AT_CHARACTERS].split()
    whole = words if len(message) <= _LOOKED_AT_CHARACTERS else words[:-1]  # half a key looks like none
    return without_internal_urls(redact(" ".join(whole)))[:MAX_MESSAGE_CHARACTERS]


@dataclass(frozen=True, slots=True)
class _Told:
    """document: the body's object, or {}. words: codes and types, most specific first."""

    document: dict[str, Any]
    words: tuple[str, ...]
    types: tuple[str, ...]
    message: str | None

    @classmethod
    def read(cls, body: bytes) -> _Told:
        parsed = loads(body[:_READ_BYTES])
        if isinstance(parsed, list) and parsed:  # Google answers streams so
            parsed = parsed[0]
        document = parsed if isinstance(parsed, dict) else {}
        holders = tuple(_holders(document))
        message = next((text for holder in holders if (text := _text(holder)) is not None), None)
        if message is None and isinstance(parsed, str):
            message = parsed
        words = tuple(
            dict.fromkeys(word for key in _WORD_KEYS for h in holders if (word := _word(h.get(key))))
        )
        numbered = re.match(r"\s*\[(\d{3,5})\]", message or "")  # Z.ai: "[1113][Insufficient balance ...]"
        types = tuple(word for holder in holders if (word := _word(holder.get("type"))))
        return cls(document, (*words, *(numbered.groups() if numbered else ())), types, message)


_WORD_KEYS: Final = ("reason", "status_code", "code", "type", "status", "error_type", "error_code")


def _holders(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The objects that may tell of the error, innermost first."""
    response = document.get("response")
    outer = [document, response if isinstance(response, dict) else {}, *objects(document.get("choices"))]
    inner = [holder["error"] for holder in outer if isinstance(holder.get("error"), dict)]
    for error in inner:
        yield from objects(error.get("details"))
        if isinstance(error.get("metadata"), dict):
            yield error["metadata"]
        yield error
    yield from (base for holder in outer if isinstance(base := holder.get("base_resp"), dict))
    yield from objects(document.get("errors"))
    yield document


def _text(holder: dict[str, Any]) -> str | None:
    for key in ("message", "status_msg", "msg", "error", "detail", "error_description"):
        value = holder.get(key)
        if isinstance(value, str) and value.strip():
            return value
    return None


def _word(value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return value[:100] if isinstance(value, str) and value and value != "error" else None


def _kind(provider: str | None, status: int, told: _Told) -> FailureKind:
    facts = _facts()
    own = facts.codes_of(provider)
    if found := next((own[word] for word in told.words if word in own), None):
        return found
    strong = (word for word in told.words if word not in facts.weak)
    if found := next((facts.words[word] for word in strong if word in facts.words), None):
        return found
    for phrase in facts.phrases:
        if phrase.says(provider, status, told):
            return phrase.kind
    if status < 400 and (
        found := next((facts.words[word] for word in told.words if word in facts.words), None)
    ):
        return found
    return _by_status(_status_inside(told) if status < 400 else status)


def _by_status(status: int) -> FailureKind:
    fallback = FailureKind.CLIENT_ERROR if 400 <= status < 500 else FailureKind.SERVER_ERROR
    return _facts().statuses.get(status, fallback)


def _status_inside(told: _Told) -> int:
    """An HTTP status told as the error's code (OpenRouter, Google); 500 if there is none."""
    return next((int(w) for w in told.words if w.isdigit() and len(w) == 3 and w[0] in "45"), 500)


def _message(kind: FailureKind, status: int, told: _Told) -> str:
    if told.message is not None and not _HTML.match(told.message):
        return shown(told.message)
    return f"the provider answered {status} ({kind.value.replace('_', ' ')})"


_HTML: Final = re.compile(r"\s*<(?:!doctype|html|!--|head|body|\?xml)", re.IGNORECASE)


def _reset_offset_hours(provider: str | None) -> int:
    return next((f.reset_utc_offset_hours for f in _facts().families if f.has(provider)), 0)


@dataclass(frozen=True, slots=True)
class _Family:
    providers: tuple[str, ...]
    codes: Mapping[str, FailureKind]
    reset_utc_offset_hours: int

    def has(self, provider: str | None) -> bool:
        return _belongs(provider, self.providers)


@dataclass(frozen=True, slots=True)
class _Phrase:
    kind: FailureKind
    pattern: re.Pattern[str]
    providers: tuple[str, ...]
    unless_providers: tuple[str, ...]
    statuses: tuple[int, ...]
    types: tuple[str, ...]

    def says(self, provider: str | None, status: int, told: _Told) -> bool:
        return (
            told.message is not None
            and (not self.providers or _belongs(provider, self.providers))
            and not _belongs(provider, self.unless_providers)
            and (not self.statuses or status in self.statuses)
            and (not self.types or any(word in self.types for word in told.types))
            and not _HTML.match(told.message)
            and self.pattern.search(told.message) is not None
        )


def _belongs(provider: str | None, families: tuple[str, ...]) -> bool:
    return provider is not None and any(provider == f or provider.startswith(f"{f}-") for f in families)


@dataclass(frozen=True, slots=True)
class _Facts:
    kinds: Mapping[FailureKind, Mapping[str, Any]]
    statuses: Mapping[int, FailureKind]
    words: Mapping[str, FailureKind]
    weak: frozenset[str]
    families: tuple[_Family, ...]
    phrases: tuple[_Phrase, ...]

    def codes_of(self, provider: str | None) -> Mapping[str, FailureKind]:
        return next((family.codes for family in self.families if family.has(provider)), {})


@cache
def _facts() -> _Facts:
    data = tomllib.loads(Path(__file__).with_name("failures.toml").read_text())
    return _Facts(
        kinds={FailureKind(kind): facts for kind, facts in data["kinds"].items()},
        statuses={int(status): FailureKind(kind) for status, kind in data["statuses"].items()},
        words=_by_word(data["words"]),
        weak=frozenset(data["weak"]["words"]),
        families=tuple(
            _Family(tuple(f["providers"]), _by_word(f["codes"]), f.get("reset_utc_offset_hours", 0))
            for f in data["family"]
        ),
        phrases=tuple(
            _Phrase(
                FailureKind(phrase["kind"]),
                re.compile(phrase["pattern"], re.IGNORECASE),
                *(
                    tuple(phrase.get(key, ()))
                    for key in ("providers", "unless_providers", "statuses", "types")
                ),
            )
            for phrase in data["phrase"]
        ),
    )


def _by_word(kinds: Mapping[str, list[str]]) -> dict[str, FailureKind]:
    return {word: FailureKind(kind) for kind, words in kinds.items() for word in words}
