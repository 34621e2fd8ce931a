"""The answer to a check: what matches, what is counted, which threshold passes, and what is said."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from billing.budget import (
    Budget,
    CheckReply,
    SpendGap,
    decode_control,
    encode_control,
    read_budget,
    read_check,
)
from billing.budget_book import BudgetBook, event_of
from billing.budget_period import epoch_s, parse_period, period_start

NOW = datetime(2026, 11, 22, 8, 0, tzinfo=UTC)


@dataclass(frozen=True)
class Known:
    provider: str | None
    model: str | None


@dataclass(frozen=True)
class Price:
    list_cost_usd: Decimal | None
    resolution: Known | None = None


@dataclass
class PriceList:
    """Dollars per token of each model, and what was asked."""

    usd_per_token: dict[str, str] = field(
        default_factory=lambda: {"lab/cheap": "0.000001", "lab/dear": "0.0001"}
    )
    asked: list[Any] = field(default_factory=list)

    def quote(self, *, provider: str | None, model: str, at: datetime, usage: Mapping[str, int]) -> Price:
        self.asked.append((provider, model, at, usage))
        known = Known("lab-api", "lab/dear") if model == "dear-20260101" else None
        price = self.usd_per_token.get(known.model if known and known.model else model)
        return Price(None if price is None else Decimal(price) * sum(usage.values()), known)

    def dearest(self, *, usage: Mapping[str, int], at: datetime) -> Price:
        return Price(max(Decimal(price) for price in self.usd_per_token.values()) * sum(usage.values()))


def budget(budget_id: str, **fields: object) -> Budget:
    return read_budget(json.dumps({"id": budget_id, "limit": "1.00", "period": "day", **fields}).encode())


def entry(
    of: Budget, offset: int, spent: str = "0", *, unpriced: int = 0, at: datetime = NOW
) -> dict[str, Any]:
    bucket_s = epoch_s(period_start(parse_period(of.period, of.time_zone), at))
    spend = (
        [{"bucket_s": bucket_s, "amount": spent, "unpriced": unpriced}] if spent != "0" or unpriced else []
    )
    return {"budget": of.model_dump(mode="json"), "offset": offset, "spend": spend}


def book_of(*entries: dict[str, Any]) -> BudgetBook:
    book = BudgetBook()
    book.apply_snapshot({"seq": 0, "offset": 1000, "at_s": epoch_s(NOW), "budgets": list(entries)})
    return book


def delta(seq: int, *, at: datetime = NOW, **fields: Any) -> dict[str, Any]:
    return {
        "seq": seq,
        "offset": 1000 + seq,
        "at_s": epoch_s(at),
        "changes": [],
        "defined": [],
        "deleted": [],
        **fields,
    }


def spent(
    of: Budget, amount: str, *, at: datetime = NOW, defined: int = 1, unpriced: int = 0
) -> dict[str, Any]:
    bucket_s = epoch_s(period_start(parse_period(of.period, of.time_zone), at))
    return {"budget": of.id, "defined": defined, "bucket_s": bucket_s, "amount": amount, "unpriced": unpriced}


def ask(
    book: BudgetBook, *, at: datetime = NOW, quotes: PriceList | None = None, **fields: object
) -> CheckReply:
    return book.check(read_check(json.dumps(fields).encode()), at, quotes or PriceList())


# --- matching ---------------------------------------------------------------------------------------------

BUDGETS: list[tuple[str, dict[str, object]]] = [
    ("all", {}),
    ("team-a", {"team": "a"}),
    ("team-b", {"team": "b"}),
    ("a-session", {"team": "a", "session_id": "s"}),
    ("opus", {"model": "lab/dear"}),
    ("plan", {"access": "subscription"}),
    ("customer", {"labels": {"customer": "x"}}),
    ("a-customer", {"team": "a", "labels": {"customer": "x", "tier": "1"}}),
]


@pytest.mark.parametrize(
    ("asked", "matching", "unmatched"),
    [
        ({}, ["all"], ["access", "labels.customer", "labels.tier", "model", "session_id", "team"]),
        # team b has no session budget and no label budget with a team: those are not what keeps it out
        ({"scope": {"team": "b"}}, ["all", "team-b"], ["access", "labels.customer", "model"]),
        (
            {"scope": {"team": "a", "access": "payg", "labels": {"customer": "y"}}, "model": "lab/cheap"},
            ["all", "team-a"],
            ["session_id"],
        ),
        (
            {"scope": {"team": "a", "session_id": "s", "labels": {"customer": "x"}}, "model": "lab/dear"},
            ["a-session", "all", "customer", "opus", "team-a"],
            ["access", "labels.tier"],
        ),
        (
            {
                "scope": {
                    "team": "a",
                    "session_id": "t",
                    "model": "m",
                    "access": "subscription",
                    "labels": {"customer": "x", "tier": "1"},
                }
            },
            ["a-customer", "all", "customer", "plan", "team-a"],
            [],
        ),
    ],
)
def test_what_matches_and_what_was_left_out(
    asked: dict[str, Any], matching: list[str], unmatched: list[str]
) -> None:
    book = book_of(*(entry(budget(name, scope=scope), 1) for name, scope in BUDGETS))
    reply = ask(book, **asked)
    assert [each.id for each in reply.budgets] == matching
    assert reply.unmatched == unmatched


def test_left_out_dimensions_follow_definitions_and_deletions() -> None:
    book = book_of()
    assert ask(book, scope={"team": "a"}).unmatched == []
    book.put(budget("other", scope={"team": "o", "agent": "x"}), 1999)
    book.put(budget("one", scope={"team": "a", "agent": "x"}), 2000)
    book.put(budget("two", scope={"team": "a", "agent": "y"}), 2001)
    assert ask(book, scope={"team": "a"}).unmatched == ["agent"]
    book.delete("one", 2002)
    assert ask(book, scope={"team": "a"}).unmatched == ["agent"]
    book.put(budget("two", scope={"team": "b", "agent": "y"}), 2003)
    assert ask(book, scope={"team": "a"}).unmatched == []
    assert ask(book, scope={"team": "b"}).unmatched == ["agent"]
    book.delete("two", 2004)
    assert ask(book, scope={"team": "b"}).unmatched == []


# --- thresholds and money ---------------------------------------------------------------------------------

LADDER = [
    {"at": "0.5", "action": "notify"},
    {"at": "0.8", "action": "warn"},
    {"at": "0.9", "action": "warn"},
    {"at": "1.0", "action": "deny"},
]


@pytest.mark.parametrize(
    ("spend", "usd", "decision", "action", "threshold"),
    [
        ("0", "0.50", "allow", None, None),
        ("0", "0.500000000001", "allow", "notify", "0.5"),
        ("0.3", "0.5", "allow", "notify", "0.5"),
        ("0.3", "0.500000000001", "warn", "warn", "0.8"),
        ("0.95", "0", "warn", "warn", "0.9"),
        ("0.95", "0.05", "warn", "warn", "0.9"),
        ("0.95", "0.050000000001", "deny", "deny", "1"),
        ("0.999999999999", "0.000000000001", "warn", "warn", "0.9"),
        ("1.000000000001", "0", "deny", "deny", "1"),
    ],
)
def test_thresholds_to_the_last_digit(
    spend: str, usd: str, decision: str, action: str | None, threshold: str | None
) -> None:
    book = book_of(entry(budget("b", thresholds=LADDER), 1, spend))
    reply = ask(book, estimate={"usd": usd})
    assert (reply.decision, reply.budgets[0].action, reply.budgets[0].threshold) == (
        decision,
        action,
        threshold,
    )


def test_only_warnings_never_deny_and_denying_may_come_late() -> None:
    soft = budget("soft", thresholds=[{"at": "1", "action": "warn"}])
    late = budget("late", thresholds=[{"at": "1.2", "action": "deny"}])
    book = book_of(entry(soft, 1, "50"), entry(late, 1, "1.1"))
    assert ask(book, estimate={"usd": "0.1"}).decision == "warn"
    assert ask(book, estimate={"usd": "0.100000000001"}).decision == "deny"


def test_sums_are_exact() -> None:
    """Ten million dollars and a millionth of a millionth of one: no digit is lost."""
    big = budget("b", limit="10000000.000000000001", period="total")
    book = book_of(entry(big, 1, "0"))
    changes = [spent(big, "0.1") for _ in range(10)] + [spent(big, "9999999"), spent(big, "0.000000000001")]
    book.apply_delta(delta(1, changes=changes))
    reply = ask(book, estimate={"usd": "0"})
    assert (reply.decision, reply.budgets[0].spent, reply.budgets[0].remaining) == (
        "allow",
        "10000000.000000000001",
        "0",
    )
    assert ask(book, estimate={"usd": "0.000000000001"}).decision == "deny"


def test_a_denial_says_who_why_and_until_when() -> None:
    book = book_of(entry(budget("b", scope={"team": "a"}, time_zone="Europe/Berlin"), 1, "0.95"))
    reply = ask(book, scope={"team": "a"}, estimate={"usd": "0.06"})
    assert reply.reason == (
        "budget b denies: 0.95 of 1 USD billed spent today and 0.06 more for this call pass 100% of the limit"
    )
    assert reply.estimate_usd == "0.06"
    assert reply.retry_after_s == 15 * 3600  # midnight in Berlin is 23:00 UTC
    assert reply.advice == ["at most 0.05 USD billed fits budget b now", "ask again at 2026-11-22T23:00:00Z"]
    figures = json.loads(reply.to_json())["budgets"][0]
    assert {key: figures[key] for key in ("id", "limit", "spent", "reserved", "remaining", "resets_at")} == {
        "id": "b",
        "limit": "1",
        "spent": "0.95",
        "reserved": "0",
        "remaining": "0.05",
        "resets_at": "2026-11-22T23:00:00Z",
    }


def test_waiting_does_not_help_a_call_that_never_fits() -> None:
    book = book_of(entry(budget("b"), 1), entry(budget("ever", period="total"), 1, "0.5"))
    assert ask(book, estimate={"usd": "1.01"}).retry_after_s is None
    assert ask(book, estimate={"usd": "0.6"}).retry_after_s is None  # a total never resets


def test_the_sharpest_budget_decides_and_the_last_reset_counts() -> None:
    day, hour = budget("day"), budget("hour", period="hour")
    book = book_of(entry(day, 1, "1"), entry(hour, 1, "1"), entry(budget("easy", limit="100"), 1))
    reply = ask(book, at=NOW + timedelta(minutes=30), estimate={"usd": "0.1"})
    assert reply.decision == "deny"
    assert [each.action for each in reply.budgets] == ["deny", None, "deny"]
    assert reply.retry_after_s == 15 * 3600 + 1800
    assert "budget day denies" in reply.reason
    assert "budget hour denies" in reply.reason


# --- estimates --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("meter", "access", "estimate", "added"),
    [
        ("billed_usd", None, {"usd": "0.05"}, "0.05"),
        ("billed_usd", "payg", {"input_tokens": 1000, "output_tokens": 500}, "0.0015"),
        ("billed_usd", "subscription", {"input_tokens": 1000}, "0"),
        ("list_usd", "subscription", {"input_tokens": 1000}, "0.001"),
        ("list_usd", "subscription", {"usd": "0.05"}, "0.05"),
        ("billed_usd", "free", {"usd": "0.05"}, "0"),
        ("list_usd", "local", {"input_tokens": 1000}, "0"),
        ("billed_usd", "overage", {"usd": "0.05"}, "0.05"),
        ("billed_usd", "credits", {"usd": "0.05"}, "0.05"),
        ("billed_usd", None, None, None),
        ("tokens", None, {"input_tokens": 1000, "output_tokens": 500}, "1500"),
        ("tokens", "subscription", {"input_tokens": 7}, "7"),
        ("tokens", None, {"usd": "0.05"}, None),
        ("calls", None, {"usd": "0.05"}, "1"),
        ("calls", None, None, "1"),
    ],
)
def test_what_a_call_adds(meter: str, access: str | None, estimate: object, added: str | None) -> None:
    book = book_of(entry(budget("b", meter=meter, limit="5000"), 1))
    scope = {} if access is None else {"access": access}
    reply = ask(book, scope=scope, model="lab/cheap", estimate=estimate)
    assert (reply.decision, reply.budgets[0].estimate) == ("allow", added)


def test_calls_and_tokens_are_limited() -> None:
    calls, tokens = budget("calls", meter="calls", limit="3"), budget("tokens", meter="tokens", limit="100")
    book = book_of(entry(calls, 1, "2"), entry(tokens, 1, "90"))
    assert ask(book, estimate={"input_tokens": 10}, model="m").decision == "allow"
    assert ask(book, estimate={"input_tokens": 11}, model="m").decision == "deny"
    book.apply_delta(delta(1, changes=[spent(calls, "1")]))
    reply = ask(book)
    assert reply.decision == "deny"
    assert (
        reply.reason
        == "budget calls denies: 3 of 3 calls spent today and 1 more for this call pass 100% of the limit"
    )


def test_the_quote_is_asked_for_the_check_s_model_and_time() -> None:
    quotes = PriceList()
    book = book_of(entry(budget("b"), 1))
    reply = ask(
        book,
        quotes=quotes,
        scope={"provider": "anthropic"},
        model="lab/dear",
        estimate={"input_tokens": 12000, "output_tokens": 2000},
    )
    assert quotes.asked == [("anthropic", "lab/dear", NOW, {"input": 12000, "output": 2000})]
    assert (reply.decision, reply.estimate_usd) == ("deny", "1.4")


@pytest.mark.parametrize(
    ("policy", "tokens", "decision", "added"),
    [
        ("deny", 1, "deny", None),
        ("allow", 10**9, "allow", None),
        ("dearest", 10_000, "allow", "1"),
        ("dearest", 10_001, "deny", "1.0001"),
    ],
)
def test_a_model_without_a_price(policy: str, tokens: int, decision: str, added: str | None) -> None:
    book = book_of(entry(budget("b", on_unpriced=policy), 1))
    reply = ask(book, model="lab/unheard-of", estimate={"input_tokens": tokens})
    assert (reply.decision, reply.budgets[0].estimate, reply.estimate_usd) == (decision, added, None)
    assert reply.retry_after_s is None or added is not None


def test_without_prices_the_dearest_is_not_known_either() -> None:
    book = book_of(entry(budget("b", on_unpriced="dearest"), 1))
    request = read_check(b'{"model": "m", "estimate": {"input_tokens": 1}}')
    reply = book.check(request, NOW, None)
    assert reply.decision == "deny"
    assert reply.reason == (
        "budget b denies calls without a price (on_unpriced=dearest), and its model has no known price"
    )


def test_an_unpriced_model_does_not_concern_tokens_or_plans() -> None:
    book = book_of(entry(budget("tokens", meter="tokens", limit="10"), 1), entry(budget("billed"), 1))
    reply = ask(book, scope={"access": "subscription"}, model="lab/unheard-of", estimate={"input_tokens": 5})
    assert (reply.decision, reply.estimate_usd) == ("allow", "0")


def test_unpriced_calls_already_made_are_shown_not_counted_as_nothing() -> None:
    book = book_of(entry(budget("b"), 1, "0.5", unpriced=3))
    figures = ask(book).budgets[0]
    assert (figures.spent, figures.unpriced_calls) == ("0.5", 3)


def test_the_name_on_the_wire_meets_the_budgets_of_the_canonical_model() -> None:
    budgets = (
        budget("model", scope={"model": "lab/dear"}),
        budget("provider", scope={"provider": "lab-api"}),
    )
    book = book_of(*(entry(each, 1) for each in budgets))
    reply = ask(book, model="dear-20260101", estimate={"input_tokens": 100})
    assert [each.id for each in reply.budgets] == ["model", "provider"]
    assert (reply.unmatched, reply.estimate_usd) == ([], "0.01")
    assert ask(book, model="dear-20260101", scope={"model": "lab/other"}).unmatched == []
    assert [each.id for each in ask(book, scope={"model": "lab/dear"}).budgets] == ["model"]


def test_an_alias_of_the_provider_is_the_provider() -> None:
    book = book_of(entry(budget("b", scope={"provider": "lab-api"}), 1))
    reply = ask(book, model="dear-20260101", scope={"provider": "lab.alias"})
    assert [each.id for each in reply.budgets] == ["b"]


def test_the_catalogue_s_own_prices_are_understood() -> None:
    quotes = pytest.importorskip("catalog.quote").Quotes.load()
    book = book_of(entry(budget("b", scope={"model": "anthropic/claude-sonnet-4-5"}), 1))
    request = read_check(
        b'{"scope": {"provider": "anthropic"}, "model": "claude-sonnet-4-5-20250929", '
        b'"estimate": {"input_tokens": 12000, "output_tokens": 2000}}'
    )
    reply = book.check(request, NOW, quotes)
    assert (reply.estimate_usd, [each.id for each in reply.budgets]) == ("0.066", ["b"])


# --- time -------------------------------------------------------------------------------------------------


def test_a_new_period_starts_at_nothing_and_late_calls_land_in_the_old_one() -> None:
    day = budget("b", time_zone="America/New_York")
    book = book_of(entry(day, 1, "1"))
    midnight = datetime(2026, 11, 23, 5, tzinfo=UTC)
    assert ask(book, at=midnight - timedelta(microseconds=1), estimate={"usd": "0.1"}).decision == "deny"
    reply = ask(book, at=midnight, estimate={"usd": "0.1"})
    assert (reply.decision, reply.budgets[0].spent) == ("allow", "0")
    late, new = spent(day, "5", at=NOW), spent(day, "0.25", at=midnight)
    book.apply_delta(delta(1, at=midnight, changes=[late, new]))
    assert ask(book, at=midnight).budgets[0].spent == "0.25"


def test_calls_dated_in_the_next_period_wait_for_it() -> None:
    day = budget("b")
    book = book_of(entry(day, 1))
    tomorrow = NOW + timedelta(days=1)
    book.apply_delta(delta(1, changes=[spent(day, "0.75", at=tomorrow)]))
    assert ask(book).budgets[0].spent == "0"
    assert ask(book, at=tomorrow).budgets[0].spent == "0.75"


def test_a_revision_gives_back() -> None:
    day = budget("b")
    book = book_of(entry(day, 1, "1", unpriced=1))
    book.apply_delta(delta(1, changes=[spent(day, "-0.4", unpriced=-1)]))
    figures = ask(book).budgets[0]
    assert (figures.spent, figures.unpriced_calls) == ("0.6", 0)


def test_a_rolling_window_frees_minute_by_minute() -> None:
    rolling = budget("b", period="rolling:5h")
    book = book_of(entry(rolling, 1))
    for seq, (ago, amount) in enumerate([(60, "0.2"), (240, "0.5"), (299, "0.3"), (30, "-0.1")], start=1):
        book.apply_delta(delta(seq, changes=[spent(rolling, amount, at=NOW - timedelta(minutes=ago))]))
    reply = ask(book, estimate={"usd": "0.5"})
    assert (reply.decision, reply.budgets[0].spent) == ("deny", "0.9")
    # 0.4 too much: the 0.3 of 03:01 leaves at 08:02, the 0.5 of 04:00 at 09:01
    assert reply.budgets[0].resets_at == NOW + timedelta(minutes=2)
    assert reply.retry_after_s == 61 * 60
    assert ask(book, at=NOW + timedelta(seconds=61 * 60 - 1), estimate={"usd": "0.5"}).decision == "deny"
    freed = ask(book, at=NOW + timedelta(minutes=61), estimate={"usd": "0.5"})
    assert (freed.decision, freed.budgets[0].spent) == ("allow", "0.1")
    empty = ask(book, at=NOW + timedelta(hours=6))
    assert (empty.budgets[0].spent, empty.budgets[0].resets_at) == ("0", None)


def test_a_rolling_window_never_counts_what_has_left() -> None:
    rolling = budget("b", period="rolling:1h")
    book = book_of(entry(rolling, 1))
    ask(book)
    gone = spent(rolling, "0.7", at=NOW - timedelta(minutes=61))
    book.apply_delta(delta(1, changes=[gone]))
    assert ask(book).budgets[0].spent == "0"
    for minute in range(2000):
        at = NOW + timedelta(minutes=minute)
        book.apply_delta(delta(2 + minute, at=at, changes=[spent(rolling, "0.01", at=at)]))
    assert (
        ask(book, at=NOW + timedelta(minutes=1999)).budgets[0].spent == "0.61"
    )  # 60 whole minutes and a part


# --- state ------------------------------------------------------------------------------------------------


def test_a_new_budget_is_pending_until_the_ledger_has_counted() -> None:
    book, day = book_of(), budget("b")
    book.put(day, 1001)
    assert book.pending("b")
    reply = ask(book, estimate={"usd": "0.1"})
    assert (reply.decision, reply.budgets[0].spent, reply.budgets[0].remaining) == ("warn", None, None)
    assert ask(book, estimate={"usd": "1.1"}).decision == "deny"  # whatever is spent, this cannot fit
    book.apply_delta(delta(1, defined=[entry(day, 1001, "0.95")]))
    assert not book.pending("b")
    assert ask(book, estimate={"usd": "0.1"}).decision == "deny"


def test_a_new_limit_keeps_the_spend_and_a_new_scope_does_not() -> None:
    day = budget("b", scope={"team": "a"})
    book = book_of(entry(day, 1, "0.9"))
    raised = budget("b", scope={"team": "a"}, limit="2")
    book.put(raised, 1001)
    figures = ask(book, scope={"team": "a"}).budgets[0]
    assert (figures.limit, figures.spent) == ("2", "0.9")
    book.apply_delta(delta(1, changes=[spent(day, "0.1", defined=1)]))  # not yet known to the ledger
    assert ask(book, scope={"team": "a"}).budgets[0].spent == "1"
    book.apply_delta(delta(2, defined=[entry(raised, 1001, "1")]))
    book.apply_delta(delta(3, changes=[spent(day, "0.5", defined=1001)]))
    assert ask(book, scope={"team": "a"}).budgets[0].spent == "1.5"
    book.put(budget("b", scope={"team": "z"}), 1010)
    assert book.pending("b")
    book.apply_delta(delta(4, changes=[spent(day, "7", defined=1001)]))
    assert book.pending("b")
    assert ask(book, scope={"team": "a"}).budgets == []
    assert ask(book, scope={"team": "z"}, estimate={"usd": "0.9"}).decision == "warn"  # the 7 are not its own


def test_two_changes_in_a_row_while_the_ledger_is_behind() -> None:
    day = budget("b")
    book = book_of(entry(day, 1, "0.9"))
    book.put(budget("b", limit="2"), 1001)
    book.put(budget("b", limit="3"), 1002)
    book.apply_delta(delta(1, defined=[entry(budget("b", limit="2"), 1001, "0.95")]))
    book.apply_delta(delta(2, changes=[spent(day, "0.1", defined=1001)]))
    figures = ask(book).budgets[0]
    assert (figures.limit, figures.spent) == ("3", "1.05")


def test_deltas_come_once_and_in_order() -> None:
    day = budget("b")
    book = book_of(entry(day, 1))
    first = delta(1, changes=[spent(day, "0.1")])
    book.apply_delta(first)
    book.apply_delta(first)
    assert ask(book).budgets[0].spent == "0.1"
    with pytest.raises(SpendGap):
        book.apply_delta(delta(3))
    book.apply_snapshot({"seq": 0, "offset": 2000, "at_s": epoch_s(NOW), "budgets": [entry(day, 1, "0.3")]})
    book.apply_delta(delta(1, changes=[spent(day, "0.1")]))
    assert ask(book).budgets[0].spent == "0.4"


def test_not_ready_before_the_first_snapshot() -> None:
    book = BudgetBook()
    assert not book.ready
    with pytest.raises(SpendGap):
        book.apply_delta(delta(1))


def test_a_snapshot_keeps_what_is_newer_and_drops_what_is_not() -> None:
    old, new, changed, deleted = budget("old"), budget("new"), budget("changed"), budget("deleted")
    book = book_of(entry(old, 1), entry(changed, 2, "0.5"), entry(deleted, 3))
    book.put(new, 3000)
    book.put(budget("changed", limit="9"), 3001)
    book.delete("deleted", 3002)
    snapshot = {
        "seq": 7,
        "offset": 2000,
        "at_s": epoch_s(NOW),
        "budgets": [entry(changed, 2, "0.6"), entry(deleted, 3)],
    }
    book.apply_snapshot(snapshot)
    assert [(each.id, str(each.limit)) for each in book.all()] == [("changed", "9"), ("new", "1.00")]
    assert book.pending("new")
    figures = book.figures("changed", NOW)
    assert figures is not None
    assert (figures.limit, figures.spent) == ("9", "0.6")
    assert book.get("deleted") is None
    assert book.figures("deleted", NOW) is None


def test_the_ledger_s_deletion_does_not_undo_a_newer_definition() -> None:
    book = book_of(entry(budget("b"), 1))
    book.delete("b", 1500)
    book.put(budget("b", limit="2"), 1501)
    book.apply_delta({**delta(1, deleted=["b"]), "offset": 1500})
    again = book.get("b")
    assert again is not None
    assert str(again.limit) == "2"


# --- events -----------------------------------------------------------------------------------------------


def test_an_event_holds_the_figures_of_those_who_decided() -> None:
    book = book_of(entry(budget("b"), 1, "1"), entry(budget("easy", limit="9"), 1))
    request = read_check(b'{"scope": {"team": "a"}, "model": "m", "estimate": {"usd": "0.1"}}')
    event = event_of(request, book.check(request, NOW, None), NOW)
    assert event is not None
    assert (event.decision, event.source, [each.id for each in event.budgets]) == ("deny", "check", ["b"])
    assert event.budgets[0].spent == "1"
    decoded = decode_control(encode_control("event", event=event))
    assert decoded.op == "event"
    assert decoded.event == event


def test_what_is_allowed_leaves_no_event() -> None:
    book = book_of(entry(budget("b"), 1))
    request = read_check(b"{}")
    assert event_of(request, book.check(request, NOW, None), NOW) is None


def test_recorded_spend_tells_each_threshold_once_a_period() -> None:
    day = budget("b", thresholds=LADDER)
    book = book_of(entry(day, 1, "0.6"))  # above the first threshold before we looked: not news
    assert book.apply_delta(delta(1, changes=[spent(day, "0.1")])) == []
    told = book.apply_delta(delta(2, changes=[spent(day, "0.25")]))
    assert [(each.decision, each.source, each.budgets[0].threshold) for each in told] == [
        ("warn", "spend", "0.8"),
        ("warn", "spend", "0.9"),
    ]
    assert book.apply_delta(delta(3, changes=[spent(day, "0.01")])) == []
    tomorrow = NOW + timedelta(days=1)
    told = book.apply_delta(delta(4, at=tomorrow, changes=[spent(day, "0.51", at=tomorrow)]))
    assert [each.decision for each in told] == ["notify"]


def test_a_new_limit_does_not_repeat_what_was_told() -> None:
    def of(limit: str) -> Budget:
        return budget("b", limit=limit, thresholds=LADDER)

    book = book_of(entry(of("1"), 1))
    assert len(book.apply_delta(delta(1, changes=[spent(of("1"), "0.7")]))) == 1
    assert book.apply_delta(delta(2, defined=[entry(of("1.2"), 1001, "0.7")])) == []
    told = book.apply_delta(delta(3, defined=[entry(of("0.8"), 1002, "0.7")]))
    assert [each.budgets[0].threshold for each in told] == ["0.8"]


# --- cost -------------------------------------------------------------------------------------------------


def _lines_run(function: Callable[[], object]) -> int:
    """How many lines of Python a call runs: work, counted instead of timed."""
    count = 0

    def trace(frame: Any, event: str, arg: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(previous)
    return count


def _crowd(size: int) -> BudgetBook:
    """`size` budgets cut in five ways, of which a check matches the same few."""
    ways: list[Callable[[int], dict[str, object]]] = [
        lambda n: {"team": f"t{n}"},
        lambda n: {"user_id": f"u{n}"},
        lambda n: {"team": f"t{n}", "session_id": f"s{n}"},
        lambda n: {"labels": {"customer": f"c{n}"}},
        lambda n: {"team": f"t{n}", "agent": "x", "model": "lab/cheap"},
    ]
    return book_of(*(entry(budget(f"b{n}", scope=ways[n % 5](n // 5)), 1) for n in range(size)))


def test_ten_thousand_budgets_cost_what_ten_cost() -> None:
    request = read_check(
        json.dumps(
            {
                "scope": {"team": "t0", "user_id": "u0", "labels": {"customer": "c1"}},
                "model": "lab/cheap",
                "estimate": {"input_tokens": 10},
            }
        ).encode()
    )
    work = []
    for size in (10, 10_000):
        book, quotes = _crowd(size), PriceList()
        reply = book.check(request, NOW, quotes)  # what is found once is remembered
        assert [each.id for each in reply.budgets] == ["b0", "b1", "b8"]
        assert reply.unmatched == ["agent", "session_id"]
        work.append(_lines_run(lambda: book.check(request, NOW, quotes)))  # noqa: B023
    assert work[0] == work[1]
