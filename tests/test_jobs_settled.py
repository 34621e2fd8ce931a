"""What stands in the book without records of calls, settlements and sums of metrics, through jobs."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from billing.job import StartJob, new_job_id
from billing.job_runner import JobRunner
from catalog.catalog import Catalog
from ingest.dialect import Dialects, default_dialects
from ingest.segment import Kind
from tests.jobs import Books
from tests.observed import observation
from tests.test_billing_metrics import point, points
from tests.test_jobs_reprice import OVERLAY
from tests.test_jobs_reprocess import altered
from tests.test_reservations_ledger import Town

PLAIN = Catalog.load()
__all__ = ["altered"]  # a fixture


@pytest.fixture
def dearer(tmp_path: Path) -> Catalog:
    (tmp_path / "prices.toml").write_text(OVERLAY)
    return Catalog.load(overlay=tmp_path / "prices.toml")


@pytest.fixture
async def town(tmp_path: Path) -> Any:
    made = Town(tmp_path / "ledger.duckdb", PLAIN)
    await made.commit()
    yield made
    made.ledger.close()


async def run(town: Town, kind: Any, catalog: Catalog, dialects: Dialects | None = None) -> dict[str, Any]:
    """A job to its end; the desk follows every commit, and stays in balance."""
    told: list[dict[str, Any]] = []
    now = datetime.now(UTC)
    later = now + timedelta(days=365)
    town._journal(Kind.CONTROL, StartJob(job_id=new_job_id(), kind=kind, until=later, at=now).record())
    await town.commit()
    runner = JobRunner(
        town.ledger,
        catalog=lambda: catalog,
        dialects=dialects or default_dialects(),
        observation_days=90,
        tell=told.append,
    )
    while runner.pending:
        if (commit := runner.step()) is not None:
            await town.desk.take_delta(json.loads(json.dumps(commit.spend)))
            town.in_balance()
    assert told[-1]["status"] == "done", told[-1]["error"]
    return told[-1]


async def test_settled_tokens_are_priced_again_and_settled_dollars_are_not(
    town: Town, dearer: Catalog
) -> None:
    by_tokens, by_dollars = await town.reserve(), await town.reserve()
    await town.settle(by_tokens, usage={"input_tokens": 1000, "output_tokens": 100})
    await town.settle(by_dollars, usd="0.5")
    await town.commit()
    told = await run(town, "reprice", dearer)
    assert told["changed"] == 1
    assert town.calls() == [("settlement", Decimal("0.00042")), ("settlement", Decimal("0.5"))]
    assert town.standing() == (Decimal("0.50042"), 0)
    assert (await run(town, "reprice", dearer))["changed"] == 0


async def test_telemetry_still_takes_the_place_of_a_settlement_charged_again(
    town: Town, dearer: Catalog
) -> None:
    reservation = await town.reserve()
    _, span = town.call(reservation=reservation)
    await town.settle(reservation, usage={"input_tokens": 1000, "output_tokens": 100})
    await town.commit()
    await run(town, "reprice", dearer)
    town.send(span)
    await town.commit()
    [(basis, _)] = town.calls()
    assert basis == "span"
    revisions = "SELECT basis, revision FROM call_revisions ORDER BY revision"
    assert town.ledger.cursor().execute(revisions).fetchall() == [("settlement", 1), ("settlement", 2)]


async def test_a_settlement_stands_again_when_its_call_was_none(
    town: Town, altered: Callable[[str, str, str], Dialects]
) -> None:
    reservation = await town.reserve()
    _, span = town.call(reservation=reservation)
    await town.settle(reservation, usd="0.9")
    town.send(span)
    await town.commit()
    assert [basis for basis, _ in town.calls()] == ["span"]
    rule = 'scope = "opentelemetry.instrumentation.openai_v2"\noperations = "call"\nrole = '
    none = altered("gen_ai", f'{rule}"call"', f'{rule}"ignore"')
    assert (await run(town, "reprocess", PLAIN, none))["changed"] == 1
    assert town.calls() == [("settlement", Decimal("0.9"))]
    assert town.standing() == (Decimal("0.9"), 0)
    await run(town, "reprocess", PLAIN)
    assert [basis for basis, _ in town.calls()] == ["span"]


def test_sums_of_metrics_are_priced_again_without_tiers(tmp_path: Path, dearer: Catalog) -> None:
    books = Books(tmp_path, catalog=PLAIN)
    books.take(points=points(point(value=3_000_000), point("output_tokens", 10_000)))
    assert books.rows("SELECT basis, list_cost_usd FROM calls") == [("metric", Decimal("0.456"))]
    books.catalog = dearer
    assert books.run("reprice")["changed"] == 1
    assert books.rows("SELECT basis, list_cost_usd FROM calls") == [("metric", Decimal("0.912"))]
    assert books.run("reprice")["changed"] == 0
    books.take(observation(response_id="r", service="shop"))
    assert [basis for (basis,) in books.rows("SELECT basis FROM calls")] == ["span"]
    books.hold_together()
