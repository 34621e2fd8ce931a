"""Data points of metrics as records of their own: when, how much, and of what.

Why: some sources tell of tokens by metrics alone, and metrics tell what other records have missed. A point
has attributes, a scope and a resource like a span or a log record, so it is laid out as one and goes through
the same dialects; what it measures stands beside it. Only metrics that a dialect names are opened.

What it refuses: summaries, buckets, exemplars, and points without a time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from .decode import Decoded
from .otlp_columns import METRIC, Attributes, Records, attributes_of, joined
from .scan import FIXED64, LENGTH, VARINT, Buffer, Fields, Ints, Mask, Reals, Words, fields, long_varints
from .texts import UNKNOWN

GAUGE, DELTA, CUMULATIVE = 0, 1, 2
TEMPORALITIES: Final = ("gauge", "delta", "cumulative")


@dataclass(frozen=True, slots=True)
class _Shape:
    """A kind of metric: its field, and the fields of its points."""

    number: int
    attributes: int
    count: int | None


_SHAPES: Final = (_Shape(5, 7, None), _Shape(7, 7, None), _Shape(9, 9, 4), _Shape(10, 1, 4))
_POINTS, _TEMPORALITY, _START, _TIME = 1, 2, 2, 3  # of a metric's data; of a point (all kinds alike)
_DOUBLE, _INTEGER, _SUM = 4, 6, 5  # of a number point; of a histogram's


@dataclass(frozen=True, slots=True)
class Measures:
    """n points: `value` (of histograms the sum), `count` (-1: not a histogram's), `temporality` (index
    into TEMPORALITIES).
    """

    value: Reals
    count: Ints
    temporality: Ints


def points_of(decoded: Decoded) -> tuple[Decoded, Measures] | None:
    """The points of the metrics whose names dialects know, as a batch of records; None if there are none."""
    records, buffer = decoded.columns.records, decoded.columns.buffer
    metrics = np.flatnonzero(records.signal == METRIC)
    names = decoded.dialects.vocabulary.find(buffer, records.name_start[metrics], records.name_end[metrics])
    metrics = metrics[np.isin(names, sorted(decoded.dialects.metrics)) & (names != UNKNOWN)]
    if not metrics.size:
        return None
    listed = fields(buffer, records.content_start[metrics], records.content_end[metrics])
    parts = [_of_shape(decoded, metrics, listed, shape) for shape in _SHAPES]
    told: list[Attributes] = []
    first = 0
    for found, _, attributes in parts:
        told.append(replace(attributes, owner=attributes.owner + first))
        first += len(found)
    columns = replace(
        decoded.columns,
        records=joined(Records, [found for found, _, _ in parts]),
        attributes=joined(Attributes, told),
    )
    measures = [measured for _, measured, _ in parts]
    return replace(decoded, columns=columns), Measures(
        value=np.concatenate([part.value for part in measures]),
        count=np.concatenate([part.count for part in measures]),
        temporality=np.concatenate([part.temporality for part in measures]),
    )


def _of_shape(
    decoded: Decoded, metrics: Ints, listed: Fields, shape: _Shape
) -> tuple[Records, Measures, Attributes]:
    """The points of all metrics of one kind."""
    buffer = decoded.columns.buffer
    metric, rows = listed.last(shape.number, LENGTH)
    data = fields(buffer, listed.start[rows], listed.end[rows])
    temporality = np.zeros(len(rows), dtype=np.int64)
    which, at = data.last(_TEMPORALITY, VARINT)
    temporality[which] = np.clip(long_varints(buffer, data.start[at])[0].astype(np.int64), 0, CUMULATIVE)
    points = data.rows(_POINTS, LENGTH)
    owner = data.message[points]
    inside = fields(buffer, data.start[points], data.end[points])
    timed = _words(buffer, inside, _TIME, count=len(points))
    value, told = _values(buffer, inside, shape, count=len(points))
    keep = told & (timed > 0) & ~inside.odd
    records = _records(decoded.columns.records, metrics[metric[owner]], buffer, inside, keep=keep)
    attributes, _ = attributes_of(buffer, inside, decoded.dialects.vocabulary, number=shape.attributes)
    return (
        records,
        Measures(value[keep], _counts(buffer, inside, shape, keep), temporality[owner][keep]),
        _kept(attributes, keep),
    )


def _records(records: Records, metric: Ints, buffer: Buffer, inside: Fields, *, keep: Mask) -> Records:
    of_metric = records.at(metric[keep])
    count = len(metric)
    return replace(
        of_metric,
        time_ns=_words(buffer, inside, _START, count=count)[keep],
        late_ns=_words(buffer, inside, _TIME, count=count)[keep],
    )


def _values(buffer: Buffer, inside: Fields, shape: _Shape, *, count: int) -> tuple[Reals, Mask]:
    """Value per point, and which have one."""
    value, told = np.zeros(count), np.zeros(count, dtype=np.bool_)
    numbers = (_SUM,) if shape.count else (_INTEGER, _DOUBLE)
    for number in numbers:
        point, rows = inside.last(number, FIXED64)
        words = buffer.words[inside.start[rows]]
        value[point] = words.view(np.int64) if number == _INTEGER else words.view(np.float64)
        told[point] = True
    return value, told


def _counts(buffer: Buffer, inside: Fields, shape: _Shape, keep: Mask) -> Ints:
    if shape.count is None:
        return np.full(int(keep.sum()), -1, dtype=np.int64)
    return _words(buffer, inside, shape.count, count=len(keep)).astype(np.int64)[keep]


def _words(buffer: Buffer, inside: Fields, number: int, *, count: int) -> Words:
    column = np.zeros(count, dtype=np.uint64)
    message, rows = inside.last(number, FIXED64)
    column[message] = buffer.words[inside.start[rows]]
    return column


def _kept(attributes: Attributes, keep: Mask) -> Attributes:
    """The attributes of the points kept, which are numbered anew."""
    number = np.cumsum(keep) - 1
    kept = attributes.at(keep[attributes.owner])
    return replace(kept, owner=number[kept.owner])
