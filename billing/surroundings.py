"""Who stood around a call: session, user, agent and model that only a span above it names.

A call's own records come first, whichever of them tells; what none of them tells is taken from the nearest
span above that does: an agent's, a turn's, a workflow's. Session and user hold for all that is done for them,
across services; agent, team and the like within the service that says so. A model is taken only from a span
under which no call of another model is known. It refuses to take tokens, which lie with the innermost record,
but for parts of one call that only a sum tells: where the sum is that call's alone, figure by figure.
"""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import polars as pl

from billing.ancestry import nearest_above

_EVERYWHERE = ("session_id", "user_id")
_AT_HOME = ("agent", "account_id", "team", "project", "environment", "labels")
_PARTS = ("cache_read_tokens", "cache_write_tokens", "cache_write_1h_tokens", "reasoning_tokens")
_MAX_NESTED = 64
"""Spans that name a model, one within the other, under which a call is still looked for."""


def agent_told() -> pl.Expr:
    """The agent where a record names one; where it names none, the service stands there."""
    return pl.when(pl.col("agent").ne_missing(pl.col("service"))).then("agent")


def surrounded(
    rows: pl.DataFrame, labels: np.ndarray, links: pl.DataFrame, *, within: timedelta
) -> pl.DataFrame:
    """The rows, calls with what their surroundings tell of them; `labels` are the groups of rows.

    `within` is how far a call's start may lie outside a span above it, or from a call of another model.
    """
    rows = rows.with_columns(pl.Series("group", labels))
    calls, around = rows.filter(pl.col("role") == "call"), rows.filter(pl.col("role") != "call")
    if calls.is_empty() or around.is_empty():
        return rows.drop("group")
    tree = _Tree(calls, around, links, within)
    told = [tree.told(name) for name in _EVERYWHERE]
    told += [tree.told(name, home=True) for name in _AT_HOME]
    told += tree.parts(calls)
    filled = _with_model(_filled(calls, told), tree, within)
    return pl.concat([filled, around]).sort("row").drop("group")


class _Tree:
    """The spans around calls: the next above each (itself at the top), and the nearest above each call."""

    def __init__(
        self, calls: pl.DataFrame, around: pl.DataFrame, links: pl.DataFrame, within: timedelta
    ) -> None:
        self.around = around.with_columns(agent_told().alias("agent"))
        places = around.select(pl.col("row").alias("row_b"), "service", "started_at", "ended_at")
        places = places.with_row_index("place")
        met = nearest_above(pl.concat([calls, around]), around, links).join(places, on="row_b")
        inner = places.select("place", pl.col("row_b").alias("row"), pl.col("service").alias("mine"))
        upward = inner.join(met.select("row", above="place", service="service"), on="row")
        home = upward.filter(pl.col("mine").eq_missing(pl.col("service")))
        self.up = _pointing(len(around), upward)
        self.up_home = _pointing(len(around), home)
        self.near = _reaching(calls, met, within)
        self.near_home = np.where(_same_service(calls, self.around, self.near), self.near, -1)

    def told(self, name: str, *, home: bool = False) -> pl.Series:
        """What the nearest span above each call that tells it says."""
        at = self.telling(self.around[name].is_not_null().to_numpy(), home=home)
        return self.around[name].gather(_nullable(at)).alias(name)

    def parts(self, calls: pl.DataFrame) -> list[pl.Series]:
        """The parts that the nearest sum above each call tells, where its input and output are the call's."""
        at = _nullable(self.near_home)
        same = [calls[c] == self.around[c].gather(at) for c in ("input_tokens", "output_tokens")]
        alone = (same[0] & same[1]).fill_null(value=False)
        parts = pl.DataFrame([self.around[name].gather(at).alias(name) for name in _PARTS])
        return parts.select(pl.when(alone).then(name).alias(name) for name in _PARTS).get_columns()

    def telling(self, tells: np.ndarray, *, home: bool) -> np.ndarray:
        """The place of the nearest span above each call for which `tells` holds, -1 where there is none."""
        near = self.near_home if home else self.near
        found = _first(tells, self.up_home if home else self.up)
        return np.where(near >= 0, found[near], -1)


def _pointing(count: int, pairs: pl.DataFrame) -> np.ndarray:
    up = np.arange(count)
    up[pairs["place"].to_numpy()] = pairs["above"].to_numpy()
    return up


def _reaching(calls: pl.DataFrame, met: pl.DataFrame, within: timedelta) -> np.ndarray:
    """The place of the span nearest above each call, -1 where there is none at its time."""
    both = calls.select("row", began="started_at").join(met, on="row", how="left", maintain_order="left")
    inside = pl.col("began").is_between(pl.col("started_at") - within, pl.col("ended_at") + within)
    return both.select(pl.when(inside).then("place").cast(pl.Int64).fill_null(-1)).to_series().to_numpy()


def _same_service(calls: pl.DataFrame, around: pl.DataFrame, near: np.ndarray) -> np.ndarray:
    theirs = around["service"].gather(_nullable(near))
    return (calls["service"].eq_missing(theirs)).to_numpy() & (near >= 0)


def _nullable(places: np.ndarray) -> pl.Series:
    return pl.select(pl.when(pl.lit(pl.Series(places)) >= 0).then(pl.lit(pl.Series(places)))).to_series()


def _first(tells: np.ndarray, up: np.ndarray) -> np.ndarray:
    """For every place the first at or above it that tells, by path doubling; -1 where none does."""
    found = np.where(tells, np.arange(len(up)), -1)
    for _ in range(len(up).bit_length() + 1):
        found = np.where(found < 0, found[up], found)
        up = up[up]
    return found


def _filled(calls: pl.DataFrame, told: list[pl.Series]) -> pl.DataFrame:
    """The calls, each field that no record of a call tells filled with what stood around any of them."""
    both = calls.with_columns(series.alias(f"{series.name}_above") for series in told)
    own = {series.name: pl.col(series.name) for series in told} | {"agent": agent_told()}
    return both.with_columns(
        pl.when(value.is_not_null().any().over("group"))
        .then(name)
        .otherwise(pl.coalesce(pl.col(f"{name}_above").drop_nulls().first().over("group"), name))
        .alias(name)
        for name, value in own.items()
    ).select(calls.columns)


def _with_model(calls: pl.DataFrame, tree: _Tree, within: timedelta) -> pl.DataFrame:
    """The calls; those that no record names a model of, with that of the span above, if it is of one."""
    named = pl.coalesce("request_model", "response_model")
    nameless = calls.select(named.is_null().all().over("group")).to_series().to_numpy()
    if not nameless.any():
        return calls
    tells = tree.around["request_model"].is_not_null().to_numpy()
    place = np.where(nameless, tree.telling(tells, home=True), -1)
    model = tree.around["request_model"]
    asked = calls.select("row", "started_at").with_columns(
        place=pl.Series(place, dtype=pl.Int64), model=model.gather(_nullable(place))
    )
    others = _others(calls.select("row", "started_at", name=named), tree, np.unique(place[place >= 0]))
    strange = (
        asked.filter(pl.col("place") >= 0)
        .sort("started_at")
        .join_asof(
            others, on="started_at", by="place", strategy="nearest", tolerance=within, check_sortedness=False
        )
    )
    single = strange.filter(pl.col("other").is_null()).select("row", above="model")
    joined = calls.join(single, on="row", how="left", maintain_order="left")
    known = pl.coalesce("request_model", pl.col("above").drop_nulls().first().over("group"))
    return joined.with_columns(known.alias("request_model")).drop("above")


def _others(calls: pl.DataFrame, tree: _Tree, candidates: np.ndarray) -> pl.DataFrame:
    """`place`, `started_at` and `other` of calls below candidates, at any depth, that name another model."""
    chosen = np.zeros(len(tree.up), dtype=np.bool_)
    chosen[candidates] = True
    nearest = _first(chosen, tree.up)
    at = np.where(tree.near >= 0, nearest[tree.near], -1)
    found = []
    for _ in range(_MAX_NESTED):
        below = calls.with_columns(place=pl.Series(at, dtype=pl.Int64))
        model = tree.around["request_model"].gather(_nullable(at))
        found.append(below.filter(pl.col("place") >= 0, pl.col("name") != model))
        higher = np.where(at >= 0, tree.up[at], -1)
        at = np.where((at >= 0) & (higher != at), nearest[higher], -1)
        if not (at >= 0).any():
            break
    return pl.concat(found).select("place", "started_at", other="name").sort("started_at")
