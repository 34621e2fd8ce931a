"""A gRPC client for unary calls with ready bytes: HTTP/2 by hand, so that the client is not what is measured
(grpcio's own costs as much a call as its server).

It speaks what it needs: requests without header compression, flow control, frames of the size the server
allows. A call is acknowledged when its stream ended with trailers after a message: a refusal has no message.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, cast

from bench.traffic import Body, Traffic

PATH: Final = b"/opentelemetry.proto.collector.trace.v1.TraceService/Export"
STREAMS: Final = 8
"""Calls under way on one connection."""

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 0x1, 0x4, 0x1
_TABLE_SIZE, _INITIAL_WINDOW, _MAX_FRAME = 1, 4, 5
_WHOLE_WINDOW: Final = (1 << 31) - 1
_DEFAULT_WINDOW: Final = 65_535
_HEAD_BYTES: Final = 9
_OFFSET_NAME: Final = b"tollbook-offset"


def _frame(kind: int, flags: int, *, stream: int, payload: bytes = b"") -> bytes:
    return _head(len(payload), kind, flags=flags, stream=stream) + payload


def _head(length: int, kind: int, *, flags: int, stream: int) -> bytes:
    return struct.pack(">BHBBI", length >> 16, length & 0xFFFF, kind, flags, stream)


def _literal(index: bytes, value: bytes) -> bytes:
    return index + bytes([len(value)]) + value


def _request_headers(authority: str) -> bytes:
    """The header block of every call (RFC 7541, literals that are not indexed)."""
    return b"".join(
        (
            b"\x83\x86",  # :method POST, :scheme http
            _literal(b"\x04", PATH),
            _literal(b"\x01", authority.encode()),
            _literal(b"\x0f\x10", b"application/grpc"),  # content-type
            _literal(b"\x00\x02te", b"trailers"),
        )
    )


@dataclass(slots=True)
class _Call:
    """One stream. `window`: bytes the server takes on it; `message`: whether an answer has come."""

    body: Body
    sent_at: float
    unsent: memoryview
    window: int
    message: bool = False


class Connection(asyncio.Protocol):
    """One HTTP/2 connection with `STREAMS` slots. `ready` ends when the server has told its settings."""

    def __init__(self, traffic: Traffic, authority: str) -> None:
        self._traffic = traffic
        self._headers = _request_headers(authority)
        self._received = bytearray()
        self._calls: dict[int, _Call] = {}
        self._waiting: deque[int] = deque()
        self._next_stream = 1
        self._window = _DEFAULT_WINDOW
        self._stream_window = _DEFAULT_WINDOW
        self._max_frame = 16_384
        self._transport: asyncio.Transport | None = None
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._takers: dict[int, Callable[[int, int, bytes], None]] = {
            _DATA: self._take_data,
            _HEADERS: self._take_headers,
            _RST_STREAM: lambda stream, _flags, _payload: self._answered(stream, b"", well=False),
            _SETTINGS: self._take_settings,
            _PING: self._take_ping,
            _GOAWAY: lambda _stream, _flags, _payload: self.close(),
            _WINDOW_UPDATE: self._take_window,
        }

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say what we allow: no compressed headers, answers of any size."""
        self._transport = cast(asyncio.Transport, transport)
        settings = struct.pack(">HIHI", _TABLE_SIZE, 0, _INITIAL_WINDOW, _WHOLE_WINDOW)
        more = struct.pack(">I", _WHOLE_WINDOW - _DEFAULT_WINDOW)
        self._write(
            [
                _PREFACE,
                _frame(_SETTINGS, 0, stream=0, payload=settings),
                _frame(_WINDOW_UPDATE, 0, stream=0, payload=more),
            ]
        )

    def begin(self, slots: int) -> None:
        """Take part in the traffic with so many calls at a time."""
        for _ in range(slots):
            self._traffic.free(self.send)

    def send(self, body: Body) -> None:
        """Start one call."""
        message = memoryview(b"".join((struct.pack(">BI", 0, len(body.data)), body.data)))
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        self._calls[stream] = _Call(body, time.monotonic(), message, self._stream_window)
        self._waiting.append(stream)
        self._send_waiting([_frame(_HEADERS, _END_HEADERS, stream=stream, payload=self._headers)])

    def _send_waiting(self, parts: list[bytes | memoryview]) -> None:
        """As much of the waiting messages as the server's windows allow, oldest call first."""
        blocked: list[int] = []
        while self._waiting and self._window > 0:
            stream = self._waiting.popleft()
            call = self._calls.get(stream)
            if call and not self._send_some(stream, call, parts):
                blocked.append(stream)
        self._waiting.extendleft(reversed(blocked))
        self._write(parts)

    def _send_some(self, stream: int, call: _Call, parts: list[bytes | memoryview]) -> bool:
        """Add frames of one call; whether it is sent whole."""
        while call.unsent:
            size = min(len(call.unsent), self._window, call.window, self._max_frame)
            if size <= 0:
                return False
            flags = _END_STREAM if size == len(call.unsent) else 0
            parts += [_head(size, _DATA, flags=flags, stream=stream), call.unsent[:size]]
            call.unsent = call.unsent[size:]
            call.window -= size
            self._window -= size
        return True

    def _write(self, parts: list[bytes | memoryview]) -> None:
        if parts and self._transport and not self._transport.is_closing():
            self._transport.writelines(parts)

    def data_received(self, data: bytes) -> None:
        """Take every whole frame."""
        self._received += data
        at, received = 0, self._received
        while len(received) - at >= _HEAD_BYTES:
            high, low, kind, flags, stream = struct.unpack_from(">BHBBI", received, at)
            end = at + _HEAD_BYTES + (high << 16 | low)
            if end > len(received):
                break
            if taker := self._takers.get(kind):
                taker(stream & _WHOLE_WINDOW, flags, bytes(received[at + _HEAD_BYTES : end]))
            at = end
        del self._received[:at]

    def _take_data(self, stream: int, flags: int, payload: bytes) -> None:
        if payload and (call := self._calls.get(stream)):
            call.message = True
        if flags & _END_STREAM:
            self._answered(stream, b"", well=False)

    def _take_headers(self, stream: int, flags: int, payload: bytes) -> None:
        if flags & _END_STREAM:
            call = self._calls.get(stream)
            self._answered(stream, payload, well=bool(call and call.message))

    def _answered(self, stream: int, trailers: bytes, *, well: bool) -> None:
        call = self._calls.pop(stream, None)
        if not call:
            return
        if well:
            self._traffic.acknowledged(call.body, call.sent_at, _offset(trailers))
        else:
            self._traffic.refused()
        self._traffic.free(self.send)

    def _take_settings(self, _stream: int, flags: int, payload: bytes) -> None:
        if flags & _ACK:
            return
        for name, value in struct.iter_unpack(">HI", payload):
            if name == _INITIAL_WINDOW:
                self._change_stream_windows(value - self._stream_window)
            elif name == _MAX_FRAME:
                self._max_frame = value
        self._send_waiting([_frame(_SETTINGS, _ACK, stream=0)])
        if not self.ready.done():
            self.ready.set_result(None)

    def _change_stream_windows(self, difference: int) -> None:
        self._stream_window += difference
        for call in self._calls.values():
            call.window += difference

    def _take_ping(self, _stream: int, flags: int, payload: bytes) -> None:
        if not flags & _ACK:
            self._write([_frame(_PING, _ACK, stream=0, payload=payload)])

    def _take_window(self, stream: int, _flags: int, payload: bytes) -> None:
        more = struct.unpack(">I", payload)[0] & _WHOLE_WINDOW
        if not stream:
            self._window += more
        elif call := self._calls.get(stream):
            call.window += more
        self._send_waiting([])

    def connection_lost(self, exc: Exception | None) -> None:
        """A server that went away ends the slots of the calls under way."""
        del exc
        for call in self._calls.values():
            self._traffic.lost(call.body)
        self._calls.clear()

    def close(self) -> None:
        """The traffic is over, or the server says so."""
        if self._transport:
            self._transport.close()


def _offset(trailers: bytes) -> int:
    """The journal offset in a block of plain literals; 0 where there is none."""
    _, found, rest = trailers.partition(_OFFSET_NAME)
    return int(rest[1 : 1 + rest[0]]) if found else 0


async def send(traffic: Traffic) -> None:
    """Send the traffic to the end, `STREAMS` calls on each connection."""
    authority = traffic.load.grpc or ""
    host, _, port = authority.rpartition(":")
    loop = asyncio.get_running_loop()
    slots = [min(STREAMS, traffic.load.slots - first) for first in range(0, traffic.load.slots, STREAMS)]
    connections = [
        (await loop.create_connection(lambda: Connection(traffic, authority), host, int(port)))[1]
        for _ in slots
    ]
    await asyncio.gather(*(connection.ready for connection in connections))
    for connection, number in zip(connections, slots, strict=True):
        connection.begin(number)
    await traffic.over
    for connection in connections:
        connection.close()
