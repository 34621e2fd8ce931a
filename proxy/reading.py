"""What the JSON of an answer says of itself: identity, usage, how it ended.

One reading takes every payload of an answer, a whole body or the events of a stream, of any format: the
keys tell which. It keeps ids, names and numbers, no content.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field
from typing import Any, Final

from .counts import Counts, Flat, counts_of, flattened, merged
from .json_values import objects
from .wire import WireFormat

_MAX_WORD: Final = 200
_ENDS: Final = ("message_stop", "response.completed", "response.incomplete")
_FAILS: Final = ("error", "response.failed")
_TRAFFIC: Final = {"ON_DEMAND_PRIORITY": "priority", "ON_DEMAND_FLEX": "flex"}


@dataclass(frozen=True, slots=True)
class Told(Counts):
    """What an answer told, in the meaning of the `calls` columns; None where it did not.

    complete: the answer came to the end that its format defines, without an error.
    error_type: the provider's word for an error inside the answer (also in a stream that began with 200);
    error_body: the JSON that told it, for `failure.classify`.
    """

    response_id: str | None = None
    response_model: str | None = None
    service_tier: str | None = None
    speed: str | None = None
    region: str | None = None
    finish_reasons: tuple[str, ...] = ()
    complete: bool = False
    error_type: str | None = None
    error_body: bytes | None = field(default=None, repr=False)

    @property
    def usage_known(self) -> bool:
        return self.input_tokens is not None and self.output_tokens is not None


class Reading:
    """Everything that the payloads so far said."""

    __slots__ = ("_ended", "_error", "_finish", "_usage", "_words", "wire_format")

    def __init__(self, wire_format: WireFormat) -> None:
        self.wire_format = wire_format
        self._usage: Flat = {}
        self._words: dict[str, str] = {}
        self._finish: dict[int, str] = {}
        self._ended = False
        self._error: tuple[str, bytes] | None = None

    def copy(self) -> Reading:
        twin = copy(self)
        twin._words, twin._finish = dict(self._words), dict(self._finish)
        return twin

    @property
    def lacks_identity(self) -> bool:
        """Whether nothing has told yet who answers."""
        return "id" not in self._words or "model" not in self._words

    @property
    def ended(self) -> bool:
        """Whether the end has come, in the format's own words or as an error."""
        return self._ended or self._error is not None

    @property
    def error_body(self) -> bytes | None:
        """The JSON that told of an error; None where none was told."""
        return self._error[1] if self._error else None

    def end(self) -> None:
        """The format's own end has come: `[DONE]`, or the whole document."""
        self._ended = True

    def take(self, payload: Any, raw: bytes, *, failed: bool = False) -> None:
        """One parsed payload and the bytes it was; anything that is not an object says nothing.

        failed: its event was named an error, whatever it says itself.
        """
        if not isinstance(payload, dict):
            return
        inner = _inner(payload)
        choices = objects(payload.get("choices"))
        for usage in usages_in(payload, inner, choices):
            self.take_usage(usage)
        self._name_answerer(inner)
        if "service_tier" in inner:
            self._name("tier", inner["service_tier"])
        finished = choices if inner is payload else objects(inner.get("choices"))
        self._finish.update(_finishes(payload, inner, finished))
        self._ended = self._ended or payload.get("type") in _ENDS
        if (error := _error(payload, inner, choices, failed=failed)) is not None:
            self._error = error, raw

    def identify(self, payload: Any) -> None:
        """Who answers, as far as nothing else has told it: from a payload that can tell of nothing more."""
        if not isinstance(payload, dict):
            return
        inner = _inner(payload)
        self._name_answerer(inner)
        if "tier" not in self._words:
            self._name("tier", inner.get("service_tier"))

    def _name_answerer(self, inner: dict[str, Any]) -> None:
        if "id" not in self._words:
            self._name("id", inner.get("id") or inner.get("responseId"))
        if "model" not in self._words:
            self._name("model", inner.get("model") or inner.get("modelVersion"))

    def take_usage(self, usage: Any) -> None:
        """A usage object, also one found by itself in a document too large or too broken to parse."""
        self._usage = merged(self._usage, flattened(usage)) if self._usage else flattened(usage)
        if isinstance(usage, dict):
            for key, word in _USAGE_WORDS.items():
                if key in usage:
                    self._name(word, usage[key])
            if "trafficType" in usage:
                self._name("tier", _TRAFFIC.get(str(usage["trafficType"])))

    def told(self) -> Told:
        counts = counts_of(
            self._usage,
            anthropic=self.wire_format is WireFormat.ANTHROPIC_MESSAGES,
            embeddings=self.wire_format is WireFormat.OPENAI_EMBEDDINGS,
        )
        if self._error and not counts.input_tokens and not counts.output_tokens:
            counts = Counts()  # a failed call that tells no usage, or only zeros, tells nothing
        words = self._words
        return Told(
            input_tokens=counts.input_tokens,
            cache_read_tokens=counts.cache_read_tokens,
            cache_write_tokens=counts.cache_write_tokens,
            cache_write_1h_tokens=counts.cache_write_1h_tokens,
            output_tokens=counts.output_tokens,
            reasoning_tokens=counts.reasoning_tokens,
            audio_input_tokens=counts.audio_input_tokens,
            audio_output_tokens=counts.audio_output_tokens,
            usage_details=counts.usage_details,
            reported_cost_usd=counts.reported_cost_usd,
            response_id=words.get("id"),
            response_model=words.get("model"),
            service_tier=words.get("tier"),
            speed=words.get("speed"),
            region=words.get("region"),
            finish_reasons=tuple(reason for _, reason in sorted(self._finish.items())),
            complete=self._error is None and (self._ended or self._came_to_an_end()),
            error_type=self._error[0] if self._error else None,
            error_body=self.error_body,
        )

    def _came_to_an_end(self) -> bool:
        """Formats without an end of their own, or providers that leave it out: finished, and usage told."""
        by_finish = (WireFormat.GOOGLE_GENERATE, WireFormat.OPENAI_CHAT)
        return self.wire_format in by_finish and bool(self._finish) and bool(self._usage)

    def _name(self, key: str, value: Any) -> None:
        if isinstance(value, str) and value:
            self._words[key] = value[:_MAX_WORD]


def _inner(payload: dict[str, Any]) -> dict[str, Any]:
    """The answer inside an event, where the event is not the answer itself."""
    for key in ("response", "message"):
        if isinstance(inner := payload.get(key), dict):
            return inner
    return payload


def usages_in(
    payload: dict[str, Any], inner: dict[str, Any], choices: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Every usage object of a payload and of the answer inside it, wherever providers put it."""
    holders = [inner] if inner is payload else [inner, payload]
    if isinstance(groq := payload.get("x_groq"), dict):
        holders.append(groq)
    holders += choices  # Moonshot tells it within the choice
    return [usage for each in holders for key in _USAGE_KEYS if isinstance(usage := each.get(key), dict)]


_USAGE_KEYS: Final = ("usage", "usageMetadata")
_USAGE_WORDS: Final = {"service_tier": "tier", "speed": "speed", "inference_geo": "region"}


def _finishes(
    payload: dict[str, Any], inner: dict[str, Any], choices: list[dict[str, Any]]
) -> dict[int, str]:
    """Why it ended, by the choice's index."""
    found: dict[int, str] = {}
    for place, choice in enumerate(choices or objects(inner.get("candidates"))):
        reason = choice.get("finish_reason") or choice.get("finishReason")
        if isinstance(reason, str):
            found[_index(choice, place)] = reason
    if not choices and (stopped := _stopped(payload, inner)) is not None:
        found[0] = stopped
    return found


def _stopped(payload: dict[str, Any], inner: dict[str, Any]) -> str | None:
    """Why the whole answer ended, in the formats that have one reason for all of it."""
    for holder, key in (
        (payload.get("delta"), "stop_reason"),
        (inner, "stop_reason"),
        (inner.get("promptFeedback"), "blockReason"),
        (inner.get("incomplete_details"), "reason"),
    ):
        if isinstance(holder, dict) and isinstance(reason := holder.get(key), str):
            return reason
    ended = inner.get("object") == "response" and inner.get("status") in ("completed", "failed", "cancelled")
    return inner["status"] if ended else None


def _index(choice: dict[str, Any], place: int) -> int:
    index = choice.get("index")
    return index if isinstance(index, int) else place


def _error(
    payload: dict[str, Any], inner: dict[str, Any], choices: list[dict[str, Any]], *, failed: bool
) -> str | None:
    """The provider's word for the error that a payload tells of; None if it tells of none."""
    base = payload.get("base_resp")  # MiniMax
    if isinstance(base, dict) and base.get("status_code"):
        return str(base["status_code"])
    error = payload.get("error") or inner.get("error")
    for choice in choices:
        error = error or choice.get("error")
    if not error and not failed and payload.get("type") not in _FAILS:
        return None
    told = error if isinstance(error, dict) else payload
    word = next(
        (told[key] for key in ("type", "code", "status") if told.get(key) not in (None, "", "error")), "error"
    )
    return str(word)[:100]
