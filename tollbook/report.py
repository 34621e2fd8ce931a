"""`tollbook report` and the tables of the command line: the bill as people read it.

Amounts are rounded here and only here, half-even to four places; `--json` and `--csv` have them whole. What
is assumed, what a subscription covered and what has no price stand in columns of their own, never in the
billed sum.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tollbook.client import Client

FILE_WIDTH = 180
CENT = Decimal("0.0001")
LEDGER_DECIMAL = re.compile(r"-?\d+\.\d{12}")  # how DECIMAL(18,12) and DECIMAL(38,12) are written
NUMBER = re.compile(r"-?\d+(\.\d+)?")
UNKNOWN = "–"
MONEY = (
    ("billed_usd", "billed $"),
    ("covered_usd", "covered by plan $"),
    ("assumed_usd", "assumed $"),
    ("estimated_usd", "estimated $"),
)
COUNTS = (
    ("unpriced_calls", "unpriced calls"),
    ("usage_unknown_calls", "usage unknown"),
)


def terminal() -> Console:
    """The terminal as wide as it is; a file or a pipe wide enough for a bill."""
    return Console(width=None if sys.stdout.isatty() else FILE_WIDTH)


def usage_params(by: Sequence[str], since: str | None, until: str | None) -> dict[str, str]:
    """The query of `/api/v1/usage`."""
    told = {"group_by": ",".join(by), "from": since, "to": until}
    return {name: value for name, value in told.items() if value}


def print_report(
    client: Client,
    *,
    by: Sequence[str] = ("agent", "model", "access"),
    since: str | None = None,
    until: str | None = None,
    console: Console | None = None,
) -> None:
    """Print the bill grouped by dimensions, dearest first, with the total below."""
    reply = client.get("/api/v1/usage", usage_params(by, since, until))
    console = console or terminal()
    console.print(report_table(reply))
    for note in notes(reply["totals"], groups=len(reply["groups"]), truncated=reply["truncated"]):
        console.print(note, style="dim", highlight=False)


def report_table(reply: dict[str, Any]) -> Table:
    """The table of a usage reply; columns in which nothing ever stands are left out."""
    totals = reply["totals"]
    money = [(name, title) for name, title in MONEY if name == "billed_usd" or _told(totals[name])]
    counts = [(name, title) for name, title in COUNTS if totals[name]]
    table = Table(show_footer=True, header_style="bold", footer_style="bold", row_styles=["", "dim"])
    for index, name in enumerate(reply["group_by"]):
        table.add_column(name, footer="total" if index == 0 else "", overflow="fold")
    for title, footer in (
        ("calls", _whole(totals["calls"])),
        ("input", _whole(totals["input_tokens"])),
        ("output", _whole(totals["output_tokens"])),
        *((title, dollars(totals[name])) for name, title in money),
        *((title, _whole(totals[name])) for name, title in counts),
    ):
        table.add_column(title, footer=footer, justify="right", no_wrap=True)
    for group in reply["groups"] if reply["group_by"] else [totals]:
        cells = [plain(group[name]) for name in reply["group_by"]]
        cells += [Text(_whole(group[name])) for name in ("calls", "input_tokens", "output_tokens")]
        cells += [Text(dollars(group[name])) for name, _ in money]
        cells += [Text(_whole(group[name])) for name, _ in counts]
        table.add_row(*cells)
    return table


def notes(totals: dict[str, Any], *, groups: int, truncated: bool) -> list[str]:
    """What a reader must know beside the sums."""
    told = []
    if totals["unpriced_calls"]:
        told.append("unpriced calls are in no amount: tollbook sql 'FROM unpriced_models'")
    if _told(totals["assumed_usd"]):
        told.append("assumed: access unknown; it is what these calls cost if they were paid per use")
    if _told(totals["estimated_usd"]):
        told.append("estimated: provider unknown; it is the price of the likely one")
    if truncated:
        told.append(f"only the {groups} dearest groups are shown; the total holds all")
    return told


def print_table(reply: dict[str, Any], *, console: Console | None = None) -> None:
    """Print the answer of `/api/v1/sql`."""
    console = console or terminal()
    table = Table(header_style="bold")
    rows = reply["rows"]
    for index, name in enumerate(reply["columns"]):
        numeric = all(_is_number(row[index]) for row in rows)
        table.add_column(plain(name), justify="right" if numeric and rows else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console.print(table)
    if reply["truncated"]:
        console.print(f"only the first {len(rows)} rows are shown", style="dim", highlight=False)


def dollars(amount: str | None) -> str:
    """An amount rounded for people; unknown is a dash, and what rounds to nothing is not nothing."""
    if amount is None:
        return UNKNOWN
    exact = Decimal(amount)
    rounded = exact.quantize(CENT, rounding=ROUND_HALF_EVEN)
    return f"<{CENT}" if not rounded and exact > 0 else f"{rounded:,}"


def plain(value: object) -> Text:
    """Text as data: no markup, no control characters (telemetry could carry terminal escapes)."""
    text = UNKNOWN if value is None else str(value)
    return Text(
        "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text)
    )


def _cell(value: object) -> Text:
    if isinstance(value, str) and LEDGER_DECIMAL.fullmatch(value):
        return Text(value.rstrip("0").rstrip("."))
    return plain(value)


def _is_number(value: object) -> bool:
    if isinstance(value, str):
        return NUMBER.fullmatch(value) is not None
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _whole(number: int | str | None) -> str:
    return UNKNOWN if number is None else f"{int(number):,}"


def _told(amount: str | None) -> bool:
    """Whether an amount is anything but nothing: an unknown one is something too."""
    return amount is None or Decimal(amount) != 0
