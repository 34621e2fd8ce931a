"""From a resolved call to its price model: which list prices it, and whether that is an estimate.

Tried in order: the served id on the provider's own list, the same id without what only names the route,
then the canonical name; after that the lists named in the provider's `price_as` as estimates. A model whose
provider is unknown, or is a plan that has no prices, is estimated by its lab's first provider. A variant
sold at a price of its own (`:free`, a fine-tune) never takes the plain model's price.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from catalog.provider_book import Book
from catalog.resolve import MAX_REMEMBERED, Resolver
from catalog.table import PriceModel, PriceTable

__all__ = ["PriceFinder", "Target"]

_SAID = ("inference_profile", "deployment_scope")
_OWN_PRICE = frozenset({"catalog_variant", "plugin_variant", "fine_tune"})


@dataclass(frozen=True, slots=True)
class Target:
    """The price model of a call, None with a reason where there is none."""

    model: PriceModel | None
    estimated: bool = False
    reason: str = ""
    said: dict[str, str] = field(default_factory=dict)
    """What the id itself says that a multiplier may ask for (an inference profile, a deployment scope)."""


class PriceFinder:
    """Finds price models for resolved calls; remembers a bounded number of answers."""

    def __init__(self, book: Book, table: PriceTable, resolver: Resolver) -> None:
        self._book, self._table, self._resolver = book, table, resolver
        self.table = table
        self._known: OrderedDict[tuple[str | None, ...], Target] = OrderedDict()

    def find(self, provider: str | None, served_model: str | None, model: str | None) -> Target:
        """Find the price model; `served_model` is 'provider/id as served', `model` is 'lab/model'."""
        key = (provider, served_model, model)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._find(provider, served_model, model)
            if len(self._known) > MAX_REMEMBERED:
                self._known.popitem(last=False)
        return known

    def _find(self, provider: str | None, served_model: str | None, model: str | None) -> Target:
        if provider is None:
            return self._estimate(served_model, model)
        lists = self._lists(provider)
        if not lists:
            worth = self._worth(provider, served_model, model)
            return worth or Target(None, reason=f"no price list for provider {provider}")
        said = self._said(provider, served_model)
        spellings = list(self._spellings(provider, served_model, model))
        for price_list, estimated in lists:
            found = self._on_list(price_list, spellings)
            if found is not None:
                return Target(found, estimated=estimated, said=said)
        worth = self._worth(provider, served_model, model)
        return worth or Target(None, reason=f"{served_model or 'the model'} is not on the list of {provider}")

    def _worth(self, provider: str, served_model: str | None, model: str | None) -> Target | None:
        """What a plan's call is worth where the plan has no prices of its own: its lab's list price."""
        facts = self._book.providers.get(provider)
        if facts is None or facts.access != "subscription":
            return None
        found = self._estimate(served_model, model)
        return found if found.model is not None else None

    def _lists(self, provider: str) -> list[tuple[str, bool]]:
        """Give the lists that price a provider, and whether each is an estimate.

        A list of the provider's own name that an operator laid down comes before what `price_as` names.
        """
        facts = self._book.providers.get(provider)
        if facts is None:
            return []
        named = facts.price_as
        own = [provider] if provider in self._table.by_provider and provider not in named else []
        return [(name, False) for name in own] + [(name, rank > 0) for rank, name in enumerate(named)]

    def _said(self, provider: str, served_model: str | None) -> dict[str, str]:
        """Read what the id says, with the provider in front too: some forms are only known with it."""
        whole = served_model or ""
        modifiers: dict[str, str] = {}
        for spelling in (whole, whole.removeprefix(f"{provider}/")):
            modifiers |= self._resolver.read(spelling, provider).modifiers
        return {key: modifiers[key] for key in _SAID if key in modifiers}

    def _estimate(self, served_model: str | None, model: str | None) -> Target:
        """Price a model whose provider is unknown by its lab's first provider."""
        lab = self._book.labs.get((model or "").partition("/")[0])
        for first in lab.providers[:1] if lab and model else ():
            facts = self._book.providers[first]
            spellings = list(self._spellings(first, served_model, model))
            for price_list in facts.price_as[:1]:
                if (found := self._on_list(price_list, spellings)) is not None:
                    return Target(found, estimated=True)
        return Target(None, reason="provider unknown" if model else "model unknown")

    def _spellings(self, provider: str, served_model: str | None, model: str | None) -> Iterator[str]:
        """Give the ids to look for on a list, the most exact first."""
        served = (served_model or "").removeprefix(f"{provider}/")
        if served:
            yield served
        reading = self._resolver.read(served, provider)
        if _OWN_PRICE & reading.modifiers.keys():
            return
        organisation, _, last = served.rpartition("/")
        if organisation:
            yield last
            yield f"{organisation}/{reading.name}"
        if reading.name:
            yield reading.name
        if model:
            yield model.partition("/")[2]

    def _on_list(self, price_list: str, spellings: list[str]) -> PriceModel | None:
        for spelling in dict.fromkeys(spellings):
            found = self._table.find(price_list, spelling)
            if found is not None and found.rows:
                return found
        return None
