"""Token counts as providers tell them, brought to the meaning of the `calls` columns.

Providers agree on neither names nor inclusion: Anthropic leaves cached tokens out of `input_tokens`,
Google leaves thoughts out of the candidates, xAI leaves reasoning out of `completion_tokens`. What comes
out: input includes every cache part, writes include the 1h part, output includes reasoning. Where the
numbers prove a convention wrong, the numbers win (the same arithmetic as `ingest/usage.py` has for
telemetry). What was not told stays None; nothing is guessed to be 0.

What it refuses: counts that no call can have (negative, fractional, above `MAX_TOKENS`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

MAX_TOKENS: Final = 100_000_000
Number = int | Decimal
Flat = dict[str, Number]  # "prompt_tokens_details.cached_tokens": 12


@dataclass(frozen=True, slots=True)
class Counts:
    """Tokens in the meaning of the `calls` columns; None where not told."""

    input_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    cache_write_1h_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    audio_input_tokens: int | None = None
    audio_output_tokens: int | None = None
    usage_details: Mapping[str, int] = field(default_factory=dict[str, int])
    reported_cost_usd: Decimal | None = None


_KEYS: Final = {
    "input": ("prompt_tokens", "input_tokens"),
    "output": ("completion_tokens", "output_tokens"),
    "total": ("total_tokens",),
    "read": (
        "cache_read_tokens",
        "prompt_cache_hit_tokens",  # DeepSeek
        "cached_tokens",  # Moonshot
        "prompt_tokens_details.cached_tokens",
        "input_tokens_details.cached_tokens",
        "cache_read_input_tokens",
        "prompt_tokens_details.cache_read_tokens",
        "prompt_tokens_details.cache_read_input_tokens",
        "num_cached_tokens",
    ),
    "write": (
        "cache_creation_tokens",
        "cache_creation_input_tokens",
        "cache_write_tokens",
        "prompt_tokens_details.cache_write_tokens",
        "prompt_tokens_details.cache_creation_tokens",
        "prompt_tokens_details.cache_creation_input_tokens",  # Qwen
        "input_tokens_details.cache_write_tokens",
        "input_tokens_details.cache_creation_tokens",
        "input_tokens_details.cache_creation_input_tokens",
    ),
    "write_5m": (
        "cache_creation.ephemeral_5m_input_tokens",
        "prompt_tokens_details.cache_creation.ephemeral_5m_input_tokens",
    ),
    "write_1h": (
        "cache_creation.ephemeral_1h_input_tokens",
        "prompt_tokens_details.cache_creation.ephemeral_1h_input_tokens",
    ),
    "reasoning": (
        "completion_tokens_details.reasoning_tokens",
        "output_tokens_details.reasoning_tokens",
        "output_tokens_details.thinking_tokens",
        "reasoning_tokens",
    ),
    "audio_input": ("prompt_tokens_details.audio_tokens", "input_tokens_details.audio_tokens"),
    "audio_output": ("completion_tokens_details.audio_tokens", "output_tokens_details.audio_tokens"),
    "web_searches": ("server_tool_use.web_search_requests", "num_search_queries"),
}
"""What providers call each count, the best known name first."""
_MEANINGS: Final = {key: (name, rank) for name, keys in _KEYS.items() for rank, key in enumerate(keys)}
_ANTHROPIC_ONLY: Final = frozenset(
    {
        "cache_read_input_tokens",
        "cache_creation_input_tokens",
        "cache_creation.ephemeral_5m_input_tokens",
        "cache_creation.ephemeral_1h_input_tokens",
    }
)
_COST_TICK_USD: Final = Decimal("1e-10")  # xAI's unit


def flattened(usage: Any, prefix: str = "") -> Flat:
    """The numbers of a usage object by dotted key; anything else in it is left out."""
    return dict(_numbers(usage, prefix)) if isinstance(usage, dict) else {}


def _numbers(usage: dict[str, Any], prefix: str) -> Iterator[tuple[str, Number]]:
    for key, value in usage.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield from _by_modality(value, f"{prefix}{key}.")
        elif (number := _number(value)) is not None:
            yield f"{prefix}{key}", number


def _number(value: Any) -> Number | None:
    if type(value) is int:  # nearly all of them; a bool is not
        return value if value >= 0 else None
    if isinstance(value, float):  # some tell tokens as 12.0; costs are decimals before they get here
        value = int(value) if value.is_integer() else None
    known = isinstance(value, (int, Decimal)) and not isinstance(value, bool)
    return value if known and value >= 0 else None


def _by_modality(details: list[Any], prefix: str) -> Iterator[tuple[str, Number]]:
    """Google tells parts as [{"modality": "AUDIO", "tokenCount": 3}, ...]."""
    for part in details:
        if isinstance(part, dict) and (number := _number(part.get("tokenCount"))) is not None:
            yield f"{prefix}{part.get('modality')}", number


def merged(earlier: Flat, later: Flat) -> Flat:
    """What two usage blocks of one answer say together: the later figure wins, but never a trailing zero.

    A zero does count where the later block tells of as much input as before in other parts: tokens that a
    first estimate called uncached and the final count found in the cache.
    """
    if _input_group(later) >= _input_group(earlier) > 0:
        earlier = {key: value for key, value in earlier.items() if not _retold(key, later)}
    return {**earlier, **{key: value for key, value in later.items() if value or key not in earlier}}


_INPUT_GROUP: Final = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


def _retold(key: str, later: Flat) -> bool:
    whole = "cache_creation_input_tokens" if key.startswith("cache_creation.") else key
    return (key in _INPUT_GROUP and key in later) or (whole != key and later.get(whole) == 0)


def _input_group(usage: Flat) -> Number:
    return sum(usage.get(key, 0) for key in _INPUT_GROUP)


def counts_of(usage: Flat, *, anthropic: bool = False, embeddings: bool = False) -> Counts:
    """What the merged usage of one answer comes to. `anthropic`: the format tells input without cache."""
    if "promptTokenCount" in usage or "totalTokenCount" in usage or "candidatesTokenCount" in usage:
        return _google(usage)
    told = _by_meaning(usage)
    read, write = told.get("read"), _cache_write(told)
    told_input, told_output = told.get("input"), told.get("output")
    total, cached = told.get("total"), (read or 0) + (write or 0)
    if embeddings:
        told_input = told_input if told_input is not None else total
        told_output = 0 if told_input is not None and told_output is None else told_output
    apart = "prompt_tokens" not in usage and (anthropic or not _ANTHROPIC_ONLY.isdisjoint(usage))
    whole_input = _inclusive_input(told_input, cached, total, told_output, apart)
    reasoning = told.get("reasoning")
    return Counts(
        input_tokens=whole_input,
        cache_read_tokens=read,
        cache_write_tokens=write,
        cache_write_1h_tokens=told.get("write_1h"),
        output_tokens=_inclusive_output(told_output, reasoning, total, whole_input),
        reasoning_tokens=reasoning,
        audio_input_tokens=told.get("audio_input"),
        audio_output_tokens=told.get("audio_output"),
        usage_details={"web_searches": searches} if (searches := told.get("web_searches")) else {},
        reported_cost_usd=_reported_cost(usage),
    )


def _by_meaning(usage: Flat) -> dict[str, int]:
    """Each count that was told: by the first of its names that tells more than zero, else 0."""
    told: dict[str, int] = {}
    ranks: dict[str, int] = {}
    for key, value in usage.items():
        if (known := _MEANINGS.get(key)) is None or (count := _count(value)) is None:
            continue
        name, rank = known
        if count and (not told.get(name) or rank < ranks[name]):
            told[name], ranks[name] = count, rank
        else:
            told.setdefault(name, 0)
    return told


def _cache_write(told: dict[str, int]) -> int | None:
    """All writes: the total that was told, or its parts where they come to more (some totals stay 0)."""
    total, short, long = told.get("write"), told.get("write_5m"), told.get("write_1h")
    if short is None and long is None:
        return total
    return max(total or 0, (short or 0) + (long or 0))


def _inclusive_input(
    told: int | None, cached: int, total: int | None, output: int | None, apart: bool
) -> int | None:
    if told is None:
        return None
    sums_up = cached > 0 and output is not None and total == told + cached + output
    return told + cached if apart or told < cached or sums_up else told


def _inclusive_output(
    told: int | None, reasoning: int | None, total: int | None, whole_input: int | None
) -> int | None:
    if told is None or not reasoning:
        return told
    proven = total is not None and whole_input is not None and total - whole_input == told + reasoning
    return told + reasoning if proven or told < reasoning else told


def _google(usage: Flat) -> Counts:
    """Cached tokens lie inside the prompt; thoughts and the prompts of tools beside what they add to."""
    prompt, total = _first(usage, ("promptTokenCount",)), _first(usage, ("totalTokenCount",))
    tool_use, thoughts = _first(usage, ("toolUsePromptTokenCount",)), _first(usage, ("thoughtsTokenCount",))
    cached = _first(usage, ("cachedContentTokenCount",))
    told_input = None if prompt is None else prompt + (tool_use or 0)
    whole_input = _inclusive_input(told_input, cached or 0, None, None, apart=False)
    output = _first(usage, ("candidatesTokenCount", "responseTokenCount"))
    if output is not None:
        output += thoughts or 0
    elif total is not None and whole_input is not None:  # zeros are left out of protobuf's JSON
        output = max(total - whole_input, thoughts or 0)
    return Counts(
        input_tokens=whole_input,
        cache_read_tokens=cached,
        output_tokens=output,
        reasoning_tokens=thoughts,
        audio_input_tokens=_first(usage, ("promptTokensDetails.AUDIO",)),
        audio_output_tokens=_first(usage, ("candidatesTokensDetails.AUDIO", "responseTokensDetails.AUDIO")),
    )


def _reported_cost(usage: Flat) -> Decimal | None:
    """USD, as the provider claims: OpenRouter and kin, Perplexity, xAI."""
    for key in ("cost", "cost.total_cost", "cost_details.upstream_inference_cost"):
        if key in usage:
            return Decimal(usage[key])
    ticks = usage.get("cost_in_usd_ticks")
    return None if ticks is None else Decimal(ticks) * _COST_TICK_USD


def _first(usage: Flat, keys: tuple[str, ...]) -> int | None:
    """The first count that is more than zero; else 0 if any of the keys told it; else None."""
    if usage.keys().isdisjoint(keys):
        return None
    found = [count for key in keys if (count := _count(usage.get(key))) is not None]
    return next((count for count in found if count), 0 if found else None)


def _count(value: Number | None) -> int | None:
    if type(value) is int:
        return value if value <= MAX_TOKENS else None
    if value is None or value != int(value) or value > MAX_TOKENS:
        return None
    return int(value)
