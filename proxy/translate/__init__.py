"""Requests, answers and streams of one format in the words of another.

Four formats, each with a reader and a writer of requests and of answers; what lies between is a
conversation (`conversation.py`) and an answer as events (`events.py`). What cannot be said in the other
format is refused by its name (`CannotCarry`), never dropped; hints that merely help may be left out, and
are named.

`source` is always the caller's format, `target` the provider's.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Protocol

from ..failure import Failure, FailureKind, classify, error_body, failure, render_event
from ..json_values import dumps, exact, loads
from ..sse import DONE, EventReader
from ..sse import Event as ServerEvent
from ..wire import WireFormat
from . import (
    chat_answer,
    chat_request_reader,
    chat_request_writer,
    google_answer,
    google_request_reader,
    google_request_writer,
    messages_answer,
    messages_request_reader,
    messages_request_writer,
    responses_answer_reader,
    responses_answer_writer,
    responses_request_reader,
    responses_request_writer,
)
from .conversation import CannotCarry, Json, Request
from .events import Answer, Event, Failed, Finished, collected

__all__ = [
    "AnswerTranslator",
    "CannotCarry",
    "Translated",
    "answer_translator",
    "translate_request",
    "translated",
]

_CHAT, _RESPONSES = WireFormat.OPENAI_CHAT, WireFormat.OPENAI_RESPONSES
_MESSAGES, _GOOGLE = WireFormat.ANTHROPIC_MESSAGES, WireFormat.GOOGLE_GENERATE
_ID_PREFIX: Final = {_CHAT: "chatcmpl-", _RESPONSES: "resp_", _MESSAGES: "msg_", _GOOGLE: ""}


@dataclass(frozen=True, slots=True)
class Translated:
    """A request in the target's format, and the names of hints that were left out."""

    body: Json
    left_out: tuple[str, ...]


def translate_request(body: Json, source: WireFormat, target: WireFormat, *, model: str) -> Json:
    """The request in the target's format; CannotCarry names what that format cannot say."""
    return translated(body, source, target, model=model).body


def translated(
    body: Json,
    source: WireFormat,
    target: WireFormat,
    *,
    model: str,
    streaming: bool = False,
    chat_lacks: Collection[str] = (),
) -> Translated:
    """As `translate_request`, with what was left out. streaming: for Gemini's callers, whose path says so;
    chat_lacks: fields of chat requests that the provider refuses.
    """
    request = _read(body, source, model, streaming)
    written, left_out = _REQUEST_WRITERS[target](request)
    lost = chat_request_writer.strip(written, chat_lacks) if target is _CHAT else []
    return Translated(written, tuple(dict.fromkeys((*request.left_out, *left_out, *lost))))


def _read(body: Json, source: WireFormat, model: str, streaming: bool) -> Request:
    if source is _GOOGLE:
        return google_request_reader.read(body, model, streaming=streaming)
    return _REQUEST_READERS[source](body, model)


_REQUEST_READERS: Final[Mapping[WireFormat, Callable[[Json, str], Request]]] = {
    _CHAT: chat_request_reader.read,
    _RESPONSES: responses_request_reader.read,
    _MESSAGES: messages_request_reader.read,
}
_REQUEST_WRITERS: Final[Mapping[WireFormat, Callable[[Request], tuple[Json, list[str]]]]] = {
    _CHAT: chat_request_writer.write,
    _RESPONSES: responses_request_writer.write,
    _MESSAGES: messages_request_writer.write,
    _GOOGLE: google_request_writer.write,
}


class _Reader(Protocol):
    def body(self, payload: Json, raw: bytes) -> list[Event]: ...
    def feed(self, payload: Json, raw: bytes) -> list[Event]: ...
    def finish(self) -> list[Event]: ...


class _Writer(Protocol):
    def write(self, event: Event) -> bytes: ...
    def end(self) -> bytes: ...


_READERS: Final[Mapping[WireFormat, Callable[[], _Reader]]] = {
    _CHAT: chat_answer.Reader,
    _RESPONSES: responses_answer_reader.Reader,
    _MESSAGES: messages_answer.Reader,
    _GOOGLE: google_answer.Reader,
}
_WRITERS: Final[Mapping[WireFormat, Callable[[Json, str, int], _Writer]]] = {
    _CHAT: chat_answer.Writer,
    _RESPONSES: responses_answer_writer.Writer,
    _MESSAGES: messages_answer.Writer,
    _GOOGLE: google_answer.Writer,
}
_BODIES: Final[Mapping[WireFormat, Callable[[Answer, Json, int], Json]]] = {
    _CHAT: chat_answer.body_of,
    _RESPONSES: responses_answer_writer.body_of,
    _MESSAGES: messages_answer.body_of,
    _GOOGLE: google_answer.body_of,
}


def answer_translator(source: WireFormat, target: WireFormat, request: Json) -> AnswerTranslator:
    """For one answer to `request` (the caller's, parsed)."""
    return AnswerTranslator(source, target, request, created_s=int(time.time()))


class AnswerTranslator:
    """One answer of the target's format in the caller's: whole by `body`, streamed by `feed` and `finish`.

    `failed` tells of an error inside the answer; a stream that fails ends with the caller's own error event.
    """

    def __init__(self, source: WireFormat, target: WireFormat, request: Json, *, created_s: int) -> None:
        self._source, self._request, self._created_s = source, request, created_s
        self._id = _ID_PREFIX[source] + secrets.token_hex(12)
        self._reader = _READERS[target]()
        self._writer = _WRITERS[source](request, self._id, created_s)
        self._events = EventReader()
        self._over = False
        self.failed: Failure | None = None

    def body(self, body: Json) -> Json:
        """A whole answer; the caller's error body where the provider's is one."""
        return self._whole(self._reader.body(body, dumps(body)))

    def feed(self, chunk: bytes) -> bytes:
        """What a chunk of the provider's stream comes to; often nothing yet."""
        return b"".join(self._written(event) for e in self._events.feed(chunk) for event in self._read(e))

    def finish(self) -> bytes:
        """The end of the caller's stream, when the provider's has ended; an error if that had no end."""
        rest = self._events.pending()
        last = [*(self._read(rest) if rest is not None else ()), *self._reader.finish()]
        written = b"".join(map(self._written, last))
        if self._over:
            return written
        return written + self._fail(
            failure(FailureKind.NETWORK, "the provider's stream broke off before its end")
        )

    def collected_body(self, stream: bytes) -> Json:
        """A whole answer from a provider's complete stream, for callers that did not ask for a stream."""
        events = [event for e in self._events.feed(stream) for event in self._read(e)]
        rest = self._events.pending()
        events += self._read(rest) if rest is not None else ()
        return self._whole([*events, *self._reader.finish()])

    def _whole(self, events: list[Event]) -> Json:
        answer = collected(events)
        if answer.failed is not None:
            self.failed = _classified(answer.failed)
            return error_body(self.failed, self._source)
        answer.id = answer.id or self._id
        return _BODIES[self._source](answer, self._request, self._created_s)

    def _read(self, event: ServerEvent) -> list[Event]:
        if event.data.startswith(DONE):
            return self._reader.finish()
        if event.name == b"error":
            return [Failed(event.data)]
        payload = exact(loads(event.data), event.data)
        if not isinstance(payload, dict):
            return []
        if event.name and "type" not in payload:  # some say it in the event's name only
            payload["type"] = event.name.decode(errors="replace")
        return self._reader.feed(payload, event.data)

    def _written(self, event: Event) -> bytes:
        if self._over:
            return b""
        if isinstance(event, Failed):
            return self._fail(_classified(event))
        written = self._writer.write(event)
        if isinstance(event, Finished):
            self._over = True
            written += self._writer.end()
        return written

    def _fail(self, found: Failure) -> bytes:
        self._over, self.failed = True, found
        number = getattr(self._writer, "sequence_number", 0)
        return render_event(found, self._source, sequence_number=number)


def _classified(failed: Failed) -> Failure:
    return classify(None, 200, {}, failed.body, now=datetime.now(UTC))
