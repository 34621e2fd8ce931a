"""What is stored already and belongs to a batch: records told before, and records of the same calls.

Every look-up is bounded by time: a repeated record repeats its own time, and two records of one call start
within the fusion horizon of each other, so DuckDB's zone maps skip all but the newest row groups.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

import duckdb
import polars as pl

from billing.ancestry import TRACE
from billing.charges import COUNTED, call_id
from billing.fingerprint import INSTANT_SLACK, clustered, reach, told
from billing.fusion import HORIZON, MAX_SHARED, SLACK, traces_to_walk
from billing.standing import REACH, telling
from billing.store import OBSERVATION_KINDS, OBSERVED, frames, read, staged
from ingest.observation import LINKS

IDENTITY = ["id_hi", "id_lo"]
Window = tuple[datetime, datetime]

_MAX_ROUNDS = 16
_MAX_WINDOWS = 8
_MAX_ROWS = 200_000
"""More stored records than this are not looked at for one batch: only hostile telemetry gets there."""
_LISTED = 512
"""Of so many rows the numbers stand in the query."""
_FLOOD = 4096
"""Of more possible twins than this, at one time, only those that have found no partner are looked at."""
_ROWS = """
SELECT o.row_no AS row, o.response_key, o.request_key, o.trace_lo, o.started_at, o.ended_at
FROM observations o
WHERE o.started_at BETWEEN ? AND ? AND o.role = 'call'
  AND (o.response_key IN (SELECT response_key FROM responses)
    OR o.request_key IN (SELECT request_key FROM requests)
    OR o.trace_lo IN (SELECT trace_lo FROM traces))
"""
_ALIKE = """
SELECT DISTINCT o.row_no AS row FROM observations o JOIN asked p USING (fingerprint_key)
WHERE o.started_at BETWEEN ? AND ? AND o.ended_at >= ? AND o.role = 'call'
  AND o.started_at <= p.until + ? AND o.ended_at >= p.since - ?
  AND NOT (p.all_response AND o.response_key IS NOT NULL)
  AND NOT (p.all_request AND o.request_key IS NOT NULL)
  AND (p.layer IS NULL OR o.layer <> p.layer OR (o.signal = 'log' AND o.name <> p.event))
"""
_AROUND = """
SELECT o.row_no AS row FROM observations o
WHERE o.started_at <= ? AND o.ended_at >= ? AND o.role IN ('aggregate', 'outer')
  AND o.trace_lo IN (SELECT trace_lo FROM traces)
  AND (o.id_hi, o.id_lo) NOT IN (SELECT (a.id_hi, a.id_lo) FROM aggregates_alone a)
"""
_ALONE = """
SELECT o.row_no AS row FROM observations o
WHERE o.started_at <= ? AND o.ended_at >= ? AND o.role = 'aggregate' AND (o.id_hi, o.id_lo) IN (
  SELECT (a.id_hi, a.id_lo) FROM aggregates_alone a
  WHERE a.trace_lo IN (SELECT trace_lo FROM traces) OR a.service IN (SELECT service FROM sources)
    OR a.session_id IN (SELECT session_id FROM sources))
"""
_REPEATED = """
SELECT o.row_no AS row FROM observations o
WHERE o.started_at BETWEEN ? AND ? AND o.role = 'call' AND EXISTS (
  SELECT 1 FROM alone a WHERE o.started_at BETWEEN a.since AND a.until
    AND (o.session_id = a.session_id OR (o.input_tokens = a.input_tokens AND o.service = a.service)))
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
            f"SELECT o.id_hi, o.id_lo FROM {OBSERVATION_KINDS.rows} o WHERE {within} "
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

    def without(self, crowded: set[int]) -> _Keys:
        """The same but for ids that are known to stand on too many records: they lead nowhere again."""
        left = ~pl.first().is_in(sorted(crowded))
        return replace(self, responses=self.responses.filter(left), requests=self.requests.filter(left))

    @classmethod
    def of(cls, observations: pl.DataFrame, links: pl.DataFrame) -> _Keys:
        """The keys of observations, and the traces of links."""
        last = pl.col("started_at").alias("ended_at")
        places = pl.concat(
            [observations.select(*TRACE, "started_at", "ended_at"), links.select(*TRACE, "started_at", last)]
        )
        traced = pl.col("trace_lo").is_not_null()
        keyed = observations.filter(
            pl.col("response_key").is_not_null() | pl.col("request_key").is_not_null()
        )
        times = ["started_at", "ended_at"]
        return cls(
            responses=observations.select("response_key").drop_nulls().unique(),
            requests=observations.select("request_key").drop_nulls().unique(),
            traces=places.filter(traced).select(TRACE).unique(),
            asked=pl.concat([places.filter(traced).select(times), keyed.select(times)]),
        )


def related(connection: duckdb.DuckDBPyConnection, fresh: pl.DataFrame, links: pl.DataFrame) -> pl.DataFrame:
    """Stored observations that may be of one call with these, and those related to them in turn."""
    known, frontier, places = fresh, fresh, links
    lonely, crowded = _any_alone(connection), set[int]()
    for _ in range(_MAX_ROUNDS):
        keys = _Keys.of(frontier, places).without(crowded)
        around = _around(connection, keys)
        carrying = _carrying(connection, keys, known, crowded)
        named = _able_to_join(carrying, pl.concat([known, around.select(known.columns)]), keys)
        found = [named, around, _alike(connection, frontier)]
        if lonely:
            found.append(_alone(connection, frontier, keys))
        found.append(_repeated(connection, frontier))
        news = pl.concat([part for part in found if len(part)] or [named])
        if news.is_empty():
            break
        news = news.unique(IDENTITY).join(known, on=IDENTITY, how="anti")
        if news.is_empty() or len(known) - len(fresh) + len(news) > _MAX_ROWS:
            break
        known, places = pl.concat([known, news.select(known.columns)]), links.clear()
        frontier = news.join(around, on=IDENTITY, how="anti")
    return known.slice(len(fresh))


def _around(connection: duckdb.DuckDBPyConnection, keys: _Keys) -> pl.DataFrame:
    """Stored spans of these traces that lie around calls (of agents, turns, workflows) and stand for none."""
    found = []
    with frames(connection, traces=keys.traces):
        for part, (low, high) in by_day(keys.asked, column="started_at"):
            last = max(high, window_of(part, column="ended_at")[1])
            found.append(read(connection, _AROUND, [last + HORIZON, low - HORIZON]))
    return observations(connection, pl.concat(found).unique() if found else pl.DataFrame())


def settled(connection: duckdb.DuckDBPyConnection, stored: pl.DataFrame) -> pl.DataFrame:
    """Those (id_hi, id_lo) of stored aggregates that calls, not all of them here, have come to cover."""
    aggregates = stored.filter(pl.col("role") == "aggregate").select(IDENTITY)
    if aggregates.is_empty():
        return aggregates
    with frames(connection, told=aggregates):
        alone = read(
            connection, "SELECT id_hi, id_lo FROM aggregates_alone SEMI JOIN told USING (id_hi, id_lo)"
        )
    return aggregates.join(alone.cast(pl.UInt64), on=IDENTITY, how="anti")


def _carrying(
    connection: duckdb.DuckDBPyConnection, keys: _Keys, known: pl.DataFrame, crowded: set[int]
) -> pl.DataFrame:
    """Stored calls that carry one of the keys near one of the times; ids that too many carry are added to
    `crowded`.
    """
    found = []
    with frames(connection, responses=keys.responses, requests=keys.requests, traces=keys.traces):
        for part, (low, high) in by_day(keys.asked, column="started_at"):
            last = max(high, window_of(part, column="ended_at")[1])
            rows = read(connection, _ROWS, [low - HORIZON, last + HORIZON])
            found.append(_thinned(rows, known, keys.traces, crowded))
    return observations(connection, pl.concat(found).unique()) if found else pl.DataFrame(schema=OBSERVED)


def _thinned(
    rows: pl.DataFrame, known: pl.DataFrame, traces: pl.DataFrame, crowded: set[int]
) -> pl.DataFrame:
    """The row numbers, without most of those of an id that stands on very many records at these times.

    As many stay as show fusion that the id is not one, and those that belong here by their trace: a call is
    never looked at in part.
    """
    if len(rows) <= MAX_SHARED or known.is_empty():  # links alone ask for their traces, whatever the time
        return rows.select("row")
    first, last = known["started_at"].min(), known["ended_at"].max()
    near = pl.col("started_at").le(pl.lit(last) + SLACK) & pl.col("ended_at").ge(pl.lit(first) - SLACK)
    traced = pl.col("trace_lo").is_in(traces["trace_lo"].implode()) & (pl.len().over("trace_lo") <= _FLOOD)
    near |= traced.fill_null(value=False)
    for key in ("response_key", "request_key"):
        often = pl.col(key).is_not_null() & (pl.len().over(key) > MAX_SHARED)
        crowded.update(rows.filter(often)[key].unique())
        enough = pl.col("row").cum_count().over(key) <= 2 * MAX_SHARED
        rows = rows.filter(~often | near).filter(~often | enough | traced.fill_null(value=False))
    return rows.select("row")


def _alike(connection: duckdb.DuckDBPyConnection, frontier: pl.DataFrame) -> pl.DataFrame:
    """Stored calls that may be twins on another layer: of the same fingerprint at the same time."""
    prints = _prints(frontier)
    found = []
    for part, (low, _) in by_day(prints, column="since"):
        last = window_of(part, column="until")[1]
        with staged(connection, asked=part):
            reaching = [low - HORIZON, last + INSTANT_SLACK, low - INSTANT_SLACK]
            found.append(read(connection, _ALIKE, [*reaching, INSTANT_SLACK, INSTANT_SLACK]))
    rows = pl.concat(found).unique() if found else pl.DataFrame()
    stored = observations(connection, rows)
    return stored if len(stored) <= _FLOOD else _single(connection, stored)


def _single(connection: duckdb.DuckDBPyConnection, stored: pl.DataFrame) -> pl.DataFrame:
    """The observations that are calls alone: in a flood of equal calls, those paired stay as they are."""
    low, high = window_of(stored, column="started_at")
    named = stored.with_columns(call_id(*IDENTITY).alias("call_id"))
    with frames(connection, wanted=named.select("call_id")):
        query = (
            "SELECT call_id FROM calls WHERE started_at BETWEEN ? AND ? AND observation_count = 1 "
            "AND call_id IN (SELECT call_id FROM wanted)"
        )
        single = read(connection, query, [low, high])
    return named.join(single, on="call_id", how="semi").drop("call_id")


def _prints(frontier: pl.DataFrame) -> pl.DataFrame:
    """The fingerprints asked for: one row for each and each stretch of time, with what all askers share."""
    asking = frontier.filter(pl.col("role") == COUNTED).with_columns(told().alias("told"), *reach())
    asking = asking.filter(pl.col("told").is_not_null()).with_row_index("row")
    if asking.is_empty():
        return asking
    only = {"layer": "layer", "event": "name"}
    return (
        clustered(asking, ["service", "told"])
        .group_by("cluster")
        .agg(
            pl.col("fingerprint_key").first(),
            pl.col("since").min(),
            pl.col("until").max(),
            pl.col("response_id").is_not_null().all().alias("all_response"),
            pl.col("request_id").is_not_null().all().alias("all_request"),
            *(
                pl.when(pl.col(c).n_unique() == 1).then(pl.col(c).first()).alias(name)
                for name, c in only.items()
            ),
        )
    )


def _any_alone(connection: duckdb.DuckDBPyConnection) -> bool:
    return connection.execute("SELECT 1 FROM aggregates_alone LIMIT 1").fetchone() is not None


def _alone(connection: duckdb.DuckDBPyConnection, frontier: pl.DataFrame, keys: _Keys) -> pl.DataFrame:
    """Stored aggregates that stand for calls not known, which these records may make known."""
    window = frontier.select("started_at", "ended_at").vstack(keys.asked.select("started_at", "ended_at"))
    if window.is_empty():
        return pl.DataFrame(schema=OBSERVED)
    (first, _), (_, last) = window_of(window, column="started_at"), window_of(window, column="ended_at")
    sources = frontier.select("service", "session_id").unique()
    with staged(connection, traces=keys.traces, sources=sources):
        return observations(connection, read(connection, _ALONE, [last + HORIZON, first - HORIZON]))


def _repeated(connection: duckdb.DuckDBPyConnection, frontier: pl.DataFrame) -> pl.DataFrame:
    """Stored calls within the time of these aggregates, of their session or with their figures."""
    sums = frontier.filter(pl.col("role") != COUNTED, telling()).select(
        *("service", "session_id", "input_tokens"),
        (pl.col("started_at") - REACH).alias("since"),
        (pl.col("ended_at") + REACH).alias("until"),
    )
    if sums.is_empty():
        return pl.DataFrame(schema=OBSERVED)
    (first, _), (_, last) = window_of(sums, column="since"), window_of(sums, column="until")
    with staged(connection, alone=sums):
        return observations(connection, read(connection, _REPEATED, [first, last]))


def observations(connection: duckdb.DuckDBPyConnection, rows: pl.DataFrame) -> pl.DataFrame:
    """The stored observations of these row numbers.

    A join would read the whole table: DuckDB passes over row groups only by numbers, or bounds, that it sees.
    """
    if rows.is_empty():
        return pl.DataFrame(schema=OBSERVED)
    wanted = rows["row"]
    if len(wanted) <= _LISTED:
        where = f"rowid IN ({', '.join(map(str, wanted.to_list()))})"
    else:
        first, last = wanted.to_numpy().min(), wanted.to_numpy().max()
        where = f"rowid BETWEEN {first} AND {last} AND rowid IN (SELECT row FROM wanted)"
    with frames(connection, wanted=rows):
        query = OBSERVATION_KINDS.select(", ".join(OBSERVED), where=where)
        return read(connection, query).cast(dict(OBSERVED))  # type: ignore[arg-type]


def _able_to_join(stored: pl.DataFrame, known: pl.DataFrame, keys: _Keys) -> pl.DataFrame:
    """Without the records that share but a trace in which nothing can join or cover another."""
    if stored.is_empty():
        return stored
    columns = [*TRACE, "signal", "layer", "name", "role"]
    walked = traces_to_walk(pl.concat([stored.select(columns), known.select(columns)]))
    by_id = pl.col("response_key").is_in(keys.responses["response_key"].implode()) | pl.col(
        "request_key"
    ).is_in(keys.requests["request_key"].implode())
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
