"""Jobs over history: `POST /api/v1/jobs` takes one up, `GET /api/v1/jobs/{job_id}` tells how far it has come.

The ledger does the work between its batches, slice by slice; what is asked here is durable before it is
answered. A dry run is written nowhere, and is forgotten when the server stops.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson
from fastapi import FastAPI, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from billing.job import JobKind, StartJob, new_job_id
from tollbook.api_usage import Instant
from tollbook.house import House
from tollbook.problems import Problem

__all__ = ["add_job_routes"]


class JobRequest(BaseModel):
    """Which part of history is to be charged or read again."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, validate_by_name=False)

    kind: JobKind = Field(
        description="reprice: charge calls by the catalogue of today; reprocess: read records by its dialects"
    )
    since: Instant | None = Field(
        None, alias="from", description="first start of a call, RFC 3339 or a date; reprice needs it"
    )
    until: Instant | None = Field(
        None, alias="to", description="moment after the last start, RFC 3339 or a date; default: now"
    )
    dry_run: bool = Field(False, description="only find out what would change")

    @model_validator(mode="after")
    def _bounded(self) -> JobRequest:
        if self.kind == "reprice" and self.since is None:
            raise ValueError("reprice needs `from`: say since when calls may be charged again")
        if self.since and self.until and self.since >= self.until:
            raise ValueError("`to` must be later than `from`")
        return self


class JobReply(BaseModel):
    """A job. `totals` and `changes` are told when it is over; amounts are decimal strings."""

    job_id: str
    kind: JobKind
    since: datetime | None
    until: datetime
    dry_run: bool
    status: str = Field(description="waiting, running, done or failed")
    requested_at: datetime
    began_at: datetime | None
    ended_at: datetime | None
    total: int = Field(description="calls, or records, to look at")
    looked_at: int
    changed: int = Field(description="calls written anew, added or retired; of a dry run: that would be")
    catalog_version: str | None
    error: str | None
    commit_no: int
    published: bool = Field(description="whether usage.duckdb shows all it has done")
    totals: dict[str, int | str | None] | None = Field(description="sums before and after")
    changes: list[dict[str, int | str | None]] = Field(description="the same by model and by what differs")


class JobsReply(BaseModel):
    """The newest jobs, the newest first."""

    jobs: list[JobReply]


def add_job_routes(app: FastAPI, house: House) -> None:
    """Add `/api/v1/jobs`."""

    @app.post(
        "/api/v1/jobs",
        status_code=202,
        responses={202: {"model": JobReply}},
        response_class=Response,
        tags=["jobs"],
    )
    async def start(asked: JobRequest) -> Response:
        """Charge or read a part of history again."""
        now = datetime.now(UTC)
        job = StartJob(
            job_id=new_job_id(),
            kind=asked.kind,
            since=_moment(asked.since),
            until=_moment(asked.until) or now,
            at=now,
            dry_run=asked.dry_run,
        )
        return _answer({**await house.start_job(job), "published": False}, 202)

    @app.get("/api/v1/jobs", responses={200: {"model": JobsReply}}, response_class=Response, tags=["jobs"])
    async def jobs() -> Response:
        """The newest jobs."""
        return _answer({"jobs": house.jobs()[::-1]})

    @app.get(
        "/api/v1/jobs/{job_id}",
        responses={200: {"model": JobReply}},
        response_class=Response,
        tags=["jobs"],
    )
    async def job(job_id: str) -> Response:
        """How far one has come, and what it has changed."""
        for told in house.jobs():
            if told["job_id"] == job_id:
                return _answer(told)
        raise Problem("not_found", "there is no job of this id; older ones are in the table `jobs`")


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _answer(body: dict[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")
