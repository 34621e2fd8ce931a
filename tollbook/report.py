"""`tollbook report` and the tables of the command line: the bill as people read it.

Amounts are rounded here and only here, half-even to four places; `--json` and `--csv` have them whole. What
is assumed, what a subscription covered and what has no price stand in columns of their own, never in the
billed sum.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tollbook.client import Client

FILE_WIDTH = 180
CENT = Decimal("0.0001")
LEDGER_DECIMAL = re.compile(r"-?\d+\.\d{12}")  # how DECIMAL(18,12) and DECIMAL(38,12) are written
NUMBER = re.compile(r"-?\d+(\.\d+)?")
UNKNOWN = "–"
WIDE = 120  # columns from which every dimension has a column of its own
TOKENS = (("calls", "calls"), ("input_tokens", "input"), ("output_tokens", "output"))
MONEY = (
    ("billed_usd", "billed $"),
    ("covered_usd", "by plan $"),
    ("assumed_usd", "assumed $"),
    ("estimated_usd", "estimated $"),
)
COUNTS = (
    ("unpriced_calls", "unpriced"),
    ("usage_unknown_calls", "no usage"),
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
    console.print(report_table(reply, width=console.width))
    for note in notes(reply["totals"], groups=len(reply["groups"]), truncated=reply["truncated"]):
        console.print(note, style="dim", highlight=False)


def report_table(reply: dict[str, Any], *, width: int) -> Table:
    """The table of a usage reply; amounts that stand nowhere are left out, narrow ones are short."""
    totals, narrow = reply["totals"], width < WIDE
    whole = _short if narrow else _whole
    figures: list[tuple[str, str, Callable[[Any], str]]] = [
        *((name, title, whole) for name, title in TOKENS),
        *((name, title, dollars) for name, title in MONEY if name == "billed_usd" or _told(totals[name])),
        *((name, title, whole) for name, title in COUNTS if totals[name]),
    ]
    table = Table(
        box=box.SIMPLE_HEAD,
        show_footer=True,
        header_style="bold",
        footer_style="bold",
        pad_edge=False,
        padding=(0, 1, 0, 0) if narrow else (0, 1),
    )
    _add_dimensions(table, reply["group_by"], narrow=narrow)
    for name, title, shown in figures:
        table.add_column(title, footer=shown(totals[name]), justify="right", no_wrap=True)
    for group in reply["groups"]:
        who = [plain(group[name]) for name in reply["group_by"]]
        cells = [Text(" \N{MIDDLE DOT} ").join(who)] if narrow and who else who
        table.add_row(*cells, *(Text(shown(group[name])) for name, _, shown in figures))
    return table


def _add_dimensions(table: Table, names: Sequence[str], *, narrow: bool) -> None:
    titles = [" \N{MIDDLE DOT} ".join(names)] if narrow and names else list(names)
    for index, title in enumerate(titles):
        table.add_column(title, footer="total" if index == 0 else "", overflow="fold")


def notes(totals: dict[str, Any], *, groups: int, truncated: bool) -> list[str]:
    """What a reader must know beside the sums."""
    told = ["by plan: list price of what subscriptions covered"] if _told(totals["covered_usd"]) else []
    if totals["unpriced_calls"]:
        told.append("unpriced: price unknown, in no amount; tollbook sql 'FROM unpriced_models' lists them")
    if totals["usage_unknown_calls"]:
        told.append("no usage: the emitter told no tokens; in no amount")
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
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
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


def _short(number: int | str | None) -> str:
    """A count in at most five characters: 999, 38.5k, 262k, 1.2M."""
    if number is None:
        return UNKNOWN
    size = float(number)
    for suffix in ("", "k", "M", "G"):
        if abs(size) < 999.5 or suffix == "G":
            break
        size /= 1000
    return f"{size:.0f}{suffix}" if not suffix or abs(size) >= 99.95 else f"{size:.1f}{suffix}"


def _told(amount: str | None) -> bool:
    """Whether an amount is anything but nothing: an unknown one is something too."""
    return amount is None or Decimal(amount) != 0
