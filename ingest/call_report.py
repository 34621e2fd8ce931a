"""The door for who carries model calls himself: one call becomes one OTLP span in the journal.

The proxy is an emitter like any other, so what it saw takes the way of all telemetry and fuses with what the
agent tells. Written by hand, since it stands in the way of the end of every answer: the generated classes
cost four times as much. It knows nothing of what the attributes mean (`dialects/tollbook-proxy.toml` does).
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Mapping
from functools import lru_cache
from time import time_ns
from typing import Final

from .journal import Journal, Kind

__all__ = ["SCOPE", "attributes", "begun", "encode", "journal_call", "new_span_id", "new_trace_id", "opened"]

SCOPE: Final = "tollbook.proxy"
Value = str | int | float | bool

_CLIENT: Final = b"\x30\x03"  # kind: the client's side of a call
_ERROR: Final = b"\x7a\x02\x18\x02"  # status { code: ERROR }
_FIXED64: Final = struct.Struct("<Q")
_DOUBLE: Final = struct.Struct("<d")
_OFTEN_CHARACTERS: Final = 24


_IDS: Final = random.Random()  # noqa: S311  # names, no secrets: not worth asking the system for each


def new_trace_id() -> bytes:
    """A random trace id."""
    return _IDS.randbytes(16)


def new_span_id() -> bytes:
    """A random span id."""
    return _IDS.randbytes(8)


def journal_call(journal: Journal, body: bytes) -> asyncio.Future[int]:
    """Hand an encoded span to the journal; the position after it once it is on disk, or a JournalError."""
    return journal.submit(Kind.TRACES_PROTO, body, received_at_ns=time_ns())


def opened(name: str) -> bytes:
    """The part of a span that tells its name, and that it is the client's side of a call."""
    return _field(b"\x2a", name.encode()) + _CLIENT


def begun(trace_id: bytes, span_id: bytes, parent_span_id: bytes | None, *, start_ns: int) -> bytes:
    """The part of a span that tells which it is and when it began. Ids as in OTLP (16, 8 and 8 bytes), times
    in Unix nanoseconds.
    """
    parent = b"\x22\x08" + parent_span_id if parent_span_id else b""
    return b"\x0a\x10%b\x12\x08%b%b\x39%b" % (trace_id, span_id, parent, _FIXED64.pack(start_ns))


def attributes(told: Mapping[str, Value | None]) -> bytes:
    """Attributes of a span; those that are None are left out."""
    return b"".join([_attribute(name, value) for name, value in told.items() if value is not None])


def encode(*parts: bytes, end_ns: int, failed: bool = False) -> bytes:
    """An ExportTraceServiceRequest that holds the one span of these parts. Several, one after the other, are
    a request too.
    """
    span = b"".join((*parts, b"\x41", _FIXED64.pack(end_ns), _ERROR if failed else b""))
    inner = b"\x12" + _varint(len(span))
    scope_size = len(_SCOPE) + len(inner) + len(span)
    outer = b"\x12" + _varint(scope_size)
    return b"".join((b"\x0a", _varint(len(outer) + scope_size), outer, _SCOPE, inner, span))


def _attribute(name: str, value: Value) -> bytes:
    if isinstance(value, str):
        if len(value) <= _OFTEN_CHARACTERS:
            return _often(name, value)
        return _whole(name, _field(b"\x0a", value.encode("utf-8", "replace")))
    if isinstance(value, bool):
        return _whole(name, b"\x10\x01" if value else b"\x10\x00")
    if isinstance(value, int):
        return _whole(name, b"\x18" + _varint(value & 0xFFFF_FFFF_FFFF_FFFF))
    return _whole(name, b"\x21" + _DOUBLE.pack(value))


@lru_cache(maxsize=4096)
def _often(name: str, value: str) -> bytes:
    """Short texts of a call are mostly those of the call before."""
    return _whole(name, _field(b"\x0a", value.encode("utf-8", "replace")))


def _whole(name: str, value: bytes) -> bytes:
    """An attribute of this encoded value."""
    return _before(name, len(value)) + value


@lru_cache(maxsize=4096)
def _before(name: str, value_bytes: int) -> bytes:
    """What comes before a value of so many bytes: they are much the same with every call."""
    known = _field(b"\x0a", name.encode()) + b"\x12" + _varint(value_bytes)
    return b"\x4a" + _varint(len(known) + value_bytes) + known


def _field(tag: bytes, body: bytes) -> bytes:
    return tag + _varint(len(body)) + body


def _varint(number: int) -> bytes:
    if number < 128:
        return _SMALL[number]
    if number < 16384:
        return _SMALL[number & 127 | 128] + _SMALL[number >> 7]
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    digits.append(number)
    return bytes(digits)


_SMALL: Final = [bytes((number,)) for number in range(256)]
_SCOPE: Final = _field(b"\x0a", _field(b"\x0a", SCOPE.encode()))
