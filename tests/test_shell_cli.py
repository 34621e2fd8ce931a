"""The command line as people call it: subprocesses against a real server, exit codes, JSON for machines."""

from __future__ import annotations

import asyncio
import csv
import gzip
import io
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span
from rich.console import Console

from ingest.journal import Kind
from tests.ingest_server import receivers
from tests.shell_house import publish
from tests.shell_server import Running, running
from tollbook.connect import AGENTS, lines_for
from tollbook.replay import ReplayError, find_requests, replay
from tollbook.report import dollars, plain, report_table

HEAVY = [
    *("fastapi", "starlette", "uvicorn", "duckdb", "polars", "grpc", "pydantic", "numpy", "pyarrow"),
    *("google.protobuf", "genai_prices", "asyncio"),
]
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("data")) as server:
        yield server


def tollbook(
    *arguments: str, url: str | None = None, home: Path | None = None, code: int = 0, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the command in a place without settings or agents of its own; assert its exit code."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("TOLLBOOK", "OTEL"))
    }
    environment |= {"COLUMNS": "200", "PATH": str(Path(sys.executable).parent)}
    if home is not None:
        environment |= {"HOME": str(home), "XDG_DATA_HOME": str(home / "share")}
    if url is not None:
        environment["TOLLBOOK_URL"] = url
    done = subprocess.run(
        [sys.executable, "-m", "tollbook.cli", *arguments],
        input=stdin,
        capture_output=True,
        check=False,
        text=True,
        env=environment,
        cwd=home,
        timeout=60,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


# --- quick and honest to start with


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from tollbook.cli import app\n"
        "shown = CliRunner().invoke(app, ['--help']).output\n"
        "assert 'serve' in shown and 'budget' in shown\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "[]"


def test_wrong_usage_is_exit_code_2(tmp_path: Path) -> None:
    tollbook("reprot", code=2)
    tollbook("report", "--colour", code=2)
    tollbook("connect", "emacs", code=2)
    tollbook("budget", "set", code=2)


def test_without_a_server_a_command_says_how_to_start_one(tmp_path: Path) -> None:
    done = tollbook("report", url=NOWHERE, home=tmp_path, code=1)
    assert done.stderr.startswith(
        f"tollbook: no tollbook answers at {NOWHERE}; start one with `tollbook serve`"
    )
    assert "Traceback" not in done.stderr


def test_wrong_settings_are_told_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "empty.toml").write_text("")
    (tmp_path / "tollbook.toml").write_text('[server]\nhtpt_port = "sk-ant-secret"\n')
    done = tollbook("serve", home=tmp_path, code=1)
    assert done.stderr.startswith(
        "tollbook: tollbook.toml, line 2: server.htpt_port is not a setting; did you mean"
    )
    assert "secret" not in done.stderr
    refused = tollbook("serve", "--config", "empty.toml", "--host", "0.0.0.0", home=tmp_path, code=1)
    assert "--host: server.host must be a loopback address" in refused.stderr


# --- report and sql


def test_the_report_is_a_table_with_a_total(server: Running) -> None:
    shown = tollbook("report", url=server.url).stdout
    assert "by plan $" in shown
    assert "assumed $" in shown
    assert "estimated $" not in shown  # nothing is
    total = next(line for line in shown.splitlines() if "total" in line)
    assert total.split() == ["total", "6", "5,010", "500", "0.0304", "0.0100", "0.0100", "1", "1"]
    assert "unpriced: price unknown, in no amount" in shown


def test_the_report_fits_a_narrow_terminal() -> None:
    long = {
        "agent": "a-rather-long-agent-name",
        "model": "anthropic/claude-sonnet-4-5",
        "access": "subscription",
    }
    figures = {"calls": 123_456, "errors": 0, "input_tokens": 38_512, "output_tokens": 2_620_000}
    money = {"billed_usd": "1234.5678", "assumed_usd": "0.01", "covered_usd": "200.5", "estimated_usd": "0"}
    group = {**long, **figures, **money, "unpriced_calls": 3, "usage_unknown_calls": 0}
    reply = {"group_by": list(long), "groups": [group], "totals": group, "truncated": False}
    written = io.StringIO()
    Console(file=written, width=80).print(report_table(reply, width=80))
    shown = written.getvalue()
    for text in ("123k", "38.5k", "2.6M", "1,234.5678", "200.5000", "billed $", "unpriced"):
        assert text in shown, shown
    folded = "".join(line.split("  ")[0].strip() for line in shown.splitlines()[2:])
    assert "".join(long.values()) in folded.replace(" ", "").replace("·", "")


def test_the_report_for_machines_is_exact(server: Running) -> None:
    reply = json.loads(tollbook("report", "--by", "access", "--json", url=server.url).stdout)
    assert reply["totals"]["list_usd"] == "0.050430750001"
    text = tollbook("report", "--by", "access", "--from", "2026-11-21", "--csv", url=server.url).stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(row["access"], row["calls"]) for row in rows] == [("payg", "1")]
    wrong = tollbook("report", "--by", "acess", url=server.url, code=1)
    assert "group_by" in wrong.stderr


def test_amounts_are_rounded_half_even_and_never_to_a_false_zero() -> None:
    assert [dollars(text) for text in ("0.00005", "0.00015", "1234.5", "0", "0.00001", "-0.5")] == [
        *("<0.0001", "0.0002", "1,234.5000", "0.0000", "<0.0001", "-0.5000")
    ]
    assert dollars(None) == "–"


def test_telemetry_cannot_write_to_the_terminal() -> None:
    assert "\x1b" not in plain("\x1b[2Jgone [bold]").plain
    assert "[bold]" in plain("[bold]").plain


def test_sql_through_the_server(server: Running) -> None:
    query = "SELECT agent, sum(list_cost_usd) AS usd FROM calls GROUP BY 1 ORDER BY 1"
    shown = tollbook("sql", query, url=server.url).stdout
    assert "0.040430750001" in shown
    assert "0.01\n" in shown.replace(" ", "")
    reply = json.loads(tollbook("sql", "-", "--json", url=server.url, stdin=query).stdout)
    assert reply["rows"] == [["claude-code", "0.040430750001"], ["codex", "0.010000000000"]]
    assert tollbook("sql", "SELECT 1 AS a, NULL AS b", "--csv", url=server.url).stdout == "a,b\n1,\n"
    failed = tollbook("sql", "DROP TABLE calls", url=server.url, code=1)
    assert "only reading statements are" in failed.stderr


def test_sql_on_the_file_without_a_server(tmp_path: Path) -> None:
    (tmp_path / "share" / "tollbook").mkdir(parents=True)
    publish(tmp_path / "share" / "tollbook" / "usage.duckdb")
    named = tollbook(
        "sql", "SELECT count(*) FROM calls", "--data-dir", "share/tollbook", "--json", home=tmp_path
    )
    assert json.loads(named.stdout)["rows"] == [[6]]
    refused = tollbook("sql", "COPY calls TO 'x.csv'", "--data-dir", "share/tollbook", home=tmp_path, code=1)
    assert "not allowed" in refused.stderr
    tollbook("sql", "SELECT 1", "--url", NOWHERE, home=tmp_path, code=1)


# --- budgets


def test_budgets_are_set_listed_checked_and_removed(server: Running) -> None:
    options = ("--id", "x", "--limit", "0.10", "--team", "core", "--label", "ticket=A-1", "--warn-at", "0.5")
    made = json.loads(tollbook("budget", "set", *options, "--json", url=server.url).stdout)
    assert made["scope"] == {"team": "core", "labels": {"ticket": "A-1"}}
    assert [each["action"] for each in made["thresholds"]] == ["warn", "deny"]
    assert "team=core" in tollbook("budget", "ls", url=server.url).stdout
    assert json.loads(tollbook("budget", "ls", "--json", url=server.url).stdout)["budgets"][0]["id"] == "x"
    tollbook("budget", "check", "--team", "other", "--usd", "5", url=server.url)
    scope = ("--team", "core", "--label", "ticket=A-1")
    denied = tollbook("budget", "check", *scope, "--usd", "5", "--json", url=server.url, code=3)
    assert json.loads(denied.stdout)["decision"] == "deny"
    told = json.loads(tollbook("budget", "explain", "--team", "other", "--json", url=server.url).stdout)
    assert [(each["id"], each["matches"], each["why"]) for each in told["budgets"]] == [
        ("x", "no", "is for team core")
    ]
    assert "names team" in tollbook("budget", "explain", url=server.url).stdout
    assert "covers team=core" in tollbook("budget", "explain", *scope, url=server.url).stdout
    tollbook("budget", "rm", "x", url=server.url)
    assert "there is no budget" in tollbook("budget", "rm", "x", url=server.url, code=1).stderr
    tollbook("budget", "set", "--limit", "1", "--label", "nonsense", url=server.url, code=2)


# --- connect, wait, doctor, config


@pytest.mark.parametrize("agent", list(AGENTS))
def test_connect_prints_this_servers_address(server: Running, agent: str) -> None:
    shown = tollbook("connect", agent, "--team", "core team", url=server.url).stdout
    assert server.url in shown
    assert "OTEL_RESOURCE_ATTRIBUTES=tollbook.team=core%20team" in shown


def test_what_connect_prints_is_what_the_agents_read() -> None:
    codex = tomllib.loads(lines_for("codex", http="http://127.0.0.1:4318/"))
    assert codex["otel"]["exporter"]["otlp-http"]["endpoint"] == "http://127.0.0.1:4318/v1/logs"
    gemini = lines_for("gemini-cli", http="http://127.0.0.1:4318").partition("\n")[2]
    assert json.loads(gemini)["telemetry"]["otlpProtocol"] == "http"
    for agent in ("claude-code", "sdk"):
        told = lines_for(agent, http="http://127.0.0.1:4318", grpc_target="127.0.0.1:4317")
        script = f"{told}\necho $OTEL_EXPORTER_OTLP_ENDPOINT $OTEL_EXPORTER_OTLP_PROTOCOL"
        assert (
            subprocess.check_output(["sh", "-c", script], text=True)
            == "http://127.0.0.1:4318 http/protobuf\n"
        )


def test_wait_returns_when_it_is_published_or_says_it_is_not(server: Running) -> None:
    assert json.loads(tollbook("wait", "--offset", "4000", "--json", url=server.url).stdout) == {
        "published": 4000
    }
    late = tollbook("wait", "--offset", "4097", "--timeout", "0.2", url=server.url, code=1)
    assert "97 bytes are not published after 0.2 s" in late.stderr


def test_doctor_finds_what_needs_attention(server: Running, tmp_path: Path) -> None:
    found = json.loads(tollbook("doctor", "--json", url=server.url, home=tmp_path).stdout)["findings"]
    assert {finding["level"] for finding in found} == {"ok", "warning"}
    warnings = {finding["what"] for finding in found if finding["level"] == "warning"}
    assert "1 calls of an unnamed source have no price" in warnings
    assert "1 calls of codex are of unknown access and assumed to be paid per use" in warnings
    assert all(finding["next"] for finding in found if finding["level"] != "ok")
    server.house.reasons = ["the ledger is starting"]
    try:
        shown = tollbook("doctor", url=server.url, home=tmp_path, code=1).stdout
    finally:
        server.house.reasons = []
    assert "broken  it is not ready" in shown


def test_doctor_sees_where_an_agent_sends_its_telemetry(server: Running, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("claude", "codex", "gemini"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    (tmp_path / ".codex").mkdir()
    (tmp_path / ".codex" / "config.toml").write_text(lines_for("codex", http=server.url))
    (tmp_path / ".gemini").mkdir()
    elsewhere = {"telemetry": {"otlpEndpoint": "http://127.0.0.1:1"}}
    (tmp_path / ".gemini" / "settings.json").write_text(json.dumps(elsewhere))
    script = "import os, sys; os.environ['PATH'] = sys.argv.pop(1); from tollbook.cli import main; main()"
    command = [sys.executable, "-c", script, str(programs), "doctor", "--json", "--url", server.url]
    home = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}
    told = json.loads(subprocess.check_output(command, env=home, cwd=tmp_path))["findings"]
    said = [finding["what"] for finding in told if "sends its telemetry" in finding["what"]]
    assert said == [
        "claude-code sends its telemetry nowhere",
        "codex sends its telemetry here",
        "gemini-cli sends its telemetry elsewhere",
    ]


def test_doctor_without_a_server_is_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "tollbook.toml").write_text("[server]\nhttp_port = true\n")
    shown = tollbook("doctor", url=NOWHERE, home=tmp_path, code=1).stdout
    assert "the settings cannot be used" in shown
    assert f"nothing answers at {NOWHERE}" in shown


def test_config_shows_values_and_where_they_came_from(tmp_path: Path) -> None:
    (tmp_path / "tollbook.toml").write_text("[sql]\nmax_rows = 7\n")
    told = json.loads(tollbook("config", "--json", home=tmp_path).stdout)["settings"]
    by_name = {row["setting"]: row for row in told}
    assert by_name["sql.max_rows"]["value"] == "7"
    assert by_name["sql.max_rows"]["from"] == "tollbook.toml, line 2"
    assert all(row["meaning"] for row in told)
    assert "tollbook.toml, line 2" in tollbook("config", home=tmp_path).stdout


# --- replay


def record(folder: Path) -> None:
    """Two captures: one sent gzipped over HTTP, one over gRPC, as recordings describe them."""
    logs = ExportLogsServiceRequest(
        resource_logs=[ResourceLogs(scope_logs=[ScopeLogs(log_records=[LogRecord(event_name="a")])])]
    )
    traces = ExportTraceServiceRequest(
        resource_spans=[ResourceSpans(scope_spans=[ScopeSpans(spans=[Span(name="b", span_id=b"12345678")])])]
    )
    text = {"resourceLogs": [{"scopeLogs": [{"logRecords": [{"body": None}]}]}]}
    http = {
        "signal": "logs",
        "transport": "http",
        "content_type": "application/x-protobuf",
        "path": "/v1/logs",
    }
    described = {
        "one": {"requests": [{"file": "001.bin", **http, "content_encoding": "gzip"}]},
        "two": {
            "requests": [
                {
                    "file": "001.bin",
                    "signal": "traces",
                    "transport": "grpc",
                    "content_type": None,
                    "path": None,
                },
                {"file": "002.bin", **http, "content_type": "application/json"},
            ]
        },
    }
    (folder / "expected.json").write_text(json.dumps(described))
    bodies = {
        "one/001.bin": gzip.compress(logs.SerializeToString()),
        "two/001.bin": traces.SerializeToString(),
        "two/002.bin": json.dumps(text).encode(),
    }
    for name, body in bodies.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(body)


async def test_replay_sends_each_request_as_it_was_sent(tmp_path: Path) -> None:
    (tmp_path / "captures").mkdir()
    record(tmp_path / "captures")
    async with receivers(tmp_path) as receiving:
        done = await asyncio.to_thread(
            replay, [tmp_path / "captures"], http=receiving.http, grpc_target=receiving.grpc, quiet=True
        )
        kinds = [frame.kind for frame in receiving.frames()]
        assert kinds == [Kind.LOGS_PROTO, Kind.TRACES_PROTO, Kind.LOGS_JSON]
        assert done.requests == 3
        assert done.offset == receiving.intake.journal.durable
        only = find_requests(tmp_path / "captures" / "two" / "002.bin")
        assert [(request.file.name, request.content_type) for request in only] == [
            ("002.bin", "application/json")
        ]
        with pytest.raises(ReplayError, match="--grpc"):
            await asyncio.to_thread(replay, [tmp_path / "captures" / "two"], http=receiving.http, quiet=True)


async def test_replay_names_the_request_that_was_not_accepted(tmp_path: Path) -> None:
    (tmp_path / "captures").mkdir()
    record(tmp_path / "captures")
    (tmp_path / "captures" / "one" / "001.bin").write_bytes(b"not gzip")
    async with receivers(tmp_path) as receiving:
        with pytest.raises(ReplayError, match=r"one/001\.bin: the server answered 400"):
            await asyncio.to_thread(replay, [tmp_path / "captures" / "one"], http=receiving.http, quiet=True)
    with pytest.raises(ReplayError, match="nothing is recorded"):
        replay([tmp_path / "journal"], http=NOWHERE)
