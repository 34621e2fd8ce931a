"""The front's side of the readers: warm child processes, a queue before each, and a deadline that kills.

Two lanes, so that a stranger's SQL never holds up the API's own queries: `api` for our statements, `sql`
for users'. Each lane has one child and a bounded queue; the child of `sql` is started by the first statement,
for many houses never see one. A query that passes its deadline is answered with a
refusal, its child is killed and a new one started warm. Nothing here imports DuckDB: the front stays light.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson

from tollbook.problems import Problem

Form = Literal["json", "csv", "arrow"]
LaneName = Literal["api", "sql"]
Parameters = Sequence[Any] | Mapping[str, Any] | None

START_TIMEOUT_S = 60.0
KEPT_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
RESTART_PAUSE_S = (0.0, 0.1, 0.5, 2.0, 5.0)


@dataclass(frozen=True, slots=True)
class Answer:
    """A query's answer: the body in the asked format, its number of rows, and whether rows were left out."""

    body: bytes
    rows: int
    truncated: bool

    def records(self) -> list[dict[str, Any]]:
        """The rows of a JSON answer as dicts."""
        table = orjson.loads(self.body)
        return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


@dataclass(frozen=True, slots=True)
class ReaderLimits:
    """What a query may use; every number is a setting of `[sql]`."""

    timeout_s: float = 10.0
    max_rows: int = 10_000
    memory_bytes: int = 512 << 20
    max_reply_bytes: int = 64 << 20
    queue_length: int = 32


@dataclass(slots=True)
class ReaderCounts:
    """What the readers did, for /metrics."""

    queries: int = 0
    refused: int = 0
    killed: int = 0
    restarts: int = 0
    busy: int = 0


class Child:
    """One reader process and the socket to it."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.process = process
        self._reader = reader
        self._writer = writer

    @classmethod
    async def start(cls, database: Path, limits: ReaderLimits, *, isolate: bool) -> Child:
        """Start a reader and wait until it has loaded DuckDB."""
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                *_command(database, limits, theirs.fileno()),
                *(["--isolate"] if isolate else []),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                env=_environment(),
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        child = cls(process, *await asyncio.open_unix_connection(sock=ours))
        try:
            await asyncio.wait_for(child._receive(), START_TIMEOUT_S)
        except BaseException:
            await child.kill()
            raise
        return child

    async def ask(self, request: bytes) -> tuple[dict[str, Any], bytes]:
        """Send one request and return the answer's header and body; EOFError when the child dies."""
        self._writer.write(len(request).to_bytes(4, "big") + request)
        await self._writer.drain()
        return await self._receive()

    async def kill(self) -> None:
        """End the child at once, whatever it is doing, and collect it."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        await self.process.wait()

    async def _receive(self) -> tuple[dict[str, Any], bytes]:
        size = int.from_bytes(await self._reader.readexactly(4), "big")
        frame = await self._reader.readexactly(size)
        head = int.from_bytes(frame[:4], "big")
        return orjson.loads(frame[4 : 4 + head]), frame[4 + head :]


def _command(database: Path, limits: ReaderLimits, fd: int) -> list[str]:
    return [
        *(sys.executable, "-P", "-m", "tollbook.reader"),
        *("--fd", str(fd), "--parent", str(os.getpid()), "--database", str(database)),
        *("--memory-bytes", str(limits.memory_bytes), "--max-reply-bytes", str(limits.max_reply_bytes)),
    ]


def _environment() -> dict[str, str]:
    """Only what Python needs to find this package: a query must not find keys in the environment."""
    kept = {
        name: os.environ[name]
        for name in ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
        if name in os.environ
    }
    search_path = os.pathsep.join(entry for entry in sys.path if entry)
    return {**kept, "PYTHONPATH": search_path, "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/"}


@dataclass(slots=True)
class Lane:
    """One warm child, one query at a time, a bounded number waiting."""

    name: LaneName
    database: Path
    limits: ReaderLimits
    counts: ReaderCounts
    _child: Child | None = None
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _waiting: int = 0
    _failures: int = 0
    _warming: asyncio.Task[None] | None = None
    _closed: bool = False

    @property
    def alive(self) -> bool:
        return self._child is not None and self._child.process.returncode is None

    async def query(self, request: bytes, timeout_s: float) -> tuple[dict[str, Any], bytes]:
        """Run one request within `timeout_s` (and wait no longer than that for its turn)."""
        await self._take_turn(timeout_s)
        try:
            return await self._run(request, timeout_s)
        finally:
            self._lock.release()

    async def start(self) -> None:
        """Have a warm child ready."""
        async with self._lock:
            await self._warm_child()

    async def close(self) -> None:
        """End the lane and its child; queries that still wait are refused."""
        self._closed = True
        if self._child is not None:
            await self._child.kill()
        async with self._lock:  # whoever is starting a child now, or being told that it died, comes first
            if self._child is not None:
                await self._child.kill()
            self._child = None
        if self._warming is not None:
            await asyncio.gather(self._warming, return_exceptions=True)

    async def _take_turn(self, timeout_s: float) -> None:
        """Acquire the lane's lock; Problem `reader_busy` when the queue is full or the wait too long."""
        if self._closed or self._waiting >= self.limits.queue_length:
            self.counts.busy += 1
            raise Problem("reader_busy", "too many queries are waiting", retry_after_s=1)
        if not self._lock.locked():
            await self._lock.acquire()
            return
        self._waiting += 1
        try:
            await asyncio.wait_for(self._lock.acquire(), timeout_s)
        except TimeoutError:
            self.counts.busy += 1
            raise Problem(
                "reader_busy", "the queries before this one took too long", retry_after_s=1
            ) from None
        finally:
            self._waiting -= 1

    async def _run(self, request: bytes, timeout_s: float) -> tuple[dict[str, Any], bytes]:
        child = await self._warm_child()
        finished = False
        try:
            answer = await asyncio.wait_for(child.ask(request), timeout_s)
            finished = True
        except TimeoutError:
            self.counts.killed += 1
            raise Problem(
                "query_timeout", f"the query ran longer than {timeout_s:g} s and was ended"
            ) from None
        except (EOFError, OSError):
            raise Problem(
                "query_killed", "the query ended its reader, most likely by using too much memory"
            ) from None
        finally:
            if not finished:
                await self._replace(child)
        return answer

    async def _warm_child(self) -> Child:
        if self._closed:
            raise Problem("reader_busy", "tollbook is stopping", retry_after_s=5)
        if self._child is not None and self._child.process.returncode is None:
            return self._child
        if self._child is not None:
            await self._child.kill()
            self._child = None
        await asyncio.sleep(RESTART_PAUSE_S[min(self._failures, len(RESTART_PAUSE_S) - 1)])
        try:
            self._child = await Child.start(self.database, self.limits, isolate=self.name == "sql")
        except (EOFError, OSError, TimeoutError):
            self._failures += 1
            raise Problem(
                "reader_unavailable", "no reader process could be started", retry_after_s=5
            ) from None
        self._failures = 0
        return self._child

    async def _replace(self, child: Child) -> None:
        """Kill a child and start its successor without anyone having to wait for it now."""
        self._child = None
        self.counts.restarts += 1
        await asyncio.shield(child.kill())
        if not self._closed:
            self._warming = asyncio.create_task(self._warm_quietly())

    async def _warm_quietly(self) -> None:
        with contextlib.suppress(Problem):
            await self.start()


class ReaderPool:
    """The two lanes. `alive` is false while the child for the API's queries is missing."""

    def __init__(self, database: Path, limits: ReaderLimits | None = None) -> None:
        self.limits = limits or ReaderLimits()
        self.counts = ReaderCounts()
        self._lanes: dict[LaneName, Lane] = {
            name: Lane(name, database, limits=self.limits, counts=self.counts) for name in ("api", "sql")
        }

    @property
    def alive(self) -> bool:
        return self._lanes["api"].alive

    async def start(self) -> None:
        """Start the child for the API's queries; Problem `reader_unavailable` if it does not come up."""
        await self._lanes["api"].start()

    async def close(self) -> None:
        await asyncio.gather(*(lane.close() for lane in self._lanes.values()))

    async def query(  # one query's options, all but the statement by keyword
        self,
        sql: str,
        params: Parameters = None,
        *,
        lane: LaneName = "api",
        form: Form = "json",
        max_rows: int | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """Run one reading statement on the published file. Raises Problem, never a DuckDB error."""
        self.counts.queries += 1
        request = {
            "sql": sql,
            "params": params,
            "format": form,
            "max_rows": min(max_rows or self.limits.max_rows, self.limits.max_rows),
        }
        seconds = min(timeout_s or self.limits.timeout_s, self.limits.timeout_s)
        header, body = await self._lanes[lane].query(_encode(request), seconds)
        if not header["ok"]:
            self.counts.refused += 1
            raise Problem(header["code"], header["detail"])
        return Answer(body, header["rows"], truncated=header["truncated"])


def _encode(request: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(request)
    except TypeError:
        raise Problem("invalid_request", "a parameter is of a kind that JSON cannot hold") from None
