"""The ledger's own process: tails the journal, loads it in batches, publishes, and tells the front.

It shares no interpreter with what answers, so decoding and DuckDB never delay an acknowledgement or a budget
reply. It reads the journal only up to what the front says is durable, and it ends when the front is gone.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import gc
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import Empty, SimpleQueue

from billing.explain import explain
from billing.job import Job, StartJob
from billing.job_runner import JobRunner
from billing.layout import LedgerRefused
from billing.ledger import Commit, Ledger
from billing.loader import FAULTS, Loader, Prepared
from billing.publish import Publisher
from catalog.catalog import Catalog
from ingest.dialect import load_dialects
from ingest.journal import read_frames
from tollbook.channel import Channel, Message

log = logging.getLogger("tollbook.ledger")

HOUSEKEEPING_INTERVAL_S = 600.0
PUBLISH_REST = 0.5
"""After a publication, rest this many times as long as it took, so that publishing never takes over."""
PUBLISH_REST_BEHIND = 12
"""The same while a backlog waits to be loaded: what is not in the ledger cannot be shown at all."""
PUBLISH_REST_MOST_S = 30.0
"""No rest is longer, whatever had held the publication up."""
PUBLISH_BYTES_PER_S = 128 << 20
"""How fast copies are written at most: a big file is published less often, for the sake of the disk."""
BEHIND_BATCHES = 4
"""How many whole batches wait where the ledger is behind."""
GATHER_SHARE = 2
"""How many times as long as a batch took, its successor is gathered: small batches cost nearly as much."""
GATHER_MOST_S = 0.25
REST_AFTER_S = 3.0
COMPACT_AFTER_REST_S = 60.0
COMPACT_INTERVAL_S = 86_400.0
"""Compacting holds loading up, so it waits for a longer rest; where there is none, it comes once a day."""
PLANS_INTERVAL_S = 300.0
"""Plans follow the clock as well as the calls: how often they are published while nothing comes."""
NICENESS = 12
"""An acknowledgement does not wait behind the ledger. With 5, bursts of 512 spans a request came an eighth
slower; what is sustained and when it shows did not differ.
"""
SWITCH_INTERVAL_S = 0.0005
"""How long one thread keeps the interpreter while another waits for it: loading waits after each statement.
Measured against the usual value, ten times as long: a third more calls a second.
"""


@dataclass(frozen=True, slots=True)
class Config:
    """What the front tells the ledger when it starts it."""

    data_dir: str
    epoch: str
    batch_bytes: int
    gather_s: float
    memory_bytes: int
    threads: int
    publish_interval_s: float
    observation_days: int
    link_hours: int
    assume_unknown_access: bool
    overlay: str | None
    accounts: str | None
    attribution: dict[str, list[str]]
    log_level: str
    news_until: int = 0

    def path(self, name: str) -> Path:
        return Path(self.data_dir) / name


class LedgerProcess:
    """One run of the ledger: a loading loop, a publishing thread, a listening thread."""

    def __init__(self, channel: Channel, messages: Iterator[Message], config: Config) -> None:
        self._channel = channel
        self._messages = messages
        self._config = config
        self._durable = 0
        self._stopping = False
        self._woken = threading.Event()
        self._questions: SimpleQueue[Message] = SimpleQueue()
        catalog = _load_catalog(config)
        self._catalog = catalog
        self._ledger = Ledger.open(
            config.path("ledger.duckdb"),
            epoch=config.epoch,
            pricing=catalog,
            memory_limit=f"{config.memory_bytes}B",
            threads=config.threads,
            news_until=config.news_until,
        )
        self._publisher = Publisher(
            self._ledger.cursor(),
            staging=config.path("staging") / "usage.duckdb",
            published=config.path("usage.duckdb"),
            epoch=config.epoch,
            plans=catalog.plans,
        )
        dialects = load_dialects(config.attribution)
        self._loader = Loader(self._ledger, dialects)
        self._jobs = JobRunner(
            self._ledger,
            catalog=lambda: _load_catalog(config),
            dialects=dialects,
            observation_days=config.observation_days,
            tell=lambda job: channel.send({"type": "job", "job": job}),
            adopt=self._adopt,
            faults=FAULTS,
        )
        self._decoding = ThreadPoolExecutor(1, thread_name_prefix="decode")
        self._pace_s = config.gather_s
        self._changed = threading.Event()
        self._resting_since: float | None = None
        self._tidied = self._compacted = self._published_at = time.monotonic()

    def run(self) -> None:
        """Serve until the front says stop."""
        threading.Thread(target=self._listen, name="listen", daemon=True).start()
        published = self._publisher.publish()
        self._channel.send(
            {
                "type": "hello",
                "committed": self._ledger.position,
                "published": published,
                "published_commit": self._publisher.commit_no,
                "spend": self._ledger.spend_snapshot(),
                "used_up": self._publisher.plans.used_up,
                "jobs": self._ledger.jobs.recent(),
                "catalog": self._catalog.version,
            }
        )
        gc.collect()
        gc.freeze()  # what is loaded stays loaded: the collector need not walk it with each batch
        publishing = threading.Thread(target=self._publish_forever, name="publish", daemon=True)
        publishing.start()
        self._load_forever()
        self._changed.set()
        publishing.join()
        self._ledger.close()

    def _listen(self) -> None:
        for message in self._messages:
            match message["type"]:
                case "durable":
                    self._durable = message["position"]
                case "explain":
                    self._questions.put(message)
                case "rehearse":
                    self._jobs.rehearse(Job.asked(StartJob.model_validate_json(message["job"])))
                case "stop":
                    self._stopping = True
            self._woken.set()
        os._exit(0)  # the front is gone: hold the database lock no longer than the kernel needs

    def _load_forever(self) -> None:
        while not self._stopping:
            woken = self._woken.wait(timeout=0 if self._jobs.pending else REST_AFTER_S)
            self._woken.clear()
            self._answer()
            if self._ledger.position < self._durable:
                self._load_all()
                self._resting_since = None
            elif self._jobs.pending:
                self._work()
            elif not woken:
                self._rest()
            self._tidy()

    def _work(self) -> None:
        """Do one slice of the jobs over history."""
        if self._jobs.pending and (commit := self._jobs.step()) is not None:
            self._committed(commit)
            self._resting_since = None

    def _committed(self, commit: Commit) -> None:
        self._channel.send({"type": "committed", **dataclasses.asdict(commit)})
        self._changed.set()

    def _adopt(self, catalog: Catalog) -> None:
        """Charge and explain by another catalogue from now on; the front estimates by it too."""
        self._ledger.use(catalog)
        if catalog.version != self._catalog.version:
            self._channel.send({"type": "catalog"})
        self._catalog = catalog

    def _rest(self) -> None:
        """What waits for a quiet moment: fold the log into the file, give memory back, forget."""
        now = time.monotonic()
        if self._resting_since is None:
            self._resting_since = now
            self._ledger.settle()
            _give_back_memory()
        elif now - self._resting_since > COMPACT_AFTER_REST_S:
            self._compact()
        plans = self._publisher.plans
        if plans.behind or (plans.in_use and now - self._published_at > PLANS_INTERVAL_S):
            self._changed.set()

    def _compact(self) -> None:
        self._ledger.compact()
        self._compacted = time.monotonic()

    def _load_all(self) -> None:
        """Load up to what is durable now: while one batch is committed, the next is being decoded."""
        upcoming = self._decoding.submit(self._decode, self._ledger.position, self._config.gather_s)
        while (prepared := upcoming.result()) and not self._stopping:
            upcoming = self._decoding.submit(self._decode, prepared.position, self._pace_s)
            began = time.monotonic()
            for commit in self._loader.load(prepared):
                self._committed(commit)
            took_s = time.monotonic() - began
            self._pace_s = max(self._config.gather_s, min(GATHER_SHARE * took_s, GATHER_MOST_S))
            self._answer()
            self._work()
            self._tidy()

    def _decode(self, position: int, gather_s: float) -> Prepared | None:
        """The journal's next batch after a position; None when all is loaded.

        Unless the batch is full already, more is waited for during `gather_s`.
        """
        if self._durable - position < self._config.batch_bytes:
            time.sleep(gather_s)
        durable = self._durable
        if position >= durable:
            return None
        frames = read_frames(
            self._config.path("journal"), start=position, stop=durable, max_bytes=self._config.batch_bytes
        )
        return self._loader.prepare(frames)

    def _answer(self) -> None:
        while True:
            try:
                question = self._questions.get_nowait()
            except Empty:
                return
            started_at = datetime.fromisoformat(question["started_at"])
            answer = explain(self._ledger, self._catalog, question["call_id"], started_at)
            self._channel.send({"type": "explained", "number": question["number"], "answer": answer})

    def _publish_forever(self) -> None:
        while not self._stopping:
            self._changed.wait()
            self._changed.clear()
            began = time.monotonic()
            position = self._publisher.publish()
            self._published_at = time.monotonic()
            took = self._published_at - began
            used_up = self._publisher.plans.used_up
            shown = {"position": position, "commit_no": self._publisher.commit_no, "used_up": used_up}
            self._channel.send({"type": "published", **shown, "took_s": took})
            if not self._stopping:
                self._rest_from_publishing(took)

    def _rest_from_publishing(self, took_s: float) -> None:
        """Rest after a publication that took so long."""
        until = time.monotonic() + min(PUBLISH_REST_BEHIND * took_s, PUBLISH_REST_MOST_S)
        copied_s = self._publisher.file_bytes / PUBLISH_BYTES_PER_S
        rest_s = max(self._config.publish_interval_s - took_s, PUBLISH_REST * took_s, copied_s)
        time.sleep(min(rest_s, PUBLISH_REST_MOST_S))
        while self._is_behind() and not self._stopping and time.monotonic() < until:
            time.sleep(self._config.publish_interval_s)

    def _is_behind(self) -> bool:
        """Whether several whole batches wait."""
        return self._durable - self._ledger.position > BEHIND_BATCHES * self._config.batch_bytes

    def _tidy(self) -> None:
        """Forget what is past its retention, now and then, however busy the day is."""
        if time.monotonic() - self._tidied < HOUSEKEEPING_INTERVAL_S:
            return
        self._tidied = time.monotonic()
        if self._tidied - self._compacted > COMPACT_INTERVAL_S:
            self._compact()
        now = datetime.now(UTC)
        self._ledger.forget_old_evidence(
            links_before=now - timedelta(hours=self._config.link_hours),
            observations_before=now - timedelta(days=self._config.observation_days),
            published_commit=self._publisher.commit_no,
        )


def main() -> None:
    """Run as `python -m tollbook.ledger_process --fd N`; the first message is the configuration."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    channel = Channel(socket.socket(fileno=parser.parse_args().fd))
    os.nice(NICENESS)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    threading.excepthook = _end_on_error
    messages = channel.messages()
    config = Config(**next(messages)["config"])
    logging.basicConfig(
        stream=sys.stderr,
        level=config.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    try:
        LedgerProcess(channel, messages, config).run()
    except LedgerRefused as error:
        log.error("%s", error)
        channel.send({"type": "refused", "reason": str(error)})
        sys.exit(1)


def _load_catalog(config: Config) -> Catalog:
    """The catalogue of today: what is shipped, and the operator's files as they are now."""
    return Catalog.load(
        config.path("catalog"),
        overlay=Path(config.overlay) if config.overlay else None,
        accounts_file=Path(config.accounts) if config.accounts else None,
        assume_unknown_access=config.assume_unknown_access,
    )


def _give_back_memory() -> None:
    """Hand what is free in the C heap back to the system, where the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _end_on_error(args: threading.ExceptHookArgs) -> None:
    log.error("thread %s failed", args.thread, exc_info=(args.exc_type, args.exc_value, args.exc_traceback))  # type: ignore[arg-type]
    os._exit(1)  # the front starts a new one; half a ledger is worse than none


if __name__ == "__main__":
    main()
