"""One HTTP/1.1 connection to a provider, and the answer that comes over it.

Between the wire and the caller stands a parser in native code and nothing else: no task, no queue, no copy of
a chunk that is not needed. One timer watches over silence and length, since bytes come by the thousand and
each may cost only a look at the clock. Nothing is decompressed or followed here.

Errors: `TooSlow`, `Broken` (both `UpstreamError`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, cast

import httptools

from proxy.caller import Headers

__all__ = ["Answer", "Broken", "Connection", "Timeouts", "TooSlow", "Unreachable", "UpstreamError"]

MAX_HEAD_BYTES: Final = 128 << 10
MAX_WAITING_BYTES: Final = 1 << 20
"""Of an answer whose caller reads slowly so much is kept here; then the provider has to wait."""


class UpstreamError(Exception):
    """The provider gave no whole answer. The message is for the caller and names no internal address."""


class Unreachable(UpstreamError):
    """No connection: the provider has seen nothing of the call."""


class TooSlow(UpstreamError):
    """The provider took longer than it may."""


class Broken(UpstreamError):
    """The connection ended before the answer did."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds for: a connection, the answer's first byte, silence within it, all of it."""

    connect_s: float = 10.0
    first_byte_s: float = 600.0
    idle_s: float = 300.0
    total_s: float = 3600.0


class Connection(asyncio.Protocol):
    """Carries a request at a time: `answer` is the one it is at. `on_idle` is told when the next may come."""

    def __init__(self, timeouts: Timeouts, on_idle: Callable[[Connection], None]) -> None:
        self.timeouts = timeouts
        self.loop = asyncio.get_running_loop()
        self.answer: Answer | None = None
        self.idle_since_s = 0.0
        self._on_idle = on_idle
        self.parts: list[bytes] = []
        self.on_body = self.parts.append  # told by the parser for each part, without a step of our own
        self._parser = httptools.HttpResponseParser(self)
        self._head_bytes = 0
        self._stays = False
        self._shortest_s = min(timeouts.first_byte_s, timeouts.idle_s, timeouts.total_s)
        self._watch: asyncio.TimerHandle | None = None

    @property
    def is_open(self) -> bool:
        """Whether a request can be sent."""
        return not self.transport.is_closing()

    async def ask(self, request: bytes) -> Answer:
        """Send a request; its answer, of which the head has come. Raises UpstreamError."""
        self.parts.clear()
        answer = self.answer = Answer(self)
        self._head_bytes = 0
        self.transport.write(request)
        if self._watch is None:
            self._look()
        try:
            await answer.head()
        except BaseException:
            answer.close()
            raise
        return answer

    def leave(self, *, whole: bool) -> None:
        """The answer is in nobody's hands any more: `whole` it leaves a connection for the next."""
        self.answer = None
        if whole and self.is_open and self._stays:
            self.transport.resume_reading()
            self.idle_since_s = self.loop.time()
            self._on_idle(self)
        else:
            self.transport.abort()

    def _look(self) -> None:
        """Cut an answer off that has been silent, or has gone on, for too long. One timer does for many
        answers: it looks before any of them can be due.
        """
        self._watch = None
        if (answer := self.answer) is None:
            return
        now = self.loop.time()
        if (due_s := answer.due_s()) <= now:
            answer.fail(answer.too_slow())
        else:
            self._watch = self.loop.call_at(min(due_s, now + self._shortest_s), self._look)

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Bytes of the answer; from who has not been asked they are the end of the connection."""
        answer = self.answer
        if answer is None:
            self.transport.abort()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            answer.fail(Broken("what the provider answered is not HTTP"))
            return
        if not answer.status:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                answer.fail(Broken("the head of the provider's answer is too large"))
        answer.hold(len(data))
        answer.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side has closed, or we have."""
        del exc
        if self._watch is not None:
            self._watch.cancel()
        if self.answer is not None:
            self.answer.cut()

    # --- httptools ---

    def on_message_begin(self) -> None:
        """Another answer than the one that was asked for spoils the connection, and nothing of it is read."""
        if self.answer is not None and self.answer.complete:
            self.answer.fail(Broken("the provider answered more than it was asked"))
            raise httptools.HttpParserError

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or a trailer, which nobody asked for."""
        if (answer := self.answer) is not None and not answer.status:
            answer.raw_headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is whole. What is told in advance (status below 200) is not the answer."""
        status = self._parser.get_status_code()
        if (answer := self.answer) is None or answer.complete:
            return
        if status < 200:
            answer.raw_headers.clear()
        else:
            answer.begin(status)

    def on_message_complete(self) -> None:
        """The end, as the length or the last chunk tells it."""
        if (answer := self.answer) is not None and answer.status:
            answer.complete = True
            self._stays = self._parser.should_keep_alive()


class Answer:
    """A provider's answer as it comes. `close` it in any case: what was not read to its end is cut off."""

    def __init__(self, connection: Connection) -> None:
        self.status = 0
        self.raw_headers: Headers = []
        self.headers: dict[str, str] = {}
        self.complete = False
        self._connection = connection
        self.parts = connection.parts
        self._waiting_bytes = 0
        self._failure: UpstreamError | None = None
        self._waiter: asyncio.Future[None] | None = None
        now = self._heard_s = connection.loop.time()
        self._ends_s = now + connection.timeouts.total_s

    @property
    def streams(self) -> bool:
        """Whether it is a stream of events, to be relayed as it comes."""
        kind = self.headers.get("content-type", "")
        return kind.startswith(("text/event-stream", "application/x-ndjson"))

    @property
    def is_over(self) -> bool:
        """Whether all of it has come and been read."""
        return self.complete and not self.parts

    async def head(self) -> None:
        """Wait for status and headers. Raises UpstreamError."""
        while not self.status:
            await self._more()

    async def next(self) -> bytes:
        """The next bytes; empty at the end. Raises UpstreamError."""
        parts = self.parts
        while not parts:
            if self.complete:
                return b""
            await self._more()
        chunk = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        if self._waiting_bytes > MAX_WAITING_BYTES:
            self._connection.transport.resume_reading()
        self._waiting_bytes = 0
        return chunk

    async def whole(self, limit_bytes: int) -> bytes:
        """All of it. Raises UpstreamError."""
        parts: list[bytes] = []
        size = 0
        while part := await self.next():
            parts.append(part)
            size += len(part)
            if size > limit_bytes:
                raise Broken("the provider's answer is larger than answers may be")
        return b"".join(parts)

    async def _more(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._waiter = self._connection.loop.create_future()
        await self._waiter

    def close(self) -> None:
        """Give the connection back if all has come, else cut it."""
        if self._connection.answer is self:
            self._connection.leave(whole=self.complete and self._failure is None)

    # --- told by the connection ---

    def begin(self, status: int) -> None:
        """The head has come."""
        self.status = status
        told = self.raw_headers
        self.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in told}

    def hold(self, size_bytes: int) -> None:
        """So much has come and waits to be read."""
        before, self._waiting_bytes = self._waiting_bytes, self._waiting_bytes + size_bytes
        if before <= MAX_WAITING_BYTES < self._waiting_bytes:
            self._connection.transport.pause_reading()

    def wake(self) -> None:
        """Something has come."""
        self._heard_s = self._connection.loop.time()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def cut(self) -> None:
        """The connection is gone: the end of a body without a length, and the failure of any other."""
        if self._failure is None and self.status:
            self.complete = not self.headers.keys() & {"content-length", "transfer-encoding"}
        where = "in the middle of its answer" if self.status else "before it answered"
        self.fail(Broken(f"the connection to the provider ended {where}"))

    def fail(self, failure: UpstreamError) -> None:
        """Nothing more will come; what came before can still be read."""
        self._failure = self._failure or failure
        self._connection.transport.abort()
        self.wake()

    def due_s(self) -> float:
        """When it has been silent, or has gone on, for too long."""
        told = self._connection.timeouts
        return min(self._heard_s + (told.idle_s if self.status else told.first_byte_s), self._ends_s)

    def too_slow(self) -> TooSlow:
        """What is wrong with it then."""
        if self.status:
            return TooSlow("the provider fell silent in the middle of its answer")
        return TooSlow(f"the provider did not answer within {self._connection.timeouts.first_byte_s:g} s")
