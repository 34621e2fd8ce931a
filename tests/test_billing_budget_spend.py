"""Spend on the ledger's side: exact with every commit, in any order, and equal to the calls counted anew."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import duckdb
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing import spend, tables
from billing.budget import Budget, CheckRequest, encode_control, read_budget
from billing.budget_book import BudgetBook, event_of
from billing.budget_period import epoch_s, period_start
from billing.spend_count import Change, Definition, compile_scopes, deltas, floor_of, recount

NOW = datetime(2026, 10, 25, 12, 30, tzinfo=UTC)  # the day on which Berlin's clock is set back
DIMENSIONS = (
    "team",
    "project",
    "environment",
    "agent",
    "user_id",
    "session_id",
    "account_id",
    "provider",
    "model",
    "access",
)
LABELS = pl.List(pl.Struct({"key": pl.String, "value": pl.String}))
SCHEMA: dict[str, Any] = {
    "call_id": pl.String,
    "started_at": pl.Datetime("us", "UTC"),
    **dict.fromkeys(DIMENSIONS, pl.String),
    "labels": LABELS,
    "billed_cost_usd": pl.Decimal(18, 12),
    "list_cost_usd": pl.Decimal(18, 12),
    "input_tokens": pl.Int64,
    "output_tokens": pl.Int64,
    "call_count": pl.Int64,
}
Row = dict[str, Any]
Figures = dict[tuple[str, int], tuple[Decimal, int]]


def frame(rows: Iterable[Row]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=SCHEMA)


def call(call_id: str, started_at: datetime = NOW, **fields: Any) -> Row:
    empty = dict.fromkeys(SCHEMA)
    told = {"input_tokens": 100, "output_tokens": 20, "call_count": 1, "labels": []}
    costs = {"billed_cost_usd": Decimal("0.25"), "list_cost_usd": Decimal("0.5")}
    return {**empty, **told, **costs, "call_id": call_id, "started_at": started_at, **fields}


def budget(budget_id: str, **fields: object) -> Budget:
    return read_budget(json.dumps({"id": budget_id, "limit": "10", "period": "day", **fields}).encode())


@pytest.fixture
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    connection = ledger()
    yield connection
    connection.close()


def ledger() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute(tables.create_table("calls", tables.CALLS))
    connection.execute(
        "CREATE TABLE rejects (journal_offset BIGINT, signal VARCHAR, reason VARCHAR, "
        "received_at TIMESTAMPTZ)"
    )
    for statement in spend.DDL:
        connection.execute(statement)
    return connection


def write(
    con: duckdb.DuckDBPyConnection, *, removed: Iterable[Row] = (), written: Iterable[Row] = ()
) -> None:
    con.execute(
        "DELETE FROM calls WHERE call_id IN (SELECT unnest(?))", [[row["call_id"] for row in removed]]
    )
    con.register("told", frame(written).to_arrow())
    con.execute("INSERT INTO calls BY NAME SELECT * REPLACE (map_from_entries(labels) AS labels) FROM told")
    con.unregister("told")


class House:
    """A ledger, its feed and a front's book, wired as the processes wire them."""

    def __init__(self, con: duckdb.DuckDBPyConnection, *, epoch: str = "e1") -> None:
        self.con = con
        self.epoch = epoch
        self.position = 0
        self.restart()

    def restart(self) -> None:
        self.feed = spend.SpendFeed(self.con, epoch=self.epoch)
        self.book = BudgetBook()
        self.book.apply_snapshot(self._crossed(self.feed.snapshot(position=self.position, now=NOW)))

    @staticmethod
    def _crossed(message: dict[str, Any]) -> dict[str, Any]:
        crossed: dict[str, Any] = json.loads(json.dumps(message))
        return crossed

    def commit(
        self, *controls: bytes, removed: Iterable[Row] = (), written: Iterable[Row] = (), now: datetime = NOW
    ) -> dict[str, Any]:
        removed, written = list(removed), list(written)
        numbered = [(self.position + i, body) for i, body in enumerate(controls, start=1)]
        self.position += len(numbered) + 1
        self.con.execute("BEGIN")
        write(self.con, removed=removed, written=written)
        self.feed.apply_controls(numbered)
        message = self.feed.delta(
            before=frame(removed), after=frame(written), position=self.position, now=now
        )
        self.con.execute("COMMIT")
        self.feed.committed()
        self.book.apply_delta(self._crossed(message))
        return message

    def define(self, *budgets: Budget) -> None:
        self.commit(*(encode_control("put", budget=each) for each in budgets))

    def spent(self, budget_id: str, now: datetime = NOW) -> tuple[str | None, int]:
        figures = self.book.figures(budget_id, now)
        assert figures is not None
        return figures.spent, figures.unpriced_calls


# --- the property -----------------------------------------------------------------------------------------

PERIODS = [
    ("hour", "Asia/Kolkata"),
    ("day", "Europe/Berlin"),
    ("day", "UTC"),
    ("week", "America/New_York"),
    ("month", "Europe/Berlin"),
    ("rolling:5h", "UTC"),
    ("rolling:90m", "UTC"),
    ("total", "UTC"),
    ("first_use:90m", "UTC"),
    ("minute", "UTC"),
]
SCOPES: list[dict[str, Any]] = [
    {},
    {"team": "a"},
    {"team": "b"},
    {"team": "a", "model": "m"},
    {"access": "payg"},
    {"labels": {"k": "1"}},
    {"team": "a", "labels": {"k": "1", 'it\'s "odd"': "2"}},
]
METERS = ["billed_usd", "list_usd", "tokens", "calls"]
BUDGETS = [
    budget(f"{s}-{p}", scope=scope, period=period, time_zone=zone, meter=METERS[(s + p) % 4])
    for s, scope in enumerate(SCOPES)
    for p, (period, zone) in enumerate(PERIODS)
]

_money = st.none() | st.decimals(0, 999999, places=12)
_tokens = st.none() | st.integers(0, 2**40)
_labels = st.dictionaries(st.sampled_from(["k", 'it\'s "odd"']), st.sampled_from(["1", "2"]))
_starts = st.sampled_from(
    [
        NOW,
        NOW - timedelta(seconds=30, microseconds=1),
        NOW - timedelta(minutes=89),
        NOW - timedelta(minutes=91),
        NOW - timedelta(hours=5),
        datetime(2026, 10, 24, 22, tzinfo=UTC),  # midnight in Berlin
        datetime(2026, 10, 24, 21, 59, 59, 999999, tzinfo=UTC),
        datetime(2026, 10, 25, 0, 30, tzinfo=UTC),  # 02:30, for the first
        datetime(2026, 10, 25, 1, 30, tzinfo=UTC),  # and for the second time
        datetime(2026, 9, 30, 22, tzinfo=UTC),
        datetime(2026, 10, 25, 23, tzinfo=UTC),  # tomorrow in Berlin
        datetime(2026, 11, 2, tzinfo=UTC),
        datetime(2020, 2, 29, tzinfo=UTC),
    ]
)


def _rows(ids: st.SearchStrategy[str]) -> st.SearchStrategy[Row]:
    return st.builds(
        call,
        ids,
        _starts,
        team=st.sampled_from(["a", "b", None]),
        model=st.sampled_from(["m", "n", None]),
        access=st.sampled_from(["payg", "subscription"]),
        labels=st.none() | _labels.map(lambda told: [{"key": k, "value": v} for k, v in told.items()]),
        billed_cost_usd=_money,
        list_cost_usd=_money,
        input_tokens=_tokens,
        output_tokens=_tokens,
        call_count=st.sampled_from([1, None]),
    )


def _matches(of: Budget, row: Row) -> bool:
    labels = {each["key"]: each["value"] for each in row["labels"] or ()}
    told = {**{d: row[d] for d in DIMENSIONS}, **{f"labels.{k}": v for k, v in labels.items()}}
    return all(told.get(dim) == value for dim, value in of.scope.dimensions().items())


def _amount(of: Budget, row: Row) -> tuple[Decimal, int]:
    columns = {
        "billed_usd": ["billed_cost_usd"],
        "list_usd": ["list_cost_usd"],
        "tokens": ["input_tokens", "output_tokens"],
        "calls": ["call_count"],
    }[of.meter]
    parts = [row[column] for column in columns]
    return sum((Decimal(part) for part in parts if part is not None), Decimal(0)), int(None in parts)


def _by_hand(rows: Iterable[Row], budgets: Iterable[Budget] = BUDGETS) -> Figures:
    """The same in plain loops: no frames, no SQL."""
    figures: Figures = defaultdict(lambda: (Decimal(0), 0))
    for of in budgets:
        for row in rows:
            if _matches(of, row):
                bucket = epoch_s(period_start(of.parsed_period(), row["started_at"]))
                (had, unknown), (more, one) = figures[of.id, bucket], _amount(of, row)
                figures[of.id, bucket] = had + more, unknown + one
    return _nonzero(figures)


def _sum(changes: Iterable[Change]) -> Figures:
    figures: Figures = defaultdict(lambda: (Decimal(0), 0))
    for each in changes:
        key = each.definition.budget.id, each.bucket_s
        figures[key] = figures[key][0] + each.amount, figures[key][1] + each.unpriced
    return _nonzero(figures)


def _nonzero(figures: Figures) -> Figures:
    return {key: value for key, value in figures.items() if value != (0, 0)}


def _current(figures: Figures) -> Figures:
    """What may still be asked for: a recount looks no further back."""
    floors = {each.id: floor_of(each.parsed_period(), NOW) for each in BUDGETS}
    return {key: value for key, value in figures.items() if key[1] >= epoch_s(floors[key[0]])}


_IDS = st.sampled_from([f"c{n}" for n in range(12)])
_batches = st.lists(
    st.lists(_rows(_IDS), min_size=1, max_size=6, unique_by=lambda row: row["call_id"]), max_size=6
)


@settings(max_examples=30, deadline=None)
@given(batches=_batches)
def test_changes_add_up_to_the_calls_counted_anew_and_by_hand(batches: list[list[Row]]) -> None:
    """Whatever is written, and written anew, whatever its start becomes: three ways of counting agree."""
    scopes = compile_scopes(Definition(each, 1) for each in BUDGETS)
    calls: dict[str, Row] = {}
    changes: list[Change] = []
    for rows in batches:
        removed = [calls[row["call_id"]] for row in rows if row["call_id"] in calls]
        changes += deltas(scopes, before=frame(removed), after=frame(rows))
        calls |= {row["call_id"]: row for row in rows}
    added, by_hand = _sum(changes), _by_hand(calls.values())
    assert added == by_hand
    con = ledger()
    write(con, written=calls.values())
    assert _current(_sum(recount(con, scopes, now=NOW))) == _current(by_hand)
    con.close()


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(_rows(_IDS), max_size=12, unique_by=lambda row: row["call_id"]), data=st.data())
def test_order_and_splits_do_not_matter(rows: list[Row], data: st.DataObject) -> None:
    scopes = compile_scopes(Definition(each, 1) for each in BUDGETS)
    whole = _sum(deltas(scopes, before=None, after=frame(rows)))
    shuffled = data.draw(st.permutations(rows))
    cut = data.draw(st.integers(0, len(rows)))
    parts = [
        *deltas(scopes, before=None, after=frame(shuffled[:cut])),
        *deltas(scopes, before=None, after=frame(shuffled[cut:])),
    ]
    assert _sum(parts) == whole
    back = [*parts, *deltas(scopes, before=frame(rows), after=None)]
    assert _sum(back) == {}


@settings(max_examples=12, deadline=None)
@given(batches=_batches, data=st.data())
def test_the_front_s_book_equals_the_calls_after_any_history(
    batches: list[list[Row]], data: st.DataObject
) -> None:
    """Definitions at any moment, revisions, restarts: what the book shows is what the calls hold."""
    house, calls = House(ledger()), dict[str, Row]()
    waiting = data.draw(st.permutations(BUDGETS))
    for rows in batches:
        controls = [encode_control("put", budget=waiting.pop()) for _ in range(data.draw(st.integers(0, 9)))]
        removed = [calls[row["call_id"]] for row in rows if row["call_id"] in calls]
        house.commit(*controls, removed=removed, written=rows)
        calls |= {row["call_id"]: row for row in rows}
        if data.draw(st.booleans()):
            house.restart()
    house.define(*waiting)
    by_hand = _by_hand(calls.values())
    for each in BUDGETS:
        if each.period.startswith("first_use"):
            expected = _of_open_window(each, by_hand)
        elif each.period.startswith("rolling"):
            floor = epoch_s(floor_of(each.parsed_period(), NOW))
            expected = [v for (name, bucket), v in by_hand.items() if name == each.id and bucket >= floor]
        else:
            start = epoch_s(period_start(each.parsed_period(), NOW))
            expected = [v for key, v in by_hand.items() if key == (each.id, start)]
        spent, unpriced = house.spent(each.id)
        assert spent is not None
        assert Decimal(spent) == sum((amount for amount, _ in expected), Decimal(0))
        assert unpriced == sum(unknown for _, unknown in expected)
    house.con.close()


def _of_open_window(of: Budget, figures: Figures) -> list[tuple[Decimal, int]]:
    """What counts at NOW in a window from first use: walked minute by minute, in plain loops."""
    window_s, now_s = of.parsed_period().window_s, epoch_s(NOW)
    minutes = sorted((bucket, value) for (name, bucket), value in figures.items() if name == of.id)
    start: int | None = None
    counted: list[tuple[Decimal, int]] = []
    for minute_s, value in minutes:
        if start is None or minute_s >= start + window_s:
            if minute_s > now_s:
                break
            start, counted = minute_s, []
        counted.append(value)
    return counted if start is not None and now_s < start + window_s else []


# --- money and gaps ---------------------------------------------------------------------------------------


def test_every_digit_is_kept() -> None:
    scopes = compile_scopes([Definition(budget("b"), 1)])
    rows = [call(f"c{n}", billed_cost_usd=Decimal("0.000000000001")) for n in range(3)]
    rows.append(call("big", billed_cost_usd=Decimal("999999.999999999999")))
    (change,) = deltas(scopes, before=None, after=frame(rows))
    assert change.amount == Decimal("1000000.000000000002")


def test_token_sums_do_not_wrap() -> None:
    scopes = compile_scopes([Definition(budget("b", meter="tokens"), 1)])
    rows = [call(f"c{n}", input_tokens=2**62, output_tokens=2**62) for n in range(4)]
    (change,) = deltas(scopes, before=None, after=frame(rows))
    assert change.amount == 2**65


def test_what_is_not_known_is_counted_apart(con: duckdb.DuckDBPyConnection) -> None:
    house = House(con)
    house.define(*(budget(meter, meter=meter) for meter in METERS))
    unknown = dict.fromkeys(("billed_cost_usd", "list_cost_usd", "output_tokens", "call_count"))
    house.commit(written=[call("known"), call("unknown", **unknown)])
    assert {meter: house.spent(meter) for meter in METERS} == {
        "billed_usd": ("0.25", 1),
        "list_usd": ("0.5", 1),
        "tokens": ("220", 1),  # what was told of the second counts
        "calls": ("1", 1),
    }
    house.commit(removed=[call("unknown", **unknown)], written=[call("unknown")])  # priced later
    assert house.spent("billed_usd") == ("0.5", 0)


def test_a_call_without_a_start_is_refused_not_lost() -> None:
    scopes = compile_scopes([Definition(budget("b"), 1)])
    with pytest.raises(ValueError, match="without a start"):
        deltas(scopes, before=None, after=frame([{**call("c"), "started_at": None}]))


# --- definitions ------------------------------------------------------------------------------------------


def test_a_new_budget_counts_the_calls_of_its_period(con: duckdb.DuckDBPyConnection) -> None:
    house = House(con)
    yesterday = NOW - timedelta(days=1)
    house.commit(written=[call("old", yesterday), call("c1"), call("c2", team="a")])
    house.define(budget("all"), budget("a", scope={"team": "a"}), budget("ever", period="total"))
    assert (house.spent("all"), house.spent("a"), house.spent("ever")) == (
        ("0.5", 0),
        ("0.25", 0),
        ("0.75", 0),
    )


def test_a_new_rolling_budget_counts_from_the_first_minute_of_its_window(
    con: duckdb.DuckDBPyConnection,
) -> None:
    house = House(con)
    edges = {"in": timedelta(hours=5), "out": timedelta(hours=5, microseconds=1), "now": timedelta(0)}
    house.commit(written=[call(call_id, NOW - ago) for call_id, ago in edges.items()])
    house.define(budget("b", period="rolling:5h"))
    assert house.spent("b") == ("0.5", 0)
    assert house.spent("b", NOW + timedelta(seconds=59)) == ("0.5", 0)
    assert house.spent("b", NOW + timedelta(seconds=60)) == ("0.25", 0)


def test_calls_of_the_commit_that_defines_a_budget_count_once(con: duckdb.DuckDBPyConnection) -> None:
    house = House(con)
    house.commit(encode_control("put", budget=budget("b")), written=[call("c1")])
    assert house.spent("b") == ("0.25", 0)
    house.commit(
        encode_control("put", budget=budget("b", scope={"team": "a"})), written=[call("c2", team="a")]
    )
    assert house.spent("b") == ("0.25", 0)
    house.restart()
    assert house.spent("b") == ("0.25", 0)


def test_deleted_is_deleted_and_old_records_do_not_bring_it_back(con: duckdb.DuckDBPyConnection) -> None:
    house = House(con)
    put, delete = encode_control("put", budget=budget("b")), encode_control("delete", budget_id="b")
    house.feed.apply_controls([(10, put), (20, delete)])
    house.feed.apply_controls([(10, put)])
    assert house.feed.delta(before=None, after=None, position=20, now=NOW)["defined"] == []
    house.feed.committed()
    house.feed.apply_controls([(30, put)])
    again = house.feed.delta(before=None, after=None, position=30, now=NOW)
    assert [each["offset"] for each in again["defined"]] == [30]


def test_records_that_come_again_change_nothing(con: duckdb.DuckDBPyConnection) -> None:
    house = House(con)
    control = [(10, encode_control("put", budget=budget("b"))), (11, _event())]
    for _ in range(2):
        house.feed.apply_controls(control)
    assert con.sql("SELECT count(*) FROM budget_definitions").fetchall() == [(1,)]
    assert con.sql("SELECT number, journal_offset FROM budget_events").fetchall() == [(1, 11)]


def test_a_new_journal_counts_its_positions_from_the_start(con: duckdb.DuckDBPyConnection) -> None:
    """Budgets outlive the journal; positions of the old one say nothing about those of the new."""
    old = House(con, epoch="e1")
    old.position = 10**6
    old.define(budget("b"))
    old.commit(written=[call("c1")])
    new = House(con, epoch="e2")
    assert new.spent("b") == ("0.25", 0)
    new.define(budget("b", limit="77"))
    new.commit(written=[call("c2")])
    again = new.book.get("b")
    assert again is not None
    assert (str(again.limit), new.spent("b")) == ("77", ("0.5", 0))


def test_what_cannot_be_read_is_rejected_alone(con: duckdb.DuckDBPyConnection) -> None:
    house = House(con)
    house.commit(
        b"\xff", b'{"v":9,"op":"put"}', encode_control("put", budget=budget("b")), written=[call("c1")]
    )
    assert house.spent("b") == ("0.25", 0)
    rejects = con.sql("SELECT journal_offset, signal, reason FROM rejects ORDER BY 1").fetchall()
    assert [(offset, signal) for offset, signal, _ in rejects] == [(1, "control"), (2, "control")]
    assert all(reason.startswith("control_unreadable: ") for _, _, reason in rejects)


def test_a_transaction_that_fails_leaves_nothing(con: duckdb.DuckDBPyConnection) -> None:
    house = House(con)
    house.define(budget("kept"))
    con.execute("BEGIN")
    write(con, written=[call("c1")])
    house.feed.apply_controls([(99, encode_control("put", budget=budget("lost")))])
    house.feed.delta(before=None, after=frame([call("c1")]), position=99, now=NOW)
    con.execute("ROLLBACK")
    house.feed.rolled_back()
    message = house.commit(written=[call("c2")])
    assert message["defined"] == []
    assert [each["budget"] for each in message["changes"]] == ["kept"]
    assert house.spent("kept") == ("0.25", 0)
    house.restart()
    assert house.spent("kept") == ("0.25", 0)
    assert house.book.get("lost") is None


def test_recorded_changes_are_summed_up_before_they_are_many(
    con: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spend, "COMPACT_ROWS", 20)
    house = House(con)
    house.define(budget("day"), budget("rolling", period="rolling:1h"), budget("ever", period="total"))
    for n in range(60):
        house.commit(written=[call(f"c{n}", NOW - timedelta(days=9 * (n % 2)))])
    (rows,) = con.sql("SELECT count(*) FROM budget_spend").fetchall()[0]
    assert rows < 25
    expected = {"day": ("7.5", 0), "rolling": ("7.5", 0), "ever": ("15", 0)}
    assert {each: house.spent(each) for each in expected} == expected
    house.restart()
    assert {each: house.spent(each) for each in expected} == expected


# --- events and the published file ------------------------------------------------------------------------


def _event() -> bytes:
    book = BudgetBook()
    definition = {"budget": budget("b").model_dump(mode="json"), "offset": 1}
    bucket = {"bucket_s": epoch_s(NOW.replace(hour=0, minute=0)), "amount": "9.99", "unpriced": 2}
    entry = {**definition, "spend": [bucket]}
    book.apply_snapshot({"seq": 0, "offset": 1, "at_s": epoch_s(NOW), "budgets": [entry]})
    request = CheckRequest.model_validate_json(
        '{"scope": {"team": "ä"}, "model": "m", "estimate": {"usd": "0.02"}, "trace_id": "%s"}' % ("0" * 32)
    )
    event = event_of(request, book.check(request, NOW, None), NOW)
    assert event is not None
    return encode_control("event", event=event)


def rows(con: duckdb.DuckDBPyConnection, query: str) -> list[dict[str, Any]]:
    return pl.DataFrame(pl.from_arrow(con.sql(query).to_arrow_table())).to_dicts()  # type: ignore[arg-type]


def test_an_event_keeps_the_figures_of_its_moment(con: duckdb.DuckDBPyConnection) -> None:
    House(con).commit(_event())
    (told,) = rows(con, "SELECT * FROM budget_events")
    assert told == {
        "number": 1,
        "happened_at": NOW,
        "source": "check",
        "decision": "deny",
        "budget_id": "b",
        "threshold": Decimal("1"),
        "meter": "billed_usd",
        "limit_amount": Decimal("10"),
        "period": "day",
        "spent": Decimal("9.99"),
        "reserved": Decimal(0),
        "estimate": Decimal("0.02"),
        "unpriced_calls": 2,
        "resets_at": datetime(2026, 10, 26, tzinfo=UTC),
        "estimate_usd": Decimal("0.02"),
        "scope": '{"team": "ä"}',
        "model": "m",
        "trace_id": "0" * 32,
        "reason": "budget b denies: 9.99 of 10 USD billed spent today and 0.02 more for this call "
        "pass 100% of the limit",
        "shadow": False,
        "journal_epoch": "e1",
        "journal_offset": 1,
    }


def test_the_published_file_has_the_figures_and_every_event_once(con: duckdb.DuckDBPyConnection) -> None:
    con.execute("ATTACH ':memory:' AS staging")
    for statement in [*spend.published_ddl("staging"), *spend.published_ddl("staging")]:
        con.execute(statement)
    house = House(con)
    house.define(
        budget("b", scope={"team": "a"}, limit="0.2"), budget("r", period="rolling:5h", meter="tokens")
    )
    house.commit(_event(), written=[call("c1", team="a"), call("c2", billed_cost_usd=None, team="a")])
    spend.publish(con, "staging", now=NOW)
    house.commit(_event())
    house.commit(encode_control("delete", budget_id="gone"))
    spend.publish(con, "staging", now=NOW)
    figures = "id, scope, limit_amount, spent, remaining, unpriced_calls, resets_at, as_of"
    shown = rows(con, f"SELECT {figures} FROM staging.budgets ORDER BY id")
    assert [tuple(each.values()) for each in shown] == [
        (
            *("b", '{"team": "a"}', Decimal("0.2"), Decimal("0.25"), Decimal("-0.05"), 1),
            *(datetime(2026, 10, 26, tzinfo=UTC), NOW),
        ),
        ("r", "{}", Decimal(10), Decimal(240), Decimal(-230), 0, NOW + timedelta(hours=5, minutes=1), NOW),
    ]
    assert con.sql("SELECT number FROM staging.budget_events").fetchall() == [(1,), (2,)]
    spend.publish(con, "staging", now=NOW + timedelta(days=1))
    assert con.sql("SELECT spent FROM staging.budgets ORDER BY id").fetchall() == [
        (Decimal(0),),
        (Decimal(0),),
    ]
