"""The `tollbook` command. Thin: every command parses, calls one function elsewhere, and prints.

Nothing heavy is imported until a command needs it, so `tollbook --help` is quick; a test holds that.
Exit codes: 0 fine, 1 failed, 2 wrong usage, 3 denied by a budget.
"""

# ruff: noqa: PLC0415  # heavy imports wait until a command needs them

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tollbook.cli_budget import budget_app
from tollbook.cli_catalog import catalog_app, price_app
from tollbook.cli_common import Csv, Json, Url, print_bytes, print_json, server, split_names
from tollbook.cli_jobs import reprice, reprocess
from tollbook.cli_keys import keys_app
from tollbook.cli_plans import plans
from tollbook.cli_route import route_app
from tollbook.errors import TollbookError

app = typer.Typer(
    help="The toll book for LLM agents: who served each call, what covered it, what it cost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(budget_app)
app.add_typer(price_app)
app.add_typer(catalog_app)
app.add_typer(keys_app)
app.add_typer(route_app)

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Folder of the journal, ledger and usage.duckdb.")
]
Config = Annotated[Path | None, typer.Option("--config", help="Settings file, instead of tollbook.toml.")]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; what a user can act on is a line on stderr and exit code 1."""
    try:
        app(arguments)
    except TollbookError as error:
        sys.stderr.write("".join(f"tollbook: {line}\n" for line in str(error).splitlines()))
        sys.exit(1)


@app.command()
def serve(
    config: Config = None,
    data_dir: DataDir = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; loopback only.")] = None,
    http_port: Annotated[int | None, typer.Option(help="OTLP/HTTP and API port; 0: any free one.")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="OTLP/gRPC port; 0: any free one.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
) -> None:
    """Receive telemetry, keep the book, answer. Prints one JSON line saying where it listens."""
    from tollbook.settings_load import load

    flags = {
        "data_dir": data_dir,
        "host": host,
        "http_port": http_port,
        "grpc_port": grpc_port,
        "log_level": log_level,
    }
    loaded = load({f"server.{name}": value for name, value in flags.items()}, config=config)

    from tollbook.serve import run

    run(loaded.settings)


@app.command()
def demo(
    once: Annotated[bool, typer.Option("--once", help="End after the bill instead of staying up.")] = False,
) -> None:
    """Start a tollbook of its own, replay recorded agents, print the bill."""
    from tollbook.demo import run_demo

    raise typer.Exit(run_demo(once=once))


@app.command()
def connect(
    agent: Annotated[str, typer.Argument(help="claude-code, codex, gemini-cli or sdk.")],
    url: Url = None,
    team: Annotated[str | None, typer.Option(help="Team that the calls are booked on.")] = None,
    project: Annotated[str | None, typer.Option(help="Project that the calls are booked on.")] = None,
) -> None:
    """Print the exact lines that point an agent here."""
    from tollbook.client import Client, ClientError
    from tollbook.connect import AGENTS, lines_for

    if agent not in AGENTS:
        raise typer.BadParameter(f"must be one of {', '.join(AGENTS)}")
    client = Client(url, timeout_s=2)
    try:
        grpc_target = client.get("/readyz").get("grpc")
    except ClientError as error:
        grpc_target = None
        typer.echo(f"tollbook: {str(error).splitlines()[0]}", err=True)
    typer.echo(lines_for(agent, http=client.url, grpc_target=grpc_target, team=team, project=project))


@app.command()
def report(
    by: Annotated[str, typer.Option(help="Dimensions with commas between.")] = "agent,model,access",
    since: Annotated[str | None, typer.Option("--from", help="First moment: RFC 3339 or a date.")] = None,
    until: Annotated[str | None, typer.Option("--to", help="Moment after the last.")] = None,
    url: Url = None,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Print the bill: billed, covered by subscriptions, assumed, unpriced."""
    from tollbook.report import print_report, usage_params

    client = server(url)
    params = usage_params(split_names(by), since, until)
    if as_json or as_csv:
        print_bytes(client.fetch("/api/v1/usage", params, accept=_media_type(as_csv=as_csv)))
        return
    print_report(client, by=split_names(by), since=since, until=until)


app.command()(plans)


@app.command()
def sql(
    query: Annotated[str, typer.Argument(help="One reading statement; - reads it from stdin.")],
    url: Url = None,
    data_dir: DataDir = None,
    config: Config = None,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Ask the published tables. Through the server; with --data-dir, or while none runs, from the file."""
    from tollbook.query import ask

    statement = sys.stdin.read() if query == "-" else query
    body = ask(statement, form="csv" if as_csv else "json", url=url, data_dir=data_dir, config=config)
    if as_json or as_csv:
        print_bytes(body)
        return
    import json

    from tollbook.report import print_table

    print_table(json.loads(body))


@app.command()
def replay(
    paths: Annotated[list[Path], typer.Argument(help="Folders of captures, one capture, or its .bin files.")],
    url: Url = None,
    grpc: Annotated[str | None, typer.Option(help="HOST:PORT for what was sent over gRPC.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Return when all of it is published.")] = False,
    as_json: Json = False,
) -> None:
    """Send recorded telemetry again, as it was sent."""
    import os

    from tollbook.replay import replay as send

    client = server(url)
    target = grpc or os.environ.get("TOLLBOOK_GRPC") or client.get("/readyz").get("grpc")
    done = send(paths, http=client.url, grpc_target=target, quiet=as_json)
    if wait:
        client.wait_published(done.offset)
    if as_json:
        print_json({"requests": done.requests, "bytes": done.sent_bytes, "offset": done.offset})
        return
    typer.echo(
        f"{done.requests} requests, {done.sent_bytes:,} bytes, acknowledged up to offset {done.offset}"
    )


@app.command("wait")
def wait_for(
    offset: Annotated[
        int | None, typer.Option(help="Journal offset; default: all acknowledged by now.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait at most.")] = 60.0,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Return when telemetry is published, so that queries see it."""
    published = server(url).wait_published(offset, timeout_s=timeout)
    if as_json:
        print_json({"published": published})
        return
    typer.echo(f"published up to offset {published}")


@app.command()
def doctor(url: Url = None, data_dir: DataDir = None, config: Config = None, as_json: Json = False) -> None:
    """Look at everything that commonly goes wrong, and say what to do."""
    from tollbook.doctor import examine, settings_fault
    from tollbook.settings_load import load

    loaded, fault = settings_fault(lambda: load({"server.data_dir": data_dir}, config=config))
    folder = loaded.settings.server.data_dir if loaded else None
    findings = examine(server(url), data_dir=folder, settings_fault=fault)
    if as_json:
        print_json(
            {"findings": [{"level": each.level, "what": each.what, "next": each.next} for each in findings]}
        )
    else:
        _print_findings(findings)
    raise typer.Exit(1 if any(each.level == "failure" for each in findings) else 0)


app.command()(reprice)
app.command()(reprocess)


@app.command("config")
def show_config(config: Config = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Print every setting, its value and where it came from."""
    from tollbook.settings import fields, value_of
    from tollbook.settings_load import load
    from tollbook.settings_page import shown

    loaded = load({"server.data_dir": data_dir}, config=config)
    rows = [
        {
            "setting": key,
            "value": shown(value_of(loaded.settings, key)),
            "from": loaded.origins[key],
            "meaning": field.description or "",
        }
        for key, field in fields().items()
    ]
    if as_json:
        print_json({"settings": rows})
        return
    from tollbook.report import print_table

    columns = ["setting", "value", "from"]
    told = [[row[name] for name in columns] for row in rows]
    print_table({"columns": columns, "rows": told, "truncated": False})


def _media_type(*, as_csv: bool) -> str:
    return "text/csv" if as_csv else "application/json"


def _print_findings(findings: list[Any]) -> None:
    from rich.console import Console
    from rich.text import Text

    marks = {"ok": ("ok", "green"), "warning": ("look", "yellow"), "failure": ("broken", "bold red")}
    console = Console()
    for finding in findings:
        mark, style = marks[finding.level]
        console.print(Text(f"{mark:>6}  ", style).append(finding.what, "default"), soft_wrap=True)
        if finding.next:
            console.print(Text(f"        {finding.next}", "dim"), soft_wrap=True)


if __name__ == "__main__":
    main()
