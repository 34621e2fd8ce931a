"""Where the journal's next group goes: the active segment, the one made ready behind it, and giving up a
failed tail.

Used by one thread only. It writes groups and starts segments; it decides nothing about who waits for what and
deletes nothing. Every failure is an OSError and leaves `position`, the end of what is durable, where it was.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from pathlib import Path
from typing import Final

from .segment import Span, create_zeroed, cut, segment_path, sync_directory, write_durably

SMALL_SEGMENT_BYTES: Final = 1 << 20


def _prepare_spare(directory: Path, size_bytes: int) -> Path:
    """A zeroed segment without a name of its own yet; one left over from an earlier process will do."""
    spare = directory / "spare"
    with suppress(FileNotFoundError):
        if spare.stat().st_size == size_bytes:
            return spare
    create_zeroed(spare, size_bytes)
    return spare


class SegmentWriter:
    """Writes groups of frames behind `position`. `segment_bytes` is the size of a segment made ready in
    advance.

    A segment that follows a quiet time is small (1 MiB): a trickle of telemetry must not cost a full zeroed
    segment every time its bodies are due to go.
    """

    def __init__(self, directory: Path, *, position: int, segment_bytes: int, background: Executor) -> None:
        self.position = position
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._small_bytes = min(segment_bytes, SMALL_SEGMENT_BYTES)
        self._background = background
        self._fd = -1
        self._base = position
        self._end = position  # a frame may be written up to here
        self._ended: list[Span] = []
        self._spare: Future[Path] | None = None
        self._make_ready()

    @property
    def active_base(self) -> int | None:
        """The first position of the segment being written, None when the last one had to be given up."""
        return self._base if self._fd >= 0 else None

    @property
    def room(self) -> int:
        """Bytes that still go into the active segment."""
        return self._end - self.position

    def write(self, buffers: Sequence[bytes], size_bytes: int) -> None:
        """Put one group (at most `room` bytes) on disk behind `position`, and move `position` behind it."""
        write_durably(self._fd, buffers, at=self.position - self._base)
        self.position += size_bytes

    def roll(self, need_bytes: int) -> None:
        """Go on in a new segment with room for `need_bytes`: the one made ready if it can be had, else
        a small one, which a nearly full disk may still have room for.
        """
        self._start(self._made(need_bytes))
        self._make_ready()

    def roll_small(self) -> None:
        """Go on in a small new segment, unless the active one is still empty."""
        if self.position > self._base or self._fd < 0:
            self._start(self._made_now(self._small_bytes))

    def give_up(self) -> None:
        """Drop what stands behind `position` in the active segment and never write there again.

        After a failed write or sync nobody knows which of its pages are on disk, so the next group gets new
        ones.
        """
        if self._fd >= 0:
            with suppress(OSError):  # the next segment's base shuts the tail out in any case
                cut(segment_path(self._directory, self._base), self.position - self._base)
            self._end_active()

    def take_ended(self) -> list[Span]:
        """The segments ended since the last time this was asked, empty ones left out."""
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        """Close the active segment; what is in it stays for the next start."""
        if self._fd >= 0:
            self._end_active()

    def _made(self, need_bytes: int) -> Path:
        with suppress(OSError):
            if need_bytes <= self._segment_bytes:
                return self._take_spare()
        return self._made_now(max(need_bytes, self._small_bytes))

    def _made_now(self, size_bytes: int) -> Path:
        fresh = self._directory / "fresh"
        create_zeroed(fresh, size_bytes)
        return fresh

    def _make_ready(self) -> None:
        self._spare = self._background.submit(_prepare_spare, self._directory, self._segment_bytes)

    def _take_spare(self) -> Path:
        spare, self._spare = self._spare, None
        if spare is None:
            spare = self._background.submit(_prepare_spare, self._directory, self._segment_bytes)
        return spare.result()

    def _start(self, made: Path) -> None:
        """Let the zeroed file `made` be the active segment from `position` on."""
        fd = os.open(made, os.O_WRONLY)
        try:
            size = os.fstat(fd).st_size
            made.replace(segment_path(self._directory, self.position))
            sync_directory(self._directory)
        except OSError:
            os.close(fd)
            self.give_up()  # the new name may be there or not: the old segment must end here in both cases
            raise
        if self._fd >= 0:
            self._end_active()
        self._fd, self._base, self._end = fd, self.position, self.position + size

    def _end_active(self) -> None:
        os.close(self._fd)
        self._fd = -1
        self._end = self.position
        if self.position > self._base:
            self._ended.append(Span(self._base, self.position))
