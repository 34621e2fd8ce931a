"""Stored observations to observations again, with the dialects of today.

Why: dialects get better, and the requests are gone. What was kept of each record (`kept`) is laid out as
columns as if it had just been decoded, and goes through the same `observe`: with the same dialects the same
rows come out. Identities are taken over, since a log's hangs on attributes that are not kept; so are the
anomalies about what was dropped on the way in.

What it cannot do: find calls in records that no rule took at the time, or read keys no dialect named then.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl

from .decode import Decoded
from .dialect import Dialects, default_dialects
from .dialect_match import NO_RULE, match
from .kept import FIRST, LATE, RECORD, RESOURCE, STATUS
from .observation import LINKS, OBSERVATIONS, REJECTS
from .observe import observe
from .otlp_columns import SIGNALS, Attributes, Columns, Records, Scopes, attributes_of
from .scan import FIXED64, VARINT, Buffer, Fields, Ints, Words, fields, long_varints
from .texts import Vocabulary

__all__ = ["STORED", "left_out", "reobserve"]

STORED: Final = (  # what is needed of a stored observation
    *("id_hi", "id_lo", "journal_offset", "received_at", "signal", "scope", "scope_version", "name"),
    *("trace_hi", "trace_lo", "span_id", "parent_span_id", "attributes", "anomalies"),
)
_DROPPED: Final = "^(too_long|not_utf8|credential|email|unreadable):"


def reobserve(
    stored: pl.DataFrame, dialects: Dialects | None = None, *, keep_emails: bool = False
) -> pl.DataFrame:
    """OBSERVATIONS from stored ones (the columns STORED at least), without those that are no calls now."""
    decoded = _decoded(stored, dialects or default_dialects())
    found = observe(decoded, keep_emails=keep_emails).observations
    return _with_old_anomalies(found, stored)


def left_out(stored: pl.DataFrame, dialects: Dialects | None = None) -> pl.Series:
    """Why stored observations that `reobserve` does not give back are no calls now, in their order."""
    known = dialects or default_dialects()
    roles = [rule.role for rule in known.rules]
    rules = match(_decoded(stored, known)).rule.tolist()
    said = ["no dialect takes it" if rule == NO_RULE else f"its dialect says {roles[rule]}" for rule in rules]
    return pl.Series("reason", said, dtype=pl.String)


def _with_old_anomalies(found: pl.DataFrame, stored: pl.DataFrame) -> pl.DataFrame:
    old = stored.select("id_hi", "id_lo", old=pl.col("anomalies").list.filter(_was_dropped()))
    both = found.join(old, on=["id_hi", "id_lo"], how="left", maintain_order="left")
    codes = pl.concat_list("anomalies", pl.col("old").fill_null([])).list.unique().list.sort()
    return both.with_columns(anomalies=codes).select(*OBSERVATIONS)


def _was_dropped() -> pl.Expr:
    return pl.element().str.contains(_DROPPED)


def _decoded(stored: pl.DataFrame, dialects: Dialects) -> Decoded:
    count = len(stored)
    columns = ("attributes", "scope", "scope_version", "name")
    buffer, slices = _laid_out([stored[name] for name in columns])
    kept, scope, version, name = slices
    listed = fields(buffer, *kept)
    own, shared = (_attributes(buffer, listed, dialects.vocabulary, number=n) for n in (RECORD, RESOURCE))
    nothing = _attributes(buffer, listed, dialects.vocabulary, number=STATUS)
    return Decoded(
        dialects=dialects,
        columns=Columns(
            buffer=buffer,
            records=_records(stored, buffer, listed, name=name),
            scopes=Scopes(*scope, *version),
            attributes=own,
            scope_attributes=nothing,
            resource_attributes=shared,
            odd=np.zeros(count, dtype=np.bool_),
        ),
        offset=stored["journal_offset"].to_numpy(),
        received_ns=stored["received_at"].dt.timestamp("us").to_numpy() * 1000,
        links=pl.DataFrame(schema=LINKS),
        rejects=pl.DataFrame(schema=REJECTS),
        identity=(stored["id_hi"].to_numpy(), stored["id_lo"].to_numpy()),
    )


def _laid_out(columns: list[pl.Series]) -> tuple[Buffer, list[tuple[Ints, Ints]]]:
    """The columns' values end to end in one buffer, and the slices of each column's."""
    texts = [column.cast(pl.Binary).fill_null(b"") for column in columns]
    lengths = [text.bin.size("b").cast(pl.Int64).to_numpy() for text in texts]
    ends = np.cumsum(np.concatenate(lengths))
    buffer = Buffer.of(value for text in texts for value in text.to_list())
    starts = ends - np.concatenate(lengths)
    cuts = np.cumsum([len(column) for column in columns])[:-1]
    return buffer, list(zip(np.split(starts, cuts), np.split(ends, cuts), strict=True))


def _attributes(buffer: Buffer, listed: Fields, vocabulary: Vocabulary, *, number: int) -> Attributes:
    return attributes_of(buffer, listed, vocabulary, number=number)[0]


def _records(stored: pl.DataFrame, buffer: Buffer, listed: Fields, *, name: tuple[Ints, Ints]) -> Records:
    count = len(stored)
    every, nothing = np.arange(count), np.zeros(count, dtype=np.int64)
    status = np.zeros(count, dtype=np.int64)
    message, rows = listed.last(STATUS, VARINT)
    status[message] = long_varints(buffer, listed.start[rows])[0].astype(np.int64)
    signal = stored["signal"].cast(pl.Enum(SIGNALS)).to_physical().cast(pl.Int64).to_numpy()
    words = {key: stored[key].fill_null(0).to_numpy() for key in STORED[8:12]}
    return Records(
        body=every,
        signal=signal,
        scope=every,
        resource=every,
        name_start=name[0],
        name_end=name[1],
        time_ns=_words(buffer, listed, FIRST, count=count),
        late_ns=_words(buffer, listed, LATE, count=count),
        **words,
        bad_ids=np.zeros(count, dtype=np.bool_),
        status=status,
        note_start=nothing,
        note_end=nothing,
        content_start=nothing,
        content_end=nothing,
    )


def _words(buffer: Buffer, listed: Fields, number: int, *, count: int) -> Words:
    column = np.zeros(count, dtype=np.uint64)
    message, rows = listed.last(number, FIXED64)
    column[message] = buffer.words[listed.start[rows]]
    return column
