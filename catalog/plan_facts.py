"""The shapes of plans and of the operator's accounts: what `plans/*.toml` and an accounts file may say.

A plan's rules (which windows, in which unit, what overage costs) and fees ship with their source. How much
fits into a window is published by hardly anybody and changes without notice: sizes are the operator's to
write, per account. What is not written is unknown, and nothing here stands in for it.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from catalog.provider_facts import Access, Name
from catalog.toml_source import Data

__all__ = [
    "Account",
    "AccountFile",
    "Plan",
    "Tier",
    "Unit",
    "Weight",
    "Window",
    "WindowSize",
    "length_s",
]

Unit = Literal["requests", "tokens", "input_tokens", "list_usd", "credits", "prompts", "percent"]
"""What a quota is counted in. `requests`, `tokens`, `input_tokens` and `list_usd` (dollars at list price) can
be counted from calls, `credits` where the plan says how many a dollar is; `prompts` (what a person asks,
however many calls that takes) and `percent` (of a size the provider keeps to itself) only the provider tells.
"""

_SECONDS = {"m": 60, "h": 3600, "d": 86_400}


def length_s(text: str) -> int:
    """Give a length such as `5h`, `90m` or `7d` in seconds."""
    return int(text[:-1]) * _SECONDS[text[-1]]


def _exact(value: object) -> object:
    if isinstance(value, float):
        raise ValueError("an amount must be exact: write it as text, like '19.99'")
    if isinstance(value, str):
        if not re.fullmatch(r"\d{1,12}(\.\d{1,6})?", value):
            raise ValueError("an amount is a plain decimal, like '19.99', with at most six decimal places")
        return Decimal(value)
    return Decimal(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _is_short(value: Decimal) -> Decimal:
    if value != value.quantize(Decimal("1e-6")) or value >= 10**12:
        raise ValueError("an amount is below 10^12 and has at most six decimal places")
    return value


def _is_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("must be an IANA time zone, such as Europe/Berlin") from None
    return name


def _is_instant(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("an instant needs its offset: write it like 2026-08-16T00:00:00Z")
    return value.astimezone(UTC)


Amount = Annotated[Decimal, BeforeValidator(_exact), Field(ge=0), AfterValidator(_is_short)]
Size = Annotated[Decimal, BeforeValidator(_exact), Field(gt=0), AfterValidator(_is_short)]
Zone = Annotated[str, AfterValidator(_is_zone)]
Instant = Annotated[datetime, AfterValidator(_is_instant)]
Currency = Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")]
Length = Annotated[str, StringConstraints(pattern=r"^[1-9]\d{0,3}[mhd]$")]
Pattern = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Text = Annotated[str, StringConstraints(min_length=3)]
WindowKind = Literal["first_use", "sliding", "hour", "day", "week", "month", "renewal"]
"""When a window begins: with the first use after the last one ended (`first_use`, of a `length`); at every
moment, looking back a `length` (`sliding`); with the clock and calendar (`hour`, `day`, `week` from Monday,
`month`); with the plan's own month, from the day it renews (`renewal`).
"""


class Window(Data):
    """One quota of a plan."""

    id: Name
    kind: WindowKind
    length: Length | None = None
    unit: Unit | None = None
    """Where it is not the plan's."""
    models: list[Pattern] = Field(default_factory=list)
    """Canonical ids it is about (`*` for anything); empty: every model."""
    time_zone: Zone = "UTC"
    """Whose midnight and Monday count."""
    size: Size | None = None
    """How much fits, where the vendor says one number for every tier."""

    @model_validator(mode="after")
    def _has_its_length(self) -> Window:
        needs = self.kind in ("first_use", "sliding")
        if needs != (self.length is not None):
            raise ValueError(f"kind {self.kind} {'needs a' if needs else 'has no'} length")
        return self


class Tier(Data):
    """One size a plan is sold in."""

    id: Name
    fee: Amount
    """What one seat costs in a period."""
    currency: Currency = "USD"
    period: Literal["month"] = "month"
    sizes: dict[Name, Size] = Field(default_factory=dict)
    """Window -> how much fits, where the vendor says so."""
    source: Text | None = None
    checked: date | None = None


class Overage(Data):
    """What happens beyond the quota."""

    priced_at: Literal["list", "credits", "balance", "nothing"]
    """`list`: billed at list price; `credits`, `balance`: paid from what was bought before; `nothing`: calls
    are refused.
    """
    told_by: Text | None = None
    """What of an answer says that a call was over the quota."""


class Weight(Data):
    """How much of the quota one unit of some models draws."""

    models: list[Pattern] = Field(min_length=1)
    weight: Size


class Plan(Data):
    """One plan: what is counted, when its windows begin, what it costs."""

    id: Name
    name: Text
    provider: Name
    source: Text
    checked: date
    unit: Unit
    credits_per_usd: Size | None = None
    """How many credits a dollar at list price is."""
    ended: date | None = None
    """Since when it is not served any more."""
    note: Text | None = None
    overage: Overage | None = None
    tiers: list[Tier] = Field(default_factory=list)
    windows: list[Window] = Field(default_factory=list)
    weights: list[Weight] = Field(default_factory=list)

    @model_validator(mode="after")
    def _agrees(self) -> Plan:
        windows = [window.id for window in self.windows]
        for what, ids in (("tier", [tier.id for tier in self.tiers]), ("window", windows)):
            twice = {name for name in ids if ids.count(name) > 1}
            if twice:
                raise ValueError(f"{what} {', '.join(sorted(twice))} is written twice")
        unknown = {name for tier in self.tiers for name in tier.sizes} - set(windows)
        if unknown:
            raise ValueError(
                f"a tier has sizes of windows that the plan has not: {', '.join(sorted(unknown))}"
            )
        return self


class WindowSize(Data):
    """How much fits into one window of one seat of an account."""

    id: Name
    size: Size
    unit: Unit | None = None
    """Where you count it in another unit than the plan does."""


class Account(Data):
    """What the operator knows of some calls: which access they have since when, and under which plan.

    It is about the calls that fit `account_id`, `service` and `provider`, where the call itself does not tell
    its access; the most exact account decides.
    """

    id: Name
    access: Access
    plan: Name | None = None
    account_id: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = None
    service: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = None
    provider: Name | None = None
    since: Instant | None = None
    until: Instant | None = None
    tier: Name | None = None
    seats: Annotated[int, Field(ge=1, le=100_000)] = 1
    """How many seats are paid for. Every account id that telemetry tells has windows of its own."""
    invoice: Amount | None = None
    """What is invoiced for a month, all seats together, where that is not the tier's fee for each."""
    currency: Currency = "USD"
    renews_on: Annotated[int, Field(ge=1, le=31)] = 1
    """Day of the month on which the plan's month begins; in shorter months their last day."""
    time_zone: Zone = "UTC"
    windows: list[WindowSize] = Field(default_factory=list)

    @model_validator(mode="after")
    def _agrees(self) -> Account:
        if self.since and self.until and self.since >= self.until:
            raise ValueError("since must lie before until")
        covered = self.access in ("subscription", "credits")
        if self.plan is not None and not covered:
            raise ValueError("only access subscription or credits has a plan")
        if self.plan is None and (self.tier or self.windows or self.invoice is not None):
            raise ValueError("tier, windows and invoice belong to a plan: name it")
        return self


class AccountFile(Data):
    """A file of accounts, and of plans that the catalogue does not know or knows otherwise."""

    account: list[Account] = Field(default_factory=list)
    plan: list[Plan] = Field(default_factory=list)
