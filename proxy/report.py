"""What the ledger is told of an attempt: one span, from which content is absent by construction.

Every attempt is told of, also one that failed, that the caller left, or that a crash cut off. A call that the
provider took (status below 300) is never told as failed: what it used may be unknown, it is not free.
"""

from __future__ import annotations

import re
import time
from decimal import Decimal
from fnmatch import translate
from typing import Final

from ingest.call_report import Value, attributes, begun, encode, opened
from proxy.exchange import Attempt, CredentialKind, Exchange, Outcome
from proxy.usage import Told
from proxy.wire import WireFormat

__all__ = ["record_of"]

_OPERATIONS: Final = {
    WireFormat.OPENAI_EMBEDDINGS: "embeddings",
    WireFormat.GOOGLE_GENERATE: "generate_content",
}
REQUEST_ID_HEADERS: Final = (
    "request-id",
    "x-request-id",
    "x-oai-request-id",
    "cf-ray",
    "x-goog-request-id",
    "apim-request-id",
    "x-log-id",
)
_MAX_HEADERS: Final = 1000
_MAX_TEXT: Final = 200
_NEVER_SENT: Final = {Outcome.UNREACHABLE: "APIConnectionError", Outcome.UNSENT: "cancelled"}
"""Outcomes of calls of which no provider has seen anything, and what such an error is called."""


def record_of(exchange: Exchange, attempt: Attempt) -> bytes:
    """The attempt as it stands now, encoded for the journal. What cannot change any more is written once."""
    if not attempt.begun:
        attempt.begun = _begun(exchange, attempt)
    told = _answer(attempt)
    if attempt.status is not None:
        told |= _heard(attempt)
        if attempt.told is not None:
            told |= _said(attempt.told)
    return encode(
        attempt.begun,
        attributes(told),
        end_ns=max(time.time_ns(), attempt.started_ns),
        failed=_refused(attempt) or attempt.outcome in _NEVER_SENT,
    )


def _begun(exchange: Exchange, attempt: Attempt) -> bytes:
    way = attempt.way
    if not way.attributes:
        operation = _OPERATIONS.get(exchange.wire_format, "chat")
        told = {"gen_ai.operation.name": operation, **_whose(exchange), **_target(exchange, attempt)}
        way.attributes = opened(f"{operation} {way.target.model}"[:_MAX_TEXT]) + attributes(told)
    which = begun(
        *(exchange.trace_id, attempt.span_id, exchange.caller.parent_span_id), start_ns=attempt.started_ns
    )
    own = {
        "tollbook.session": exchange.session_id,
        "tollbook.route": exchange.route,
        "tollbook.attempt": attempt.number,
        "tollbook.fallback_from": attempt.fallback_from and attempt.fallback_from[:_MAX_TEXT],
        "tollbook.reservation_id": attempt.reservation_id,
    }
    return which + way.attributes + attributes(own)


def _whose(exchange: Exchange) -> dict[str, Value | None]:
    caller = exchange.caller
    said = {f"tollbook.{_ATTRIBUTE[name]}": value for name, value in caller.said.items()}
    return {
        "service.name": caller.service,
        **said,
        **{f"tollbook.label.{name}": value for name, value in caller.labels.items()},
    }


_ATTRIBUTE: Final = {
    "team": "team",
    "project": "project",
    "environment": "environment",
    "agent": "agent",
    "user_id": "user",
    "account_id": "account",
}


def _target(exchange: Exchange, attempt: Attempt) -> dict[str, Value | None]:
    target = attempt.target
    ours = target.base_url == target.endpoint.base_url
    return {
        "gen_ai.provider.name": target.provider,
        "gen_ai.request.model": target.model[:_MAX_TEXT],
        "gen_ai.request.stream": exchange.said.streaming,
        "url.full": target.base_url if ours and "{" not in target.base_url else None,
        "tollbook.plan": target.plan,
        "tollbook.account": target.account if target.credential_kind is CredentialKind.VAULT else None,
        "tollbook.credential": str(target.credential_kind),
        "tollbook.credential_kind": target.key_prefix,
    }


def _answer(attempt: Attempt) -> dict[str, Value | None]:
    """How it ended."""
    kind = attempt.failure.kind if attempt.failure is not None and _refused(attempt) else None
    return {
        "tollbook.access": attempt.access if attempt.access != "unknown" else None,
        "tollbook.outcome": attempt.outcome.value,
        "http.response.status_code": attempt.status,
        "error.type": _NEVER_SENT.get(attempt.outcome, kind.value if kind else None),
    }


def _heard(attempt: Attempt) -> dict[str, Value | None]:
    """What the provider said of it."""
    headers, first = attempt.headers, attempt.first_byte_s
    return {
        "tollbook.request_id": next(
            (headers[name][:_MAX_TEXT] for name in REQUEST_ID_HEADERS if name in headers), None
        ),
        "gen_ai.response.time_to_first_chunk": None if first is None else max(first - attempt.started_s, 0.0),
        "tollbook.headers": _told_by_headers(attempt),
    }


def _said(told: Told) -> dict[str, Value | None]:
    """What the answer told of itself."""
    return {
        "gen_ai.response.id": told.response_id,
        "gen_ai.response.model": told.response_model,
        "tollbook.service_tier": told.service_tier,
        "tollbook.speed": told.speed,
        "tollbook.region": told.region,
        "tollbook.finish_reasons": ",".join(told.finish_reasons)[:_MAX_TEXT] or None,
        "tollbook.usage_complete": told.complete,
        "tollbook.usage.reported_cost_usd": _written_usd(told.reported_cost_usd),
        "tollbook.usage.web_searches": told.usage_details.get("web_searches"),
        "gen_ai.usage.input_tokens": told.input_tokens,
        "gen_ai.usage.output_tokens": told.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": told.cache_read_tokens,
        "gen_ai.usage.cache_write.input_tokens": told.cache_write_tokens,
        "tollbook.usage.cache_write_1h_tokens": told.cache_write_1h_tokens,
        "gen_ai.usage.reasoning.output_tokens": told.reasoning_tokens,
        "tollbook.usage.audio_input_tokens": told.audio_input_tokens,
        "tollbook.usage.audio_output_tokens": told.audio_output_tokens,
    }


def _written_usd(amount: Decimal | None) -> str | None:
    return None if amount is None else format(amount, "f")


def _refused(attempt: Attempt) -> bool:
    return attempt.status is not None and attempt.status >= 300


def _told_by_headers(attempt: Attempt) -> str | None:
    """What the answer's headers tell of plan windows, limits and access, as `name=value;name=value`."""
    wanted = attempt.way.wanted or _wanted(attempt)
    told, size = [], 0
    for name, value in attempt.headers.items():
        if wanted.match(name) is not None and size + len(name) + 1 + len(value) < _MAX_HEADERS:
            told.append(f"{name}={value}".replace(";", ","))
            size += len(name) + len(value) + 2
    return ";".join(told) or None


def _wanted(attempt: Attempt) -> re.Pattern[str]:
    """The headers that the catalogue knows to tell something."""
    provider = attempt.target.facts
    patterns = [*provider.quota_headers, *(m.header for m in provider.markers if m.side == "response")]
    attempt.way.wanted = re.compile("|".join(map(translate, patterns)) or r"(?!)")
    return attempt.way.wanted
