"""Token counts as emitters tell them, brought to one meaning.

Why: `input_tokens` includes cached tokens for most emitters and excludes them for some; thinking lies
inside output for most. A dialect says which, and arithmetic overrules it where the numbers prove it
wrong. What comes out: input includes every cache part, writes include the 1h part, output includes
reasoning. A count that was not told stays `UNTOLD`; nothing is ever guessed to be 0, but an embedding
that tells its input has no output.

What it refuses: counts that no model call can have (negative, above `MAX_TOKENS`). They become `UNTOLD`
before they get here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from .scan import Ints, Mask

UNTOLD: Final = -1
MAX_TOKENS: Final = 100_000_000  # per call; the largest context windows are a tenth of it

Note = Callable[[Mask, str], None]  # rows, anomaly


@dataclass(frozen=True, slots=True)
class Conventions:
    """bool[n] each: what the dialect of a record says about its numbers."""

    input_excludes_cache: Mask
    output_excludes_reasoning: Mask
    output_by_total: Mask
    no_output: Mask  # embeddings, reranks
    failed: Mask


def normalised(told: dict[str, Ints], conventions: Conventions, note: Note) -> dict[str, Ints]:
    """The token columns of observations from what was told (int64[n] each, UNTOLD where nothing was)."""
    tokens = {name: column.copy() for name, column in told.items()}
    _forget_failures(tokens, conventions.failed)
    write = _cache_writes(tokens)
    raw_output = tokens["output_tokens"]
    read, reasoning, total = tokens["cache_read_tokens"], tokens["reasoning_tokens"], tokens["total_tokens"]
    cached = np.maximum(read, 0) + np.maximum(write, 0)
    whole_input = _inclusive_input(
        tokens["input_tokens"], cached, total, raw_output, reasoning, conventions, note
    )
    _forget_nothing(whole_input, raw_output, note)
    output = _inclusive_output(raw_output, reasoning, total, whole_input, conventions, note)
    output[(output == UNTOLD) & (whole_input != UNTOLD) & conventions.no_output] = 0
    return {
        "input_tokens": whole_input,
        "cache_read_tokens": read,
        "cache_write_tokens": write,
        "cache_write_1h_tokens": tokens["cache_write_1h_tokens"],
        "output_tokens": output,
        "reasoning_tokens": reasoning,
        "audio_input_tokens": tokens["audio_input_tokens"],
        "audio_output_tokens": tokens["audio_output_tokens"],
    }


def _forget_failures(tokens: dict[str, Ints], failed: Mask) -> None:
    """A failed call that tells no usage, or only zeros, tells nothing."""
    nothing = failed & (tokens["input_tokens"] <= 0) & (tokens["output_tokens"] <= 0)
    for column in tokens.values():
        column[nothing] = UNTOLD


def _forget_nothing(whole_input: Ints, output: Ints, note: Note) -> None:
    """No answer comes of no input at all: such a 0 stands where nothing was told (streams of LangChain)."""
    nothing = (whole_input == 0) & (output > 0)
    note(nothing, "input_tokens:zero")
    whole_input[nothing] = UNTOLD


def _cache_writes(tokens: dict[str, Ints]) -> Ints:
    """All writes: the total that was told, or its parts where they come to more (some totals are left
    at 0).
    """
    short, long = tokens["cache_write_5m_tokens"], tokens["cache_write_1h_tokens"]
    parts = np.where((short != UNTOLD) & (long != UNTOLD), short + long, long)
    return np.maximum(tokens["cache_write_tokens"], parts)


def _inclusive_input(
    told: Ints,
    cached: Ints,
    total: Ints,
    output: Ints,
    reasoning: Ints,
    conventions: Conventions,
    note: Note,
) -> Ints:
    known = told != UNTOLD
    apart = known & conventions.input_excludes_cache
    below = known & ~apart & (told < cached)  # a whole cannot be smaller than its parts
    rest = total - told - cached - np.maximum(output, 0)
    sums_up = ((rest == 0) | (rest == np.maximum(reasoning, 0))) & (cached > 0)
    proven = below | known & ~apart & (total != UNTOLD) & (output != UNTOLD) & sums_up
    note(proven, "input_tokens:excludes_cache")
    return np.where(apart | proven, told + cached, told)


def _inclusive_output(
    told: Ints, reasoning: Ints, total: Ints, whole_input: Ints, conventions: Conventions, note: Note
) -> Ints:
    known, counted = told != UNTOLD, (total != UNTOLD) & (whole_input != UNTOLD)
    apart = known & (reasoning > 0) & conventions.output_excludes_reasoning
    rest = total - whole_input
    by_total = known & counted & conventions.output_by_total
    apart |= by_total & (reasoning > 0) & (rest >= told + reasoning)
    hidden = by_total & (reasoning == UNTOLD) & (rest > told)  # thinking that only the total tells
    proven = known & ~apart & ~hidden & (reasoning > 0)
    proven &= (told < reasoning) | counted & (rest == told + reasoning)
    note(proven, "output_tokens:excludes_reasoning")
    note(
        known & (reasoning == UNTOLD) & conventions.output_excludes_reasoning,
        "output_tokens:without_reasoning",
    )
    return np.where(hidden, rest, np.where(apart | proven, told + reasoning, told))
