"""Reservations and the ledger together: a call is spent once, whoever tells of it and in whatever order."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from billing.budget import encode_control, read_budget, read_check
from billing.ledger import Ledger
from billing.loader import Loader
from billing.reservation import read_settlement
from billing.reservation_desk import ReservationDesk
from catalog.catalog import Catalog
from ingest.journal import Frame, Kind
from tests.telemetry import Call, attribute, export, new_call, span_of

TRACE = "ab" * 16


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return Catalog.load(tmp_path_factory.mktemp("catalog"))


class Town:
    """A desk and a ledger, with a journal in memory between them that is committed when the test says so."""

    def __init__(self, path: Path, catalog: Catalog) -> None:
        self.path, self.catalog = path, catalog
        self.rng = random.Random(11)
        self.waiting: list[Frame] = []
        self.offset = 0
        self.now = datetime.now(UTC)
        self.ledger = self._open()
        self.desk = self._new_desk()
        self.define(id="b", limit="100", period="total")

    def _open(self, *, news_until: int = 0) -> Ledger:
        return Ledger.open(self.path, epoch="e", pricing=self.catalog, news_until=news_until)

    def _new_desk(self) -> ReservationDesk:
        desk = ReservationDesk(self.append, ready_from=self.offset, clock=lambda: self.now)
        desk.take_snapshot(self.ledger.spend_snapshot())
        return desk

    def define(self, **budget: Any) -> None:
        self._journal(Kind.CONTROL, encode_control("put", budget=read_budget(json.dumps(budget).encode())))

    def _journal(self, kind: Kind, body: bytes) -> int:
        self.offset += 100 + len(body)
        self.waiting.append(Frame(offset=self.offset, kind=kind, received_at_ns=0, body=body))
        return self.offset

    async def append(self, body: bytes) -> int:
        return self._journal(Kind.CONTROL, body)

    async def commit(self) -> None:
        """The ledger takes what waits, in one batch, and tells the desk."""
        frames, self.waiting = self.waiting, []
        loader = Loader(self.ledger)
        for commit in loader.load(loader.prepare(frames)) if frames else ():
            await self.desk.take_delta(json.loads(json.dumps(commit.spend)))
        self.in_balance()

    async def restart(self, *, commit_first: bool = False) -> None:
        """Both processes end; what is journaled is committed by the next ones."""
        self.ledger.close()
        self.ledger = self._open(news_until=self.offset)
        if commit_first and self.waiting:
            loader = Loader(self.ledger)
            loader.load(loader.prepare(self.waiting))
            self.waiting = []
        self.desk = self._new_desk()
        await self.commit()

    async def reserve(self, usd: str = "1", **fields: Any) -> str:
        body = {"estimate": {"usd": usd}, "reserve": True, "model": "gpt-4o-mini", **fields}
        reply = await self.desk.check(read_check(json.dumps(body).encode()))
        assert reply.reservation_id is not None, reply.reason
        return reply.reservation_id

    async def settle(self, reservation: str, **fields: Any) -> Any:
        return await self.desk.settle(reservation, read_settlement(json.dumps(fields).encode()))

    def call(self, *, trace: str | None = None, reservation: str | None = None) -> tuple[Call, Span]:
        call = new_call(self.rng, started_ns=int(self.now.timestamp() * 1e9))
        span = span_of(call, self.rng)
        if trace:
            span.trace_id = bytes.fromhex(trace)
        if reservation:
            span.attributes.append(attribute("tollbook.reservation_id", reservation))
        return call, span

    def send(self, *spans: Span) -> None:
        self._journal(Kind.TRACES_PROTO, export(list(spans)))

    def standing(self, budget: str = "b") -> tuple[Decimal, Decimal]:
        figures = self.desk.book.figures(budget, self.now)
        assert figures is not None
        assert figures.spent is not None
        return Decimal(figures.spent), Decimal(figures.reserved)

    def in_balance(self) -> None:
        """Spend in memory is the sum of the ledger's calls, whatever has happened."""
        [total] = (
            self.ledger.cursor().execute("SELECT coalesce(sum(billed_cost_usd), 0) FROM calls").fetchone()
            or ()
        )
        assert self.standing()[0] == total
        [rejected] = self.ledger.cursor().execute("SELECT count(*) FROM rejects").fetchone() or ()
        assert rejected == 0

    def calls(self) -> list[tuple[Any, ...]]:
        return (
            self.ledger.cursor().execute("SELECT basis, billed_cost_usd FROM calls ORDER BY ALL").fetchall()
        )


@pytest.fixture
async def town(tmp_path: Path, catalog: Catalog) -> Any:
    made = Town(tmp_path / "ledger.duckdb", catalog)
    await made.commit()
    yield made
    made.ledger.close()


EVIDENCE = ("id", "response", "trace")


def _told(town: Town, reservation: str, evidence: str) -> tuple[Call, Span, dict[str, Any]]:
    """A call, its span, and what its settlement tells, tied by this evidence alone."""
    call, span = town.call(
        trace=TRACE if evidence == "trace" else None, reservation=reservation if evidence == "id" else None
    )
    ties = {"response": {"response_id": call.response_id}, "trace": {"trace_id": TRACE}}
    return call, span, {"usd": "0.9", **ties.get(evidence, {})}


@pytest.mark.parametrize("evidence", EVIDENCE)
@pytest.mark.parametrize("order", ["settled first", "told first", "together", "told, never settled"])
async def test_a_call_is_spent_once(town: Town, evidence: str, order: str) -> None:
    reservation = await town.reserve()
    call, span, settlement = _told(town, reservation, evidence)
    if order == "settled first":
        await town.settle(reservation, **settlement)
        await town.commit()
        assert town.standing() == (Decimal("0.9"), 0)
        town.send(span)
    elif order == "told first":
        town.send(span)
        await town.commit()
        await town.settle(reservation, **settlement)
    elif order == "together":
        town.send(span)
        await town.settle(reservation, **settlement)
    else:
        town.send(span)
        if evidence != "id":
            await town.settle(reservation, usd="0.1", response_id=call.response_id, trace_id=TRACE)
    await town.commit()
    assert town.standing() == (call.list_cost_usd, 0)
    assert town.calls() == [("span", call.list_cost_usd)]


async def test_a_trace_told_when_reserving_settles_without_a_settlement(town: Town) -> None:
    first, second = await town.reserve(trace_id=TRACE), await town.reserve("2", trace_id=TRACE)
    call, span = town.call(trace=TRACE)
    town.send(span)
    await town.commit()
    assert town.standing() == (call.list_cost_usd, Decimal(2))  # the oldest
    assert (await town.desk.show(first)).state == "recorded"
    assert (await town.desk.show(second)).state == "held"


async def test_a_call_known_before_the_reservation_is_not_its_call(town: Town) -> None:
    town.send(town.call(trace=TRACE)[1])
    await town.commit()
    spent = town.standing()[0]
    await town.reserve(trace_id=TRACE)
    town.send(town.call(trace="cd" * 16)[1])
    await town.commit()
    assert town.standing()[1] == 1
    assert spent < town.standing()[0]


async def test_without_id_or_trace_telemetry_adds_as_the_reply_warns(town: Town) -> None:
    reservation = await town.reserve()
    reply = await town.settle(reservation, usd="0.5")
    assert any("will add" in each for each in reply.warnings)
    call, span = town.call()
    town.send(span)
    await town.commit()
    assert town.standing() == (Decimal("0.5") + call.list_cost_usd, 0)


async def test_a_settlement_is_priced_by_the_catalogue_and_counts_where_it_was_checked(town: Town) -> None:
    town.define(id="team", scope={"team": "a", "labels": {"x": "y"}}, limit="9", period="month")
    town.define(
        id="tokens", scope={"model": "openai/gpt-4o-mini"}, meter="tokens", limit="9000", period="day"
    )
    await town.commit()
    reservation = await town.reserve(scope={"team": "a", "labels": {"x": "y"}})
    usage = {"input_tokens": 1000, "output_tokens": 100, "cache_read_tokens": 400}
    await town.settle(reservation, usage=usage)
    await town.commit()
    cost = (600 * Decimal("0.15") + 400 * Decimal("0.075") + 100 * Decimal("0.60")) / 1_000_000
    assert [town.standing(each) for each in ("b", "team", "tokens")] == [(cost, 0), (cost, 0), (1100, 0)]
    town.define(id="later", scope={"labels": {"x": "y"}}, limit="9", period="total")
    await town.commit()
    assert town.standing("later") == (cost, 0)  # counted anew from the calls


async def test_what_a_subscription_covers_is_billed_nothing(town: Town) -> None:
    reservation = await town.reserve(scope={"access": "subscription"})
    await town.settle(reservation, usd="0.5")
    await town.commit()
    assert town.standing() == (0, 0)
    row = town.ledger.cursor().execute(
        "SELECT access, cost_status, list_cost_usd, billed_cost_usd FROM calls"
    )
    assert row.fetchall() == [("subscription", "included", Decimal("0.5"), Decimal(0))]


async def test_partial_settlements_are_revisions_of_one_call(town: Town) -> None:
    reservation = await town.reserve()
    for usd, spent, held in (("0.2", "0.2", "0.8"), ("0.5", "0.5", "0.5")):
        await town.settle(reservation, usd=usd, partial=True)
        await town.commit()
        assert town.standing() == (Decimal(spent), Decimal(held))
    await town.settle(reservation, usd="0.6")
    await town.commit()
    assert (town.standing(), town.calls()) == ((Decimal("0.6"), 0), [("settlement", Decimal("0.6"))])
    assert town.ledger.cursor().execute("SELECT revision FROM calls").fetchall() == [(3,)]


async def test_late_telemetry_after_expiry_counts_and_a_late_settlement_does_not_add(town: Town) -> None:
    reservation = await town.reserve(ttl_s=1)
    call, span = town.call(reservation=reservation)
    town.now += timedelta(seconds=2)
    assert town.standing() == (0, 0)
    town.send(span)
    await town.commit()
    assert town.standing() == (call.list_cost_usd, 0)
    await town.settle(reservation, usd="0.7")
    await town.commit()
    assert town.standing() == (call.list_cost_usd, 0)


async def test_stronger_evidence_takes_the_place_of_weaker(town: Town) -> None:
    first, second = await town.reserve("1", trace_id=TRACE), await town.reserve("2", trace_id=TRACE)
    one, two = town.call(trace=TRACE), town.call(trace=TRACE, reservation=first)
    town.send(one[1])
    await town.commit()
    assert (await town.desk.show(first)).state == "recorded"
    town.send(two[1])
    await town.commit()
    assert (await town.desk.show(second)).state == "recorded"
    assert town.standing() == (one[0].list_cost_usd + two[0].list_cost_usd, 0)


async def test_two_records_that_turn_out_to_be_one_call_give_a_reservation_back(town: Town) -> None:
    await town.reserve("1", trace_id=TRACE)
    await town.reserve("2", trace_id=TRACE)
    call, span = town.call(trace=TRACE)
    other = Span()
    other.CopyFrom(span)
    other.span_id = b"\x01" * 8
    other.parent_span_id = b"\x02" * 8  # not known yet: two calls, for now
    told = [each for each in other.attributes if each.key not in ("gen_ai.response.id",)]
    del other.attributes[:]
    other.attributes.extend(told)
    town.send(span)
    await town.commit()
    assert town.standing() == (call.list_cost_usd, 2)
    town._journal(Kind.TRACES_PROTO, _of_another_layer(other))
    await town.commit()
    spent, held = town.standing()
    town.send(_link(other, span))
    await town.commit()
    after, still = town.standing()
    assert (after, still) == (call.list_cost_usd, 2), (spent, held)


def _of_another_layer(span: Span) -> bytes:
    return export([span]).replace(
        b"opentelemetry.instrumentation.openai_v2", b"opentelemetry.instrumentation.openai_v9"
    )


def _link(child: Span, parent: Span) -> Span:
    """The span between the two, which tells no usage."""
    return Span(
        trace_id=child.trace_id,
        span_id=child.parent_span_id,
        parent_span_id=parent.span_id,
        name="attempt",
        start_time_unix_nano=parent.start_time_unix_nano,
        end_time_unix_nano=parent.end_time_unix_nano,
    )


def _orders() -> Iterator[tuple[tuple[str, ...], bool]]:
    steps = ("call one", "call two", "settle one", "settle two")
    for order in itertools.permutations(steps):
        yield order, order[0] == "call one" or order[:2] == ("settle two", "call two")


@pytest.mark.parametrize("evidence", EVIDENCE)
async def test_the_same_telemetry_in_any_order_leaves_the_same_spend(town: Town, evidence: str) -> None:
    expected, held = Decimal(0), Decimal(0)
    for order, committing in _orders():
        trace = f"{town.rng.getrandbits(128):032x}"
        made = [await town.reserve("0.5"), await town.reserve("0.5")]
        steps: dict[str, Any] = {}
        for name, reservation in zip(("one", "two"), made, strict=True):
            call, span = town.call(
                trace=trace if evidence == "trace" else None,
                reservation=reservation if evidence == "id" else None,
            )
            expected += call.list_cost_usd
            ties = {"response": {"response_id": call.response_id}, "trace": {"trace_id": trace}}
            steps[f"call {name}"] = span
            steps[f"settle {name}"] = (reservation, {"usd": "0.3", **ties.get(evidence, {})})
        for step in order:
            if step.startswith("call"):
                town.send(steps[step])
            else:
                await town.settle(steps[step][0], **steps[step][1])
            if committing:
                await town.commit()
        await town.commit()
        assert town.standing() == (expected, held), order


async def test_a_promise_survives_both_processes(town: Town) -> None:
    open_one = await town.reserve("0.5", idempotency_key="k", scope={"team": "a"})
    settled = await town.reserve("0.25")
    released = await town.reserve("0.125")
    await town.settle(settled, usd="0.2")
    await town.desk.release(released)
    for commit_first in (False, True, False):
        await town.restart(commit_first=commit_first)
        assert town.desk.ready
        assert town.standing() == (Decimal("0.2"), Decimal("0.5"))
        assert await town.reserve("0.5", idempotency_key="k", scope={"team": "a"}) == open_one
        assert (await town.settle(settled, usd="0.2")).state == "settled"
        assert (await town.desk.release(released)).state == "released"
        assert town.standing() == (Decimal("0.2"), Decimal("0.5"))
    await town.settle(open_one, usd="0.5")
    await town.restart()
    assert town.standing() == (Decimal("0.7"), 0)


async def test_the_ledger_alone_starts_again(town: Town) -> None:
    first, second = await town.reserve("0.5"), await town.reserve("0.25")
    await town.commit()
    await town.settle(first, usd="0.4")
    loader = Loader(town.ledger)
    loader.load(loader.prepare(town.waiting))  # committed, and never told
    town.waiting = []
    await town.settle(second, usd="0.2")  # told to the front, not yet to the ledger
    town.ledger.close()
    town.ledger = town._open()
    town.desk.take_snapshot(town.ledger.spend_snapshot())
    assert town.standing() == (Decimal("0.4"), Decimal("0.2"))
    await town.commit()
    assert town.standing() == (Decimal("0.6"), 0)


async def test_a_call_counts_in_the_period_in_which_it_was_reserved(town: Town) -> None:
    town.define(id="day", limit="9", period="day", time_zone="Asia/Kolkata")
    await town.commit()
    town.now = datetime(2026, 11, 22, 18, 29, 59, tzinfo=UTC)  # a second before midnight in India
    reservation = await town.reserve()
    town.now += timedelta(seconds=5)
    assert town.standing("day") == (0, 1)
    await town.settle(reservation, usd="0.5")
    await town.commit()
    assert town.standing("day") == (0, 0)
    assert town.standing() == (Decimal("0.5"), 0)
    town.now -= timedelta(seconds=5)
    assert town.desk.book.figures("day", town.now).spent == "0.5"  # type: ignore[union-attr]
