"""Budgets over HTTP: definitions, where they stand, and the check, which has a path of its own.

A check is asked before every model call, so it goes through neither FastAPI nor its router: `BudgetCheck`
reads the body and hands it to the budget book. The API declares the route all the same, for the reference.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

import orjson
from pydantic import BaseModel, Field

from billing.budget import Budget, BudgetError, read_budget
from tollbook.guard import Receive, Scope, Send, send_body, send_problem
from tollbook.house import House
from tollbook.problems import Kind, Problem

log = logging.getLogger("tollbook.api")

CHECK_PATH = "/api/v1/budgets/check"
MAX_CHECK_BYTES = 64 << 10
JSON_HEADERS = [(b"content-type", b"application/json")]


class BudgetReply(Budget):
    """A budget and where it stands now, in the unit of its meter."""

    spent: str | None = Field(description="recorded spend of this period; null while it is being counted")
    reserved: str = Field(description="held by reservations")
    remaining: str | None = Field(description="limit - spent - reserved; negative when overspent")
    resets_at: datetime | None = Field(description="when the period ends")
    unpriced_calls: int = Field(description="calls of this period that are not in `spent`")


class BudgetsReply(BaseModel):
    """Every budget, by id."""

    budgets: list[BudgetReply]


class BudgetCheck:
    """The ASGI application of `POST /api/v1/budgets/check` alone."""

    def __init__(self, house: House) -> None:
        self._house = house

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one check; a denial is an answer with status 200."""
        del scope
        try:
            body = await self._house.check_budget(await _body(receive))
        except BudgetError as error:
            await send_problem(send, budget_problem(error))
        except Problem as problem:
            await send_problem(send, problem)
        except Exception:
            log.exception("a budget check failed")
            await send_problem(send, Problem("internal", "the check could not be answered"))
        else:
            await send_body(send, body, status=200, headers=JSON_HEADERS)


async def _body(receive: Receive) -> bytes:
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body", False) and len(body) <= MAX_CHECK_BYTES:
        message = await receive()
        body += message.get("body", b"")
    if len(body) > MAX_CHECK_BYTES:
        raise Problem("too_large", f"a check may have {MAX_CHECK_BYTES} bytes")
    return body


def budget_problem(error: BudgetError) -> Problem:
    """A fault of the budgets as the caller sees it."""
    title = (type(error).__doc__ or "").partition(";")[0].partition(":")[0].rstrip(".")
    kind = Kind(error.status, title, error.next_step)
    return Problem(error.code, str(error), kind=kind, errors=[{"message": text} for text in error.sentences])


def list_budgets(house: House) -> bytes:
    """Every budget as JSON."""
    return orjson.dumps({"budgets": [_shown(house, budget) for budget in house.budgets.all()]})


def show_budget(house: House, budget_id: str) -> bytes:
    """One budget as JSON; Problem `not_found`."""
    return orjson.dumps(_shown(house, _known(house, budget_id)))


async def create_budget(house: House, body: bytes) -> bytes:
    """Define a new budget; Problem `conflict` where its id is taken by another definition."""
    budget = read_budget(body)
    known = house.budgets.get(budget.id)
    if known is not None and known != budget:
        raise Problem("conflict", "a budget of this id is defined otherwise; PUT replaces it")
    await house.define_budget(budget)
    return orjson.dumps(_shown(house, budget))


async def replace_budget(house: House, budget_id: str, body: bytes) -> bytes:
    """Define the budget of this id, or define it anew."""
    budget = read_budget(body, budget_id=budget_id)
    await house.define_budget(budget)
    return orjson.dumps(_shown(house, budget))


async def delete_budget(house: House, budget_id: str) -> None:
    """Delete a budget; Problem `not_found`."""
    await house.delete_budget(_known(house, budget_id).id)


def _known(house: House, budget_id: str) -> Budget:
    budget = house.budgets.get(budget_id)
    if budget is None:
        raise Problem("not_found", "there is no budget of this id")
    return budget


def _shown(house: House, budget: Budget) -> dict[str, Any]:
    now = datetime.now(UTC)
    figures = house.budgets.figures(budget.id, now)
    standing = figures.model_dump(mode="json") if figures else {}
    more = ("spent", "reserved", "remaining", "resets_at", "unpriced_calls")
    return {**budget.model_dump(mode="json"), **{name: standing.get(name) for name in more}}
