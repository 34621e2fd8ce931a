"""One reservation as the front knows it, and what it adds to a budget's `reserved` at this moment.

A hold counts in whatever period holds now, for its call may still begin in the next one. What was settled
counts on until the ledger's spend holds it, so that nothing is ever counted in neither. Pure; no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal

from billing.budget import EXACT, Budget, Decision
from billing.budget_check import amount_of
from billing.budget_period import EPOCH
from billing.budget_price import Costs
from billing.budget_spend import ZERO
from billing.reservation import ToldCosts

__all__ = ["Hold", "Settled", "microseconds", "moment", "weight"]

_MICROSECOND = timedelta(microseconds=1)
State = Literal["held", "partly_settled", "settled", "recorded", "released", "expired"]


@dataclass(frozen=True, slots=True)
class Settled:
    """One settlement: the whole need so far, in the front's figures."""

    number: int
    digest: str
    costs: Costs
    final: bool


@dataclass(slots=True, eq=False)
class Hold:
    """A reservation. `settlements` are told and not yet in the ledger's spend, `recorded` is the last there.

    `settling` is on its way to the disk. `counted` says what it adds to each budget it falls under.
    `matched`: telemetry has told of the call. `written`: its record is on disk.
    """

    id: str
    key: str | None
    digest: str
    decision: Decision
    told: Mapping[str, str]
    model: str | None
    costs: Costs
    at_us: int
    expires_us: int
    trace_id: str | None = None
    written: bool = False
    settlements: list[Settled] = field(default_factory=list)
    recorded: Settled | None = None
    settling: Settled | None = None
    matched: bool = False
    released: bool = False
    expired: bool = False
    forgotten: bool = False
    counted: dict[str, Decimal] = field(default_factory=dict)

    @property
    def latest(self) -> Settled | None:
        """The settlement that holds now."""
        return self.settlements[-1] if self.settlements else self.recorded

    @property
    def over(self) -> bool:
        """Whether it adds nothing any more, unless somebody settles it late."""
        if self.matched or self.released:
            return True
        if self.settlements or self.settling:
            return False
        return self.expired or (self.recorded is not None and self.recorded.final)

    @property
    def state(self) -> State:
        """How it stands, for its owner."""
        if self.released:
            return "released"
        if self.matched:
            return "recorded"
        latest = self.latest
        if latest is not None:
            return "settled" if latest.final or self.expired else "partly_settled"
        return "expired" if self.expired else "held"

    def mark(self, told: Mapping[str, Any]) -> None:
        """Takes over how far the ledger has come with it."""
        self.matched = told["matched"]
        self.released = self.released or told["released"]
        while self.settlements and self.settlements[0].number <= told["number"]:
            self.recorded = self.settlements.pop(0)
        if (settled := told.get("settled")) and (
            self.recorded is None or self.recorded.number < settled["number"]
        ):
            self.recorded = _settled(settled)  # another front was told of it

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Hold:
        """From the ledger's own account of it."""
        hold = cls(
            id=entry["id"],
            key=entry.get("key"),
            digest=entry["digest"],
            decision=entry["decision"],
            told=entry["told"],
            model=entry.get("model"),
            costs=ToldCosts.model_validate(entry["costs"]).costs(),
            at_us=entry["at_us"],
            expires_us=entry["expires_us"],
            trace_id=entry.get("trace_id"),
            written=True,
            matched=entry["matched"],
            released=entry["released"],
        )
        if told := entry.get("settled"):
            hold.recorded = _settled(told)
        return hold

    def take_over(self, known: Hold) -> None:
        """Keeps what this front has told of it since."""
        self.released = self.released or known.released
        last = self.recorded.number if self.recorded else 0
        self.settlements = [each for each in known.settlements if each.number > last]

    def forget(self) -> None:
        """Keeps what answers a repetition, and lets the rest go."""
        self.told, self.costs, self.counted, self.forgotten = {}, Costs(), {}, True


def _settled(told: Mapping[str, Any]) -> Settled:
    costs = ToldCosts.model_validate(told["costs"]).costs()
    return Settled(told["number"], told["digest"], costs, told["final"])


def weight(hold: Hold, budget: Budget) -> Decimal:
    """What the reservation adds to this budget's `reserved`, in the meter's unit."""
    if hold.matched or hold.released:
        return ZERO
    settled = _weight(hold, budget, hold.latest)
    return settled if hold.settling is None else max(settled, _weight(hold, budget, hold.settling))


def _weight(hold: Hold, budget: Budget, latest: Settled | None) -> Decimal:
    held = ZERO if hold.expired else amount_of(budget, hold.costs) or ZERO
    if latest is None:
        return held
    needed = amount_of(budget, latest.costs)
    ended = latest.final or hold.expired
    if needed is None:  # a cost that is not known yet: the estimate stands in until the ledger has told
        return ZERO if ended and latest is hold.recorded else amount_of(budget, hold.costs) or ZERO
    goal = needed if ended else max(held, needed)
    recorded = ZERO if hold.recorded is None else amount_of(budget, hold.recorded.costs) or ZERO
    return max(ZERO, EXACT.subtract(goal, recorded))


def moment(microseconds: int) -> datetime:
    """Microseconds since 1970 as a UTC time."""
    return EPOCH + microseconds * _MICROSECOND


def microseconds(at: datetime) -> int:
    """A time as microseconds since 1970."""
    return (at - EPOCH) // _MICROSECOND
