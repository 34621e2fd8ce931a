"""OTLP over HTTP as a bare ASGI application: it stands in front of every framework, because it is the busiest
path.

It reads a body within its limits, has it taken, and answers in the request's encoding as the OTLP
specification says. It does no routing beyond its own paths, checks no keys and no hosts: what stands in front
of it does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final, NamedTuple

import orjson

from .intake import Intake, Reason, Refused, Transport, refusal_of
from .otlp import Encoding, Signal
from .rpc_status import Code, status_body
from .validity import AT_ONCE_BYTES

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
_CONTENT_TYPE: Final = {encoding: (b"content-type", encoding.value.encode()) for encoding in Encoding}
_PROBLEM: Final = (b"content-type", b"application/problem+json")
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


class Answer(NamedTuple):
    """An HTTP answer; the headers are all but its length."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Export(NamedTuple):
    """What the head of a request announces: `compression` is '' for none, `length` 0 where it is not told."""

    signal: Signal
    encoding: Encoding
    compression: str
    length: int


class _Disconnected(Exception):
    """The client went away in the middle of its request: nobody is left to answer."""


def is_otlp_path(path: str) -> Signal | None:
    """The signal that is posted to `path`, None if it is not an OTLP path."""
    return _PATHS.get(path)


def export_of(path: str, headers: Headers) -> Export | None:
    """What a POST to an OTLP path announces; None where it is to be refused."""
    try:
        return _described(_PATHS[path], headers)
    except Refused:
        return None


class OtlpHttp:
    """The ASGI application for the OTLP paths (others are a KeyError: ask `is_otlp_path` first)."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        signal = _PATHS[scope["path"]]
        self._intake.counts.requests[signal, Transport.HTTP] += 1
        export = None
        try:
            if scope["method"] != "POST":
                raise Refused(Reason.METHOD, "telemetry is sent with POST")
            export = _described(signal, scope["headers"])
            if export.length > self._intake.limits.max_body_bytes:
                raise self._too_large()
            self._intake.refuse_overload()
            answer = await self._acknowledge(export, await self._body(receive))
        except Refused as refused:
            answer = self._refusal(refused, export)
        except _Disconnected:
            return
        await _send(send, answer)

    async def answer(self, export: Export, body: bytes) -> Answer:
        """The answer to a request that is here as a whole."""
        self._intake.counts.requests[export.signal, Transport.HTTP] += 1
        try:
            self._intake.refuse_overload()
            return await self._acknowledge(export, body)
        except Refused as refused:
            return self._refusal(refused, export)

    def begin(self, export: Export, body: bytes) -> Answer | asyncio.Future[int] | None:
        """The same where nothing but the disk is waited for: `ended` makes the future an answer. None where
        `answer` must be asked.
        """
        intake = self._intake
        if export.compression or len(body) > AT_ONCE_BYTES[export.encoding]:
            return None
        intake.counts.requests[export.signal, Transport.HTTP] += 1
        try:
            intake.refuse_overload()
            taken = intake.begin(export.signal, export.encoding, body)
        except Refused as refused:
            return self._refusal(refused, export)
        intake.held_bytes += len(body)
        return taken

    def ended(self, export: Export, size: int, taken: asyncio.Future[int]) -> Answer:
        """The answer to a body of that size that is on disk, or could not be put there."""
        self._intake.held_bytes -= size
        error = taken.exception()
        if error is not None:
            return self._refusal(refusal_of(error), export)
        return self._success(export, size, taken.result())

    async def _acknowledge(self, export: Export, body: bytes) -> Answer:
        """Have a body taken. Raises Refused."""
        intake = self._intake
        intake.held_bytes += (held := len(body))
        try:
            if export.compression:
                body = await intake.inflate(body, export.compression)
                intake.held_bytes += len(body) - held
                held = len(body)
            offset = await intake.take(export.signal, export.encoding, body)
        finally:
            intake.held_bytes -= held
        return self._success(export, held, offset)

    def _success(self, export: Export, size: int, offset: int) -> Answer:
        self._intake.counts.acknowledged_bytes += size
        self._intake.counts.acknowledged[export.signal, Transport.HTTP] += 1
        headers = [_CONTENT_TYPE[export.encoding], (b"tollbook-offset", b"%d" % offset)]
        return Answer(200, headers, _SUCCESS[export.encoding])

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

    def _refusal(self, refused: Refused, export: Export | None) -> Answer:
        """Say no: as a google.rpc.Status in the request's encoding, as a problem document if unknown."""
        self._intake.counts.refused[refused.reason] += 1
        status, sentence = _HTTP_STATUS[refused.reason], str(refused)
        extra: list[tuple[bytes, bytes]] = []
        if refused.reason in _RETRYABLE:
            extra.append((b"retry-after", b"%d" % self._intake.limits.retry_after_s))
        if refused.reason is Reason.METHOD:
            extra.append((b"allow", b"POST"))
        if export is None:
            problem = {"type": "about:blank", "status": status, "code": refused.reason, "detail": sentence}
            return Answer(status, [_PROBLEM, *extra], orjson.dumps(problem))
        code = _RPC_CODE.get(refused.reason, Code.INVALID_ARGUMENT)
        return Answer(
            status, [_CONTENT_TYPE[export.encoding], *extra], status_body(export.encoding, code, sentence)
        )


def _described(signal: Signal, headers: Headers) -> Export:
    """What the headers say. Raises Refused."""
    encoding, compression, length = None, "", 0
    for name, value in headers:
        if name == b"content-type":
            encoding = _ENCODINGS.get(value) or _ENCODINGS.get(value.partition(b";")[0].strip().lower())
        elif name == b"content-encoding":
            compression = value.strip().lower().decode("latin-1").replace("identity", "")
        elif name == b"content-length":
            length = int(value)
    if encoding is None:
        raise Refused(Reason.CONTENT_TYPE, f"the content type must be {Encoding.PROTOBUF} or {Encoding.JSON}")
    return Export(signal, encoding, compression, length)


async def _send(send: Send, answer: Answer) -> None:
    headers = [*answer.headers, (b"content-length", b"%d" % len(answer.body))]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
