"""How hard to think, in each format's terms.

Formats say it as a word, as a number of tokens, or as a switch; which of them a model takes is a matter of
its generation. The numbers for words are those that Google documents for its OpenAI-compatible endpoint.
"""

from __future__ import annotations

import re
from typing import Any, Final

from .conversation import Reasoning

BUDGETS: Final = {
    "none": 0,
    "minimal": 1024,
    "low": 1024,
    "medium": 8192,
    "high": 24_576,
    "xhigh": 32_768,
    "max": 32_768,
}
MIN_BUDGET: Final = 1024  # Anthropic's
# Claude takes a word from Opus 4.5 on, thinks as much as a question needs from 4.6 on, only so from 4.7 on.
_TAKES_WORD: Final = re.compile(r"claude-(?:opus-4[.-]5|[a-z]+-(?:4[.-](?:[6-9]|\d\d)|[5-9]))(?!\d)")
_ADAPTIVE: Final = re.compile(r"claude-[a-z]+-(?:4[.-](?:[6-9]|\d\d)|[5-9])(?!\d)")
_ADAPTIVE_ONLY: Final = re.compile(r"claude-[a-z]+-(?:4[.-](?:[7-9]|\d\d)|[5-9])(?!\d)")
_LEVELS: Final = re.compile(r"gemini-(?:[3-9]|\d\d)")


def effort_of(reasoning: Reasoning) -> str | None:
    """A word for it; None where the model's own default is meant."""
    if reasoning.enabled is False:
        return "none"
    if reasoning.effort is not None or reasoning.budget is None:
        return reasoning.effort
    return next((word for word in ("low", "medium") if reasoning.budget <= 2 * BUDGETS[word]), "high")


def for_anthropic(reasoning: Reasoning, model: str, max_tokens: int) -> tuple[dict[str, Any], int]:
    """`thinking` and `output_config`, and the limit on output, which has to lie above the budget."""
    if reasoning.enabled is False or reasoning.effort == "none":
        return {"thinking": {"type": "disabled"}}, max_tokens
    word = {"minimal": "low"}.get(reasoning.effort or "", reasoning.effort)
    if _ADAPTIVE_ONLY.search(model) or (_ADAPTIVE.search(model) and reasoning.budget is None):
        word = word or (effort_of(reasoning) if reasoning.budget is not None else None)
        hidden = {"display": "omitted"} if reasoning.shown is False else {}
        told: dict[str, Any] = {"thinking": {"type": "adaptive"} | hidden}
        return told | ({"output_config": {"effort": word}} if word else {}), max_tokens
    config = {"output_config": {"effort": word}} if word and _TAKES_WORD.search(model) else {}
    budget = reasoning.budget if reasoning.budget is not None else BUDGETS.get(word or "")
    if budget is None or budget < MIN_BUDGET:
        return config, max_tokens
    thinking = {"thinking": {"type": "enabled", "budget_tokens": budget}}
    return thinking | config, max_tokens if max_tokens > budget else max_tokens + budget


def for_google(reasoning: Reasoning, model: str) -> dict[str, Any]:
    """`thinkingConfig`."""
    config: dict[str, Any] = {} if reasoning.shown is None else {"includeThoughts": reasoning.shown}
    word = effort_of(reasoning)
    if _LEVELS.search(model) and reasoning.budget is None:
        level = {"none": "minimal", "xhigh": "high", "max": "high"}.get(word or "", word)
        return config | ({"thinkingLevel": level} if level else {})
    budget = reasoning.budget if reasoning.budget is not None else BUDGETS.get(word or "")
    return config | ({} if budget is None else {"thinkingBudget": budget})
