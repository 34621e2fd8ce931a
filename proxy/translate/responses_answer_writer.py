"""Answers of OpenAI's responses, whole and streamed, as callers are given them."""

from __future__ import annotations

from typing import Final

from ..counts import Counts
from ..json_values import dumps, loads
from ..sse import encoded
from ..wire import WireFormat
from . import special_tools
from .conversation import Json, Text, Thinking, ToolCall
from .events import (
    Answer,
    CallDelta,
    CallStarted,
    Event,
    Finished,
    Sequencer,
    Started,
    TextDelta,
    ThoughtDelta,
    ThoughtEnded,
    collected,
)

_ORIGIN: Final = WireFormat.OPENAI_RESPONSES


class Writer:
    """A stream of named, numbered events: items one after the other, and the whole response at the end."""

    def __init__(self, request: Json, answer_id: str, created_s: int) -> None:
        self._request, self._id, self._created_s = request, answer_id, created_s
        self._sequencer = Sequencer()
        self._told: list[Event] = []
        self._model: str | None = None
        self.sequence_number = 0
        self._index = -1
        self._open: str | None = None
        self._item: Json = {}
        self._text = ""
        self._call_types = special_tools.call_types_in(request)

    def write(self, event: Event) -> bytes:
        told = self._sequencer.feed(event)
        self._told += told
        return b"".join(self._write(one) for one in told)

    def end(self) -> bytes:
        return b""

    def _write(self, event: Event) -> bytes:
        match event:
            case Started():
                return self._begin(event)
            case TextDelta():
                return self._in("message") + self._delta(event.text)
            case ThoughtDelta():
                return self._in("reasoning") + self._delta(event.text)
            case ThoughtEnded():
                return self._prove(event)
            case CallStarted():
                return self._call(event)
            case CallDelta() if self._open != "function_call":
                self._text += event.arguments  # told once it is whole
                return b""
            case CallDelta():
                return self._delta(event.arguments)
            case Finished():
                return self._finish()
            case _:
                return self._stop()

    def _begin(self, event: Started) -> bytes:
        self._id, self._model = event.id or self._id, event.model
        response = _response(self._id, self._model, self._request, self._created_s) | {
            "status": "in_progress"
        }
        began = [
            self._event(kind, {"response": response}) for kind in ("response.created", "response.in_progress")
        ]
        return b"".join(began)

    def _in(self, kind: str) -> bytes:
        if self._open == kind:
            return b""
        empty: Json = {"role": "assistant", "content": []} if kind == "message" else {"summary": []}
        return self._start(kind, empty)

    def _start(self, kind: str, told: Json) -> bytes:
        stopped = self._stop()
        self._index, self._open, self._text = self._index + 1, kind, ""
        self._item = {
            "id": _item_id(kind, self._id, self._index),
            "type": kind,
            "status": "in_progress",
        } | told
        return stopped + self._at("response.output_item.added", {"item": self._item}) + self._part("added")

    def _call(self, event: CallStarted) -> bytes:
        kind = self._call_types.get(event.name, "function_call")
        return self._start(kind, _call_head(kind, event.id, event.name) | _content(kind, ""))

    def _delta(self, piece: str) -> bytes:
        self._text += piece
        logprobs: Json = {"logprobs": []} if self._open == "message" else {}
        return self._at(f"{_DELTA[self._open or '']}.delta", self._where() | {"delta": piece} | logprobs)

    def _where(self) -> Json:
        place = {"message": {"content_index": 0}, "reasoning": {"summary_index": 0}}.get(self._open or "", {})
        return {"item_id": self._item["id"]} | place

    def _part(self, when: str) -> bytes:
        names = {"message": "response.content_part", "reasoning": "response.reasoning_summary_part"}
        if self._open not in names:
            return b""
        return self._at(
            f"{names[self._open]}.{when}", self._where() | {"part": _text_part(self._open, self._text)}
        )

    def _stop(self, proof: ThoughtEnded | None = None) -> bytes:
        if self._open is None:
            return b""
        told = self._ending() if self._open in _DELTA else b""
        item = self._item | {"status": "completed"} | _content(self._open, self._text)
        if proof is not None and proof.opaque is not None and proof.origin is _ORIGIN:
            item["encrypted_content"] = proof.opaque
        told += self._at("response.output_item.done", {"item": item})
        self._open = None
        return told

    def _ending(self) -> bytes:
        """What comes before an item is done: the whole of its text, and the end of its part."""
        kind, begun = self._open or "", b""
        if kind == "custom_tool_call":
            whole, self._text = special_tools.text_of_arguments(self._text), ""
            begun = self._delta(whole)
        key = {"function_call": "arguments", "custom_tool_call": "input"}.get(kind, "text")
        done: Json = {key: self._text} | ({"logprobs": []} if kind == "message" else {})
        if kind == "function_call":
            done["name"] = self._item["name"]
        return begun + self._at(f"{_DELTA[kind]}.done", self._where() | done) + self._part("done")

    def _prove(self, event: ThoughtEnded) -> bytes:
        own = event.opaque is not None and event.origin is _ORIGIN
        begun = self._in("reasoning") if own else b""
        return begun + (self._stop(event) if self._open == "reasoning" else b"")

    def _finish(self) -> bytes:
        stopped = self._stop()
        answer = collected(self._told)
        answer.id, answer.model = self._id, self._model
        response = body_of(answer, self._request, self._created_s)
        return stopped + self._event(f"response.{response['status']}", {"response": response})

    def _at(self, kind: str, payload: Json) -> bytes:
        return self._event(kind, {"output_index": self._index} | payload)

    def _event(self, kind: str, payload: Json) -> bytes:
        number, self.sequence_number = self.sequence_number, self.sequence_number + 1
        return encoded(dumps({"type": kind, "sequence_number": number} | payload), kind.encode())


_DELTA: Final = {
    "message": "response.output_text",
    "reasoning": "response.reasoning_summary_text",
    "function_call": "response.function_call_arguments",
    "custom_tool_call": "response.custom_tool_call_input",
}
_PREFIX: Final = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "custom_tool_call": "ctc",
    "tool_search_call": "ts",
}


def _call_head(kind: str, call_id: str, name: str) -> Json:
    return {"call_id": call_id} | ({"execution": "client"} if kind == "tool_search_call" else {"name": name})


def _item_id(kind: str, answer_id: str, index: int) -> str:
    return f"{_PREFIX[kind]}_{answer_id.rpartition('_')[2]}_{index}"


def _text_part(kind: str, text: str) -> Json:
    if kind == "reasoning":
        return {"type": "summary_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _content(kind: str, text: str) -> Json:
    if kind == "function_call":
        return {"arguments": text or "{}"}
    if kind == "custom_tool_call":
        return {"input": text}
    if kind == "tool_search_call":
        return {"arguments": loads(text.encode()) or {}}
    key = "content" if kind == "message" else "summary"
    return {key: [_text_part(kind, text)] if text else []}


# What a response says again of its request, and what it says where the request said nothing.
_SAID_AGAIN: Final[Json] = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "service_tier": "default",
    "store": False,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
    "truncation": "disabled",
    "user": None,
}


def _response(answer_id: str | None, model: str | None, request: Json, created_s: int) -> Json:
    said = {
        key: request[key] if request.get(key) is not None else usual for key, usual in _SAID_AGAIN.items()
    }
    head: Json = {"id": answer_id, "object": "response", "created_at": created_s, "status": "completed"}
    told: Json = {
        "error": None,
        "incomplete_details": None,
        "model": model or "",
        "output": [],
        "usage": None,
    }
    return head | told | said | {"store": False}


def body_of(answer: Answer, request: Json, created_s: int) -> Json:
    """The response."""
    finished = answer.finished or Finished("stop", Counts())
    response = _response(answer.id, answer.model, request, created_s)
    types = special_tools.call_types_in(request)
    shown = enumerate(_shown(answer))
    response["output"] = [_written(part, answer.id or "", index, types) for index, part in shown]
    response["usage"] = written_usage(finished.counts)
    if finished.reason in ("length", "content_filter", "refusal"):
        reason = "max_output_tokens" if finished.reason == "length" else "content_filter"
        response |= {"status": "incomplete", "incomplete_details": {"reason": reason}}
    return response


def _shown(answer: Answer) -> list[Text | Thinking | ToolCall]:
    return [
        p for p in answer.parts if not isinstance(p, Thinking) or p.text or (p.opaque and p.origin is _ORIGIN)
    ]


def _written(part: Text | Thinking | ToolCall, answer_id: str, index: int, types: dict[str, str]) -> Json:
    match part:
        case Text():
            told: Json = {"role": "assistant"} | _content("message", part.text)
            kind = "message"
        case Thinking():
            proof = {"encrypted_content": part.opaque} if part.opaque and part.origin is _ORIGIN else {}
            told, kind = _content("reasoning", part.text) | proof, "reasoning"
        case ToolCall():
            kind = types.get(part.name, "function_call")
            text = part.arguments
            text = special_tools.text_of_arguments(text) if kind == "custom_tool_call" else text
            told = _call_head(kind, part.id, part.name) | _content(kind, text)
    return {"id": _item_id(kind, answer_id, index), "type": kind, "status": "completed"} | told


def written_usage(counts: Counts) -> Json:
    prompt, output = counts.input_tokens or 0, counts.output_tokens or 0
    read, written = counts.cache_read_tokens or 0, counts.cache_write_tokens or 0
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": read, "cache_write_tokens": written},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": counts.reasoning_tokens or 0},
        "total_tokens": prompt + output,
    }
