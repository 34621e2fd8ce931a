"""The few changes that are made to a request's body, each as small as it can be.

What is not meant to change stays as it was written, byte by byte: order of keys, blanks, numbers, escapes.
Every change is proven by reading the outcome: it must differ in that place and nowhere else. Where the text
cannot be changed so (keys written with escapes), the body is written anew with the same meaning.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import Any, Final

import orjson

from proxy.json_values import dumps

__all__ = ["with_model", "with_stream_usage"]

_BRACE: Final = re.compile(rb"\s*\{")
_OPTIONS: Final = re.compile(rb'"stream_options"\s*:\s*\{')
_MODEL: Final = re.compile(rb'"model"\s*:\s*("(?:[^"\\]|\\.)*")')
_MAX_TRIES: Final = 8


def with_model(body: bytes, request: dict[str, Any], model: str) -> bytes:
    """The body with another `model`; `request` is the body, parsed."""
    wanted = {**request, "model": model}
    new = orjson.dumps(model)
    for found in islice(_MODEL.finditer(body), _MAX_TRIES):
        changed = body[: found.start(1)] + new + body[found.end(1) :]
        if _reads_as(changed, wanted):
            return changed
    return dumps(wanted)


def with_stream_usage(body: bytes, request: dict[str, Any]) -> bytes:
    """The body with `stream_options.include_usage`, for a stream that did not ask for its usage."""
    options = request.get("stream_options")
    if options is None and "stream_options" not in request and (brace := _BRACE.match(body)):
        comma = b"," if request else b""
        return body[: brace.end()] + b'"stream_options":{"include_usage":true}' + comma + body[brace.end() :]
    told = options if isinstance(options, dict) else {}
    wanted = {**request, "stream_options": {**told, "include_usage": True}}
    if told and "include_usage" not in told:
        for found in _OPTIONS.finditer(body):
            changed = body[: found.end()] + b'"include_usage":true,' + body[found.end() :]
            if _reads_as(changed, wanted):
                return changed
    return dumps(wanted)


def _reads_as(body: bytes, wanted: dict[str, Any]) -> bool:
    try:
        return bool(orjson.loads(body) == wanted)
    except orjson.JSONDecodeError:
        return False
