"""The import directions that ARCHITECTURE.md draws."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "ingest": {"ingest"},
    "catalog": {"catalog"},
    "billing": {"billing", "ingest", "catalog"},
    "proxy": {"proxy", "billing", "ingest", "catalog"},
    "tollbook": {"tollbook", "proxy", "billing", "ingest", "catalog"},
}
HEAVY = ("polars", "duckdb", "pyarrow", "numpy", "genai_prices")


@pytest.mark.parametrize("floor", MAY_IMPORT)
def test_a_floor_imports_only_what_it_stands_on(floor: str) -> None:
    files = list((ROOT / floor).rglob("*.py"))
    assert files
    for file in files:
        reached = {name for name in _imported(file) if name in MAY_IMPORT}
        assert reached <= MAY_IMPORT[floor], f"{file.relative_to(ROOT)} imports {reached - MAY_IMPORT[floor]}"


def _imported(file: Path) -> set[str]:
    """The top-level packages that a file imports; a relative import is of its own."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_the_front_loads_none_of_what_computes() -> None:
    code = f"import sys, tollbook.serve; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert _output(code) == "[]"


def test_help_loads_none_of_the_heavy_libraries() -> None:
    code = (
        "import sys\nfrom tollbook.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        f"print([m for m in {(*HEAVY, 'fastapi', 'grpc', 'uvicorn', 'pydantic')!r} if m in sys.modules])"
    )
    assert _output(code).splitlines()[-1] == "[]"


def _output(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.strip()
