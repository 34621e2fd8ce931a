"""`tollbook reprice` and `tollbook reprocess`: history charged or read again, with progress and a table."""

# ruff: noqa: PLC0415  # heavy imports wait until a command needs them

from __future__ import annotations

from typing import Annotated, Any

import typer

from tollbook.cli_common import Json, Url, print_json, server

Until = Annotated[
    str | None, typer.Option("--to", help="Moment after the last start of a call; default: now.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would change; write nothing.")]


def reprice(
    since: Annotated[str, typer.Option("--from", help="First start of a call: RFC 3339 or a date.")],
    until: Until = None,
    dry_run: DryRun = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Charge calls again by the prices, accounts and models of today; show what changes and why."""
    _run("reprice", since=since, until=until, dry_run=dry_run, url=url, as_json=as_json)


def reprocess(
    since: Annotated[
        str | None, typer.Option("--from", help="First start of a record: RFC 3339 or a date; default: all.")
    ] = None,
    until: Until = None,
    dry_run: DryRun = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Read stored records again by the dialects of today, and count and charge what changes by that."""
    _run("reprocess", since=since, until=until, dry_run=dry_run, url=url, as_json=as_json)


def _run(kind: str, *, as_json: bool, url: str | None, **asked: Any) -> None:
    from tollbook.job_report import follow, print_job, request

    client = server(url)
    job = client.post("/api/v1/jobs", request(kind, **asked))
    done = follow(client, job, quiet=as_json)
    if as_json:
        print_json(done)
    else:
        print_job(done)
    raise typer.Exit(0 if done["status"] == "done" else 1)
