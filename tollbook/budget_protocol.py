"""Budget requests answered where their bytes arrive: uvicorn's protocol with a short way in front.

A check, a settlement and a release stand before and after every model call, and for them HTTP itself would
be most of the cost: a parser's callbacks, a scope, a task, a cycle of messages. Here a whole and plain
request is cut out of what arrived and answered at once, on the same connection and with the same answer.
Whatever is not plain (another path, an Origin, chunks, an expectation) goes to uvicorn and through the guard,
untouched; nothing is refused here.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine
from typing import Any, ClassVar, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from tollbook.api_reservations import (
    CHECK_PATH,
    MAX_CHECK_BYTES,
    RESERVATIONS_PATH,
    Answer,
    begin,
)
from tollbook.guard import SECURITY_HEADERS, Guard
from tollbook.house import House
from tollbook.plain_head import MAX_HEAD_BYTES, Headers, plain_head

__all__ = ["BudgetProtocol", "budget_protocol"]

MAX_EARLY_BYTES: Final = 256 << 10
"""Of requests sent ahead of an answer so much is kept; then the client has to wait."""
REMEMBERED_HEADS: Final = 1024
"""A client sends the same headers with every request, so each spelling is read once."""
REMEMBERED_HEAD_BYTES: Final = 1024

_REQUEST: Final = re.compile(
    rb"POST (%s|%s(?:res_[0-9a-f]{32}/)?(?:settle|release)) HTTP/1\.1\r\n"
    % (re.escape(CHECK_PATH.encode()), re.escape(RESERVATIONS_PATH.encode()))
)
_SECURITY: Final = b"".join(b"%s: %s\r\n" % header for header in SECURITY_HEADERS)


class BudgetProtocol(HttpToolsProtocol):
    """One connection. `_early` has arrived and is not answered yet, `_answering` is being answered."""

    house: ClassVar[House]
    guard: ClassVar[Guard]
    lengths: ClassVar[dict[bytes, int | None]]

    _early = b""
    _answering = False
    _inside = False
    _leaving = False
    _replied_at = 0.0
    _defaults: tuple[Headers, bytes] = ([], b"")

    def data_received(self, data: bytes) -> None:
        """Answer what is plain, and pass the rest on."""
        if self._early:
            data, self._early = self._early + data, b""
        if not self._answering:
            self._take(data)
            return
        self._early = data
        if len(data) > MAX_EARLY_BYTES:
            self.flow.pause_reading()

    def _take(self, data: bytes) -> None:
        while data and not self.transport.is_closing():
            if self._answering or self.flow.write_paused:
                self._early = data
                return
            found = None if self._is_uvicorn_busy else _REQUEST.match(data)
            whole = -1 if found is None else self._end_of(data, found.end())
            if found is None or whole < 0:
                super().data_received(data)
                return
            if not whole:
                self._early = data
                return
            head = data.index(b"\r\n\r\n", found.end() - 2) + 4
            self._answer(found[1].decode(), data[head:whole])
            data = data[whole:]

    @property
    def is_busy(self) -> bool:
        """Whether something is in the middle of being read or answered."""
        return self._answering or self.flow.write_paused or self._is_uvicorn_busy

    @property
    def _is_uvicorn_busy(self) -> bool:
        """Whether uvicorn is in the middle of a request of this connection."""
        return self._inside or not (self.cycle is None or self.cycle.response_complete)

    def _end_of(self, data: bytes, start: int) -> int:
        """Where a request ends whose headers begin at `start`: 0 if that has not arrived, -1 if it is not
        plain.
        """
        end = data.find(b"\r\n\r\n", start - 2)
        if end < 0:
            return 0 if len(data) < MAX_HEAD_BYTES else -1
        length = self._length(data[start:end])
        if length is None:
            return -1
        whole = end + 4 + length
        return whole if len(data) >= whole else 0

    def _length(self, head: bytes) -> int | None:
        """The length of the body that these headers announce; None where they ask for anything unusual."""
        try:
            return self.lengths[head]
        except KeyError:
            told = plain_head(head, self.guard, path=CHECK_PATH, scheme=self.scheme or "http")
            length = told[1] if told is not None and told[1] <= MAX_CHECK_BYTES else None
        if len(head) <= REMEMBERED_HEAD_BYTES:
            if len(self.lengths) >= REMEMBERED_HEADS:
                self.lengths.clear()
            self.lengths[head] = length
        return length

    # --- answers ---

    def _answer(self, path: str, body: bytes) -> None:
        told = begin(self.house, path, body)
        if isinstance(told, Answer):
            self._reply(told)
        else:
            self._answer_later(told)

    def _finish(self, answer: Answer) -> None:
        """Send the answer that was waited for, and go on."""
        self._answering = False
        self._reply(answer)
        self._go_on()

    def _answer_later(self, told: Coroutine[Any, Any, Answer]) -> None:
        self._begin_task(self._reply_later(told))

    def _begin_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Let a task answer."""
        task = self.loop.create_task(work)
        self._answering = True
        self.tasks.add(task)
        task.add_done_callback(self._answered)
        return task

    async def _reply_later(self, told: Coroutine[Any, Any, Answer]) -> None:
        self._reply(await told)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        self._answering = False
        if task.cancelled():
            self.transport.close()
        else:
            self._go_on()

    def _go_on(self) -> None:
        """Take what arrived meanwhile."""
        self.flow.resume_reading()
        if self._early:
            early, self._early = self._early, b""
            self._take(early)

    def _reply(self, answer: Answer) -> None:
        if self.transport.is_closing():
            return
        self.server_state.total_requests += 1
        told = b"".join([b"%s: %s\r\n" % header for header in answer.headers])
        length = b"content-length: %d\r\n" % len(answer.body)
        closing = b"connection: close\r\n\r\n" if self._leaving else b"\r\n"
        start = STATUS_LINE[answer.status]
        parts = (start, self.default_headers(), told, length, _SECURITY, closing, answer.body)
        self.transport.write(b"".join(parts))
        self.replied(closing=False)

    def replied(self, *, closing: bool) -> None:
        """An answer has gone out: wait for the next request, or close."""
        self._replied_at = self.loop.time()
        if closing or self._leaving:
            self.transport.close()
        elif self.timeout_keep_alive_task is None:
            self._wait(self.timeout_keep_alive)

    def default_headers(self) -> bytes:
        """What uvicorn adds to every answer (the date), written out once a second for all connections."""
        headers = self.server_state.default_headers
        known, written = BudgetProtocol._defaults
        if known is not headers:
            written = b"".join(b"%s: %s\r\n" % header for header in headers)
            BudgetProtocol._defaults = headers, written
        return written

    # --- the connection, as uvicorn sees it ---

    def on_message_begin(self) -> None:
        """Uvicorn reads a request from here on."""
        self._inside = True
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """Uvicorn has read it."""
        self._inside = False
        super().on_message_complete()

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        if not self._answering:
            self._go_on()

    def shutdown(self) -> None:
        """Finish what is being answered, then go."""
        if not self._answering:
            super().shutdown()
        else:
            self._leaving = True

    def timeout_keep_alive_handler(self) -> None:
        """Close what has been idle; one timer does for many requests."""
        idle = 0.0 if self._answering else self.loop.time() - self._replied_at
        if idle < self.timeout_keep_alive:
            self._wait(self.timeout_keep_alive - idle)
        else:
            super().timeout_keep_alive_handler()

    def _wait(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)


def budget_protocol(house: House, guard: Guard) -> type[BudgetProtocol]:
    """The protocol of one server, for `uvicorn.Config(http=...)`."""
    return type("BudgetProtocol", (BudgetProtocol,), {"house": house, "guard": guard, "lengths": {}})
