"""A call from its request to the end of its answer: choose, write down, send, relay, record.

The one place where the order of things is decided. Nothing goes out before its record stands in a slot, and
no answer ends before its record is on disk.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from catalog.errors import EndpointError
from ingest.call_report import journal_call
from ingest.journal import Journal, JournalError
from proxy.choice import Chooser
from proxy.exchange import Attempt, CredentialKind, Exchange, Outcome, Target
from proxy.failure import Failure, FailureKind, classify, failure
from proxy.inflight import InFlight, TooManyInFlight
from proxy.keys import access_by_answer
from proxy.outgoing import Outgoing, outgoing
from proxy.refusal import Refused
from proxy.relay import Client, inflated, relay, relay_refusal, relay_whole
from proxy.report import record_of
from proxy.upstream import Answer, TooSlow, Unreachable, Upstream, UpstreamError

__all__ = ["Carrier", "Counts"]

log = logging.getLogger("tollbook.proxy")

MAX_ERROR_BYTES: Final = 1 << 20


@dataclass(slots=True)
class Counts:
    """What the proxy did since the start, for /metrics."""

    attempts: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))
    refused: int = 0
    unrecorded: int = 0


class Carrier:
    """Carries calls. `chooser` gives the chooser of now; it may raise Refused while the house is starting."""

    def __init__(
        self,
        chooser: Callable[[], Chooser],
        *,
        journal: Journal,
        upstream: Upstream,
        inflight: InFlight,
        max_answer_bytes: int,
    ) -> None:
        self._chooser = chooser
        self._journal = journal
        self._upstream = upstream
        self._inflight = inflight
        self._max_answer_bytes = max_answer_bytes
        self._beside: set[asyncio.Task[None]] = set()
        self.stopping = False
        self.counts = Counts()

    async def carry(self, exchange: Exchange, client: Client) -> None:
        """Have one request served, or say why not in the caller's dialect."""
        try:
            target = self._chooser().choose(exchange)
            failed = await self._attempt(exchange, Attempt(target), client)
        except Refused as refused:
            self.counts.refused += 1
            failed = refused.failure
        if failed is not None:
            await client.fail(failed, exchange.wire_format)

    async def _attempt(self, exchange: Exchange, attempt: Attempt, client: Client) -> Failure | None:
        """One try at one target: None if the caller has been answered."""
        target = attempt.target
        sent = self._prepared(exchange, target)
        client.extra = _ours(attempt)
        try:
            attempt.slot = self._inflight.put(self._record(exchange, attempt))
        except TooManyInFlight:
            raise Refused(
                FailureKind.OVERLOADED, "too many calls are on their way; ask again", retry_after_s=1
            ) from None
        try:
            answer = await self._upstream.send(
                "POST", sent.url, sent.headers, sent.body, local=target.is_local
            )
        except UpstreamError as error:
            return await self._no_answer(exchange, attempt, error)
        except asyncio.CancelledError:
            self._left(exchange, attempt)
            raise
        try:
            return await self._answered(exchange, attempt, sent, answer, client)
        finally:
            answer.close()

    async def _answered(
        self, exchange: Exchange, attempt: Attempt, sent: Outgoing, answer: Answer, client: Client
    ) -> Failure | None:
        attempt.status, attempt.headers = answer.status, answer.headers
        book = self._chooser().catalogue.book
        attempt.access = access_by_answer(book, attempt.target.provider, answer.headers) or attempt.access

        async def seal() -> None:
            await self._seal(exchange, attempt, Outcome.ANSWERED)

        try:
            if answer.status >= 400:
                return await self._refused(exchange, attempt, sent, answer, client)
            if answer.streams:
                await relay(attempt, sent, answer, client, seal)
            else:
                limit = self._max_answer_bytes
                await relay_whole(exchange, attempt, sent, answer, client, seal, limit_bytes=limit)
        except UpstreamError as error:
            return await self._no_answer(exchange, attempt, error)
        except asyncio.CancelledError:
            self._left(exchange, attempt)
            raise
        return None

    async def _refused(
        self, exchange: Exchange, attempt: Attempt, sent: Outgoing, answer: Answer, client: Client
    ) -> Failure | None:
        """The provider said no: its own words for the caller's own key in the same dialect, else ours."""
        body = await answer.whole(MAX_ERROR_BYTES)
        plain = inflated(body, answer) or b""
        provider, now = attempt.target.provider, datetime.now(UTC)
        attempt.failure = classify(provider, answer.status, answer.headers, plain, now=now)
        await self._seal(exchange, attempt, Outcome.REFUSED)
        own = attempt.target.credential_kind is not CredentialKind.VAULT
        if own and sent.spoken is exchange.wire_format:
            await relay_refusal(answer, body, client)
            return None
        return attempt.failure

    async def _no_answer(self, exchange: Exchange, attempt: Attempt, error: UpstreamError) -> Failure:
        outcome = {Unreachable: Outcome.UNREACHABLE, TooSlow: Outcome.TIMED_OUT}.get(
            type(error), Outcome.BROKEN
        )
        log.warning("%s: %s", attempt.target.name, error)
        kind = FailureKind.TIMEOUT if outcome is Outcome.TIMED_OUT else FailureKind.NETWORK
        attempt.failure = failure(kind, str(error))
        await self._seal(exchange, attempt, outcome)
        return attempt.failure

    def _prepared(self, exchange: Exchange, target: Target) -> Outgoing:
        try:
            return outgoing(exchange, target)
        except EndpointError as error:
            raise Refused(FailureKind.INVALID_REQUEST, str(error)) from None

    # --- the record ---

    def _record(self, exchange: Exchange, attempt: Attempt) -> bytes:
        provider = self._chooser().catalogue.book.providers.get(attempt.target.provider)
        return record_of(exchange, attempt, provider)

    async def _seal(self, exchange: Exchange, attempt: Attempt, outcome: Outcome) -> None:
        """The attempt is over: its record goes to the disk, and its slot is free once it is there."""
        slot, attempt.slot = attempt.slot, None
        if slot is None:
            return
        attempt.outcome = outcome
        self.counts.attempts[outcome] += 1
        try:
            if not exchange.operation.counts_tokens:
                await journal_call(self._journal, self._record(exchange, attempt))
        except JournalError as error:
            self.counts.unrecorded += 1
            log.error("a call to %s could not be recorded: %s", attempt.target.name, error)
        else:
            self._inflight.clear(slot)

    def _left(self, exchange: Exchange, attempt: Attempt) -> None:
        """The caller has gone, or the house stops: the record is written beside."""
        outcome = Outcome.STOPPED if self.stopping else Outcome.CLIENT_LEFT
        self._later(self._seal(exchange, attempt, outcome))

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    async def recover(self) -> None:
        """Record what a killed process had on its way."""
        for slot, body in list(self._inflight.interrupted.items()):
            await journal_call(self._journal, body)
            del self._inflight.interrupted[slot]
            self._inflight.clear(slot)

    async def close(self) -> None:
        """Wait for the records that are being written, then close the connections."""
        await asyncio.gather(*self._beside, return_exceptions=True)
        await self._upstream.close()
        self._inflight.close()


def _ours(attempt: Attempt) -> list[tuple[bytes, bytes]]:
    target = attempt.target
    told = {
        "tollbook-provider": target.provider,
        "tollbook-model": target.model,
        "tollbook-access": target.access,
        "tollbook-plan": target.plan,
        "tollbook-fallback-from": attempt.fallback_from,
    }
    return [(name.encode(), value.encode("ascii", "replace")) for name, value in told.items() if value]
