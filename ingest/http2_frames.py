"""Frames of HTTP/2 and headers as they stand on the wire (RFC 9113, RFC 7541): names, sizes, writing.

Knows no connection and no event loop.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

__all__ = [
    "FRAME",
    "MAX_ID",
    "PREFACE",
    "SETTING",
    "SIZES",
    "WORD",
    "Fault",
    "Flag",
    "Http2Error",
    "Setting",
    "Type",
    "field",
    "frame",
    "unpadded",
]

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME: Final = struct.Struct(">HBBBI")
"""The head of a frame: length (24 bits, in two parts), type, flags, stream."""
SETTING: Final = struct.Struct(">HI")
WORD: Final = struct.Struct(">I")
MAX_ID: Final = 0x7FFFFFFF
"""The highest number of a stream, and the largest window."""


class Type:
    """Types of frames."""

    DATA: Final = 0
    HEADERS: Final = 1
    PRIORITY: Final = 2
    RST_STREAM: Final = 3
    SETTINGS: Final = 4
    PUSH_PROMISE: Final = 5
    PING: Final = 6
    GOAWAY: Final = 7
    WINDOW_UPDATE: Final = 8
    CONTINUATION: Final = 9


class Flag:
    """Flags of frames."""

    END_STREAM: Final = 0x1
    ACK: Final = 0x1
    END_HEADERS: Final = 0x4
    PADDED: Final = 0x8
    PRIORITY: Final = 0x20


class Setting:
    """Settings that a connection begins with."""

    MAX_CONCURRENT_STREAMS: Final = 3
    INITIAL_WINDOW_SIZE: Final = 4
    MAX_FRAME_SIZE: Final = 5
    MAX_HEADER_LIST_SIZE: Final = 6


SIZES: Final = {Type.PRIORITY: 5, Type.RST_STREAM: 4, Type.PING: 8, Type.WINDOW_UPDATE: 4}
"""Frames whose size is fixed."""


class Fault(IntEnum):
    """Error codes of HTTP/2 that are sent."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    FLOW_CONTROL_ERROR = 3
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class Http2Error(Exception):
    """The peer breaks the protocol; its connection ends with this code."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.name)
        self.fault = fault


def field(name: bytes, value: bytes) -> bytes:
    """A header that is not compressed and enters no table (RFC 7541, 6.2.2)."""
    return b"\0" + _length(len(name)) + name + _length(len(value)) + value


def _length(number: int) -> bytes:
    """An integer with a prefix of seven bits."""
    if number < 0x7F:
        return bytes((number,))
    coded, number = bytearray((0x7F,)), number - 0x7F
    while number >= 0x80:
        coded.append(number & 0x7F | 0x80)
        number >>= 7
    coded.append(number)
    return bytes(coded)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    size = len(payload)
    return FRAME.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def unpadded(flags: int, payload: bytes) -> bytes:
    """The payload of a frame without its padding. Raises Http2Error."""
    if not flags & Flag.PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise Http2Error(Fault.PROTOCOL_ERROR)
    return payload[1 : len(payload) - payload[0]]
