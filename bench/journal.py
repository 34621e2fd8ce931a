"""The journal alone: durable appends a second, beside Redis with its append-only file synced at every write.

Redis answers over a socket and ours is called in process, so the comparison flatters us by one hop: it bounds
what the disk allows, no more. Left out, and said, where Redis is not installed.
"""

# ruff: noqa: S603  # the commands are our own

from __future__ import annotations

import asyncio
import csv
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

import uvloop

from bench.otlp_load import percentile_ms
from bench.peers import PeerMissing, Process, free_port
from bench.plan import Figures, Run, middle
from ingest.journal import Journal, Kind

PART: Final = "journal, durable appends"
SIZES: Final = (7_000, 67_000)
"""About 10 and 100 spans."""
CLIENTS: Final = (1, 64, 256)
MAX_BYTES: Final = 400_000_000


def measure(plan: Run) -> None:
    """Ours and Redis in turn, for every size and number of clients."""
    for size in SIZES:
        for clients in CLIENTS:
            number = min(plan.lengths.appends, MAX_BYTES // size) // (8 if clients == 1 else 1)
            ours, theirs = list[Figures](), list[Figures]()
            for _ in range(plan.lengths.rounds):
                with tempfile.TemporaryDirectory(dir=plan.folder) as folder:
                    ours.append(uvloop.run(_append(Path(folder), size, clients=clients, number=number)))
                if figures := _redis(plan, size, clients=clients, number=number):
                    theirs.append(figures)
            for system, rounds in (("journal", ours), ("redis, AOF always", theirs)):
                if rounds:
                    labels = {"system": system, "bytes": str(size), "clients": str(clients)}
                    plan.keep(PART, labels, middle(rounds))


async def _append(folder: Path, size: int, *, clients: int, number: int) -> Figures:
    journal = Journal.open(folder / "journal")
    journal.on_durable = journal.release
    body, latencies = os.urandom(size), list[float]()

    async def client() -> None:
        for _ in range(number // clients):
            began = time.perf_counter()
            await journal.append(Kind.TRACES_PROTO, body, received_at_ns=time.time_ns())
            latencies.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    seconds = time.perf_counter() - began
    await journal.close()
    latencies.sort()
    return {
        "appends/s": len(latencies) / seconds,
        "MB/s": len(latencies) * size / seconds / 1e6,
        "p50 ms": percentile_ms(latencies, 0.50),
        "p99 ms": percentile_ms(latencies, 0.99),
    }


def _redis(plan: Run, size: int, *, clients: int, number: int) -> Figures | None:
    if "redis" in plan.missing:
        return None
    server, benchmark = shutil.which("redis-server"), shutil.which("redis-benchmark")
    if not server or not benchmark:
        return _missing(plan, "redis-server or redis-benchmark is not installed")
    port = str(free_port())
    with tempfile.TemporaryDirectory(dir=plan.folder) as folder:
        options = ["--appendonly", "yes", "--appendfsync", "always", "--save", "", "--dir", folder]
        process = Process([server, "--port", port, "--bind", "127.0.0.1", *options])
        try:
            process.wait_listening(int(port))
            asked = ["-d", str(size), "-c", str(clients), "-n", str(number)]
            return _redis_figures([benchmark, "-p", port, "-t", "set", "-r", "1000", *asked, "--csv"], size)
        except PeerMissing as reason:
            return _missing(plan, str(reason))
        finally:
            process.end()


def _missing(plan: Run, reason: str) -> Figures | None:
    plan.missing["redis"] = reason
    plan.say(f"redis is missing: {reason}")
    return None


def _redis_figures(command: list[str], size: int) -> Figures:
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    row = next(row for row in csv.DictReader(done.stdout.splitlines()) if row["test"] == "SET")
    rate = float(row["rps"])
    return {
        "appends/s": rate,
        "MB/s": rate * size / 1e6,
        "p50 ms": float(row["p50_latency_ms"]),
        "p99 ms": float(row["p99_latency_ms"]),
    }
