"""The caller's side of one exchange, whatever carries the answer there."""

from __future__ import annotations

from abc import ABC, abstractmethod

from proxy.caller import Headers
from proxy.failure import Failure, render, render_event
from proxy.wire import WireFormat

__all__ = ["Client"]


class Client(ABC):
    """Who is answered. `extra` are headers of ours on every answer; `left`: the caller has hung up."""

    def __init__(self) -> None:
        self.started = False
        self.left = False
        self.extra: Headers = []

    async def start(self, status: int, headers: Headers) -> None:
        """Give the head of the answer; it goes out with the first part of the body at the latest."""
        self.started = True
        await self._start(status, [*headers, *self.extra])

    @abstractmethod
    async def _start(self, status: int, headers: Headers) -> None: ...

    @abstractmethod
    async def write(self, chunk: bytes) -> None:
        """Send a part of the body."""

    @abstractmethod
    async def end(self, chunk: bytes = b"") -> None:
        """Send the last part."""

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole answer."""
        await self.start(status, [*headers, (b"content-length", b"%d" % len(body))])
        await self.end(body)

    async def fail(self, failure: Failure, wire_format: WireFormat) -> None:
        """Answer with an error in the caller's dialect; as an event, where a stream has begun."""
        if self.started:
            await self.end(render_event(failure, wire_format))
            return
        status, headers, body = render(failure, wire_format)
        told = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self.whole(status, [each for each in told if each[0] != b"content-length"], body)
