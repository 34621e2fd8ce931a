"""The money table of the design, row by row: access x what is known."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import polars as pl
import pytest

from catalog.catalog import Catalog

LIST = Decimal("0.0105")  # 1,000 x 3 + 500 x 15 USD per million
ZERO = Decimal(0)
UNTOLD = {"input_tokens": None, "output_tokens": None, "cache_read_tokens": None, "cache_write_tokens": None}
ACCESSES = ("payg", "overage", "credits", "subscription", "free", "local", "provisioned", "unknown", None)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return Catalog.load(tmp_path_factory.getbasetemp() / "prices")


def call(**told: Any) -> dict[str, Any]:
    """One finished call of Claude Sonnet 4.5, fully told, metered."""
    return {
        "provider": "anthropic",
        "served_model": "anthropic/claude-sonnet-4-5",
        "model": "anthropic/claude-sonnet-4-5",
        "resolution": "resolved",
        "access": "payg",
        "plan_id": None,
        "started_at": datetime(2026, 11, 15, 12, tzinfo=UTC),
        "input_tokens": 1000,
        "output_tokens": 500,
        "cache_read_tokens": 0,
        "cache_write_tokens": 0,
        "cache_write_1h_tokens": None,
        "audio_input_tokens": None,
        "audio_output_tokens": None,
        "service_tier": None,
        "speed": None,
        "batch": False,
        "status": "ok",
    } | told


def rate(catalog: Catalog, *calls: dict[str, Any]) -> list[dict[str, Any]]:
    return catalog.rate(pl.DataFrame(list(calls), infer_schema_length=None)).to_dicts()


def money(row: dict[str, Any]) -> tuple[Decimal | None, Decimal | None, str]:
    return row["billed_cost_usd"], row["list_cost_usd"], row["cost_status"]


@pytest.mark.parametrize(
    ("access", "plan_id", "expected"),
    [
        ("payg", None, (LIST, LIST, "priced")),
        ("overage", None, (LIST, LIST, "priced")),
        ("credits", None, (LIST, LIST, "priced")),
        ("credits", "github-copilot", (ZERO, LIST, "included")),
        ("subscription", "claude-max", (ZERO, LIST, "included")),
        ("subscription", None, (ZERO, LIST, "included")),
        ("free", None, (ZERO, ZERO, "free")),
        ("local", None, (ZERO, ZERO, "free")),
        ("provisioned", None, (None, None, "provisioned")),
        ("unknown", None, (LIST, LIST, "assumed")),
        (None, None, (LIST, LIST, "assumed")),
    ],
)
def test_everything_known(
    catalog: Catalog, access: str | None, plan_id: str | None, expected: object
) -> None:
    (row,) = rate(catalog, call(access=access, plan_id=plan_id))
    assert money(row) == expected
    assert row["usage_known"] and row["usage_complete"]


@pytest.mark.parametrize("access", ACCESSES)
def test_price_unknown(catalog: Catalog, access: str | None) -> None:
    (row,) = rate(catalog, call(access=access, served_model="anthropic/claude-nonexistent-9", model=None))
    expected = {
        "subscription": (ZERO, None, "included"),
        "free": (ZERO, ZERO, "free"),
        "local": (ZERO, ZERO, "free"),
        "provisioned": (None, None, "provisioned"),
    }.get(access or "", (None, None, "unpriced"))
    assert money(row) == expected
    assert row["price_id"] is None


@pytest.mark.parametrize("access", ACCESSES)
def test_tokens_unknown(catalog: Catalog, access: str | None) -> None:
    (row,) = rate(catalog, call(access=access, **UNTOLD))
    billed = ZERO if access in ("subscription", "free", "local") else None
    assert money(row) == (billed, None, "usage_unknown")
    assert not row["usage_known"] and not row["usage_complete"]


@pytest.mark.parametrize("access", ACCESSES)
def test_failed_without_usage_costs_nothing(catalog: Catalog, access: str | None) -> None:
    (row,) = rate(catalog, call(access=access, status="error", **UNTOLD))
    assert money(row) == (ZERO, ZERO, "not_billable")


def test_failed_with_usage_is_billed(catalog: Catalog) -> None:
    (row,) = rate(catalog, call(status="error"))
    assert money(row) == (LIST, LIST, "priced")


@pytest.mark.parametrize(
    ("access", "billed", "status"),
    [("payg", 1, "estimated"), ("unknown", 1, "estimated"), ("subscription", 0, "included")],
)
def test_provider_ambiguous(catalog: Catalog, access: str, billed: int, status: str) -> None:
    told = call(
        provider=None, served_model="glm-4.6", model="zhipuai/glm-4.6", resolution="ambiguous", access=access
    )
    (row,) = rate(catalog, told)
    zai = Decimal("0.0017")  # 1,000 x 0.6 + 500 x 2.2 USD per million at Z.AI
    assert money(row) == (zai * billed, zai, status)


def test_unknown_access_may_be_left_unbilled(tmp_path_factory: pytest.TempPathFactory) -> None:
    careful = Catalog.load(tmp_path_factory.getbasetemp() / "prices", assume_unknown_access=False)
    (row,) = rate(careful, call(access="unknown"))
    assert money(row) == (None, LIST, "assumed")


@pytest.mark.parametrize(
    ("told", "complete"),
    [
        ({"cache_read_tokens": None}, False),
        ({"cache_write_tokens": None}, False),
        ({"cache_write_tokens": 100}, False),
        ({"cache_write_tokens": 100, "cache_write_1h_tokens": 0}, True),
        ({"cache_read_tokens": 2000}, False),
        ({"cache_write_tokens": 10, "cache_write_1h_tokens": 20}, False),
        ({"served_model": "openai/gpt-5", "provider": "openai", "cache_write_tokens": None}, True),
        ({"served_model": "openai/gpt-5", "provider": "openai", "cache_read_tokens": None}, False),
    ],
)
def test_usage_is_complete_when_every_priced_part_is_told(
    catalog: Catalog, told: dict[str, Any], complete: bool
) -> None:
    (row,) = rate(catalog, call(**told))
    assert row["usage_known"] and row["usage_complete"] is complete


def test_untold_parts_are_priced_as_uncached_input(catalog: Catalog) -> None:
    (row,) = rate(catalog, call(cache_read_tokens=None, cache_write_tokens=None))
    assert row["list_cost_usd"] == LIST


def test_parts_larger_than_their_whole_never_make_a_negative_charge(catalog: Catalog) -> None:
    (row,) = rate(catalog, call(input_tokens=1, cache_read_tokens=1000, output_tokens=0))
    assert row["list_cost_usd"] == Decimal("0.0003") and not row["usage_complete"]


def test_absurd_and_negative_counts_are_not_told(catalog: Catalog) -> None:
    rows = rate(catalog, call(input_tokens=10**15), call(input_tokens=-5))
    assert [row["cost_status"] for row in rows] == ["usage_unknown", "usage_unknown"]


def test_embeddings_have_no_output(catalog: Catalog) -> None:
    told = call(
        provider="openai",
        served_model="openai/text-embedding-3-large",
        model="openai/text-embedding-3-large",
        operation="embeddings",
        output_tokens=None,
    )
    (row,) = rate(catalog, told)
    assert (row["output_tokens"], row["usage_known"], row["list_cost_usd"]) == (0, True, Decimal("0.00013"))


def test_used_output_without_an_output_price_is_unpriced(catalog: Catalog) -> None:
    name = "openai/text-embedding-3-large"
    (row,) = rate(catalog, call(provider="openai", served_model=name, model=name))
    assert money(row) == (None, None, "unpriced")


def test_no_column_is_ever_a_float(catalog: Catalog) -> None:
    rated = catalog.rate(pl.DataFrame([call(), call(access="unknown")], infer_schema_length=None))
    assert not [name for name, dtype in rated.schema.items() if dtype.is_float()]
    assert rated.schema["list_cost_usd"] == rated.schema["billed_cost_usd"] == pl.Decimal(18, 12)


def test_an_empty_batch_has_the_same_columns(catalog: Catalog) -> None:
    full = catalog.rate(pl.DataFrame([call()], infer_schema_length=None))
    assert catalog.rate(full.clear()).schema == full.schema


def test_a_charge_is_rounded_once_half_even(catalog: Catalog) -> None:
    name = "deepseek/deepseek-v4-pro"
    cached = call(
        provider="deepseek", served_model=name, model=name, started_at=datetime(2026, 7, 15, 12, tzinfo=UTC)
    )
    (row,) = rate(catalog, cached | {"input_tokens": 1, "cache_read_tokens": 1, "output_tokens": 0})
    assert row["list_cost_usd"] == Decimal("0.000000003625")


@pytest.mark.parametrize(
    ("started_at", "price"),
    [
        (datetime(2026, 8, 20, 23, 59, 59, 999_999, tzinfo=UTC), "5"),
        (datetime(2026, 8, 21, tzinfo=UTC), "4"),
        (datetime(2027, 8, 21, tzinfo=UTC), "4"),
    ],
)
def test_a_call_is_priced_at_its_own_start(catalog: Catalog, started_at: datetime, price: str) -> None:
    name = "openai/gpt-5.6-sol"
    told = call(provider="openai", served_model=name, model=name, started_at=started_at, output_tokens=0)
    (row,) = rate(catalog, told | {"input_tokens": 1_000})
    assert row["list_cost_usd"] * 1000 == Decimal(price)
