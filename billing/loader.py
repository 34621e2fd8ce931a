"""From journal frames to ledger commits; a record that cannot be loaded goes to `rejects` alone.

Decoding is apart from committing, so that one batch can be decoded while the one before is being committed.
A batch that fails is cut in halves until the failing record stands alone. Faults of the machine (disk,
memory, a broken database) are not the record's and are raised.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import duckdb
import polars as pl

from billing.ledger import Batch, Commit, Ledger
from ingest.decode import decode
from ingest.dialect import Dialects, load_dialects
from ingest.journal import Frame, Kind
from ingest.observation import LINKS, OBSERVATIONS, REJECTS, UNRECOGNISED
from ingest.observe import Observed, observe

log = logging.getLogger("tollbook.loader")

FAULTS = (
    duckdb.IOException,
    duckdb.OutOfMemoryException,
    duckdb.FatalException,
    duckdb.InternalException,
    duckdb.TransactionException,
    duckdb.ConnectionException,
    MemoryError,
    OSError,
    NameError,
    AttributeError,
    ImportError,
)
"""What is wrong with the machine or with tollbook, not with a record: to be raised, never to be rejected.

A mistake of ours would otherwise send every acknowledged record to `rejects`.
"""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Journal frames, decoded; `batch` is None where they could not be decoded together."""

    frames: Sequence[Frame]
    batch: Batch | None

    @property
    def position(self) -> int:
        """The journal position after the last frame."""
        return self.frames[-1].offset


class Loader:
    """Decodes frames and commits them to one ledger."""

    def __init__(self, ledger: Ledger, dialects: Dialects | None = None) -> None:
        self._ledger = ledger
        self._dialects = dialects or load_dialects()

    def prepare(self, frames: Sequence[Frame]) -> Prepared:
        """Decode frames. Touches no ledger: may run in another thread than `load`."""
        if not frames:
            return Prepared(frames, None)
        try:
            return Prepared(frames, self._batch(frames))
        except FAULTS:
            raise
        except Exception:
            log.exception("%d requests cannot be decoded together; taking them apart", len(frames))
            return Prepared(frames, None)

    def load(self, prepared: Prepared) -> list[Commit]:
        """Commit prepared frames, in order; what fails is cut out into `rejects`."""
        if not prepared.frames:
            return []
        if prepared.batch is not None:
            return self._commit(prepared.batch)
        if len(prepared.frames) == 1:
            return [self._ledger.load(_rejected_frame(prepared.frames[0]))]
        middle = len(prepared.frames) // 2
        halves = (prepared.frames[:middle], prepared.frames[middle:])
        return [commit for half in halves for commit in self.load(self.prepare(half))]

    def _batch(self, frames: Sequence[Frame]) -> Batch:
        telemetry = [frame for frame in frames if frame.kind != Kind.CONTROL]
        observed = self._observed(telemetry) if telemetry else self._nothing_observed
        return Batch(
            observations=observed.observations,
            links=observed.links,
            rejects=observed.rejects,
            unrecognised=observed.unrecognised,
            position=frames[-1].offset,
            metric_points=observed.metric_points,
            fidelity=observed.fidelity,
            controls=[(frame.offset, frame.body) for frame in frames if frame.kind == Kind.CONTROL],
        )

    def _observed(self, telemetry: Sequence[Frame]) -> Observed:
        return observe(decode(telemetry, self._dialects))

    @cached_property
    def _nothing_observed(self) -> Observed:
        """What controls alone bring, thousands of reservations a second."""
        return self._observed([])

    def _commit(self, batch: Batch) -> list[Commit]:
        try:
            return [self._ledger.load(batch)]
        except FAULTS:
            raise
        except Exception as error:
            log.exception("%d observations cannot be committed together", len(batch.observations))
            halves = _halves(batch, self._ledger.position, error)
            return [commit for half in halves for commit in self._commit(half)]


_PARTS = ("observations", "metric_points", "links", "unrecognised", "controls")


def _halves(batch: Batch, position: int, error: Exception) -> list[Batch]:
    """Two smaller batches, the first of which does not move the journal position; a row alone is rejected.

    Rows of one kind are parted from the rest first, so that none is blamed for another kind's.
    """
    filled = [name for name in _PARTS if len(getattr(batch, name))]
    if not filled:
        raise error
    part, rows = filled[0], getattr(batch, filled[0])
    if len(filled) == 1 and len(rows) == 1:
        return [_without(batch, part, error)]
    middle = len(rows) if len(filled) > 1 else len(rows) // 2
    first: dict[str, Any] = {part: rows[:middle]}
    rest: dict[str, Any] = {part: rows[middle:]}
    return [dataclasses.replace(_nothing(position), **first), dataclasses.replace(batch, **rest)]


def _without(batch: Batch, part: str, error: Exception) -> Batch:
    """The batch without the one row of a part, which is rejected."""
    rows = getattr(batch, part)
    told = rows.row(0, named=True) if isinstance(rows, pl.DataFrame) else {"journal_offset": rows[0][0]}
    reason = f"could not be loaded ({type(error).__name__})"  # its message may quote the record
    reject = _reject(told.get("journal_offset", batch.position), told.get("signal", part), reason)
    emptied: dict[str, Any] = {part: rows[:0]}
    return dataclasses.replace(batch, rejects=pl.concat([batch.rejects, reject]), **emptied)


def _rejected_frame(frame: Frame) -> Batch:
    signal = Kind(frame.kind).name.partition("_")[0].lower()
    reject = _reject(frame.offset, signal, "the request could not be decoded")
    return dataclasses.replace(_nothing(frame.offset), rejects=reject)


def _nothing(position: int) -> Batch:
    return Batch(
        observations=pl.DataFrame(schema=OBSERVATIONS),
        links=pl.DataFrame(schema=LINKS),
        rejects=pl.DataFrame(schema=REJECTS),
        unrecognised=pl.DataFrame(schema=UNRECOGNISED),
        position=position,
    )


def _reject(offset: int, signal: str, reason: str) -> pl.DataFrame:
    row = {
        "journal_offset": offset,
        "signal": signal,
        "reason": reason,
        "received_at": datetime.now(UTC),
    }
    return pl.DataFrame([row], schema=REJECTS)
