"""Prices calls in bulk: joins on integers, exact decimals, the money table of the design.

Each call finds its price row by three as-of steps: the newest date at or before its start, the period of
the day (of an ordinary day or of a calendar's), the highest tier strictly below its inclusive input. One
search over sorted integer keys does each step for a whole batch. Costs are sums of tokens x DECIMAL prices,
divided by a million and rounded once, half-even, to 1e-12. No float is ever made. What is not told is never
taken for zero dollars: the status says what is missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

import polars as pl

from catalog.finder import PriceFinder
from catalog.table import DAY_S, PARTS, STANDARD, UNIT, Days, PriceModel, PriceTable, with_fallbacks

__all__ = ["MAX_TOKENS", "MONEY", "Rater"]

MONEY = pl.Decimal(18, 12)
MAX_TOKENS = 10**12
"""More tokens than any call can have: such a count is taken as not told."""

SLICE_ROWS = 250_000
"""Rows priced at a time, which bounds memory whatever the batch."""

_PRICE = pl.Decimal(38, 9)
_EXACT = pl.Decimal(38, 15)
_SECONDS = 1 << 40  # more than any time in UTC seconds: the room each slot has in its key
_TOKENS = 1 << 41  # more than MAX_TOKENS: the room each period has in its key
_KEY = ("provider", "served_model", "model")
_WITHOUT_OUTPUT = ("embeddings", "embedding", "rerank")
_FREE = ("free", "local")
_TIERS = ("flex", "priority", "fast")
_NANO = pl.lit(UNIT, dtype=pl.Decimal(38, 9))

_COLUMNS: dict[str, pl.DataType] = {
    "provider": pl.String(),
    "served_model": pl.String(),
    "model": pl.String(),
    "resolution": pl.String(),
    "access": pl.String(),
    "plan_id": pl.String(),
    "started_at": pl.Datetime("us", "UTC"),
    "input_tokens": pl.Int64(),
    "output_tokens": pl.Int64(),
    "cache_read_tokens": pl.Int64(),
    "cache_write_tokens": pl.Int64(),
    "cache_write_1h_tokens": pl.Int64(),
    "audio_input_tokens": pl.Int64(),
    "audio_output_tokens": pl.Int64(),
    "audio_cache_read_tokens": pl.Int64(),
    "web_searches": pl.Int64(),
    "service_tier": pl.String(),
    "speed": pl.String(),
    "batch": pl.Boolean(),
    "status": pl.String(),
    "operation": pl.String(),
    "region": pl.String(),
    "inference_geo": pl.String(),
}
"""What pricing reads; a column that is absent counts as not told."""


@dataclass(frozen=True, slots=True)
class _Index:
    """The price table as sorted integer keys, one array per as-of step, and the rows they lead to."""

    slots: pl.DataFrame
    dated: pl.Series
    calendars: pl.Series
    """Of each date, which of `days` its calendar is (from 1; 0: none)."""
    days: tuple[Days, ...]
    periods: pl.Series
    tiers: pl.Series
    rows: pl.DataFrame


class Rater:
    """Rates frames of resolved calls against one compiled table."""

    def __init__(
        self, table: PriceTable, finder: PriceFinder, *, version: str, assume_unknown_access: bool
    ) -> None:
        self._finder = finder
        self._version = version
        self._assume = assume_unknown_access
        self._models = {id(model): number for number, model in enumerate(table.models)}
        self._index = _index(table.models)

    def rate(self, calls: pl.DataFrame) -> pl.DataFrame:
        """Add usage_known, usage_complete, list_cost_usd, billed_cost_usd, cost_status, price_id,
        catalog_version.

        A call that by its operation has no output gets output_tokens 0. Other columns pass through
        unchanged.
        """
        slices = [self._rate(part) for part in calls.iter_slices(SLICE_ROWS)] or [self._rate(calls)]
        return pl.concat(slices)

    def _rate(self, calls: pl.DataFrame) -> pl.DataFrame:
        told = calls.select(_as_told(calls, name, dtype) for name, dtype in _COLUMNS.items())
        told = told.with_columns(_output_told()).with_columns(_usage_known())
        priced = _parts(self._price_rows(told))
        costed = priced.with_columns(_cost(priced).alias("list_price"))
        money = costed.with_columns(_usage_complete(), _status()).select(
            "output_tokens",
            "usage_known",
            "usage_complete",
            _list_cost().alias("list_cost_usd"),
            _billed_cost(assume=self._assume).alias("billed_cost_usd"),
            "cost_status",
            pl.when(pl.col("list_price").is_not_null() & _is_priced()).then("price_id").alias("price_id"),
            pl.lit(self._version).alias("catalog_version"),
        )
        return calls.with_columns(money.get_columns())

    def _price_rows(self, told: pl.DataFrame) -> pl.DataFrame:
        """Put beside each call its price row (`price_id`, one column per part; NULL without a price) and
        `estimated`.
        """
        told = told.with_columns(pl.coalesce("inference_geo", "region").alias("geo"))
        targets = self._targets(told.select(*_KEY, "geo").unique())
        told = told.join(targets, on=[*_KEY, "geo"], how="left", nulls_equal=True, maintain_order="left")
        told = told.with_columns(pl.concat_str(_mode(), pl.col("variant")).alias("mode"))
        told = told.join(self._index.slots, on=["target", "mode"], how="left", maintain_order="left")
        return told.hstack(self._row_of(told))

    def _targets(self, wanted: pl.DataFrame) -> pl.DataFrame:
        """Find the price model of each distinct target, and the variant that what is said brings with it."""
        found: list[tuple[int | None, bool, str]] = []
        for *key, geo in wanted.iter_rows():
            target = self._finder.find(*key)
            said = target.said | ({"inference_geo": geo} if geo else {})
            variant = target.model.variant(said) if target.model else None
            number = self._models[id(target.model)] if target.model else None
            found.append((number, target.estimated, f"*{variant.name}" if variant else ""))
        told = {"target": pl.Int32, "estimated": pl.Boolean, "variant": pl.String}
        return wanted.hstack(pl.DataFrame(found, schema=told, orient="row"))

    def _row_of(self, told: pl.DataFrame) -> pl.DataFrame:
        """Find the price row of each call: date, then period of the day, then tier."""
        at_s = told["started_at"].dt.epoch("s").clip(0).fill_null(0)
        over = (told.select(_inclusive_input()).to_series() - 1).clip(0).fill_null(0)
        slot = told["slot"]
        dated = _last_at_or_below(self._index.dated, slot.fill_null(0) * _SECONDS + at_s)
        day_key = (dated * 2 + self._special(dated, at_s // DAY_S)) * DAY_S
        period = _last_at_or_below(self._index.periods, day_key + at_s % DAY_S)
        row = _last_at_or_below(self._index.tiers, period * _TOKENS + over)
        known = slot.is_not_null() & told["started_at"].is_not_null()
        known_rows = pl.select(pl.when(known).then(row)).to_series()
        return self._index.rows.select(pl.all().gather(known_rows))

    def _special(self, dated: pl.Series, day: pl.Series) -> pl.Series:
        """Say (0 or 1) whether each call's day is one of the calendar that its dated prices follow."""
        calendar = self._index.calendars.gather(dated.clip(0))
        special = pl.zeros(len(day), pl.Int64, eager=True)
        for number, days in enumerate(self._index.days, start=1):
            if not (calendar == number).any():
                continue
            working = ((day + 3) % 7).is_in(list(days.weekdays)) & ~day.is_in(list(days.holidays))
            special += ((calendar == number) & working).cast(pl.Int64)
        return special


def _index(models: tuple[PriceModel, ...]) -> _Index:
    """Lay the table out for as-of search: slot (model, mode) -> dates -> periods -> tiers -> price row."""
    slots: list[tuple[int, str]] = []
    dated: list[int] = []
    calendars: list[int] = []
    days: list[Days] = []
    periods: list[int] = []
    tiers: list[int] = []
    rows: list[tuple[int | str | bool | None, ...]] = []
    for number, model in enumerate(models):
        for mode, mode_rows in model.rows.items():
            slots.append((number, mode))
            for row in mode_rows:
                date_key = (len(slots) - 1) * _SECONDS + row.valid_from_s
                if not dated or dated[-1] != date_key:
                    dated.append(date_key)
                    calendars.append(0)
                if row.days is not None:
                    days.extend([row.days] if row.days not in days else [])
                    calendars[-1] = days.index(row.days) + 1
                period_key = ((len(dated) - 1) * 2 + (row.days is not None)) * DAY_S + row.period_from_s
                if not periods or periods[-1] != period_key:
                    periods.append(period_key)
                tiers.append((len(periods) - 1) * _TOKENS + row.over_tokens)
                own = [price is not None for price in row.prices[2:5]]
                rows.append((row.price_id(model.name, mode), *own, *with_fallbacks(row.prices)))
    return _Index(
        slots=_slots(slots, models),
        dated=pl.Series(dated, dtype=pl.Int64),
        calendars=pl.Series(calendars, dtype=pl.Int64),
        days=tuple(days),
        periods=pl.Series(periods, dtype=pl.Int64),
        tiers=pl.Series(tiers, dtype=pl.Int64),
        rows=_rows_frame(rows),
    )


def _slots(slots: list[tuple[int, str]], models: tuple[PriceModel, ...]) -> pl.DataFrame:
    """Give the slot of every (model, mode): a mode the source does not price leads to the standard one."""
    numbers = {slot: number for number, slot in enumerate(slots)}
    modes = sorted({mode.partition("*")[0] for _, mode in slots})
    pairs = [
        (n, f"{mode}{variant}", numbers[n, f"{model.mode(mode)}{variant}"])
        for n, model in enumerate(models)
        if model.rows
        for mode in modes
        for variant in ("", *(f"*{v.name}" for v in model.variants))
    ]
    return pl.DataFrame(pairs, schema={"target": pl.Int32, "mode": pl.String, "slot": pl.Int64}, orient="row")


def _rows_frame(rows: list[tuple[int | str | bool | None, ...]]) -> pl.DataFrame:
    prices = {_price(part): pl.Int64 for part in PARTS}
    own = {_own(part): pl.Boolean for part in PARTS[2:5]}
    frame = pl.DataFrame(rows, schema={"price_id": pl.String, **own, **prices}, orient="row")
    return frame.with_columns((pl.col(n).cast(_PRICE) * _NANO).cast(_PRICE) for n in prices)


def _price(part: str) -> str:
    return f"{part}_price"


def _own(part: str) -> str:
    return f"has_{part}_price"


def _as_told(calls: pl.DataFrame, name: str, dtype: pl.DataType) -> pl.Expr:
    """Read one column as pricing needs it; token counts that no call can have become NULL."""
    if name not in calls.columns:
        return pl.lit(None, dtype=dtype).alias(name)
    column = pl.col(name).cast(dtype)
    if not dtype.is_integer():
        return column
    return pl.when(column.is_between(0, MAX_TOKENS)).then(column).alias(name)


def _output_told() -> pl.Expr:
    without = pl.col("operation").is_in(_WITHOUT_OUTPUT)
    return (
        pl.when(without)
        .then(pl.col("output_tokens").fill_null(0))
        .otherwise("output_tokens")
        .alias("output_tokens")
    )


def _usage_known() -> pl.Expr:
    return (pl.col("input_tokens").is_not_null() & pl.col("output_tokens").is_not_null()).alias("usage_known")


def _mode() -> pl.Expr:
    """Give the price mode a call asks for; batch beats speed, speed beats service tier."""
    tier = pl.col("service_tier").str.to_lowercase()
    return (
        pl.when(pl.col("batch").fill_null(False) | (tier == "batch"))
        .then(pl.lit("batch"))
        .when(pl.col("speed").str.to_lowercase() == "fast")
        .then(pl.lit("fast"))
        .when(tier.is_in(_TIERS))
        .then(tier)
        .otherwise(pl.lit(STANDARD))
        .alias("mode")
    )


def _count(name: str) -> pl.Expr:
    return pl.col(name).fill_null(0)


def _audio_in() -> pl.Expr:
    """Audio input that was not read from the cache."""
    return _count("audio_input_tokens") - _cached_audio()


def _cached_audio() -> pl.Expr:
    return pl.min_horizontal(
        _count("audio_cache_read_tokens"), _count("cache_read_tokens"), _count("audio_input_tokens")
    )


def _inclusive_input() -> pl.Expr:
    """Input tokens as tiers count them: all of them, cached included, and never less than their parts."""
    parts = _count("cache_read_tokens") + _count("cache_write_tokens") + _audio_in()
    return pl.max_horizontal(_count("input_tokens"), parts)


def _last_at_or_below(keys: pl.Series, wanted: pl.Series) -> pl.Series:
    """Give for each wanted key the position of the last key that is not greater (each slot starts at its
    own zero).
    """
    return keys.search_sorted(wanted, side="right").cast(pl.Int64) - 1


def _parts(told: pl.DataFrame) -> pl.DataFrame:
    """Split usage into disjoint priced parts; parts larger than their whole never make a negative one."""
    cached = _count("cache_read_tokens") + _count("cache_write_tokens") + _audio_in()
    long_writes = pl.min_horizontal(_count("cache_write_1h_tokens"), _count("cache_write_tokens"))
    audio_out = pl.min_horizontal(_count("audio_output_tokens"), _count("output_tokens"))
    return told.with_columns(
        (_inclusive_input() - cached).alias("input"),
        (_count("output_tokens") - audio_out).alias("output"),
        (_count("cache_read_tokens") - _cached_audio()).alias("cache_read"),
        (_count("cache_write_tokens") - long_writes).alias("cache_write"),
        long_writes.alias("cache_write_1h"),
        _audio_in().alias("audio_input"),
        audio_out.alias("audio_output"),
        _cached_audio().alias("audio_cache_read"),
        _count("web_searches").alias("web_search"),
        pl.lit(1, dtype=pl.Int64).alias("request"),
        _parts_fit().alias("parts_fit"),
    )


def _parts_fit() -> pl.Expr:
    parts = _count("cache_read_tokens") + _count("cache_write_tokens") + _audio_in()
    return (
        (parts <= pl.col("input_tokens"))
        & (_count("cache_write_1h_tokens") <= _count("cache_write_tokens"))
        & (_count("audio_output_tokens") <= pl.col("output_tokens"))
    )


def _cost(parts: pl.DataFrame) -> pl.Expr:
    """Sum tokens x price over the parts, exactly, and round once; NULL where a used part has no price."""
    used = [part for part in PARTS if part == "request" or parts[part].max()]
    lines = [_line(part) for part in used]
    total = lines[0]
    for line in lines[1:]:
        total = total + line
    exact = (total.cast(_EXACT) / 1_000_000).cast(MONEY, strict=False)
    return pl.when(pl.col("price_id").is_not_null()).then(exact)


def _line(part: str) -> pl.Expr:
    """Cost one part in millionths of a dollar: nothing where it was not used, NULL where its price is
    unknown.
    """
    nothing = pl.lit(Decimal(0), dtype=_PRICE)
    without_fee = nothing if part == "request" else pl.lit(None, dtype=_PRICE)
    used = (
        pl.when(pl.col(_price(part)).is_null())
        .then(without_fee)
        .otherwise(pl.col(_price(part)) * pl.col(part))
    )
    return pl.when((pl.col(part) == 0) & pl.col("price_id").is_not_null()).then(nothing).otherwise(used)


def _usage_complete() -> pl.Expr:
    """Say whether every part the price tells apart was told, and the parts fit into their wholes.

    Without a price row every part counts as told apart.
    """
    told = pl.col("usage_known") & pl.col("parts_fit").fill_null(False)
    for part in ("cache_read", "cache_write"):
        told &= pl.col(f"{part}_tokens").is_not_null() | ~pl.col(_own(part)).fill_null(True)
    short_only = ~pl.col(_own("cache_write_1h")).fill_null(True) | (_count("cache_write_tokens") == 0)
    told &= pl.col("cache_write_1h_tokens").is_not_null() | short_only
    return told.alias("usage_complete")


def _covered() -> pl.Expr:
    """Say whether a plan covers the call: a subscription, or credits inside a plan's allotment."""
    return (pl.col("access") == "subscription") | (
        (pl.col("access") == "credits") & pl.col("plan_id").is_not_null()
    )


def _costs_nothing() -> pl.Expr:
    return pl.col("access").is_in(_FREE)


def _access_unknown() -> pl.Expr:
    return pl.col("access").is_null() | (pl.col("access") == "unknown")


def _status() -> pl.Expr:
    """Give each call its row of the money table."""
    return (
        pl.when(~pl.col("usage_known") & (pl.col("status") == "error"))
        .then(pl.lit("not_billable"))
        .when(~pl.col("usage_known"))
        .then(pl.lit("usage_unknown"))
        .when(_costs_nothing())
        .then(pl.lit("free"))
        .when(pl.col("access") == "provisioned")
        .then(pl.lit("provisioned"))
        .when(_covered())
        .then(pl.lit("included"))
        .when(pl.col("list_price").is_null())
        .then(pl.lit("unpriced"))
        .when("estimated")
        .then(pl.lit("estimated"))
        .when(_access_unknown())
        .then(pl.lit("assumed"))
        .otherwise(pl.lit("priced"))
        .alias("cost_status")
    )


def _is_priced() -> pl.Expr:
    """Say whether a call's list cost comes from a price row."""
    return pl.col("cost_status").is_in(("included", "estimated", "assumed", "priced"))


def _list_cost() -> pl.Expr:
    zero = pl.lit(Decimal(0), dtype=MONEY)
    nothing = pl.col("cost_status").is_in(("not_billable", "free"))
    return pl.when(nothing).then(zero).when(_is_priced()).then("list_price")


def _billed_cost(*, assume: bool) -> pl.Expr:
    zero = pl.lit(Decimal(0), dtype=MONEY)
    status = pl.col("cost_status")
    nothing = (status == "not_billable") | ((status != "provisioned") & (_covered() | _costs_nothing()))
    withheld = status.is_in(("unpriced", "usage_unknown", "provisioned")) | (_access_unknown() & (not assume))
    return pl.when(nothing).then(zero).when(~withheld).then("list_price")
