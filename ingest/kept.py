"""What is kept of a record for later: one small protobuf message per observation, made in columns.

Why: a dialect that has become better must be able to read history again, and a list of structs costs the
ledger five times what a blob costs. The message is laid out like this, so that `reobserve` can scan it
with the code that scans requests:

  1  KeyValue, repeated   the record's allow-listed attributes, cleaned, as they were sent
  2  KeyValue, repeated   those of its resource
  3  fixed64              its first time, ns (span: start; log: its own time), 0 if absent
  4  fixed64              its second time, ns (span: end; log: observed time), 0 if absent
  5  varint               span: status code; log: severity number

What it refuses: anything that is not in `Told`. A KeyValue is copied only if its bytes are exactly the
key and the value that were read; others (several values in one, unknown fields) are written anew.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from .anyvalue import FLAG, INTEGER, REAL, TEXT
from .scan import FIXED64, LENGTH, VARINT, Buffer, Ints, Mask, Words
from .texts import views_of
from .told import Told

RECORD, RESOURCE, FIRST, LATE, STATUS = 1, 2, 3, 4, 5  # field numbers
_U = np.uint64
_PAYLOADS: Final = {TEXT: "string_value", FLAG: "bool_value", INTEGER: "int_value", REAL: "double_value"}


def exact(told: Told) -> Mask:
    """Which attributes' messages hold the key and the value that were read, and nothing else."""
    values, text = told.values, told.values.kind == TEXT
    value_start = values.start - 1 - np.where(text, _varint_size(values.end - values.start), 0)
    size = values.end - value_start
    found: Mask = told.key_start == told.pair_start + 1 + _varint_size(told.key_end - told.key_start)
    found &= value_start == told.key_end + 1 + _varint_size(size)
    found &= told.pair_end == values.end
    return found


def _varint_size(length: Ints) -> Ints:
    return 1 + (length >= 1 << 7).astype(np.int64) + (length >= 1 << 14) + (length >= 1 << 21)


def spelled(buffer: Buffer, told: Told, rows: Ints, texts: dict[int, str]) -> tuple[Buffer, Told]:
    """Writes the messages of some attributes anew, at the end of the buffer; `texts`: row -> its new text."""
    if not rows.size:
        return buffer, told
    messages = [_message(buffer, told, row, texts.get(row)) for row in rows.tolist()]
    end = buffer.size + np.cumsum([len(message) for message in messages])
    start = np.concatenate([[buffer.size], end[:-1]])
    longer = Buffer.of([buffer.data[: buffer.size], *messages])
    pair_start, pair_end = told.pair_start.copy(), told.pair_end.copy()
    pair_start[rows], pair_end[rows] = start, end
    told = replace(told, pair_start=pair_start, pair_end=pair_end)
    return longer, _with_texts(longer, told, np.array(sorted(texts), dtype=np.int64), texts)


def _with_texts(buffer: Buffer, told: Told, rows: Ints, texts: dict[int, str]) -> Told:
    length = np.array([len(texts[row].encode()) for row in rows.tolist()], dtype=np.int64)
    kind, first, last = told.values.kind.copy(), told.values.start.copy(), told.values.end.copy()
    kind[rows], last[rows] = TEXT, told.pair_end[rows]  # a message ends with its text
    first[rows] = last[rows] - length
    views = told.views.copy()
    views[rows] = views_of(buffer, first[rows], last[rows])
    return replace(told, values=replace(told.values, kind=kind, start=first, end=last), views=views)


def _message(buffer: Buffer, told: Told, row: int, text: str | None) -> bytes:
    key = buffer.cut(int(told.key_start[row]), int(told.key_end[row])).decode("utf-8", "replace")
    return key_value(key, _payload(buffer, told, row) if text is None else text)


def _payload(buffer: Buffer, told: Told, row: int) -> str | bool | int | float:
    values, kind = told.values, int(told.values.kind[row])
    if kind == TEXT:
        return buffer.cut(int(values.start[row]), int(values.end[row])).decode("utf-8", "replace")
    if kind == REAL:
        return float(values.real[row])
    return bool(values.number[row]) if kind == FLAG else int(values.number[row])


def key_value(key: str, value: str | bool | int | float) -> bytes:
    """A KeyValue message; its value's text, if it is one, is its end."""
    kind = (
        FLAG if isinstance(value, bool) else INTEGER if isinstance(value, int)
        else REAL if isinstance(value, float) else TEXT
    )  # fmt: skip
    return KeyValue(key=key, value=AnyValue(**{_PAYLOADS[kind]: value})).SerializeToString()  # type: ignore[arg-type]


def packed(
    buffer: Buffer, told: Told, take: Ints, *, own: Mask, rows: Ints, first: Words, late: Words, status: Ints
) -> pl.Series:
    """The messages of n records, as Binary.

    `take`: the attributes (indices into `told`) record by record; `own`: which are the record's; `rows`
    int64[n + 1]: where each record's begin in `take`; `first`, `late` (ns), `status`: per record.
    """
    count = len(rows) - 1
    views = np.empty((2 * count + 2 * len(take), 2), dtype=np.uint64)
    at = 2 * (np.arange(count) + rows[:-1])
    views[at], views[at + 1] = _times(first, late, status)
    place = 2 * (np.repeat(np.arange(count), np.diff(rows)) + 1 + np.arange(len(take)))
    start, end = told.pair_start[take], told.pair_end[take]
    views[place] = _headers(own, end - start)
    views[place + 1] = views_of(buffer, start, end)
    return _joined(buffer, views, np.append(at, len(views)))


def _times(first: Words, late: Words, status: Ints) -> tuple[Words, Words]:
    """Fields 3, and 4 and 5, as views of 9 and 11 bytes."""
    tags = [_U(FIRST << 3 | FIXED64), _U(LATE << 3 | FIXED64)]
    small = np.clip(status, 0, 127).astype(np.uint64)
    parts = []
    for size, tag, word in zip((_U(9), _U(11)), tags, (first, late), strict=True):
        head = size | tag << _U(32) | (word & _U(0xFFFFFF)) << _U(40)
        parts.append(np.stack([head, word >> _U(24)], axis=1))
    parts[1][:, 1] |= _U(STATUS << 3 | VARINT) << _U(40) | small << _U(48)
    return parts[0], parts[1]


def _headers(own: Mask, size: Ints) -> Words:
    """Tag and length of fields 1 and 2, as views."""
    views = np.zeros((len(size), 2), dtype=np.uint64)
    views[:, 0] = _HEADERS[np.where(own, 0, _SIZES) + size]
    return views


def _header(field: int, size: int) -> int:
    """Tag and length of a field, as the first word of a view of 2 or 3 bytes."""
    length = bytes((size,)) if size < 0x80 else bytes((size & 0x7F | 0x80, size >> 7))
    head = bytes((field << 3 | LENGTH,)) + length
    return len(head) | int.from_bytes(head, "little") << 32


_SIZES: Final = 4096  # no attribute that is kept has more bytes: its key and its text have limits
_HEADERS: Final = np.array(
    [_header(f, n) for f in (RECORD, RESOURCE) for n in range(_SIZES)], dtype=np.uint64
)


def _joined(buffer: Buffer, views: Words, bounds: Ints) -> pl.Series:
    """One binary value of all the views between two bounds: laid end to end, only offsets are thinned."""
    buffers = [None, pa.py_buffer(np.ascontiguousarray(views).data), pa.py_buffer(buffer.data)]
    pieces = pa.Array.from_buffers(pa.binary_view(), len(views), buffers).cast(pa.large_binary())
    _, offsets, data = pieces.buffers()
    ends = (
        np.frombuffer(memoryview(offsets), dtype=np.int64)[bounds]
        if offsets is not None
        else np.zeros(1, np.int64)
    )
    whole = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(bounds) - 1, [None, pa.py_buffer(ends.tobytes()), data]
    )
    series = pl.from_arrow(whole)
    assert isinstance(series, pl.Series)
    return series
