"""OTLP over HTTP as a bare ASGI application: it stands in front of every framework, because it is the busiest
path.

It reads a body within its limits, has it taken, and answers in the request's encoding as the OTLP
specification says. It does no routing beyond its own paths, checks no keys and no hosts: what stands in front
of it does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

import orjson

from .intake import Intake, Reason, Refused, Transport
from .otlp import Encoding, Signal
from .rpc_status import Code, status_body

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

_PATHS: Final = {f"{prefix}/v1/{signal}": signal for prefix in ("", "/api/public/otel") for signal in Signal}
_ENCODINGS: Final = {
    b"application/x-protobuf": Encoding.PROTOBUF,
    b"application/protobuf": Encoding.PROTOBUF,
    b"application/json": Encoding.JSON,
}
_SUCCESS: Final = {
    Encoding.PROTOBUF: b"",
    Encoding.JSON: b"{}",
}  # Export*ServiceResponse without partial_success
_CONTENT_TYPE: Final = {encoding: encoding.value.encode() for encoding in Encoding}
_HTTP_STATUS: Final = {
    Reason.NOT_OTLP: 400,
    Reason.METHOD: 405,
    Reason.TOO_LARGE: 413,
    Reason.CONTENT_TYPE: 415,
    Reason.CONTENT_ENCODING: 415,
    Reason.OVERLOAD: 429,
    Reason.JOURNAL: 503,
}
_RPC_CODE: Final = {
    Reason.TOO_LARGE: Code.RESOURCE_EXHAUSTED,
    Reason.OVERLOAD: Code.RESOURCE_EXHAUSTED,
    Reason.JOURNAL: Code.UNAVAILABLE,
}
_RETRYABLE: Final = {Reason.OVERLOAD, Reason.JOURNAL}


class _Disconnected(Exception):
    """The client went away in the middle of its request: nobody is left to answer."""


def is_otlp_path(path: str) -> Signal | None:
    """The signal that is posted to `path`, None if it is not an OTLP path."""
    return _PATHS.get(path)


class OtlpHttp:
    """The ASGI application for the OTLP paths (others are a KeyError: ask `is_otlp_path` first)."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        signal = _PATHS[scope["path"]]
        intake = self._intake
        intake.counts.requests[signal, Transport.HTTP] += 1
        try:
            encoding, compression, length = _described(scope)
        except Refused as refused:
            await self._refuse(send, refused, None)
            return
        try:
            if length > intake.limits.max_body_bytes:
                raise self._too_large()
            intake.refuse_overload()
            body = await self._body(receive)
            offset = await self._take(signal, encoding, body, compression=compression)
        except Refused as refused:
            await self._refuse(send, refused, encoding)
        except _Disconnected:
            return
        else:
            intake.counts.acknowledged[signal, Transport.HTTP] += 1
            acknowledged = (b"tollbook-offset", b"%d" % offset)
            await _answer(send, 200, _SUCCESS[encoding], _CONTENT_TYPE[encoding], acknowledged)

    async def _take(self, signal: Signal, encoding: Encoding, body: bytes, *, compression: str) -> int:
        intake = self._intake
        intake.held_bytes += (held := len(body))
        try:
            if compression:
                body = await intake.inflate(body, compression)
                intake.held_bytes += len(body) - held
                held = len(body)
            offset = await intake.take(signal, encoding, body)
        finally:
            intake.held_bytes -= held
        intake.counts.acknowledged_bytes += held
        return offset

    async def _body(self, receive: Receive) -> bytes:
        """The whole request body as it was sent."""
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Disconnected
        body: bytes = message.get("body", b"")
        if message.get("more_body"):
            body = await self._rest(receive, body)
        if len(body) > self._intake.limits.max_body_bytes:
            raise self._too_large()
        return body

    async def _rest(self, receive: Receive, first: bytes) -> bytes:
        """A body that comes in parts; what has arrived counts as held."""
        parts, size, more = [first], len(first), True
        self._intake.held_bytes += size
        try:
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _Disconnected
                part = message.get("body", b"")
                parts.append(part)
                size += len(part)
                self._intake.held_bytes += len(part)
                if size > self._intake.limits.max_body_bytes:
                    raise self._too_large()
                more = message.get("more_body", False)
        finally:
            self._intake.held_bytes -= size
        return b"".join(parts)

    def _too_large(self) -> Refused:
        return Refused(Reason.TOO_LARGE, f"the body is over {self._intake.limits.max_body_bytes} bytes")

    async def _refuse(self, send: Send, refused: Refused, encoding: Encoding | None) -> None:
        """Say no: as a google.rpc.Status in the request's encoding, as a problem document if unknown."""
        self._intake.counts.refused[refused.reason] += 1
        status, sentence = _HTTP_STATUS[refused.reason], str(refused)
        extra: list[tuple[bytes, bytes]] = []
        if refused.reason in _RETRYABLE:
            extra.append((b"retry-after", b"%d" % self._intake.limits.retry_after_s))
        if refused.reason is Reason.METHOD:
            extra.append((b"allow", b"POST"))
        if encoding is None:
            problem = {"type": "about:blank", "status": status, "code": refused.reason, "detail": sentence}
            await _answer(send, status, orjson.dumps(problem), b"application/problem+json", *extra)
        else:
            body = status_body(encoding, _RPC_CODE.get(refused.reason, Code.INVALID_ARGUMENT), sentence)
            await _answer(send, status, body, _CONTENT_TYPE[encoding], *extra)


def _described(scope: Scope) -> tuple[Encoding, str, int]:
    """What the headers say: the body's encoding, its compression ('' for none), its length (0 if they do
    not).
    """
    if scope["method"] != "POST":
        raise Refused(Reason.METHOD, "telemetry is sent with POST")
    encoding, compression, length = None, "", 0
    headers: Headers = scope["headers"]
    for name, value in headers:
        if name == b"content-type":
            encoding = _ENCODINGS.get(value) or _ENCODINGS.get(value.partition(b";")[0].strip().lower())
        elif name == b"content-encoding":
            compression = value.strip().lower().decode("latin-1").replace("identity", "")
        elif name == b"content-length":
            length = int(value)
    if encoding is None:
        raise Refused(Reason.CONTENT_TYPE, f"the content type must be {Encoding.PROTOBUF} or {Encoding.JSON}")
    return encoding, compression, length


async def _answer(
    send: Send, status: int, body: bytes, content_type: bytes, *extra: tuple[bytes, bytes]
) -> None:
    headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body)), *extra]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
