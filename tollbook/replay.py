"""`tollbook replay`: send recorded telemetry again as its emitter sent it, over real HTTP and gRPC.

A recording is a folder of `NNN.bin` bodies, byte for byte as sent, described by the `requests` of an
`expected.json` beside or above it: file, signal, transport, path, content type and encoding. Nothing is
decoded here; what a server does with the bytes is its business.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tollbook.errors import TollbookError

DESCRIPTION = "expected.json"
OFFSET_HEADER = "tollbook-offset"
TIMEOUT_S = 60.0
ATTEMPTS = 10
LONGEST_PAUSE_S = 5.0
SERVICES = {"traces": "trace", "logs": "logs", "metrics": "metrics"}
OK = 200
TRY_AGAIN = {429, 503}


class ReplayError(TollbookError):
    """A recording that cannot be read, or a request that was not accepted."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """One recorded request."""

    file: Path
    signal: str
    transport: str
    path: str
    content_type: str
    content_encoding: str | None


@dataclass(slots=True)
class Replayed:
    """What was sent: requests, bytes, and the journal offset after which all of it is acknowledged."""

    requests: int = 0
    sent_bytes: int = 0
    offset: int = 0


def replay(
    paths: Iterable[Path], *, http: str, grpc_target: str | None = None, quiet: bool = False
) -> Replayed:
    """Send everything recorded under `paths`. ReplayError at the first request that is not accepted."""
    recorded = [request for path in paths for request in find_requests(Path(path))]
    if not recorded:
        raise ReplayError("nothing is recorded there: give a folder of captures, or .bin files of one")
    done = Replayed()
    with Sender(http, grpc_target) as sender, _progress(len(recorded), quiet=quiet) as advance:
        for request in recorded:
            body = request.file.read_bytes()
            done.offset = max(done.offset, sender.send(request, body))
            done.requests += 1
            done.sent_bytes += len(body)
            advance(request.file.parent.name)
    return done


# --- what is recorded ------------------------------------------------------------------------------------


def find_requests(path: Path) -> list[Recorded]:
    """The recorded requests of a file, of a capture's folder, or of a folder of captures, in order."""
    if path.is_file():
        return [request for request in _capture(path.parent) if request.file.name == path.name]
    if not path.is_dir():
        raise ReplayError(f"{path}: there is no such file or folder")
    if any(path.glob("*.bin")):
        return _capture(path)
    folders = sorted(folder for folder in path.iterdir() if any(folder.glob("*.bin")))
    return [request for folder in folders for request in _capture(folder)]


def _capture(folder: Path) -> list[Recorded]:
    described = _description(folder)
    try:
        return [_recorded(folder, entry) for entry in described]
    except (KeyError, TypeError):
        raise ReplayError(f"{folder}: its description lacks file, signal or transport") from None


def _recorded(folder: Path, entry: dict[str, Any]) -> Recorded:
    return Recorded(
        file=folder / entry["file"],
        signal=entry["signal"],
        transport=entry["transport"],
        path=entry.get("path") or f"/v1/{entry['signal']}",
        content_type=entry.get("content_type") or "application/x-protobuf",
        content_encoding=entry.get("content_encoding"),
    )


def _description(folder: Path) -> list[dict[str, Any]]:
    own, above = folder / DESCRIPTION, folder.parent / DESCRIPTION
    if own.is_file():
        return list(_json(own).get("requests", []))
    if above.is_file():
        return list(_json(above).get(folder.name, {}).get("requests", []))
    raise ReplayError(f"{folder}: there is no {DESCRIPTION} that describes its requests")


def _json(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ReplayError(f"{path}: cannot be read as JSON") from None
    return told if isinstance(told, dict) else {}


# --- sending ---------------------------------------------------------------------------------------------


class Sender:
    """Connections to one server, opened when the first request needs them."""

    def __init__(self, http_url: str, grpc_target: str | None) -> None:
        self._address = urllib.parse.urlsplit(http_url)
        self._grpc_target = grpc_target
        self._connection: http.client.HTTPConnection | None = None
        self._channel: Any = None

    def __enter__(self) -> Sender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection:
            self._connection.close()
        if self._channel:
            self._channel.close()

    def send(self, request: Recorded, body: bytes) -> int:
        """Send one request and return the journal offset it was acknowledged with (0 if none was told)."""
        send = self._over_grpc if request.transport == "grpc" else self._over_http
        for attempt in range(ATTEMPTS):
            offset, pause_s = send(request, body)
            if pause_s is None:
                return offset
            time.sleep(min(pause_s * (attempt + 1), LONGEST_PAUSE_S))
        raise ReplayError(f"{request.file}: the server is overloaded")

    def _over_http(self, request: Recorded, body: bytes) -> tuple[int, float | None]:
        headers = {"content-type": request.content_type}
        if request.content_encoding:
            headers["content-encoding"] = request.content_encoding
        try:
            connection = self._http()
            connection.request("POST", request.path, body, headers)
            answer = connection.getresponse()
            answer.read()
        except OSError:
            raise ReplayError(f"no tollbook answers at {self._address.geturl()}") from None
        if answer.status in TRY_AGAIN:
            return 0, float(answer.headers.get("retry-after", 1))
        if answer.status != OK:
            raise ReplayError(f"{request.file}: the server answered {answer.status}")
        return int(answer.headers.get(OFFSET_HEADER, 0)), None

    def _http(self) -> http.client.HTTPConnection:
        if self._connection is None:
            host, port = self._address.hostname or "127.0.0.1", self._address.port or 4318
            self._connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
        return self._connection

    def _over_grpc(self, request: Recorded, body: bytes) -> tuple[int, float | None]:
        import grpc  # noqa: PLC0415  # heavy, and most recordings need only HTTP

        name = SERVICES[request.signal]
        method = f"/opentelemetry.proto.collector.{name}.v1.{name.capitalize()}Service/Export"
        try:
            _, call = self._grpc(grpc).unary_unary(method).with_call(body, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED:
                return 0, 1.0
            raise ReplayError(f"{request.file}: the server answered {error.code().name}") from None
        return int(dict(call.trailing_metadata()).get(OFFSET_HEADER, 0)), None

    def _grpc(self, grpc: Any) -> Any:
        if self._grpc_target is None:
            raise ReplayError("part of it was sent over gRPC: give --grpc HOST:PORT")
        if self._channel is None:
            unlimited = [("grpc.max_send_message_length", -1)]
            self._channel = grpc.insecure_channel(self._grpc_target, options=unlimited)
        return self._channel


@contextlib.contextmanager
def _progress(total: int, *, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A bar on stderr that names the capture being sent."""
    if quiet:
        yield lambda _name: None
        return
    from rich.console import Console  # noqa: PLC0415  # only for people
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn  # noqa: PLC0415

    columns = (TextColumn("sending"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=total)
        yield lambda name: progress.update(task, advance=1, description=name)
