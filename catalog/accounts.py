"""The operator's rules for accounts that telemetry says nothing about: which access, which plan.

A rule names any of account, service and provider; the most exact rule that fits a call decides, and only
where the call itself does not tell. Nothing here is guessed: without rules such calls stay 'unknown'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from catalog.provider_facts import Access

__all__ = ["AccountRule", "changes", "chosen_rule", "fitting_rules"]


@dataclass(frozen=True, slots=True)
class AccountRule:
    """One default: calls of this account, service and provider (None: any) have this access and plan."""

    access: Access
    plan_id: str | None = None
    account_id: str | None = None
    service: str | None = None
    provider: str | None = None
    since: datetime | None = None
    """The calls it is about started at this instant (UTC) or later."""
    until: datetime | None = None
    """... and before this one."""

    def holds(self, at: datetime | None) -> bool:
        """Say whether it is about calls of an instant; an unknown one fits only what always holds."""
        if at is None:
            return self.since is None and self.until is None
        return (self.since is None or self.since <= at) and (self.until is None or at < self.until)

    @property
    def described(self) -> str:
        """Name what the rule is about, for the evidence of a call."""
        named = (("account", self.account_id), ("service", self.service), ("provider", self.provider))
        return ", ".join(f"{kind} {name}" for kind, name in named if name) or "every call"

    @property
    def weight(self) -> tuple[bool, bool, bool]:
        """How exact the rule is: an account beats a service beats a provider."""
        return self.account_id is not None, self.service is not None, self.provider is not None


def changes(rules: Sequence[AccountRule]) -> list[datetime]:
    """Give the instants at which a rule begins or ends, in order: between two of them the same rules hold."""
    return sorted({at for rule in rules for at in (rule.since, rule.until) if at is not None})


def fitting_rules(
    rules: Sequence[AccountRule], *, account_id: str | None, service: str | None, at: datetime | None = None
) -> str | None:
    """Give the numbers of the rules that fit an account and a service at an instant, the most exact first:
    `"2,0"`.

    The answer goes into a call's evidence, so that a million calls of one kind are still resolved once.
    """
    fits = [
        (rule.weight, -number)
        for number, rule in enumerate(rules)
        if rule.account_id in (None, account_id) and rule.service in (None, service) and rule.holds(at)
    ]
    return ",".join(str(-number) for _, number in sorted(fits, reverse=True)) or None


def chosen_rule(
    rules: Sequence[AccountRule], numbers: str | None, provider: str | None
) -> AccountRule | None:
    """Give the first of the fitting rules (`fitting_rules`) that is about this provider."""
    for number in (numbers or "").split(",") if numbers else ():
        rule = rules[int(number)]
        if rule.provider in (None, provider):
            return rule
    return None
