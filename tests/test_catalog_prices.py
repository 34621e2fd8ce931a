"""Hand-typed price cases, disputed ones with our verdict: both readers of the table give every digit."""

from __future__ import annotations

import json
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from catalog.catalog import Catalog
from catalog.quote import USAGE_PARTS, Quotes

CASES = [
    json.loads(line)
    for line in Path("fixtures/corpora/price_cases.jsonl").read_text(encoding="utf-8").splitlines()
]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return Catalog.load(tmp_path_factory.getbasetemp() / "prices")


@pytest.fixture(scope="module")
def quotes(tmp_path_factory: pytest.TempPathFactory) -> Quotes:
    return Quotes.load(tmp_path_factory.getbasetemp() / "prices")


def _mode(context: dict[str, Any]) -> str:
    if context.get("batch"):
        return "batch"
    if context.get("speed") == "fast":
        return "fast"
    tier = context.get("service_tier", "standard")
    return tier if tier in ("flex", "priority") else "standard"


def _expected(case: dict[str, Any]) -> Decimal | None:
    told = case["api_equivalent_usd"] if case["group"] == "plan" else case["expected_usd"]
    return None if told is None else Decimal(told)


def _said(context: dict[str, Any]) -> dict[str, str]:
    return {"inference_geo": context["inference_geo"]} if "inference_geo" in context else {}


def _frame(cases: list[dict[str, Any]]) -> pl.DataFrame:
    """Turn disjoint buckets into the inclusive columns of a call."""

    def column(case: dict[str, Any], *buckets: str) -> int:
        return sum(case["usage"].get(bucket, 0) for bucket in buckets)

    writes = ("cache_write_5m", "cache_write_1h")
    everything = ("input", "cache_read", *writes, "input_audio", "cache_audio_read")
    rows = [
        {
            "provider_name": case["provider"],
            "request_model": case["model"],
            "started_at": datetime.fromisoformat(case["at"]),
            "access_hint": case["context"].get("billing"),
            "input_tokens": column(case, *everything),
            "output_tokens": column(case, "output", "output_audio"),
            "cache_read_tokens": column(case, "cache_read", "cache_audio_read"),
            "cache_write_tokens": column(case, *writes),
            "cache_write_1h_tokens": column(case, "cache_write_1h"),
            "audio_input_tokens": column(case, "input_audio", "cache_audio_read"),
            "audio_cache_read_tokens": column(case, "cache_audio_read"),
            "audio_output_tokens": column(case, "output_audio"),
            "web_searches": column(case, "web_searches"),
            "service_tier": case["context"].get("service_tier"),
            "speed": case["context"].get("speed"),
            "batch": bool(case["context"].get("batch")),
            "region": case["context"].get("inference_geo"),
            "status": "ok",
        }
        for case in cases
    ]
    times = {"started_at": pl.Datetime("us", "UTC")}
    return pl.DataFrame(rows, schema_overrides=times, infer_schema_length=None)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['id']}-{case['group']}")
def test_quote_gives_every_digit(case: dict[str, Any], quotes: Quotes) -> None:
    at = datetime.fromisoformat(case["at"])
    got = quotes.quote(
        case["provider"],
        model=case["model"],
        at=at,
        usage=case["usage"],
        mode=_mode(case["context"]),
        said=_said(case["context"]),
    )
    assert got.list_cost_usd == _expected(case), got.reason
    assert got.list_cost_usd is not None or got.reason


def test_rate_gives_every_digit(catalog: Catalog) -> None:
    rated = catalog.rate(catalog.resolve(_frame(CASES)))
    got = dict(zip((c["id"] for c in CASES), rated["list_cost_usd"].to_list(), strict=True))
    assert got == {case["id"]: _expected(case) for case in CASES}


def test_plan_calls_are_covered_and_keep_their_value(catalog: Catalog) -> None:
    cases = [case for case in CASES if case["group"] == "plan"]
    rated = catalog.rate(catalog.resolve(_frame(cases)))
    assert rated["billed_cost_usd"].to_list() == [Decimal(0)] * len(cases)
    assert rated["cost_status"].unique().to_list() == ["included"]
    assert rated["list_cost_usd"].drop_nulls().len() == len(cases) - 1  # one plan's alias names no model


def test_explain_sums_to_the_cost_of_every_case(catalog: Catalog) -> None:
    rated = catalog.rate(catalog.resolve(_frame(CASES)))
    for call in rated.iter_rows(named=True):
        told = catalog.explain(call)
        if call["price_id"] is None:
            continue
        assert Decimal(told["list_cost_usd"]) == call["list_cost_usd"]
        assert sum(Decimal(line["usd"]) for line in told["lines"]) == call["list_cost_usd"]
        assert told["price_row"]["price_id"] == call["price_id"]


def test_every_known_bucket_is_priced_by_name() -> None:
    buckets = {bucket for case in CASES for bucket in case["usage"]}
    assert buckets <= set(USAGE_PARTS) | {"reasoning"}


def test_unknown_bucket_is_the_askers_mistake(quotes: Quotes) -> None:
    at = datetime.fromisoformat("2026-11-15T12:00:00Z")
    with pytest.raises(ValueError, match="unknown usage inputs"):
        quotes.quote("openai", model="gpt-5", at=at, usage={"inputs": 1})
    with pytest.raises(ValueError, match="negative"):
        quotes.quote("openai", model="gpt-5", at=at, usage={"input": -1})


def test_no_model_costs_more_than_the_dearest(quotes: Quotes) -> None:
    usage = {"input": 150_000, "output": 2_000}
    for case in CASES:
        at = datetime.fromisoformat(case["at"])
        dearest = quotes.dearest(usage=usage, at=at)
        own = quotes.quote(case["provider"], model=case["model"], at=at, usage=usage)
        assert dearest.list_cost_usd is not None and dearest.estimated
        assert own.list_cost_usd is None or own.list_cost_usd <= dearest.list_cost_usd, dearest.reason


def test_the_dearest_counts_every_kind_of_token(quotes: Quotes) -> None:
    at = datetime.fromisoformat("2026-11-15T12:00:00Z")
    plain = quotes.dearest(usage={"input": 1000, "output": 1000}, at=at).list_cost_usd
    split = {
        "cache_read": 400,
        "cache_write_1h": 600,
        "output_audio": 1000,
        "reasoning": 5,
        "web_searches": 3,
    }
    assert quotes.dearest(usage=split, at=at).list_cost_usd == plain
    with pytest.raises(ValueError, match="unknown usage"):
        quotes.dearest(usage={"inputs": 1}, at=at)
