"""HTTP/2 as far as a server of small answers needs it (RFC 9113), on one event loop, in one pass over bytes.

gRPC's own server hands every call through a queue, a thread and a pipe before Python sees it, which costs
eight times what all else does for a small export. Here a connection is cut into frames where its bytes
arrive. What a client may have open, send ahead and keep unread is bounded. Headers are decoded by `hpack`; a
block that is sent again means the same while the connection's table stands, so it is read once. No pushes,
no priorities.

A subclass says what a head means and what becomes of a whole request. Faults of a peer end its connection
(`Http2Error`), never the process.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable
from typing import Any, Final, cast

from hpack import Decoder, HPACKError

from .http2_frames import (
    FRAME,
    MAX_ID,
    PREFACE,
    SETTING,
    SIZES,
    WORD,
    Fault,
    Flag,
    Http2Error,
    Setting,
    Type,
    frame,
    unpadded,
)

__all__ = ["Http2Connection", "Stream"]

logging.getLogger("hpack").setLevel(logging.WARNING)  # else it would write out headers, which hold keys

MAX_FRAME_BYTES: Final = 1 << 20
"""What one frame may hold; DATA need not have arrived as a whole."""
MAX_HEAD_BYTES: Final = 16 << 10
REMEMBERED_HEADS: Final = 64
REMEMBERED_HEAD_BYTES: Final = 1024
CONNECTION_WINDOW_BYTES: Final = MAX_ID
WINDOW_REFILL_BYTES: Final = 1 << 29
MAX_BLOCKED: Final = 1024
"""Answers that wait because the client takes none."""
DEFAULT_WINDOW_BYTES: Final = 65_535


class Stream:
    """One request. `parts` of its body have arrived, `size` bytes in all; `window`: what may be sent back."""

    __slots__ = ("ended", "head", "number", "parts", "size", "window")

    def __init__(self, number: int, head: Any, window: int) -> None:
        self.number = number
        self.head = head
        self.window = window
        self.parts: list[bytes] = []
        self.size = 0
        self.ended = False


class Http2Connection(asyncio.Protocol):
    """One connection. `open` are its streams by number: being received, or being answered."""

    def __init__(self, *, max_streams: int, max_body_bytes: int) -> None:
        self.open: dict[int, Stream] = {}
        self._max_streams = max_streams
        self._max_body_bytes = max_body_bytes
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._greeted = self._leaving = False
        self._decoder = Decoder(max_header_list_size=MAX_HEAD_BYTES)
        self._heads: dict[bytes, Any] = {}
        self._last = 0
        self._left = 0  # bytes of a DATA frame that has begun to arrive
        self._left_of: Stream | None = None
        self._left_ends = False
        self._block: tuple[int, int, bytearray] | None = None  # a head that goes on: stream, flags, so far
        self._unfilled = 0  # since the connection's window was last filled up
        self._window = DEFAULT_WINDOW_BYTES
        self._initial_window = DEFAULT_WINDOW_BYTES
        self._blocked: deque[tuple[Stream, tuple[bytes, bytes, bytes]]] = deque()

    # --- for the subclass ---

    def read_head(self, headers: Iterable[tuple[bytes, bytes]]) -> Any:
        """What the headers of a request mean; remembered by their bytes."""
        raise NotImplementedError

    def begun(self, stream: Stream) -> None:
        """A request's head is here."""

    def arrived(self, stream: Stream, size: int) -> None:
        """So many bytes of its body have arrived."""

    def complete(self, stream: Stream) -> None:
        """All of it is here."""
        raise NotImplementedError

    def over(self, stream: Stream) -> None:
        """It is answered, or nobody waits for its answer any more. Comes once."""

    def answer(self, stream: Stream, head: bytes, body: bytes, trailers: bytes) -> None:
        """Answer with header blocks and a body of one frame, as soon as the client takes it."""
        if stream.number not in self.open:
            return
        parts = (head, body, trailers)
        if self._blocked or len(body) > min(self._window, stream.window):
            if len(self._blocked) >= MAX_BLOCKED:
                self._fail(Fault.ENHANCE_YOUR_CALM)
            else:
                self._blocked.append((stream, parts))
            return
        self._send(stream, parts)

    def end(self, stream: Stream, head: bytes) -> None:
        """Answer with headers only, whether or not the whole request has arrived."""
        if stream.number not in self.open:
            return
        frames = frame(Type.HEADERS, Flag.END_HEADERS | Flag.END_STREAM, stream.number, head)
        if not stream.ended:  # the rest need not be sent
            frames += frame(Type.RST_STREAM, 0, stream.number, WORD.pack(Fault.NO_ERROR))
        self._write(frames)
        self._forget(stream)

    def leave(self) -> None:
        """Take no new requests; close once those that are here are answered."""
        if not self._leaving:
            self._leaving = True
            self._write(frame(Type.GOAWAY, 0, 0, WORD.pack(self._last) + WORD.pack(Fault.NO_ERROR)))
        self._close_when_done()

    def abort(self) -> None:
        """Close at once."""
        if self._transport:
            self._transport.abort()

    # --- the transport ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Tell what is allowed here."""
        self._transport = cast(asyncio.Transport, transport)
        settings = (
            (Setting.MAX_CONCURRENT_STREAMS, self._max_streams),
            (
                Setting.INITIAL_WINDOW_SIZE,
                min(self._max_body_bytes + MAX_FRAME_BYTES, CONNECTION_WINDOW_BYTES),
            ),
            (Setting.MAX_FRAME_SIZE, MAX_FRAME_BYTES),
            (Setting.MAX_HEADER_LIST_SIZE, MAX_HEAD_BYTES),
        )
        told = frame(Type.SETTINGS, 0, 0, b"".join(SETTING.pack(*each) for each in settings))
        more = WORD.pack(CONNECTION_WINDOW_BYTES - DEFAULT_WINDOW_BYTES)
        self._write(told + frame(Type.WINDOW_UPDATE, 0, 0, more))

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody waits for answers any more."""
        del exc
        self._transport = None
        for stream in [*self.open.values()]:
            self._forget(stream)

    def pause_writing(self) -> None:
        """A client that does not read its answers is not read either."""
        if self._transport:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """The client reads again."""
        if self._transport:
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Take what is whole, keep the rest."""
        if self._rest:
            data, self._rest = self._rest + data, b""
        try:
            self._rest = self._take(data) if self._greeted else self._greet(data)
        except Http2Error as error:
            self._fail(error.fault)

    def _greet(self, data: bytes) -> bytes:
        if len(data) < len(PREFACE) and PREFACE.startswith(data):
            return data
        if not data.startswith(PREFACE):
            raise Http2Error(Fault.PROTOCOL_ERROR)
        self._greeted = True
        return self._take(data[len(PREFACE) :])

    def _take(self, data: bytes) -> bytes:
        """Take the frames in `data`; what is left of it."""
        at, size = 0, len(data)
        while True:
            if self._left:
                if at == size:
                    return b""
                end = min(size, at + self._left)
                self._left -= end - at
                self._part(data[at:end])
                at = end
                continue
            if size - at < FRAME.size:
                return data[at:]
            high, low, kind, flags, number = FRAME.unpack_from(data, at)
            length = high << 8 | low
            if length > MAX_FRAME_BYTES:
                raise Http2Error(Fault.FRAME_SIZE_ERROR)
            if kind == Type.DATA and not flags & Flag.PADDED:
                at += FRAME.size
                self._data(number & MAX_ID, length, flags)
                continue
            end = at + FRAME.size + length
            if end > size:
                return data[at:]
            self._one(kind, flags, number & MAX_ID, data[at + FRAME.size : end])
            at = end

    # --- frames ---

    def _one(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if self._block is not None and kind != Type.CONTINUATION:
            raise Http2Error(Fault.PROTOCOL_ERROR)
        if kind in SIZES and len(payload) != SIZES[kind]:
            raise Http2Error(Fault.FRAME_SIZE_ERROR)
        match kind:
            case Type.HEADERS:
                self._headers(flags, number, payload)
            case Type.DATA:
                self._padded(flags, number, payload)
            case Type.WINDOW_UPDATE:
                self._more_window(number, WORD.unpack(payload)[0] & MAX_ID)
            case Type.PING if not flags & Flag.ACK:
                self._write(frame(Type.PING, Flag.ACK, 0, payload))
            case Type.SETTINGS if not flags & Flag.ACK:
                self._settings(payload)
            case Type.RST_STREAM:
                if number in self.open:
                    self._forget(self.open[number])
            case Type.CONTINUATION:
                self._continued(flags, number, payload)
            case Type.PUSH_PROMISE:
                raise Http2Error(Fault.PROTOCOL_ERROR)

    def _data(self, number: int, length: int, flags: int) -> None:
        """A DATA frame of `length` bytes begins."""
        if self._block is not None or number > self._last or not number:
            raise Http2Error(Fault.PROTOCOL_ERROR)
        self._take_window(length)
        stream = self.open.get(number)
        if stream is not None and stream.ended:
            raise Http2Error(Fault.PROTOCOL_ERROR)
        ends = bool(flags & Flag.END_STREAM)
        if length:
            self._left, self._left_of, self._left_ends = length, stream, ends
        elif ends and stream is not None:
            self._end_of(stream)

    def _part(self, part: bytes) -> None:
        """A part of the DATA frame that is arriving; streams that are over are let pass."""
        stream = self._left_of
        if stream is None or stream.number not in self.open:
            return
        stream.parts.append(part)
        stream.size += len(part)
        self.arrived(stream, len(part))
        if self._left_ends and not self._left and stream.number in self.open:
            self._end_of(stream)

    def _padded(self, flags: int, number: int, payload: bytes) -> None:
        content = unpadded(flags, payload)
        self._take_window(len(payload) - len(content))
        self._data(number, len(content), flags)
        if content:
            self._left = 0
            self._part(content)

    def _take_window(self, size: int) -> None:
        self._unfilled += size
        if self._unfilled > WINDOW_REFILL_BYTES:
            self._write(frame(Type.WINDOW_UPDATE, 0, 0, WORD.pack(self._unfilled)))
            self._unfilled = 0

    def _end_of(self, stream: Stream) -> None:
        stream.ended = True
        self.complete(stream)

    def _headers(self, flags: int, number: int, payload: bytes) -> None:
        block = unpadded(flags, payload)
        if flags & Flag.PRIORITY:
            block = block[5:]
        if len(block) > MAX_HEAD_BYTES:
            raise Http2Error(Fault.ENHANCE_YOUR_CALM)
        if flags & Flag.END_HEADERS:
            self._head(flags, number, block)
        else:
            self._block = number, flags, bytearray(block)

    def _continued(self, flags: int, number: int, payload: bytes) -> None:
        if self._block is None or self._block[0] != number:
            raise Http2Error(Fault.PROTOCOL_ERROR)
        _, first, block = self._block
        block += payload
        if len(block) > MAX_HEAD_BYTES or not payload:
            raise Http2Error(Fault.ENHANCE_YOUR_CALM)
        if flags & Flag.END_HEADERS:
            self._block = None
            self._head(first, number, bytes(block))

    def _head(self, flags: int, number: int, block: bytes) -> None:
        head = self._decoded(block)
        stream = self.open.get(number)
        if stream is not None:  # trailers of a request
            if stream.ended or not flags & Flag.END_STREAM:
                raise Http2Error(Fault.PROTOCOL_ERROR)
            self._end_of(stream)
        elif number > self._last and number & 1:
            self._last = number
            self._open(Stream(number, head, self._initial_window), ended=bool(flags & Flag.END_STREAM))
        elif not number & 1:
            raise Http2Error(Fault.PROTOCOL_ERROR)

    def _open(self, stream: Stream, *, ended: bool) -> None:
        if self._leaving or len(self.open) >= self._max_streams:
            self._write(frame(Type.RST_STREAM, 0, stream.number, WORD.pack(Fault.REFUSED_STREAM)))
            return
        self.open[stream.number] = stream
        stream.ended = ended
        self.begun(stream)
        if ended and stream.number in self.open:
            self._end_of(stream)

    def _decoded(self, block: bytes) -> Any:
        """What a header block means: the same as before, while the table stands."""
        try:
            return self._heads[block]
        except KeyError:
            pass
        before = self._table()
        try:
            head = self.read_head(self._decoder.decode(block, raw=True))
        except HPACKError:
            raise Http2Error(Fault.COMPRESSION_ERROR) from None
        if before != self._table() or len(self._heads) >= REMEMBERED_HEADS:
            self._heads.clear()
        elif len(block) <= REMEMBERED_HEAD_BYTES:
            self._heads[block] = head
        return head

    def _table(self) -> tuple[int, int, int]:
        """Tells whether the decoder's table has changed: what is entered stands first."""
        table = self._decoder.header_table
        entries = table.dynamic_entries
        return table.maxsize, len(entries), id(entries[0]) if entries else 0

    def _settings(self, payload: bytes) -> None:
        if len(payload) % SETTING.size:
            raise Http2Error(Fault.FRAME_SIZE_ERROR)
        for name, value in SETTING.iter_unpack(payload):
            if name == Setting.INITIAL_WINDOW_SIZE:
                if value > MAX_ID:
                    raise Http2Error(Fault.FLOW_CONTROL_ERROR)
                for stream in self.open.values():
                    stream.window += value - self._initial_window
                self._initial_window = value
        self._write(frame(Type.SETTINGS, Flag.ACK, 0))
        self._send_blocked()

    def _more_window(self, number: int, size: int) -> None:
        stream = self.open.get(number)
        if not number:
            self._window += size
        elif stream is not None:
            stream.window += size
        if max(self._window, stream.window if stream else 0) > MAX_ID:
            raise Http2Error(Fault.FLOW_CONTROL_ERROR)
        self._send_blocked()

    # --- answers ---

    def _send(self, stream: Stream, parts: tuple[bytes, bytes, bytes]) -> None:
        head, body, trailers = parts
        self._window -= len(body)
        number = stream.number
        self._write(
            frame(Type.HEADERS, Flag.END_HEADERS, number, head)
            + frame(Type.DATA, 0, number, body)
            + frame(Type.HEADERS, Flag.END_HEADERS | Flag.END_STREAM, number, trailers)
        )
        self._forget(stream)

    def _send_blocked(self) -> None:
        while self._blocked:
            stream, parts = self._blocked[0]
            if stream.number in self.open:
                if len(parts[1]) > min(self._window, stream.window):
                    return
                self._send(stream, parts)
            self._blocked.popleft()

    def _forget(self, stream: Stream) -> None:
        if self.open.pop(stream.number, None) is not None:
            self.over(stream)
            stream.parts.clear()
            self._close_when_done()

    def _close_when_done(self) -> None:
        if self._leaving and not self.open and self._transport:
            self._transport.close()

    def _fail(self, fault: Fault) -> None:
        """The peer is at fault: say so and close."""
        self._write(frame(Type.GOAWAY, 0, 0, WORD.pack(self._last) + WORD.pack(fault)))
        self._rest = b""
        if self._transport:
            self._transport.close()

    def _write(self, data: bytes) -> None:
        if self._transport and not self._transport.is_closing():
            self._transport.write(data)
