"""The levels of OTLP's message tree as columns: requests, resources, scopes, records, attributes.

Why: all three signals have the same shape (request, 1: resource holders, 2: scope holders, 2: records),
so one walk serves them for a whole batch. Field numbers are those of opentelemetry-proto; fields of a
wrong wire type are unknown fields, as in protobuf, and of a singular field set twice the last one
counts.

What it refuses: bodies it would read otherwise than protobuf does (see `scan`, and singular submessages
set twice, which protobuf merges) are marked in `Columns.odd`; what was read of them is not to be used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import fields as parts_of
from typing import Final, TypeVar

import numpy as np

from .scan import (
    FIXED64,
    LENGTH,
    VARINT,
    Buffer,
    Fields,
    Ints,
    Mask,
    TooManyFields,
    Words,
    fields,
    long_varints,
)
from .texts import Vocabulary

SPAN, LOG, METRIC = 0, 1, 2
SIGNALS: Final = ("span", "log", "metric")

_ATTRIBUTES_OF: Final = {SPAN: 9, LOG: 6, METRIC: 0}  # a metric's attributes are those of its points
_Part = TypeVar("_Part", "Attributes", "Records")


class CrowdedBody(Exception):
    """A batch has more fields than memory is meant for; `body`: the index of the body that has the most."""

    def __init__(self, body: int) -> None:
        super().__init__()
        self.body = body


@dataclass(frozen=True, slots=True)
class Attributes:
    """Key-value pairs in their owners' order.

    `owner`: index of the record (resource, scope); `key`: vocabulary id or UNKNOWN; `key_start`,
    `key_end`: the key's text; `start`, `end`: the AnyValue message (empty where there is none);
    `pair_start`, `pair_end`: the whole KeyValue message.
    """

    owner: Ints
    key: Ints
    key_start: Ints
    key_end: Ints
    start: Ints
    end: Ints
    pair_start: Ints
    pair_end: Ints

    def at(self, rows: Ints | Mask) -> Attributes:
        return Attributes(*(getattr(self, part.name)[rows] for part in parts_of(Attributes)))


@dataclass(frozen=True, slots=True)
class Records:
    """One row per span, log record and metric. Ids and times are 0 where absent, slices empty.

    `body`, `scope`, `resource`: indices; `signal`: SPAN, LOG or METRIC; `name_*`: the span's or metric's
    name, the log's event name; `time_ns`: start (log: its time); `late_ns`: end (log: observed time);
    `status`: status code (log: severity number); `note_*`: a log's severity text, a span's trace state;
    `content_*`: a log's body (AnyValue), a metric's whole message; `bad_ids`: an id of a wrong length.
    """

    body: Ints
    signal: Ints
    scope: Ints
    resource: Ints
    name_start: Ints
    name_end: Ints
    time_ns: Words
    late_ns: Words
    trace_hi: Words
    trace_lo: Words
    span_id: Words
    parent_span_id: Words
    bad_ids: Mask
    status: Ints
    note_start: Ints
    note_end: Ints
    content_start: Ints
    content_end: Ints

    def __len__(self) -> int:
        return len(self.body)

    def at(self, rows: Ints | Mask) -> Records:
        return Records(*(getattr(self, part.name)[rows] for part in parts_of(Records)))


@dataclass(frozen=True, slots=True)
class Scopes:
    """Instrumentation scopes: name and version."""

    name_start: Ints
    name_end: Ints
    version_start: Ints
    version_end: Ints


@dataclass(frozen=True, slots=True)
class Columns:
    """A batch of bodies: its records, their scopes and resources, and which bodies (bool[n]) were not
    understood.
    """

    buffer: Buffer
    records: Records
    scopes: Scopes
    attributes: Attributes
    scope_attributes: Attributes
    resource_attributes: Attributes
    odd: Mask


@dataclass(frozen=True, slots=True)
class _Messages:
    """Messages of one level: slices, the index of their parent, and of their body."""

    start: Ints
    end: Ints
    parent: Ints
    body: Ints

    def __len__(self) -> int:
        return len(self.start)

    def at(self, rows: Ints) -> _Messages:
        return _Messages(self.start[rows], self.end[rows], self.parent[rows], self.body[rows])


def read_columns(bodies: Sequence[bytes], signals: Sequence[int], vocabulary: Vocabulary) -> Columns:
    """Reads protobuf export requests (`signals`: which of the three each is)."""
    return _Reader(bodies, signals, vocabulary).columns()


class _Reader:
    """One pass over a batch of bodies, level by level."""

    def __init__(self, bodies: Sequence[bytes], signals: Sequence[int], vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.buffer = Buffer.of(bodies)
        self.length = np.array([len(body) for body in bodies], dtype=np.int64)
        self.signal = np.array(signals, dtype=np.int64)
        self.odd = np.zeros(len(bodies), dtype=np.bool_)

    def columns(self) -> Columns:
        end, index = np.cumsum(self.length), np.arange(len(self.length))
        requests = _Messages(start=end - self.length, end=end, parent=index, body=index)
        holders = _children(self._walk(requests), requests, number=1)
        listed = self._walk(holders)
        resources = self._single(listed, holders, number=1)
        groups = _children(listed, holders, number=2)
        listed = self._walk(groups)
        scopes = self._single(listed, groups, number=1)
        records, attributes = self._records(_children(listed, groups, number=2), groups)
        scope_fields = self._walk(scopes)
        return Columns(
            buffer=self.buffer,
            records=records,
            scopes=_scopes(scope_fields, len(scopes)),
            attributes=attributes,
            scope_attributes=self._attributes(scope_fields, scopes, number=3),
            resource_attributes=self._attributes(self._walk(resources), resources, number=1),
            odd=self.odd,
        )

    def _walk(self, messages: _Messages) -> Fields:
        try:
            listed = fields(self.buffer, messages.start, messages.end)
        except TooManyFields as found:
            per_body = np.bincount(messages.body, weights=found.counts, minlength=len(self.odd))
            raise CrowdedBody(int(np.argmax(per_body))) from found
        self.odd[messages.body[listed.odd]] = True
        return listed

    def _single(self, listed: Fields, parents: _Messages, *, number: int) -> _Messages:
        """The singular submessage of each parent; an empty one where it is not set."""
        self._once(listed, parents, number=number)
        start = np.zeros(len(parents), dtype=np.int64)
        end = np.zeros(len(parents), dtype=np.int64)
        _take_slice(listed, number, start, end)
        return _Messages(start, end, parent=np.arange(len(parents)), body=parents.body)

    def _once(self, listed: Fields, messages: _Messages, *, number: int) -> None:
        self.odd[messages.body[listed.repeated(number)]] = True

    def _records(self, messages: _Messages, groups: _Messages) -> tuple[Records, Attributes]:
        """Spans, then logs, then metrics."""
        records: list[Records] = []
        attributes: list[Attributes] = []
        signal, first = self.signal[messages.body], 0
        for code, read in ((SPAN, self._spans), (LOG, self._logs), (METRIC, self._metrics)):
            chosen = messages.at(np.flatnonzero(signal == code))
            listed = self._walk(chosen)
            blank = _blank(code, chosen, resource=groups.parent[chosen.parent])
            read(listed, chosen, blank)
            records.append(blank)
            number = _ATTRIBUTES_OF[code]
            attributes.append(self._attributes(listed, chosen, number=number, first=first))
            first += len(chosen)
        return joined(Records, records), joined(Attributes, attributes)

    def _spans(self, listed: Fields, spans: _Messages, to: Records) -> None:
        self._once(listed, spans, number=15)
        _take_slice(listed, 3, to.note_start, to.note_end)
        _take_slice(listed, 5, to.name_start, to.name_end)
        self._take_id(listed, 1, (to.trace_hi, to.trace_lo), to.bad_ids)
        self._take_id(listed, 2, (to.span_id,), to.bad_ids)
        self._take_id(listed, 4, (to.parent_span_id,), np.zeros_like(to.bad_ids))
        self._take_word(listed, 7, to.time_ns)
        self._take_word(listed, 8, to.late_ns)
        message, rows = listed.last(15, LENGTH)
        status = _Messages(listed.start[rows], listed.end[rows], parent=message, body=spans.body[message])
        code = np.zeros(len(status), dtype=np.int64)
        self._take_number(self._walk(status), 3, code)
        to.status[message] = code

    def _logs(self, listed: Fields, logs: _Messages, to: Records) -> None:
        self._once(listed, logs, number=5)
        _take_slice(listed, 12, to.name_start, to.name_end)
        _take_slice(listed, 3, to.note_start, to.note_end)
        _take_slice(listed, 5, to.content_start, to.content_end)
        self._take_id(listed, 9, (to.trace_hi, to.trace_lo), to.bad_ids)
        self._take_id(listed, 10, (to.span_id,), to.bad_ids)
        self._take_word(listed, 1, to.time_ns)
        self._take_word(listed, 11, to.late_ns)
        self._take_number(listed, 2, to.status)

    def _metrics(self, listed: Fields, metrics: _Messages, to: Records) -> None:
        _take_slice(listed, 1, to.name_start, to.name_end)
        to.content_start[:], to.content_end[:] = metrics.start, metrics.end

    def _take_id(self, listed: Fields, number: int, to: tuple[Words, ...], bad: Mask) -> None:
        """Reads an id of 8 bytes per column, big-endian; of another length it stays 0 and is marked
        bad unless empty.
        """
        message, rows = listed.last(number, LENGTH)
        length = listed.end[rows] - listed.start[rows]
        fits = length == 8 * len(to)
        bad[message[~fits & (length > 0)]] = True
        message, start = message[fits], listed.start[rows[fits]]
        for k, column in enumerate(to):
            column[message] = self.buffer.words[start + 8 * k].byteswap()

    def _take_word(self, listed: Fields, number: int, to: Words) -> None:
        message, rows = listed.last(number, FIXED64)
        to[message] = self.buffer.words[listed.start[rows]]

    def _take_number(self, listed: Fields, number: int, to: Ints) -> None:
        message, rows = listed.last(number, VARINT)
        to[message] = long_varints(self.buffer, listed.start[rows])[0].astype(np.int64)

    def _attributes(self, listed: Fields, owners: _Messages, *, number: int, first: int = 0) -> Attributes:
        attributes, odd = attributes_of(self.buffer, listed, self.vocabulary, number=number, first=first)
        self.odd[owners.body[attributes.owner[odd] - first]] = True
        return attributes


def attributes_of(
    buffer: Buffer, listed: Fields, vocabulary: Vocabulary, *, number: int, first: int = 0
) -> tuple[Attributes, Mask]:
    """The pairs in a field of messages, their owners numbered from `first` on; and which are odd."""
    rows = listed.rows(number, LENGTH)
    owner = listed.message[rows] + first
    return pairs_of(buffer, vocabulary, owner, start=listed.start[rows], end=listed.end[rows])


def pairs_of(
    buffer: Buffer, vocabulary: Vocabulary, owner: Ints, *, start: Ints, end: Ints
) -> tuple[Attributes, Mask]:
    """The KeyValue messages buffer[start:end] of these owners, and which of them are odd."""
    value_end = end.copy()
    key_start, key_end, value_start, odd = _pairs(buffer, start, value_end)
    key = vocabulary.find(buffer, key_start, key_end)
    places = {"start": value_start, "end": value_end, "pair_start": start, "pair_end": end}
    return Attributes(owner, key, key_start, key_end, **places), odd


def _pairs(buffer: Buffer, start: Ints, end: Ints) -> tuple[Ints, Ints, Ints, Mask]:
    """Splits KeyValue messages: key start, key end, value start; `end` is set to where the value ends;
    which are odd.

    The shape nearly every sender writes (key, then value, both under 128 bytes) is read directly, the
    others by `fields`.
    """
    word = buffer.words[start]
    key_start = start + 2
    key_end = key_start + ((word >> np.uint64(8)) & np.uint64(0xFF)).astype(np.int64)
    at = np.minimum(key_end, end)
    value = buffer.words[at] & np.uint64(0xFFFF)
    rest = end - at - 2
    plain = ((word & np.uint64(0x80FF)) == np.uint64(0x000A)) & (rest >= 0) & (rest < 128)
    plain &= value == (rest.astype(np.uint64) << np.uint64(8) | np.uint64(0x12))
    value_start = at + 2
    odd = np.zeros(len(start), dtype=np.bool_)
    others = np.flatnonzero(~plain)
    if others.size:
        listed = fields(buffer, start[others], end[others])
        odd[others] = listed.odd | listed.repeated(2)
        for column in (key_start, key_end, value_start, end):
            column[others] = 0
        for number, (first, last) in {1: (key_start, key_end), 2: (value_start, end)}.items():
            message, rows = listed.last(number, LENGTH)
            first[others[message]], last[others[message]] = listed.start[rows], listed.end[rows]
    return key_start, key_end, value_start, odd


def _children(listed: Fields, parents: _Messages, *, number: int) -> _Messages:
    rows = listed.rows(number, LENGTH)
    parent = listed.message[rows]
    return _Messages(listed.start[rows], listed.end[rows], parent=parent, body=parents.body[parent])


def _take_slice(listed: Fields, number: int, start: Ints, end: Ints) -> None:
    message, rows = listed.last(number, LENGTH)
    start[message], end[message] = listed.start[rows], listed.end[rows]


def _scopes(listed: Fields, count: int) -> Scopes:
    scopes = Scopes(*(np.zeros(count, dtype=np.int64) for _ in range(4)))
    _take_slice(listed, 1, scopes.name_start, scopes.name_end)
    _take_slice(listed, 2, scopes.version_start, scopes.version_end)
    return scopes


def _blank(signal: int, messages: _Messages, *, resource: Ints) -> Records:
    def numbers() -> Ints:
        return np.zeros(len(messages), dtype=np.int64)

    def words() -> Words:
        return np.zeros(len(messages), dtype=np.uint64)

    return Records(
        body=messages.body,
        signal=np.full(len(messages), signal, dtype=np.int64),
        scope=messages.parent,
        resource=resource,
        name_start=numbers(),
        name_end=numbers(),
        time_ns=words(),
        late_ns=words(),
        trace_hi=words(),
        trace_lo=words(),
        span_id=words(),
        parent_span_id=words(),
        bad_ids=np.zeros(len(messages), dtype=np.bool_),
        status=numbers(),
        note_start=numbers(),
        note_end=numbers(),
        content_start=numbers(),
        content_end=numbers(),
    )


def joined(kind: type[_Part], parts: Sequence[_Part]) -> _Part:
    """The rows of several parts, one after the other."""
    names = [part.name for part in parts_of(kind)]
    return kind(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})
