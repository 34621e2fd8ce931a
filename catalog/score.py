"""Scores the resolver on labelled model ids: `python -m catalog.score model_ids.jsonl`.

A row counts as right when provider and canonical model are; a claim of a provider where the label abstains
is an over-claim, the one kind of mistake that must not happen. Access, snapshot and modifiers are counted
beside it.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalog import api_shapes
from catalog.provider_book import load_book
from catalog.resolve import Evidence, Resolution, Resolver

__all__ = ["Score", "evidence_of", "score"]

_ABSTAINS = ("ambiguous", "unresolved")


@dataclass(frozen=True, slots=True)
class Score:
    """How many rows were right, which were not, and which claimed a provider that nothing proves."""

    rows: int
    misses: tuple[str, ...]
    over_claims: tuple[str, ...]
    access_misses: tuple[str, ...]
    detail_misses: tuple[str, ...]

    @property
    def right(self) -> int:
        return self.rows - len(self.misses)


def evidence_of(row: dict[str, Any]) -> Evidence:
    """Turn a labelled row (`model`, `attributes`) into evidence, as the dialects would."""
    return api_shapes.evidence_of(row["model"], row["attributes"])


def score(rows: list[dict[str, Any]], resolver: Resolver) -> Score:
    """Resolve every row and compare it with its label."""
    misses, over, access, detail = [], [], [], []
    for row in rows:
        got, want = resolver.resolve(evidence_of(row)), row["expect"]
        line = _line(row, got)
        if (got.provider, _plain(got.model)) != (want["provider"], _plain(want["canonical_model"])):
            misses.append(line)
        if want["status"] in _ABSTAINS and (got.provider or (want["canonical_model"] is None and got.model)):
            over.append(line)
        if got.access.access != want["access"].replace("plan", "subscription"):
            access.append(f"{line} access {got.access.access}, label {want['access']}")
        modifiers = {key: str(value).lower() for key, value in want["modifiers"].items()}
        if (got.snapshot, dict(got.modifiers)) != (want["snapshot"], modifiers):
            detail.append(
                f"{line}: {got.snapshot} {dict(got.modifiers)}, label {want['snapshot']} {modifiers}"
            )
    return Score(len(rows), tuple(misses), tuple(over), tuple(access), tuple(detail))


def _plain(model: str | None) -> str | None:
    """Compare names without punctuation: `glm-4.6` and `glm-4-6` are one spelling."""
    return re.sub(r"[^a-z0-9/]", "", model.lower()) if model else None


def _line(row: dict[str, Any], got: Resolution) -> str:
    want = row["expect"]
    asked = f"{row['id']} {row['shape']} {row['model'][:80]!r} {row['attributes']}"
    label = f"{want['provider']} {want['canonical_model']}"
    return f"{asked} -> {got.provider} {got.model} ({got.resolution}), label {label}"


def main() -> None:
    rows = [json.loads(line) for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines() if line]
    found = score(rows, Resolver(load_book()))
    for title, lines in (("missed", found.misses), ("over-claimed", found.over_claims)):
        for line in lines:
            print(f"{title}: {line}")
    percent = 100 * found.right // max(found.rows, 1)
    print(f"{found.right} of {found.rows} right ({percent} %), {len(found.over_claims)} over-claims")
    print(
        f"access differs on {len(found.access_misses)}, snapshot or modifiers on {len(found.detail_misses)}"
    )


if __name__ == "__main__":
    main()
