"""Why a call costs what it costs: the price row and the arithmetic, as decimal strings.

The lines sum to the list cost exactly; where rounding to 1e-12 took something away or added it, that is a
line too.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from catalog.arithmetic import Line, UnpricedPart, cost, lines, parts_of_call, shown_line
from catalog.finder import PriceFinder, Target
from catalog.table import PARTS, STANDARD, PriceModel, PriceRow, price_decimal

__all__ = ["explain_call", "mode_of_call", "said_by_call"]

_TIERS = frozenset({"flex", "priority", "fast"})


def explain_call(
    call: Mapping[str, Any], finder: PriceFinder, *, source: str, version: str
) -> dict[str, Any]:
    """Explain the list cost of a resolved call (the columns `Catalog.rate` reads, by name).

    Returns `list_cost_usd` (None with `reason` where unknown), `price_row`, `lines`, `estimated`.
    """
    target = finder.find(call.get("provider"), call.get("served_model"), call.get("model"))
    about = {"catalog_version": version, "price_source": source, "estimated": target.estimated}
    said = target.said | said_by_call(call)
    charged, row, reason = _charge(call, target, said)
    total = cost(charged) if row and not reason else None
    shown = [shown_line(line) for line in charged]
    if total is not None and (rest := total - sum((line.usd for line in charged), Decimal(0))):
        shown.append({"part": "rounding", "usd": f"{rest:f}"})
    return about | {
        "list_cost_usd": None if total is None else f"{total:f}",
        "reason": reason,
        "price_row": _row(row, target.model, mode_of_call(call), said) if row and target.model else None,
        "multiplier": _multiplier(target.model, said),
        "lines": shown,
    }


def said_by_call(call: Mapping[str, Any]) -> dict[str, str]:
    """Give what a call says besides its mode: where inference had to run."""
    geo = call.get("inference_geo") or call.get("region")
    return {"inference_geo": geo} if isinstance(geo, str) and geo else {}


def _multiplier(model: PriceModel | None, said: Mapping[str, str]) -> dict[str, str] | None:
    """Give the factor that is in the row's prices, and what of the call brought it."""
    found = model.variant(said) if model else None
    if found is None:
        return None
    return {"name": found.name, "factor": f"{found.factor:f}", "because": f"{found.key}={said[found.key]}"}


def mode_of_call(call: Mapping[str, Any]) -> str:
    """Give the price mode a call asks for; batch beats speed, speed beats service tier."""
    tier = (call.get("service_tier") or "").lower()
    if call.get("batch") or tier == "batch":
        return "batch"
    if (call.get("speed") or "").lower() == "fast":
        return "fast"
    return tier if tier in _TIERS else STANDARD


def _charge(
    call: Mapping[str, Any], target: Target, said: Mapping[str, str]
) -> tuple[list[Line], PriceRow | None, str]:
    at = call.get("started_at")
    if target.model is None or not isinstance(at, datetime):
        return [], None, target.reason or "start unknown"
    if call.get("input_tokens") is None or call.get("output_tokens") is None:
        return [], None, "input or output tokens are not told"
    parts = parts_of_call(call)
    size = sum(parts[p] for p in PARTS if p in parts and p not in ("output", "audio_output", "web_search"))
    row = target.model.row(mode_of_call(call), at, size, said=said)
    try:
        return lines(row, parts), row, ""
    except UnpricedPart as part:
        return [], row, f"{target.model.name} has no price for {part}"


def _row(row: PriceRow, model: PriceModel, asked: str, said: Mapping[str, str]) -> dict[str, Any]:
    mode = model.mode(asked, said)
    return {
        "price_id": row.price_id(model.name, mode),
        "price_list": model.provider,
        "price_model": model.model,
        "mode": mode,
        "valid_from": row.valid_from.isoformat().replace("+00:00", "Z"),
        "over_tokens": row.over_tokens,
        "layer": _layer(row.origin),
        "days": row.days.name if row.days else None,
        "from_time": f"{row.period_from_s // 3600:02d}:{row.period_from_s % 3600 // 60:02d}",
        "usd_per_million": {
            part: f"{price_decimal(price):f}"
            for part, price in zip(PARTS, row.prices, strict=True)
            if price is not None
        },
    }


def _layer(origin: str) -> str:
    """Say whose row it is: the price source's, ours, the operator's, or another model's by redirect."""
    return f"billed as {origin[1:]}" if origin.startswith("=") else origin.removeprefix("#") or "source"
