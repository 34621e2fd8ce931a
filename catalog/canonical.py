"""From an id as served to the model it names: `lab/model`, its snapshot and its modifiers.

Providers decorate names (`z-ai/glm-4.6:exacto`, `claude-sonnet-4-5@20250929`, `kimi-k2p6`); the canonical
name is the lab's own, so that one model is one model wherever it ran. The rules are the labs' naming
schemes in `labs.toml`; a name that fits none is unknown, and stays unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from catalog.provider_book import Book, fold_name
from catalog.provider_facts import Lab, Provider

__all__ = ["MAX_ID_CHARS", "Reading", "is_plausible_id", "read_model"]

MAX_ID_CHARS = 256
_PRINTABLE_ASCII = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
_EFFORT = re.compile(r"^(gpt-5[a-z0-9.-]*?|o[1-9](?:-mini|-pro)?)-(none|minimal|low|medium|high|xhigh)$")
_CLAUDE_MODE = re.compile(r"^(claude-[a-z0-9.-]*?\d[a-z0-9.-]*?)-(thinking|fast)(?=-?\d{8}$|$)")


@dataclass(frozen=True, slots=True)
class Reading:
    """What one id says: the canonical model (None: unknown), its snapshot, its modifiers, and the plain
    name.
    """

    model: str | None = None
    snapshot: str | None = None
    modifiers: dict[str, str] = field(default_factory=dict)
    name: str = ""
    """The id without prefixes and decorations, snapshot kept: the spelling a price list is likely to use."""
    lab: str | None = None
    open: bool = True
    """Open weights or many hosts: the name alone does not tell who served it."""


def is_plausible_id(model_id: str | None) -> bool:
    """Say whether a string can be a model id at all: printable ASCII, not empty, of bounded length."""
    return (
        bool(model_id)
        and len(model_id or "") <= MAX_ID_CHARS
        and bool(_PRINTABLE_ASCII.fullmatch(model_id or ""))
    )


def read_model(
    model_id: str, book: Book, *, lab_hint: str | None = None, provider: Provider | None = None
) -> Reading:
    """Read the model in `model_id`, the id freed of what only names the provider.

    `lab_hint` is an organisation the provider's grammar found; `provider` adds its own spellings.
    """
    *orgs, last = model_id.split("/")
    hints = [hint for org in (lab_hint, *reversed(orgs)) if org and (hint := _org_lab(org, book))]
    name, modifiers = _undecorated(last.lower().removeprefix("hf:"), book)
    for regex, replacement in provider.rewrites if provider else ():
        name = re.sub(regex, replacement, name)
    authored = provider is None or provider.names_authors
    for lab in _labs(book, hints):
        latest = "-latest" if lab.keeps_latest and "alias" in modifiers else ""
        reading = _read_as(lab, name, book=book, suffix=latest)
        if reading is not None and not (reading.open and authored and _is_reworked(orgs, hints, book)):
            return Reading(
                reading.model,
                reading.snapshot,
                modifiers | reading.modifiers,
                name=name,
                lab=lab.id,
                open=reading.open,
            )
    return Reading(modifiers=modifiers, name=name)


def _is_reworked(orgs: list[str], hints: list[str], book: Book) -> bool:
    """Say whether open weights come from somebody else than their lab, a server of them or a plain copy.

    `acme/llama-3.3-70b-poet` is made of Llama and is not Llama: which model it is, is not known.
    """
    owner = fold_name(orgs[-1].lower().removeprefix("hf:")) if orgs else ""
    served = owner in book.names or owner in book.prefixes or owner in book.mirrors
    return bool(owner) and not hints and not served


def _org_lab(org: str, book: Book) -> str | None:
    return book.orgs.get(fold_name(org.lower().removeprefix("hf:")))


def _labs(book: Book, hints: list[str]) -> Iterator[Lab]:
    """Give the labs to try: those the id names, then all; a name decides for itself where an organisation
    does not.
    """
    yield from (book.labs[hint] for hint in hints)
    yield from (lab for lab in book.labs.values() if lab.id not in hints)


def _undecorated(name: str, book: Book) -> tuple[str, dict[str, str]]:
    """Take known suffixes off, outermost first; returns the name and what they said."""
    modifiers: dict[str, str] = {}
    while True:
        for pattern, modifier in book.decorations:
            if found := pattern.search(name):
                if modifier:
                    modifiers[modifier] = found["value"]
                name = name[: found.start()]
                break
        else:
            return name, modifiers


def _read_as(lab: Lab, name: str, *, book: Book, suffix: str) -> Reading | None:
    """Read `name` as one of `lab`'s; None when it does not follow the lab's naming. `suffix` stays on the
    name.
    """
    base, snapshot = _without_snapshot(name, book.snapshot)
    base, modifiers = _without_mode(base)
    for pattern, replacement in _rewrites(lab.id, tuple(map(tuple, lab.rewrites))):
        base = pattern.sub(replacement, base)
    if lab.snapshot and snapshot is None:
        base, snapshot = _without_snapshot(base, _pattern(lab.snapshot))
    base = base.replace(":", "-")
    for family in lab.families:
        if _pattern(family.regex).fullmatch(base):
            return Reading(f"{lab.id}/{base}{suffix}", snapshot, modifiers, open=family.open)
    return None


def _without_snapshot(name: str, pattern: re.Pattern[str]) -> tuple[str, str | None]:
    found = pattern.search(name)
    if found is None:
        return name, None
    parts = found.groupdict()
    rest = f"{parts['head']}{parts.get('tail') or ''}" if parts.get("head") else name[: found.start()]
    return rest, found["snapshot"]


def _without_mode(name: str) -> tuple[str, dict[str, str]]:
    """Take an effort (`gpt-5-high`) or a Claude mode (`-thinking`, `-fast`) off the name."""
    if found := _EFFORT.match(name):
        return found[1], {"effort": found[2]}
    if found := _CLAUDE_MODE.match(name):
        said = {"thinking": "true"} if found[2] == "thinking" else {"speed": "fast"}
        return found[1], said
    return name, {}


@lru_cache(maxsize=1024)
def _pattern(regex: str) -> re.Pattern[str]:
    return re.compile(regex)


@lru_cache(maxsize=256)
def _rewrites(_lab: str, rewrites: tuple[tuple[str, str], ...]) -> list[tuple[re.Pattern[str], str]]:
    return [(re.compile(regex), replacement) for regex, replacement in rewrites]
