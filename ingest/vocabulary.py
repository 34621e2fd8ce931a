"""Finds known strings among many slices of a buffer at once: attribute keys, operation names, scopes.

Why: an OTLP batch repeats a few hundred keys a million times. Each slice is hashed by four of its words,
looked up in a table without collisions, and then compared word by word with the string found there, so
that an answer is exact: no unknown key can pass for a known one, whatever it is made of. It refuses
nothing and learns nothing: the strings are fixed when it is made.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from .scan import Buffer, Ints, Words

UNKNOWN = -1

_TABLE_BITS = 17
_TRIES = 50
_TOLD_APART = 256  # bytes; what `distinct` looks at (and keeps) of longer texts
_U = np.uint64
_LOW_BYTES = np.array([(1 << 8 * n) - 1 for n in range(8)] + [(1 << 64) - 1], dtype=np.uint64)


class Vocabulary:
    """Known strings with ids 0..n-1 in the order given."""

    def __init__(self, strings: Iterable[str]) -> None:
        self.strings: tuple[str, ...] = tuple(dict.fromkeys(strings))
        self.ids: dict[str, int] = {text: i for i, text in enumerate(self.strings)}
        encoded = [text.encode() for text in self.strings]
        self._length = np.array([len(text) for text in encoded], dtype=np.int64)
        self._start = np.cumsum(self._length + 8) - self._length - 8
        self._buffer = Buffer.of([text + bytes(8) for text in encoded])
        self._longest = int(self._length.max(initial=0))
        self._eighths, self._factors, self._table = _perfect(self._buffer, self._start, self._length)
        self._samples = _sample(self._buffer, self._start, self._length, self._eighths)

    def __len__(self) -> int:
        return len(self.strings)

    def find(self, buffer: Buffer, start: Ints, end: Ints) -> Ints:
        """Ids of the strings in the slices buffer[start:end], `UNKNOWN` where there is none: int64[n]."""
        length = end - start
        samples = _sample(buffer, start, length, self._eighths)
        found = self._table[_slot(samples, length, self._factors)].astype(np.int64)
        same = (found >= 0) & (self._length[found] == length)
        for ours, theirs in zip(self._samples, samples, strict=True):
            same &= ours[found] == theirs
        found[~same] = UNKNOWN
        return self._compare_between(buffer, start, length, found)

    def _compare_between(self, buffer: Buffer, start: Ints, length: Ints, found: Ints) -> Ints:
        """Refutes finds of more than two words whose words in between differ."""
        rows = np.flatnonzero((found >= 0) & (length > 16))
        for at in range(8, self._longest - 8, 8):
            rows = rows[length[rows] > at + 8]
            if not rows.size:
                break
            differs = buffer.words[start[rows] + at] != self._buffer.words[self._start[found[rows]] + at]
            found[rows[differs]] = UNKNOWN
            rows = rows[~differs]
        return found


def _sample(buffer: Buffer, start: Ints, length: Ints, eighths: int) -> tuple[Words, Words, Words]:
    """The first word of each slice, one in between and the last (of less than 8 bytes: what there is,
    three times).
    """
    mask = _LOW_BYTES[np.minimum(length, 8)]
    back = np.maximum(length - 8, 0)
    words = buffer.words
    return words[start] & mask, words[start + (back * eighths >> 3)] & mask, words[start + back] & mask


def _slot(samples: tuple[Words, Words, Words], length: Ints, factors: Words) -> Ints:
    first, middle, last = samples
    mixed = (
        first * factors[0] ^ middle * factors[1] ^ last * factors[2] ^ length.astype(np.uint64) * factors[3]
    )
    mixed ^= mixed >> _U(32)
    slot: Ints = ((mixed * factors[0]) >> _U(64 - _TABLE_BITS)).astype(np.int64)
    return slot


def _perfect(buffer: Buffer, start: Ints, length: Ints) -> tuple[int, Words, npt.NDArray[np.int16]]:
    """Where to sample, and factors, so that no two strings share a slot; and the table from slot to id."""
    rng = np.random.default_rng(17)
    for eighths in (5, 4, 6, 3, 2):
        samples = _sample(buffer, start, length, eighths)
        for _ in range(_TRIES):
            factors = rng.integers(0, 1 << 63, size=4, dtype=np.uint64) << _U(1) | _U(1)
            slots = _slot(samples, length, factors)
            if len(np.unique(slots)) == len(slots):
                table = np.full(1 << _TABLE_BITS, UNKNOWN, dtype=np.int16)
                table[slots] = np.arange(len(slots))
                return eighths, factors, table
    raise ValueError("two strings of the vocabulary agree in every place that is looked at")


def distinct(buffer: Buffer, start: Ints, end: Ints) -> tuple[Ints, list[str]]:
    """Numbers the different texts among slices: (index of each slice's text, the texts).

    Slices are told apart by their words, so this costs what a sort costs, and only one slice of each
    text is decoded.
    """
    length = np.minimum(end - start, _TOLD_APART)
    columns = [length, *_words_of(buffer, start, length)]
    order = np.lexsort(columns[::-1])
    changes = np.zeros(len(order), dtype=np.bool_)
    changes[:1] = True
    for column in columns:
        ordered = column[order]
        changes[1:] |= ordered[1:] != ordered[:-1]
    index = np.empty(len(order), dtype=np.int64)
    index[order] = np.cumsum(changes) - 1
    first = order[changes]
    slices = zip(start[first].tolist(), length[first].tolist(), strict=True)
    return index, [buffer.cut(at, at + size).decode("utf-8", "replace") for at, size in slices]


def _words_of(buffer: Buffer, start: Ints, length: Ints) -> list[Words]:
    words = []
    for at in range(0, int(length.max(initial=0)), 8):
        left = np.clip(length - at, 0, 8)
        words.append(buffer.words[start + np.minimum(at, length)] & _LOW_BYTES[left])
    return words
