"""How faithfully emitters tell: content that they sent and that was dropped, and records that are samples.

Why: who looks after the bill wants to know that prompts are sent at all (they are never stored, but they
travel), and that a source which samples tells of a part of its calls only. Counted are the records that a
rule took, calls or not, as they arrive: what is sent again counts again, for it was sent again.

What it refuses: to keep any content, and to read trace flags: exporters of Python leave them 0 on spans that
were sampled, and some loggers never set them.
"""

from __future__ import annotations

import re
from typing import Final

import numpy as np
import polars as pl

from .anyvalue import INTEGER, REAL, TEXT, read_values
from .decode import Decoded
from .dialect_match import NO_RULE, Matched
from .observation import FIDELITY
from .otlp_columns import SPAN, Attributes
from .scan import Ints, Mask, Reals
from .texts import UNKNOWN, checked_series, text_series

_THRESHOLD: Final = r"(?:^|,)\s*ot=(?:[^,]*;)?th:([0-9a-f]{1,14})(?:;|,|\s*$)"
_EXPONENT: Final = r"(?:^|,)\s*ot=(?:[^,]*;)?p:([0-9]{1,2})(?:;|,|\s*$)"
"""W3C trace state: of 2^56 random values the first `th` are rejected; formerly one trace of 2^p was kept."""
_NOTHING_TOLD: Final = pl.DataFrame(schema={"record": pl.Int64, "probability": pl.Float64})
_REDACTED: Final = "^[<\\[]REDACTED[>\\]]$"


def fidelity(decoded: Decoded, matched: Matched) -> pl.DataFrame:
    """FIDELITY: per emitter, what it sent of content and what it sampled."""
    taken = matched.rule != NO_RULE
    parts = [_content(decoded, taken), _sampled(decoded, taken)]
    found = pl.concat(parts, how="diagonal")
    if found.is_empty():
        return pl.DataFrame(schema=FIDELITY)
    named = found.with_columns(_emitters(decoded, matched, found["record"].to_numpy()))
    return named.group_by("emitter").agg(
        pl.col("bytes").count().cast(pl.Int64).alias("content_records"),
        pl.col("bytes").sum().cast(pl.Int64).alias("content_bytes"),
        pl.col("probability").count().cast(pl.Int64).alias("sampled_records"),
        pl.col("probability").min().alias("sampling_probability"),
    )


def _emitters(decoded: Decoded, matched: Matched, records: Ints) -> pl.Series:
    """Who wrote these records."""
    scope = matched.scope[decoded.columns.records.scope[records]]
    sources, index = np.unique(matched.rule[records] * len(matched.scope_names) + scope, return_inverse=True)
    places = [divmod(source, len(matched.scope_names)) for source in sources.tolist()]
    dialects = decoded.dialects
    names = [dialects.emitter(dialects.rules[rule], matched.scope_names[name]) for rule, name in places]
    return pl.Series("emitter", names, dtype=pl.String).gather(index)


def _content(decoded: Decoded, taken: Mask) -> pl.DataFrame:
    """`record` and `bytes` of those that carry content."""
    attributes, buffer = decoded.columns.attributes, decoded.columns.buffer
    rows = np.flatnonzero(_holds_content(decoded, attributes))
    rows = rows[taken[attributes.owner[rows]]]
    size = attributes.end[rows] - attributes.start[rows]
    short = np.flatnonzero(size == len("<REDACTED>") + 2)
    start = attributes.start[rows[short]] + 2
    redacted = text_series(buffer, start, attributes.end[rows[short]]).str.contains(_REDACTED).to_numpy()
    keep = np.delete(np.arange(len(rows)), short[redacted])
    told = pl.DataFrame({"record": attributes.owner[rows[keep]], "bytes": size[keep]})
    return told.filter(pl.col("bytes") > _EMPTY_BYTES).group_by("record").agg(pl.col("bytes").sum())


_EMPTY_BYTES: Final = 4  # of an AnyValue without text, or with an empty list


def _holds_content(decoded: Decoded, attributes: Attributes) -> Mask:
    dialects, buffer = decoded.dialects, decoded.columns.buffer
    known = np.zeros(len(dialects.vocabulary) + 1, dtype=np.bool_)  # the last: UNKNOWN
    known[list(dialects.content)] = True
    found = known[attributes.key]
    rows = np.flatnonzero(attributes.key == UNKNOWN)
    heads = np.array([int.from_bytes(p.encode()[:8], "little") for p in dialects.content_prefixes], np.uint64)
    rows = rows[np.isin(buffer.words[attributes.key_start[rows]], heads)]
    keys = text_series(buffer, attributes.key_start[rows], attributes.key_end[rows])
    numbered = "^(" + "|".join(map(re.escape, dialects.content_prefixes)) + ")[0-9]"
    found[rows[keys.str.contains(numbered).to_numpy()]] = True
    return found


def _sampled(decoded: Decoded, taken: Mask) -> pl.DataFrame:
    """`record` and `probability` of those that say they are a sample."""
    parts = [_by_trace_state(decoded, taken), *_by_attributes(decoded, taken)]
    told = pl.concat(parts).filter(pl.col("probability") > 0, pl.col("probability") < 1)
    return told.group_by("record").agg(pl.col("probability").min())


def _by_trace_state(decoded: Decoded, taken: Mask) -> pl.DataFrame:
    records, buffer = decoded.columns.records, decoded.columns.buffer
    rows = np.flatnonzero(taken & (records.signal == SPAN) & (records.note_end > records.note_start))
    if not rows.size:
        return _NOTHING_TOLD
    state = checked_series(buffer, records.note_start[rows], records.note_end[rows])
    threshold = state.str.extract(_THRESHOLD).str.pad_end(14, "0").str.to_integer(base=16, strict=False)
    kept = 1 - threshold.cast(pl.Float64) / float(1 << 56)
    exponent = state.str.extract(_EXPONENT).cast(pl.Float64, strict=False)
    older = pl.Series(np.exp2(-exponent.fill_null(float("nan")).to_numpy())).fill_nan(None)
    return pl.DataFrame({"record": rows, "probability": kept.zip_with(kept.is_not_null(), older)})


def _by_attributes(decoded: Decoded, taken: Mask) -> list[pl.DataFrame]:
    """From attributes of records and of their resources that give a probability, or one of how many."""
    columns, dialects = decoded.columns, decoded.dialects
    found = []
    for keys, inverted in ((dialects.probabilities, False), (dialects.one_in, True)):
        found.append(_told(decoded, columns.attributes, keys, inverted=inverted))
        shared = _told(decoded, columns.resource_attributes, keys, inverted=inverted)
        if len(shared):
            records = np.flatnonzero(taken)
            owners = pl.DataFrame({"own": records, "record": columns.records.resource[records]})
            found.append(owners.join(shared, on="record").select(record="own", probability="probability"))
    return [part.filter(pl.Series(taken[part["record"].to_numpy()])) for part in found]


def _told(decoded: Decoded, attributes: Attributes, keys: frozenset[int], *, inverted: bool) -> pl.DataFrame:
    """`record` (the owner) and `probability` under these keys."""
    buffer = decoded.columns.buffer
    rows = np.flatnonzero(np.isin(attributes.key, sorted(keys)))
    if not rows.size:
        return _NOTHING_TOLD
    values = read_values(buffer, attributes.start[rows], attributes.end[rows])
    number: Reals = np.where(values.kind == INTEGER, values.number, np.nan).astype(np.float64)
    number[values.kind == REAL] = values.real[values.kind == REAL]
    texts = np.flatnonzero(values.kind == TEXT)
    words = text_series(buffer, values.start[texts], values.end[texts]).cast(pl.Float64, strict=False)
    number[texts] = words.fill_null(float("nan")).to_numpy()
    with np.errstate(divide="ignore"):
        probability = 1 / number if inverted else number
    return pl.DataFrame(
        {"record": attributes.owner[rows], "probability": pl.Series(probability).fill_nan(None)}
    )
