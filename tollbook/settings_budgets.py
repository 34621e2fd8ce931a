"""Budgets in the settings file: the operator's own, which the API shows and does not change.

    [[budgets]]
    id = "core-day"
    scope = { team = "core" }
    limit = 25.50
    period = "day"

Each table is a budget as the API takes it, with an id of its own. Amounts may be written as numbers, for TOML
numbers are read as exact decimals here. Every fault is one sentence with the file, the line and the key.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import orjson
from pydantic import ValidationError

from billing.budget import Budget, placed_faults
from catalog.toml_source import TomlText, dotted

__all__ = ["read_budgets"]

KEY = "budgets"
AMOUNTS = ("limit", "per_call")


def read_budgets(text: str, *, file: str) -> tuple[list[Budget], list[str]]:
    """The budgets of a settings file's text, which is TOML, and a sentence for each fault."""
    tables = tomllib.loads(text, parse_float=Decimal).get(KEY, [])
    lines = TomlText(text)
    if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
        return [], [f"{file}, line {lines.line((KEY,))}: budgets are written as tables [[{KEY}]]"]
    budgets: list[Budget] = []
    faults: list[str] = []
    for number, table in enumerate(tables):
        place = (KEY, number)
        if "id" not in table:
            faults.append(
                _sentence(file, lines, (*place, "id"), "is missing: the settings know a budget by it")
            )
        elif table["id"] in [each.id for each in budgets]:
            faults.append(_sentence(file, lines, (*place, "id"), "is the id of another budget above"))
        if "origin" in table:
            faults.append(_sentence(file, lines, (*place, "origin"), "is left out: it is the settings"))
        try:
            budgets.append(Budget.model_validate_json(orjson.dumps(_told(table), default=float)))
        except ValidationError as error:
            told = placed_faults(error, Budget)
            faults += [_sentence(file, lines, (*place, *at), what) for at, what in told]
    return budgets, faults


def _sentence(file: str, lines: TomlText, place: tuple[int | str, ...], what: str) -> str:
    return f"{file}, line {lines.line(place)}: {dotted(place)} {what}"


def _told(table: Mapping[str, Any]) -> dict[str, Any]:
    """The table as the API would be told it."""
    told = {name: _amount(value) if name in AMOUNTS else value for name, value in table.items()}
    if isinstance(thresholds := told.get("thresholds"), list):
        told["thresholds"] = [_threshold(each) for each in thresholds]
    return {**told, "origin": "settings"}


def _threshold(told: object) -> object:
    if not isinstance(told, dict):
        return told
    return {name: _amount(value) if name == "at" else value for name, value in told.items()}


def _amount(value: object) -> object:
    exact = isinstance(value, Decimal) or (isinstance(value, int) and not isinstance(value, bool))
    return format(Decimal(value), "f") if exact else value  # type: ignore[arg-type]  # it is one of the two
