"""Attribute values as columns: AnyValue messages to kinds, numbers and slices of text.

Why: only here do bytes of a request become values, and only for attributes somebody asked for. What it
refuses: arrays, maps and byte strings, of which only the kind is told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from .scan import FIXED64, LENGTH, VARINT, Buffer, Ints, Reals, fields, long_varints

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
    number = np.zeros(len(kind), dtype=np.int64)
    whole = np.flatnonzero((kind == INTEGER) | (kind == FLAG))
    value, length = long_varints(buffer, payload[whole])
    number[whole] = value.astype(np.int64)
    plain[whole] = length == rest[whole]
    last = end.copy()
    others = np.flatnonzero(~plain)
    if others.size:
        _read_others(buffer, others, kind, payload, last)
        whole = others[(kind[others] == INTEGER) | (kind[others] == FLAG)]
        number[whole] = long_varints(buffer, payload[whole])[0].astype(np.int64)
    flags = np.flatnonzero(kind == FLAG)
    number[flags] = number[flags] != 0
    real = np.zeros(len(kind), dtype=np.float64)
    reals = np.flatnonzero(kind == REAL)
    real[reals] = buffer.words[payload[reals]].view(np.float64)
    return Values(kind, number, real, payload, last)


def _read_others(buffer: Buffer, rows: Ints, kind: Ints, start: Ints, end: Ints) -> None:
    """Long text, arrays, maps, and messages that set several members (the last known one counts)."""
    listed = fields(buffer, start[rows] - 1, end[rows])
    kind[rows] = NONE
    known = np.flatnonzero(_KIND_OF[np.minimum(listed.tag, 127)] * (listed.tag < 128) != NONE)
    owner = rows[listed.message[known]]
    kind[owner] = _KIND_OF[listed.tag[known]]
    start[owner], end[owner] = listed.start[known], listed.end[known]
