"""What is stored already and belongs to a batch: records told before, and records of the same calls.

Every look-up is bounded by time: a repeated record repeats its own time, and two records of one call start
within the fusion horizon of each other, so DuckDB's zone maps skip all but the newest row groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import duckdb
import polars as pl

from billing.charges import COUNTED
from billing.fusion import HORIZON, traces_to_walk
from billing.store import frames, read
from ingest.observation import LINKS, OBSERVATIONS

IDENTITY = ["id_hi", "id_lo"]
TRACE = ["trace_hi", "trace_lo"]
Window = tuple[datetime, datetime]

_MAX_ROUNDS = 16
_MAX_WINDOWS = 8
_ROWS = """
SELECT o.rowid AS row FROM observations o
WHERE o.started_at BETWEEN ? AND ? AND o.role = ?
  AND (o.response_key IN (SELECT md5_number_lower(response_id) FROM responses)
    OR o.request_key IN (SELECT md5_number_lower(request_id) FROM requests)
    OR o.trace_lo IN (SELECT trace_lo FROM traces))
"""


def unseen(connection: duckdb.DuckDBPyConnection, told: pl.DataFrame) -> pl.DataFrame:
    """The observations, each once, that are not stored yet."""
    once = _each_once(told)
    timed = pl.col("effective_from") != "received"
    known = [
        _identities(connection, part, window)
        for part, window in by_day(once.filter(timed), column="effective_at")
    ]
    untimed = once.filter(~timed)
    if not untimed.is_empty():
        known.append(_identities(connection, untimed, None))
    repeated = pl.concat(known) if known else once.clear()
    return once.join(repeated, on=IDENTITY, how="anti") if len(repeated) else once


def _each_once(told: pl.DataFrame) -> pl.DataFrame:
    """Without repetitions inside the batch: of records with one identity the one that came first."""
    if told.select(IDENTITY).n_unique() == len(told):
        return told
    return told.sort(*IDENTITY, "journal_offset").unique(IDENTITY, keep="first", maintain_order=True)


def _identities(
    connection: duckdb.DuckDBPyConnection, wanted: pl.DataFrame, window: Window | None
) -> pl.DataFrame:
    within = "o.effective_at BETWEEN ? AND ? AND" if window else ""
    with frames(connection, wanted=wanted.select("id_lo")):
        found = read(
            connection,
            f"SELECT o.id_hi, o.id_lo FROM observations o WHERE {within} "
            "o.id_lo IN (SELECT id_lo FROM wanted)",
            window or (),
        )
    return found.cast({"id_hi": pl.UInt64, "id_lo": pl.UInt64})


def by_day(frame: pl.DataFrame, *, column: str) -> list[tuple[pl.DataFrame, Window]]:
    """The frame cut into parts of one day each, with the first and last time of each part.

    So that one very old record does not widen the window of all the others. Many days are taken as one.
    """
    if frame.is_empty():
        return []
    dated = frame.with_columns(pl.col(column).dt.date().alias("_day"))
    parts = dated.partition_by("_day", include_key=False)
    if len(parts) > _MAX_WINDOWS:
        parts = [frame]
    return [(part, window_of(part, column=column)) for part in parts]


def window_of(frame: pl.DataFrame, *, column: str) -> Window:
    """The first and the last time of a non-empty frame's column."""
    low, high = frame[column].min(), frame[column].max()
    assert isinstance(low, datetime)
    assert isinstance(high, datetime)
    return low, high


@dataclass(frozen=True, slots=True)
class _Keys:
    """What records of the same call share, and when the records that ask started."""

    responses: pl.DataFrame
    requests: pl.DataFrame
    traces: pl.DataFrame
    asked: pl.DataFrame

    @classmethod
    def of(cls, observations: pl.DataFrame, links: pl.DataFrame) -> _Keys:
        """The keys of observations, and the traces of links."""
        places = pl.concat([observations.select(*TRACE, "started_at"), links.select(*TRACE, "started_at")])
        traced = pl.col("trace_lo").is_not_null()
        keyed = observations.filter(pl.col("response_id").is_not_null() | pl.col("request_id").is_not_null())
        return cls(
            responses=observations.select("response_id").drop_nulls().unique(),
            requests=observations.select("request_id").drop_nulls().unique(),
            traces=places.filter(traced).select(TRACE).unique(),
            asked=pl.concat([places.filter(traced).select("started_at"), keyed.select("started_at")]),
        )


def related(connection: duckdb.DuckDBPyConnection, fresh: pl.DataFrame, links: pl.DataFrame) -> pl.DataFrame:
    """Stored observations that may be of one call with these, and those related to them in turn."""
    known, frontier, places = fresh, fresh, links
    for _ in range(_MAX_ROUNDS):
        keys = _Keys.of(frontier, places)
        stored = _carrying(connection, keys)
        if stored.is_empty():
            break
        stored = stored.join(known, on=IDENTITY, how="anti")
        news = _able_to_join(stored, known, keys)
        if news.is_empty():
            break
        known, frontier, places = pl.concat([known, news.select(known.columns)]), news, links.clear()
    return known.slice(len(fresh))


def _carrying(connection: duckdb.DuckDBPyConnection, keys: _Keys) -> pl.DataFrame:
    """Counted observations that carry one of the keys near one of the times."""
    found = []
    with frames(connection, responses=keys.responses, requests=keys.requests, traces=keys.traces):
        for _, (low, high) in by_day(keys.asked, column="started_at"):
            found.append(read(connection, _ROWS, [low - HORIZON, high + HORIZON, COUNTED]))
    return observations(connection, pl.concat(found).unique()) if found else pl.DataFrame(schema=OBSERVATIONS)


def observations(connection: duckdb.DuckDBPyConnection, rows: pl.DataFrame) -> pl.DataFrame:
    """The stored observations of these row numbers."""
    if rows.is_empty():
        return pl.DataFrame(schema=OBSERVATIONS)
    with frames(connection, wanted=rows):
        query = f"SELECT {', '.join(OBSERVATIONS)} FROM observations WHERE rowid IN (SELECT row FROM wanted)"
        return read(connection, query).cast(dict(OBSERVATIONS))  # type: ignore[arg-type]


def _able_to_join(stored: pl.DataFrame, known: pl.DataFrame, keys: _Keys) -> pl.DataFrame:
    """Without the records that share but a trace in which all records are of one layer."""
    columns = [*TRACE, "layer"]
    walked = traces_to_walk(pl.concat([stored.select(columns), known.select(columns)]))
    by_id = pl.col("response_id").is_in(keys.responses["response_id"].implode()) | pl.col("request_id").is_in(
        keys.requests["request_id"].implode()
    )
    named = stored.filter(by_id.fill_null(value=False))
    traced = stored.join(walked, on=TRACE, how="semi")
    return pl.concat([named, traced]).unique(IDENTITY)


def stored_links(connection: duckdb.DuckDBPyConnection, observed: pl.DataFrame) -> pl.DataFrame:
    """The stored links of the traces in which ancestry can join something."""
    inside = observed.join(traces_to_walk(observed), on=TRACE, how="semi")
    found = []
    with frames(connection, wanted=inside.select("trace_lo").unique()):
        for _, (low, high) in by_day(inside, column="started_at"):
            query = (
                f"SELECT {', '.join(LINKS)} FROM span_links WHERE started_at BETWEEN ? AND ? "
                "AND trace_lo IN (SELECT trace_lo FROM wanted)"
            )
            found.append(read(connection, query, [low - HORIZON, high + HORIZON]).cast(dict(LINKS)))  # type: ignore[arg-type]
    return pl.concat(found) if found else pl.DataFrame(schema=LINKS)
