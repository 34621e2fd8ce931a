"""Several observations of one model call become one call.

Fusion is a pure function of a set of observations and span links: the order of arrival, the split into
batches, redelivery and late parents cannot change it. It joins, strongest first, on provider-minted ids, on
ancestry within a trace and on fingerprints, and it refuses to join two records of one layer, two different
ids of one kind, records whose tokens contradict each other, or records that do not overlap in time.
Aggregates are never joined: one stands for itself until calls that it repeats are known. What a call's own
records leave open of who made it is taken from the spans around it (`billing.surroundings`).
"""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import polars as pl

from billing import fingerprint
from billing.ancestry import TRACE, nearest_above
from billing.standing import covered
from billing.surroundings import surrounded

SLACK = timedelta(seconds=5)
"""How far apart two records of one call may lie: exporters stamp logs after the span they tell of."""
HORIZON = timedelta(hours=1)
"""How far apart the starts of two records of one call may lie; bounds what a batch has to look up."""
MAX_SHARED = 64
"""An id on more overlapping records than this is not an id; such records are told apart by other means."""
MAX_COMPONENT = 1024
"""More records than this hang together only in hostile telemetry; they stay apart."""
WEAK_ID_BYTES = 18
"""Shorter ids repeat in the wild (`chatcmpl-123`): they join only records of one service and server."""
CROWDED = "{}:not_unique"
"""The anomaly of an id that stands on more records than one call can have."""

_IDENTITY = ["id_hi", "id_lo"]
_IDS = ("response_id", "request_id")
_STRENGTH_ID, _STRENGTH_ANCESTRY = 0, 1
_EDGES = {"a": pl.UInt32, "b": pl.UInt32, "strength": pl.Int32}

Edge = tuple[int, int]


def fuse(
    observations: pl.DataFrame, links: pl.DataFrame, *, settled: pl.DataFrame | None = None
) -> pl.DataFrame:
    """The observations in order of identity, with `group`, the row of the group's smallest identity, and
    `stands`: false for what only tells who calls, and for an aggregate whose calls are known (its group is
    then one of theirs) or that is `settled` (id_hi, id_lo): known to repeat calls which need not be here.

    What could not be believed is noted in `anomalies`.
    """
    rows = observations.sort(_IDENTITY).with_row_index("row").with_columns(voice())
    calls = _without_crowded(rows.filter(pl.col("role") == "call"))
    labels = np.arange(len(rows), dtype=np.uint32)
    if calls["voice"].n_unique() > 1:
        edges = pl.concat([_id_edges(calls), _ancestry_edges(calls, links)])
        labels = fingerprint.pair(calls, _joined(calls, labels, _compatible(calls, edges)))
    stands = np.ones(len(rows), dtype=np.bool_)
    if len(calls) < len(rows):
        labels, stands = covered(rows, labels, links, settled=settled)
        rows = surrounded(rows, labels, links, within=HORIZON)
    named = [pl.Series("group", labels, dtype=pl.UInt32), pl.Series("stands", stands)]
    return _noted(rows, calls).with_columns(*named).drop("row", "voice")


def voice() -> pl.Expr:
    """What no two records of one call have in common: the layer, and of logs also which event it is."""
    event = pl.concat_str("layer", "name", separator=":", ignore_nulls=True)
    return pl.when(pl.col("signal") == "log").then(event).otherwise("layer").alias("voice")


def traces_to_walk(observations: pl.DataFrame) -> pl.DataFrame:
    """The traces (trace_hi, trace_lo) in which ancestry can join, cover or tell something: those with records
    of two layers or more, or with a span around calls. Reads TRACE, `signal`, `layer`, `name` and `role`.
    """
    told = observations.lazy().filter(pl.col("trace_lo").is_not_null()).with_columns(voice())
    around = (pl.col("role") != "call").any()
    several = told.group_by(TRACE).agg((pl.col("voice").n_unique() > 1) | around)
    return several.filter("voice").select(TRACE).collect()


def _noted(rows: pl.DataFrame, calls: pl.DataFrame) -> pl.DataFrame:
    """The rows, with an anomaly where an id was put out of account."""
    for key in _IDS:
        lost = calls.filter(pl.col(key).is_null())["row"]
        if len(lost) == rows.filter(pl.col("role") == "call")[key].null_count():
            continue
        told = pl.col("row").is_in(lost.implode()) & pl.col(key).is_not_null()
        note = pl.lit([CROWDED.format(key)], pl.List(pl.String))
        noted = pl.col("anomalies").list.set_union(note)
        rows = rows.with_columns(pl.when(told).then(noted).otherwise("anomalies").alias("anomalies"))
    return rows


def _without_crowded(calls: pl.DataFrame) -> pl.DataFrame:
    """The calls with those ids put out of account that are on too many of them at one time."""
    for key in _IDS:
        often = (
            calls.lazy().filter(pl.col(key).is_not_null()).filter(pl.len().over(key) > MAX_SHARED).collect()
        )
        if often.is_empty():
            continue
        reach = [(pl.col("started_at") - SLACK).alias("since"), (pl.col("ended_at") + SLACK).alias("until")]
        clusters = fingerprint.clustered(often.with_columns(reach), [key])
        crowd = clusters.filter(pl.len().over("cluster") > MAX_SHARED).select("row", crowd=pl.lit(value=True))
        marked = calls.join(crowd, on="row", how="left", maintain_order="left")
        calls = marked.with_columns(pl.when(pl.col("crowd").is_null()).then(key)).drop("crowd")
    return calls


def _id_edges(calls: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([_shared(calls, key) for key in _IDS])


def _shared(calls: pl.DataFrame, key: str) -> pl.DataFrame:
    """Pairs of records of different layers that carry the same id."""
    place = ["row", "voice", key, "service", "server_address", "started_at", "ended_at"]
    side = (
        calls.lazy()
        .filter(pl.col(key).is_not_null())
        .select(place)
        .filter(pl.col("voice").n_unique().over(key) > 1)
        .collect()
    )
    pairs = side.join(side, on=key, suffix="_b").filter(
        pl.col("row") < pl.col("row_b"), pl.col("voice") != pl.col("voice_b"), _overlap(), _same_server(key)
    )
    return _edges(pairs, _STRENGTH_ID)


def _same_server(key: str) -> pl.Expr:
    """Short ids repeat: they are of one call only where service and server do not differ."""
    server = (pl.col("server_address") == pl.col("server_address_b")).fill_null(value=True)
    near = pl.col("service").eq_missing(pl.col("service_b")) & server
    return (pl.col(key).str.len_bytes() >= WEAK_ID_BYTES) | near


def _edges(pairs: pl.DataFrame, strength: int) -> pl.DataFrame:
    low, high = pl.min_horizontal("row", "row_b"), pl.max_horizontal("row", "row_b")
    return pairs.select(low.alias("a"), high.alias("b"), pl.lit(strength, pl.Int32).alias("strength"))


def _ancestry_edges(calls: pl.DataFrame, links: pl.DataFrame) -> pl.DataFrame:
    """Pairs of a record and the nearest call record above it in its trace."""
    inside = calls.join(traces_to_walk(calls), on=TRACE, how="semi")
    if inside.is_empty():
        return pl.DataFrame(schema=_EDGES)
    return _edges(nearest_above(inside, inside, links), _STRENGTH_ANCESTRY)


def _compatible(calls: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """The pairs (a, b) whose two records may be one call, strongest and nearest first, each once."""
    if pairs.is_empty():
        return pairs.select("a", "b")
    facts = calls.select(*_FACTS, _silent())
    sides = pairs.join(facts, left_on="a", right_on="row").join(
        facts, left_on="b", right_on="row", suffix="_b"
    )
    return (
        sides.filter(
            (pl.col("voice") != pl.col("voice_b")) | (pl.col("silent") != pl.col("silent_b")),
            _overlap(),
            _agree("response_id"),
            _agree("request_id"),
            _inputs_agree(),
            _outputs_agree(),
        )
        .with_columns(
            (pl.col("started_at") - pl.col("started_at_b")).abs().alias("apart"), _alike().alias("alike")
        )
        .sort("strength", "alike", "apart", "a", "b", descending=[False, True, False, False, False])
        .unique(["a", "b"], keep="first", maintain_order=True)
        .select("a", "b")
    )


_FACTS = (
    "row",
    "voice",
    "started_at",
    "ended_at",
    "response_id",
    "request_id",
    "input_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
)


def _alike() -> pl.Expr:
    """Whether both tell the same tokens: of a call that was tried twice, the try that was answered."""
    told = ("input_tokens", "output_tokens")
    return pl.all_horizontal((pl.col(c) == pl.col(f"{c}_b")).fill_null(value=False) for c in told)


def _silent() -> pl.Expr:
    """A log that tells neither tokens nor ids nor a failure: the half of an event before the answer.

    It goes with its span and does not stand in the way of the half that tells.
    """
    nothing = pl.all_horizontal(pl.col(c).is_null() for c in ("input_tokens", "output_tokens", *_IDS))
    failed = (pl.col("status") == "error").fill_null(value=False)
    return (nothing & (pl.col("signal") == "log") & ~failed).alias("silent")


def _overlap() -> pl.Expr:
    return (
        (pl.col("started_at") <= pl.col("ended_at_b") + SLACK)
        & (pl.col("started_at_b") <= pl.col("ended_at") + SLACK)
        & ((pl.col("started_at") - pl.col("started_at_b")).abs() <= HORIZON)
    )


def _agree(column: str) -> pl.Expr:
    return (pl.col(column) == pl.col(f"{column}_b")).fill_null(value=True)


def _inputs_agree() -> pl.Expr:
    """Equal, or apart by exactly the cached tokens that one of the two leaves out."""
    apart = (pl.col("input_tokens") - pl.col("input_tokens_b")).abs()
    cached = [
        pl.col(f"cache_read_tokens{side}").fill_null(0) + pl.col(f"cache_write_tokens{side}").fill_null(0)
        for side in ("", "_b")
    ]
    return ((apart == 0) | (apart == cached[0]) | (apart == cached[1])).fill_null(value=True)


def _outputs_agree() -> pl.Expr:
    """Equal, apart by exactly the reasoning that one leaves out, or wrong by a stream's placeholder.

    Anthropic's `message_start` says 1 output token before any is there: some take that for the figure, some
    add it to the figure.
    """
    apart = (pl.col("output_tokens") - pl.col("output_tokens_b")).abs()
    reasoning = (apart == pl.col("reasoning_tokens")) | (apart == pl.col("reasoning_tokens_b"))
    placeholder = (apart == 1) | (pl.min_horizontal("output_tokens", "output_tokens_b") == 1)
    return ((apart == 0) | reasoning.fill_null(value=False) | placeholder).fill_null(value=True)


def _joined(calls: pl.DataFrame, labels: np.ndarray, edges: pl.DataFrame) -> np.ndarray:
    """The smallest row of each row's group."""
    if edges.is_empty():
        return labels
    a, b = edges["a"].to_numpy(), edges["b"].to_numpy()
    component = _components(labels.copy(), a, b)
    sizes = np.bincount(component, minlength=len(labels))
    allowed = _compatible(calls, _pairs_within(component, sizes))
    whole = np.bincount(component[allowed["a"].to_numpy()], minlength=len(labels)) == sizes * (sizes - 1) // 2
    labels[whole[component]] = component[whole[component]]
    torn = ~whole[component[a]] & (sizes[component[a]] <= MAX_COMPONENT)
    for leader, member in _greedy(edges.filter(torn).rows(), set(allowed.rows()) if torn.any() else set()):
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
