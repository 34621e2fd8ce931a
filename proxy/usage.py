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

# What makes an event worth parsing: one of these words in quotes, where it is not the name of a null. In text
# that a model wrote these quotes are escaped, and no word is cut in two by the lines of an event. One pattern
# looks for all words of a format, since each search of its own would walk through all of a stream.
_NOT_NULL: Final = r'"(?!: ?null)'
_USAGE: Final = "usage" + _NOT_NULL
_ERROR: Final = 'error"'


def _any(*words: str) -> re.Pattern[bytes]:
    return re.compile(f'"(?:{"|".join(words)})'.encode())


_WORTH: Final = {
    WireFormat.OPENAI_CHAT: _any(_USAGE, "finish_reason" + _NOT_NULL, _ERROR, 'base_resp"'),
    WireFormat.OPENAI_RESPONSES: _any(
        _USAGE, r'response\.(?:completed|incomplete|failed)"', "error" + _NOT_NULL
    ),
    WireFormat.ANTHROPIC_MESSAGES: _any(_USAGE, 'message_(?:start|delta|stop)"', _ERROR, 'base_resp"'),
    WireFormat.OPENAI_EMBEDDINGS: _any(_USAGE),
    WireFormat.GOOGLE_GENERATE: _any('usageMetadata"', 'finishReason"', _ERROR, 'blockReason"'),
}
_TELLING: Final = re.compile(rb"event: ?(?:error|response\.(?:completed|incomplete|failed)|message_)")
"""Names of events that are worth parsing whatever stands in them."""
_EVENT_BEGINS: Final = (b"data:", b"event:")
_EVENT_END: Final = b"\n\n"
_NAMED: Final = re.compile(rb'"(?:id|responseId)": ?"[^"]')
_EARLY_EVENTS: Final = 8
"""An id that did not come within so many events does not come."""
_USAGE_OBJECT: Final = re.compile(r'"(?:usage|usageMetadata)"\s*:\s*(?=\{)')


class UsageTap:
    """Reads one answer of `wire_format` as it passes: its bytes, in order, decompressed.

    Whether it is a stream of events or one document, its first byte tells, whatever was asked for.
    """

    def __init__(self, wire_format: WireFormat) -> None:
        self._reading = Reading(wire_format)
        self._worth = _WORTH[wire_format]
        self._streams = False
        self._document: _Document | None = None
        self._events = EventReader()
        self._early: list[bytes] = []
        self._is_early = True

    def feed(self, chunk: bytes) -> None:
        if not self._streams and not (chunk := self._begun(chunk)):
            return
        while chunk and (self._is_early or not self._events.is_between_events):
            end = chunk.find(_EVENT_END)
            end = end + len(_EVENT_END) if end >= 0 else len(chunk)
            self._take(chunk[:end])
            chunk = chunk[end:]
        if quiet := self._quiet_bytes(chunk):
            chunk = chunk[quiet:]
        if chunk:
            self._take(chunk)

    def _begun(self, chunk: bytes) -> bytes:
        """What has come of a stream of events; empty while it is, or may be, a document."""
        if self._document is None:
            if chunk.startswith(_EVENT_BEGINS):
                self._streams = True
                return chunk
            vectors = self._reading.wire_format is WireFormat.OPENAI_EMBEDDINGS
            self._document = _Document(_PARSED_WHOLE_VECTORS_BYTES if vectors else _PARSED_WHOLE_BYTES)
        self._document.feed(chunk)
        if self._document.is_json() is not False:
            return b""
        chunk, self._document, self._streams = self._document.bytes(), None, True
        return chunk

    def _take(self, chunk: bytes) -> None:
        for event in self._events.feed(chunk):
            self._read(event, self._reading)

    def _quiet_bytes(self, chunk: bytes) -> int:
        """How much of a chunk is whole events that cannot hold anything."""
        if not self._events.is_between_events:
            return 0
        found = self._worth.search(chunk)
        first = len(chunk) if found is None else found.start()
        if (done := chunk.find(DONE, 0, first)) >= 0:
            first = done
        if (named := _TELLING.search(chunk, 0, first)) is not None:
            first = named.start()
        end = chunk.rfind(_EVENT_END, 0, first)
        return end + len(_EVENT_END) if end >= 0 else 0

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
        rest = self._events.pending() if self._streams else None
        reading = self._reading
        if self._document is not None or rest is not None:
            reading = reading.copy()
        if self._document is not None:
            self._document.read_into(reading)
        elif rest is not None:
            self._read(rest, reading)
        self._identify(reading, [*self._early, rest.data] if rest is not None else self._early)
        return reading.told()

    def _identify(self, reading: Reading, early: list[bytes]) -> None:
        """Look into the first events where those that had to be read did not tell who answers."""
        if early and (reading.lacks_identity or any(b'"service_tier"' in data for data in early)):
            for data in early:
                reading.identify(_parsed(data))

    def _read(self, event: Event, reading: Reading) -> None:
        failed = event.name == b"error"
        if event.data.startswith(DONE):
            reading.end()
        elif _TELLING.match(b"event:" + event.name) or self._worth.search(event.data) is not None:
            reading.take(_parsed(event.data), event.data, failed=failed)
            self._is_early = self._is_early and reading.lacks_identity
        elif self._is_early and reading is self._reading:
            self._early.append(event.data)
            self._is_early = len(self._early) < _EARLY_EVENTS and _NAMED.search(event.data) is None


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
