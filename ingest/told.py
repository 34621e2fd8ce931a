"""What the records of model calls tell: their allow-listed attributes with values, and those of their
resources.

Why: the border that content does not pass. Only keys named in a dialect get here; of their values,
e-mail addresses, credentials and oversized texts are dropped with a note, and URLs lose user
information, query and fragment. Everything stored later is taken from here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import fields as parts_of
from typing import Final

import numpy as np
import polars as pl

from .anyvalue import INTEGER, NONE, OTHER, TEXT, Values, read_values
from .decode import Decoded
from .otlp_columns import Attributes
from .scan import Buffer, Ints, Mask, Words
from .texts import UNKNOWN, array_of, as_series, is_text, views_of

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

_MIN_SECRET_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Told:
    """Attributes with values, in their owners' order.

    `owner`: row of an observation, or, from the number of these on, of a resource; `key`: vocabulary id or
    LABEL; `key_start`, `key_end`: the key's text; `pair_start`, `pair_end`: the KeyValue message.
    """

    owner: Ints
    key: Ints
    key_start: Ints
    key_end: Ints
    values: Values
    views: Words  # of texts (see `texts`), empty for the rest
    pair_start: Ints
    pair_end: Ints

    def __len__(self) -> int:
        return len(self.owner)

    def at(self, rows: Ints | Mask) -> Told:
        values = Values(*(getattr(self.values, part.name)[rows] for part in parts_of(Values)))
        slices = self.key_start[rows], self.key_end[rows]
        pairs = self.pair_start[rows], self.pair_end[rows]
        return Told(self.owner[rows], self.key[rows], *slices, values, self.views[rows], *pairs)


def tell(decoded: Decoded, owners: Sequence[tuple[Attributes, Ints]]) -> Told:
    """Reads the allow-listed attributes of some owners: attributes, and each one's new owner (-1: passed
    over).
    """
    buffer = decoded.columns.buffer
    known = np.zeros(len(decoded.dialects.vocabulary) + 1, dtype=np.bool_)  # the last: UNKNOWN
    known[list(decoded.dialects.kept)] = True
    parts = []
    for attributes, owner in owners:
        wanted = owner >= 0
        label = wanted & _labels(buffer, attributes)
        rows = np.flatnonzero(wanted & known[attributes.key] | label)
        key = np.where(label[rows], LABEL, attributes.key[rows])
        slices = (attributes.key_start, attributes.key_end, attributes.start, attributes.end)
        pairs = (attributes.pair_start, attributes.pair_end)
        parts.append((owner[rows], key, *(part[rows] for part in (*slices, *pairs))))
    columns = [np.concatenate(part) for part in zip(*parts, strict=True)]
    if (columns[0][1:] < columns[0][:-1]).any():
        order = np.argsort(columns[0], kind="stable")
        columns = [column[order] for column in columns]
    owner, key, key_start, key_end, start, end, *whole = columns
    values = read_values(buffer, start, end)
    text = values.kind == TEXT
    views = views_of(buffer, np.where(text, start_of := values.start, 0), np.where(text, values.end, 0))
    told = Told(owner, key, key_start, key_end, values, views, *whole)
    keep = (values.kind != NONE) & (values.kind != OTHER) & ~(text & (start_of == values.end))
    return told if keep.all() else told.at(keep)


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
    """Without e-mail addresses, credentials and texts over the limit; `note` is told what was dropped."""
    buffer, values = decoded.columns.buffer, told.values
    text = values.kind == TEXT
    long = text & (values.end - values.start > MAX_TEXT_BYTES)
    long |= (told.key == LABEL) & (told.key_end - told.key_start > MAX_LABEL_BYTES + len(LABEL_PREFIX))
    garbled = _garbled(buffer, told, text & ~long)
    secret = text & ~long & ~garbled & _begins(buffer, values.start, values.end, CREDENTIALS)
    drops = {"too_long": long, "not_utf8": garbled, "credential": secret}
    if not keep_emails:
        drops["email"] = _emails(decoded, told, text & ~(long | garbled | secret))
    keep = np.ones(len(told), dtype=np.bool_)
    for what, dropped in drops.items():
        if dropped.any():
            note(told.at(dropped), what)
            keep &= ~dropped
    return told if keep.all() else told.at(keep)


def _garbled(buffer: Buffer, told: Told, text: Mask) -> Mask:
    """Texts, or names of labels, that are not UTF-8 (protobuf refuses them on receipt: never seen)."""
    garbled = np.zeros(len(told), dtype=np.bool_)
    labels = np.flatnonzero(told.key == LABEL)
    names = views_of(buffer, told.key_start[labels], told.key_end[labels])
    if not is_text(array_of(buffer, told.views)) or not is_text(array_of(buffer, names)):
        values, texts = told.values, np.flatnonzero(text)
        for start, end, rows in (
            (told.key_start, told.key_end, labels),
            (values.start, values.end, texts),
        ):
            sound = [_is_utf8(buffer.cut(int(start[row]), int(end[row]))) for row in rows]
            garbled[rows] |= ~np.array(sound, dtype=np.bool_)
    return garbled


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _begins(buffer: Buffer, start: Ints, end: Ints, prefixes: Sequence[bytes]) -> Mask:
    """Which texts begin with one of the prefixes (of 3 to 8 bytes) and are long enough for a secret."""
    word = buffer.words[start]
    found = np.zeros(len(start), dtype=np.bool_)
    likely = np.zeros(1 << 16, dtype=np.bool_)
    likely[[int.from_bytes(prefix[:2], "little") for prefix in prefixes]] = True
    rows = np.flatnonzero(
        likely[(word & np.uint64(0xFFFF)).astype(np.int64)] & (end - start >= _MIN_SECRET_BYTES)
    )
    for prefix in prefixes:
        mask = np.uint64((1 << 8 * len(prefix)) - 1)
        found[rows[(word[rows] & mask) == np.uint64(int.from_bytes(prefix, "little"))]] = True
    return found


def _emails(decoded: Decoded, told: Told, text: Mask) -> Mask:
    personal = np.zeros(len(decoded.dialects.vocabulary) + 2, dtype=np.bool_)  # the last but one: LABEL
    personal[[*decoded.dialects.personal, LABEL]] = True
    rows = np.flatnonzero(text & personal[told.key])
    at = _series(decoded, told, rows).str.contains("@", literal=True).to_numpy()
    found = np.zeros(len(told), dtype=np.bool_)
    if at.any():
        found[rows[at]] = _series(decoded, told, rows[at]).str.contains(EMAIL).to_numpy()
    return found


def _series(decoded: Decoded, told: Told, rows: Ints) -> pl.Series:
    return as_series(array_of(decoded.columns.buffer, told.views[rows]))


def respelled(decoded: Decoded, told: Told) -> dict[int, str]:
    """New texts: URLs without user information, query and fragment, and integers that are read as text (a
    numeric user id).
    """
    dialects = decoded.dialects
    urls = np.flatnonzero(np.isin(told.key, sorted(dialects.urls)) & (told.values.kind == TEXT))
    unsafe = urls[_series(decoded, told, urls).str.contains("[?#@]").to_numpy()] if urls.size else urls
    numbers = np.flatnonzero(np.isin(told.key, sorted(dialects.as_text)) & (told.values.kind == INTEGER))
    texts = dict(zip(unsafe.tolist(), safe_urls(_series(decoded, told, unsafe)).to_list(), strict=True))
    return texts | {row: str(int(told.values.number[row])) for row in numbers.tolist()}


def safe_urls(urls: pl.Series) -> pl.Series:
    """URLs without user information, query and fragment."""
    return urls.str.replace(URL_TAIL, "").str.replace(URL_USER, "${1}//")
