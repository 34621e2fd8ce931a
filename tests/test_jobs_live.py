"""`tollbook reprice` and `reprocess` against a real server: prices edited meanwhile, the ledger killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.error
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.house import House
from tests.telemetry import export, new_call, span_of

OVERLAY = """
[[price]]
price_list = "openai"
ids = ["{ids}"]
source = "https://example.com/contract"
checked = 2026-11-22
[[price.row]]
input = "{input}"
output = "7"
cache_read = "1"
"""


class Live:
    """A running server with an operator's price file, and what was sent to it."""

    def __init__(self, folder: Path) -> None:
        self.prices = folder / "prices.toml"
        self.prices.write_text("# nothing of our own yet\n")
        config = folder / "tollbook.toml"
        config.write_text(f'[catalog]\noverlay = "{self.prices}"\n')
        self.house = House(folder / "data", "--config", str(config))

    def fill(self, calls: int) -> None:
        rng = random.Random(7)
        for _ in range(4):
            self.house.send("traces", export([span_of(new_call(rng), rng) for _ in range(calls // 4)]))
        self.house.wait_published()

    def run(self, *arguments: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "tollbook.cli", *arguments, "--url", self.house.http, "--json"],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr + done.stdout
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    def kill_ledger(self) -> None:
        for pid in self.house.children("tollbook.ledger_process"):
            os.kill(pid, signal.SIGKILL)

    def sums(self) -> dict[str, Decimal]:
        """The same sum told in four ways."""
        sums = {
            table: Decimal(self.house.sql(f"SELECT sum(billed_cost_usd) FROM {table}")[0][0])
            for table in ("calls", "usage_hourly", "usage_daily")
        }
        return {**sums, "budget": Decimal(self.house.get("/api/v1/budgets/all")["spent"])}


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    made = Live(tmp_path)
    with made.house:
        made.house.wait_ready(180)
        made.house.post(
            "/api/v1/budgets", {"id": "all", "meter": "billed_usd", "limit": "9", "period": "total"}
        )
        yield made


def test_prices_edited_while_it_runs_are_charged_when_asked(live: Live) -> None:
    live.fill(400)
    before = live.sums()
    assert len(set(before.values())) == 1
    [[model]] = live.house.sql("SELECT DISTINCT split_part(served_model, '/', 2) FROM calls")
    live.prices.write_text(OVERLAY.format(ids=model, input="5"))
    shown = live.run("reprice", "--from", "2020-01-01", "--dry-run")
    assert shown["changed"] == 400
    assert live.sums() == before
    live.house.post("/api/v1/jobs", {"kind": "reprice", "from": "2020-01-01"})
    time.sleep(0.3)
    live.kill_ledger()
    done = live.run("reprice", "--from", "2020-01-01")
    assert (done["status"], done["changed"]) == ("done", 0), "the job before it had done it all"
    jobs = live.house.get("/api/v1/jobs")["jobs"]
    [other] = [job for job in jobs if job["changed"] and not job["dry_run"]]
    assert (other["status"], other["changed"], other["totals"]) == ("done", 400, shown["totals"])
    after = live.sums()
    assert set(after.values()) == {Decimal(shown["totals"]["billed_cost_usd_after"])}
    assert live.house.sql("SELECT count(*), max(revision) FROM calls") == [[400, 2]]
    _says_why(live, other)
    quoted = {"provider": "openai", "model": model, "at": "2026-11-20T00:00:00Z", "usage": {"input": 1000}}
    [price] = live.house.post("/api/v1/catalog/price", {"items": [quoted]})["items"]
    assert Decimal(price["list_cost_usd"]) == Decimal("0.005"), "estimates follow the same prices"
    assert live.run("reprocess")["changed"] == 0


def _says_why(live: Live, job: dict[str, Any]) -> None:
    [[call_id]] = live.house.sql("SELECT call_id FROM calls LIMIT 1")
    [revision] = live.house.get(f"/api/v1/calls/{call_id}")["revisions"]
    assert revision["job"]["job_id"] == job["job_id"]
    assert revision["job"]["kind"] == "reprice"
    assert revision["job"]["requested_at"].startswith("20")
    assert "price row" in revision["reason"]


SENSELESS = (
    {"kind": "reprice"},
    {"kind": "reprice", "from": "2026-01-02", "to": "2026-01-01"},
    {"kind": "forget", "from": "2026-01-02"},
    {"kind": "reprocess", "from": "yesterday"},
)


def test_a_price_file_that_is_wrong_fails_the_job_with_its_line(live: Live) -> None:
    for body in SENSELESS:
        with pytest.raises(urllib.error.HTTPError) as refused:
            live.house.post("/api/v1/jobs", body)
        assert refused.value.code == 400
        refused.value.close()
    live.fill(4)
    live.prices.write_text(OVERLAY.format(ids="gpt-4o-mini", input="-5"))
    done = subprocess.run(
        [sys.executable, "-m", "tollbook.cli", "reprice", "--from", "2020-01-01", "--url", live.house.http],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    assert "prices.toml:8" in done.stdout
    assert live.house.get("/readyz")["ready"]
