"""Written calls charged again: the same facts with the catalogue of today.

What a call is (its tokens, its time, whose it is) is never touched; provider, model, access and charge are
worked out anew from the evidence that was kept with the row, so that it works when the records of the call
are long gone. A row without evidence keeps its identity and is only priced again. Sums of metrics are priced
without tiers and settlements as their checks told, as when they were written first.
"""

from __future__ import annotations

from datetime import datetime

import polars as pl

from billing import tables
from billing.changes import Changed, reasons
from billing.charges import Pricing
from billing.history import Source
from billing.metrics import without_tiers
from billing.reservation_calls import as_told_before
from billing.store import CALL_LISTS

CALLS = Source("calls", tuple(tables.names(tables.LEDGER_CALLS)), ("call_id",))
_IDENTITY = (
    *("provider", "served_model", "model", "snapshot", "resolution", "modifiers"),
    *("access", "access_evidence", "access_confidence", "plan_id"),
)
_BOOKKEEPING = ("evidence", "revision", "recorded_at")
_WORDING = ("access_evidence", "access_confidence", "price_id", "catalog_version")
"""What alone is no reason to write a call anew: how it is said, not what it says."""


def rerated(stored: pl.DataFrame, pricing: Pricing, *, now: datetime) -> Changed:
    """Stored rows (LEDGER_CALLS) that the catalogue charges otherwise today, and what they are then."""
    stored = stored.cast(CALL_LISTS)  # type: ignore[arg-type]
    fresh = _charged_again(stored, pricing)
    content = [name for name in stored.columns if name not in (*_BOOKKEEPING, *_WORDING)]
    differs = stored.select(content).hash_rows() != fresh.select(content).hash_rows()
    written = fresh.filter(differs).with_columns(
        (pl.col("revision") + 1).cast(pl.Int32), recorded_at=pl.lit(now).cast(pl.Datetime("us", "UTC"))
    )
    removed = stored.filter(differs).with_columns(superseded_by=pl.lit(None, pl.String))
    return Changed(reasons(removed, written, gone=pl.lit(None, pl.String)), written)


def _charged_again(stored: pl.DataFrame, pricing: Pricing) -> pl.DataFrame:
    """The rows in their order, resolved and rated, each by the way of its basis."""
    basis = pl.col("basis")
    sums, settled = stored.filter(basis == "metric"), stored.filter(basis == "settlement")
    plain = _charged(stored.filter(~basis.is_in(["metric", "settlement"])), pricing)
    parts = [
        plain,
        without_tiers(_charged(sums, pricing), pricing) if len(sums) else plain.clear(),
        _charged(settled, as_told_before(pricing, settled)) if len(settled) else plain.clear(),
    ]
    typed = [part.select(stored.columns).cast(dict(stored.schema)) for part in parts]  # type: ignore[arg-type]
    return (
        stored.select("call_id")
        .join(pl.concat(typed), on="call_id", maintain_order="left")
        .select(stored.columns)
    )


def _charged(stored: pl.DataFrame, pricing: Pricing) -> pl.DataFrame:
    told = [pl.col("evidence").struct.field(name).alias(name) for name in tables.EVIDENCE_FIELDS]
    resolved = pricing.resolve(stored.with_columns(told))
    known = pl.col("evidence").is_not_null()
    kept = [pl.when(known).then(name).otherwise(stored[name]).alias(name) for name in _IDENTITY]
    return pricing.rate(resolved.cast({"modifiers": stored.schema["modifiers"]}).with_columns(kept))
