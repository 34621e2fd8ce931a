"""kill -9 of the server and of clients, with thousands of reservations open: no limit is ever passed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from decimal import Decimal
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from billing.reservation import call_id_of
from tests.house import House
from tests.reserve_client import TTL_S

Fact = dict[str, Any]
CLIENTS = 8
KILLS = int(os.environ.get("SOAK_RESERVATION_KILLS", "2"))
LIMITS = {"cost": Decimal(1), "tokens": Decimal(200_000)}


class Watcher(threading.Thread):
    """Asks where the budgets stand, all the time."""

    def __init__(self, house: House) -> None:
        super().__init__(daemon=True)
        self._house = house
        self.stopping = threading.Event()
        self.seen = 0
        self.most_reserved = Decimal(0)
        self.most_spent = dict.fromkeys(LIMITS, Decimal(0))
        self.faults: list[Any] = []

    def run(self) -> None:
        while not self.stopping.is_set():
            try:
                budgets = self._house.get("/api/v1/budgets")["budgets"]
            except (OSError, HTTPException, ValueError):
                time.sleep(0.02)
                continue
            for each in budgets:
                if each["spent"] is not None:
                    self._hold(each)
            time.sleep(0.01)

    def _hold(self, budget: Any) -> None:
        self.seen += 1
        self.most_reserved = max(self.most_reserved, Decimal(budget["reserved"]))
        self.most_spent[budget["id"]] = max(self.most_spent[budget["id"]], Decimal(budget["spent"]))
        if Decimal(budget["reserved"]) < 0:
            self.faults.append(budget)


def _start(house: House, log: Path, seed: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.reserve_client", house.http, str(log), seed]
    return subprocess.Popen(command, stdin=subprocess.PIPE)


def _kill(client: subprocess.Popen[bytes]) -> None:
    client.kill()
    client.wait()
    if client.stdin is not None:
        client.stdin.close()


@dataclass(slots=True)
class Told:
    """What all clients were told, and what they tried: reservation -> fact."""

    held: dict[str, Fact] = field(default_factory=dict)
    tried: dict[str, Fact] = field(default_factory=dict)
    settled: dict[str, Fact] = field(default_factory=dict)
    released: dict[str, Fact] = field(default_factory=dict)

    @classmethod
    def of(cls, logs: list[Path]) -> Told:
        told = cls()
        for log in logs:
            for line in log.read_text().splitlines():
                fact = json.loads(line)
                kind = next(iter(fact))
                getattr(told, kind)[fact[kind]] = fact
        return told

    def late(self) -> set[str]:
        """What may have been settled after it had expired, while no server ran: that counts as spend, whether
        it fits or not.
        """
        return {name for name, told in self.settled.items() if told["at"] > self.held[name]["until"]}

    def most_certain(self, unit: str) -> Decimal:
        """The most that was promised or spent at any moment, as the clients know it: what a client held, from
        its promise to the moment it tried to end it or it expired, and what it was told is settled in time.
        """
        late = self.late()
        moves: list[tuple[float, Decimal]] = []
        for name, held in self.held.items():
            ends = [each[name]["at"] for each in (self.tried, self.released) if name in each]
            amount = Decimal(held[unit])
            moves += [(held["at"], amount), (min([held["until"], *ends]), -amount)]
        in_time = self.settled.keys() - late
        moves += [(self.tried[name]["at"], Decimal(self.tried[name][unit])) for name in in_time]
        total = most = Decimal(0)
        for _, change in sorted(moves):
            total += change
            most = max(most, total)
        return most


def _define(house: House) -> None:
    house.post("/api/v1/budgets", {"id": "cost", "limit": str(LIMITS["cost"]), "period": "total"})
    tokens = {"id": "tokens", "meter": "tokens", "limit": str(LIMITS["tokens"]), "period": "total"}
    house.post("/api/v1/budgets", tokens)


def _standing(house: House) -> dict[str, tuple[Decimal, Decimal]]:
    budgets = house.get("/api/v1/budgets")["budgets"]
    return {each["id"]: (Decimal(each["spent"]), Decimal(each["reserved"])) for each in budgets}


def _soak(house: House, folder: Path) -> tuple[list[Path], Watcher]:
    rng = random.Random(7)
    logs = [folder / f"client-{n}.log" for n in range(CLIENTS)]
    clients = [_start(house, log, f"c{n}") for n, log in enumerate(logs)]
    watcher = Watcher(house)
    watcher.start()
    for kill in range(KILLS):
        time.sleep(rng.uniform(1.0, 2.5))
        victim = rng.randrange(CLIENTS)
        _kill(clients[victim])
        if kill % 3 == 2:
            for pid in house.children("tollbook.ledger_process"):
                os.kill(pid, signal.SIGKILL)
        house.kill()
        house.restart()
        house.wait_ready()
        clients[victim] = _start(house, logs[victim], f"c{victim}-{kill}")
    house.wait_ready()
    for client in clients:
        assert client.stdin is not None
        client.stdin.close()
    for client in clients:
        assert client.wait(timeout=60) == 0, "a client was told something that contradicts itself"
    watcher.stopping.set()
    watcher.join()
    return logs, watcher


@pytest.mark.slow
def test_no_limit_is_passed_whatever_is_killed(tmp_path: Path) -> None:
    with House(tmp_path / "data") as house:
        house.wait_ready()
        _define(house)
        logs, watcher = _soak(house, tmp_path)
        assert not watcher.faults
        time.sleep(TTL_S + 1)
        house.wait_published()
        told = Told.of(logs)
        _hold_against_ledger(house, told.tried, told.settled.keys())
        standing = _standing(house)
        most = {name: told.most_certain(unit) for name, unit in (("cost", "usd"), ("tokens", "tokens"))}
        print(
            f"\n{len(told.held):,} reservations promised, {len(told.settled):,} settlements acknowledged, "
            f"{len(told.late()):,} of them late, {watcher.seen:,} looks; promised and spent at most "
            f"{most['cost']} of {LIMITS['cost']} USD and "
            f"{most['tokens']:,} of {LIMITS['tokens']:,} tokens; spent in the end {standing['cost'][0]} USD "
            f"and {standing['tokens'][0]:,} tokens"
        )
        for name, unit in (("cost", "usd"), ("tokens", "tokens")):
            late = sum((Decimal(told.tried[each][unit]) for each in told.late()), Decimal(0))
            assert most[name] <= LIMITS[name]
            assert watcher.most_spent[name] - late <= LIMITS[name]
            assert standing[name][0] - late <= LIMITS[name]
        _hold_promises(house, standing)


def _hold_against_ledger(house: House, tried: dict[str, Fact], settled: Collection[str]) -> None:
    told = {
        row[0]: row[1:] for row in house.published("SELECT call_id, billed_cost_usd, input_tokens FROM calls")
    }
    by_call = {call_id_of(each): fact for each, fact in tried.items()}
    assert {call_id_of(each) for each in settled} <= told.keys(), "an acknowledged settlement is missing"
    assert told.keys() <= by_call.keys()
    for call, (cost, tokens) in told.items():
        assert (cost, tokens) == (Decimal(by_call[call]["usd"]), by_call[call]["tokens"])
    spent = sum((cost for cost, _ in told.values()), Decimal(0))
    tokens = sum(each for _, each in told.values())
    assert _standing(house) == {"cost": (spent, 0), "tokens": (tokens, 0)}


def _hold_promises(house: House, before: dict[str, tuple[Decimal, Decimal]]) -> None:
    """What was promised just before a kill -9 is held after it, and settles."""
    spent = before["cost"][0]
    unit = (LIMITS["cost"] - spent) / 40
    amount = str(unit.quantize(Decimal("1e-12"), rounding="ROUND_FLOOR"))
    check = {"estimate": {"usd": amount}, "reserve": True, "ttl_s": 3600}
    replies = [house.post("/api/v1/budgets/check", {**check, "idempotency_key": f"p{n}"}) for n in range(40)]
    assert all(each["decision"] == "allow" for each in replies)
    house.kill()
    house.restart()
    house.wait_ready()
    assert _standing(house)["cost"] == (spent, 40 * Decimal(amount))
    assert house.post("/api/v1/budgets/check", {**check, "idempotency_key": "q"})["decision"] == "deny"
    again = [house.post("/api/v1/budgets/check", {**check, "idempotency_key": f"p{n}"}) for n in range(40)]
    assert [each["reservation_id"] for each in again] == [each["reservation_id"] for each in replies]
    for each in replies:
        house.post(f"/api/v1/reservations/{each['reservation_id']}/settle", {"usd": amount})
    house.wait_published()
    assert _standing(house)["cost"] == (spent + 40 * Decimal(amount), 0)
