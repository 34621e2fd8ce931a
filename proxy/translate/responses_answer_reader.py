"""Answers of OpenAI's responses, whole and streamed, as a provider gives them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from ..counts import counts_of, flattened
from ..json_values import object_in, word
from ..wire import WireFormat
from .conversation import Json
from .events import (
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
    ThoughtEnded,
)

_ORIGIN: Final = WireFormat.OPENAI_RESPONSES
_THOUGHT_DELTA: Final = re.compile(r"response\.reasoning\w*\.delta")  # named anew now and then
_TEXT_DELTAS: Final = ("response.output_text.delta", "response.refusal.delta")


class Reader:
    """Events or a whole response, as events. What a finished item tells beyond its deltas is told then."""

    def __init__(self) -> None:
        self._started = False
        self._calls: dict[int, int] = {}  # output index -> which call
        self._told: dict[int, str] = {}  # output index -> what its deltas came to
        self._items_done: set[int] = set()
        self._finished: Finished | None = None
        self._done = False

    def body(self, payload: Json, raw: bytes) -> list[Event]:
        if payload.get("error") and not payload.get("output"):
            return [Failed(raw)]
        kind = "response.incomplete" if payload.get("status") == "incomplete" else "response.completed"
        return [*self.feed({"type": kind, "response": payload}, raw), *self.finish()]

    def feed(self, payload: Json, raw: bytes) -> list[Event]:
        return list(self._read(payload, raw))

    def finish(self) -> list[Event]:
        """The end, where there was one."""
        if self._finished is None or self._done:
            return []
        self._done = True
        return [self._finished]

    def _read(self, payload: Json, raw: bytes) -> Iterator[Event]:
        kind, index = str(payload.get("type")), payload.get("output_index")
        place = index if isinstance(index, int) else 0
        response = payload.get("response")
        if isinstance(response, dict) and not self._started:
            self._started = True
            yield Started(word(response.get("id")), word(response.get("model")))
        if kind.endswith(".delta"):
            yield from self._delta(kind, place, payload.get("delta"))
        elif kind == "response.reasoning_summary_part.added" and payload.get("summary_index"):
            yield from self._delta("response.reasoning.delta", place, "\n\n")
        elif kind == "response.output_item.added":
            yield from self._add(place, object_in(payload, "item"))
        elif kind == "response.function_call_arguments.done" and place in self._calls:
            whole = word(payload.get("arguments")) or word(object_in(payload, "item").get("arguments"))
            yield from (CallDelta(self._calls[place], rest) for rest in self._beyond(place, whole))
        elif kind == "response.output_item.done":
            yield from self._item(place, object_in(payload, "item"))
        elif kind in ("response.completed", "response.incomplete"):
            yield from self._end(kind, response if isinstance(response, dict) else {})
        elif kind in ("error", "response.failed"):
            yield Failed(raw)

    def _delta(self, kind: str, place: int, delta: Any) -> Iterator[Event]:
        piece = word(delta) or (word(delta.get("text")) if isinstance(delta, dict) else None)
        if piece is None:
            return
        self._told[place] = self._told.get(place, "") + piece
        if kind in _TEXT_DELTAS:
            yield TextDelta(piece)
        elif _THOUGHT_DELTA.fullmatch(kind):
            yield ThoughtDelta(piece)
        elif kind == "response.function_call_arguments.delta" and place in self._calls:
            yield CallDelta(self._calls[place], piece)

    def _beyond(self, place: int, whole: str | None) -> Iterator[str]:
        """What the whole of an item says that its deltas did not."""
        told = self._told.get(place, "")
        if whole is not None and len(whole) > len(told) and whole.startswith(told):
            self._told[place] = whole
            yield whole[len(told) :]

    def _add(self, place: int, item: Json) -> Iterator[Event]:
        name = word(item.get("name"))
        if item.get("type") == "function_call" and place not in self._calls and name is not None:
            self._calls[place] = len(self._calls)
            yield CallStarted(self._calls[place], str(item.get("call_id") or item.get("id") or ""), name)

    def _item(self, place: int, item: Json) -> Iterator[Event]:
        if place in self._items_done:
            return
        self._items_done.add(place)
        match item.get("type"):
            case "function_call":
                yield from self._add(place, item)
                if (call := self._calls.get(place)) is not None:
                    rest = self._beyond(place, word(item.get("arguments")))
                    yield from (CallDelta(call, piece) for piece in rest)
                    yield CallEnded(call)
            case "message":
                whole = "".join(_texts(item.get("content")))
                yield from (TextDelta(rest) for rest in self._beyond(place, whole))
            case "reasoning":
                whole = "\n\n".join([*_texts(item.get("summary")), *_texts(item.get("content"))])
                yield from (ThoughtDelta(rest) for rest in self._beyond(place, whole))
                yield ThoughtEnded(word(item.get("encrypted_content")), _ORIGIN, item_id=word(item.get("id")))
            case _:
                pass

    def _end(self, kind: str, response: Json) -> Iterator[Event]:
        output = response.get("output")
        for place, item in enumerate(output if isinstance(output, list) else ()):
            if isinstance(item, dict):
                yield from self._item(place, item)
        reason: Reason = "tool_calls" if self._calls else "stop"
        if kind == "response.incomplete":
            cut = object_in(response, "incomplete_details").get("reason")
            reason = "content_filter" if cut == "content_filter" else "length"
        self._finished = Finished(reason, counts_of(flattened(response.get("usage"))))
        yield from self.finish()


def _texts(parts: Any) -> list[str]:
    listed = [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    return [text for part in listed if (text := word(part.get("text")) or word(part.get("refusal")))]
