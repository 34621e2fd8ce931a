"""Under which access a call was made: metered, under a plan, free, on one's own machine, or unknown.

Strongest first: what the record states itself (`anthropic.plan`, `auth_mode`), the address it went to, the
form of its id, what its provider is (a plan, a local server, a metered API). A list price of zero is never
evidence, and neither is a bare model id. Where one agent reaches one provider both ways with nothing to
tell them apart, the answer is 'unknown', which bills show apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from catalog.provider_book import Access, Provider, fold_name

if TYPE_CHECKING:
    from catalog.resolve import Claim, Evidence

__all__ = ["AccessFinding", "classify_access"]

_ACCESSES = frozenset(get_args(Access))


@dataclass(frozen=True, slots=True)
class AccessFinding:
    """The access of a call, what it rests on, how sure it is ('stated' | 'high' | 'medium' | 'none'), and
    the plan.
    """

    access: str
    evidence: str
    confidence: str
    plan_id: str | None = None


def classify_access(evidence: Evidence, claim: Claim | None, *, modifiers: dict[str, str]) -> AccessFinding:
    """Classify one call; `claim` is what was found about its provider, None when nothing was."""
    provider = claim.provider if claim else None
    if evidence.access_hint in _ACCESSES:
        plan = (
            _stated_plan(provider, evidence.access_evidence)
            if evidence.access_hint == "subscription"
            else None
        )
        return AccessFinding(evidence.access_hint or "", evidence.access_evidence or "stated", "stated", plan)
    if claim is None or provider is None:
        return AccessFinding("unknown", "", "none")
    if modifiers.get("catalog_variant") == "free":
        return AccessFinding("free", "id variant :free", "high")
    if claim.access is not None:
        return _found(claim, claim.access, "high" if claim.certain else "medium")
    if fold_name(evidence.emitter or "") in provider.dual_emitters:
        return AccessFinding(
            "unknown", f"{evidence.emitter} reaches {provider.id} under a plan or metered", "none"
        )
    certain = claim.certain or provider.access in ("subscription", "local")
    return _found(claim, provider.access if certain else "unknown", "high" if claim.certain else "medium")


def _found(claim: Claim, access: Access, confidence: str) -> AccessFinding:
    if access == "unknown":
        return AccessFinding("unknown", claim.evidence, "none")
    plan = (claim.plan or claim.provider.plan) if access in ("subscription", "credits") else None
    return AccessFinding(access, claim.evidence, confidence, plan)


def _stated_plan(provider: Provider | None, stated: str | None) -> str | None:
    """Give the plan an emitter names by itself (`anthropic.plan=max`), where it is a known one."""
    if provider is None:
        return None
    spelled = (stated or "").lower()
    named = next((plan.id for plan in provider.plans if spelled in plan.stated), None)
    return named or provider.plan
