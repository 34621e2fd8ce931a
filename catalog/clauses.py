"""Match clauses: which price model an id as served belongs to.

They come from the price source and are kept as small JSON lists (`["equals", "gpt-5"]`, `["or", [...]]`), so
that the compiled table can be read back without importing the source. Order matters: the first model that
matches wins. Nothing here guesses: an id that matches no clause has no price.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

__all__ = ["Clause", "dashed_date", "matches"]

Clause = list[Any]
"""`[kind, text]`: equals, starts_with, ends_with, contains, regex; `[kind, [clauses]]`: or, and."""

_COMPACT_DATE = re.compile(r"-(20\d{2})(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?=-|:|$)")


@lru_cache(maxsize=4096)
def _pattern(regex: str) -> re.Pattern[str]:
    return re.compile(regex)


_TEXT_TESTS: dict[str, Callable[[str, str], bool]] = {
    "equals": lambda model_id, text: model_id == text,
    "starts_with": lambda model_id, text: model_id.startswith(text),
    "ends_with": lambda model_id, text: model_id.endswith(text),
    "contains": lambda model_id, text: text in model_id,
    "regex": lambda model_id, text: _pattern(text).search(model_id) is not None,
}


def matches(clause: Clause, model_id: str) -> bool:
    """Say whether `model_id` (lower case) satisfies `clause` (texts lower case, regexes as written)."""
    kind, body = clause
    if kind == "or":
        return any(matches(part, model_id) for part in body)
    if kind == "and":
        return all(matches(part, model_id) for part in body)
    return _TEXT_TESTS[kind](model_id, body)


def dashed_date(model_id: str) -> str:
    """Write a compact date (`-20251211`) with dashes, the form most price rows use for OpenAI snapshots."""
    return _COMPACT_DATE.sub(r"-\1-\2-\3", model_id)
