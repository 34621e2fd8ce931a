"""JSON that others wrote: in, out, and looked into without trusting its shape.

Native speed where that works, the standard library for what native code refuses: half a surrogate pair
(models do cut emoji in two), integers beyond 64 bits.
"""

from __future__ import annotations

import json
from typing import Any, Final

import orjson

_BEYOND_64_BITS: Final = 2.0**63


def loads(data: bytes) -> Any:
    """The value; None if it is no JSON."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def exact(value: Any, data: bytes) -> Any:
    """The value of `data`, read anew where native speed has made a float of an integer beyond 64 bits."""
    return json.loads(data) if _holds_huge(value) else value


def _holds_huge(value: Any) -> bool:
    rest = [value]
    while rest:
        one = rest.pop()
        if isinstance(one, dict):
            rest.extend(one.values())
        elif isinstance(one, list):
            rest.extend(one)
        elif isinstance(one, float) and abs(one) >= _BEYOND_64_BITS:
            return True
    return False


def dumps(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except (TypeError, orjson.JSONEncodeError):
        return json.dumps(value, separators=(",", ":")).encode()


def word(value: Any) -> str | None:
    """A text that says something."""
    return value if isinstance(value, str) and value else None


def object_in(holder: dict[str, Any], key: str) -> dict[str, Any]:
    """The object under a key; an empty one if there is none."""
    value = holder.get(key)
    return value if isinstance(value, dict) else {}


def objects(value: Any) -> list[dict[str, Any]]:
    """The objects of a list; none if it is no list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
