"""What metrics add up to, where they stand for calls, and where they are a cross-check only."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from billing.ledger import Batch, Ledger
from billing.metrics import increments, sums
from catalog.catalog import Catalog
from ingest.observation import METRIC_POINTS
from tests.observed import NO_REJECTS, NOON, NOTHING_UNRECOGNISED, links, observation, observations

CATALOG = Catalog.load()
MINUTE = timedelta(minutes=1)
_numbers = itertools.count(1)


def point(quantity: str = "input_tokens", value: float = 1000, **told: Any) -> dict[str, Any]:
    """One delta point of a minute, of a stream of its own for each quantity and model."""
    number = next(_numbers)
    row: dict[str, Any] = dict.fromkeys(METRIC_POINTS)
    row |= {
        "id_hi": number,
        "id_lo": number,
        "stream_hi": abs(hash((quantity, told.get("name"), told.get("request_model")))) >> 1,
        "stream_lo": 1,
        "journal_offset": number,
        "received_at": NOON,
        "started_at": NOON,
        "measured_at": NOON + MINUTE,
        "scope": "sdk",
        "name": "sdk.token.usage",
        "emitter": "sdk",
        "service": "shop",
        "provider_name": "openai",
        "request_model": "gpt-4o-mini",
        "temporality": "delta",
        "quantity": quantity,
        "value": value,
    }
    return row | told


def points(*rows: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=METRIC_POINTS)


def counter(
    *values: float, start: datetime | None = NOON, first: int = 1, **told: Any
) -> list[dict[str, Any]]:
    """The points of a cumulative counter, a minute apart."""
    return [
        point(value=value, temporality="cumulative", started_at=start, measured_at=NOON + n * MINUTE, **told)
        for n, value in enumerate(values, first)
    ]


def added(*rows: dict[str, Any]) -> float:
    return float(increments(points(*rows))["amount"].sum())


@pytest.mark.parametrize("seed", range(3))
def test_a_cumulative_counter_adds_up_to_its_last_value_in_any_order(seed: int) -> None:
    rows = counter(10, 25, 25, 70)
    random.Random(seed).shuffle(rows)
    assert added(*rows) == 70


def test_a_counter_that_falls_was_reset() -> None:
    assert added(*counter(10, 25, 5, 9)) == 25 + 9


def test_a_new_start_counts_from_zero_even_above_the_old_value() -> None:
    restarted = counter(30, start=NOON + 3 * MINUTE, first=4)
    assert added(*counter(10, 25), *restarted) == 25 + 30


def test_a_first_point_without_a_start_is_a_baseline() -> None:
    assert added(*counter(1000, 1010, start=None)) == 10


def test_a_quantity_told_under_two_names_counts_once() -> None:
    told = sums(points(point(value=100), point(value=100, name="gen_ai.client.token.usage")))
    assert told["input_tokens"].to_list() == [100]


def test_input_that_leaves_out_the_cache_is_made_whole() -> None:
    exclusive: dict[str, Any] = {"input_excludes_cache": True}
    told = sums(points(point("input_tokens", 10, **exclusive), point("cache_read_tokens", 500, **exclusive)))
    assert told.select("input_tokens", "cache_read_tokens").row(0) == (510, 500)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(tmp_path / "ledger.duckdb", epoch="e", pricing=CATALOG)
    yield opened
    opened.close()


def load(ledger: Ledger, *told: dict[str, Any], calls: tuple[dict[str, Any], ...] = ()) -> None:
    ledger.load(
        Batch(
            observations=observations(*calls),
            links=links(),
            rejects=NO_REJECTS,
            unrecognised=NOTHING_UNRECOGNISED,
            position=1,
            metric_points=points(*told),
        )
    )


def rows(ledger: Ledger) -> list[tuple[Any, ...]]:
    query = (
        "SELECT basis, call_count, input_tokens, output_tokens, list_cost_usd, revision FROM calls "
        "ORDER BY basis, started_at"
    )
    return ledger.cursor().execute(query).fetchall()


def test_sums_of_a_source_without_calls_are_booked_without_a_count(ledger: Ledger) -> None:
    load(ledger, point(value=1_000_000), point("output_tokens", 100_000))
    # 1,000,000 x 0.15 + 100,000 x 0.60 per million
    assert rows(ledger) == [("metric", None, 1_000_000, 100_000, Decimal("0.21"), 1)]


def test_a_sum_of_short_prompts_is_not_priced_as_a_long_one(ledger: Ledger) -> None:
    told = {"provider_name": "google", "request_model": "gemini-2.5-pro"}
    load(ledger, point(value=1_000_000, **told), point("output_tokens", 1_000_000, **told))
    # 1.25 and 10 per million up to 200,000 tokens; 2.50 and 15 above
    assert [row[4] for row in rows(ledger)] == [Decimal("11.25")]


def test_more_of_the_same_hour_revises_the_row(ledger: Ledger) -> None:
    load(ledger, *counter(1000))
    load(ledger, *counter(1500, first=2))
    assert [row[2:3] + row[5:] for row in rows(ledger)] == [(1500, 2)]


def test_redelivered_points_change_nothing(ledger: Ledger) -> None:
    told = counter(1000, 1500)
    load(ledger, *told)
    load(ledger, *told)
    assert [row[2:3] + row[5:] for row in rows(ledger)] == [(1500, 1)]


def test_a_late_point_between_two_moves_nothing_but_hours(ledger: Ledger) -> None:
    early, middle, late = (counter(value, first=n)[0] for value, n in ((10, 30), (60, 59), (100, 61)))
    load(ledger, early)
    load(ledger, late)
    assert [row[2] for row in rows(ledger)] == [10, 90]
    load(ledger, middle)
    assert [row[2] for row in rows(ledger)] == [60, 40]


@pytest.mark.parametrize("calls_first", [True, False])
def test_metrics_of_a_source_that_tells_of_calls_are_a_cross_check(ledger: Ledger, calls_first: bool) -> None:
    call = observation(started_at=NOON - timedelta(minutes=20))
    if calls_first:
        load(ledger, calls=(call,))
        load(ledger, *counter(1000))
    else:
        load(ledger, *counter(1000))
        load(ledger, calls=(call,))
    assert [row[0] for row in rows(ledger)] == ["span"]
    assert ledger.cursor().execute("SELECT covered, input_tokens FROM metric_hours").fetchall() == [
        (True, 1000)
    ]


def test_another_instance_or_emitter_of_another_model_covers_nothing(ledger: Ledger) -> None:
    call = observation(instance="b", emitter="other", request_model="o3", response_model="o3")
    load(ledger, *counter(1000, instance="a"), calls=(call,))
    assert [row[0] for row in rows(ledger)] == ["metric", "span"]


def test_another_emitter_of_the_same_model_covers(ledger: Ledger) -> None:
    load(ledger, *counter(1000), calls=(observation(emitter="other"),))
    assert [row[0] for row in rows(ledger)] == ["span"]


@pytest.mark.parametrize("seed", range(4))
def test_any_order_and_split_gives_the_same_rows_across_a_restart(tmp_path: Path, seed: int) -> None:
    told = [
        *counter(100, 180, 30, 90),
        *counter(7, 9, 30, first=70),
        point("output_tokens", 5),
        point("cost_usd", 0.25),
    ]
    shuffled = random.Random(seed).sample(told, len(told))
    found: list[tuple[Any, ...]] = []
    for row in [*shuffled, *shuffled[:3]]:
        opened = Ledger.open(tmp_path / "ledger.duckdb", epoch="e", pricing=CATALOG)
        load(opened, row)
        found = [row[:4] for row in rows(opened)]
        opened.close()
    assert found == [("metric", None, 180 + 90, 5), ("metric", None, 30, None)]
