"""For every provider and access what arrives is at the right path, with the right key and body.

A real house, with every door of the catalogue led to loopback and a key for each in the vault. What must
arrive is read off the catalogue's own files here, as TOML, by the customs of each format written out below.
That the addresses themselves are the providers' is held in `test_catalog_endpoints.py`, and against a peer's
list in `test_proxy_cases.py`.
"""

from __future__ import annotations

import http.client
import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from proxy.secret import Secret
from proxy.vault import Entry, Vault
from tests.house import House
from tests.model_server import Arrived, ModelServer, model_server

PROVIDERS = Path(__file__).parent.parent / "catalog" / "providers"
SIGNED = ("aws-sigv4", "google-oauth")
"""Doors that no key opens: the proxy does not speak there."""
TOLD = {"region": "us-central1"} | dict.fromkeys(
    ("project", "resource", "account", "gateway", "product", "host"), "acme"
)
# Format: where its callers ask, what stands below the base URL, and where the key is shown.
CHAT = {"messages": [{"role": "user", "content": "say hello"}]}
CUSTOMS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "openai-chat": ("/v1/chat/completions", CHAT, "/chat/completions", "bearer"),
    "mistral": ("/v1/chat/completions", CHAT, "/chat/completions", "bearer"),
    "openai-responses": ("/v1/responses", {"input": "say hello"}, "/responses", "bearer"),
    "openai-embeddings": ("/v1/embeddings", {"input": "say hello"}, "/embeddings", "bearer"),
    "anthropic-messages": ("/v1/messages", {**CHAT, "max_tokens": 9}, "/messages", "x-api-key"),
    "gemini": (
        "/v1beta/models/{model}:generateContent",
        {"contents": [{"role": "user", "parts": [{"text": "say hello"}]}]},
        "/models/{model}:generateContent",
        "x-goog-api-key",
    ),
    "vertex": (
        "/v1beta/models/{model}:generateContent",
        {"contents": [{"role": "user", "parts": [{"text": "say hello"}]}]},
        "/publishers/google/models/{model}:generateContent",
        "google-oauth",
    ),
}


@dataclass(frozen=True)
class Door:
    """One line of the table: a provider's first door for an access and a format."""

    provider: str
    access: str
    format: str
    facts: dict[str, Any]

    @property
    def auth(self) -> str:
        return str(self.facts.get("auth", CUSTOMS[self.format][3]))

    @property
    def key(self) -> str:
        """A key of the provider's own kind for this access, where it has one."""
        kinds = facts_of(self.provider).get("credentials", ())
        fitting = [
            kind["prefix"] for kind in kinds if kind.get("access", "unknown") in (self.access, "unknown")
        ]
        return (fitting[0] if fitting else f"key-of-{self.provider}-") + "0" * 40

    def headers(self) -> dict[str, str]:
        """What must be among the headers that arrive."""
        shown = {
            "bearer": {"authorization": f"Bearer {self.key}"},
            "none": {},
        }.get(self.auth, {self.auth: self.key})
        version = {"anthropic-version": "2023-06-01"} if self.format == "anthropic-messages" else {}
        return {**version, **shown, **self.facts.get("headers", {})}


@cache
def all_facts() -> dict[str, dict[str, Any]]:
    files = (tomllib.loads(file.read_text()) for file in PROVIDERS.glob("*.toml"))
    return {facts["id"]: facts for facts in files}


def facts_of(provider: str) -> dict[str, Any]:
    return all_facts()[provider]


def table() -> list[Door]:
    doors: dict[tuple[str, str, str], Door] = {}
    for provider, facts in all_facts().items():
        for endpoint in facts.get("endpoints", ()):
            door = Door(provider, endpoint.get("access", facts["access"]), endpoint["format"], endpoint)
            if door.format in CUSTOMS and door.auth not in SIGNED:
                doors.setdefault((door.provider, door.access, door.format), door)
    return list(doors.values())


DOORS = table()
PAIRS = sorted({(door.provider, door.access) for door in DOORS})


def route_name(provider: str, access: str, credential: str) -> str:
    return f"{credential}.{provider}.{access}"


def routes_file(url: str) -> str:
    """Every door on loopback, and two routes to each provider and access: with our key and the caller's."""
    parts = []
    for provider, access in PAIRS:
        told = ", ".join(f'{name} = "{value}"' for name, value in TOLD.items())
        parts.append(f'[[door]]\nprovider = "{provider}"\naccess = "{access}"\nlocal = true')
        parts.append(f'base_url = "{url}/{provider}/{access}"\nvariables = {{ {told} }}')
        for credential in ("vault", "caller"):
            name = route_name(provider, access, credential)
            parts.append(f'[[route]]\nname = "{name}"\nmodels = ["{name}"]\n[[route.target]]')
            parts.append(f'provider = "{provider}"\naccess = "{access}"\nmodel = "model-1"')
            parts.append("" if any_open(provider, access) else f'credential = "{credential}"')
    return "\n".join(parts)


def any_open(provider: str, access: str) -> bool:
    """Whether a door takes no key at all."""
    return any(door.auth == "none" for door in DOORS if (door.provider, door.access) == (provider, access))


class Street:
    """A running house with all those doors, and a connection to it."""

    def __init__(self, house: House, models: ModelServer) -> None:
        self.models = models
        self._connection = http.client.HTTPConnection(urlsplit(house.http).netloc, timeout=60)

    def post(self, path: str, body: dict[str, Any], **headers: str) -> tuple[int, bytes]:
        told = {"content-type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        self._connection.request("POST", path, json.dumps(body).encode(), told)
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    def close(self) -> None:
        self._connection.close()

    def arrived(self, before: int) -> list[Arrived]:
        return self.models.arrived[before:]


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Street]:
    data_dir = tmp_path_factory.mktemp("doors") / "data"
    data_dir.mkdir()
    vault = Vault(data_dir / "keys")
    for provider, access in PAIRS:
        key = next(door.key for door in DOORS if (door.provider, door.access) == (provider, access))
        vault.add(Entry(provider, access), Secret(key))
    with model_server() as models:
        (data_dir / "routes.toml").write_text(routes_file(models.url))
        with House(data_dir) as house:
            house.wait_ready()
            street = Street(house, models)
            yield street
            street.close()


def test_the_table_is_the_whole_catalogue() -> None:
    spoken = {
        (provider, endpoint.get("access", facts["access"]))
        for provider, facts in all_facts().items()
        for endpoint in facts.get("endpoints", ())
        if endpoint["format"] in CUSTOMS and endpoint.get("auth") not in SIGNED
    }
    assert {(provider, access) for provider, access in PAIRS} <= spoken and len(PAIRS) > 150


@pytest.mark.parametrize("door", DOORS, ids=lambda door: f"{door.provider}.{door.access}.{door.format}")
def test_what_arrives_is_right(street: Street, door: Door) -> None:
    path, body, below, _ = CUSTOMS[door.format]
    name = route_name(door.provider, door.access, "vault")
    before = len(street.models.arrived)
    asked = {**body, **({} if "{model}" in path else {"model": name})}
    answer = street.post(
        path.format(model=name), asked, authorization="Bearer tollbook", x_tollbook_route=name
    )
    [came] = street.arrived(before) or [None]
    assert came is not None, answer
    below = str(door.facts.get("path", below)).replace("{model}", "model-1")
    for variable, value in TOLD.items():
        below = below.replace(f"{{{variable}}}", value)
    bare, _, query = below.partition("?")
    assert came.path == f"/{door.provider}/{door.access}{bare}"
    assert query in came.query
    assert {name: came.headers.get(name) for name in door.headers()} == door.headers()
    shown = [name for name, value in came.headers.items() if door.key in value]
    assert len(shown) == (door.auth != "none"), "the key is shown in one place, and to whom asks for one"
    assert "tollbook" not in came.headers.get("authorization", "")
    assert came.json() == {**body, **({} if "{model}" in path else {"model": "model-1"})}


def kinds() -> list[tuple[str, str, str]]:
    """Every kind of key: its prefix, whose it is, and what calls with it are."""
    return [
        (kind["prefix"], provider, kind.get("access", "unknown"))
        for provider, facts in all_facts().items()
        for kind in facts.get("credentials", ())
    ]


def misplaced() -> list[tuple[str, str, str]]:
    """Keys at doors where they do not belong: another access of the house, or a sister house."""
    found = set()
    for prefix, owner, _ in kinds():
        takers = {(provider, access) for other, provider, access in kinds() if other == prefix}
        for provider, access in PAIRS:
            sister = provider.partition("-")[0] == owner.partition("-")[0]
            fits = takers & {(provider, access), (provider, "unknown")}
            if sister and not fits and not any_open(provider, access):
                found.add((prefix, provider, access))
    return sorted(found)


@pytest.mark.parametrize(("prefix", "provider", "access"), misplaced())
def test_a_key_is_not_shown_at_a_door_of_another_kind(
    street: Street, prefix: str, provider: str, access: str
) -> None:
    name = route_name(provider, access, "caller")
    before, key = len(street.models.arrived), prefix + "0" * 40
    path = "/v1/messages"
    status, answer = street.post(path, {**CHAT, "max_tokens": 9, "model": name}, x_api_key=key)
    assert not street.arrived(before), "nothing was sent"
    assert status in (400, 401) and b"refused before anything was sent" in answer, answer
    assert key.encode() not in answer
