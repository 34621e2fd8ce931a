"""List prices one call at a time, for budget estimates in a process that must stay light.

Reads the same compiled rows and the same reviewed data as `catalog.rate` and must agree with it to the last
digit. It imports neither Polars nor the price source. An unknown price is None with a reason, never zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from catalog.accounts import AccountRule, chosen_rule, fitting_rules
from catalog.arithmetic import Line, UnpricedPart, cost, lines, quick_cost
from catalog.cheaper import Cheaper
from catalog.dearest import Dearest
from catalog.finder import PriceFinder, Target
from catalog.load import load_table
from catalog.plan_book import load_plan_book
from catalog.provider_book import load_book
from catalog.resolve import Evidence, Resolution, Resolver
from catalog.table import STANDARD, PriceRow, with_fallbacks
from catalog.version import catalog_version

__all__ = ["USAGE_PARTS", "Quote", "Quotes", "Tariff"]

USAGE_PARTS = {
    "input": "input",
    "output": "output",
    "cache_read": "cache_read",
    "cache_write_5m": "cache_write",
    "cache_write_1h": "cache_write_1h",
    "input_audio": "audio_input",
    "output_audio": "audio_output",
    "cache_audio_read": "audio_cache_read",
    "web_searches": "web_search",
}
"""Disjoint usage buckets of a price question -> priced parts; `reasoning` is information only (inside
output).
"""

_INFORMATION = frozenset({"reasoning"})
_INPUT_PARTS = frozenset(
    ("input", "cache_read", "cache_write", "cache_write_1h", "audio_input", "audio_cache_read")
)


REMEMBERED = 8192
"""Answers a light process keeps, at most."""


class Quote(NamedTuple):
    """The list cost of some usage: None with a reason where it is unknown.

    `estimated`: priced by another list than the serving provider's own.
    """

    list_cost_usd: Decimal | None
    reason: str = ""
    resolution: Resolution | None = None
    estimated: bool = False
    price_id: str | None = None
    lines: tuple[Line, ...] = ()


class Quotes:
    """Quotes list prices from one version of the catalogue."""

    def __init__(
        self, resolver: Resolver, finder: PriceFinder, version: str, *, accounts: tuple[AccountRule, ...] = ()
    ) -> None:
        self._resolver, self._finder, self._accounts = resolver, finder, accounts
        self._dearest = Dearest(finder.table)
        self._cheaper = Cheaper(resolver, finder)
        self.book = resolver.book
        self.version = version

    @classmethod
    def load(
        cls,
        cache_dir: Path | None = None,
        *,
        overlay: Path | None = None,
        accounts_file: Path | None = None,
    ) -> Quotes:
        """Load the reviewed data and the compiled prices; with a directory, compiling is left to a child
        process. `overlay` and `accounts_file` are the operator's prices and accounts; raises CatalogError
        with file and line of what is wrong in them.
        """
        book = load_book()
        table = load_table(cache_dir, book, overlay=overlay)
        plans = load_plan_book(book, accounts_file)
        resolver = Resolver(book, plans.rules, remembers=REMEMBERED)
        finder = PriceFinder(book, table, resolver)
        return cls(resolver, finder, catalog_version(table, book, plans), accounts=plans.rules)

    def resolve(
        self,
        evidence: Evidence,
        *,
        account_id: str | None = None,
        service: str | None = None,
        at: datetime | None = None,
    ) -> Resolution:
        """Resolve one set of evidence, by the operator's rules for the account and service at an instant."""
        fits = fitting_rules(self._accounts, account_id=account_id, service=service, at=at)
        return self._resolver.resolve(replace(evidence, accounts=fits) if fits else evidence)

    def account_access(self, account_id: str, *, provider: str | None, at: datetime) -> str | None:
        """Give the access that the operator says an account has at an instant; None where nothing is said."""
        fits = fitting_rules(self._accounts, account_id=account_id, service=None, at=at)
        rule = chosen_rule(self._accounts, fits, provider)
        return None if rule is None else rule.access

    def cheaper(
        self,
        provider: str | None = None,
        *,
        model: str,
        at: datetime,
        usage: Mapping[str, int],
        at_most: Decimal,
    ) -> Iterator[str]:
        """Models of the same provider, lab and access that cost about `at_most` USD for `input` and `output`
        tokens, those first whose names are nearest.
        """
        told, given = usage.get("input", 0), usage.get("output", 0)
        return self._cheaper.models(provider, model, told=told, given=given, at=at, at_most=at_most)

    def dearest(self, *, usage: Mapping[str, int], at: datetime) -> Quote:
        """Price `usage` at the highest list price of any model at an instant (standard mode)."""
        found = self._dearest.cost(_parts(usage), at)
        if found is None:
            return Quote(None, "the catalogue has no price at all")
        return Quote(found[0], f"dearest: {found[1]}", estimated=True)

    def quote(
        self,
        provider: str | None = None,
        *,
        model: str,
        at: datetime,
        usage: Mapping[str, int],
        mode: str = STANDARD,
        said: Mapping[str, str] | None = None,
    ) -> Quote:
        """Price `usage` (disjoint buckets, see USAGE_PARTS) of `model` at an instant (aware).

        `mode` is standard, batch, flex, priority or fast; `said` is what else a multiplier may ask for
        (`inference_geo`, ...). Raises ValueError for an unknown bucket or a
        negative count, for those are the asker's mistakes.
        """
        return self.tariff(provider, model=model, at=at, mode=mode, said=said).explained(usage)

    def tariff(
        self,
        provider: str | None = None,
        *,
        model: str,
        at: datetime,
        mode: str = STANDARD,
        said: Mapping[str, str] | None = None,
    ) -> Tariff:
        """What `model` costs at an instant (aware), for any usage; the arguments are those of `quote`."""
        answer = self._resolver.resolve(Evidence(request_model=model, provider_name=provider))
        target = self._finder.find(answer.provider, answer.served_model, answer.model)
        return Tariff(answer, target, at=at, mode=mode, said=said)


class Tariff:
    """The prices of one model at one instant: looked up once, asked for many usages.

    `quote` is quick and leaves out the lines, `explained` has them. Both raise ValueError as `Quotes.quote`
    does.
    """

    __slots__ = ("_estimated", "_mode", "_name", "_tiers", "_unpriced", "resolution")

    def __init__(
        self,
        resolution: Resolution,
        target: Target,
        *,
        at: datetime,
        mode: str,
        said: Mapping[str, str] | None,
    ) -> None:
        self.resolution = resolution
        self._estimated = target.estimated
        self._unpriced = _unpriced(resolution, target)
        if target.model is not None:
            told = {**target.said, **(said or {})}
            self._name, self._mode = target.model.name, target.model.mode(mode, told)
            rows = target.model.tiers(mode, at, said=told)
            self._tiers = [(row, with_fallbacks(row.prices)) for row in rows]

    def quote(self, usage: Mapping[str, int]) -> Quote:
        """The list cost of some usage, without its lines and the name of its row."""
        parts = _parts(usage)
        if self._unpriced is not None:
            return self._unpriced
        try:
            total = quick_cost(self._tier(parts)[1], parts)
        except UnpricedPart as part:
            return self._without_price(part)
        return Quote(total, _reason(total), self.resolution, self._estimated)

    def explained(self, usage: Mapping[str, int]) -> Quote:
        """The list cost of some usage with the arithmetic."""
        parts = _parts(usage)
        if self._unpriced is not None:
            return self._unpriced
        row, _ = self._tier(parts)
        try:
            charged = lines(row, parts)
        except UnpricedPart as part:
            return self._without_price(part)
        total = cost(charged)
        return Quote(
            total,
            _reason(total),
            self.resolution,
            estimated=self._estimated,
            price_id=row.price_id(self._name, self._mode),
            lines=tuple(charged),
        )

    def _tier(self, parts: Mapping[str, int]) -> tuple[PriceRow, tuple[int | None, ...]]:
        if len(self._tiers) == 1:
            return self._tiers[0]
        size = sum(units for part, units in parts.items() if part in _INPUT_PARTS)
        return [each for each in self._tiers if not each[0].over_tokens or size > each[0].over_tokens][-1]

    def _without_price(self, part: UnpricedPart) -> Quote:
        return Quote(None, f"{self._name} has no price for {part}", self.resolution)


def _unpriced(resolution: Resolution, target: Target) -> Quote | None:
    """The answer whatever the usage is, where there is one."""
    if resolution.access.access in ("free", "local"):
        return Quote(Decimal(0), resolution.access.access, resolution)
    return Quote(None, target.reason, resolution) if target.model is None else None


def _reason(total: Decimal | None) -> str:
    return "" if total is not None else "more than a call can cost"


def _parts(usage: Mapping[str, int]) -> dict[str, int]:
    parts: dict[str, int] = {}
    for name, count in usage.items():
        if count < 0:
            raise ValueError("usage counts cannot be negative")
        if (part := USAGE_PARTS.get(name)) is not None:
            parts[part] = count
        elif name not in _INFORMATION:
            unknown = ", ".join(sorted(usage.keys() - USAGE_PARTS.keys() - _INFORMATION))
            raise ValueError(f"unknown usage {unknown}; known: {', '.join(USAGE_PARTS)}, reasoning")
    return parts
