"""Is this body OTLP? Decided before it is acknowledged, and never for longer than about a millisecond at a
time.

A small body is parsed at once. A large one is walked from the outside and parsed in pieces, so that the event
loop which answers budget checks can breathe in between: a run of fields of a protobuf message is itself such
a message, and the JSON lists of records can be read element by element. Nothing parsed is kept: the ledger
reads the body again, in columns. Single odd records inside a well-formed body are not this module's business
either.

Error: `NotOtlp`, with a sentence that never quotes the body.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Sequence
from enum import Enum
from typing import Any, Final, NoReturn

import orjson
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from .otlp import SHAPES, Encoding, Shape, Signal

AT_ONCE_BYTES: Final = {Encoding.PROTOBUF: 512 << 10, Encoding.JSON: 192 << 10}  # about 0.6 ms each
_PIECE_BYTES: Final = 128 << 10
_MAX_DEPTH: Final = 100  # protobuf's own limit

Steps = Generator[None, None, "Content"]


class NotOtlp(Exception):
    """The body is not an OTLP export request of its signal and encoding."""


class Content(Enum):
    """What a valid request holds."""

    RECORDS = "records"
    NOTHING = "nothing"


def check(signal: Signal, encoding: Encoding, body: bytes) -> Content:
    """What the valid `body` holds, found at once. NotOtlp if it is not valid."""
    shape = SHAPES[signal]
    return _check_json(shape, body) if encoding is Encoding.JSON else _check_protobuf(shape, body)


def check_in_steps(signal: Signal, encoding: Encoding, body: bytes) -> Steps:
    """`check` as a generator that yields after every piece of work and returns the content."""
    shape = SHAPES[signal]
    return _json_steps(shape, body) if encoding is Encoding.JSON else _protobuf_steps(shape, body)


# --- protobuf --------------------------------------------------------------------------------------------


def _check_protobuf(shape: Shape, body: bytes) -> Content:
    if not body:
        return Content.NOTHING
    try:
        message = shape.request.FromString(body)
    except DecodeError:
        raise NotOtlp(f"the body is not a protobuf {shape.request.__name__}") from None
    if not getattr(message, shape.field):
        raise NotOtlp(f"the body has no {shape.field}")
    return Content.RECORDS


def _protobuf_steps(shape: Shape, body: bytes) -> Steps:
    try:
        seen = yield from _walk_message(shape.request, memoryview(body), depth=0)
    except (DecodeError, IndexError):
        raise NotOtlp(f"the body is not a protobuf {shape.request.__name__}") from None
    if 1 not in seen:  # the resource list is field 1 of all three requests
        raise NotOtlp(f"the body has no {shape.field}")
    return Content.RECORDS


def _walk_message(message: type[Message], data: memoryview, *, depth: int) -> Generator[None, None, set[int]]:
    """Parse one large message in runs of fields, going down into its large submessages; its submessages'
    numbers.
    """
    if depth > _MAX_DEPTH:
        raise DecodeError("nested too deeply")
    inner = _submessages(message)
    seen: set[int] = set()
    run = at = 0
    while at < len(data):
        field = at
        tag, at = _varint(data, at)
        start, at = _skip(data, at, tag=tag)
        submessage = inner.get(tag >> 3) if tag & 7 == 2 else None
        if submessage:
            seen.add(tag >> 3)
        if submessage and at - start > _PIECE_BYTES:
            message.FromString(bytes(data[run:field]))
            yield from _walk_message(submessage, data[start:at], depth=depth + 1)
            run = at
        elif at - run > _PIECE_BYTES:
            message.FromString(bytes(data[run:at]))
            run = at
            yield
    message.FromString(bytes(data[run:at]))
    yield
    return seen


def _submessages(message: type[Message]) -> dict[int, type[Message]]:
    fields: Sequence[FieldDescriptor] = message.DESCRIPTOR.fields  # type: ignore[assignment]
    return {field.number: GetMessageClass(field.message_type) for field in fields if field.message_type}


def _skip(data: memoryview, at: int, *, tag: int) -> tuple[int, int]:
    """Where the value that follows `tag` at `data[at:]` begins and ends."""
    wire_type = tag & 7
    if wire_type == 0:
        end = _varint(data, at)[1]
    elif wire_type == 2:
        length, at = _varint(data, at)
        end = at + length
    elif wire_type in {1, 5}:
        end = at + (8 if wire_type == 1 else 4)
    else:  # groups: OTLP has none, and nobody sends unknown ones
        raise DecodeError("unsupported wire type")
    if end > len(data):
        raise DecodeError("truncated")
    return at, end


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The varint at `data[at:]` and where it ends (IndexError where the data ends first)."""
    value = shift = 0
    while (byte := data[at]) > 0x7F:
        value |= (byte & 0x7F) << shift
        shift += 7
        at += 1
        if shift > 63:
            raise DecodeError("varint too long")
    return value | byte << shift, at + 1


# --- JSON ------------------------------------------------------------------------------------------------


def _check_json(shape: Shape, body: bytes) -> Content:
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise NotOtlp("the body is not JSON") from None
    if not isinstance(request, dict):
        raise NotOtlp("the body is not a JSON object")
    outer, middle, inner = shape.json_lists
    if request and outer not in request:
        raise NotOtlp(f"the body has no {outer}")
    resources = _objects(request, outer)
    for resource in resources:
        for scope in _objects(resource, middle):
            _objects(scope, inner)
    return Content.RECORDS if resources else Content.NOTHING


def _objects(parent: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The list of objects at `key`: senders write null or leave it out when there are none."""
    found = parent.get(key)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise NotOtlp(f"{key} is not a list of objects")
    return found


def _json_steps(shape: Shape, body: bytes) -> Steps:
    try:
        walk = _JsonWalk(body.decode())
        end = yield from walk.object(0, lists=shape.json_lists)
    except (ValueError, IndexError, RecursionError):
        raise NotOtlp("the body is not JSON") from None
    if walk.skip_space(end) != len(walk.text):
        raise NotOtlp("the body is not JSON")
    if not walk.has_resource_list:
        raise NotOtlp(f"the body has no {shape.json_lists[0]}")
    return Content.RECORDS


class _JsonWalk:
    """Reads a large JSON text by hand down to the records, and each record with the standard library's
    scanner.
    """

    _space = re.compile(r"[ \t\n\r]*")

    def __init__(self, text: str) -> None:
        self.text = text
        self.has_resource_list = False
        self._read = json.JSONDecoder(parse_constant=_no_constant).raw_decode

    def skip_space(self, at: int) -> int:
        """Where the next token begins."""
        found = self._space.match(self.text, at)
        return found.end() if found else at

    def object(self, at: int, *, lists: tuple[str, ...]) -> Generator[None, None, int]:
        """Read the object at `at`, its member `lists[0]` as a list of objects; where it ends."""
        at = self._expect(at, "{")
        while self.text[at] != "}":
            key, at = self._read(self.text, at)
            if not isinstance(key, str):
                raise ValueError("key")
            at = self._expect(at, ":")
            if key == lists[0]:
                self.has_resource_list |= len(lists) == 3
                at = yield from self._list(at, lists=lists)
            else:
                at = self.skip_space(self._read(self.text, at)[1])
                yield
            at = self._next_item(at, "}")
        return self.skip_space(at + 1)

    def _list(self, at: int, *, lists: tuple[str, ...]) -> Generator[None, None, int]:
        if self.text.startswith("null", at):
            return self.skip_space(at + 4)
        if self.text[at] != "[":
            raise NotOtlp(f"{lists[0]} is not a list of objects")
        at = self.skip_space(at + 1)
        while self.text[at] != "]":
            if self.text[at] != "{":
                raise NotOtlp(f"{lists[0]} is not a list of objects")
            if lists[1:]:
                at = yield from self.object(at, lists=lists[1:])
            else:
                at = self.skip_space(self._read(self.text, at)[1])
                yield
            at = self._next_item(at, "]")
        return self.skip_space(at + 1)

    def _expect(self, at: int, token: str) -> int:
        at = self.skip_space(at)
        if self.text[at] != token:
            raise ValueError(token)
        return self.skip_space(at + 1)

    def _next_item(self, at: int, close: str) -> int:
        """Behind the comma if one follows (then an item must), else at `close`."""
        if self.text[at] == ",":
            at = self.skip_space(at + 1)
            if self.text[at] == close:
                raise ValueError(",")
        elif self.text[at] != close:
            raise ValueError(close)
        return at


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)
