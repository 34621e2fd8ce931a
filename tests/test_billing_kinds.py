"""Tables that are kept in two show what was put into them, however often their rows say the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing import kinds as kinds_module
from billing.evidence import append_observations, keyed
from billing.store import CALL_KINDS, OBSERVATION_KINDS, OBSERVED, append, connect, read
from ingest.observation import OBSERVATIONS
from tests.observed import observation

TEXTS = st.sampled_from([None, "", "a", "b"])
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "session_id": TEXTS,
            "agent": TEXTS,
            "request_model": TEXTS,
            "http_status": st.sampled_from([None, 0, 200]),
            "labels": st.sampled_from([None, [], [{"key": "k", "value": "v"}]]),
            "anomalies": st.sampled_from([None, [], ["x", "y"]]),
        }
    ),
    max_size=6,
)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with connect(tmp_path / "ledger.duckdb", memory_limit="200MB", threads=1, wait_s=1) as connection:
        yield connection


def stored(ledger: duckdb.DuckDBPyConnection, *columns: str) -> list[tuple[object, ...]]:
    return ledger.execute(f"SELECT {', '.join(columns)} FROM observations ORDER BY row_no").fetchall()


def count(ledger: duckdb.DuckDBPyConnection, table: str) -> int:
    [(rows,)] = ledger.execute(f"SELECT count(*) FROM {table}").fetchall()
    return int(rows)


@pytest.mark.parametrize("newest", [1, 4096])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(ROWS, max_size=4))
def test_what_is_put_in_comes_out_row_by_row(
    ledger: duckdb.DuckDBPyConnection,
    monkeypatch: pytest.MonkeyPatch,
    newest: int,
    batches: list[list[dict[str, object]]],
) -> None:
    monkeypatch.setattr(kinds_module, "NEWEST", newest)
    columns = ("session_id", "agent", "request_model", "http_status", "labels", "anomalies")
    for table in (OBSERVATION_KINDS.rows, OBSERVATION_KINDS.table):
        ledger.execute(f"DELETE FROM {table}")
    for rows in batches:
        append(ledger, "observations", pl.DataFrame(rows, schema={c: OBSERVED[c] for c in columns}))
    told = [tuple(row[c] for c in columns) for rows in batches for row in rows]
    assert stored(ledger, *columns) == told
    combinations = {repr(row[1:]) for row in told}
    assert count(ledger, OBSERVATION_KINDS.table) >= len(combinations)
    if newest > 1:
        assert count(ledger, OBSERVATION_KINDS.table) == len(combinations)


def test_a_kind_is_forgotten_with_its_last_row_and_its_number_never_comes_again(
    ledger: duckdb.DuckDBPyConnection,
) -> None:
    def put(agent: str) -> None:
        append(ledger, "observations", pl.DataFrame({"session_id": [agent], "agent": [agent]}))

    def numbers() -> list[tuple[int, str]]:
        return ledger.execute(f"SELECT kind, agent FROM {OBSERVATION_KINDS.table} ORDER BY 1").fetchall()

    for agent in ("a", "b", "a", "c"):
        put(agent)
    ledger.execute(f"DELETE FROM {OBSERVATION_KINDS.rows} WHERE session_id IN ('b', 'c')")
    OBSERVATION_KINDS.forget_unused(ledger)
    assert numbers() == [(1, "a"), (3, "c")]
    put("d")
    OBSERVATION_KINDS.forget_unused(ledger)
    assert numbers() == [(1, "a"), (4, "d")]
    assert stored(ledger, "session_id", "agent") == [("a", "a"), ("a", "a"), ("d", "d")]


def test_records_keep_every_column_they_had(ledger: duckdb.DuckDBPyConnection) -> None:
    told = keyed(pl.DataFrame([observation(response_id="r"), observation(agent="x")], schema=OBSERVATIONS))
    append_observations(ledger, told, commit_no=7)
    again = read(ledger, f"SELECT {', '.join(OBSERVED)} FROM observations ORDER BY row_no")
    assert again.cast(dict(OBSERVED)).equals(told.select(*OBSERVED))  # type: ignore[arg-type]


def test_a_kind_holds_columns_that_the_table_has() -> None:
    for kinds in (OBSERVATION_KINDS, CALL_KINDS):
        assert set(kinds.shared) <= set(kinds.columns)
        assert len(set(kinds.shared)) == len(kinds.shared)
