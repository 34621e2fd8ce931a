"""A record that cannot be loaded goes to `rejects` alone; a fault that is not its own rejects nothing."""

from __future__ import annotations

import random
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

from billing.ledger import Ledger
from billing.loader import Loader
from catalog.catalog import Catalog
from ingest.journal import Frame, Kind
from tests.telemetry import export, new_call, span_of

POISON = "poison"


class PoisonedCatalog:
    """The real catalogue, except that it fails over a call to one model, as no catalogue should."""

    def __init__(self, error: Exception) -> None:
        self._catalog = Catalog.load()
        self._error = error
        self.version = self._catalog.version

    def resolve(self, calls: pl.DataFrame) -> pl.DataFrame:
        if (calls["response_id"] == POISON).any():
            raise self._error
        return self._catalog.resolve(calls)

    def rate(self, calls: pl.DataFrame) -> pl.DataFrame:
        return self._catalog.rate(calls)

    def quotas(self, headers: str, seen_at: datetime) -> list[tuple[str, str, Decimal, datetime | None]]:
        return self._catalog.quotas(headers, seen_at)


def frames() -> list[Frame]:
    """Three requests of five calls each, one of them poisoned."""
    rng, made = random.Random(5), []
    for number in range(3):
        spans = [span_of(new_call(rng), rng) for _ in range(5)]
        if number == 1:
            next(a for a in spans[2].attributes if a.key == "gen_ai.response.id").value.string_value = POISON
        made.append(Frame(100 * (number + 1), Kind.TRACES_PROTO, 1, export(spans)))
    return made


def poisoned(folder: Path, error: Exception) -> Ledger:
    return Ledger.open(folder / "ledger.duckdb", epoch="e", pricing=PoisonedCatalog(error))


def load(ledger: Ledger) -> None:
    loader = Loader(ledger)
    loader.load(loader.prepare(frames()))


def test_one_poisoned_record_is_rejected_alone(tmp_path: Path) -> None:
    ledger = poisoned(tmp_path, ValueError("the answer was 42"))
    load(ledger)
    rows = ledger.cursor().execute("SELECT count(*), count(*) FILTER (response_id = 'poison') FROM calls")
    assert rows.fetchone() == (14, 0)
    rejects = ledger.cursor().execute("SELECT journal_offset, signal, reason FROM rejects").fetchall()
    assert rejects == [(200, "span", "could not be loaded (ValueError)")], "the reason must not quote"
    assert ledger.position == 300
    ledger.close()


def test_a_mistake_of_ours_rejects_nothing(tmp_path: Path) -> None:
    ledger = poisoned(tmp_path, NameError("facts_first"))
    with pytest.raises(NameError):
        load(ledger)
    assert ledger.cursor().execute("SELECT count(*) FROM rejects").fetchone() == (0,)
    assert ledger.position == 0
    ledger.close()


def test_a_poisoned_link_does_not_stop_the_house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger.open(tmp_path / "ledger.duckdb", epoch="e", pricing=Catalog.load())
    append_links = Ledger._append_links

    def poisoned_links(self: Ledger, links: pl.DataFrame, commit_no: int) -> None:
        if (links["span_id"] == poison).any():
            raise ValueError("cannot be")
        append_links(self, links, commit_no)

    loader, made = Loader(ledger), frames()
    prepared = loader.prepare(made)
    assert prepared.batch is not None
    poison = prepared.batch.links["span_id"][7]
    monkeypatch.setattr(Ledger, "_append_links", poisoned_links)
    loader.load(prepared)
    assert ledger.cursor().execute("SELECT count(*) FROM span_links").fetchone() == (14,)
    assert ledger.cursor().execute("SELECT count(*) FROM calls").fetchone() == (15,)
    assert ledger.cursor().execute("SELECT signal FROM rejects").fetchall() == [("links",)]
    assert ledger.position == 300
    ledger.close()


def test_a_frame_that_is_no_otlp_is_rejected_alone(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "ledger.duckdb", epoch="e", pricing=Catalog.load())
    loader = Loader(ledger)
    good = frames()
    loader.load(loader.prepare([good[0], Frame(150, Kind.TRACES_PROTO, 1, b"\x0a\xff\xff"), good[2]]))
    assert ledger.cursor().execute("SELECT count(*) FROM calls").fetchone() == (10,)
    assert ledger.cursor().execute("SELECT journal_offset FROM rejects").fetchall() == [(150,)]
    ledger.close()
