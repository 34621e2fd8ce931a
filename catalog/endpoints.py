"""Where a live call goes: base URL, path and headers for (provider, access, wire format).

For what carries calls itself. Facts come from the `endpoints` of `providers/*.toml`, each with a source and
the day it was checked; what a file leaves out is the custom of the wire format, in the table below. An
endpoint says where the key is shown and never holds one. It never pretends to be another client: headers by
which a door knows the caller's program are relayed from the caller (`relayed`), not made up. A header that is
both asked for and relayed carries both values, with a comma between.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from urllib.parse import quote

from catalog.errors import EndpointError
from catalog.provider_book import Book, fold_name
from catalog.provider_facts import Access, Auth, EndpointFacts, Format, Provider

__all__ = ["Endpoint", "EndpointBook"]


@dataclass(frozen=True, slots=True)
class _Custom:
    """What a wire format's doors have in common, below a base URL that ends where SDKs end it."""

    path: str
    auth: Auth
    stream_path: str | None = None
    headers: tuple[tuple[str, str], ...] = ()


_ANTHROPIC_VERSION = ("anthropic-version", "2023-06-01")
_CUSTOMS: dict[Format, _Custom] = {
    "openai-chat": _Custom("/chat/completions", "bearer"),
    "openai-responses": _Custom("/responses", "bearer"),
    "openai-embeddings": _Custom("/embeddings", "bearer"),
    "anthropic-messages": _Custom("/messages", "x-api-key", headers=(_ANTHROPIC_VERSION,)),
    "gemini": _Custom(
        "/models/{model}:generateContent",
        "x-goog-api-key",
        "/models/{model}:streamGenerateContent?alt=sse",
    ),
    "gemini-code-assist": _Custom(
        "/v1internal:generateContent", "bearer", "/v1internal:streamGenerateContent?alt=sse"
    ),
    "vertex": _Custom(
        "/publishers/google/models/{model}:generateContent",
        "google-oauth",
        "/publishers/google/models/{model}:streamGenerateContent?alt=sse",
    ),
    "bedrock": _Custom("/model/{model}/converse", "aws-sigv4", "/model/{model}/converse-stream"),
    "mistral": _Custom("/chat/completions", "bearer"),
    "cohere": _Custom("/chat", "bearer"),
    "ollama": _Custom("/chat", "none"),
    "connect-rpc": _Custom("/", "bearer"),
}

_VARIABLE = re.compile(r"\{([a-z_]+)\}")
_VARIABLE_VALUE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_AUTH_HEADERS: dict[Auth, tuple[str, str]] = {
    "bearer": ("authorization", "Bearer {}"),
    "x-api-key": ("x-api-key", "{}"),
    "api-key": ("api-key", "{}"),
    "x-goog-api-key": ("x-goog-api-key", "{}"),
    "google-oauth": ("authorization", "Bearer {}"),
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One door for live calls: where it is, what is spoken there and what calls through it are.

    `auth` 'aws-sigv4' is signed per request, 'google-oauth' shows a short-lived access token.
    """

    provider: str
    access: Access
    plan: str | None
    format: Format
    base_url: str
    regions: tuple[tuple[str, str], ...]
    path: str
    stream_path: str
    auth: Auth
    headers: tuple[tuple[str, str], ...]
    relayed: tuple[str, ...]
    source: str
    checked: date

    @property
    def variables(self) -> tuple[str, ...]:
        """Names that the operator must give before a URL can be made, e.g. `region`."""
        found = _VARIABLE.findall(self.base_url + self.path + self.stream_path)
        return tuple(dict.fromkeys(name for name in found if name != "model"))

    def url(
        self, *, model: str = "", stream: bool = False, variables: Mapping[str, str] | None = None
    ) -> str:
        """Give the URL of one call; raises EndpointError for a variable or a model that makes none."""
        given = dict(variables or {})
        base_url = dict(self.regions).get(given.get("region", ""), self.base_url)
        text = base_url + (self.stream_path if stream else self.path)
        for name in _VARIABLE.findall(text):
            text = text.replace(f"{{{name}}}", _model(model) if name == "model" else self._told(name, given))
        return text

    def _told(self, name: str, given: Mapping[str, str]) -> str:
        value = given.get(name, "")
        if not _VARIABLE_VALUE.fullmatch(value):
            what = "is not set" if not value else "may hold letters, digits, '.', '-' and '_' only"
            raise EndpointError(f"{self.provider}: the endpoint's {name} {what}")
        return value

    def auth_headers(self, key: str) -> dict[str, str]:
        """Give the headers that show `key`; none where nothing is shown or each request is signed."""
        if self.auth not in _AUTH_HEADERS:
            return {}
        name, text = _AUTH_HEADERS[self.auth]
        return {name: text.format(key)}


def _model(model: str) -> str:
    """Write a model id as one segment of a path, from which no other path can be reached."""
    if model.strip(".") == "":
        raise EndpointError("the model id makes no path: name a model")
    return quote(model, safe=":@")


class EndpointBook:
    """Every endpoint of the reviewed facts, looked up by provider, access and format."""

    def __init__(self, book: Book) -> None:
        self._names = book.names
        self._providers = book.providers
        self._endpoints = {p.id: tuple(_endpoint(p, e) for e in p.endpoints) for p in book.providers.values()}

    def find(
        self, provider: str, *, access: Access | None = None, format: Format | None = None
    ) -> tuple[Endpoint, ...]:
        """Give a provider's endpoints (id or alias), the preferred one first; empty where none is known."""
        known = self._endpoints.get(self._names.get(fold_name(provider), ""), ())
        return tuple(e for e in known if access in (None, e.access) and format in (None, e.format))

    def key_kind(self, provider: str, key: str) -> str | None:
        """Give the longest known prefix of a key, which is all that may be told of it; None for no kind."""
        told = self._providers.get(self._names.get(fold_name(provider), ""))
        sharing = [
            c for p in self._providers.values() for c in p.credentials if told and c.shared_with == told.id
        ]
        kinds = [
            c.prefix for c in (*(told.credentials if told else ()), *sharing) if key.startswith(c.prefix)
        ]
        return max(kinds, key=len, default=None)


def _endpoint(provider: Provider, facts: EndpointFacts) -> Endpoint:
    custom = _CUSTOMS[facts.format]
    access = facts.access or provider.access
    path = facts.path or custom.path
    return Endpoint(
        provider=provider.id,
        access=access,
        plan=(facts.plan or provider.plan) if access in ("subscription", "credits") else None,
        format=facts.format,
        base_url=facts.base_url,
        regions=tuple(facts.regions.items()),
        path=path,
        stream_path=facts.stream_path or (path if facts.path else custom.stream_path or path),
        auth=facts.auth or custom.auth,
        headers=tuple((dict(custom.headers) | facts.headers).items()),
        relayed=tuple(facts.relayed),
        source=facts.source or provider.source,
        checked=facts.checked or provider.checked,
    )
