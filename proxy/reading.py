"""What the JSON of an answer says of itself: identity, usage, how it ended.

One reading takes every payload of an answer, a whole body or the events of a stream, of any format: the
keys tell which. It keeps ids, names and numbers, no content.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

from .counts import Counts, Flat, counts_of, flattened, merged
from .json_values import object_in, objects
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
    error_body: bytes | None = None

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
        inner = next(
            (p for key in ("response", "message") if isinstance(p := payload.get(key), dict)), payload
        )
        for usage in usages_in(payload, inner):
            self._usage = merged(self._usage, flattened(usage))
            self._name("tier", _TRAFFIC.get(str(usage.get("trafficType")), usage.get("service_tier")))
            self._name("speed", usage.get("speed"))
            self._name("region", usage.get("inference_geo"))
        self._name("id", inner.get("id") or inner.get("responseId"), once=True)
        self._name("model", inner.get("model") or inner.get("modelVersion"), once=True)
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
            error_body=self._error[1] if self._error else None,
        )

    def _came_to_an_end(self) -> bool:
        """Formats without an end of their own, or providers that leave it out: finished, and usage told."""
        by_finish = (WireFormat.GOOGLE_GENERATE, WireFormat.OPENAI_CHAT)
        return self.wire_format in by_finish and bool(self._finish) and bool(self._usage)

    def _name(self, key: str, value: Any, *, once: bool = False) -> None:
        if isinstance(value, str) and value and not (once and key in self._words):
            self._words[key] = value[:_MAX_WORD]


def usages_in(payload: dict[str, Any], inner: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every usage object of a payload and of the answer inside it, wherever providers put it."""
    groq = payload.get("x_groq")
    holders = [inner, payload, groq, *objects(payload.get("choices"))]  # Moonshot tells it within the choice
    seen: list[Any] = []
    for holder in holders:
        for key in ("usage", "usageMetadata"):
            usage = holder.get(key) if isinstance(holder, dict) else None
            if isinstance(usage, dict) and not any(usage is other for other in seen):
                seen.append(usage)
                yield usage


def _finishes(payload: dict[str, Any], inner: dict[str, Any]) -> Iterator[tuple[int, str]]:
    for place, choice in enumerate([*objects(inner.get("choices")), *objects(inner.get("candidates"))]):
        reason = choice.get("finish_reason") or choice.get("finishReason")
        if isinstance(reason, str):
            yield _index(choice, place), reason
    delta, blocked, cut = (
        object_in(payload, "delta"),
        object_in(inner, "promptFeedback"),
        object_in(inner, "incomplete_details"),
    )
    reasons = [
        delta.get("stop_reason"),
        inner.get("stop_reason"),
        blocked.get("blockReason"),
        cut.get("reason"),
    ]
    if inner.get("object") == "response" and inner.get("status") in ("completed", "failed", "cancelled"):
        reasons.append(inner["status"])
    if found := next((reason for reason in reasons if isinstance(reason, str)), None):
        yield 0, found


def _index(choice: dict[str, Any], place: int) -> int:
    index = choice.get("index")
    return index if isinstance(index, int) else place


def _error(payload: dict[str, Any], inner: dict[str, Any], *, failed: bool) -> str | None:
    """The provider's word for the error that a payload tells of; None if it tells of none."""
    holders = [payload, inner, *objects(payload.get("choices"))]
    error = next((holder["error"] for holder in holders if holder.get("error")), None)
    base = object_in(payload, "base_resp")  # MiniMax
    if base.get("status_code"):
        return str(base["status_code"])
    if error is None and not failed and payload.get("type") not in _FAILS:
        return None
    told = error if isinstance(error, dict) else payload
    word = next(
        (told[key] for key in ("type", "code", "status") if told.get(key) not in (None, "", "error")), "error"
    )
    return str(word)[:100]
