"""Puts the verdicts of the budgets into one answer, and what is worth keeping into events.

The sharpest verdict decides; the reason names who decided and by which figures, so that an agent's
operator need not look anything up. Pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from billing.budget import Action, BudgetEvent, BudgetFigures, CheckReply, CheckRequest, Decision, Threshold
from billing.budget_check import SHARPNESS, Verdict

__all__ = ["event_of", "passing_event", "reply_to"]

_MAX_SENTENCES = 5  # of budgets that decide alike, the first in order of id are quoted
_SECOND = timedelta(seconds=1)
_WITHIN = {0: "no budget matches", 1: "within the one budget that matches"}


def reply_to(
    verdicts: Sequence[Verdict], unmatched: list[str], *, now: datetime, estimate_usd: str | None
) -> CheckReply:
    """The one answer of all budgets that matched."""
    shown = [each.figures for each in verdicts]
    if not [each for each in verdicts if each.reason]:  # nearly always, so this comes by the shortest way
        reason = _WITHIN.get(len(shown)) or f"within all {len(shown)} budgets that match"
        advice = _advice((), unmatched, retry_at=None) if unmatched else []
        return CheckReply("allow", reason, shown, unmatched, estimate_usd=estimate_usd, advice=advice)
    sharpest = max((SHARPNESS[each.action] for each in verdicts), default=0)
    deciding = [each for each in verdicts if SHARPNESS[each.action] == sharpest and each.reason is not None]
    decision = _decision(sharpest)
    retry_at = _retry_at(deciding) if decision == "deny" else None
    return CheckReply(
        decision=decision,
        reason=_reason(deciding, matched=len(verdicts)),
        budgets=shown,
        unmatched=unmatched,
        retry_after_s=_retry_after_s(deciding, retry_at, now) if decision == "deny" else None,
        estimate_usd=estimate_usd,
        advice=_advice(deciding, unmatched, retry_at=retry_at),
    )


def _decision(sharpest: int) -> Decision:
    return "deny" if sharpest == SHARPNESS["deny"] else "warn" if sharpest == SHARPNESS["warn"] else "allow"


def _retry_after_s(denying: Sequence[Verdict], retry_at: datetime | None, now: datetime) -> int | None:
    """A second where reservations are all that stands in the way: they may be settled at any time."""
    if all(each.soon for each in denying):
        return 1
    return None if retry_at is None else max(1, -((now - retry_at) // _SECOND))


def _retry_at(denying: Sequence[Verdict]) -> datetime | None:
    """When the last of the denying budgets would let it pass; None when one of them never will."""
    moments = [each.retry_at for each in denying if each.retry_at is not None]
    return max(moments) if len(moments) == len(denying) else None


def _reason(deciding: Sequence[Verdict], *, matched: int) -> str:
    if not deciding:
        return _WITHIN.get(matched, f"within all {matched} budgets that match")
    sentences = [each.reason for each in deciding[:_MAX_SENTENCES] if each.reason is not None]
    more = len(deciding) - len(sentences)
    return "; ".join([*sentences, f"and {more} more budgets alike"] if more else sentences)


def _advice(deciding: Sequence[Verdict], unmatched: list[str], *, retry_at: datetime | None) -> list[str]:
    advice = [each.advice for each in deciding[:_MAX_SENTENCES] if each.advice is not None]
    if retry_at is not None:
        advice.append(f"ask again at {_rfc3339(retry_at)}")
    if unmatched:
        advice.append(f"name {', '.join(unmatched)} to be checked against the budgets that name it")
    return advice


def _rfc3339(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


def event_of(request: CheckRequest, reply: CheckReply, now: datetime) -> BudgetEvent | None:
    """What to keep of a check: its denial or warning with the figures of the budgets that decided, or would
    have in shadow; None if there were none.
    """
    deciding = [each for each in reply.budgets if each.action == reply.decision and not each.shadow]
    shadows = [each for each in reply.budgets if each.shadow]
    if reply.decision == "allow" and not shadows:
        return None
    decision = _sharpest(shadows) if reply.decision == "allow" else reply.decision
    return BudgetEvent(
        at=now,
        source="check",
        decision=decision,
        reason=reply.reason,
        scope=request.scope,
        model=request.model,
        trace_id=request.trace_id,
        estimate_usd=reply.estimate_usd,
        budgets=[*deciding, *shadows],
    )


def _sharpest(shadows: Sequence[BudgetFigures]) -> Action:
    return max((each.action or "notify" for each in shadows), key=lambda action: SHARPNESS[action])


def passing_event(figures: BudgetFigures, threshold: Threshold, *, reason: str, now: datetime) -> BudgetEvent:
    """Recorded spend has passed a threshold."""
    return BudgetEvent(at=now, source="spend", decision=threshold.action, reason=reason, budgets=[figures])
