"""The HTTP API over a real server: figures, formats, errors, budgets, the guard."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest

from tests.shell_house import CALLS
from tests.shell_server import Running, running
from tollbook.metrics_page import METRICS, render
from tollbook.problems import KINDS

FIRST = CALLS[0]["call_id"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("data")) as server:
        yield server


def problem(reply: object, code: str) -> dict[str, object]:
    status, headers, body = reply.status, reply.headers, reply.json()  # type: ignore[attr-defined]
    assert headers["content-type"] == "application/problem+json"
    assert (body["code"], body["status"]) == (code, status)
    assert body["next"] and body["title"] and body["detail"]
    return dict(body)


# --- usage


def test_totals_keep_what_is_uncertain_apart(server: Running) -> None:
    reply = server.get("/api/v1/usage").json()
    assert reply["groups"] == [reply["totals"]]
    assert reply["totals"] == {
        "calls": 6,
        "errors": 1,
        "usage_unknown_calls": 1,
        "unpriced_calls": 1,
        "input_tokens": 5010,
        "cache_read_tokens": None,
        "cache_write_tokens": None,
        "output_tokens": 500,
        "reasoning_tokens": None,
        "billed_usd": "0.030430750001",
        "assumed_usd": "0.010000000000",
        "estimated_usd": "0.000000000000",
        "covered_usd": "0.010000000000",
        "list_usd": "0.050430750001",
        "reported_usd": None,
    }


def test_groups_add_up_to_the_totals_and_an_unpriced_group_is_not_zero(server: Running) -> None:
    reply = server.get("/api/v1/usage?group_by=model,access&window=day").json()
    assert reply["group_by"] == ["model", "access"]
    assert sum(group["calls"] for group in reply["groups"]) == reply["totals"]["calls"] == 6
    known = [Decimal(group["billed_usd"]) for group in reply["groups"] if group["billed_usd"]]
    assert sum(known) == Decimal(reply["totals"]["billed_usd"])
    unpriced = [group for group in reply["groups"] if group["unpriced_calls"]]
    assert [(group["model"], group["billed_usd"], group["list_usd"]) for group in unpriced] == [
        (None, None, None)
    ]
    assert {group["window_start"] for group in reply["groups"]} == {
        "2026-11-20T00:00:00Z",
        "2026-11-21T00:00:00Z",
    }


@pytest.mark.parametrize(
    ("query", "calls"),
    [
        ("from=2026-11-20T11:45:00Z", 5),  # the hour that holds the moment is counted whole
        ("from=2026-11-20T12:00:00%2B01:00", 5),
        ("to=2026-11-20T11:00:00Z", 1),
        ("to=2026-11-20T11:00:01Z", 2),
        ("from=2026-11-21", 1),
        ("from=2030-01-01", 0),
        ("agent=codex", 2),
        ("agent=codex&access=unknown", 1),
        ("model=", 1),
        ("team=", 5),
        ("team=nobody", 0),
    ],
)
def test_ranges_and_filters(server: Running, query: str, calls: int) -> None:
    reply = server.get(f"/api/v1/usage?{query}")
    assert reply.json()["totals"]["calls"] == calls


@pytest.mark.parametrize(("window", "start"), [("week", "2026-11-16"), ("month", "2026-11-01")])
def test_windows_begin_where_they_should(server: Running, window: str, start: str) -> None:
    groups = server.get(f"/api/v1/usage?window={window}").json()["groups"]
    assert [(group["window_start"], group["calls"]) for group in groups] == [(f"{start}T00:00:00Z", 6)]


def test_groups_beyond_the_row_limit_are_left_out_and_said_but_the_total_is_whole(
    server: Running, tmp_path: Path
) -> None:
    reply = server.get("/api/v1/usage?window=hour&group_by=model").json()
    assert (len(reply["groups"]), reply["truncated"], reply["totals"]["calls"]) == (6, False, 6)


def test_usage_as_csv_and_arrow(server: Running) -> None:
    text = server.get("/api/v1/usage?group_by=access", accept="text/csv")
    assert text.headers["content-type"].startswith("text/csv")
    lines = text.body.decode().splitlines()
    assert lines[0].startswith("access,calls,errors,")
    assert len(lines) == 1 + 3
    stream = server.get("/api/v1/usage", accept="application/vnd.apache.arrow.stream")
    table = pa.ipc.open_stream(io.BytesIO(stream.body)).read_all()
    assert table["billed_usd"].to_pylist() == [Decimal("0.030430750001")]


@pytest.mark.parametrize(
    ("query", "at"),
    [
        ("window=year", "query.window"),
        ("group_by=password", "query.group_by"),
        ("from=yesterday", "query.from"),
        ("from=2026-11-20T10:00:00", "query.from"),
        ("group=model", "query.group"),
        ("since=2026-11-20", "query.since"),
        ("from=2026-11-22&to=2026-11-21", "query.from"),
    ],
)
def test_a_wrong_question_is_told_where_and_never_echoed(server: Running, query: str, at: str) -> None:
    body = problem(server.get(f"/api/v1/usage?{query}&team=sk-ant-secret"), "invalid_request")
    assert [each["at"] for each in body["errors"]] == [at]  # type: ignore[attr-defined]
    assert "secret" not in str(body)
    assert "yesterday" not in str(body)


# --- calls


def test_calls_come_newest_first_in_pages_without_gap_or_repeat(server: Running) -> None:
    seen: list[str] = []
    path = "/api/v1/calls?limit=4"
    while True:
        reply = server.get(path).json()
        seen += [call["call_id"] for call in reply["calls"]]
        if reply["next_cursor"] is None:
            break
        path = f"/api/v1/calls?limit=4&cursor={reply['next_cursor']}"
    assert seen == [call["call_id"] for call in reversed(CALLS)]


def test_a_call_has_exact_money_and_times(server: Running) -> None:
    [call] = server.get("/api/v1/calls?team=core").json()["calls"]
    assert call["list_cost_usd"] == "0.020430750001"
    assert call["started_at"] == "2026-11-20T11:30:00Z"
    assert call["labels"] == {"ticket": "A-1"}


def test_a_cursor_belongs_to_its_filters(server: Running) -> None:
    cursor = server.get("/api/v1/calls?limit=1&agent=codex").json()["next_cursor"]
    problem(server.get(f"/api/v1/calls?limit=1&cursor={cursor}"), "invalid_cursor")
    problem(server.get("/api/v1/calls?cursor=nonsense"), "invalid_cursor")
    problem(server.get("/api/v1/calls?cursor=WzEsMiwzXQ"), "invalid_cursor")


def test_one_call_is_explained(server: Running) -> None:
    reply = server.get(f"/api/v1/calls/{FIRST}").json()
    assert reply["call"]["call_id"] == FIRST
    assert reply["superseded_by"] is None
    assert reply["price"] == {"lines": ["1000 x 3.00"]}
    assert server.house.explained[-1] == (FIRST, datetime(2026, 11, 20, 10, 30, tzinfo=UTC))


def test_an_id_that_was_merged_away_leads_to_the_call_it_is_part_of(server: Running) -> None:
    merged = f"c{50:032x}"
    reply = server.get(f"/api/v1/calls/{merged}").json()
    assert (reply["call_id"], reply["superseded_by"], reply["call"]["call_id"]) == (merged, FIRST, FIRST)
    problem(server.get("/api/v1/calls/c404"), "not_found")


# --- SQL


def test_sql_answers_with_columns_and_rows(server: Running) -> None:
    body = {
        "query": "SELECT agent, sum(list_cost_usd) FROM calls WHERE agent = ? GROUP BY 1",
        "params": ["codex"],
    }
    reply = server.ask("POST", "/api/v1/sql", body)
    assert reply.json() == {
        "columns": ["agent", "sum(list_cost_usd)"],
        "rows": [["codex", "0.010000000000"]],
        "truncated": False,
    }


def test_sql_in_other_formats_says_in_a_header_what_was_left_out(server: Running) -> None:
    body = {"query": "SELECT * FROM range(1000)"}
    reply = server.ask("POST", "/api/v1/sql", body, headers={"accept": "text/csv"})
    assert reply.headers["tollbook-truncated"] == "true"
    assert len(reply.body.splitlines()) == 1 + 50
    problem(server.ask("POST", "/api/v1/sql", body, headers={"accept": "image/png"}), "not_acceptable")


def test_sql_faults_are_problems(server: Running) -> None:
    wrong = problem(server.ask("POST", "/api/v1/sql", {"query": "SELECT modle FROM calls"}), "sql_error")
    assert "model" in str(wrong["detail"])  # DuckDB's suggestion reaches the caller
    problem(server.ask("POST", "/api/v1/sql", {"query": "DROP TABLE calls"}), "sql_refused")
    endless = "SELECT count(*) FROM range(1000000000000000) t(i) WHERE i % 3 = 5"
    problem(server.ask("POST", "/api/v1/sql", {"query": endless}), "query_timeout")
    assert server.ask("POST", "/api/v1/sql", {"query": "SELECT 1"}).status == 200
    problem(server.ask("POST", "/api/v1/sql", {"sql": "SELECT 'sk-ant-secret'"}), "invalid_request")
    refused = server.ask("POST", "/api/v1/sql", b"{nonsense sk-ant-secret")
    assert b"secret" not in refused.body
    problem(refused, "invalid_request")


# --- budgets


def test_a_budgets_life(server: Running) -> None:
    definition = {"id": "core-month", "scope": {"team": "core"}, "limit": "1.00", "period": "month"}
    created = server.ask("POST", "/api/v1/budgets", definition)
    assert created.status == 201
    assert created.json()["limit"] in ("1.00", "1")
    assert set(created.json()) >= {
        "id",
        "scope",
        "meter",
        "spent",
        "remaining",
        "resets_at",
        "unpriced_calls",
    }
    assert server.ask("POST", "/api/v1/budgets", definition).status == 201  # the same again is no change
    problem(server.ask("POST", "/api/v1/budgets", {**definition, "limit": "2.00"}), "conflict")
    replaced = server.ask("PUT", "/api/v1/budgets/core-month", {**definition, "limit": "2.00"})
    assert Decimal(replaced.json()["limit"]) == 2
    assert server.get("/api/v1/budgets/core-month").json()["id"] == "core-month"
    assert [budget["id"] for budget in server.get("/api/v1/budgets").json()["budgets"]] == ["core-month"]
    assert server.ask("DELETE", "/api/v1/budgets/core-month").status == 204
    problem(server.get("/api/v1/budgets/core-month"), "not_found")
    problem(server.ask("DELETE", "/api/v1/budgets/core-month"), "not_found")


def test_a_wrong_budget_is_told_without_its_values(server: Running) -> None:
    wrong = {"limit": 1.5, "period": "fortnight", "scope": {"taem": "sk-ant-secret"}}
    body = problem(server.ask("POST", "/api/v1/budgets", wrong), "invalid_budget")
    assert "secret" not in str(body)
    assert len(body["errors"]) >= 2  # type: ignore[arg-type]


def test_checks_are_answered_by_the_fast_path(server: Running) -> None:
    reply = server.ask("POST", "/api/v1/budgets/check", {"scope": {"team": "x"}, "estimate": {"usd": "0.01"}})
    assert (reply.status, reply.json()["decision"]) == (200, "allow")
    assert reply.headers["x-content-type-options"] == "nosniff"
    problem(server.ask("POST", "/api/v1/budgets/check", {"estimate": {"usd": 0.01}}), "invalid_budget")
    broken = server.ask("POST", "/api/v1/budgets/check", {"model": "fault"})
    assert "secret" not in str(problem(broken, "internal"))
    problem(server.ask("POST", "/api/v1/budgets/check", b"{" + b" " * 70_000 + b"}"), "too_large")


# --- operations


def test_health_and_readiness(server: Running) -> None:
    assert server.get("/healthz").json() == {
        "status": "ok",
        "acknowledged": server.house.acknowledged,
        "committed": 4096,
        "published": 4000,
    }
    assert server.get("/readyz").json() == {"ready": True, "reasons": [], **server.house.places}
    server.house.reasons = ["the ledger is starting"]
    try:
        assert problem(server.get("/readyz"), "not_ready")["reasons"] == ["the ledger is starting"]
        assert server.get("/healthz").json()["status"] == "degraded"
    finally:
        server.house.reasons = []


def test_metrics_are_prometheus_text(server: Running) -> None:
    reply = server.get("/metrics")
    text = reply.body.decode()
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'tollbook_requests_total{signal="logs",transport="http"} 3\n' in text
    assert text.count("# TYPE tollbook_requests_total counter") == 1
    assert "tollbook_ready 1\n" in text
    assert b'tollbook_x_total{a="q\\\\"} 1' in render({"x_total{a=q\\}": 1})


def test_every_metric_is_described() -> None:
    assert all(kind in ("counter", "gauge") and meaning for kind, meaning in METRICS.values())


def test_openapi_names_every_path_of_the_contract(server: Running) -> None:
    document = server.get("/openapi.json").json()
    assert set(document["paths"]) >= {
        "/api/v1/reservations/{reservation_id}",
        "/api/v1/reservations/{reservation_id}/settle",
        "/api/v1/reservations/{reservation_id}/release",
        "/api/v1/usage",
        "/api/v1/calls",
        "/api/v1/calls/{call_id}",
        "/api/v1/sql",
        "/api/v1/budgets",
        "/api/v1/budgets/{budget_id}",
        "/api/v1/budgets/check",
        "/healthz",
        "/readyz",
        "/metrics",
    }
    schemas = document["components"]["schemas"]
    assert {"Budget", "CheckRequest", "CheckReply", "UsageReply", "SqlRequest", "ProblemReply"} <= set(
        schemas
    )
    for reference in _references(document):
        assert reference.removeprefix("#/components/schemas/") in schemas, reference
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert all(operation.get("description") for operation in operations)


def _references(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def test_unknown_paths_methods_and_faults_are_problems_too(server: Running) -> None:
    problem(server.get("/api/v2/usage"), "not_found")
    problem(server.ask("DELETE", "/api/v1/usage"), "method_not_allowed")
    for code, kind in KINDS.items():
        assert 400 <= kind.status < 600, code
        assert kind.title and kind.next


# --- the guard


@pytest.mark.parametrize(
    "host", ["127.0.0.1:80", "localhost", "LOCALHOST:4318", "[::1]:4318", "agent-host:1"]
)
def test_our_own_names_are_served(server: Running, host: str) -> None:
    assert server.get("/healthz", host=host).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:4318", "10.0.0.1"]
)
def test_a_rebound_name_is_refused(server: Running, host: str) -> None:
    problem(server.get("/healthz", host=host), "foreign_host")


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://localhost:3000", "https://127.0.0.1"]
)
def test_foreign_origins_are_refused_everywhere(server: Running, origin: str) -> None:
    problem(server.get("/healthz", origin=origin), "foreign_origin")
    reply = server.ask("POST", "/api/v1/budgets/check", {}, headers={"origin": origin})
    problem(reply, "foreign_origin")


def test_our_own_origin_is_served(server: Running) -> None:
    assert server.get("/healthz", origin=server.url).status == 200


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_json_must_be_called_json(server: Running, kind: str) -> None:
    for path in ("/api/v1/sql", "/api/v1/budgets", "/api/v1/budgets/check"):
        reply = server.ask("POST", path, b'{"query": "SELECT 1"}', headers={"content-type": kind})
        problem(reply, "unsupported_media_type")
    reply = server.ask(
        "POST",
        "/api/v1/sql",
        b'{"query": "SELECT 1"}',
        headers={"content-type": "application/json; charset=utf-8"},
    )
    assert reply.status == 200


def test_answers_carry_the_security_headers(server: Running) -> None:
    for reply in (
        server.get("/healthz"),
        server.get("/nowhere"),
        server.get("/healthz", host="evil.example"),
    ):
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in reply.headers["content-security-policy"]
