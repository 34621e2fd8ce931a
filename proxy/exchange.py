"""One request of a caller and each attempt to have it served: the facts that the proxy's parts share.

Nothing here shows headers, bodies or URLs when it is printed: they hold keys and content.
"""

from __future__ import annotations

import re
import time
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from catalog.endpoints import Endpoint
from catalog.provider_facts import Provider
from ingest.call_report import new_span_id, new_trace_id
from proxy.caller import Caller, Headers, read_caller, session_in
from proxy.connection import Answer
from proxy.failure import Failure
from proxy.secret import Secret
from proxy.usage import Told
from proxy.wire import Operation, Said, WireFormat

__all__ = ["Attempt", "CallHead", "CredentialKind", "Exchange", "Outcome", "Target", "Way"]

MAX_WAYS = 64
"""Of a head so much is remembered: a program asks for a few models."""


class CredentialKind(StrEnum):
    """Whose key opens the provider's door."""

    CALLER = "caller"
    VAULT = "vault"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Target:
    """Where a call may go: a door, the key that opens it, and the model as the provider knows it. `facts` is
    what the catalogue knows of the provider.
    """

    facts: Provider
    endpoint: Endpoint
    base_url: str
    model: str
    access: str
    credential_kind: CredentialKind
    credential: Secret | None = None
    plan: str | None = None
    account: str | None = None
    key_prefix: str | None = None
    is_local: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def provider(self) -> str:
        """The provider's id."""
        return self.endpoint.provider

    @property
    def name(self) -> str:
        """For people: `provider/model (access)`, with the account where one is named."""
        whose = f", {self.account}" if self.account else ""
        return f"{self.provider}/{self.model} ({self.access}{whose})"


@dataclass(slots=True, eq=False)
class Way:
    """What all calls of one head to one target have in common, filled in by whom it concerns: where they go
    and with which headers (`outgoing`), what the ledger is told of each (`report`), our own headers on their
    answers (`carrier`).
    """

    target: Target
    url: str = field(default="", repr=False)
    headers: tuple[tuple[bytes, bytes], ...] = field(default=(), repr=False)
    attributes: bytes = field(default=b"", repr=False)
    wanted: re.Pattern[str] | None = None
    extra: Headers | None = field(default=None, repr=False)


class CallHead:
    """What comes before a call's body. A program sends the same head with every call, so whoever keeps one
    for the next call keeps what was worked out from it: the caller, the targets, the ways to them. `version`
    is that of the chooser who chose them; `is_plain`: its body was found to be what it must be.
    """

    __slots__ = (
        "_targets",
        "_ways",
        "caller",
        "headers",
        "is_plain",
        "operation",
        "path",
        "query",
        "version",
    )

    def __init__(self, operation: Operation, path: str, query: bytes, headers: Headers) -> None:
        self.operation, self.path, self.query, self.headers = operation, path, query, headers
        self.caller: Caller = read_caller(headers, query)
        self.is_plain = False
        self.version: object = None
        self._targets: dict[Hashable, Target] = {}
        self._ways: dict[tuple[int, bool], Way] = {}

    def targets(self, version: object) -> dict[Hashable, Target]:
        """The targets that this version of the chooser has chosen."""
        if self.version != version or len(self._targets) > MAX_WAYS:
            self.version, self._targets, self._ways = version, {}, {}
        return self._targets

    def way(self, target: Target, *, streaming: bool) -> Way:
        """The way to a target, as far as it is known."""
        way = self._ways.get((id(target), streaming))
        if way is None or way.target is not target:
            if len(self._ways) > MAX_WAYS:
                self._ways.clear()
            way = self._ways[id(target), streaming] = Way(target)
        return way


@dataclass(slots=True)
class Exchange:
    """A caller's request as it came: `body` the bytes, `request` the same parsed."""

    head: CallHead
    said: Said
    body: bytes = field(repr=False)
    request: dict[str, Any] = field(repr=False)
    session_id: str | None = None
    trace_id: bytes = b""
    route: str | None = None

    def __post_init__(self) -> None:
        self.session_id = self.caller.session_id or session_in(self.request)
        self.trace_id = self.caller.trace_id or new_trace_id()

    @property
    def operation(self) -> Operation:
        """What is asked for."""
        return self.head.operation

    @property
    def headers(self) -> Headers:
        """The caller's headers, names in lower case."""
        return self.head.headers

    @property
    def caller(self) -> Caller:
        """Who calls, as the head tells it."""
        return self.head.caller

    @property
    def wire_format(self) -> WireFormat:
        """The caller's dialect."""
        return self.head.operation.wire_format

    @property
    def model(self) -> str:
        """The model as the caller wrote it; empty where none is named."""
        return self.said.model or ""


class Outcome(StrEnum):
    """How an attempt ended, as the ledger's evidence says it."""

    ANSWERED = "answered"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    UNSENT = "unsent"
    TIMED_OUT = "timed_out"
    BROKEN = "broken"
    CLIENT_LEFT = "client_left"
    STOPPED = "stopped"
    INTERRUPTED = "interrupted"


@dataclass(slots=True)
class Attempt:
    """One try at one target. `begun` is the record of it as far as it stood when it went out."""

    target: Target
    way: Way
    number: int = 1
    reservation_id: str | None = None
    fallback_from: str | None = None
    span_id: bytes = field(default_factory=new_span_id)
    started_ns: int = field(default_factory=time.time_ns)
    started_s: float = field(default_factory=time.perf_counter)
    access: str = ""
    slot: int | None = None
    begun: bytes = field(default=b"", repr=False)
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    first_byte_s: float | None = None
    told: Told | None = None
    failure: Failure | None = None
    outcome: Outcome = Outcome.INTERRUPTED
    answer: Answer | None = None
    body: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        self.access = self.target.access
