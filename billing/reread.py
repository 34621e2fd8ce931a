"""Stored records read again with the dialects of today: what each says now, where it says something else.

Evidence is never lost: a record that is no call now stays, with the role 'ignored' and all it said, so that a
better dialect may take it back; its attributes stay as they came. It refuses to decide what is one call;
fusion does that again, over what was read anew and what that touches.
"""

from __future__ import annotations

import duckdb
import polars as pl

from billing.charges import call_id
from billing.evidence import keyed, with_attributes
from billing.history import Source
from billing.related import related, window_of
from billing.store import OBSERVATION_KINDS, OBSERVED, append, frames, read
from ingest.dialect import Dialects
from ingest.observation import LINKS
from ingest.reobserve import STORED, left_out, reobserve

_TYPES = {**OBSERVED, "commit_no": pl.UInt64()}
_STORED = tuple(_TYPES)
RECORDS = Source("observations", _STORED, ("id_hi", "id_lo"))
IGNORED = "ignored"
"""The role of a stored record that no dialect counts any more."""

_IDENTITY = ["id_hi", "id_lo"]
_AS_STORED = ("attributes", "journal_offset", "received_at", "commit_no")
_OF_FUSION = "not_unique$"
"""Anomalies that fusion has noted, which no reading of the record alone tells."""


class Rereading:
    """Frames of records that read otherwise now, row by row (OBSERVED and `commit_no`, under which their
    attributes are kept): as they were stored, and as they are.
    """

    def __init__(self, before: pl.DataFrame, after: pl.DataFrame, dropped: pl.DataFrame) -> None:
        self.before = before
        self.after = after
        self.dropped = dropped
        """id_hi, id_lo and `reason` of those that are no calls now and were before."""

    @classmethod
    def of(cls, connection: duckdb.DuckDBPyConnection, rows: pl.DataFrame, dialects: Dialects) -> Rereading:
        """Read stored records again; those that read as before, or whose attributes are gone, stay out."""
        whole = with_attributes(connection, rows.cast(_TYPES))  # type: ignore[arg-type]
        stored = whole.filter(pl.col("attributes").is_not_null())
        if stored.is_empty():
            return cls(stored.select(_STORED), stored.select(_STORED), _nothing_dropped())
        found = reobserve(stored.select(STORED), dialects)
        lost = stored.join(found, on=_IDENTITY, how="anti", maintain_order="left")
        again = pl.concat([found, lost.with_columns(role=pl.lit(IGNORED)).select(found.columns)])
        order = stored.select(*_IDENTITY, *_AS_STORED, noted=_noted_by_fusion())
        fresh = order.join(again.drop(_AS_STORED, strict=False), on=_IDENTITY, maintain_order="left")
        codes = pl.col("anomalies").list.set_union("noted").list.sort()
        fresh = keyed(fresh.with_columns(anomalies=codes)).select(_STORED)
        stored = stored.select(_STORED)
        differs = _content(stored).hash_rows() != _content(fresh).hash_rows()
        return cls(stored.filter(differs), fresh.filter(differs), _dropped(lost, dialects))

    def __len__(self) -> int:
        return len(self.before)

    def __add__(self, other: Rereading) -> Rereading:
        pairs = (
            (self.before, other.before),
            (self.after, other.after),
            (self.dropped, other.dropped),
        )
        return Rereading(*(pl.concat(pair) for pair in pairs))


def told_of(observations: pl.DataFrame) -> pl.DataFrame:
    """Those that tell of calls at all."""
    return observations.filter(pl.col("role") != IGNORED)


def _content(observations: pl.DataFrame) -> pl.DataFrame:
    ordered = pl.col("anomalies").list.sort()
    return observations.select(pl.exclude(*_AS_STORED)).with_columns(ordered)


def _noted_by_fusion() -> pl.Expr:
    return pl.col("anomalies").list.filter(pl.element().str.contains(_OF_FUSION))


def _dropped(lost: pl.DataFrame, dialects: Dialects) -> pl.DataFrame:
    news = lost.filter(pl.col("role") != IGNORED)
    if news.is_empty():
        return _nothing_dropped()
    return news.select(_IDENTITY).with_columns(left_out(news.select(STORED), dialects))


def _nothing_dropped() -> pl.DataFrame:
    return pl.DataFrame(schema={"id_hi": pl.UInt64, "id_lo": pl.UInt64, "reason": pl.String})


def written_again(
    connection: duckdb.DuckDBPyConnection, reading: Rereading, dialects: Dialects
) -> tuple[Rereading, pl.DataFrame]:
    """Write what reads otherwise now, and read whatever may be of one call with it, by the old reading or the
    new, as well. All the readings, and the records around them that read as before: together whole calls.
    """
    fresh = seen = reading
    around = reading.before.clear()
    while len(fresh):
        _rewrite(connection, fresh)
        told = told_of(pl.concat([seen.before, seen.after]))
        near = related(connection, told.select(*OBSERVED), pl.DataFrame(schema=LINKS))
        unread = _stored(connection, near.join(pl.concat([around, seen.after]), on=_IDENTITY, how="anti"))
        fresh = Rereading.of(connection, unread, dialects)
        around = pl.concat([around, unread.join(fresh.after, on=_IDENTITY, how="anti")])
        seen += fresh
    return seen, around


def _stored(connection: duckdb.DuckDBPyConnection, near: pl.DataFrame) -> pl.DataFrame:
    """The same observations with the transaction that they came in."""
    if near.is_empty():
        return near.with_columns(commit_no=pl.lit(None, pl.UInt64))
    with frames(connection, near=near.select(_IDENTITY)):
        query = (
            "SELECT id_hi, id_lo, commit_no FROM observations SEMI JOIN near USING (id_hi, id_lo) "
            "WHERE started_at BETWEEN ? AND ?"
        )
        commits = read(connection, query, window_of(near, column="started_at"))
    return near.join(commits.cast(pl.UInt64), on=_IDENTITY)


def _rewrite(connection: duckdb.DuckDBPyConnection, fresh: Rereading) -> None:
    low, high = window_of(fresh.before, column="started_at")
    with frames(connection, told=fresh.before.select(_IDENTITY)):
        same = "(id_hi, id_lo) IN (SELECT (id_hi, id_lo) FROM told)"
        connection.execute(
            f"DELETE FROM {OBSERVATION_KINDS.rows} WHERE started_at BETWEEN ? AND ? AND {same}", [low, high]
        )
        connection.execute(f"DELETE FROM aggregates_alone WHERE {same}")
    append(connection, "observations", fresh.after)


def retired(removed: pl.DataFrame, dropped: pl.DataFrame) -> pl.Expr:
    """Why removed rows that nothing has replaced are gone, as a column of `removed`."""
    named = dropped.select(call_id(*_IDENTITY).alias("call_id"), pl.col("reason").alias("why"))
    why = removed.select("call_id").join(named, on="call_id", how="left", maintain_order="left")["why"]
    merged = pl.lit("part of another call")
    left = pl.concat_str(pl.lit("no call any more: "), pl.lit(why.fill_null("its records tell of another")))
    return pl.when(pl.col("superseded_by").is_not_null()).then(merged).otherwise(left)
