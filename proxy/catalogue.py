"""What the proxy asks the catalogue: who serves a model, and which doors a provider has."""

from __future__ import annotations

from functools import lru_cache

from catalog.endpoints import Endpoint, EndpointBook
from catalog.provider_book import Book, fold_name
from catalog.provider_facts import Provider
from catalog.quote import Quotes
from catalog.resolve import Evidence, Resolution
from proxy.keys import KeyKinds
from proxy.wire import Operation, WireFormat

__all__ = ["HOMES", "Catalogue"]

HOMES = {
    WireFormat.OPENAI_CHAT: "openai",
    WireFormat.OPENAI_RESPONSES: "openai",
    WireFormat.OPENAI_EMBEDDINGS: "openai",
    WireFormat.ANTHROPIC_MESSAGES: "anthropic",
    WireFormat.GOOGLE_GENERATE: "google",
}
"""Whom a program believes to speak with, by the dialect it speaks."""

SPOKEN: dict[str, WireFormat] = {
    "openai-chat": WireFormat.OPENAI_CHAT,
    "mistral": WireFormat.OPENAI_CHAT,
    "openai-responses": WireFormat.OPENAI_RESPONSES,
    "openai-embeddings": WireFormat.OPENAI_EMBEDDINGS,
    "anthropic-messages": WireFormat.ANTHROPIC_MESSAGES,
    "gemini": WireFormat.GOOGLE_GENERATE,
    "vertex": WireFormat.GOOGLE_GENERATE,
}
"""The catalogue's formats that the proxy speaks."""

SIGNED = frozenset({"aws-sigv4", "google-oauth"})
"""Doors that want every request signed, or a token minted for an hour: a key does not open them."""


_REMEMBERED = 4096


class Catalogue:
    """One version of the catalogue, as the proxy looks at it. What it answered it remembers."""

    def __init__(self, quotes: Quotes) -> None:
        self.quotes = quotes
        self.book: Book = quotes.book
        self.endpoints = EndpointBook(quotes.book)
        self.key_kinds = KeyKinds(quotes.book)
        self._first_hand = {each for lab in self.book.labs.values() for each in lab.providers}
        self.provider = lru_cache(_REMEMBERED)(self._provider)
        self.resolve = lru_cache(_REMEMBERED)(self._resolve)
        self.doors = lru_cache(_REMEMBERED)(self._doors)

    def _provider(self, name: str) -> Provider | None:
        """A provider by id, alias or id prefix."""
        book, folded = self.book, fold_name(name)
        found = book.names.get(folded) or book.prefixes.get(folded) or book.weak_prefixes.get(folded)
        return book.providers[found] if found else None

    def split(self, model: str) -> tuple[Provider | None, str]:
        """`provider/model` as the provider named and the rest; no provider where none is named."""
        first, slash, rest = model.partition("/")
        provider = self.provider(first) if slash and rest else None
        return (provider, rest) if provider is not None else (None, model)

    def gateway(self, provider_id: str | None) -> Provider | None:
        """A provider that serves other houses' models under `lab/model`, metered; None if it is none."""
        provider = self.book.providers.get(provider_id or "")
        if provider is None or provider.plan is not None or provider_id in self._first_hand:
            return None
        return provider

    def _resolve(self, model: str) -> Resolution:
        """Who serves a bare model name."""
        return self.quotes.resolve(Evidence(request_model=model))

    def _doors(self, provider: str, operation: Operation, access: str | None = None) -> tuple[Endpoint, ...]:
        """A provider's doors that the proxy can speak through, those of the caller's own dialect first."""
        spoken = [
            endpoint
            for endpoint in self.endpoints.find(provider)
            if access in (None, endpoint.access) and _may_reach(endpoint, operation)
        ]
        return tuple(sorted(spoken, key=lambda door: SPOKEN[door.format] is not operation.wire_format))


def _may_reach(endpoint: Endpoint, operation: Operation) -> bool:
    """A conversation can be translated; embeddings and counts of tokens are what they are."""
    spoken = None if endpoint.auth in SIGNED else SPOKEN.get(endpoint.format)
    if spoken is None or spoken is operation.wire_format:
        return spoken is not None
    embeddings = WireFormat.OPENAI_EMBEDDINGS
    return not operation.counts_tokens and embeddings not in (spoken, operation.wire_format)
