"""Budgets over HTTP: definitions and where they stand. Checks and reservations have a module of their own."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import orjson
from pydantic import BaseModel, Field

from billing.budget import Budget, read_budget
from tollbook.api_reservations import CHECK_PATH, BudgetCheck, budget_problem
from tollbook.house import House
from tollbook.problems import Problem

__all__ = [
    "CHECK_PATH",
    "BudgetCheck",
    "BudgetReply",
    "BudgetsReply",
    "budget_problem",
    "create_budget",
    "delete_budget",
    "list_budgets",
    "replace_budget",
    "show_budget",
]


class BudgetReply(Budget):
    """A budget and where it stands now, in the unit of its meter."""

    spent: str | None = Field(description="recorded spend of this period; null while it is being counted")
    reserved: str = Field(description="held by reservations, or settled and not yet in `spent`")
    remaining: str | None = Field(description="limit - spent - reserved; negative when overspent")
    resets_at: datetime | None = Field(description="when the period ends")
    unpriced_calls: int = Field(description="calls of this period that are not in `spent`")


class BudgetsReply(BaseModel):
    """Every budget, by id."""

    budgets: list[BudgetReply]


def list_budgets(house: House) -> bytes:
    """Every budget as JSON."""
    return _dump({"budgets": [_shown(house, budget) for budget in house.budgets.all()]})


def show_budget(house: House, budget_id: str) -> bytes:
    """One budget as JSON; Problem `not_found`."""
    return _dump(_shown(house, _known(house, budget_id)))


async def create_budget(house: House, body: bytes) -> bytes:
    """Define a new budget; Problem `conflict` where its id is taken by another definition."""
    budget = read_budget(body)
    _leave_the_operators(house, budget.id)
    known = house.budgets.get(budget.id)
    if known is not None and known != budget:
        raise Problem("conflict", "a budget of this id is defined otherwise; PUT replaces it")
    await house.define_budget(budget)
    return _dump(_shown(house, budget))


async def replace_budget(house: House, budget_id: str, body: bytes) -> bytes:
    """Define the budget of this id, or define it anew."""
    budget = read_budget(body, budget_id=budget_id)
    _leave_the_operators(house, budget_id)
    await house.define_budget(budget)
    return _dump(_shown(house, budget))


async def delete_budget(house: House, budget_id: str) -> None:
    """Delete a budget; Problem `not_found`."""
    budget = _known(house, budget_id)
    _leave_the_operators(house, budget_id)
    await house.delete_budget(budget.id)


def _dump(shown: dict[str, Any]) -> bytes:
    return orjson.dumps(shown, option=orjson.OPT_UTC_Z)


def _known(house: House, budget_id: str) -> Budget:
    budget = house.budgets.get(budget_id)
    if budget is None:
        raise Problem("not_found", "there is no budget of this id")
    return budget


def _leave_the_operators(house: House, budget_id: str) -> None:
    known = house.budgets.get(budget_id)
    if known is not None and known.origin == "settings":
        raise Problem("conflict", "this budget is the operator's: change the settings file and start again")


def _shown(house: House, budget: Budget) -> dict[str, Any]:
    now = datetime.now(UTC)
    figures = house.budgets.figures(budget.id, now)
    standing = asdict(figures) if figures else {}
    more = ("spent", "reserved", "remaining", "resets_at", "unpriced_calls")
    return {**budget.model_dump(mode="json"), **{name: standing.get(name) for name in more}}
