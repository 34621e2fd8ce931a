"""What the records of model calls tell: their allow-listed attributes with values, and those of their
resources.

Why: the border that content does not pass. Only keys named in a dialect get here; of their values,
e-mail addresses, credentials and oversized texts are dropped with a note, and URLs lose user
information, query and fragment. Everything stored later is taken from here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from dataclasses import fields as parts_of
from typing import Final

import numpy as np
import polars as pl

from .anyvalue import INTEGER, NONE, OTHER, TEXT, Values, read_values, text_series
from .decode import Decoded
from .otlp_columns import Attributes
from .scan import Buffer, Ints, Mask
from .vocabulary import UNKNOWN

MAX_TEXT_BYTES: Final = 1024
LABEL: Final = -2  # the key of tollbook.label.*: the label's name is the rest of the key's slice
LABEL_PREFIX: Final = b"tollbook.label."
MAX_LABEL_BYTES: Final = 256

EMAIL: Final = r"^[^@\s]+@[^@\s]+\.[A-Za-z]{2,}$"
URL_TAIL: Final = r"(?s)[?#].*$"
URL_USER: Final = r"^([A-Za-z][A-Za-z0-9+.-]*:)?//[^/@]*@"
CREDENTIALS: Final = (
    *(
        b"sk-",
        b"sk_",
        b"pk-",
        b"rk_",
        b"eyJ",
        b"AIza",
        b"ya29.",
        b"gsk_",
        b"xai-",
        b"ghp_",
        b"gho_",
        b"ghu_",
        b"ghs_",
    ),
    *(
        b"github_p",
        b"glpat-",
        b"xoxb-",
        b"xoxp-",
        b"hf_",
        b"cpk_",
        b"fw_",
        b"tid=",
        b"Bearer ",
        b"Basic ",
        b"AKIA",
        b"ASIA",
    ),
)

Note = Callable[[Ints, Ints], None]  # owners, vocabulary ids of keys


@dataclass(frozen=True, slots=True)
class Told:
    """Attributes with values, in their owners' order. `owner`: row; `key`: vocabulary id or LABEL."""

    owner: Ints
    key: Ints
    key_start: Ints
    key_end: Ints
    values: Values

    def __len__(self) -> int:
        return len(self.owner)

    def at(self, rows: Ints | Mask) -> Told:
        values = Values(*(getattr(self.values, part.name)[rows] for part in parts_of(Values)))
        return Told(self.owner[rows], self.key[rows], self.key_start[rows], self.key_end[rows], values)


def tell(decoded: Decoded, attributes: Attributes, row_of: Ints) -> Told:
    """The allow-listed attributes of those owners that `row_of` gives a row (>= 0), values read."""
    known = np.zeros(len(decoded.dialects.vocabulary) + 1, dtype=np.bool_)  # the last: UNKNOWN
    known[list(decoded.dialects.kept)] = True
    owner = row_of[attributes.owner] if len(row_of) else attributes.owner
    label = _labels(decoded.columns.buffer, attributes)
    rows = np.flatnonzero((owner >= 0) & (known[attributes.key] | label))
    values = read_values(decoded.columns.buffer, attributes.start[rows], attributes.end[rows])
    key = np.where(label[rows], LABEL, attributes.key[rows])
    told = Told(owner[rows], key, attributes.key_start[rows], attributes.key_end[rows], values)
    empty = (values.kind == TEXT) & (values.start == values.end)
    return told.at((values.kind != NONE) & (values.kind != OTHER) & ~empty)


def _labels(buffer: Buffer, attributes: Attributes) -> Mask:
    """Unknown keys that begin with tollbook.label."""
    words = [np.frombuffer(part, dtype="<u8")[0] for part in (LABEL_PREFIX[:8], LABEL_PREFIX[7:])]
    found = np.zeros(len(attributes.key), dtype=np.bool_)
    rows = np.flatnonzero(attributes.key == UNKNOWN)
    rows = rows[buffer.words[attributes.key_start[rows]] == words[0]]
    start = attributes.key_start[rows]
    longer = attributes.key_end[rows] - start > len(LABEL_PREFIX)
    found[rows[longer & (buffer.words[start + 7] == words[1])]] = True
    return found


def cleaned(
    decoded: Decoded, told: Told, note: Callable[[Told, str], None], *, keep_emails: bool = False
) -> Told:
    """Without e-mail addresses, credentials and texts over the limit; `note` is told what was dropped
    and why.
    """
    buffer, values = decoded.columns.buffer, told.values
    text = values.kind == TEXT
    long = text & (values.end - values.start > MAX_TEXT_BYTES)
    secret = text & ~long & _begins(buffer, values.start, values.end, CREDENTIALS)
    bad = long | secret
    note(told.at(long), "too_long")
    note(told.at(secret), "credential")
    if not keep_emails:
        email = _emails(decoded, told, text & ~bad)
        note(told.at(email), "email")
        bad |= email
    return told.at(~bad) if bad.any() else told


def _begins(buffer: Buffer, start: Ints, end: Ints, prefixes: Sequence[bytes]) -> Mask:
    """Which texts begin with one of the prefixes (of up to 8 bytes) and go on after it."""
    word, length = buffer.words[start], end - start
    found = np.zeros(len(start), dtype=np.bool_)
    for prefix in prefixes:
        mask = np.uint64((1 << 8 * len(prefix)) - 1)
        found |= ((word & mask) == np.uint64(int.from_bytes(prefix, "little"))) & (length >= 16)
    return found


def _emails(decoded: Decoded, told: Told, text: Mask) -> Mask:
    personal = np.zeros(len(decoded.dialects.vocabulary) + 2, dtype=np.bool_)  # the last but one: LABEL
    personal[[*decoded.dialects.personal, LABEL]] = True
    rows = np.flatnonzero(text & personal[told.key])
    series = _series(decoded.columns.buffer, told, rows)
    found = np.zeros(len(told), dtype=np.bool_)
    found[rows] = (series.str.contains("@", literal=True)).to_numpy()
    at = np.flatnonzero(found)
    found[at] = _series(decoded.columns.buffer, told, at).str.contains(EMAIL).to_numpy()
    return found


def _series(buffer: Buffer, told: Told, rows: Ints) -> pl.Series:
    valid = np.ones(len(rows), dtype=np.bool_)
    return text_series(buffer, told.values.start[rows], told.values.end[rows], valid)


def safe_urls(urls: pl.Series) -> pl.Series:
    """URLs without user information, query and fragment."""
    return urls.str.replace(URL_TAIL, "").str.replace(URL_USER, "${1}//")


def spelled_out(buffer: Buffer, told: Told, keys: frozenset[int]) -> tuple[Buffer, Told]:
    """Integers under keys that are read as text (a numeric user id) as text, appended to the buffer."""
    listed = np.array(sorted(keys), dtype=np.int64)
    rows = np.flatnonzero((told.values.kind == INTEGER) & np.isin(told.key, listed))
    if not rows.size:
        return buffer, told
    texts = [str(number).encode() for number in told.values.number[rows].tolist()]
    length = np.array([len(text) for text in texts], dtype=np.int64)
    end = len(buffer.data) + np.cumsum(length)
    values = replace(
        told.values, kind=told.values.kind.copy(), start=told.values.start.copy(), end=told.values.end.copy()
    )
    values.kind[rows], values.start[rows], values.end[rows] = TEXT, end - length, end
    return Buffer.of([buffer.data, *texts]), replace(told, values=values)
