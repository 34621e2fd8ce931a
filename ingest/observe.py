"""Decoded columns to observations: what the records of model calls say, in one vocabulary and one set of
units.

Why: everything above (fusion, prices, budgets) reads OBSERVATIONS and knows no emitter. Which record
counts and which key means what comes from the dialects; this module looks the keys up, puts units right,
works out times and tokens, and notes what it could not believe as an anomaly. What it refuses: to count
(an aggregate stays one), to guess what was not told, and to pass on any attribute that no dialect names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from .anyvalue import TEXT
from .decode import Decoded
from .dialect import ATTRIBUTION_FIELDS, TEXT_FIELDS, TOKEN_FIELDS, Rule
from .dialect_match import Matched, match
from .documents import opened
from .fidelity import fidelity
from .fields import UNTOLD, Anomalies, Reader
from .identity import log_identity, point_identity, span_identity, stream_identity
from .kept import exact, packed, spelled
from .observation import METRIC_POINTS, OBSERVATIONS
from .otlp_columns import LOG, SIGNALS, SPAN, Attributes
from .points import TEMPORALITIES, Measures, points_of
from .scan import Ints, Mask, Words
from .texts import as_series, checked_series, distinct, text_series
from .told import LABEL, LABEL_PREFIX, MAX_LABEL_BYTES, Told, cleaned, respelled, tell
from .usage import MAX_TOKENS, Conventions, normalised

__all__ = ["Observed", "observe"]

_MAX_TIME_US: Final = 4_102_444_800_000_000  # 2100-01-01: a later clock is not believed
_AHEAD_US: Final = 3_600_000_000  # a clock more than an hour ahead of ours is noted
_MAX_DURATION_MS: Final = 30 * 86_400_000.0
_CALLS: Final = frozenset({"call", "aggregate", "outer"})
_METRICS: Final = frozenset({"metric"})
_MAX_LABELS: Final = 32
_HOST: Final = r"^[A-Za-z][A-Za-z0-9+.-]*://(\[[^\]]*\]|[^/:?#]*)"
_NO_OUTPUT: Final = frozenset({"embeddings", "rerank"})


@dataclass(frozen=True, slots=True)
class Observed:
    """`observations` (OBSERVATIONS), `links` (LINKS), `rejects` (REJECTS), `unrecognised` (UNRECOGNISED),
    `metric_points` (METRIC_POINTS), `fidelity` (FIDELITY).
    """

    observations: pl.DataFrame
    links: pl.DataFrame
    rejects: pl.DataFrame
    unrecognised: pl.DataFrame
    metric_points: pl.DataFrame
    fidelity: pl.DataFrame


def observe(decoded: Decoded, *, keep_emails: bool = False) -> Observed:
    """Applies the dialects to a decoded batch."""
    matched = match(decoded)
    observations = _Observer(decoded, matched, roles=_CALLS, keep_emails=keep_emails).frame()
    points = _metric_points(decoded, keep_emails=keep_emails)
    kinds = (observations, decoded.links, decoded.rejects, matched.unrecognised, points)
    return Observed(*kinds, fidelity(decoded, matched))


def _metric_points(decoded: Decoded, *, keep_emails: bool) -> pl.DataFrame:
    found = points_of(decoded)
    if found is None:
        return pl.DataFrame(schema=METRIC_POINTS)
    points, measures = found
    observer = _Observer(points, match(points), roles=_METRICS, keep_emails=keep_emails)
    return observer.points(measures)


class _Observer:
    """Builds the columns of the records that are calls, or that stand around them."""

    def __init__(
        self, decoded: Decoded, matched: Matched, *, roles: frozenset[str], keep_emails: bool
    ) -> None:
        self.decoded, self.matched = decoded, matched
        self.records = decoded.columns.records
        self.rules = decoded.dialects.rules
        self.rows = self._kept(roles)
        self.rule = matched.rule[self.rows]
        self.used = np.unique(self.rule).tolist()
        self.anomalies = Anomalies(len(self.rows))
        self.decoded, inside, unreadable = opened(decoded, self._documented)
        self.anomalies.note_keys(
            np.searchsorted(self.rows, unreadable.owner),
            unreadable.key,
            "unreadable",
            decoded.dialects.vocabulary,
        )
        self.resource, told = self._told(inside)
        told = cleaned(self.decoded, told, self._note, keep_emails=keep_emails)
        texts = respelled(self.decoded, told)
        rows = np.union1d(np.flatnonzero(~exact(told)), np.array(sorted(texts), dtype=np.int64))
        self.buffer, self.told = spelled(self.decoded.columns.buffer, told, rows, texts)
        self.reader = Reader(
            decoded.dialects,
            self.told,
            rule=self.rule,
            resource=self.resource,
            buffer=self.buffer,
            anomalies=self.anomalies,
        )

    def _kept(self, roles: frozenset[str]) -> Ints:
        """Records to which a rule gives one of these roles; spans only if they can be recognised again."""
        useful = np.array([rule.role in roles for rule in self.rules] + [False])
        keep = useful[self.matched.rule]
        named = ((self.records.trace_hi | self.records.trace_lo) != 0) & (self.records.span_id != 0)
        return np.flatnonzero(keep & (named | (self.records.signal != SPAN)))

    def _documented(self, key: int) -> Ints:
        """The records whose dialect looks into the document under a key."""
        using = [index for index in self.used if key in self.rules[index].documents]
        return self.rows[np.isin(self.rule, using)]

    def _told(self, inside: Attributes) -> tuple[Ints, Told]:
        """Each observation's resource as an owner (they follow the observations), and all that is told."""
        columns, count = self.decoded.columns, len(self.rows)
        row_of = np.full(len(self.records), -1, dtype=np.int64)
        row_of[self.rows] = np.arange(count)
        used, resource = np.unique(self.records.resource[self.rows], return_inverse=True)
        shared = columns.resource_attributes
        owner_of = np.full(max(shared.owner.max(initial=-1), used.max(initial=-1)) + 1, -1, dtype=np.int64)
        owner_of[used] = count + np.arange(len(used))
        own = columns.attributes
        parts = [(own, row_of[own.owner]), (inside, row_of[inside.owner]), (shared, owner_of[shared.owner])]
        return count + resource, tell(self.decoded, parts)

    def _note(self, told: Told, what: str) -> None:
        """Notes what was dropped for its observation, or for all observations of its resource."""
        vocabulary, count = self.decoded.dialects.vocabulary, len(self.rows)
        own = told.at(told.owner < count)
        self.anomalies.note_keys(own.owner, own.key, what, vocabulary)
        shared = told.at(told.owner >= count)
        order, low, high = self._sharing(shared.owner)
        keys = np.repeat(shared.key, high - low)
        self.anomalies.note_keys(order[_ranges(low, high)], keys, what, vocabulary)

    def _sharing(self, owner: Ints) -> tuple[Ints, Ints, Ints]:
        """Observations by resource, and where in them those of given resources begin and end."""
        order = np.argsort(self.resource, kind="stable")
        ordered = self.resource[order]
        return order, np.searchsorted(ordered, owner, "left"), np.searchsorted(ordered, owner, "right")

    def frame(self) -> pl.DataFrame:
        texts = self._texts()
        status = self._status(texts)
        columns = {
            **self._identity(),
            **self._source(),
            **texts,
            **status,
            **self._access(),
            **self._tokens(texts, status),
            **self._times(),
            "labels": self._labels(),
            "attributes": self._attributes(),
        }
        columns["anomalies"] = self.anomalies.series()
        return pl.DataFrame([_typed(columns[name], kind).alias(name) for name, kind in OBSERVATIONS.items()])

    def points(self, measures: Measures) -> pl.DataFrame:
        """METRIC_POINTS: the points that measure something."""
        rows, records = self.rows, self.records
        quantity = self._quantities()
        value, count = measures.value[rows], measures.count[rows]
        stream = stream_identity(self.decoded.columns, rows, self.decoded.dialects.vocabulary)
        start, end = records.time_ns[rows], records.late_ns[rows]
        identity = point_identity(stream, start, end)
        names = ("id_hi", "id_lo", "stream_hi", "stream_lo")
        columns = {
            **dict(zip(names, map(pl.Series, (*identity, *stream)), strict=True)),
            **self._source(),
            **(texts := self._texts()),
            **self._access(),
            "started_at": _nullable((started := self._believed(start)), started > 0),
            "measured_at": pl.Series(measured := self._believed(end)),
            "temporality": pl.Series(TEMPORALITIES).gather(measures.temporality[rows]),
            "quantity": quantity,
            "value": pl.Series(value),
            "count": _nullable(count, count >= 0),
            "input_excludes_cache": pl.Series(self._input_excludes_cache(texts["provider_name"])),
            "output_excludes_reasoning": pl.Series(self._where(lambda rule: rule.output == "exclusive")),
        }
        typed = pl.DataFrame(
            [_typed(columns[name], kind).alias(name) for name, kind in METRIC_POINTS.items()]
        )
        return typed.filter(
            (measured > 0) & np.isfinite(value) & (value >= 0), pl.col("quantity").is_not_null()
        )

    def _quantities(self) -> pl.Series:
        """What each point measures: its metric's quantity, or the word of one of its attributes."""
        quantity = self._per_rule(lambda rule: rule.quantity).cast(pl.String)
        for index in self.used:
            rule = self.rules[index]
            if rule.quantity_key is not None:
                told = self.reader.series(self.reader.text_of(rule.quantity_key))
                words = told.replace_strict(dict(rule.quantities), default=None, return_dtype=pl.String)
                quantity = quantity.zip_with(pl.Series(self.rule != index), words)
        return quantity

    # -- who and where
    # ----------------------------------------------------------------------------------------

    def _identity(self) -> dict[str, pl.Series]:
        records, rows = self.records, self.rows
        if self.decoded.identity is not None:
            high, low = (words[rows] for words in self.decoded.identity)
            return {"id_hi": pl.Series(high), "id_lo": pl.Series(low)}
        high, low = span_identity(records.trace_hi[rows], records.trace_lo[rows], records.span_id[rows])
        logs = np.flatnonzero(records.signal[rows] == LOG)
        high[logs], low[logs] = log_identity(
            self.decoded.columns, rows[logs], self.decoded.dialects.vocabulary
        )
        return {"id_hi": pl.Series(high), "id_lo": pl.Series(low)}

    def _source(self) -> dict[str, pl.Series]:
        records, rows, matched = self.records, self.rows, self.matched
        scope = matched.scope[records.scope[rows]]
        body, signal = records.body[rows], records.signal[rows]
        names = matched.scope_names
        traced = (records.trace_hi[rows] | records.trace_lo[rows]) != 0
        return {
            "journal_offset": pl.Series(self.decoded.offset[body]),
            "received_at": pl.Series(self.decoded.received_ns[body] // 1000),
            "signal": pl.Series(SIGNALS).gather(signal),
            "scope": _gathered(names, scope),
            "scope_version": _gathered(matched.versions, matched.version[records.scope[rows]]),
            "name": self._name(),
            "layer": self._per_source(scope, _layer),
            "emitter": self._per_source(
                scope, lambda _, rule, name: self.decoded.dialects.emitter(rule, name)
            ),
            "rank": self._per_rule(lambda rule: rule.rank),
            "role": self._per_rule(lambda rule: rule.role),
            "trace_hi": _nullable(records.trace_hi[rows], traced),
            "trace_lo": _nullable(records.trace_lo[rows], traced),
            "span_id": _nullable(records.span_id[rows], records.span_id[rows] != 0),
            "parent_span_id": _nullable(records.parent_span_id[rows], records.parent_span_id[rows] != 0),
        }

    def _name(self) -> pl.Series:
        start = self.matched.name_start[self.rows]
        end = np.minimum(self.matched.name_end[self.rows], start + MAX_LABEL_BYTES)
        return checked_series(self.buffer, start, end)

    def _per_rule(self, value: Callable[[Rule], object]) -> pl.Series:
        return pl.Series([value(rule) for rule in self.rules]).gather(self.rule)

    def _per_source(self, scope: Ints, text: Callable[[str, Rule, str], str]) -> pl.Series:
        """A text for each signal, rule and scope name that occur together."""
        names, signal = self.matched.scope_names, self.records.signal[self.rows]
        sources, index = np.unique(
            (signal * len(self.rules) + self.rule) * len(names) + scope, return_inverse=True
        )
        texts = []
        for source in sources.tolist():
            head, name = divmod(source, len(names))
            kind, rule = divmod(head, len(self.rules))
            texts.append(text(SIGNALS[kind], self.rules[rule], names[name]))
        return _gathered(texts, index)

    def _texts(self) -> dict[str, pl.Series]:
        columns = {}
        for field in TEXT_FIELDS:
            text = self.reader.series(self.reader.text(field, from_resource=field in ATTRIBUTION_FIELDS))
            columns[field] = self._translated(field, text)
        return _unmasked(_without_urls(columns))

    def _translated(self, field: str, text: pl.Series) -> pl.Series:
        """With a dialect's words for the field's values, and its constant where nothing is told."""
        for index in self.used:
            rule = self.rules[index]
            if field not in rule.values and field not in rule.constants and field not in rule.own_ids:
                continue
            mine = pl.Series(self.rule == index)
            if own := rule.own_ids.get(field):
                made_up = mine & text.str.contains(own).fill_null(False)
                text = text.zip_with(~made_up, text.clear().extend_constant(None, len(text)))
            if words := rule.values.get(field):
                text = text.zip_with(~mine, text.replace({word: words[word] or None for word in words}))
            if isinstance(constant := rule.constants.get(field), str):
                text = text.zip_with(
                    ~mine | text.is_not_null(), pl.Series([constant]).new_from_index(0, len(text))
                )
        return text

    def _access(self) -> dict[str, pl.Series]:
        """What the record or its resource states about how the call is paid, the strongest statement
        first.
        """
        hints: list[str | None] = [None]
        evidence: list[str | None] = [None]
        index = np.zeros(len(self.rows), dtype=np.int64)
        for access in self.decoded.dialects.access:
            at = self.reader.text_of(access.key)
            rows = np.flatnonzero((at != UNTOLD) & (index == 0))
            values = self.told.values
            value, texts = distinct(self.buffer, values.start[at[rows]], values.end[at[rows]])
            place = np.zeros(len(texts), dtype=np.int64)
            for i, text in enumerate(texts):
                if hint := access.any or access.values.get(text.lower()):
                    place[i] = len(hints)
                    hints.append(hint)
                    evidence.append(f"{access.key.text}={text[:MAX_LABEL_BYTES]}")
            index[rows] = place[value]
        return {"access_hint": _gathered(hints, index), "access_evidence": _gathered(evidence, index)}

    # -- the call
    # ---------------------------------------------------------------------------------------------

    def _status(self, texts: dict[str, pl.Series]) -> dict[str, pl.Series]:
        """Failed if the dialect, the span, an error type or the HTTP status says so; a log that says
        nothing tells nothing.
        """
        http = self.reader.number("http_status", most=999)
        signal, code = self.records.signal[self.rows], self.records.status[self.rows]
        failed = (signal == SPAN) & (code == 2) | (http >= 400) | texts["error_type"].is_not_null().to_numpy()
        said = self._per_rule(lambda rule: {"ok": 1, "error": 2}.get(rule.status or "", 0)).to_numpy()
        place = np.where(said > 0, said, np.where(failed, 2, np.where(signal == SPAN, 1, 0)))
        streaming = self._flag("streaming")
        ttft = self.reader.real("ttft_ms", most=_MAX_DURATION_MS)
        streaming[(streaming == UNTOLD) & ~np.isnan(ttft)] = 1  # a first chunk is told of streams only
        port = self.reader.number("server_port", most=65535)
        return {
            "status": _gathered([None, "ok", "error"], place),
            "http_status": _nullable(http, http != UNTOLD),
            "server_port": _nullable(port, port != UNTOLD),
            "streaming": _nullable(streaming == 1, streaming != UNTOLD),
            "ttft_ms": pl.Series(ttft).fill_nan(None),
            "batch": _nullable((batch := self._flag("batch")) == 1, batch != UNTOLD),
            "reported_cost_usd": self.reader.money("reported_cost_usd"),
        }

    def _flag(self, field: str) -> Ints:
        column = self.reader.flag(field)
        constant = [rule.constants.get(field) for rule in self.rules]
        given = np.array([UNTOLD if value is None else int(bool(value)) for value in constant])[self.rule]
        return np.where(column == UNTOLD, given, column)

    def _tokens(self, texts: dict[str, pl.Series], status: dict[str, pl.Series]) -> dict[str, pl.Series]:
        told = {field: self.reader.number(field, most=MAX_TOKENS) for field in TOKEN_FIELDS}
        conventions = Conventions(
            input_excludes_cache=self._input_excludes_cache(texts["provider_name"]),
            output_excludes_reasoning=self._where(lambda rule: rule.output == "exclusive"),
            output_by_total=self._where(lambda rule: rule.output == "by_total"),
            no_output=texts["operation"].is_in(sorted(_NO_OUTPUT)).fill_null(False).to_numpy(),
            failed=(status["status"] == "error").fill_null(False).to_numpy(),
        )
        columns = normalised(told, conventions, self.anomalies.note)
        return {name: _nullable(column, column != UNTOLD) for name, column in columns.items()}

    def _input_excludes_cache(self, provider: pl.Series) -> Mask:
        """By the dialect, for all or for some providers."""
        apart = self._where(lambda rule: rule.input == "exclusive")
        for index in self.used:
            if names := self.rules[index].input_exclusive_providers:
                told_apart = provider.str.to_lowercase().is_in(names).fill_null(False).to_numpy()
                apart |= (self.rule == index) & told_apart
        return apart

    def _where(self, test: Callable[[Rule], bool]) -> Mask:
        return np.array([test(rule) for rule in self.rules], dtype=np.bool_)[self.rule]

    def _times(self) -> dict[str, pl.Series]:
        records, rows = self.records, self.rows
        received = self.decoded.received_ns[records.body[rows]] // 1000
        first, late = self._believed(records.time_ns[rows]), self._believed(records.late_ns[rows])
        span = records.signal[rows] == SPAN
        effective, source = _effective(first, late, self._timestamps(first, late), received, span)
        self.anomalies.note(effective > received + _AHEAD_US, "clock:ahead")
        duration = self.reader.real("duration_ms", most=_MAX_DURATION_MS)
        backwards = span & (first > 0) & (late > 0) & (late < first)
        self.anomalies.note(backwards, "time:ends_before_start")
        lasts = span & (late > 0) & ~backwards & ~self._where(lambda rule: rule.time == "moment")
        ended = np.where(lasts, late, effective)
        measured = lasts & (first > 0) & np.isnan(duration)
        at_end = self._where(lambda rule: rule.time == "end") & ~np.isnan(duration)
        started = np.where(
            at_end, effective - np.where(np.isnan(duration), 0, duration * 1000).astype(np.int64), effective
        )
        duration[measured] = (late[measured] - first[measured]) / 1000
        return {
            "effective_at": pl.Series(effective),
            "effective_from": _gathered(["own", "observed", "attribute", "received"], source),
            "started_at": pl.Series(np.maximum(started, 0)),
            "ended_at": pl.Series(ended),
            "duration_ms": pl.Series(duration).fill_nan(None),
        }

    def _believed(self, time_ns: Words) -> Ints:
        """Microseconds, 0 where there is none or it cannot be."""
        time_us = (time_ns // np.uint64(1000)).astype(np.int64)
        absurd = time_us > _MAX_TIME_US
        self.anomalies.note(absurd, "time:absurd")
        return np.where(absurd, 0, time_us)

    def _timestamps(self, first: Ints, late: Ints) -> Ints:
        """The emitter's timestamp attribute, microseconds, where the record has no time of its own;
        else 0.
        """
        at = self.reader.text("timestamp")
        rows = np.flatnonzero((first == 0) & (late == 0) & (at != UNTOLD))
        times = (
            self.reader.series(at[rows])
            .str.to_datetime(time_unit="us", time_zone="UTC", strict=False)
            .cast(pl.Int64)
        )
        found = np.zeros(len(first), dtype=np.int64)
        found[rows] = times.fill_null(0).clip(0, _MAX_TIME_US).to_numpy()
        return found

    # -- lists
    # ------------------------------------------------------------------------------------------------

    def _labels(self) -> pl.Series:
        """tollbook.label.*, the record's before its resource's, each name once."""
        labels = self.told.at(self.told.key == LABEL)
        if not len(labels):
            return pl.Series([None], dtype=OBSERVATIONS["labels"]).new_from_index(0, len(self.rows))
        own, shared = labels.at(labels.owner < len(self.rows)), labels.at(labels.owner >= len(self.rows))
        order, low, high = self._sharing(shared.owner)
        repeated = shared.at(np.repeat(np.arange(len(shared)), high - low))
        frame = pl.concat(
            [
                self._label_frame(own, own.owner, order=0),
                self._label_frame(repeated, order[_ranges(low, high)], order=1),
            ]
        )
        frame = frame.sort("row", "order", "key", "value").unique(
            ["row", "key"], keep="first", maintain_order=True
        )
        frame = frame.sort("row", "key").filter(pl.int_range(pl.len()).over("row") < _MAX_LABELS)
        listed = frame.group_by("row", maintain_order=True).agg(labels=pl.struct("key", "value"))
        every = pl.DataFrame({"row": np.arange(len(self.rows))}, schema={"row": pl.Int64})
        return every.join(listed, on="row", how="left", maintain_order="left")["labels"]

    def _label_frame(self, told: Told, rows: Ints, *, order: int) -> pl.DataFrame:
        start, end = told.key_start + len(LABEL_PREFIX), told.key_end
        values = told.values
        fits = (
            (end - start <= MAX_LABEL_BYTES)
            & (values.kind == TEXT)
            & (values.end - values.start <= MAX_LABEL_BYTES)
        )
        return pl.DataFrame(
            {
                "row": rows[fits],
                "order": np.full(int(fits.sum()), order),
                "key": text_series(self.buffer, start[fits], end[fits]),
                "value": text_series(self.buffer, values.start[fits], values.end[fits]),
            },
            schema={"row": pl.Int64, "order": pl.Int64, "key": pl.String, "value": pl.String},
        )

    def _attributes(self) -> pl.Series:
        """All allow-listed attributes of a record, then those of its resource, and its raw times."""
        owner, count, records = self.told.owner, len(self.rows), self.records
        own = int(np.searchsorted(owner, count))
        per_row = np.bincount(owner[:own], minlength=count)
        low, high = (np.searchsorted(owner, self.resource, side=side) for side in ("left", "right"))
        bounds = np.concatenate([[0], np.cumsum(per_row + high - low)])
        take = np.empty(bounds[-1], dtype=np.int64)
        before = np.cumsum(per_row) - per_row
        take[np.arange(own) + np.repeat(bounds[:-1] - before, per_row)] = np.arange(own)
        take[_ranges(bounds[:-1] + per_row, bounds[1:])] = _ranges(low, high)
        return packed(
            self.buffer,
            self.told,
            take,
            own=take < own,
            rows=bounds,
            first=records.time_ns[self.rows],
            late=records.late_ns[self.rows],
            status=records.status[self.rows],
        )


def _unmasked(texts: dict[str, pl.Series]) -> dict[str, pl.Series]:
    """A gateway's own name for a model is not the model that answered."""
    alias = (texts["response_model"] == texts["model_alias"]).fill_null(False)
    if alias.any():
        nothing = texts["response_model"].clear().extend_constant(None, len(alias))
        texts["response_model"] = texts["response_model"].zip_with(~alias, nothing)
    return texts


def _without_urls(texts: dict[str, pl.Series]) -> dict[str, pl.Series]:
    """A server address that is a URL is told as one, and as its host."""
    is_url = texts["server_address"].str.contains("://", literal=True).fill_null(False)
    if is_url.any():
        url = texts["server_address"]
        texts["url"] = texts["url"].zip_with(~is_url | texts["url"].is_not_null(), url)
        texts["server_address"] = url.zip_with(~is_url, url.str.extract(_HOST))
    return texts


def _layer(signal: str, rule: Rule, scope: str) -> str:
    return f"{signal}:{scope}#{rule.layer}" if rule.layer else f"{signal}:{scope}"


def _effective(first: Ints, late: Ints, stamped: Ints, received: Ints, span: Mask) -> tuple[Ints, Ints]:
    """The time a record is booked under, and what it was taken from: 0 own, 1 observed, 2 attribute,
    3 received.
    """
    options = (first > 0, late > 0, stamped > 0)
    effective = np.select(options, (first, late, stamped), default=received)
    source = np.select(options, (0, np.where(span, 0, 1), 2), default=3)
    return effective, source


def _ranges(low: Ints, high: Ints) -> Ints:
    """low[0], low[0]+1, ..., high[0]-1, low[1], ... in one array."""
    length = high - low
    before = np.cumsum(length) - length
    places: Ints = np.arange(int(length.sum())) + np.repeat(low - before, length)
    return places


def _typed(column: pl.Series, kind: pl.DataType) -> pl.Series:
    return column if column.dtype == kind else column.cast(kind)


def _gathered(texts: Sequence[str | None], index: Ints) -> pl.Series:
    return pl.Series(texts, dtype=pl.String).gather(index)


def _nullable(values: npt.NDArray[Any], valid: Mask) -> pl.Series:
    return as_series(pa.array(values, mask=~valid))
