"""A dialect gets better: what was stored is read again, and the book is as if it had been read so first."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from catalog.catalog import Catalog
from ingest import dialect
from ingest.decode import decode
from ingest.dialect import Dialects, default_dialects, load_dialects
from ingest.observe import observe
from tests.ingest_decode_support import CAPTURES, capture_frames
from tests.jobs import Books

CATALOG = Catalog.load()
EVERY = sorted(path.parent.name for path in CAPTURES.glob("*/expected.json"))
CLAUDE = ["claude-code-http", "claude-code-traces-beta", "claude-code-error", "claude-code-subscription"]
FACTS = (
    "call_id, started_at, ended_at, status, basis, observation_count, response_id, request_id, session_id, "
    "emitter, provider, model, access, usage_known, input_tokens, cache_read_tokens, cache_write_tokens, "
    "output_tokens, reasoning_tokens, list_cost_usd, billed_cost_usd, cost_status, price_id"
)

SWAPPED = (
    'input_tokens = ["input_tokens"]\noutput_tokens = ["output_tokens"]',
    'input_tokens = ["output_tokens"]\noutput_tokens = ["input_tokens"]',
)

Altered = Callable[[str, str, str], Dialects]


@pytest.fixture
def altered(monkeypatch: pytest.MonkeyPatch) -> Altered:
    """The dialects with one table changed: (table, text, other text)."""

    def make(name: str, text: str, other: str) -> Dialects:
        file = Path(dialect.__file__).parent / "dialects" / f"{name}.toml"
        told = file.read_text()
        assert text in told
        assert tomllib.loads(told)
        tables = dialect._read_tables()
        tables[name] = dialect._read_table(file.name, told.replace(text, other))
        with monkeypatch.context() as patch:
            patch.setattr(dialect, "_read_tables", lambda: tables)
            return load_dialects()

    return make


def load(books: Books, captures: list[str], dialects: Dialects) -> None:
    """All that the captures tell, in one transaction."""
    told = observe(decode([request for capture in captures for request in capture_frames(capture)], dialects))
    books.take(frame=told.observations, between=told.links, points=told.metric_points)


def facts(books: Books) -> list[tuple[Any, ...]]:
    return books.rows(f"SELECT {FACTS} FROM calls ORDER BY call_id")


def emitters(books: Books) -> list[tuple[Any, ...]]:
    with books.publish() as published:
        return published.execute(
            "SELECT emitter, signals, records, calls, duplicates_merged, aggregates FROM emitters ORDER BY 1"
        ).fetchall()


class Right:
    """What captures tell, read rightly from the first."""

    def __init__(self, folder: Path, captures: list[str]) -> None:
        folder.mkdir(exist_ok=True)
        books = Books(folder, catalog=CATALOG)
        load(books, captures, default_dialects())
        self.facts = facts(books)
        self.emitters = emitters(books)
        books.ledger.close()


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Right:
    return Right(tmp_path_factory.mktemp("right"), CLAUDE)


def misread(folder: Path, dialects: Dialects, captures: list[str] | None = None) -> Books:
    """The same, read by other dialects; the present ones are right."""
    books = Books(folder, catalog=CATALOG)
    load(books, captures or CLAUDE, dialects)
    return books


def test_every_capture_reads_again_as_it_was_read(tmp_path: Path) -> None:
    books = Books(tmp_path, catalog=CATALOG)
    load(books, EVERY, default_dialects())
    before = books.rows("SELECT * EXCLUDE (commit_no) FROM calls ORDER BY call_id")
    told = books.run("reprocess")
    assert (told["status"], told["changed"]) == ("done", 0)
    assert told["looked_at"] == told["total"] > 300
    assert books.rows("SELECT * EXCLUDE (commit_no) FROM calls ORDER BY call_id") == before


def test_misread_tokens_become_right(tmp_path: Path, right: Right, altered: Altered) -> None:
    books = misread(tmp_path, altered("claude_code", *SWAPPED))
    assert facts(books) != right.facts
    shown = books.run("reprocess", dry=True)
    assert facts(books) != right.facts
    done = books.run("reprocess")
    assert (done["changes"], done["changed"]) == (shown["changes"], shown["changed"])
    assert done["changed"] > 0
    assert facts(books) == right.facts
    books.hold_together()
    assert emitters(books) == right.emitters
    reasons = {
        reason for (reason,) in books.rows("SELECT reason FROM call_revisions WHERE job_id IS NOT NULL")
    }
    assert any("input tokens" in reason and "list cost" in reason for reason in reasons)
    assert books.run("reprocess")["changed"] == 0


def test_a_record_that_is_no_call_any_more_is_retired_and_says_why(
    tmp_path: Path, right: Right, altered: Altered
) -> None:
    books = misread(tmp_path, altered("claude_code", 'role = "ignore"', 'role = "call"'))
    more = len(facts(books)) - len(right.facts)
    assert more > 0
    done = books.run("reprocess")
    assert done["totals"]["calls_before"] - done["totals"]["calls_after"] == more
    assert facts(books) == right.facts
    gone = (
        "SELECT DISTINCT reason FROM call_revisions WHERE job_id IS NOT NULL "
        "AND call_id NOT IN (SELECT call_id FROM calls)"
    )
    assert books.rows(gone) == [("no call any more: its dialect says ignore",)]
    books.hold_together()
    assert emitters(books) == right.emitters
    assert books.run("reprocess")["changed"] == 0


def test_a_retired_record_comes_back_when_it_is_a_call_again(
    tmp_path: Path, right: Right, altered: Altered
) -> None:
    generous = altered("claude_code", 'role = "ignore"', 'role = "call"')
    books = misread(tmp_path, generous)
    before = facts(books)
    books.run("reprocess")
    books.dialects = generous
    books.reopen()
    books.run("reprocess")
    assert facts(books) == before


def test_records_of_two_slices_are_one_call_again(tmp_path: Path, altered: Altered) -> None:
    """The old dialect reads another input off the log than off the span, which keeps them apart."""
    right = Right(tmp_path / "right", ["gemini-cli-http-tool"])
    apart = altered("gemini_cli", '["input_token_count"]', '["output_token_count"]')
    books = misread(tmp_path, apart, ["gemini-cli-http-tool"])
    assert len(facts(books)) > len(right.facts)
    books.reopen(slice_rows=1)
    shown = books.run("reprocess", dry=True)
    done = books.run("reprocess")
    assert (done["totals"], done["changed"]) == (shown["totals"], shown["changed"])
    assert facts(books) == right.facts
    books.hold_together()


@pytest.mark.parametrize("steps", [2, 4])
def test_a_crash_on_the_way_leads_to_the_same_book(
    tmp_path: Path, right: Right, altered: Altered, steps: int
) -> None:
    books = misread(tmp_path, altered("claude_code", *SWAPPED))
    books.ask("reprocess")
    books.reopen(slice_rows=3)
    for _ in range(steps):
        books.runner.step()
    books.reopen(slice_rows=3)
    books.finish()
    assert facts(books) == right.facts
    assert books.told[-1]["status"] == "done"
    books.hold_together()


def test_evidence_whose_attributes_are_gone_stays_as_it_was_read(tmp_path: Path, altered: Altered) -> None:
    books = misread(tmp_path, altered("claude_code", *SWAPPED))
    books.ledger.cursor().execute("DELETE FROM kept_attributes")
    before = facts(books)
    assert books.run("reprocess")["changed"] == 0
    assert facts(books) == before


def test_links_are_kept_for_as_long_as_records_may_be_read_again(tmp_path: Path, altered: Altered) -> None:
    """An agent's turn is covered by calls far below it: spans between them, that are no records, say so."""
    captures = ["codex-http"]
    right = Right(tmp_path / "right", captures)
    books = misread(tmp_path, altered("codex", "rank = 10\n", "rank = 11\n"), captures)
    links = "SELECT count(*) FROM span_links"
    [(before,)] = books.rows(links)
    now = datetime.now(UTC)
    old = {"links_before": now + timedelta(days=1), "observations_before": now - timedelta(days=90)}
    books.ledger.forget_old_evidence(**old, published_commit=0)
    [(kept,)] = books.rows(links)
    assert 0 < kept < before
    books.run("reprocess")
    assert facts(books) == right.facts
    books.ledger.cursor().execute("UPDATE span_links SET kept_until = ?", [now])
    books.ledger.forget_old_evidence(**old, published_commit=0)
    assert books.rows(links) == [(0,)]
