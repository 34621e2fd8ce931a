"""Answers of Anthropic's messages, whole and streamed, read and written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ..counts import Counts, Flat, counts_of, flattened, merged
from ..json_values import dumps, object_in, objects, word
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

_ORIGIN: Final = WireFormat.ANTHROPIC_MESSAGES
_REASONS: Final[dict[str, Reason]] = {
    "end_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "stop_sequence": "stop_sequence",
    "refusal": "refusal",
    "pause_turn": "pause",
}
_WRITTEN_REASONS: Final = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
    "pause": "pause_turn",
}


class Reader:
    """Events or a whole message, as events."""

    def __init__(self) -> None:
        self._blocks: dict[int, str] = {}
        self._calls = 0
        self._call_of: dict[int, int] = {}
        self._argued: set[int] = set()
        self._usage: Flat = {}
        self._reason: Reason | None = None
        self._stop_sequence: str | None = None
        self._done = False

    def body(self, payload: Json, raw: bytes) -> list[Event]:
        """A whole message is its start, its blocks and its end."""
        if payload.get("type") == "error" or payload.get("error"):
            return [Failed(raw)]
        events = self.feed({"type": "message_start", "message": payload}, raw)
        for index, block in enumerate(objects(payload.get("content"))):
            events += self.feed({"type": "content_block_start", "index": index, "content_block": block}, raw)
            events += self.feed({"type": "content_block_stop", "index": index}, raw)
        self._end(payload)
        self._reason = self._reason or "stop"
        return events + self.finish()

    def feed(self, payload: Json, raw: bytes) -> list[Event]:
        return list(self._read(payload, raw))

    def finish(self) -> list[Event]:
        """The end, where there was one: without a reason to finish the stream broke off."""
        if self._reason is None or self._done:
            return []
        self._done = True
        return [Finished(self._reason, counts_of(self._usage, anthropic=True), self._stop_sequence)]

    def _read(self, payload: Json, raw: bytes) -> Iterator[Event]:
        match payload.get("type"):
            case "message_start":
                message = object_in(payload, "message")
                self._usage = merged(self._usage, flattened(message.get("usage")))
                yield Started(word(message.get("id")), word(message.get("model")))
            case "content_block_start":
                yield from self._start(int(payload.get("index") or 0), object_in(payload, "content_block"))
            case "content_block_delta":
                yield from self._delta(int(payload.get("index") or 0), object_in(payload, "delta"))
            case "content_block_stop":
                index = int(payload.get("index") or 0)
                if index in self._call_of:
                    yield from self._end_call(self._call_of[index])
                elif self._blocks.get(index) == "thinking":
                    yield ThoughtEnded()
            case "message_delta":
                self._usage = merged(self._usage, flattened(payload.get("usage")))
                self._end(object_in(payload, "delta"))
            case "message_stop":
                yield from self.finish()
            case "error":
                yield Failed(raw)
            case _:
                pass

    def _start(self, index: int, block: Json) -> Iterator[Event]:
        kind = self._blocks[index] = str(block.get("type"))
        if kind == "tool_use":
            self._call_of[index] = self._calls
            self._calls += 1
            yield CallStarted(self._call_of[index], str(block.get("id") or ""), str(block.get("name") or ""))
            if block.get("input"):
                self._argued.add(self._call_of[index])
                yield CallDelta(self._call_of[index], dumps(block["input"]).decode())
        elif kind == "text" and (text := word(block.get("text"))):
            yield TextDelta(text)
        elif kind == "thinking":
            if text := word(block.get("thinking")):
                yield ThoughtDelta(text)
            if signature := word(block.get("signature")):
                yield ThoughtEnded(signature, _ORIGIN)
        elif kind == "redacted_thinking":
            yield ThoughtEnded(word(block.get("data")), _ORIGIN, redacted=True)

    def _end_call(self, call: int) -> Iterator[Event]:
        """A call without arguments has an empty object of them elsewhere."""
        if call not in self._argued:
            yield CallDelta(call, "{}")
        yield CallEnded(call)

    def _delta(self, index: int, delta: Json) -> Iterator[Event]:
        match delta.get("type"):
            case "text_delta":
                yield TextDelta(str(delta.get("text") or ""))
            case "thinking_delta":
                yield ThoughtDelta(str(delta.get("thinking") or ""))
            case "signature_delta":
                yield ThoughtEnded(word(delta.get("signature")), _ORIGIN)
            case "input_json_delta" if index in self._call_of:
                if piece := word(delta.get("partial_json")):
                    self._argued.add(self._call_of[index])
                    yield CallDelta(self._call_of[index], piece)
            case _:
                pass

    def _end(self, told: Json) -> None:
        if isinstance(reason := told.get("stop_reason"), str):
            self._reason = _REASONS.get(reason, "stop")
            self._stop_sequence = word(told.get("stop_sequence"))


class Writer:
    """A stream of named events: blocks one after the other."""

    def __init__(self, _request: Json, answer_id: str, _created_s: int) -> None:
        self._id = answer_id
        self._sequencer = Sequencer()
        self._index = -1
        self._open: str | None = None
        self._begun = False

    def write(self, event: Event) -> bytes:
        return b"".join(self._write(told) for told in self._sequencer.feed(event))

    def end(self) -> bytes:
        return _event("message_stop", {})

    def _write(self, event: Event) -> bytes:
        match event:
            case Started():
                return self._begin(event)
            case TextDelta():
                return self._in("text", {"text": ""}) + self._delta("text_delta", "text", event.text)
            case ThoughtDelta():
                begun = self._in("thinking", {"thinking": "", "signature": ""})
                return begun + self._delta("thinking_delta", "thinking", event.text)
            case ThoughtEnded():
                return self._prove(event)
            case CallStarted():
                return self._start("tool_use", {"id": event.id, "name": event.name, "input": {}})
            case CallDelta():
                return self._delta("input_json_delta", "partial_json", event.arguments)
            case Finished():
                return self._finish(event)
            case _:
                return self._stop()

    def _begin(self, event: Started) -> bytes:
        self._begun = True
        usage = written_usage(Counts())
        message = _message(event.id or self._id, event.model, [], usage) | {
            "stop_reason": None,
            "stop_sequence": None,
        }
        return _event("message_start", {"message": message})

    def _in(self, kind: str, empty: Json) -> bytes:
        return b"" if self._open == kind else self._start(kind, empty)

    def _start(self, kind: str, block: Json) -> bytes:
        stopped = self._stop()
        self._index, self._open = self._index + 1, kind
        return stopped + _event(
            "content_block_start", {"index": self._index, "content_block": {"type": kind} | block}
        )

    def _delta(self, kind: str, key: str, value: str | None) -> bytes:
        return _event("content_block_delta", {"index": self._index, "delta": {"type": kind, key: value}})

    def _stop(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return _event("content_block_stop", {"index": self._index})

    def _prove(self, event: ThoughtEnded) -> bytes:
        """A proof that is Anthropic's own goes with the thought; others would be refused on their return."""
        if event.origin is not _ORIGIN or event.opaque is None:
            return self._stop() if self._open == "thinking" else b""
        if event.redacted:
            return self._start("redacted_thinking", {"data": event.opaque}) + self._stop()
        begun = self._in("thinking", {"thinking": "", "signature": ""})
        return begun + self._delta("signature_delta", "signature", event.opaque) + self._stop()

    def _finish(self, event: Finished) -> bytes:
        delta = {
            "stop_reason": _WRITTEN_REASONS.get(event.reason, event.reason),
            "stop_sequence": event.stop_sequence,
        }
        return self._stop() + _event("message_delta", {"delta": delta, "usage": written_usage(event.counts)})


def _event(kind: str, payload: Json) -> bytes:
    return encoded(dumps({"type": kind} | payload), kind.encode())


def _message(answer_id: str | None, model: str | None, content: list[Json], usage: Json) -> Json:
    head = {"id": answer_id, "type": "message", "role": "assistant", "model": model or ""}
    return head | {"content": content, "usage": usage}


def body_of(answer: Answer, _request: Json, _created_s: int) -> Json:
    """The message."""
    finished = answer.finished or Finished("stop", Counts())
    content = [block for part in answer.parts if (block := _block(part)) is not None]
    reason = _WRITTEN_REASONS.get(finished.reason, finished.reason)
    message = _message(answer.id, answer.model, content, written_usage(finished.counts))
    return message | {"stop_reason": reason, "stop_sequence": finished.stop_sequence}


def _block(part: Text | Thinking | ToolCall) -> Json | None:
    match part:
        case Text():
            return {"type": "text", "text": part.text}
        case ToolCall():
            return {"type": "tool_use", "id": part.id, "name": part.name, "input": arguments_of(part)}
        case Thinking(redacted=True):
            return {"type": "redacted_thinking", "data": part.opaque} if part.origin is _ORIGIN else None
        case Thinking():
            own = part.opaque if part.origin is _ORIGIN else None
            return (
                {"type": "thinking", "thinking": part.text, "signature": own or ""}
                if part.text or own
                else None
            )


def written_usage(counts: Counts) -> Json:
    """Input beside its cached parts, as this format has it."""
    read, write = counts.cache_read_tokens or 0, counts.cache_write_tokens or 0
    usage: Json = {
        "input_tokens": max((counts.input_tokens or 0) - read - write, 0),
        "cache_creation_input_tokens": write,
        "cache_read_input_tokens": read,
        "output_tokens": counts.output_tokens or 0,
    }
    if counts.cache_write_1h_tokens is not None:
        long = counts.cache_write_1h_tokens
        usage["cache_creation"] = {
            "ephemeral_5m_input_tokens": write - long,
            "ephemeral_1h_input_tokens": long,
        }
    return usage
