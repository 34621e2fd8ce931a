"""Values inside documents: counts, ids and models in JSON (or Python) texts, as attributes of their own.

Why: some emitters put the usage of a call into a JSON string, some into the text of a Python dictionary, one
puts the provider before a slash. The dialects name the values wanted as `key#path/in/it`; only these become
attributes, under that name, and go the way of all attributes. The documents themselves, which hold content,
are let go.

What it refuses: documents over MAX_JSON_BYTES (JSON) or MAX_REPR_BYTES (Python), and whatever else cannot be
read; they tell nothing and are noted as `unreadable`. Nothing is evaluated.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from struct import pack
from typing import Any, Final

import numpy as np
import orjson

from .anyvalue import TEXT, read_values
from .decode import Decoded
from .dialect import Document
from .otlp_columns import Attributes, pairs_of
from .scan import Buffer, Ints
from .told import MAX_TEXT_BYTES

MAX_JSON_BYTES: Final = 1 << 18
MAX_REPR_BYTES: Final = 1 << 13
BEFORE: Final = ("before", "")  # the path 'before/': the text before the first slash

_WORDS: Final = ((b"'", b'"'), (b": None", b": null"), (b": True", b": true"), (b": False", b": false"))
_WORD: Final = (1 << 64) - 1
_Value = str | bool | int | float
_OPENINGS: Final = (b"{", b"[", b'"')  # other texts were never meant to be documents


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Documents that could not be read: owners (records) and their keys (vocabulary ids)."""

    owner: Ints
    key: Ints


def opened(decoded: Decoded, wanted: Callable[[int], Ints]) -> tuple[Decoded, Attributes, Unreadable]:
    """The values inside documents as attributes of their records, the batch with their texts behind it, and
    what could not be read. `wanted`: key -> the records (sorted) whose document under it is to be read.
    """
    found: list[tuple[int, bytes]] = []
    failed: list[tuple[int, int]] = []
    for document in decoded.dialects.documents.values():
        records = wanted(document.key.id)
        if records.size:
            for owner, text in _texts(decoded, document.key.id, records):
                values = _values(text, document)
                if values is None:
                    failed.append((owner, document.key.id))
                else:
                    found += [(owner, message) for message in values]
    found.sort(key=lambda pair: pair[0])
    bad = np.array(failed, dtype=np.int64).reshape(-1, 2)
    return *_appended(decoded, found), Unreadable(bad[:, 0], bad[:, 1])


def _texts(decoded: Decoded, key: int, records: Ints) -> Iterator[tuple[int, bytes]]:
    """Owner and text of the documents under a key, of some records."""
    attributes, buffer = decoded.columns.attributes, decoded.columns.buffer
    rows = np.flatnonzero(attributes.key == key)
    rows = rows[np.isin(attributes.owner[rows], records)]
    values = read_values(buffer, attributes.start[rows], attributes.end[rows])
    places = zip(attributes.owner[rows].tolist(), values.start.tolist(), values.end.tolist(), strict=True)
    for is_text, (owner, start, end) in zip((values.kind == TEXT).tolist(), places, strict=True):
        if is_text and end > start:
            yield owner, buffer.cut(start, min(end, start + MAX_JSON_BYTES + 1))


def _values(text: bytes, document: Document) -> list[bytes] | None:
    """KeyValue messages of the values wanted; None if the document cannot be read."""
    messages = []
    tree: Any = None
    for path, key in document.paths.items():
        if path == BEFORE:
            value: Any = text.partition(b"/")[0].decode("utf-8", "replace") if b"/" in text else None
        else:
            if tree is None:
                try:
                    tree = _parsed(text)
                except (ValueError, SyntaxError, RecursionError, MemoryError):
                    return None if text[:1] in _OPENINGS else []
            value = _at(tree, path)
        if _may_be_told(value):
            messages.append(_key_value(key, value))
    return messages


def _key_value(key: str, value: _Value) -> bytes:
    """A KeyValue message, written by hand: protobuf's objects cost ten times as much."""
    told = _any_value(value)
    return _head(key) + _varint(len(told)) + told


@lru_cache(maxsize=1024)
def _head(key: str) -> bytes:
    text = key.encode()
    return b"\x0a" + _varint(len(text)) + text + b"\x12"


def _any_value(value: _Value) -> bytes:
    if isinstance(value, str):
        text = value.encode("utf-8", "replace")
        return b"\x0a" + _varint(len(text)) + text
    if isinstance(value, float):
        return b"\x21" + pack("<d", value)
    return (b"\x10" if isinstance(value, bool) else b"\x18") + _varint(value & _WORD)


def _varint(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    listed = bytearray()
    while number >= 0x80:
        listed.append(number & 0x7F | 0x80)
        number >>= 7
    listed.append(number)
    return bytes(listed)


def _parsed(text: bytes) -> Any:
    """JSON, or the text of a Python literal."""
    if len(text) > MAX_JSON_BYTES:
        raise ValueError("too long")
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        if not text.startswith((b"{'", b"{}")) or len(text) > MAX_REPR_BYTES:
            raise
    return _python(text)


def _python(text: bytes) -> Any:
    """The text of a Python dictionary: as JSON where it holds plain words and numbers (a tenth of the
    time).
    """
    if b'"' not in text and b"\\" not in text:
        plain = text
        for python, json in _WORDS:
            plain = plain.replace(python, json)
        try:
            return orjson.loads(plain)
        except orjson.JSONDecodeError:
            pass
    return ast.literal_eval(text.decode())


def _at(tree: Any, path: Iterable[str]) -> Any:
    for step in path:
        if isinstance(tree, dict):
            tree = tree.get(step)
        elif isinstance(tree, list) and step.isdecimal() and int(step) < len(tree):
            tree = tree[int(step)]
        else:
            return None
    return tree


def _may_be_told(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_TEXT_BYTES
    if isinstance(value, int):
        return -(1 << 63) <= value < 1 << 63
    return isinstance(value, float)


def _appended(decoded: Decoded, found: list[tuple[int, bytes]]) -> tuple[Decoded, Attributes]:
    columns, buffer = decoded.columns, decoded.columns.buffer
    length = np.array([len(message) for _, message in found], dtype=np.int64)
    end = buffer.size + np.cumsum(length)
    if found:
        longer = Buffer.of([buffer.data[: buffer.size], *(message for _, message in found)])
        decoded = replace(decoded, columns=replace(columns, buffer=longer))
    owner = np.array([owner for owner, _ in found], dtype=np.int64)
    vocabulary = decoded.dialects.vocabulary
    return decoded, pairs_of(decoded.columns.buffer, vocabulary, owner, start=end - length, end=end)[0]
