"""Where a call goes when no route says so: the door its model, its key and the catalogue lead to.

In this order: a provider named in the model (`zai/glm-4.6`) is taken at its word; a key of one's own whose
kind is known leads to its provider; a model that one provider serves leads there; a key of an unknown kind
goes to whom its dialect belongs to and nowhere else. What stays ambiguous is refused with the ways to settle
it. A caller's key is never shown to anybody but its own provider.

Error: `Refused`.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import count
from typing import Final

from catalog.endpoints import Endpoint
from catalog.provider_facts import Provider
from proxy.catalogue import HOMES, Catalogue
from proxy.doors import Door, DoorSettings
from proxy.exchange import CredentialKind, Exchange, Target
from proxy.failure import FailureKind
from proxy.keys import KeyKind, access_by_headers, crossed, misplaced
from proxy.refusal import Refused
from proxy.secret import Secret
from proxy.vault import Entry, Vault, VaultError
from proxy.wire import WireFormat

__all__ = ["Chooser"]

_NUMBERS: Final = count()


@dataclass(frozen=True, slots=True)
class _Shown:
    """A key to open a door with, and what calls with it are."""

    kind: CredentialKind
    access: str | None = None
    key: Secret | None = None
    account: str | None = None
    kinds: tuple[KeyKind, ...] = ()


class Chooser:
    """Chooses by one version of the catalogue, the vault, and the operator's own doors."""

    def __init__(self, catalogue: Catalogue, vault: Vault, doors: DoorSettings) -> None:
        self.catalogue = catalogue
        self._vault = vault
        self._doors = doors
        self._number = next(_NUMBERS)

    def choose(self, exchange: Exchange) -> Target:
        """The target of a call that no route is for; the same one for the same head. Raises Refused."""
        known = self._known(exchange)
        target = known.get(exchange.model)
        if target is None:
            provider, model = self._provider(exchange, self._kinds(exchange))
            target = known[exchange.model] = self.target(exchange, provider, model)
        return target

    def _known(self, exchange: Exchange) -> dict[Hashable, Target]:
        """What was chosen for calls of the same head by this catalogue, these doors and these keys."""
        try:
            return exchange.head.targets((self._number, self._vault.version()))
        except VaultError:
            return {}

    # --- which provider ---

    def _provider(self, exchange: Exchange, kinds: tuple[KeyKind, ...]) -> tuple[Provider, str]:
        owner = kinds[0].provider if len({kind.provider for kind in kinds}) == 1 else None
        named, rest = self.catalogue.split(exchange.model)
        if named is not None:
            gateway = self.catalogue.gateway(owner) if owner not in (None, named.id) else None
            if gateway is not None and self._vault.find(named.id) is None:
                return gateway, exchange.model  # its own name for a model, lab first
            return named, rest
        served = self.catalogue.resolve(exchange.model)
        home = HOMES[exchange.wire_format] if exchange.caller.credential and not kinds else None
        holder = owner or home
        if holder and not _can_serve(self.catalogue.book.providers[holder], served.model):
            holder = None
        chosen = served.provider if served.provider and self._opens(served.provider, holder) else holder
        chosen = chosen or served.provider or self._only_key(served.candidates)
        if chosen is None:
            raise _ambiguous(exchange.model, served.candidates)
        return self.catalogue.book.providers[chosen], exchange.model

    def _opens(self, provider: str, holder: str | None) -> bool:
        return holder in (None, provider) or self._vault.find(provider) is not None

    def _only_key(self, candidates: tuple[str, ...]) -> str | None:
        held = [provider for provider in candidates if self._vault.find(provider) is not None]
        return held[0] if len(held) == 1 else None

    # --- which door, with which key ---

    def door(self, provider: str, access: str) -> Door | None:
        """The operator's own word about a door."""
        return self._doors.find(provider, access)

    def target(
        self,
        exchange: Exchange,
        provider: Provider,
        model: str,
        *,
        access: str | None = None,
        account: str | None = None,
        credential: CredentialKind | None = None,
    ) -> Target:
        """The door of a provider, with the key that opens it. Raises Refused."""
        known, key = self._known(exchange), (exchange.model, provider.id, model, access, account, credential)
        if (target := known.get(key)) is None:
            target = known[key] = self._target(exchange, provider, model, access, account, credential)
        return target

    def _target(
        self,
        exchange: Exchange,
        provider: Provider,
        model: str,
        access: str | None,
        account: str | None,
        credential: CredentialKind | None,
    ) -> Target:
        doors = self.catalogue.doors(provider.id, exchange.operation, access)
        if not doors:
            raise _no_door(provider, exchange, access)
        shown = self._shown(exchange, provider, doors, access=access, account=account, credential=credential)
        door = _door_for(doors, shown.access)
        if shown.kind is not CredentialKind.NONE and (
            why := misplaced(shown.kinds, provider.id, door.access)
            or crossed(shown.access or door.access, door.access)
        ):
            raise Refused(FailureKind.AUTH, f"refused before anything was sent: {why}", code="wrong_key")
        own = self.door(provider.id, door.access)
        return Target(
            facts=provider,
            endpoint=door,
            base_url=own.base_url if own and own.base_url else door.base_url,
            model=model,
            access=door.access if shown.access is None else shown.access,
            credential_kind=shown.kind,
            credential=shown.key,
            plan=door.plan,
            account=shown.account,
            key_prefix=shown.kinds[0].prefix if shown.kinds else None,
            is_local=door.access == "local" or door.auth == "none" or bool(own and own.local),
            variables=own.variables if own else {},
        )

    def _shown(
        self,
        exchange: Exchange,
        provider: Provider,
        doors: tuple[Endpoint, ...],
        *,
        access: str | None,
        account: str | None,
        credential: CredentialKind | None,
    ) -> _Shown:
        if doors[0].auth == "none":
            return _Shown(CredentialKind.NONE, doors[0].access)
        told = credential is CredentialKind.CALLER
        if credential is not CredentialKind.VAULT and (
            own := self._callers(exchange, provider, doors, told=told)
        ):
            return own
        entry = None if told else self._vault.find(provider.id, access, account)
        if entry is not None:
            if access is None and account is None and (other := self._other_access(entry)) is not None:
                raise _two_accesses(entry, other)
            return self._from_vault(entry)
        raise self._no_key(exchange, provider, access)

    def _other_access(self, entry: Entry) -> str | None:
        """Another access under which we hold a key of the same provider."""
        held = (each for each in self._vault.entries() if each.provider == entry.provider)
        return next((each.access for each in held if each.access != entry.access), None)

    def _callers(
        self, exchange: Exchange, provider: Provider, doors: tuple[Endpoint, ...], *, told: bool
    ) -> _Shown | None:
        """The caller's own key, if it is one of this provider's; `told`: a route says that it is."""
        key, kinds = exchange.caller.credential, self._kinds(exchange)
        if key is None:
            return None
        mine = [kind for kind in kinds if kind.provider == provider.id]
        if kinds and not mine:
            return None
        if not (kinds or told or self._is_home(exchange, provider, key)):
            return None
        access = access_by_headers(provider, exchange.headers)
        access = access or (mine[0].access if mine and mine[0].access != "unknown" else doors[0].access)
        return _Shown(CredentialKind.CALLER, access, key, kinds=kinds)

    def _is_home(self, exchange: Exchange, provider: Provider, key: Secret) -> bool:
        """Whether a key of unknown kind may be shown to a provider: to whom the dialect belongs to, and to
        one that the caller names, unless it is of the form that half the industry uses.
        """
        if HOMES[exchange.wire_format] == provider.id:
            return True
        named, _ = self.catalogue.split(exchange.model)
        ambiguous = key.reveal().startswith("sk-") or self._vault.find(provider.id) is not None
        return named is not None and named.id == provider.id and not ambiguous

    def _from_vault(self, entry: Entry) -> _Shown:
        try:
            key = self._vault.reveal(entry)
        except VaultError as error:
            raise Refused(FailureKind.AUTH, f"the key of {entry.provider}: {error}") from None
        return _Shown(
            CredentialKind.VAULT, entry.access, key, entry.account, self.catalogue.key_kinds.of(key)
        )

    def _kinds(self, exchange: Exchange) -> tuple[KeyKind, ...]:
        key = exchange.caller.credential
        return self.catalogue.key_kinds.of(key) if key is not None else ()

    def _no_key(self, exchange: Exchange, provider: Provider, access: str | None) -> Refused:
        kinds = self._kinds(exchange)
        if kinds and (why := misplaced(kinds, provider.id, access or provider.access)):
            return Refused(FailureKind.AUTH, f"refused before anything was sent: {why}", code="wrong_key")
        return Refused(
            FailureKind.AUTH,
            f"there is no key for {provider.id}: show one of your own, or keep one with "
            f"`tollbook keys provider add {provider.id}`",
            code="no_key",
        )


def _two_accesses(entry: Entry, other: str) -> Refused:
    """Which of the two a call is paid by is not for us to guess."""
    sentence = (
        f"there are keys of {entry.provider} under {entry.access} and under {other}: "
        "define a route that says which `access` a call takes"
    )
    return Refused(FailureKind.INVALID_REQUEST, sentence, code="access_ambiguous")


def _no_door(provider: Provider, exchange: Exchange, access: str | None) -> Refused:
    kind = f" under {access}" if access else ""
    what = "embeddings" if exchange.wire_format is WireFormat.OPENAI_EMBEDDINGS else "live calls"
    what = "counting tokens" if exchange.operation.counts_tokens else what
    sentence = f"the catalogue knows no endpoint of {provider.id}{kind} that a key opens for {what}"
    return Refused(FailureKind.INVALID_REQUEST, sentence, code="no_endpoint")


def _ambiguous(model: str, candidates: tuple[str, ...]) -> Refused:
    if not model:
        return Refused(FailureKind.INVALID_REQUEST, "the request names no model")
    ways = " or ".join(f"`{provider}/{model}`" for provider in candidates) or f"`PROVIDER/{model}`"
    known = f"{', '.join(candidates)} serve it" if candidates else "the catalogue does not know who serves it"
    sentence = f"`{model}` does not tell who shall serve it ({known}): ask for {ways}, or define a route"
    return Refused(FailureKind.INVALID_REQUEST, sentence, code="model_ambiguous")


def _can_serve(provider: Provider, model: str | None) -> bool:
    """Whether a provider that serves a closed list may serve this model (an unknown one: maybe)."""
    return model is None or not provider.serves or any(re.search(each, model) for each in provider.serves)


def _door_for(doors: tuple[Endpoint, ...], access: str | None) -> Endpoint:
    """The first door of that access; the preferred one where the key does not tell."""
    return next((door for door in doors if access in (None, door.access)), doors[0])
