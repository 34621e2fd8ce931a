"""The budgets as the front knows them: definitions and spend in memory, and the answer to a check.

A reply never waits for a database, a disk or another process, and costs the same whether ten budgets are
defined or ten thousand: budgets are found by the values of the dimensions they name, not by trying each.
Spend is not counted here. It comes from the ledger, first as a snapshot and then as exact changes in the
order of its commits; a missing change is refused (SpendGap), never guessed. Light: the standard library
and pydantic.

Messages from the ledger (JSON-able; amounts are decimal strings, times whole seconds since 1970):

    snapshot  {"seq", "offset", "at_s", "budgets": [entry]}
    delta     {"seq", "offset", "at_s", "changes": [change], "defined": [entry], "deleted": [id]}
    entry     {"budget": definition, "offset": journal offset of the definition, "spend": [bucket]}
    bucket    {"bucket_s", "amount", "unpriced"}
    change    {"budget": id, "defined": offset of the definition, "bucket_s", "amount", "unpriced"}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from billing.budget import (
    EXACT,
    Budget,
    BudgetEvent,
    BudgetFigures,
    CheckReply,
    CheckRequest,
    ReservationsUnavailable,
    SpendGap,
    Threshold,
    decimal_text,
)
from billing.budget_check import Standing, figures, judge, passing_sentence
from billing.budget_index import ScopeIndex
from billing.budget_period import EPOCH
from billing.budget_price import Quotes, price, recognised
from billing.budget_reply import event_of, passing_event, reply_to
from billing.budget_spend import Spend, spend_of

__all__ = ["BudgetBook", "event_of"]

Allowances = tuple[tuple[Decimal, Threshold], ...]


@dataclass(slots=True)
class _State:
    """One budget. `counted_for` is the definition (journal offset) its spend belongs to; None: not
    counted yet.
    """

    budget: Budget
    offset: int
    spend: Spend
    allowances: Allowances
    counted_for: int | None = None
    told: set[tuple[datetime | None, Threshold]] = field(default_factory=set)

    @classmethod
    def of(cls, budget: Budget, offset: int) -> _State:
        allowances = tuple((EXACT.multiply(each.at, budget.limit), each) for each in budget.thresholds)
        return cls(budget, offset, spend_of(budget.parsed_period()), allowances)

    def at(self, now: datetime) -> Standing:
        self.spend.roll(now)
        return Standing(self.budget, self.spend, self.allowances, self.counted_for is not None)

    def take_over(self, other: _State) -> None:
        """Goes on with the spend of the same budget's other definition, if that counts the same calls."""
        if self.budget.spend_key() == other.budget.spend_key():
            self.spend, self.counted_for, self.told = other.spend, other.counted_for, other.told

    def count_anew(self, entry: Mapping[str, Any]) -> None:
        self.spend = spend_of(self.budget.parsed_period())
        self.counted_for = entry["offset"]
        for bucket in entry["spend"]:
            self.spend.add(bucket["bucket_s"], Decimal(bucket["amount"]), bucket["unpriced"])

    def news(self, now: datetime) -> list[BudgetEvent]:
        """Thresholds that recorded spend has passed since this was last asked, for each period once."""
        standing = self.at(now)
        period_end = None if self.budget.period.startswith("rolling") else self.spend.resets_at()
        passed = {(period_end, each) for allowance, each in self.allowances if self.spend.amount > allowance}
        fresh = sorted((each for _, each in passed - self.told), key=lambda each: each.at)
        self.told = passed
        return [_passing(standing, each, now=now) for each in fresh]


def _passing(standing: Standing, threshold: Threshold, *, now: datetime) -> BudgetEvent:
    shown = figures(standing, action=threshold.action, threshold=threshold)
    return passing_event(
        shown, threshold, reason=passing_sentence(standing.budget, shown, threshold), now=now
    )


class BudgetBook:
    """All budgets, their spend as of the ledger's last commit, and the answers. Not for use by several
    threads.

    `ready` is false until the first snapshot: until then a reply would know no spend.
    """

    def __init__(self) -> None:
        self._states: dict[str, _State] = {}
        self._index = ScopeIndex()
        self._deleted: dict[str, int] = {}  # id -> offset, until the ledger knows of it too
        self._seq = -1
        self.offset = 0

    @property
    def ready(self) -> bool:
        """Whether spend is known."""
        return self._seq >= 0

    def put(self, budget: Budget, offset: int) -> None:
        """Defines a budget, or defines it anew; `offset` is the journal position of that record."""
        known = self._states.get(budget.id)
        if offset < max(known.offset if known else 0, self._deleted.get(budget.id, 0)):
            return
        self._deleted.pop(budget.id, None)
        state = _State.of(budget, offset)
        if known is not None:
            state.take_over(known)
        self._enter(state)

    def delete(self, budget_id: str, offset: int) -> None:
        """Removes a budget; one that does not exist is no error."""
        known = self._states.get(budget_id)
        if known is None or known.offset < offset:
            self._deleted[budget_id] = offset
            self._leave(budget_id)

    def all(self) -> list[Budget]:
        """Every budget, by id."""
        return [self._states[budget_id].budget for budget_id in sorted(self._states)]

    def get(self, budget_id: str) -> Budget | None:
        """The budget of that id."""
        state = self._states.get(budget_id)
        return None if state is None else state.budget

    def pending(self, budget_id: str) -> bool:
        """Whether the budget's spend is still being counted by the ledger."""
        state = self._states.get(budget_id)
        return state is not None and state.counted_for is None

    def figures(self, budget_id: str, now: datetime) -> BudgetFigures | None:
        """Where the budget stands."""
        state = self._states.get(budget_id)
        return None if state is None else figures(state.at(now))

    def check(self, request: CheckRequest, now: datetime, quotes: Quotes | None) -> CheckReply:
        """Allow, warn or deny, from recorded spend. Raises ReservationsUnavailable when asked to reserve."""
        if request.reserve:
            raise ReservationsUnavailable(
                "this version of tollbook answers checks but holds no reservations yet"
            )
        told, quote = recognised(request, now=now, quotes=quotes)
        ids, unmatched = self._index.match(told)
        costs = price(request, told, quote, now=now, quotes=quotes)
        verdicts = [judge(self._states[each].at(now), costs) for each in ids]
        estimate = None if costs.billed_usd is None else decimal_text(costs.billed_usd)
        return reply_to(verdicts, unmatched, now=now, estimate_usd=estimate)

    def apply_snapshot(self, snapshot: Mapping[str, Any]) -> None:
        """Takes the ledger's whole state; definitions and deletions newer than it are kept."""
        self._seq, self.offset = snapshot["seq"], snapshot["offset"]
        told = {entry["budget"]["id"] for entry in snapshot["budgets"]}
        for budget_id, state in list(self._states.items()):
            if budget_id not in told and state.offset <= self.offset:
                self._leave(budget_id)
            state.counted_for = None
        for entry in snapshot["budgets"]:
            self._define(entry)
        now = EPOCH + timedelta(seconds=snapshot["at_s"])
        for state in self._states.values():
            state.news(now)  # what was passed before is not news
        self._forget_deletions()

    def apply_delta(self, delta: Mapping[str, Any]) -> list[BudgetEvent]:
        """Applies the change of one commit; returns the thresholds that recorded spend has now passed.

        A delta that came before is ignored. Raises SpendGap when one is missing.
        """
        if delta["seq"] <= self._seq:
            return []
        if not self.ready or delta["seq"] != self._seq + 1:
            raise SpendGap("a change of spend is missing between the ledger and the budgets")
        self._seq, self.offset = delta["seq"], delta["offset"]
        for budget_id in delta["deleted"]:
            if budget_id in self._states and self._states[budget_id].offset <= self.offset:
                self._leave(budget_id)
        touched = self._change(delta["changes"]) | {self._define(entry) for entry in delta["defined"]}
        self._forget_deletions()
        return self._news(touched, EPOCH + timedelta(seconds=delta["at_s"]))

    def _change(self, changes: Iterable[Mapping[str, Any]]) -> set[str]:
        touched: set[str] = set()
        for change in changes:
            state = self._states.get(change["budget"])
            if state is not None and state.counted_for == change["defined"]:
                state.spend.add(change["bucket_s"], Decimal(change["amount"]), change["unpriced"])
                touched.add(change["budget"])
        return touched

    def _define(self, entry: Mapping[str, Any]) -> str:
        """Takes over a definition with its spend, unless a newer one is known."""
        budget = Budget.model_validate(entry["budget"])
        if self._deleted.get(budget.id, -1) > entry["offset"]:
            return budget.id
        known = self._states.get(budget.id)
        state = _State.of(budget, entry["offset"])
        state.count_anew(entry)
        if known is None or known.offset <= entry["offset"]:
            state.told = known.told if known else state.told
            self._enter(state)
        else:
            known.take_over(state)
        return budget.id

    def _enter(self, state: _State) -> None:
        self._leave(state.budget.id)
        self._states[state.budget.id] = state
        self._index.add(state.budget.scope.dimensions(), state.budget.id)

    def _leave(self, budget_id: str) -> None:
        state = self._states.pop(budget_id, None)
        if state is not None:
            self._index.remove(state.budget.scope.dimensions(), budget_id)

    def _forget_deletions(self) -> None:
        self._deleted = {each: offset for each, offset in self._deleted.items() if offset > self.offset}

    def _news(self, touched: Iterable[str], now: datetime) -> list[BudgetEvent]:
        states = [self._states[each] for each in sorted(touched) if each in self._states]
        return [event for state in states for event in state.news(now)]
