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
from hashlib import sha256
from pathlib import Path
from typing import Any

from catalog.errors import ProviderDataError
from catalog.provider_facts import Lab, Labs, Provider
from catalog.toml_source import TomlText, read_toml

__all__ = ["DATA", "Book", "digest", "fold_name", "load_book"]


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
    mirrors: frozenset[str]
    """Folded organisations whose models are plain copies."""
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
    return _book(known, labs, digest([data / "labs.toml", *files]))


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


def digest(files: list[Path]) -> str:
    """Hash the files' bytes: any change of a reviewed fact is another catalogue version."""
    hashed = sha256()
    for path in files:
        hashed.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return hashed.hexdigest()


def _book(providers: dict[str, Provider], labs: Labs, sha256_of_files: str) -> Book:
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
        mirrors=frozenset(fold_name(org) for org in labs.mirrors),
        sha256=sha256_of_files,
    )
