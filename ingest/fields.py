"""Looks the fields of observations up among the attributes, as each record's dialect orders their keys.

Why: one field is spread over many keys, types and units: an input count may be an integer, a double or a
decimal string under any of five names. Here the strongest key that can be believed wins, for all records
at once; what cannot be believed is noted and not used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa

from .anyvalue import FLAG, INTEGER, REAL, TEXT, text_series
from .dialect import Dialects, Key
from .scan import Buffer, Ints, Mask, Reals
from .told import LABEL, Told
from .vocabulary import Vocabulary

UNTOLD: Final = -1
_NULL_WORDS: Final = ("none", "null", "nan", "undefined", "n/a")


class Anomalies:
    """What could not be believed, as codes per row of n observations."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.noted: list[tuple[Ints, str]] = []

    def note(self, rows: Ints | Mask, code: str) -> None:
        """Notes a code for rows (indices or bool[n])."""
        found = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        if len(found):
            self.noted.append((found.astype(np.int64), code))

    def note_keys(self, rows: Ints, keys: Ints, what: str, vocabulary: Vocabulary) -> None:
        """Notes `what:key` for rows with keys (vocabulary ids)."""
        for key in np.unique(keys).tolist():
            name = "label" if key == LABEL else vocabulary.strings[key]
            self.note(rows[keys == key], f"{what}:{name}")

    def series(self) -> pl.Series:
        """List of codes per row, each once, in alphabetical order."""
        codes = sorted({code for _, code in self.noted})
        rows = np.concatenate([np.zeros(0, dtype=np.int64), *(rows for rows, _ in self.noted)])
        index = [np.full(len(rows), codes.index(code)) for rows, code in self.noted]
        pairs = np.unique(rows * len(codes) + np.concatenate([np.zeros(0, dtype=np.int64), *index]))
        per_row = np.bincount(pairs // max(len(codes), 1), minlength=self.count)
        texts = pa.array(np.array(codes, dtype=object)[pairs % max(len(codes), 1)], type=pa.string())
        offsets = pa.array(np.concatenate([[0], np.cumsum(per_row)]), type=pa.int64())
        return as_series(pa.LargeListArray.from_arrays(offsets, texts))


def as_series(array: pa.Array[Any]) -> pl.Series:
    series = pl.from_arrow(array)
    assert isinstance(series, pl.Series)
    return series


@dataclass(frozen=True, slots=True)
class Found:
    """Values under one key: `rows` of observations that have it, and where (`at`) in `told`."""

    key: Key
    rows: Ints
    told: Told
    at: Ints

    @property
    def kind(self) -> Ints:
        return self.told.values.kind[self.at]


class Reader:
    """Fields of n observations with rules `rule`, from their attributes and their resources'
    (`resource`: index of each one's).
    """

    def __init__(
        self,
        dialects: Dialects,
        *,
        rule: Ints,
        told: Told,
        resource_told: Told,
        resource: Ints,
        buffer: Buffer,
        anomalies: Anomalies,
    ) -> None:
        self.dialects, self.rule, self.buffer, self.anomalies = dialects, rule, buffer, anomalies
        self.own, self.shared, self.resource = _ByKey(told), _ByKey(resource_told), resource
        self.used = [dialects.rules[index] for index in np.unique(rule).tolist()]
        self.index = {id(dialects.rules[index]): index for index in np.unique(rule).tolist()}
        self.count = len(rule)

    def text(self, field: str, *, from_resource: bool = False) -> tuple[Ints, Ints]:
        """Slices of a text field, UNTOLD where there is none."""
        start = np.full(self.count, UNTOLD, dtype=np.int64)
        end = start.copy()
        for found in self._found(field, from_resource):
            good = found.kind == TEXT
            rows, at = found.rows[good], found.at[good]
            start[rows], end[rows] = found.told.values.start[at], found.told.values.end[at]
        return start, end

    def text_of(self, key: Key) -> tuple[Ints, Ints]:
        """Slices of the text under one key, of the record or else its resource."""
        start = np.full(self.count, UNTOLD, dtype=np.int64)
        end = start.copy()
        for found in self._under(key, None, from_resource=True):
            good = found.kind == TEXT
            rows, at = found.rows[good], found.at[good]
            start[rows], end[rows] = found.told.values.start[at], found.told.values.end[at]
        return start, end

    def number(self, field: str, *, most: int) -> Ints:
        """A count (0 to `most`), UNTOLD where there is none to be believed."""
        column = np.full(self.count, UNTOLD, dtype=np.int64)
        for found in self._found(field):
            value, told = self._reals(found)
            whole = found.kind == INTEGER
            value[whole] = found.told.values.number[found.at[whole]]
            good = told & (value >= 0) & (value <= most) & (value == np.floor(value))
            self.anomalies.note(found.rows[told & ~good], f"{field}:absurd")
            if found.key.zero_is_unknown:
                good &= value != 0
            column[found.rows[good]] = value[good].astype(np.int64)
        return column

    def real(self, field: str, *, most: float) -> Reals:
        """A quantity in the field's unit (0 to `most`), NaN where there is none to be believed."""
        column = np.full(self.count, np.nan)
        for found in self._found(field):
            value, told = self._reals(found)
            value *= found.key.scale
            good = told & (value >= 0) & (value <= most)
            self.anomalies.note(found.rows[told & ~good], f"{field}:absurd")
            column[found.rows[good]] = value[good]
        return column

    def flag(self, field: str) -> Ints:
        """1, 0 or UNTOLD."""
        column = np.full(self.count, UNTOLD, dtype=np.int64)
        for found in self._found(field):
            kind, number = found.kind, found.told.values.number[found.at].copy()
            texts = np.flatnonzero(kind == TEXT)
            words = self._texts(found, texts).str.to_lowercase()
            number[texts] = (words == "true").to_numpy()
            good = (kind == FLAG) | (kind == INTEGER)
            good[texts] = words.is_in(["true", "false"]).to_numpy()
            column[found.rows[good]] = number[good] != 0
        return column

    def money(self, field: str) -> pl.Series:
        """USD as DECIMAL(18, 12): the shortest decimal text of what was sent, never arithmetic on a
        double.
        """
        texts = pl.Series([None], dtype=pl.String).new_from_index(0, self.count)
        for found in self._found(field):
            amount = self._amounts(found)
            believed = amount.is_not_null() & (amount >= 0)
            if found.key.zero_is_unknown:
                believed &= amount != 0
            good = believed.to_numpy()
            words = self._texts(found, np.flatnonzero(found.kind == TEXT)).str.to_lowercase()
            said = np.ones(len(good), dtype=np.bool_)
            said[found.kind == TEXT] = ~words.is_in(_NULL_WORDS).to_numpy()
            zero = (amount == 0).fill_null(False).to_numpy() & found.key.zero_is_unknown
            self.anomalies.note(found.rows[~good & said & ~zero], f"{field}:absurd")
            texts = texts.scatter(found.rows[good], amount.filter(believed).cast(pl.String))
        return texts.cast(pl.Decimal(18, 12))

    def _amounts(self, found: Found) -> pl.Series:
        values, kind = found.told.values, found.kind
        whole, real, text = (np.flatnonzero(kind == wanted) for wanted in (INTEGER, REAL, TEXT))
        amounts = pl.Series([None], dtype=pl.String).new_from_index(0, len(kind))
        amounts = amounts.scatter(whole, pl.Series(values.number[found.at[whole]]).cast(pl.String))
        amounts = amounts.scatter(real, pl.Series(values.real[found.at[real]]).cast(pl.String))
        amounts = amounts.scatter(text, self._texts(found, text))
        if found.key.scale != 1.0:
            shift = round(-np.log10(found.key.scale))
            moved = amounts + f"e-{shift}"
            return moved.cast(pl.Decimal(18, 12), strict=False)
        return amounts.cast(pl.Decimal(18, 12), strict=False)

    def _reals(self, found: Found) -> tuple[Reals, Mask]:
        """Numbers as doubles, and which are told (words for nothing are not; other words are told,
        and NaN).
        """
        kind = found.kind
        value = found.told.values.real[found.at].copy()
        whole = kind == INTEGER
        value[whole] = found.told.values.number[found.at[whole]]
        value[kind == FLAG] = np.nan
        texts = np.flatnonzero(kind == TEXT)
        told = np.ones(len(kind), dtype=np.bool_)
        if texts.size:
            words = self._texts(found, texts)
            value[texts] = words.cast(pl.Float64, strict=False).fill_null(float("nan")).to_numpy()
            told[texts] = ~words.str.to_lowercase().is_in(_NULL_WORDS).to_numpy()
        return value, told

    def _texts(self, found: Found, which: Ints) -> pl.Series:
        at, values = found.at[which], found.told.values
        valid = np.ones(len(at), dtype=np.bool_)
        return text_series(self.buffer, values.start[at], values.end[at], valid).str.strip_chars()

    def _found(self, field: str, from_resource: bool = False) -> Iterator[Found]:
        """Values of a field, the weakest key first, a resource's before the record's own."""
        for keys, mask in self._plans(field):
            for key in reversed(keys):
                yield from self._under(key, mask, from_resource=from_resource)

    def _plans(self, field: str) -> Iterator[tuple[tuple[Key, ...], Mask | None]]:
        """The different lists of keys in use, and the rows each is for (None: all)."""
        lists: dict[tuple[Key, ...], list[int]] = {}
        for rule in self.used:
            lists.setdefault(rule.fields.get(field, ()), []).append(self.index[id(rule)])
        for keys, rules in lists.items():
            yield keys, None if len(lists) == 1 else np.isin(self.rule, rules)

    def _under(self, key: Key, mask: Mask | None, *, from_resource: bool) -> Iterator[Found]:
        if from_resource and (at := self.shared.rows(key.id)).size:
            place = np.full(int(self.resource.max(initial=-1)) + 1, -1, dtype=np.int64)
            place[self.shared.told.owner[at]] = at
            rows = np.flatnonzero(place[self.resource] >= 0)
            rows = rows if mask is None else rows[mask[rows]]
            yield Found(key, rows, self.shared.told, place[self.resource[rows]])
        if (at := self.own.rows(key.id)).size:
            at = at if mask is None else at[mask[self.own.told.owner[at]]]
            yield Found(key, self.own.told.owner[at], self.own.told, at)


class _ByKey:
    """Attributes grouped by key, each group in the owners' order."""

    def __init__(self, told: Told) -> None:
        self.told = told
        small = (told.key + 2).astype(np.uint16)
        self.order = np.argsort(small, kind="stable")
        self.bounds = np.concatenate([[0], np.cumsum(np.bincount(small, minlength=1))])

    def rows(self, key: int) -> Ints:
        if key + 3 >= len(self.bounds):
            return np.zeros(0, dtype=np.int64)
        return self.order[self.bounds[key + 2] : self.bounds[key + 3]]
