"""Which kind of key is this, and may it be shown at that door?

Kinds are told by reviewed prefixes; the value goes nowhere. Coding plans and metered use of one house often
take each other's keys and bill the wrong way in silence, so a key whose kind says one access is refused at a
door of the other, with the reason, before anything is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from catalog.provider_book import Book
from catalog.provider_facts import Provider
from proxy.caller import Headers
from proxy.secret import Secret

__all__ = ["KeyKind", "KeyKinds", "access_by_answer", "access_by_headers", "crossed", "misplaced"]


@dataclass(frozen=True, slots=True)
class KeyKind:
    """What a key's prefix says: whose it is, and what calls with it are ('unknown': it does not say)."""

    prefix: str
    provider: str
    access: str


class KeyKinds:
    """The reviewed kinds of keys, by prefix."""

    def __init__(self, book: Book) -> None:
        self._kinds: dict[str, tuple[KeyKind, ...]] = {}
        for provider in book.providers.values():
            for kind in provider.credentials:
                known = self._kinds.get(kind.prefix, ())
                self._kinds[kind.prefix] = (*known, KeyKind(kind.prefix, provider.id, kind.access))
        self._lengths = sorted({len(prefix) for prefix in self._kinds}, reverse=True)

    def of(self, key: Secret) -> tuple[KeyKind, ...]:
        """The kinds that share the longest known prefix of a key; none where no prefix is known."""
        value = key.reveal()
        for length in self._lengths:
            if (found := self._kinds.get(value[:length])) is not None:
                return found
        return ()


def misplaced(kinds: tuple[KeyKind, ...], provider: str, access: str) -> str | None:
    """Why a key of these kinds must not be shown at a door of this provider and access; None if it may."""
    if not kinds or any(kind.provider == provider and kind.access in (access, "unknown") for kind in kinds):
        return None
    kind = kinds[0]
    own = [each for each in kinds if each.provider == provider]
    if own:
        return (
            f"keys that begin with {kind.prefix} are for {_told(own[0].access)} of {provider}, "
            f"and this door is for its {_told(access)}"
        )
    owner = f"{kind.provider} ({_told(kind.access)})"
    return f"keys that begin with {kind.prefix} belong to {owner}, not to {provider}"


def crossed(told: str, door: str) -> str | None:
    """Why a key kept under one access must not open a door of another: a plan's and metered use are not the
    same. None if it may; other ways to pay at one door (credits, a free tier) are the operator's word.
    """
    if told == door or "unknown" in (told, door) or "subscription" not in (told, door):
        return None
    return f"the key is kept for {_told(told)}, and this door is for {_told(door)}"


def _told(access: str) -> str:
    return {"payg": "metered use", "subscription": "subscription use"}.get(access, access)


def access_by_headers(provider: Provider, headers: Headers) -> str | None:
    """The access that a request's own headers tell (a login's account header, say)."""
    for marker in provider.markers:
        if marker.side != "request":
            continue
        wanted = marker.header.encode()
        for name, value in headers:
            if name == wanted and _fits(value.decode("latin-1").lower(), marker.value):
                return marker.access
    return None


def access_by_answer(provider: Provider, headers: Mapping[str, str]) -> str | None:
    """The access that an answer tells: what was asked under a plan may have been served beyond it."""
    for marker in provider.markers:
        if marker.side != "response":
            continue
        for name, value in headers.items():
            if fnmatchcase(name, marker.header) and _fits(value.lower(), marker.value):
                return marker.access
    return None


def _fits(value: str, pattern: str | None) -> bool:
    return pattern is None or fnmatchcase(value, pattern)
