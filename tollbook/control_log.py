"""Control records on their way to the journal: those of one round of the event loop go as one record.

Every reservation, settlement and release waits for the disk. Written one by one, each would cost a frame, a
future and a turn of the writer's thread, which shares the interpreter with whoever answers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from ingest.journal import Journal, JournalError, Kind
from tollbook.problems import Problem

__all__ = ["ControlLog"]

Done = asyncio.Future[int]


class ControlLog:
    """Appends control records to the journal. Belongs to one event loop."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._waiting: list[tuple[bytes, Done]] = []
        self._writing: set[asyncio.Task[None]] = set()

    async def append(self, body: bytes) -> int:
        """Put one record on disk, with the others of this moment; the position after them. Problem
        `journal_failed` where that cannot be.
        """
        loop = asyncio.get_running_loop()
        done: Done = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._send)
        self._waiting.append((body, done))
        return await done

    async def append_alone(self, body: bytes) -> int:
        """The same for a record that needs a position of its own."""
        try:
            return await self._journal.append(Kind.CONTROL, body, received_at_ns=time.time_ns())
        except JournalError as error:
            raise Problem("journal_failed", str(error), retry_after_s=2) from error

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        task = asyncio.get_running_loop().create_task(self._write(waiting))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _write(self, waiting: Sequence[tuple[bytes, Done]]) -> None:
        bodies = [body for body, _ in waiting]
        try:
            position = await self.append_alone(bodies[0] if len(bodies) == 1 else b"[%s]" % b",".join(bodies))
        except BaseException as error:
            for _, done in waiting:
                _fail(done, error)
            if not isinstance(error, Problem):
                raise
        else:
            for _, done in waiting:
                if not done.done():
                    done.set_result(position)


def _fail(done: Done, error: BaseException) -> None:
    if done.done():
        return
    if isinstance(error, Exception):
        done.set_exception(error)
    else:
        done.cancel()
