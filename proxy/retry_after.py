"""How long a provider asks to wait.

Providers tell it in a header (seconds, milliseconds, a date), in the body (seconds, an instant, Google's
`RetryInfo`) or in the sentence. The first that tells, in that order, is taken; nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from typing import Any, Final

MAX_WAIT_S: Final = 32 * 86_400  # a month's window; longer is noise
_UNITS_S: Final = {"d": 86_400, "h": 3_600, "m": 60, "s": 1, "ms": 0.001}
_SPAN: Final = re.compile(
    r"(\d+(?:\.\d+)?)\s*(ms|d|h|m|s)(?:econds?|inutes?|ours?|ays?|ec|in)?(?![a-z])", re.I
)
_TRY_AGAIN: Final = re.compile(
    r"(?:try again|retry|reset\w*|available) (?:in|after) (?:about )?((?:\d[\d.]*\s*[a-z]+,?\s*)+)", re.I
)
_RESET_AT: Final = re.compile(r"reset\w* at (\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(Z|[+-]\d\d:?\d\d)?", re.I)


def retry_after_s(
    headers: Mapping[str, str], document: Mapping[str, Any], message: str, now: datetime, offset_hours: int
) -> float | None:
    """Seconds to wait, 0 or more; None if nothing tells. offset_hours: of instants told without a zone."""
    ways = _ways(headers, document, message, now, offset_hours)
    found = next((wait for wait in ways if wait is not None), None)
    return None if found is None else min(max(found, 0.0), float(MAX_WAIT_S))


def _ways(
    headers: Mapping[str, str], document: Mapping[str, Any], message: str, now: datetime, offset_hours: int
) -> Iterator[float | None]:
    yield _milliseconds(headers.get("retry-after-ms"))
    yield _seconds_or_date(headers.get("retry-after"), now)
    yield from _told_in_body(document, now)
    yield _told_in_sentence(message, now, offset_hours)


def _milliseconds(value: str | None) -> float | None:
    return float(value) / 1000 if value is not None and _is_number(value) else None


def _seconds_or_date(value: str | None, now: datetime) -> float | None:
    if value is None or _is_number(value):
        return None if value is None else float(value)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return span_s(value)
    return ((at if at.tzinfo else at.replace(tzinfo=UTC)) - now).total_seconds()


def _told_in_body(document: Mapping[str, Any], now: datetime) -> Iterator[float]:
    error = document.get("error")
    for holder in (error if isinstance(error, dict) else {}, document):
        for key in ("resets_in_seconds", "retry_after", "retry_after_seconds"):
            if isinstance(holder.get(key), int | float):
                yield float(holder[key])
        if isinstance(holder.get("resets_at"), int | float):
            yield float(holder["resets_at"]) - now.timestamp()
        for detail in holder["details"] if isinstance(holder.get("details"), list) else ():
            delay = detail.get("retryDelay") if isinstance(detail, dict) else None
            if isinstance(delay, str) and (wait := span_s(delay)) is not None:
                yield wait


def _told_in_sentence(message: str, now: datetime, offset_hours: int) -> float | None:
    if found := _TRY_AGAIN.search(message):
        return span_s(found[1])
    if found := _RESET_AT.search(message):
        zone = found[3].replace("Z", "+00:00") if found[3] else ""
        at = datetime.fromisoformat(f"{found[1]}T{found[2]}{zone}")
        at = at if at.tzinfo else at.replace(tzinfo=timezone(timedelta(hours=offset_hours)))
        return (at - now).total_seconds()
    return None


def span_s(text: str) -> float | None:
    """Seconds of `6m0s`, `34.07s`, `20 seconds`, `1h 5m`; None if it is no such span."""
    parts = _SPAN.findall(text)
    return sum(float(number) * _UNITS_S[unit.lower()] for number, unit in parts) if parts else None


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\s*\d{1,12}(?:\.\d{1,9})?\s*", text) is not None
