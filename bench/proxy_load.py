"""Streams, one after the other on each connection: how long each takes, from its request to its last byte.

`python -m bench.proxy_load URL CONNECTIONS SECONDS PER_S` prints JSON; PER_S 0 asks again as soon as a stream
has ended. A client of a few microseconds, so that what is measured is what it talks to.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Final, cast
from urllib.parse import urlsplit

import uvloop

BODY: Final = json.dumps(
    {
        "model": "gpt-5",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": "How much is the toll? " * 40}],
    }
).encode()
WARM_UP_S: Final = 0.5


class Caller(asyncio.Protocol):
    """One connection."""

    def __init__(self, request: bytes, *, every_s: float, until: float) -> None:
        self._request, self._every_s, self._until = request, every_s, until
        self._sent_at = self._due = 0.0
        self._end = b""
        self._transport: asyncio.Transport | None = None
        self.took_s: list[float] = []
        self.bad = 0
        self.over = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        self._transport = cast(asyncio.Transport, transport)
        self._due = time.monotonic()
        self._send()

    def _send(self) -> None:
        assert self._transport is not None
        self._sent_at = time.monotonic()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Count a stream at its last chunk; then go on, when its time has come."""
        self._end = (self._end + data)[-64:]
        if not self._end.endswith(b"\r\n0\r\n\r\n"):
            return
        now = time.monotonic()
        self.took_s.append(now - self._sent_at)
        self.bad += b"[DONE]" not in self._end
        self._end = b""
        if now >= self._until:
            self.finish()
            return
        self._due = max(self._due + self._every_s, now)
        asyncio.get_running_loop().call_later(self._due - now, self._send)

    def finish(self) -> None:
        """The time is over."""
        if not self.over.done():
            self.over.set_result(None)
        if self._transport:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """A server that hangs up has not answered."""
        del exc
        if not self.over.done():
            self.bad += 1
            self.over.set_result(None)


async def _run(url: str, connections: int, seconds: float, per_s: float) -> None:
    place = urlsplit(url)
    head = f"POST {place.path} HTTP/1.1\r\nhost: {place.netloc}\r\ncontent-type: application/json\r\n"
    head += f"authorization: Bearer sk-proj-bench\r\ncontent-length: {len(BODY)}\r\n\r\n"
    every_s = connections / per_s if per_s else 0.0
    loop = asyncio.get_running_loop()
    until = time.monotonic() + seconds
    callers = []
    for number in range(connections):
        made = await loop.create_connection(
            lambda: Caller(head.encode() + BODY, every_s=every_s, until=until),
            place.hostname or "",
            place.port or 80,
        )
        callers.append(made[1])
        await asyncio.sleep(every_s / connections if number + 1 < connections else 0)
    began = time.monotonic()
    await asyncio.gather(*(caller.over for caller in callers))
    took = sorted(each for caller in callers for each in caller.took_s)
    told = {
        "streams": len(took),
        "seconds": time.monotonic() - began,
        "p50_ms": took[len(took) // 2] * 1000,
        "p99_ms": took[min(len(took) - 1, len(took) * 99 // 100)] * 1000,
        "bad": sum(caller.bad for caller in callers),
    }
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    uvloop.run(_run(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])))
