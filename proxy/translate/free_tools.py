"""Tools that take plain text (Codex's apply_patch), in formats where every tool takes an object.

There they are functions of one text, `input`; a grammar goes into the description. On the way back the
text is taken out again.
"""

from __future__ import annotations

from typing import Final

from ..json_values import dumps, loads, object_in, objects, word
from .conversation import Json, Tool

_INPUT: Final = "input"


def names_in(request: Json) -> frozenset[str]:
    """The names of such tools in a request of the responses format."""
    free = (tool for tool in objects(request.get("tools")) if tool.get("type") == "custom")
    return frozenset(name for tool in free if (name := word(tool.get("name"))))


def as_function(tool: Json) -> Tool:
    shape = object_in(tool, "format")
    grammar = word(shape.get("definition")) if shape.get("type") == "grammar" else None
    told = [word(tool.get("description")), f"`{_INPUT}` is the whole text, as it is."]
    told += [f"It follows this {shape.get('syntax')} grammar:\n{grammar}"] if grammar else []
    text = {"type": "string", "description": "The text for the tool."}
    schema = {
        "type": "object",
        "properties": {_INPUT: text},
        "required": [_INPUT],
        "additionalProperties": False,
    }
    return Tool(str(tool.get("name")), "\n\n".join(part for part in told if part), schema)


def arguments_of_text(text: str) -> str:
    return dumps({_INPUT: text}).decode()


def text_of_arguments(arguments: str) -> str:
    """The text; what a model wrote instead of an object with it is taken as it is."""
    parsed = loads(arguments.encode())
    told = parsed.get(_INPUT) if isinstance(parsed, dict) else None
    return told if isinstance(told, str) else arguments
