"""Reserving, settling and releasing in one front: limits, repetitions, failing disks, expiry, memory."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import orjson
import pytest

from billing.budget import CheckReply, CheckRequest, InvalidBudget, read_budget, read_check
from billing.budget_period import epoch_s, parse_period, period_start
from billing.plan_advice import used_up_by, windows_told
from billing.reservation import (
    NotReady,
    ReservationConflict,
    Settle,
    UnknownReservation,
    decode_controls,
    read_settlement,
)
from billing.reservation_book import MAX_REMEMBERED
from billing.reservation_desk import ReservationDesk

NOW = datetime(2026, 11, 22, 8, 0, tzinfo=UTC)
Entry = dict[str, Any]


class Disk:
    """A journal that takes a moment, and fails when it is told to."""

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.failing = False
        self.slow = asyncio.Event()
        self.slow.set()

    async def append(self, body: bytes) -> int:
        await self.slow.wait()
        await asyncio.sleep(0)
        if self.failing:
            raise OSError("no space left on device")
        self.records.append(body)
        return len(self.records)


class Front:
    """A desk over such a disk, with a clock to be set and a ledger to be told by hand."""

    def __init__(self, *budgets: Entry) -> None:
        self.disk = Disk()
        self.now = NOW
        self.events: list[Any] = []
        self.desk = ReservationDesk(self.disk.append, keep=self.events.append, clock=lambda: self.now)
        self.seq = 0
        self.budgets = [
            read_budget(json.dumps({"limit": "1", "period": "day", **each}).encode()) for each in budgets
        ]
        entries = [
            {"budget": each.model_dump(mode="json"), "offset": 1, "spend": []} for each in self.budgets
        ]
        self.desk.take_snapshot({"seq": 0, "offset": 1, "at_s": epoch_s(NOW), "budgets": entries})

    async def check(self, **fields: Any) -> CheckReply:
        return await self.desk.check(read_check(json.dumps(fields).encode()))

    async def reserve(self, usd: str, **fields: Any) -> CheckReply:
        return await self.check(estimate={"usd": usd}, reserve=True, **fields)

    async def settle(self, reservation_id: str, **fields: Any) -> Any:
        return await self.desk.settle(reservation_id, read_settlement(json.dumps(fields).encode()))

    async def tell(self, spent: str = "0", budget: int = 0, *, at: datetime = NOW, **fields: Any) -> None:
        """A commit of the ledger: this much more is spent, and what it says of reservations."""
        self.seq += 1
        of = self.budgets[budget]
        bucket = epoch_s(period_start(parse_period(of.period, of.time_zone), at))
        change = {"budget": of.id, "defined": 1, "bucket_s": bucket, "amount": spent, "unpriced": 0}
        told = {
            "seq": self.seq,
            "offset": self.seq + 1,
            "at_s": epoch_s(self.now),
            "defined": [],
            "deleted": [],
        }
        await self.desk.take_delta({**told, "changes": [change] if spent != "0" else [], **fields})

    def standing(self, budget_id: str = "b") -> tuple[str | None, str]:
        figures = self.desk.book.figures(budget_id, self.now)
        assert figures is not None
        return figures.spent, figures.reserved


def mark(reservation_id: str | None, *, number: int = 0, matched: bool = False) -> Entry:
    return {"id": reservation_id, "number": number, "matched": matched, "released": False}


async def test_what_is_reserved_is_seen_by_the_next_check_and_the_limit_is_exact() -> None:
    front = Front({"id": "b"})
    assert (await front.reserve("0.6")).decision == "allow"
    denied = await front.reserve("0.400000000001")
    assert (denied.decision, denied.reservation_id, denied.retry_after_s) == ("deny", None, 1)
    assert "0.6 reserved" in denied.reason
    reply = await front.reserve("0.4")
    assert (reply.decision, reply.budgets[0].reserved, reply.budgets[0].remaining) == ("allow", "1", "0")
    assert reply.expires_at == NOW + timedelta(seconds=600)
    assert (await front.check(estimate={"usd": "0.01"})).decision == "deny"
    assert front.standing() == ("0", "1")


async def test_concurrent_reservations_never_pass_the_limit() -> None:
    front = Front({"id": "b", "limit": "10"}, {"id": "t", "meter": "tokens", "limit": "1000"})
    front.disk.slow.clear()
    body = {"estimate": {"usd": "0.1", "input_tokens": 20, "output_tokens": 5}, "reserve": True}
    asked = [asyncio.create_task(front.check(**body)) for _ in range(200)]
    await asyncio.sleep(0.01)
    front.disk.slow.set()
    replies = await asyncio.gather(*asked)
    assert sum(each.decision == "allow" for each in replies) == 40  # 1000 tokens / 25
    assert len({each.reservation_id for each in replies if each.reservation_id}) == 40
    assert (front.standing("b"), front.standing("t")) == (("0", "4"), ("0", "1000"))


async def test_a_promise_that_is_not_on_disk_is_taken_back() -> None:
    front = Front({"id": "b"})
    front.disk.failing = True
    with pytest.raises(OSError, match="no space"):
        await front.reserve("0.6", idempotency_key="k")
    assert front.standing() == ("0", "0")
    front.disk.failing = False
    reply = await front.reserve("1", idempotency_key="k")  # neither the key nor the amount is taken
    front.disk.failing = True
    with pytest.raises(OSError, match="no space"):
        await front.settle(str(reply.reservation_id), usd="0.25")
    with pytest.raises(OSError, match="no space"):
        await front.desk.release(str(reply.reservation_id))
    assert front.standing() == ("0", "1")


async def test_a_repeated_key_reserves_once_and_another_body_conflicts() -> None:
    front = Front({"id": "b"})
    front.disk.slow.clear()
    twins = [
        asyncio.create_task(front.reserve("0.4", idempotency_key="k", scope={"team": "a"})) for _ in range(2)
    ]
    await asyncio.sleep(0.01)
    assert front.standing() == ("0", "0.4")
    front.disk.slow.set()
    first, second = await asyncio.gather(*twins)
    assert first.reservation_id == second.reservation_id
    assert (second.decision, second.expires_at) == (first.decision, first.expires_at)
    with pytest.raises(ReservationConflict):
        await front.reserve("0.5", idempotency_key="k", scope={"team": "a"})
    assert front.standing() == ("0", "0.4")
    assert len(front.disk.records) == 1


async def test_a_twin_of_a_failed_reservation_tries_by_itself() -> None:
    front = Front({"id": "b"})
    front.disk.slow.clear()
    twins = [asyncio.create_task(front.reserve("0.4", idempotency_key="k")) for _ in range(2)]
    await asyncio.sleep(0.01)
    front.disk.failing = True
    front.disk.slow.set()
    results = await asyncio.gather(*twins, return_exceptions=True)
    assert all(isinstance(each, OSError) for each in results)
    assert front.standing() == ("0", "0")


async def test_settling_frees_the_rest_at_once_and_spend_follows_the_ledger() -> None:
    front = Front({"id": "b"})
    reply = await front.reserve("0.6", trace_id="a" * 32)
    settled = await front.settle(str(reply.reservation_id), usd="0.25")
    assert (settled.state, settled.settled_usd, settled.warnings) == ("settled", "0.25", [])
    assert front.standing() == ("0", "0.25")  # held until the ledger has it
    again = await front.settle(str(reply.reservation_id), usd="0.25")
    assert again.state == "settled"
    assert len(front.disk.records) == 2
    with pytest.raises(ReservationConflict):
        await front.settle(str(reply.reservation_id), usd="0.26")
    with pytest.raises(ReservationConflict):
        await front.desk.release(str(reply.reservation_id))
    await front.tell("0.25", marks=[mark(reply.reservation_id, number=1)])
    assert front.standing() == ("0.25", "0")
    assert (await front.settle(str(reply.reservation_id), usd="0.25")).state == "settled"


async def test_partial_settlements_tell_the_whole_so_far() -> None:
    front = Front({"id": "b"})
    reservation = str((await front.reserve("0.6")).reservation_id)
    reply = await front.settle(reservation, usd="0.2", partial=True)
    assert (reply.state, front.standing()) == ("partly_settled", ("0", "0.6"))
    await front.tell("0.2", marks=[mark(reservation, number=1)])
    assert front.standing() == ("0.2", "0.4")
    await front.settle(reservation, usd="0.5", partial=True)
    await front.settle(reservation, usd="0.55")
    assert front.standing() == ("0.2", "0.35")
    await front.tell("0.3", marks=[mark(reservation, number=2)])
    assert front.standing() == ("0.5", "0.05")
    await front.tell("0.05", marks=[mark(reservation, number=3)])
    assert front.standing() == ("0.55", "0")


async def test_a_partly_settled_reservation_keeps_what_was_told_when_it_expires() -> None:
    front = Front({"id": "b"})
    reservation = str((await front.reserve("0.6", ttl_s=10)).reservation_id)
    await front.settle(reservation, usd="0.2", partial=True)
    front.now += timedelta(seconds=10)
    assert front.standing() == ("0", "0.2")
    await front.tell("0.2", marks=[mark(reservation, number=1)])
    assert front.standing() == ("0.2", "0")


async def test_release_and_expiry_to_the_microsecond() -> None:
    front = Front({"id": "b"})
    first = await front.reserve("0.5", ttl_s=1)
    second = await front.reserve("0.5", ttl_s=60)
    assert (await front.desk.release(str(second.reservation_id))).state == "released"
    assert (await front.desk.release(str(second.reservation_id))).state == "released"
    front.now = NOW + timedelta(seconds=1, microseconds=-1)
    assert front.standing() == ("0", "0.5")
    front.now = NOW + timedelta(seconds=1)
    assert front.standing() == ("0", "0")
    assert (await front.desk.show(str(first.reservation_id))).state == "expired"
    with pytest.raises(ReservationConflict):
        await front.settle(str(second.reservation_id), usd="0.1")


async def test_a_late_settlement_counts_all_the_same() -> None:
    front = Front({"id": "b"})
    reservation = str((await front.reserve("0.5", ttl_s=1)).reservation_id)
    front.now += timedelta(seconds=5)
    assert front.standing() == ("0", "0")
    reply = await front.settle(reservation, usd="0.4")
    assert any("expired" in each for each in reply.warnings)
    assert any("telemetry" in each for each in reply.warnings)  # neither trace nor response is known
    assert front.standing() == ("0", "0.4")
    await front.tell("0.4", marks=[mark(reservation, number=1)])
    assert front.standing() == ("0.4", "0")


async def test_telemetry_takes_the_place_of_the_hold_in_one_step() -> None:
    front = Front({"id": "b"})
    reservation = str((await front.reserve("0.5")).reservation_id)
    await front.tell("0.3", marks=[mark(reservation, matched=True)])
    assert front.standing() == ("0.3", "0")
    reply = await front.settle(reservation, usd="0.4")
    assert (reply.state, front.standing()) == ("recorded", ("0.3", "0"))
    assert any("telemetry had told" in each for each in reply.warnings)


async def test_a_denial_waits_for_a_commit_that_is_half_applied() -> None:
    front = Front({"id": "b"})
    reservation = str((await front.reserve("0.6")).reservation_id)
    telling = asyncio.create_task(front.tell("0.6", marks=[mark(reservation, matched=True)]))
    await asyncio.sleep(0)  # spend has risen, the hold is still there: 1.2 of 1
    assert front.standing() == ("0.6", "0.6")
    reply = await front.reserve("0.4")
    assert reply.decision == "allow"
    await telling
    assert front.standing() == ("0.6", "0.4")


async def test_a_hold_counts_in_the_period_that_its_call_may_begin_in() -> None:
    front = Front({"id": "b", "time_zone": "Europe/Berlin"})
    front.now = datetime(2026, 11, 22, 22, 59, 59, tzinfo=UTC)
    reservation = str((await front.reserve("0.7", ttl_s=60)).reservation_id)
    front.now += timedelta(seconds=2)  # past midnight in Berlin
    assert (await front.reserve("0.7")).decision == "deny"
    await front.tell("0.7", marks=[mark(reservation, matched=True)], at=front.now - timedelta(seconds=2))
    assert front.standing() == ("0", "0")  # it began yesterday, and was counted there
    assert (await front.reserve("1")).decision == "allow"


async def test_a_budget_defined_or_changed_later_counts_the_open_reservations() -> None:
    front = Front({"id": "b", "limit": "5"})
    reply = await front.reserve("0.5", scope={"team": "a"})
    new = read_budget(b'{"id": "new", "scope": {"team": "a"}, "limit": "3", "period": "day"}')
    front.desk.book.put(new, 50)
    with pytest.raises(NotReady):
        await front.reserve("0.1", scope={"team": "a"})  # its calls are still being counted
    front.desk.book.put(new.model_copy(update={"meter": "calls", "limit": Decimal(3)}), 60)
    assert front.desk.book.figures("new", front.now).reserved == "1"  # type: ignore[union-attr]
    front.desk.book.delete("b", 70)
    await front.desk.release(str(reply.reservation_id))
    assert front.desk.book.figures("new", front.now).reserved == "0"  # type: ignore[union-attr]


async def test_a_limit_on_a_single_call_and_calls_per_minute() -> None:
    front = Front(
        {"id": "b", "per_call": "0.2"}, {"id": "m", "meter": "calls", "limit": "2", "period": "rolling:1m"}
    )
    assert "for a single call" in (await front.reserve("0.21")).reason
    assert [(await front.reserve("0.01")).decision for _ in range(3)] == ["allow", "allow", "deny"]


async def test_a_shadow_budget_records_and_denies_nobody() -> None:
    front = Front({"id": "b", "shadow": True}, {"id": "wide", "limit": "9"})
    reply = await front.reserve("2")
    assert (reply.decision, reply.reason.startswith("in shadow, budget b denies")) == ("allow", True)
    [event] = front.events
    assert (event.decision, [(each.id, each.shadow) for each in event.budgets]) == ("deny", [("b", True)])
    assert front.standing("wide") == ("0", "2")


async def test_nothing_is_answered_before_the_ledger_has_told() -> None:
    disk = Disk()
    desk = ReservationDesk(disk.append, ready_from=100)
    with pytest.raises(NotReady):
        await desk.check(CheckRequest())
    desk.take_snapshot({"seq": 0, "offset": 99, "at_s": 0, "budgets": []})
    with pytest.raises(NotReady):
        await desk.check(CheckRequest())
    delta = {"seq": 1, "offset": 100, "at_s": 0, "changes": [], "defined": [], "deleted": []}
    await desk.take_delta(delta)
    assert (await desk.check(CheckRequest())).decision == "allow"


async def test_unknown_reservations_and_unreadable_settlements() -> None:
    front = Front({"id": "b"})
    with pytest.raises(UnknownReservation):
        await front.settle("res_" + "0" * 32, usd="1")
    for body in (b"{}", b'{"usd": 1}', b'{"usage": {"input_tokens": 1}}', b'{"usd": "1", "mode": "x"}'):
        with pytest.raises(InvalidBudget):
            read_settlement(body)
    with pytest.raises(InvalidBudget, match="cache parts"):
        read_settlement(b'{"usage": {"input_tokens": 1, "output_tokens": 0, "cache_read_tokens": 2}}')


async def test_the_largest_output_that_fits_is_advised_and_fits() -> None:
    catalog = pytest.importorskip("catalog.quote")
    front = Front({"id": "b", "limit": "0.1"}, {"id": "t", "meter": "tokens", "limit": "1000000"})
    front.desk.quotes = catalog.Quotes.load()
    asked: dict[str, Any] = {"model": "gpt-4o", "estimate": {"input_tokens": 1000, "output_tokens": 20_000}}
    denied = await front.check(**asked)
    [advice] = [each for each in denied.advice if "max_tokens" in each]
    fits = int(advice.split("max_tokens ")[1].split()[0])
    for output, decision in ((fits, "allow"), (fits + 1, "deny")):
        reply = await front.check(**{**asked, "estimate": {"input_tokens": 1000, "output_tokens": output}})
        assert reply.decision == decision


async def test_a_cheaper_model_of_the_same_provider_is_advised_and_fits() -> None:
    catalog = pytest.importorskip("catalog.quote")
    front = Front(
        {"id": "b", "limit": "0.03"},
        {"id": "mini", "limit": "0.001", "scope": {"model": "openai/gpt-4o-mini"}},
        {"id": "haiku", "limit": "9", "scope": {"provider": "anthropic"}},
    )
    quotes = front.desk.quotes = catalog.Quotes.load()
    estimate = {"input_tokens": 12_000, "output_tokens": 2_000}
    for model, provider in (("gpt-4o", "openai"), ("claude-sonnet-4-5", "anthropic")):
        denied = await front.check(model=model, estimate=estimate)
        assert denied.decision == "deny"
        assert denied.cheaper_model is not None
        assert f"with the model {denied.cheaper_model} the call fits" in denied.advice
        found = quotes.quote(model=denied.cheaper_model, at=NOW, usage={"input": 12_000, "output": 2_000})
        assert found.list_cost_usd <= Decimal("0.03")
        assert found.resolution.provider == provider
        assert found.resolution.model != "openai/gpt-4o-mini"  # its own budget has no room for it
        assert (await front.check(model=denied.cheaper_model, estimate=estimate)).decision == "allow"
    for fields in ({"model": "gpt-4o", "estimate": {"usd": "1"}}, {"estimate": {"usd": "1"}}):
        assert (await front.check(**fields)).cheaper_model is None
    front = Front({"id": "calls", "meter": "calls", "limit": "1"})
    front.desk.quotes = quotes
    await front.check(model="gpt-4o", estimate=estimate, reserve=True)
    denied = await front.check(model="gpt-4o", estimate=estimate)
    assert (denied.decision, denied.cheaper_model, denied.max_output_tokens) == ("deny", None, None)


async def test_a_plan_s_used_up_window_is_told_until_it_begins_anew() -> None:
    front = Front({"id": "b"})
    until = NOW + timedelta(hours=2)
    row = {"plan_id": "claude-max", "plan": "Claude Max", "provider": "anthropic", "quota": "5h"}
    rows = [
        {**row, "account_id": "me", "used_fraction": Decimal(1), "ends_at": until},
        {**row, "account_id": "you", "used_fraction": Decimal(2), "ends_at": until},
        {**row, "account_id": "me", "quota": "7d", "used_fraction": Decimal("0.99"), "ends_at": until},
        {**row, "account_id": "me", "quota": "month", "used_fraction": None, "ends_at": None},
    ]
    front.desk.used_up = windows_told(orjson.loads(orjson.dumps(used_up_by(rows))))
    mine = {"provider": "anthropic", "access": "subscription", "account_id": "me"}
    reply = await front.check(scope=mine)
    assert [(each.quota, each.account_id, each.resets_at) for each in reply.used_up] == [("5h", "me", until)]
    assert [each for each in reply.advice if "5h window of Claude Max is used up until" in each]
    assert orjson.loads(reply.to_json())["used_up"][0]["plan_id"] == "claude-max"
    for scope in ({**mine, "access": "payg"}, {**mine, "provider": "openai"}, {}):
        assert (await front.check(scope=scope)).used_up == []
    front.now = until
    assert (await front.check(scope=mine)).used_up == []


async def test_the_journal_s_records_say_all_that_is_needed() -> None:
    front = Front({"id": "b"})
    reply = await front.reserve("0.5", scope={"team": "a", "labels": {"x": "y"}}, trace_id="b" * 32)
    await front.settle(str(reply.reservation_id), usd="0.25", response_id="r")
    reserve, settle = (decode_controls(each)[0] for each in front.disk.records)
    assert (reserve.op, reserve.told, reserve.trace_id) == (  # type: ignore[union-attr]
        "reserve",
        {"team": "a", "labels.x": "y"},
        "b" * 32,
    )
    assert isinstance(settle, Settle)
    assert (settle.usd, settle.response_id, settle.number) == (Decimal("0.25"), "r", 1)


Step = Callable[[Front, str, random.Random], Any]


@pytest.mark.slow
async def test_no_leak_after_100_000_cycles() -> None:
    front = Front(
        {"id": "b", "limit": "100"}, {"id": "t", "scope": {"team": "a"}, "meter": "tokens", "limit": "10000"}
    )
    front.disk.append = _nowhere  # type: ignore[method-assign]
    front.desk = _same_desk(front)
    rng = random.Random(5)
    for cycle in range(100_000):
        front.now += timedelta(milliseconds=20)
        key = f"k{cycle}" if cycle % 3 else None
        body = {"usd": "0.01", "input_tokens": 10}
        reply = await front.check(
            estimate=body, scope={"team": "a"}, reserve=True, ttl_s=30, idempotency_key=key
        )
        assert reply.reservation_id is not None, reply.reason
        match rng.randrange(4):
            case 0:
                await front.settle(reply.reservation_id, usd="0.01")
                await front.tell(marks=[mark(reply.reservation_id, number=1)])
            case 1:
                await front.desk.release(reply.reservation_id)
            case 2:
                await front.tell(marks=[mark(reply.reservation_id, matched=True)])
    front.now += timedelta(seconds=31)
    assert (front.standing("b"), front.standing("t")) == (("0", "0"), ("0", "0"))
    sizes = front.desk.book.holds.sizes()
    assert sizes["open"] == 0
    assert sizes["remembered"] <= MAX_REMEMBERED
    assert sizes["keys"] <= MAX_REMEMBERED
    assert sizes["moments"] < 2000
    front.now += timedelta(days=2)
    last = await front.reserve("0.01")
    await front.desk.release(str(last.reservation_id))
    assert front.desk.book.holds.sizes()["remembered"] == 1


async def _nowhere(body: bytes) -> int:
    return len(body)


def _same_desk(front: Front) -> ReservationDesk:
    desk = ReservationDesk(_nowhere, clock=lambda: front.now)
    entries = [{"budget": each.model_dump(mode="json"), "offset": 1, "spend": []} for each in front.budgets]
    desk.take_snapshot({"seq": 0, "offset": 1, "at_s": epoch_s(NOW), "budgets": entries})
    return desk
