"""The least a budget check can cost this client: a server that answers every request with the same bytes.

`python -m bench.check_floor BYTES` prints its URL and answers until its standard input ends. What the client
measures against it is the client and the loopback interface, not tollbook.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import cast

import uvloop


class Echo(asyncio.Protocol):
    """Answers as soon as anything arrives: its client sends one request at a time."""

    def __init__(self, reply: bytes) -> None:
        self._reply = reply
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to answer."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Answer."""
        del data
        if self._transport:
            self._transport.write(self._reply)


async def _serve(size: int) -> None:
    reply = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + b" " * size
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Echo(reply), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    sys.stdout.write(json.dumps({"http": f"http://127.0.0.1:{port}"}) + "\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
