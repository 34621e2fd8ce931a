"""The budget check: how long a reply takes, idle and while telemetry comes in, and what a promise costs.

At full speed every connection asks again as soon as it is answered, so the time is mostly the queue of the
others; at a fixed rate it is what an agent waits before a call. The client is measured too, against a server
that does nothing (`check_floor`).
"""

# ruff: noqa: S603  # the commands are our own

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPConnection
from threading import local
from time import monotonic
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

from bench import process_tree
from bench.otlp_load import Result, Running, run
from bench.plan import Run
from bench.receive import half_sustained, verify
from bench.server import BenchError, Tollbook, end
from bench.traffic import CHECK_PATH, Load

PART: Final = "budget check"
FEW: Final = 10
MANY: Final = 10_000
CONNECTIONS: Final = (1, 16, 64)
PACED_PER_S: Final = 2000.0
DEFINERS: Final = 64
SPANS: Final = 100
EXTRA_INGEST_S: Final = 3

RESERVED: Final = "check and reserve, fsynced"
TTL_S: Final = 60
BATCH: Final = 50
DIFFERENT: Final = 2_000
"""Checks that are sent in turn, no two alike: sessions and sizes of calls differ as they do in life."""


def _asked(number: int, **more: Any) -> list[dict[str, Any]]:
    """Checks as agents ask them: who, which model, how much it may need; each falls under one budget."""
    return [
        {
            "scope": {"team": f"team-{n % FEW}", "agent": "planner", "session_id": f"session-{n}"},
            "model": "gpt-4o",
            "estimate": {"input_tokens": 2_000 + 7 * n, "output_tokens": 1_000 + n},
            **more,
        }
        for n in range(number)
    ]


def checks(**more: Any) -> tuple[bytes, ...]:
    """One check in each body."""
    return tuple(json.dumps(each).encode() for each in _asked(DIFFERENT, **more))


def _reserving() -> tuple[bytes, ...]:
    return checks(reserve=True, ttl_s=TTL_S)


def _reserving_together() -> tuple[bytes, ...]:
    """A batch in each body, as an orchestrator that fans out asks."""
    asked = _asked(DIFFERENT, reserve=True, ttl_s=TTL_S)
    return tuple(
        json.dumps({"items": asked[start : start + BATCH]}).encode() for start in range(0, DIFFERENT, BATCH)
    )


def measure(plan: Run) -> None:
    """The client's floor, then checks and reservations with few and with many budgets, idle and while
    receiving.
    """
    _idle(plan, FEW)
    _while_receiving(plan)
    _idle(plan, MANY)


def _idle(plan: Run, budgets: int) -> None:
    name = f"{budgets} budgets"
    with Tollbook(plan.folder) as house:
        plan.say(f"defining {name}")
        _keep_definitions(plan, name, define(house, budgets), number=budgets)
        size = _confirm(house)
        if budgets == FEW:
            _floor(plan, size)
        for connections in CONNECTIONS:
            _cell(plan, house, name, _load(plan, house, connections))
        _cell(plan, house, name, replace(_load(plan, house, CONNECTIONS[-1]), rate=PACED_PER_S))
        _reservations(plan, house, name)


def _keep_definitions(plan: Run, name: str, seconds: float, *, number: int) -> None:
    labels = {"budgets": f"{name}, defining them", "connections": str(DEFINERS), "pace": "full speed"}
    plan.keep(PART, labels, {"checks/s": number / seconds})


def _reservations(plan: Run, house: Tollbook, name: str) -> None:
    """Every reply is sent after the reservation is on disk; none is settled: they pile up and expire."""
    for connections in CONNECTIONS:
        load = replace(_load(plan, house, connections), checks=_reserving())
        _cell(plan, house, f"{name}, {RESERVED}", load)
    load = replace(_load(plan, house, CONNECTIONS[0]), checks=_reserving_together())
    _cell(plan, house, f"{name}, {RESERVED}, {BATCH} in a request", load, each=BATCH)


def define(house: Tollbook, number: int) -> float:
    """Define budgets, one for each team, over some connections at a time; the seconds that took."""
    place = urlsplit(house.http).netloc
    own = local()

    def post(index: int) -> None:
        if not hasattr(own, "connection"):
            own.connection = HTTPConnection(place, timeout=60)
        body = {
            "id": f"bench-{index}",
            "scope": {"team": f"team-{index}"},
            "limit": "1000000",
            "period": "month",
        }
        own.connection.request(
            "POST", "/api/v1/budgets", json.dumps(body), {"content-type": "application/json"}
        )
        answer = own.connection.getresponse()
        if answer.status != 201:
            raise BenchError(f"a budget was not taken: {answer.status} {answer.read()[:500]!r}")
        answer.read()

    began = monotonic()
    with ThreadPoolExecutor(DEFINERS) as pool:
        list(pool.map(post, range(number)))
    return monotonic() - began


def _confirm(house: Tollbook) -> int:
    """One check by hand: allowed, by the budget it is about. The size of the reply in bytes."""
    reply = house.ask("POST", CHECK_PATH, json.loads(checks()[0]))
    if reply["decision"] != "allow" or [each["id"] for each in reply["budgets"]] != ["bench-0"]:
        raise BenchError(f"the check is answered wrongly: {reply}")
    return len(json.dumps(reply))


def _load(plan: Run, house: Tollbook, connections: int) -> Load:
    return Load(http=house.http, checks=checks(), slots=connections, seconds=plan.lengths.check_s)


def _floor(plan: Run, size: int) -> None:
    with _echo(size) as url:
        for connections in CONNECTIONS:
            load = Load(http=url, checks=checks(), slots=connections, seconds=min(2, plan.lengths.check_s))
            _keep(plan, "the client's floor", run(load), load)


@contextmanager
def _echo(size: int) -> Iterator[str]:
    command = [sys.executable, "-m", "bench.check_floor", str(size)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        if not process.stdout or not (line := process.stdout.readline()):
            raise BenchError("the client's floor cannot be measured: its server did not start")
        yield json.loads(line)["http"]
    finally:
        if process.stdin:
            process.stdin.close()
        end(process)


def _cell(plan: Run, house: Tollbook, name: str, load: Load, *, each: int = 1) -> None:
    """`each`: so many checks are in one request."""
    cpu = process_tree.cpu_s(house.pid)
    result = run(load)
    used = process_tree.cpu_between(cpu, process_tree.cpu_s(house.pid))
    checks = each * max(1, result.tally.acknowledged)
    cpu_us = {name: 1e6 * used[name] / checks for name in ("front", "ledger")}
    _keep(plan, name, replace(result, requests_per_s=each * result.requests_per_s), load, cpu_us=cpu_us)


def _keep(
    plan: Run,
    name: str,
    result: Result,
    load: Load,
    *,
    cpu_us: Mapping[str, float] = MappingProxyType({}),
    received: float | None = None,
) -> None:
    if result.tally.refused or result.tally.unanswered:
        raise BenchError(
            f"{result.tally.refused + result.tally.unanswered} checks were not answered with 200"
        )
    pace = f"{load.rate:,.0f}/s" if load.rate else "full speed"
    plan.keep(
        PART,
        {"budgets": name, "connections": str(load.slots), "pace": pace},
        {
            "checks/s": result.requests_per_s,
            "p50 ms": result.p50_ms,
            "p99 ms": result.p99_ms,
            "max ms": result.max_ms,
            "front CPU us/check": cpu_us.get("front"),
            "ledger CPU us/check": cpu_us.get("ledger"),
            "client CPU": result.busy,
            "spans/s received": received,
        },
    )


def _while_receiving(plan: Run) -> None:
    """The same with telemetry coming in at half of what can be sustained."""
    spans_per_s = half_sustained(plan)
    for rate in (None, PACED_PER_S):
        with Tollbook(plan.folder) as house:
            define(house, FEW)
            load = replace(_load(plan, house, CONNECTIONS[-1]), rate=rate)
            with _receiving(house, spans_per_s, seconds=load.seconds + EXTRA_INGEST_S) as came:
                result = run(load)
            _keep(plan, f"{FEW} budgets, receiving", result, load, received=came[0].spans_per_s)


@contextmanager
def _receiving(house: Tollbook, spans_per_s: float, *, seconds: float) -> Iterator[list[Any]]:
    """Telemetry at a steady rate; its result is in the list afterwards."""
    came: list[Result] = []
    load = Load(http=house.http, spans=(SPANS,), seconds=seconds, rate=spans_per_s / SPANS)
    running = Running(load)
    running.begin()
    yield came
    came.append(running.result())
    house.settle(came[0].tally.offset)
    verify(house, came[0])
