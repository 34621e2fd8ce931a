"""What a job over history makes different: why each call was replaced, and the sums by model.

Pure: works on the rows of `calls` that are taken out and those that take their place, paired by `call_id`.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from billing import tables

MONEY_SUM = pl.Decimal(38, 12)
_NAMED = (
    # column, what people call it
    ("provider", "provider"),
    ("model", "model"),
    ("served_model", "served model"),
    ("access", "access"),
    ("plan_id", "plan"),
    ("status", "status"),
    ("cost_status", "cost status"),
    ("price_id", "price row"),
    ("input_tokens", "input tokens"),
    ("cache_read_tokens", "cache read tokens"),
    ("cache_write_tokens", "cache write tokens"),
    ("output_tokens", "output tokens"),
    ("reasoning_tokens", "reasoning tokens"),
    ("observation_count", "records"),
    ("list_cost_usd", "list cost"),
    ("billed_cost_usd", "billed cost"),
)
_KEYS = ("access", "cost_status", "price_id")
_SUMS: dict[str, pl.DataType] = {
    "input_tokens": pl.Decimal(38, 0),
    "output_tokens": pl.Decimal(38, 0),
    "list_cost_usd": MONEY_SUM,
    "billed_cost_usd": MONEY_SUM,
}
_READS = tuple(dict.fromkeys(["call_id", *(name for name, _ in _NAMED), *_SUMS]))
SUMMED = tables.names(tables.JOB_CHANGES)[1:]


@dataclass(frozen=True, slots=True)
class Changed:
    """Rows of `calls` to be taken out (with `superseded_by` and `reason`), and rows to be put in."""

    removed: pl.DataFrame
    written: pl.DataFrame

    @property
    def calls(self) -> int:
        """How many calls are different."""
        return pl.concat([self.removed["call_id"], self.written["call_id"]]).n_unique()


def reasons(removed: pl.DataFrame, written: pl.DataFrame, *, gone: pl.Expr) -> pl.DataFrame:
    """The removed rows with `reason`: what is different in the row that takes their place, else `gone`."""
    told = removed.select(_READS)
    after = written.select(_READS, there=pl.lit(value=True))
    both = told.join(after, on="call_id", how="left", suffix="_after", maintain_order="left")
    parts = [_difference(column, label) for column, label in _NAMED]
    listed = pl.concat_list(parts).list.drop_nulls().list.join("; ")
    what = pl.when(listed == "").then(pl.lit("other facts")).otherwise(listed)
    column = both.select(pl.when(pl.col("there")).then(what).alias("reason"))["reason"]
    return removed.with_columns(column).with_columns(pl.coalesce("reason", gone).alias("reason"))


def _difference(column: str, label: str) -> pl.Expr:
    before, after = pl.col(column), pl.col(f"{column}_after")
    text = pl.concat_str(pl.lit(f"{label} "), _shown(before), pl.lit(" -> "), _shown(after))
    return pl.when(before.ne_missing(after)).then(text)


def _shown(value: pl.Expr) -> pl.Expr:
    return value.cast(pl.String).fill_null("unknown")


def summed(changed: Changed) -> pl.DataFrame:
    """Rows of `job_changes` without `job_id`: sums before and after, by model and by what differs."""
    before, after = (_measured(rows) for rows in (changed.removed, changed.written))
    pairs = before.join(after, on="call_id", how="full", suffix="_after", coalesce=True)
    keys = {
        "model": pl.coalesce("name_after", "name"),
        "provider": pl.coalesce("provider_after", "provider"),
        **{f"{name}_before": pl.col(name) for name in _KEYS},
        **{f"{name}_after": pl.col(f"{name}_after") for name in _KEYS},
    }
    sums = []
    for name in ("calls", *_SUMS):
        for when, column in (("before", name), ("after", f"{name}_after")):
            known = pl.when(pl.col(column).count() > 0).then(pl.col(column).sum())
            sums.append(known.alias(f"{name}_{when}"))
    grouped = pairs.group_by([key.alias(name) for name, key in keys.items()]).agg(sums)
    counts = [pl.col(f"calls_{when}").fill_null(0).cast(pl.Int64) for when in ("before", "after")]
    return grouped.with_columns(counts).select(SUMMED)


def _measured(rows: pl.DataFrame) -> pl.DataFrame:
    name = pl.coalesce("model", "served_model", "response_model", "request_model").alias("name")
    sums = [pl.col(column).cast(kind) for column, kind in _SUMS.items()]
    return rows.select("call_id", name, "provider", *_KEYS, *sums, calls=pl.lit(1, pl.Int64))
