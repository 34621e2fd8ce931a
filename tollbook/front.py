"""The front: what answers. One event loop that receives, journals, acknowledges and answers budget checks.

It never decodes telemetry, never opens DuckDB and never waits for what does: the ledger and the readers are
processes of their own. It keeps in memory what a budget reply needs, told by the ledger commit by commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from billing.budget import Budget, BudgetEvent, SpendGap, encode_control
from billing.budget_book import BudgetBook
from billing.budget_price import RememberedQuotes
from billing.job import Job, StartJob
from billing.plan_advice import windows_told
from billing.reservation_desk import ReservationDesk
from catalog.errors import CatalogError
from catalog.quote import Quotes
from ingest.intake import Intake
from ingest.journal import Journal
from ingest.limits import Limits
from proxy.connection import Timeouts
from proxy.proxy import Limits as ProxyLimits
from proxy.proxy import Proxy
from tollbook.channel import Message
from tollbook.control_log import ControlLog
from tollbook.ledger_link import LedgerGone, LedgerLink
from tollbook.problems import Problem
from tollbook.reader_pool import ReaderLimits, ReaderPool
from tollbook.settings import Settings

log = logging.getLogger("tollbook.front")

COUNTING_TIMEOUT_S = 5.0
"""How long the definition of a budget waits for its spend; until that is known, checks say so."""
REDEFINE_PAUSE_S = 2.0
EVENTS_AT_ONCE = 100
MAX_WAITING_JOBS = 16
"""Jobs over history that may wait for their turn."""
MAX_WAITING_EVENTS = 10_000
"""Budget decisions waiting to be journaled; beyond it they are counted as dropped, never waited for."""


class Front:
    """The running house, as the API sees it."""

    def __init__(self, settings: Settings, journal: Journal) -> None:
        self.settings = settings
        self.journal = journal
        self.intake = Intake(journal, Limits(**settings.limits.model_dump()))
        self._controls = ControlLog(journal)
        self.desk = ReservationDesk(self._controls.append, keep=self._keep, ready_from=journal.durable)
        self.desk.open = False
        self.readers = ReaderPool(settings.server.data_dir / "usage.duckdb", _reader_limits(settings))
        self.ledger = LedgerLink(_ledger_config(settings, journal), on_state=self._take)
        self.proxy = Proxy(
            settings.server.data_dir,
            journal=journal,
            desk=self.desk,
            quotes=lambda: self.quotes,
            limits=_proxy_limits(settings),
        )
        self.events: asyncio.Queue[BudgetEvent] = asyncio.Queue(MAX_WAITING_EVENTS)
        self.quotes: Quotes | None = None
        self.events_dropped = 0
        self._following: set[asyncio.Task[None]] = set()
        self.started_at = time.time()
        self.places: dict[str, str] = {}
        journal.on_durable = self.ledger.durable
        self.ledger.durable(journal.durable)

    @property
    def budgets(self) -> BudgetBook:
        """The budgets and where they stand."""
        return self.desk.book

    @property
    def acknowledged(self) -> int:
        """The journal position up to which everything is on disk."""
        return self.journal.durable

    @property
    def committed(self) -> int:
        """The journal position up to which everything is in the ledger."""
        return self.ledger.committed

    @property
    def published(self) -> int:
        """The journal position up to which everything is in usage.duckdb."""
        return self.ledger.published

    @property
    def reasons(self) -> list[str]:
        """Why the house is not ready; empty when it is."""
        found = []
        if not self.ledger.running:
            found.append(self.ledger.refused or "the ledger is starting")
        elif not self.desk.ready:
            found.append("the ledger is catching up with what was acknowledged before the start")
        if not self.readers.alive:
            found.append("the readers are starting")
        if self.journal.failure:
            found.append(f"the journal cannot write: {self.journal.failure}")
        return found

    @property
    def ready(self) -> bool:
        """Whether every part is up and a first usage.duckdb is published."""
        return not self.reasons

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run what works beside the receivers; on the way out let the ledger finish its batch."""
        await self.proxy.start()
        work = (self._start_readers(), self._keep_events(), self._open_desk())
        beside = [asyncio.create_task(each) for each in work]
        try:
            yield
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await self.proxy.close()
            await self.ledger.stop()
            await self.readers.close()

    async def _open_desk(self) -> None:
        """Answer checks once the budgets are those of the settings."""
        while not self.desk.caught_up:
            await self.desk.applied.wait()
        while not self.desk.open:
            try:
                await self._define_settings()
            except Problem:
                log.exception("the budgets of the settings cannot be defined; trying again")
                await asyncio.sleep(REDEFINE_PAUSE_S)
            else:
                self.desk.open = True

    async def _define_settings(self) -> None:
        told = {budget.id: budget for budget in self.settings.budgets}
        changed = [budget for budget in told.values() if self.budgets.get(budget.id) != budget]
        for budget_id in self.budgets.of_settings().keys() - told.keys():
            await self.delete_budget(budget_id)
        await asyncio.gather(*(self.define_budget(budget) for budget in changed))

    async def define_budget(self, budget: Budget) -> None:
        """Define a budget, durably, and wait a moment for the ledger to count the calls it already has."""
        offset = await self._controls.append_alone(encode_control("put", budget=budget))
        self.budgets.put(budget, offset)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(COUNTING_TIMEOUT_S):
                while self.budgets.pending(budget.id):
                    await self.desk.applied.wait()

    async def delete_budget(self, budget_id: str) -> None:
        """Delete a budget, durably."""
        offset = await self._controls.append_alone(encode_control("delete", budget_id=budget_id))
        self.budgets.delete(budget_id, offset)

    async def start_job(self, asked: StartJob) -> dict[str, Any]:
        """Take up a job over history, durably; a dry run is only asked of the ledger."""
        waiting = [job for job in self.ledger.jobs.values() if job["status"] in ("waiting", "running")]
        if len(waiting) >= MAX_WAITING_JOBS:
            raise Problem("too_many_jobs", f"{len(waiting)} jobs are waiting", retry_after_s=10)
        if asked.dry_run:
            self._rehearse(asked)
        else:
            await self._controls.append_alone(asked.record())
        if asked.job_id not in self.ledger.jobs:
            self.ledger.take_job(Job.asked(asked).told())
        return self.ledger.jobs[asked.job_id]

    def _rehearse(self, asked: StartJob) -> None:
        try:
            self.ledger.rehearse(asked.model_dump_json())
        except LedgerGone as error:
            raise Problem("not_ready", str(error), retry_after_s=1) from error

    def jobs(self) -> list[dict[str, Any]]:
        """The newest jobs over history, each with `published`: whether usage.duckdb shows all it has done."""
        return [{**job, "published": self.ledger.shows(job)} for job in self.ledger.jobs.values()]

    async def explain(self, call_id: str, started_at: datetime) -> dict[str, Any] | None:
        """What the ledger knows of a call: its observations, the evidence, the arithmetic."""
        try:
            answer: dict[str, Any] | None = await self.ledger.explain(call_id, started_at)
        except LedgerGone as error:
            raise Problem("not_ready", str(error), retry_after_s=1) from error
        return answer

    def counters(self) -> dict[str, int | float]:
        """Everything that is counted, flat, for /metrics."""
        counts = self.intake.counts
        received = {
            f"requests_total{{signal={signal},transport={transport}}}": number
            for (signal, transport), number in counts.requests.items()
        }
        refused = {f"refused_total{{reason={reason}}}": number for reason, number in counts.refused.items()}
        return {
            **received,
            **refused,
            **{f"reader_{name}_total": number for name, number in asdict(self.readers.counts).items()},
            "acknowledged_bytes_total": counts.acknowledged_bytes,
            "journal_durable_bytes": self.journal.durable,
            "journal_backlog_bytes": self.journal.backlog_bytes,
            "journal_groups_total": self.journal.groups,
            "ledger_committed_bytes": self.ledger.committed,
            "ledger_published_bytes": self.ledger.published,
            "ledger_up": int(self.ledger.running),
            "ledger_restarts_total": self.ledger.restarts,
            "ledger_calls_total": self.ledger.calls,
            "ledger_repeated_records_total": self.ledger.repeated,
            "ledger_publish_seconds": self.ledger.publish_took_s,
            "budget_checks_total": self.desk.checks,
            "budget_reservations_total": self.desk.reservations,
            "budget_reservations_open": len(self.budgets.holds),
            "budget_events_dropped_total": self.events_dropped,
            **self.proxy.counters(),
            "uptime_seconds": time.time() - self.started_at,
        }

    def _take(self, message: Message) -> None:
        """Follow the ledger: release what it has committed, keep the budgets equal to it."""
        self.journal.release(min(self.ledger.committed, self.journal.durable))
        if "used_up" in message:
            self.desk.used_up = windows_told(message["used_up"])
        match message["type"]:
            case "hello":
                if self.quotes is None:
                    self._quote_by(self._load_quotes())
                elif self.quotes.version != message["catalog"]:
                    self._beside(self._reload_quotes())
                self.desk.take_snapshot(message["spend"])
            case "catalog":
                self._beside(self._reload_quotes())
            case "committed":
                self._beside(self._follow(message["spend"]))

    def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._following.add(task)
        task.add_done_callback(self._following.discard)

    async def _follow(self, delta: Message) -> None:
        try:
            await self.desk.take_delta(delta)
        except SpendGap:
            log.exception("the budgets lost track of the ledger; starting it again for a whole snapshot")
            self.ledger.restart()

    def _load_quotes(self) -> Quotes:
        told = self.settings.catalog
        folder = self.settings.server.data_dir / "catalog"
        return Quotes.load(folder, overlay=told.overlay, accounts_file=told.accounts)

    async def _reload_quotes(self) -> None:
        """Estimate by the catalogue that a job has brought in, as the ledger charges by it."""
        try:
            self._quote_by(await asyncio.to_thread(self._load_quotes))
        except CatalogError:
            log.exception("the prices have changed again since the job began; estimating by those before")

    def _quote_by(self, quotes: Quotes) -> None:
        self.quotes = quotes
        self.desk.quotes = RememberedQuotes(quotes)
        gc.collect()
        gc.freeze()  # what is loaded stays loaded: the collector need not walk it on the path of a reply

    def _keep(self, event: BudgetEvent) -> None:
        try:
            self.events.put_nowait(event)
        except asyncio.QueueFull:
            self.events_dropped += 1

    async def _keep_events(self) -> None:
        """Journal budget events after the replies they belong to, as many at once as there are."""
        while True:
            events = [await self.events.get()]
            while not self.events.empty() and len(events) < EVENTS_AT_ONCE:
                events.append(self.events.get_nowait())
            bodies = [encode_control("event", event=event) for event in events]
            try:
                await asyncio.gather(*(self._controls.append(body) for body in bodies))
            except Problem:
                self.events_dropped += len(events)

    async def _start_readers(self) -> None:
        """The readers need a published file, so they start after the ledger's first word."""
        while not self.ledger.running:
            await self.ledger.changed.wait()
        await self.readers.start()


def _proxy_limits(settings: Settings) -> ProxyLimits:
    told = settings.proxy
    return ProxyLimits(
        timeouts=Timeouts(
            connect_s=told.connect_timeout_s,
            first_byte_s=told.first_byte_timeout_s,
            idle_s=told.idle_timeout_s,
            total_s=told.total_timeout_s,
        ),
        max_request_bytes=told.max_request_bytes,
        max_answer_bytes=told.max_answer_bytes,
        max_in_flight_calls=told.max_in_flight_calls,
    )


def _reader_limits(settings: Settings) -> ReaderLimits:
    return ReaderLimits(**settings.sql.model_dump())


def _ledger_config(settings: Settings, journal: Journal) -> Message:
    return {
        "data_dir": str(Path(settings.server.data_dir).absolute()),
        "epoch": journal.epoch,
        "news_until": journal.durable,
        **settings.ledger.model_dump(),
        **settings.retention.model_dump(),
        **settings.billing.model_dump(),
        **{name: str(path.absolute()) if path else None for name, path in settings.catalog},
        "attribution": settings.attribution.model_dump(),
        "log_level": settings.server.log_level,
    }
