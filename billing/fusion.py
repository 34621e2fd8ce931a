"""Several observations of one model call become one call.

Fusion is a pure function of a set of observations and span links: the order of arrival, the split into
batches, redelivery and late parents cannot change it. It joins on provider-minted ids and on ancestry within
a trace, and it refuses to join two records of one layer (a signal and a scope), two different ids of one
kind, records whose tokens contradict each other, or records that do not overlap in time.
"""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import polars as pl

SLACK = timedelta(seconds=5)
"""How far apart two records of one call may lie: exporters stamp logs after the span they tell of."""
HORIZON = timedelta(hours=1)
"""How far apart the starts of two records of one call may lie; bounds what a batch has to look up."""
MAX_HOPS = 64
"""How many spans ancestry may pass over; also what ends a walk through a cycle of parents."""
MAX_SHARED = 64
"""An id on more overlapping records than this is not an id; such records stay apart."""

_SPAN = ["trace_hi", "trace_lo", "span_id"]
_TRACE = ["trace_hi", "trace_lo"]
_IDENTITY = ["id_hi", "id_lo"]
_STRENGTH_ID, _STRENGTH_ANCESTRY = 0, 1
_EDGES = {"a": pl.UInt32, "b": pl.UInt32, "strength": pl.Int32}

MAX_COMPONENT = 1024
"""More records than this hang together only in hostile telemetry; they stay apart."""

Edge = tuple[int, int]


def fuse(observations: pl.DataFrame, links: pl.DataFrame) -> pl.DataFrame:
    """The observations in order of identity, with `group`: the row of the group's smallest identity."""
    rows = observations.sort(_IDENTITY).with_row_index("row")
    edges = _compatible(rows, pl.concat([_id_edges(rows), _ancestry_edges(rows, links)]))
    groups = _groups(rows, edges)
    return rows.with_columns(pl.Series("group", groups, dtype=pl.UInt32)).drop("row")


def traces_to_walk(observations: pl.DataFrame) -> pl.DataFrame:
    """The traces (trace_hi, trace_lo) in which ancestry can join something: records of two layers or more."""
    told = observations.filter(pl.col("trace_lo").is_not_null())
    layers = told.group_by(_TRACE).agg(pl.col("layer").n_unique().alias("layers"))
    return layers.filter(pl.col("layers") > 1).select(_TRACE)


def _id_edges(rows: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([_shared(rows, key) for key in ("response_id", "request_id")])


def _shared(rows: pl.DataFrame, key: str) -> pl.DataFrame:
    """Pairs of records of different layers that carry the same id."""
    crowd = pl.len().over(key)
    side = (
        rows.lazy()
        .filter(pl.col(key).is_not_null())
        .select("row", "layer", key)
        .filter((pl.col("layer").n_unique().over(key) > 1) & (crowd <= MAX_SHARED))
        .collect()
    )
    pairs = side.join(side, on=key, suffix="_b").filter(
        (pl.col("row") < pl.col("row_b")) & (pl.col("layer") != pl.col("layer_b"))
    )
    return _edges(pairs, _STRENGTH_ID)


def _edges(pairs: pl.DataFrame, strength: int) -> pl.DataFrame:
    low, high = pl.min_horizontal("row", "row_b"), pl.max_horizontal("row", "row_b")
    return pairs.select(low.alias("a"), high.alias("b"), pl.lit(strength, pl.Int32).alias("strength"))


def _ancestry_edges(rows: pl.DataFrame, links: pl.DataFrame) -> pl.DataFrame:
    """Pairs of a record and the nearest call record above it in its trace."""
    told = rows.join(traces_to_walk(rows), on=_TRACE, how="semi")
    if told.is_empty():
        return pl.DataFrame(schema=_EDGES)
    is_span = pl.col("signal") == "span"
    spans = told.filter(is_span & pl.col("span_id").is_not_null())
    nodes = spans.select(*_SPAN, pl.col("row").alias("row_b")).unique(
        _SPAN, keep="first", maintain_order=True
    )
    parents = _parents(spans, links)
    at = pl.when(is_span).then(pl.col("parent_span_id")).otherwise(pl.col("span_id"))
    cursors = told.select("row", *_TRACE, at.alias("span_id")).drop_nulls()
    return _edges(_climb(cursors, nodes, parents), _STRENGTH_ANCESTRY)


def _parents(spans: pl.DataFrame, links: pl.DataFrame) -> pl.DataFrame:
    columns = [*_SPAN, "parent_span_id"]
    known = pl.concat([links.select(columns), spans.select(columns)]).drop_nulls()
    return known.sort(columns).unique(_SPAN, keep="first", maintain_order=True)


def _climb(cursors: pl.DataFrame, nodes: pl.DataFrame, parents: pl.DataFrame) -> pl.DataFrame:
    """Walk all cursors up together until each meets a call record; rows (row, row_b)."""
    met: list[pl.DataFrame] = []
    for _ in range(MAX_HOPS):
        if cursors.is_empty():
            break
        here = cursors.join(nodes, on=_SPAN, how="left")
        met.append(here.filter(pl.col("row_b").is_not_null() & (pl.col("row_b") != pl.col("row"))))
        above = here.filter(pl.col("row_b").is_null()).join(parents, on=_SPAN)
        cursors = above.select("row", *_TRACE, pl.col("parent_span_id").alias("span_id"))
    columns = ["row", "row_b"]
    return (
        pl.concat([part.select(columns) for part in met])
        if met
        else pl.DataFrame(schema={"row": pl.UInt32, "row_b": pl.UInt32})
    )


def _compatible(rows: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """The pairs (a, b, ...) whose two records may be one call, strongest and nearest first, each once."""
    if pairs.is_empty():
        return pairs.select("a", "b")
    sides = pairs.join(rows.select(_FACTS), left_on="a", right_on="row").join(
        rows.select(_FACTS), left_on="b", right_on="row", suffix="_b"
    )
    return (
        sides.filter(
            pl.col("layer") != pl.col("layer_b"),
            _overlap(),
            _agree("response_id"),
            _agree("request_id"),
            _agree("input_tokens"),
            _outputs_agree(),
        )
        .with_columns((pl.col("started_at") - pl.col("started_at_b")).abs().alias("apart"))
        .sort("strength", "apart", "a", "b")
        .unique(["a", "b"], keep="first", maintain_order=True)
        .select("a", "b")
    )


_FACTS = (
    "row",
    "layer",
    "started_at",
    "ended_at",
    "response_id",
    "request_id",
    "input_tokens",
    "output_tokens",
    "reasoning_tokens",
)


def _overlap() -> pl.Expr:
    return (
        (pl.col("started_at") <= pl.col("ended_at_b") + SLACK)
        & (pl.col("started_at_b") <= pl.col("ended_at") + SLACK)
        & ((pl.col("started_at") - pl.col("started_at_b")).abs() <= HORIZON)
    )


def _agree(column: str) -> pl.Expr:
    return (pl.col(column) == pl.col(f"{column}_b")).fill_null(value=True)


def _outputs_agree() -> pl.Expr:
    """Equal, or apart by exactly the reasoning that one of the two leaves out."""
    apart = (pl.col("output_tokens") - pl.col("output_tokens_b")).abs()
    reasoning = (apart == pl.col("reasoning_tokens")) | (apart == pl.col("reasoning_tokens_b"))
    return ((apart == 0) | reasoning.fill_null(value=False)).fill_null(value=True)


def _groups(rows: pl.DataFrame, edges: pl.DataFrame) -> np.ndarray:
    """The smallest row of each row's group."""
    labels = np.arange(len(rows), dtype=np.uint32)
    if edges.is_empty():
        return labels
    component = _components(labels.copy(), edges["a"].to_numpy(), edges["b"].to_numpy())
    sizes = np.bincount(component, minlength=len(rows))
    allowed = _compatible(rows, _pairs_within(component, sizes))
    whole = np.bincount(component[allowed["a"].to_numpy()], minlength=len(rows)) == sizes * (sizes - 1) // 2
    labels[whole[component]] = component[whole[component]]
    torn = ~whole[component[edges["a"].to_numpy()]] & (
        sizes[component[edges["a"].to_numpy()]] <= MAX_COMPONENT
    )
    for leader, member in _greedy(edges.filter(torn).rows(), set(allowed.rows())):
        labels[member] = leader
    return labels


def _components(labels: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Connected components: each row labelled with the smallest row of its own."""
    while True:
        before = labels.copy()
        lowest = np.minimum(labels[a], labels[b])
        np.minimum.at(labels, a, lowest)
        np.minimum.at(labels, b, lowest)
        labels = labels[labels]
        if np.array_equal(before, labels):
            return labels


def _pairs_within(component: np.ndarray, sizes: np.ndarray) -> pl.DataFrame:
    """Every pair (a, b) of rows of one component, for components of more than one row."""
    several = (sizes[component] > 1) & (sizes[component] <= MAX_COMPONENT)
    rows = np.nonzero(several)[0].astype(np.uint32)
    side = pl.DataFrame({"a": rows, "component": component[rows]})
    pairs = side.join(side.rename({"a": "b"}), on="component").filter(pl.col("a") < pl.col("b"))
    return pairs.select("a", "b", pl.lit(0, pl.Int32).alias("strength"))


def _greedy(edges: list[Edge], allowed: set[Edge]) -> list[Edge]:
    """Join the strongest pair first, as long as every record of one side may join every record of the other.

    Rows (leader, member). Only components that contradict themselves come here: rare, so a loop.
    """
    groups: dict[int, set[int]] = {row: {row} for edge in edges for row in edge}
    for left, right in edges:
        one, other = groups[left], groups[right]
        if one is not other and _may_join(one, other, allowed):
            one |= other
            groups.update(dict.fromkeys(other, one))
    return [(min(group), row) for row, group in groups.items()]


def _may_join(one: set[int], other: set[int], allowed: set[Edge]) -> bool:
    return all((min(x, y), max(x, y)) in allowed for x in one for y in other)
