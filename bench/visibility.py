"""How long after its acknowledgement a record can be asked for with SQL.

The journal offset of every acknowledgement is kept with its moment; beside the load, the published offset is
asked for every few milliseconds. A record is visible when the published offset has passed its own.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Sequence
from typing import Final

from bench.otlp_load import Result, Running, percentile_ms
from bench.plan import Run
from bench.receive import half_sustained, verify
from bench.server import DRAIN_S, BenchError, Tollbook
from bench.traffic import Load

PART: Final = "visible to SQL"
ASK_EVERY_S: Final = 0.01
LIGHT_RATE: Final = 10
LIGHT_SIZES: Final = tuple(range(1, 21))
SPANS: Final = 100

Sighting = tuple[float, int]
"""(monotonic seconds, published offset)."""


def measure(plan: Run) -> None:
    """At light load, and at half of what can be sustained."""
    seconds = plan.lengths.visibility_s
    light = Load(spans=LIGHT_SIZES, slots=4, seconds=seconds, rate=LIGHT_RATE, trace=True)
    _measure(plan, "10 requests/s of 1-20 spans", light)
    rate = half_sustained(plan)
    half = Load(spans=(SPANS,), slots=16, seconds=seconds, rate=rate / SPANS, trace=True)
    _measure(plan, "half the sustained rate", half)


def _measure(plan: Run, name: str, load: Load) -> None:
    plan.say(f"visibility: {name}, {load.seconds:.0f} s")
    with Tollbook(plan.folder) as house:
        load.http = house.http
        running = Running(load)
        running.begin()
        sightings, result = _watch(house, running)
        verify(house, result)
    delays = sorted(_delays(result.tally.acks, sightings))
    plan.keep(
        PART,
        {"load": name},
        {
            "spans/s": result.spans_per_s,
            "acknowledgements": len(delays),
            "p50 s": _seconds(delays, 0.50),
            "p99 s": _seconds(delays, 0.99),
            "max s": _seconds(delays, 1.0),
        },
    )


def _watch(house: Tollbook, running: Running) -> tuple[list[Sighting], Result]:
    """Note the published offset until it has passed everything that was acknowledged."""
    sightings: list[Sighting] = []
    result: Result | None = None
    deadline = time.monotonic() + running.load.seconds + DRAIN_S
    while not result or sightings[-1][1] < result.tally.offset:
        published = int(house.health()["published"])
        if not sightings or published > sightings[-1][1]:
            sightings.append((time.monotonic(), published))
        if not result and not running.sending:
            result = running.result()
        if time.monotonic() > deadline:
            raise BenchError(f"not published: {house.health()}\n{house.log()}")
        time.sleep(ASK_EVERY_S)
    return sightings, result


def _delays(acks: Sequence[tuple[float, int]], sightings: Sequence[Sighting]) -> list[float]:
    """Seconds from each acknowledgement to the first sighting of its offset."""
    offsets = [offset for _, offset in sightings]
    seen = (sightings[bisect.bisect_left(offsets, offset)][0] for _, offset in acks)
    return [max(0.0, moment - acked) for moment, (acked, _) in zip(seen, acks, strict=True)]


def _seconds(ordered_s: list[float], share: float) -> float | None:
    found = percentile_ms(ordered_s, share)
    return None if found is None else found / 1000
