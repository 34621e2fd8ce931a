"""What can go wrong in front of a caller: every code with its HTTP status, its title and what to do next.

Answers are `application/problem+json` (RFC 9457). One table, so that a code means the same everywhere and
the reference cannot forget one. A problem never carries a value that the caller sent, a path or a secret.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from tollbook.errors import TollbookError

MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True, slots=True)
class Kind:
    """One sort of problem: HTTP status, a title, and the next step for the caller."""

    status: int
    title: str
    next: str


_NARROW = "select fewer rows or columns, or raise sql.memory_bytes"
_READYZ = "wait until /readyz answers 200; its `reasons` say what is missing"

KINDS: dict[str, Kind] = {
    "invalid_request": Kind(400, "The request is not valid", "correct what `errors` names, send it again"),
    "call_refused": Kind(
        400, "The call would be refused", "nothing was sent; the detail names the ways to settle it"
    ),
    "invalid_cursor": Kind(400, "The cursor does not fit", "start without `cursor`, with the same filters"),
    "sql_error": Kind(400, "The query failed", "correct it; `DESCRIBE calls` lists a table's columns"),
    "sql_refused": Kind(400, "The statement is not allowed", "send one SELECT, WITH, EXPLAIN or DESCRIBE"),
    "query_timeout": Kind(422, "The query took too long", "narrow it, or raise sql.timeout_s"),
    "query_too_large": Kind(422, "The query needs too much memory", _NARROW),
    "query_killed": Kind(422, "The query was ended", _NARROW),
    "not_found": Kind(404, "There is no such thing", "/openapi.json lists every path"),
    "method_not_allowed": Kind(405, "Not with this method", "/openapi.json lists every path's methods"),
    "not_acceptable": Kind(
        406,
        "No such format",
        "ask for application/json, text/csv or application/vnd.apache.arrow.stream",
    ),
    "conflict": Kind(
        409, "It contradicts what was said before", "read the current state, then send what fits"
    ),
    "too_large": Kind(413, "The body is too large", "send a smaller one"),
    "unsupported_media_type": Kind(415, "Content type not taken", "send `content-type: application/json`"),
    "foreign_host": Kind(
        403,
        "The Host header is not this server's",
        "use a loopback address, or list the name in server.allowed_hosts",
    ),
    "foreign_origin": Kind(403, "Foreign web pages are refused", "call the API from a program"),
    "gone": Kind(410, "It is no call any more", "`reason` says why; call_revisions has what it was"),
    "too_many_jobs": Kind(429, "Too many jobs wait", "wait until one is done: GET /api/v1/jobs"),
    "reader_busy": Kind(429, "Too many queries", "wait as long as Retry-After says, send it again"),
    "reader_unavailable": Kind(503, "No reader is up", _READYZ),
    "not_published": Kind(503, "Nothing is published yet", _READYZ),
    "not_ready": Kind(503, "tollbook is not ready", _READYZ),
    "journal_failed": Kind(503, "The disk does not take it", "free space on the disk, send it again"),
    "internal": Kind(500, "tollbook made a mistake", "see the server's log; the request may be sent again"),
}


class Problem(TollbookError):
    """A refusal that the caller sees: `code` of KINDS, a sentence, and more members for the answer.

    With `kind` the code may be of another package's error tree, which brings its own status and next step.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        retry_after_s: int | None = None,
        kind: Kind | None = None,
        **members: Any,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.kind = kind or KINDS[code]
        self.members = members

    @property
    def status(self) -> int:
        return self.kind.status

    def body(self) -> bytes:
        """The problem document as JSON."""
        document = {
            "type": f"urn:tollbook:problem:{self.code}",
            "title": self.kind.title,
            "status": self.kind.status,
            "code": self.code,
            "detail": self.detail,
            "next": self.kind.next,
        }
        return orjson.dumps({**document, **self.members})

    def headers(self) -> dict[str, str]:
        """The answer's headers."""
        more = {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}
        return {"content-type": MEDIA_TYPE, **more}
