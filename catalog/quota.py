"""What an answer's headers say of a plan's windows: read by the reviewed facts of each provider.

A provider's own figure beats any count of ours. A header that is missing or makes no sense says nothing;
a family of headers that are all zero is one the provider has not filled in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation

from catalog.provider_book import Book
from catalog.provider_facts import Quota

__all__ = ["QuotaReading", "parse_headers", "read_quotas"]

_MAX_HEADERS = 64
_MILLISECONDS_FROM = Decimal(10**10)
"""Unix times from here on are in milliseconds: in seconds this would be the year 2286."""
_LENGTHS = {300: "5h", 1440: "day", 10080: "7d"}


@dataclass(frozen=True, slots=True)
class QuotaReading:
    """How much of one window is used (0: nothing, 1: all; more than all is told by some) and until when."""

    provider: str
    window: str
    used_fraction: Decimal
    resets_at: datetime | None


def parse_headers(text: str) -> dict[str, str]:
    """Give the headers of `name=value;name=value`, names in lower case."""
    pairs = (part.partition("=") for part in text.split(";")[:_MAX_HEADERS])
    return {name.strip().lower(): value.strip() for name, equals, value in pairs if equals}


def read_quotas(text: str, book: Book, *, seen_at: datetime) -> Iterator[QuotaReading]:
    """Give what an answer's headers (`name=value;...`), seen at an instant, tell of windows."""
    headers = parse_headers(text)
    for provider in book.providers.values():
        for quota in provider.quotas:
            if quota.used in headers:
                yield from _read(provider.id, quota, headers, seen_at=seen_at)


def _read(
    provider: str, quota: Quota, headers: Mapping[str, str], *, seen_at: datetime
) -> Iterator[QuotaReading]:
    used = _number(headers.get(quota.used))
    length = _number(headers.get(quota.length_minutes or ""))
    window = quota.window or _LENGTHS.get(int(length or 0))
    resets_at = _reset(quota, headers, seen_at)
    empty = not used and quota.window is None and not length
    if used is None or window is None or empty or not 0 <= used <= 10_000:
        return
    fraction = used / 100 if quota.scale == "percent" else used
    yield QuotaReading(provider, window, fraction.quantize(Decimal("1e-6")), resets_at)


def _reset(quota: Quota, headers: Mapping[str, str], seen_at: datetime) -> datetime | None:
    at = _number(headers.get(quota.resets_at or ""))
    after = _number(headers.get(quota.resets_after or ""))
    if at:
        seconds = at / 1000 if at >= _MILLISECONDS_FROM else at
        return datetime.fromtimestamp(int(seconds), UTC) if seconds < _MILLISECONDS_FROM else None
    return seen_at + timedelta(seconds=int(after)) if after and after < 10**8 else None


def _number(text: str | None) -> Decimal | None:
    try:
        number = Decimal(text) if text else None
    except InvalidOperation:
        return None
    return number if number is not None and number.is_finite() else None
