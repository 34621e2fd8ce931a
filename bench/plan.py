"""What one run of the benchmarks knows: how long each cell lasts, where files go, what came out so far."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

Figure = str | int | float | None
Figures = dict[str, Figure]


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement: the part of the report it belongs to, what was measured, and the figures by name."""

    part: str
    labels: dict[str, str]
    figures: Figures

    def number(self, name: str) -> float | None:
        """A figure as a number."""
        figure = self.figures.get(name)
        return float(figure) if isinstance(figure, int | float) else None


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long things are measured, in seconds and in numbers of requests."""

    rounds: int
    burst_s: float
    sustained_s: float
    settle_s: float
    visibility_s: float
    check_s: float
    idle_s: float
    backlog_requests: int
    appends: int


FULL = Lengths(
    rounds=3,
    burst_s=3,
    sustained_s=12,
    settle_s=4,
    visibility_s=15,
    check_s=3,
    idle_s=20,
    backlog_requests=800,
    appends=20_000,
)
QUICK = Lengths(
    rounds=1,
    burst_s=1.5,
    sustained_s=6,
    settle_s=2,
    visibility_s=6,
    check_s=2,
    idle_s=20,
    backlog_requests=200,
    appends=3_000,
)


@dataclass(slots=True)
class Run:
    """One run. `sustained_spans_per_s`: of 100-span requests over HTTP, once it is known.

    `missing`: peer or tool -> why it was not measured. `versions`: what was measured.
    """

    lengths: Lengths
    folder: Path
    phoenix: bool = False
    cells: list[Cell] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    sustained_spans_per_s: float | None = None
    began: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        """One line of progress on stderr."""
        minutes, seconds = divmod(int(time.monotonic() - self.began), 60)
        sys.stderr.write(f"[{minutes:2d}:{seconds:02d}] {text}\n")
        sys.stderr.flush()

    def keep(self, part: str, labels: dict[str, str], figures: Figures) -> Cell:
        """Keep a measurement, and say it."""
        cell = Cell(part, labels, figures)
        self.cells.append(cell)
        told = ", ".join(f"{name} {shown(figure)}" for name, figure in figures.items() if figure is not None)
        self.say(f"{part}: {' '.join(labels.values())}: {told}")
        return cell

    def find(self, part: str, **labels: str) -> Cell | None:
        """The measurement with these labels."""
        for cell in self.cells:
            if cell.part == part and labels.items() <= cell.labels.items():
                return cell
        return None


def middle(rounds: Sequence[Figures]) -> Figures:
    """The median of every figure over several rounds; None where a round has none."""
    names = list(rounds[0])
    return {name: _median([figures[name] for figures in rounds]) for name in names}


def _median(figures: list[Figure]) -> Figure:
    numbers = [figure for figure in figures if isinstance(figure, int | float)]
    return statistics.median(numbers) if len(numbers) == len(figures) else figures[0]


def shown(figure: Figure) -> str:
    """A figure with about three digits, as it stands in tables."""
    if figure is None:
        return "-"
    if isinstance(figure, str):
        return figure
    if figure >= 100 or figure == int(figure):
        return f"{figure:,.0f}"
    return f"{figure:.1f}" if figure >= 10 else f"{figure:.2f}" if figure >= 0.1 else f"{figure:.3f}"
