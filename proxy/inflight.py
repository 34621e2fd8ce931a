"""Calls on their way: what becomes of them in the book when the process is killed in the middle.

Before a call goes out, the record of it, as it would be if nothing more were heard, is written into a slot of
one file; when the true record is on disk the slot is emptied. What a starting process finds in the slots was
interrupted: it is journaled then, as calls whose usage is unknown. A record that was journaled after all has
the same identity, so that it counts once. A killed process loses nothing that it has written to a file; the
disk is asked for it beside the call, so that a power failure loses little.
"""

from __future__ import annotations

import asyncio
import os
import struct
from pathlib import Path
from typing import Final
from zlib import crc32

__all__ = ["InFlight", "TooManyInFlight"]

SLOT_BYTES: Final = 4096
_HEAD: Final = struct.Struct("<II")
_EMPTY: Final = bytes(_HEAD.size)


class TooManyInFlight(Exception):
    """Every slot is taken: as many calls are on their way as are allowed."""


class InFlight:
    """The slots of one process in `path`. `interrupted` holds what was left by the one before."""

    def __init__(self, path: Path, *, slots: int) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        size = os.fstat(self._file).st_size
        self.interrupted = dict(self._left(size // SLOT_BYTES))
        if size < slots * SLOT_BYTES:
            os.pwrite(self._file, bytes(slots * SLOT_BYTES - size), size)
        self._slots = slots
        self._free = [slot for slot in reversed(range(slots)) if slot not in self.interrupted]
        self._syncing: asyncio.Task[None] | None = None
        self._dirty = False

    @property
    def taken(self) -> int:
        """How many calls are on their way."""
        return self._slots - len(self._free)

    def _left(self, slots: int) -> list[tuple[int, bytes]]:
        found = []
        for slot in range(slots):
            head = os.pread(self._file, _HEAD.size, slot * SLOT_BYTES)
            size, check = _HEAD.unpack(head)
            if 0 < size <= SLOT_BYTES - _HEAD.size:
                body = os.pread(self._file, size, slot * SLOT_BYTES + _HEAD.size)
                if crc32(body) == check:
                    found.append((slot, body))
        return found

    def put(self, record: bytes) -> int:
        """Write down a call that goes out now; its slot. Raises TooManyInFlight."""
        if not self._free:
            raise TooManyInFlight
        if len(record) > SLOT_BYTES - _HEAD.size:
            raise ValueError(f"a record of {len(record)} bytes does not fit a slot")
        slot = self._free.pop()
        self._write(slot, record)
        return slot

    def keep(self, slot: int, record: bytes) -> None:
        """Put what is known now in the place of what was: the journal could not take it."""
        if len(record) <= SLOT_BYTES - _HEAD.size:
            self._write(slot, record)

    def _write(self, slot: int, record: bytes) -> None:
        os.pwrite(self._file, _HEAD.pack(len(record), crc32(record)) + record, slot * SLOT_BYTES)
        self._sync_beside()

    def clear(self, slot: int) -> None:
        """Its true record is on disk."""
        os.pwrite(self._file, _EMPTY, slot * SLOT_BYTES)
        self._free.append(slot)

    def close(self) -> None:
        """Close the file; what stands in the slots stays."""
        os.close(self._file)

    def _sync_beside(self) -> None:
        self._dirty = True
        if self._syncing is None:
            self._syncing = asyncio.create_task(self._sync())

    async def _sync(self) -> None:
        """One write to the disk for all calls that came since the last."""
        try:
            while self._dirty:
                self._dirty = False
                await asyncio.to_thread(os.fdatasync, self._file)
        finally:
            self._syncing = None
