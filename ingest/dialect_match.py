"""Which record is what: the rules of the dialects applied to all records of a batch.

Why apart: a batch is mostly spans that are no model calls. They are told apart here by scope, name,
operation and the presence of keys alone, so that nothing else of them is ever read. The first rule that
fits (most specific first) decides; a record that fits none but carries keys of a model call is
unrecognised, to be counted and shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl

from .anyvalue import INTEGER, TEXT, read_values
from .decode import Decoded
from .dialect import Rule
from .observation import UNRECOGNISED
from .otlp_columns import LOG, METRIC, SIGNALS
from .scan import Ints, Mask
from .texts import UNKNOWN, checked_series, distinct, text_series

NO_RULE: Final = -1
_ERROR: Final = 2  # status code of a span
_NAME_BYTES: Final = 120  # kept of the name of an unrecognised record


@dataclass(frozen=True, slots=True)
class Matched:
    """Per record: `rule` (index or NO_RULE) and the slice of its name; `scope` and `version` (index
    per scope) into texts.
    """

    rule: Ints
    name_start: Ints
    name_end: Ints
    scope: Ints
    scope_names: list[str]
    version: Ints
    versions: list[str]
    unrecognised: pl.DataFrame


def match(decoded: Decoded) -> Matched:
    """Applies the rules."""
    columns, scopes = decoded.columns, decoded.columns.scopes
    scope, scope_names = distinct(columns.buffer, scopes.name_start, scopes.name_end)
    version, versions = distinct(columns.buffer, scopes.version_start, scopes.version_end)
    name_start, name_end = _names(decoded)
    rule = _rules(decoded, scope[columns.records.scope], scope_names, name_start, name_end)
    matched = Matched(rule, name_start, name_end, scope, scope_names, version, versions, pl.DataFrame())
    return Matched(
        rule, name_start, name_end, scope, scope_names, version, versions, _unrecognised(decoded, matched)
    )


def _names(decoded: Decoded) -> tuple[Ints, Ints]:
    """A record's own name; of a log, the event name its attributes give if they do."""
    records = decoded.columns.records
    start, end = records.name_start.copy(), records.name_end.copy()
    owner, first, last = _texts(decoded, decoded.dialects.event_name.id)
    logs = records.signal[owner] == LOG
    start[owner[logs]], end[owner[logs]] = first[logs], last[logs]
    return start, end


def _texts(decoded: Decoded, key: int) -> tuple[Ints, Ints, Ints]:
    """The records that have a key with a text value, and the slices of the texts."""
    attributes = decoded.columns.attributes
    rows = np.flatnonzero(attributes.key == key)
    values = read_values(decoded.columns.buffer, attributes.start[rows], attributes.end[rows])
    texts = values.kind == TEXT
    return attributes.owner[rows[texts]], values.start[texts], values.end[texts]


def _rules(decoded: Decoded, scope: Ints, scopes: list[str], name_start: Ints, name_end: Ints) -> Ints:
    """The index of the first rule that fits each record."""
    records, dialects = decoded.columns.records, decoded.dialects
    name = dialects.vocabulary.find(decoded.columns.buffer, name_start, name_end)
    operation = np.full(len(records), UNKNOWN, dtype=np.int64)
    owner, start, end = _texts(decoded, dialects.operation.id)
    operation[owner] = dialects.vocabulary.find(decoded.columns.buffer, start, end)
    kinds, kind = _kinds(scope, records.signal, name, operation)
    fitting = _fitting(decoded, scopes, kinds)
    found = np.full(len(records), NO_RULE, dtype=np.int64)
    left = np.arange(len(records))
    told = _Told(decoded)
    for index in np.flatnonzero(fitting.any(axis=1)).tolist():
        rows = told.narrowed(dialects.rules[index], left[fitting[index, kind[left]]])
        found[rows] = index
        left = left[found[left] == NO_RULE]
    return found


def _kinds(*parts: Ints) -> tuple[list[Ints], Ints]:
    """The combinations of values that occur together, as one array for each part, and each row's."""
    packed = parts[0]
    sizes = [int(part.max(initial=UNKNOWN)) + 2 for part in parts]
    for part, size in zip(parts[1:], sizes[1:], strict=True):
        packed = packed * size + part - UNKNOWN
    packed, kind = np.unique(packed, return_inverse=True)
    found = []
    for size in reversed(sizes[1:]):
        packed, value = np.divmod(packed, size)
        found.append(value + UNKNOWN)
    return [packed, *reversed(found)], kind


def _fitting(decoded: Decoded, scopes: list[str], kinds: list[Ints]) -> Mask:
    """bool[rules, kinds]: whether scope, signal, name and operation of a kind are a rule's."""
    dialects, (scope, signal, name, operation) = decoded.dialects, kinds
    fitting = np.zeros((len(dialects.rules), len(scope)), dtype=np.bool_)
    for index, text in enumerate(scopes):
        rules = np.array(dialects.rules_for_scope(text), dtype=np.int64)
        fitting[np.ix_(rules, np.flatnonzero(scope == index))] = True
    for index in np.flatnonzero(fitting.any(axis=1)).tolist():
        fitting[index] &= _fits(dialects.rules[index], signal, name, operation)
    return fitting


class _Told:
    """What rules ask of single attributes, looked up once per key."""

    def __init__(self, decoded: Decoded) -> None:
        self.decoded = decoded
        self.count = len(decoded.columns.records)
        self.words: dict[int, Ints] = {}
        self.having: dict[int, Mask] = {}

    def narrowed(self, rule: Rule, rows: Ints) -> Ints:
        """Those of the rows that a rule's conditions on attributes and status leave."""
        if rule.failed is not None and rows.size:
            rows = rows[(self.decoded.columns.records.status[rows] == _ERROR) == rule.failed]
        for key in rule.has:
            rows = rows[self._having(key)[rows]] if rows.size else rows
        if rule.has_any and rows.size:
            rows = rows[_having(self.decoded, *rule.has_any)[rows]]
        for key, words in rule.where.items():
            rows = rows[np.isin(self._word(key)[rows], words)] if rows.size else rows
        for key, text in rule.contains:
            rows = rows[_containing(self.decoded, key, text, rows)] if rows.size else rows
        return rows

    def _having(self, key: int) -> Mask:
        if key not in self.having:
            self.having[key] = _having(self.decoded, key)
        return self.having[key]

    def _word(self, key: int) -> Ints:
        """Per record the vocabulary id of its text or integer under a key, UNKNOWN if there is none."""
        if key not in self.words:
            self.words[key] = self._words(key)
        return self.words[key]

    def _words(self, key: int) -> Ints:
        attributes, buffer = self.decoded.columns.attributes, self.decoded.columns.buffer
        vocabulary = self.decoded.dialects.vocabulary
        rows = np.flatnonzero(attributes.key == key)
        values = read_values(buffer, attributes.start[rows], attributes.end[rows])
        word = np.full(self.count, UNKNOWN, dtype=np.int64)
        text, whole = values.kind == TEXT, values.kind == INTEGER
        word[attributes.owner[rows[text]]] = vocabulary.find(buffer, values.start[text], values.end[text])
        numbers, place = np.unique(values.number[whole], return_inverse=True)
        known = np.array(
            [vocabulary.ids.get(str(number), UNKNOWN) for number in numbers.tolist()], dtype=np.int64
        )
        word[attributes.owner[rows[whole]]] = known[place]
        return word


def _containing(decoded: Decoded, key: int, text: str, rows: Ints) -> Mask:
    """bool[rows]: whose text under a key contains a literal."""
    owner, start, end = _texts(decoded, key)
    mine = np.isin(owner, rows)
    texts = text_series(decoded.columns.buffer, start[mine], end[mine])
    containing = np.zeros(len(decoded.columns.records), dtype=np.bool_)
    containing[owner[mine]] = texts.str.contains(text, literal=True).to_numpy()
    found: Mask = containing[rows]
    return found


def _fits(rule: Rule, signal: Ints, name: Ints, operation: Ints) -> Mask:
    fits = np.ones(len(signal), dtype=np.bool_)
    fits &= signal != METRIC if rule.signal == "any" else signal == SIGNALS.index(rule.signal)
    if rule.names:
        fits &= np.isin(name, rule.names)
    if rule.operations:
        fits &= np.isin(operation, rule.operations)
    return fits


def _having(decoded: Decoded, *keys: int) -> Mask:
    """bool[records]: which have any of the keys."""
    attributes = decoded.columns.attributes
    having = np.zeros(len(decoded.columns.records), dtype=np.bool_)
    having[attributes.owner[np.isin(attributes.key, keys)]] = True
    return having


def _unrecognised(decoded: Decoded, matched: Matched) -> pl.DataFrame:
    """UNRECOGNISED: records that carry keys of a model call, and that no rule takes for more than outer."""
    records = decoded.columns.records
    unknown = np.array(
        [rule.role == "outer" for rule in decoded.dialects.rules] + [True]
    )  # the last: NO_RULE
    rows = np.flatnonzero(unknown[matched.rule] & _having(decoded, *sorted(decoded.dialects.hints)))
    start = matched.name_start[rows]
    end = np.minimum(matched.name_end[rows], start + _NAME_BYTES)
    frame = pl.DataFrame(
        {
            "scope": pl.Series(matched.scope_names, dtype=pl.String).gather(
                matched.scope[records.scope[rows]]
            ),
            "name": checked_series(decoded.columns.buffer, start, end),
            "signal": pl.Series(SIGNALS).gather(records.signal[rows]),
        }
    )
    return frame.group_by("scope", "name", "signal").agg(count=pl.len().cast(pl.Int64)).select(*UNRECOGNISED)
