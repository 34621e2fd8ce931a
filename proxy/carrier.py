"""A call from its request to the end of its answer: choose, write down, send, relay, record.

The one place where the order of things is decided. Nothing goes out before its record stands in a slot, and
no answer ends before what became of it stands there too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Final

from catalog.errors import EndpointError
from proxy.allowance import Allowance
from proxy.caller import Headers
from proxy.client import Client
from proxy.connection import Answer, TooSlow, Unreachable, UpstreamError
from proxy.exchange import Attempt, CredentialKind, Exchange, Outcome, Target
from proxy.failure import Failure, FailureKind, classify, failure
from proxy.health import Health
from proxy.keys import access_by_answer
from proxy.outgoing import Outgoing, outgoing
from proxy.plan import PAID, Plan, Planner
from proxy.recorder import Recorder
from proxy.refusal import Refused
from proxy.relay import ErrorAnswer, Passage, inflated, relay_refusal
from proxy.translate import CannotCarry
from proxy.upstream import NOTHING_SENT, Upstream

__all__ = ["Carrier", "Counts"]

log = logging.getLogger("tollbook.proxy")

MAX_ERROR_BYTES: Final = 1 << 20


@dataclass(slots=True)
class Counts:
    """What the proxy did since the start, for /metrics."""

    fallbacks: dict[bool, int] = field(default_factory=lambda: {False: 0, True: 0})
    """By whether it led from a plan to what costs money."""
    refused: int = 0


class Carrier:
    """Carries calls. `planner` gives the planner of now; it may raise Refused while the house is starting."""

    def __init__(
        self,
        planner: Callable[[], Planner],
        *,
        allowance: Allowance,
        upstream: Upstream,
        recorder: Recorder,
        max_answer_bytes: int,
    ) -> None:
        self._planner = planner
        self._allowance = allowance
        self.health = Health()
        self._upstream = upstream
        self._recorder = recorder
        self._max_answer_bytes = max_answer_bytes
        self._beside: set[asyncio.Task[None]] = set()
        self.stopping = False
        self.counts = Counts()

    async def carry(self, exchange: Exchange, client: Client) -> None:
        """Have one request served, or say why not in the caller's dialect."""
        try:
            failed, attempt = await self._try_targets(exchange, client)
        except Refused as refused:
            self.counts.refused += 1
            failed, attempt = refused.failure, None
        if failed is None:
            return
        if attempt is not None and attempt.answer is not None and not client.started:
            await relay_refusal(attempt.answer, attempt.body, client)
        else:
            await client.fail(failed, exchange.wire_format)

    async def _try_targets(self, exchange: Exchange, client: Client) -> tuple[Failure | None, Attempt | None]:
        """One target after the other, until one has answered or the route lets none follow.

        The last failure, and the attempt that the caller may be told of in the provider's own words.
        """
        plan = self._planner().plan(exchange)
        failed: Failure | None = None
        attempt: Attempt | None = None
        passed: Refused | None = None
        while target := plan.next(failed):
            try:
                attempt, failed = await self._try(exchange, client, target, plan, attempt, failed)
            except Refused as refused:
                passed = refused
                over = refused.failure.kind is FailureKind.BUDGET_EXCEEDED
                if plan.route is None or (over and not plan.route.degrade):
                    raise
                log.info("%s: passed over: %s", target.name, refused)
                continue
            if failed is None or client.started:
                return failed, None
        if failed is None and passed is not None:
            raise passed
        return failed, attempt

    async def _try(
        self,
        exchange: Exchange,
        client: Client,
        target: Target,
        plan: Plan,
        previous: Attempt | None,
        failed: Failure | None,
    ) -> tuple[Attempt, Failure | None]:
        held = await self._allowance.reserve(exchange, target)
        way = exchange.head.way(target, streaming=exchange.said.streaming)
        attempt = Attempt(target, way, number=len(plan.tried), reservation_id=held)
        if previous is not None and failed is not None:
            self._note_fallback(attempt, previous, failed)
        failed = await self._attempt(exchange, attempt, client)
        if failed is not None:
            self.health.failed(target, failed)
        return attempt, failed

    def _note_fallback(self, attempt: Attempt, previous: Attempt, failed: Failure) -> None:
        """Make visible what serves in the place of what."""
        attempt.fallback_from = f"{previous.target.name}: {failed.kind}"
        paid = previous.target.access == "subscription" and attempt.target.access in PAID
        self.counts.fallbacks[paid] += 1
        level = logging.WARNING if paid else logging.INFO
        log.log(level, "%s serves in the place of %s", attempt.target.name, attempt.fallback_from)

    async def _attempt(self, exchange: Exchange, attempt: Attempt, client: Client) -> Failure | None:
        """One try at one target: None if the caller has been answered."""
        sent = self._prepared(exchange, attempt)
        client.extra = _ours(exchange, attempt, sent)
        try:
            self._recorder.begin(exchange, attempt)
        except Refused:
            self._release(attempt)
            raise
        local = attempt.target.is_local
        try:
            answer = await self._upstream.send("POST", sent.url, sent.headers, sent.body, local=local)
        except UpstreamError as error:
            return await self._no_answer(exchange, attempt, error)
        except asyncio.CancelledError as gone:
            self._left(exchange, attempt, sent=NOTHING_SENT not in gone.args)
            raise
        try:
            return await self._answered(exchange, attempt, sent, answer, client)
        except Exception:  # a fault of ours: the provider was called all the same
            self._recorder.end(exchange, attempt, Outcome.BROKEN)
            raise
        finally:
            answer.close()

    async def _answered(
        self, exchange: Exchange, attempt: Attempt, sent: Outgoing, answer: Answer, client: Client
    ) -> Failure | None:
        attempt.status, attempt.headers = answer.status, answer.headers
        attempt.access = access_by_answer(attempt.target.facts, answer.headers) or attempt.access
        seal = partial(self._recorder.end, exchange, attempt, Outcome.ANSWERED)
        try:
            if answer.status >= 300:  # nobody is followed to another place, with a key in hand
                return await self._refused(exchange, attempt, sent, answer)
            passage = Passage(exchange, attempt, sent=sent, answer=answer, client=client, seal=seal)
            await (passage.stream() if passage.streams else passage.whole(self._max_answer_bytes))
        except ErrorAnswer as error:
            return await self._failed_within(exchange, attempt, sent, answer, error)
        except UpstreamError as error:
            return await self._no_answer(exchange, attempt, error)
        except asyncio.CancelledError:
            self._left(exchange, attempt)
            raise
        self.health.answered(attempt.target)
        return None

    async def _refused(self, exchange: Exchange, attempt: Attempt, sent: Outgoing, answer: Answer) -> Failure:
        """The provider said no."""
        body = await answer.whole(MAX_ERROR_BYTES)
        plain = inflated(body, answer) or b""
        provider, now = attempt.target.provider, datetime.now(UTC)
        attempt.failure = classify(provider, answer.status, answer.headers, plain, now=now)
        self._recorder.end(exchange, attempt, Outcome.REFUSED)
        await self._released(attempt)
        _keep_words(exchange, attempt, sent, answer, body)
        return attempt.failure

    async def _failed_within(
        self, exchange: Exchange, attempt: Attempt, sent: Outgoing, answer: Answer, error: ErrorAnswer
    ) -> Failure:
        """Nothing but an error: as good as refused, though the status was not."""
        provider, now = attempt.target.provider, datetime.now(UTC)
        attempt.failure = classify(provider, 200, answer.headers, error.body, now=now)
        attempt.status = attempt.failure.status
        self._recorder.end(exchange, attempt, Outcome.REFUSED)
        if attempt.told is None or not attempt.told.usage_known:
            await self._released(attempt)
        _keep_words(exchange, attempt, sent, answer, error.raw)
        return attempt.failure

    async def _no_answer(self, exchange: Exchange, attempt: Attempt, error: UpstreamError) -> Failure:
        outcome = {Unreachable: Outcome.UNREACHABLE, TooSlow: Outcome.TIMED_OUT}.get(
            type(error), Outcome.BROKEN
        )
        log.warning("%s: %s", attempt.target.name, error)
        kind = FailureKind.TIMEOUT if outcome is Outcome.TIMED_OUT else FailureKind.NETWORK
        attempt.failure = failure(kind, str(error))
        self._recorder.end(exchange, attempt, outcome)
        if outcome is Outcome.UNREACHABLE:
            await self._released(attempt)
        return attempt.failure

    def _prepared(self, exchange: Exchange, attempt: Attempt) -> Outgoing:
        try:
            return outgoing(exchange, attempt.way)
        except (CannotCarry, EndpointError) as error:
            self._release(attempt)
            raise Refused(FailureKind.INVALID_REQUEST, str(error)) from None

    def _release(self, attempt: Attempt) -> asyncio.Task[None] | None:
        """Nothing reached the provider, or it took nothing on: what was held for it is free."""
        if attempt.reservation_id is None:
            return None
        task = asyncio.create_task(self._allowance.release(attempt.reservation_id))
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)
        return task

    async def _released(self, attempt: Attempt) -> None:
        """The same, done when this returns: the next target may need it."""
        if (releasing := self._release(attempt)) is not None:
            await asyncio.shield(releasing)

    def _left(self, exchange: Exchange, attempt: Attempt, *, sent: bool = True) -> None:
        """The caller has gone, or the house stops; what was not `sent` has used nothing."""
        left = Outcome.STOPPED if self.stopping else Outcome.CLIENT_LEFT
        self._recorder.end(exchange, attempt, left if sent else Outcome.UNSENT)
        if not sent:
            self._release(attempt)

    async def close(self) -> None:
        """Wait for what is being released, then close the connections."""
        await asyncio.gather(*self._beside, return_exceptions=True)
        await self._upstream.close()


def _keep_words(exchange: Exchange, attempt: Attempt, sent: Outgoing, answer: Answer, body: bytes) -> None:
    """A provider's own words are for who showed a key of his own and speaks its dialect."""
    own = attempt.target.credential_kind is not CredentialKind.VAULT
    if own and sent.spoken is exchange.wire_format and answer.status not in range(300, 400):
        attempt.answer, attempt.body = answer, body


def _ours(exchange: Exchange, attempt: Attempt, sent: Outgoing) -> Headers:
    """Our own headers on the answer."""
    target, way = attempt.target, attempt.way
    if way.extra is None:
        way.extra = _written(
            {
                "tollbook-provider": target.provider,
                "tollbook-model": target.model,
                "tollbook-access": target.access,
                "tollbook-plan": target.plan,
            }
        )
    if exchange.route is None and attempt.fallback_from is None and not sent.left_out:
        return way.extra
    told = {
        "tollbook-route": exchange.route,
        "tollbook-fallback-from": attempt.fallback_from,
        "tollbook-left-out": ", ".join(sent.left_out),
    }
    return [*way.extra, *_written(told)]


def _written(told: Mapping[str, str | None]) -> Headers:
    return [(name.encode(), value.encode("ascii", "replace")) for name, value in told.items() if value]
