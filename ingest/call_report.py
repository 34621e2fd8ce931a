"""The door for who carries model calls himself: one call becomes one OTLP span in the journal.

The proxy is an emitter like any other, so what it saw takes the way of all telemetry and fuses with what the
agent tells. Written by hand, since it stands in the way of the end of every answer: the generated classes
cost four times as much. It knows nothing of what the attributes mean (`dialects/tollbook-proxy.toml` does).
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from time import time_ns
from typing import Final

from .journal import Journal, Kind

__all__ = ["SCOPE", "CallSpan", "encode", "journal_call", "new_span_id", "new_trace_id"]

SCOPE: Final = "tollbook.proxy"
Value = str | int | float | bool

_CLIENT: Final = b"\x30\x03"  # kind: the client's side of a call
_ERROR: Final = b"\x7a\x02\x18\x02"  # status { code: ERROR }
_FIXED64: Final = struct.Struct("<Q")
_DOUBLE: Final = struct.Struct("<d")


@dataclass(slots=True)
class CallSpan:
    """One attempt to have a model called. Ids as in OTLP (16, 8 and 8 bytes), times in Unix nanoseconds."""

    trace_id: bytes
    span_id: bytes
    parent_span_id: bytes | None
    name: str
    start_ns: int
    end_ns: int
    failed: bool = False
    attributes: Mapping[str, Value | None] = field(default_factory=dict)


def new_trace_id() -> bytes:
    """A random trace id."""
    return os.urandom(16)


def new_span_id() -> bytes:
    """A random span id."""
    return os.urandom(8)


def journal_call(journal: Journal, body: bytes) -> asyncio.Future[int]:
    """Hand an encoded span to the journal; the position after it once it is on disk, or a JournalError."""
    return journal.submit(Kind.TRACES_PROTO, body, received_at_ns=time_ns())


def encode(span: CallSpan) -> bytes:
    """An ExportTraceServiceRequest that holds the span; attributes that are None are left out."""
    parts = [
        _field(b"\x0a", span.trace_id),
        _field(b"\x12", span.span_id),
        _field(b"\x22", span.parent_span_id) if span.parent_span_id else b"",
        _field(b"\x2a", span.name.encode()),
        _CLIENT,
        b"\x39" + _FIXED64.pack(span.start_ns),
        b"\x41" + _FIXED64.pack(span.end_ns),
        *[_attribute(name, value) for name, value in span.attributes.items() if value is not None],
        _ERROR if span.failed else b"",
    ]
    spans = _scope() + _field(b"\x12", b"".join(parts))
    return _field(b"\x0a", _field(b"\x12", spans))


@lru_cache(maxsize=1)
def _scope() -> bytes:
    return _field(b"\x0a", _field(b"\x0a", SCOPE.encode()))


@lru_cache(maxsize=4096, typed=True)
def _attribute(name: str, value: Value) -> bytes:
    """Most attributes of a call are those of the call before."""
    return _field(b"\x4a", _field(b"\x0a", name.encode()) + _field(b"\x12", _value(value)))


def _value(value: Value) -> bytes:
    if isinstance(value, str):
        return _field(b"\x0a", value.encode("utf-8", "replace"))
    if isinstance(value, bool):
        return b"\x10\x01" if value else b"\x10\x00"
    if isinstance(value, int):
        return b"\x18" + _varint(value & 0xFFFF_FFFF_FFFF_FFFF)
    return b"\x21" + _DOUBLE.pack(value)


def _field(tag: bytes, body: bytes) -> bytes:
    return tag + _varint(len(body)) + body


def _varint(number: int) -> bytes:
    if number < 128:
        return _SMALL[number]
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    digits.append(number)
    return bytes(digits)


_SMALL: Final = [bytes((number,)) for number in range(128)]
