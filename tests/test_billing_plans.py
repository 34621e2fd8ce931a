"""Plan windows, their pace, what a plan is worth, who bears its fee: from real commits, at any instant."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from billing.ledger import Batch, Ledger
from billing.plan_periods import calendar_span, renewal_span
from billing.plan_share import allocate
from billing.publish import Publisher
from billing.store import read
from catalog.catalog import Catalog
from catalog.plan_facts import Window
from tests.observed import NO_REJECTS, NOTHING_UNRECOGNISED, links, observation, observations

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
ACCOUNTS = """
[[account]]
id = "engineering"
provider = "anthropic"
access = "subscription"
plan = "claude-max"
tier = "5x"
seats = 2
renews_on = 15
windows = [{ id = "5h", size = "8", unit = "requests" }]

[[account]]
id = "go"
account_id = "go-1"
provider = "opencode-go"
access = "subscription"
plan = "opencode-go"
invoice = "10"
"""


@dataclass
class House:
    """A ledger and its published tables, read at any instant."""

    ledger: Ledger
    publisher: Publisher
    loaded: int = 0

    def load(self, *rows: dict[str, Any]) -> None:
        self.loaded += 1
        batch = Batch(
            observations=observations(*rows),
            links=links(),
            rejects=NO_REJECTS,
            unrecognised=NOTHING_UNRECOGNISED,
            position=self.loaded,
        )
        self.ledger.load(batch)
        self.publisher.publish()

    def rows(self, table: str, now: datetime, **where: object) -> list[dict[str, Any]]:
        self.publisher.plans.publish(now)
        found = read(self.publisher._db, f"SELECT * FROM staging.{table}").to_dicts()
        return [row for row in found if all(row[key] == value for key, value in where.items())]

    def window(self, now: datetime, quota: str = "5h", plan_id: str = "claude-max") -> dict[str, Any]:
        (row,) = self.rows("plans", now, quota=quota, plan_id=plan_id)
        return row


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    accounts = tmp_path / "accounts.toml"
    accounts.write_text(ACCOUNTS)
    catalog = Catalog.load(tmp_path / "prices", accounts_file=accounts)
    ledger = Ledger.open(tmp_path / "ledger.duckdb", epoch="e", pricing=catalog)
    publisher = Publisher(
        ledger.cursor(),
        staging=tmp_path / "staging" / "u.duckdb",
        published=tmp_path / "usage.duckdb",
        epoch="e",
        plans=catalog.plans,
    )
    yield House(ledger, publisher)
    ledger.close()


def claude(at: datetime, *, account: str = "seat-1", **told: Any) -> dict[str, Any]:
    """A call under the Claude plan, as Claude Code tells it."""
    facts = {
        "provider_name": "anthropic",
        "request_model": "claude-opus-4-6",
        "response_model": "claude-opus-4-6",
        "access_hint": "subscription",
        "access_evidence": "anthropic.plan=max",
        "account_id": account,
        "started_at": at,
    }
    return observation(**(facts | told))


def test_a_window_begins_with_the_first_use_and_the_next_with_the_first_after_its_end(house: House) -> None:
    first = NOON + timedelta(seconds=7)
    house.load(*(claude(first + i * HOUR) for i in range(5)))
    row = house.window(first + 4 * HOUR + 30 * MINUTE)
    assert (row["starts_at"], row["ends_at"]) == (first, first + 5 * HOUR)
    assert (row["used"], row["size"], row["unit"], row["calls"]) == (5, 8, "requests", 5)
    assert (row["used_fraction"], row["used_from"]) == (Decimal("0.625000"), "calls")
    assert row["elapsed_fraction"] == Decimal("0.900000")
    assert row["pace"] == Decimal("0.694444") and row["exhausted_at"] is None

    over = house.window(first + 5 * HOUR + MINUTE)
    assert (over["starts_at"], over["used"], over["pace"]) == (None, 0, None)

    house.load(claude(first + 5 * HOUR - timedelta(microseconds=1)), claude(first + 7 * HOUR))
    row = house.window(first + 7 * HOUR + MINUTE)
    assert (row["starts_at"], row["used"]) == (first + 7 * HOUR, 1)
    assert row["exhausted_at"] == first + 7 * HOUR + 8 * MINUTE


def test_a_call_that_comes_late_moves_the_windows_after_it(house: House) -> None:
    house.load(claude(NOON), claude(NOON + 6 * HOUR))
    now = NOON + 6 * HOUR + MINUTE
    assert house.window(now)["starts_at"] == NOON + 6 * HOUR
    house.load(claude(NOON - 4 * HOUR))  # its window ends at 13:00; the call of noon is in it
    assert house.window(now)["starts_at"] == NOON + 6 * HOUR
    house.load(claude(NOON + 2 * HOUR))  # begins one that lasts until 19:00 and holds the call of 18:00
    assert (house.window(now)["starts_at"], house.window(now)["used"]) == (NOON + 2 * HOUR, 2)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_order_of_arrival_changes_no_window(house: House, seed: int) -> None:
    rng = random.Random(seed)
    times = sorted(NOON + timedelta(seconds=rng.randrange(3 * 86400)) for _ in range(40))
    now = times[-1] + MINUTE
    shuffled = rng.sample(times, len(times))
    for part in (shuffled[:15], shuffled[15:30], shuffled[30:]):
        house.load(*(claude(at) for at in part))
    start = times[0]
    for at in times:
        start = at if at >= start + 5 * HOUR else start
    row = house.window(now)
    open_now = now < start + 5 * HOUR
    assert row["starts_at"] == (start if open_now else None)
    assert row["used"] == (sum(at >= start for at in times) if open_now else 0)


def test_ten_seats_are_ten_windows(house: House) -> None:
    house.load(*(claude(NOON + n * MINUTE, account=f"seat-{n}") for n in range(10)))
    rows = house.rows("plans", NOON + HOUR, quota="5h", plan_id="claude-max")
    assert len(rows) == 10 and {row["used"] for row in rows} == {1}
    assert {row["starts_at"] for row in rows} == {NOON + n * MINUTE for n in range(10)}


def test_what_the_provider_said_beats_the_count(house: House) -> None:
    resets = NOON + 3 * HOUR
    said = (
        f"anthropic-ratelimit-unified-5h-utilization=0.91;anthropic-ratelimit-unified-5h-reset={resets.timestamp():.0f};"
        "anthropic-ratelimit-unified-7d-utilization=0.4"
    )
    house.load(claude(NOON, headers=said), claude(NOON + MINUTE))
    row = house.window(NOON + HOUR)
    assert (row["used_fraction"], row["used_from"]) == (Decimal("0.910000"), "provider")
    assert (row["starts_at"], row["ends_at"]) == (resets - 5 * HOUR, resets)
    assert row["used"] == 2 and row["seen_at"] == NOON + timedelta(seconds=1)
    week = house.window(NOON + HOUR, "7d")
    assert (week["used_fraction"], week["used_from"], week["used"]) == (Decimal("0.4"), "provider", None)
    older = said.replace("0.91", "0.2")
    house.load(claude(NOON - MINUTE, headers=older))  # comes late: an older word
    assert house.window(NOON + HOUR)["used_fraction"] == Decimal("0.910000")
    assert house.window(resets + MINUTE)["used_from"] != "provider"  # of a window that is over


def test_a_quota_in_dollars_counts_list_prices_and_calendar_weeks(house: House) -> None:
    def go(at: datetime) -> dict[str, Any]:
        return observation(
            provider_name="opencode-go",
            request_model="glm-4.6",
            response_model="glm-4.6",
            url="https://opencode.ai/zen/go/v1/chat/completions",
            account_id="go-1",
            started_at=at,
            input_tokens=1_000_000,
            output_tokens=0,
        )

    monday = datetime(2026, 11, 16, tzinfo=UTC)
    house.load(go(monday - timedelta(seconds=1)), go(monday), go(NOON))
    row = house.window(NOON + HOUR, "week", plan_id="opencode-go")
    assert (row["starts_at"], row["size"], row["unit"]) == (monday, 30, "list_usd")
    assert row["calls"] == 2 and row["used"] == row["list_cost_usd"] > 0
    [(drawn, billed)] = read(
        house.publisher._db,
        "SELECT DISTINCT plan_draw, billed_cost_usd FROM calls WHERE plan_id = 'opencode-go'",
    ).iter_rows()
    assert (drawn * 2, billed) == (row["used"], 0)


def test_fees_are_split_to_the_cent_and_compared_with_the_value(house: House) -> None:
    teams = ["red", "green", "blue", None]
    calls = [
        claude(NOON + n * HOUR, account=f"seat-{n % 3}", team=teams[n % 4], input_tokens=1_000_000 + 7919 * n)
        for n in range(40)
    ]
    house.load(*calls)
    now = NOON + 40 * HOUR
    month, *before = house.rows("plan_values", now, account="engineering")
    assert before == [] or all(row["calls"] == 0 for row in before)
    assert (month["fee"], month["currency"], month["seats"], month["calls"]) == (200, "USD", 2, 40)
    assert month["period_starts_at"] == datetime(2026, 11, 15, tzinfo=UTC)
    assert month["value_ratio"] == (month["value_usd"] / 200).quantize(Decimal("1e-6"))
    shares = house.rows("plan_shares", now, account="engineering", period_starts_at=month["period_starts_at"])
    assert sum(row["fee_share"] for row in shares) == 200 and len(shares) == 4
    assert sum(row["value_usd"] for row in shares) == month["value_usd"]
    assert all(row["fee_share"] == row["fee_share"].quantize(Decimal("0.01")) for row in shares)
    ranked = sorted(shares, key=lambda row: row["value_usd"])
    assert ranked == sorted(shares, key=lambda row: row["fee_share"])
    assert month["broke_even"] is True and NOON < month["break_even_at"] <= now
    early = NOON + 20 * HOUR
    assert house.rows("plan_values", early, account="engineering")[0]["fee"] == 200


def test_a_plan_that_nobody_uses_still_costs_its_fee(house: House) -> None:
    rows = house.rows("plan_shares", NOON, account="go")
    assert [(row["team"], row["fee_share"]) for row in rows][:1] == [(None, Decimal(10))]
    value = house.rows("plan_values", NOON, account="go")[0]
    assert (value["value_usd"], value["break_even_at"], value["broke_even"]) == (0, None, False)


def test_seats_that_no_account_fits_have_a_value_and_no_fee(house: House) -> None:
    codex = observation(
        request_model="gpt-5.4",
        response_model="gpt-5.4",
        access_evidence="auth_mode=Chatgpt",
        emitter="codex",
    )
    house.load(codex)
    (row,) = (r for r in house.rows("plan_values", NOON + HOUR, plan_id="chatgpt") if r["calls"])
    assert (row["account"], row["fee"], row["value_ratio"], row["seats"]) == (None, None, None, 1)
    assert row["value_usd"] > 0 and house.rows("plan_shares", NOON, plan_id="chatgpt") == []


@pytest.mark.parametrize("seed", range(20))
def test_parts_always_sum_to_the_invoice(seed: int) -> None:
    rng = random.Random(seed)
    amount = Decimal(rng.randrange(10**7)) / rng.choice([1, 10, 100, 1000])
    shares: dict[str | None, Decimal] = {
        f"team-{n}": Decimal(rng.randrange(10**15)) / 10**12 for n in range(rng.randint(1, 30))
    }
    shares[None] = Decimal(1)
    parts = allocate(amount, shares)
    assert sum(parts.values()) == amount and all(part >= 0 for part in parts.values())
    total = sum(shares.values())
    assert all(abs(parts[name] - amount * share / total) < Decimal("0.01") for name, share in shares.items())
    assert parts == allocate(amount, dict(reversed(list(shares.items()))))


WEEK = Window(id="week", kind="week", time_zone="Europe/Berlin")
DAY = Window(id="day", kind="day", time_zone="America/Los_Angeles")


@pytest.mark.parametrize(
    ("window", "now", "starts_at", "hours"),
    [
        # Clocks are set back on 25 October 2026 and forward on 29 March 2026: these weeks are not 168 hours.
        (WEEK, "2026-10-25T12:00+00:00", "2026-10-18T22:00+00:00", 169),
        (WEEK, "2026-03-29T12:00+00:00", "2026-03-22T23:00+00:00", 167),
        (DAY, "2026-11-01T12:00+00:00", "2026-11-01T07:00+00:00", 25),
        (Window(id="month", kind="month"), "2026-02-28T23:59+00:00", "2026-02-01T00:00+00:00", 28 * 24),
        (Window(id="4h", kind="sliding", length="4h"), "2026-02-28T23:59+00:00", "2026-02-28T19:59+00:00", 4),
    ],
)
def test_calendar_windows_follow_their_zone(window: Window, now: str, starts_at: str, hours: int) -> None:
    span = calendar_span(window, datetime.fromisoformat(now), renews_on=1, time_zone="UTC")
    assert span is not None and span.starts_at == datetime.fromisoformat(starts_at)
    assert span.length == timedelta(hours=hours)


@pytest.mark.parametrize(
    ("at", "renews_on", "zone", "starts_at", "ends_at"),
    [
        ("2026-01-31T12:00Z", 31, "UTC", "2026-01-31T00:00Z", "2026-02-28T00:00Z"),
        ("2026-02-28T00:00Z", 31, "UTC", "2026-02-28T00:00Z", "2026-03-31T00:00Z"),
        ("2024-02-29T00:00Z", 30, "UTC", "2024-02-29T00:00Z", "2024-03-30T00:00Z"),
        ("2026-12-20T00:00Z", 15, "UTC", "2026-12-15T00:00Z", "2027-01-15T00:00Z"),
        ("2026-01-14T00:00Z", 15, "UTC", "2025-12-15T00:00Z", "2026-01-15T00:00Z"),
        ("2026-11-14T18:29Z", 15, "Asia/Kolkata", "2026-10-14T18:30Z", "2026-11-14T18:30Z"),
        ("2026-11-14T18:30Z", 15, "Asia/Kolkata", "2026-11-14T18:30Z", "2026-12-14T18:30Z"),
    ],
)
def test_a_plans_month_begins_on_the_day_it_renews(
    at: str, renews_on: int, zone: str, starts_at: str, ends_at: str
) -> None:
    span = renewal_span(datetime.fromisoformat(at), renews_on=renews_on, time_zone=zone)
    assert span.starts_at == datetime.fromisoformat(starts_at)
    assert span.ends_at == datetime.fromisoformat(ends_at)
