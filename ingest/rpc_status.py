"""google.rpc.Status, the error answer of OTLP, written by hand: three fields need no further package.

Field numbers are those of google/rpc/status.proto, google/rpc/error_details.proto and
google/protobuf/any.proto.
"""

from __future__ import annotations

from enum import IntEnum

import orjson

from .otlp import Encoding


class Code(IntEnum):
    """The codes of google/rpc/code.proto that the receivers use."""

    INVALID_ARGUMENT = 3
    RESOURCE_EXHAUSTED = 8
    UNAVAILABLE = 14


def status_body(encoding: Encoding, code: Code, message: str) -> bytes:
    """A Status in the encoding of the request it answers."""
    if encoding is Encoding.JSON:
        return orjson.dumps({"code": int(code), "message": message})
    return status_proto(code, message)


def status_proto(code: Code, message: str, *, retry_after_s: int | None = None) -> bytes:
    """A binary Status, with a RetryInfo in its details if `retry_after_s` is given."""
    status = _number(1, code) + _bytes(2, message.encode())
    if retry_after_s is None:
        return status
    retry_info = _bytes(1, _number(1, retry_after_s))  # retry_delay: Duration{seconds}
    detail = _bytes(1, b"type.googleapis.com/google.rpc.RetryInfo") + _bytes(2, retry_info)
    return status + _bytes(3, detail)


def _number(field: int, value: int) -> bytes:
    return bytes([field << 3]) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return bytes([field << 3 | 2]) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
