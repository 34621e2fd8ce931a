"""Slices of a buffer as Polars strings, and known strings found among them.

Why: text is never copied out of a batch. A text column is an array of Arrow string views (length, prefix,
place) over the batch's buffer, built with a few numpy operations; Polars then does what strings need
(look-up among known words, telling distinct ones apart) at native speed. A frame made of such columns
keeps the whole buffer alive: write it away, do not keep it.

What it refuses: to check UTF-8 everywhere. protobuf checks it on receipt; `checked_series` and `is_text`
check again where text is about to be kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa

from .scan import Buffer, Ints, Mask, Words

UNKNOWN: Final = -1
_NO_TEXTS: Final = pl.Series(dtype=pl.String)  # most batches hold one signal only
_INLINE: Final = 12  # bytes that fit into a view
_U = np.uint64
_LOW_BYTES: Final = np.array([(1 << 8 * n) - 1 for n in range(9)], dtype=np.uint64)


class Vocabulary:
    """Known strings with ids 0 to n-1, in the order given."""

    def __init__(self, strings: Iterable[str]) -> None:
        self.strings: Final = tuple(dict.fromkeys(strings))
        self.ids: Final = {text: i for i, text in enumerate(self.strings)}
        self._enum = pl.Enum(self.strings)

    def __len__(self) -> int:
        return len(self.strings)

    def find(self, buffer: Buffer, start: Ints, end: Ints) -> Ints:
        """Ids of the strings in the slices buffer[start:end], UNKNOWN where there is none: int64[n]."""
        if not len(start):
            return np.empty(0, dtype=np.int64)
        found = text_series(buffer, start, end).cast(self._enum, strict=False).to_physical()
        return found.cast(pl.Int64).fill_null(UNKNOWN).to_numpy()


def distinct(buffer: Buffer, start: Ints, end: Ints, *, longest: int = 256) -> tuple[Ints, list[str]]:
    """Tells texts apart by their first bytes: (index of each slice's text, the different texts)."""
    texts = checked_series(buffer, start, np.minimum(end, start + longest))
    different = texts.unique(maintain_order=True)
    index = texts.cast(pl.Enum(different)).to_physical().cast(pl.Int64).to_numpy()
    return index, different.to_list()


def text_series(buffer: Buffer, start: Ints, end: Ints) -> pl.Series:
    """The slices as strings. They must be known to be UTF-8 before they are printed or kept."""
    return as_series(text_array(buffer, start, end)) if len(start) else _NO_TEXTS


def checked_series(buffer: Buffer, start: Ints, end: Ints) -> pl.Series:
    """The slices as strings; bytes that are not UTF-8 are replaced."""
    if not len(start):
        return _NO_TEXTS
    array = text_array(buffer, start, end)
    if not is_text(array):
        cuts = (buffer.cut(*pair) for pair in zip(start.tolist(), end.tolist(), strict=True))
        return pl.Series([cut.decode("utf-8", "replace") for cut in cuts], dtype=pl.String)
    return as_series(array)


def is_text(array: pa.Array[Any]) -> bool:
    """Whether all strings of an array are UTF-8."""
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def text_array(buffer: Buffer, start: Ints, end: Ints) -> pa.Array[Any]:
    """The slices as an Arrow string view array."""
    return array_of(buffer, views_of(buffer, start, end))


def views_of(buffer: Buffer, start: Ints, end: Ints) -> Words:
    """Arrow string views of slices, uint64[n, 2]: length and first bytes, then more bytes or the place."""
    length = end - start
    views = np.empty((len(start), 2), dtype=np.uint64)
    views[:, 0] = buffer.words[start] << _U(32) | length.astype(np.uint64)
    views[:, 1] = start.astype(np.uint64) << _U(32)
    short = np.flatnonzero(length <= _INLINE)
    size = length[short]
    views[short, 1] = buffer.words[start[short] + 4] & _LOW_BYTES[np.maximum(size - 4, 0)]
    tiny = short[size < 4]
    views[tiny, 0] &= _LOW_BYTES[4 + length[tiny]]
    return views


def array_of(buffer: Buffer, views: Words, valid: Mask | None = None) -> pa.Array[Any]:
    """Views as an Arrow array, NULL where not `valid`."""
    bitmap = None
    if valid is not None and not valid.all():
        bitmap = pa.py_buffer(np.packbits(valid, bitorder="little").tobytes())
    buffers = [bitmap, pa.py_buffer(views.data), pa.py_buffer(buffer.data)]
    return pa.Array.from_buffers(pa.string_view(), len(views), buffers)


def as_series(array: pa.Array[Any]) -> pl.Series:
    """An Arrow array as a Polars series, not copied."""
    series = pl.from_arrow(array)
    assert isinstance(series, pl.Series)
    return series
