"""Memory of the whole process tree: idle, and the peak under load, as PSS."""

from __future__ import annotations

import time
from typing import Final

from bench import process_tree
from bench.otlp_load import run
from bench.plan import Figures, Run
from bench.receive import SIZES, load_for, verify
from bench.server import Tollbook

PART: Final = "memory, PSS in MiB"


def measure(plan: Run) -> None:
    """Once it has come to rest, then during a burst of the largest requests until all is published."""
    plan.say(f"memory: idle for {plan.lengths.idle_s:.0f} s, then a burst")
    with Tollbook(plan.folder) as house:
        time.sleep(plan.lengths.idle_s)
        plan.keep(PART, {"state": "idle"}, _figures(process_tree.pss_mib(house.pid)))
        with process_tree.MemoryWatch(house.pid) as memory:
            result = run(load_for(house, "http", SIZES[-1], seconds=plan.lengths.burst_s))
            house.settle(result.tally.offset)
        verify(house, result)
        plan.keep(PART, {"state": "burst, highest"}, _figures(memory.peak.parts_mib))
        time.sleep(plan.lengths.idle_s)
        plan.keep(PART, {"state": "idle again"}, _figures(process_tree.pss_mib(house.pid)))


def _figures(parts: process_tree.Parts) -> Figures:
    return {"all": sum(parts.values()), **{name: parts.get(name) for name in ("front", "ledger", "readers")}}
