"""How a job over history is watched on the command line, and what it has changed as a table."""

from __future__ import annotations

import sys
import time
from decimal import Decimal
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from tollbook.client import Client, Late, Refused, Unreachable
from tollbook.report import UNKNOWN, dollars, plain, terminal

POLL_S = 0.2
PATIENCE_S = 60.0
"""How long a server may be away while a job runs: it is started again, and goes on."""
_WHY = (("access", "access"), ("cost_status", "status"), ("price_id", "price row"))
_MONEY = (("list_cost_usd", "list $"), ("billed_cost_usd", "billed $"))


def request(kind: str, *, since: str | None, until: str | None, dry_run: bool) -> dict[str, Any]:
    """The body of `POST /api/v1/jobs`."""
    told = {"kind": kind, "from": since, "to": until, "dry_run": dry_run}
    return {name: value for name, value in told.items() if value is not None}


def follow(client: Client, job: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
    """Watch a job to its end, and until what it has done is published; the job then. Raises Late."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    off = quiet or not sys.stderr.isatty()
    with Progress(*columns, console=console, transient=True, disable=off) as progress:
        bar = progress.add_task(job["kind"], total=None)
        seen = time.monotonic()
        while True:
            try:
                job = client.get(f"/api/v1/jobs/{job['job_id']}")
                seen = time.monotonic()
            except (Unreachable, Refused) as error:
                _bear(error, job, away_s=time.monotonic() - seen)
            progress.update(bar, total=job["total"] or None, completed=job["looked_at"])
            if job["status"] == "failed" or (job["status"] == "done" and job["published"]):
                return job
            time.sleep(POLL_S)


def _bear(error: Unreachable | Refused, job: dict[str, Any], *, away_s: float) -> None:
    """Wait for a server that is being started again; a dry run it has forgotten."""
    if isinstance(error, Refused) and error.status == 404 and job["dry_run"]:
        raise Late("the server was started again and has forgotten the dry run; ask once more") from None
    if away_s > PATIENCE_S:
        raise Late(
            f"the server has not answered for {away_s:.0f} s; the job {job['job_id']} goes on when it is "
            "back: GET /api/v1/jobs tells how far it is"
        ) from None


def print_job(job: dict[str, Any], *, console: Console | None = None) -> None:
    """Print what a job has changed, or would change."""
    console = console or terminal()
    if job["changes"]:
        console.print(_table(job))
    for line in _sentences(job):
        console.print(line, highlight=False)


def _table(job: dict[str, Any]) -> Table:
    changes, totals = job["changes"], job["totals"]
    table = Table(
        box=box.SIMPLE_HEAD, show_footer=True, header_style="bold", footer_style="bold", pad_edge=False
    )
    table.add_column("model", footer="total", overflow="fold")
    table.add_column("provider", overflow="fold")
    table.add_column("what differs", overflow="fold")
    table.add_column("calls", footer=_pair(totals, "calls", _count), justify="right")
    for name, title in _MONEY:
        table.add_column(f"{title} before", footer=dollars(totals[f"{name}_before"]), justify="right")
        table.add_column("after", footer=dollars(totals[f"{name}_after"]), justify="right")
    for change in changes:
        money = [dollars(change[f"{name}_{when}"]) for name, _ in _MONEY for when in ("before", "after")]
        table.add_row(
            plain(change["model"]),
            plain(change["provider"]),
            _why(change),
            _pair(change, "calls", _count),
            *(Text(amount) for amount in money),
        )
    return table


def _why(change: dict[str, Any]) -> Text:
    """What is different about a group, in the words of its columns."""
    if not change["calls_before"]:
        return Text("new")
    if not change["calls_after"]:
        return Text("no call any more")
    parts = [
        f"{label} {change[f'{name}_before'] or UNKNOWN} -> {change[f'{name}_after'] or UNKNOWN}"
        for name, label in _WHY
        if change[f"{name}_before"] != change[f"{name}_after"]
    ]
    tokens = [f"{side}_tokens" for side in ("input", "output")]
    parts += [
        f"{name.replace('_', ' ')} {_pair(change, name, _count)}"
        for name in tokens
        if change[f"{name}_before"] != change[f"{name}_after"]
    ]
    return plain("; ".join(parts) or "other facts")


def _pair(told: dict[str, Any], name: str, shown: Any) -> str:
    """One figure where both are equal, else both."""
    before, after = (shown(told[f"{name}_{when}"]) for when in ("before", "after"))
    return before if before == after else f"{before} -> {after}"


def _count(number: int | str | None) -> str:
    return UNKNOWN if number is None else f"{int(Decimal(number)):,}"


def _sentences(job: dict[str, Any]) -> list[str]:
    what = "calls" if job["kind"] == "reprice" else "records"
    looked = f"{job['looked_at']:,} {what} looked at"
    if job["status"] == "failed":
        kept = "" if job["dry_run"] else "; what it had written stays, each call whole"
        return [f"failed after {looked}{kept}: {job['error']}"]
    if not job["changed"]:
        return [f"{looked}: nothing differs"]
    if job["dry_run"]:
        return [f"{looked}, {job['changed']:,} calls would change; without --dry-run they will"]
    return [f"{looked}, {job['changed']:,} calls changed by {job['job_id']}"]
