"""A ledger that an earlier tollbook wrote is brought up to date, or refused with what to do."""

from __future__ import annotations

from pathlib import Path

import duckdb
import polars as pl
import pytest

from billing.evidence import with_attributes
from billing.layout import SCHEMA_VERSION, LedgerTooNew, LedgerUnfit
from billing.ledger import Ledger
from billing.store import KINDS, read
from billing.tables import EVIDENCE_FIELDS, LEDGER_CALLS, names
from catalog.catalog import _EVIDENCE, Catalog
from tests.jobs import Books
from tests.observed import observation

CATALOG = Catalog.load()


def rewritten(folder: Path, *statements: str) -> None:
    """Change the ledger's file as if another version had made it."""
    with duckdb.connect(str(folder / "ledger.duckdb")) as connection:
        for statement in statements:
            connection.execute(statement)


WIDE = [
    statement
    for kinds in KINDS.values()
    for statement in (
        f"CREATE TABLE wide AS SELECT {', '.join(kinds.columns)} FROM {kinds.view}",
        f"DROP VIEW {kinds.view}",
        f"DROP TABLE {kinds.rows}",
        f"DROP TABLE {kinds.table}",
        f"ALTER TABLE wide RENAME TO {kinds.view}",
    )
]
"""Makes of a ledger one of layout 2."""
LABELS = [{"key": "k", "value": "v"}]


def written_by_the_first_layout(folder: Path) -> None:
    books = Books(folder, catalog=CATALOG)
    books.take(observation(response_id="old"))
    books.publish().close()
    books.ledger.close()
    rewritten(
        folder,
        *WIDE,
        "ALTER TABLE calls DROP COLUMN evidence",
        "ALTER TABLE call_revisions DROP COLUMN evidence",
        "ALTER TABLE call_revisions DROP COLUMN reason",
        "DROP TABLE jobs",
        "UPDATE schema_version SET version = 1",
    )
    for file in (folder / "staging").iterdir():
        with duckdb.connect(str(file)) as staging:
            staging.execute("ALTER TABLE call_revisions DROP COLUMN reason")


def test_a_ledger_with_fewer_columns_is_brought_up_to_date(tmp_path: Path) -> None:
    written_by_the_first_layout(tmp_path)
    books = Books(tmp_path, catalog=CATALOG)
    assert books.rows("SELECT version FROM schema_version") == [(SCHEMA_VERSION,)]
    assert books.rows("SELECT response_id, evidence FROM calls") == [("old", None)]
    log = {"layer": "log:x", "signal": "log", "session_id": "s", "rank": 0}
    books.take(observation(response_id="old", **log), observation(response_id="new"))
    assert books.rows("SELECT count(*), count(evidence), sum(revision) FROM calls") == [(2, 2, 3)]
    books.hold_together()


def test_records_of_the_first_layout_are_found_and_keep_their_attributes(tmp_path: Path) -> None:
    written_by_the_first_layout(tmp_path)
    rewritten(
        tmp_path,
        "ALTER TABLE observations ADD COLUMN attributes BLOB",
        "UPDATE observations SET attributes = 'kept'::BLOB, "
        "response_key = md5_number_lower(response_id), fingerprint_key = md5_number_lower(service)",
        "DROP TABLE kept_attributes",
    )
    books = Books(tmp_path, catalog=CATALOG)
    stored = read(books.ledger.cursor(), "SELECT id_hi, id_lo, commit_no FROM observations")
    stored = stored.cast(dict.fromkeys(("id_hi", "id_lo"), pl.UInt64))
    assert with_attributes(books.ledger.cursor(), stored)["attributes"].to_list() == [b"kept"]
    books.take(observation(response_id="old", layer="log:x", signal="log", session_id="s", rank=0))
    assert books.rows("SELECT session_id, observation_count, revision FROM calls") == [("s", 2, 2)]
    books.hold_together()


def test_wide_tables_are_taken_over_whole_and_once(tmp_path: Path) -> None:
    books = Books(tmp_path, catalog=CATALOG)
    for name in ("a", "b", "c"):
        books.take(*(observation(response_id=f"{name}{n}", agent=name, labels=LABELS) for n in range(3)))
    kept = (
        "SELECT * EXCLUDE (row_no) FROM observations ORDER BY id_lo",
        "SELECT * FROM calls ORDER BY call_id",
    )
    before = [books.rows(query) for query in kept]
    books.publish().close()
    books.ledger.close()
    rewritten(tmp_path, *WIDE, "UPDATE schema_version SET version = 2")
    for _ in range(2):
        books = Books(tmp_path, catalog=CATALOG)
        assert [books.rows(query) for query in kept] == before
        assert books.rows("SELECT count(*) FROM observations_kinds") == [(3,)]
        assert books.rows("SELECT count(*) FROM duckdb_tables() WHERE table_name LIKE '%_wide'") == [(0,)]
        books.ledger.close()
    books = Books(tmp_path, catalog=CATALOG)
    books.take(observation(response_id="a1", agent="a", layer="log:x", signal="log", session_id="s", rank=0))
    assert books.rows("SELECT count(*), sum(revision) FROM calls") == [(9, 10)]
    books.hold_together()


def test_a_take_over_that_was_cut_short_is_finished_at_the_next_start(tmp_path: Path) -> None:
    books = Books(tmp_path, catalog=CATALOG)
    books.take(observation(response_id="a"), observation(response_id="b"))
    books.publish().close()
    books.ledger.close()
    aside = [f"ALTER TABLE {kinds.view} RENAME TO {kinds.set_aside}" for kinds in KINDS.values()]
    rewritten(tmp_path, *WIDE, *aside)
    books = Books(tmp_path, catalog=CATALOG)
    assert books.rows("SELECT response_id FROM calls ORDER BY 1") == [("a",), ("b",)]
    books.hold_together()


def test_what_was_written_without_evidence_keeps_what_it_was_and_is_priced_again(tmp_path: Path) -> None:
    written_by_the_first_layout(tmp_path)
    books = Books(tmp_path, catalog=CATALOG)
    rows = "SELECT provider, model, access, access_evidence, list_cost_usd FROM calls"
    before = books.rows(rows)
    assert books.run("reprice")["changed"] == 0
    assert books.rows(rows) == before


def test_a_ledger_of_a_newer_tollbook_is_refused_and_not_touched(tmp_path: Path) -> None:
    Books(tmp_path, catalog=CATALOG).ledger.close()
    newer = f"UPDATE schema_version SET version = {SCHEMA_VERSION + 1}"
    rewritten(tmp_path, "DROP TABLE jobs", newer)
    with pytest.raises(LedgerTooNew, match="upgrade tollbook"):
        Ledger.open(tmp_path / "ledger.duckdb", epoch="e", pricing=CATALOG)
    with duckdb.connect(str(tmp_path / "ledger.duckdb")) as connection:
        assert ("jobs",) not in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()


def test_evidence_that_was_not_kept_then_is_added(tmp_path: Path) -> None:
    books = Books(tmp_path, catalog=CATALOG)
    books.take(observation(response_id="old", server_address="api.openai.com"))
    books.ledger.close()
    rewritten(tmp_path, "ALTER TABLE calls_rows DROP COLUMN evidence.plan_hint")
    books = Books(tmp_path, catalog=CATALOG)
    books.take(observation(response_id="new", plan_hint="max"))
    kept = "SELECT response_id, evidence.server_address, evidence.plan_hint FROM calls ORDER BY 1"
    assert books.rows(kept) == [("new", None, "max"), ("old", "api.openai.com", None)]
    assert books.run("reprice")["status"] == "done"


def test_all_that_the_catalogue_reads_is_kept() -> None:
    kept = {*names(LEDGER_CALLS), *EVIDENCE_FIELDS, "accounts"}  # accounts: the operator's rules that fit
    assert set(_EVIDENCE) <= kept


def test_a_column_of_another_type_is_refused_by_name(tmp_path: Path) -> None:
    Books(tmp_path, catalog=CATALOG).ledger.close()
    rewritten(tmp_path, "ALTER TABLE jobs ALTER COLUMN total TYPE VARCHAR")
    with pytest.raises(LedgerUnfit, match=r"jobs\.total is VARCHAR in this file, and BIGINT .* --data-dir"):
        Ledger.open(tmp_path / "ledger.duckdb", epoch="e", pricing=CATALOG)


def test_a_published_file_of_wide_calls_is_built_again(tmp_path: Path) -> None:
    books = Books(tmp_path, catalog=CATALOG)
    books.take(observation(response_id="r"))
    books.publish().close()
    with duckdb.connect(str(tmp_path / "staging" / "usage.duckdb")) as staging:
        staging.execute("CREATE TABLE wide AS SELECT * FROM calls")
        staging.execute("DROP VIEW unpriced_models; DROP VIEW calls; DROP VIEW hot.calls")
        staging.execute("DROP TABLE hot.calls_rows; DROP TABLE hot.calls_kinds")
        staging.execute("CREATE TABLE hot.calls AS SELECT * FROM wide; DROP TABLE wide")
    books.hold_together()


def test_a_published_file_that_lacks_a_column_of_calls_is_built_again(tmp_path: Path) -> None:
    books = Books(tmp_path, catalog=CATALOG)
    books.take(observation(response_id="r"))
    books.publish().close()
    with duckdb.connect(str(tmp_path / "staging" / "usage.duckdb")) as staging:
        staging.execute("DROP VIEW unpriced_models; DROP VIEW calls; DROP VIEW hot.calls")
        staging.execute("ALTER TABLE hot.calls_kinds DROP COLUMN region")
    books.hold_together()
