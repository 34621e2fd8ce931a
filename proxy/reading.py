"""What the JSON of an answer says of itself: identity, usage, how it ended.

One reading takes every payload of an answer, a whole body or the events of a stream, of any format: the
keys tell which. It keeps ids, names and numbers, no content.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

from .counts import Counts, Flat, counts_of, flattened, merged
from .json_values import objects
from .wire import WireFormat

_IDENTITY_EVENTS: Final = 8  # an id that did not come within so many events does not come
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


@dataclass(slots=True)
class Reading:
    """Everything that the payloads so far said."""

    wire_format: WireFormat
    _usage: Flat = field(default_factory=dict[str, int | Decimal])
    _words: dict[str, str] = field(default_factory=dict[str, str])
    _finish: dict[int, str] = field(default_factory=dict[int, str])
    _ended: bool = False
    _error: tuple[str, bytes] | None = None
    _seen: int = 0

    def copy(self) -> Reading:
        twin = copy(self)
        twin._words, twin._finish = dict(self._words), dict(self._finish)
        return twin

    @property
    def needs_identity(self) -> bool:
        return "id" not in self._words and self._seen < _IDENTITY_EVENTS

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
        self._seen += 1
        if not isinstance(payload, dict):
            return
        inner = _inner(payload)
        for usage in usages_in(payload, inner):
            self._usage = merged(self._usage, flattened(usage)) if self._usage else flattened(usage)
            self._name("tier", _TRAFFIC.get(str(usage.get("trafficType")), usage.get("service_tier")))
            self._name("speed", usage.get("speed"))
            self._name("region", usage.get("inference_geo"))
        if "id" not in self._words:
            self._name("id", inner.get("id") or inner.get("responseId"))
        if "model" not in self._words:
            self._name("model", inner.get("model") or inner.get("modelVersion"))
        self._name("tier", inner.get("service_tier"))
        self._finish.update(_finishes(payload, inner))
        self._ended = self._ended or payload.get("type") in _ENDS
        if (error := _error(payload, inner, failed=failed)) is not None:
            self._error = error, raw

    def take_usage(self, usage: Any) -> None:
        """A usage object found by itself, in a document too large or too broken to parse."""
        self._usage = merged(self._usage, flattened(usage))

    def told(self) -> Told:
        counts = counts_of(
            self._usage,
            anthropic=self.wire_format is WireFormat.ANTHROPIC_MESSAGES,
            embeddings=self.wire_format is WireFormat.OPENAI_EMBEDDINGS,
        )
        if self._error and not counts.input_tokens and not counts.output_tokens:
            counts = Counts()  # a failed call that tells no usage, or only zeros, tells nothing
        return Told(
            **{name: getattr(counts, name) for name in Counts.__dataclass_fields__},
            response_id=self._words.get("id"),
            response_model=self._words.get("model"),
            service_tier=self._words.get("tier"),
            speed=self._words.get("speed"),
            region=self._words.get("region"),
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


def usages_in(payload: dict[str, Any], inner: dict[str, Any]) -> list[dict[str, Any]]:
    """Every usage object of a payload and of the answer inside it, wherever providers put it."""
    holders = [inner] if inner is payload else [inner, payload]
    if isinstance(groq := payload.get("x_groq"), dict):
        holders.append(groq)
    holders += objects(payload.get("choices"))  # Moonshot tells it within the choice
    return [usage for each in holders for key in _USAGE_KEYS if isinstance(usage := each.get(key), dict)]


_USAGE_KEYS: Final = ("usage", "usageMetadata")


def _finishes(payload: dict[str, Any], inner: dict[str, Any]) -> dict[int, str]:
    """Why it ended, by the choice's index."""
    found: dict[int, str] = {}
    for key in ("choices", "candidates"):
        for place, choice in enumerate(objects(inner.get(key))):
            reason = choice.get("finish_reason") or choice.get("finishReason")
            if isinstance(reason, str):
                found[_index(choice, place)] = reason
    if (stopped := _stopped(payload, inner)) is not None:
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


def _error(payload: dict[str, Any], inner: dict[str, Any], *, failed: bool) -> str | None:
    """The provider's word for the error that a payload tells of; None if it tells of none."""
    holders = (payload, inner, *objects(payload.get("choices")))
    error = next((holder["error"] for holder in holders if holder.get("error")), None)
    base = payload.get("base_resp")  # MiniMax
    if isinstance(base, dict) and base.get("status_code"):
        return str(base["status_code"])
    if error is None and not failed and payload.get("type") not in _FAILS:
        return None
    told = error if isinstance(error, dict) else payload
    word = next(
        (told[key] for key in ("type", "code", "status") if told.get(key) not in (None, "", "error")), "error"
    )
    return str(word)[:100]
