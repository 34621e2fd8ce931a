"""Older days move to files of their own, and nobody who asks can tell."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import duckdb
import pytest

from billing.ledger import Batch, Ledger
from billing.publish import Publisher
from catalog.catalog import Catalog
from tests.observed import NO_REJECTS, NOON, NOTHING_UNRECOGNISED, links, observation, observations
from tollbook.problems import Problem
from tollbook.reader_pool import ReaderPool

DAYS = 5
PER_DAY = 10


class Published:
    """A ledger with a few days of calls, published with room for two days in the file itself."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger = Ledger.open(folder / "ledger.duckdb", epoch="e", pricing=Catalog.load())
        self.publisher = Publisher(
            self.ledger.cursor(),
            staging=folder / "staging" / "usage.duckdb",
            published=folder / "usage.duckdb",
            epoch="e",
            seal_above_calls=2 * PER_DAY,
        )

    def take(self, *rows: dict[str, object]) -> None:
        told = observations(*rows)
        self.ledger.load(
            Batch(
                observations=told,
                links=links(),
                rejects=NO_REJECTS,
                unrecognised=NOTHING_UNRECOGNISED,
                position=0,
            )
        )
        self.publisher.publish()

    def ask(self, query: str) -> list[tuple[object, ...]]:
        with duckdb.connect(str(self.folder / "usage.duckdb"), read_only=True) as reader:
            return reader.execute(query).fetchall()

    def files(self) -> list[str]:
        return sorted(path.name[:16] for path in (self.folder / "sealed").iterdir())

    def check(self, calls: int) -> None:
        """Whole, once each, and equal to the sums."""
        told = self.ask("SELECT count(*), count(DISTINCT call_id), sum(list_cost_usd) FROM calls")
        assert told[0][:2] == (calls, calls)
        for table in ("usage_hourly", "usage_daily"):
            assert self.ask(f"SELECT sum(calls), sum(list_cost_usd) FROM {table}") == [(calls, told[0][2])]


@pytest.fixture
def published(tmp_path: Path) -> Iterator[Published]:
    made = Published(tmp_path)
    for day in range(DAYS):
        at = NOON + timedelta(days=day)
        made.take(*[observation(response_id=f"r{day}-{n}", started_at=at) for n in range(PER_DAY)])
    yield made
    made.ledger.close()


def test_the_newest_days_stay_in_the_file_and_all_calls_are_shown(published: Published) -> None:
    assert published.files() == [f"calls-2026-11-{20 + day}" for day in range(3)]
    published.check(DAYS * PER_DAY)
    [(hot,)] = published.ask("SELECT count(*) FROM hot.calls")
    assert hot == 2 * PER_DAY


def test_a_late_call_writes_its_sealed_day_anew(published: Published) -> None:
    published.take(observation(response_id="late", started_at=NOON))
    published.check(DAYS * PER_DAY + 1)
    assert published.ask("SELECT count(*) FROM calls WHERE response_id = 'late'") == [(1,)]
    assert published.ask("SELECT count(*) FROM hot.calls") == [(2 * PER_DAY,)]


def test_a_revised_call_of_a_sealed_day_is_shown_as_revised(published: Published) -> None:
    log = {"layer": "log:x", "signal": "log", "session_id": "s", "rank": 0}
    published.take(observation(response_id="r0-3", started_at=NOON, **log))
    published.check(DAYS * PER_DAY)
    assert published.ask("SELECT session_id, revision FROM calls WHERE response_id = 'r0-3'") == [("s", 2)]


def test_only_files_that_nobody_can_name_are_swept(published: Published) -> None:
    published.take(observation(response_id="late", started_at=NOON))
    sealed = published.folder / "sealed"
    before = len(list(sealed.iterdir()))
    for file in sealed.iterdir():
        os.utime(file, (0, 0))
    published.publisher._seals.sweep()
    assert len(list(sealed.iterdir())) == before - 1
    published.check(DAYS * PER_DAY + 1)


def test_a_reader_child_reads_sealed_days_and_no_other_file(published: Published) -> None:
    async def ask() -> tuple[bytes, str]:
        pool = ReaderPool(published.folder / "usage.duckdb")
        try:
            answer = await pool.query("SELECT count(*) FROM calls", lane="sql", form="json")
            with pytest.raises(Problem) as refused:
                await pool.query("SELECT * FROM read_csv('/etc/hostname')", lane="sql", form="json")
        finally:
            await pool.close()
        return answer.body, refused.value.code

    body, code = asyncio.run(ask())
    assert b"[[50]]" in body
    assert code == "sql_refused"
