"""The compiled price table: plain rows, cheap to load, with no library behind them.

Both readers use it: `catalog.rate` (in columns) and `catalog.quote` (one call at a time, in a process that
must stay light). A price is an integer: nano-USD per million units (USD per million x 10^9, the scale of
DECIMAL(18,9)), so nothing here can turn into a float. A missing price is None and never 0.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cached_property
from typing import Any

from catalog.clauses import Clause, dashed_date, matches

__all__ = [
    "DAY_S",
    "PARTS",
    "STANDARD",
    "TOKEN_PARTS",
    "UNIT",
    "Days",
    "PriceModel",
    "PriceRow",
    "PriceTable",
    "Variant",
    "price_decimal",
    "seconds",
    "with_fallbacks",
]

STANDARD = "standard"
DAY_S = 86_400
UNIT = Decimal("1e-9")

PARTS: tuple[str, ...] = (
    "input",
    "output",
    "cache_read",
    "cache_write",
    "cache_write_1h",
    "audio_input",
    "audio_output",
    "audio_cache_read",
    "web_search",
    "request",
)
"""Priced parts in the order of a row's `prices`; each is USD per million tokens (searches, requests: per
million).
"""

TOKEN_PARTS = PARTS[:8]
"""The parts counted in tokens: what multipliers multiply."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def seconds(at: datetime) -> int:
    """Give whole UTC seconds since 1970 at or before `at` (aware); exact, prices only change on whole
    seconds.
    """
    return (at - _EPOCH) // timedelta(seconds=1)


def with_fallbacks(prices: tuple[int | None, ...]) -> tuple[int | None, ...]:
    """Fill prices a list does not tell apart from the part they belong to (an uncharted cache read is input).

    Input, output, searches and request fees have nothing to fall back on and stay None.
    """
    filled: dict[str, int | None] = dict(zip(PARTS, prices, strict=True))
    for part, whole in _FALLBACKS:
        if filled[part] is None:
            filled[part] = filled[whole]
    return tuple(filled.values())


_FALLBACKS = (
    ("cache_write_1h", "cache_write"),
    ("cache_write", "input"),
    ("cache_write_1h", "cache_write"),
    ("audio_cache_read", "cache_read"),
    ("audio_cache_read", "audio_input"),
    ("audio_input", "input"),
    ("cache_read", "input"),
    ("audio_cache_read", "input"),
    ("audio_output", "output"),
)


def price_decimal(nano: int) -> Decimal:
    """Turn a stored price into USD per million units, without trailing zeros or exponent."""
    value = (Decimal(nano) * UNIT).normalize()
    return value.quantize(Decimal(1)) if value == value.to_integral_value() else value


@dataclass(frozen=True, slots=True)
class Days:
    """The days of a calendar: weekdays without holidays, by day of UTC since 1970."""

    name: str
    weekdays: frozenset[int]
    """0 is Monday."""
    holidays: frozenset[int]

    def __contains__(self, day: int) -> bool:
        return (day + 3) % 7 in self.weekdays and day not in self.holidays


@dataclass(frozen=True, slots=True)
class Variant:
    """Rows of a model multiplied because of what a call says: the modes `standard*name`, `batch*name`, ..."""

    name: str
    key: str
    """What the call must say: `inference_geo`, `inference_profile` or `deployment_scope`."""
    values: frozenset[str]
    factor: Decimal


@dataclass(frozen=True, slots=True)
class PriceRow:
    """One set of unit prices: from an instant on, inside a daily period, above an input size."""

    valid_from_s: int
    """UTC seconds since 1970, inclusive."""
    period_from_s: int
    """Second of the UTC day from which it applies (0 unless prices differ by time of day)."""
    over_tokens: int
    """Applies when inclusive input tokens are strictly greater (0: from the first token on)."""
    prices: tuple[int | None, ...]
    """Nano-USD per million units, in the order of PARTS; None where the source has no such price."""
    days: Days | None = None
    """Applies on these days only; a date with such rows has a whole day of them beside the ordinary day."""
    origin: str = ""
    """Whose row it is: "" the price source's, else `#shipped`, `#operator`, or `=model` for a redirect."""

    @property
    def key(self) -> tuple[int, bool, int, int]:
        """Order of rows: date, ordinary day before calendar day, period, tier."""
        return self.valid_from_s, self.days is not None, self.period_from_s, self.over_tokens

    @property
    def valid_from(self) -> datetime:
        return _EPOCH + timedelta(seconds=self.valid_from_s)

    def price_id(self, model: str, mode: str) -> str:
        """Name the row so that a person can find it: model, date, then mode, period and tier where they
        matter.
        """
        day = self.valid_from.strftime("%Y-%m-%dT%H:%M:%SZ")
        name = f"{model}@{day.removesuffix('T00:00:00Z')}"
        base, times, variant = mode.partition("*")
        if base != STANDARD:
            name += f"+{base}"
        name += times + variant
        if self.days:
            name += f"~{self.days.name}"
        if self.period_from_s:
            name += f"~{self.period_from_s // 3600:02d}:{self.period_from_s % 3600 // 60:02d}"
        if self.over_tokens:
            name += f">{self.over_tokens}"
        return name + self.origin


@dataclass(frozen=True, slots=True)
class PriceModel:
    """One priced model of one price provider: how served ids find it, and its rows by mode."""

    provider: str
    model: str
    clause: Clause
    rows: dict[str, tuple[PriceRow, ...]]
    """Mode -> rows, ascending by their `key`; empty where the source has no price."""
    variants: tuple[Variant, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.provider}/{self.model}"

    def mode(self, mode: str, said: Mapping[str, str] | None = None) -> str:
        """Give the mode that prices a call: the asked one, or standard where the source has no such price.

        `said` is what the call says besides (`inference_geo`, ...); a variant for it goes into the mode.
        """
        known = mode if mode in self.rows else STANDARD
        variant = self.variant(said or {})
        return f"{known}*{variant.name}" if variant else known

    def variant(self, said: Mapping[str, str]) -> Variant | None:
        """Find the multiplier that what a call says brings with it."""
        return next((v for v in self.variants if said.get(v.key, "").lower() in v.values), None)

    def row(
        self, mode: str, at: datetime, input_tokens: int, *, said: Mapping[str, str] | None = None
    ) -> PriceRow:
        """Find the row for an instant and an inclusive input size: newest date, then day, period, tier."""
        tiers = self.tiers(mode, at, said=said)
        return [row for row in tiers if not row.over_tokens or input_tokens > row.over_tokens][-1]

    def tiers(
        self, mode: str, at: datetime, *, said: Mapping[str, str] | None = None
    ) -> tuple[PriceRow, ...]:
        """The rows for an instant, one for each input size from which another price holds, ascending."""
        rows = self.rows[self.mode(mode, said)]
        now_s = seconds(at)
        dated = max((r.valid_from_s for r in rows if r.valid_from_s <= now_s), default=rows[0].valid_from_s)
        rows = tuple(r for r in rows if r.valid_from_s == dated)
        special = any(r.days is not None and now_s // DAY_S in r.days for r in rows)
        rows = tuple(r for r in rows if (r.days is not None) == special)
        period = max(r.period_from_s for r in rows if r.period_from_s <= now_s % DAY_S)
        return tuple(sorted((r for r in rows if r.period_from_s == period), key=lambda row: row.over_tokens))


@dataclass(frozen=True)
class PriceTable:
    """Everything compiled from one version of the price source, plus what of it is not carried."""

    source: str
    models: tuple[PriceModel, ...]
    report: dict[str, list[str]] = field(default_factory=dict)
    """What compiling had to say: `rounded` prices, prices `not_carried`, models with `no_price`."""
    laid: str = ""
    """Hash of what this table was laid together from; "" for one compiled from the price source alone."""

    @cached_property
    def sha256(self) -> str:
        """Hash of the canonical table (models, clauses, rows), the base of the catalogue's version."""
        return self.laid or hashlib.sha256(canonical(self.to_json()["models"])).hexdigest()

    @cached_property
    def by_provider(self) -> dict[str, tuple[PriceModel, ...]]:
        grouped: dict[str, list[PriceModel]] = {}
        for model in self.models:
            grouped.setdefault(model.provider, []).append(model)
        return {provider: tuple(models) for provider, models in grouped.items()}

    def find(self, provider: str, model_id: str) -> PriceModel | None:
        """Find the price model of an id as served by a price provider; None when no clause matches."""
        wanted = model_id.lower()
        for spelling in dict.fromkeys((wanted, dashed_date(wanted))):
            for model in self.by_provider.get(provider, ()):
                if matches(model.clause, spelling):
                    return model
        return None

    def to_json(self) -> dict[str, Any]:
        models = [
            [m.provider, m.model, m.clause, {k: _packed(rows) for k, rows in m.rows.items()}]
            for m in self.models
        ]
        return {"source": self.source, "models": models, "report": self.report}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> PriceTable:
        """Rebuild a table from `to_json`; raises KeyError, TypeError or ValueError when it is something
        else.
        """
        models = tuple(
            PriceModel(provider, model, clause, {mode: _unpacked(rows) for mode, rows in modes.items()})
            for provider, model, clause, modes in data["models"]
        )
        return cls(source=data["source"], models=models, report=data["report"])


def _packed(rows: tuple[PriceRow, ...]) -> list[list[int | None]]:
    return [[row.valid_from_s, row.period_from_s, row.over_tokens, *row.prices] for row in rows]


def _unpacked(rows: list[list[int]]) -> tuple[PriceRow, ...]:
    unpacked = tuple(PriceRow(row[0], row[1], row[2], tuple(row[3:])) for row in rows)
    if not unpacked or any(len(row.prices) != len(PARTS) for row in unpacked):
        raise ValueError("price rows of another shape")
    return unpacked


def canonical(data: Any) -> bytes:
    """Write JSON data in one way only, so that equal data has equal hashes."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
