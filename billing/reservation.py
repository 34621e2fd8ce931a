"""Reservations at the edge: how one is settled, what is answered, and how it is written to the journal.

A reservation holds an estimate back from every budget it falls under until the call is settled, told by its
own telemetry, released, or the reservation expires. Everything that must survive the process is in three
control records (reserve, settle, release), which say costs and not amounts per budget: what a budget that is
defined tomorrow holds back follows from them too. Light: the front imports it.

    BudgetError
    ├── NotReady             spend is not known yet (503)
    ├── UnknownReservation   there is none of this id, or it is long over (404)
    └── ReservationConflict  it contradicts what was said before (409)
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import (
    AwareDatetime,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from billing.budget import (
    BudgetError,
    BudgetFigures,
    CheckRequest,
    Control,
    ControlError,
    Decision,
    Name,
    Strict,
    Tokens,
    Usd,
    decimal_text,
    fault_sentences,
    read,
)
from billing.budget_price import Costs

__all__ = [
    "DEFAULT_TTL_S",
    "MAX_ITEMS",
    "CheckBatch",
    "NotReady",
    "Release",
    "ReleaseBatch",
    "ReservationConflict",
    "ReservationReply",
    "Reserve",
    "Settle",
    "SettleBatch",
    "SettleRequest",
    "ToldCosts",
    "UnknownReservation",
    "Usage",
    "call_id_of",
    "decode_controls",
    "digest_of",
    "new_reservation_id",
    "read_batch",
    "read_settlement",
    "record",
    "reservation_id_of",
    "told_costs",
]

DEFAULT_TTL_S = 600
MAX_ITEMS = 256
_DRAWN = 256
_Batch = TypeVar("_Batch", bound=Strict)


class NotReady(BudgetError):
    """Spend is not known yet: the ledger is starting or catching up."""

    code = "not_ready"
    status = 503
    next_step = "Ask again as Retry-After says; /readyz tells what is missing."
    retry_after_s = 1


class UnknownReservation(BudgetError):
    """There is no reservation of this id; one that ended is remembered for a day at most."""

    code = "unknown_reservation"
    status = 404
    next_step = "Telemetry of the call is counted without it."


class ReservationConflict(BudgetError):
    """The key or the reservation was used otherwise before."""

    code = "reservation_conflict"
    status = 409
    next_step = "Repeat exactly what was sent before, or use a new key."


TraceId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
ReservationId = Annotated[str, StringConstraints(pattern=r"^res_[0-9a-f]{32}$")]
Digest = Annotated[str, StringConstraints(max_length=64)]
Microseconds = Annotated[int, Field(ge=0, le=10**17)]


class Usage(Strict):
    """Tokens of a call, as in `calls`: cache parts lie inside the input, reasoning inside the output."""

    input_tokens: Tokens
    output_tokens: Tokens
    cache_read_tokens: Tokens | None = None
    cache_write_tokens: Tokens | None = None
    cache_write_1h_tokens: Tokens | None = None
    reasoning_tokens: Tokens | None = None

    @model_validator(mode="after")
    def _inside(self) -> Usage:
        cached = (self.cache_read_tokens or 0) + (self.cache_write_tokens or 0)
        if cached > self.input_tokens:
            raise ValueError("the cache parts must lie inside input_tokens")
        if (self.cache_write_1h_tokens or 0) > (self.cache_write_tokens or 0):
            raise ValueError("cache_write_1h_tokens must lie inside cache_write_tokens")
        return self

    def buckets(self) -> dict[str, int]:
        """The disjoint parts that prices are asked for."""
        read_tokens, write = self.cache_read_tokens or 0, self.cache_write_tokens or 0
        hour = self.cache_write_1h_tokens or 0
        parts = {
            "input": self.input_tokens - read_tokens - write,
            "output": self.output_tokens,
            "cache_read": read_tokens,
            "cache_write_5m": write - hour,
            "cache_write_1h": hour,
        }
        return {name: tokens for name, tokens in parts.items() if tokens or name in ("input", "output")}


class SettleRequest(Strict):
    """What the call really needed: tokens to be priced, or dollars.

    `response_id` and `trace_id` let telemetry of the same call take the settlement's place, whichever comes
    first. With `partial` the rest stays held; later settlements tell the whole so far, not the difference.
    """

    usd: Usd | None = None
    usage: Usage | None = None
    model: Name | None = None
    provider: Name | None = None
    trace_id: TraceId | None = None
    response_id: Name | None = None
    started_at: AwareDatetime | None = None
    partial: bool = False

    @model_validator(mode="after")
    def _something(self) -> SettleRequest:
        if self.usd is None and self.usage is None:
            raise ValueError("must hold usd or usage")
        return self


class SettleItem(SettleRequest):
    """One settlement of a batch."""

    reservation_id: str

    def settlement(self) -> SettleRequest:
        """The same as it is sent alone."""
        return SettleRequest.model_construct(
            **{name: getattr(self, name) for name in SettleRequest.model_fields}
        )


class SettleBatch(Strict):
    """Several settlements, answered one by one."""

    items: list[SettleItem] = Field(max_length=MAX_ITEMS)


class ReleaseBatch(Strict):
    """Several reservations to be released."""

    reservation_ids: list[str] = Field(max_length=MAX_ITEMS)


class CheckBatch(Strict):
    """Several checks, answered one by one in order: what one reserves, the next one sees."""

    items: list[CheckRequest] = Field(max_length=MAX_ITEMS)


@dataclass(frozen=True, slots=True)
class ReservationReply:
    """How a reservation stands: `held` until it is settled, released, told by telemetry, or expired."""

    reservation_id: str
    state: Literal["held", "partly_settled", "settled", "recorded", "released", "expired"]
    expires_at: datetime
    settled_usd: str | None = None
    budgets: list[BudgetFigures] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> bytes:
        """As it goes out."""
        return orjson.dumps(self, option=orjson.OPT_UTC_Z)


# --- the journal's records --------------------------------------------------------------------------------


class ToldCosts(Strict):
    """Costs as they are journaled: decimal strings, what is not known left out."""

    billed_usd: Usd | None = None
    list_usd: Usd | None = None
    tokens: Usd | None = None
    unpriced: str | None = None
    dearest_usd: Usd | None = None

    def costs(self) -> Costs:
        """The same as the budgets take them."""
        return Costs(self.billed_usd, self.list_usd, self.tokens, self.unpriced, self.dearest_usd)


class Reserve(Strict):
    """Control record: this much is held back until it expires. `told` are the check's dimensions."""

    v: Literal[1] = 1
    op: Literal["reserve"] = "reserve"
    id: ReservationId
    key: Name | None = None
    digest: Digest = ""
    decision: Decision = "allow"
    at_us: Microseconds
    expires_us: Microseconds
    told: dict[str, str] = Field(default_factory=dict)
    model: Name | None = None
    costs: ToldCosts = ToldCosts()
    trace_id: TraceId | None = None


class Settle(Strict):
    """Control record: what the call needed. `number` counts a reservation's settlements, `costs` are the
    front's figures for what it holds meanwhile; the ledger prices usage itself.
    """

    v: Literal[1] = 1
    op: Literal["settle"] = "settle"
    id: ReservationId
    number: Annotated[int, Field(ge=1)]
    digest: Digest
    at_us: Microseconds
    started_us: Microseconds
    final: bool = True
    costs: ToldCosts = ToldCosts()
    usd: Usd | None = None
    usage: Usage | None = None
    model: Name | None = None
    provider: Name | None = None
    trace_id: TraceId | None = None
    response_id: Name | None = None


class Release(Strict):
    """Control record: the call was not made."""

    v: Literal[1] = 1
    op: Literal["release"] = "release"
    id: ReservationId
    at_us: Microseconds


ReservationControl = Reserve | Settle | Release
AnyControl = Control | ReservationControl
_CONTROLS: TypeAdapter[list[AnyControl]] = TypeAdapter(
    list[Annotated[AnyControl, Field(discriminator="op")]], config=ConfigDict(hide_input_in_errors=True)
)


def decode_controls(body: bytes) -> list[AnyControl]:
    """Reads a journaled record back, which holds one control or a list of them. Raises ControlError."""
    whole = body if body.startswith(b"[") else b"[" + body + b"]"
    try:
        return _CONTROLS.validate_json(whole)
    except ValidationError as error:
        raise ControlError(*fault_sentences(error, Strict)) from None


def told_costs(costs: Costs) -> dict[str, str]:
    """Costs as they are journaled."""
    told: dict[str, str] = {}
    for name in ("billed_usd", "list_usd", "tokens", "dearest_usd"):
        amount = getattr(costs, name)
        if amount is not None:
            told[name] = decimal_text(amount)
    if costs.unpriced is not None:
        told["unpriced"] = costs.unpriced
    return told


def record(op: str, fields: Mapping[str, Any]) -> bytes:
    """One control record as versioned JSON; what is NULL is left out."""
    told = {name: value for name, value in fields.items() if value is not None}
    return orjson.dumps({"v": 1, "op": op, **told})


def digest_of(request: Strict) -> str:
    """Tells apart requests that mean different things, not those that are spelled differently."""
    told = request.model_dump(mode="json", exclude={"idempotency_key"}, exclude_none=True)
    canonical = orjson.dumps(told, option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(canonical, digest_size=16).hexdigest()


def _random_digits() -> Iterator[str]:
    """32 random hex digits at a time; the kernel is asked for many at once, for it is slow to ask."""
    while True:
        drawn = os.urandom(16 * _DRAWN).hex()
        yield from (drawn[start : start + 32] for start in range(0, len(drawn), 32))


_digits = _random_digits()


def new_reservation_id() -> str:
    """An id that nobody can guess."""
    return f"res_{next(_digits)}"


def call_id_of(reservation_id: str) -> str:
    """The id under which a settlement stands in `calls` until telemetry of the call takes its place."""
    return "c" + reservation_id.removeprefix("res_")


def reservation_id_of(call_id: str) -> str:
    """The reservation whose settlement stands in `calls` under this id."""
    return "res_" + call_id[1:]


def read_settlement(body: bytes) -> SettleRequest:
    """A settlement from a request's JSON. Raises InvalidBudget."""
    return read(SettleRequest, body)


def read_batch(model: type[_Batch], body: bytes) -> _Batch:
    """A batch from a request's JSON. Raises InvalidBudget."""
    return read(model, body)
