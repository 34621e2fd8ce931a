"""Findings: what the access of calls says that someone should look at, because it costs twice or is misread.

Pure functions over a frame of calls. They report and change nothing: a call's access stays what its own
evidence says. A finding names the calls it rests on by session or account, never their content.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from catalog.accounts import AccountRule, chosen_rule, fitting_rules
from catalog.provider_book import Book

__all__ = ["FINDINGS", "access_findings"]

FINDINGS: dict[str, pl.DataType] = {
    "finding": pl.String(),
    "provider": pl.String(),
    "subject": pl.String(),
    "detail": pl.String(),
    "calls": pl.Int64(),
    "first_at": pl.Datetime("us", "UTC"),
    "last_at": pl.Datetime("us", "UTC"),
}
"""One row per finding: what it is (`access_flip`, `plan_key_on_metered_url`, `plan_account_on_metered_url`),
about whom (`session ...`, `key ...`, `account ...`), in a sentence, on how many calls from when to when.
"""

_WANTED: dict[str, pl.DataType] = {
    "provider": pl.String(),
    "access": pl.String(),
    "access_evidence": pl.String(),
    "session_id": pl.String(),
    "account_id": pl.String(),
    "service": pl.String(),
    "credential_kind": pl.String(),
    "started_at": pl.Datetime("us", "UTC"),
}


def access_findings(calls: pl.DataFrame, book: Book, *, accounts: Sequence[AccountRule] = ()) -> pl.DataFrame:
    """Find conflicts of access among resolved calls; columns that are absent count as not told."""
    told = calls.select(
        pl.col(name).cast(dtype) if name in calls.columns else pl.lit(None, dtype=dtype).alias(name)
        for name, dtype in _WANTED.items()
    )
    metered = told.filter(pl.col("access").is_in(["payg", "overage"]))
    found = [
        _flips(told),
        _plan_keys(metered, book),
        _plan_accounts(metered, tuple(accounts)),
    ]
    return pl.concat(found).sort("finding", "provider", "subject")


def _summed(frame: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    return frame.group_by(by).agg(
        pl.len().cast(pl.Int64).alias("calls"),
        pl.col("started_at").min().alias("first_at"),
        pl.col("started_at").max().alias("last_at"),
        pl.col("access").filter(pl.col("access") == "payg").len().alias("payg"),
        pl.col("access").filter(pl.col("access") == "subscription").len().alias("covered"),
    )


def _flips(told: pl.DataFrame) -> pl.DataFrame:
    """Sessions that used one provider both under a plan and metered: a login that fell back, or two keys.

    Overage beside a subscription is no flip: it is what the plan does when its window is used up.
    """
    sessions = _summed(told.filter(pl.col("session_id").is_not_null()), ["session_id", "provider"])
    flipped = sessions.filter((pl.col("payg") > 0) & (pl.col("covered") > 0))
    return flipped.select(
        pl.lit("access_flip").alias("finding"),
        "provider",
        pl.format("session {}", "session_id").alias("subject"),
        pl.format("{} calls under a plan and {} metered in one session", "covered", "payg").alias("detail"),
        "calls",
        "first_at",
        "last_at",
    ).cast(pl.Schema(FINDINGS))


def _plan_keys(metered: pl.DataFrame, book: Book) -> pl.DataFrame:
    """Keys that only a plan hands out, seen on calls that were metered: paid for twice, or refused."""
    kinds = {
        key.prefix: provider.id
        for provider in book.providers.values()
        for key in provider.credentials
        if key.access == "subscription"
    }
    seen = metered.filter(pl.col("credential_kind").is_not_null())
    owners: list[pl.Expr] = [
        pl.when(pl.col("credential_kind").str.starts_with(prefix)).then(pl.lit(f"{prefix} {owner}"))
        for prefix, owner in kinds.items()
    ]
    plan = pl.coalesce([*owners, pl.lit(None, dtype=pl.String)])
    by_key = _summed(seen.with_columns(plan.alias("key")).drop_nulls("key"), ["key", "provider"])
    prefix, owner = (pl.col("key").str.split(" ").list.get(n) for n in (0, 1))
    return by_key.select(
        pl.lit("plan_key_on_metered_url").alias("finding"),
        "provider",
        pl.format("key {}", prefix).alias("subject"),
        pl.format("a key of {} was used where {} meters calls", owner, "provider").alias("detail"),
        "calls",
        "first_at",
        "last_at",
    ).cast(pl.Schema(FINDINGS))


def _plan_accounts(metered: pl.DataFrame, accounts: tuple[AccountRule, ...]) -> pl.DataFrame:
    """Accounts that the operator says are under a plan, on calls that their own address says were metered."""
    groups = _summed(metered.filter(pl.col("access") == "payg"), ["account_id", "service", "provider"])
    rows = []
    for row in groups.iter_rows(named=True):
        numbers = fitting_rules(accounts, account_id=row["account_id"], service=row["service"])
        rule = chosen_rule(accounts, numbers, row["provider"])
        if rule is None or rule.access != "subscription":
            continue
        detail = f"configured as {rule.plan_id or 'a plan'}, but {row['provider']} metered these calls"
        rows.append(
            (
                "plan_account_on_metered_url",
                row["provider"],
                rule.described,
                detail,
                *(row[name] for name in ("calls", "first_at", "last_at")),
            )
        )
    return pl.DataFrame(rows, schema=FINDINGS, orient="row")
