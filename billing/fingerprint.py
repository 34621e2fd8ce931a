"""Pairs what shares no id and no line of descent: one call told on two layers, known by its figures alone.

Candidates have the same service, the same inclusive input (or both failed and tell no tokens) and overlap in
time once instants are widened. It joins one to one: of equally many on every layer the first with the first
in order of time, all at once; else the nearest first. It refuses two of one layer, two different ids of one
kind, two instances or two providers.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

import numpy as np
import polars as pl

from ingest.identity import mix, text_keys

INSTANT_SLACK = timedelta(seconds=2)
"""How far an instant reaches: logs are stamped before or after the span that they repeat (174 ms seen)."""
SPAN_SLACK = timedelta(milliseconds=5)
"""How far an interval reaches: clocks are rounded to milliseconds."""
MAX_NEAREST = 128
"""Clusters of more groups than this are paired in order of time only: nearest first costs their square."""

_BUCKET = ["service", "told"]
_FACTS = ("instance", "family", "response_id", "request_id")
_LOOK_AHEAD = 8
_PROVIDERS = {
    "anthropic": ("anthropic",),
    "openai": ("openai", "azure.ai.openai", "azure_openai", "azure", "az.ai.openai"),
    "google": (
        *("google", "gemini", "gcp.gen_ai", "gcp.gemini", "gcp.vertex_ai", "vertex_ai", "vertexai"),
        *("google_genai", "google.generativeai", "google-genai", "google_vertexai"),
    ),
    "aws": ("aws.bedrock", "aws_bedrock", "bedrock", "amazon-bedrock"),
    "mistral": ("mistral_ai", "mistral", "mistralai"),
    "cohere": ("cohere",),
    "deepseek": ("deepseek",),
    "groq": ("groq",),
    "xai": ("x_ai", "xai"),
}
_FAMILY = {name: family for family, names in _PROVIDERS.items() for name in names}
"""Raw provider names that say who served. Others (frameworks, gateways) contradict nothing."""


def told() -> pl.Expr:
    """What of a record's figures its twins share: its inclusive input, -1 for a failure without tokens."""
    nothing = pl.col("input_tokens").is_null() & pl.col("output_tokens").is_null()
    return (
        pl.when((pl.col("input_tokens") > 0) & pl.col("output_tokens").is_not_null())
        .then("input_tokens")
        .when(nothing & (pl.col("status") == "error"))
        .then(-1)
    )


def key(rows: pl.DataFrame) -> pl.Series:
    """The 64-bit key under which possible twins on other layers are stored; NULL where none can be."""
    figures = rows.select(told()).to_series()
    services = text_keys(rows["service"]).fill_null(0).to_numpy()
    keys = mix(services ^ figures.fill_null(0).to_numpy().astype(np.uint64))
    return pl.select(pl.when(figures.is_not_null()).then(pl.Series(keys, dtype=pl.UInt64))).to_series()


def reach() -> list[pl.Expr]:
    """`since` and `until`: a record's time, widened."""
    instant = pl.col("started_at") == pl.col("ended_at")
    slack = pl.when(instant).then(INSTANT_SLACK).otherwise(SPAN_SLACK)
    return [(pl.col("started_at") - slack).alias("since"), (pl.col("ended_at") + slack).alias("until")]


def clustered(rows: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """With `cluster`: rows of equal keys whose widened times hang together; sorted by keys and time."""
    ordered = rows.sort(*keys, "since", "until", "row", nulls_last=True)
    latest = pl.col("until").cum_max().shift(1).over(keys)
    fresh = latest.is_null() | (pl.col("since") > latest)
    return ordered.with_columns(fresh.cum_sum().cast(pl.UInt32).alias("cluster"))


def pair(rows: pl.DataFrame, labels: np.ndarray) -> np.ndarray:
    """The labels (smallest row of each row's group) after joining groups by fingerprint."""
    units = _units(_candidates(rows), labels)
    if units.is_empty():
        return labels
    joined = _matched(units)
    heirs = np.arange(len(labels), dtype=labels.dtype)
    heirs[joined["row"].to_numpy()] = joined["leader"].to_numpy()
    found: np.ndarray = heirs[labels]
    return found


def _candidates(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows that have a fingerprint of which several layers tell."""
    known = rows.lazy().with_columns(told().alias("told")).filter(pl.col("told").is_not_null())
    return known.filter(pl.col("voice").n_unique().over(_BUCKET) > 1).collect()


def _units(rows: pl.DataFrame, labels: np.ndarray) -> pl.DataFrame:
    """Groups that may find a partner: one row each, in clusters with more than one set of layers."""
    if rows.is_empty():
        return rows
    rows = rows.with_columns(pl.Series("unit", labels[rows["row"].to_numpy()]), *reach())
    units = clustered(_merged(rows), _BUCKET)
    several = pl.col("voices").n_unique().over("cluster") > 1
    open_ended = pl.col("response_id").is_null() | pl.col("request_id").is_null()
    return units.filter(several & open_ended.any().over("cluster") & _some_unnamed())


def _some_unnamed() -> pl.Expr:
    """Whether a cluster has groups that two different ids of one kind do not keep apart."""
    named = [pl.col(kind).is_not_null().all().over("cluster") for kind in ("response_id", "request_id")]
    return ~(named[0] | named[1])


def _merged(rows: pl.DataFrame) -> pl.DataFrame:
    single = pl.len().over("unit") == 1
    facts = ("instance", "provider_name", "request_model", "response_id", "request_id", "reasoning_tokens")
    alone = rows.filter(single).select(
        pl.col("unit").alias("row"),
        *_BUCKET,
        "since",
        "until",
        pl.col("voice").alias("voices"),
        "output_tokens",
        *facts,
    )
    several = (
        rows.filter(~single)
        .group_by("unit", *_BUCKET)
        .agg(
            pl.col("since").min(),
            pl.col("until").max(),
            pl.col("voice").sort().str.join("\n").alias("voices"),
            pl.col("output_tokens").max(),
            *(pl.col(fact).drop_nulls().first() for fact in facts),
        )
    )
    both = pl.concat([alone, several.rename({"unit": "row"}).select(alone.columns)])
    family = pl.col("provider_name").str.to_lowercase().replace_strict(_FAMILY, default=None)
    return both.with_columns(family.alias("family"))


def _matched(units: pl.DataFrame) -> pl.DataFrame:
    """Rows (row, leader) of the groups that join."""
    ranked = units.with_columns(pl.col("row").cum_count().over("cluster", "voices").alias("rank"))
    even = _even(ranked)
    decided = ranked.filter(even).select("row", pl.col("row").min().over("cluster", "rank").alias("leader"))
    rest = ranked.filter(~even)
    small = pl.len().over("cluster") <= MAX_NEAREST
    return pl.concat([decided, _nearest(rest.filter(small)), _in_order(rest.filter(~small))])


def _even(ranked: pl.DataFrame) -> pl.Series:
    """Whether every group of a row's cluster has exactly one partner on each other layer, at its own rank."""
    kinds = pl.col("voices").n_unique().over("cluster")
    disjoint = pl.col("voices").unique().str.split("\n").explode().is_duplicated().any()
    shared = ranked.group_by("cluster").agg(disjoint.alias("shared"))
    count = pl.len().over("cluster", "rank") == kinds
    agree = [pl.col(column).drop_nulls().n_unique().over("cluster", "rank") <= 1 for column in _FACTS]
    outputs = _outputs().over("cluster", "rank")
    overlap = pl.col("since").max().over("cluster", "rank") <= pl.col("until").min().over("cluster", "rank")
    row_even = count & agree[0] & agree[1] & agree[2] & agree[3] & outputs & overlap
    judged = ranked.join(shared, on="cluster", how="left", maintain_order="left")
    return judged.select((row_even & ~pl.col("shared")).all().over("cluster")).to_series()


def _outputs() -> pl.Expr:
    """Whether outputs are equal, or apart by a reasoning that one of them tells."""
    apart = pl.col("output_tokens").max() - pl.col("output_tokens").min()
    return (apart.fill_null(0) == 0) | (apart == pl.col("reasoning_tokens")).any()


def _nearest(units: pl.DataFrame) -> pl.DataFrame:
    """Greedily, nearest first. Only clusters with something missing or contradicting: rare, so a loop."""
    pairs = units.join(units, on="cluster", suffix="_b").filter(pl.col("row") < pl.col("row_b"))
    allowed = _allowed(pairs)
    leaders: dict[int, set[int]] = {row: {row} for row in units["row"].to_list()}
    edges = allowed.rows()
    permitted = set(edges)
    for left, right in edges:
        one, other = leaders[left], leaders[right]
        if one is not other and all((min(x, y), max(x, y)) in permitted for x in one for y in other):
            one |= other
            leaders.update(dict.fromkeys(other, one))
    found = {"row": list(leaders), "leader": [min(group) for group in leaders.values()]}
    return pl.DataFrame(found, schema={"row": units["row"].dtype, "leader": units["row"].dtype})


def _allowed(pairs: pl.DataFrame) -> pl.DataFrame:
    """The pairs (row, row_b) of groups that may be one call, nearest first."""
    agree = [(pl.col(column) == pl.col(f"{column}_b")).fill_null(value=True) for column in _FACTS]
    apart = (pl.col("output_tokens") - pl.col("output_tokens_b")).abs().fill_null(0)
    reasoning = (apart == pl.col("reasoning_tokens")) | (apart == pl.col("reasoning_tokens_b"))
    voices = pl.col("voices").str.split("\n").list.set_intersection(pl.col("voices_b").str.split("\n"))
    distance = (pl.col("since") - pl.col("since_b")).abs() + (pl.col("until") - pl.col("until_b")).abs()
    return (
        pairs.filter(
            *agree,
            voices.list.len() == 0,
            (apart == 0) | reasoning.fill_null(value=False) | ((apart == 1) & _with_placeholder()),
            pl.col("since") <= pl.col("until_b"),
            pl.col("since_b") <= pl.col("until"),
        )
        .with_columns(distance.alias("distance"), pl.min_horizontal("since", "since_b").alias("first"))
        .sort("distance", "first", "row", "row_b")
        .select("row", "row_b")
    )


def _with_placeholder() -> pl.Expr:
    """Whether one may have added the 1 of Anthropic's `message_start` to the figure: one span in another."""
    within = (pl.col("since") <= pl.col("since_b")) & (pl.col("until") >= pl.col("until_b"))
    around = (pl.col("since") >= pl.col("since_b")) & (pl.col("until") <= pl.col("until_b"))
    spans = ~pl.concat_str("voices", "voices_b").str.contains("log:", literal=True)
    anthropic = pl.coalesce("family", "family_b") == "anthropic"
    return spans & (within | around) & anthropic.fill_null(value=False)


def _in_order(units: pl.DataFrame) -> pl.DataFrame:
    """In order of time, each with the earliest still open that it may join. For floods: a loop, linear."""
    leaders: dict[int, int] = {}
    open_groups: dict[frozenset[str], deque[_Group]] = {}
    cluster = -1
    for told in units.sort("cluster", "since", "row").iter_rows(named=True):
        if told["cluster"] != cluster:
            cluster, open_groups = told["cluster"], {}
        group = _Group.of(told)
        partner = _earliest(open_groups, group)
        if partner is not None:
            group = group.joined(partner)
        open_groups.setdefault(group.voices, deque()).append(group)
        leaders.update(dict.fromkeys(group.rows, min(group.rows)))
    found = {"row": list(leaders), "leader": list(leaders.values())}
    return pl.DataFrame(found, schema={"row": units["row"].dtype, "leader": units["row"].dtype})


@dataclass(frozen=True, slots=True)
class _Group:
    """A group in the flood: what it must agree on, and the moment after which nothing joins it."""

    rows: tuple[int, ...]
    voices: frozenset[str]
    until: datetime
    since: datetime
    facts: tuple[object, ...]
    outputs: tuple[int | None, int | None]

    @classmethod
    def of(cls, told: dict[str, Any]) -> _Group:
        return cls(
            rows=(told["row"],),
            voices=frozenset(told["voices"].split("\n")),
            until=told["until"],
            since=told["since"],
            facts=tuple(told[column] for column in _FACTS),
            outputs=(told["output_tokens"], told["reasoning_tokens"]),
        )

    def agrees(self, other: _Group) -> bool:
        facts = zip(self.facts, other.facts, strict=True)
        if any(one != two for one, two in facts if one is not None and two is not None):
            return False
        (one, hidden), (two, hidden_too) = self.outputs, other.outputs
        return one is None or two is None or abs(one - two) in (0, hidden, hidden_too)

    def joined(self, other: _Group) -> _Group:
        facts = zip(self.facts, other.facts, strict=True)
        return _Group(
            rows=(*self.rows, *other.rows),
            voices=self.voices | other.voices,
            until=min(self.until, other.until),
            since=max(self.since, other.since),
            facts=tuple(one if one is not None else two for one, two in facts),
            outputs=max(self.outputs, other.outputs, key=lambda told: (told[0] or 0, told[1] or 0)),
        )


def _earliest(open_groups: dict[frozenset[str], deque[_Group]], group: _Group) -> _Group | None:
    """Takes the earliest open group that this one may join; forgets those it comes too late for."""
    for voices, waiting in open_groups.items():
        while waiting and waiting[0].until < group.since:
            waiting.popleft()
        if voices & group.voices:
            continue
        for partner in islice(waiting, _LOOK_AHEAD):
            if partner.agrees(group) and partner.until >= group.since:
                waiting.remove(partner)
                return partner
    return None
