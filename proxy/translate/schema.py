"""JSON Schemas between dialects. Nothing of what they accept changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

# Under these keys stand values, not schemas; under `_BY_NAME` schemas by a name of the user's.
_VALUES: Final = ("enum", "required", "const", "default", "examples", "example")
_BY_NAME: Final = ("properties", "$defs", "definitions", "patternProperties")


def json_schema(schema: Any) -> Any:
    """Google's dialect of OpenAPI schemas as JSON Schema: types in lower case, `nullable` as a type."""
    if isinstance(schema, list):
        return [json_schema(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {key: _inner(key, value, json_schema) for key, value in schema.items()}
    if isinstance(kind := plain.get("type"), str):
        plain["type"] = kind.lower()
        if plain.pop("nullable", None) is True:
            plain["type"] = [kind.lower(), "null"]
    return plain


def with_items(schema: Any) -> Any:
    """The schema with `items` said of every array, which OpenAI demands and JSON Schema does not."""
    if isinstance(schema, list):
        return [with_items(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    whole = {key: _inner(key, value, with_items) for key, value in schema.items()}
    kind = whole.get("type")
    is_array = kind == "array" or (isinstance(kind, list) and "array" in kind)
    return {**whole, "items": {}} if is_array and not whole.keys() & {"items", "prefixItems"} else whole


def _inner(key: str, value: Any, change: Callable[[Any], Any]) -> Any:
    if key in _VALUES:
        return value
    if key in _BY_NAME and isinstance(value, dict):
        return {name: change(schema) for name, schema in value.items()}
    return change(value)
