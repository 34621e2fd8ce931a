"""Reads the protobuf wire format of many messages at once, with numpy instead of a loop per record.

Why: parsing OTLP into Python objects costs 15-30 us a span; the ledger needs a handful of columns. Here
all messages of one level (all requests, then all their resources, all spans, all attributes) are stepped
through in lockstep: one numpy pass reads the next field of every message that has one. A message is only
a slice (start, end) of one shared buffer; nothing is copied.

What it refuses: it does not interpret. It knows tags, varints, lengths and fixed words; which field
means what is `decode`'s business. A message it cannot follow (groups, tags above field 2047, lengths
that overrun) is reported in `Fields.odd`, never guessed at, never raised. UTF-8 is not checked here.

Positions are int64 byte offsets into the buffer; all words are little-endian, as on the wire.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Ints: TypeAlias = npt.NDArray[np.int64]
Words: TypeAlias = npt.NDArray[np.uint64]
Bytes: TypeAlias = npt.NDArray[np.uint8]
Mask: TypeAlias = npt.NDArray[np.bool_]
Reals: TypeAlias = npt.NDArray[np.float64]

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5

PADDING = 64  # zero bytes after the data: an 8-byte word can be read at every position, and a little after
LOCKSTEP_FROM = 64  # of fewer unfinished messages, a plain loop is cheaper than a numpy pass (about 25 us)
MAX_FIELDS = 4_000_000  # of all messages of a level; a field can be two bytes, and costs 90 in memory

_U = np.uint64
_CONTINUES = _U(0x8080808080808080)
_GROUPS7 = _U(0x7F7F7F7F7F7F7F7F)


class TooManyFields(Exception):
    """A level has more than MAX_FIELDS; `counts` int64[n]: how many of each message were seen."""

    def __init__(self, counts: Ints) -> None:
        super().__init__()
        self.counts = counts


@dataclass(frozen=True, slots=True)
class Buffer:
    """Bodies laid end to end: `data` bytes[size + padding], the same as `raw` uint8, and `words`: the
    8-byte word at each position.
    """

    data: bytes
    raw: Bytes
    words: Words
    size: int

    @classmethod
    def of(cls, bodies: Iterable[bytes | memoryview]) -> Buffer:
        data = b"".join([*bodies, bytes(PADDING)])
        words: Words = np.ndarray((len(data) - 7,), dtype="<u8", buffer=data, strides=(1,))
        return cls(data=data, raw=np.frombuffer(data, dtype=np.uint8), words=words, size=len(data) - PADDING)

    def cut(self, start: int, end: int) -> bytes:
        """The bytes of one slice, copied."""
        return self.data[start:end]


@dataclass(frozen=True, slots=True)
class Fields:
    """All fields of n messages, message by message in wire order.

    `first` int64[n + 1]: the fields of message i are rows first[i] to first[i + 1]. Per field:
    `message`, `tag` (number << 3 | wire type) and the payload's slice `start` to `end` (of varints and
    fixed words: the encoded value). `odd` bool[n]: messages that could not be followed to their end;
    their fields up to there are listed.
    """

    first: Ints
    message: Ints
    tag: Ints
    start: Ints
    end: Ints
    odd: Mask
    order: Ints  # rows by tag
    bounds: Ints  # where each tag begins in `order`

    def rows(self, number: int, wire: int) -> Ints:
        """Rows of the fields with this number and wire type, ascending."""
        tag = number << 3 | wire
        if tag + 1 >= len(self.bounds):
            return self.order[:0]
        return self.order[self.bounds[tag] : self.bounds[tag + 1]]

    def last(self, number: int, wire: int) -> tuple[Ints, Ints]:
        """Where a singular field was set last: (message indices, rows), one per message that has it."""
        rows = self.rows(number, wire)
        message = self.message[rows]
        keep = np.flatnonzero(np.append(message[1:] != message[:-1], True)[: len(message)])
        return message[keep], rows[keep]

    def repeated(self, number: int) -> Mask:
        """bool[n]: messages that hold a field more than once (of a singular submessage: its parts
        would have to be merged).
        """
        message = self.message[self.rows(number, LENGTH)]
        return np.bincount(message, minlength=len(self.odd)) > 1


def varints(words: Words) -> tuple[Words, Ints]:
    """Decodes the varint at the low end of each word: values uint64 (the low 56 bits) and lengths in
    bytes (9 = ends later).
    """
    stop = ~words & _CONTINUES
    below = (stop & (~stop + _U(1))) - _U(1)  # all ones where no byte of the word ends it
    value = words & below & _GROUPS7
    value = (value & _U(0x007F007F007F007F)) | ((value & _U(0x7F007F007F007F00)) >> _U(1))
    value = (value & _U(0x00003FFF00003FFF)) | ((value & _U(0x3FFF00003FFF0000)) >> _U(2))
    value = (value & _U(0x0FFFFFFF)) | ((value & _U(0x0FFFFFFF00000000)) >> _U(4))
    return value, (np.bitwise_count(below).astype(np.int64) + 8) >> 3


def long_varints(buffer: Buffer, start: Ints) -> tuple[Words, Ints]:
    """Decodes varints of up to ten bytes at `start`: uint64 (two's complement) and lengths (11 = does
    not end in ten bytes).
    """
    value, length = varints(buffer.words[start])
    long = np.flatnonzero(length > 8)
    if long.size:
        ninth = buffer.raw[start[long] + 8].astype(np.uint64)
        tenth = buffer.raw[start[long] + 9].astype(np.uint64)
        ten = ninth >= _U(0x80)
        value[long] |= (ninth & _U(0x7F)) << _U(56) | np.where(ten, (tenth & _U(1)) << _U(63), _U(0))
        length[long] += ten.astype(np.int64) + (ten & (tenth >= _U(0x80)))
    return value, length


# By the first byte of a field, if its tag has one byte and its varint or length has one: where the payload
# begins and ends behind the tag (lengths add the second byte), and which wire types and numbers are refused.
_WIRE = np.arange(256) & 7
_FIXED = np.array([0, 8, 0, 0, 0, 4, 0, 0], dtype=np.int64)
_BEGIN = np.where(_WIRE == LENGTH, 2, 1)
_AFTER = 1 + _FIXED[_WIRE] + ((_WIRE == VARINT) | (_WIRE == LENGTH))
_HAS_LENGTH = (_WIRE == LENGTH).astype(np.int64)
_VARIABLE = (_WIRE == LENGTH) | (_WIRE == VARINT)
_REFUSED = ~np.isin(_WIRE, (VARINT, FIXED64, LENGTH, FIXED32)) | (np.arange(256) < 8)
_FAR = np.uint64(1 << 40)  # beyond every buffer: a length that large overruns, whatever its last bits are


def fields(buffer: Buffer, start: Ints, end: Ints) -> Fields:
    """Lists the fields of the messages buffer[start:end] (arrays of n slices)."""
    walk = _Walk(buffer, end, np.zeros(len(start), dtype=np.bool_))
    active, at = np.flatnonzero(start < end), start[start < end]
    while len(active) >= LOCKSTEP_FROM:
        active, at = walk.step(active, at)
    walk.follow(active, at)
    return walk.fields()


class _Walk:
    """The lockstep over n messages: pass k lists the k-th field of every message that has one."""

    def __init__(self, buffer: Buffer, end: Ints, odd: Mask) -> None:
        self.buffer, self.end, self.odd = buffer, end, odd
        self.passes: list[tuple[Ints, Ints, Ints, Ints]] = []
        self.tails: list[tuple[int, Sequence[int], Sequence[int], Sequence[int]]] = []
        self.left = MAX_FIELDS

    def step(self, active: Ints, at: Ints) -> tuple[Ints, Ints]:
        """Reads a field of each active message at its place; returns those with more to read, and where."""
        first, second = self.buffer.raw[at], self.buffer.raw[at + 1]
        tag = first.astype(np.int64)
        begin = at + _BEGIN[first]
        after = at + _AFTER[first] + second * _HAS_LENGTH[first]
        rare = np.flatnonzero((first >= 0x80) | (second >= 0x80) & _VARIABLE[first])
        bad = _REFUSED[first]
        if rare.size:
            tag[rare], begin[rare], after[rare], bad[rare] = self._long(at[rare])
        limit = self.end[active]
        bad |= after > limit
        if bad.any():
            self.odd[active[bad]] = True
            good = ~bad
            active, tag, begin, after, limit = active[good], tag[good], begin[good], after[good], limit[good]
        self.passes.append((active, tag, begin, after))
        self._spend(len(active))
        more = after < limit
        return (active, after) if more.all() else (active[more], after[more])

    def _long(self, at: Ints) -> tuple[Ints, Ints, Ints, Mask]:
        """Fields with a tag of two bytes or a varint of several: tag, payload start and end, refused."""
        word = self.buffer.words[at]
        two = (word & _U(0x80)) != 0
        second = (word >> _U(8)) & _U(0xFF)
        tag = np.where(two, (word & _U(0x7F)) | (second & _U(0x7F)) << _U(7), word & _U(0xFF)).astype(
            np.int64
        )
        wire = tag & 7
        payload = at + 1 + two
        value, length = long_varints(self.buffer, payload)
        measured = wire == LENGTH
        begin = payload + np.where(measured, length, 0)
        after = payload + np.where(measured | (wire == VARINT), length, _FIXED[wire])
        after += np.where(measured, np.minimum(value, _FAR).astype(np.int64), 0)
        refused = _REFUSED[wire | 8] | (two & (second >= 0x80)) | (tag < 8)
        return tag, begin, after, refused | (length > 10) & (measured | (wire == VARINT))

    def follow(self, active: Ints, at: Ints) -> None:
        """Reads what is left of a few messages one by one (a scope of 500 spans is one message with
        500 fields).
        """
        for message, position in zip(active.tolist(), at.tolist(), strict=True):
            end = int(self.end[message])
            tags, begins, ends, odd = _follow(self.buffer.data, position, end, most=self.left + 1)
            self.tails.append((message, tags, begins, ends))
            self.odd[message] |= odd
            self._spend(len(tags))

    def _spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise TooManyFields(self._counts())

    def _counts(self) -> Ints:
        count = np.zeros(len(self.end), dtype=np.int64)
        for active, *_ in self.passes:
            count[active] += 1
        for message, tags, *_ in self.tails:
            count[message] += len(tags)
        return count

    def fields(self) -> Fields:
        count = self._counts()
        first = np.concatenate([[0], np.cumsum(count)])
        tag, begin, end = (np.empty(first[-1], dtype=np.int64) for _ in range(3))
        for k, (active, *parts) in enumerate(self.passes):
            row = first[active] + k
            for column, part in zip((tag, begin, end), parts, strict=True):
                column[row] = part
        for message, *lists in self.tails:
            rows = slice(first[message + 1] - len(lists[0]), first[message + 1])
            for column, values in zip((tag, begin, end), lists, strict=True):
                column[rows] = values
        owner = np.repeat(np.arange(len(self.end)), count)
        order = np.argsort(tag.astype(np.uint16), kind="stable")  # tags have 14 bits
        bounds = np.concatenate([[0], np.cumsum(np.bincount(tag))])
        return Fields(
            first=first,
            message=owner,
            tag=tag,
            start=begin,
            end=end,
            odd=self.odd,
            order=order,
            bounds=bounds,
        )


def _follow(
    data: bytes, at: int, end: int, *, most: int
) -> tuple[Sequence[int], Sequence[int], Sequence[int], bool]:
    """The fields of one message (`most` at most): tags, payload starts, payload ends, and whether it could
    not be followed to its end.
    """
    tags, begins, ends = array("q"), array("q"), array("q")  # a third of what lists weigh
    while at < end and len(tags) < most:
        tag, length, more = data[at], data[at + 1], data[at + 2]
        if tag & 0x87 == LENGTH and more < 0x80 <= length:  # what a list of spans is made of
            begin = at + 3
            at = begin + (length & 0x7F | more << 7)
        else:
            tag, begin, at = _field(data, at)
        if at > end or tag < 8:
            return tags, begins, ends, True
        tags.append(tag)
        begins.append(begin)
        ends.append(at)
    return tags, begins, ends, False


def _field(data: bytes, at: int) -> tuple[int, int, int]:
    """The tag of the field at `at` (0: refused), where its payload begins, and where it ends."""
    tag = data[at]
    at += 1
    if tag >= 0x80:
        if data[at] >= 0x80:
            return 0, at, at
        tag = (tag & 0x7F) | data[at] << 7
        at += 1
    wire = tag & 7
    if wire == LENGTH:
        length, begin = _varint(data, at)
        return tag, begin, begin + length
    if wire == VARINT:
        return tag, at, _varint(data, at)[1]
    size = {FIXED64: 8, FIXED32: 4}.get(wire)
    return (0, at, at) if size is None else (tag, at, at + size)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """One varint and the position after it; one that does not end in ten bytes reaches beyond everything."""
    value = data[at]
    if value < 0x80:
        return value, at + 1
    value &= 0x7F
    for k in range(1, 10):
        byte = data[at + k]
        value |= (byte & 0x7F) << 7 * k
        if byte < 0x80:
            return value, at + k + 1
    return 1 << 62, len(data) + 1
