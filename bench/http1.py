"""A client for HTTP/1.1 keep-alive connections that costs a few microseconds a request.

It knows only what it needs: one request under way on each connection, answers with a content-length.
"""

from __future__ import annotations

import asyncio
import time
from typing import cast
from urllib.parse import urlsplit

from bench.traffic import CHECK_PATH, TRACES_PATH, Body, Traffic


class Connection(asyncio.Protocol):
    """One connection, which is one slot."""

    def __init__(self, traffic: Traffic, head: bytes) -> None:
        self._traffic, self._head = traffic, head
        self._received = b""
        self._sent_at = 0.0
        self._body: Body | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ready for the first request."""
        self._transport = cast(asyncio.Transport, transport)

    def begin(self) -> None:
        """Take part in the traffic."""
        self._traffic.free(self.send)

    def send(self, body: Body) -> None:
        """Send one request."""
        self._body = body
        self._sent_at = time.monotonic()
        if self._transport:
            self._transport.writelines([self._head % len(body.data), body.data])

    def data_received(self, data: bytes) -> None:
        """Count the answer once its head and body are there; then go on."""
        received = self._received + data if self._received else data
        head, separator, rest = received.partition(b"\r\n\r\n")
        if not separator or len(rest) < int(_header(head, b"content-length") or 0):
            self._received = received
            return
        self._received = b""
        body, self._body = self._body, None
        if body and head.startswith(b"HTTP/1.1 200"):
            offset = int(_header(head, b"tollbook-offset") or 0)
            self._traffic.acknowledged(body, self._sent_at, offset)
        else:
            self._traffic.refused()
        self._traffic.free(self.send)

    def connection_lost(self, exc: Exception | None) -> None:
        """A server that went away ends this slot."""
        del exc
        if self._body:
            self._traffic.lost(self._body)
            self._body = None

    def close(self) -> None:
        """The traffic is over."""
        if self._transport:
            self._transport.close()


def _header(head: bytes, name: bytes) -> bytes | None:
    _, found, rest = head.partition(b"\r\n" + name + b": ")
    return rest.partition(b"\r\n")[0] if found else None


async def send(traffic: Traffic) -> None:
    """Send the traffic to the end, on one connection for each slot."""
    load = traffic.load
    url = urlsplit(load.http or "")
    path, kind = (CHECK_PATH, "application/json") if load.checks else (TRACES_PATH, "application/x-protobuf")
    head = f"POST {path} HTTP/1.1\r\nhost: {url.netloc}\r\ncontent-type: {kind}\r\ncontent-length: "
    loop = asyncio.get_running_loop()
    connections = [
        (
            await loop.create_connection(
                lambda: Connection(traffic, head.encode() + b"%d\r\n\r\n"), url.hostname or "", url.port or 80
            )
        )[1]
        for _ in range(load.slots)
    ]
    for connection in connections:
        connection.begin()
    await traffic.over
    for connection in connections:
        connection.close()
