"""A job over history as it is asked for and as it stands. Light: the front imports it.

A job is asked for by a control record in the journal, so that it is as durable as telemetry. A dry run is a
question; it is written nowhere.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field, StringConstraints

from billing.budget import Strict

__all__ = ["Job", "JobKind", "StartJob", "new_job_id", "plain"]

JobKind = Literal["reprice", "reprocess"]


class StartJob(Strict):
    """Control record: look at all calls that started in [since, until) again."""

    v: Literal[1] = 1
    op: Literal["job"] = "job"
    job_id: Annotated[str, StringConstraints(pattern=r"^job_[0-9a-f]{32}$")]
    kind: JobKind
    since: AwareDatetime | None = None
    until: AwareDatetime
    at: AwareDatetime
    dry_run: bool = Field(default=False, description="never journaled")

    def record(self) -> bytes:
        """The journal record."""
        return self.model_dump_json(exclude_none=True).encode()


def new_job_id() -> str:
    """An id that no other job has."""
    return f"job_{os.urandom(16).hex()}"


@dataclass(frozen=True, slots=True)
class Job:
    """One job; the fields are the columns of `jobs`, and where it stands: `place` is the last row that was
    looked at, `attempts` how often it was begun without coming further, `commit_no` its last commit.
    """

    job_id: str
    kind: JobKind
    since: datetime | None
    until: datetime
    status: str
    requested_at: datetime
    began_at: datetime | None = None
    ended_at: datetime | None = None
    total: int = 0
    looked_at: int = 0
    changed: int = 0
    catalog_version: str | None = None
    error: str | None = None
    place: str | None = None
    attempts: int = 0
    commit_no: int = 0
    dry_run: bool = False

    @classmethod
    def asked(cls, asked: StartJob) -> Job:
        """A job as it is asked for."""
        since = None if asked.since is None else asked.since.astimezone(UTC)
        return cls(
            asked.job_id,
            asked.kind,
            since,
            asked.until.astimezone(UTC),
            "waiting",
            asked.at.astimezone(UTC),
            dry_run=asked.dry_run,
        )

    @property
    def over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status in ("done", "failed")

    def ended(self, status: Literal["done", "failed"], now: datetime, error: str | None = None) -> Job:
        """The job, over."""
        return replace(self, status=status, ended_at=now, error=error)

    def told(self) -> dict[str, Any]:
        """As people are told of it; what it changes is not known yet."""
        told = {name: plain(value) for name, value in asdict(self).items() if name not in _INTERNAL}
        return {**told, "totals": None, "changes": []}


_INTERNAL = ("place", "attempts")


def plain(value: Any) -> Any:
    """A value of a job for JSON: times as RFC 3339, amounts as decimal strings."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return value if value is None or isinstance(value, str | bool | int) else str(value)
