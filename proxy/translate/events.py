"""An answer as it comes, in no format's terms: what streams are read into and written from.

A whole answer is read as the same events, all at once, so every format has one reader.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from ..counts import Counts
from ..wire import WireFormat
from .conversation import Text, Thinking, ToolCall

Reason = Literal["stop", "length", "tool_calls", "content_filter", "stop_sequence", "refusal", "pause"]


@dataclass(frozen=True, slots=True)
class Started:
    id: str | None
    model: str | None


@dataclass(frozen=True, slots=True)
class TextDelta:
    text: str


@dataclass(frozen=True, slots=True)
class ThoughtDelta:
    text: str


@dataclass(frozen=True, slots=True)
class ThoughtEnded:
    """The end of a run of thoughts; `opaque` is its proof for providers of format `origin`."""

    opaque: str | None = None
    origin: WireFormat | None = None
    redacted: bool = False
    item_id: str | None = None


@dataclass(frozen=True, slots=True)
class CallStarted:
    index: int
    id: str
    name: str
    signature: str | None = None


@dataclass(frozen=True, slots=True)
class CallDelta:
    index: int
    arguments: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    index: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The model came to its end; what the answer cost is known with it."""

    reason: Reason
    counts: Counts
    stop_sequence: str | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The JSON by which the provider told of an error."""

    body: bytes


Event = (
    Started
    | TextDelta
    | ThoughtDelta
    | ThoughtEnded
    | CallStarted
    | CallDelta
    | CallEnded
    | Finished
    | Failed
)


@dataclass(slots=True)
class Answer:
    """A whole answer."""

    id: str | None = None
    model: str | None = None
    parts: list[Text | Thinking | ToolCall] = field(default_factory=list[Text | Thinking | ToolCall])
    finished: Finished | None = None
    failed: Failed | None = None

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts if isinstance(part, Text))

    @property
    def thoughts(self) -> str:
        return "".join(part.text for part in self.parts if isinstance(part, Thinking))

    @property
    def calls(self) -> list[ToolCall]:
        return [part for part in self.parts if isinstance(part, ToolCall)]


def collected(events: Iterable[Event]) -> Answer:
    """The answer that the events tell."""
    answer, call_at = Answer(), dict[int, int]()
    for event in events:
        match event:
            case Started():
                answer.id, answer.model = event.id, event.model
            case TextDelta():
                _append_text(answer, event.text)
            case ThoughtDelta() | ThoughtEnded():
                _append_thought(answer, event)
            case CallStarted():
                call_at[event.index] = len(answer.parts)
                answer.parts.append(ToolCall(event.id, event.name, "", event.signature))
            case CallDelta() if event.index in call_at:
                place = call_at[event.index]
                call = answer.parts[place]
                assert isinstance(call, ToolCall), "a call's place holds a call"
                answer.parts[place] = ToolCall(
                    call.id, call.name, call.arguments + event.arguments, call.signature
                )
            case Finished():
                answer.finished = event
            case Failed():
                answer.failed = event
            case _:
                pass
    return answer


def _append_text(answer: Answer, text: str) -> None:
    last = answer.parts[-1] if answer.parts else None
    if isinstance(last, Text):
        answer.parts[-1] = Text(last.text + text)
    else:
        answer.parts.append(Text(text))


def _append_thought(answer: Answer, event: ThoughtDelta | ThoughtEnded) -> None:
    last = answer.parts[-1] if answer.parts else None
    is_open = isinstance(last, Thinking) and last.opaque is None and not last.redacted
    if isinstance(event, ThoughtDelta):
        if is_open and isinstance(last, Thinking):
            answer.parts[-1] = Thinking(last.text + event.text)
        else:
            answer.parts.append(Thinking(event.text))
    elif event.opaque is not None:
        told = last.text if is_open and isinstance(last, Thinking) and not event.redacted else ""
        proven = Thinking(told, event.opaque, event.origin, event.redacted, event.item_id)
        if is_open and not event.redacted:
            answer.parts[-1] = proven
        else:
            answer.parts.append(proven)


class Sequencer:
    """Events in which one thing ends before the next begins, for formats that cannot interleave.

    Only tool calls may overlap, and only in formats that do not tell where one ends: what belongs to a
    later call, or to text behind it, waits until the earlier one has ended.
    """

    def __init__(self) -> None:
        self._open: int | None = None
        self._waiting: dict[int, list[Event]] = {}
        self._later: list[Event] = []

    def feed(self, event: Event) -> list[Event]:
        match event:
            case CallStarted():
                return self._start(event)
            case CallDelta() | CallEnded():
                return self._go_on(event)
            case Finished() | Failed():
                return [*self._release_all(), event]
            case _ if self._open is not None:
                self._later.append(event)
                return []
            case _:
                return [event]

    def _start(self, event: CallStarted) -> list[Event]:
        if self._open is not None:
            self._waiting[event.index] = [event]
            return []
        self._open = event.index
        return [event]

    def _go_on(self, event: CallDelta | CallEnded) -> list[Event]:
        if event.index == self._open:
            return [event, *self._release()] if isinstance(event, CallEnded) else [event]
        if event.index in self._waiting:
            self._waiting[event.index].append(event)
        return []

    def _release(self) -> list[Event]:
        """What waited for the call that has just ended."""
        released: list[Event] = []
        self._open = None
        while self._waiting:
            index = next(iter(self._waiting))
            held = self._waiting.pop(index)
            released += held
            if not isinstance(held[-1], CallEnded):
                self._open = index
                return released
        held, self._later = self._later, []
        return released + held

    def _release_all(self) -> list[Event]:
        released: list[Event] = []
        while self._open is not None:
            released += [CallEnded(self._open), *self._release()]
        return released
