"""The peer's cases about what stands around a call: who calls, who is asked, what is left, which plans.

Each function is asked with a case's `given` (see `tests/proxy_cases.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from typing import Any

from billing.budget import CheckReply, InvalidBudget, read_budget, read_check
from billing.budget_book import BudgetBook
from billing.budget_period import epoch_s, parse_period, period_start
from catalog.provider_book import Book, load_book
from proxy.caller import read_caller
from proxy.failure import classify
from proxy.keys import KeyKinds
from proxy.routes import ANOTHER_MAY
from proxy.secret import Secret
from tests.test_billing_budget_book import PriceList

__all__ = ["HOUSE_ASKS", "same_program"]

NOW = datetime(2026, 11, 22, 6, 25, 22, tzinfo=UTC)
LEAST = {"tokens": {"input_tokens": 1, "output_tokens": 0}, "list_usd": {"usd": "0.000000000001"}}
"""The smallest call that a meter counts."""
_FAMILIES = {"qwen": "alibaba"}
"""The peer's names of providers that the catalogue does not know as names."""
_SDKS = {"openai-js": "openai-node", "anthropic-js": "anthropic-typescript"}
"""The peer's names of programs that have a service.name of their own; curl, say, has none."""


def _caller(given: Any) -> Any:
    headers = [(name.lower().encode(), value.encode()) for name, value in given["headers"].items()]
    return read_caller(headers, b"")


def same_program(ours: str | None, peer: str | None) -> bool:
    """Whether both name the same program, or neither one that reports telemetry."""
    return ours == _SDKS.get(peer or "")


def _chain(given: Any) -> Any:
    """Which targets of a route are asked, in order, by the rules of a route that says nothing of them."""
    asked = []
    for place, target in enumerate(given["targets"]):
        if target.get("no_key"):
            continue
        asked.append(place)
        if target["status"] < 400:
            return {"asked": asked, "served": True}
        body = (target.get("body") or "").encode()
        failed = classify(target["provider"].lower(), target["status"], {}, body, now=NOW)
        if failed.kind not in ANOTHER_MAY:
            break
    return {"asked": asked, "served": False}


def _checked(told: dict[str, str], action: str) -> CheckReply:
    """The answer to the smallest call's check, with this budget alone."""
    fields = {name: told[name] for name in ("meter", "limit", "period")}
    thresholds = [{"at": "1.0", "action": action}]
    budget = read_budget(json.dumps({"id": "one", "thresholds": thresholds, **fields}).encode())
    bucket_s = epoch_s(period_start(parse_period(budget.period, budget.time_zone), NOW))
    spend = [{"bucket_s": bucket_s, "amount": told["spent"], "unpriced": 0}] if told["spent"] != "0" else []
    entry = {"budget": budget.model_dump(mode="json"), "offset": 1, "spend": spend}
    book = BudgetBook()
    book.apply_snapshot({"seq": 0, "offset": 1000, "at_s": epoch_s(NOW), "budgets": [entry]})
    question = {"scope": {}, "model": "lab/cheap", "estimate": LEAST[told["meter"]]}
    return book.check(read_check(json.dumps(question).encode()), NOW, PriceList())


def _blocked(given: Any) -> Any:
    try:
        return any(_checked(told, "deny").decision == "deny" for told in given["budgets"])
    except InvalidBudget as error:
        return str(error)


def _warned(given: Any) -> int:
    return sum(_checked(told, "warn").decision == "warn" for told in given["budgets"])


@cache
def _book() -> Book:
    return load_book()


def _house(name: str) -> set[str]:
    """A provider, and those that sell plans for the same lab's models."""
    book = _book()
    found = book.names.get(_FAMILIES.get(name.lower(), name.lower()))
    sold = {each.id for each in book.providers.values() if found in each.price_as[:1]}
    plans = {each for each in book.providers if found and each.startswith(f"{found}-")}
    return {found, *sold, *plans} if found else set()


def _has_plan(given: Any) -> bool:
    providers = [_book().providers[each] for each in _house(given["provider"])]
    return any(
        "subscription" in (each.access, *(endpoint.access for endpoint in each.endpoints))
        for each in providers
    )


def _plan_key(given: Any) -> bool:
    kinds = KeyKinds(_book()).of(Secret(given["prefix"] + "0" * 40))
    return bool(kinds) and all(kind.access == "subscription" for kind in kinds)


HOUSE_ASKS: dict[str, Callable[[Any], Any]] = {
    "session": lambda given: _caller(given).session_id,
    "program": lambda given: _caller(given).service,
    "chain": _chain,
    "blocked": _blocked,
    "warned": _warned,
    "has_plan": _has_plan,
    "plan_key": _plan_key,
}
