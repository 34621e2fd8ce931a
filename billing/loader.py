"""From journal frames to ledger commits; a record that cannot be loaded goes to `rejects` alone.

A batch that fails is cut in halves until the failing record stands alone. Faults of the machine (disk,
memory, a broken database) are not the record's and are raised.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from datetime import UTC, datetime

import duckdb
import polars as pl
from ingest.observe import observe

from billing.ledger import Batch, Commit, Ledger
from ingest.decode import decode
from ingest.journal import Frame, Kind
from ingest.observation import LINKS, OBSERVATIONS, REJECTS, UNRECOGNISED

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
)
"""What is wrong with the machine, not with a record: to be tried again, never to be rejected."""


def load_frames(ledger: Ledger, frames: Sequence[Frame]) -> list[Commit]:
    """Commit journal frames, in order; frames that fail are cut out into `rejects`."""
    try:
        batch = _batch(frames)
    except FAULTS:
        raise
    except Exception as error:
        if len(frames) == 1:
            return [ledger.load(_rejected_frame(frames[0], error))]
        middle = len(frames) // 2
        return [*load_frames(ledger, frames[:middle]), *load_frames(ledger, frames[middle:])]
    return _load(ledger, batch)


def _batch(frames: Sequence[Frame]) -> Batch:
    telemetry = [frame for frame in frames if frame.kind != Kind.CONTROL]
    observed = observe(decode(telemetry))
    return Batch(
        observations=observed.observations,
        links=observed.links,
        rejects=observed.rejects,
        unrecognised=observed.unrecognised,
        position=frames[-1].offset,
        controls=[(frame.offset, frame.body) for frame in frames if frame.kind == Kind.CONTROL],
    )


def _load(ledger: Ledger, batch: Batch) -> list[Commit]:
    try:
        return [ledger.load(batch)]
    except FAULTS:
        raise
    except Exception as error:
        log.exception("a batch of %d observations failed; cutting it in halves", len(batch.observations))
        return [commit for part in _halves(batch, ledger.position, error) for commit in _load(ledger, part)]


def _halves(batch: Batch, position: int, error: Exception) -> list[Batch]:
    """Two smaller batches, the first of which does not move the journal position; one record is rejected."""
    count = len(batch.observations)
    if count == 0:
        raise error
    if count == 1:
        return [_without_observation(batch, error)]
    middle = count // 2
    first = dataclasses.replace(_nothing(position), observations=batch.observations[:middle])
    return [first, dataclasses.replace(batch, observations=batch.observations[middle:])]


def _without_observation(batch: Batch, error: Exception) -> Batch:
    told = batch.observations.row(0, named=True)
    reject = _reject(told["journal_offset"], told["signal"], error)
    return dataclasses.replace(
        batch, observations=batch.observations.clear(), rejects=pl.concat([batch.rejects, reject])
    )


def _rejected_frame(frame: Frame, error: Exception) -> Batch:
    log.error("frame ending at %d cannot be decoded: %s", frame.offset, type(error).__name__)
    signal = Kind(frame.kind).name.partition("_")[0].lower()
    return dataclasses.replace(_nothing(frame.offset), rejects=_reject(frame.offset, signal, error))


def _nothing(position: int) -> Batch:
    return Batch(
        observations=pl.DataFrame(schema=OBSERVATIONS),
        links=pl.DataFrame(schema=LINKS),
        rejects=pl.DataFrame(schema=REJECTS),
        unrecognised=pl.DataFrame(schema=UNRECOGNISED),
        position=position,
    )


def _reject(offset: int, signal: str, error: Exception) -> pl.DataFrame:
    """A row of `rejects`; the error's class only, because its message may quote the record."""
    row = {
        "journal_offset": offset,
        "signal": signal,
        "reason": f"could not be loaded ({type(error).__name__})",
        "received_at": datetime.now(UTC),
    }
    return pl.DataFrame([row], schema=REJECTS)
