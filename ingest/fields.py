"""Looks the fields of observations up among the attributes, as each record's dialect orders their keys.

Why: one field is spread over many keys, types and units: an input count may be an integer, a double or a
decimal string under any of five names. Here the strongest key that can be believed wins, for all records
at once; what cannot be believed is noted and not used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa

from .anyvalue import FLAG, INTEGER, REAL, TEXT
from .dialect import Dialects, Key
from .scan import Buffer, Ints, Mask, Reals
from .texts import Vocabulary, array_of, as_series
from .told import LABEL, Told

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


@dataclass(frozen=True, slots=True)
class Found:
    """Values under one key: `rows` of observations that have it, and `at`, where they are told."""

    key: Key
    rows: Ints
    at: Ints
    kind: Ints


class Reader:
    """Fields of n observations with rules `rule` and resources `resource` (owners in `told`)."""

    def __init__(
        self,
        dialects: Dialects,
        told: Told,
        *,
        rule: Ints,
        resource: Ints,
        buffer: Buffer,
        anomalies: Anomalies,
    ) -> None:
        self.rule, self.resource, self.buffer, self.anomalies = rule, resource, buffer, anomalies
        self.count, self.told, self.values = len(rule), told, told.values
        self.rules = {index: dialects.rules[index] for index in np.unique(rule).tolist()}
        self.by_key = _ByKey(told, self.count)
        nothing = np.zeros((1, 2), dtype=np.uint64)  # an empty view at the end, where UNTOLD points to
        self.views = np.concatenate([told.views, nothing])

    def text(self, field: str, *, from_resource: bool = False) -> Ints:
        """Where a text field is told, UNTOLD where it is not."""
        column = np.full(self.count, UNTOLD, dtype=np.int64)
        for found in self._found(field, from_resource):
            good = found.kind == TEXT
            column[found.rows[good]] = found.at[good]
        return column

    def text_of(self, key: Key) -> Ints:
        """Where there is text under one key, of the record or else its resource."""
        column = np.full(self.count, UNTOLD, dtype=np.int64)
        for found in self._under(key, None, from_resource=True):
            good = found.kind == TEXT
            column[found.rows[good]] = found.at[good]
        return column

    def series(self, at: Ints) -> pl.Series:
        """The texts at these places, NULL where UNTOLD."""
        return as_series(array_of(self.buffer, self.views[at], at != UNTOLD))

    def number(self, field: str, *, most: int) -> Ints:
        """A count (0 to `most`), UNTOLD where there is none to be believed."""
        column = np.full(self.count, UNTOLD, dtype=np.int64)
        for found in self._found(field):
            value, told = self._reals(found)
            whole = found.kind == INTEGER
            value[whole] = self.values.number[found.at[whole]]
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
            kind, number = found.kind, self.values.number[found.at].copy()
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
        values, kind = self.values, found.kind
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
        value = self.values.real[found.at].copy()
        whole = kind == INTEGER
        value[whole] = self.values.number[found.at[whole]]
        value[kind == FLAG] = np.nan
        texts = np.flatnonzero(kind == TEXT)
        told = np.ones(len(kind), dtype=np.bool_)
        if texts.size:
            words = self._texts(found, texts)
            value[texts] = words.cast(pl.Float64, strict=False).fill_null(float("nan")).to_numpy()
            told[texts] = ~words.str.to_lowercase().is_in(_NULL_WORDS).to_numpy()
        return value, told

    def _texts(self, found: Found, which: Ints) -> pl.Series:
        return self.series(found.at[which]).str.strip_chars()

    def _found(self, field: str, from_resource: bool = False) -> Iterator[Found]:
        """Values of a field, the weakest key first, a resource's before the record's own."""
        for keys, mask in self._plans(field):
            for key in reversed(keys):
                yield from self._under(key, mask, from_resource=from_resource)

    def _plans(self, field: str) -> Iterator[tuple[tuple[Key, ...], Mask | None]]:
        """The different lists of keys in use, and the rows each is for (None: all)."""
        lists: dict[tuple[Key, ...], list[int]] = {}
        for index, rule in self.rules.items():
            lists.setdefault(rule.fields.get(field, ()), []).append(index)
        for keys, rules in lists.items():
            yield keys, None if len(lists) == 1 else np.isin(self.rule, rules)

    def _under(self, key: Key, mask: Mask | None, *, from_resource: bool) -> Iterator[Found]:
        own, shared = self.by_key.places(key.id)
        if from_resource and shared.size:
            place = np.full(int(self.resource.max()) + 1, UNTOLD, dtype=np.int64)
            place[self.told.owner[shared]] = shared
            at = place[self.resource]
            rows = np.flatnonzero(at != UNTOLD if mask is None else (at != UNTOLD) & mask)
            yield Found(key, rows, at[rows], self.values.kind[at[rows]])
        if own.size:
            at = own if mask is None else own[mask[self.told.owner[own]]]
            yield Found(key, self.told.owner[at], at, self.values.kind[at])


class _ByKey:
    """Attributes grouped by key, each group in the owners' order: first observations, then resources."""

    def __init__(self, told: Told, observations: int) -> None:
        self.owner, self.observations = told.owner, observations
        small = (told.key + 2).astype(np.uint16)
        self.order = np.argsort(small, kind="stable")
        self.bounds = np.concatenate([[0], np.cumsum(np.bincount(small, minlength=1))])

    def places(self, key: int) -> tuple[Ints, Ints]:
        """Where a key is told: by observations, and by resources."""
        if key + 3 >= len(self.bounds):
            return self.order[:0], self.order[:0]
        at = self.order[self.bounds[key + 2] : self.bounds[key + 3]]
        first = np.searchsorted(self.owner[at], self.observations)
        return at[:first], at[first:]
