"""Mixed live calls with everything that goes wrong: in the book once each, exact, whatever was killed.

Each call carries its own session, so that what the provider served can be held against the book call by call.
Half of the answered calls are told of by the agents too, in each way in which a call is recognised, some of
them late, some twice. `make soak` runs ten thousand (SOAK_PROXY_CALLS).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp

from tests.agents_telemetry import TEAM, USER_AGENT, SeenCall, telling, ways
from tests.house import House
from tests.model_server import ModelServer, model_server
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
LOST = ("cut after 3", "stall", "leave")
MODELS = {"openai": "gpt-5", "anthropic": "claude-opus-4-5"}
PRICE = {
    "openai": (Decimal("1.25"), Decimal("0.125"), Decimal(10)),
    "anthropic": (Decimal(5), Decimal("0.5"), Decimal(25)),
}
"""USD per million tokens of the models: input, cached input, output."""
COLUMNS = (
    "session_id",
    "provider",
    "input_tokens",
    "cache_read_tokens",
    "output_tokens",
    "cost_status",
    "list_cost_usd",
    "billed_cost_usd",
    "http_status",
    "status",
    "usage_complete",
    "usage_known",
    "observation_count",
    "team",
    "response_id",
)


@dataclass
class Seen:
    """What the callers saw. `told`: of which calls the agents sent telemetry, and how; `late`: what is still
    to be sent.
    """

    kinds: dict[str, str] = field(default_factory=dict)
    answered: dict[str, SeenCall] = field(default_factory=dict)
    cut_off: set[str] = field(default_factory=set)
    told: dict[str, str] = field(default_factory=dict)
    late: list[tuple[str, bytes]] = field(default_factory=list)


@dataclass(frozen=True)
class Truth:
    """What the provider really made of a request."""

    provider: str
    response_id: str
    input_tokens: int
    cache_read_tokens: int
    output_tokens: int

    @property
    def cost_usd(self) -> Decimal:
        """By hand, from the price sheets."""
        dear, cheap, output = PRICE[self.provider]
        uncached = self.input_tokens - self.cache_read_tokens
        return (uncached * dear + self.cache_read_tokens * cheap + self.output_tokens * output) / 10**6


async def _call(
    number: int, house: House, client: aiohttp.ClientSession, seen: Seen, rng: random.Random
) -> None:
    name, kind = f"call-{number}", rng.choices(list(KINDS), list(KINDS.values()))[0]
    seen.kinds[name] = kind
    provider, stream = rng.choice(list(MODELS)), rng.random() < 0.6 or kind.startswith("cut")
    text = f"{'slowly' if kind == 'leave' else kind}"
    body: dict[str, Any] = {"messages": [{"role": "user", "content": text}], "stream": stream, "user": name}
    body |= {"model": MODELS[provider]} | ({"max_tokens": 99} if provider == "anthropic" else {})
    path = "/v1/chat/completions" if provider == "openai" else "/v1/messages"
    key = "sk-proj-mine" if provider == "openai" else "sk-ant-api03-mine"
    trace, span = rng.randbytes(16), rng.randbytes(8)
    headers = {"authorization": f"Bearer {key}", "x-tollbook-session": name}
    headers["traceparent"] = f"00-{trace.hex()}-{span.hex()}-01"
    way = rng.choice(ways(provider)) if rng.random() < 0.5 else None
    headers |= {"user-agent": USER_AGENT} if way == "figures" else {}
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
    if answer.status != 200 or (told := _usage(whole, stream=stream)) is None:
        return
    request_id = answer.headers.get("request-id", "")
    times = {"started_ns": started, "ended_ns": time.time_ns()}
    call = SeenCall(
        provider, MODELS[provider], told[0], request_id, *told[1:], **times, trace_id=trace, span_id=span
    )
    seen.answered[name] = call
    if way is not None:
        seen.told[name] = way
        await _tell(house, client, seen, telling(call, way), rng)


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
    house: House, client: aiohttp.ClientSession, seen: Seen, told: tuple[str, bytes], rng: random.Random
) -> None:
    """An agent's telemetry: at once, or with what comes late; some of it again."""
    if rng.random() < 0.3:
        seen.late.append(told)
        return
    await _export(house, client, *told)
    if rng.random() < 0.2:
        seen.late.append(told)


async def _export(house: House, client: aiohttp.ClientSession, signal_name: str, body: bytes) -> None:
    """Sent until it is acknowledged."""
    headers = {"content-type": "application/x-protobuf"}
    for _ in range(600):
        with contextlib.suppress(aiohttp.ClientError, ConnectionError):
            async with client.post(f"{house.http}/v1/{signal_name}", data=body, headers=headers) as answer:
                if answer.status == 200:
                    return
        await asyncio.sleep(0.1)
    raise AssertionError("telemetry was never acknowledged")


async def _run(house: House, seed: int) -> Seen:
    seen, numbers, rng = Seen(), iter(range(CALLS)), random.Random(seed)
    kill_at = {CALLS * (n + 1) // (KILLS + 1): _kill_front for n in range(KILLS)}
    kill_at |= {place + CALLS // (2 * KILLS + 2): _kill_ledger for place in kill_at}
    running = asyncio.Event()
    running.set()

    async def caller(client: aiohttp.ClientSession) -> None:
        for number in numbers:
            await running.wait()
            if number in kill_at:
                running.clear()
                await asyncio.to_thread(kill_at[number], house)
                running.set()
            await _call(number, house, client, seen, rng)

    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector) as client:
        await asyncio.gather(*(caller(client) for _ in range(CALLERS)))
        for told in seen.late:
            await _export(house, client, *told)
    return seen


def _kill_front(house: House) -> None:
    time.sleep(0.05)
    house.kill()
    house.restart()
    house.wait_ready(300)


def _kill_ledger(house: House) -> None:
    """Live calls go on while it starts again."""
    for pid in house.children("tollbook.ledger_process"):
        os.kill(pid, signal.SIGKILL)


def _truths(models: ModelServer) -> dict[str, Truth]:
    """By session, what the provider made of every request that it did not refuse."""
    made = {}
    for arrived, answer in models.made:
        asked = arrived.json()
        anthropic = answer.model == MODELS["anthropic"]
        cached = 3 if anthropic else 0 if asked["stream"] else 4
        given = answer.input_tokens + (cached if anthropic else 0)
        provider = "anthropic" if anthropic else "openai"
        kind = "msg" if anthropic else "chatcmpl"
        response_id = f"{kind}_{answer.number:024d}" if anthropic else f"{kind}-{answer.number:024d}"
        made[asked["user"]] = Truth(provider, response_id, given, cached, answer.output_tokens)
    return made


Book = dict[str, dict[str, Any]]


def test_every_call_is_in_the_book_once_and_exact(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    with model_server() as models:
        write_doors(data_dir, models.url)
        with House(data_dir) as house:
            house.wait_ready(300)
            seen = asyncio.run(_run(house, seed=11))
            house.wait_published(600)
            rows = house.published(f"SELECT {', '.join(COLUMNS)} FROM calls")
            arrived = Counter(each.json()["user"] for each in models.arrived)
            truths = _truths(models)
    book = {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in rows}
    assert len(book) == len(rows), "nothing is counted twice, nothing stands beside its call"
    assert not set(arrived) - set(book), "whatever a provider saw is in the book"
    assert set(book) - set(arrived) <= seen.cut_off
    assert max(arrived.values()) == 1, "nothing was sent twice"
    assert len(seen.answered) > CALLS // 3
    _check_answered(book, seen, truths)
    _check_told(book, seen)
    _check_unanswered(book, seen, truths)


def _check_answered(book: Book, seen: Seen, truths: dict[str, Truth]) -> None:
    """What was served whole: the tokens and the money of what the provider made, to the last digit."""
    for name, call in seen.answered.items():
        row, truth = book[name], truths[name]
        assert (call.response_id, call.input_tokens) == (truth.response_id, truth.input_tokens), name
        assert (row["provider"], row["response_id"]) == (truth.provider, truth.response_id), name
        tokens = row["input_tokens"], row["cache_read_tokens"] or 0, row["output_tokens"]
        assert tokens == (truth.input_tokens, truth.cache_read_tokens, truth.output_tokens), name
        money = row["cost_status"], row["list_cost_usd"], row["billed_cost_usd"]
        assert money == ("priced", truth.cost_usd, truth.cost_usd), name
        assert (row["http_status"], row["status"]) == (200, "ok"), name


def _check_told(book: Book, seen: Seen) -> None:
    """What the agents told of is the same call as what the proxy carried, each one.

    Of twins (one program, the same tokens, the same moment) that are told by their figures alone nobody can
    know which is which: there it is as many of each kind, and not by name.
    """
    assert set(seen.told.values()) == {"response_id", "trace", "request_id", "figures"}
    double = {name for name, row in book.items() if row["observation_count"] == 2}
    named = {name for name, way in seen.told.items() if way != "figures"}
    assert named <= double, "told by the agent and by the proxy: one call"
    assert Counter(_figures(book[name]) for name in double - named) == Counter(
        _figures(book[name]) for name in set(seen.told) - named
    )
    assert all(row["observation_count"] == 1 for name, row in book.items() if name not in double)
    assert {name for name, row in book.items() if row["team"] == TEAM} == double


def _figures(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["provider"], row["input_tokens"], row["output_tokens"]


def _check_unanswered(book: Book, seen: Seen, truths: dict[str, Truth]) -> None:
    """What was refused is free; of what broke off nothing is known that was not said."""
    for name in set(book) - set(seen.answered):
        row, kind = book[name], seen.kinds[name]
        if row["http_status"] in (429, 500):
            assert f"status {row['http_status']}" == kind, name
            assert (row["cost_status"], row["billed_cost_usd"]) == ("not_billable", 0), name
            continue
        assert kind in LOST or name in seen.cut_off, name
        truth = truths.get(name)
        told = (
            (row["input_tokens"], truth and truth.input_tokens),
            (row["output_tokens"], truth and truth.output_tokens),
        )
        assert all(ours is None or (made is not None and ours <= made) for ours, made in told), name
        if row["usage_complete"]:
            assert truth is not None, name
            assert row["billed_cost_usd"] == truth.cost_usd, name
        elif not row["usage_known"]:
            assert (row["cost_status"], row["billed_cost_usd"]) == ("usage_unknown", None), name
