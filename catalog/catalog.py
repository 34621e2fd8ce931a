"""The catalogue as the ledger uses it: resolve a batch of calls, rate it, explain one.

It works on Polars frames and belongs in the ledger's process. A process that must stay light asks
`catalog.quote`, which prices from the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl

from catalog.accounts import AccountRule, changes, fitting_rules
from catalog.explain import explain_call
from catalog.finder import PriceFinder
from catalog.findings import access_findings
from catalog.load import load_table
from catalog.plan_book import PlanBook, load_plan_book
from catalog.plan_draw import plan_draws
from catalog.provider_book import Book, load_book
from catalog.quota import read_quotas
from catalog.rate import Rater
from catalog.resolve import Evidence, Resolution, Resolver
from catalog.table import PriceTable
from catalog.version import catalog_version

__all__ = ["Catalog"]

_EVIDENCE: dict[str, pl.DataType] = {
    "request_model": pl.String(),
    "response_model": pl.String(),
    "provider_name": pl.String(),
    "server_address": pl.String(),
    "server_port": pl.Int32(),
    "url": pl.String(),
    "emitter": pl.String(),
    "access_hint": pl.String(),
    "access_evidence": pl.String(),
    "credential_kind": pl.String(),
    "headers": pl.String(),
    "accounts": pl.String(),
    "plan_hint": pl.String(),
}
"""Columns that resolving reads, in the order of Evidence; one that is absent counts as not told."""

_TIME = pl.Datetime("us", "UTC")
_LONG_AGO = datetime(1, 1, 1, tzinfo=UTC)
_MODIFIERS = pl.List(pl.Struct({"key": pl.String, "value": pl.String}))
_RESOLVED: dict[str, pl.DataType] = {
    "provider": pl.String(),
    "served_model": pl.String(),
    "model": pl.String(),
    "snapshot": pl.String(),
    "resolution": pl.String(),
    "modifiers": _MODIFIERS,
    "access": pl.String(),
    "access_evidence": pl.String(),
    "access_confidence": pl.String(),
    "plan_id": pl.String(),
}


class Catalog:
    """Providers, models, access and prices of one version."""

    def __init__(
        self,
        table: PriceTable,
        book: Book,
        *,
        accounts: Sequence[AccountRule] = (),
        plans: PlanBook | None = None,
        assume_unknown_access: bool = True,
    ) -> None:
        self.table = table
        self.plans = plans or load_plan_book(book)
        self.version = catalog_version(table, book, self.plans)
        self._book = book
        self._accounts = (*self.plans.rules, *accounts)
        self._changes = changes(self._accounts)
        self._resolver = Resolver(book, self._accounts)
        self._finder = PriceFinder(book, table, self._resolver)
        self._rater = Rater(
            table, self._finder, version=self.version, assume_unknown_access=assume_unknown_access
        )

    @classmethod
    def load(
        cls,
        cache_dir: Path | None = None,
        *,
        overlay: Path | None = None,
        accounts_file: Path | None = None,
        accounts: Sequence[AccountRule] = (),
        assume_unknown_access: bool = True,
    ) -> Catalog:
        """Load the reviewed data and the compiled prices (compiled into `cache_dir` when absent).

        `overlay` is the operator's price file, or a folder of them; its rows beat ours and the source's.
        `accounts_file`, then `accounts`, say what access accounts, services or providers have where a call
        does not tell.
        `assume_unknown_access`: bill list price for calls whose access is unknown (status 'assumed');
        otherwise their billed cost stays NULL. Raises CatalogError with what to do.
        """
        book = load_book()
        table = load_table(cache_dir, book, overlay=overlay)
        plans = load_plan_book(book, accounts_file)
        return cls(table, book, accounts=accounts, plans=plans, assume_unknown_access=assume_unknown_access)

    def resolve(self, calls: pl.DataFrame) -> pl.DataFrame:
        """Add provider, served_model, model, snapshot, resolution, modifiers, access (with evidence,
        confidence) and plan_id.

        Distinct sets of evidence are resolved once. `access_evidence` is replaced by what the answer rests
        on.
        """
        told = self._with_rules(calls).select(
            _told(calls, name, dtype) if name != "accounts" else pl.col(name)
            for name, dtype in _EVIDENCE.items()
        )
        numbered = told.with_columns(_NUMBER)
        distinct = numbered.unique("evidence", keep="first")
        answers = [_row(self._resolver.resolve(Evidence(*row[:-1]))) for row in distinct.iter_rows()]
        found = pl.DataFrame(answers, schema=_RESOLVED, orient="row").with_columns(distinct["evidence"])
        joined = numbered.select("evidence").join(found, on="evidence", how="left", maintain_order="left")
        return calls.with_columns(joined.drop("evidence").get_columns())

    def _with_rules(self, calls: pl.DataFrame) -> pl.DataFrame:
        """Put beside each call the numbers of the account rules that fit it."""
        if not self._accounts:
            return calls.with_columns(pl.lit(None, dtype=pl.String).alias("accounts"))
        whose = calls.select(
            *(_told(calls, name, pl.String()) for name in ("account_id", "service")), self._stretch(calls)
        )
        pairs = whose.unique()
        fits = [
            fitting_rules(self._accounts, account_id=account, service=service, at=at)
            for account, service, at in pairs.iter_rows()
        ]
        pairs = pairs.with_columns(pl.Series("accounts", fits, dtype=pl.String))
        found = whose.join(pairs, on=whose.columns, nulls_equal=True, maintain_order="left", how="left")
        return calls.with_columns(found["accounts"])

    def _stretch(self, calls: pl.DataFrame) -> pl.Expr:
        """The first instant of the stretch that a call started in, in which the same rules hold."""
        began = _told(calls, "started_at", _TIME)
        first = pl.lit(_LONG_AGO, _TIME)
        for at in self._changes:
            first = pl.when(began >= pl.lit(at, _TIME)).then(pl.lit(at, _TIME)).otherwise(first)
        return pl.when(began.is_not_null()).then(first).alias("stretch")

    def rate(self, calls: pl.DataFrame) -> pl.DataFrame:
        """Add usage_known, usage_complete, list_cost_usd, billed_cost_usd, cost_status, price_id,
        catalog_version and plan_draw.
        """
        rated = self._rater.rate(calls)
        return rated.with_columns(plan_draws(rated, self.plans.plans))

    def quotas(self, headers: str, seen_at: datetime) -> list[tuple[str, str, Decimal, datetime | None]]:
        """Read what an answer's headers (`name=value;...`) tell of plans: provider, window, the part used (1:
        all), the reset.
        """
        readings = read_quotas(headers, self._book, seen_at=seen_at)
        return [(told.provider, told.window, told.used_fraction, told.resets_at) for told in readings]

    def findings(self, calls: pl.DataFrame) -> pl.DataFrame:
        """Find conflicts of access among resolved calls: flips in a session, plan keys on metered doors."""
        return access_findings(calls, self._book, accounts=self._accounts)

    def explain(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """Give the price row and the arithmetic of one resolved call; decimal strings that sum to its list
        cost.
        """
        return explain_call(call, self._finder, source=self.table.source, version=self.version)


_NUMBER = pl.struct(pl.all()).alias("evidence")


def _told(calls: pl.DataFrame, name: str, dtype: pl.DataType) -> pl.Expr:
    if name not in calls.columns:
        return pl.lit(None, dtype=dtype).alias(name)
    column = pl.col(name).cast(dtype)
    if name == "headers":  # figures change with every call and decide nothing
        return column.str.replace_all(r"=\s*-?\d[^;]*", "=")
    return column.str.replace(r"[?#].*$", "") if name == "url" else column


def _row(answer: Resolution) -> tuple[Any, ...]:
    return (
        answer.provider,
        answer.served_model,
        answer.model,
        answer.snapshot,
        answer.resolution,
        [{"key": key, "value": value} for key, value in answer.modifiers],
        answer.access.access,
        answer.access.evidence,
        answer.access.confidence,
        answer.access.plan_id,
    )
