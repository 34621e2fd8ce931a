"""What the table `emitters` says of who tells of calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest

from billing.emitters import ADVICE, advice
from billing.ledger import Batch, Ledger
from billing.publish import Publisher
from billing.tables import EMITTERS, names
from catalog.catalog import Catalog
from ingest.observation import FIDELITY, METRIC_POINTS
from tests.observed import NO_REJECTS, NOTHING_UNRECOGNISED, links, observation, observations
from tests.test_billing_metrics import point

CATALOG = Catalog.load()
NOW = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)


class Book:
    """A ledger, and the table it publishes."""

    def __init__(self, folder: Path) -> None:
        self.ledger = Ledger.open(folder / "ledger.duckdb", epoch="e", pricing=CATALOG)
        self._published = folder / "usage.duckdb"
        self._publisher = Publisher(
            self.ledger.cursor(),
            staging=folder / "staging" / "u.duckdb",
            published=self._published,
            epoch="e",
        )

    def load(
        self,
        *calls: dict[str, Any],
        points: tuple[dict[str, Any], ...] = (),
        fidelity: Sequence[dict[str, Any]] = (),
    ) -> None:
        self.ledger.load(
            Batch(
                observations=observations(*calls),
                links=links(),
                rejects=NO_REJECTS,
                unrecognised=NOTHING_UNRECOGNISED,
                position=1,
                metric_points=pl.DataFrame(list(points), schema=METRIC_POINTS),
                fidelity=pl.DataFrame(list(fidelity), schema=FIDELITY),
            )
        )

    def emitter(self, name: str = "sdk") -> dict[str, Any]:
        self._publisher.publish()
        with duckdb.connect(str(self._published), read_only=True) as published:
            columns = [name for name in names(EMITTERS) if name != "last_seen"]
            query = f"SELECT {', '.join(columns)} FROM emitters WHERE emitter = ?"
            row = published.execute(query, [name]).fetchone()
        assert row is not None
        return dict(zip(columns, row, strict=True))


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    opened = Book(tmp_path)
    yield opened
    opened.ledger.close()


def test_records_of_one_call_are_counted_as_duplicates_merged(book: Book) -> None:
    span = observation(response_id="r", scope_version="1.2")
    book.load(span)
    book.load(observation(response_id="r", layer="log:x", signal="log"))
    book.load(span)
    told = book.emitter()
    assert {
        name: told[name] for name in ("calls", "records", "duplicates_merged", "signals", "versions")
    } == {
        "calls": 1,
        "records": 2,
        "duplicates_merged": 1,
        "signals": "log, span",
        "versions": "1.2",
    }
    assert told["advice"] is None


def test_calls_without_tokens_bring_the_setting_that_tells_them(book: Book) -> None:
    book.load(observation(emitter="otel-genai-openai", input_tokens=None, output_tokens=None))
    told = book.emitter("otel-genai-openai")
    assert told["usage_unknown_calls"] == 1
    assert "include_usage" in told["advice"]


def test_a_failure_is_no_lack(book: Book) -> None:
    book.load(observation(status="error", input_tokens=None, output_tokens=None))
    told = book.emitter()
    assert (told["errors"], told["usage_unknown_calls"], told["advice"]) == (1, 0, None)


def test_what_metrics_tell_beyond_the_calls_is_a_capture_gap(book: Book) -> None:
    measured = {"started_at": NOW, "measured_at": NOW + timedelta(minutes=5)}
    book.load(observation(started_at=NOW), points=(point("input_tokens", 1500, **measured),))
    assert book.emitter()["capture_gap_tokens"] == 1500 - 1100
    book.load(observation(started_at=NOW + timedelta(minutes=1)))
    assert book.emitter()["capture_gap_tokens"] == 0


def test_sums_that_stand_for_calls_say_what_to_turn_on(book: Book) -> None:
    book.load(observation(emitter="crewai", role="aggregate", rank=200))
    book.load(points=(point(service="elsewhere", emitter="codex"),))
    assert "instrument the client below" in book.emitter("crewai")["advice"]
    assert "metrics_exporter alone" in book.emitter("codex")["advice"]


def test_every_lack_has_advice_for_every_emitter() -> None:
    columns = ("usage_unknown_calls", "aggregates", "from_metrics", "capture_gap_tokens", "sampled_records")
    lacking = dict.fromkeys((*columns, "content_records"), 1)
    for emitter, _, _ in ADVICE:
        assert (advice(lacking, emitter) or "").count(";") >= 5


def test_samples_and_content_are_counted_with_what_to_change(book: Book) -> None:
    told = {"content_records": 2, "content_bytes": 300, "sampled_records": 4, "sampling_probability": 0.25}
    book.load(observation(), fidelity=[{"emitter": "sdk", **told}, {"emitter": "other", **told}])
    book.load(fidelity=[{"emitter": "sdk", **told, "sampling_probability": 0.5}])
    found = book.emitter()
    assert {name: found[name] for name in told} == {
        "content_records": 4,
        "content_bytes": 600,
        "sampled_records": 8,
        "sampling_probability": 0.25,
    }
    assert "always_on" in found["advice"]
    assert "capture of content off" in found["advice"]
