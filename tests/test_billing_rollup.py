"""Sums equal a recomputation, whichever slots and hours a commit touches, and follow every revision."""

from __future__ import annotations

import random
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import duckdb
import pytest

from billing.ledger import Batch, Ledger
from billing.publish import Publisher
from billing.slots import KEPT_HOURS, MANY_SLOTS
from catalog.catalog import Catalog
from tests.observed import NO_REJECTS, NOON, NOTHING_UNRECOGNISED, links, observation, observations

HOURS = KEPT_HOURS + 3
KEYS = "agent, provider, model, access, cost_status"
SUMS = "count(*) AS calls, sum(input_tokens) AS input, sum(list_cost_usd) AS list"


def differences(path: Path, table: str, unit: str, start: str) -> int:
    """Rows in which a rollup and a fresh sum of `calls` differ."""
    told = f"SELECT {start}, {KEYS}, calls, input_tokens AS input, list_cost_usd AS list FROM {table}"
    fresh = f"SELECT {unit} AS {start}, {KEYS}, {SUMS} FROM calls GROUP BY ALL"
    query = f"SELECT count(*) FROM (({told} EXCEPT ALL {fresh}) UNION ALL ({fresh} EXCEPT ALL {told}))"
    with duckdb.connect(str(path), read_only=True) as reader:
        reader.execute("SET TimeZone = 'UTC'")
        [(count,)] = reader.execute(query).fetchall()
    return int(count)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_sums_equal_a_recomputation_after_every_publication(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    ledger = Ledger.open(tmp_path / "ledger.duckdb", epoch="e", pricing=Catalog.load())
    published = tmp_path / "usage.duckdb"
    publisher = Publisher(
        ledger.cursor(), staging=tmp_path / "staging" / "u.duckdb", published=published, epoch="e"
    )
    for turn in range(8):
        spread = timedelta(hours=HOURS) if turn % 3 else timedelta(seconds=30)
        rows = [_call(rng, spread, number) for number in range(rng.choice([3, 2 * MANY_SLOTS]))]
        ledger.load(
            Batch(
                observations=observations(*rows),
                links=links(),
                rejects=NO_REJECTS,
                unrecognised=NOTHING_UNRECOGNISED,
                position=turn,
            )
        )
        publisher.publish()
        assert differences(published, "usage_hourly", "date_trunc('hour', started_at)", "hour") == 0
        assert differences(published, "usage_daily", "started_at::DATE", "day") == 0
    ledger.close()


def _call(rng: random.Random, spread: timedelta, number: int) -> dict[str, object]:
    """A span, or the log of one of a few calls that come again and again: revisions, in any hour."""
    at = NOON + spread * rng.random()
    known = rng.randint(0, 20)
    if number % 4 == 0:
        at = NOON + timedelta(minutes=17 * known)
        as_log = {"layer": f"log:{rng.random()}", "signal": "log", "rank": 0, "session_id": str(number)}
        told = as_log if rng.random() < 0.5 else {}
        return observation(response_id=f"known-{known}", started_at=at, input_tokens=500, **told)
    agent, cost = rng.choice(["a", "b", None]), Decimal(rng.randint(0, 10**6)) / 10**6
    return observation(started_at=at, agent=agent, input_tokens=rng.randint(0, 9000), reported_cost_usd=cost)
