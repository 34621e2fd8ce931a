"""What a server's whole process tree uses, from /proc: CPU time with reaped children, memory as PSS.

PSS counts a page that n processes share as 1/n in each, so that the sum over a tree is what the tree needs.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PARTS: Final = {b"tollbook.ledger_process": "ledger", b"tollbook.reader": "readers"}
SAMPLING_S: Final = 0.25

Parts = dict[str, float]
"""Part of the tree -> figure: `ledger`, `readers`, and `front` for the process itself and anything else."""


def pids(root: int) -> list[int]:
    """The process and all its descendants that live now."""
    found, at = [root], 0
    while at < len(found):
        found += _children(found[at])
        at += 1
    return found


def _children(pid: int) -> list[int]:
    children: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        children += [int(child) for child in _read(path).split()]
    return children


def _read(path: Path) -> bytes:
    """The file's content; nothing if its process has ended meanwhile."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def part(pid: int) -> str:
    """Which part of the house a process is."""
    command = _read(Path(f"/proc/{pid}/cmdline"))
    return next((name for module, name in _PARTS.items() if module in command), "front")


def cpu_s(root: int) -> Parts:
    """User and system seconds used so far, by part; children that have ended count with their parent."""
    used: Parts = {}
    for pid in pids(root):
        fields = _read(Path(f"/proc/{pid}/stat")).rpartition(b")")[2].split()
        ticks = sum(int(ticks) for ticks in fields[11:15])
        used[part(pid)] = used.get(part(pid), 0.0) + ticks / _TICKS_PER_S
    return used


def cpu_between(before: Parts, after: Parts) -> Parts:
    """What was used between two readings of `cpu_s`."""
    return {name: seconds - before.get(name, 0.0) for name, seconds in after.items()}


def pss_mib(root: int) -> Parts:
    """Memory held now in MiB, by part."""
    held: Parts = {}
    for pid in pids(root):
        held[part(pid)] = held.get(part(pid), 0.0) + _pss_kib(pid) / 1024
    return held


def _pss_kib(pid: int) -> int:
    for line in _read(Path(f"/proc/{pid}/smaps_rollup")).splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1])
    return 0


@dataclass(frozen=True, slots=True)
class Peak:
    """The highest memory seen, in MiB: of the whole tree at one moment, and that moment by part."""

    total_mib: float
    parts_mib: Parts


class MemoryWatch:
    """Samples a tree's memory in a thread while the `with` block runs; `peak` is right afterwards."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak = Peak(0.0, {})

    def _watch(self) -> None:
        while True:
            self._sample()
            if self._ended.wait(SAMPLING_S):
                return

    def _sample(self) -> None:
        held = pss_mib(self._root)
        if (total := sum(held.values())) > self.peak.total_mib:
            self.peak = Peak(total, held)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
