"""Observations made for tests of billing: one row with everything a dialect can tell, to be varied."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from ingest.observation import LINKS, OBSERVATIONS, REJECTS, UNRECOGNISED

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
_identities = itertools.count(1)


def observation(**told: Any) -> dict[str, Any]:
    """One record of a call to gpt-4o-mini at noon; identities count up unless told."""
    number = next(_identities)
    started = told.get("started_at", NOON)
    row: dict[str, Any] = dict.fromkeys(OBSERVATIONS)
    row |= {
        "id_hi": number,
        "id_lo": number,
        "journal_offset": number,
        "received_at": NOON,
        "effective_at": started,
        "effective_from": "own",
        "signal": "span",
        "scope": "sdk",
        "name": "chat gpt-4o-mini",
        "layer": "span:sdk",
        "emitter": "sdk",
        "rank": 1,
        "role": "call",
        "started_at": started,
        "ended_at": started + timedelta(seconds=1),
        "status": "ok",
        "service": "shop",
        "agent": "shop",
        "provider_name": "openai",
        "request_model": "gpt-4o-mini",
        "response_model": "gpt-4o-mini-2024-07-18",
        "input_tokens": 1000,
        "cache_read_tokens": 0,
        "output_tokens": 100,
        "operation": "chat",
        "anomalies": [],
        "attributes": b"",
    }
    return row | told


def observations(*rows: dict[str, Any]) -> pl.DataFrame:
    """The rows as dialects hand them over."""
    return pl.DataFrame(list(rows), schema=OBSERVATIONS)


def link(trace: int, span: int, parent: int | None, *, started_at: datetime = NOON) -> dict[str, Any]:
    """One span's link to its parent."""
    return {
        "trace_hi": trace,
        "trace_lo": trace,
        "span_id": span,
        "parent_span_id": parent,
        "started_at": started_at,
    }


def links(*rows: dict[str, Any]) -> pl.DataFrame:
    """The rows as decoding hands them over."""
    return pl.DataFrame(list(rows), schema=LINKS)


NO_REJECTS = pl.DataFrame(schema=REJECTS)
NOTHING_UNRECOGNISED = pl.DataFrame(schema=UNRECOGNISED)
