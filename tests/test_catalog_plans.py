"""Plans and the operator's accounts: shipped facts agree with the providers, wrong files are told by line."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

from catalog.accounts import chosen_rule, fitting_rules
from catalog.catalog import Catalog
from catalog.errors import AccountFileError
from catalog.plan_book import PlanBook, load_plan_book, load_plans
from catalog.plan_draw import plan_draws
from catalog.provider_book import load_book
from catalog.quote import Quotes

BOOK = load_book()
PLANS = load_plans()

TEN_SEATS = """
[[account]]
id = "engineering"
account_id = "org-1"
provider = "anthropic"
access = "subscription"
plan = "claude-max"
tier = "20x"
seats = 10
since = 2026-03-01T00:00:00+01:00
renews_on = 31
time_zone = "Europe/Berlin"
windows = [{ id = "5h", size = "900", unit = "requests" }]

[[account]]
id = "before"
account_id = "org-1"
access = "payg"
until = 2026-03-01T00:00:00+01:00
"""


def accounts(tmp_path: Path, text: str) -> PlanBook:
    path = tmp_path / "accounts.toml"
    path.write_text(text, encoding="utf-8")
    return load_plan_book(BOOK, path)


def test_every_plan_of_a_provider_is_a_plan_and_says_where_from() -> None:
    named = {
        plan
        for provider in BOOK.providers.values()
        for facts in ([provider], provider.hosts, provider.statements, provider.markers, provider.endpoints)
        for plan in (fact.plan for fact in facts)
        if plan
    } | {plan for provider in BOOK.providers.values() for plan in provider.plans}
    assert named <= set(PLANS)
    for plan in PLANS.values():
        assert plan.provider in BOOK.providers and plan.source and plan.checked
        assert plan.windows or plan.note, f"{plan.id} says nothing about its quota"
        assert all(isinstance(tier.fee, Decimal) for tier in plan.tiers)


def test_an_account_is_a_subscription_from_its_day_on(tmp_path: Path) -> None:
    book = accounts(tmp_path, TEN_SEATS)
    for at, access in (
        (datetime(2026, 2, 28, 22, 59, 59, tzinfo=UTC), "payg"),
        (datetime(2026, 2, 28, 23, 0, tzinfo=UTC), "subscription"),
    ):
        fits = fitting_rules(book.rules, account_id="org-1", service=None, at=at)
        rule = chosen_rule(book.rules, fits, "anthropic")
        assert rule is not None and rule.access == access
    assert fitting_rules(book.rules, account_id="other", service=None, at=at) is None


def test_the_ledger_and_the_front_follow_the_same_accounts(tmp_path: Path) -> None:
    path = tmp_path / "accounts.toml"
    path.write_text(TEN_SEATS)
    cache = tmp_path / "prices"
    catalog, quotes = Catalog.load(cache, accounts_file=path), Quotes.load(cache, accounts_file=path)
    assert catalog.version == quotes.version != Quotes.load(cache).version
    days = [datetime(2026, 2, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC)]
    calls = pl.DataFrame(
        {
            "request_model": ["claude-opus-4-6"] * 2,
            "provider_name": ["anthropic"] * 2,
            "account_id": ["org-1"] * 2,
            "started_at": pl.Series(days, dtype=pl.Datetime("us", "UTC")),
            "input_tokens": [1000] * 2,
            "output_tokens": [100] * 2,
            "status": ["ok"] * 2,
        }
    )
    rated = catalog.rate(catalog.resolve(calls))
    assert rated["access"].to_list() == ["payg", "subscription"]
    assert rated["plan_id"].to_list() == [None, "claude-max"]
    assert rated["billed_cost_usd"].to_list() == [rated["list_cost_usd"][0], Decimal(0)]
    assert rated["list_cost_usd"][0] == rated["list_cost_usd"][1] > 0
    assert [quotes.account_access("org-1", provider="anthropic", at=day) for day in days] == [
        "payg",
        "subscription",
    ]


def test_a_call_draws_what_its_plan_counts(tmp_path: Path) -> None:
    text = """
    [[plan]]
    id = "own-plan"
    name = "Our own"
    provider = "zai-coding-plan"
    source = "contract 7"
    checked = 2026-11-22
    unit = "requests"
    weights = [{ models = ["zhipuai/glm-5*"], weight = "3" }, { models = ["zhipuai/*"], weight = "0.5" }]
    """
    book = accounts(tmp_path, text)
    calls = pl.DataFrame(
        {
            "plan_id": [
                "own-plan",
                "own-plan",
                "own-plan",
                "opencode-go",
                "github-copilot",
                "claude-max",
                None,
            ],
            "model": ["zhipuai/glm-5.2", "zhipuai/glm-4.6", None, "x/y", "x/y", "x/y", "x/y"],
            "access": ["subscription"] * 6 + ["payg"],
            "status": ["ok"] * 7,
            "call_count": [1] * 7,
            "input_tokens": [1000] * 7,
            "output_tokens": [10] * 7,
            "list_cost_usd": pl.Series([Decimal("0.012345678901")] * 7, dtype=pl.Decimal(18, 12)),
        }
    )
    drawn = [None if draw is None else draw.normalize() for draw in plan_draws(calls, book.plans)]
    expected = ["3", "0.5", "1", "0.012345678901", "1.2345678901", None, None]
    assert drawn == [None if text is None else Decimal(text) for text in expected]
    failed = calls.with_columns(pl.lit("error").alias("status"))
    assert plan_draws(failed, book.plans).null_count() == 7


WRONG = [
    ('[[account]]\nid = "a"\naccess = "paid"\n', r"accounts\.toml:3: account\[0\]\.access: Input should be"),
    ('[[account]]\nid = "a"\naccess = "payg"\nsaets = 3\n', r"accounts\.toml:4: .*saets: Extra inputs"),
    ('[[account]]\nid = "a"\naccess = "payg"\nplan = "claude-max"\n', r"only access subscription or credits"),
    (
        '[[account]]\nid = "a"\naccess = "subscription"\nplan = "claude-maxx"\n',
        r"accounts\.toml:4: account\[0\]\.plan: is not a plan; there are: ",
    ),
    (
        '[[account]]\nid = "a"\naccess = "subscription"\nplan = "claude-max"\ntier = "10x"\n',
        r"accounts\.toml:5: account\[0\]\.tier: is not a tier of claude-max; it has: 5x, 20x",
    ),
    (
        '[[account]]\nid = "a"\naccess = "subscription"\nplan = "claude-max"\n'
        'windows = [\n  { id = "5h", size = "1" },\n  { id = "8h", size = "1" },\n]\n',
        r"accounts\.toml:7: account\[0\]\.windows\[1\]\.id: is not a window of claude-max",
    ),
    ('[[account]]\nid = "a"\naccess = "payg"\nprovider = "anthropik"\n', r":4: .*is not a provider"),
    ('[[account]]\nid = "a"\naccess = "payg"\nsince = 2026-01-01\n', r":4: account\[0\]\.since: "),
    ('[[account]]\nid = "a"\naccess = "payg"\ntime_zone = "Berlin"\n', r":4: .*must be an IANA time zone"),
    (
        '[[account]]\nid = "a"\naccess = "subscription"\nplan = "claude-max"\ninvoice = 19.999999999\n',
        r":5: account\[0\]\.invoice: ",
    ),
    (
        '[[account]]\nid = "a"\naccess = "payg"\n[[account]]\nid = "a"\naccess = "payg"\n',
        r"accounts\.toml:5: account\[1\]\.id: is written twice",
    ),
    ("[[account]\n", r"accounts\.toml:1: not TOML"),
]


@pytest.mark.parametrize(("text", "told"), WRONG)
def test_a_wrong_accounts_file_is_told_by_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(AccountFileError, match=told):
        accounts(tmp_path, text)
