"""kill -9 of the front, the ledger and the readers, under load: all acknowledged is there, once.

`make soak` runs many more rounds than the tests do (SOAK_KILL_ROUNDS).
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
import urllib.error
from collections import Counter
from http.client import HTTPException
from pathlib import Path

import grpc
import pytest

from tests.house import House
from tests.telemetry import Call, export, new_call, span_of

ROUNDS = int(os.environ.get("SOAK_KILL_ROUNDS", "25"))
SENDERS = 3
_EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


class Sender(threading.Thread):
    """An exporter that sends each request until it is acknowledged, as exporters do."""

    def __init__(self, house: House, *, seed: int, over_grpc: bool) -> None:
        super().__init__()
        self._house = house
        self._rng = random.Random(seed)
        self._over_grpc = over_grpc
        self.stopping = threading.Event()
        self.acknowledged: list[Call] = []
        self.bodies: list[bytes] = []

    def run(self) -> None:
        while not self.stopping.is_set():
            calls = [new_call(self._rng) for _ in range(self._rng.randint(1, 40))]
            body = export([span_of(call, self._rng) for call in calls])
            self._deliver(body)
            self.acknowledged += calls
            self.bodies.append(body)

    def _deliver(self, body: bytes) -> None:
        for _ in range(3000):
            try:
                return self._send(body)
            except (urllib.error.URLError, HTTPException, ConnectionError, TimeoutError, grpc.RpcError):
                time.sleep(0.02)
        raise AssertionError("a request was never acknowledged")

    def _send(self, body: bytes) -> None:
        if not self._over_grpc:
            self._house.send("traces", body)
            return
        with grpc.insecure_channel(self._house.grpc) as channel:
            channel.unary_unary(_EXPORT)(body, timeout=10)


def _kill_something(house: House, rng: random.Random) -> str:
    victim = rng.choices(["front", "ledger", "reader"], weights=[5, 4, 1])[0]
    if victim == "front":
        house.kill()
        house.restart()
        return victim
    module = {"ledger": "tollbook.ledger_process", "reader": "tollbook.reader"}[victim]
    for pid in house.children(module):
        os.kill(pid, signal.SIGKILL)
    return victim


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_or_counted_twice(tmp_path: Path) -> None:
    rng = random.Random(20261122)
    kills: Counter[str] = Counter()
    with House(tmp_path / "data") as house:
        house.wait_ready()
        senders = [Sender(house, seed=n, over_grpc=n == 0) for n in range(SENDERS)]
        for sender in senders:
            sender.start()
        for _ in range(ROUNDS):
            time.sleep(rng.uniform(0.05, 1.2))
            kills[_kill_something(house, rng)] += 1
        for sender in senders:
            sender.stopping.set()
        for sender in senders:
            sender.join()
        house.wait_ready()
        house.wait_published()
        calls = [call for sender in senders for call in sender.acknowledged]
        print(f"\n{len(calls):,} acknowledged calls, killed: {dict(kills)}")
        _hold_against_truth(house, calls)
        before = _ledger(house)
        for body in (body for sender in senders for body in sender.bodies):
            house.send("traces", body)
        house.wait_published()
        assert _ledger(house) == before, "redelivery changed the ledger"


def _hold_against_truth(house: House, calls: list[Call]) -> None:
    told = {row[0]: row[1:] for row in house.published(_BY_RESPONSE)}
    for call in calls:
        count, input_tokens, cache_read, output, cost = told[call.response_id]
        assert count == 1, f"{call.response_id} is there {count} times"
        told_tokens = (input_tokens, cache_read, output)
        assert told_tokens == (call.input_tokens, call.cache_read_tokens, call.output_tokens)
        assert cost == call.list_cost_usd
    assert len(told) == len(calls)
    [[total]] = house.published("SELECT sum(list_cost_usd) FROM calls")
    assert total == sum(call.list_cost_usd for call in calls)
    for table, start in (("usage_hourly", "hour"), ("usage_daily", "day")):
        [[difference]] = house.published(_RECOMPUTED.format(table=table, start=start))
        assert difference == 0, f"{table} differs from a recomputation in {difference} rows"


_BY_RESPONSE = """
SELECT response_id, count(*), sum(input_tokens), sum(cache_read_tokens), sum(output_tokens),
       sum(list_cost_usd)
FROM calls GROUP BY response_id
"""
_RECOMPUTED = """
WITH told AS (
  SELECT {start}::TIMESTAMPTZ AS t, team, agent, provider, model, access, cost_status, emitter,
         calls::HUGEINT AS calls, input_tokens, output_tokens, list_cost_usd, billed_cost_usd
  FROM {table}
), fresh AS (
  SELECT date_trunc('{start}', started_at)::TIMESTAMPTZ AS t, team, agent, provider, model, access,
         cost_status, emitter, count(*)::HUGEINT AS calls,
         sum(input_tokens) AS input_tokens, sum(output_tokens) AS output_tokens,
         sum(list_cost_usd) AS list_cost_usd, sum(billed_cost_usd) AS billed_cost_usd
  FROM calls GROUP BY ALL
)
SELECT count(*) FROM ((FROM told EXCEPT ALL FROM fresh) UNION ALL (FROM fresh EXCEPT ALL FROM told))
"""


def _ledger(house: House) -> list[object]:
    [row] = house.published(
        "SELECT count(*), sum(revision), sum(input_tokens), sum(list_cost_usd), "
        "bit_xor(hash(call_id, input_tokens, list_cost_usd, observation_count)) FROM calls"
    )
    return [row, *house.published("SELECT count(*) FROM call_revisions")]
