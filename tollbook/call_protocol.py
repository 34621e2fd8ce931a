"""Live calls answered where their bytes arrive, as budget requests are: uvicorn with a short way in front.

An agent waits for every one of these, and for a stream each event would otherwise be a message through three
layers. Here a plain request is read from the connection and the answer's bytes are written to it as they
come. Whatever is not plain goes to uvicorn and the same code as an ASGI application; nothing is refused here.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from typing import ClassVar, Final, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from proxy.app import ProxyHttp
from proxy.caller import Headers
from proxy.client import Client
from proxy.exchange import CallHead
from proxy.wire import operation_of
from tollbook.budget_protocol import REMEMBERED_HEADS, BudgetProtocol
from tollbook.guard import SECURITY_HEADERS
from tollbook.plain_head import MAX_HEAD_BYTES, plain_head

__all__ = ["call_protocol"]

_REQUEST: Final = re.compile(rb"POST (/v1[!-$&->@-~]*)(?:\?([!-~]*))? HTTP/1\.1\r\n")
"""A path without escapes, so that it means what it says."""
_LENGTH: Final = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ?([0-9]{1,12})(?=\r\n|\Z)")
REMEMBERED_HEAD_BYTES: Final = 4096
_SECURITY: Final = b"".join(b"%s: %s\r\n" % header for header in SECURITY_HEADERS)


@dataclass(slots=True)
class _Incoming:
    """A call of whose body `missing` bytes have not arrived."""

    head: CallHead
    missing: int
    parts: list[bytes] = field(default_factory=list)

    def take(self, data: bytes) -> bytes:
        """Take what belongs to the body; the rest."""
        part = data if len(data) <= self.missing else data[: self.missing]
        self.parts.append(part)
        self.missing -= len(part)
        return data[len(part) :]


class _Caller(Client):
    """Who waits at the other end of a connection. The head goes out with the first bytes of the body."""

    def __init__(self, protocol: CallProtocol) -> None:
        super().__init__()
        self.ended = False
        self._protocol = protocol
        self._waiting = b""
        self._in_chunks = False

    async def _start(self, status: int, headers: Headers) -> None:
        self._in_chunks = all(name != b"content-length" for name, _ in headers)
        told = b"".join([b"%s: %s\r\n" % header for header in headers])
        framed = b"transfer-encoding: chunked\r\n" if self._in_chunks else b""
        start = (STATUS_LINE[status], self._protocol.default_headers(), told, framed, _SECURITY, b"\r\n")
        self._waiting = b"".join(start)

    async def write(self, chunk: bytes) -> None:
        """Send a part of the body."""
        if self._send(chunk, last=b""):
            await self._protocol.flow.drain()

    async def end(self, chunk: bytes = b"") -> None:
        """Send the last part."""
        self.ended = True
        if self._send(chunk, last=b"0\r\n\r\n" if self._in_chunks else b""):
            await self._protocol.flow.drain()

    def _send(self, chunk: bytes, *, last: bytes) -> bool:
        """Write what there is in one piece; whether to wait until the caller has read more of it."""
        framed = b"%x\r\n%b\r\n" % (len(chunk), chunk) if chunk and self._in_chunks else chunk
        data, self._waiting = b"%b%b%b" % (self._waiting, framed, last), b""
        if not data or self._protocol.transport.is_closing():
            return False
        self._protocol.transport.write(data)
        return self._protocol.flow.write_paused


class CallProtocol(BudgetProtocol):
    """One connection. `_incoming` is a call whose body is still arriving, `_caller` who is being answered."""

    calls: ClassVar[ProxyHttp]
    heads: ClassVar[dict[bytes, CallHead]]
    """Plain heads that were read before, by all their bytes but the length of the body."""

    _incoming: _Incoming | None = None
    _caller: _Caller | None = None
    _carrying: asyncio.Task[None] | None = None

    def _take(self, data: bytes) -> None:
        if self._incoming is None and (found := None if self.is_busy else _REQUEST.match(data)):
            end = data.find(b"\r\n\r\n", found.end() - 2)
            if end < 0 and len(data) < MAX_HEAD_BYTES:
                self._early = data
                return
            self._incoming = self._begun(found, data[:end]) if end > 0 else None
            data = data[end + 4 :] if self._incoming else data
        if (incoming := self._incoming) is None:
            super()._take(data)
            return
        self._replied_at = self.loop.time()
        self._early = incoming.take(data)
        if not incoming.missing:
            self._incoming = None
            self._serve(incoming)

    def _begun(self, found: re.Match[bytes], head: bytes) -> _Incoming | None:
        """The call whose head this is; None where it is none, or not plain."""
        told = _LENGTH.search(head)
        key = b"" if told is None else head[: told.start(1)] + head[told.end(1) :]
        if told is not None and (known := self.heads.get(key)) is not None:
            length = int(told[1])
        elif (plain := self._plain(found, head)) is not None:
            known, length = plain
            if key and len(key) <= REMEMBERED_HEAD_BYTES:
                self._remember(key, known)
        else:
            return None
        return _Incoming(known, length) if length <= self.calls.max_body_bytes else None

    def _plain(self, found: re.Match[bytes], head: bytes) -> tuple[CallHead, int] | None:
        path = found[1].decode("ascii")
        operation = operation_of(path)
        if operation is None:
            return None
        plain = plain_head(head[found.end() :], self.guard, path=path, scheme=self.scheme or "http")
        return None if plain is None else (CallHead(operation, path, found[2] or b"", plain[0]), plain[1])

    def _remember(self, key: bytes, head: CallHead) -> None:
        if len(self.heads) >= REMEMBERED_HEADS:
            self.heads.clear()
        self.heads[key] = head

    def _serve(self, call: _Incoming) -> None:
        self._caller = caller = _Caller(self)
        body = call.parts[0] if len(call.parts) == 1 else b"".join(call.parts)
        self._carrying = self._begin_task(self.calls.serve(call.head, body, caller))

    def _answered(self, task: asyncio.Task[None]) -> None:
        caller, self._caller, self._carrying = self._caller, None, None
        if caller is not None and not self.transport.is_closing():
            self.server_state.total_requests += 1
            self.replied(closing=not caller.ended)
        super()._answered(task)

    def connection_lost(self, exc: Exception | None) -> None:
        """A caller that hangs up ends the call."""
        if self._caller is not None and self._carrying is not None:
            self._caller.left = True
            self._carrying.cancel()
        super().connection_lost(exc)


def call_protocol(budgets: type[BudgetProtocol], calls: ProxyHttp) -> type[HttpToolsProtocol]:
    """The protocol of one server that answers live calls too, for `uvicorn.Config(http=...)`."""
    return cast(
        type[HttpToolsProtocol],
        type("ServerProtocol", (CallProtocol, budgets), {"calls": calls, "heads": {}}),
    )
