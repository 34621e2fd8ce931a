"""A price or an access is corrected and the book is charged again: exactly, once, and nothing else."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from catalog.accounts import AccountRule
from catalog.catalog import Catalog
from tests.jobs import Books, days_after
from tests.observed import observation

PLAIN = Catalog.load()
OVERLAY = """
[[price]]
price_list = "openai"
ids = ["gpt-4o-mini", "gpt-4o-mini-2024-07-18"]
source = "https://example.com/contract"
checked = 2026-11-22
[[price.row]]
valid_from = 2026-11-20T00:00:00Z
input = "0.30"
output = "1.20"
"""


@pytest.fixture
def dearer(tmp_path: Path) -> Catalog:
    """Twice the price of gpt-4o-mini from 20 November 2026 on, in the operator's file."""
    overlay = tmp_path / "prices.toml"
    overlay.write_text(OVERLAY)
    return Catalog.load(overlay=overlay)


@pytest.fixture
def books(tmp_path: Path) -> Books:
    return Books(tmp_path, catalog=PLAIN)


def fill(books: Books, *, days: int = 3, each: int = 4) -> None:
    """Calls of a few days around the correction, each 1000 tokens in and 100 out, some of another model."""
    for day in range(-1, days):
        at = days_after(day)
        books.take(
            *(
                observation(response_id=f"r{day}-{n}", started_at=at + timedelta(minutes=n))
                for n in range(each)
            ),
            observation(
                response_id=f"o{day}",
                started_at=at,
                request_model="gpt-4o",
                response_model="gpt-4o-2024-08-06",
            ),
        )


def test_an_unchanged_catalogue_changes_nothing(books: Books) -> None:
    fill(books)
    before = books.state()
    told = books.run("reprice")
    assert (told["status"], told["looked_at"], told["total"], told["changed"]) == ("done", 20, 20, 0)
    assert told["changes"] == []
    assert books.state() == before


def test_a_dry_run_shows_the_exact_change_and_writes_nothing(books: Books, dearer: Catalog) -> None:
    fill(books)
    tables = ("calls", "call_revisions", "commits", "jobs", "job_changes", "budget_spend", "dirty_slots")
    before = [books.rows(f"FROM {table} ORDER BY ALL") for table in tables]
    books.catalog = dearer
    told = books.run("reprice", dry=True)
    assert [books.rows(f"FROM {table} ORDER BY ALL") for table in tables] == before
    assert (told["status"], told["looked_at"], told["changed"]) == ("done", 20, 12)
    [change] = told["changes"]
    # 12 calls of 1000 x 0.15 + 100 x 0.60 per million; now 0.30 and 1.20
    assert (change["calls_before"], change["calls_after"]) == (12, 12)
    assert Decimal(change["list_cost_usd_before"]) == 12 * Decimal("0.00021")
    assert Decimal(change["list_cost_usd_after"]) == 12 * Decimal("0.00042")
    assert Decimal(change["billed_cost_usd_after"]) == 12 * Decimal("0.00042")
    assert change["model"] == "openai/gpt-4o-mini"
    assert change["price_id_before"] != change["price_id_after"]
    assert told["totals"]["list_cost_usd_after"] == change["list_cost_usd_after"]
    assert books.ledger._pricing is PLAIN


def test_a_run_writes_what_the_dry_run_showed_and_a_second_run_nothing(books: Books, dearer: Catalog) -> None:
    fill(books)
    facts = "SELECT call_id, started_at, input_tokens, output_tokens, observation_count FROM calls ORDER BY 1"
    before = books.rows(facts)
    books.catalog = dearer
    shown = books.run("reprice", dry=True)
    done = books.run("reprice")
    assert (done["changes"], done["totals"], done["changed"]) == (shown["changes"], shown["totals"], 12)
    assert books.rows(facts) == before
    charged = (
        "SELECT list_cost_usd, revision, count(*) FROM calls WHERE model = 'openai/gpt-4o-mini' "
        "GROUP BY ALL ORDER BY 1"
    )
    assert books.rows(charged) == [
        (Decimal("0.00021"), 1, 4),
        (Decimal("0.00042"), 2, 12),
    ]
    books.hold_together()
    again = books.run("reprice")
    assert (again["changed"], again["changes"]) == (0, [])
    assert books.rows("SELECT count(*) FROM call_revisions") == [(12,)]


def test_every_revision_says_which_job_made_it_and_why(books: Books, dearer: Catalog) -> None:
    fill(books)
    books.catalog = dearer
    told = books.run("reprice")
    with books.publish() as published:
        [(kind, status, began, changed)] = published.execute(
            "SELECT DISTINCT j.kind, j.status, j.began_at IS NOT NULL, j.changed "
            "FROM call_revisions r JOIN jobs j USING (job_id)"
        ).fetchall()
        assert (kind, status, began, changed) == ("reprice", "done", True, 12)
        [(reason,)] = published.execute("SELECT DISTINCT reason FROM call_revisions").fetchall()
        [change] = told["changes"]
        assert f"price row {change['price_id_before']} -> {change['price_id_after']}" in reason
        assert published.execute("SELECT calls_after, list_cost_usd_after FROM job_changes").fetchall() == [
            (12, Decimal("0.005040000000"))
        ]


def test_only_the_span_asked_for_is_charged_again(books: Books, dearer: Catalog) -> None:
    fill(books)
    books.catalog = dearer
    told = books.run("reprice", since=days_after(1), until=days_after(1) + timedelta(minutes=2))
    assert (told["looked_at"], told["changed"]) == (3, 2)
    books.hold_together()


def test_sealed_days_are_charged_again_whole(tmp_path: Path, dearer: Catalog) -> None:
    books = Books(tmp_path, catalog=PLAIN, seal_above=8)
    fill(books, days=5)
    books.publish().close()
    sealed = {file.name for file in (tmp_path / "sealed").iterdir()}
    assert len(sealed) >= 3
    books.catalog = dearer
    books.run("reprice")
    books.hold_together()
    named = books.publish().execute("SELECT file FROM hot.sealed_days").fetchall()
    assert {file for (file,) in named} - sealed, "no sealed day was written anew"


def test_what_an_account_pays_by_is_decided_again(books: Books) -> None:
    fill(books)
    books.take(observation(response_id="ours", account_id="acme"))
    books.catalog = Catalog.load(accounts=[AccountRule("subscription", plan_id="team", account_id="acme")])
    told = books.run("reprice")
    assert told["changed"] == 1
    [change] = told["changes"]
    assert (change["access_after"], change["cost_status_after"]) == ("subscription", "included")
    money = "SELECT access, plan_id, billed_cost_usd, list_cost_usd FROM calls WHERE account_id = 'acme'"
    assert books.rows(money) == [("subscription", "team", Decimal(0), Decimal("0.00021"))]
    [(reason,)] = books.rows("SELECT reason FROM call_revisions")
    assert reason.startswith("access ")
    books.hold_together()


def test_records_long_forgotten_are_not_needed(books: Books, dearer: Catalog) -> None:
    fill(books)
    books.ledger.forget_old_evidence(
        links_before=days_after(400), observations_before=days_after(400), published_commit=0
    )
    books.catalog = dearer
    assert books.run("reprice")["changed"] == 12


def test_a_call_revised_by_telemetry_later_keeps_its_new_charge(books: Books, dearer: Catalog) -> None:
    books.take(observation(response_id="r", started_at=days_after(1)))
    books.catalog = dearer
    books.run("reprice")
    books.ledger.use(PLAIN)
    log = {"layer": "log:x", "signal": "log", "session_id": "s", "rank": 0}
    books.take(observation(response_id="r", started_at=days_after(1), **log))
    assert books.rows("SELECT list_cost_usd, session_id, revision FROM calls") == [
        (Decimal("0.00042"), "s", 3)
    ]
    books.hold_together()


@pytest.mark.parametrize("steps", range(1, 9))
def test_a_crash_after_any_slice_leads_to_the_same_book(tmp_path: Path, dearer: Catalog, steps: int) -> None:
    books = Books(tmp_path, catalog=PLAIN)
    fill(books)
    books.reopen(slice_rows=4)
    books.catalog = dearer
    job_id = books.ask("reprice")
    for _ in range(steps):
        books.runner.step()
    books.reopen(slice_rows=4)
    books.finish()
    assert books.rows(f"SELECT status, looked_at, total, changed FROM jobs WHERE job_id = '{job_id}'") == [
        ("done", 20, 20, 12)
    ]
    names = ("calls_before", "list_cost_usd_before", "list_cost_usd_after")
    [sums] = books.rows(f"SELECT {', '.join(f'sum({name})' for name in names)} FROM job_changes")
    assert sums == (12, 12 * Decimal("0.00021"), 12 * Decimal("0.00042"))
    assert books.rows("SELECT count(*), max(revision) FROM call_revisions") == [(12, 1)]
    books.hold_together()


def test_a_job_that_fails_says_so_and_the_next_one_runs(books: Books, dearer: Catalog) -> None:
    fill(books)

    def broken() -> Any:
        raise RuntimeError("a secret of ours")

    books.runner._catalog = broken
    told = books.run("reprice")
    assert (told["status"], told["error"]) == ("failed", "RuntimeError; see the log")
    books.reopen()
    books.catalog = dearer
    assert books.run("reprice")["changed"] == 12


def test_a_job_that_keeps_ending_the_ledger_is_given_up(books: Books) -> None:
    fill(books)
    books.ask("reprice")
    for _ in range(5):
        books.runner.step()
        books.reopen()
    books.finish()
    assert books.told[-1]["status"] == "failed"
    assert "5 times" in books.told[-1]["error"]
