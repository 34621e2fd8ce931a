"""Which record stands nearest above which in a trace, over any number of spans that are no records.

All records climb at once by path doubling: the cost grows with the spans and the logarithm of their depth, so
neither a trace of 100,000 spans nor a cycle of parents takes longer than it is big. It refuses to say what a
record above means; fusion does.
"""

from __future__ import annotations

import numpy as np
import polars as pl

TRACE = ["trace_hi", "trace_lo"]
SPAN = [*TRACE, "span_id"]


def nearest_above(records: pl.DataFrame, among: pl.DataFrame, links: pl.DataFrame) -> pl.DataFrame:
    """Rows (row, row_b): each of `records` and the nearest of the span records `among` above it.

    Both have `row`, `signal`, SPAN and `parent_span_id`; a log hangs below the span it was written in.
    """
    above = pl.when(pl.col("signal") == "span").then("parent_span_id").otherwise("span_id")
    starts = records.select("row", *TRACE, above.alias("span_id")).drop_nulls()
    stops = among.filter(pl.col("signal") == "span").select(pl.col("row").alias("row_b"), *SPAN).drop_nulls()
    if starts.is_empty() or stops.is_empty():
        return pl.DataFrame(schema={"row": pl.UInt32, "row_b": pl.UInt32})
    parents = _parents(pl.concat([records, among], how="diagonal"), links)
    nodes = _nodes(starts, stops, parents)
    stop = _at(nodes, stops)
    top = _tops(_places(nodes, parents), stop, count=len(nodes))[_at(nodes, starts)]
    told = np.full(len(nodes), -1, dtype=np.int64)
    told[stop[::-1]] = stops["row_b"].to_numpy()[::-1]
    met = pl.DataFrame({"row": starts["row"], "row_b": told[top]})
    return met.filter(pl.col("row_b") >= 0, pl.col("row") != pl.col("row_b")).cast({"row_b": pl.UInt32})


def _parents(records: pl.DataFrame, links: pl.DataFrame) -> pl.DataFrame:
    """Every span's parent; where two are told, the smaller."""
    columns = [*SPAN, "parent_span_id"]
    spans = records.filter(pl.col("signal") == "span").select(columns)
    known = pl.concat([links.select(columns), spans]).drop_nulls()
    return known.group_by(SPAN).agg(pl.col("parent_span_id").min())


def _nodes(starts: pl.DataFrame, stops: pl.DataFrame, parents: pl.DataFrame) -> pl.DataFrame:
    above = parents.select(*TRACE, pl.col("parent_span_id").alias("span_id"))
    sides = [starts.select(SPAN), stops.select(SPAN), parents.select(SPAN), above]
    return pl.concat(sides).unique().with_row_index("node")


def _at(nodes: pl.DataFrame, spans: pl.DataFrame) -> np.ndarray:
    return spans.join(nodes, on=SPAN, how="left", maintain_order="left")["node"].to_numpy()


def _places(nodes: pl.DataFrame, parents: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    above = parents.select(*TRACE, pl.col("parent_span_id").alias("span_id"))
    return _at(nodes, parents), _at(nodes, above)


def _tops(links: tuple[np.ndarray, np.ndarray], stop: np.ndarray, *, count: int) -> np.ndarray:
    """For every node the first stop at or above it, or some other node where there is none."""
    up = np.arange(count)
    up[links[0]] = links[1]
    up[stop] = stop
    for _ in range(count.bit_length() + 1):
        higher = up[up]
        if np.array_equal(higher, up):
            break
        up = higher
    return up
