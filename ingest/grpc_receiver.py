"""OTLP over gRPC: the three standard services, on raw bytes, over HTTP/2 connections of our own (`http2`).

The messages are not deserialised here (the intake checks them, within its limits, and stores the bytes) and
the answer is an empty Export*ServiceResponse, which is no bytes at all. A bad request is INVALID_ARGUMENT,
overload is RESOURCE_EXHAUSTED and a failing disk UNAVAILABLE, the last two with a RetryInfo that the
OpenTelemetry exporters obey.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from .http2 import Http2Connection, Stream
from .http2_frames import field
from .inflate import INFLATERS
from .intake import Intake, Reason, Refused, Transport, refusal_of
from .otlp import SHAPES, Encoding, Signal
from .rpc_status import Code, status_proto
from .validity import AT_ONCE_BYTES

__all__ = ["GrpcServer", "start_grpc"]

log = logging.getLogger("tollbook.grpc")

_PREFIX_BYTES: Final = 5  # one byte: compressed or not; four: the message's length
_AT_ONCE_BYTES: Final = AT_ONCE_BYTES[Encoding.PROTOBUF]
_MAX_STREAMS: Final = 1024
_BACKLOG: Final = 1024
_PATHS: Final = {f"/{SHAPES[signal].grpc_service}/Export".encode(): signal for signal in Signal}
_HEAD: Final = b"\x88" + field(b"content-type", b"application/grpc")  # :status 200
_ACCEPTED: Final = ",".join(["identity", *INFLATERS]).encode()
_EMPTY_MESSAGE: Final = bytes(_PREFIX_BYTES)
_OK: Final = field(b"grpc-status", b"0")
_CODES: Final = {
    Reason.TOO_LARGE: Code.RESOURCE_EXHAUSTED,
    Reason.OVERLOAD: Code.RESOURCE_EXHAUSTED,
    Reason.JOURNAL: Code.UNAVAILABLE,
    Reason.METHOD: Code.UNIMPLEMENTED,
    Reason.CONTENT_ENCODING: Code.UNIMPLEMENTED,
}
_RETRYABLE: Final = {Reason.OVERLOAD, Reason.JOURNAL}


@dataclass(frozen=True, slots=True)
class Head:
    """What the head of a call says: `signal` None for an unknown method, `compression` '' for none."""

    signal: Signal | None
    is_grpc: bool
    compression: str


class GrpcServer:
    """The connections of one port. `calls` are under way at this moment, on all of them."""

    def __init__(self, intake: Intake) -> None:
        self.intake = intake
        self.calls = 0
        self.connections: set[GrpcConnection] = set()
        self.idle = asyncio.Event()
        self._listening: asyncio.Server | None = None

    async def listen(self, host: str, port: int) -> int:
        """Begin; the port it is bound to. OSError when the address cannot be had."""
        self._listening = await asyncio.get_running_loop().create_server(
            lambda: GrpcConnection(self),
            host,
            port,
            family=socket.AF_INET6 if ":" in host else socket.AF_INET,
            backlog=_BACKLOG,
        )
        bound: int = self._listening.sockets[0].getsockname()[1]
        return bound

    async def stop(self, grace: float | None) -> None:
        """Take no new calls and wait for those that are here, `grace` seconds at most."""
        if self._listening:
            self._listening.close()
        for connection in [*self.connections]:
            connection.leave()
        try:
            async with asyncio.timeout(grace or 0):
                while self.connections:
                    self.idle.clear()
                    await self.idle.wait()
        except TimeoutError:
            for connection in [*self.connections]:
                connection.abort()


async def start_grpc(intake: Intake, *, host: str, port: int) -> tuple[GrpcServer, int]:
    """A running server for OTLP/gRPC on `host`:`port` (0: any free port), and the port it is bound to.

    OSError when the address cannot be had.
    """
    server = GrpcServer(intake)
    return server, await server.listen(host, port)


class GrpcConnection(Http2Connection):
    """One connection; each of its streams is a call of Export."""

    def __init__(self, server: GrpcServer) -> None:
        super().__init__(
            max_streams=min(_MAX_STREAMS, server.intake.limits.max_concurrent_rpcs),
            max_body_bytes=server.intake.limits.max_body_bytes + _PREFIX_BYTES,
        )
        self._server = server
        self._intake = server.intake
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """One more."""
        self._server.connections.add(self)
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """One less."""
        super().connection_lost(exc)
        self._server.connections.discard(self)
        self._server.idle.set()

    # --- a call comes in ---

    def read_head(self, headers: Iterable[tuple[bytes, bytes]]) -> Head:
        """Which service, and how its messages are compressed."""
        told = dict(headers)
        compression = told.get(b"grpc-encoding", b"identity").decode("latin-1").lower()
        return Head(
            signal=_PATHS.get(told.get(b":path", b"")) if told.get(b":method") == b"POST" else None,
            is_grpc=told.get(b"content-type", b"").startswith(b"application/grpc"),
            compression="" if compression == "identity" else compression,
        )

    def begun(self, stream: Stream) -> None:
        """Refuse what can be refused by its head."""
        self._server.calls += 1
        head: Head = stream.head
        if not head.is_grpc:
            self.end(stream, field(b":status", b"415"))
            return
        if head.signal is not None:
            self._intake.counts.requests[head.signal, Transport.GRPC] += 1
        try:
            if head.signal is None:
                raise Refused(Reason.METHOD, "there is no such method")
            if self._server.calls > self._intake.limits.max_concurrent_rpcs:
                raise Refused(Reason.OVERLOAD, "too many calls at the same time, send again later")
            self._intake.refuse_overload()
        except Refused as refused:
            self._refuse(stream, refused)

    def arrived(self, stream: Stream, size: int) -> None:
        """Count what is held, and stop what is too large."""
        self._intake.held_bytes += size
        limit = self._intake.limits.max_body_bytes
        if stream.size > limit + _PREFIX_BYTES:
            self._refuse(stream, Refused(Reason.TOO_LARGE, f"the message is over {limit} bytes"))

    def over(self, stream: Stream) -> None:
        """Let go of it."""
        self._server.calls -= 1
        self._intake.held_bytes -= stream.size

    def complete(self, stream: Stream) -> None:
        """Have a whole message taken."""
        try:
            is_compressed, body = _message(stream.parts)
            if is_compressed or len(body) > _AT_ONCE_BYTES:
                self._later(stream, body, is_compressed=is_compressed)
                return
            taken = self._intake.begin(stream.head.signal, Encoding.PROTOBUF, body)
        except Refused as refused:
            self._refuse(stream, refused)
        else:
            taken.add_done_callback(lambda taken: self._taken(stream, taken))

    def _later(self, stream: Stream, body: bytes, *, is_compressed: bool) -> None:
        task = asyncio.get_running_loop().create_task(
            self._take_large(stream, body, is_compressed=is_compressed)
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _take_large(self, stream: Stream, body: bytes, *, is_compressed: bool) -> None:
        intake, head, held = self._intake, stream.head, 0
        try:
            if is_compressed:
                body = await intake.inflate(body, head.compression)
                intake.held_bytes += (held := len(body))
            offset = await intake.take(head.signal, Encoding.PROTOBUF, body)
            self._acknowledge(stream, offset, size=len(body))
        except Refused as refused:
            self._refuse(stream, refused)
        except Exception:
            log.exception("an export could not be taken")
            self._fail_call(stream)
        finally:
            intake.held_bytes -= held

    def _taken(self, stream: Stream, taken: asyncio.Future[int]) -> None:
        error = taken.exception()
        if error is None:
            self._acknowledge(stream, taken.result(), size=stream.size - _PREFIX_BYTES)
        else:
            self._refuse(stream, refusal_of(error))

    # --- and is answered ---

    def _acknowledge(self, stream: Stream, offset: int, *, size: int) -> None:
        counts = self._intake.counts
        counts.acknowledged[stream.head.signal, Transport.GRPC] += 1
        counts.acknowledged_bytes += size
        self.answer(stream, _HEAD, _EMPTY_MESSAGE, _OK + field(b"tollbook-offset", b"%d" % offset))

    def _refuse(self, stream: Stream, refused: Refused) -> None:
        """End the call with the refusal's code and a google.rpc.Status that says when to come again."""
        self._intake.counts.refused[refused.reason] += 1
        code = _CODES.get(refused.reason, Code.INVALID_ARGUMENT)
        retry = self._intake.limits.retry_after_s if refused.reason in _RETRYABLE else None
        details = b64encode(status_proto(code, str(refused), retry_after_s=retry)).rstrip(b"=")
        more = field(b"grpc-status-details-bin", details)
        if refused.reason is Reason.CONTENT_ENCODING:
            more += field(b"grpc-accept-encoding", _ACCEPTED)
        self.end(stream, _status(code, str(refused)) + more)

    def _fail_call(self, stream: Stream) -> None:
        self.end(stream, _status(Code.INTERNAL, "the export could not be taken"))


def _status(code: Code, sentence: str) -> bytes:
    told = quote(sentence, safe=" !\"#$&'()*+,/:;<=>?@[\\]^`{|}~").encode()
    return _HEAD + field(b"grpc-status", b"%d" % code) + field(b"grpc-message", told)


def _message(parts: list[bytes]) -> tuple[bool, bytes]:
    """The one message of a call, and whether it is compressed. Raises Refused."""
    first = parts[0] if parts else b""
    if len(first) < _PREFIX_BYTES:
        first = b"".join(parts)
        parts = [first]
    if len(parts) == 1:
        body = first[_PREFIX_BYTES:]
    else:  # large: not copied twice
        body = b"".join([memoryview(first)[_PREFIX_BYTES:], *parts[1:]])
    if len(first) < _PREFIX_BYTES or first[0] > 1 or int.from_bytes(first[1:_PREFIX_BYTES]) != len(body):
        raise Refused(Reason.NOT_OTLP, "the call does not hold exactly one whole message")
    return first[0] == 1, body
