"""What people ask the catalogue on a command line: why a price, what would change, what is in use.

Everything here returns plain data; printing is somebody else's. Loading is explicit: the tables a question
needs are named by `TableName` and read from the cache directory, never from the network.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from catalog.api_shapes import PriceItem, ResolveItem, answer_price, answer_resolve
from catalog.compare import Difference, compare_tables, compare_with_litellm, nearest_names
from catalog.compile import adopt, adopted_source, compile_installed, installed_source, load_prices
from catalog.errors import PriceDataError
from catalog.finder import PriceFinder
from catalog.load import lay_over
from catalog.plan_book import load_plan_book
from catalog.provider_book import Book, load_book
from catalog.quote import Quotes
from catalog.resolve import Resolver
from catalog.table import PriceTable
from catalog.version import catalog_version

__all__ = ["CatalogReport", "TableName"]

TableName = Literal["source", "installed", "ours"]
"""`source`: the adopted price source alone; `installed`: the installed version alone; `ours`: what calls are
priced by (the adopted source, our prices, the operator's).
"""


class CatalogReport:
    """Answers about one catalogue on disk."""

    def __init__(
        self, cache_dir: Path, *, overlay: Path | None = None, accounts_file: Path | None = None
    ) -> None:
        self._cache_dir, self._overlay = cache_dir, overlay
        self._book = load_book()
        self._plans = load_plan_book(self._book, accounts_file)

    @property
    def book(self) -> Book:
        return self._book

    def table(self, name: str) -> PriceTable:
        """Load a table by TableName; raises PriceDataError for another name."""
        if name == "source":
            return load_prices(self._cache_dir)
        if name == "installed":
            load_prices(self._cache_dir)
            return compile_installed(self._cache_dir)
        if name == "ours":
            return lay_over(load_prices(self._cache_dir), self._book, overlay=self._overlay)
        raise PriceDataError(f"there is no table {name}; name source, installed or ours")

    def explain(self, item: PriceItem) -> dict[str, Any]:
        """Price one usage and say why: the answer of `/price`, what the id was taken for, the nearest names.

        `near` is empty unless there is no price.
        """
        table = self.table("ours")
        resolver = Resolver(self._book, self._plans.rules)
        finder = PriceFinder(self._book, table, resolver)
        quotes = Quotes(
            resolver, finder, catalog_version(table, self._book, self._plans), accounts=self._plans.rules
        )
        attributes = {"gen_ai.provider.name": item.provider} if item.provider else {}
        resolved = answer_resolve(ResolveItem(model=item.model, attributes=attributes), quotes)
        priced = answer_price(item, quotes)
        unpriced = priced["list_cost_usd"] is None
        near = nearest_names(table, self._book, resolved["provider"], item.model) if unpriced else []
        return {"resolved": resolved, "priced": priced, "price_source": table.source, "near": near}

    def resolve(self, item: ResolveItem) -> dict[str, Any]:
        """Resolve one id: the answer of `/resolve`."""
        resolver = Resolver(self._book, self._plans.rules)
        finder = PriceFinder(self._book, PriceTable("", ()), resolver)
        return answer_resolve(item, Quotes(resolver, finder, "", accounts=self._plans.rules))

    def diff(
        self, before: str, after: str, *, at: datetime, litellm: Path | None = None
    ) -> list[dict[str, Any]]:
        """Compare two tables' prices in force at an instant, or `before` with LiteLLM's file.

        One row per part that differs: model, mode, part, before, after (USD per million; None: no price).
        """
        first = self.table(before)
        if litellm is not None:
            return _rows(compare_with_litellm(first, self._book, litellm, at=at))
        return _rows(compare_tables(first, self.table(after), at=at))

    def status(self) -> dict[str, Any]:
        """Say which price source is in use, which is installed, and the catalogue's version."""
        table = self.table("ours")
        return {
            "adopted": adopted_source(self._cache_dir),
            "installed": installed_source(),
            "catalog_version": catalog_version(table, self._book, self._plans),
            "providers": len(self._book.providers),
            "priced_models": sum(1 for model in table.models if model.rows),
        }

    def update(self, *, at: datetime) -> dict[str, Any]:
        """Adopt the installed price source: what was in use, what is now, and what that changes at `at`.

        Our prices and the operator's are laid over the new source first; where that fails nothing is adopted.
        """
        before = self.table("ours")
        new = compile_installed(self._cache_dir)
        after = lay_over(new, self._book, overlay=self._overlay)
        changes = _rows(compare_tables(before, after, at=at))
        adopt(self._cache_dir)
        return {"before": before.source, "after": after.source, "changes": changes}


def _rows(found: list[Difference]) -> list[dict[str, Any]]:
    return [asdict(difference) for difference in found]
