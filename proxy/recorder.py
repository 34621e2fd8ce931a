"""The records of attempts: in a slot before a call goes out and before its answer ends, then in the journal.

The slot keeps what a killed process knew, so nobody waits for the disk: the journal gets the record beside
the end of the answer, with those that end in the same moment, and the slot is free once it is there.
`settled` is for who needs to know that.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Final

from ingest.call_report import journal_call
from ingest.journal import Journal, JournalError
from proxy.exchange import Attempt, Exchange, Outcome
from proxy.failure import FailureKind
from proxy.inflight import InFlight, TooManyInFlight
from proxy.refusal import Refused
from proxy.report import record_of

__all__ = ["Recorder"]

log = logging.getLogger("tollbook.proxy")

GATHERED_S: Final = 0.05
"""Records that come within so long are one entry of the journal, since each entry wakes its writer, the disk
and the ledger. A kill loses none of them: they stand in their slots.
"""
MAX_GATHERED: Final = 256


class Recorder:
    """Writes down every attempt that is a call. `outcomes` counts them, `unrecorded` those that stand in
    their slots only, since the journal could not take them: the next start journals them.
    """

    def __init__(self, journal: Journal, inflight: InFlight) -> None:
        self._journal = journal
        self._inflight = inflight
        self._gathered: dict[int, bytes] = {}
        self._handing_over: asyncio.TimerHandle | None = None
        self._writing: set[asyncio.Future[int]] = set()
        self.outcomes = dict.fromkeys(Outcome, 0)
        self.unrecorded = 0

    @property
    def on_their_way(self) -> int:
        """Calls that are not in the journal yet."""
        return self._inflight.taken

    def begin(self, exchange: Exchange, attempt: Attempt) -> None:
        """Write down a call that goes out now. Raises Refused where too many are on their way."""
        if exchange.operation.counts_tokens:
            return
        try:
            attempt.slot = self._inflight.put(record_of(exchange, attempt))
        except TooManyInFlight:
            sentence = "too many calls are on their way; ask again"
            raise Refused(FailureKind.OVERLOADED, sentence, retry_after_s=1) from None

    def end(self, exchange: Exchange, attempt: Attempt, outcome: Outcome) -> None:
        """The attempt is over; what is known of it is safe from a kill when this returns."""
        slot, attempt.slot = attempt.slot, None
        if slot is None:
            return
        attempt.outcome = outcome
        self.outcomes[outcome] += 1
        record = self._gathered[slot] = record_of(exchange, attempt)
        self._inflight.keep(slot, record)
        if len(self._gathered) >= MAX_GATHERED:
            self._hand_over()
        elif self._handing_over is None:
            self._handing_over = asyncio.get_running_loop().call_later(GATHERED_S, self._hand_over)

    def _hand_over(self) -> None:
        """Give the journal what has been gathered."""
        if self._handing_over is not None:
            self._handing_over.cancel()
            self._handing_over = None
        gathered, self._gathered = self._gathered, {}
        if not gathered:
            return
        try:
            written = journal_call(self._journal, b"".join(gathered.values()))
        except JournalError as error:
            self._not_written(len(gathered), error)
            return
        self._writing.add(written)
        written.add_done_callback(partial(self._written, tuple(gathered)))

    def _written(self, slots: tuple[int, ...], written: asyncio.Future[int]) -> None:
        self._writing.discard(written)
        if (error := written.exception()) is not None:
            self._not_written(len(slots), error)
            return
        for slot in slots:
            self._inflight.clear(slot)

    def _not_written(self, calls: int, error: BaseException) -> None:
        self.unrecorded += calls
        log.error("%d calls stand in their slots and not in the journal: %s", calls, error)

    async def settled(self) -> None:
        """Return when every call whose answer has ended by now is in the journal, or cannot be."""
        self._hand_over()
        if self._writing:
            await asyncio.wait(self._writing)

    async def recover(self) -> None:
        """Record what a killed process had on its way. Raises JournalError."""
        for slot, record in list(self._inflight.interrupted.items()):
            await journal_call(self._journal, record)
            del self._inflight.interrupted[slot]
            self._inflight.clear(slot)

    async def close(self) -> None:
        """Wait for what is being written; what stands in the slots stays."""
        await self.settled()
        self._inflight.close()
