"""One transaction per batch: any order, split and repetition of the same records gives the same ledger."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import duckdb
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing.checkpoint import Checkpoints
from billing.evidence import with_attributes
from billing.layout import LedgerLocked
from billing.ledger import Batch, Ledger
from billing.publish import Publisher
from billing.store import read
from catalog.catalog import Catalog
from tests.observed import (
    NO_REJECTS,
    NOON,
    NOTHING_UNRECOGNISED,
    link,
    links,
    observation,
    observations,
)

CATALOG = Catalog.load()
COMPARED = (
    "call_id, epoch_us(started_at), observation_count, response_id, session_id, input_tokens, "
    "output_tokens, list_cost_usd"
)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(tmp_path / "ledger.duckdb", epoch="e", pricing=CATALOG)
    yield opened
    opened.close()


def batch(
    told: pl.DataFrame | None = None, between: pl.DataFrame | None = None, *, position: int = 0
) -> Batch:
    return Batch(
        observations=told if told is not None else observations(),
        links=between if between is not None else links(),
        rejects=NO_REJECTS,
        unrecognised=NOTHING_UNRECOGNISED,
        position=position,
    )


def calls(ledger: Ledger) -> list[tuple[object, ...]]:
    return ledger.cursor().execute(f"SELECT {COMPARED} FROM calls ORDER BY call_id").fetchall()


def test_a_call_is_priced_and_kept(ledger: Ledger) -> None:
    ledger.load(batch(observations(observation(response_id="r")), position=7))
    [(cost, billed, status)] = (
        ledger.cursor().execute("SELECT list_cost_usd, billed_cost_usd, cost_status FROM calls").fetchall()
    )
    # 1000 x 0.15 + 100 x 0.60 per million
    assert cost == billed == Decimal("0.00021")
    assert status == "priced"
    assert ledger.position == 7


def test_redelivery_changes_nothing_however_late(ledger: Ledger) -> None:
    told = observations(observation(response_id="r"), observation(response_id="s"))
    ledger.load(batch(told))
    before = calls(ledger)
    much_later = told.with_columns(received_at=pl.col("received_at") + pl.duration(days=1))
    commit = ledger.load(batch(much_later))
    assert (commit.written, commit.replaced, commit.repeated) == (0, 0, 2)
    assert calls(ledger) == before


def test_a_record_without_a_time_of_its_own_is_recognised_too(ledger: Ledger) -> None:
    told = observations(observation(effective_from="received", layer="log:x", signal="log"))
    ledger.load(batch(told))
    later = told.with_columns(pl.col("effective_at", "started_at", "ended_at") + pl.duration(days=2))
    assert ledger.load(batch(later)).repeated == 1


def test_a_second_record_of_a_call_makes_a_revision_not_a_call(ledger: Ledger) -> None:
    span = observation(response_id="r", id_hi=5, id_lo=5)
    log = observation(response_id="r", id_hi=9, id_lo=9, layer="log:x", signal="log", session_id="s1", rank=0)
    ledger.load(batch(observations(span)))
    ledger.load(batch(observations(log)))
    [(count, session, revision)] = (
        ledger.cursor().execute("SELECT observation_count, session_id, revision FROM calls").fetchall()
    )
    assert (count, session, revision) == (2, "s1", 2)
    [(old_revision, heir)] = (
        ledger.cursor().execute("SELECT revision, superseded_by FROM call_revisions").fetchall()
    )
    assert (old_revision, heir) == (1, None)


def test_a_merged_call_says_which_call_took_it_in(ledger: Ledger) -> None:
    late_but_smaller = observation(
        response_id="r", id_hi=1, id_lo=1, layer="log:x", signal="log", started_at=NOON
    )
    ledger.load(batch(observations(observation(response_id="r", id_hi=5, id_lo=5))))
    ledger.load(batch(observations(late_but_smaller)))
    [(old, heir)] = ledger.cursor().execute("SELECT call_id, superseded_by FROM call_revisions").fetchall()
    assert (old, heir) == ("c" + f"{5:016x}" * 2, "c" + f"{1:016x}" * 2)


def test_late_parents_join_what_was_apart(ledger: Ledger) -> None:
    outer = observation(trace_hi=1, trace_lo=1, span_id=10, response_id="r", id_hi=1, id_lo=1)
    inner = observation(
        trace_hi=1,
        trace_lo=1,
        span_id=12,
        parent_span_id=11,
        layer="span:inner",
        id_hi=2,
        id_lo=2,
        input_tokens=None,
        output_tokens=None,
    )
    ledger.load(batch(observations(inner)))
    ledger.load(batch(observations(outer)))
    assert len(calls(ledger)) == 2
    ledger.load(batch(between=links(link(1, 11, 10))))
    assert len(calls(ledger)) == 1


def test_a_second_process_is_refused(tmp_path: Path, ledger: Ledger) -> None:
    with pytest.raises(LedgerLocked, match="held by another process"):
        _open_elsewhere(tmp_path / "ledger.duckdb")


def _open_elsewhere(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from billing.layout import LedgerLocked\n"
        "from billing.store import connect\n"
        "try: connect(Path(sys.argv[1]), memory_limit='100MB', threads=1, wait_s=0.1)\n"
        "except LedgerLocked as e: sys.exit(str(e))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise LedgerLocked(done.stderr)


def _story() -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Records that belong together in every way there is, beside some that do not."""
    rows, between = [], []
    for n in range(12):
        at = NOON + timedelta(seconds=3 * n)
        trace = {"trace_hi": n % 3, "trace_lo": 100 + n % 3}
        rows.append(
            observation(response_id=f"r{n}", **trace, span_id=10 + n, input_tokens=100 + n, started_at=at)
        )
        rows.append(
            observation(
                response_id=f"r{n}",
                layer="log:x",
                signal="log",
                input_tokens=100 + n,
                session_id=f"s{n}",
                started_at=at,
            )
        )
        rows.append(
            observation(
                **trace,
                span_id=200 + n,
                parent_span_id=300 + n,
                layer="span:inner",
                input_tokens=100 + n,
                started_at=at,
            )
        )
        between.append(
            link(trace["trace_hi"], 300 + n, 10 + n, started_at=at) | {"trace_lo": trace["trace_lo"]}
        )
    rows += [observation(started_at=NOON) for _ in range(20)]
    return rows, between


ROWS, BETWEEN = _story()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), pieces=st.integers(1, 6))
def test_any_order_split_and_repetition_gives_the_same_ledger(
    tmp_path_factory: pytest.TempPathFactory, seed: int, pieces: int
) -> None:
    rng = random.Random(seed)
    opened = Ledger.open(tmp_path_factory.mktemp("l") / "ledger.duckdb", epoch="e", pricing=CATALOG)
    records = [("row", row) for row in ROWS] + [("link", row) for row in BETWEEN]
    records += rng.sample(records, 10)
    rng.shuffle(records)
    for n in range(pieces):
        part = records[n::pieces]
        opened.load(
            batch(
                observations(*[row for kind, row in part if kind == "row"]),
                links(*[row for kind, row in part if kind == "link"]),
            )
        )
    found = calls(opened)
    opened.close()
    assert len(found) == 12 + 20
    assert sum(int(str(row[2])) for row in found) == len(ROWS)
    assert found == _expected(tmp_path_factory)


_known: list[list[tuple[object, ...]]] = []


def _expected(factory: pytest.TempPathFactory) -> list[tuple[object, ...]]:
    """The ledger of the whole story in one batch."""
    if not _known:
        opened = Ledger.open(factory.mktemp("l") / "ledger.duckdb", epoch="e", pricing=CATALOG)
        opened.load(batch(observations(*ROWS), links(*BETWEEN)))
        _known.append(calls(opened))
        opened.close()
    return _known[0]


def test_published_sums_equal_a_recomputation_and_follow_revisions(tmp_path: Path, ledger: Ledger) -> None:
    publisher = Publisher(
        ledger.cursor(),
        staging=tmp_path / "staging" / "u.duckdb",
        published=tmp_path / "usage.duckdb",
        epoch="e",
    )
    rng = random.Random(4)
    for _ in range(5):
        rows = rng.sample(ROWS, 20)
        spread = [{**row, "started_at": row["started_at"]} for row in rows]
        ledger.load(batch(observations(*spread), links(*BETWEEN)))
        publisher.publish()
    with duckdb.connect(str(tmp_path / "usage.duckdb"), read_only=True) as published:
        told = published.execute(
            "SELECT sum(calls), sum(input_tokens), sum(list_cost_usd) FROM usage_hourly"
        ).fetchone()
        fresh = published.execute(
            "SELECT count(*), sum(input_tokens), sum(list_cost_usd) FROM calls"
        ).fetchone()
        daily = published.execute(
            "SELECT sum(calls), sum(input_tokens), sum(list_cost_usd) FROM usage_daily"
        ).fetchone()
    assert told == fresh == daily
    assert fresh is not None
    assert fresh[0] == len(calls(ledger))


def test_a_lost_staging_file_is_built_again(tmp_path: Path, ledger: Ledger) -> None:
    staging, published = tmp_path / "staging" / "u.duckdb", tmp_path / "usage.duckdb"
    ledger.load(batch(observations(*ROWS), links(*BETWEEN)))
    cursor = ledger.cursor()
    Publisher(cursor, staging=staging, published=published, epoch="e").publish()
    cursor.execute("DETACH staging")
    staging.write_bytes(b"not a database")
    Publisher(cursor, staging=staging, published=published, epoch="e").publish()
    with duckdb.connect(str(published), read_only=True) as reader:
        assert reader.execute(
            "SELECT (SELECT sum(calls) FROM usage_hourly), count(*) FROM calls"
        ).fetchone() == (32, 32)


def test_what_a_killed_publisher_had_not_written_out_is_not_forgotten(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging, published = tmp_path / "staging" / "u.duckdb", tmp_path / "usage.duckdb"
    cursor = ledger.cursor()
    ledger.load(batch(observations(*ROWS[:20]), links(*BETWEEN)))
    publisher = Publisher(cursor, staging=staging, published=published, epoch="e")
    publisher.publish()
    on_disk = staging.read_bytes()
    ledger.load(batch(observations(*ROWS), links(*BETWEEN)))
    with monkeypatch.context() as killed:
        killed.setattr(Checkpoints, "fold", _killed)
        with pytest.raises(_Killed):
            publisher.publish()
    long_ago = NOON - timedelta(days=400)
    ledger.forget_old_evidence(
        links_before=long_ago, observations_before=long_ago, published_commit=publisher.commit_no
    )
    cursor.execute("DETACH staging")
    staging.write_bytes(on_disk)
    Publisher(cursor, staging=staging, published=published, epoch="e").publish()
    with duckdb.connect(str(published), read_only=True) as reader:
        [summed] = reader.execute("SELECT sum(calls), sum(input_tokens) FROM usage_hourly").fetchall()
        [counted] = reader.execute("SELECT count(*), sum(input_tokens) FROM calls").fetchall()
    assert summed == counted
    assert counted[0] == len(calls(ledger))


class _Killed(Exception):
    """Stands for the end of the process."""


def _killed(_checkpoints: Checkpoints) -> None:
    raise _Killed


def test_the_log_is_folded_after_a_batch_and_after_a_slice_of_a_job(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("billing.ledger._FOLD_ABOVE_BYTES", 0)
    log = tmp_path / "ledger.duckdb.wal"
    ledger.load(batch(observations(*ROWS), links(*BETWEEN)))
    assert not log.exists() or not log.stat().st_size
    ledger.rewrite(ledger.nothing)
    assert not log.exists() or not log.stat().st_size
    assert len(calls(ledger)) == 32


def test_the_published_file_holds_no_evidence(tmp_path: Path, ledger: Ledger) -> None:
    secret = "https://user-endpoint.example/v1"
    ledger.load(batch(observations(observation(url=secret))))
    published = tmp_path / "usage.duckdb"
    Publisher(ledger.cursor(), staging=tmp_path / "s" / "u.duckdb", published=published, epoch="e").publish()
    assert secret.encode() not in published.read_bytes()
    assert published.stat().st_mode & 0o077 == 0


def test_old_evidence_goes_and_the_calls_stay(ledger: Ledger) -> None:
    ledger.load(batch(observations(observation(response_id="r")), links(link(1, 2, 3)), position=9))
    later = datetime.now(UTC) + timedelta(days=1)
    ledger.forget_old_evidence(links_before=later, observations_before=later, published_commit=1)
    left = {
        table: ledger.cursor().execute(f"SELECT count(*) FROM {table}").fetchall()[0][0]
        for table in ("observations", "kept_attributes", "span_links", "dirty_slots", "calls", "commits")
    }
    assert left == dict.fromkeys(left, 0) | {"calls": 1, "commits": 1}


def test_what_was_kept_of_each_record_comes_back(ledger: Ledger) -> None:
    told = observations(*(observation(response_id=f"r{n}", attributes=bytes([n])) for n in range(5)))
    ledger.load(batch(told[:3]))
    ledger.load(batch(told[2:], position=9))
    cursor = ledger.cursor()
    stored = read(cursor, "SELECT id_hi, id_lo, commit_no, response_id FROM observations")
    kept = with_attributes(cursor, stored.cast({"id_hi": pl.UInt64, "id_lo": pl.UInt64}))
    assert {row["response_id"]: row["attributes"] for row in kept.iter_rows(named=True)} == {
        f"r{n}": bytes([n]) for n in range(5)
    }


def test_evidence_younger_than_its_retention_stays(ledger: Ledger) -> None:
    ledger.load(batch(observations(observation(response_id="r")), links(link(1, 2, 3))))
    long_ago = NOON - timedelta(days=400)
    ledger.forget_old_evidence(links_before=long_ago, observations_before=long_ago, published_commit=0)
    for table in ("observations", "span_links", "dirty_slots"):
        assert ledger.cursor().execute(f"SELECT count(*) FROM {table}").fetchall() == [(1,)]


def test_settling_keeps_everything(ledger: Ledger) -> None:
    ledger.load(batch(observations(observation(response_id="r"))))
    before = calls(ledger)
    ledger.settle()
    assert calls(ledger) == before
    ledger.load(batch(observations(observation(response_id="s"))))
    assert len(calls(ledger)) == 2
