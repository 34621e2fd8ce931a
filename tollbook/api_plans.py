"""`GET /api/v1/plans`: every window of every plan in use, what plans are worth, and who bears their fees."""

from __future__ import annotations

from typing import Any

import orjson
from pydantic import BaseModel, Field

from billing.tables import PLAN_SHARES, PLAN_VALUES, PLANS, Column, names
from tollbook.reader_pool import ReaderPool

__all__ = ["PlansReply", "answer_plans"]


def _described(columns: tuple[Column, ...]) -> str:
    return "; ".join(f"`{column.name}`: {column.meaning}" for column in columns)


class PlansReply(BaseModel):
    """Where plans stood when the tables were published last. Null is unknown, never nothing."""

    as_of: str | None = Field(description="when the tables were published")
    windows: list[dict[str, Any]] = Field(description=_described(PLANS))
    values: list[dict[str, Any]] = Field(description=_described(PLAN_VALUES))
    shares: list[dict[str, Any]] = Field(description=_described(PLAN_SHARES))


_PARTS = {
    "windows": f"SELECT {', '.join(names(PLANS))} FROM plans ORDER BY plan_id, account_id, quota",
    "values": f"SELECT {', '.join(names(PLAN_VALUES))} FROM plan_values "
    "ORDER BY plan_id, account, period_starts_at DESC",
    "shares": f"SELECT {', '.join(names(PLAN_SHARES))} FROM plan_shares "
    "ORDER BY plan_id, account, period_starts_at DESC, fee_share DESC, team",
}
_AS_OF = "SELECT value FROM meta WHERE key = 'published_at'"


async def answer_plans(readers: ReaderPool) -> bytes:
    """The body, as JSON."""
    published = (await readers.query(_AS_OF)).records()
    told: dict[str, Any] = {"as_of": published[0]["value"] if published else None}
    for part, query in _PARTS.items():
        told[part] = (await readers.query(query)).records()
    return orjson.dumps(told)
