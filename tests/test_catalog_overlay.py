"""Our prices over the source's and the operator's over ours: which row holds when, and what is refused."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from catalog.catalog import Catalog
from catalog.compile import compile_prices
from catalog.errors import PriceFileError
from catalog.load import lay_over
from catalog.price_files import SHIPPED, PriceFile, load_layer
from catalog.provider_book import load_book
from catalog.quote import Quotes
from catalog.table import PARTS, PriceTable
from catalog.toml_source import read_toml

BASE = compile_prices()
BOOK = load_book()
SHIPPED_TABLE = lay_over(BASE, BOOK)
GOOD = """
[[price]]
price_list = "openai"
ids = ["gpt-5"]
source = "our contract of 2026"
checked = 2026-11-22
"""


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def laid(tmp_path: Path, text: str) -> PriceTable:
    path = tmp_path / "overlay.toml"
    path.write_text(text)
    return lay_over(BASE, BOOK, overlay=path)


def usd(table: PriceTable, name: str, when: str, **told: Any) -> list[str | None]:
    """Input and output price per million of `list/model` at an instant."""
    price_list, _, model_id = name.partition("/")
    model = table.find(price_list, model_id)
    assert model is not None, name
    row = model.row(told.get("mode", "standard"), at(when), told.get("tokens", 1), said=told.get("said", {}))
    return [None if p is None else f"{(Decimal(p) / 10**9).normalize():f}" for p in row.prices[:2]]


HISTORY = [
    # DeepSeek: launch, cut, then office hours of Chinese working days at twice the price.
    ("deepseek/deepseek-v4-pro", "2026-05-01T02:00:00Z", "1.74", "3.48"),
    ("deepseek/deepseek-v4-pro", "2026-05-25T05:18:18Z", "0.435", "0.87"),
    ("deepseek/deepseek-v4-pro", "2026-08-14T02:00:00Z", "0.435", "0.87"),
    ("deepseek/deepseek-v4-pro", "2026-08-16T15:59:59Z", "0.435", "0.87"),
    ("deepseek/deepseek-v4-pro", "2026-08-16T16:00:00Z", "0.66", "1.98"),
    ("deepseek/deepseek-v4-pro", "2026-08-17T00:59:59Z", "0.66", "1.98"),
    ("deepseek/deepseek-v4-pro", "2026-08-17T01:00:00Z", "1.32", "3.96"),
    ("deepseek/deepseek-v4-pro", "2026-08-17T04:00:00Z", "0.66", "1.98"),
    ("deepseek/deepseek-v4-pro", "2026-08-17T06:00:00Z", "1.32", "3.96"),
    ("deepseek/deepseek-v4-pro", "2026-08-17T10:00:00Z", "0.66", "1.98"),
    ("deepseek/deepseek-v4-pro", "2026-08-22T02:00:00Z", "0.66", "1.98"),  # Saturday
    ("deepseek/deepseek-v4-pro", "2026-08-23T07:00:00Z", "0.66", "1.98"),  # Sunday
    ("deepseek/deepseek-v4-pro", "2026-09-25T02:00:00Z", "0.66", "1.98"),  # Mid-Autumn, a Friday
    ("deepseek/deepseek-v4-pro", "2026-10-07T02:00:00Z", "0.66", "1.98"),  # National Day week
    ("deepseek/deepseek-v4-pro", "2026-10-08T02:00:00Z", "1.32", "3.96"),
    ("deepseek/deepseek-v4-flash", "2026-08-31T07:00:00Z", "0.44", "1.32"),
    ("deepseek/deepseek-v4-flash", "2026-09-10T03:59:59Z", "0.44", "1.32"),
    ("deepseek/deepseek-v4-flash", "2026-09-10T04:00:00Z", "0.15", "0.6"),
    ("deepseek/deepseek-chat", "2025-02-26T16:29:59Z", "0.27", "1.1"),
    ("deepseek/deepseek-chat", "2025-02-26T16:30:00Z", "0.135", "0.55"),
    ("deepseek/deepseek-chat", "2025-07-01T00:29:59Z", "0.135", "0.55"),
    ("deepseek/deepseek-chat", "2025-07-01T00:30:00Z", "0.27", "1.1"),
    ("deepseek/deepseek-chat", "2025-09-05T16:00:00Z", "0.57", "1.68"),
    ("deepseek/deepseek-chat", "2025-12-01T20:00:00Z", "0.28", "0.42"),
    ("deepseek/deepseek-reasoner", "2025-03-01T20:00:00Z", "0.135", "0.55"),
    ("deepseek/deepseek-reasoner", "2025-12-01T20:00:00Z", "0.28", "0.42"),
    # xAI: retired slugs are billed as grok-4.3 from 12:00 Pacific time on, tiers included.
    ("x-ai/grok-code-fast-1", "2026-05-15T18:59:59Z", "0.2", "1.5"),
    ("x-ai/grok-code-fast-1", "2026-05-15T19:00:00Z", "1.25", "2.5"),
    ("x-ai/grok-4-0709", "2026-05-15T18:59:59Z", "3", "15"),
    ("x-ai/grok-4-0709", "2026-05-15T19:00:00Z", "1.25", "2.5"),
    ("x-ai/grok-4-fast-non-reasoning", "2026-06-01T00:00:00Z", "1.25", "2.5"),
    # Mistral: an alias that moved.
    ("mistral/mistral-large-latest", "2025-12-08T16:32:36Z", "2", "6"),
    ("mistral/mistral-large-latest", "2025-12-08T16:32:37Z", "0.5", "1.5"),
    ("mistral/mistral-large-2411", "2026-11-01T00:00:00Z", "2", "6"),
    ("mistral/devstral-medium-latest", "2025-12-01T00:00:00Z", None, None),
    ("mistral/devstral-medium-latest", "2026-01-01T00:00:00Z", "0.4", "2"),
    # Google: halved, and a promotion that ends on a date to come.
    ("google/gemini-3.6-flash", "2026-08-13T18:11:23Z", "1.5", "7.5"),
    ("google/gemini-3.6-flash", "2026-08-13T18:11:24Z", "0.75", "3.75"),
    ("google/gemini-3.6-flash", "2027-01-01T00:00:00Z", "1.5", "7.5"),
    ("google/gemini-4-argon", "2026-11-30T23:59:59Z", "2", "10"),
    ("google/gemini-4-argon", "2026-12-01T00:00:00Z", "4", "20"),
    # OpenAI and Anthropic: dated rows of the source, and a fine-tune it does not have.
    ("openai/gpt-5.6-sol", "2026-08-20T23:59:59Z", "5", "30"),
    ("openai/gpt-5.6-sol", "2026-08-21T00:00:00Z", "4", "20"),
    ("openai/o3", "2025-06-09T23:59:59Z", "10", "40"),
    ("openai/o3", "2025-06-10T00:00:00Z", "2", "8"),
    ("openai/ft:gpt-4.1-2025-04-14:acme::1", "2026-11-15T12:00:00Z", "3", "12"),
    ("openai/ft:gpt-4.1-mini-2025-04-14:acme::1", "2026-11-15T12:00:00Z", "0.8", "3.2"),
]


@pytest.mark.parametrize(("name", "when", "price_in", "price_out"), HISTORY)
def test_a_call_is_priced_as_of_its_own_time(
    name: str, when: str, price_in: str | None, price_out: str | None
) -> None:
    assert usd(SHIPPED_TABLE, name, when) == [price_in, price_out]


def test_history_is_the_same_in_bulk_and_in_any_order(tmp_path_factory: pytest.TempPathFactory) -> None:
    catalog = Catalog.load(tmp_path_factory.getbasetemp() / "prices")
    provider = {"x-ai": "xai"}
    calls = pl.DataFrame(
        [
            {
                "provider": provider.get(name.partition("/")[0], name.partition("/")[0]),
                "served_model": provider.get(name.partition("/")[0], name.partition("/")[0])
                + "/"
                + name.partition("/")[2],
                "model": None,
                "access": "payg",
                "started_at": at(when),
                "input_tokens": 1_000_000 // 10,
                "output_tokens": 100_000,
                "status": "ok",
                "expected": None if price_in is None else (Decimal(price_in) + Decimal(price_out)) / 10,
            }
            for name, when, price_in, price_out in HISTORY
            if price_in is None or price_out is not None
        ],
        schema_overrides={"model": pl.String, "expected": pl.Decimal(18, 12)},
    )
    for order in (calls, calls.reverse(), calls.sample(fraction=1, shuffle=True, seed=1)):
        rated = catalog.rate(order)
        assert rated["list_cost_usd"].to_list() == order["expected"].to_list()
        assert (rated["cost_status"] == "unpriced").to_list() == order["expected"].is_null().to_list()


def test_a_redirect_takes_the_tiers_of_its_target_and_says_so() -> None:
    assert usd(SHIPPED_TABLE, "x-ai/grok-3", "2026-06-01T00:00:00Z", tokens=200_000) == ["2.5", "5"]
    model = SHIPPED_TABLE.find("x-ai", "grok-3")
    assert model is not None
    row = model.row("standard", at("2026-06-01T00:00:00Z"), 1)
    assert row.price_id(model.name, "standard") == "x-ai/grok-3@2026-05-15T19:00:00Z=grok-4.3"


def test_cached_input_of_o3_was_dearer_at_launch() -> None:
    model = SHIPPED_TABLE.find("openai", "o3")
    assert model is not None
    prices = [model.row("standard", at(f"2025-06-{day}T12:00:00Z"), 1).prices[2] for day in ("09", "10")]
    assert prices == [2_500_000_000, 500_000_000]


# Multipliers.


@pytest.mark.parametrize(
    ("name", "said", "mode", "expected"),
    [
        ("anthropic/claude-opus-4-8", {"inference_geo": "us"}, "standard", ["5.5", "27.5"]),
        ("anthropic/claude-opus-4-8", {"inference_geo": "US"}, "standard", ["5.5", "27.5"]),
        ("anthropic/claude-opus-4-8", {"inference_geo": "us"}, "batch", ["2.75", "13.75"]),
        ("anthropic/claude-opus-4-8", {"inference_geo": "us"}, "flex", ["5.5", "27.5"]),
        ("anthropic/claude-opus-4-8", {"inference_geo": "global"}, "standard", ["5", "25"]),
        ("anthropic/claude-opus-4-5", {"inference_geo": "us"}, "standard", ["5", "25"]),
        ("openai/gpt-5.1", {"deployment_scope": "eu"}, "standard", ["1.375", "11"]),
        ("openai/gpt-5.1", {"inference_geo": "us"}, "standard", ["1.25", "10"]),
    ],
)
def test_multipliers_apply_where_the_call_says_so(
    name: str, said: dict[str, str], mode: str, expected: list[str]
) -> None:
    assert usd(SHIPPED_TABLE, name, "2026-11-15T12:00:00Z", said=said, mode=mode) == expected


def test_a_multiplier_leaves_searches_alone(tmp_path: Path) -> None:
    model = SHIPPED_TABLE.find("anthropic", "claude-opus-4-8")
    assert model is not None
    plain = model.row("standard", at("2026-11-15T12:00:00Z"), 1)
    times = model.row("standard", at("2026-11-15T12:00:00Z"), 1, said={"inference_geo": "us"})
    search = PARTS.index("web_search")
    assert plain.prices[search] and times.prices[search] == plain.prices[search]


def test_a_multiplier_is_told_with_the_arithmetic(tmp_path_factory: pytest.TempPathFactory) -> None:
    catalog = Catalog.load(tmp_path_factory.getbasetemp() / "prices")
    told = catalog.explain(
        {
            "provider": "anthropic",
            "served_model": "anthropic/claude-opus-4-8",
            "model": "anthropic/claude-opus-4-8",
            "started_at": at("2026-11-15T12:00:00Z"),
            "input_tokens": 1000,
            "output_tokens": 500,
            "region": "us",
        }
    )
    assert told["multiplier"] == {
        "name": "us-inference",
        "factor": "1.1",
        "because": "inference_geo=us",
    }
    assert told["list_cost_usd"] == "0.019250000000"
    assert told["price_row"]["price_id"] == "anthropic/claude-opus-4-8@1970-01-01*us-inference"


def test_azure_data_zones_are_an_estimate_with_their_surcharge(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    quotes = Quotes.load(tmp_path_factory.getbasetemp() / "prices")
    usage = {"input": 1_000_000, "output": 0}
    when = at("2026-11-15T12:00:00Z")
    zone = quotes.quote(None, model="azure/eu/gpt-5.1", at=when, usage=usage)
    world = quotes.quote(None, model="azure/gpt-5.1", at=when, usage=usage)
    assert (zone.list_cost_usd, world.list_cost_usd) == (Decimal("1.375"), Decimal("1.25"))
    assert zone.estimated and world.estimated


# Layers.


def test_the_operator_beats_ours_and_ours_beats_the_source(tmp_path: Path) -> None:
    row = 'price_list = "deepseek"\nmodels = ["deepseek-v4-pro"]\nsource = "contract"\nchecked = 2026-11-01\n'
    table = laid(
        tmp_path,
        "[[price]]\n" + row + "[[price.row]]\nvalid_from = 2026-11-01T00:00:00Z\ninput = 0.5\noutput = 1\n",
    )
    assert usd(table, "deepseek/deepseek-v4-pro", "2026-10-30T02:00:00Z") == ["1.32", "3.96"]
    assert usd(table, "deepseek/deepseek-v4-pro", "2026-11-02T02:00:00Z") == ["0.5", "1"]
    assert table.sha256 != SHIPPED_TABLE.sha256 != BASE.sha256


def test_a_row_with_an_end_gives_way_to_what_lies_below(tmp_path: Path) -> None:
    table = laid(
        tmp_path,
        GOOD
        + "[[price.row]]\nvalid_from = 2026-01-01T00:00:00Z\nvalid_to = 2026-07-01T00:00:00+02:00\n"
        + 'input = "1"\noutput = "8"\n',
    )
    prices = [usd(table, "openai/gpt-5", f"2026-{day}Z")[0] for day in ("06-30T21:59:59", "06-30T22:00:00")]
    assert prices == ["1", "1.25"]
    assert usd(table, "openai/gpt-5", "2025-12-31T23:59:59Z")[0] == "1.25"


def test_a_mode_keeps_its_published_price_unless_it_only_repeated_the_standard_one(tmp_path: Path) -> None:
    table = laid(tmp_path, GOOD + '[[price.row]]\ninput = "1"\noutput = "8"\n')
    when = "2026-11-15T12:00:00Z"
    assert usd(table, "openai/gpt-5", when, mode="flex") == usd(BASE, "openai/gpt-5", when, mode="flex")
    before_flex = "2026-01-15T12:00:00Z"
    assert usd(table, "openai/gpt-5", before_flex, mode="flex") == ["1", "8"]


def test_a_multiplier_multiplies_the_operators_price(tmp_path: Path) -> None:
    text = GOOD.replace("openai", "anthropic").replace("gpt-5", "claude-opus-4-8")
    table = laid(tmp_path, text + '[[price.row]]\ninput = "4"\noutput = "20"\n')
    when = "2026-11-15T12:00:00Z"
    assert usd(table, "anthropic/claude-opus-4-8", when, said={"inference_geo": "us"}) == ["4.4", "22"]


def test_an_id_is_priced_alone_and_its_siblings_stay(tmp_path: Path) -> None:
    table = laid(tmp_path, GOOD + '[[price.row]]\ninput = "1"\noutput = "8"\n')
    when = "2026-11-15T12:00:00Z"
    assert usd(table, "openai/gpt-5", when) == ["1", "8"]
    assert usd(table, "openai/gpt-5-2025-08-07", when) == ["1.25", "10"]


def test_an_operator_can_price_a_provider_that_has_no_list(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    text = GOOD.replace("openai", "nano-gpt").replace('"gpt-5"', '"zai-org/glm-5"')
    path.write_text(text + '[[price.row]]\ninput = "0.9"\noutput = "3"\n')
    quotes = Quotes.load(overlay=path)
    usage = {"input": 1_000_000, "output": 0}
    got = quotes.quote(None, model="nano-gpt/zai-org/glm-5", at=at("2026-11-15T12:00:00Z"), usage=usage)
    assert (got.list_cost_usd, got.estimated) == (Decimal("0.9"), False)


def test_time_of_day_tiers_and_redirects_of_the_operator(tmp_path: Path) -> None:
    table = laid(
        tmp_path,
        GOOD
        + '[[price.row]]\ninput = "2"\noutput = "8"\n'
        + '[[price.row.windows]]\nhours = ["22:00-06:00"]\ninput = "1"\noutput = "4"\n'
        + GOOD.replace("gpt-5", "gpt-x")
        + '[[price.row]]\ninput = "2"\noutput = "8"\n'
        + '[[price.row.tiers]]\nover_tokens = 1000\ninput = "4"\noutput = "16"\n'
        + '[[redirect]]\nprice_list = "openai"\nids = ["gpt-y"]\nbilled_as = "gpt-x"\n'
        + 'source = "contract"\nchecked = 2026-11-22\n',
    )
    hours = [usd(table, "openai/gpt-5", f"2026-11-15T{h}:00:00Z")[0] for h in ("21", "22", "05", "06")]
    assert hours == ["2", "1", "1", "2"]
    sizes = [usd(table, "openai/gpt-y", "2026-11-15T12:00:00Z", tokens=n)[0] for n in (1000, 1001)]
    assert sizes == ["2", "4"]


# What is refused, with its place.


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            GOOD.replace('source = "our contract of 2026"\n', ""),
            r"overlay\.toml:2: price\[0\]\.source: Field",
        ),
        (GOOD, r"overlay\.toml:2: price\[0\]\.row: Field required"),
        (
            GOOD + "[[price.row]]\ninput = -1\n",
            r"overlay\.toml:8: price\[0\]\.row\[0\]\.input: USD per million",
        ),
        (GOOD + '[[price.row]]\ninput = "1e-3"\n', r"overlay\.toml:8: .*input: a price is a plain decimal"),
        (GOOD + "[[price.row]]\ninput = 0.0000000001\n", r"overlay\.toml:8: .*at most nine decimal places"),
        (
            GOOD + "[[price.row]]\ncache_read = 1\n",
            r"overlay\.toml:7: price\[0\]\.row\[0\]: .*input or output",
        ),
        (
            GOOD + "[[price.row]]\nvalid_from = 2026-01-01T00:00:00\ninput = 1\n",
            r"overlay\.toml:8: .*valid_from: an instant needs its offset",
        ),
        (
            GOOD
            + "[[price.row]]\nvalid_from = 2026-01-01T00:00:00Z\ninput = 1\n"
            + "[[price.row]]\nvalid_from = 2026-01-01T01:00:00+01:00\ninput = 2\n",
            r"overlay\.toml:11: .*openai/gpt-5 \(standard\): dates overlap those at overlay\.toml:8",
        ),
        (
            GOOD
            + "[[price.row]]\nvalid_to = 2026-02-01T00:00:00Z\ninput = 1\n"
            + "[[price.row]]\nvalid_from = 2026-01-01T00:00:00Z\ninput = 2\n",
            r"overlay\.toml:11: .*dates overlap those at overlay\.toml:7",
        ),
        (
            GOOD + "[[price.row]]\ninput = 1\n" + GOOD + "[[price.row]]\ninput = 1\n",
            r"overlay\.toml:15: .*dates overlap those at overlay\.toml:7",
        ),
        (
            GOOD
            + "[[price.row]]\nvalid_from = 2026-02-01T00:00:00Z\n"
            + "valid_to = 2026-01-01T00:00:00Z\ninput = 1\n",
            r"overlay\.toml:8: .*valid_to must be after valid_from",
        ),
        (
            GOOD.replace("openai", "opneai") + "[[price.row]]\ninput = 1\n",
            r"overlay\.toml:2: price\[0\]: there is no price list opneai; near: .*openai",
        ),
        (
            GOOD + '[[price.row]]\ninput = 1\n[[price.row.windows]]\nhours = ["25:00-26:00"]\ninput = 1\n',
            r"overlay\.toml:10: price\[0\]\.row\[0\]\.windows\[0\]\.hours\[0\]: String should match",
        ),
        (
            GOOD + '[[price.row]]\ninput = 1\n[[price.row.windows]]\nhours = ["12:00-12:00"]\ninput = 1\n',
            r"overlay\.toml:10: .*hours\[0\]: .*end when they begin are none",
        ),
        (
            GOOD
            + "[[price.row]]\ninput = 1\n[[price.row.windows]]\n"
            + 'hours = ["01:00-03:00", "02:00-04:00"]\ninput = 1\n',
            r"overlay\.toml:9: .*hours overlap",
        ),
        (
            GOOD
            + '[[price.row]]\ninput = 1\n[[price.row.windows]]\ncalendar = "none"\n'
            + 'hours = ["01:00-03:00"]\ninput = 1\n',
            r"overlay\.toml:2: price\[0\]: there is no calendar none in this layer",
        ),
        (
            '[[redirect]]\nprice_list = "openai"\nids = ["a"]\nbilled_as = "nothing-like-it"\n'
            'source = "none"\nchecked = 2026-11-22\n',
            r"overlay\.toml:1: redirect\[0\]: nothing-like-it has no price on openai",
        ),
        ("[[price]\n", r"overlay\.toml:1: not TOML"),
        ("[[prices]]\n", r"overlay\.toml:1: prices: Extra inputs are not permitted"),
    ],
)
def test_a_wrong_price_file_is_refused_with_file_and_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(PriceFileError, match=told):
        laid(tmp_path, text)


def test_two_shipped_files_may_not_price_the_same_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.toml").write_text(GOOD + "[[price.row]]\ninput = 1\n")
    with pytest.raises(PriceFileError, match=r"b\.toml:7: .*dates overlap those at a\.toml:7"):
        load_layer("shipped", tmp_path)


def test_a_missing_overlay_is_said_by_name(tmp_path: Path) -> None:
    with pytest.raises(PriceFileError, match=r"absent\.toml: cannot be read"):
        lay_over(BASE, BOOK, overlay=tmp_path / "absent.toml")


# The shipped files themselves.


def test_every_shipped_fact_has_a_source_and_the_calendar_covers_today() -> None:
    for path in SHIPPED.glob("*.toml"):
        problems: list[str] = []
        file = read_toml(path, PriceFile, problems)
        assert file is not None and not problems
        for fact in (*file.price, *file.redirect, *file.multiplier, *file.calendar):
            assert fact.source and fact.checked <= date(2026, 11, 22)
        assert all(calendar.covers_until >= date(2026, 12, 31) for calendar in file.calendar)


def test_shipped_prices_change_no_model_they_do_not_name() -> None:
    named = {m.name for m in SHIPPED_TABLE.models if any(r.origin for rows in m.rows.values() for r in rows)}
    before = {m.name: m for m in BASE.models}
    for model in SHIPPED_TABLE.models:
        if model.name not in named:
            standard = {mode: rows for mode, rows in model.rows.items() if "*" not in mode}
            assert standard == before[model.name].rows
    assert 20 <= len(named) <= 60


# Both readers, and the source where we do not override it.

MODELS = [m for m in SHIPPED_TABLE.models if m.rows]
GEOS = st.sampled_from([None, "us", "eu", "global"])
MODES = st.sampled_from([{}, {"batch": True}, {"service_tier": "flex"}, {"speed": "fast"}])


@settings(max_examples=60, deadline=None)
@given(
    picks=st.lists(
        st.tuples(
            st.integers(0, len(MODELS) - 1),
            st.datetimes(datetime(2025, 1, 1), datetime(2027, 6, 1)),  # noqa: DTZ001 - made aware below
            st.integers(0, 400_000),
            MODES,
            GEOS,
        ),
        min_size=1,
        max_size=30,
    )
)
def test_bulk_and_single_prices_agree(
    picks: list[tuple[int, datetime, int, dict[str, Any], str | None]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    catalog = _loaded(tmp_path_factory.getbasetemp() / "prices")
    served = {p: b.id for b in reversed(BOOK.providers.values()) for p in b.price_as[:1]}
    calls = [
        {
            "provider": served.get(MODELS[n].provider, MODELS[n].provider),
            "served_model": f"{served.get(MODELS[n].provider)}/{MODELS[n].model}",
            "model": None,
            "access": "payg",
            "status": "ok",
            "started_at": when.replace(tzinfo=UTC, microsecond=0),
            "input_tokens": tokens,
            "output_tokens": tokens // 3,
            "region": geo,
            "batch": mode.get("batch"),
            "service_tier": mode.get("service_tier"),
            "speed": mode.get("speed"),
        }
        for n, when, tokens, mode, geo in picks
    ]
    types = {"model": pl.String, "region": pl.String, "batch": pl.Boolean}
    types |= {"service_tier": pl.String, "speed": pl.String}
    rated = catalog.rate(pl.DataFrame(calls, schema_overrides=types))
    for call, row in zip(calls, rated.iter_rows(named=True), strict=True):
        told = catalog.explain(call)
        expected = None if told["list_cost_usd"] is None else Decimal(told["list_cost_usd"])
        assert row["list_cost_usd"] == expected, call
        if expected is not None:
            assert row["price_id"] == told["price_row"]["price_id"]


_CATALOGS: dict[Path, Catalog] = {}


def _loaded(path: Path) -> Catalog:
    if path not in _CATALOGS:
        _CATALOGS[path] = Catalog.load(path)
    return _CATALOGS[path]


CASES = st.tuples(
    st.integers(0, len(MODELS) - 1),
    st.datetimes(datetime(2025, 1, 1), datetime(2027, 6, 1)),  # noqa: DTZ001 - made aware below
    st.lists(st.integers(0, 400_000), min_size=3, max_size=3),
)


@settings(max_examples=200, deadline=None)
@given(case=CASES)
def test_the_source_agrees_wherever_we_do_not_override_it(case: tuple[int, datetime, list[int]]) -> None:
    from genai_prices import Usage, calc_price  # noqa: PLC0415 - the oracle

    from catalog.arithmetic import cost, lines  # noqa: PLC0415

    number, when, (plain, read, output) = case
    model, instant = MODELS[number], when.replace(tzinfo=UTC)
    row = model.row("standard", instant, plain + read)
    assume(not row.origin and row.prices[0] is not None and row.prices[1] is not None)
    assume(all(price is None for price in row.prices[PARTS.index("request") :]))
    assume(row.prices[2] is not None or not read)
    assume(SHIPPED_TABLE.find(model.provider, model.model) is model)
    assume(not any(line.startswith(f"{model.name}:") for kind in BASE.report.values() for line in kind))
    assume("deepseek" not in model.model)  # the source prices windows before their date
    usage = Usage(input_tokens=plain + read, cache_read_tokens=read, output_tokens=output)
    source = calc_price(
        usage, model.model, provider_id=model.provider, genai_request_timestamp=instant
    ).total_price
    ours = cost(lines(row, {"input": plain, "cache_read": read, "output": output}))
    assert ours == source.quantize(Decimal("1e-12")), (model.name, instant)


def test_an_instant_is_compared_to_the_second_before() -> None:
    model = SHIPPED_TABLE.find("x-ai", "grok-3")
    assert model is not None
    change = at("2026-05-15T19:00:00Z")
    just_before = model.row("standard", change - timedelta(microseconds=1), 1)
    assert just_before.prices[0] == 3_000_000_000


def test_the_documented_example_is_a_price_file_that_prices(tmp_path: Path) -> None:
    page = Path("docs/catalogue.md").read_text(encoding="utf-8")
    table = laid(tmp_path, page.partition("```toml\n")[2].partition("```")[0])
    when = "2026-11-20T12:00:00Z"  # a Friday
    assert usd(table, "openai/gpt-5", when) == ["1.1", "9"]
    assert usd(table, "openai/gpt-5", when, mode="batch") == ["0.55", "4.5"]
    assert usd(table, "openai/team-default", when) == usd(table, "openai/gpt-5-mini", when)
    assert usd(table, "openai/gpt-5", when, said={"deployment_scope": "eu-sovereign"}) == ["1.32", "10.8"]
    assert usd(table, "nano-gpt/zai-org/glm-5", when, tokens=200_001) == ["1.8", "6"]
    hours = [usd(table, "nano-gpt/zai-org/glm-5", f"2026-04-{day}:00:00Z")[0] for day in ("24T09", "25T09")]
    assert hours == ["1.2", "0.9"]
