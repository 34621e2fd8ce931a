"""Who served a call and which model it was, from what telemetry tells; abstains where evidence is missing.

Evidence, strongest first: a known host (longest path prefix); an id that only one provider mints; a
provider's prefix in the id; the provider name in the record (SDK-derived, so it loses to all of these); the
emitter; a closed-weight lab's bare id (inferred); an open-weight bare id (ambiguous: model known, provider
not). The response's model beats the request's, which may be an alias or a deployment's name.

One set of evidence is resolved once and remembered; a batch costs its distinct sets, not its rows.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from functools import lru_cache

from catalog.access import AccessClassifier, AccessFinding
from catalog.accounts import AccountRule
from catalog.canonical import Reading, is_plausible_id, read_model
from catalog.doors import Doors, Server, parse_address
from catalog.provider_book import Book, fold_name
from catalog.provider_facts import Access, Provider

__all__ = ["Evidence", "Resolution", "Resolver"]

MAX_REMEMBERED = 65_536


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a call's records tell about who served it; all of it may be missing."""

    request_model: str | None = None
    response_model: str | None = None
    provider_name: str | None = None
    server_address: str | None = None
    server_port: int | None = None
    url: str | None = None
    emitter: str | None = None
    access_hint: str | None = None
    access_evidence: str | None = None
    credential_kind: str | None = None
    """Prefix of the key, as the proxy saw it; never the key."""
    markers: str | None = None
    """Headers that tell the access, `name=value` with `;` between."""
    accounts: str | None = None
    """Numbers of the operator's account rules that fit (`catalog.accounts.fitting_rules`)."""
    plan_hint: str | None = None
    """The plan that the record itself names (`tollbook.plan`)."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One piece of evidence for a provider: what it rests on and what it says about access."""

    provider: Provider
    evidence: str
    certain: bool = True
    access: Access | None = None
    plan: str | None = None
    modifiers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Resolution:
    """The answer for one set of evidence. `provider` is None where it would be a guess."""

    provider: str | None
    served_model: str | None
    model: str | None
    snapshot: str | None
    resolution: str
    """'resolved' | 'inferred' | 'ambiguous' (model known, provider not) | 'unresolved' (model unknown)."""
    modifiers: tuple[tuple[str, str], ...]
    access: AccessFinding
    evidence: str
    candidates: tuple[str, ...] = ()
    """First-party providers of an ambiguous model, the one to estimate by first."""


class Resolver:
    """Resolves evidence against the reviewed book; remembers a bounded number of answers."""

    def __init__(
        self, book: Book, accounts: tuple[AccountRule, ...] = (), *, remembers: int = MAX_REMEMBERED
    ) -> None:
        self.book = self._book = book
        self._remembers = remembers
        self._access = AccessClassifier(book, accounts)
        self._known: OrderedDict[Evidence, Resolution] = OrderedDict()
        self._grammar_of = lru_cache(maxsize=remembers)(self._find_grammar)
        self._reading_of = lru_cache(maxsize=remembers)(self._find_reading)
        self._doors = Doors(book)
        self._grammars = [(re.compile(g.regex), g, p) for p in book.providers.values() for g in p.grammars]
        self._emitters = {emitter: p for p in book.providers.values() for emitter in p.emitters}

    def resolve(self, evidence: Evidence) -> Resolution:
        """Resolve one set of evidence; equal evidence gives the same answer without work."""
        known = self._known.get(evidence)
        if known is None:
            known = self._known[evidence] = self._resolve(evidence)
            if len(self._known) > self._remembers:
                self._known.popitem(last=False)
        return known

    def read(self, served: str, provider: str) -> Reading:
        """Read the model an id names at a known provider."""
        return self._read(served, self._book.providers[provider]) if served else Reading()

    def _resolve(self, evidence: Evidence) -> Resolution:
        told = [(told or "").strip() for told in (evidence.response_model, evidence.request_model)]
        ids = [model_id for model_id in told if is_plausible_id(model_id)]
        server = parse_server(evidence)
        claim = self._variant(self._by_place(evidence, server, ids=ids), evidence.provider_name)
        readings = [self._read(model_id, claim.provider if claim else None) for model_id in ids]
        chosen = _chosen(readings)
        if claim is None:
            claim = self._by_name(evidence, server, reading=chosen, ids=ids)
        if claim is None and server is not None and server.is_private:
            claim = self._by_own_machine(server, chosen)
        if claim is None and not self._is_denied(evidence.provider_name, chosen):
            claim = self._by_model(chosen, ids=ids)
        elif claim is not None:
            chosen = _chosen([self._read(model_id, claim.provider) for model_id in ids])
        return self._answer(evidence, claim, reading=chosen, ids=ids)

    # Evidence, strongest first.

    def _by_place(self, evidence: Evidence, server: Server | None, *, ids: list[str]) -> Claim | None:
        """Who is named by the address or by the id itself; these beat the provider name in the record."""
        by_host, by_id = self._by_host(server, evidence.credential_kind), self._by_grammar(ids)
        if by_host and by_id and by_id.access == "provisioned" and by_id.provider is by_host.provider:
            return replace(by_host, access="provisioned", evidence=by_id.evidence)
        return by_host or by_id or self._by_prefix(ids)

    def _by_host(self, server: Server | None, credential: str | None) -> Claim | None:
        door = self._doors.at(server) if server else None
        if door is None or server is None:
            return None
        facts = door.facts
        evidence = f"host {server.host}{facts.path}"
        claim = Claim(door.provider, evidence, True, facts.access, facts.plan, door.label(server))
        return self._by_credential(claim, credential)

    def _by_credential(self, claim: Claim, credential: str | None) -> Claim:
        """Tell plan from metered use behind one door by the kind of key, where it was seen."""
        for provider in self._book.providers.values() if credential and claim.access is None else ():
            for kind in provider.credentials:
                if (kind.shared_with or provider.id) == claim.provider.id and (credential or "").startswith(
                    kind.prefix
                ):
                    evidence = f"{claim.evidence}, key {kind.prefix}"
                    return replace(claim, provider=provider, evidence=evidence, access=kind.access)
        return claim

    def _by_grammar(self, ids: list[str]) -> Claim | None:
        for model_id in reversed(ids):
            if (found := self._grammar_of(model_id)) is not None:
                return found
        return None

    def _find_grammar(self, model_id: str) -> Claim | None:
        for pattern, grammar, provider in self._grammars:
            if pattern.match(model_id):
                return Claim(provider, f"id form of {provider.id}", grammar.certain, grammar.access)
        return None

    def _variant(self, claim: Claim | None, name: str | None) -> Claim | None:
        """Let a record that names a variant of the found provider keep that name."""
        named = self._named(name)
        if claim is None or named is None or named.variant_of != claim.provider.id:
            return claim
        return replace(claim, provider=named)

    def _by_prefix(self, ids: list[str]) -> Claim | None:
        for model_id in reversed(ids):
            provider, rest = self._split_prefix(model_id)
            if provider is not None:
                return Claim(self._book.providers[provider], f"id prefix {_prefix(model_id, rest)}")
        return None

    def _by_weak_prefix(self, ids: list[str]) -> Claim | None:
        """A lab's name in front: its provider, where nothing else tells. Repositories have two segments,
        ids more.
        """
        for model_id in reversed(ids):
            first, found, rest = model_id.partition("/")
            provider = self._book.weak_prefixes.get(fold_name(first)) if found else None
            if provider is not None:
                facts = self._book.providers[provider]
                access = None if facts.access == "unknown" else facts.access
                return Claim(facts, f"id prefix {first}", False, access)
            if "/" in rest or not self._read(rest, None).open:
                provider = self._book.organisations.get(fold_name(first))
            if provider is not None:
                return Claim(self._book.providers[provider], f"id prefix {first}", False)
        return None

    def _by_name(
        self, evidence: Evidence, server: Server | None, *, reading: Reading, ids: list[str]
    ) -> Claim | None:
        """The provider name in the record, the id's lab prefix, then the emitter; each must be able to
        serve it.
        """
        certain = server is None
        named = self._named(evidence.provider_name)
        if named is not None and _can_serve(named, reading):
            return Claim(named, f"provider name {evidence.provider_name}", certain)
        prefixed = self._by_weak_prefix(ids)
        if prefixed is not None:
            return prefixed
        agent = self._emitters.get(fold_name(evidence.emitter or ""))
        if agent is not None and _can_serve(agent, reading):
            return Claim(agent, f"emitter {evidence.emitter}", False)
        return None

    def _named(self, name: str | None) -> Provider | None:
        found = self._book.names.get(fold_name(name or ""))
        return self._book.providers[found] if found else None

    def _is_denied(self, name: str | None, reading: Reading) -> bool:
        """Say whether the record names a provider that cannot have served this model: some door between
        them, which is not told.
        """
        named = self._named(name)
        return named is not None and not _can_serve(named, reading)

    def _by_own_machine(self, server: Server, reading: Reading) -> Claim | None:
        """A server of one's own: told by its port, else only open weights can run there."""
        for provider in self._book.providers.values():
            if server.port in provider.local_ports:
                return Claim(provider, f"own machine, port {server.port}", True, "local")
        if reading.model and reading.open and server.port not in _GATEWAY_PORTS:
            return Claim(self._book.providers["local"], "own machine or network", False, "local")
        return None

    def _by_model(self, reading: Reading, *, ids: list[str]) -> Claim | None:
        """A closed-weight lab with one first-party provider: the bare name is an inference. A name in front
        that is nobody's (`some-gateway/claude-opus-4-5`) says that somebody else is between.
        """
        lab = self._book.labs.get(reading.lab or "")
        if lab is None or reading.open or len(lab.providers) != 1:
            return None
        if any("/" in each and self._read(each, None).model == reading.model for each in ids):
            return None
        return Claim(
            self._book.providers[lab.providers[0]], "only its lab serves this model", False, "unknown"
        )

    # Reading and answering.

    def _split_prefix(self, model_id: str) -> tuple[str | None, str]:
        """Split off a first segment (`provider/...` or `provider:...`) that names a provider beyond doubt."""
        for mark in "/:":
            first, found, rest = model_id.partition(mark)
            if found and rest and (provider := self._book.prefixes.get(fold_name(first))):
                return provider, rest
        first, found, rest = model_id.partition(":")
        named = self._book.weak_prefixes | self._book.organisations if found and "/" not in first else {}
        provider = named.get(fold_name(first))
        if provider is not None and read_model(rest, self._book).model:
            return provider, rest  # `openai:gpt-5`: nobody writes an organisation so
        return None, model_id

    def _read(self, model_id: str, provider: Provider | None) -> Reading:
        """Read the model named by an id, through its provider's grammar and prefix where it has them."""
        return self._reading_of(model_id, provider.id if provider else None)

    def _find_reading(self, model_id: str, provider_id: str | None) -> Reading:
        provider = self._book.providers[provider_id] if provider_id else None
        for pattern, _, owner in self._grammars:
            if (provider is None or owner is provider) and (found := pattern.match(model_id)):
                return self._read_grammar(found, owner)
        prefixed, rest = self._split_prefix(model_id)
        named = provider or (self._book.providers[prefixed] if prefixed else None)
        return read_model(rest, self._book, provider=named)

    def _read_grammar(self, found: re.Match[str], owner: Provider) -> Reading:
        parts = {name: part for name, part in found.groupdict().items() if part}
        model, lab = parts.pop("model", ""), parts.pop("lab", None)
        reading = read_model(model, self._book, lab_hint=lab, provider=owner) if model else Reading()
        return replace(reading, modifiers=parts | reading.modifiers)

    def _answer(
        self, evidence: Evidence, claim: Claim | None, *, reading: Reading, ids: list[str]
    ) -> Resolution:
        provider = claim.provider if claim else None
        modifiers = (claim.modifiers if claim else {}) | reading.modifiers
        served = self._served(claim, reading=reading, ids=ids)
        return Resolution(
            provider=provider.id if provider else None,
            served_model=f"{provider.id}/{served}" if provider and served else served,
            model=reading.model,
            snapshot=reading.snapshot,
            resolution=_verdict(claim, reading),
            modifiers=tuple(sorted(modifiers.items())),
            access=self._access.classify(evidence, claim, modifiers=modifiers),
            evidence=claim.evidence if claim else "",
            candidates=tuple(self._book.labs[reading.lab].providers) if reading.lab and not claim else (),
        )

    def _served(self, claim: Claim | None, *, reading: Reading, ids: list[str]) -> str | None:
        """Give the id as served, without a prefix that only repeats the provider.

        The response's id, unless only the request's has what the provider's price list goes by (a Bedrock
        inference profile, say) and names the same model.
        """
        if not ids:
            return None
        readings = [self._read(model_id, claim.provider if claim else None) for model_id in ids]
        best = next((i for i, r in enumerate(readings) if r.model == reading.model), 0)
        if len(ids) == 2 and readings[0].model == readings[1].model and claim and self._by_grammar(ids[1:]):
            best = 1
        return self._without_own_prefix(ids[best], claim)

    def _without_own_prefix(self, model_id: str, claim: Claim | None) -> str:
        """Take off a first segment that only repeats the provider; at a known host it is part of the id."""
        prefixed, rest = self._split_prefix(model_id)
        if prefixed is None and claim and not claim.evidence.startswith("host "):
            first, _, rest = model_id.partition("/")
            names = self._book.weak_prefixes | self._book.organisations
            prefixed = names.get(fold_name(first)) if rest else None
        return rest if claim and prefixed == claim.provider.id else model_id


def _prefix(model_id: str, rest: str) -> str:
    return model_id[: len(model_id) - len(rest) - 1]


_GATEWAY_PORTS = frozenset({4000})
"""Ports where a gateway usually listens: what it forwards to is not told by its address."""


def _chosen(readings: list[Reading]) -> Reading:
    """Give the response's reading where it names a model, else the request's; modifiers of both."""
    known = next((r for r in readings if r.model), readings[0] if readings else Reading())
    modifiers: dict[str, str] = {}
    for reading in reversed(readings):
        modifiers |= reading.modifiers
    return replace(known, modifiers=modifiers)


def _can_serve(provider: Provider, reading: Reading) -> bool:
    """Say whether a provider that serves a closed list can have served this model (an unknown one: maybe)."""
    return (
        not provider.serves or not reading.model or any(re.search(r, reading.model) for r in provider.serves)
    )


def _verdict(claim: Claim | None, reading: Reading) -> str:
    if reading.model is None:
        return "unresolved"
    if claim is None:
        return "ambiguous"
    return "resolved" if claim.certain else "inferred"


def parse_server(evidence: Evidence) -> Server | None:
    """Parse where the call went from its URL, else its server address; None when neither is a usable
    address.
    """
    for text in (evidence.url, evidence.server_address):
        server = parse_address(text.strip()) if text else None
        if server is not None:
            return replace(server, port=server.port or evidence.server_port)
    return None
