"""Cheaper models of the same provider and lab, for a call that a budget has no room for.

What a model can do is not known here, so those whose names share most with the asked one come first (its
smaller and newer siblings), and of these the dearest. Only what has a price for input and output is named, as
the provider's list names it, and only what the catalogue itself recognises as a model of that provider.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal

from catalog.finder import PriceFinder
from catalog.resolve import Evidence, Resolution, Resolver
from catalog.table import STANDARD, PriceModel, seconds, with_fallbacks

__all__ = ["Cheaper"]

HOUR_S = 3600
_NANO_OF_MILLION = 15  # USD -> nano-USD per million units, as a power of ten
MAX_LOOKED_AT = 24
"""Models that are recognised for one answer, at most; recognising one takes some microseconds."""


_OTHER_USES = frozenset(
    (
        "audio",
        "embed",
        "embedding",
        "image",
        "moderation",
        "ocr",
        "realtime",
        "rerank",
        "search",
        "transcribe",
        "tts",
    )
)
"""Words in a model's name that say it is not for chat."""
_WORD = re.compile(r"[a-z]+|[0-9]+[a-z]*")

_Rate = tuple[int, int, str]
"""Nano-USD per million of input and of output, and the model asking that."""


class Cheaper:
    """Knows each list's prices of this hour."""

    def __init__(self, resolver: Resolver, finder: PriceFinder) -> None:
        self._resolver, self._finder = resolver, finder
        self._hour = -1
        self._sold: dict[str, list[_Rate]] = {}

    def models(
        self, provider: str | None, model: str, *, told: int, given: int, at: datetime, at_most: Decimal
    ) -> Iterator[str]:
        """Models that cost `at_most` USD for so much input and output at their standard prices, the nearest
        first. Prices of long inputs are not looked at: whoever takes a model prices it again.
        """
        asked = self._resolver.resolve(Evidence(request_model=model, provider_name=provider))
        target = self._finder.find(asked.provider, asked.served_model, asked.model)
        if asked.provider is None or asked.model is None or target.model is None:
            return
        most = int(at_most.scaleb(_NANO_OF_MILLION))
        rates = self._on(target.model.provider, at)
        words = _words(target.model.model)
        priced = [
            (_likeness(words, rate[2]), cost, rate[2])
            for rate in rates
            if (cost := rate[0] * told + rate[1] * given) <= most
        ]
        for _, _, name in sorted(priced, reverse=True)[:MAX_LOOKED_AT]:
            if name != target.model.model and self._is_alike(asked, name, provider):
                yield name

    def _on(self, price_list: str, at: datetime) -> list[_Rate]:
        hour = seconds(at) // HOUR_S
        if hour != self._hour:
            self._hour, self._sold = hour, {}
        if price_list not in self._sold:
            models = self._finder.table.by_provider.get(price_list, ())
            self._sold[price_list] = [rate for model in models if (rate := _rate(model, at)) is not None]
        return self._sold[price_list]

    def _is_alike(self, asked: Resolution, name: str, provider: str | None) -> bool:
        """Whether the name is a model of the same provider, lab and access, and not another name of this."""
        found = self._resolver.resolve(Evidence(request_model=name, provider_name=provider))
        if found.model is None or found.model == asked.model or found.provider != asked.provider:
            return False
        same_lab = found.model.partition("/")[0] == (asked.model or "").partition("/")[0]
        return same_lab and found.access.access == asked.access.access


def _words(name: str) -> frozenset[str]:
    return frozenset(_WORD.findall(name.lower()))


def _likeness(words: frozenset[str], name: str) -> int:
    """How many of a thousand words two names would have in common."""
    others = _words(name)
    return 1000 * len(words & others) // len(words | others)


def _rate(model: PriceModel, at: datetime) -> _Rate | None:
    """The standard prices; None for what is made for another use, or sold in one direction only."""
    if not model.rows.get(STANDARD):
        return None
    told, given = with_fallbacks(model.row(STANDARD, at, 0).prices)[:2]
    other_use = _OTHER_USES & _words(model.model)
    return (told, given, model.model) if told and given and not other_use else None
