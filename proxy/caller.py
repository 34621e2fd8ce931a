"""Who calls: the program, its session, whose work it is, the key it shows, and the trace it is part of.

Read off headers (and the few body fields in which agents write their session). What is said with
`x-tollbook-*` headers stays here; everything else goes on to the provider as it came.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from proxy.secret import Secret

__all__ = ["PLACEHOLDERS", "Caller", "Headers", "read_caller", "session_in"]

Headers = list[tuple[bytes, bytes]]

OWN_PREFIX: Final = b"x-tollbook-"
PLACEHOLDERS: Final = frozenset({"", "tollbook", "none", "unused", "dummy", "placeholder", "not-needed"})
"""What people write where a program insists on a key: not a key."""
_KEY_HEADERS: Final = (b"x-api-key", b"x-goog-api-key", b"api-key")
_SAID: Final = {
    "team": "team",
    "project": "project",
    "environment": "environment",
    "agent": "agent",
    "user": "user_id",
    "account": "account_id",
}
_LABEL: Final = "label-"
_MAX_TEXT_BYTES: Final = 128
_MAX_LABELS: Final = 8
_MAX_LABEL_NAME: Final = 64
_TRACEPARENT: Final = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")
_CLAUDE_SESSION: Final = re.compile(r"_session_([0-9a-f-]{36})$|\"session_id\":\s*\"([0-9a-f-]{36})\"")


@dataclass(frozen=True, slots=True)
class Caller:
    """One caller, as the head of a call tells it. `said` are attribution dimensions as budgets know them;
    `credential` is the caller's own key, None where there is none or only a placeholder.
    """

    service: str | None = None
    session_id: str | None = None
    said: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    credential: Secret | None = None
    trace_id: bytes | None = None
    parent_span_id: bytes | None = None
    route: str | None = None


def read_caller(headers: Headers, query: bytes) -> Caller:
    """What headers and query say of who calls."""
    told = dict(reversed(headers))
    said, labels = _attribution(headers)
    parent = _TRACEPARENT.fullmatch(told.get(b"traceparent", b""))
    return Caller(
        service=_service(told.get(b"user-agent", b"")),
        session_id=next((text for name in _known()[1] if (text := _text(told.get(name, b"")))), None),
        said=said,
        labels=labels,
        credential=_credential(told, query),
        trace_id=bytes.fromhex(parent[1].decode()) if parent else None,
        parent_span_id=bytes.fromhex(parent[2].decode()) if parent else None,
        route=_text(told.get(OWN_PREFIX + b"route", b"")),
    )


def _credential(told: Mapping[bytes, bytes], query: bytes) -> Secret | None:
    for name in _KEY_HEADERS:
        if told.get(name):
            return _secret(told[name].decode("latin-1"))
    scheme, _, token = told.get(b"authorization", b"").decode("latin-1").partition(" ")
    if scheme.lower() == "bearer":
        return _secret(token)
    return _secret(dict(parse_qsl(query.decode("latin-1"))).get("key", "")) if b"key=" in query else None


def _secret(text: str) -> Secret | None:
    text = text.strip()
    return None if text.lower() in PLACEHOLDERS else Secret(text)


def without_key(query: bytes) -> bytes:
    """The query string without a key in it."""
    if b"key=" not in query:
        return query
    pairs = [(name, value) for name, value in parse_qsl(query.decode("latin-1"), True) if name != "key"]
    return urlencode(pairs).encode()


def _attribution(headers: Headers) -> tuple[dict[str, str], dict[str, str]]:
    said: dict[str, str] = {}
    labels: dict[str, str] = {}
    for name, value in headers:
        if name.startswith(OWN_PREFIX) and (text := _text(value)):
            key = name.removeprefix(OWN_PREFIX).decode("latin-1")
            if key in _SAID:
                said[_SAID[key]] = text
            elif key.startswith(_LABEL) and len(labels) < _MAX_LABELS:
                labels[key.removeprefix(_LABEL)[:_MAX_LABEL_NAME]] = text
    return said, labels


def _text(value: bytes) -> str | None:
    text = value.decode("utf-8", "replace").strip() if len(value) <= _MAX_TEXT_BYTES else ""
    return text if text and text.isprintable() else None


@cache
def _known() -> tuple[tuple[tuple[bytes, str], ...], tuple[bytes, ...]]:
    table = tomllib.loads((resources.files("proxy") / "agents.toml").read_text("utf-8"))
    agents = tuple((entry["user_agent"].lower().encode(), entry["service"]) for entry in table["agent"])
    return agents, tuple(name.encode() for name in table["session_headers"])


def _service(user_agent: bytes) -> str | None:
    folded = user_agent.lower()
    return next((service for prefix, service in _known()[0] if folded.startswith(prefix)), None)


def session_in(request: Mapping[str, Any]) -> str | None:
    """The session that an agent writes in the body."""
    metadata = request.get("metadata")
    user = metadata.get("user_id") if isinstance(metadata, dict) else None
    found = _CLAUDE_SESSION.search(user) if isinstance(user, str) and len(user) < 1024 else None
    return (found[1] or found[2]) if found else None
