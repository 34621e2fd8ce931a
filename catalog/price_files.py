"""Our own prices: reviewed TOML laid over the price source, and the operator's file laid over both.

Facts are dated and appended, never overwritten: a row says from which instant (UTC) it holds, and every
entry names its source and the day it was checked. What is wrong in a file is told with file and line; a file
that is wrong is refused whole, because half a price list is a wrong price list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal, Protocol

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from catalog.errors import PriceFileError
from catalog.toml_source import Data, Place, TomlText, dotted, read_toml

__all__ = [
    "SHIPPED",
    "Calendar",
    "Entry",
    "Layer",
    "Multiplier",
    "Price",
    "PriceFile",
    "Redirect",
    "Row",
    "Tier",
    "Window",
    "load_layer",
]

SHIPPED = Path(__file__).parent / "prices"
MAX_USD_PER_MILLION = Decimal(1_000_000)

Mode = Literal["standard", "batch", "flex", "priority", "fast"]
Name = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[a-z0-9][a-z0-9._-]*$")]
ModelId = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[\x21-\x7e]+$")]
Text = Annotated[str, StringConstraints(min_length=3)]
Weekday = Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
WEEKDAYS: tuple[Weekday, ...] = (
    "monday",
    "tuesday",
    "wednesday",
    "thursday",
    "friday",
    "saturday",
    "sunday",
)


def _exact(value: object) -> object:
    """Take an amount as text, whole number or exact decimal; a float has lost what was typed."""
    if isinstance(value, float):
        raise ValueError("a price must be exact: write it as text, like '0.15'")
    if isinstance(value, str):
        if not re.fullmatch(r"\d{1,7}(\.\d{1,9})?", value):
            raise ValueError("a price is a plain decimal, like '0.15', with at most nine decimal places")
        return Decimal(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return Decimal(value)
    return value


def _priced(value: Decimal) -> Decimal:
    if not 0 <= value <= MAX_USD_PER_MILLION or value != value.quantize(Decimal("1e-9")):
        raise ValueError("USD per million, 0 to 1000000, with at most nine decimal places")
    return value


def _is_utc(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("an instant needs its offset: write it in UTC, like 2026-08-16T16:00:00Z")
    return value.astimezone(UTC)


def _has_length(hours: str) -> str:
    start, _, end = hours.partition("-")
    if start == end != "00:00":
        raise ValueError("hours that end when they begin are none; 00:00-00:00 is the whole day")
    return hours


def _compiles(regex: str) -> str:
    try:
        re.compile(regex)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return regex


Hours = Annotated[
    str,
    StringConstraints(pattern=r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$"),
    AfterValidator(_has_length),
]
Usd = Annotated[Decimal, BeforeValidator(_exact), AfterValidator(_priced)]
Factor = Annotated[Decimal, BeforeValidator(_exact), Field(gt=0, le=100)]
Instant = Annotated[datetime, AfterValidator(_is_utc)]


class Prices(Data):
    """Unit prices: USD per million tokens. A part that is not named has no price of its own."""

    input: Usd | None = None
    output: Usd | None = None
    cache_read: Usd | None = None
    cache_write: Usd | None = None
    cache_write_1h: Usd | None = None
    audio_input: Usd | None = None
    audio_output: Usd | None = None
    audio_cache_read: Usd | None = None
    web_searches_per_1000: Usd | None = None
    """USD per thousand searches."""
    requests_per_1000: Usd | None = None
    """USD per thousand calls, whatever they use."""

    @model_validator(mode="after")
    def _says_something(self) -> Prices:
        if self.input is None and self.output is None:
            raise ValueError("a price needs input or output")
        return self


class Tier(Prices):
    """Prices of the whole call when its inclusive input is larger than `over_tokens`."""

    over_tokens: Annotated[int, Field(ge=1, le=10**9)]


class Window(Prices):
    """Prices inside hours of the UTC day (`"01:00-04:00"`, end exclusive, may pass midnight;
    `"00:00-00:00"` is all of it).
    """

    hours: Annotated[list[Hours], Field(min_length=1)]
    calendar: Name | None = None
    """Only on the days of this calendar; absent: every day."""


class Row(Prices):
    """Prices that hold from an instant on, until the next row of the same mode."""

    valid_from: Instant | None = None
    """First instant (inclusive); absent: since always."""
    valid_to: Instant | None = None
    """First instant after (exclusive), where what lies below holds again; absent: until the next row."""
    mode: Mode = "standard"
    tiers: list[Tier] = Field(default_factory=list)
    windows: list[Window] = Field(default_factory=list)
    basis: str | None = None
    """How the date is known, where it is not the provider's own announcement."""


class Sourced(Data):
    """Something a person can check: where it is written, and when that was last read."""

    source: Text
    checked: date
    note: str | None = None


class Price(Sourced):
    """Prices of a list's models: by the list's own model name, by id as served, or by the ids' beginning."""

    price_list: Name
    models: list[ModelId] = Field(default_factory=list)
    ids: list[ModelId] = Field(default_factory=list)
    starts_with: list[ModelId] = Field(default_factory=list)
    row: Annotated[list[Row], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_models(self) -> Price:
        if not (self.models or self.ids or self.starts_with):
            raise ValueError("name the priced models: models, ids or starts_with")
        return self


class Redirect(Sourced):
    """Ids that are billed as another model of the same list from an instant on."""

    price_list: Name
    ids: Annotated[list[ModelId], Field(min_length=1)]
    billed_as: ModelId
    valid_from: Instant | None = None
    valid_to: Instant | None = None


class Multiplier(Sourced):
    """A factor on every token price of a list's models when the call says so (`inference_geo = "us"`)."""

    id: Name
    price_list: Name
    match: Annotated[str, AfterValidator(_compiles)] = ""
    """Regex on the list's model names; empty: all of them."""
    when: Literal["inference_geo", "inference_profile", "deployment_scope"]
    values: Annotated[list[Name], Field(min_length=1)]
    factor: Factor
    valid_from: Instant | None = None


class Calendar(Sourced):
    """Days on which windows apply: weekdays without the holidays. Days are days of UTC."""

    id: Name
    weekdays: Annotated[list[Weekday], Field(min_length=1)]
    except_dates: list[date] = Field(default_factory=list)
    covers_until: date
    """Last day whose holidays are known; after it the weekdays alone decide."""


class PriceFile(Data):
    """One file of prices, redirects, multipliers and calendars."""

    price: list[Price] = Field(default_factory=list)
    redirect: list[Redirect] = Field(default_factory=list)
    multiplier: list[Multiplier] = Field(default_factory=list)
    calendar: list[Calendar] = Field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Entry:
    """One fact with its place, so that what cannot be used names the line it was written on."""

    fact: Price | Redirect | Multiplier | Calendar
    where: str


@dataclass(frozen=True, slots=True)
class Layer:
    """All files of one authority: 'shipped' or 'operator'."""

    name: str
    entries: tuple[Entry, ...]
    sha256: str


def load_layer(name: str, path: Path) -> Layer:
    """Read a file, or every `*.toml` of a folder, as one layer.

    Raises PriceFileError naming every wrong line.
    """
    files = sorted(path.glob("*.toml")) if path.is_dir() else [path]
    problems: list[str] = []
    entries: list[Entry] = []
    claims = _Claims(problems)
    digest = sha256()
    for file in files:
        read = read_toml(file, PriceFile, problems)
        if read is not None:
            body = file.read_bytes()
            digest.update(file.name.encode() + b"\0" + body + b"\0")
            lines = TomlText(body.decode())
            for place, fact in _facts(read):
                where = f"{file.name}:{lines.line(place)}: {dotted(place)}"
                entries.append(Entry(fact, where))
                claims.add(fact, place, file=file.name, lines=lines)
    if problems:
        raise PriceFileError("\n".join(problems))
    return Layer(name, tuple(entries), digest.hexdigest())


def _facts(file: PriceFile) -> Iterator[tuple[Place, Price | Redirect | Multiplier | Calendar]]:
    for kind in ("calendar", "price", "redirect", "multiplier"):
        for number, fact in enumerate(getattr(file, kind)):
            yield (kind, number), fact


@dataclass(frozen=True, slots=True)
class _Span:
    start: datetime
    end: datetime | None
    where: str


_ALWAYS = datetime(1970, 1, 1, tzinfo=UTC)


class _Where(Protocol):
    """Writes the place of something inside an entry."""

    def __call__(self, *more: int | str) -> str: ...


class _Claims:
    """What the entries of one layer claim, to find two that contradict each other."""

    def __init__(self, problems: list[str]) -> None:
        self._problems = problems
        self._spans: dict[tuple[str, ...], list[_Span]] = {}
        self._ids: dict[tuple[str, str], str] = {}

    def add(
        self, fact: Price | Redirect | Multiplier | Calendar, place: Place, *, file: str, lines: TomlText
    ) -> None:
        """Note what `fact` claims; add a problem where it overlaps what was claimed before."""

        def at(*more: int | str) -> str:
            whole = (*place, *more)
            return f"{file}:{lines.line(whole)}: {dotted(whole)}"

        if isinstance(fact, Calendar | Multiplier):
            self._claim_id(type(fact).__name__.lower(), fact.id, at("id"))
        elif isinstance(fact, Redirect):
            for model in fact.ids:
                span = _Span(fact.valid_from or _ALWAYS, fact.valid_to, at("valid_from"))
                self._claim_span((fact.price_list, "id", model.lower(), "standard"), span)
        else:
            self._claim_rows(fact, at)

    def _claim_rows(self, price: Price, at: _Where) -> None:
        targets = [("model", m) for m in price.models] + [("id", m) for m in price.ids]
        targets += [("starts_with", m) for m in price.starts_with]
        for number, row in enumerate(price.row):
            self._check_windows(row, number, at)
            for kind, model in targets:
                span = _Span(row.valid_from or _ALWAYS, row.valid_to, at("row", number, "valid_from"))
                self._claim_span((price.price_list, kind, model.lower(), row.mode), span)

    def _claim_id(self, kind: str, name: str, where: str) -> None:
        other = self._ids.setdefault((kind, name), where)
        if other is not where:
            self._problems.append(f"{where}: {kind} {name} is already defined at {_line_of(other)}")

    def _claim_span(self, target: tuple[str, ...], span: _Span) -> None:
        name = f"{target[0]}/{target[2]} ({target[3]})"
        if span.end is not None and span.end <= span.start:
            self._problems.append(f"{span.where}: {name}: valid_to must be after valid_from")
        for other in self._spans.setdefault(target, []):
            if _overlap(span, other):
                self._problems.append(f"{span.where}: {name}: dates overlap those at {_line_of(other.where)}")
        self._spans[target].append(span)

    def _check_windows(self, row: Row, number: int, at: _Where) -> None:
        """Windows of one row must not overlap, and keep to one calendar."""
        if len({window.calendar for window in row.windows}) > 1:
            self._problems.append(f"{at('row', number, 'windows')}: all windows of a row follow one calendar")
        if row.windows and row.tiers:
            self._problems.append(f"{at('row', number, 'windows')}: a row has windows or tiers, not both")
        minutes: set[int] = set()
        for window in row.windows:
            for hours in window.hours:
                mine = set(minutes_of(hours))
                if mine & minutes:
                    self._problems.append(f"{at('row', number, 'windows')}: hours overlap")
                minutes |= mine


def _overlap(one: _Span, other: _Span) -> bool:
    """Rows without an end give way to later ones; the same start, or an explicit end past it, contradict."""
    first, second = sorted((one, other), key=lambda span: span.start)
    return first.start == second.start or (first.end is not None and first.end > second.start)


def _line_of(where: str) -> str:
    return ":".join(where.split(":")[:2])


def minutes_of(hours: str) -> list[int]:
    """Give the minutes of the day inside `"HH:MM-HH:MM"`; one that ends before it starts passes midnight."""
    start, end = (
        time.fromisoformat(part).hour * 60 + time.fromisoformat(part).minute for part in hours.split("-")
    )
    return list(range(start, end)) if start < end else [*range(start, 1440), *range(end)]
