"""Attribute values as columns: AnyValue messages to kinds, numbers and slices of text, and slices to
Polars strings.

Why: only here do bytes of a request become values, and only for attributes somebody asked for. Text
columns are Arrow string views over the batch's buffer: no text is copied, and a frame made of them keeps
that buffer alive, so frames are to be written away, not kept. What it refuses: bytes that are not UTF-8
(protobuf checks that on receipt) are replaced, never passed on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa

from .scan import FIXED64, LENGTH, VARINT, Buffer, Ints, Mask, Reals, fields, long_varints

NONE, TEXT, FLAG, INTEGER, REAL, OTHER = range(6)  # OTHER: bytes, arrays, maps

_KINDS: Final = {  # tag of the AnyValue field -> kind
    1 << 3 | LENGTH: TEXT,
    2 << 3 | VARINT: FLAG,
    3 << 3 | VARINT: INTEGER,
    4 << 3 | FIXED64: REAL,
    5 << 3 | LENGTH: OTHER,
    6 << 3 | LENGTH: OTHER,
    7 << 3 | LENGTH: OTHER,
}
_KIND_OF: Final = np.array([_KINDS.get(tag, NONE) for tag in range(128)], dtype=np.int64)
_U = np.uint64
_LOW_BYTES: Final = np.array([(1 << 8 * n) - 1 for n in range(8)] + [(1 << 64) - 1], dtype=np.uint64)


@dataclass(frozen=True, slots=True)
class Values:
    """n values: `kind`, `number` (flags as 0 and 1), `real`, and the slice `start` to `end` of text."""

    kind: Ints
    number: Ints
    real: Reals
    start: Ints
    end: Ints

    def __len__(self) -> int:
        return len(self.kind)


def read_values(buffer: Buffer, start: Ints, end: Ints) -> Values:
    """Reads AnyValue messages in the slices buffer[start:end]."""
    word = buffer.words[start]
    tag = (word & _U(0xFF)).astype(np.int64)
    second = ((word >> _U(8)) & _U(0xFF)).astype(np.int64)
    rest = end - start - 1
    payload = start + 1
    kind = np.where((tag < 0x80) & (rest >= 0), _KIND_OF[tag & 0x7F], NONE)
    text = (kind == TEXT) & (second < 0x80) & (second == rest - 1)
    payload[text] += 1
    plain = text | (kind == REAL) & (rest == 8) | (rest < 0)
    whole = np.flatnonzero((kind == INTEGER) | (kind == FLAG))
    plain[whole] = long_varints(buffer, payload[whole])[1] == rest[whole]
    last = end.copy()
    others = np.flatnonzero(~plain)
    if others.size:
        _read_others(buffer, others, kind, payload, last)
    return _valued(buffer, kind, payload, last)


def _read_others(buffer: Buffer, rows: Ints, kind: Ints, start: Ints, end: Ints) -> None:
    """Long text, arrays, maps, and messages that set several members (the last known one counts)."""
    listed = fields(buffer, start[rows] - 1, end[rows])
    kind[rows] = NONE
    known = np.flatnonzero(_KIND_OF[np.minimum(listed.tag, 127)] * (listed.tag < 128) != NONE)
    owner = rows[listed.message[known]]
    kind[owner] = _KIND_OF[listed.tag[known]]
    start[owner], end[owner] = listed.start[known], listed.end[known]


def _valued(buffer: Buffer, kind: Ints, start: Ints, end: Ints) -> Values:
    number = np.zeros(len(kind), dtype=np.int64)
    real = np.zeros(len(kind), dtype=np.float64)
    whole = np.flatnonzero((kind == INTEGER) | (kind == FLAG))
    number[whole] = long_varints(buffer, start[whole])[0].astype(np.int64)
    flags = np.flatnonzero(kind == FLAG)
    number[flags] = number[flags] != 0
    reals = np.flatnonzero(kind == REAL)
    real[reals] = buffer.words[start[reals]].view(np.float64)
    return Values(kind, number, real, start, end)


def text_array(buffer: Buffer, start: Ints, end: Ints, valid: Mask) -> pa.Array[Any]:
    """The slices as an Arrow string view array, NULL where not `valid`."""
    length = np.where(valid, end - start, 0)
    at = np.where(valid, start, 0)
    views = np.empty((len(at), 2), dtype=np.uint64)
    head = buffer.words[at] & _U(0xFFFFFFFF) & _LOW_BYTES[np.minimum(length, 4)]
    views[:, 0] = length.astype(np.uint64) | head << _U(32)
    inline = buffer.words[at + 4] & _LOW_BYTES[np.clip(length - 4, 0, 8)]
    views[:, 1] = np.where(length <= 12, inline, at.astype(np.uint64) << _U(32))
    bitmap = None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little").tobytes())
    buffers = [bitmap, pa.py_buffer(views.tobytes()), pa.py_buffer(buffer.data)]
    array = pa.Array.from_buffers(pa.string_view(), len(at), buffers)
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        texts = [
            buffer.cut(a, a + n).decode("utf-8", "replace")
            for a, n in zip(at.tolist(), length.tolist(), strict=True)
        ]
        array = pa.array(texts, type=pa.string_view(), mask=~valid)
    return array


def text_series(buffer: Buffer, start: Ints, end: Ints, valid: Mask) -> pl.Series:
    """`text_array` as a Polars series."""
    series = pl.from_arrow(text_array(buffer, start, end, valid))
    assert isinstance(series, pl.Series)
    return series
