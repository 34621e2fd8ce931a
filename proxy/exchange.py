"""One request of a caller and each attempt to have it served: the facts that the proxy's parts share."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from catalog.endpoints import Endpoint
from catalog.provider_facts import Provider
from ingest.call_report import new_span_id, new_trace_id
from proxy.caller import Caller, Headers
from proxy.connection import Answer
from proxy.failure import Failure
from proxy.secret import Secret
from proxy.usage import Told
from proxy.wire import Operation, Said, WireFormat

__all__ = ["Attempt", "CredentialKind", "Exchange", "Outcome", "Target"]


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


@dataclass(slots=True)
class Exchange:
    """A caller's request as it came: `body` the bytes, `request` the same parsed."""

    operation: Operation
    said: Said
    path: str
    query: bytes
    headers: Headers
    body: bytes
    request: dict[str, Any]
    caller: Caller
    started_ns: int = field(default_factory=time.time_ns)
    started_s: float = field(default_factory=time.perf_counter)
    trace_id: bytes = b""
    route: str | None = None

    def __post_init__(self) -> None:
        self.trace_id = self.caller.trace_id or new_trace_id()

    @property
    def wire_format(self) -> WireFormat:
        """The caller's dialect."""
        return self.operation.wire_format

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
    """One try at one target."""

    target: Target
    number: int = 1
    reservation_id: str | None = None
    fallback_from: str | None = None
    span_id: bytes = field(default_factory=new_span_id)
    started_ns: int = field(default_factory=time.time_ns)
    started_s: float = field(default_factory=time.perf_counter)
    access: str = ""
    slot: int | None = None
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    first_byte_s: float | None = None
    told: Told | None = None
    failure: Failure | None = None
    outcome: Outcome = Outcome.INTERRUPTED
    answer: Answer | None = None
    body: bytes = b""

    def __post_init__(self) -> None:
        self.access = self.target.access
