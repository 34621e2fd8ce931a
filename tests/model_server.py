"""Providers on loopback: a server that speaks each dialect, and keeps what arrived as it arrived.

What a model answers follows from the request: its last user text is a little script (`say hello`,
`status 429`, `stall`, `cut after 2`, `tool`). Usage is a function of the texts' lengths, so that a test can
say what a call must cost.
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

WORDS = ("Hello", ", ", "toll", "book", "!")


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
    """The address of a running server, what arrived there and what it sent."""

    url: str = ""
    arrived: list[Arrived] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)
    left: int = 0
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def application(self) -> web.Application:
        app = web.Application(client_max_size=1 << 28)
        app.router.add_route("*", "/{tail:.*}", self._answer)
        return app

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.arrived.append(Arrived(request.path, request.query_string, headers, body))
        if request.path.endswith("/models"):
            return web.json_response({"object": "list", "data": [{"id": "listed-model", "object": "model"}]})
        dialect, told = _dialect(request.path), json.loads(body)
        script = _script(dialect, told)
        number = next(self._numbers)
        metered = request.path.startswith(("/anthropic", "/openai"))
        if script.startswith("status ") and not (script.endswith("unless metered") and metered):
            return self._refusal(int(script.split()[1]), script)
        if script == "stall":
            await self._wait(request)
        if request.path.endswith("count_tokens"):
            return web.json_response({"input_tokens": 7})
        usage = _usage(told)
        if not _streams(request, told):
            return self._whole(dialect, told, number, usage)
        return await self._stream(request, dialect, told, number, usage, script)

    async def _wait(self, request: web.Request) -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            self.left += 1
            raise

    def _refusal(self, status: int, script: str) -> web.Response:
        body = json.dumps({"error": {"type": "refused", "message": f"told to: {script}"}}).encode()
        headers = {"retry-after": "7"} if status == 429 else {}
        self.sent.append(body)
        return web.Response(
            status=status,
            body=body,
            content_type="application/json",
            headers={**headers, "request-id": "req_refused"},
        )

    def _whole(self, dialect: str, told: Any, number: int, usage: tuple[int, int]) -> web.Response:
        body = json.dumps(whole(dialect, told, number, usage), indent=1).encode()
        self.sent.append(body)
        headers = {"x-request-id": f"req_{number:024d}", "anthropic-ratelimit-requests-remaining": "41"}
        return web.Response(body=body, content_type="application/json", headers=headers)

    async def _stream(
        self, request: web.Request, dialect: str, told: Any, number: int, usage: tuple[int, int], script: str
    ) -> web.StreamResponse:
        headers = {"content-type": "text/event-stream; charset=utf-8", "x-request-id": f"req_{number:024d}"}
        answer = web.StreamResponse(headers=headers)
        await answer.prepare(request)
        parts: list[bytes] = []
        self.sent.append(b"")
        place = len(self.sent) - 1
        try:
            async for event in _paced(events(dialect, told, number, usage), script):
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


def _dialect(path: str) -> str:
    if path.endswith("/chat/completions"):
        return "chat"
    if path.endswith("/responses"):
        return "responses"
    if path.endswith(("/messages", "/count_tokens")):
        return "messages"
    return "embeddings" if path.endswith("/embeddings") else "google"


def _streams(request: web.Request, told: Any) -> bool:
    return bool(told.get("stream")) or "streamGenerateContent" in request.path


def _script(dialect: str, told: Any) -> str:
    if dialect in ("chat", "messages"):
        content = told["messages"][-1]["content"]
    elif dialect == "google":
        content = told["contents"][-1]["parts"][-1]["text"]
    else:
        content = told["input"]
    if isinstance(content, list):
        last = content[-1]
        content = last if isinstance(last, str) else last.get("text") or last.get("content", "")
    return content if isinstance(content, str) else str(content)


def _usage(told: Any) -> tuple[int, int]:
    return 10 + len(json.dumps(told)) % 90, len(WORDS)


def whole(dialect: str, told: Any, number: int, usage: tuple[int, int]) -> Any:
    """The answer as one document."""
    text, model = "".join(WORDS), told.get("model", "gemini-2.5-flash")
    given, made = usage
    if dialect == "chat":
        return {
            "id": f"chatcmpl-{number:024d}",
            "object": "chat.completion",
            "created": 1,
            "model": model,
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            ],
            "usage": {
                "prompt_tokens": given,
                "completion_tokens": made,
                "total_tokens": given + made,
                "prompt_tokens_details": {"cached_tokens": 4},
            },
        }
    if dialect == "responses":
        return _response(number, model, text, given, made)
    if dialect == "messages":
        return {
            "id": f"msg_{number:024d}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [{"type": "text", "text": text}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": given, "output_tokens": made, "cache_read_input_tokens": 3},
        }
    if dialect == "embeddings":
        return {
            "object": "list",
            "model": model,
            "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -0.5]}],
            "usage": {"prompt_tokens": given, "total_tokens": given},
        }
    return {
        "responseId": f"resp{number:024d}",
        "modelVersion": "gemini-2.5-flash",
        "candidates": [{"content": {"role": "model", "parts": [{"text": text}]}, "finishReason": "STOP"}],
        "usageMetadata": {
            "promptTokenCount": given,
            "candidatesTokenCount": made,
            "totalTokenCount": given + made,
        },
    }


def _response(number: int, model: str, text: str, given: int, made: int) -> dict[str, Any]:
    return {
        "id": f"resp_{number:024d}",
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "model": model,
        "output": [
            {
                "id": f"msg_{number:024d}",
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": text, "annotations": []}],
            }
        ],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": given,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": made,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": given + made,
        },
    }


def events(dialect: str, told: Any, number: int, usage: tuple[int, int]) -> list[bytes]:
    """The answer as events."""
    made = {"chat": _chat_events, "messages": _messages_events, "responses": _responses_events}
    return made.get(dialect, _google_events)(told, number, usage)


def _chat_events(told: Any, number: int, usage: tuple[int, int]) -> list[bytes]:
    base = {
        "id": f"chatcmpl-{number:024d}",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": told["model"],
    }

    def chunk(delta: Any, finish: str | None = None) -> bytes:
        return _data({**base, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    stream = [chunk({"role": "assistant", "content": ""}), *(chunk({"content": word}) for word in WORDS)]
    stream.append(chunk({}, "stop"))
    if (told.get("stream_options") or {}).get("include_usage"):
        given, made = usage
        told_usage = {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}
        stream.append(_data({**base, "choices": [], "usage": told_usage}))
    return [*stream, b"data: [DONE]\n\n"]


def _messages_events(told: Any, number: int, usage: tuple[int, int]) -> list[bytes]:
    given, made = usage
    message = {**whole("messages", told, number, (given, 1)), "content": [], "stop_reason": None}
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    deltas = [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}
        for word in WORDS
    ]
    stop = {"stop_reason": "end_turn", "stop_sequence": None}
    told_events = [
        {"type": "message_start", "message": message},
        block,
        {"type": "ping"},
        *deltas,
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": stop, "usage": {"output_tokens": made}},
        {"type": "message_stop"},
    ]
    return [_named(event) for event in told_events]


def _responses_events(told: Any, number: int, usage: tuple[int, int]) -> list[bytes]:
    done = _response(number, told["model"], "".join(WORDS), *usage)
    begun = {**done, "status": "in_progress", "output": [], "usage": None}
    item = {**done["output"][0], "status": "in_progress", "content": []}
    part = {"type": "output_text", "text": "", "annotations": []}
    place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    told_events = [
        {"type": "response.created", "response": begun},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.content_part.added", **place, "part": part},
        *({"type": "response.output_text.delta", **place, "delta": word, "logprobs": []} for word in WORDS),
        {"type": "response.output_item.done", "output_index": 0, "item": done["output"][0]},
        {"type": "response.completed", "response": done},
    ]
    return [_named({**event, "sequence_number": place}) for place, event in enumerate(told_events)]


def _google_events(told: Any, number: int, usage: tuple[int, int]) -> list[bytes]:
    answer = whole("google", told, number, usage)
    last = {
        **answer,
        "candidates": [{**answer["candidates"][0], "content": {"role": "model", "parts": [{"text": ""}]}}],
    }
    first = [
        {
            "responseId": answer["responseId"],
            "modelVersion": answer["modelVersion"],
            "candidates": [{"content": {"role": "model", "parts": [{"text": word}]}}],
        }
        for word in WORDS
    ]
    return [b"data: " + json.dumps(each).encode() + b"\r\n\r\n" for each in (*first, last)]


def _data(event: Any) -> bytes:
    return b"data: " + json.dumps(event).encode() + b"\n\n"


def _named(event: dict[str, Any]) -> bytes:
    return b"event: " + event["type"].encode() + b"\n" + _data(event)


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
