"""The front's side of the ledger: starts the process, keeps it running, and holds what it last told.

A ledger that dies is started again with a growing pause; acknowledging goes on meanwhile, within
the journal's backlog. Everything here runs on the front's event loop and computes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any

import orjson

from tollbook.channel import Message, pack

log = logging.getLogger("tollbook.front")

RESTART_PAUSE_S = (0.05, 0.2, 1.0, 3.0, 10.0)
LINE_LIMIT = 1 << 30
"""A snapshot of all budgets is one line."""
TELL_EVERY_S = 0.01
"""The ledger is told of what is durable this often at most; a group of requests takes less."""
ANSWER_TIMEOUT_S = 10.0
MAX_JOBS = 100
"""Jobs that the front knows; older ones are in the table `jobs`."""
STOP_TIMEOUT_S = 30.0
LEDGER_ENVIRONMENT = {"POLARS_MAX_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
"""A batch is small: other threads cost more than they save. Two heaps give back more than eight."""


class LedgerGone(Exception):
    """The ledger is being restarted; ask again."""


class LedgerLink:
    """What the front knows of its ledger.

    `committed` and `published` are journal positions; `running` is false from a ledger's death until the next
    one has said hello; `restarts`, `calls` and `repeated` count since the front started. `jobs` are the
    newest jobs over history by id; `refused` says why the ledger cannot be opened. `changed` is set at the
    ledger's next word, and is a new event after each.
    """

    def __init__(self, config: Message, *, on_state: Callable[[Message], None]) -> None:
        self.committed = 0
        self.published = 0
        self.running = False
        self.restarts = 0
        self.calls = 0
        self.repeated = 0
        self.publish_took_s = 0.0
        self.refused: str | None = None
        self.jobs: dict[str, Message] = {}
        self._published_commit = 0
        self.changed = asyncio.Event()
        self._config = config
        self._on_state = on_state
        self._durable = 0
        self._told = -1
        self._telling: asyncio.TimerHandle | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._questions: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count()
        self._stopping = False
        self._task = asyncio.create_task(self._supervise())

    @property
    def pid(self) -> int | None:
        """The process id of the ledger that runs now."""
        return self._process.pid if self._process else None

    def durable(self, position: int) -> None:
        """The journal is on disk up to here: the ledger may read it."""
        self._durable = position
        if self.running and self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(TELL_EVERY_S, self._tell)

    def _tell(self) -> None:
        self._telling = None
        if self.running and self._told != self._durable:
            self._told = self._durable
            self._send({"type": "durable", "position": self._durable})

    async def explain(self, call_id: str, started_at: datetime) -> Any:
        """What the ledger can say of a call, or LedgerGone."""
        if not self.running:
            raise LedgerGone("the ledger is starting; ask again in a moment")
        number = next(self._numbers)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._questions[number] = answer
        self._send({"type": "explain", "number": number, "call_id": call_id, "started_at": started_at})
        try:
            return await asyncio.wait_for(answer, ANSWER_TIMEOUT_S)
        except TimeoutError as error:
            raise LedgerGone("the ledger is busy; ask again in a moment") from error
        finally:
            self._questions.pop(number, None)

    def take_job(self, job: Message) -> None:
        """Know a job as it stands; of those that are over only the newest are kept."""
        self.jobs[job["job_id"]] = job
        over = [each["job_id"] for each in self.jobs.values() if each["status"] in ("done", "failed")]
        for job_id in over[: max(len(self.jobs) - MAX_JOBS, 0)]:
            del self.jobs[job_id]

    def rehearse(self, asked: str) -> None:
        """Have the ledger find out what a job (JSON of StartJob) would do; LedgerGone."""
        if not self.running:
            raise LedgerGone("the ledger is starting; ask again in a moment")
        self._send({"type": "rehearse", "job": asked})

    def shows(self, job: Message) -> bool:
        """Whether usage.duckdb shows all that a job has done."""
        return bool(job["dry_run"] or job["commit_no"] <= self._published_commit)

    def restart(self) -> None:
        """End the process hard; the supervision starts a new one, which tells everything from the start."""
        if self._process and self._process.returncode is None:
            self._process.kill()

    async def stop(self) -> None:
        """Let the ledger finish its batch and publish, then end it."""
        self._stopping = True
        self._send({"type": "stop"})
        if self._process:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), STOP_TIMEOUT_S)
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _supervise(self) -> None:
        failures = 0
        while not self._stopping:
            hello = await self._run_once()
            if self._stopping:
                return
            self.restarts += 1
            failures = 0 if hello else failures + 1
            pause = RESTART_PAUSE_S[min(failures, len(RESTART_PAUSE_S) - 1)]
            log.error("the ledger process ended; starting it again in %.2f s", pause)
            await asyncio.sleep(pause)

    async def _run_once(self) -> bool:
        """One life of the process; whether it ever said hello."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tollbook.ledger_process",
                "--fd",
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=2,
                env=os.environ | LEDGER_ENVIRONMENT,
            )
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=LINE_LIMIT)
        self._send({"type": "config", "config": self._config})
        said_hello = False
        try:
            while line := await reader.readline():
                said_hello = True
                self._take(orjson.loads(line))
        except ConnectionResetError:
            pass
        finally:
            self._lost()
            await self._process.wait()
        return said_hello

    def _take(self, message: Message) -> None:
        match message["type"]:
            case "hello":
                self.running = True
                self.refused = None
                self._published_commit = message["published_commit"]
                for job in message["jobs"]:
                    self.take_job(job)
                self.published = message["published"]
                self.committed = message["committed"]
                self._told = -1
                self._tell()
                self._on_state(message)
            case "committed":
                self.committed = message["position"]
                self.calls += message["written"] - message["replaced"]
                self.repeated += message["repeated"]
                self._on_state(message)
            case "published":
                self.published = message["position"]
                self._published_commit = message["commit_no"]
                self.publish_took_s = message["took_s"]
                self._on_state(message)
            case "job":
                self.take_job(message["job"])
            case "catalog":
                self._on_state(message)
            case "refused":
                self.refused = message["reason"]
            case "explained":
                answer = self._questions.get(message["number"])
                if answer and not answer.done():
                    answer.set_result(message["answer"])
        told, self.changed = self.changed, asyncio.Event()
        told.set()

    def _lost(self) -> None:
        self.running = False
        for job in self.jobs.values():
            if job["dry_run"] and job["status"] in ("waiting", "running"):
                job |= {"status": "failed", "error": "the ledger was started again; ask once more"}
        if self._writer:
            self._writer.close()
        for question in self._questions.values():
            if not question.done():
                question.set_exception(LedgerGone("the ledger is being restarted; ask again in a moment"))

    def _send(self, message: Message) -> None:
        if self._writer and not self._writer.is_closing():
            self._writer.write(pack(message))
