"""Lays our own prices, then the operator's, over the table compiled from the price source.

At any instant the highest layer that has a row in force decides; below it the next one shows through, so a
row with an end gives way again. The result is one flat table of dated rows, the same shape as before: both
readers price from it without knowing of layers. A mode that a layer does not price (batch, say) keeps the
price published below, unless below it only repeated the standard price that the layer replaced.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from difflib import get_close_matches
from itertools import groupby
from typing import TypeVar

from catalog.clauses import Clause
from catalog.errors import PriceFileError
from catalog.price_files import (
    WEEKDAYS,
    Calendar,
    Entry,
    Layer,
    Multiplier,
    Price,
    Prices,
    Redirect,
    Row,
    minutes_of,
)
from catalog.table import (
    PARTS,
    STANDARD,
    TOKEN_PARTS,
    UNIT,
    Days,
    PriceModel,
    PriceRow,
    PriceTable,
    Variant,
    seconds,
)

__all__ = ["lay"]

_EPOCH_DAY = date(1970, 1, 1).toordinal()
_PER_1000 = {"web_search": "web_searches_per_1000", "request": "requests_per_1000"}
_Sheet = tuple[PriceRow, ...]
_NOTHING = (PriceRow(0, 0, 0, (None,) * len(PARTS)),)
"""No price yet: rows that price nothing, so that what is used then is unpriced."""


def lay(base: PriceTable, layers: Sequence[Layer], *, lists: frozenset[str] = frozenset()) -> PriceTable:
    """Lay `layers`, lowest first, over `base`.

    `lists` are further price lists that may be named, such as providers the source does not know. Raises
    PriceFileError naming every entry that names what is not there.
    """
    work = _Work(base, lists)
    for layer in layers:
        work.lay(layer)
    work.multiply()
    if work.problems:
        raise PriceFileError("\n".join(work.problems))
    laid = hashlib.sha256("\n".join([base.sha256, *(layer.sha256 for layer in layers)]).encode()).hexdigest()
    return replace(base, models=tuple(work.models()), laid=laid)


@dataclass(frozen=True, slots=True)
class _Piece:
    """One layer's prices of one model from an instant to another: a fixed sheet, or another model's."""

    start_s: int
    end_s: int | None
    mode: str
    sheet: _Sheet
    billed_as: PriceModel | None = None

    def holds(self, at_s: int) -> bool:
        return self.start_s <= at_s and (self.end_s is None or at_s < self.end_s)


class _Work:
    """A table being laid together: the source's models, and in front of them those split off by id."""

    def __init__(self, base: PriceTable, lists: frozenset[str]) -> None:
        self.problems: list[str] = []
        self._base = base
        self._lists = lists | set(base.by_provider)
        self._split: dict[tuple[str, str, str], PriceModel] = {}
        self._whole = {(m.provider, m.model): m for m in base.models}
        self._multipliers: dict[str, tuple[Multiplier, str]] = {}

    def models(self) -> Iterator[PriceModel]:
        """Give the models, those split off by exact id first, then by beginning, then the source's."""
        yield from (m for (_, kind, _), m in self._split.items() if kind == "id")
        starts = sorted((m for (_, kind, _), m in self._split.items() if kind == "starts_with"), key=_length)
        yield from reversed(starts)
        yield from self._whole.values()

    def lay(self, layer: Layer) -> None:
        """Lay one layer's prices and redirects; keep its multipliers for the end."""
        days = {e.fact.id: _days(e.fact) for e in layer.entries if isinstance(e.fact, Calendar)}
        pieces: dict[tuple[str, str, str], list[_Piece]] = {}
        for entry in layer.entries:
            if isinstance(entry.fact, Multiplier):
                self._known_list(entry.fact.price_list, entry.where)
                self._multipliers[entry.fact.id] = (entry.fact, entry.where)
            elif isinstance(entry.fact, Price) and self._known_list(entry.fact.price_list, entry.where):
                self._add_prices(entry, days, pieces, origin=f"#{layer.name}")
        self._put(pieces)
        redirects: dict[tuple[str, str, str], list[_Piece]] = {}
        for entry in layer.entries:
            if isinstance(entry.fact, Redirect) and self._known_list(entry.fact.price_list, entry.where):
                self._add_redirect(entry.fact, entry.where, redirects)
        for target, found in redirects.items():
            redirects[target] = [*pieces.get(target, ()), *found]
        self._put(redirects)

    def multiply(self) -> None:
        """Add the multiplied rows of every model that a multiplier names."""
        for multiplier, where in self._multipliers.values():
            if not _multiply(self._split, multiplier) + _multiply(self._whole, multiplier):
                self.problems.append(f"{where}: no model of {multiplier.price_list} matches")

    def _known_list(self, name: str, where: str) -> bool:
        if name not in self._lists:
            near = ", ".join(get_close_matches(name, self._lists, n=3)) or "none is near"
            self.problems.append(f"{where}: there is no price list {name}; near: {near}")
        return name in self._lists

    def _add_prices(
        self,
        entry: Entry,
        days: dict[str, Days],
        pieces: dict[tuple[str, str, str], list[_Piece]],
        *,
        origin: str,
    ) -> None:
        price = entry.fact
        assert isinstance(price, Price)
        targets = [("model", m) for m in price.models] + [("id", m.lower()) for m in price.ids]
        targets += [("starts_with", m.lower()) for m in price.starts_with]
        for row in price.row:
            missing = sorted({w.calendar for w in row.windows if w.calendar} - set(days))
            if missing:
                self.problems.append(
                    f"{entry.where}: there is no calendar {', '.join(missing)} in this layer"
                )
                continue
            piece = _piece(row, days, origin)
            for kind, model in targets:
                pieces.setdefault((price.price_list, kind, model), []).append(piece)

    def _add_redirect(
        self, redirect: Redirect, where: str, pieces: dict[tuple[str, str, str], list[_Piece]]
    ) -> None:
        target = self._find(redirect.price_list, redirect.billed_as)
        if target is None or not target.rows:
            self.problems.append(f"{where}: {redirect.billed_as} has no price on {redirect.price_list}")
            return
        start, end = _seconds(redirect.valid_from) or 0, _seconds(redirect.valid_to)
        for model_id in redirect.ids:
            piece = _Piece(start, end, STANDARD, (), target)
            pieces.setdefault((redirect.price_list, "id", model_id.lower()), []).append(piece)

    def _put(self, pieces: dict[tuple[str, str, str], list[_Piece]]) -> None:
        """Write the new rows of every touched model; whole models first, for ids are split off them."""
        for (price_list, kind, name), found in sorted(pieces.items(), key=lambda item: item[0][1] != "model"):
            if kind == "model":
                below = self._whole.get((price_list, name)) or _new(price_list, name, "equals")
                self._whole[price_list, name] = replace(below, rows=_laid(below.rows, found))
            else:
                known = self._split.get((price_list, kind, name)) or self._find(price_list, name)
                rows = _laid(known.rows if known else {}, found)
                clause = "equals" if kind == "id" else kind
                self._split[price_list, kind, name] = replace(_new(price_list, name, clause), rows=rows)

    def _find(self, price_list: str, model_id: str) -> PriceModel | None:
        return PriceTable("", tuple(self.models())).find(price_list, model_id)


_Key = TypeVar("_Key")


def _multiply(models: dict[_Key, PriceModel], multiplier: Multiplier) -> int:
    """Multiply the models that a multiplier names; returns how many."""
    named = {
        key: model
        for key, model in models.items()
        if model.provider == multiplier.price_list and model.rows and re.search(multiplier.match, model.model)
    }
    models |= {key: _multiplied(model, multiplier) for key, model in named.items()}
    return len(named)


def _length(model: PriceModel) -> int:
    return len(model.model)


def _new(price_list: str, name: str, kind: str) -> PriceModel:
    clause: Clause = [kind, name.lower()]
    return PriceModel(price_list, name, clause, {})


def _days(calendar: Calendar) -> Days:
    weekdays = frozenset(WEEKDAYS.index(day) for day in calendar.weekdays)
    return Days(calendar.id, weekdays, frozenset(d.toordinal() - _EPOCH_DAY for d in calendar.except_dates))


def _seconds(at: datetime | None) -> int | None:
    return None if at is None else seconds(at)


# From a row of a file to the rows of a table.


def _piece(row: Row, days: dict[str, Days], origin: str) -> _Piece:
    rows = [PriceRow(0, 0, 0, _nano(row), origin=origin)]
    rows += [PriceRow(0, 0, tier.over_tokens, _nano(tier), origin=origin) for tier in row.tiers]
    if row.windows:
        calendar = days.get(row.windows[0].calendar or "")
        timeline = list(_timeline(row, calendar, origin))
        rows = [*rows, *timeline] if calendar else timeline
    return _Piece(
        _seconds(row.valid_from) or 0,
        _seconds(row.valid_to),
        row.mode,
        tuple(sorted(rows, key=lambda r: r.key)),
    )


def _timeline(row: Row, calendar: Days | None, origin: str) -> Iterator[PriceRow]:
    """Give one day's rows: from each minute at which the price changes."""
    by_minute: list[Prices] = [row] * 1440
    for window in row.windows:
        for minute in (minute for hours in window.hours for minute in minutes_of(hours)):
            by_minute[minute] = window
    start = 0
    for _, same in groupby(by_minute, key=id):
        minutes = list(same)
        yield PriceRow(0, start * 60, 0, _nano(minutes[0]), calendar, origin)
        start += len(minutes)


def _nano(prices: Prices) -> tuple[int | None, ...]:
    """Give a row's prices as nano-USD per million units, in the order of PARTS."""

    def nano(part: str) -> int | None:
        if part in _PER_1000:
            value = getattr(prices, _PER_1000[part])
            return None if value is None else int(value * 1000 / UNIT)
        value = getattr(prices, part)
        return None if value is None else int(value / UNIT)

    return tuple(nano(part) for part in PARTS)


# Laying dated rows over dated rows.


def _laid(below: dict[str, _Sheet], pieces: list[_Piece]) -> dict[str, _Sheet]:
    """Give the rows of a model when `pieces` lie over `below`: at each instant the newest piece in force."""
    targets = [piece.billed_as for piece in pieces if piece.billed_as]
    modes = {STANDARD, *below, *(p.mode for p in pieces), *(mode for t in targets for mode in t.rows)}
    starts = {0, *(p.start_s for p in pieces), *(p.end_s for p in pieces if p.end_s is not None)}
    for rows in (*below.values(), *(rows for target in targets for rows in target.rows.values())):
        starts |= {row.valid_from_s for row in rows}
    return {mode: _dated(sorted(starts), _picker(below, pieces, mode)) for mode in sorted(modes)}


def _picker(below: dict[str, _Sheet], pieces: list[_Piece], mode: str) -> Callable[[int], _Sheet]:
    def pick(at_s: int) -> _Sheet:
        own = _in_force(pieces, mode, at_s)
        if own is not None:
            return own
        standard = _in_force(pieces, STANDARD, at_s)
        lower, lower_standard = _below(below, mode, at_s), _below(below, STANDARD, at_s)
        if standard is not None and _prices(lower) == _prices(lower_standard):
            return standard
        return lower or _NOTHING

    return pick


def _in_force(pieces: list[_Piece], mode: str, at_s: int) -> _Sheet | None:
    """Give the newest piece that prices `mode` at an instant; a redirect prices every mode its target has."""
    held = [
        piece
        for piece in pieces
        if piece.holds(at_s) and (piece.mode == mode or (piece.billed_as and mode in piece.billed_as.rows))
    ]
    newest = max(held, key=lambda piece: piece.start_s, default=None)
    if newest is None or newest.billed_as is None:
        return newest.sheet if newest else None
    sheet = _at(newest.billed_as.rows[newest.billed_as.mode(mode)], at_s)
    return tuple(replace(row, origin=f"={newest.billed_as.model}") for row in sheet)


def _below(below: dict[str, _Sheet], mode: str, at_s: int) -> _Sheet:
    return _at(below.get(mode) or below.get(STANDARD, ()), at_s)


def _at(rows: _Sheet, at_s: int) -> _Sheet:
    """Give the rows of the newest date at or before an instant."""
    newest = max((row.valid_from_s for row in rows if row.valid_from_s <= at_s), default=None)
    return tuple(row for row in rows if row.valid_from_s == newest)


def _dated(starts: list[int], pick: Callable[[int], _Sheet]) -> _Sheet:
    """Write the sheet of each start with that date, leaving out dates on which nothing changes."""
    dated: list[PriceRow] = []
    before: object = None
    for start in starts:
        sheet = pick(start)
        shape = [replace(row, valid_from_s=0) for row in sheet]
        if shape != before:
            dated.extend(replace(row, valid_from_s=start) for row in sheet)
        before = shape
    return tuple(dated)


def _prices(sheet: _Sheet) -> list[tuple[object, ...]]:
    return [(row.days, row.period_from_s, row.over_tokens, row.prices) for row in sheet]


def _multiplied(model: PriceModel, multiplier: Multiplier) -> PriceModel:
    """Add a multiplier's rows to a model, one set beside each of its modes."""
    start_s = _seconds(multiplier.valid_from) or 0
    variant = Variant(
        multiplier.id,
        multiplier.when,
        frozenset(value.lower() for value in multiplier.values),
        multiplier.factor,
    )
    rows = dict(model.rows)
    for mode in [mode for mode in model.rows if "*" not in mode]:
        rows[f"{mode}*{variant.name}"] = _times(model.rows[mode], multiplier.factor, start_s)
    return replace(model, rows=rows, variants=(*model.variants, variant))


def _times(rows: _Sheet, factor: Decimal, start_s: int) -> _Sheet:
    """Multiply the token prices of rows from an instant on."""

    def pick(at_s: int) -> _Sheet:
        sheet = _at(rows, at_s)
        return (
            tuple(replace(r, prices=_scaled(r.prices, factor)) for r in sheet) if at_s >= start_s else sheet
        )

    return _dated(sorted({start_s, *(row.valid_from_s for row in rows)}), pick)


def _scaled(prices: tuple[int | None, ...], factor: Decimal) -> tuple[int | None, ...]:
    """Multiply token prices, rounded half-even to a nano-USD per million (prices have nine places)."""
    return tuple(
        price
        if price is None or part not in TOKEN_PARTS
        else int((price * factor).quantize(Decimal(1), rounding=ROUND_HALF_EVEN))
        for part, price in zip(PARTS, prices, strict=True)
    )
