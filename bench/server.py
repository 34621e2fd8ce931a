"""The servers that are measured: a real `tollbook serve` with a fresh data directory, and what any has."""

# ruff: noqa: S310, S603  # the commands and addresses are our own

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPConnection
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self
from urllib.parse import urlsplit

from bench import process_tree

READY_S: Final = 60
DRAIN_S: Final = 300
POLL_S: Final = 0.05


class BenchError(Exception):
    """A measurement that cannot be trusted: records lost, a server that does not answer."""


class Server(Protocol):
    """Something that takes OTLP at `http` and `grpc`, as the process `pid` and its children."""

    name: str
    http: str
    grpc: str
    pid: int

    def settle(self, offset: int) -> None:
        """Return when everything acknowledged so far has been dealt with."""

    def calls(self) -> int | None:
        """Model calls that it has stored; None where it stores nothing."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Tollbook:
    """`tollbook serve` on free ports, in a data directory (holding `files`) that is removed at the end."""

    name = "tollbook"

    def __init__(self, folder: Path, *, files: Mapping[str, str] | None = None) -> None:
        self.data_dir = Path(tempfile.mkdtemp(prefix="data-", dir=folder))
        (self.data_dir / "house").mkdir()
        for name, text in (files or {}).items():
            (self.data_dir / "house" / name).write_text(text)
        self._log = (self.data_dir / "serve.log").open("wb")
        command = [sys.executable, "-m", "tollbook.cli", "serve", "--data-dir", str(self.data_dir / "house")]
        self._process = subprocess.Popen(
            [*command, "--http-port", "0", "--grpc-port", "0", "--log-level", "warning"],
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        self.pid = self._process.pid
        self.http, self.grpc = self._places()
        self._connection = HTTPConnection(urlsplit(self.http).netloc, timeout=60)
        self._wait_ready()

    def _places(self) -> tuple[str, str]:
        if not self._process.stdout or not (line := self._process.stdout.readline()):
            raise BenchError(f"tollbook did not start:\n{self.log()}")
        places = json.loads(line)
        return places["http"], places["grpc"]

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.http}/readyz", timeout=5):
                    return
            except urllib.error.URLError:
                time.sleep(POLL_S)
        raise BenchError(f"tollbook was not ready after {READY_S} s:\n{self.log()}")

    def log(self) -> str:
        """The end of what it has logged."""
        return (self.data_dir / "serve.log").read_text(errors="replace")[-4000:]

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """A JSON answer over one connection that stays open."""
        content = None if body is None else json.dumps(body).encode()
        self._connection.request(method, path, content, {"content-type": "application/json"})
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status >= 300:
            raise BenchError(f"{method} {path}: {answer.status} {text[:500].decode(errors='replace')}")
        return json.loads(text)

    def health(self) -> dict[str, Any]:
        """Journal offsets: acknowledged, committed, published."""
        health: dict[str, Any] = self.ask("GET", "/healthz")
        return health

    def backlog_bytes(self) -> int:
        """Acknowledged but not yet in the ledger."""
        health = self.health()
        return int(health["acknowledged"] - health["committed"])

    def wait_for(self, stage: str, offset: int) -> float:
        """Until `committed` or `published` has come to `offset`; the monotonic moment."""
        deadline = time.monotonic() + DRAIN_S
        while time.monotonic() < deadline:
            if self.health()[stage] >= offset:
                return time.monotonic()
            time.sleep(POLL_S)
        raise BenchError(f"not {stage} after {DRAIN_S} s: {self.health()}\n{self.log()}")

    def settle(self, offset: int) -> None:
        """Return when everything up to `offset` is published."""
        self.wait_for("published", offset)

    def calls(self) -> int:
        """Calls in the published file, counted with SQL."""
        return int(self.ask("POST", "/api/v1/sql", {"query": "SELECT count(*) FROM calls"})["rows"][0][0])

    def process_of(self, part: str) -> int:
        """The process id of one part of the house."""
        return next(pid for pid in process_tree.pids(self.pid) if process_tree.part(pid) == part)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        end(self._process)
        self._log.close()
        if error is None:
            shutil.rmtree(self.data_dir)


def end(process: subprocess.Popen[bytes], grace_s: float = 30) -> None:
    """Ask a process to end, and end it if it does not."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout:
        process.stdout.close()


def cache_folder() -> Path:
    """Where peers are installed and data directories are made: `$XDG_CACHE_HOME/tollbook-bench`."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "tollbook-bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
