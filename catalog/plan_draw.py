"""What each call draws from its plan, in the plan's unit: requests, tokens, dollars at list price, credits.

A frame without `call_count` holds one call a row. NULL where a draw cannot be told from the call: the plan
counts in what only the provider knows, or the call's tokens or price are unknown. A failed call draws
nothing that we know of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from fnmatch import fnmatchcase

import polars as pl

from catalog.plan_facts import Plan

__all__ = ["plan_draws", "weight_of"]

_DRAW = pl.Decimal(38, 12)
_ONE = Decimal(1)


def plan_draws(calls: pl.DataFrame, plans: Mapping[str, Plan]) -> pl.Series:
    """Give `plan_draw` (DECIMAL(38,12)) of rated calls; reads plan_id, access, status, model, call_count,
    tokens and list_cost_usd.
    """
    named = calls["plan_id"].unique().to_list() if "plan_id" in calls.columns else []
    known = [plans[plan] for plan in named if plan in plans]
    if not known:
        return pl.Series("plan_draw", [None], dtype=_DRAW).new_from_index(0, len(calls))
    succeeded = (pl.col("status") != "error").fill_null(value=True)
    covered = pl.col("plan_id").is_in([plan.id for plan in known]) & pl.col("access").is_in(
        ["subscription", "credits"]
    )
    told = calls.select((covered & succeeded).fill_null(value=False)).to_series()
    drawing = calls.filter(told)
    draw: pl.Expr = pl.lit(None, _DRAW)
    for plan in known:
        draw = pl.when(pl.col("plan_id") == plan.id).then(_drawn(plan, drawing)).otherwise(draw)
    drawn = drawing.select(draw.cast(_DRAW).alias("plan_draw")).to_series()
    places = pl.select(pl.when(told).then(told.cum_sum() - 1)).to_series()
    return drawn.gather(places.cast(pl.UInt32)) if len(drawn) else drawn.extend_constant(None, len(calls))


def _drawn(plan: Plan, calls: pl.DataFrame) -> pl.Expr:
    units = _units(plan, calls.columns)
    if not plan.weights:
        return units
    models = calls["model"].unique().to_list()
    weights = {model: weight_of(plan, model) for model in models}
    weight = pl.col("model").replace_strict(
        list(weights), list(weights.values()), return_dtype=pl.Decimal(18, 6)
    )
    return (units * weight).cast(_DRAW)


def weight_of(plan: Plan, model: str | None) -> Decimal:
    """Give the weight of a canonical model in a plan: the first pattern that fits, else 1."""
    for said in plan.weights:
        if model is not None and any(fnmatchcase(model, pattern) for pattern in said.models):
            return said.weight
    return _ONE


def _units(plan: Plan, told: Sequence[str]) -> pl.Expr:
    if plan.unit == "requests":
        return (pl.col("call_count") if "call_count" in told else pl.lit(1)).cast(_DRAW)
    if plan.unit == "input_tokens":
        return pl.col("input_tokens").cast(_DRAW)
    if plan.unit == "tokens":
        return (pl.col("input_tokens") + pl.col("output_tokens")).cast(_DRAW)
    listed = pl.col("list_cost_usd").cast(_DRAW)
    if plan.unit == "list_usd":
        return listed
    if plan.unit == "credits" and plan.credits_per_usd is not None:
        return (listed * pl.lit(plan.credits_per_usd, pl.Decimal(18, 6))).cast(_DRAW)
    return pl.lit(None, _DRAW)
