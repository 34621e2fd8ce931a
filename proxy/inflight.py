"""Calls on their way: what becomes of them in the book when the process is killed in the middle.

One file holds a slot of two pages for each call. Before a call goes out, the record of it, as it would be if
nothing more were heard, is written on the first page; before its answer ends, the true record is written on
the second. Once that is in the journal the slot is emptied. What a starting process finds in the slots is
journaled then. A record that was journaled after all has the same identity, so that it counts once.

A killed process loses nothing that it has written to a file: each page is one write, and a page that was cut
off in the middle does not pass its check. A power failure is another matter: the disk is asked for the file
once a second, beside the calls.
"""

from __future__ import annotations

import asyncio
import os
import struct
from pathlib import Path
from typing import Final
from zlib import crc32

__all__ = ["InFlight", "TooManyInFlight"]

PAGE_BYTES: Final = 8192
"""Holds what a caller may say of itself, all of it at its longest."""
SYNC_EVERY_S: Final = 1.0
_PIECE_BYTES: Final = 4096
"""Written and read by so much, the file is cached by so much: in larger pieces a write costs five times as
much, since Linux walks through all of the piece that it lies in.
"""
_HEAD: Final = struct.Struct("<II")
_EMPTY: Final = bytes(_HEAD.size)


class TooManyInFlight(Exception):
    """Every slot is taken: as many calls are on their way as are allowed."""


class InFlight:
    """The slots of one process in `path`. `interrupted` holds what was left by the one before."""

    def __init__(self, path: Path, *, slots: int) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_RANDOM)
        size = os.fstat(self._file).st_size
        self.interrupted = self._left(size // (2 * PAGE_BYTES))
        for place in range(size, slots * 2 * PAGE_BYTES, _PIECE_BYTES):
            os.pwrite(self._file, bytes(_PIECE_BYTES), place)
        self._slots = slots
        self._free = [slot for slot in reversed(range(slots)) if slot not in self.interrupted]
        self._syncing: asyncio.Task[None] | None = None

    @property
    def taken(self) -> int:
        """How many calls are on their way."""
        return self._slots - len(self._free)

    def _left(self, slots: int) -> dict[int, bytes]:
        """What stands in the slots: the true record where there is one, else the first."""
        found = {slot: self._read(2 * slot + 1) or self._read(2 * slot) for slot in range(slots)}
        return {slot: record for slot, record in found.items() if record}

    def _read(self, page: int) -> bytes:
        size, check = _HEAD.unpack(os.pread(self._file, _HEAD.size, page * PAGE_BYTES))
        if not 0 < size <= PAGE_BYTES - _HEAD.size:
            return b""
        record = os.pread(self._file, size, page * PAGE_BYTES + _HEAD.size)
        return record if crc32(record) == check else b""

    def put(self, record: bytes) -> int:
        """Write down a call that goes out now; its slot. Raises TooManyInFlight."""
        if not self._free:
            raise TooManyInFlight
        slot = self._free.pop()
        self._write(2 * slot, record)
        return slot

    def keep(self, slot: int, record: bytes) -> None:
        """Write down what became of the call. If a provider told more than a page holds, the first record
        stays until the journal has the true one.
        """
        if len(record) <= PAGE_BYTES - _HEAD.size:
            self._write(2 * slot + 1, record)

    def _write(self, page: int, record: bytes) -> None:
        if len(record) > PAGE_BYTES - _HEAD.size:
            raise ValueError(f"a record of {len(record)} bytes does not fit a page")
        os.pwrite(self._file, _HEAD.pack(len(record), crc32(record)) + record, page * PAGE_BYTES)
        if self._syncing is None:
            self._syncing = asyncio.create_task(self._sync())

    def clear(self, slot: int) -> None:
        """Its true record is on disk."""
        os.pwrite(self._file, _EMPTY, 2 * slot * PAGE_BYTES)
        os.pwrite(self._file, _EMPTY, (2 * slot + 1) * PAGE_BYTES)
        self._free.append(slot)

    async def _sync(self) -> None:
        """Ask the disk for all that is written until then."""
        await asyncio.sleep(SYNC_EVERY_S)
        self._syncing = None
        await asyncio.to_thread(os.fdatasync, self._file)

    def close(self) -> None:
        """Close the file; what stands in the slots stays."""
        if self._syncing is not None:
            self._syncing.cancel()
        os.close(self._file)
