"""What a call takes from the spans around it, and that neither order nor batches change it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from billing.charges import charge
from billing.fusion import fuse
from billing.ledger import Batch, Ledger
from billing.store import read
from catalog.catalog import Catalog
from tests.observed import NO_REJECTS, NOON, NOTHING_UNRECOGNISED, link, links, observation, observations

CATALOG = Catalog.load()
HOUR = timedelta(hours=1)
TRACE = {"trace_hi": 1, "trace_lo": 1}
UNTOLD: dict[str, Any] = {"input_tokens": None, "output_tokens": None}
NAMELESS: dict[str, Any] = {"request_model": None, "response_model": None}


def call(span: int, parent: int, **told: Any) -> dict[str, Any]:
    return observation(**TRACE, span_id=span, parent_span_id=parent, **told)


def around(span: int, parent: int | None = None, **told: Any) -> dict[str, Any]:
    """An agent's span that tells no tokens and, unless told, nothing else."""
    nothing: dict[str, Any] = {"role": "outer", "layer": "span:agent", "rank": 255, **UNTOLD, **NAMELESS}
    return observation(**TRACE, span_id=span, parent_span_id=parent, **nothing | told)


def told(*rows: dict[str, Any], joined: pl.DataFrame | None = None) -> pl.DataFrame:
    """The calls, in order of their spans."""
    fused = fuse(observations(*rows), joined if joined is not None else links())
    return charge(fused, CATALOG, now=NOON).sort("span_id")


def test_session_and_user_come_from_the_span_around_over_spans_between_and_other_services() -> None:
    outer = around(1, session_id="s", user_id="u", agent="planner", service="front")
    leaf = call(9, 8)
    found = told(outer, leaf, joined=links(link(1, 8, 7), link(1, 7, 1))).row(0, named=True)
    assert (found["session_id"], found["user_id"], found["agent"]) == ("s", "u", "shop")
    assert found["observation_count"] == 1
    apart = told(outer, leaf).row(0, named=True)
    assert apart["session_id"] is None, "nothing says that the call is below it"


def test_the_agent_comes_from_the_nearest_span_of_the_same_service() -> None:
    outer, inner = around(1, agent="planner"), around(2, 1, agent="searcher")
    nobody = around(3, 2)
    rows = (outer, inner, nobody, call(11, 1), call(12, 2), call(13, 3), call(14, 99))
    assert told(*rows)["agent"].to_list() == ["planner", "searcher", "searcher", "shop"]


def test_what_a_call_says_of_itself_stands() -> None:
    outer = around(1, session_id="outer", user_id="outer", agent="outer", team="outer", project="outer")
    own = told(outer, call(9, 1, session_id="own", agent="own", team="own")).row(0, named=True)
    assert (own["session_id"], own["agent"], own["team"]) == ("own", "own", "own")
    assert (own["user_id"], own["project"]) == ("outer", "outer")


def test_what_any_record_of_a_call_says_stands() -> None:
    """The log of the same call names the session; the span around them names another."""
    log = observation(layer="log:agent", signal="log", session_id="log", response_id="r")
    rows = (around(1, session_id="outer", user_id="u"), call(9, 1, response_id="r"), log)
    (found,) = told(*rows).iter_rows(named=True)
    assert (found["session_id"], found["user_id"], found["observation_count"]) == ("log", "u", 2)


def test_an_agent_that_one_record_names_is_not_lost_to_anothers_service() -> None:
    outer = call(1, 0, rank=40, response_id="r")
    inner = call(2, 1, rank=10, layer="span:inner", agent="planner", response_id="r")
    assert told(outer, inner)["agent"].to_list() == ["planner"]


def test_a_nameless_call_is_of_the_model_of_the_turn_around_it() -> None:
    turn = around(1, role="aggregate", request_model="gpt-4o-mini", input_tokens=3000, output_tokens=300)
    rows = [call(span, 1, **NAMELESS) for span in (2, 3)]
    found = told(turn, *rows)
    assert found["model"].to_list() == ["openai/gpt-4o-mini"] * 2
    assert found["cost_status"].to_list() == ["priced"] * 2


@pytest.mark.parametrize("parent", [1, 5])
def test_a_nameless_call_takes_no_model_from_a_span_over_calls_of_several(parent: int) -> None:
    """However deep below it the other one lies."""
    turn, step = around(1, request_model="gpt-4o-mini"), around(5, 1, request_model="gpt-5.6")
    nameless, other = call(2, 1, **NAMELESS), call(6, parent, request_model="gpt-5.6", response_model=None)
    same = call(7, 1, request_model="gpt-4o-mini", response_model=None)
    assert told(turn, step, nameless, same)["request_model"].to_list() == ["gpt-4o-mini"] * 2
    assert told(turn, step, nameless, same, other)["request_model"].to_list()[0] is None
    later = other | {"started_at": NOON + 2 * HOUR, "ended_at": NOON + 2 * HOUR}
    long = turn | {"ended_at": NOON + 3 * HOUR}
    assert told(long, step, nameless, same, later)["request_model"].to_list()[0] == "gpt-4o-mini"


def test_parts_that_only_a_sum_tells_are_the_calls_where_the_sum_is_its_alone() -> None:
    told_above = {"cache_read_tokens": 400, "reasoning_tokens": 60}
    turn = around(1, role="aggregate", input_tokens=1000, output_tokens=100, **told_above)
    leaf = call(2, 1, cache_read_tokens=None)
    (found,) = told(turn, leaf).iter_rows(named=True)
    assert (found["cache_read_tokens"], found["reasoning_tokens"], found["cache_write_tokens"]) == (
        400,
        60,
        None,
    )
    assert told(turn, leaf | {"cache_read_tokens": 7})["cache_read_tokens"].to_list() == [7]
    two = turn | {"input_tokens": 2000, "output_tokens": 200}
    assert told(two, leaf, call(3, 1, cache_read_tokens=None))["cache_read_tokens"].to_list() == [None] * 2


def test_spans_around_each_other_in_a_cycle_end() -> None:
    one, two = around(1, 2, session_id="s"), around(2, 1, user_id="u")
    (found,) = told(one, two, call(9, 1)).iter_rows(named=True)
    assert (found["session_id"], found["user_id"]) == ("s", "u")


class Book:
    """A ledger that takes records and links in batches."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0
        self.reopen()

    def reopen(self) -> None:
        if self._position:
            self._ledger.close()
        self._ledger = Ledger.open(self._path, epoch="e", pricing=CATALOG)

    def take(self, rows: list[dict[str, Any]], joined: list[dict[str, Any]]) -> None:
        self._position += 1
        self._ledger.load(
            Batch(observations(*rows), links(*joined), NO_REJECTS, NOTHING_UNRECOGNISED, self._position)
        )

    def calls(self) -> pl.DataFrame:
        wanted = "* EXCLUDE (commit_no, revision, recorded_at, labels, modifiers, usage_details)"
        return read(self._ledger.cursor(), f"SELECT {wanted} FROM calls ORDER BY call_id")

    def close(self) -> None:
        self._ledger.close()


@pytest.fixture
def books(tmp_path: Path) -> Iterator[list[Book]]:
    opened = [Book(tmp_path / "whole.duckdb"), Book(tmp_path / "split.duckdb")]
    yield opened
    for book in opened:
        book.close()


def forest(rng: random.Random) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Records and links of traces in which plain spans, agents, turns and calls lie in one another."""
    rows, joined = [], []
    for trace in range(1, 4):
        for span in range(1, 12):
            parent = rng.randrange(span) or None
            place = {"trace_hi": trace, "trace_lo": trace, "span_id": span, "parent_span_id": parent}
            began = NOON + timedelta(minutes=rng.randrange(100))
            time = {"started_at": began, "ended_at": began + timedelta(minutes=rng.choice([0, 1, 150]))}
            joined.append(link(trace, span, parent, started_at=began))
            rows += _record(rng, place | time)
    return rows, joined


def _record(rng: random.Random, place: dict[str, Any]) -> list[dict[str, Any]]:
    kind = rng.choice(["plain", "outer", "aggregate", "call", "call"])
    who = {"session_id": rng.choice([None, "s1", "s2"]), "user_id": rng.choice([None, "u"])}
    who |= {"agent": rng.choice(["shop", "planner"]), "service": rng.choice(["shop", "cafe"])}
    model = rng.choice([None, None, "gpt-4o-mini", "gpt-5.6"])
    if kind == "plain":
        return []
    if kind == "call":
        tokens = {"input_tokens": rng.randrange(1, 1 << 40), "output_tokens": 7}
        return [observation(**place, **who, **tokens, request_model=model, response_model=None)]
    sums = {"input_tokens": rng.randrange(1 << 41, 1 << 42), "output_tokens": 99}
    told = {"role": kind, "layer": "span:agent", "rank": 200, "request_model": model, "response_model": None}
    return [observation(**place, **who, **told, **(sums if kind == "aggregate" else UNTOLD))]


@pytest.mark.parametrize("seed", [0, 1])
def test_any_order_split_and_restart_gives_the_same_surroundings(seed: int, books: list[Book]) -> None:
    rng = random.Random(seed)
    rows, joined = forest(rng)
    whole, split = books
    whole.take(rows, joined)
    pieces = [([row], []) for row in rows] + [([], [one]) for one in joined]
    rng.shuffle(pieces)
    size = rng.randint(4, 9)
    for number, start in enumerate(range(0, len(pieces), size)):
        some = pieces[start : start + size]
        split.take([row for rows, _ in some for row in rows], [one for _, links in some for one in links])
        if number == 3:
            split.reopen()
    assert split.calls().equals(whole.calls())
