"""The reviewed facts about providers and labs: TOML beside the code, validated when loaded.

A new provider is one file in `providers/`; a new model family is a few lines in `labs.toml`. Facts that are
not there are unknown: nothing in this module invents a default that would decide who served a call or who
pays. Every file names its source and the day it was checked. An error names the file, the key and what is
allowed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints

from catalog.errors import ProviderDataError
from catalog.toml_source import Data, TomlText, read_toml

__all__ = [
    "Access",
    "Book",
    "Family",
    "Grammar",
    "Host",
    "Lab",
    "Marker",
    "Provider",
    "Statement",
    "fold_name",
    "load_book",
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


def _is_path(path: str) -> str:
    if path and (not path.startswith("/") or path.endswith("/") or "?" in path):
        raise ValueError("a path starts with /, does not end with / and has no query")
    return path


def _is_rewrite(pair: list[str]) -> list[str]:
    _compiles(pair[0])
    return pair


Regex = Annotated[str, StringConstraints(min_length=1, max_length=400), AfterValidator(_compiles)]
Rewrite = Annotated[list[str], Field(min_length=2, max_length=2), AfterValidator(_is_rewrite)]
UrlPath = Annotated[str, AfterValidator(_is_path)]


Format = Literal[
    "openai-chat",
    "openai-responses",
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
HeaderName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9*-]+$", max_length=100)]


class Host(Data):
    """One door of a provider: a host (`*.` in front: any subdomain) and a path prefix (`*`: any one
    segment).
    """

    host: Annotated[str, StringConstraints(pattern=r"^(\*\.)?[a-z0-9][a-z0-9.-]*$")]
    path: UrlPath = ""
    access: Access | None = None
    plan: Name | None = None
    label: Name | None = None
    """Modifier that the part matched by `*.` says, e.g. region."""
    formats: list[Format] = Field(default_factory=list)
    """What is spoken here, where it is not the provider's usual format."""


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
    models_endpoint: WebAddress | None = None
    """Where it lists the models it serves."""
    usage_endpoint: WebAddress | None = None
    """Where it tells how much of a plan is used."""
    quota_headers: list[HeaderName] = Field(default_factory=list)
    """Response headers that tell how much of a plan or limit is used."""
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
    lab: list[Lab]


@dataclass(frozen=True, slots=True)
class Book:
    """All reviewed facts, checked against each other."""

    providers: dict[str, Provider]
    names: dict[str, str]
    """Folded id or alias -> provider id."""
    prefixes: dict[str, str]
    """Folded first segment of a model id -> provider id, where that names it beyond doubt."""
    weak_prefixes: dict[str, str]
    """The same, where gateways write it for the lab too."""
    organisations: dict[str, str]
    """Folded organisation -> the provider of that name."""
    labs: dict[str, Lab]
    orgs: dict[str, str]
    """Folded organisation -> lab id."""
    decorations: tuple[tuple[re.Pattern[str], str], ...]
    snapshot: re.Pattern[str]
    sha256: str


def fold_name(name: str) -> str:
    """Write a provider name or segment the way it is looked up: lower case, `_` and blanks as `-`."""
    return re.sub(r"[\s_]+", "-", name.strip().lower())


DATA = Path(__file__).parent


def load_book(data: Path = DATA) -> Book:
    """Read `labs.toml` and `providers/*.toml` under `data`; raises ProviderDataError naming every wrong
    place.
    """
    problems: list[str] = []
    labs = read_toml(data / "labs.toml", Labs, problems)
    files = sorted((data / "providers").glob("*.toml"))
    read = [(path, read_toml(path, Provider, problems)) for path in files]
    providers = {path: provider for path, provider in read if provider is not None}
    problems.extend(_contradictions(providers))
    if problems or labs is None:
        raise ProviderDataError("\n".join(problems))
    known = {provider.id: provider for provider in providers.values()}
    problems = list(_unknown_references(labs, known, data / "labs.toml"))
    if problems:
        raise ProviderDataError("\n".join(problems))
    return _book(known, labs, _digest([data / "labs.toml", *files]))


def _contradictions(providers: dict[Path, Provider]) -> Iterator[str]:
    """Say where two files claim the same name, prefix, door, key or statement, or a file is not named after
    its provider.
    """
    seen: dict[tuple[Any, ...], _Written] = {}
    for path, provider in providers.items():
        if path.stem != provider.id:
            yield f"{_at((path, ('id',)))}: id: must be the file's name, {path.stem}"
        for place, claim in _claims(provider):
            other = seen.setdefault(claim, (path, place))
            if other != (path, place) and (other[0] != path or place[0] == "hosts"):
                said = f"{claim[1]} is already claimed in {_at(other)}"
                yield f"{_at((path, place))}: {place[0]}: {said}"


_Written = tuple[Path, tuple[int | str, ...]]


def _at(written: _Written) -> str:
    """Write a place as `file:line`; the text is only looked through when something is wrong."""
    path, place = written
    return f"{path.name}:{TomlText(path.read_text(encoding='utf-8')).line(place)}"


def _claims(provider: Provider) -> Iterator[tuple[tuple[int | str, ...], tuple[Any, ...]]]:
    """Give what a provider claims for itself alone, each with its place in the file."""
    for name in {fold_name(n) for n in (provider.id, *provider.aliases)}:
        yield ("id",) if name == fold_name(provider.id) else ("aliases",), ("name", name)
    for prefix in _prefixes(provider):
        yield ("prefixes",), ("prefix", prefix)
    for number, host in enumerate(provider.hosts):
        yield ("hosts", number), ("host", f"{host.host}{host.path}")
    for number, key in enumerate(provider.credentials):
        yield ("credentials", number), ("key", f"{key.prefix} for {key.shared_with or provider.id}")
    for number, said in enumerate(provider.statements):
        yield ("statements", number), ("statement", f"{said.key}={said.value}")


def _prefixes(provider: Provider) -> set[str]:
    """Give the first segments that name a provider beyond doubt."""
    names = {fold_name(p) for p in (provider.id, *provider.aliases, *provider.prefixes)}
    return names - {fold_name(p) for p in (*provider.weak_prefixes, *provider.organisations)}


def _unknown_references(labs: Labs, providers: dict[str, Provider], path: Path) -> Iterator[str]:
    for number, lab in enumerate(labs.lab):
        for provider in lab.providers:
            if provider not in providers:
                at = _at((path, ("lab", number, "providers")))
                yield f"{at}: lab {lab.id}: providers: {provider} has no file in providers/"


def _digest(files: list[Path]) -> str:
    """Hash the files' bytes: any change of a reviewed fact is another catalogue version."""
    digest = sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _book(providers: dict[str, Provider], labs: Labs, digest: str) -> Book:
    return Book(
        providers=providers,
        names={fold_name(n): p.id for p in providers.values() for n in (p.id, *p.aliases)},
        prefixes={prefix: p.id for p in providers.values() for prefix in _prefixes(p)},
        weak_prefixes={fold_name(prefix): p.id for p in providers.values() for prefix in p.weak_prefixes},
        organisations={fold_name(name): p.id for p in providers.values() for name in p.organisations},
        labs={lab.id: lab for lab in labs.lab},
        orgs={fold_name(org): lab.id for lab in labs.lab for org in (lab.id, *lab.orgs)},
        decorations=tuple((re.compile(regex), modifier) for regex, modifier in labs.decorations),
        snapshot=re.compile(labs.snapshot),
        sha256=digest,
    )
