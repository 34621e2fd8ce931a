"""The whole house through its own shell: a real server, real recordings, the commands a new user types."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.house import House
from tollbook.client import Client
from tollbook.tables_page import MEANINGS, TABLES, tables_page

REPOSITORY = Path(__file__).parent.parent
CAPTURES = REPOSITORY / "fixtures" / "captures"
SENT = ("claude-code-http", "claude-code-subscription", "claude-code-grpc-cumulative")
EXPECTED = {name: json.loads((CAPTURES / name / "expected.json").read_text()) for name in SENT}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with House(tmp_path_factory.mktemp("live") / "data") as house:
        house.wait_ready()
        replayed = tollbook(house, "replay", *(str(CAPTURES / name) for name in SENT), "--wait", "--json")
        assert replayed["requests"] == sum(len(EXPECTED[name]["requests"]) for name in SENT)
        yield house


def tollbook(house: House, *arguments: str, code: int = 0) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "tollbook.cli", *arguments, "--url", house.http],
        capture_output=True,
        check=False,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout) if "--json" in arguments else done.stdout


def truth(*names: str) -> list[dict[str, Any]]:
    return [call for name in names for call in EXPECTED[name]["calls"] if call["billable"]]


def test_the_bill_is_the_truth_of_the_recordings(house: House) -> None:
    report = tollbook(house, "report", "--by", "agent,access", "--json")
    paid, covered = truth(SENT[0], SENT[2]), truth(SENT[1])
    assert report["totals"]["calls"] == len(paid) + len(covered)
    assert report["totals"]["output_tokens"] == sum(call["output"] for call in paid + covered)
    assert Decimal(report["totals"]["covered_usd"]) == sum(Decimal(call["list_cost_usd"]) for call in covered)
    assert Decimal(report["totals"]["assumed_usd"]) == sum(Decimal(call["list_cost_usd"]) for call in paid)
    assert Decimal(report["totals"]["billed_usd"]) == 0
    assert {(group["agent"], group["access"]) for group in report["groups"]} == {
        ("claude-code", "subscription"),
        ("claude-code", "unknown"),
    }
    assert "by plan $" in tollbook(house, "report")


def test_rollups_equal_a_recomputation(house: House) -> None:
    sums = "sum(input_tokens), sum(output_tokens), sum(list_cost_usd), sum(billed_cost_usd)"
    from_calls = tollbook(house, "sql", f"SELECT count(*), {sums} FROM calls", "--json")["rows"]
    for table in ("usage_hourly", "usage_daily"):
        told = tollbook(house, "sql", f"SELECT sum(calls), {sums} FROM {table}", "--json")["rows"]
        assert told == from_calls


def test_a_call_is_explained_down_to_its_records(house: House) -> None:
    [[call_id]] = house.sql("SELECT call_id FROM calls WHERE access = 'subscription'")
    told = house.get(f"/api/v1/calls/{call_id}")
    assert told["call"]["billed_cost_usd"] == "0.000000000000"
    assert {record["signal"] for record in told["observations"]} == {"log", "span"}
    assert told["call"]["access_evidence"] in json.dumps(told["observations"])
    assert told["price"]


def test_plans_are_shown_with_their_windows(house: House) -> None:
    told = tollbook(house, "plans", "--json")
    windows = {(row["plan_id"], row["quota"]) for row in told["windows"]}
    assert {row["plan_id"] for row in told["values"]} == {plan for plan, _ in windows}
    assert told["as_of"] and all(row["used_from"] in (None, "calls") for row in told["windows"])
    shown = tollbook(house, "plans")
    assert ("breaks even" in shown) == bool(windows)


def test_a_budget_counts_what_was_recorded(house: House) -> None:
    options = ("--id", "live", "--limit", "0.01", "--meter", "list_usd", "--period", "total")
    tollbook(house, "budget", "set", *options)
    Client(house.http).wait_published()
    denied = tollbook(house, "budget", "check", "--usd", "0.01", "--json", code=3)
    every = truth(*SENT)
    assert Decimal(denied["budgets"][0]["spent"]) == sum(Decimal(call["list_cost_usd"]) for call in every)
    tollbook(house, "budget", "rm", "live")


def test_doctor_and_readiness_know_where_it_listens(house: House) -> None:
    findings = tollbook(house, "doctor", "--json")["findings"]
    assert not [finding for finding in findings if finding["level"] == "failure"]
    ready = house.get("/readyz")
    assert (ready["http"], ready["grpc"]) == (house.http, house.grpc)
    assert house.grpc in tollbook(house, "connect", "sdk")


def test_every_metric_is_in_the_reference(house: House) -> None:
    page = Client(house.http).fetch("/metrics").decode()
    assert "tollbook_ready 1\n" in page
    assert "untyped" not in page


def test_the_tables_page_is_up_to_date() -> None:
    assert (REPOSITORY / "docs" / "tables.md").read_text() == tables_page()
    assert set(MEANINGS) == set(TABLES)


def test_the_published_file_is_what_the_page_says(house: House) -> None:
    listed = house.sql(
        "SELECT table_name, column_name, data_type FROM duckdb_columns() "
        "WHERE NOT internal AND schema_name = 'main'"
    )
    published: dict[str, dict[str, str]] = {}
    for table, column, kind in listed:
        published.setdefault(table, {})[column] = kind.replace("TIMESTAMP WITH TIME ZONE", "TIMESTAMPTZ")
    assert published == {
        table: {column.name: column.type for column in columns} for table, columns in TABLES.items()
    }
