"""Answers of OpenAI's chat completions, whole and streamed, read and written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from ..counts import Counts, Flat, counts_of, flattened, merged
from ..json_values import dumps, objects, word
from ..reading import usages_in
from ..sse import DONE, encoded
from .conversation import Json
from .events import (
    Answer,
    CallDelta,
    CallEnded,
    CallStarted,
    Event,
    Failed,
    Finished,
    Reason,
    Started,
    TextDelta,
    ThoughtDelta,
)

_REASONS: Final[dict[str, Reason]] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}
_WRITTEN_REASONS: Final = {"stop_sequence": "stop", "refusal": "content_filter", "pause": "stop"}


@dataclass(slots=True)
class _Call:
    index: int
    id: str
    name: str = ""
    held: str = ""
    started: bool = False


class Reader:
    """Chunks or a whole completion, as events. Only the first choice is read: more are never asked for."""

    def __init__(self) -> None:
        self._started = False
        self._calls: dict[int, _Call] = {}
        self._count = 0
        self._usage: Flat = {}
        self._reason: Reason | None = None
        self._done = False

    def body(self, payload: Json, raw: bytes) -> list[Event]:
        """A whole completion has an end, whether it says so or not."""
        events = self.feed(payload, raw)
        self._reason = self._reason or "stop"
        return events + self.finish()

    def feed(self, payload: Json, raw: bytes) -> list[Event]:
        return list(self._read(payload, raw))

    def finish(self) -> list[Event]:
        """The end, where there was one: without a reason to finish the stream broke off."""
        if self._reason is None or self._done:
            return []
        self._done = True
        ended: list[Event] = [CallEnded(call.index) for call in self._calls.values() if call.started]
        called = self._reason == "stop" and ended
        return [*ended, Finished("tool_calls" if called else self._reason, counts_of(self._usage))]

    def _read(self, payload: Json, raw: bytes) -> Iterator[Event]:
        if payload.get("error"):
            yield Failed(raw)
            return
        if not self._started and (payload.get("id") or payload.get("choices")):
            self._started = True
            yield Started(word(payload.get("id")), word(payload.get("model")))
        choices = objects(payload.get("choices"))
        for usage in usages_in(payload, payload, choices):
            self._usage = merged(self._usage, flattened(usage))
        for choice in choices:
            if choice.get("index", 0) in (0, None):
                delta = choice.get("delta") or choice.get("message")
                yield from self._delta(delta if isinstance(delta, dict) else {})
                if isinstance(reason := choice.get("finish_reason"), str):
                    self._reason = _REASONS.get(reason, "stop")

    def _delta(self, delta: Json) -> Iterator[Event]:
        if thought := word(delta.get("reasoning_content")) or word(delta.get("reasoning")):
            yield ThoughtDelta(thought)
        yield from _content(delta.get("content"))
        if refusal := word(delta.get("refusal")):
            yield TextDelta(refusal)
        for place, told in enumerate(objects(delta.get("tool_calls"))):
            yield from self._call(told, place)

    def _call(self, told: Json, place: int) -> Iterator[Event]:
        function = told.get("function") if isinstance(told.get("function"), dict) else {}
        assert isinstance(function, dict), "an object was just made sure of"
        call = self._known(told, place)
        call.name = call.name or word(function.get("name")) or ""
        arguments = function.get("arguments")
        call.held += arguments if isinstance(arguments, str) else json.dumps(arguments) if arguments else ""
        if not call.name:
            return
        if not call.started:
            call.started = True
            yield CallStarted(call.index, call.id, call.name, _signature(told))
        if call.held:
            yield CallDelta(call.index, call.held)
            call.held = ""

    def _known(self, told: Json, place: int) -> _Call:
        """The call a delta goes on with; another id under the same index is another call."""
        key = told["index"] if isinstance(told.get("index"), int) else place
        call_id = word(told.get("id"))
        known = self._calls.get(key)
        if known is not None and (call_id is None or call_id == known.id):
            return known
        if known is not None:
            self._calls[-1 - self._count] = known
        self._calls[key] = _Call(self._count, call_id or f"call_{self._count}")
        self._count += 1
        return self._calls[key]


def _content(content: Any) -> Iterator[Event]:
    if isinstance(content, str) and content:
        yield TextDelta(content)
    for part in objects(content):
        if part.get("type") == "thinking":  # Mistral's
            yield from (
                ThoughtDelta(t.text) for t in _content(part.get("thinking")) if isinstance(t, TextDelta)
            )
        elif text := word(part.get("text")):
            yield TextDelta(text)


def _signature(call: Json) -> str | None:
    extra = call.get("extra_content")
    google = extra.get("google") if isinstance(extra, dict) else None
    return word(google.get("thought_signature")) if isinstance(google, dict) else None


class Writer:
    """A stream of chunks. Usage is told to those who asked for it."""

    def __init__(self, request: Json, answer_id: str, created_s: int) -> None:
        options = request.get("stream_options")
        self._tells_usage = isinstance(options, dict) and options.get("include_usage") is True
        self._head: Json = {
            "id": answer_id,
            "object": "chat.completion.chunk",
            "created": created_s,
            "model": "",
        }

    def write(self, event: Event) -> bytes:
        match event:
            case Started():
                self._head["id"] = event.id or self._head["id"]
                self._head["model"] = event.model or str(self._head["model"])
                delta: Json = {"role": "assistant", "content": ""}
            case TextDelta():
                delta = {"content": event.text}
            case ThoughtDelta():
                delta = {"reasoning_content": event.text}
            case CallStarted():
                delta = {"tool_calls": [{"index": event.index} | _written_call(event, "")]}
            case CallDelta():
                delta = {"tool_calls": [{"index": event.index, "function": {"arguments": event.arguments}}]}
            case Finished():
                return self._finish(event)
            case _:
                return b""
        return self._chunk(delta)

    def end(self) -> bytes:
        return encoded(DONE)

    def _finish(self, event: Finished) -> bytes:
        last = self._chunk({}, _WRITTEN_REASONS.get(event.reason, event.reason))
        if not self._tells_usage:
            return last
        return last + encoded(dumps(self._head | {"choices": [], "usage": written_usage(event.counts)}))

    def _chunk(self, delta: Json, reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return encoded(dumps(self._head | {"choices": [choice]}))


def _written_call(call: Any, arguments: str) -> Json:
    written: Json = {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
    }
    if call.signature:
        written["extra_content"] = {"google": {"thought_signature": call.signature}}
    return written


def body_of(answer: Answer, _request: Json, created_s: int) -> Json:
    """The completion."""
    calls = [_written_call(call, call.arguments or "{}") for call in answer.calls]
    message: Json = {"role": "assistant", "content": answer.text or None, "refusal": None}
    message |= {"tool_calls": calls} if calls else {}
    message |= {"reasoning_content": answer.thoughts} if answer.thoughts else {}
    reason = answer.finished.reason if answer.finished else "stop"
    written = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": _WRITTEN_REASONS.get(reason, reason),
    }
    body: Json = {
        "id": answer.id,
        "object": "chat.completion",
        "created": created_s,
        "model": answer.model or "",
    }
    body["choices"] = [written]
    counts = answer.finished.counts if answer.finished else Counts()
    return body | ({"usage": written_usage(counts)} if counts != Counts() else {})


def written_usage(counts: Counts) -> Json:
    prompt, completion = counts.input_tokens or 0, counts.output_tokens or 0
    prompt_parts = {
        "cached_tokens": counts.cache_read_tokens,
        "cache_write_tokens": counts.cache_write_tokens,
        "audio_tokens": counts.audio_input_tokens,
    }
    completion_parts = {
        "reasoning_tokens": counts.reasoning_tokens,
        "audio_tokens": counts.audio_output_tokens,
    }
    usage: Json = {"prompt_tokens": prompt, "completion_tokens": completion}
    usage["total_tokens"] = prompt + completion
    for key, parts in (
        ("prompt_tokens_details", prompt_parts),
        ("completion_tokens_details", completion_parts),
    ):
        if told := {name: count for name, count in parts.items() if count is not None}:
            usage[key] = told
    return usage
