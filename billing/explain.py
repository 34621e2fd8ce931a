"""Why a call costs what it costs: the records it was fused from, what was concluded, and the arithmetic."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any, Protocol

import polars as pl

from billing import tables
from billing.charges import hex_digits
from billing.ledger import Ledger
from billing.store import frames, read

_OBSERVED = (
    "signal",
    "scope",
    "scope_version",
    "name",
    "emitter",
    "layer",
    "received_at",
    "started_at",
    "ended_at",
    "status",
    "response_id",
    "request_id",
    "provider_name",
    "server_address",
    "request_model",
    "response_model",
    "input_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "output_tokens",
    "reasoning_tokens",
    "reported_cost_usd",
    "access_hint",
    "access_evidence",
    "anomalies",
    "journal_offset",
)
_CALL = ", ".join(tables.names(tables.CALLS))


class Explaining(Protocol):
    """What an explanation needs of the catalogue."""

    def explain(self, call: dict[str, Any]) -> dict[str, Any]: ...


def explain(ledger: Ledger, catalog: Explaining, call_id: str, started_at: datetime) -> dict[str, Any] | None:
    """The evidence for one current call as JSON-able values, or None if there is no such call."""
    cursor = ledger.cursor()
    with frames(cursor, wanted=pl.DataFrame({"call_id": [call_id]})):
        query = f"SELECT {_CALL} FROM calls WHERE started_at = ? AND call_id IN (SELECT call_id FROM wanted)"
        calls = read(cursor, query, [started_at])
    if calls.is_empty():
        return None
    observed = ledger.observations_of(call_id, started_at)
    return {
        "observations": _plain(_shown(observed)),
        "price": catalog.explain(calls.row(0, named=True)),
    }


def _shown(observed: pl.DataFrame) -> pl.DataFrame:
    if observed.is_empty():
        return observed
    identity = pl.concat_str(hex_digits("id_hi"), hex_digits("id_lo")).alias("observation_id")
    return observed.sort("rank", "id_hi", "id_lo").select(
        identity,
        *_OBSERVED,
        pl.concat_str(hex_digits("trace_hi"), hex_digits("trace_lo")).alias("trace_id"),
        hex_digits("span_id"),
    )


def _plain(frame: pl.DataFrame) -> list[dict[str, Any]]:
    return [
        {name: _value(value) for name, value in row.items() if value is not None} for row in frame.to_dicts()
    ]


def _value(value: object) -> object:
    return str(value) if isinstance(value, Decimal) else value
