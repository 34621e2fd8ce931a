"""The budgets as the front knows them: definitions and spend in memory, and the answer to a check.

A reply never waits for a database, a disk or another process, and costs the same whether ten budgets are
defined or ten thousand: budgets are found by the values of the dimensions they name, not by trying each.
Spend is not counted here. It comes from the ledger, first as a snapshot and then as exact changes in the
order of its commits; a missing change is refused (SpendGap), never guessed. Light: the standard library
and pydantic.

Messages from the ledger (JSON-able; amounts are decimal strings, times whole seconds since 1970):

    snapshot  {"seq", "offset", "at_s", "budgets": [entry], "holds": [hold]}
    delta     {"seq", "offset", "at_s", "changes": [change], "defined": [entry], "deleted": [id],
               "holds": [hold], "marks": [mark]}
    entry     {"budget": definition, "offset": journal offset of the definition, "spend": [bucket]}
    bucket    {"bucket_s", "amount", "unpriced"}
    change    {"budget": id, "defined": offset of the definition, "bucket_s", "amount", "unpriced"}
    hold      a reservation as the ledger has it (`billing.reservation_hold.Hold.of`)
    mark      {"id", "number": of the settlement in spend, "matched", "released"}

Reservations are counted here and nowhere else while they are open: `hold` adds what a check was promised to
every budget it falls under at once, so that the next check sees it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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
    SpendGap,
    Threshold,
    decimal_text,
)
from billing.budget_check import Standing, Verdict, figures, judge, passing_sentence
from billing.budget_index import ScopeIndex
from billing.budget_period import EPOCH
from billing.budget_price import Costs, Quotes, price, recognised
from billing.budget_reply import event_of, passing_event, reply_to
from billing.budget_spend import ZERO, Spend, spend_of
from billing.reservation_book import HoldBook
from billing.reservation_hold import Hold, microseconds, weight

__all__ = ["BudgetBook", "Judged", "event_of"]

_SLICE = 200
"""So many changes are applied between two answers: the loop is never kept longer."""

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
    reserved: Decimal = ZERO
    told: set[tuple[datetime | None, Threshold]] = field(default_factory=set)

    @classmethod
    def of(cls, budget: Budget, offset: int) -> _State:
        allowances = tuple((EXACT.multiply(each.at, budget.limit), each) for each in budget.thresholds)
        return cls(budget, offset, spend_of(budget.parsed_period()), allowances)

    def at(self, now: datetime) -> Standing:
        self.spend.roll(now)
        spent, reserved, counted = self.spend.amount, self.reserved, self.counted_for is not None
        used = EXACT.add(spent, reserved) if reserved else spent
        return Standing(self.budget, self.spend, self.allowances, counted, reserved, used)

    def bring_up(self, shown: BudgetFigures) -> None:
        """Puts what is reserved now into the figures."""
        left = EXACT.subtract(self.budget.limit, EXACT.add(self.spend.amount, self.reserved))
        shown.reserved, shown.remaining = decimal_text(self.reserved), decimal_text(left)

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


@dataclass(slots=True)
class Judged:
    """A check, judged: the dimensions and costs it was taken for, and the budgets' verdicts by id.

    `counting`: some of them have spend that is not known yet.
    """

    told: dict[str, str]
    costs: Costs
    verdicts: dict[str, Verdict]
    reply: CheckReply
    counting: bool


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
        self._fresh = ScopeIndex()
        self._has_fresh = False
        self.offset = 0
        self.holds = HoldBook()

    @property
    def ready(self) -> bool:
        """Whether spend is known."""
        return self._seq >= 0

    @property
    def empty(self) -> bool:
        """Whether no budget is defined."""
        return not self._states

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
        self._weigh_fresh()

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

    def scope_of(self, budget_id: str) -> dict[str, str]:
        """The dimensions that a budget names: dimension -> value."""
        return self._states[budget_id].budget.scope.dimensions()

    def of_settings(self) -> dict[str, Budget]:
        """The budgets that settings defined, by id."""
        return {each.id: each for each in self.all() if each.origin == "settings"}

    def pending(self, budget_id: str) -> bool:
        """Whether the budget's spend is still being counted by the ledger."""
        state = self._states.get(budget_id)
        return state is not None and state.counted_for is None

    def figures(self, budget_id: str, now: datetime) -> BudgetFigures | None:
        """Where the budget stands."""
        self.expire(now)
        state = self._states.get(budget_id)
        return None if state is None else figures(state.at(now))

    def check(self, request: CheckRequest, now: datetime, quotes: Quotes | None) -> CheckReply:
        """Allow, warn or deny, from recorded spend and what is reserved."""
        return self.judge(request, now, quotes).reply

    def judge(self, request: CheckRequest, now: datetime, quotes: Quotes | None) -> Judged:
        """The answer to a check, with what a reservation of it would hold."""
        self.expire(now)
        told, quote = recognised(request, now=now, quotes=quotes)
        ids, unmatched = self._index.match(told)
        costs = price(request, told, quote, now=now, quotes=quotes)
        verdicts: dict[str, Verdict] = {}
        counting = False
        for budget_id in ids:
            standing = self._states[budget_id].at(now)
            verdicts[budget_id] = judge(standing, costs)
            counting |= not standing.counted
        estimate = None if costs.billed_usd is None else decimal_text(costs.billed_usd)
        reply = reply_to([*verdicts.values()], unmatched, now=now, estimate_usd=estimate)
        return Judged(told, costs, verdicts, reply, counting)

    # --- reservations ---

    def hold(self, hold: Hold) -> None:
        """Counts a reservation from here on."""
        self._hold(hold, self._index.match(hold.told)[0])

    def _hold(self, hold: Hold, budget_ids: Iterable[str]) -> None:
        self.holds.add(hold)
        hold.counted = dict.fromkeys(budget_ids, ZERO)
        self._weigh(hold)

    def let_go(self, hold: Hold) -> None:
        """Forgets a reservation that was never promised."""
        self._uncount(hold)
        self.holds.drop(hold)

    def weigh(self, hold: Hold, now: datetime) -> None:
        """Counts a reservation anew that was settled, released or told of."""
        if not hold.over and not self.holds.is_open(hold.id):
            self.hold(hold)  # it had expired, and is settled after all
        self._weigh(hold)
        if hold.over:
            self.holds.end(hold, microseconds(now))

    def expire(self, now: datetime) -> None:
        """Lets go of what has expired by now."""
        now_us = microseconds(now)
        for hold in self.holds.due(now_us):
            self._weigh(hold)
            if hold.over:
                self.holds.end(hold, now_us)

    def figures_of(self, hold: Hold, now: datetime) -> list[BudgetFigures]:
        """Where the budgets stand that a reservation falls under."""
        ids = [] if hold.forgotten else self._index.match(hold.told)[0]
        return [figures(self._states[each].at(now)) for each in ids]

    def reserve(self, hold: Hold, judged: Judged) -> None:
        """Counts the reservation of a check just judged, and brings the figures in its reply up to it."""
        self._hold(hold, judged.verdicts)
        for budget_id, verdict in judged.verdicts.items():
            self._states[budget_id].bring_up(verdict.figures)

    def _weigh(self, hold: Hold) -> None:
        for budget_id, counted in hold.counted.items():
            state = self._states[budget_id]
            amount = weight(hold, state.budget)
            if amount != counted:
                state.reserved = EXACT.add(state.reserved, EXACT.subtract(amount, counted))
                hold.counted[budget_id] = amount

    def _uncount(self, hold: Hold) -> None:
        for budget_id, counted in hold.counted.items():
            state = self._states[budget_id]
            state.reserved = EXACT.subtract(state.reserved, counted)
        hold.counted = {}

    def _weigh_fresh(self) -> None:
        """Counts the open reservations in the budgets that were entered since this was last done."""
        if not self._has_fresh:
            return
        for hold in self.holds.open():
            found = [each for each in self._fresh.match(hold.told)[0] if each in self._states]
            if found:
                hold.counted.update(dict.fromkeys(found, ZERO))
                self._weigh(hold)
        self._fresh, self._has_fresh = ScopeIndex(), False

    def _take_holds(self, told: Iterable[Mapping[str, Any]], now: datetime) -> None:
        """Takes over reservations that the ledger knows and this front may not."""
        for entry in told:
            known = self.holds.get(entry["id"])
            if known is not None and (entry["matched"] or not known.matched):
                number = entry["settled"]["number"] if entry.get("settled") else 0
                self._mark(known, {**entry, "number": number}, now)
                continue
            hold = Hold.of(entry)
            hold.expired = hold.expires_us <= microseconds(now)
            if known is not None:
                hold.take_over(known)
                self.let_go(known)
            self.hold(hold)
            self.weigh(hold, now)

    def _told_apart(
        self, told: Iterable[Mapping[str, Any]]
    ) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
        """Of reservations told in full those that count less afterwards, and those that may count more."""
        known: list[Mapping[str, Any]] = []
        unknown: list[Mapping[str, Any]] = []
        for entry in told:
            hold = self.holds.get(entry["id"])
            less = hold is not None and (entry["matched"] or not hold.matched)
            (known if less else unknown).append(entry)
        return known, unknown

    def _mark(self, hold: Hold, mark: Mapping[str, Any], now: datetime) -> None:
        hold.mark(mark)
        self.weigh(hold, now)

    # --- what the ledger tells ---

    def apply_snapshot(self, snapshot: Mapping[str, Any]) -> None:
        """Takes the ledger's whole state; what is newer than it is kept."""
        self._seq, self.offset = snapshot["seq"], snapshot["offset"]
        now = EPOCH + timedelta(seconds=snapshot["at_s"])
        told = {entry["budget"]["id"] for entry in snapshot["budgets"]}
        for budget_id, state in list(self._states.items()):
            if budget_id not in told and state.offset <= self.offset:
                self._leave(budget_id)
            state.counted_for = None
        for entry in snapshot["budgets"]:
            self._define(entry)
        self._weigh_fresh()
        self._take_holds(snapshot.get("holds", ()), now)
        for state in self._states.values():
            state.news(now)  # what was passed before is not news
        self._forget_deletions()

    def apply_delta(self, delta: Mapping[str, Any]) -> list[BudgetEvent]:
        """Applies the change of one commit; returns the thresholds that recorded spend has now passed.

        A delta that came before is ignored. Raises SpendGap when one is missing.
        """
        events: list[BudgetEvent] = []
        for part in self.delta_in_parts(delta):
            events.extend(part)
        return events

    def delta_in_parts(self, delta: Mapping[str, Any]) -> Iterator[list[BudgetEvent]]:
        """The same, step by step, so that others can be answered in between.

        Between two steps every budget counts at least as much as before or after the whole: first what
        reservations hold again, then spend, and last what they hold no longer.
        """
        if delta["seq"] <= self._seq:
            return
        if not self.ready or delta["seq"] != self._seq + 1:
            raise SpendGap("a change of spend is missing between the ledger and the budgets")
        self._seq = delta["seq"]
        now = EPOCH + timedelta(seconds=delta["at_s"])
        touched = self._redefine(delta)
        known, unknown = self._told_apart(delta.get("holds", ()))
        self._take_holds(unknown, now)
        changes = delta["changes"]
        for start in range(0, len(changes), _SLICE):
            touched |= self._change(changes[start : start + _SLICE])
            yield []
        marks = delta.get("marks", ())
        for start in range(0, len(marks), _SLICE):
            self._mark_each(marks[start : start + _SLICE], now)
            yield []
        self._take_holds(known, now)
        self.offset = delta["offset"]  # only now is all of it known, for those who wait for it
        self._forget_deletions()
        news = sorted(touched)
        for start in range(0, len(news), _SLICE):
            yield self._news(news[start : start + _SLICE], now)

    def _redefine(self, delta: Mapping[str, Any]) -> set[str]:
        for budget_id in delta["deleted"]:
            if budget_id in self._states and self._states[budget_id].offset <= delta["offset"]:
                self._leave(budget_id)
        touched = {self._define(entry) for entry in delta["defined"]}
        self._weigh_fresh()
        return touched

    def _mark_each(self, marks: Iterable[Mapping[str, Any]], now: datetime) -> None:
        for mark in marks:
            hold = self.holds.get(mark["id"])
            if hold is not None:
                self._mark(hold, mark, now)

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
        budget_id: str = entry["budget"]["id"]
        if self._deleted.get(budget_id, -1) > entry["offset"]:
            return budget_id
        known = self._states.get(budget_id)
        same = known is not None and known.offset == entry["offset"] > 0
        budget = known.budget if known is not None and same else Budget.model_validate(entry["budget"])
        state = _State.of(budget, entry["offset"])
        state.count_anew(entry)
        if known is None or known.offset <= entry["offset"]:
            state.told = known.told if known else state.told
            self._enter(state)
        else:
            known.take_over(state)
        return budget.id

    def _enter(self, state: _State) -> None:
        known = self._states.get(state.budget.id)
        if known is not None and (known.budget is state.budget or known.budget == state.budget):
            state.reserved = known.reserved
            self._states[state.budget.id] = state
            return
        self._leave(state.budget.id)
        self._states[state.budget.id] = state
        self._index.add(state.budget.scope.dimensions(), state.budget.id)
        if len(self.holds):
            self._fresh.add(state.budget.scope.dimensions(), state.budget.id)
            self._has_fresh = True

    def _leave(self, budget_id: str) -> None:
        state = self._states.pop(budget_id, None)
        if state is not None:
            self._index.remove(state.budget.scope.dimensions(), budget_id)
            for hold in self.holds.open():
                hold.counted.pop(budget_id, None)

    def _forget_deletions(self) -> None:
        self._deleted = {each: offset for each, offset in self._deleted.items() if offset > self.offset}

    def _news(self, touched: Iterable[str], now: datetime) -> list[BudgetEvent]:
        states = [self._states[each] for each in sorted(touched) if each in self._states]
        return [event for state in states for event in state.news(now)]
