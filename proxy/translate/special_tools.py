"""Tools of the responses format that are no functions, though the caller runs them, as functions elsewhere.

A tool of plain text (Codex's apply_patch) is a function of one text, `input`; a grammar goes into its
description, and on the way back the text is taken out again. The search for deferred tools is a function
of its own parameters; what it found are tools from then on.
"""

from __future__ import annotations

from typing import Final

from ..json_values import dumps, loads, object_in, objects, word
from .conversation import Json, Tool

_INPUT: Final = "input"


SEARCH: Final = "tool_search"


def call_types_in(request: Json) -> dict[str, str]:
    """The item types of calls of such tools, by the tools' names, in a request of the responses format."""
    tools = objects(request.get("tools"))
    found = {str(tool.get("name")): "custom_tool_call" for tool in tools if tool.get("type") == "custom"}
    return found | ({SEARCH: "tool_search_call"} if any(map(is_search, tools)) else {})


def is_search(tool: Json) -> bool:
    """Whether a tool is the search for tools, run by the caller."""
    return tool.get("type") == SEARCH and tool.get("execution") == "client"


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
