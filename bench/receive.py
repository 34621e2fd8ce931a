"""Receiving: spans acknowledged a second, in a burst and for good, beside a peer that stores nothing.

A burst is as much as is acknowledged in a few seconds; its CPU includes the work that was put off, until the
last record is published. Sustained is what is acknowledged while the backlog stays flat: requests are held
back whenever more than `FLAT_BYTES` wait for the ledger. After each, the calls in the ledger must be exactly
the calls acknowledged.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from bench import process_tree
from bench.otlp_load import Result, Running, run
from bench.peers import PeerMissing, Phoenix, Rotel
from bench.plan import Figures, Run, middle
from bench.server import BenchError, Server, Tollbook
from bench.traffic import Load

PART: Final = "receive, burst"
SUSTAINED: Final = "receive, sustained"
STORING_PEER: Final = "receive, a peer that stores"
SIZES: Final = (1, 100, 512)
TRANSPORTS: Final = ("http", "grpc")
SLOTS: Final = {"http": 16, "grpc": 32}
FLAT_BYTES: Final = 24 << 20
POLL_S: Final = 0.1
MEBIBYTE: Final = 1 << 20


def measure(plan: Run) -> None:
    """All bursts, ours and the peer's in turn, then what can be sustained."""
    for transport in TRANSPORTS:
        for spans in SIZES:
            _bursts(plan, transport, spans)
    for transport in TRANSPORTS:
        for spans in SIZES:
            sustain(plan, transport, spans)
    if plan.phoenix:
        _store_with_phoenix(plan)


def load_for(server: Server, transport: str, spans: int, *, seconds: float) -> Load:
    """As many requests as are answered."""
    http, grpc = (server.http, None) if transport == "http" else (None, server.grpc)
    return Load(http=http, grpc=grpc, spans=(spans,), slots=SLOTS[transport], seconds=seconds)


def _bursts(plan: Run, transport: str, spans: int) -> None:
    rounds: dict[str, list[Figures]] = {"tollbook": [], "rotel": []}
    for number in range(plan.lengths.rounds):
        plan.say(f"burst {transport} {spans}, round {number + 1} of {plan.lengths.rounds}")
        with Tollbook(plan.folder) as house:
            rounds["tollbook"].append(_burst(plan, house, transport, spans))
        if peer := _rotel(plan):
            with peer:
                rounds["rotel"].append(_burst(plan, peer, transport, spans))
    for system, figures in rounds.items():
        if figures:
            plan.keep(PART, _labels(system, transport, spans), middle(figures))


def _labels(system: str, transport: str, spans: int) -> dict[str, str]:
    return {"system": system, "transport": transport, "spans/request": str(spans)}


def _rotel(plan: Run) -> Rotel | None:
    if "rotel" in plan.missing:
        return None
    try:
        peer = Rotel(plan.folder)
    except PeerMissing as reason:
        plan.missing["rotel"] = str(reason)
        plan.say(f"rotel is missing: {reason}")
        return None
    plan.versions["rotel"] = peer.version
    return peer


def _burst(plan: Run, server: Server, transport: str, spans: int) -> Figures:
    running = Running(load_for(server, transport, spans, seconds=plan.lengths.burst_s))
    with process_tree.MemoryWatch(server.pid) as memory:
        cpu = process_tree.cpu_s(server.pid)
        running.begin()
        result = running.result()
        ended = time.monotonic()
        server.settle(result.tally.offset)
        drained_s = time.monotonic() - ended
        used = process_tree.cpu_between(cpu, process_tree.cpu_s(server.pid))
    verify(server, result)
    if not result.tally.spans:
        raise BenchError(f"{server.name} acknowledged nothing over {transport} with {spans} spans")
    return {
        "spans/s": result.spans_per_s,
        "requests/s": result.requests_per_s,
        "p50 ms": result.p50_ms,
        "p99 ms": result.p99_ms,
        "CPU us/span": 1e6 * sum(used.values()) / result.tally.spans,
        "of it front": 1e6 * used["front"] / result.tally.spans,
        "refused": result.tally.refused,
        "drain s": drained_s,
        "peak MiB": memory.peak.total_mib,
        "generator CPU": result.busy,
    }


def verify(server: Server, result: Result, *, before: int = 0) -> None:
    """Fail loudly unless exactly the acknowledged calls are in the ledger."""
    stored = server.calls()
    if stored is None:
        return
    tally = result.tally
    least, most = before + tally.calls, before + tally.calls + tally.unanswered_calls
    if not least <= stored <= most:
        raise BenchError(
            f"{server.name} acknowledged {least} calls and has {stored} in its ledger"
            f" ({tally.unanswered_calls} calls were not answered, {tally.refused} requests refused)"
        )


def hold_flat(house: Tollbook, running: Running, until: Callable[[], bool]) -> None:
    """Hold the load back whenever much waits for the ledger, so that the backlog stays flat."""
    while not until():
        running.gate.value = house.backlog_bytes() < FLAT_BYTES
        time.sleep(POLL_S)
    running.gate.value = True


def sustain(plan: Run, transport: str, spans: int) -> None:
    """What is acknowledged for good; the first seconds, while the backlog builds up, do not count."""
    lengths = plan.lengths
    plan.say(f"sustained {transport} {spans}, {lengths.sustained_s:.0f} s")
    with Tollbook(plan.folder) as house:
        seconds = lengths.settle_s + lengths.sustained_s + 1
        load = load_for(house, transport, spans, seconds=seconds)
        load.trace = True
        running = Running(load)
        running.begin()
        opens = time.monotonic() + lengths.settle_s
        closes = opens + lengths.sustained_s
        hold_flat(house, running, lambda: time.monotonic() >= opens)
        cpu, backlog = process_tree.cpu_s(house.pid), house.backlog_bytes()
        hold_flat(house, running, lambda: time.monotonic() >= closes)
        used = process_tree.cpu_between(cpu, process_tree.cpu_s(house.pid))
        backlog_after = house.backlog_bytes()
        result = running.result()
        house.settle(result.tally.offset)
        verify(house, result)
    requests = sum(opens <= moment < closes for moment, _ in result.tally.acks)
    rate = requests * spans / lengths.sustained_s
    if (transport, spans) == ("http", 100):
        plan.sustained_spans_per_s = rate
    plan.keep(
        SUSTAINED,
        _labels("tollbook", transport, spans),
        {
            "spans/s": rate,
            "requests/s": requests / lengths.sustained_s,
            "CPU us/span": 1e6 * sum(used.values()) / max(1, requests * spans),
            "of it front": 1e6 * used["front"] / max(1, requests * spans),
            "cores": sum(used.values()) / lengths.sustained_s,
            "backlog MiB at start": backlog / MEBIBYTE,
            "backlog MiB at end": backlog_after / MEBIBYTE,
            "refused": result.tally.refused,
        },
    )


def half_sustained(plan: Run) -> float:
    """Half of the spans a second that can be sustained over HTTP, measured first if need be."""
    if plan.sustained_spans_per_s is None:
        sustain(plan, "http", 100)
    return (plan.sustained_spans_per_s or 0) / 2


def _store_with_phoenix(plan: Run) -> None:
    plan.say("phoenix: installing if need be, then storing 100-span requests")
    try:
        peer = Phoenix(plan.folder)
    except PeerMissing as reason:
        plan.missing["arize-phoenix"] = str(reason)
        plan.say(f"arize-phoenix is missing: {reason}")
        return
    plan.versions["arize-phoenix"] = peer.version
    with peer:
        load = Load(http=peer.http, spans=(100,), slots=8, seconds=plan.lengths.burst_s, requests=30)
        cpu, began = process_tree.cpu_s(peer.pid), time.monotonic()
        result = run(load)
        stored = peer.wait_stored(result.tally.spans)
        seconds = time.monotonic() - began
        used = process_tree.cpu_between(cpu, process_tree.cpu_s(peer.pid))
    plan.keep(
        STORING_PEER,
        _labels("phoenix", "http", 100),
        {
            "spans acknowledged": result.tally.spans,
            "spans stored": stored,
            "stored spans/s": stored / seconds,
            "CPU us/span": 1e6 * sum(used.values()) / max(1, stored),
        },
    )
