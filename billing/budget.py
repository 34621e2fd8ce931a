"""Budgets at the edge: what may be asked, what is answered, and how a definition is journaled.

Everything that comes from outside is read here, strictly: an unknown key, a number where money is a decimal
string, a zone that does not exist are refused with a sentence that names the place and what is allowed, and
never the value. Light on purpose (pydantic and the standard library): the front imports it.

    BudgetError
    ├── InvalidBudget             a definition or a check that cannot be read (400)
    ├── ControlError              a control record that cannot be read: it goes to the rejects
    └── SpendGap                  a spend message is missing: ask the ledger for a snapshot
"""

from __future__ import annotations

import difflib
import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Context, Decimal, Inexact, InvalidOperation, Overflow
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from billing.budget_period import Period, parse_period, parse_zone
from billing.plan_advice import UsedUp

__all__ = [
    "DIMENSIONS",
    "EXACT",
    "Budget",
    "BudgetError",
    "BudgetEvent",
    "BudgetFigures",
    "CheckReply",
    "CheckRequest",
    "Control",
    "ControlError",
    "DeleteBudget",
    "Estimate",
    "InvalidBudget",
    "PutBudget",
    "RecordEvent",
    "Scope",
    "SpendGap",
    "Threshold",
    "decimal_text",
    "decode_control",
    "encode_control",
    "fault_sentences",
    "placed_faults",
    "read",
    "read_budget",
    "read_check",
]

EXACT = Context(prec=80, traps=[Inexact, InvalidOperation, Overflow])
"""Arithmetic that refuses to round: what does not fit raises instead of becoming a slightly different sum."""

DIMENSIONS = (
    "team",
    "project",
    "environment",
    "agent",
    "user_id",
    "session_id",
    "account_id",
    "provider",
    "model",
    "access",
)
"""Scope keys that are columns of `calls`; `labels` comes on top."""

LABEL_PREFIX = "labels."
MAX_LABELS = 8
MAX_ATTRIBUTES = 128

Meter = Literal["billed_usd", "list_usd", "tokens", "calls"]
Action = Literal["notify", "warn", "deny"]
Decision = Literal["allow", "warn", "deny"]
Access = Literal["payg", "subscription", "credits", "overage", "provisioned", "free", "local", "unknown"]
OnUnpriced = Literal["deny", "allow", "dearest"]


_Model = TypeVar("_Model", bound=BaseModel)


class BudgetError(Exception):
    """Base of every fault raised by the budgets: a code, a sentence, a next step, and the HTTP status it
    answers with.
    """

    code = "budget_error"
    status = 500
    next_step = "See the server's log."
    retry_after_s: int | None = None

    def __init__(self, *sentences: str) -> None:
        super().__init__("; ".join(sentences))
        self.sentences = sentences


class InvalidBudget(BudgetError):
    """A definition or a check that does not validate; `sentences` holds one sentence for each place."""

    code = "invalid_budget"
    status = 400
    next_step = "Correct the places named and send it again."


class ControlError(BudgetError):
    """A control record that is not JSON, of an unknown version or operation, or that does not validate."""

    code = "control_unreadable"
    next_step = "It was written by another version of tollbook; the record is kept among the rejects."


class SpendGap(BudgetError):
    """A spend message does not follow the one before it."""

    code = "spend_gap"
    next_step = "Ask the ledger for a snapshot and apply that."


def decimal_text(amount: Decimal) -> str:
    """The decimal as plain text: no exponent, no zeros at the end."""
    if not amount:
        return "0"
    text = format(amount, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _decimal(*, whole: int, places: int) -> BeforeValidator:
    """Reads a positive decimal string of at most so many digits before and after the point; refuses
    numbers.
    """
    pattern = re.compile(rf"[0-9]{{1,{whole}}}(\.[0-9]{{1,{places}}})?")

    def read(value: object) -> object:
        if isinstance(value, Decimal):
            value = format(value, "f")
        if not isinstance(value, str) or pattern.fullmatch(value) is None:
            raise ValueError(f'must be a decimal string such as "1.00", at most {places} decimal places')
        return Decimal(value)

    return BeforeValidator(read)


def _positive(value: Decimal) -> Decimal:
    if value <= 0:
        raise ValueError("must be greater than 0")
    return value


def _fixed(value: Decimal) -> str:
    return format(value, "f")


_AsText = PlainSerializer(_fixed, return_type=str)
Limit = Annotated[Decimal, _decimal(whole=15, places=12), AfterValidator(_positive), _AsText]
Fraction = Annotated[Decimal, _decimal(whole=3, places=6), AfterValidator(_positive), _AsText]
Usd = Annotated[Decimal, _decimal(whole=15, places=12), _AsText]
Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Id = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$")]
Tokens = Annotated[int, Field(ge=0, le=10**12)]


class Strict(BaseModel):
    """Base of everything read here: no unknown keys, no coercion, no values in messages."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class Scope(Strict):
    """What a budget covers, or what a check is about: every key narrows it; no key means everything."""

    team: Name | None = None
    project: Name | None = None
    environment: Name | None = None
    agent: Name | None = None
    user_id: Name | None = None
    session_id: Name | None = None
    account_id: Name | None = None
    provider: Name | None = None
    model: Name | None = None
    access: Access | None = None
    labels: dict[Name, Name] = Field(default_factory=dict, max_length=MAX_LABELS)

    @model_serializer(mode="wrap")
    def _only_told(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in serialize(self).items() if value}

    def dimensions(self) -> dict[str, str]:
        """The dimensions told, labels as `labels.<key>`: dimension -> value."""
        told = {name: value for name, value in self.__dict__.items() if value is not None}
        labels = told.pop("labels")
        return told | {LABEL_PREFIX + key: value for key, value in labels.items()} if labels else told


class Threshold(Strict):
    """What happens when spend passes `at` x limit."""

    at: Fraction
    action: Action


def _deny_at_limit() -> list[Threshold]:
    return [Threshold(at=Decimal("1.0"), action="deny")]


def _new_id() -> str:
    return f"bud_{uuid.uuid4().hex[:16]}"


class Budget(Strict):
    """One budget: how much of `meter` the calls inside `scope` may use in each period.

    `billed_usd` is what providers invoice, `list_usd` what the calls are worth at list price, `tokens`
    input and output together, `calls` how many. Without thresholds it denies at the limit. `on_unpriced`
    says what a check gets whose model has no known price: a denial, a pass that counts nothing, or the
    dearest price known. `per_call` is the most that one call may need, in the meter's unit. A `shadow`
    budget decides and keeps its decisions in `budget_events`, but denies and warns nobody. What `origin` the
    settings have is the operator's: the API shows it and does not change it.
    """

    id: Id = Field(default_factory=_new_id)
    scope: Scope = Scope()
    meter: Meter = "billed_usd"
    limit: Limit
    period: str
    time_zone: str = "UTC"
    thresholds: list[Threshold] = Field(default_factory=_deny_at_limit, max_length=16)
    on_unpriced: OnUnpriced = "deny"
    per_call: Limit | None = None
    shadow: bool = False
    origin: Literal["api", "settings"] = "api"

    @field_validator("time_zone")
    @classmethod
    def _zone(cls, name: str) -> str:
        parse_zone(name)
        return name

    @field_validator("period")
    @classmethod
    def _period(cls, text: str) -> str:
        parse_period(text)
        return text

    @field_validator("thresholds")
    @classmethod
    def _ordered(cls, thresholds: list[Threshold]) -> list[Threshold]:
        if len({(each.at, each.action) for each in thresholds}) < len(thresholds):
            raise ValueError("names the same fraction and action twice")
        return sorted(thresholds, key=lambda each: each.at) or _deny_at_limit()

    @model_validator(mode="after")
    def _whole(self) -> Budget:
        for name, amount in (("limit", self.limit), ("per_call", self.per_call)):
            if amount is not None and self.meter in ("tokens", "calls") and amount % 1:
                raise ValueError(f"{name}: must be a whole number for the meter {self.meter}")
        return self

    def parsed_period(self) -> Period:
        """The period with its zone."""
        return parse_period(self.period, self.time_zone)

    def spend_key(self) -> tuple[object, ...]:
        """What spend depends on: two definitions with the same key have the same spend."""
        return tuple(sorted(self.scope.dimensions().items())), self.meter, self.period, self.time_zone


class Estimate(Strict):
    """What the call is expected to need: an amount of money, or tokens to be priced, or both."""

    usd: Usd | None = None
    input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None

    @model_validator(mode="after")
    def _something(self) -> Estimate:
        if self.usd is None and self.tokens is None:
            raise ValueError("must hold usd, or input_tokens and output_tokens")
        return self

    @property
    def tokens(self) -> int | None:
        """Input and output tokens together; NULL when neither is told, a part that is left out counts 0."""
        if self.input_tokens is None and self.output_tokens is None:
            return None
        return (self.input_tokens or 0) + (self.output_tokens or 0)


_ATTRIBUTES: tuple[tuple[str, str], ...] = (
    ("tollbook.team", "team"),
    ("tollbook.project", "project"),
    ("tollbook.agent", "agent"),
    ("tollbook.user", "user_id"),
    ("tollbook.session", "session_id"),
    ("team.id", "team"),
    ("team", "team"),
    ("department", "team"),
    ("cost_center", "team"),
    ("service.namespace", "project"),
    ("deployment.environment.name", "environment"),
    ("gen_ai.agent.name", "agent"),
    ("service.name", "agent"),
)
_LABEL_ATTRIBUTE = "tollbook.label."


class CheckRequest(Strict):
    """May this be spent? `scope` tells whose call it is, `model` and `estimate` what it will need.

    `attributes` may carry what the caller's telemetry will carry (`tollbook.team`, `service.name`, ...); a
    dimension that `scope` names wins over them. With `reserve` the estimate is held back for `ttl_s` seconds
    (600 unless told), once for an `idempotency_key`, however often that is sent.
    """

    scope: Scope = Scope()
    model: Name | None = None
    attributes: dict[Name, str | int | float | bool | None] = Field(
        default_factory=dict, max_length=MAX_ATTRIBUTES
    )
    trace_id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")] | None = None
    estimate: Estimate | None = None
    reserve: bool = False
    ttl_s: Annotated[int, Field(ge=1, le=86_400)] | None = None
    idempotency_key: Name | None = None

    def dimensions(self) -> dict[str, str]:
        """The dimensions told by scope, attributes and model: dimension -> value."""
        told = self.scope.dimensions()
        if self.attributes:
            told = _told_by(self.attributes) | told
        if self.model is not None:
            told.setdefault("model", self.model)
        return told


def _told_by(attributes: Mapping[str, object]) -> dict[str, str]:
    told: dict[str, str] = {}
    for key, dimension in _ATTRIBUTES:
        value = attributes.get(key)
        if isinstance(value, str) and value:
            told.setdefault(dimension, value)
    for key, value in attributes.items():
        if key.startswith(_LABEL_ATTRIBUTE) and isinstance(value, str) and value:
            told[LABEL_PREFIX + key.removeprefix(_LABEL_ATTRIBUTE)] = value
    return told


@dataclass  # without slots: its dictionary is written as JSON in a third of the time
class BudgetFigures:
    """Where one budget stands now. Amounts are decimal strings in the meter's unit (US dollars, tokens,
    calls).

    `spent` is what the ledger has recorded, NULL while a new budget's calls are still being counted;
    `unpriced_calls` are calls of the period that are not in it because their cost or tokens are unknown.
    `estimate` is what the check adds, NULL when that is not known; `action` the sharpest threshold passed.
    `reserved` is held by reservations, and what was settled and is not yet in `spent`.
    """

    id: str
    meter: Meter
    limit: str
    period: str
    spent: str | None
    reserved: str
    remaining: str | None
    resets_at: datetime | None
    estimate: str | None = None
    unpriced_calls: int = 0
    action: Action | None = None
    threshold: str | None = None
    shadow: bool = False


@dataclass  # without slots, as BudgetFigures
class CheckReply:
    """The answer to a check: a denial is an answer, not an error.

    `unmatched` lists the dimensions that some budget names, the check leaves out, and that alone keep
    that budget from matching. `retry_after_s` is the earliest that asking again can help, NULL when
    waiting will not. Where it denies, `max_output_tokens` is the largest output with which the call fits, and
    `cheaper_model` one of the same provider and access with which the whole call fits; NULL where there is
    none. `used_up` are windows of the caller's plan with nothing left. `advice` says the same and more in
    sentences.
    """

    decision: Decision
    reason: str
    budgets: list[BudgetFigures]
    unmatched: list[str]
    reservation_id: str | None = None
    expires_at: datetime | None = None
    retry_after_s: int | None = None
    estimate_usd: str | None = None
    max_output_tokens: int | None = None
    cheaper_model: str | None = None
    used_up: list[UsedUp] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)

    def to_json(self) -> bytes:
        """As it goes out."""
        return orjson.dumps(self, option=orjson.OPT_UTC_Z)


class BudgetEvent(Strict):
    """Something worth keeping: a check that was denied or warned, or recorded spend that passed a
    threshold.
    """

    at: datetime
    source: Literal["check", "spend"]
    decision: Action
    reason: str
    scope: Scope = Scope()
    model: str | None = None
    trace_id: str | None = None
    estimate_usd: str | None = None
    budgets: list[BudgetFigures]


class PutBudget(Strict):
    """Control record: the budget is defined so from here on."""

    v: Literal[1] = 1
    op: Literal["put"] = "put"
    budget: Budget


class DeleteBudget(Strict):
    """Control record: the budget is gone."""

    v: Literal[1] = 1
    op: Literal["delete"] = "delete"
    budget_id: Id


class RecordEvent(Strict):
    """Control record: keep this event in `budget_events`."""

    v: Literal[1] = 1
    op: Literal["event"] = "event"
    event: BudgetEvent


Control = PutBudget | DeleteBudget | RecordEvent
_CONTROL: TypeAdapter[Control] = TypeAdapter(
    Annotated[Control, Field(discriminator="op")], config=ConfigDict(hide_input_in_errors=True)
)


def encode_control(op: Literal["put", "delete", "event"], **fields: Budget | BudgetEvent | str) -> bytes:
    """The journal record of `put` (budget=), `delete` (budget_id=) or `event` (event=), as versioned JSON."""
    return _CONTROL.dump_json(_CONTROL.validate_python({"op": op, **fields}))


def decode_control(body: bytes) -> Control:
    """Reads a control record back; ControlError when it cannot be."""
    try:
        return _CONTROL.validate_json(body)
    except ValidationError as error:
        raise ControlError(*fault_sentences(error, Strict)) from None


def read_budget(body: bytes, *, budget_id: str | None = None) -> Budget:
    """A definition from a request's JSON; with `budget_id` (PUT) the body may leave `id` out. Raises
    InvalidBudget.
    """
    if budget_id is None:
        return _from_api(read(Budget, body))
    try:
        told: Any = json.loads(body)
    except ValueError:
        raise InvalidBudget("the body is not JSON") from None
    if isinstance(told, dict) and told.setdefault("id", budget_id) != budget_id:
        raise InvalidBudget("id: must be the id in the path, or be left out")
    return _from_api(read(Budget, json.dumps(told).encode()))


def _from_api(budget: Budget) -> Budget:
    if budget.origin != "api":
        raise InvalidBudget("origin: must be left out; budgets of the settings are defined there")
    return budget


def read_check(body: bytes) -> CheckRequest:
    """A check from a request's JSON. Raises InvalidBudget."""
    return read(CheckRequest, body)


def read(model: type[_Model], body: bytes) -> _Model:
    """A request's JSON as a strict model. Raises InvalidBudget."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise InvalidBudget(*fault_sentences(error, model)) from None


def fault_sentences(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One sentence for each place that does not validate, without what stands there."""
    return [
        f"{'.'.join(str(part) for part in place)}: {what}" if place else what
        for place, what in placed_faults(error, model)
    ]


def placed_faults(error: ValidationError, model: type[BaseModel]) -> list[tuple[tuple[int | str, ...], str]]:
    """The same as the place (keys and positions) and what is wrong there."""
    told: list[Any] = error.errors(include_url=False, include_context=False, include_input=False)
    return [(each["loc"], _wrong(each, model)) for each in told]


_INNER: dict[object, type[BaseModel]] = {"scope": Scope, "estimate": Estimate, "thresholds": Threshold}


def _wrong(error: Mapping[str, Any], model: type[BaseModel]) -> str:
    """What is wrong, with the allowed keys and the nearest for an unknown one."""
    if error["type"] == "extra_forbidden":
        return _unknown_key(error["loc"], model)
    if error["type"] == "union_tag_invalid":
        return "op: unknown operation"
    return str(error["msg"]).removeprefix("Value error, ")


def _unknown_key(loc: tuple[object, ...], model: type[BaseModel]) -> str:
    parents = [_INNER[part] for part in loc[:-1] if part in _INNER]
    allowed = list((parents[-1] if parents else model).model_fields)
    near = difflib.get_close_matches(str(loc[-1]), allowed, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"unknown key; {hint}allowed are {', '.join(allowed)}"
