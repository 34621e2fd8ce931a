"""Flattens the installed `genai-prices` into our own table, once per version of it; keeps the adopted one.

Asking the library for each call costs a millisecond and its import half a second and 40 MB; the flat table
loads in milliseconds and prices a million calls by joins. The library is imported here only, and by
`load_prices` in a child process, so that no long-lived process carries it. Nothing is fetched from anywhere.

Where the source is silent, the table is silent: a model without token prices has no row. What is not carried
(pages, characters, images, ...) and what had to be rounded is listed in the table's report.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, time
from decimal import ROUND_HALF_EVEN, Decimal
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from catalog.clauses import Clause
from catalog.errors import PriceDataError
from catalog.table import PARTS, STANDARD, UNIT, PriceModel, PriceRow, PriceTable, canonical, seconds

__all__ = [
    "adopt",
    "adopted_source",
    "compile_installed",
    "compile_prices",
    "installed_source",
    "load_prices",
]

log = logging.getLogger("tollbook.catalog")

ADOPTED = "adopted"
"""File that names the price source in use."""

FORMAT = 1
"""Raised whenever the shape or the meaning of the compiled file changes; older files are compiled anew."""

COMPILE_LIMIT_S = 120

_PRICE_KEYS: Mapping[str, tuple[str, int]] = {
    "input_mtok": ("input", 1),
    "output_mtok": ("output", 1),
    "cache_read_mtok": ("cache_read", 1),
    "cache_write_mtok": ("cache_write", 1),
    "cache_write_1h_mtok": ("cache_write_1h", 1),
    "input_audio_mtok": ("audio_input", 1),
    "output_audio_mtok": ("audio_output", 1),
    "cache_audio_read_mtok": ("audio_cache_read", 1),
    "web_searches_kcount": ("web_search", 1000),
    "requests_kcount": ("request", 1000),
}
"""The source's price key -> our part and the factor to USD per million units."""

_MODES: Mapping[tuple[str, str], str] = {
    ("processing", "batch"): "batch",
    ("service_tier", "flex"): "flex",
    ("service_tier", "priority"): "priority",
    ("service_tier", "fast"): "fast",
    ("speed", "fast"): "fast",
}
"""A variant's condition -> our mode; variants on other conditions (routes, search types) are reported."""

_SAME_AS_STANDARD = {("service_tier", "default")}
_ALWAYS = date(1970, 1, 1)


class _Notes:
    """What compiling has to say, in the order it was met."""

    def __init__(self) -> None:
        self.lists: dict[str, list[str]] = {"rounded": [], "not_carried": [], "no_price": []}

    def add(self, kind: str, text: str) -> None:
        if text not in self.lists[kind]:
            self.lists[kind].append(text)


def installed_source() -> str:
    """Name the price source and its installed version without importing it."""
    try:
        return f"genai-prices {version('genai-prices')}"
    except PackageNotFoundError as error:
        raise PriceDataError(
            "genai-prices is not installed; install tollbook with its dependencies"
        ) from error


def compile_prices() -> PriceTable:
    """Flatten every model of the installed price source (about 2,300 models, 3,000 rows, 0.5 s)."""
    from genai_prices.data import providers  # noqa: PLC0415 - 0.5 s and 40 MB: only when compiling

    notes = _Notes()
    models = (_price_model(provider.id, model, notes) for provider in providers for model in provider.models)
    return PriceTable(source=installed_source(), models=tuple(models), report=notes.lists)


def load_prices(cache_dir: Path | None) -> PriceTable:
    """Load the adopted prices from `cache_dir`; the first time the installed version is compiled and adopted.

    A newer installed version changes nothing until `adopt` is called: prices must not move by themselves when
    a package does. Without a directory the installed version is compiled in this process. Raises
    PriceDataError with the next step.
    """
    if cache_dir is None:
        return compile_prices()
    source = adopted_source(cache_dir) or installed_source()
    table = _read(_path(cache_dir, source), source)
    if table is None:
        _must_be_installed(source)
        table = adopt(cache_dir)
    if (installed := installed_source()) != source:
        log.warning(
            "%s is installed, prices of %s stay in use until `tollbook catalog update`", installed, source
        )
    return table


def adopted_source(cache_dir: Path) -> str | None:
    """Name the price source whose prices are in use; None before the first start."""
    try:
        return (cache_dir / ADOPTED).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def compile_installed(cache_dir: Path) -> PriceTable:
    """Give the installed version's table, compiled beside the adopted one where it was not yet."""
    source = installed_source()
    path = _path(cache_dir, source)
    table = _read(path, source)
    if table is None:
        _compile_in_child(path)
        table = _read(path, source)
    if table is None:
        raise PriceDataError(
            f"compiled prices at {path} cannot be read back; remove the file and start again"
        )
    return table


def adopt(cache_dir: Path) -> PriceTable:
    """Put the installed version's prices in use from the next start on. Older compiled tables are kept."""
    table = compile_installed(cache_dir)
    _write_whole(cache_dir / ADOPTED, table.source.encode() + b"\n")
    return table


def _must_be_installed(source: str) -> None:
    if source != installed_source():
        raise PriceDataError(
            f"prices of {source} are in use, but their compiled table is missing or damaged and "
            f"{installed_source()} is installed; install that version again, or run `tollbook catalog update`"
        )


def _path(cache_dir: Path, source: str) -> Path:
    return cache_dir / f"prices-{re.sub(r'[^A-Za-z0-9._-]+', '-', source)}-v{FORMAT}.json"


def _read(path: Path, source: str) -> PriceTable | None:
    """Read a compiled file; None when it is absent, damaged or compiled from something else."""
    try:
        head, _, body = path.read_bytes().partition(b"\n")
        if head.decode() != sha256(body).hexdigest():
            return None
        table = PriceTable.from_json(json.loads(body))
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError):
        return None
    return table if table.source == source else None


def _compile_in_child(path: Path) -> None:
    """Compile in a process of its own: the source's memory goes when it ends."""
    command = [sys.executable, "-m", "catalog.compile", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_LIMIT_S, check=False)  # noqa: S603 - own module
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise PriceDataError(f"prices could not be compiled into {path.parent}: {last}; is it writable?")


def _write(path: Path, table: PriceTable) -> None:
    """Write the compiled file whole or not at all: a reader sees the old one or the new one."""
    body = canonical(table.to_json())
    _write_whole(path, sha256(body).hexdigest().encode() + b"\n" + body)


def _write_whole(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _price_model(provider: str, model: Any, notes: _Notes) -> PriceModel:
    """Flatten one model of the source; without any token price it keeps its clause and has no rows.

    It must stay: dropped, its ids would fall through to the next model's clause and get that one's price.
    """
    name = f"{provider}/{model.id}"
    rows = {mode: _rows(model, mode, name=name, notes=notes) for mode in _modes(model, name, notes)}
    if not any(price is not None for row in rows[STANDARD] for price in row.prices[:2]):
        notes.add("no_price", name)
        rows = {}
    return PriceModel(provider, model.id, _clause(model.match), rows)


def _modes(model: Any, name: str, notes: _Notes) -> list[str]:
    modes: dict[str, None] = {STANDARD: None}
    for variant in model.price_variants or ():
        for condition in variant.when.items():
            if condition in _MODES:
                modes[_MODES[condition]] = None
            elif condition not in _SAME_AS_STANDARD:
                notes.add("not_carried", f"{name}: prices when {'='.join(condition)}")
    return list(modes)


def _rows(model: Any, mode: str, *, name: str, notes: _Notes) -> tuple[PriceRow, ...]:
    """Give the rows of one mode: one per date x daily period x tier, merging what does not differ."""
    rows: list[PriceRow] = []
    for day in _dates(model):
        before: list[tuple[int, tuple[int | None, ...]]] = []
        for start in _period_starts(model):
            prices = _prices_at(model, mode, day=day, clock=start)
            tiers = list(_tiers(prices, day=day, start=start, name=name, notes=notes))
            shape = [(row.over_tokens, row.prices) for row in tiers]
            rows.extend(tiers if shape != before else ())
            before = shape
    return tuple(_without_repeats(rows))


def _dates(model: Any) -> list[date]:
    constraints = (item.constraint for item in (*_dated(model), *(model.price_variants or ())))
    return sorted({_ALWAYS, *(c.start_date for c in constraints if hasattr(c, "start_date"))})


def _period_starts(model: Any) -> list[time]:
    """Give the times of the UTC day at which a price may change (midnight alone for nearly every model)."""
    starts = {time(0)}
    for item in (*_dated(model), *(model.price_variants or ())):
        if hasattr(item.constraint, "start_time"):
            starts |= {_utc(item.constraint.start_time), _utc(item.constraint.end_time)}
    return sorted(starts)


def _dated(model: Any) -> list[Any]:
    """Give the model's dated prices in the source's order (later ones win); a bare price holds always."""
    return model.prices if isinstance(model.prices, list) else [_Always(model.prices)]


class _Always:
    constraint = None

    def __init__(self, prices: Any) -> None:
        self.prices = prices


def _prices_at(model: Any, mode: str, *, day: date, clock: time) -> dict[str, Any]:
    """Give the source's price keys in force at an instant: the last active dated price, then the mode's
    variants.

    A daily window belongs to the dated price before it in the list: read on its own it would also price the
    time before that date, when there were no windows (DeepSeek's peak hours began with its August 2026
    prices).
    """
    prices: dict[str, Any] = {}
    since = _ALWAYS
    for item in _dated(model):
        since = getattr(item.constraint, "start_date", since)
        if day >= since and _active(item.constraint, day=day, clock=clock):
            prices = {key: price for key, price in vars(item.prices).items() if price is not None}
    variants: dict[str, Any] = {}
    for variant in model.price_variants or ():
        if mode in _variant_modes(variant) and _active(variant.constraint, day=day, clock=clock):
            for key, price in vars(variant.prices).items():
                if price is not None:
                    variants.setdefault(key, price)
    return prices | variants


def _variant_modes(variant: Any) -> set[str]:
    """Give the modes a variant prices: none when it asks for more than one condition."""
    return (
        {_MODES.get(condition, "") for condition in variant.when.items()} if len(variant.when) == 1 else set()
    )


def _active(constraint: Any, *, day: date, clock: time) -> bool:
    if constraint is None:
        return True
    if hasattr(constraint, "start_date"):
        return bool(day >= constraint.start_date)
    start, end = _utc(constraint.start_time), _utc(constraint.end_time)
    return start <= clock < end if start <= end else clock >= start or clock < end


def _utc(clock: time) -> time:
    aware = clock if clock.tzinfo else clock.replace(tzinfo=UTC)
    return datetime.combine(_ALWAYS, aware).astimezone(UTC).time()


def _tiers(prices: dict[str, Any], *, day: date, start: time, name: str, notes: _Notes) -> Iterator[PriceRow]:
    """Give one row per input size from which any price differs (the whole call changes price: a cliff)."""
    starts = {tier.start for price in prices.values() for tier in getattr(price, "tiers", ())}
    for key in sorted(set(prices) - set(_PRICE_KEYS)):
        notes.add("not_carried", f"{name}: {key}")
    day_s = seconds(datetime.combine(day, time(0), tzinfo=UTC))
    period_s = start.hour * 3600 + start.minute * 60 + start.second
    for over in sorted({0, *starts}):
        by_part = {
            _PRICE_KEYS[key][0]: _nano(_at_tier(price, over) * _PRICE_KEYS[key][1], f"{name}: {key}", notes)
            for key, price in prices.items()
            if key in _PRICE_KEYS
        }
        yield PriceRow(day_s, period_s, over, tuple(by_part.get(part) for part in PARTS))


def _at_tier(price: Any, over: int) -> Decimal:
    if isinstance(price, Decimal):
        return price
    reached = [tier for tier in price.tiers if over >= tier.start]
    return Decimal(max(reached, key=lambda tier: tier.start).price if reached else price.base)


def _nano(price: Decimal, place: str, notes: _Notes) -> int:
    """Turn USD per million units into nano-USD, rounding what has more than nine places and saying so."""
    rounded = price.quantize(UNIT, rounding=ROUND_HALF_EVEN)
    if rounded != price:
        notes.add("rounded", f"{place}: {price} -> {rounded.normalize():f}")
    return int(rounded / UNIT)


def _without_repeats(rows: Iterable[PriceRow]) -> Iterator[PriceRow]:
    """Drop a date on which this mode's prices did not change (other modes' dates split it for nothing)."""
    before: list[tuple[int, int, tuple[int | None, ...]]] | None = None
    by_date: dict[int, list[PriceRow]] = {}
    for row in rows:
        by_date.setdefault(row.valid_from_s, []).append(row)
    for dated in by_date.values():
        prices = [(row.period_from_s, row.over_tokens, row.prices) for row in dated]
        if prices != before:
            yield from dated
        before = prices


def _clause(clause: Any) -> Clause:
    """Write one of the source's match clauses as a JSON list, texts in lower case."""
    (key, body), *_ = vars(clause).items()
    kind = key.rstrip("_")
    if kind in ("or", "and"):
        return [kind, [_clause(part) for part in body]]
    return [kind, body if kind == "regex" else body.lower()]


if __name__ == "__main__":
    _write(Path(sys.argv[1]), compile_prices())
