"""Peers, each installed into an environment of its own and started as its users would.

rotel is a collector written in Rust; with its blackhole exporter it parses and batches what it acknowledges,
and stores nothing. Phoenix stores spans in SQLite. LiteLLM carries live calls. A peer that does not install
or start is `PeerMissing`, with the reason: the report names it.
"""

# ruff: noqa: S310, S603  # the commands and addresses are our own

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from importlib.metadata import distributions
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from bench.server import end

INSTALL_S: Final = 900
START_S: Final = 60
ROTEL_FLUSH_S: Final = 1.0
"""Longer than its batches wait (200 ms), so that their work is counted."""
STILL_S: Final = 5.0
STORE_S: Final = 90.0


class PeerMissing(Exception):
    """The peer cannot be measured here; the message says why."""


def free_port() -> int:
    """A port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def environment(folder: Path, package: str, *, wanted: str | None = None) -> Path:
    """The environment that holds a package (`wanted`: with its extras and its version), made if missing;
    PeerMissing when it does not install.
    """
    wanted = wanted or package
    home = folder / wanted
    if (home / "installed").exists():
        return home
    steps = (
        [sys.executable, "-m", "venv", "--clear", str(home)],
        [str(home / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", wanted],
    )
    for step in steps:
        try:
            done = subprocess.run(step, capture_output=True, text=True, timeout=INSTALL_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise PeerMissing(f"{package} did not install within {INSTALL_S} s") from error
        if done.returncode:
            raise PeerMissing(f"{package} does not install: {_last_line(done.stderr)}")
    (home / "installed").touch()
    return home


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1][:200]


def _site_packages(home: Path) -> Path:
    return next((home / "lib").glob("python*/site-packages"))


def installed_version(home: Path, package: str) -> str:
    """The version of a package in its environment."""
    found = distributions(name=package, path=[str(_site_packages(home))])
    return next((each.version for each in found), "unknown")


class Process:
    """A peer's process, its log, and how it is ended."""

    def __init__(self, command: list[str], *, environ: dict[str, str] | None = None) -> None:
        self._name = Path(command[0]).name
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # it lives as long as the process
        self._process = subprocess.Popen(
            command, stdout=self._log, stderr=self._log, env={**os.environ, **(environ or {})}
        )
        self.pid = self._process.pid

    def wait_listening(self, port: int) -> None:
        """Until something listens; PeerMissing if it ends first."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.1)
        self.end()
        raise PeerMissing(f"{self._name} does not start: {self._said()}")

    def _said(self) -> str:
        self._log.seek(0)
        return _last_line(self._log.read().decode(errors="replace"))

    def end(self) -> None:
        """End the process."""
        end(self._process, grace_s=5)


class Rotel:
    """`rotel start --exporter blackhole`."""

    name = "rotel"

    def __init__(self, folder: Path) -> None:
        home = environment(folder, "rotel")
        agent = _site_packages(home) / "rotel" / "rotel-agent"
        if not agent.exists():
            raise PeerMissing("rotel's package for this platform has no program in it")
        self.version = installed_version(home, "rotel")
        http, grpc = free_port(), free_port()
        self.http, self.grpc = f"http://127.0.0.1:{http}", f"127.0.0.1:{grpc}"
        places = ["--otlp-http-endpoint", f"127.0.0.1:{http}", "--otlp-grpc-endpoint", self.grpc]
        files = ["--pid-file", str(home / "rotel.pid"), "--log-file", str(home / "rotel.log")]
        self._process = Process([str(agent), "start", "--exporter", "blackhole", *places, *files])
        self.pid = self._process.pid
        self._process.wait_listening(http)

    def settle(self, offset: int) -> None:
        """Let the last batch go."""
        del offset
        time.sleep(ROTEL_FLUSH_S)

    def calls(self) -> None:
        """It stores nothing."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.end()


class Phoenix:
    """`phoenix serve` with SQLite in a directory of its own."""

    name = "phoenix"

    def __init__(self, folder: Path) -> None:
        home = environment(folder, "arize-phoenix")
        self.version = installed_version(home, "arize-phoenix")
        self._data = tempfile.TemporaryDirectory(dir=folder)
        port = free_port()
        self.http, self.grpc = f"http://127.0.0.1:{port}", f"127.0.0.1:{free_port()}"
        environ = {
            "PHOENIX_WORKING_DIR": self._data.name,
            "PHOENIX_HOST": "127.0.0.1",
            "PHOENIX_PORT": str(port),
            "PHOENIX_GRPC_PORT": self.grpc.rpartition(":")[2],
            "PHOENIX_TELEMETRY_ENABLED": "false",
        }
        self._process = Process([str(home / "bin" / "phoenix"), "serve"], environ=environ)
        self.pid = self._process.pid
        self._process.wait_listening(port)
        self._wait_answering()

    def _wait_answering(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.http}/healthz", timeout=5):
                    return
            except urllib.error.HTTPError:
                return
            except OSError:
                time.sleep(0.2)
        self._process.end()
        raise PeerMissing("arize-phoenix starts but does not answer")

    def spans(self) -> int:
        """Spans stored so far."""
        with sqlite3.connect(f"file:{self._data.name}/phoenix.db?mode=ro", uri=True, timeout=10) as database:
            return int(database.execute("SELECT count(*) FROM spans").fetchone()[0])

    def wait_stored(self, spans: int) -> int:
        """Spans stored once all are, once none came for a while, or when patience ends."""
        stored, deadline, came = self.spans(), time.monotonic() + STORE_S, time.monotonic()
        while stored < spans and time.monotonic() < min(deadline, came + STILL_S):
            time.sleep(0.2)
            if (now := self.spans()) > stored:
                stored, came = now, time.monotonic()
        return stored

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.end()
        self._data.cleanup()


class LiteLLM:
    """`litellm --config`, one worker, one model: the model server that tollbook talks to as well.

    A release before the compromised 1.107.0, which its index has taken back; whichever installs.
    """

    name = "litellm"
    wanted: Final = "litellm[proxy]<1.107"

    def __init__(self, folder: Path, model_url: str) -> None:
        home = environment(folder, "litellm", wanted=self.wanted)
        self.version = installed_version(home, "litellm")
        self._config = tempfile.NamedTemporaryFile("w", suffix=".yaml", dir=folder)  # noqa: SIM115
        model = {"model": "openai/gpt-5", "api_base": f"{model_url}/v1", "api_key": "sk-bench"}
        served = {"model_name": "gpt-5", "litellm_params": model}
        keyless = {"dangerously_permit_weak_or_unset_master_key": True}
        json.dump({"model_list": [served], "general_settings": keyless}, self._config)
        self._config.flush()
        port = free_port()
        self.http = f"http://127.0.0.1:{port}"
        command = [str(home / "bin" / "litellm"), "--config", self._config.name, "--num_workers", "1"]
        environ = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        where = ["--host", "127.0.0.1", "--port", str(port)]
        self._process = Process([*command, *where, "--telemetry", "False"], environ=environ)
        self.pid = self._process.pid
        self._process.wait_listening(port)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.end()
        self._config.close()
