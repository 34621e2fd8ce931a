"""`python -m bench`: measure tollbook on this machine, beside peers, and write it down.

Every cell starts a real `tollbook serve` with its ledger and a fresh data directory, and fails loudly if an
acknowledged call is missing from the ledger afterwards. It takes a quarter of an hour; `--quick` five.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bench import budget, journal, ledger, machine, memory, proxy, receive, report, visibility
from bench.plan import FULL, QUICK, Run
from bench.server import BenchError, cache_folder

PAGE: Final = Path("docs/benchmarks.md")
PARTS: Final[dict[str, Callable[[Run], None]]] = {
    "receive": receive.measure,
    "ledger": ledger.measure,
    "visibility": visibility.measure,
    "budget": budget.measure,
    "proxy": proxy.measure,
    "memory": memory.measure,
    "journal": journal.measure,
}


def main() -> int:
    """Measure, print, write; 1 when a measurement cannot be trusted."""
    given = _arguments()
    folder = given.folder or cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(QUICK if given.quick else FULL, folder, phoenix=given.phoenix, versions=machine.versions())
    facts, commit = machine.described(folder), machine.commit()
    if facts["file system"] in ("tmpfs", "ramfs"):
        run.say(f"{folder} is in memory: nothing here says anything about a disk; see --folder")
    try:
        for name in given.only or PARTS:
            PARTS[name](run)
    except BenchError as error:
        sys.stderr.write(f"bench: {error}\n")
        return 1
    told = [arg for arg in sys.argv[1:] if arg not in ("--folder", str(given.folder))]
    command = shlex.join(["python", "-m", "bench", *told])  # the page names no place of this machine
    page = report.as_markdown(run, facts, command=command, commit=commit)
    as_json = report.as_json(run, facts, command=command, commit=commit)
    sys.stdout.write(as_json + "\n" if given.json else page)
    if not given.only:
        PAGE.write_text(page)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="short cells: for a look, not for a claim")
    parser.add_argument("--only", action="append", choices=PARTS, help=f"one part; {PAGE} is left alone")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the page")
    parser.add_argument("--phoenix", action="store_true", help="measure arize-phoenix too (a large install)")
    parser.add_argument("--folder", type=Path, help="where data and peers go: on the disk to be measured")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
