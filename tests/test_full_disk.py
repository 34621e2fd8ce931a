"""A disk that fills up under load: the house stays up, and loses nothing that it acknowledged."""

from __future__ import annotations

import os
import random
import subprocess
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house import House
from tests.telemetry import Call, export, new_call, span_of

DISK_BYTES = 120 << 20
LEFT_BYTES = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, small enough to fill."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk takes root")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


@pytest.mark.slow
def test_a_full_disk_loses_nothing_acknowledged(small_disk: Path) -> None:
    rng, acknowledged = random.Random(3), []
    with House(small_disk / "data") as house:
        house.wait_ready()
        acknowledged += _send(house, rng, requests=5)
        ballast = small_disk / "ballast"
        free = os.statvfs(small_disk)
        ballast.write_bytes(bytes(free.f_bavail * free.f_frsize - LEFT_BYTES))
        acknowledged += _send(house, rng, requests=25)
        assert house.get("/healthz")["status"] in {"ok", "degraded"}, "the front answers all the while"
        ballast.unlink()
        acknowledged += _send(house, rng, requests=5)
        house.wait_published()
        told = dict(house.published("SELECT response_id, count(*) FROM calls GROUP BY ALL"))
        assert told == dict.fromkeys((call.response_id for call in acknowledged), 1)


def _send(house: House, rng: random.Random, *, requests: int) -> list[Call]:
    """What was acknowledged; a refusal must say that it may be sent again."""
    taken = []
    for _ in range(requests):
        calls = [new_call(rng) for _ in range(200)]
        try:
            house.send("traces", export([span_of(call, rng) for call in calls]))
            taken += calls
        except urllib.error.HTTPError as refusal:
            assert refusal.code in {429, 503}
            assert refusal.headers["retry-after"]
        time.sleep(0.1)
    return taken
