"""The shapes of the reviewed TOML: what a provider file and `labs.toml` may say.

Only shapes: what the files claim is checked against each other in `catalog.provider_book`. Nothing here
invents a default that would decide who served a call or who pays.
"""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from catalog.toml_source import Data

__all__ = [
    "Access",
    "Credential",
    "EndpointFacts",
    "Family",
    "Format",
    "Grammar",
    "Host",
    "Lab",
    "Labs",
    "Marker",
    "Provider",
    "Quota",
    "Statement",
]

Access = Literal["payg", "subscription", "credits", "overage", "provisioned", "free", "local", "unknown"]
Name = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[a-z0-9][a-z0-9.:_-]*$")]
Segment = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[a-z0-9@][a-z0-9._@-]*$")]


def _compiles(regex: str) -> str:
    try:
        re.compile(regex)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return regex


def _is_host(host: str) -> str:
    if "*" in ".".join(host.split(".")[-2:]) or host.count(".") < 1:
        raise ValueError("a host's last two labels are written out; * stands for what is before them")
    return host


def _is_path(path: str) -> str:
    if path and (not path.startswith("/") or path.endswith("/") or "?" in path):
        raise ValueError("a path starts with /, does not end with / and has no query")
    return path


def _is_rewrite(pair: list[str]) -> list[str]:
    _compiles(pair[0])
    return pair


Regex = Annotated[str, StringConstraints(min_length=1, max_length=400), AfterValidator(_compiles)]
Rewrite = Annotated[list[str], Field(min_length=2, max_length=2), AfterValidator(_is_rewrite)]
HostName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9*][a-z0-9.*-]*$"), AfterValidator(_is_host)]
UrlPath = Annotated[str, AfterValidator(_is_path)]


Format = Literal[
    "openai-chat",
    "openai-responses",
    "openai-embeddings",
    "anthropic-messages",
    "gemini",
    "gemini-code-assist",
    "vertex",
    "bedrock",
    "mistral",
    "cohere",
    "ollama",
    "connect-rpc",
]
"""Wire formats: what a request to a door looks like."""

WebAddress = Annotated[str, StringConstraints(pattern=r"^https?://[^\s]+$", max_length=200)]
HeaderName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9*_-]+$", max_length=100)]


class Host(Data):
    """One door of a provider: a host (`*.` in front: any subdomain; another `*`: a part of a label) and a
    path prefix (`*`: any one segment).
    """

    host: HostName
    path: UrlPath = ""
    access: Access | None = None
    plan: Name | None = None
    label: Name | None = None
    """Modifier that the part matched by the first `*` says, e.g. region."""
    formats: list[Format] = Field(default_factory=list)
    """What is spoken here, where it is not the provider's usual format."""


Auth = Literal["bearer", "x-api-key", "api-key", "x-goog-api-key", "aws-sigv4", "google-oauth", "none"]
"""How a key is shown: `Authorization: Bearer KEY`, a header of that name, or a signature made per request."""

HeaderText = Annotated[str, StringConstraints(min_length=1, max_length=200)]
BaseUrl = Annotated[
    str, StringConstraints(pattern=r"^https?://[^\s/?#]+(/[^\s?#]*[^\s/?#])?$", max_length=200)
]
EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Z0-9][A-Z0-9_]*$", max_length=64)]


class EndpointFacts(Data):
    """Where one wire format is spoken under one access: what a live call needs besides its body.

    `{name}` in a URL is told by the operator (region, project, resource); `{model}` in a path is the id as
    served. What is left out is the format's custom (`catalog.endpoints`).
    """

    format: Format
    base_url: BaseUrl
    regions: dict[Name, BaseUrl] = Field(default_factory=dict)
    """Base URLs of regions that have one of another form."""
    access: Access | None = None
    """What calls here are, where that is not what the provider usually is."""
    plan: Name | None = None
    path: Annotated[str, StringConstraints(pattern=r"^/[^\s?#]*$")] | None = None
    stream_path: Annotated[str, StringConstraints(pattern=r"^/[^\s#]*$")] | None = None
    """Where a streamed answer is asked for, where that is another path."""
    auth: Auth | None = None
    headers: dict[HeaderName, HeaderText] = Field(default_factory=dict)
    """Headers that the door asks of everybody."""
    relayed: list[HeaderName] = Field(default_factory=list)
    """Headers of the caller's own client that the door looks at: passed on untouched, never made up."""
    source: Annotated[str, StringConstraints(min_length=1)] | None = None
    checked: date | None = None


class Grammar(Data):
    """A spelling of model ids that only this provider mints.

    Named groups say what the parts mean: `model` is the rest to read on, `lab` an organisation, any other
    group is a modifier of that name.
    """

    regex: Regex
    certain: bool = True
    access: Access | None = None


class Statement(Data):
    """What an agent says about access: `auth_mode = Chatgpt`, compared without case, `_` and `-`."""

    key: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    value: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    access: Access
    plan: Name | None = None


class Marker(Data):
    """A header that tells the access: of the response (quota headers) or of the request (login kinds).

    `*` in name and value stands for anything; the first marker that fits decides.
    """

    side: Literal["request", "response"]
    header: HeaderName
    value: Annotated[str, StringConstraints(max_length=100)] | None = None
    access: Access
    plan: Name | None = None


class Credential(Data):
    """A kind of key, told by its prefix (the value is never seen here), and what it says about access."""

    prefix: Annotated[str, StringConstraints(min_length=3, max_length=32)]
    access: Access
    shared_with: Name | None = None
    """Provider whose door this key also opens: seen there, the call belongs to this provider."""


class Quota(Data):
    """How the headers of an answer tell what is left of one window of a plan."""

    used: HeaderName
    """Header with the part that is used."""
    scale: Literal["fraction", "percent"]
    window: Name | None = None
    """The plan's window; where it is left out, its length tells (`length_minutes`)."""
    length_minutes: HeaderName | None = None
    resets_at: HeaderName | None = None
    """Header with the instant of the reset, Unix time in seconds or milliseconds."""
    resets_after: HeaderName | None = None
    """Header with the seconds until the reset."""

    @model_validator(mode="after")
    def _names_its_window(self) -> Quota:
        if (self.window is None) == (self.length_minutes is None):
            raise ValueError("needs either window or length_minutes")
        return self


class Provider(Data):
    """One provider as models.dev names it."""

    id: Name
    name: Annotated[str, StringConstraints(min_length=1)]
    source: Annotated[str, StringConstraints(min_length=1)]
    checked: date
    aliases: list[Name] = Field(default_factory=list)
    """Other names in telemetry (`gen_ai.provider.name`, `gen_ai.system`)."""
    prefixes: list[Segment] = Field(default_factory=list)
    """First segments of a model id that name this provider, besides its id and aliases."""
    weak_prefixes: list[Segment] = Field(default_factory=list)
    """Names that gateways also write for the lab: they name this provider only where nothing else does."""
    organisations: list[Segment] = Field(default_factory=list)
    """Names that are organisations in repository ids (`openai/gpt-oss-20b`): as prefixes they name no
    provider.
    """
    variant_of: Name | None = None
    """Provider of which this is a spelling of its own: a record that names this one is not overruled by
    that one.
    """
    access: Access = "unknown"
    """What a call here is when nothing else tells; `unknown` where a plan and metered use share the door."""
    plan: Name | None = None
    plans: list[Name] = Field(default_factory=list)
    """Plans behind the same doors as metered use; only a statement, a key or a header tells them apart."""
    statements: list[Statement] = Field(default_factory=list)
    markers: list[Marker] = Field(default_factory=list)
    formats: list[Format] = Field(default_factory=list)
    """What its doors speak."""
    key_env: list[EnvName] = Field(default_factory=list)
    """Environment variables in which its users keep the key, the usual one first."""
    endpoints: list[EndpointFacts] = Field(default_factory=list)
    """Where live calls go, per access and format, the preferred one first."""
    chat_lacks: list[Literal["stream_options", "reasoning_content", "store"]] = Field(default_factory=list)
    """Fields of chat requests that its door refuses: nothing that is added or translated holds them."""
    models_endpoint: WebAddress | None = None
    """Where it lists the models it serves."""
    usage_endpoint: WebAddress | None = None
    """Where it tells how much of a plan is used."""
    quota_headers: list[HeaderName] = Field(default_factory=list)
    """Response headers that tell how much of a plan or limit is used."""
    quotas: list[Quota] = Field(default_factory=list)
    """How they are read."""
    hosts: list[Host] = Field(default_factory=list)
    local_ports: list[Annotated[int, Field(ge=1, le=65535)]] = Field(default_factory=list)
    """Ports where this server listens on one's own machine or network."""
    grammars: list[Grammar] = Field(default_factory=list)
    credentials: list[Credential] = Field(default_factory=list)
    emitters: list[Name] = Field(default_factory=list)
    """Agents that call this provider unless something says otherwise."""
    dual_emitters: list[Name] = Field(default_factory=list)
    """Agents that reach it under a plan or metered with nothing to tell the two apart."""
    serves: list[Regex] = Field(default_factory=list)
    """Canonical ids it can serve, where that is a closed list: guards against SDK-derived provider names."""
    names_authors: bool = False
    """The segment before a model's name is always who made or copied it, never a route of its own."""
    rewrites: list[Rewrite] = Field(default_factory=list)
    """Its own spellings of model names: [regex, replacement]."""
    price_as: list[Name] = Field(default_factory=list)
    """Price providers (ids of the price source): the first is its own list, the others are estimates."""


class Family(Data):
    """Names of a lab's models, in lower case and free of decorations."""

    regex: Regex
    open: bool
    """Open weights or served by several providers: the bare name does not tell who served it."""


class Lab(Data):
    """A lab: who makes models, and the provider that serves them first-hand."""

    id: Name
    providers: list[Name] = Field(default_factory=list)
    """First-party providers; several: the bare name of a closed model is ambiguous between them."""
    orgs: list[Segment] = Field(default_factory=list)
    """Organisation segments and prefixes that mean this lab (Hugging Face, OpenRouter, Bedrock)."""
    keeps_latest: bool = False
    """`-latest` is part of the names it sells (a moving alias with prices of its own)."""
    families: list[Family] = Field(min_length=1)
    rewrites: list[Rewrite] = Field(default_factory=list)
    """Spellings -> the canonical one, applied in order: [regex, replacement]."""
    snapshot: Regex | None = None
    """What of a name is a snapshot (group `snapshot`), besides plain dates; "" in the name remains."""


class Labs(Data):
    source: str
    checked: date
    decorations: list[Rewrite]
    """Suffixes that are no part of a name: [regex with group `value`, modifier]; modifier "" drops it."""
    snapshot: Regex
    mirrors: list[Segment] = Field(default_factory=list)
    """Organisations that publish other labs' weights under the labs' own names, at most quantized."""
    lab: list[Lab]
