"""Heads of HTTP requests that are plain enough to be read without HTTP's machinery.

Plain is a list of headers, each once, with a length and nothing that asks for more: no chunks, no upgrade, no
expectation, no Origin (a browser), a connection that stays. Everything else is for uvicorn and the guard.
"""

from __future__ import annotations

import re
from typing import Final

from tollbook.guard import Guard
from tollbook.problems import Problem

__all__ = ["MAX_HEAD_BYTES", "Headers", "plain_head"]

MAX_HEAD_BYTES: Final = 16 << 10

_HEADERS: Final = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*(?:\r\n|$))+")
_UNUSUAL: Final = frozenset((b"transfer-encoding", b"upgrade", b"expect", b"origin"))

Headers = list[tuple[bytes, bytes]]


def plain_head(head: bytes, guard: Guard, *, path: str, scheme: str) -> tuple[Headers, int] | None:
    """The headers of a POST and the length of its body; None where they are not plain, or the guard would
    refuse them.
    """
    if _HEADERS.fullmatch(head) is None:
        return None
    split = [line.partition(b":") for line in head.split(b"\r\n")]
    headers = [(name.lower(), value.strip(b" \t")) for name, _, value in split]
    told = dict(headers)
    length = told.get(b"content-length", b"")
    plain = len(told) == len(headers) and not _UNUSUAL & told.keys() and length.isdigit()
    if not plain or told.get(b"connection", b"keep-alive").lower() != b"keep-alive":
        return None
    try:
        guard.check({"headers": headers, "method": "POST", "path": path, "scheme": scheme})
    except Problem:
        return None
    return headers, int(length)
