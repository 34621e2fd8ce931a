"""The catalogue's questions and answers on the wire: resolve and price, in batches, in the corpora's shapes.

Pure functions over `catalog.quote`, so that a light process can answer. `model` is the canonical id or null,
never an echo; `provider` is null where it would be a guess; money is a decimal string; an unknown key of a
context or a usage is an error, because a price that ignores a condition is a wrong price.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from catalog.arithmetic import shown_line
from catalog.explain import mode_of_call, said_by_call
from catalog.provider_book import Book
from catalog.provider_facts import Access
from catalog.quote import Quote, Quotes
from catalog.resolve import Evidence, Resolution

__all__ = [
    "ATTRIBUTES",
    "MAX_ITEMS",
    "PriceItem",
    "PriceRequest",
    "ResolveItem",
    "ResolveRequest",
    "answer_price",
    "answer_resolve",
    "evidence_of",
]

MAX_ITEMS = 1000
"""Items in one request, at most."""

MAX_MODEL_CHARS = 4096
"""Longer than any id may be (those are unresolved, not refused), so that junk is answered like the rest."""

ATTRIBUTES: dict[str, str] = {
    "gen_ai.provider.name": "provider_name",
    "gen_ai.system": "provider_name",
    "gen_ai.response.model": "response_model",
    "server.address": "server_address",
    "server.port": "server_port",
    "url.full": "url",
    "http.url": "url",
    "service.name": "emitter",
    "hint.credential_prefix": "credential_kind",
    "tollbook.credential_kind": "credential_kind",
    "tollbook.headers": "markers",
    "tollbook.plan": "plan_hint",
}
"""Attribute of a question -> what it is evidence of; of two for one field the first named here wins."""

ACCOUNT_ATTRIBUTES = ("tollbook.account", "user.account_uuid", "user.account_id", "organization.id")
"""Attributes of a question that tell whose account it is, strongest first."""

Count = Annotated[int, Field(ge=0, le=10**12)]
Bucket = Literal[
    "input",
    "output",
    "cache_read",
    "cache_write_5m",
    "cache_write_1h",
    "input_audio",
    "output_audio",
    "cache_audio_read",
    "web_searches",
    "reasoning",
]


def _is_utc(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("needs its offset from UTC, such as a Z at the end")
    return value.astimezone(UTC)


class _Shape(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)


class ResolveItem(_Shape):
    """One id as telemetry told it, with the attributes beside it."""

    model: str = Field(max_length=MAX_MODEL_CHARS, description="gen_ai.request.model as sent")
    attributes: Mapping[str, str | int | float | bool | None] = Field(
        default_factory=dict,
        max_length=256,
        description="OTel attributes; others are ignored",
    )


class ResolveRequest(_Shape):
    """A batch of ids to resolve."""

    items: list[ResolveItem] = Field(max_length=MAX_ITEMS)


class PriceContext(_Shape):
    """What a price may depend on besides model and time. An unknown key is an error."""

    billing: Access | Literal["plan"] | None = Field(default=None, description="access, where it is known")
    batch: bool | None = None
    service_tier: str | None = Field(default=None, max_length=64, description="flex, priority, ...")
    speed: str | None = Field(default=None, max_length=64, description="fast, ...")
    inference_geo: str | None = Field(default=None, max_length=64, description="us, global, ...")


class PriceItem(_Shape):
    """Some usage of one model at one moment. The buckets of `usage` are disjoint."""

    provider: str | None = Field(default=None, max_length=256, description="provider id or alias")
    model: str = Field(max_length=MAX_MODEL_CHARS, description="id as served")
    at: Annotated[datetime, Field(strict=False), AfterValidator(_is_utc)]
    context: PriceContext = Field(default_factory=PriceContext)
    usage: dict[Bucket, Count] = Field(description="tokens by bucket; reasoning is information only")


class PriceRequest(_Shape):
    """A batch of usages to price."""

    items: list[PriceItem] = Field(max_length=MAX_ITEMS)


def evidence_of(model: str, attributes: Mapping[str, Any], book: Book | None = None) -> Evidence:
    """Turn an id and its OTel attributes into evidence, as the dialects would; other attributes say nothing.

    `book` adds what agents state about access (`auth_mode`, `anthropic.plan`, ...).
    """
    told: dict[str, Any] = {}
    for key, field in ATTRIBUTES.items():
        value = attributes.get(key)
        wanted = int if field == "server_port" else str
        if field not in told and isinstance(value, wanted) and not isinstance(value, bool):
            told[field] = value
    told |= _stated(attributes, book)
    return Evidence(request_model=model, **told)


def _stated(attributes: Mapping[str, Any], book: Book | None) -> dict[str, str]:
    explicit = attributes.get("tollbook.access")
    if isinstance(explicit, str):
        return {"access_hint": explicit.lower(), "access_evidence": f"tollbook.access={explicit}"}
    keys = {said.key for p in book.providers.values() for said in p.statements} if book else set()
    for key in sorted(keys & attributes.keys()):
        if isinstance(attributes[key], str):
            return {"access_evidence": f"{key}={attributes[key]}"}
    return {}


def answer_resolve(item: ResolveItem, quotes: Quotes) -> dict[str, Any]:
    """Resolve one id: provider, model, access and what each rests on."""
    found = quotes.resolve(
        evidence_of(item.model, item.attributes, quotes.book),
        account_id=_first_text(item.attributes, ACCOUNT_ATTRIBUTES),
        service=_first_text(item.attributes, ("service.name",)),
        at=datetime.now(UTC),
    )
    status, confidence = _verdict(found)
    evidence = [text for text in (found.evidence, found.access.evidence) if text]
    return {
        "provider": found.provider,
        "model": found.model,
        "served_model": found.served_model,
        "snapshot": found.snapshot,
        "modifiers": dict(found.modifiers),
        "access": found.access.access,
        "plan_id": found.access.plan_id,
        "status": status,
        "confidence": confidence,
        "candidates": list(found.candidates),
        "evidence": list(dict.fromkeys(evidence)),
    }


def _first_text(attributes: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    told = (attributes.get(key) for key in keys)
    return next((text for text in told if isinstance(text, str) and text), None)


def _verdict(found: Resolution) -> tuple[str, str]:
    """Give status (resolved, ambiguous, unresolved-model, unresolved) and confidence."""
    if found.model is None:
        return ("unresolved-model", "evidence") if found.provider else ("unresolved", "none")
    if found.provider is None:
        return "ambiguous", "none"
    return "resolved", "inferred" if found.resolution == "inferred" else "evidence"


def answer_price(item: PriceItem, quotes: Quotes) -> dict[str, Any]:
    """Price one usage: what the provider would bill, what it is worth at list price, and the arithmetic."""
    context = item.context.model_dump()
    quote = quotes.quote(
        item.provider,
        model=item.model,
        at=item.at,
        usage={str(bucket): count for bucket, count in item.usage.items()},
        mode=mode_of_call(context),
        said=said_by_call(context),
    )
    access, plan_id = _access(item.context.billing, quote)
    listed, billed, status = _money(access, plan_id, quote)
    return {
        "list_cost_usd": _text(listed),
        "billed_cost_usd": _text(billed),
        "status": status,
        "lines": [shown_line(line) for line in quote.lines],
        "reason": quote.reason or None,
        "price_id": quote.price_id,
        "estimated": quote.estimated,
        "catalog_version": quotes.version,
    }


def _access(billing: str | None, quote: Quote) -> tuple[str, str | None]:
    found = quote.resolution.access if quote.resolution else None
    if billing is not None:
        return ("subscription" if billing == "plan" else billing), found.plan_id if found else None
    return (found.access, found.plan_id) if found else ("unknown", None)


_ZERO = Decimal(0)


def _money(access: str, plan_id: str | None, quote: Quote) -> tuple[Decimal | None, Decimal | None, str]:
    """Give list cost, billed cost and status: the money table of the design for one priced usage."""
    listed = quote.list_cost_usd
    if access in ("free", "local"):
        return _ZERO, _ZERO, "free"
    if access == "provisioned":
        return None, None, "provisioned"
    if access == "subscription" or (access == "credits" and plan_id is not None):
        return listed, _ZERO, "included"
    if listed is None:
        return None, None, "unpriced"
    assumed = "assumed" if access == "unknown" else "priced"
    return listed, listed, "estimated" if quote.estimated else assumed


def _text(amount: Decimal | None) -> str | None:
    return None if amount is None else f"{amount:f}"
