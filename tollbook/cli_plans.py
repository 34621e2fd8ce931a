"""`tollbook plans`: windows, pace, value against the fee, and the fee over teams, as people read them."""

# ruff: noqa: PLC0415  # heavy imports wait until a command needs them

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

import typer

from tollbook.cli_common import Json, Url, print_json, server

__all__ = ["plans"]

_UNKNOWN = "–"
_Row = dict[str, Any]
_Shown = Callable[[_Row], str]


def plans(url: Url = None, as_json: Json = False) -> None:
    """Print where every plan stands: used, pace, when it runs out, what it is worth, whose fee it is."""
    told = server(url).get("/api/v1/plans")
    if as_json:
        print_json(told)
        return
    if not (told["windows"] or told["values"]):
        typer.echo("no plan is in use; docs/plans.md says how calls are known to be under one")
        return
    _print("windows", told["windows"], _WINDOWS)
    _print("value of the calls against the fee, by month", told["values"], _VALUES)
    _print("the fee over teams, by the value of their calls", told["shares"], _SHARES)
    typer.echo(f"as of {told['as_of']}")


def _print(title: str, rows: Sequence[_Row], columns: Sequence[tuple[str, _Shown]]) -> None:
    if not rows:
        return
    from tollbook.report import print_table

    typer.echo(title)
    cells = [[shown(row) for _, shown in columns] for row in rows]
    print_table({"columns": [name for name, _ in columns], "rows": cells, "truncated": False})


def _text(key: str) -> _Shown:
    return lambda row: str(row[key]) if row[key] is not None else _UNKNOWN


def _minute(key: str) -> _Shown:
    return lambda row: row[key][:16].replace("T", " ") if row[key] else _UNKNOWN


def _amount(key: str, places: str = "0.01") -> _Shown:
    def shown(row: _Row) -> str:
        if row[key] is None:
            return _UNKNOWN
        return f"{Decimal(row[key]).quantize(Decimal(places), ROUND_HALF_EVEN):f}"

    return shown


def _percent(key: str) -> _Shown:
    return lambda row: _UNKNOWN if row[key] is None else f"{Decimal(row[key]) * 100:.1f} %"


def _used(row: _Row) -> str:
    """What is used of what fits, in whole units but for money."""
    places = "0.01" if row["unit"] in ("list_usd", "credits") else "1"
    used, size = _amount("used", places)(row), _amount("size", places)(row)
    return f"{used} of {size}" if row["size"] is not None else used


_WINDOWS: tuple[tuple[str, _Shown], ...] = (
    ("plan", _text("plan_id")),
    ("seat", _text("account_id")),
    ("quota", _text("quota")),
    ("used", _used),
    ("unit", _text("unit")),
    ("used %", _percent("used_fraction")),
    ("told by", _text("used_from")),
    ("time %", _percent("elapsed_fraction")),
    ("pace", _amount("pace")),
    ("runs out", _minute("exhausted_at")),
    ("ends", _minute("ends_at")),
    ("worth $", _amount("list_cost_usd", "0.0001")),
)
_VALUES: tuple[tuple[str, _Shown], ...] = (
    ("plan", _text("plan_id")),
    ("account", _text("account")),
    ("month from", _minute("period_starts_at")),
    ("seats", _text("seats")),
    ("fee", _amount("fee")),
    ("currency", _text("currency")),
    ("calls", _text("calls")),
    ("unpriced", _text("unpriced_calls")),
    ("worth $", _amount("value_usd", "0.0001")),
    ("worth / fee", _amount("value_ratio")),
    ("breaks even", _minute("break_even_at")),
)
_SHARES: tuple[tuple[str, _Shown], ...] = (
    ("plan", _text("plan_id")),
    ("account", _text("account")),
    ("month from", _minute("period_starts_at")),
    ("team", _text("team")),
    ("calls", _text("calls")),
    ("worth $", _amount("value_usd", "0.0001")),
    ("share of fee", _amount("fee_share")),
    ("currency", _text("currency")),
)
