"""A settlement as a row of `calls`, for as long as no telemetry has told of the call.

It stands with basis 'settlement' under an id that follows from the reservation's, carries the dimensions that
were checked, so that it counts in the same budgets, and is priced by the catalogue like any other call,
unless the settlement told dollars.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import polars as pl

from billing import tables
from billing.budget import LABEL_PREFIX
from billing.charges import COUNTED, Pricing, charge
from billing.reservation import Usage, call_id_of
from billing.reservation_hold import moment
from ingest.observation import OBSERVATIONS

__all__ = ["SettledCall", "as_told_before", "settlement_calls"]

_COVERED = ("subscription", "free", "local")
_STATUS = {"subscription": "included", "free": "free", "local": "free", "unknown": "assumed"}
_MONEY = pl.Decimal(18, 12)
_PLAIN = ("team", "project", "environment", "agent", "user_id", "session_id", "account_id")
_BY_THE_CHECK = "told by the check"
_TOLD = {"provider": pl.String, "model": pl.String, "access": pl.String, "usd": _MONEY}


@dataclass(frozen=True, slots=True)
class SettledCall:
    """What a settlement tells of a call; `told` are the dimensions that were checked."""

    reservation_id: str
    told: dict[str, str]
    asked_model: str | None
    started_us: int
    ended_us: int
    usage: Usage | None
    usd: Decimal | None
    model: str | None
    provider: str | None
    trace_id: str | None
    response_id: str | None
    revision: int


def settlement_calls(settled: Sequence[SettledCall], pricing: Pricing, *, now: datetime) -> pl.DataFrame:
    """Rows of `calls`, one for each."""
    rows = [_observation(each) for each in settled]
    observed = pl.DataFrame(rows, schema=OBSERVATIONS).with_row_index("group")
    fused = observed.with_columns(pl.lit(value=True).alias("stands"), pl.col("group").cast(pl.UInt32))
    charged = charge(fused, _AsTold(pricing, _told_by(settled)), now=now)
    revisions = pl.DataFrame(
        [(call_id_of(each.reservation_id), each.revision) for each in settled],
        schema={"call_id": pl.String, "of": pl.Int32},
        orient="row",
    )
    numbered = charged.join(revisions, on="call_id").with_columns(pl.col("of").alias("revision"))
    return numbered.with_columns(pl.lit("settlement").alias("basis")).select(
        tables.names(tables.LEDGER_CALLS)
    )


def as_told_before(pricing: Pricing, stored: pl.DataFrame) -> Pricing:
    """The pricing of settlements that stand in `calls`: what was told of them is read off their rows."""
    by_check = pl.col("access_evidence") == _BY_THE_CHECK
    told = stored.select(
        "call_id",
        pl.col("provider").alias("told_provider"),
        pl.col("model").alias("told_model"),
        pl.when(by_check).then("access").alias("told_access"),
        pl.col("reported_cost_usd").cast(_MONEY).alias("told_usd"),
    )
    return _AsTold(pricing, told)


def _told_by(settled: Sequence[SettledCall]) -> pl.DataFrame:
    rows = [(call_id_of(each.reservation_id), *_told(each)) for each in settled]
    return pl.DataFrame(rows, schema={"call_id": pl.String, **_prefixed()}, orient="row")


def _observation(each: SettledCall) -> dict[str, Any]:
    digits = call_id_of(each.reservation_id)[1:]
    labels = [
        {"key": name.removeprefix(LABEL_PREFIX), "value": value}
        for name, value in each.told.items()
        if name.startswith(LABEL_PREFIX)
    ]
    usage = {} if each.usage is None else each.usage.model_dump()
    trace = each.trace_id or ""
    return {
        **dict.fromkeys(OBSERVATIONS),
        **{name: each.told.get(name) for name in _PLAIN},
        **usage,
        "id_hi": int(digits[:16], 16),
        "id_lo": int(digits[16:], 16),
        "signal": "settlement",
        "role": COUNTED,
        "rank": 0,
        "layer": "settlement",
        "emitter": "settlement",
        "status": "ok",
        "effective_at": moment(each.started_us),
        "started_at": moment(each.started_us),
        "ended_at": moment(max(each.started_us, each.ended_us)),
        "trace_hi": int(trace[:16], 16) if trace else None,
        "trace_lo": int(trace[16:], 16) if trace else None,
        "response_id": each.response_id,
        "provider_name": each.provider or each.told.get("provider"),
        "request_model": each.model or each.asked_model or each.told.get("model"),
        "labels": labels,
        "reported_cost_usd": each.usd,
        "anomalies": [],
    }


class _AsTold:
    """The catalogue's pricing, with what the check and the settlement told in its place."""

    def __init__(self, pricing: Pricing, told: pl.DataFrame) -> None:
        self._pricing = pricing
        self.version = pricing.version
        self._told = told

    def resolve(self, calls: pl.DataFrame) -> pl.DataFrame:
        """As the catalogue resolves; where it knows nothing, as the check was answered."""
        joined = self._pricing.resolve(calls).join(
            self._told, on="call_id", how="left", maintain_order="left"
        )
        told = [
            pl.coalesce("provider", "told_provider").alias("provider"),
            pl.coalesce("model", "told_model").alias("model"),
            pl.coalesce("told_access", "access").alias("access"),
        ]
        why = pl.when(pl.col("told_access").is_not_null()).then(pl.lit(_BY_THE_CHECK))
        return joined.with_columns(
            *told, why.otherwise(pl.col("access_evidence")).alias("access_evidence")
        ).drop(list(_prefixed()))

    def rate(self, calls: pl.DataFrame) -> pl.DataFrame:
        """As the catalogue rates, but for dollars that were told."""
        rated = self._pricing.rate(calls)
        columns = rated.columns
        joined = rated.join(self._told, on="call_id", how="left", maintain_order="left")
        usd, access = pl.col("told_usd"), pl.col("access")
        told = usd.is_not_null() & (access != "provisioned")
        zero = pl.lit(Decimal(0)).cast(_MONEY)
        billed = pl.when(access.is_in(_COVERED)).then(zero).otherwise(usd)
        listed = pl.when(access.is_in(("free", "local"))).then(zero).otherwise(usd)
        status = access.replace_strict(_STATUS, default="priced", return_dtype=pl.String)
        return joined.with_columns(
            pl.when(told).then(billed).otherwise("billed_cost_usd").cast(_MONEY).alias("billed_cost_usd"),
            pl.when(told).then(listed).otherwise("list_cost_usd").cast(_MONEY).alias("list_cost_usd"),
            pl.when(told).then(status).otherwise("cost_status").alias("cost_status"),
            pl.when(~told).then("price_id").alias("price_id"),
        ).select(columns)


def _prefixed() -> dict[str, Any]:
    return {f"told_{name}": kind for name, kind in _TOLD.items()}


def _told(each: SettledCall) -> tuple[str | None, str | None, str | None, Decimal | None]:
    """Provider and model hold for what was asked, not for another model that answered instead."""
    other = each.model is not None or each.provider is not None
    provider, model = (None, None) if other else (each.told.get("provider"), each.told.get("model"))
    return provider, model, each.told.get("access"), each.usd
