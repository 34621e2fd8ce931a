"""A published file with known figures, for the tests of the shell."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb

from billing.tables import PUBLISHED, ROLLUP_KEYS, ROLLUP_SUMS, create_table

START = datetime(2026, 11, 20, 10, 30, tzinfo=UTC)


def call(number: int, **told: Any) -> dict[str, Any]:
    """One call, an hour after the one before: 1000+n input and 100 output tokens, 0.01 USD, unless told."""
    started = START + timedelta(hours=number)
    row: dict[str, Any] = {
        "call_id": f"c{number:032x}",
        "started_at": started,
        "ended_at": started + timedelta(seconds=1),
        "duration_ms": 1000.0,
        "status": "ok",
        "emitter": "claude-code",
        "basis": "log",
        "observation_count": 2,
        "call_count": 1,
        "agent": "claude-code",
        "labels": {"ticket": "A-1"},
        "provider": "anthropic",
        "model": "anthropic/claude-sonnet-4-5",
        "access": "payg",
        "usage_known": True,
        "usage_complete": True,
        "input_tokens": 1000 + number,
        "output_tokens": 100,
        "list_cost_usd": Decimal("0.01"),
        "billed_cost_usd": Decimal("0.01"),
        "cost_status": "priced",
        "revision": 1,
        "recorded_at": started,
    }
    return {**row, **told}


CALLS = [
    call(0),
    call(1, list_cost_usd=Decimal("0.020430750001"), billed_cost_usd=Decimal("0.020430750001"), team="core"),
    call(2, access="subscription", cost_status="included", billed_cost_usd=Decimal(0), plan_id="max"),
    call(3, access="unknown", cost_status="assumed", agent="codex"),
    call(
        *(4,),
        agent="codex",
        model=None,
        provider=None,
        cost_status="unpriced",
        list_cost_usd=None,
        billed_cost_usd=None,
    ),
    call(
        30,
        status="error",
        usage_known=False,
        cost_status="not_billable",
        input_tokens=None,
        output_tokens=None,
        list_cost_usd=Decimal(0),
        billed_cost_usd=Decimal(0),
    ),
]


def publish(path: Path, calls: list[dict[str, Any]] | None = None) -> Path:
    """Write `path` as the ledger would: built aside, then renamed into place."""
    aside = path.with_suffix(".new")
    aside.unlink(missing_ok=True)
    with duckdb.connect() as connection:
        connection.execute(f"ATTACH '{aside}' AS published (STORAGE_VERSION 'v1.5.0')")
        connection.execute("USE published")
        for name, columns in PUBLISHED.items():
            connection.execute(create_table(name, columns))
        for row in CALLS if calls is None else calls:
            _insert(connection, "calls", row)
        _roll_up(connection)
        _insert(connection, "call_revisions", {**call(50), "superseded_by": CALLS[0]["call_id"]})
        connection.execute("INSERT INTO meta VALUES ('journal_offset', '4096')")
        connection.execute(
            "CREATE OR REPLACE VIEW unpriced_models AS"
            " SELECT served_model, provider, model, sum(call_count) AS calls,"
            " sum(input_tokens) AS input_tokens,"
            " sum(output_tokens) AS output_tokens, max(started_at) AS last_seen"
            " FROM calls WHERE cost_status = 'unpriced' GROUP BY ALL"
        )
        connection.execute("USE memory")
        connection.execute("DETACH published")
    return aside.replace(path)


def _insert(connection: duckdb.DuckDBPyConnection, table: str, row: dict[str, Any]) -> None:
    marks = ", ".join("?" for _ in row)
    connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", list(row.values()))


def _roll_up(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("SET TimeZone = 'UTC'")
    counts = {
        "calls": "count(*)",
        "errors": "count(*) FILTER (status = 'error')",
        "usage_unknown_calls": "count(*) FILTER (NOT usage_known)",
        "unpriced_calls": "count(*) FILTER (cost_status = 'unpriced')",
    }
    sums = [f"{counts.get(c.name, f'sum({c.name})')} AS {c.name}" for c in ROLLUP_SUMS]
    keys = ", ".join(ROLLUP_KEYS)
    for table, bucket in (
        ("usage_hourly", "date_trunc('hour', started_at) AS hour"),
        ("usage_daily", "started_at::DATE AS day"),
    ):
        connection.execute(
            f"INSERT INTO {table} BY NAME SELECT {bucket}, {keys}, {', '.join(sums)} FROM calls GROUP BY ALL"
        )
