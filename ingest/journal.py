"""The journal: what was acknowledged is on disk, whatever happens to the process afterwards.

One writer thread drains the queue of waiting requests, writes them as one group with one fdatasync and wakes
the event loop once. Everything that waits on a disk happens in that thread or in a second one that prepares
and deletes segments; the event loop only ever appends to a queue. Positions are bytes since the journal's
beginning and never start again.

The journal holds raw bodies, so it is private (0700/0600) and short-lived: `release` deletes what is stored
elsewhere, and a segment that is partly released is ended after `rotate_after_s`, so that bodies go within a
minute of their commit even on a quiet machine. It refuses to decode anything, to skip a damaged frame, and to
run twice in one directory.

Errors: `JournalError` > `JournalFull` (disk full or failing: ask again later), `JournalCorrupt` (a damaged
frame).
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Final, NamedTuple, Self, TypeVarTuple

from .segment import (
    HEADER_BYTES,
    MAX_BODY_BYTES,
    Frame,
    JournalCorrupt,
    JournalError,
    JournalFull,
    Kind,
    Span,
    frame_header,
    read_frames,
    recover,
    segment_path,
    sync_directory,
)
from .segment_writer import SegmentWriter

__all__ = ["Frame", "Journal", "JournalCorrupt", "JournalError", "JournalFull", "Kind", "read_frames"]

_log = logging.getLogger("tollbook.journal")

_GROUP_FRAMES: Final = 1024
_Args = TypeVarTuple("_Args")


class _Waiting(NamedTuple):
    """A record that waits for the disk, and the request that waits for the record."""

    done: asyncio.Future[int]
    kind: int
    received_at_ns: int
    body: bytes


class _Rotate:
    """Queued when the active segment holds released bodies that are due to go."""


class _Stop:
    """Queued last."""


_Task = list[_Waiting] | _Rotate | _Stop


class Journal:
    """An append-only log of frames in `directory`. All methods belong to the event loop that first appends.

    `durable`: everything before this position is on disk. `released`: everything before it may be gone.
    `queued_bytes`: waiting for the disk. `failure`: why the last group failed, None while all is well.
    """

    def __init__(self, directory: Path, *, segment_bytes: int, rotate_after_s: float, epoch_fd: int) -> None:
        self.epoch: str = _read_epoch(epoch_fd, directory)
        self.queued_bytes = 0
        self.failure: str | None = None
        self.groups = 0
        self.on_durable: Callable[[int], None] | None = None
        self._epoch_fd = epoch_fd
        self._directory = directory
        self._rotate_after_s = rotate_after_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._rotation: asyncio.TimerHandle | None = None
        self._closing = False
        spans = recover(directory)
        self.durable = spans[-1].end if spans else 0
        self.released = spans[0].base if spans else 0
        self._ended = deque(span for span in spans if span.end > span.base)
        self._arrived: list[_Waiting] = []
        self._is_due = False
        self._tasks: SimpleQueue[_Task] = SimpleQueue()
        self._background = ThreadPoolExecutor(1, thread_name_prefix="journal-segments")
        self._writer = SegmentWriter(
            directory, position=self.durable, segment_bytes=segment_bytes, background=self._background
        )
        with suppress(OSError):  # a full disk fails requests, not the start
            self._writer.roll_small()
        self._active_base = self._writer.active_base
        self._thread = Thread(target=self._run, name="journal-writer", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, directory: Path, *, segment_bytes: int = 64 << 20, rotate_after_s: float = 20.0) -> Self:
        """The journal in `directory`, made if missing, its torn tail cut. JournalError if open elsewhere."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        epoch_fd = _lock(directory)
        try:
            return cls(
                directory, segment_bytes=segment_bytes, rotate_after_s=rotate_after_s, epoch_fd=epoch_fd
            )
        except BaseException:
            os.close(epoch_fd)
            raise

    @property
    def backlog_bytes(self) -> int:
        """Bytes taken in and not yet released."""
        return self.durable + self.queued_bytes - self.released

    async def append(self, kind: int, body: bytes, *, received_at_ns: int, gather_s: float = 0.0) -> int:
        """Put one record on disk; the position after it once it is there. JournalFull if that failed.

        It may wait `gather_s` for others that come alone too: each group costs a turn of the writer's thread.
        """
        return await self.submit(kind, body, received_at_ns=received_at_ns, gather_s=gather_s)

    def submit(
        self, kind: int, body: bytes, *, received_at_ns: int, gather_s: float = 0.0
    ) -> asyncio.Future[int]:
        """The same for who goes on meanwhile: the future has the position, or what went wrong."""
        if self._closing:
            raise JournalError("the journal is closed")
        if len(body) > MAX_BODY_BYTES:
            raise JournalError(f"a record of {len(body)} bytes is over the limit of {MAX_BODY_BYTES}")
        loop = self._loop or self._bind_loop()
        done: asyncio.Future[int] = loop.create_future()
        self.queued_bytes += HEADER_BYTES + len(body)
        if gather_s and not self._arrived:
            loop.call_later(gather_s, self._hand_over)
        elif not gather_s and not self._is_due:
            self._is_due = True
            loop.call_soon(self._hand_over)
        self._arrived.append(_Waiting(done, kind, received_at_ns, body))
        return done

    def release(self, offset: int) -> None:
        """Everything before `offset` is stored elsewhere: delete what is wholly below, end the active one
        soon.
        """
        if offset > self.durable:
            raise ValueError(f"cannot release position {offset}, durable is {self.durable}")
        self.released = max(self.released, offset)
        self._delete_released()
        self._schedule_rotation()

    async def close(self) -> None:
        """Write what waits, then stop. Later appends fail."""
        if self._closing:
            return
        self._closing = True
        if self._rotation:
            self._rotation.cancel()
        self._hand_over()
        self._tasks.put(_Stop())
        await asyncio.get_running_loop().run_in_executor(None, self._join)
        await asyncio.sleep(0)  # lets the last groups' replies, already queued in this loop, go out
        os.close(self._epoch_fd)

    def _join(self) -> None:
        self._thread.join()
        self._background.shutdown()

    # --- in the event loop ---

    def _bind_loop(self) -> asyncio.AbstractEventLoop:
        self._loop = asyncio.get_running_loop()
        return self._loop

    def _hand_over(self) -> None:
        """Wake the writer once for all that arrived in this round of the loop: wake-ups cost both threads."""
        self._is_due = False
        if self._arrived:
            self._tasks.put(self._arrived)
            self._arrived = []

    def _schedule_rotation(self) -> None:
        due = self._active_base is not None and self._active_base < self.released
        if due and not self._rotation and not self._closing:
            with suppress(RuntimeError):  # released before the loop runs: the first release inside it will do
                loop = self._loop or self._bind_loop()
                self._rotation = loop.call_later(self._rotate_after_s, self._tasks.put, _Rotate())

    def _delete_released(self) -> None:
        """Delete what is wholly released, never the file with the highest base: its name is the position."""
        newest = 1 if self._active_base is None else 0
        while len(self._ended) > newest and self._ended[0].end <= self.released:
            gone = self._ended.popleft()
            self._background.submit(self._delete, segment_path(self._directory, gone.base))

    def _on_written(self, group: Sequence[tuple[_Waiting, int]], durable: int) -> None:
        self.queued_bytes -= durable - self.durable
        self.durable = durable
        if self.failure:
            _log.warning("the journal writes again")
            self.failure = None
        self.groups += 1
        for waiting, offset in group:
            if not waiting.done.done():
                waiting.done.set_result(offset)
        if self.on_durable:
            self.on_durable(durable)

    def _on_failed(self, group: Sequence[_Waiting], error: Exception) -> None:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        if self.failure is None:
            fault = None if isinstance(error, OSError) else error  # a mistake of ours: say where
            _log.error(
                "the journal cannot write (%s): requests are refused until it can", reason, exc_info=fault
            )
        self.failure = reason
        for waiting in group:
            self.queued_bytes -= HEADER_BYTES + len(waiting.body)
            if not waiting.done.done():
                waiting.done.set_exception(JournalFull(f"the journal cannot write: {reason}"))

    def _on_segments(self, ended: Sequence[Span], active_base: int | None) -> None:
        self._ended.extend(ended)
        self._active_base = active_base
        self._delete_released()

    def _on_rotated(self) -> None:
        self._rotation = None
        self._schedule_rotation()

    # --- in the writer thread ---

    def _run(self) -> None:
        while True:
            waiting, last = self._next_tasks()
            while waiting:
                waiting = waiting[self._write_group(waiting) :]
            if isinstance(last, _Rotate):
                self._rotate()
            if isinstance(last, _Stop):
                self._writer.close()
                return

    def _next_tasks(self) -> tuple[list[_Waiting], _Task | None]:
        """The records that wait now, about a group, and the command that ended the list (if one did)."""
        waiting: list[_Waiting] = []
        task = self._tasks.get()
        with suppress(Empty):
            while isinstance(task, list):
                waiting += task
                if len(waiting) >= _GROUP_FRAMES:
                    break
                task = self._tasks.get_nowait()
            else:
                return waiting, task
        return waiting, None

    def _write_group(self, waiting: Sequence[_Waiting]) -> int:
        """Write the records at the front of `waiting` that fit one segment; how many are settled now."""
        try:
            group, buffers = self._gather(waiting)
            self._writer.write(buffers, group[-1][1] - self._writer.position)
        except Exception as error:  # whatever it is, it fails this group and not the process
            self._writer.give_up()
            self._post_segments()
            self._post(self._on_failed, waiting, error)
            return len(waiting)
        self._post(self._on_written, group, self._writer.position)
        return len(group)

    def _gather(self, waiting: Sequence[_Waiting]) -> tuple[list[tuple[_Waiting, int]], list[bytes]]:
        """The records that fit the active segment, each with the position after it; their frames' buffers."""
        if HEADER_BYTES + len(waiting[0].body) > self._writer.room:
            self._writer.roll(HEADER_BYTES + len(waiting[0].body))
            self._post_segments()
        group: list[tuple[_Waiting, int]] = []
        buffers: list[bytes] = []
        position = self._writer.position
        limit = position + self._writer.room
        for record in waiting:
            end = position + HEADER_BYTES + len(record.body)
            if end > limit:
                break
            buffers.append(
                frame_header(
                    record.body, position=position, kind=record.kind, received_at_ns=record.received_at_ns
                )
            )
            buffers.append(record.body)
            group.append((record, end))
            position = end
        return group, buffers

    def _rotate(self) -> None:
        try:
            self._writer.roll_small()
        except OSError as error:
            _log.warning("the journal cannot start a new segment (%s)", error.strerror)
        self._post_segments()
        self._post(self._on_rotated)

    def _post_segments(self) -> None:
        self._post(self._on_segments, self._writer.take_ended(), self._writer.active_base)

    def _post(self, callback: Callable[[*_Args], None], *args: *_Args) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(callback, *args)

    # --- in the background thread ---

    @staticmethod
    def _delete(path: Path) -> None:
        with suppress(FileNotFoundError):
            path.unlink()


def _lock(directory: Path) -> int:
    """The EPOCH file, opened and locked; the lock ends with the process, however it ends."""
    fd = os.open(directory / "EPOCH", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise JournalError(f"the journal in {directory} is open in another process") from error
    return fd


def _read_epoch(fd: int, directory: Path) -> str:
    """The journal's name: offsets of different epochs have nothing to do with each other."""
    if known := os.pread(fd, 64, 0).decode().strip():
        return known
    made = str(uuid.uuid4())
    os.pwrite(fd, made.encode(), 0)
    os.fsync(fd)
    sync_directory(directory)
    return made
