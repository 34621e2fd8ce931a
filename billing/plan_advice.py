"""Windows of plans that are used up, as the front knows them: told in the reply to a check under such a plan.

The ledger tells them with every publication. They advise and never deny: what a plan still lets through is
its provider's to say. Light: the front imports it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

__all__ = ["UsedUp", "used_up_by", "used_up_for", "windows_told"]

_COVERED = ("subscription", "credits")


@dataclass(frozen=True, slots=True)
class UsedUp:
    """One window of one seat of a plan with nothing left until `resets_at`."""

    plan_id: str
    plan: str
    provider: str
    account_id: str | None
    quota: str
    resets_at: datetime

    def sentence(self) -> str:
        """For the advice of a reply."""
        until = self.resets_at.isoformat().replace("+00:00", "Z")
        return f"the {self.quota} window of {self.plan} is used up until {until}"


def used_up_by(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of rows of the table `plans` those that are used up, as a message to the front."""
    full = [row for row in rows if row["ends_at"] is not None and (row["used_fraction"] or 0) >= 1]
    told = ("plan_id", "plan", "provider", "account_id", "quota")
    return [{**{name: row[name] for name in told}, "resets_at": row["ends_at"]} for row in full]


def windows_told(message: Iterable[Mapping[str, Any]]) -> tuple[UsedUp, ...]:
    """The same, read back from the message."""
    return tuple(
        UsedUp(**{**each, "resets_at": datetime.fromisoformat(each["resets_at"])}) for each in message
    )


def used_up_for(windows: Sequence[UsedUp], told: Mapping[str, str], now: datetime) -> list[UsedUp]:
    """Those that a call of these dimensions draws on: covered by a plan of that provider, on that seat."""
    if told.get("access") not in _COVERED:
        return []
    provider, account_id = told.get("provider"), told.get("account_id")
    return [
        each
        for each in windows
        if each.provider == provider and each.account_id in (None, account_id) and now < each.resets_at
    ]
