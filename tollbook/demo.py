"""`tollbook demo`: the first minute. Starts a tollbook of its own, sends recorded telemetry of real agents to
it as they sent it, and prints the bill that comes out.

Everything in it is what a user would do by hand: `serve`, `replay`, `report`, `sql`, `budget check`.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.panel import Panel
from rich.syntax import Syntax

from tollbook.client import Client
from tollbook.connect import lines_for
from tollbook.replay import replay
from tollbook.report import print_report, print_table, terminal

CAPTURES = Path("fixtures") / "captures"
DATA_DIR = Path("demo-data")
QUERY = """\
SELECT agent, model, count(*) AS calls, sum(input_tokens) AS input, sum(cache_read_tokens) AS cached,
       sum(output_tokens) AS output, sum(list_cost_usd) AS list_usd
FROM calls WHERE usage_known GROUP BY ALL ORDER BY list_usd DESC LIMIT 5"""
BUDGET = {
    "id": "demo-day",
    "scope": {},
    "meter": "list_usd",
    "limit": "1.00",
    "period": "total",
    "thresholds": [{"at": "0.8", "action": "warn"}, {"at": "1.0", "action": "deny"}],
}
CHECKS = ({"usd": "0.01"}, {"input_tokens": 400_000, "output_tokens": 20_000})
CHECKED_MODEL = "claude-sonnet-4-5"


def run_demo(*, once: bool, captures: Path = CAPTURES, data_dir: Path = DATA_DIR) -> int:
    """Run the demo; with `once` end after the bill, else stay up until interrupted. The exit code."""
    console = terminal()
    shutil.rmtree(data_dir, ignore_errors=True)
    with _house(data_dir) as (process, places):
        client = Client(places["http"])
        client.wait_ready()
        console.print(
            f"tollbook listens on [b]{places['http']}[/b] (HTTP) and [b]{places['grpc']}[/b] (gRPC)\n"
        )
        replay([captures], http=places["http"], grpc_target=places["grpc"])
        client.wait_published()
        _show_bill(console, client)
        _show_query(console, client)
        _show_budget(console, client)
        if not once:
            _stay(console, process, places)
    return 0


@contextlib.contextmanager
def _house(data_dir: Path) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, str]]]:
    """A tollbook on free ports, ended with the block."""
    command = [sys.executable, "-m", "tollbook.cli", "serve", "--data-dir", str(data_dir)]
    command += ["--http-port", "0", "--grpc-port", "0", "--log-level", "warning"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:  # noqa: S603 - our own command
        try:
            assert process.stdout is not None
            yield process, orjson.loads(process.stdout.readline())
        finally:
            process.terminate()


def _show_bill(console: Console, client: Client) -> None:
    console.rule("the bill, by agent, model and access", align="left")
    print_report(client, by=["agent", "model", "access"], console=console)


def _show_query(console: Console, client: Client) -> None:
    console.rule("the same in SQL", align="left")
    console.print(Syntax(QUERY, "sql", background_color="default", word_wrap=True))
    print_table(client.post("/api/v1/sql", {"query": QUERY}), console=console)


def _show_budget(console: Console, client: Client) -> None:
    console.rule("may I spend this?", align="left")
    client.post("/api/v1/budgets", BUDGET)
    for estimate in CHECKS:
        reply = client.post(
            "/api/v1/budgets/check", {"scope": {}, "model": CHECKED_MODEL, "estimate": estimate}
        )
        console.print(_verdict(estimate, reply))


def _verdict(estimate: dict[str, Any], reply: dict[str, Any]) -> Panel:
    asked = ", ".join(f"{name} {value}" for name, value in estimate.items())
    colour = {"allow": "green", "warn": "yellow", "deny": "red"}[reply["decision"]]
    return Panel(
        f"{reply['reason']}", title=f"{asked}: [b]{reply['decision']}[/b]", title_align="left", style=colour
    )


def _stay(console: Console, process: subprocess.Popen[bytes], places: dict[str, str]) -> None:
    console.rule("point a real agent at it (Ctrl-C ends the demo)", align="left")
    console.print(lines_for("claude-code", http=places["http"], grpc_target=places["grpc"]))
    with contextlib.suppress(KeyboardInterrupt):
        process.wait()
