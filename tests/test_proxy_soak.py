"""Mixed live calls with everything that goes wrong: in the book once each, exact, whatever was killed.

Each call carries its own session, so that what arrived at the provider can be held against the book call by
call. `make soak` runs ten thousand (SOAK_PROXY_CALLS); agents' own telemetry of the same calls comes in too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp

from tests.house import House
from tests.model_server import ModelServer, model_server
from tests.telemetry import attribute, export, new_call, span_of
from tests.test_proxy_carry import write_doors

CALLS = int(os.environ.get("SOAK_PROXY_CALLS", "100"))
KILLS = max(1, CALLS // 1000)
CALLERS = 12
KINDS = {
    "say hello": 70,
    "status 429": 6,
    "status 500": 6,
    "cut after 3": 6,
    "stall": 4,
    "leave": 8,
}
PRICE = {"openai": (Decimal("1.25"), Decimal("0.125"), Decimal(10)), "anthropic": (5, Decimal("0.5"), 25)}
"""USD per million tokens of gpt-5 and claude-opus-4-5: input, cached input, output."""


@dataclass
class Seen:
    """What the callers saw. `answered`: call -> the usage its whole answer told."""

    answered: dict[str, tuple[str, int, int, int]] = field(default_factory=dict)
    cut_off: set[str] = field(default_factory=set)


async def _call(
    number: int, house: House, client: aiohttp.ClientSession, seen: Seen, rng: random.Random
) -> None:
    name, kind = f"call-{number}", rng.choices(list(KINDS), list(KINDS.values()))[0]
    provider, stream = rng.choice(["openai", "anthropic"]), rng.random() < 0.6 or kind.startswith("cut")
    text = f"{'slowly' if kind == 'leave' else kind}"
    body: dict[str, Any] = {"messages": [{"role": "user", "content": text}], "stream": stream, "user": name}
    body |= {"model": "gpt-5"} if provider == "openai" else {"model": "claude-opus-4-5", "max_tokens": 99}
    path = "/v1/chat/completions" if provider == "openai" else "/v1/messages"
    key = "sk-proj-mine" if provider == "openai" else "sk-ant-api03-mine"
    headers = {"authorization": f"Bearer {key}", "x-tollbook-session": name}
    if stream and provider == "openai":
        body["stream_options"] = {"include_usage": True}
    patience = 0.5 if kind in ("stall", "leave") else 60
    started = time.time_ns()
    try:
        async with (
            asyncio.timeout(patience),
            client.post(house.http + path, json=body, headers=headers) as answer,
        ):
            whole = await answer.read()
    except (aiohttp.ClientError, TimeoutError, ConnectionError):
        seen.cut_off.add(name)
        return
    told = _usage(whole, stream=stream) if answer.status == 200 else None
    if told is not None:
        seen.answered[name] = (provider, *told[1:])
        if rng.random() < 0.5:
            await _tell(house, client, provider, told, started, rng)


def _usage(whole: bytes, *, stream: bool) -> tuple[str, int, int, int] | None:
    """Response id, all input, cached input and output of a whole answer; None where it broke off."""
    events = [json.loads(line[6:]) for line in whole.splitlines() if line.startswith(b"data: {")]
    if stream and not (b"[DONE]" in whole or b'"message_stop"' in whole):
        return None
    answers = events if stream else [json.loads(whole)]
    found: dict[str, Any] = {}
    response_id = ""
    for answer in answers:
        message = answer.get("message", answer)
        response_id = response_id or message.get("id", "")
        found |= {key: value for key, value in (message.get("usage") or {}).items() if value is not None}
    if "prompt_tokens" in found:
        cached = (found.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        return response_id, found["prompt_tokens"], cached, found["completion_tokens"]
    cached = found.get("cache_read_input_tokens", 0)
    return response_id, found["input_tokens"] + cached, cached, found["output_tokens"]


async def _tell(
    house: House,
    client: aiohttp.ClientSession,
    provider: str,
    told: tuple[str, int, int, int],
    started_ns: int,
    rng: random.Random,
) -> None:
    """The agent's own span of the call, which it sends until it is acknowledged."""
    span = span_of(new_call(rng, started_ns=started_ns), rng)
    del span.attributes[:]
    names = ("response.id", "usage.input_tokens", "usage.cache_read.input_tokens", "usage.output_tokens")
    for name, value in zip(names, told, strict=True):
        span.attributes.append(attribute(f"gen_ai.{name}", value))
    for name, value in (("operation.name", "chat"), ("system", provider)):
        span.attributes.append(attribute(f"gen_ai.{name}", value))
    body, headers = export([span]), {"content-type": "application/x-protobuf"}
    for _ in range(600):
        with contextlib.suppress(aiohttp.ClientError, ConnectionError):
            async with client.post(f"{house.http}/v1/traces", data=body, headers=headers) as answer:
                if answer.status == 200:
                    return
        await asyncio.sleep(0.1)
    raise AssertionError("telemetry was never acknowledged")


async def _run(house: House, seed: int) -> Seen:
    seen, numbers, rng = Seen(), iter(range(CALLS)), random.Random(seed)
    kill_at = {CALLS * (n + 1) // (KILLS + 1) for n in range(KILLS)}
    running = asyncio.Event()
    running.set()

    async def caller(client: aiohttp.ClientSession) -> None:
        for number in numbers:
            await running.wait()
            if number in kill_at:
                running.clear()
                await asyncio.to_thread(_kill, house)
                running.set()
            await _call(number, house, client, seen, rng)

    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector) as client:
        await asyncio.gather(*(caller(client) for _ in range(CALLERS)))
    return seen


def _kill(house: House) -> None:
    time.sleep(0.05)
    house.kill()
    house.restart()
    house.wait_ready(300)


def _arrived(models: ModelServer) -> Counter[str]:
    return Counter(arrived.json()["user"] for arrived in models.arrived)


def test_every_call_is_in_the_book_once_and_exact(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    with model_server() as models:
        write_doors(data_dir, models.url)
        with House(data_dir) as house:
            house.wait_ready(300)
            seen = asyncio.run(_run(house, seed=11))
            house.wait_published(600)
            columns = "session_id, provider, input_tokens, cache_read_tokens, output_tokens, cost_status"
            rows = house.published(f"SELECT {columns}, billed_cost_usd, observation_count FROM calls")
            arrived = _arrived(models)
    book = {row[0]: row[1:] for row in rows}
    assert len(book) == len(rows), "nothing is counted twice, nothing stands beside its call"
    assert not set(arrived) - set(book), "whatever a provider saw is in the book"
    assert set(book) - set(arrived) <= seen.cut_off
    assert max(arrived.values()) == 1, "nothing was sent twice"
    assert len(seen.answered) > CALLS // 3
    for name, (provider, given, cached, made) in seen.answered.items():
        row = book[name]
        assert row[:4] == (provider, given, cached or row[2], made), name
        dear, cheap, output = PRICE[provider]
        cost = ((given - cached) * dear + cached * cheap + made * output) / Decimal(10**6)
        assert (row[4], row[5]) == ("priced", cost), name
    unknown = {name for name, row in book.items() if row[4] == "usage_unknown"}
    assert not unknown & set(seen.answered)
    assert any(row[6] == 2 for row in book.values()), "the agents' own telemetry is of the same calls"
