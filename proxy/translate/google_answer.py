"""Answers of Gemini's generateContent, whole and streamed, read and written."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Final

from ..counts import Counts, Flat, counts_of, flattened, merged
from ..json_values import dumps, objects, word
from ..sse import encoded
from ..wire import WireFormat
from .conversation import Json, Text, Thinking, ToolCall, arguments_of
from .events import (
    Answer,
    CallDelta,
    CallEnded,
    CallStarted,
    Event,
    Failed,
    Finished,
    Reason,
    Sequencer,
    Started,
    TextDelta,
    ThoughtDelta,
    ThoughtEnded,
)

_ORIGIN: Final = WireFormat.GOOGLE_GENERATE
_FILTERED: Final = (
    "SAFETY",
    "RECITATION",
    "BLOCKLIST",
    "PROHIBITED_CONTENT",
    "SPII",
    "LANGUAGE",
    "IMAGE_SAFETY",
)
_WRITTEN_REASONS: Final = {"length": "MAX_TOKENS", "content_filter": "SAFETY", "refusal": "SAFETY"}


class Reader:
    """Chunks or a whole answer, as events. Only the first candidate is read: more are never asked for."""

    def __init__(self) -> None:
        self._started = False
        self._answer_id: str | None = None
        self._calls = 0
        self._usage: Flat = {}
        self._reason: Reason | None = None
        self._done = False

    def body(self, payload: Json, raw: bytes) -> list[Event]:
        """A whole answer has an end, whether it says so or not."""
        events = self.feed(payload, raw)
        self._reason = self._reason or "stop"
        return events + self.finish()

    def feed(self, payload: Json, raw: bytes) -> list[Event]:
        inner = payload.get("response")  # Code Assist wraps its answers
        return list(self._read(inner if isinstance(inner, dict) else payload, raw))

    def finish(self) -> list[Event]:
        """The end, where there was one: without a reason to finish the stream broke off."""
        if self._reason is None or self._done:
            return []
        self._done = True
        reason: Reason = "tool_calls" if self._reason == "stop" and self._calls else self._reason
        return [Finished(reason, counts_of(self._usage))]

    def _read(self, payload: Json, raw: bytes) -> Iterator[Event]:
        if payload.get("error"):
            yield Failed(raw)
            return
        if not self._started and (payload.keys() & {"candidates", "usageMetadata", "promptFeedback"}):
            self._started, self._answer_id = True, word(payload.get("responseId"))
            yield Started(self._answer_id, word(payload.get("modelVersion")))
        self._usage = merged(self._usage, flattened(payload.get("usageMetadata")))
        feedback = payload.get("promptFeedback")
        if isinstance(feedback, dict) and feedback.get("blockReason"):
            self._reason = "content_filter"
        for candidate in objects(payload.get("candidates"))[:1]:
            content = candidate.get("content")
            for part in objects(content.get("parts")) if isinstance(content, dict) else ():
                yield from self._part(part)
            if (
                isinstance(reason := candidate.get("finishReason"), str)
                and reason != "FINISH_REASON_UNSPECIFIED"
            ):
                self._reason = _reason(reason)

    def _part(self, part: Json) -> Iterator[Event]:
        signature, call = word(part.get("thoughtSignature")), part.get("functionCall")
        if isinstance(call, dict):
            index, self._calls = self._calls, self._calls + 1
            call_id = word(call.get("id")) or f"call_{self._answer_id or secrets.token_hex(8)}_{index}"
            yield CallStarted(index, call_id, str(call.get("name") or ""), signature)
            yield CallDelta(index, dumps(call.get("args") or {}).decode())
            yield CallEnded(index)
        elif text := word(part.get("text")):
            yield ThoughtDelta(text) if part.get("thought") else TextDelta(text)
        if signature and part.get("thought"):
            yield ThoughtEnded(signature, _ORIGIN)


def _reason(told: str) -> Reason:
    return "length" if told == "MAX_TOKENS" else "content_filter" if told in _FILTERED else "stop"


class Writer:
    """A stream of chunks; a call is one part, so it is written when it has ended."""

    def __init__(self, _request: Json, answer_id: str, _created_s: int) -> None:
        self._sequencer = Sequencer()
        self._id, self._model = answer_id, ""
        self._call: ToolCall | None = None

    def write(self, event: Event) -> bytes:
        return b"".join(self._write(told) for told in self._sequencer.feed(event))

    def end(self) -> bytes:
        return b""

    def _write(self, event: Event) -> bytes:
        match event:
            case Started():
                self._id, self._model = event.id or self._id, event.model or ""
            case TextDelta():
                return self._chunk({"text": event.text})
            case ThoughtDelta():
                return self._chunk({"text": event.text, "thought": True})
            case CallStarted():
                self._call = ToolCall(event.id, event.name, "", event.signature)
            case CallDelta() if self._call is not None:
                whole = self._call.arguments + event.arguments
                self._call = ToolCall(self._call.id, self._call.name, whole, self._call.signature)
            case CallEnded() if self._call is not None:
                call, self._call = self._call, None
                return self._chunk(_written_call(call))
            case Finished():
                candidate = {"content": {"role": "model", "parts": []}} | _ending(event)
                return self._encode({"candidates": [candidate], "usageMetadata": written_usage(event.counts)})
            case _:
                pass
        return b""

    def _chunk(self, part: Json) -> bytes:
        return self._encode({"candidates": [{"content": {"role": "model", "parts": [part]}, "index": 0}]})

    def _encode(self, payload: Json) -> bytes:
        return encoded(dumps(payload | {"modelVersion": self._model, "responseId": self._id}))


def _ending(finished: Finished) -> Json:
    return {"finishReason": _WRITTEN_REASONS.get(finished.reason, "STOP"), "index": 0}


def _written_call(call: ToolCall) -> Json:
    told: Json = {"functionCall": {"id": call.id, "name": call.name, "args": arguments_of(call)}}
    return told | ({"thoughtSignature": call.signature} if call.signature else {})


def body_of(answer: Answer, _request: Json, _created_s: int) -> Json:
    """The answer."""
    finished = answer.finished or Finished("stop", Counts())
    parts = [told for part in answer.parts if (told := _written(part)) is not None]
    candidate = {"content": {"role": "model", "parts": parts}} | _ending(finished)
    told = {"modelVersion": answer.model or "", "responseId": answer.id}
    return {"candidates": [candidate], "usageMetadata": written_usage(finished.counts)} | told


def _written(part: Text | Thinking | ToolCall) -> Json | None:
    match part:
        case Text():
            return {"text": part.text}
        case ToolCall():
            return _written_call(part)
        case Thinking():
            proof = {"thoughtSignature": part.opaque} if part.opaque and part.origin is _ORIGIN else {}
            return {"text": part.text, "thought": True} | proof if part.text else None


def written_usage(counts: Counts) -> Json:
    """Candidates beside thoughts, as this format has it."""
    prompt, output, thoughts = counts.input_tokens or 0, counts.output_tokens or 0, counts.reasoning_tokens
    usage: Json = {"promptTokenCount": prompt, "candidatesTokenCount": output - (thoughts or 0)}
    optional = {"cachedContentTokenCount": counts.cache_read_tokens, "thoughtsTokenCount": thoughts}
    return (
        usage
        | {key: value for key, value in optional.items() if value}
        | {"totalTokenCount": prompt + output}
    )
