"""An answer on its way to the caller: bytes as they came, read in passing for what they tell of usage.

The end of an answer is held back until the record of the call is safe (`seal`): who has read the whole answer
can rely on its being in the book. Everything before it goes out at once.
"""

from __future__ import annotations

import asyncio
import re
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

import orjson

from proxy.client import Client
from proxy.connection import Answer, Broken, UpstreamError
from proxy.exchange import Attempt, Exchange
from proxy.json_values import dumps, exact, loads
from proxy.outgoing import Outgoing
from proxy.translate import AnswerTranslator, answer_translator
from proxy.usage import UsageTap

__all__ = ["ErrorAnswer", "Passage", "inflated", "relay_refusal"]

Seal = Callable[[], None]

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
        b"date",
    }
)
_NO_CHOICES: Final = re.compile(rb'"choices"\s*:\s*\[\s*\]')
_EVENT_END: Final = re.compile(rb"\r?\n\r?\n")


class ErrorAnswer(Exception):
    """An answer of good status that is nothing but an error: its JSON, and all that came."""

    def __init__(self, body: bytes, raw: bytes) -> None:
        super().__init__("an error in the place of an answer")
        self.body, self.raw = body, raw


class _Change(Protocol):
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


class Passage:
    """One answer's way from a provider to the caller. `attempt.told` is kept true throughout.

    Both ways raise UpstreamError when the answer breaks, and ErrorAnswer when it is nothing but an error.
    """

    def __init__(
        self,
        exchange: Exchange,
        attempt: Attempt,
        *,
        sent: Outgoing,
        answer: Answer,
        client: Client,
        seal: Seal,
    ) -> None:
        self._attempt, self._answer, self._client, self._seal = attempt, answer, client, seal
        self._streaming = exchange.said.streaming
        self._counts_tokens = exchange.operation.counts_tokens
        self._tap = UsageTap(sent.spoken)
        self._translator: AnswerTranslator | None = None
        if sent.spoken is not exchange.wire_format:
            self._translator = answer_translator(exchange.wire_format, sent.spoken, exchange.request)
        untouched = _WithoutUsageEvent() if sent.adds_usage else _Untouched()
        self._changed: _Change = self._translator or untouched

    @property
    def streams(self) -> bool:
        """Whether events go on as events. Some doors stream whatever is asked of them: who speaks another
        dialect and asked for a document gets one.
        """
        return self._answer.streams and (self._streaming or self._translator is None)

    async def stream(self) -> None:
        """Relay events as they come; the last is held back until the record is safe."""
        try:
            held = await self._events()
        finally:
            self._attempt.told = self._tap.told()
        self._seal()
        await self._client.end(held + self._changed.finish())

    async def _events(self) -> bytes:
        """Relays everything up to the last event, which is returned."""
        tap, answer, client, changed = self._tap, self._answer, self._client, self._changed
        chunk = await answer.next()
        self._attempt.first_byte_s = time.perf_counter()
        tap.feed(chunk)
        if (error := tap.error_body) is not None:
            raise ErrorAnswer(error, chunk)
        await client.start(answer.status, self._head())
        while chunk:
            if tap.ended:
                return changed.feed(chunk) + await self._tail()
            await client.write(changed.feed(chunk))
            chunk = await answer.next()
            tap.feed(chunk)
        return b""

    async def _tail(self) -> bytes:
        """What comes after the last event, for a moment."""
        if self._answer.is_over:
            return b""
        parts: list[bytes] = []
        with suppress(TimeoutError, UpstreamError):
            async with asyncio.timeout(LINGER_S):
                while chunk := await self._answer.next():
                    self._tap.feed(chunk)
                    parts.append(self._changed.feed(chunk))
        return b"".join(parts)

    async def whole(self, limit_bytes: int) -> None:
        """Relay an answer that is one document."""
        body = await self._answer.whole(limit_bytes)
        if self._streaming:
            self._attempt.first_byte_s = time.perf_counter()
        plain = inflated(body, self._answer)
        if plain is not None and not self._counts_tokens:
            self._tap.feed(plain)
            told = self._attempt.told = self._tap.told()
            if told.error_body is not None and not told.usage_known:
                raise ErrorAnswer(told.error_body, body)
        if self._translator is not None:
            body = self._translated(plain)
        self._seal()
        await self._client.whole(self._answer.status, self._head(), body)

    def _translated(self, plain: bytes | None) -> bytes:
        if self._translator is not None and plain is not None and self._answer.streams:
            return dumps(self._translator.collected_body(plain))
        document = exact(loads(plain), plain) if plain is not None else None
        if self._translator is None or not isinstance(document, dict):
            raise Broken("the provider's answer is not of its format")
        return dumps(self._translator.body(document))

    def _head(self) -> list[tuple[bytes, bytes]]:
        """The provider's headers for the caller."""
        kept = _kept(self._answer)
        if self._translator is None:
            return kept
        kind = b"text/event-stream; charset=utf-8" if self.streams else b"application/json"
        rewritten = (b"content-type", b"content-encoding")
        return [(b"content-type", kind), *((name, value) for name, value in kept if name not in rewritten)]


async def relay_refusal(answer: Answer, body: bytes, client: Client) -> None:
    """The provider's own words, as they came."""
    await client.whole(answer.status, _kept(answer), body)


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


def _kept(answer: Answer) -> list[tuple[bytes, bytes]]:
    """The headers without what belongs to one connection and without a length."""
    return [(n, v) for name, v in answer.raw_headers if (n := name.lower()) not in _NOT_RELAYED]
