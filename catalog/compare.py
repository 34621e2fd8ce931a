"""What differs between two price tables: versions of the source, the source and ours, or a second opinion.

Only prices in force at an instant are compared, since that is what a person can check against a price page.
LiteLLM's JSON can be read as a second opinion; it has no dates and is never used to price anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from catalog.errors import PriceDataError
from catalog.provider_book import Book, fold_name
from catalog.table import PARTS, STANDARD, PriceModel, PriceTable, price_decimal

__all__ = ["Difference", "compare_tables", "compare_with_litellm", "nearest_names"]


@dataclass(frozen=True, slots=True)
class Difference:
    """One price that is not the same; a side that has no price is None."""

    model: str
    mode: str
    part: str
    before: str | None
    after: str | None


def compare_tables(before: PriceTable, after: PriceTable, *, at: datetime) -> list[Difference]:
    """Give every standard or mode price in force at `at` that the two tables do not agree on.

    Prices are those of the smallest tier, before multipliers; a model that one side lacks differs in every
    part.
    """
    old, new = _by_name(before), _by_name(after)
    found: list[Difference] = []
    for name in sorted(old.keys() | new.keys()):
        one, other = old.get(name), new.get(name)
        modes = {**(one.rows if one else {}), **(other.rows if other else {})}
        for mode in sorted(mode for mode in modes if "*" not in mode):
            found.extend(_differences(name, mode, _prices(one, mode, at), _prices(other, mode, at)))
    return found


def _by_name(table: PriceTable) -> dict[str, PriceModel]:
    """Index models by name; an id split off its model stands before it and is the one that is asked."""
    return {model.name: model for model in reversed(table.models)}


def _prices(model: PriceModel | None, mode: str, at: datetime) -> dict[str, int]:
    """Give a model's prices at an instant, by part; empty where it has none."""
    if model is None or not model.rows:
        return {}
    row = model.row(mode, at, 1)
    return {part: price for part, price in zip(PARTS, row.prices, strict=True) if price is not None}


def _differences(
    name: str, mode: str, before: Mapping[str, int], after: Mapping[str, int]
) -> Iterator[Difference]:
    for part in PARTS:
        if before.get(part) != after.get(part):
            yield Difference(name, mode, part, _text(before.get(part)), _text(after.get(part)))


def _text(price: int | None) -> str | None:
    return None if price is None else f"{price_decimal(price):f}"


_LITELLM = {
    "input": "input_cost_per_token",
    "output": "output_cost_per_token",
    "cache_read": "cache_read_input_token_cost",
    "cache_write": "cache_creation_input_token_cost",
    "cache_write_1h": "cache_creation_input_token_cost_above_1hr",
}


def compare_with_litellm(table: PriceTable, book: Book, path: Path, *, at: datetime) -> list[Difference]:
    """Compare the table with LiteLLM's `model_prices_and_context_window.json`, model by model that both know.

    Parts that one side does not tell are left out. Raises PriceDataError when the file is something else.
    """
    found: list[Difference] = []
    for model_id, row in sorted(_read_litellm(path).items()):
        ours = _ours(table, book, str(row.get("litellm_provider", "")), model_id)
        if ours is None:
            continue
        mine = _prices(ours, STANDARD, at)
        told = {part: _nano(row.get(key)) for part, key in _LITELLM.items()}
        theirs = {part: price for part, price in told.items() if price is not None}
        both = mine.keys() & theirs.keys()
        kept = ({p: mine[p] for p in both}, {p: theirs[p] for p in both})
        found.extend(_differences(ours.name, STANDARD, *kept))
    return list(dict.fromkeys(found))


def _read_litellm(path: Path) -> dict[str, dict[str, Any]]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
    except (OSError, ValueError) as error:
        raise PriceDataError(f"{path.name} cannot be read as JSON; give LiteLLM's price file") from error
    rows = {key: row for key, row in told.items() if isinstance(row, dict)} if isinstance(told, dict) else {}
    if not any("litellm_provider" in row for row in rows.values()):
        raise PriceDataError(f"{path.name} has no litellm_provider; give LiteLLM's price file")
    return rows


def _ours(table: PriceTable, book: Book, provider_name: str, model_id: str) -> PriceModel | None:
    """Find our model of a LiteLLM key, on the provider's own list only."""
    provider = book.providers.get(book.names.get(fold_name(provider_name), ""))
    first, _, rest = model_id.partition("/")
    served = rest if rest and fold_name(first) == fold_name(provider_name) else model_id
    for price_list in provider.price_as[:1] if provider else ():
        found = table.find(price_list, served)
        if found is not None and found.rows:
            return found
    return None


def _nano(value: object) -> int | None:
    """Turn USD per token into nano-USD per million; None for what is no exact amount."""
    if not isinstance(value, Decimal | int) or isinstance(value, bool):
        return None
    try:
        return int((Decimal(value) * 10**15).quantize(Decimal(1)))
    except InvalidOperation:
        return None


def nearest_names(table: PriceTable, book: Book, provider: str | None, model_id: str) -> list[str]:
    """Give up to three priced ids that are spelled most like one without a price, on its provider's lists.

    For an unknown provider all first-party lists are looked through. Meant for people: it takes milliseconds.
    """
    facts = book.providers.get(provider or "")
    firsts = {p for lab in book.labs.values() for p in lab.providers[:1]}
    lists = facts.price_as if facts else [name for p in firsts for name in book.providers[p].price_as[:1]]
    names = [m.model for name in lists for m in table.by_provider.get(name, ()) if m.rows]
    return get_close_matches(model_id.lower(), list(dict.fromkeys(names)), n=3, cutoff=0.5)
