"""`GET /v1/models`: what can be asked for here, by names that mean one thing each.

Names of routes as they are; models of every provider that we hold a key for, or whose key the caller shows,
as `provider/model`. The providers' own lists are asked for and remembered for a while; one that cannot be had
is left out and named in a header, never guessed. The answer reads as OpenAI's and as Anthropic's list.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from catalog.endpoints import Endpoint
from proxy.caller import Caller, Headers
from proxy.choice import Chooser
from proxy.connection import UpstreamError
from proxy.json_values import loads
from proxy.relay import inflated
from proxy.routes import RouteTable, aliases
from proxy.secret import Secret
from proxy.upstream import Upstream
from proxy.vault import Vault, VaultError

__all__ = ["ModelLists", "qualified"]

FRESH_S: Final = 600.0
FAILED_S: Final = 30.0
WAIT_S: Final = 8.0
MAX_LIST_BYTES: Final = 8 << 20
MAX_MODELS: Final = 5000
MAX_REMEMBERED: Final = 1000
"""Lists of providers, each as a key opens it."""


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a provider lists its models, and the key that opens that."""

    door: Endpoint
    url: str
    key: Secret | None
    local: bool


@dataclass(frozen=True, slots=True)
class _Listed:
    until_s: float
    ids: tuple[str, ...] | None


class ModelLists:
    """The lists of all providers, as last told."""

    def __init__(self, upstream: Upstream, vault: Vault) -> None:
        self._upstream = upstream
        self._vault = vault
        self._known: dict[tuple[str, str, int], _Listed] = {}

    async def answer(self, chooser: Chooser, table: RouteTable, caller: Caller) -> tuple[Headers, bytes]:
        """Headers and body of the list for one caller."""
        sources = self._sources(chooser, caller)
        found = await asyncio.gather(*(self._ids(source) for source in sources))
        names: dict[str, str] = dict.fromkeys(aliases(table), "tollbook")
        missing = []
        for source, ids in zip(sources, found, strict=True):
            provider = source.door.provider
            if ids is None:
                missing.append(provider)
            names |= {qualified(provider, model): provider for model in ids or ()}
        headers = [(b"content-type", b"application/json")]
        if missing:
            headers.append((b"tollbook-not-listed", ", ".join(sorted(set(missing))).encode()))
        return headers, _document(names)

    def _sources(self, chooser: Chooser, caller: Caller) -> list[_Source]:
        """One for every provider with a key: ours, or the caller's."""
        keys: dict[str, tuple[Secret, str]] = {}
        for entry in self._vault.entries():
            try:
                keys.setdefault(entry.provider, (self._vault.reveal(entry), entry.access))
            except VaultError:
                continue
        if caller.credential is not None:
            for kind in chooser.catalogue.key_kinds.of(caller.credential):
                keys[kind.provider] = (caller.credential, kind.access)
        made = (self._source(chooser, provider, *told) for provider, told in keys.items())
        return [source for source in made if source is not None]

    def _source(self, chooser: Chooser, provider: str, key: Secret, access: str) -> _Source | None:
        doors = chooser.catalogue.endpoints.find(provider)
        door = next((each for each in doors if each.access == access), doors[0] if doors else None)
        if door is None:
            return None
        own = chooser.door(provider, door.access)
        listed = chooser.catalogue.book.providers[provider].models_endpoint
        url = f"{own.base_url}/models" if own is not None and own.base_url else listed
        return _Source(door, url, key, bool(own and own.local)) if url else None

    async def _ids(self, source: _Source) -> tuple[str, ...] | None:
        """The ids that a provider lists; None where it does not answer."""
        place = (source.door.provider, source.url, hash(source.key))
        known = self._known.get(place)
        if known is None or known.until_s < time.monotonic():
            ids = await self._asked(source)
            fresh = FRESH_S if ids is not None else FAILED_S
            if len(self._known) >= MAX_REMEMBERED:
                self._known.clear()
            known = self._known[place] = _Listed(time.monotonic() + fresh, ids)
        return known.ids

    async def _asked(self, source: _Source) -> tuple[str, ...] | None:
        shown = source.door.auth_headers(source.key.reveal()) if source.key is not None else {}
        asked = {**dict(source.door.headers), **shown, "accept-encoding": "identity"}
        headers = [(name.encode(), value.encode()) for name, value in asked.items()]
        try:
            async with asyncio.timeout(WAIT_S):
                answer = await self._upstream.send("GET", source.url, headers, b"", local=source.local)
                try:
                    body = await answer.whole(MAX_LIST_BYTES)
                finally:
                    answer.close()
        except (TimeoutError, UpstreamError):
            return None
        if answer.status != 200 or (plain := inflated(body, answer)) is None:
            return None
        return tuple(_listed(loads(plain)))[:MAX_MODELS]


def qualified(provider: str, model: str) -> str:
    """The name under which a model is asked for here: the provider, then its very own id for the model, also
    where that begins with the provider's name.
    """
    return f"{provider}/{model}"


def _listed(document: Any) -> Iterable[str]:
    """The ids in a list of OpenAI's, Anthropic's, Google's or Ollama's form."""
    told = document if isinstance(document, Mapping) else {}
    for model in next((told[key] for key in ("data", "models") if isinstance(told.get(key), list)), []):
        name = (model.get("id") or model.get("name")) if isinstance(model, Mapping) else None
        if isinstance(name, str):
            yield name.removeprefix("models/")


def _document(names: Mapping[str, str]) -> bytes:
    data = [
        {
            "id": name,
            "object": "model",
            "type": "model",
            "display_name": name,
            "created": 0,
            "created_at": "1970-01-01T00:00:00Z",
            "owned_by": owner,
        }
        for name, owner in names.items()
    ]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {}
    return orjson.dumps({"object": "list", "data": data, "has_more": False, **ends})
