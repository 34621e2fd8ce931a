"""`GET /api/v1/emitters`: who tells of calls, how completely, and what to change."""

from __future__ import annotations

from typing import Any

import orjson
from pydantic import BaseModel, Field

from billing.tables import EMITTERS, names
from tollbook.reader_pool import ReaderPool

SQL = f"SELECT {', '.join(names(EMITTERS))} FROM emitters ORDER BY emitter"


class EmittersReply(BaseModel):
    """Every emitter that was ever seen."""

    emitters: list[dict[str, Any]] = Field(
        description="; ".join(f"`{column.name}`: {column.meaning}" for column in EMITTERS)
    )


async def answer_emitters(readers: ReaderPool) -> bytes:
    """The body, as JSON."""
    return orjson.dumps({"emitters": (await readers.query(SQL)).records()})
