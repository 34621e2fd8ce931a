"""`GET /api/v1/calls` and `/calls/{call_id}`: single calls, newest first, and why one costs what it costs."""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, Field

from billing.tables import CALLS, ROLLUP_KEYS, names
from tollbook.api_usage import Filter, Filters
from tollbook.house import House
from tollbook.problems import Problem
from tollbook.reader_pool import ReaderPool

COLUMNS = ", ".join(names(CALLS))
FILTERS = (*ROLLUP_KEYS, "session_id", "status", "response_id", "request_id", "trace_id")
REVISED = (
    *("revision", "recorded_at", "superseded_by", "job_id", "reason"),
    *("provider", "model", "access", "plan_id", "cost_status", "price_id", "catalog_version"),
    *("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens"),
    *("list_cost_usd", "billed_cost_usd", "observation_count"),
)
"""What is told of an earlier revision of a call."""
MERGE_STEPS = 16  # how often an id may have been merged into another before we stop following


class CallsQuery(Filters):
    """What is asked of /calls."""

    session_id: Filter
    status: Filter
    response_id: Filter
    request_id: Filter
    trace_id: Filter
    limit: Annotated[int, Field(ge=1, le=1000, description="calls in one answer")] = 100
    cursor: Annotated[
        str | None, Field(max_length=1024, description="`next_cursor` of the answer before")
    ] = None

    def fingerprint(self) -> str:
        """A short hash of everything but the page, so that a cursor is not used with other filters."""
        told = self.model_dump(exclude={"limit", "cursor"}, exclude_none=True)
        return hashlib.sha256(orjson.dumps(told, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


class CallsReply(BaseModel):
    """A page of calls, newest first; `docs/tables.md` has every column."""

    calls: list[dict[str, Any]]
    next_cursor: str | None = Field(description="null on the last page")


class CallReply(BaseModel):
    """One call and its explanation."""

    call_id: str
    superseded_by: str | None = Field(description="the call that took this one in; `call` is that one then")
    call: dict[str, Any]
    observations: list[dict[str, Any]] = Field(description="the records that told of it")
    price: dict[str, Any] | None = Field(description="the price rows and the arithmetic")
    revisions: list[dict[str, Any]] = Field(
        description="what it was before, oldest first; where a job over history replaced it, which and why"
    )


@dataclass(frozen=True, slots=True)
class Cursor:
    """The place after the last call of a page."""

    started_at: str
    call_id: str

    def encode(self, fingerprint: str) -> str:
        raw = orjson.dumps([fingerprint, self.started_at, self.call_id])
        return base64.urlsafe_b64encode(raw).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str, fingerprint: str) -> Cursor:
        """The place a cursor names; Problem `invalid_cursor` for anything else."""
        try:
            raw = orjson.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
            of, started_at, call_id = (str(part) for part in raw)
            datetime.fromisoformat(started_at)
        except (ValueError, TypeError, binascii.Error):
            raise Problem("invalid_cursor", "it is not a cursor of this server") from None
        if of != fingerprint:
            raise Problem("invalid_cursor", "it belongs to a request with other filters")
        return cls(started_at, call_id)


async def answer_calls(readers: ReaderPool, query: CallsQuery) -> bytes:
    """A page of calls as JSON."""
    where, params = query.conditions(FILTERS)
    if query.since:
        where, params = [*where, "started_at >= ?::TIMESTAMPTZ"], [*params, query.since]
    if query.until:
        where, params = [*where, "started_at < ?::TIMESTAMPTZ"], [*params, query.until]
    if query.cursor:
        place = Cursor.decode(query.cursor, query.fingerprint())
        where.append("started_at <= ?::TIMESTAMPTZ AND (started_at < ?::TIMESTAMPTZ OR call_id < ?)")
        params += [place.started_at, place.started_at, place.call_id]
    times = await readers.query(_newest("started_at", where), params, max_rows=query.limit + 1)
    if found := times.records():
        where.append("started_at >= ?::TIMESTAMPTZ")
        params.append(found[-1]["started_at"])
    answer = await readers.query(_newest(COLUMNS, where), params, max_rows=query.limit)
    rows = answer.records()
    last = Cursor(rows[-1]["started_at"], rows[-1]["call_id"]) if answer.truncated else None
    return orjson.dumps({"calls": rows, "next_cursor": last.encode(query.fingerprint()) if last else None})


def _newest(columns: str, where: list[str]) -> str:
    """Calls, the newest first. Asked for their times first, few rows have to be put together for a page."""
    conditions = f" WHERE {' AND '.join(where)}" if where else ""
    return f"SELECT {columns} FROM calls{conditions} ORDER BY started_at DESC, call_id DESC"  # our names


async def answer_call(house: House, call_id: str) -> bytes:
    """One call with its evidence as JSON; an id merged away answers with the call that took it in."""
    current = await _current_id(house.readers, call_id)
    sql = f"SELECT {COLUMNS} FROM calls WHERE call_id = ?"  # our names
    rows = (await house.readers.query(sql, [current])).records()
    revisions = await _revisions(house.readers, current)
    if not rows:
        raise _no_such_call(revisions)
    evidence = await house.explain(current, datetime.fromisoformat(rows[0]["started_at"])) or {}
    return orjson.dumps(
        {
            "call_id": call_id,
            "superseded_by": None if current == call_id else current,
            "call": rows[0],
            "observations": evidence.get("observations", []),
            "price": evidence.get("price"),
            "revisions": revisions,
        }
    )


async def _current_id(readers: ReaderPool, call_id: str) -> str:
    sql = (
        "SELECT superseded_by FROM call_revisions WHERE call_id = ? AND superseded_by IS NOT NULL"
        " AND superseded_by <> call_id AND call_id NOT IN (SELECT call_id FROM calls WHERE call_id = ?)"
        " ORDER BY revision DESC LIMIT 1"
    )
    for _ in range(MERGE_STEPS):
        rows = (await readers.query(sql, [call_id, call_id])).records()
        if not rows:
            break
        call_id = rows[0]["superseded_by"]
    return call_id


async def _revisions(readers: ReaderPool, call_id: str) -> list[dict[str, Any]]:
    sql = (
        f"SELECT {', '.join(f'r.{name}' for name in REVISED)}, j.kind, j.requested_at"  # our names
        " FROM call_revisions r LEFT JOIN jobs j ON j.job_id = r.job_id WHERE r.call_id = ?"
        " ORDER BY r.revision, r.recorded_at"
    )
    return [_with_job(row) for row in (await readers.query(sql, [call_id])).records()]


def _with_job(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its job as an object; null where telemetry replaced it."""
    told = {name: row.pop(name) for name in ("job_id", "kind", "requested_at")}
    return {**row, "job": told if told["job_id"] else None}


def _no_such_call(revisions: list[dict[str, Any]]) -> Problem:
    last = revisions[-1] if revisions else None
    if last is None or last["job"] is None:
        return Problem("not_found", "there is no call of this id")
    detail = f"a job of {last['job']['requested_at']} found: {last['reason']}"
    return Problem("gone", detail, reason=last["reason"], job=last["job"], revisions=revisions)
