"""A provider that costs next to nothing: it answers every call with the same stream of 24 events.

`python -m bench.model_server` prints its URL and answers until its standard input ends. Each event is a write
of its own, as they come from a model.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, Final, cast

import uvloop

EVENTS: Final = 24
_HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nx-request-id: req_%024d\r\n"
_CHUNKED: Final = b"transfer-encoding: chunked\r\n\r\n"


def _chunk(event: dict[str, Any] | None) -> bytes:
    data = b"data: " + (b"[DONE]" if event is None else json.dumps(event).encode()) + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(data), data)


def _stream(number: int) -> list[bytes]:
    base = {
        "id": f"chatcmpl-{number:024d}",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "gpt-5",
    }
    delta = {"index": 0, "delta": {"content": "token "}, "finish_reason": None}
    usage = {"prompt_tokens": 20, "completion_tokens": EVENTS - 3, "total_tokens": EVENTS + 17}
    events: list[dict[str, Any] | None] = [{**base, "choices": [delta]} for _ in range(EVENTS - 3)]
    events.append({**base, "choices": [{**delta, "delta": {}, "finish_reason": "stop"}]})
    return [_chunk(event) for event in (*events, {**base, "choices": [], "usage": usage}, None)]


class Model(asyncio.Protocol):
    """One connection; a request is answered when its body is whole."""

    number = 0

    def __init__(self) -> None:
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to answer."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Answer once all of a request is there."""
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        if found and len(body) >= int(length or 0):
            self._received = b""
            Model.number += 1
            self._send([_HEAD % Model.number + _CHUNKED, *_stream(Model.number), b"0\r\n\r\n"])

    def _send(self, parts: list[bytes]) -> None:
        if self._transport and not self._transport.is_closing():
            self._transport.write(parts[0])
            if len(parts) > 1:
                asyncio.get_running_loop().call_soon(self._send, parts[1:])


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Model, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    sys.stdout.write(json.dumps({"http": f"http://127.0.0.1:{port}"}) + "\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(_serve())
