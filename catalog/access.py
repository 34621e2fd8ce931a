"""Under which access a call was made: metered, under a plan, free, on one's own machine, or unknown.

Strongest first: what the operator stated on the record; quota headers of the response; the agent's own
statement (`anthropic.plan`, `auth_mode`, `auth_type`); the address; the kind of credential; markers of the
request; the form of the id or what its provider is; the account's default in the configuration. A list price
of zero is never evidence, and neither is a bare model id. Where nothing tells a plan from metered use, the
answer is 'unknown', which bills show apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal, get_args

from catalog.accounts import AccountRule, chosen_rule
from catalog.provider_book import Book, fold_name
from catalog.provider_facts import Access, Marker, Provider

if TYPE_CHECKING:
    from catalog.resolve import Claim, Evidence

__all__ = ["AccessClassifier", "AccessFinding"]

_ACCESSES = frozenset(get_args(Access)) - {"unknown"}
_COVERED = ("subscription", "credits")
_BY_NATURE = ("subscription", "local", "free", "provisioned")
_MAX_MARKERS = 64


@dataclass(frozen=True, slots=True)
class AccessFinding:
    """The access of a call, what it rests on, how sure it is, and the plan.

    Confidence: 'stated' (the record or a header says so), 'high', 'medium', 'configured' (the account's
    default), 'none'.
    """

    access: str
    evidence: str
    confidence: str
    plan_id: str | None = None


class AccessClassifier:
    """Classifies calls by the reviewed facts and the operator's rules for accounts."""

    def __init__(self, book: Book, accounts: tuple[AccountRule, ...] = ()) -> None:
        self._accounts = accounts
        self._statements = {
            (said.key, fold_value(said.value)): said for p in book.providers.values() for said in p.statements
        }

    def classify(
        self, evidence: Evidence, claim: Claim | None, *, modifiers: Mapping[str, str]
    ) -> AccessFinding:
        """Classify one call; `claim` is what was found about its provider, None when nothing was."""
        found = self._stated(evidence, claim) or _by_claim(evidence, claim, modifiers)
        if found is None or found.access not in _BY_NATURE:
            found = self._by_account(evidence, claim, found) or found
        return self._with_plan(evidence, claim, found or AccessFinding("unknown", "", "none"))

    def _with_plan(self, evidence: Evidence, claim: Claim | None, found: AccessFinding) -> AccessFinding:
        """The same, with the plan that the record names or the account has, where access leaves it open."""
        if found.access not in _COVERED:
            return found
        if evidence.plan_hint:
            return replace(found, plan_id=evidence.plan_hint)
        rule = chosen_rule(self._accounts, evidence.accounts, claim.provider.id if claim else None)
        if found.plan_id is None and rule is not None and rule.access == found.access:
            return replace(found, plan_id=rule.plan_id)
        return found

    def _stated(self, evidence: Evidence, claim: Claim | None) -> AccessFinding | None:
        """What the record says itself: the operator, then the response's headers, then the agent."""
        provider = claim.provider if claim else None
        said = evidence.access_evidence or ""
        hinted = self._hinted(evidence, provider) if evidence.access_hint in _ACCESSES else None
        if hinted is not None and (not said or said.startswith("tollbook.")):
            return hinted
        seen = _by_marker(provider, evidence.markers, side="response")
        if seen is not None or hinted is not None:
            return seen or hinted
        if evidence.plan_hint:
            return AccessFinding("subscription", "tollbook.plan", "stated", evidence.plan_hint)
        key, _, value = said.partition("=")
        statement = self._statements.get((key, fold_value(value)))
        if statement is None or statement.access == "unknown":
            return None
        return AccessFinding(statement.access, said, "stated", statement.plan)

    def _hinted(self, evidence: Evidence, provider: Provider | None) -> AccessFinding:
        access, said = evidence.access_hint or "", evidence.access_evidence or ""
        key, _, value = said.partition("=")
        statement = self._statements.get((key, fold_value(value)))
        plan = statement.plan if statement else provider.plan if provider else None
        covered = access in _COVERED
        return AccessFinding(access, said or "stated", "stated", plan if covered else None)

    def _by_account(
        self, evidence: Evidence, claim: Claim | None, found: AccessFinding | None
    ) -> AccessFinding | None:
        """The account's default, where what was found is only what the provider mostly is, or nothing."""
        if found is not None and (found.confidence == "stated" or _is_told(found, claim)):
            return None
        provider = claim.provider.id if claim else None
        rule = chosen_rule(self._accounts, evidence.accounts, provider)
        if rule is None:
            return None
        return AccessFinding(rule.access, f"account default: {rule.described}", "configured", rule.plan_id)


def fold_value(value: str) -> str:
    """Write a stated value the way it is compared: `Chatgpt`, `chatgpt` and `CHAT_GPT` are one."""
    return re.sub(r"[\s_-]+", "", value.lower())


def _by_claim(evidence: Evidence, claim: Claim | None, modifiers: Mapping[str, str]) -> AccessFinding | None:
    """What address, credential, request and id tell, in this order."""
    if claim is None:
        return None
    if modifiers.get("catalog_variant") == "free":
        return AccessFinding("free", "id variant :free", "high")
    provider = claim.provider
    if claim.access is not None and claim.evidence.startswith("host "):
        return _found(claim, claim.access)
    told = _by_credential(provider, evidence.credential_kind)
    told = told or _by_marker(provider, evidence.markers, side="request")
    return told or _by_nature(evidence, claim)


def _by_nature(evidence: Evidence, claim: Claim) -> AccessFinding:
    """What the form of the id says, else what the provider mostly is."""
    provider = claim.provider
    if claim.access is not None:
        return _found(claim, claim.access)
    if fold_name(evidence.emitter or "") in provider.dual_emitters:
        reaches = f"{evidence.emitter} reaches {provider.id} under a plan or metered"
        return AccessFinding("unknown", reaches, "none")
    certain = claim.certain or provider.access in ("subscription", "local")
    return _found(claim, provider.access if certain else "unknown")


def _found(claim: Claim, access: Access) -> AccessFinding:
    if access == "unknown":
        return AccessFinding("unknown", claim.evidence, "none")
    plan = (claim.plan or claim.provider.plan) if access in _COVERED else None
    return AccessFinding(access, claim.evidence, "high" if claim.certain else "medium", plan)


def _is_told(found: AccessFinding, claim: Claim | None) -> bool:
    """Say whether a finding is more than what the provider mostly is: a path, a key or a header told it."""
    if found.access == "unknown" or claim is None:
        return False
    return claim.access is not None or not _has_two_doors(claim.provider) or found.evidence != claim.evidence


def _has_two_doors(provider: Provider) -> bool:
    """Say whether one address of this provider takes plan logins as well as metered keys."""
    return bool(
        provider.plans
        or provider.dual_emitters
        or any(kind.access == "subscription" for kind in provider.credentials)
    )


def _by_credential(provider: Provider, kind: str | None) -> AccessFinding | None:
    for known in provider.credentials if kind else ():
        if (kind or "").startswith(known.prefix) and known.access != "unknown":
            plan = provider.plan if known.access == "subscription" else None
            return AccessFinding(known.access, f"key {known.prefix}", "high", plan)
    return None


def _by_marker(
    provider: Provider | None, markers: str | None, *, side: Literal["request", "response"]
) -> AccessFinding | None:
    """What headers tell (`name=value` with `;` between); the provider's first rule that fits decides."""
    told = [tuple(part.strip().partition("=")[::2]) for part in (markers or "").split(";")[:_MAX_MARKERS]]
    for rule in provider.markers if provider and markers else ():
        for name, value in told:
            if rule.side == side and _fits(rule, name.strip().lower(), value.strip().lower()):
                said = f"header {rule.header}" + (f"={rule.value}" if rule.value else "")
                return AccessFinding(rule.access, said, "stated", rule.plan)
    return None


def _fits(rule: Marker, name: str, value: str) -> bool:
    return fnmatchcase(name, rule.header) and (not rule.value or fnmatchcase(value, rule.value))
