"""The way of an export request from its bytes to its durable position, whatever transport brought it.

An acknowledgement waits for validity and for the disk and for nothing else. What cannot be taken is refused
with a reason that both transports translate; nothing of a refused request is kept.

Error: `Refused`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import StrEnum
from time import perf_counter, time_ns
from typing import Final

from .inflate import INFLATERS, BadCompression, TooLarge, inflate
from .journal import Journal, JournalError
from .limits import Limits
from .otlp import KINDS, Encoding, Signal
from .validity import AT_ONCE_BYTES, Content, NotOtlp, check, check_in_steps

_INLINE_COMPRESSED_BYTES: Final = 128 << 10
_INLINE_INFLATED_BYTES: Final = 1 << 20  # about 2 ms; more goes to a thread, where inflating needs no GIL
_WORK_SLICE_S: Final = 0.001


class Transport(StrEnum):
    """How a request came."""

    HTTP = "http"
    GRPC = "grpc"


class Reason(StrEnum):
    """Why a request was refused."""

    NOT_OTLP = "not_otlp"
    TOO_LARGE = "too_large"
    CONTENT_TYPE = "content_type"
    CONTENT_ENCODING = "content_encoding"
    METHOD = "method"
    OVERLOAD = "overload"
    JOURNAL = "journal"


class Refused(Exception):
    """The request is not taken. The message is a sentence for the sender, and quotes nothing of it."""

    def __init__(self, reason: Reason, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


@dataclass(slots=True)
class ReceiverCounts:
    """What the receivers did since the start: plain counters for /metrics."""

    requests: dict[tuple[Signal, Transport], int] = field(
        default_factory=lambda: {(signal, transport): 0 for signal in Signal for transport in Transport}
    )
    acknowledged: dict[tuple[Signal, Transport], int] = field(
        default_factory=lambda: {(signal, transport): 0 for signal in Signal for transport in Transport}
    )
    acknowledged_bytes: int = 0
    refused: dict[Reason, int] = field(default_factory=lambda: dict.fromkeys(Reason, 0))


class Intake:
    """Takes export requests into `journal` within `limits`. One for all receivers of a process.

    `held_bytes` are request bodies in memory; a receiver adds what arrives and takes off what it has
    answered.
    """

    def __init__(self, journal: Journal, limits: Limits) -> None:
        self.journal = journal
        self.limits = limits
        self.counts = ReceiverCounts()
        self.held_bytes = 0

    def refuse_overload(self) -> None:
        """Refused, when the backlog or the memory for bodies is full."""
        if self.journal.backlog_bytes >= self.limits.max_backlog_bytes:
            raise Refused(Reason.OVERLOAD, "the ledger is behind: its backlog is full, send again later")
        if self.held_bytes >= self.limits.max_held_bytes:
            raise Refused(Reason.OVERLOAD, "too many requests are arriving at once, send again later")

    async def inflate(self, body: bytes, content_encoding: str) -> bytes:
        """`body` without its content encoding, large ones decompressed in a thread. Refused if that cannot
        be.
        """
        if content_encoding not in INFLATERS:
            raise Refused(
                Reason.CONTENT_ENCODING,
                f"the content encoding must be identity or one of {', '.join(INFLATERS)}",
            )
        try:
            return await self._inflated(body, content_encoding)
        except TooLarge as error:
            raise Refused(Reason.TOO_LARGE, str(error)) from None
        except BadCompression as error:
            raise Refused(Reason.NOT_OTLP, str(error)) from None

    async def _inflated(self, body: bytes, encoding: str) -> bytes:
        limit = self.limits.max_body_bytes
        inline = min(limit, _INLINE_INFLATED_BYTES)
        if len(body) <= _INLINE_COMPRESSED_BYTES:
            try:
                return inflate(body, encoding=encoding, limit_bytes=inline)
            except TooLarge:
                if inline == limit:
                    raise
        return await asyncio.to_thread(inflate, body, encoding=encoding, limit_bytes=limit)

    async def take(self, signal: Signal, encoding: Encoding, body: bytes, *, gather_s: float = 0.0) -> int:
        """Check `body` and put it on disk; the journal position that acknowledges it. Refused if it is not
        taken.

        An export without any records is acknowledged with what is durable now and not stored.
        """
        received_at_ns = time_ns()
        try:
            if len(body) <= AT_ONCE_BYTES[encoding]:
                content = check(signal, encoding, body)
            else:
                content = await _check_in_slices(signal, encoding, body)
            if content is Content.NOTHING:
                return self.journal.durable
            kind = KINDS[signal, encoding]
            return await self.journal.append(kind, body, received_at_ns=received_at_ns, gather_s=gather_s)
        except (NotOtlp, JournalError) as error:
            raise refusal_of(error) from None

    def begin(self, signal: Signal, encoding: Encoding, body: bytes) -> asyncio.Future[int]:
        """The same for a body of at most AT_ONCE_BYTES, for who goes on meanwhile: Refused where it is not
        valid; what the future raises is for `refusal_of`.
        """
        received_at_ns = time_ns()
        try:
            if check(signal, encoding, body) is Content.RECORDS:
                return self.journal.submit(KINDS[signal, encoding], body, received_at_ns=received_at_ns)
        except (NotOtlp, JournalError) as error:
            raise refusal_of(error) from None
        nothing = asyncio.get_running_loop().create_future()
        nothing.set_result(self.journal.durable)
        return nothing


def refusal_of(error: BaseException) -> Refused:
    """Why what raised this was not taken; anything else than an invalid body or the disk is raised again."""
    if isinstance(error, NotOtlp):
        return Refused(Reason.NOT_OTLP, str(error))
    if isinstance(error, JournalError):
        return Refused(Reason.JOURNAL, str(error))
    raise error


async def _check_in_slices(signal: Signal, encoding: Encoding, body: bytes) -> Content:
    """Check a large body, letting the event loop go round after every millisecond of work."""
    steps = check_in_steps(signal, encoding, body)
    until = perf_counter() + _WORK_SLICE_S
    while True:
        try:
            next(steps)
        except StopIteration as end:
            content: Content = end.value
            return content
        if perf_counter() > until:
            await asyncio.sleep(0)
            until = perf_counter() + _WORK_SLICE_S
