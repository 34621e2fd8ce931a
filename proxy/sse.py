"""Server-sent events, read as bytes come.

As the standard has it: lines end with LF, CRLF or CR, a BOM at the beginning is skipped, comments are
skipped, `data` lines of an event are joined by LF, an empty line ends an event. Unlike a browser, what
stands at the end without its empty line can be asked for (`pending`): providers end streams so.

What it refuses: to hold more than `MAX_EVENT_BYTES` of one event. Such an event is dropped and counted.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

MAX_EVENT_BYTES: Final = 16 << 20  # an image within one event is megabytes
_BOM: Final = b"\xef\xbb\xbf"
DONE: Final = b"[DONE]"


_PLAIN: Final = re.compile(rb"(?:event: ?([^\r\n]*)\n)?data: ?([^\r\n]*)\n\n")
"""A whole event as nearly everybody writes it."""


class Event(NamedTuple):
    """One event: the lines of its data, joined."""

    data: bytes
    name: bytes = b""  # of the `event` line; empty if there was none


class EventReader:
    """Chunks in, complete events out; the same events however the bytes are cut."""

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max = max_event_bytes
        self._line: list[bytes] = []  # the beginning of a line that has no end yet
        self._line_bytes = 0
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._name = b""
        self._after_cr = False
        self._first_line = True
        self._dropping = False
        self.dropped = 0  # events that were too large

    @property
    def is_between_events(self) -> bool:
        """Whether everything that came so far is of whole events."""
        return not (self._line or self._data or self._name or self._after_cr)

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that `chunk` completes."""
        if self._after_cr and chunk:
            self._after_cr = False
            chunk = chunk.removeprefix(b"\n")
        if self._first_line and not self._line and chunk[:1] in (b"d", b"e"):
            self._first_line = False
        plain, at = self._plain(chunk) if self.is_between_events else ([], 0)
        return plain + self._feed(chunk[at:]) if at < len(chunk) else plain

    def _plain(self, chunk: bytes) -> tuple[list[Event], int]:
        """The plain events that a chunk begins with, and where they end."""
        events: list[Event] = []
        at = 0
        while (found := _PLAIN.match(chunk, at)) is not None and found.end() - at <= self._max:
            events.append(Event(found[2], found[1] or b""))
            at = found.end()
        return events, at

    def _feed(self, chunk: bytes) -> list[Event]:
        if b"\n" not in chunk and b"\r" not in chunk:
            self._hold(chunk)
            return []
        self._after_cr = chunk.endswith(b"\r")
        lines = (b"".join(self._line) + chunk).splitlines(keepends=True)
        rest = b"" if lines[-1].endswith((b"\n", b"\r")) else lines.pop()
        self._line, self._line_bytes = [], 0
        events: list[Event] = []
        for line in lines:
            self._take(line.rstrip(b"\r\n"), events)
        self._hold(rest)
        return events

    def pending(self) -> Event | None:
        """What would be the last event if the stream ended here; changes nothing."""
        line = b"".join(self._line)
        if self._first_line:
            line = line.removeprefix(_BOM)
        data = [*self._data, _value(line, 5)] if line.startswith(b"data:") else self._data
        return Event(b"\n".join(data), self._name) if data and not self._dropping else None

    def _hold(self, piece: bytes) -> None:
        if not piece:
            return
        self._line.append(piece)
        self._line_bytes += len(piece)
        if self._dropping or self._line_bytes + self._data_bytes > self._max:
            self._drop()
            self._line, self._line_bytes = [b":"], 1  # enough to know that the line was not empty

    def _take(self, line: bytes, events: list[Event]) -> None:
        if self._first_line:
            self._first_line = False
            line = line.removeprefix(_BOM)
        if not line:
            self._end_event(events)
        elif line.startswith(b"data:") and not self._dropping:
            self._data.append(_value(line, 5))
            self._data_bytes += len(line)
            if self._data_bytes > self._max:
                self._drop()
        elif line.startswith(b"event:"):
            self._name = _value(line, 6)

    def _end_event(self, events: list[Event]) -> None:
        if self._data:
            events.append(Event(b"\n".join(self._data), self._name))
        self._data, self._data_bytes, self._name, self._dropping = [], 0, b"", False

    def _drop(self) -> None:
        if not self._dropping:
            self.dropped += 1
        self._data, self._data_bytes, self._dropping = [], 0, True


def _value(line: bytes, start: int) -> bytes:
    return line[start + 1 :] if line[start : start + 1] == b" " else line[start:]


def encoded(data: bytes, name: bytes = b"") -> bytes:
    """One event as bytes; `data` must not contain line breaks (JSON written here has none)."""
    return b"event: " + name + b"\ndata: " + data + b"\n\n" if name else b"data: " + data + b"\n\n"
