"""An answer on its way to the caller: bytes as they came, read in passing for what they tell of usage.

The end of an answer is held back until the record of the call is on disk (`seal`): who has read the whole
answer can rely on its being in the book. Everything before it goes out at once.
"""

from __future__ import annotations

import asyncio
import re
import time
import zlib
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

import orjson

from proxy.exchange import Attempt, Exchange
from proxy.failure import Failure, render, render_event
from proxy.outgoing import Outgoing
from proxy.upstream import Answer, TooSlow
from proxy.usage import UsageTap
from proxy.wire import WireFormat

__all__ = ["Client", "ErrorInStream", "inflated", "relay", "relay_refusal", "relay_whole"]

Seal = Callable[[], Awaitable[None]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

LINGER_S: Final = 1.0
"""How long a stream may stay open after its last event."""
_NOT_RELAYED: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"content-length",
    }
)
_NO_CHOICES: Final = re.compile(rb'"choices"\s*:\s*\[\s*\]')
_EVENT_END: Final = re.compile(rb"\r?\n\r?\n")


class ErrorInStream(Exception):
    """A stream that began well with its status and told of nothing but an error; nothing was relayed."""

    def __init__(self, body: bytes) -> None:
        super().__init__("an error at the beginning of a stream")
        self.body = body


class Client:
    """The caller's side of one exchange. `extra` are headers of ours on every answer."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False
        self.extra: list[tuple[bytes, bytes]] = []

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Send the head of the answer."""
        self.started = True
        await self._send(
            {"type": "http.response.start", "status": status, "headers": [*headers, *self.extra]}
        )

    async def write(self, chunk: bytes) -> None:
        """Send a part of the body."""
        if chunk:
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def end(self, chunk: bytes = b"") -> None:
        """Send the last part."""
        await self._send({"type": "http.response.body", "body": chunk, "more_body": False})

    async def fail(self, failure: Failure, wire_format: WireFormat) -> None:
        """Answer with an error in the caller's dialect; as an event, where a stream has begun."""
        if self.started:
            await self.end(render_event(failure, wire_format))
            return
        status, headers, body = render(failure, wire_format)
        told = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        told = [(name, value) for name, value in told if name != b"content-length"]
        await self.start(status, [*told, (b"content-length", str(len(body)).encode())])
        await self.end(body)


class _Plain(Protocol):
    def feed(self, chunk: bytes) -> bytes: ...
    def finish(self) -> bytes: ...


class _Untouched:
    """The same dialect on both sides."""

    def feed(self, chunk: bytes) -> bytes:
        return chunk

    def finish(self) -> bytes:
        return b""


class _WithoutUsageEvent:
    """Takes the one event out that tells the usage of an OpenAI stream whose caller did not ask for it."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> bytes:
        whole = self._rest + chunk
        cut = max(whole.rfind(b"\n\n") + 2, whole.rfind(b"\r\n\r\n") + 4)
        if cut < 4:
            cut = cut if cut == 2 else 0
        events, self._rest = whole[:cut], whole[cut:]
        if not _NO_CHOICES.search(events):
            return events
        kept, start = [], 0
        for end in _EVENT_END.finditer(events):
            event = events[start : end.end()]
            start = end.end()
            if not _tells_usage_only(event):
                kept.append(event)
        return b"".join(kept)

    def finish(self) -> bytes:
        rest, self._rest = self._rest, b""
        return b"" if _tells_usage_only(rest) else rest


def _tells_usage_only(event: bytes) -> bool:
    if not _NO_CHOICES.search(event):
        return False
    try:
        told = orjson.loads(event.strip().removeprefix(b"data:"))
    except orjson.JSONDecodeError:
        return False
    return isinstance(told, dict) and told.get("choices") == [] and isinstance(told.get("usage"), dict)


async def relay(attempt: Attempt, sent: Outgoing, answer: Answer, client: Client, seal: Seal) -> None:
    """Relay a stream. Raises UpstreamError when it breaks; `attempt.told` is kept true throughout."""
    tap = UsageTap(sent.spoken)
    changed = _changed(sent)
    try:
        held = await _stream(tap, attempt, answer, client, changed)
    finally:
        attempt.told = tap.told()
    await seal()
    await client.end(held + changed.finish())


async def _stream(
    tap: UsageTap,
    attempt: Attempt,
    answer: Answer,
    client: Client,
    changed: _Plain,
) -> bytes:
    """Everything up to the last event, which is returned."""
    chunk = await answer.next()
    attempt.first_byte_s = time.perf_counter()
    tap.feed(chunk)
    if tap.ended and (begun := tap.told()).error_body is not None:
        raise ErrorInStream(begun.error_body)
    await client.start(answer.status, _head(answer))
    while chunk:
        if tap.ended:
            return changed.feed(chunk) + await _tail(tap, answer, changed)
        await client.write(changed.feed(chunk))
        chunk = await answer.next()
        tap.feed(chunk)
    return b""


async def _tail(tap: UsageTap, answer: Answer, changed: _Plain) -> bytes:
    """What comes after the last event, for a moment."""
    parts: list[bytes] = []
    try:
        async with asyncio.timeout(LINGER_S):
            while chunk := await answer.next():
                tap.feed(chunk)
                parts.append(changed.feed(chunk))
    except (TimeoutError, TooSlow):
        pass
    return b"".join(parts)


def _changed(sent: Outgoing) -> _Plain:
    return _WithoutUsageEvent() if sent.adds_usage else _Untouched()


async def relay_whole(
    exchange: Exchange,
    attempt: Attempt,
    sent: Outgoing,
    answer: Answer,
    client: Client,
    seal: Seal,
    *,
    limit_bytes: int,
) -> None:
    """Relay an answer that is one document. Raises UpstreamError when it breaks."""
    body = await answer.whole(limit_bytes)
    attempt.first_byte_s = time.perf_counter() if exchange.said.streaming else None
    tap = UsageTap(sent.spoken)
    plain = inflated(body, answer)
    if plain is not None and not exchange.operation.counts_tokens:
        tap.feed(plain)
        attempt.told = tap.told()
    await seal()
    length = (b"content-length", str(len(body)).encode())
    await client.start(answer.status, [*_head(answer), length])
    await client.end(body)


async def relay_refusal(answer: Answer, body: bytes, client: Client) -> None:
    """The provider's own words, as they came."""
    await client.start(answer.status, [*_head(answer), (b"content-length", str(len(body)).encode())])
    await client.end(body)


def inflated(body: bytes, answer: Answer) -> bytes | None:
    """The body without its content encoding; None if that cannot be read here."""
    encoding = answer.headers.get("content-encoding", "identity").strip().lower()
    if encoding == "identity":
        return body
    if encoding not in ("gzip", "deflate"):
        return None
    try:
        return zlib.decompressobj(47).decompress(body, 64 << 20)
    except zlib.error:
        return None


def _head(answer: Answer) -> list[tuple[bytes, bytes]]:
    """The provider's headers for the caller, without what belongs to one connection and without a length."""
    return [(n, v) for name, v in answer.raw_headers if (n := name.lower()) not in _NOT_RELAYED]
