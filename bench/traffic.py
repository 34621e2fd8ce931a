"""When the next request goes out and what came back, whatever the transport.

A transport has a number of slots, each with one request under way or none. A free slot asks `Traffic`, which
sends at once (closed loop), at its turn (a fixed rate), or when the gate opens again (the receiver's backlog
is held flat from outside).
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from bench.corpus import template

CHECK_PATH: Final = "/api/v1/budgets/check"
TRACES_PATH: Final = "/v1/traces"
MAX_MADE_BYTES: Final = 192 << 20
GATE_PAUSE_S: Final = 0.004

Gate = Any
"""A shared `ctypes.c_bool`: true while requests may go out."""


@dataclass(slots=True)
class Load:
    """What to send where: `http` (a URL) or `grpc` (host:port).

    `spans`: sizes of the requests, taken in turn. `checks`: budget checks to send instead of spans.
    `slots`: requests under way at most. `rate`: requests a second, all slots together; None is as fast as
    they are answered. `requests`: end after so many. `trace`: keep the moment and offset of every answer.
    """

    http: str | None = None
    grpc: str | None = None
    spans: tuple[int, ...] = (1,)
    checks: tuple[bytes, ...] = ()
    slots: int = 16
    seconds: float = 4.0
    rate: float | None = None
    requests: int | None = None
    trace: bool = False


@dataclass(frozen=True, slots=True)
class Body:
    """One request to send, and how many spans and model calls are in it."""

    data: bytes | bytearray
    spans: int = 0
    calls: int = 0


@dataclass(slots=True)
class Tally:
    """What came back. `unanswered`: the connection ended first, so the server may or may not have them.

    `offset`: the highest journal offset acknowledged. `acks`: (monotonic seconds, offset) of each answer.
    """

    acknowledged: int = 0
    spans: int = 0
    calls: int = 0
    refused: int = 0
    unanswered: int = 0
    unanswered_calls: int = 0
    offset: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    acks: list[tuple[float, int]] = field(default_factory=list)


def new_bodies(load: Load) -> Iterator[Body]:
    """Bodies without end, none of them twice."""
    if load.checks:
        yield from itertools.cycle(Body(check) for check in load.checks)
    for spans in itertools.cycle(load.spans):
        one = template(spans)
        yield Body(one.fresh(), one.spans, one.calls)


def made_ahead(load: Load) -> Iterator[Body]:
    """Bodies without end, the first of them made now, so that making them costs nothing later."""
    size = sum(len(template(spans).body) for spans in load.spans) / len(load.spans)
    wanted = load.requests or int((load.rate or 25_000 / (1 + load.spans[0] / 20)) * load.seconds)
    bodies = new_bodies(load)
    made = [next(bodies) for _ in range(0 if load.checks else min(wanted, int(MAX_MADE_BYTES / size)))]
    return itertools.chain(_emptied(made), bodies)


def _emptied(made: list[Body]) -> Iterator[Body]:
    """What was made, given away one by one so that sent bodies do not stay in memory."""
    made.reverse()
    while made:
        yield made.pop()


class Traffic:
    """Hands bodies to free slots until the time or the number is over; `over` ends when all slots have."""

    def __init__(self, load: Load, bodies: Iterator[Body], gate: Gate) -> None:
        self.load = load
        self.tally = Tally()
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        self._bodies = bodies
        self._gate = gate
        self._left = load.requests
        self._slots = load.slots
        self._turn = 0
        self._began = time.monotonic()

    def free(self, send: Callable[[Body], None]) -> None:
        """A slot can send: `send` is called once, now or later, unless the traffic is over."""
        now = time.monotonic()
        if now - self._began >= self.load.seconds or self._left == 0:
            self._end_slot()
        elif not self._gate.value:
            self._loop.call_later(GATE_PAUSE_S, self.free, send)
        elif self.load.rate:
            self._take_turn(send, now)
        else:
            self._send(send)

    def _take_turn(self, send: Callable[[Body], None], now: float) -> None:
        """The next turn of the fixed rate: at its time, or at once when it is late."""
        wait_s = self._began + self._turn / self.load.rate - now if self.load.rate else 0.0
        self._turn += 1
        if wait_s > 0:
            self._loop.call_later(wait_s, self._send, send)
        else:
            self._send(send)

    def _send(self, send: Callable[[Body], None]) -> None:
        if self._left is not None:
            self._left -= 1
        send(next(self._bodies))

    def acknowledged(self, body: Body, sent_at: float, offset: int) -> None:
        """A request was answered well."""
        now, tally = time.monotonic(), self.tally
        tally.acknowledged += 1
        tally.spans += body.spans
        tally.calls += body.calls
        tally.offset = max(tally.offset, offset)
        tally.latencies_s.append(now - sent_at)
        if self.load.trace:
            tally.acks.append((now, offset))

    def refused(self) -> None:
        """A request was answered with a refusal."""
        self.tally.refused += 1

    def lost(self, body: Body) -> None:
        """A connection ended with this request under way; its slot with it."""
        self.tally.unanswered += 1
        self.tally.unanswered_calls += body.calls
        self._end_slot()

    def _end_slot(self) -> None:
        self._slots -= 1
        if not self._slots and not self.over.done():
            self.tally.seconds = time.monotonic() - self._began
            self.over.set_result(None)


def open_gate() -> Gate:
    """A gate that is open, for traffic in this process."""
    return ctypes.c_bool(True)
