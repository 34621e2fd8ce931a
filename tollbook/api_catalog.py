"""The catalogue over HTTP: which model an id is, under which access, and what some usage costs.

Answered from the catalogue in memory, which imports nothing heavy. A long batch is answered in short pieces,
so that budget checks on the same loop wait for a few items at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, TypeVar

import orjson
from fastapi import FastAPI, Response
from pydantic import BaseModel, Field

from catalog.api_shapes import PriceRequest, ResolveRequest, answer_price, answer_resolve
from catalog.quote import Quotes
from tollbook.house import House
from tollbook.problems import Problem

__all__ = ["add_catalog_routes"]

PIECE = 8
"""Items answered before other requests get their turn."""

T = TypeVar("T")


class Resolved(BaseModel):
    """What an id is. Null is unknown, never a guess."""

    provider: str | None
    model: str | None = Field(description="canonical lab/model")
    served_model: str | None = Field(description="provider/id as served")
    snapshot: str | None
    modifiers: dict[str, str]
    access: str
    plan_id: str | None
    status: str = Field(description="resolved, ambiguous, unresolved-model or unresolved")
    confidence: str = Field(description="evidence, inferred or none")
    candidates: list[str] = Field(description="providers of an ambiguous model, the one to estimate by first")
    evidence: list[str]


class ResolveReply(BaseModel):
    """One answer for each item, in their order."""

    items: list[Resolved]


class PriceLine(BaseModel):
    """One part of a charge."""

    part: str
    units: str
    usd_per_million: str
    usd: str


class Priced(BaseModel):
    """What some usage costs. Null is unknown, never zero."""

    list_cost_usd: Decimal | None
    billed_cost_usd: Decimal | None
    status: str = Field(description="priced, included, estimated, assumed, free, provisioned or unpriced")
    lines: list[PriceLine]
    reason: str | None = Field(description="why there is no price")
    price_id: str | None
    estimated: bool = Field(description="priced by another list than the provider's own")
    catalog_version: str


class PriceReply(BaseModel):
    """One answer for each item, in their order."""

    items: list[Priced]


def add_catalog_routes(app: FastAPI, house: House) -> None:
    """Add `POST /api/v1/catalog/resolve` and `/price`."""

    @app.post(
        "/api/v1/catalog/resolve",
        responses={200: {"model": ResolveReply}},
        response_class=Response,
        tags=["catalog"],
    )
    async def resolve(asked: ResolveRequest) -> Response:
        """Which provider, model and access ids stand for."""
        return await _answer(asked.items, answer_resolve, _known(house))

    @app.post(
        "/api/v1/catalog/price",
        responses={200: {"model": PriceReply}},
        response_class=Response,
        tags=["catalog"],
    )
    async def price(asked: PriceRequest) -> Response:
        """What usage costs, at the prices of its own time."""
        return await _answer(asked.items, answer_price, _known(house))


def _known(house: House) -> Quotes:
    if house.quotes is None:
        raise Problem("not_ready", "the catalogue is being loaded", retry_after_s=1)
    return house.quotes


async def _answer(
    items: Sequence[T], answer: Callable[[T, Quotes], dict[str, Any]], quotes: Quotes
) -> Response:
    answers: list[dict[str, Any]] = []
    for start in range(0, len(items), PIECE):
        answers += [answer(item, quotes) for item in items[start : start + PIECE]]
        await asyncio.sleep(0)
    return Response(orjson.dumps({"items": answers}), media_type="application/json")
