"""What we aim at, and whether this run reached it. An aim that was not measured says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bench import budget, journal, ledger, memory, proxy, receive, visibility
from bench.peers import LiteLLM
from bench.plan import Cell, Figures, Run, shown


@dataclass(frozen=True, slots=True)
class Aim:
    """`measured` finds the figure in a run, None when it was not measured; `bound` is its limit."""

    text: str
    measured: Callable[[Run], float | None]
    bound: float
    at_most: bool = False


def _burst(run: Run, system: str, transport: str, spans: int) -> Cell | None:
    labels = {"system": system, "transport": transport, "spans/request": str(spans)}
    return run.find(receive.PART, **labels)


def _number(cell: Cell | None, name: str) -> float | None:
    return cell.number(name) if cell else None


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def _to_rotel(name: str, transport: str, spans: int) -> Callable[[Run], float | None]:
    return lambda run: _ratio(
        _number(_burst(run, "tollbook", transport, spans), name),
        _number(_burst(run, "rotel", transport, spans), name),
    )


def _requests(transport: str) -> Callable[[Run], float | None]:
    return lambda run: _number(_burst(run, "tollbook", transport, 1), "requests/s")


def _to_redis(run: Run) -> float | None:
    labels = {"bytes": str(journal.SIZES[0]), "clients": str(journal.CLIENTS[-1])}
    ours = run.find(journal.PART, system="journal", **labels)
    theirs = run.find(journal.PART, system="redis, AOF always", **labels)
    return _ratio(_number(ours, "appends/s"), _number(theirs, "appends/s"))


def _to_phoenix(run: Run) -> float | None:
    theirs = run.find(receive.STORING_PEER, system="phoenix")
    return _ratio(
        _number(theirs, "CPU us/span"), _number(_burst(run, "tollbook", "http", 100), "CPU us/span")
    )


def _check(*, receiving: bool, paced: bool) -> Callable[[Run], float | None]:
    name = f"{budget.FEW} budgets" + (", receiving" if receiving else "")
    return lambda run: _asked(run, name, "p99 ms", paced=paced)


def _asked(run: Run, name: str, figure: str, *, paced: bool = False) -> float | None:
    """A figure of the checks at most connections."""
    pace = f"{budget.PACED_PER_S:,.0f}/s" if paced else "full speed"
    connections = str(budget.CONNECTIONS[-1])
    return _number(run.find(budget.PART, budgets=name, connections=connections, pace=pace), figure)


def _reserved(run: Run) -> float | None:
    return _asked(run, f"{budget.FEW} budgets, {budget.RESERVED}", "checks/s")


def _many_to_few(run: Run) -> float | None:
    many, few = (_asked(run, f"{n} budgets", "front CPU us/check") for n in (budget.MANY, budget.FEW))
    return _ratio(many, few)


def _visible(load: str) -> Callable[[Run], float | None]:
    return lambda run: _number(run.find(visibility.PART, load=load), "p99 s")


def _added(figure: str, connections: str) -> Callable[[Run], float | None]:
    return lambda run: _number(
        run.find(proxy.PART, connections=connections, pace=f"{proxy.PACED_PER_S:.0f}/s"), figure
    )


def _to_litellm(run: Run) -> float | None:
    connections, name = str(proxy.FULL_SPEED_CONNECTIONS), "streams per CPU-second"
    ours, theirs = (
        _number(run.find(proxy.PART, connections=connections, pace=pace), name)
        for pace in ("full speed", f"full speed, {LiteLLM.name}")
    )
    return _ratio(ours, theirs)


def _memory(state: str) -> Callable[[Run], float | None]:
    return lambda run: _number(run.find(memory.PART, state=state), "all")


AIMS: Final = (
    Aim("512-span bursts over HTTP, spans/s to rotel's", _to_rotel("spans/s", "http", 512), 1),
    Aim("512-span bursts over gRPC, spans/s to rotel's", _to_rotel("spans/s", "grpc", 512), 1),
    Aim("1-span requests/s over HTTP", _requests("http"), 10_000),
    Aim("1-span requests/s over gRPC", _requests("grpc"), 3_000),
    Aim(
        "CPU per span, 100 spans over HTTP, to rotel's",
        _to_rotel("CPU us/span", "http", 100),
        3,
        at_most=True,
    ),
    Aim(
        "CPU per span, 512 spans over HTTP, to rotel's",
        _to_rotel("CPU us/span", "http", 512),
        3,
        at_most=True,
    ),
    Aim("CPU per span of Phoenix to ours", _to_phoenix, 1_000),
    Aim("durable appends/s to Redis with AOF always", _to_redis, 2),
    Aim(
        "calls/s into the ledger",
        lambda run: _number(run.find(ledger.PART), "calls/s until committed"),
        30_000,
    ),
    Aim("visible to SQL, light load, p99 s", _visible("10 requests/s of 1-20 spans"), 2, at_most=True),
    Aim(
        "visible to SQL, half the sustained rate, p99 s", _visible("half the sustained rate"), 2, at_most=True
    ),
    Aim(
        "budget check, 64 connections, 2,000/s, p99 ms", _check(receiving=False, paced=True), 2, at_most=True
    ),
    Aim("the same at full speed, p99 ms", _check(receiving=False, paced=False), 2, at_most=True),
    Aim("check and durable reservation, 64 connections, per second", _reserved, 10_000),
    Aim(f"CPU of a check, {budget.MANY:,} budgets / {budget.FEW}", _many_to_few, 1.1, at_most=True),
    Aim("budget check while receiving, 2,000/s, p99 ms", _check(receiving=True, paced=True), 5, at_most=True),
    Aim("the same at full speed, p99 ms", _check(receiving=True, paced=False), 5, at_most=True),
    Aim("live calls, added p50 ms at 1 connection", _added("added p50 ms", "1"), 0.5, at_most=True),
    Aim("live calls, added p99 ms at 64 connections, 100/s", _added("added p99 ms", "64"), 2, at_most=True),
    Aim("live calls, streams per CPU-second to LiteLLM's", _to_litellm, 100),
    Aim("memory idle, MiB", _memory("idle"), 300, at_most=True),
    Aim("memory at its highest, MiB", _memory("burst, highest"), 1024, at_most=True),
)


def compared(run: Run) -> list[tuple[str, Figures]]:
    """Every aim with what was measured."""
    return [(aim.text, _against(aim, aim.measured(run))) for aim in AIMS]


def _against(aim: Aim, measured: float | None) -> Figures:
    sign = "<=" if aim.at_most else ">="
    reached = None if measured is None else measured <= aim.bound if aim.at_most else measured >= aim.bound
    verdict = "not measured" if reached is None else "yes" if reached else "no"
    return {"aim": f"{sign} {shown(aim.bound)}", "measured": measured, "reached": verdict}
