"""Answers checks, reserves, settles and releases: what a promise costs in memory and on disk, in that order.

A reservation is counted in memory first, so that whoever asks next sees it, and promised only when its record
is on disk; if that fails it is taken back. What frees something (settle, release) takes effect only on disk.
Everything here runs on one event loop and never waits for the ledger, except that a denial waits for a
commit that is half applied.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from billing.budget import BudgetEvent, CheckReply, CheckRequest, decimal_text
from billing.budget_advice import advise
from billing.budget_book import BudgetBook, Judged, event_of
from billing.budget_price import Costs, Quotes, settled
from billing.plan_advice import UsedUp, used_up_for
from billing.reservation import (
    DEFAULT_TTL_S,
    NotReady,
    ReservationConflict,
    ReservationReply,
    SettleRequest,
    UnknownReservation,
    digest_of,
    new_reservation_id,
    record,
    told_costs,
)
from billing.reservation_hold import Hold, Settled, microseconds, moment

__all__ = ["ReservationDesk"]

log = logging.getLogger("tollbook.budgets")

Append = Callable[[bytes], Awaitable[int]]
_US = 1_000_000
_ADDS = (
    "no trace_id or response_id is known: telemetry of this call will add to the spend, "
    "unless it carries tollbook.reservation_id"
)
_LATE = "the reservation had expired: this counts as spend, whether or not it fits"
_TOLD = "telemetry had told of this call already: nothing is added"


def _utc_now() -> datetime:
    return datetime.now(UTC)


class ReservationDesk:
    """The budgets of one front, and the journal that its promises are written to.

    `append` puts one record on disk and returns the position after it; what it raises goes to the caller.
    `keep` is given every decision worth keeping. `ready_from` is the position up to which the ledger must
    have told before anything is answered: what was promised before this process lives there. While it is
    not `open` nothing is answered either. `used_up` are the windows of plans that replies tell of.

    This is the door for whoever lives in the same process (the proxy): `check` with `reserve` before a call,
    `settle` or `release` after it, each on disk when it returns; `ready` says whether it can be asked.
    """

    def __init__(
        self,
        append: Append,
        *,
        keep: Callable[[BudgetEvent], None] = lambda _: None,
        ready_from: int = 0,
        clock: Callable[[], datetime] = _utc_now,
    ) -> None:
        self.book = BudgetBook()
        self.quotes: Quotes | None = None
        self.checks = 0
        self.reservations = 0
        self.applied = asyncio.Event()
        self.open = True
        self.used_up: Sequence[UsedUp] = ()
        self._append = append
        self._keep = keep
        self._ready_from = ready_from
        self._clock = clock
        self._writing: dict[str, asyncio.Future[None]] = {}
        self._abandoned: set[asyncio.Task[ReservationReply]] = set()
        self._deltas: deque[Mapping[str, Any]] = deque()
        self._applying = False
        self._snapshots = 0

    @property
    def ready(self) -> bool:
        """Whether it answers."""
        return self.open and self.caught_up

    @property
    def caught_up(self) -> bool:
        """Whether everything that was promised before this process started is known again."""
        return self.book.ready and self.book.offset >= self._ready_from

    # --- what the ledger tells ---

    def take_snapshot(self, snapshot: Mapping[str, Any]) -> None:
        """The ledger's whole state; changes that were told before it are void."""
        self._deltas.clear()
        self._snapshots += 1
        self.book.apply_snapshot(snapshot)
        self._tell()

    async def take_delta(self, delta: Mapping[str, Any]) -> None:
        """One commit's change, applied in small steps between which others are answered. Raises SpendGap."""
        self._deltas.append(delta)
        if self._applying:
            return
        self._applying = True
        try:
            while self._deltas:
                await self._apply(self._deltas.popleft())
        finally:
            self._applying = False
            self._tell()

    async def _apply(self, delta: Mapping[str, Any]) -> None:
        snapshots = self._snapshots
        for events in self.book.delta_in_parts(delta):
            for event in events:
                self._keep(event)
            await asyncio.sleep(0)
            if snapshots != self._snapshots:
                return  # the ledger has told everything anew meanwhile

    def _tell(self) -> None:
        told, self.applied = self.applied, asyncio.Event()
        told.set()

    # --- checks ---

    async def check(self, request: CheckRequest) -> CheckReply:
        """Allow, warn or deny; with `reserve`, hold the estimate back unless denied.

        Raises NotReady, and ReservationConflict where the idempotency key was used for something else.
        """
        self._refuse_unready()
        self.checks += 1
        if not request.reserve:
            reply = (await self._judge(request)).reply
        elif request.idempotency_key is None:
            reply = await self._reserve(request, "")
        else:
            reply = await self._reserve_once(request, request.idempotency_key)
        return reply

    def check_at_once(self, request: CheckRequest) -> CheckReply | None:
        """The same for a check that has to wait for nothing; None where `check` must be asked."""
        self._refuse_unready()
        if request.reserve:
            return None
        judged = self.book.judge(request, self._clock(), self.quotes)
        if self._is_doubtful(judged):
            return None
        self.checks += 1
        return self._noted(request, judged).reply

    def _refuse_unready(self) -> None:
        if not (self.open and self.caught_up):
            raise NotReady("the ledger is starting, spend is not known yet")

    def _is_doubtful(self, judged: Judged) -> bool:
        """While a commit is being applied budgets may count a call twice: what they deny is asked again."""
        return self._applying and judged.reply.decision == "deny"

    async def _judge(self, request: CheckRequest) -> Judged:
        judged = self.book.judge(request, self._clock(), self.quotes)
        while self._is_doubtful(judged):
            await self.applied.wait()
            judged = self.book.judge(request, self._clock(), self.quotes)
        return self._noted(request, judged)

    def _noted(self, request: CheckRequest, judged: Judged) -> Judged:
        """Advises and records where a budget had anything against it, be it in shadow; tells of plans."""
        if self.used_up:
            judged.reply.used_up = used_up_for(self.used_up, judged.told, self._clock())
            judged.reply.advice += [each.sentence() for each in judged.reply.used_up]
        shadows = [each for each in judged.reply.budgets if each.shadow]
        if judged.reply.decision == "allow" and not shadows:
            return judged
        now = self._clock()
        advise(request, judged, self.book, now=now, quotes=self.quotes)
        if event := event_of(request, judged.reply, now):
            self._keep(event)
        return judged

    async def _reserve_once(self, request: CheckRequest, key: str) -> CheckReply:
        digest = digest_of(request)
        while (known := self.book.holds.by_key(key)) is not None:
            if known.digest != digest:
                raise ReservationConflict("the idempotency_key was used for another check")
            if known.written:
                return self._repeated(request, known)
            await self._written(known)
        return await self._reserve(request, digest)

    def _repeated(self, request: CheckRequest, known: Hold) -> CheckReply:
        """The answer given before, with the figures of now."""
        judged = self.book.judge(request, self._clock(), self.quotes)
        return replace(
            judged.reply,
            decision=known.decision,
            reason=f"this idempotency_key has a reservation already, which is {known.state}",
            reservation_id=known.id,
            expires_at=moment(known.expires_us),
            retry_after_s=None,
            advice=[],
        )

    async def _reserve(self, request: CheckRequest, digest: str) -> CheckReply:
        judged = await self._judge(request)
        reply = judged.reply
        if request.idempotency_key is not None and self.book.holds.by_key(request.idempotency_key):
            return await self._reserve_once(request, request.idempotency_key)  # came while this one waited
        if reply.decision == "deny":
            return reply
        if judged.counting:
            raise NotReady("the calls of a new budget are still being counted; nothing can be promised yet")
        hold = self._new_hold(request, judged, digest)
        self.book.reserve(hold, judged)
        reply.reservation_id, reply.expires_at = hold.id, moment(hold.expires_us)
        try:
            await self._write(hold, _reserve_record(hold), undo=lambda: self.book.let_go(hold))
        except asyncio.CancelledError:
            if hold.key is None:
                self._abandon(hold)
            raise
        hold.written = True
        self.reservations += 1
        return reply

    def _abandon(self, hold: Hold) -> None:
        """Whoever asked has gone, nobody knows its id: let go of it. Where that fails it expires."""

        def gone(task: asyncio.Task[ReservationReply]) -> None:
            self._abandoned.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                log.warning("an abandoned reservation stays until it expires: %s", error)

        task = asyncio.create_task(self.release(hold.id))
        self._abandoned.add(task)
        task.add_done_callback(gone)

    def _new_hold(self, request: CheckRequest, judged: Judged, digest: str) -> Hold:
        at_us = microseconds(self._clock())
        return Hold(
            id=new_reservation_id(),
            key=request.idempotency_key,
            digest=digest,
            decision=judged.reply.decision,
            told=judged.told,
            model=request.model,
            costs=judged.costs,
            at_us=at_us,
            expires_us=at_us + (request.ttl_s or DEFAULT_TTL_S) * _US,
            trace_id=request.trace_id,
        )

    # --- the end of a reservation ---

    async def settle(self, reservation_id: str, request: SettleRequest) -> ReservationReply:
        """Puts what the call needed in the place of what was held. Raises UnknownReservation and
        ReservationConflict.
        """
        hold = await self._known(reservation_id)
        digest = digest_of(request)
        if hold.latest is not None and hold.latest.digest == digest:
            return self._standing(hold, request)
        if hold.released:
            raise ReservationConflict("the reservation was released; telemetry of the call counts by itself")
        if hold.latest is not None and hold.latest.final:
            raise ReservationConflict("the reservation was settled otherwise before")
        number = hold.latest.number + 1 if hold.latest else 1
        told = Settled(number, digest, self._costs(hold, request), final=not request.partial)
        now = self._clock()
        hold.settling = told
        self.book.weigh(hold, now)
        await self._write(hold, _settle_record(hold, told, request, now), undo=lambda: self._unsettle(hold))
        hold.settling = None
        hold.settlements.append(told)
        hold.trace_id = hold.trace_id or request.trace_id
        self.book.weigh(hold, self._clock())
        return self._standing(hold, request)

    def _unsettle(self, hold: Hold) -> None:
        hold.settling = None
        self.book.weigh(hold, self._clock())

    def _costs(self, hold: Hold, request: SettleRequest) -> Costs:
        usage = request.usage
        return settled(
            None if usage is None else usage.buckets(),
            tokens=None if usage is None else usage.input_tokens + usage.output_tokens,
            usd=request.usd,
            access=hold.told.get("access"),
            model=request.model or hold.model or hold.told.get("model"),
            provider=request.provider or hold.told.get("provider"),
            at=request.started_at or moment(hold.at_us),
            quotes=self.quotes,
        )

    async def release(self, reservation_id: str) -> ReservationReply:
        """Lets go of what is held: the call is not made. Raises as `settle` does."""
        hold = await self._known(reservation_id)
        if hold.released:
            return self._standing(hold)
        if hold.latest is not None:
            raise ReservationConflict("the reservation was settled before")
        if not hold.over:
            now = self._clock()
            body = record("release", {"id": hold.id, "at_us": microseconds(now)})
            await self._write(hold, body)
            hold.released = True
            self.book.weigh(hold, self._clock())
        return self._standing(hold)

    async def show(self, reservation_id: str) -> ReservationReply:
        """How a reservation stands. Raises UnknownReservation."""
        return self._standing(await self._known(reservation_id))

    async def _known(self, reservation_id: str) -> Hold:
        """The reservation, once nothing of it is on its way to the disk."""
        if not self.ready:
            raise NotReady("the ledger is starting, reservations are not known yet")
        self.book.expire(self._clock())
        while (hold := self.book.holds.get(reservation_id)) is not None and hold.id in self._writing:
            await self._written(hold)
        if hold is None:
            raise UnknownReservation("there is no reservation of this id, or it ended long ago")
        return hold

    def _standing(self, hold: Hold, request: SettleRequest | None = None) -> ReservationReply:
        latest = hold.latest
        usd = None if latest is None else latest.costs.billed_usd
        return ReservationReply(
            reservation_id=hold.id,
            state=hold.state,
            expires_at=moment(hold.expires_us),
            settled_usd=None if usd is None else decimal_text(usd),
            budgets=self.book.figures_of(hold, self._clock()),
            warnings=[] if request is None else _warnings(hold, request),
        )

    # --- the journal ---

    async def _write(self, hold: Hold, body: bytes, *, undo: Callable[[], None] = lambda: None) -> None:
        """Waits for the disk; whoever needs this reservation meanwhile waits too."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._writing[hold.id] = done
        try:
            await self._append(body)
        except asyncio.CancelledError:
            hold.written = True  # it may be on disk: then it holds until it expires
            raise
        except BaseException:
            undo()
            raise
        finally:
            del self._writing[hold.id]
            done.set_result(None)

    async def _written(self, hold: Hold) -> None:
        if (writing := self._writing.get(hold.id)) is not None:
            await asyncio.shield(writing)


def _reserve_record(hold: Hold) -> bytes:
    fields = {
        "id": hold.id,
        "key": hold.key,
        "digest": hold.digest,
        "decision": hold.decision,
        "at_us": hold.at_us,
        "expires_us": hold.expires_us,
        "told": dict(hold.told),
        "model": hold.model,
        "costs": told_costs(hold.costs),
        "trace_id": hold.trace_id,
    }
    return record("reserve", fields)


def _settle_record(hold: Hold, told: Settled, request: SettleRequest, now: datetime) -> bytes:
    started = request.started_at or moment(hold.at_us)
    fields = {
        "id": hold.id,
        "number": told.number,
        "digest": told.digest,
        "at_us": microseconds(now),
        "started_us": microseconds(started),
        "final": told.final,
        "costs": told_costs(told.costs),
        "usd": None if request.usd is None else decimal_text(request.usd),
        "usage": None if request.usage is None else request.usage.model_dump(exclude_none=True),
        **{name: getattr(request, name) for name in ("model", "provider", "trace_id", "response_id")},
    }
    return record("settle", fields)


def _warnings(hold: Hold, request: SettleRequest) -> list[str]:
    warnings = []
    if hold.matched:
        warnings.append(_TOLD)
    elif hold.trace_id is None and request.trace_id is None and request.response_id is None:
        warnings.append(_ADDS)
    if hold.expired:
        warnings.append(_LATE)
    return warnings
