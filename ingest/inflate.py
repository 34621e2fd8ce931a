"""Bounded decompression of request bodies: what a few bytes can become is decided here, not by the sender.

Errors: `TooLarge` (over the limit, or built to be expensive), `BadCompression` (damaged or cut short).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Final

import zstandard

_ZSTD_FEED_BYTES: Final = 1 << 10  # one byte of zstd can stand for 32 KiB: 1 KiB overshoots by 32 MiB at most
_ZSTD_WINDOW_BYTES: Final = 64 << 20  # Go's best compression uses 32 MiB
_MAX_MEMBERS: Final = 16  # nobody sends even two; every one costs a copy of what follows it


class TooLarge(Exception):
    """The body is, or would become, larger than allowed."""


class BadCompression(Exception):
    """The body is not what its Content-Encoding says."""


def inflate(body: bytes, *, encoding: str, limit_bytes: int) -> bytes:
    """`body` decompressed, at most `limit_bytes` long. `encoding` is a key of INFLATERS. Releases the GIL in
    large.
    """
    try:
        return INFLATERS[encoding](body, limit_bytes)
    except (zlib.error, zstandard.ZstdError):
        raise BadCompression(f"the body is not valid {encoding}") from None


def _gunzip(body: bytes, limit: int) -> bytes:
    """All members of a gzip file, one after another."""
    parts: list[bytes] = []
    for _ in range(_MAX_MEMBERS):
        member = zlib.decompressobj(wbits=31)
        parts.append(_inflate_one(member, body, limit))
        limit -= len(parts[-1])
        body = member.unused_data
        if not body:
            return parts[0] if len(parts) == 1 else b"".join(parts)
    raise TooLarge("the gzip body has too many members")


def _inflate_deflate(body: bytes, limit: int) -> bytes:
    """RFC 9110 says zlib; some senders mean raw deflate."""
    try:
        return _inflate_whole(body, limit, wbits=15)
    except zlib.error:
        return _inflate_whole(body, limit, wbits=-15)


def _inflate_whole(body: bytes, limit: int, *, wbits: int) -> bytes:
    stream = zlib.decompressobj(wbits=wbits)
    inflated = _inflate_one(stream, body, limit)
    if stream.unused_data:
        raise zlib.error("data after the end")
    return inflated


def _inflate_one(stream: zlib._Decompress, body: bytes, limit: int) -> bytes:
    inflated = stream.decompress(body, limit + 1)
    if len(inflated) > limit:
        raise TooLarge(f"the body is over {limit} bytes when decompressed")
    if not stream.eof:
        raise zlib.error("cut short")
    return inflated


def _inflate_zstd(body: bytes, limit: int) -> bytes:
    """All frames, fed in small pieces because the library does not bound what comes out of one."""
    parts: list[bytes] = []
    for _ in range(_MAX_MEMBERS):
        frame = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES).decompressobj()
        at = 0
        while at < len(body) and not frame.eof:
            parts.append(frame.decompress(body[at : at + _ZSTD_FEED_BYTES]))
            limit -= len(parts[-1])
            at += _ZSTD_FEED_BYTES
            if limit < 0:
                raise TooLarge("the body is over the limit when decompressed")
        if not frame.eof:
            raise zstandard.ZstdError("cut short")
        body = frame.unused_data + body[at:]
        if not body:
            return b"".join(parts)
    raise TooLarge("the zstd body has too many frames")


INFLATERS: Final[dict[str, Callable[[bytes, int], bytes]]] = {
    "gzip": _gunzip,
    "x-gzip": _gunzip,
    "deflate": _inflate_deflate,
    "zstd": _inflate_zstd,
}
