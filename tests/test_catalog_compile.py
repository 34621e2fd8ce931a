"""Compiling the price source: what the table says, what it leaves unsaid, and a cache never half there."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path

import pytest
from genai_prices.data import providers as source_providers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import catalog.compile
from catalog.clauses import matches
from catalog.compile import adopt, adopted_source, compile_prices, load_prices
from catalog.errors import PriceDataError
from catalog.table import PARTS, PriceTable, price_decimal

TABLE = compile_prices()


def test_every_model_of_the_source_is_there_with_its_clause() -> None:
    expected = [(p.id, m.id) for p in source_providers for m in p.models]
    assert [(m.provider, m.model) for m in TABLE.models] == expected


def test_rows_ascend_and_start_at_the_beginning() -> None:
    for model in TABLE.models:
        for rows in model.rows.values():
            keys = [(r.valid_from_s, r.period_from_s, r.over_tokens) for r in rows]
            assert keys == sorted(set(keys)) and keys[0] == (0, 0, 0)


def test_what_is_rounded_or_left_out_is_said() -> None:
    assert 20 <= len(TABLE.report["rounded"]) <= 40
    assert any("audio_hours" in line for line in TABLE.report["not_carried"])
    assert "github-copilot/gpt-4.1" in TABLE.report["no_price"]


def test_an_empty_price_is_unknown_and_not_zero() -> None:
    model = TABLE.find("github-copilot", "gpt-4.1")
    assert model is not None and not model.rows


def test_a_daily_window_belongs_to_the_date_before_it() -> None:
    model = TABLE.find("deepseek", "deepseek-v4-pro")
    assert model is not None
    before = model.row("standard", datetime(2026, 7, 15, 2, tzinfo=UTC), 1)
    peak = model.row("standard", datetime(2026, 8, 31, 2, tzinfo=UTC), 1)
    assert (before.prices[0], peak.prices[0]) == (435_000_000, 1_320_000_000)


def test_two_compilations_are_one_version() -> None:
    assert compile_prices().sha256 == TABLE.sha256
    assert PriceTable.from_json(TABLE.to_json()) == TABLE


def test_the_cache_is_written_whole_and_read_without_the_source(tmp_path: Path) -> None:
    assert load_prices(tmp_path / "new") == TABLE
    assert sorted(path.suffix for path in (tmp_path / "new").iterdir()) == ["", ".json"]
    program = (
        "import sys; from pathlib import Path; from catalog.quote import Quotes; "
        f"Quotes.load(Path({str(tmp_path / 'new')!r})); "
        "heavy = {'genai_prices', 'polars', 'duckdb', 'pyarrow', 'numpy'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("damage", [b"", b"not a table", b"{}", b"\xff\xfe"])
def test_a_damaged_or_foreign_cache_is_compiled_anew(tmp_path: Path, damage: bytes) -> None:
    assert load_prices(tmp_path) == TABLE
    (path,) = tmp_path.glob("*.json")
    whole = path.read_bytes()
    path.write_bytes(damage or whole[:-1])
    assert load_prices(tmp_path) == TABLE
    assert path.read_bytes() == whole


def test_a_newer_installed_version_is_not_taken_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load_prices(tmp_path)
    adopted = adopted_source(tmp_path)
    monkeypatch.setattr(catalog.compile, "installed_source", lambda: "genai-prices 0.2.99")
    assert load_prices(tmp_path) == TABLE
    assert f"genai-prices 0.2.99 is installed, prices of {adopted} stay in use" in caplog.text
    assert adopted_source(tmp_path) == adopted


def test_adopting_puts_the_installed_version_in_use_and_keeps_the_old_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_prices(tmp_path)
    (old,) = tmp_path.glob("*.json")
    newer = dataclasses.replace(TABLE, source="genai-prices 0.2.99", models=TABLE.models[:-1])
    monkeypatch.setattr(catalog.compile, "installed_source", lambda: newer.source)
    monkeypatch.setattr(
        catalog.compile, "_compile_in_child", lambda path: catalog.compile._write(path, newer)
    )
    assert adopt(tmp_path) == newer
    assert adopted_source(tmp_path) == newer.source
    assert load_prices(tmp_path) == newer and old.exists()


def test_a_lost_table_of_an_older_version_is_not_replaced_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_prices(tmp_path)
    (path,) = tmp_path.glob("*.json")
    path.unlink()
    monkeypatch.setattr(catalog.compile, "installed_source", lambda: "genai-prices 0.2.99")
    with pytest.raises(PriceDataError, match="run `tollbook catalog update`"):
        load_prices(tmp_path)


def test_a_directory_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PriceDataError, match="could not be compiled into"):
        load_prices(tmp_path / "file" / "prices")


PRICED = [
    (provider, model)
    for provider in source_providers
    for model in provider.models
    if (found := TABLE.find(provider.id, model.id))
    and found.rows
    and found.model == model.id
    and not any(
        part in str(model.prices)
        for part in ("image", "hours", "pages", "video", "messages", "chars", "reasoning", "citation")
    )
    and "TimeOfDate" not in repr(model.prices)
    and not any(line.startswith(f"{provider.id}/{model.id}:") for line in TABLE.report["rounded"])
]
"""Models whose prices our parts cover, but DeepSeek's windows: those we date differently on purpose."""


CONTEXTS = {
    "standard": None,
    "batch": {"processing": "batch"},
    "flex": {"service_tier": "flex"},
    "priority": {"service_tier": "priority"},
}


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    pick=st.integers(0, len(PRICED) - 1),
    at=st.datetimes(datetime(2025, 1, 1), datetime(2027, 6, 1)),  # noqa: DTZ001 - made aware below
    counts=st.lists(st.integers(0, 400_000), min_size=5, max_size=5),
    mode=st.sampled_from(list(CONTEXTS)),
)
def test_the_table_agrees_with_the_source_on_any_usage(
    pick: int, at: datetime, counts: list[int], mode: str
) -> None:
    from genai_prices.types import Usage  # noqa: PLC0415 - the oracle

    from catalog.arithmetic import UnpricedPart, cost, lines  # noqa: PLC0415

    provider, model = PRICED[pick]
    plain, read, write, long_write, output = counts
    usage = Usage(
        input_tokens=plain + read + write + long_write,
        cache_read_tokens=read,
        cache_write_tokens=write + long_write,
        cache_write_1h_tokens=long_write,
        output_tokens=output,
    )
    when = at.replace(tzinfo=UTC)
    context = CONTEXTS[mode]
    expected = model.calc_price(
        usage, provider, genai_request_timestamp=when, price_context=context
    ).total_price
    ours = TABLE.find(provider.id, model.id)
    assert ours is not None
    row = ours.row(mode, when, plain + read + write + long_write)
    names = ("input", "cache_read", "cache_write", "cache_write_1h", "output")
    parts = dict(zip(names, counts, strict=True))
    try:
        got = cost(lines(row, parts))
    except UnpricedPart:
        return  # the source prices what it does not know at zero; we do not
    assert got is not None
    exact = expected.quantize(Decimal("1e-12"), rounding=ROUND_HALF_EVEN)
    assert got == exact, (provider.id, model.id)


def test_prices_read_as_typed_by_a_person() -> None:
    assert [f"{price_decimal(n):f}" for n in (2_500_000_000, 3_625_000, 10_000_000_000, 0)] == [
        "2.5",
        "0.003625",
        "10",
        "0",
    ]
    assert len(PARTS) == len(set(PARTS))


def test_clauses_match_as_the_source_does() -> None:
    for provider in source_providers[:12]:
        compiled = TABLE.by_provider[provider.id]
        for model, ours in zip(provider.models, compiled, strict=True):
            for name in (model.id, model.id.lower(), f"{model.id}-x", "claude-opus-4-5", "gpt-5"):
                assert matches(ours.clause, name.lower()) == model.is_match(name.lower())


def test_a_new_date_applies_from_midnight_utc_on() -> None:
    model = TABLE.find("openai", "gpt-5.6-sol")
    assert model is not None
    midnight = datetime(2026, 8, 21, tzinfo=UTC)
    before, after = (model.row("standard", at, 1) for at in (midnight - timedelta(microseconds=1), midnight))
    assert (before.prices[0], after.prices[0]) == (5_000_000_000, 4_000_000_000)
