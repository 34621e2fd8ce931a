"""The line between the front and its ledger: JSON objects, one a line, over a socket pair.

Both sides see the other's end at once when it dies, however it died. Nothing secret and no content crosses.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import orjson

Message = dict[str, Any]


class Channel:
    """The ledger's end: blocking, one reader thread, any number of writers."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._lock = threading.Lock()

    def send(self, message: Message) -> None:
        """Write one message; a front that is gone is not an error here, its absence ends the process."""
        with self._lock, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(pack(message))

    def messages(self) -> Iterator[Message]:
        """Messages until the other end closes."""
        with self._socket.makefile("rb") as lines, contextlib.suppress(ConnectionResetError):
            for line in lines:
                yield orjson.loads(line)


def pack(message: Message) -> bytes:
    """A message as the line that crosses."""
    return orjson.dumps(message, option=orjson.OPT_APPEND_NEWLINE)
