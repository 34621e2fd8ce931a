"""The ledger alone: how fast a big backlog becomes calls in DuckDB and a published file.

The backlog is piled up while the ledger process is held (SIGSTOP), so that its time is not shared with
receiving; then it is let go.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Final

from bench import process_tree
from bench.otlp_load import run
from bench.plan import Run
from bench.receive import load_for, verify
from bench.server import BenchError, Tollbook

PART: Final = "ledger, draining a backlog"
SPANS: Final = 512
FILL_S: Final = 120


def measure(plan: Run) -> None:
    """Fill, let go, wait until committed and until published."""
    requests = plan.lengths.backlog_requests
    plan.say(f"ledger: {requests} requests of {SPANS} spans wait for it")
    with Tollbook(plan.folder) as house:
        ledger = house.process_of("ledger")
        load = load_for(house, "http", SPANS, seconds=FILL_S)
        load.requests = requests
        os.kill(ledger, signal.SIGSTOP)
        try:
            tally = (result := run(load)).tally
        finally:
            os.kill(ledger, signal.SIGCONT)
        if tally.acknowledged != requests:
            raise BenchError(f"{requests - tally.acknowledged} of {requests} requests were not acknowledged")
        began, cpu = time.monotonic(), process_tree.cpu_s(house.pid)
        with process_tree.MemoryWatch(house.pid) as memory:
            committed_s = house.wait_for("committed", tally.offset) - began
            used = process_tree.cpu_between(cpu, process_tree.cpu_s(house.pid))
            published_s = house.wait_for("published", tally.offset) - began
        whole = process_tree.cpu_between(cpu, process_tree.cpu_s(house.pid))
        verify(house, result)
    plan.keep(
        PART,
        {"spans/request": str(SPANS)},
        {
            "calls": tally.calls,
            "MB": tally.offset / 1e6,
            "calls/s until committed": tally.calls / committed_s,
            "calls/s until published": tally.calls / published_s,
            "committed after s": committed_s,
            "published after s": published_s,
            "ledger CPU us/span until committed": 1e6 * used["ledger"] / tally.spans,
            "ledger CPU us/span until published": 1e6 * whole["ledger"] / tally.spans,
            "ledger peak MiB": memory.peak.parts_mib.get("ledger"),
        },
    )
