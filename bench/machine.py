"""The machine and the versions that a measurement belongs to."""

# ruff: noqa: S603  # the commands are our own

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Final

PACKAGES: Final = ("tollbook", "duckdb", "polars", "grpcio", "uvicorn", "uvloop", "protobuf")


def described(folder: Path) -> dict[str, str]:
    """Cores, CPU, memory, kernel, the file system of `folder`, how busy it is."""
    return {
        "cores": str(len(os.sched_getaffinity(0))),
        "CPU": _from("/proc/cpuinfo", "model name"),
        "memory": f"{int(_from('/proc/meminfo', 'MemTotal').split()[0]) / 1048576:.1f} GiB",
        "kernel": platform.release(),
        "file system": _file_system(folder),
        "load average before": f"{os.getloadavg()[0]:.2f}",
    }


def versions() -> dict[str, str]:
    """Python and the packages that matter for speed."""
    return {"Python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def commit() -> str:
    """The commit that is measured, `+` when files differ from it."""
    asked = [shutil.which("git") or "git", "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _from(path: str, key: str) -> str:
    lines = (line.partition(":") for line in Path(path).read_text().splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == key), "unknown")


def _file_system(folder: Path) -> str:
    """The type of the longest mount point that holds `folder`."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    holding = [(point, kind) for point, kind in mounts if folder.resolve().is_relative_to(point)]
    return max(holding, key=lambda each: len(each[0]))[1] if holding else "unknown"
