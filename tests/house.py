"""A real tollbook in a process of its own, for tests: free ports, a data directory, a kill switch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import duckdb


class House:
    """`tollbook serve` on loopback. `http` and `grpc` are where it listens, the same after a restart."""

    def __init__(self, data_dir: Path, *arguments: str) -> None:
        self.data_dir = data_dir
        self._arguments = arguments
        self._log = (data_dir.parent / f"{data_dir.name}.log").open("ab")
        self.http = ""
        self.grpc = ""
        self.process = self._start("0", "0")

    def _start(self, http_port: str, grpc_port: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tollbook.cli", "serve", "--data-dir", str(self.data_dir)]
        command += ["--http-port", http_port, "--grpc-port", grpc_port, *self._arguments]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._log, env=os.environ | {"PYTHONDEVMODE": ""}
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"tollbook did not start; see {self._log.name}:\n{self.log()}"
        places = json.loads(line)
        self.http, self.grpc = places["http"], places["grpc"]
        return process

    def log(self) -> str:
        """What it has logged so far."""
        return Path(self._log.name).read_text(errors="replace")

    def kill(self) -> None:
        """kill -9 of the front alone; its children must end by themselves."""
        self.process.kill()
        self._reap()

    def _reap(self) -> None:
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()

    def restart(self) -> None:
        """Start again on the same ports and the same data."""
        self.process = self._start(self.http.rpartition(":")[2], self.grpc.rpartition(":")[2])

    def children(self, module: str) -> list[int]:
        """Process ids of the front's children that run a module."""
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in listed if module.encode() in _command_line(pid)]

    def get(self, path: str) -> Any:
        """A JSON answer of the API."""
        with urllib.request.urlopen(self.http + path, timeout=30) as answer:
            return json.load(answer)

    def post(self, path: str, body: Any) -> Any:
        """The JSON answer to a JSON request."""
        request = urllib.request.Request(
            self.http + path, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def send(self, signal_name: str, body: bytes) -> int:
        """Post one OTLP protobuf request; its journal offset."""
        request = urllib.request.Request(
            f"{self.http}/v1/{signal_name}", body, {"content-type": "application/x-protobuf"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.headers["tollbook-offset"])

    def sql(self, query: str) -> list[list[Any]]:
        """The rows of a query on the published file."""
        rows: list[list[Any]] = self.post("/api/v1/sql", {"query": query})["rows"]
        return rows

    def published(self, query: str) -> list[tuple[Any, ...]]:
        """The rows of a query on usage.duckdb itself, as any other program would open it."""
        with duckdb.connect(str(self.data_dir / "usage.duckdb"), read_only=True) as connection:
            return connection.execute(query).fetchall()

    def wait_ready(self, timeout_s: float = 60) -> None:
        """Until /readyz is 200."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                self.get("/readyz")
                return
            except OSError:
                time.sleep(0.05)
        raise AssertionError(f"not ready after {timeout_s} s:\n{self.log()[-4000:]}")

    def wait_published(self, timeout_s: float = 120) -> None:
        """Until everything acknowledged so far is in the published file."""
        deadline = time.monotonic() + timeout_s
        goal = None
        health: dict[str, int] = {}
        while time.monotonic() < deadline:
            try:
                health = self.get("/healthz")
            except OSError:
                time.sleep(0.05)
                continue
            goal = health["acknowledged"] if goal is None else goal
            if health["published"] >= goal:
                return
            time.sleep(0.02)
        raise AssertionError(f"not published after {timeout_s} s: {health}\n{self.log()[-4000:]}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self._reap()
        self._log.close()


def _command_line(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
