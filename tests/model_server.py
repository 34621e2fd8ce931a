"""Providers on loopback: a server that speaks each dialect, checks what it is shown, and keeps what arrived.

What a model answers follows from the request: its last text is a little script (`say hello`, `status 429`,
`status 529 once`, `stall`, `slowly`, `stream anyway`, `cut after 2`, `cost 0.5`, `call TOOL {"some":
"arguments"}`). The usage is a function of the request's length, so that a test can say what a call must cost.

Like its models it refuses who knocks at the wrong door: a path that is no dialect's (404), no key where that
dialect's providers look for it (401), a call of Anthropic's without its version (400).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.model_answers import WORDS, Answer, events, whole

__all__ = ["WORDS", "Arrived", "ModelServer", "model_server"]

_DIALECTS = {
    "/chat/completions": "chat",
    "/responses": "responses",
    "/messages": "messages",
    "/count_tokens": "messages",
    "/embeddings": "embeddings",
    "generateContent": "google",
    "streamGenerateContent": "google",
    "countTokens": "google",
}
_KEYS = {"messages": ("x-api-key", "authorization"), "google": ("x-goog-api-key", "authorization")}
_REQUEST_ID = {"messages": "request-id"}


@dataclass(frozen=True)
class Arrived:
    """One request as the provider saw it."""

    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class ModelServer:
    """The address of a running server, what arrived there, what it made of that and what it sent."""

    url: str = ""
    made: list[tuple[Arrived, Answer]] = field(default_factory=list)
    arrived: list[Arrived] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)
    left: int = 0
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _refused_once: set[tuple[str, str]] = field(default_factory=set)

    def application(self) -> web.Application:
        app = web.Application(client_max_size=1 << 28)
        app.router.add_route("*", "/{tail:.*}", self._answer)
        return app

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        arrived = Arrived(request.path, request.query_string, headers, body)
        self.arrived.append(arrived)
        if request.path.endswith("/models"):
            return web.json_response({"object": "list", "data": [{"id": "listed-model", "object": "model"}]})
        dialect = _dialect(request.path)
        if status := _wrong_door(dialect, headers):
            return self._refusal(status, "knock at the right door", dialect)
        told = json.loads(body)
        script = _script(dialect, told)
        if self._is_refused(script, request.path):
            return self._refusal(int(script.split()[1]), script, dialect)
        if script == "stall":
            await self._wait(request)
        if request.path.endswith(("count_tokens", "countTokens")):
            return web.json_response({"totalTokens" if dialect == "google" else "input_tokens": 7})
        model = told.get("model") or request.path.rpartition("/")[2].partition(":")[0]
        size = 10 + len(json.dumps(told)) % 90
        answer = Answer(next(self._numbers), model, size, _tool(script), _cost_usd(script))
        self.made.append((arrived, answer))
        if not _streams(request, told) and script != "stream anyway":
            return self._whole(dialect, answer)
        asked = bool((told.get("stream_options") or {}).get("include_usage"))
        stream = events(dialect, answer, tells_usage=asked)
        if dialect == "google" and request.query.get("alt") != "sse":
            return self._array(stream, answer)
        return await self._stream(request, dialect, stream, answer, script)

    def _array(self, stream: list[bytes], answer: Answer) -> web.Response:
        """Gemini's stream for who does not ask for events: one array."""
        body = b"[" + b",\r\n".join(event.removeprefix(b"data: ").strip() for event in stream) + b"]"
        self.sent.append(body)
        return web.Response(body=body, content_type="application/json", headers=_ids("google", answer))

    def _is_refused(self, script: str, path: str) -> bool:
        metered = path.startswith(("/anthropic", "/openai"))
        if not script.startswith("status ") or (script.endswith("unless metered") and metered):
            return False
        again = (path, script) in self._refused_once
        self._refused_once |= {(path, script)} if script.endswith("once") else set()
        return not again

    async def _wait(self, request: web.Request) -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            self.left += 1
            raise

    def _refusal(self, status: int, script: str, dialect: str) -> web.Response:
        body = json.dumps({"error": {"type": "refused", "message": f"told to: {script}"}}).encode()
        headers = {"retry-after": "7"} if status == 429 else {}
        headers |= {"location": "http://127.0.0.1:9/elsewhere"} if status < 400 else {}
        self.sent.append(body)
        return web.Response(
            status=status,
            body=body,
            content_type="application/json",
            headers={**headers, _REQUEST_ID.get(dialect, "x-request-id"): "req_refused"},
        )

    def _whole(self, dialect: str, answer: Answer) -> web.Response:
        body = json.dumps(whole(dialect, answer), indent=1).encode()
        self.sent.append(body)
        headers = {**_ids(dialect, answer), "anthropic-ratelimit-requests-remaining": "41"}
        return web.Response(body=body, content_type="application/json", headers=headers)

    async def _stream(
        self, request: web.Request, dialect: str, stream: list[bytes], told: Answer, script: str
    ) -> web.StreamResponse:
        headers = {"content-type": "text/event-stream; charset=utf-8", **_ids(dialect, told)}
        answer = web.StreamResponse(headers=headers)
        await answer.prepare(request)
        parts: list[bytes] = []
        self.sent.append(b"")
        place = len(self.sent) - 1
        try:
            async for event in _paced(stream, script):
                await answer.write(event)
                parts.append(event)
                self.sent[place] = b"".join(parts)
        except (ConnectionResetError, asyncio.CancelledError):
            self.left += 1
            raise
        if script.startswith("cut"):
            assert request.transport is not None
            request.transport.abort()
        return answer


async def _paced(stream: list[bytes], script: str) -> AsyncIterator[bytes]:
    limit = int(script.rsplit(maxsplit=1)[-1]) if script.startswith("cut") else len(stream)
    for event in stream[:limit]:
        yield event
        await asyncio.sleep(0.3 if script == "slowly" else 0)


def _ids(dialect: str, answer: Answer) -> dict[str, str]:
    return {_REQUEST_ID.get(dialect, "x-request-id"): f"req_{answer.number:024d}"}


def _dialect(path: str) -> str:
    return next((dialect for end, dialect in _DIALECTS.items() if path.endswith(end)), "")


def _wrong_door(dialect: str, headers: dict[str, str]) -> int | None:
    """The status for a call that this dialect's providers would not take."""
    if not dialect:
        return 404
    if not any(headers.get(name) for name in _KEYS.get(dialect, ("authorization", "api-key"))):
        return 401
    return 400 if dialect == "messages" and "anthropic-version" not in headers else None


def _streams(request: web.Request, told: Any) -> bool:
    return bool(told.get("stream")) or "streamGenerateContent" in request.path


def _script(dialect: str, told: Any) -> str:
    """The last text of a request; what a tool answered is one too."""
    turns = told.get({"chat": "messages", "messages": "messages", "google": "contents"}.get(dialect, "input"))
    return _last_text(turns).strip()


def _last_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return _last_text(value[-1]) if value else ""
    keys = ("text", "content", "output", "parts", "functionResponse", "response", "result")
    told = value if isinstance(value, dict) else {}
    return next((_last_text(told[key]) for key in keys if key in told), "")


def _tool(script: str) -> tuple[str, dict[str, Any]] | None:
    verb, _, rest = script.partition(" ")
    name, _, arguments = rest.partition(" ")
    return (name, json.loads(arguments)) if verb == "call" else None


def _cost_usd(script: str) -> float | None:
    verb, _, amount = script.partition(" ")
    return float(amount) if verb == "cost" else None


@contextmanager
def model_server() -> Iterator[ModelServer]:
    """A running server, in a thread with a loop of its own."""
    server = ModelServer()
    loop = asyncio.new_event_loop()
    started = threading.Event()

    async def start() -> web.AppRunner:
        runner = web.AppRunner(server.application(), handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        started.set()
        return runner

    def serve() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=serve)
    thread.start()
    started.wait()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
