"""What an answer tells of its own use, read while its bytes pass.

A tap is fed the very chunks that are relayed. It never alters, delays or refuses them: what it cannot
read it leaves unknown. Events are parsed only if they can hold something; the rest of a stream costs one
search each. `told` can be asked at any time, so a stream that broke or was left still tells what came.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any, Final

from .json_values import loads
from .reading import Reading, Told
from .sse import DONE, Event, EventReader
from .wire import WireFormat

__all__ = ["Told", "UsageTap"]

# Of a document larger than that only the ends are read; numbers take a parser longer than text.
_PARSED_WHOLE_BYTES: Final = 4 << 20
_PARSED_WHOLE_VECTORS_BYTES: Final = 256 << 10
_EDGE_BYTES: Final = 64 << 10
_BOM: Final = b"\xef\xbb\xbf"

# What makes an event worth parsing. In text that a model wrote these quotes are escaped. Each mark is a word
# to look for, which is fast, and the pattern that it must begin.
_Marks = tuple[tuple[bytes, re.Pattern[bytes]], ...]


def _marks(*patterns: bytes) -> _Marks:
    return tuple((pattern.partition(b"\\")[0], re.compile(pattern)) for pattern in patterns)


_USAGE: Final = rb'"usage"\s*:\s*\{'
_ERROR: Final = rb'"error"\s*:'
_WORTH: Final = {
    WireFormat.OPENAI_CHAT: _marks(_USAGE, rb'"finish_reason"\s*:\s*"', _ERROR, rb'"base_resp"'),
    WireFormat.OPENAI_RESPONSES: _marks(
        _USAGE, rb'"type"\s*:\s*"(?:response\.(?:completed|incomplete|failed)|error)"', _ERROR + rb'\s*[{"]'
    ),
    WireFormat.ANTHROPIC_MESSAGES: _marks(
        _USAGE, rb'"type"\s*:\s*"(?:message_start|message_delta|message_stop|error)"', _ERROR
    ),
    WireFormat.OPENAI_EMBEDDINGS: _marks(_USAGE),
    WireFormat.GOOGLE_GENERATE: _marks(
        rb'"usageMetadata"', rb'"finishReason"', rb'"error"', rb'"blockReason"'
    ),
}
_OUTSIDE: Final = ((DONE, re.compile(re.escape(DONE))), *_marks(rb"event:\s*error"))
"""What can be worth it outside an event's data."""
_ANYWHERE: Final = {wire_format: (*_OUTSIDE, *marks) for wire_format, marks in _WORTH.items()}


def _first(marks: _Marks, data: bytes) -> int:
    """Where the first mark stands; the length of the data if there is none."""
    first = len(data)
    for word, pattern in marks:
        at = data.find(word, 0, first)
        if at >= 0 and (found := pattern.search(data, at)) is not None:
            first = min(first, found.start())
    return first


_EVENT_END: Final = b"\n\n"
_USAGE_OBJECT: Final = re.compile(r'"(?:usage|usageMetadata)"\s*:\s*(?=\{)')


class UsageTap:
    """Reads one answer of `wire_format` as it passes: its bytes, in order, decompressed.

    Whether it is a stream of events or one document, its first byte tells, whatever was asked for.
    """

    def __init__(self, wire_format: WireFormat) -> None:
        self._reading = Reading(wire_format)
        self._worth = _WORTH[wire_format]
        self._marks = _ANYWHERE[wire_format]
        vectors = wire_format is WireFormat.OPENAI_EMBEDDINGS
        limit = _PARSED_WHOLE_VECTORS_BYTES if vectors else _PARSED_WHOLE_BYTES
        self._document: _Document | None = _Document(limit)
        self._events = EventReader()

    def feed(self, chunk: bytes) -> None:
        if self._document is not None:
            self._document.feed(chunk)
            if self._document.is_json() is not False:
                return
            chunk, self._document = self._document.bytes(), None
        if self._reading.needs_identity and (end := chunk.find(_EVENT_END) + len(_EVENT_END)) > 1:
            self._take(chunk[:end])
            chunk = chunk[end:]
        if quiet := self._quiet_bytes(chunk):
            chunk = chunk[quiet:]
        if chunk:
            self._take(chunk)

    def _take(self, chunk: bytes) -> None:
        for event in self._events.feed(chunk):
            self._read(event, self._reading)

    def _quiet_bytes(self, chunk: bytes) -> int:
        """How much of a chunk is whole events, of one line of data each, that cannot hold anything."""
        if self._reading.needs_identity or not self._events.is_between_events:
            return 0
        first = _first(self._marks, chunk)
        end = chunk.rfind(_EVENT_END, 0, first) + len(_EVENT_END)
        one_line_each = chunk.count(b"data:", 0, end) <= chunk.count(_EVENT_END, 0, end)
        return end if end > 1 and one_line_each else 0

    @property
    def ended(self) -> bool:
        """Whether the event that ends a stream of this format has come; cheap, to be asked per chunk."""
        return self._reading.ended

    @property
    def error_body(self) -> bytes | None:
        """The JSON of an error that has come as an event."""
        return self._reading.error_body

    def told(self) -> Told:
        """What the bytes so far tell; also of an event or document that stands unfinished at the end."""
        rest = self._events.pending() if self._document is None else None
        if self._document is None and rest is None:
            return self._reading.told()
        reading = self._reading.copy()
        if self._document is not None:
            self._document.read_into(reading)
        elif rest is not None:
            self._read(rest, reading)
        return reading.told()

    def _read(self, event: Event, reading: Reading) -> None:
        failed = event.name == b"error"
        if event.data.startswith(DONE):
            reading.end()
        elif failed or reading.needs_identity or _first(self._worth, event.data) < len(event.data):
            reading.take(_parsed(event.data), event.data, failed=failed)


class _Document:
    """An answer that is one JSON document (or an array of them: Gemini's stream without `alt=sse`)."""

    def __init__(self, parsed_whole_bytes: int) -> None:
        self._limit = parsed_whole_bytes
        self._parts: list[bytes] = []
        self._size = 0
        self._begins: bytes | None = None
        self._cut = False

    def feed(self, chunk: bytes) -> None:
        self._parts.append(chunk)
        self._size += len(chunk)
        if self._size > self._limit and self._begins is not None:
            whole = self.bytes()
            self._parts, self._cut = [whole[:_EDGE_BYTES], whole[-_EDGE_BYTES:]], True
            self._size = 2 * _EDGE_BYTES

    def is_json(self) -> bool | None:
        """Whether this is a document at all and no stream of events; None while nothing tells."""
        if self._begins is None:
            begun = self.bytes().removeprefix(_BOM).lstrip()
            self._begins = None if _BOM.startswith(begun) else begun[:1]
        return None if self._begins is None else self._begins in b"{["

    def bytes(self) -> bytes:
        return b"".join(self._parts)

    def read_into(self, reading: Reading) -> None:
        raw = self.bytes().removeprefix(_BOM)
        parsed = None if self._cut else _parsed(raw)
        if parsed is None:
            self._search(raw.decode(errors="replace"), reading)
            return
        for payload in parsed if isinstance(parsed, list) else [parsed]:
            reading.take(payload, raw)
        reading.end()

    def _search(self, text: str, reading: Reading) -> None:
        """Usage objects out of a document that is too large, or was cut off."""
        for found in _USAGE_OBJECT.finditer(text):
            try:
                usage, _ = _DECODER.raw_decode(text, found.end())
            except ValueError:
                continue
            reading.take_usage(usage)
        if self._cut and text.rstrip().endswith(("}", "]")):
            reading.end()


_DECODER: Final = json.JSONDecoder(parse_float=Decimal)


def _parsed(data: bytes) -> Any:
    """The JSON, or None if it is none. Costs are read as decimals, which takes a slower parser."""
    try:
        if b'cost"' in data or b'"cost_' in data:
            return json.loads(data, parse_float=Decimal)
        return loads(data)
    except (ValueError, RecursionError):
        return None
