"""Segment files of the journal: what a frame looks like on disk, and how a run of frames is written, found
and read.

A segment is a file named by the journal position of its first byte, zero-filled in advance so that a commit
rewrites blocks that exist and fdatasync has no metadata to wait for. It is the truth for the positions from
its own base to the next segment's base and for nothing beyond, so a failed tail is given up simply by
starting the next segment before it. A zero length word means "no more frames here". A frame is

    u32 length of the whole frame | u32 CRC-32 | u32 kind | i64 received_at_ns | body        (little endian)

and the CRC starts from the frame's own position, so a frame found in the wrong place does not pass.

This module knows no event loop and no threads, and it never repairs anything inside the durable range: it
says where the damage is (`JournalCorrupt`).

Errors: `JournalError` > `JournalFull` (disk full or failing: ask again later), `JournalCorrupt` (a damaged
frame).
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final
from zlib import crc32

_log = logging.getLogger("tollbook.journal")

_LEAD: Final = struct.Struct("<II")
_REST: Final = struct.Struct("<Iq")
HEADER_BYTES: Final = _LEAD.size + _REST.size
MAX_BODY_BYTES: Final = 1 << 30
IOV_MAX: Final = 1024  # Linux and macOS
_ZEROS: Final = bytes(1 << 20)
_SYNC_EVERY: Final = (
    8  # MiB of zeros between syncs, so that preparing a segment never floods the disk's queue
)

_sync_data = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync


class Kind(IntEnum):
    """What a frame's body is: one OTLP export request as it was sent (decompressed), or a control record."""

    TRACES_PROTO = 1
    TRACES_JSON = 2
    LOGS_PROTO = 3
    LOGS_JSON = 4
    METRICS_PROTO = 5
    METRICS_JSON = 6
    CONTROL = 16


@dataclass(frozen=True, slots=True)
class Frame:
    """One journaled record as read back; `offset` is the position AFTER it, `received_at_ns` Unix time."""

    offset: int
    kind: int
    received_at_ns: int
    body: bytes


class JournalError(Exception):
    """The journal cannot do what was asked."""


class JournalFull(JournalError):
    """Nothing was written: the disk is full or failing. The caller may ask again later."""


class JournalCorrupt(JournalError):
    """The frame at `position` of `segment` is damaged; a good one follows at `next_position` (None: not)."""

    def __init__(self, segment: str, *, position: int, why: str, next_position: int | None = None) -> None:
        super().__init__(f"segment {segment} is damaged at position {position}: {why}")
        self.segment = segment
        self.position = position
        self.next_position = next_position


@dataclass(frozen=True, slots=True)
class Span:
    """A segment that takes no more frames: journal positions [base, end)."""

    base: int
    end: int


def segment_path(directory: Path, base: int) -> Path:
    """Where the segment beginning at journal position `base` lies."""
    return directory / f"{base:020d}.seg"


def segment_bases(directory: Path) -> list[int]:
    """The first positions of all segments in `directory`, ascending."""
    return sorted(int(path.stem) for path in directory.glob("*.seg"))


def frame_header(body: bytes, *, position: int, kind: int, received_at_ns: int) -> bytes:
    """The 20 bytes that stand before `body` when the frame begins at journal position `position`."""
    rest = _REST.pack(kind, received_at_ns)
    crc = crc32(body, crc32(rest, position & 0xFFFFFFFF))
    return _LEAD.pack(HEADER_BYTES + len(body), crc) + rest


def _good_frame(data: memoryview, at: int, *, position: int) -> int:
    """The length in bytes of the frame at `data[at:]`, 0 if no whole, undamaged frame is there."""
    if at + HEADER_BYTES > len(data):
        return 0
    length, crc = _LEAD.unpack_from(data, at)
    if length < HEADER_BYTES or at + length > len(data):
        return 0
    seed = crc32(data[at + _LEAD.size : at + HEADER_BYTES], position & 0xFFFFFFFF)
    return length if crc32(data[at + HEADER_BYTES : at + length], seed) == crc else 0


def _frame(data: memoryview, at: int, *, length: int, position: int) -> Frame:
    kind, received_at_ns = _REST.unpack_from(data, at + _LEAD.size)
    body = bytes(data[at + HEADER_BYTES : at + length])
    return Frame(offset=position + length, kind=kind, received_at_ns=received_at_ns, body=body)


# --- writing ----------------------------------------------------------------------------------------------


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` durable."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def create_zeroed(path: Path, size_bytes: int) -> None:
    """Make `path` a durable file of `size_bytes` zeros, really written, or leave nothing (OSError)."""
    partial = path.with_suffix(".tmp")
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        _write_zeros(fd, size_bytes)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise
    finally:
        os.close(fd)
    partial.replace(path)


def _write_zeros(fd: int, size_bytes: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(
            fd, 0, size_bytes
        )  # a full disk says so here, before it has been filled with zeros
    left, unsynced = size_bytes, 0
    while left:
        left -= os.write(fd, _ZEROS[:left])
        unsynced += 1
        if unsynced >= _SYNC_EVERY:
            _sync_data(fd)
            unsynced = 0
    os.fsync(fd)


def write_durably(fd: int, buffers: Sequence[bytes], *, at: int) -> None:
    """Write all `buffers` one after another at file position `at` and put them on disk, or OSError."""
    for first in range(0, len(buffers), IOV_MAX):
        part: list[bytes | memoryview] = list(buffers[first : first + IOV_MAX])
        while part:
            written = os.pwritev(fd, part, at)
            at += written
            part = _after(part, written)
    _sync_data(fd)


def _after(buffers: list[bytes | memoryview], written: int) -> list[bytes | memoryview]:
    """What is left of `buffers` once `written` bytes are gone (a full disk may cut a write short)."""
    for index, buffer in enumerate(buffers):
        if written < len(buffer):
            return [memoryview(buffer)[written:], *buffers[index + 1 :]]
        written -= len(buffer)
    return []


def cut(path: Path, size_bytes: int) -> None:
    """Make `path` end at `size_bytes`, durably; what stood behind is gone."""
    fd = os.open(path, os.O_WRONLY)
    try:
        os.ftruncate(fd, size_bytes)
        os.fsync(fd)
    finally:
        os.close(fd)


# --- recovery ---------------------------------------------------------------------------------------------


def recover(directory: Path) -> list[Span]:
    """The segments of `directory`, oldest first, the torn tail of the last one cut off (and said in the log).

    Only the last segment can have a torn tail, so only that one is walked: a start takes the same time
    whatever waits.
    """
    for leftover in (*directory.glob("*.tmp"), directory / "fresh"):
        leftover.unlink(missing_ok=True)
    bases = segment_bases(directory)
    if not bases:
        return []
    end = _recover_tail(segment_path(directory, bases[-1]), bases[-1])
    return [Span(base, follower) for base, follower in zip(bases, [*bases[1:], end], strict=True)]


def _recover_tail(path: Path, base: int) -> int:
    """The journal position after the last good frame of the last segment; everything behind it is removed."""
    size = path.stat().st_size
    good, torn = _survey(path, base) if size else (0, 0)
    if torn:
        _log.warning(
            "cut a torn tail: %d bytes after position %d in segment %s", torn, base + good, path.name
        )
    if size > good:
        cut(path, good)
    return base + good


def _survey(path: Path, base: int) -> tuple[int, int]:
    """Bytes of good frames at the front of a segment, and bytes of anything else than zeros behind them."""
    good = 0
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as data,
    ):
        while length := _good_frame(data, good, position=base + good):
            good += length
        with data[good:] as rest:
            return good, _extent(rest)


def _extent(data: memoryview) -> int:
    """How many bytes of `data` there are up to the last one that is not zero."""
    for first in reversed(range(0, len(data), len(_ZEROS))):
        kept = bytes(data[first : first + len(_ZEROS)]).rstrip(b"\0")
        if kept:
            return first + len(kept)
    return 0


# --- reading ----------------------------------------------------------------------------------------------


def read_frames(directory: Path, *, start: int, stop: int, max_bytes: int) -> list[Frame]:
    """The frames between journal positions `start` and `stop`, at most `max_bytes` of them (at least one).

    `start` is 0 or the offset of a frame, `stop` a durable offset. JournalCorrupt when the first frame is
    damaged or gone; damage further on shows when reading arrives there, so that everything before it can be
    used first.
    """
    bases = segment_bases(directory)
    frames: list[Frame] = []
    while start < stop:
        span = _holding(bases, start, stop=stop, directory=directory)
        run = _read_run(directory, span, start=start, max_bytes=max_bytes, need_one=not frames)
        frames += run
        max_bytes -= sum(HEADER_BYTES + len(frame.body) for frame in run)
        start = run[-1].offset if run else stop
        if start < span.end:
            break
    return frames


def _holding(bases: Sequence[int], position: int, *, stop: int, directory: Path) -> Span:
    """The part before `stop` of the segment in which `position` lies."""
    index = bisect_right(bases, position)
    if index == 0:
        gone = segment_path(directory, bases[0]).name if bases else "(none)"
        raise JournalCorrupt(gone, position=position, why="the segments before this one are gone")
    return Span(bases[index - 1], min([stop, *bases[index : index + 1]]))


def _read_run(directory: Path, span: Span, *, start: int, max_bytes: int, need_one: bool) -> list[Frame]:
    path = segment_path(directory, span.base)
    fd = os.open(path, os.O_RDONLY)
    try:
        data = _pread(fd, min(span.end - start, max(max_bytes, HEADER_BYTES)), at=start - span.base)
        if need_one and len(data) >= HEADER_BYTES:
            length = min(_LEAD.unpack_from(data)[0], span.end - start)
            if length > len(data):
                data = _pread(fd, length, at=start - span.base)
        frames = _parse_run(data, start)
        if not frames and need_one:
            raise _corrupt(fd, path, span=span, position=start)
        return frames
    finally:
        os.close(fd)


def _pread(fd: int, size: int, *, at: int) -> bytes:
    """Up to `size` bytes at file position `at`; fewer only where the file ends."""
    parts: list[bytes] = []
    while size and (part := os.pread(fd, size, at)):
        parts.append(part)
        size -= len(part)
        at += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _parse_run(data: bytes, position: int) -> list[Frame]:
    frames: list[Frame] = []
    at = 0
    with memoryview(data) as view:
        while length := _good_frame(view, at, position=position + at):
            frames.append(_frame(view, at, length=length, position=position + at))
            at += length
    return frames


def _corrupt(fd: int, path: Path, *, span: Span, position: int) -> JournalCorrupt:
    """The error for the damaged frame at `position`, with the frame after it if that one is whole."""
    with memoryview(_pread(fd, span.end - position, at=position - span.base)) as data:
        if len(data) < HEADER_BYTES:
            return JournalCorrupt(path.name, position=position, why="the segment ends there")
        length = _LEAD.unpack_from(data)[0]
        if length < HEADER_BYTES or length > span.end - position:
            return JournalCorrupt(path.name, position=position, why=f"impossible frame length {length}")
        follows = position + length
        whole = follows == span.end or _good_frame(data, length, position=follows)
        after = follows if whole else None
    return JournalCorrupt(path.name, position=position, why="the checksum is wrong", next_position=after)
