"""The reviewed facts about providers and labs: TOML beside the code, validated when loaded.

A new provider is one file in `providers/`; a new model family is a few lines in `labs.toml`. Facts that are
not there are unknown: nothing in this module invents a default that would decide who served a call or who
pays. Every file names its source and the day it was checked. An error names the file, the key and what is
allowed.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from catalog.errors import ProviderDataError

__all__ = ["Access", "Book", "Family", "Grammar", "Host", "Lab", "Provider", "fold_name", "load_book"]

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


class _Data(BaseModel):
    """Base of everything read from TOML: closed, strict, frozen, and silent about values in its errors."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)


class Host(_Data):
    """One door of a provider: a host (`*.` in front: any subdomain) and a path prefix (`*`: any one
    segment).
    """

    host: Annotated[str, StringConstraints(pattern=r"^(\*\.)?[a-z0-9][a-z0-9.-]*$")]
    path: UrlPath = ""
    access: Access | None = None
    plan: Name | None = None
    label: Name | None = None
    """Modifier that the part matched by `*.` says, e.g. region."""


class Grammar(_Data):
    """A spelling of model ids that only this provider mints.

    Named groups say what the parts mean: `model` is the rest to read on, `lab` an organisation, any other
    group is a modifier of that name.
    """

    regex: Regex
    certain: bool = True
    access: Access | None = None


class Plan(_Data):
    """A plan that an emitter states by itself, e.g. `anthropic.plan=max`."""

    id: Name
    stated: list[str] = Field(min_length=1)


class Credential(_Data):
    """A kind of key, told by its prefix (the value is never seen here), and what it says about access."""

    prefix: Annotated[str, StringConstraints(min_length=3, max_length=32)]
    access: Access
    shared_with: Name | None = None
    """Provider whose door this key also opens: seen there, the call belongs to this provider."""


class Provider(_Data):
    """One provider as models.dev names it."""

    id: Name
    name: Annotated[str, StringConstraints(min_length=1)]
    source: Annotated[str, StringConstraints(min_length=1)]
    checked: date
    aliases: list[Name] = []
    """Other names in telemetry (`gen_ai.provider.name`, `gen_ai.system`)."""
    prefixes: list[Segment] = []
    """First segments of a model id that name this provider, besides its id and aliases."""
    weak_prefixes: list[Segment] = []
    """Names that gateways also write for the lab: they name this provider only where nothing else does."""
    organisations: list[Segment] = []
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
    plans: list[Plan] = []
    hosts: list[Host] = []
    local_ports: list[Annotated[int, Field(ge=1, le=65535)]] = []
    """Ports where this server listens on one's own machine or network."""
    grammars: list[Grammar] = []
    credentials: list[Credential] = []
    emitters: list[Name] = []
    """Agents that call this provider unless something says otherwise."""
    dual_emitters: list[Name] = []
    """Agents that reach it under a plan or metered with nothing to tell the two apart."""
    serves: list[Regex] = []
    """Canonical ids it can serve, where that is a closed list: guards against SDK-derived provider names."""
    rewrites: list[Rewrite] = []
    """Its own spellings of model names: [regex, replacement]."""
    price_as: list[Name] = []
    """Price providers (ids of the price source): the first is its own list, the others are estimates."""


class Family(_Data):
    """Names of a lab's models, in lower case and free of decorations."""

    regex: Regex
    open: bool
    """Open weights or served by several providers: the bare name does not tell who served it."""


class Lab(_Data):
    """A lab: who makes models, and the provider that serves them first-hand."""

    id: Name
    providers: list[Name] = []
    """First-party providers; several: the bare name of a closed model is ambiguous between them."""
    orgs: list[Segment] = []
    """Organisation segments and prefixes that mean this lab (Hugging Face, OpenRouter, Bedrock)."""
    keeps_latest: bool = False
    """`-latest` is part of the names it sells (a moving alias with prices of its own)."""
    families: list[Family] = Field(min_length=1)
    rewrites: list[Rewrite] = []
    """Spellings -> the canonical one, applied in order: [regex, replacement]."""
    snapshot: Regex | None = None
    """What of a name is a snapshot (group `snapshot`), besides plain dates; "" in the name remains."""


class _Labs(_Data):
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
    labs = _read(data / "labs.toml", _Labs, problems)
    files = sorted((data / "providers").glob("*.toml"))
    read = [(path, _read(path, Provider, problems)) for path in files]
    providers = {path: provider for path, provider in read if provider is not None}
    problems.extend(_contradictions(providers))
    if problems or labs is None:
        raise ProviderDataError("\n".join(problems))
    known = {provider.id: provider for provider in providers.values()}
    problems = list(_unknown_references(labs, known, data / "labs.toml"))
    if problems:
        raise ProviderDataError("\n".join(problems))
    return _book(known, labs, _digest([data / "labs.toml", *files]))


T = TypeVar("T", bound=_Data)


def _read(path: Path, shape: type[T], problems: list[str]) -> T | None:
    """Read one TOML file into `shape`; None after adding one line for each thing wrong with it."""
    try:
        return shape.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except tomllib.TOMLDecodeError as error:
        problems.append(f"{path.name}: not TOML: {error}")
    except ValidationError as error:
        problems.extend(f"{path.name}: {_place(issue['loc'])}: {issue['msg']}" for issue in error.errors())
    except OSError as error:
        problems.append(f"{path.name}: cannot be read: {error.strerror}")
    return None


def _place(location: tuple[int | str, ...]) -> str:
    return (
        "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
        or "file"
    )


def _contradictions(providers: dict[Path, Provider]) -> Iterator[str]:
    """Say where two files claim the same name, prefix or door, or a file is not named after its provider."""
    seen: dict[tuple[Any, ...], Path] = {}
    for path, provider in providers.items():
        if path.stem != provider.id:
            yield f"{path.name}: id: must be the file's name, {path.stem}"
        for key, claim in _claims(provider):
            other = seen.setdefault(claim, path)
            if other is not path:
                yield f"{path.name}: {key}: {claim[1]} is already claimed in {other.name}"


def _claims(provider: Provider) -> Iterator[tuple[str, tuple[Any, ...]]]:
    for name in {fold_name(n) for n in (provider.id, *provider.aliases)}:
        yield "aliases", ("name", name)
    for prefix in _prefixes(provider):
        yield "prefixes", ("prefix", prefix)
    for host in provider.hosts:
        yield "hosts", ("host", f"{host.host}{host.path}")


def _prefixes(provider: Provider) -> set[str]:
    """Give the first segments that name a provider beyond doubt."""
    names = {fold_name(p) for p in (provider.id, *provider.aliases, *provider.prefixes)}
    return names - {fold_name(p) for p in (*provider.weak_prefixes, *provider.organisations)}


def _unknown_references(labs: _Labs, providers: dict[str, Provider], path: Path) -> Iterator[str]:
    for lab in labs.lab:
        for provider in lab.providers:
            if provider not in providers:
                yield f"{path.name}: lab {lab.id}: providers: {provider} has no file in providers/"


def _digest(files: list[Path]) -> str:
    """Hash the files' bytes: any change of a reviewed fact is another catalogue version."""
    digest = sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _book(providers: dict[str, Provider], labs: _Labs, digest: str) -> Book:
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
