"""What makes a record recognisable when it comes again: 128-bit identities, computed in columns.

Why: OTLP is at-least-once. A span is its trace id and span id. A log record is the whole of what it
says: resource attributes, scope (name, version, attributes), times, severity, trace context, event name,
body and attributes; so it does not depend on the order of attributes, on the requests it is sent in, on
JSON or protobuf, or on when it arrives. Two records that agree in all of that are the same record.

The function is part of the stored data: **changing any bit of it makes all history look new**. Tests pin
its values.

  mix(x)        splitmix64's finaliser
  bytes         h = mix(seed ^ length); then for each little-endian word, the last one padded with zeros:
                h ^= word; h = (h ^ h >> 32) * factor. Of more than 256 bytes: the words of their 16-byte
                BLAKE2b digest, with the length of the whole
  value         the bytes of its deterministic protobuf encoding
  attributes    sum of mix(bytes(key) ^ bytes(value) * factor) over all pairs: their order does not matter
  record        h = mix(seed ^ 1) of spans, mix(seed ^ 2) of logs; then h = mix(h ^ part) for each part
  data point    the same with 4, of its stream (the same with 3), start and time

Everything is done twice, with a seed and a factor for each half. It is not a cryptographic hash: who can
write to the ledger could as well leave a record out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Final

import numpy as np
import polars as pl
from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from .anyvalue import FLAG, INTEGER, NONE, REAL, TEXT
from .otlp_columns import Attributes, Columns
from .scan import Buffer, Ints, Mask, Words
from .texts import UNKNOWN, Vocabulary

SEEDS: Final = (np.uint64(0x746F6C6C626F6F6B), np.uint64(0x9E3779B97F4A7C15))
FACTORS: Final = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_LONG = 256
_U = np.uint64
_M1, _M2 = FACTORS
_LOW_BYTES: Final = np.array([(1 << 8 * n) - 1 for n in range(8)] + [(1 << 64) - 1], dtype=np.uint64)


def mix(x: Words) -> Words:
    """splitmix64's finaliser."""
    x = (x ^ (x >> _U(30))) * _M1
    x = (x ^ (x >> _U(27))) * _M2
    return x ^ (x >> _U(31))


def span_identity(trace_hi: Words, trace_lo: Words, span_id: Words) -> tuple[Words, Words]:
    """Identities of spans (high and low half)."""
    high, low = (_chain(seed, 1, (trace_hi, trace_lo, span_id)) for seed in SEEDS)
    return high, low


def log_identity(columns: Columns, rows: Ints, vocabulary: Vocabulary) -> tuple[Words, Words]:
    """Identities of the log records `rows` (high and low half)."""
    records, buffer = columns.records, columns.buffer
    scope, resource = records.scope[rows], records.resource[rows]
    slices = [
        _hash_slices(buffer, columns.scopes.name_start[scope], columns.scopes.name_end[scope]),
        _hash_slices(buffer, columns.scopes.version_start[scope], columns.scopes.version_end[scope]),
        _hash_slices(buffer, records.note_start[rows], records.note_end[rows]),
        _hash_slices(buffer, records.name_start[rows], records.name_end[rows]),
    ]
    content = _hash_values(buffer, records.content_start[rows], records.content_end[rows])
    sums = [
        _hash_attributes(buffer, columns.resource_attributes, resource, vocabulary),
        _hash_attributes(buffer, columns.scope_attributes, scope, vocabulary),
        _hash_attributes(buffer, columns.attributes, rows, vocabulary),
    ]
    words = (
        records.time_ns[rows],
        records.late_ns[rows],
        records.status[rows].astype(np.uint64),
        records.trace_hi[rows],
        records.trace_lo[rows],
        records.span_id[rows],
    )
    high, low = (
        _chain(seed, 2, [*(s[k] for s in sums), *(s[k] for s in slices), content[k], *words])
        for k, seed in enumerate(SEEDS)
    )
    return high, low


def stream_identity(columns: Columns, rows: Ints, vocabulary: Vocabulary) -> tuple[Words, Words]:
    """Identities of the data points' (`rows`) streams: resource, scope, metric and attributes."""
    records, buffer = columns.records, columns.buffer
    scope, resource = records.scope[rows], records.resource[rows]
    parts = [
        _hash_attributes(buffer, columns.resource_attributes, resource, vocabulary),
        _hash_attributes(buffer, columns.scope_attributes, scope, vocabulary),
        _hash_attributes(buffer, columns.attributes, rows, vocabulary),
        _hash_slices(buffer, columns.scopes.name_start[scope], columns.scopes.name_end[scope]),
        _hash_slices(buffer, columns.scopes.version_start[scope], columns.scopes.version_end[scope]),
        _hash_slices(buffer, records.name_start[rows], records.name_end[rows]),
    ]
    high, low = (_chain(seed, 3, [part[k] for part in parts]) for k, seed in enumerate(SEEDS))
    return high, low


def point_identity(stream: tuple[Words, Words], start_ns: Words, time_ns: Words) -> tuple[Words, Words]:
    """Identities of data points: their streams, starts and times."""
    high, low = (_chain(seed, 4, (*stream, start_ns, time_ns)) for seed in SEEDS)
    return high, low


def text_keys(texts: pl.Series) -> pl.Series:
    """The first halves of the hashes of texts: UInt64, NULL for NULL."""
    told = texts.drop_nulls().rechunk()
    if told.is_empty():
        return pl.Series(texts.name, [None], dtype=pl.UInt64).new_from_index(0, len(texts))
    array = told.to_arrow(compat_level=pl.CompatLevel.oldest())
    _, offsets, data = (memoryview(part) if part else b"" for part in array.buffers())
    bounds = np.frombuffer(offsets, dtype=np.int64)[array.offset :][: len(told) + 1]
    keys, _ = _hash_slices(Buffer.of([data]), bounds[:-1], bounds[1:])
    known = texts.is_not_null()
    found = np.zeros(len(texts), dtype=np.uint64)
    found[known.to_numpy()] = keys
    return pl.select(pl.when(known).then(pl.Series(found))).to_series().alias(texts.name)


def _chain(seed: np.uint64, kind: int, parts: Sequence[Words]) -> Words:
    state = np.full(len(parts[0]), seed ^ _U(kind), dtype=np.uint64)
    state = mix(state)
    for part in parts:
        state = mix(state ^ part)
    return state


def _hash_slices(buffer: Buffer, start: Ints, end: Ints) -> tuple[Words, Words]:
    """Hashes the bytes of slices."""
    length = end - start
    long = np.flatnonzero(length > _LONG)
    if not long.size:
        return _hash_words(buffer, start, length, size=length)
    cuts = (buffer.cut(a, b) for a, b in _pairs(start[long], end[long]))
    digests = Buffer.of(blake2b(cut, digest_size=16).digest() for cut in cuts)
    high, low = _hash_words(buffer, start, np.where(length > _LONG, 0, length), size=length)
    sixteen = np.full(len(long), 16)
    high[long], low[long] = _hash_words(digests, np.cumsum(sixteen) - 16, sixteen, size=length[long])
    return high, low


def _pairs(start: Ints, end: Ints) -> Iterable[tuple[int, int]]:
    return zip(start.tolist(), end.tolist(), strict=True)


def _hash_words(buffer: Buffer, start: Ints, length: Ints, *, size: Ints) -> tuple[Words, Words]:
    """Hashes `length` bytes per slice; `size` is the length that goes into the hash.

    The longest slices come first, so that those with a further word are always the first ones.
    """
    whole = length >> 3
    order = np.argsort(_LONG - whole, kind="stable")
    at, states = start[order], [mix(seed ^ size[order].astype(np.uint64)) for seed in SEEDS]
    for count in np.cumsum(np.bincount(whole, minlength=1)[::-1])[::-1][1:].tolist():
        word = buffer.words[at[:count]]
        at[:count] += 8
        for state, factor in zip(states, FACTORS, strict=True):
            state[:count] = _turned(state[:count], word, factor)
    rest = length[order] & 7
    some = rest > 0
    word = buffer.words[at] & _LOW_BYTES[rest]
    hashes = []
    for state, factor in zip(states, FACTORS, strict=True):
        hashed = np.empty_like(state)
        hashed[order] = np.where(some, _turned(state, word, factor), state)
        hashes.append(hashed)
    return hashes[0], hashes[1]


def _turned(state: Words, word: Words, factor: np.uint64) -> Words:
    state = state ^ word
    turned: Words = (state ^ (state >> _U(32))) * factor
    return turned


def _hash_values(buffer: Buffer, start: Ints, end: Ints) -> tuple[Words, Words]:
    """Hashes AnyValue messages by their deterministic encoding."""
    high, low = _hash_slices(buffer, start, end)
    other = np.flatnonzero(~_is_deterministic(buffer, start, end))
    if other.size:
        cuts = (buffer.cut(a, b) for a, b in _pairs(start[other], end[other]))
        high[other], low[other] = _hash_encoded(_deterministic(cut) for cut in cuts)
    return high, low


def _is_deterministic(buffer: Buffer, start: Ints, end: Ints) -> Mask:
    """Messages that can only be written as they are: nothing, short text, flags, doubles, common integers."""
    word, size = buffer.words[start], end - start
    tag = (word & _U(0xFF)).astype(np.int64)
    second = ((word >> _U(8)) & _U(0xFF)).astype(np.int64)
    continued = _CONTINUED[np.clip(size - 2, 0, 7)]
    stops = ((word >> _U(8)) & _CONTINUED[7]) == continued
    last = buffer.raw[np.maximum(end - 1, 0)]
    integer = (size >= 2) & (size <= 8) & stops & ((last > 0) | (size == 2))
    kind = np.where(tag < 64, _SIMPLE[tag & 63], NONE)
    fits: Mask = (kind == TEXT) & (second < 0x80) & (second == size - 2)
    fits |= (kind == FLAG) & (size == 2) & (second < 2)
    fits |= (kind == INTEGER) & integer | (kind == REAL) & (size == 9) | (size == 0)
    return fits


# By tag (field number << 3 | wire type); and seven varint bytes of which the first n go on.
_SIMPLE: Final = np.zeros(64, dtype=np.int64)
_SIMPLE[[1 << 3 | 2, 2 << 3, 3 << 3, 4 << 3 | 1]] = (TEXT, FLAG, INTEGER, REAL)
_CONTINUED: Final = np.array([sum(0x80 << 8 * k for k in range(n)) for n in range(8)], dtype=np.uint64)


def _hash_encoded(texts: Iterable[bytes]) -> tuple[Words, Words]:
    listed = list(texts)
    end = np.cumsum([len(text) for text in listed])
    start = end - np.array([len(text) for text in listed])
    return _hash_slices(Buffer.of(listed), start, end)


def _deterministic(message: bytes) -> bytes:
    """The encoding of an AnyValue that every sender's encoding of it comes to."""
    value = AnyValue()
    try:
        value.ParseFromString(message)
    except DecodeError:
        return message
    value.DiscardUnknownFields()
    return value.SerializeToString(deterministic=True)


def _hash_attributes(
    buffer: Buffer, attributes: Attributes, owners: Ints, vocabulary: Vocabulary
) -> tuple[Words, Words]:
    """Per owner, the sum of its attributes' hashes (owners may repeat)."""
    if not len(owners):
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.uint64)
    wanted = np.zeros(max(int(owners.max()), int(attributes.owner.max(initial=0))) + 1, dtype=np.bool_)
    wanted[owners] = True
    rows = np.flatnonzero(wanted[attributes.owner])
    keys = _hash_keys(buffer, attributes, rows, vocabulary)
    values = _hash_values(buffer, attributes.start[rows], attributes.end[rows])
    first, last = (np.searchsorted(attributes.owner[rows], owners, side=side) for side in ("left", "right"))
    sums = []
    for key, value, factor in zip(keys, values, FACTORS, strict=True):
        total = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(mix(key ^ value * factor))])
        sums.append(total[last] - total[first])
    return sums[0], sums[1]


def _hash_keys(
    buffer: Buffer, attributes: Attributes, rows: Ints, vocabulary: Vocabulary
) -> tuple[Words, Words]:
    """Hashes the keys of attributes; those of known ones are looked up."""
    key = attributes.key[rows]
    high, low = (hashes[key] for hashes in _known_keys(vocabulary))
    other = np.flatnonzero(key == UNKNOWN)
    at = rows[other]
    high[other], low[other] = _hash_slices(buffer, attributes.key_start[at], attributes.key_end[at])
    return high, low


@lru_cache(maxsize=4)
def _known_keys(vocabulary: Vocabulary) -> tuple[Words, Words]:
    return _hash_encoded(text.encode() for text in vocabulary.strings)
