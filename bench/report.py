"""The report of a run: Markdown for people, JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, Final

from bench import aims, receive
from bench.plan import Cell, Figures, Run, shown

NOTES: Final = {
    receive.PART: "Closed loop, 16 requests under way over HTTP, 32 over gRPC (4 connections), not packed."
    " Half of the spans are model calls. CPU is that of the whole process tree until everything is published;"
    " rotel stores nothing. Medians of the rounds. Every acknowledged call was found in the ledger, once.",
    receive.SUSTAINED: "Requests are held back whenever more than 24 MiB wait for the ledger.",
    "ledger, draining a backlog": "The backlog was acknowledged while the ledger was held; then released.",
    "visible to SQL": "From the acknowledgement until the published file holds the record.",
    "budget check": "At full speed every connection asks again when answered. The client's floor is the same"
    " client against a server that answers fixed bytes.",
    "memory, PSS in MiB": "Sum over the process tree; shared pages count once.",
    "journal, durable appends": "Ours is called in process, Redis over a socket.",
}


def as_json(run: Run, machine: Mapping[str, str], *, command: str, commit: str) -> str:
    """Everything, for machines."""
    cells = [{"part": cell.part, **cell.labels, **cell.figures} for cell in run.cells]
    reached = [{"text": text, **figures} for text, figures in aims.compared(run)]
    whole: dict[str, Any] = {"command": command, "commit": commit, "date": _now(), "machine": dict(machine)}
    whole |= {"versions": run.versions, "missing": run.missing, "aims": reached, "cells": cells}
    return json.dumps(whole, indent=1)


def as_markdown(run: Run, machine: Mapping[str, str], *, command: str, commit: str) -> str:
    """The page."""
    parts = [
        "# Benchmarks",
        f"Written by `{command}` on {_now()}, commit {commit}. Every figure is against a real `tollbook"
        " serve` in a process of its own, ledger on, fresh data directory, loopback; load comes from another"
        " process on the same machine.",
        _listed(machine),
        _listed(run.versions),
        "## Aims",
        _table({"aim": text} | _renamed(figures) for text, figures in aims.compared(run)),
        *_sections(run.cells),
        *_missing(run.missing),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _renamed(figures: Figures) -> Figures:
    return {"bound" if name == "aim" else name: figure for name, figure in figures.items()}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _listed(facts: Mapping[str, str]) -> str:
    return "; ".join(f"{name} {fact}" for name, fact in facts.items())


def _sections(cells: list[Cell]) -> Iterable[str]:
    ordered = sorted(
        cells, key=lambda cell: list(dict.fromkeys(each.part for each in cells)).index(cell.part)
    )
    for part, group in groupby(ordered, key=lambda cell: cell.part):
        yield f"## {part[0].upper()}{part[1:]}"
        yield NOTES.get(part, "")
        yield _table(_with_ratios(list(group)))


def _with_ratios(cells: list[Cell]) -> Iterable[Figures]:
    """A row for each cell; after a peer's, the ratio of ours to it."""
    ours: Cell | None = None
    for cell in cells:
        yield {**cell.labels, **cell.figures}
        system = cell.labels.get("system")
        if system in ("tollbook", "journal"):
            ours = cell
        elif system and ours and len(cells) > 1:
            yield {**cell.labels, "system": f"ours / {system.partition(',')[0]}", **_ratios(ours, cell)}


def _ratios(ours: Cell, theirs: Cell) -> Figures:
    ratios: Figures = {}
    for name in ours.figures:
        mine, other = ours.number(name), theirs.number(name)
        ratio = mine / other if mine is not None and other else None
        ratios[name] = None if ratio is None or name in _NOT_COMPARED else f"{ratio:.2f}x"
    return ratios


_NOT_COMPARED: Final = {"refused", "drain s", "generator CPU", "of it front"}


def _missing(missing: Mapping[str, str]) -> list[str]:
    lines = [f"- {name}: {reason}" for name, reason in missing.items()]
    return ["## Not measured", "\n".join(lines)] if lines else []


def _table(rows: Iterable[Mapping[str, str | int | float | None]]) -> str:
    """A Markdown table, padded so that it reads well as text too."""
    listed = list(rows)
    names = list(dict.fromkeys(name for row in listed for name in row))
    lines = [names] + [[shown(row.get(name)) for name in names] for row in listed]
    widths = [max(len(line[column]) for line in lines) for column in range(len(names))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([text[0], rule, *text[1:]])
