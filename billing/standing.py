"""Aggregates (agent, turn and chain spans that repeat their calls' figures): which stand for calls not known.

An aggregate stands only while nothing is known of what it sums up. It goes when a call or an aggregate lies
below it in its trace, or when calls told elsewhere (another trace, a log without trace) account for it:
one call with its figures, or calls of its session within its time that add up to at least as much. It is
never joined with a call and never added to one. What has come to cover an aggregate never uncovers it, so
order does not matter.
"""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import polars as pl

from billing.ancestry import nearest_above

REACH = timedelta(seconds=2)
"""How far outside an aggregate's time a call may lie that it repeats."""

_AGREE = (pl.col("instance") == pl.col("instance_call")).fill_null(value=True)


def telling() -> pl.Expr:
    """Whether an aggregate tells any tokens; others stand for nothing."""
    return pl.col("input_tokens").is_not_null() | pl.col("output_tokens").is_not_null()


def covered(
    rows: pl.DataFrame, labels: np.ndarray, links: pl.DataFrame, *, settled: pl.DataFrame | None
) -> tuple[np.ndarray, np.ndarray]:
    """Labels that give each covered aggregate the group of a call that covers it, and which rows stand.

    An aggregate that is `settled` (id_hi, id_lo) covers those above it, and stands for nothing.
    """
    useful = rows.filter(pl.col("role") == "aggregate", telling())
    standing = useful if settled is None else useful.join(settled, on=["id_hi", "id_lo"], how="anti")
    calls = rows.filter(pl.col("role") == "call")
    below = nearest_above(pl.concat([calls, useful]), useful, links)
    alone = standing.join(below, left_on="row", right_on="row_b", how="anti")
    pairs = pl.concat([below, _accounted(alone, calls, labels)])
    heirs = pairs.group_by("row_b").agg(pl.col("row").min())
    stands = (rows["role"] == "call").to_numpy().copy()
    stands[standing["row"].to_numpy()] = True
    stands[heirs["row_b"].to_numpy()] = False
    return _inherited(labels, heirs), stands


def _inherited(labels: np.ndarray, heirs: pl.DataFrame) -> np.ndarray:
    """Each covered aggregate under the group of what covers it, through any number of aggregates between."""
    heir = np.arange(len(labels))
    heir[heirs["row_b"].to_numpy()] = heirs["row"].to_numpy()
    for _ in range(len(heirs).bit_length() + 1):
        heir = heir[heir]
    return labels[heir]


def _accounted(alone: pl.DataFrame, calls: pl.DataFrame, labels: np.ndarray) -> pl.DataFrame:
    """Rows (row, row_b): aggregates that calls elsewhere account for, and one of those calls."""
    if alone.is_empty() or calls.is_empty():
        return pl.DataFrame(schema={"row": pl.UInt32, "row_b": pl.UInt32})
    facts = calls.with_columns(pl.Series("call", labels[calls["row"].to_numpy()])).select(
        "call",
        *("row", "service", "instance", "session_id", "started_at", "ended_at"),
        *("input_tokens", "output_tokens", "reasoning_tokens"),
    )
    alike = _within(alone, facts, ["service", "input_tokens"]).filter(_AGREE, _output_alike())
    return pl.concat([alike.select("row", "row_b"), _summed(alone, facts)])


def _within(alone: pl.DataFrame, facts: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """Pairs of an aggregate (row_b) and a call (row, columns with `_call`) inside its time, keys equal."""
    named = facts.rename({c: f"{c}_call" for c in facts.columns if c not in ("row", "call", *keys)})
    wide = alone.select(
        pl.col("row").alias("row_b"),
        *("service", "instance", "session_id", "started_at", "ended_at", "input_tokens", "output_tokens"),
    )
    return wide.join(named, on=keys).filter(
        pl.col("started_at_call") >= pl.col("started_at") - REACH,
        pl.col("ended_at_call") <= pl.col("ended_at") + REACH,
    )


def _output_alike() -> pl.Expr:
    """Equal, apart by the reasoning, or an aggregate that took a stream's placeholder 1 for the figure."""
    apart = (pl.col("output_tokens") - pl.col("output_tokens_call")).abs()
    reasoning = (apart == pl.col("reasoning_tokens_call")).fill_null(value=False)
    return ((apart <= 1) | reasoning | (pl.col("output_tokens") == 1)).fill_null(value=True)


def _summed(alone: pl.DataFrame, facts: pl.DataFrame) -> pl.DataFrame:
    """Aggregates of a session whose calls, each counted once, tell at least as many tokens."""
    pairs = _within(alone, facts, ["session_id"])
    once = pairs.group_by("row_b", "call").agg(
        pl.col("row").min(),
        pl.col("input_tokens", "output_tokens").first(),
        pl.col("input_tokens_call", "output_tokens_call").max(),
    )
    sums = once.group_by("row_b").agg(
        pl.col("row").min(),
        pl.col("input_tokens", "output_tokens").first().fill_null(0),
        pl.col("input_tokens_call", "output_tokens_call").cast(pl.Int128).sum(),
    )
    enough = [pl.col(f"{c}_call") >= pl.col(c) for c in ("input_tokens", "output_tokens")]
    return sums.filter(*enough, pl.col("input_tokens_call") > 0).select("row", "row_b")
