"""List prices one call at a time, for budget estimates in a process that must stay light.

Reads the same compiled rows and the same reviewed data as `catalog.rate` and must agree with it to the last
digit. It imports neither Polars nor the price source. An unknown price is None with a reason, never zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path

from catalog.arithmetic import Line, UnpricedPart, cost, lines
from catalog.dearest import Dearest
from catalog.finder import PriceFinder
from catalog.load import load_table
from catalog.provider_book import load_book
from catalog.resolve import Evidence, Resolution, Resolver
from catalog.table import STANDARD
from catalog.version import catalog_version

__all__ = ["USAGE_PARTS", "Quote", "Quotes"]

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
_INPUT_PARTS = (
    "input",
    "cache_read",
    "cache_write",
    "cache_write_1h",
    "audio_input",
    "audio_cache_read",
)


REMEMBERED = 8192
"""Answers a light process keeps, at most."""


@dataclass(frozen=True, slots=True)
class Quote:
    """The list cost of some usage: None with a reason where it is unknown."""

    list_cost_usd: Decimal | None
    reason: str = ""
    resolution: Resolution | None = None
    estimated: bool = False
    """Priced by another list than the serving provider's own."""
    price_id: str | None = None
    lines: tuple[Line, ...] = ()


class Quotes:
    """Quotes list prices from one version of the catalogue."""

    def __init__(self, resolver: Resolver, finder: PriceFinder, version: str) -> None:
        self._resolver, self._finder = resolver, finder
        self._dearest = Dearest(finder.table)
        self.book = resolver.book
        self.version = version

    @classmethod
    def load(cls, cache_dir: Path | None = None, *, overlay: Path | None = None) -> Quotes:
        """Load the reviewed data and the compiled prices; with a directory, compiling is left to a child
        process. `overlay` is the operator's price file.
        """
        book = load_book()
        table = load_table(cache_dir, book, overlay=overlay)
        resolver = Resolver(book, remembers=REMEMBERED)
        return cls(resolver, PriceFinder(book, table, resolver), catalog_version(table, book))

    def resolve(self, evidence: Evidence) -> Resolution:
        """Resolve one set of evidence."""
        return self._resolver.resolve(evidence)

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
        parts = _parts(usage)
        answer = self._resolver.resolve(Evidence(request_model=model, provider_name=provider))
        if answer.access.access in ("free", "local"):
            return Quote(Decimal(0), answer.access.access, answer)
        target = self._finder.find(answer.provider, answer.served_model, answer.model)
        if target.model is None:
            return Quote(None, target.reason, answer)
        told = {**target.said, **(said or {})}
        size = sum(parts.get(part, 0) for part in _INPUT_PARTS)
        row = target.model.row(mode, at, size, said=told)
        try:
            charged = lines(row, parts)
        except UnpricedPart as part:
            return Quote(None, f"{target.model.name} has no price for {part}", answer)
        total = cost(charged)
        return Quote(
            total,
            "" if total is not None else "more than a call can cost",
            answer,
            estimated=target.estimated,
            price_id=row.price_id(target.model.name, target.model.mode(mode, told)),
            lines=tuple(charged),
        )


def _parts(usage: Mapping[str, int]) -> dict[str, int]:
    unknown = sorted(set(usage) - set(USAGE_PARTS) - _INFORMATION)
    if unknown:
        raise ValueError(f"unknown usage {', '.join(unknown)}; known: {', '.join(USAGE_PARTS)}, reasoning")
    if any(count < 0 for count in usage.values()):
        raise ValueError("usage counts cannot be negative")
    return {USAGE_PARTS[name]: count for name, count in usage.items() if name in USAGE_PARTS}
