"""docs/emitters.md: what tollbook understands of each emitter, and the captures that prove it.

Made from the dialects and from the captures themselves: `python -m tests.emitters_page` writes it, a test
holds it. What a dialect says is not repeated by hand anywhere.
"""

from __future__ import annotations

import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from billing.emitters import ADVICE
from ingest.decode import decode
from ingest.observe import observe
from tests.capture_score import CAPTURES, frames

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "emitters.md"
DIALECTS = ROOT / "ingest" / "dialects"
HEAD = """# Emitters

What tollbook understands of each emitter of telemetry. A **call** is one model call; an **aggregate** repeats
calls and stands for them only until they are known; what is **outer** stands around calls and tells whose
they are (session, user, agent) where they do not; what is **ignored** is no call. *inclusive* input has its
cached tokens inside, *exclusive* leaves them out; the ledger always has them inside. Emitters without a table
are understood where they follow OpenTelemetry's `gen_ai` or OpenInference's conventions; what is not
recognised is counted (`tollbook doctor`).

This page is made from `ingest/dialects` and `fixtures/captures` (`python -m tests.emitters_page`).
"""
LACKS = {
    "usage": "calls without tokens",
    "aggregates": "only sums",
    "metrics_only": "only metrics",
    "gap": "gap to its metrics",
    "sampled": "records that are samples",
    "content": "sends content",
}


def page() -> str:
    """The page's text."""
    return "\n".join([HEAD, *_proofs(), *_dialects(), *_advice()]) + "\n"


def _proofs() -> Iterator[str]:
    yield "## Captures that prove it\n"
    yield "| emitter | signals | layers of its records | metrics | captures |\n|---|---|---|---|---|"
    told = _told()
    for emitter in sorted(told["captures"]):
        cells = [
            ", ".join(sorted(told[part][emitter])) or "-"
            for part in ("signals", "layers", "metrics", "captures")
        ]
        yield f"| {emitter} | " + " | ".join(cells) + " |"


def _told() -> dict[str, dict[str, set[str]]]:
    """By emitter: its signals, layers, metrics and captures."""
    found: dict[str, dict[str, set[str]]] = {
        part: defaultdict(set) for part in ("signals", "layers", "metrics", "captures")
    }
    for folder in sorted(path.parent for path in CAPTURES.glob("*/expected.json")):
        observed = observe(decode(frames(folder.name)))
        known = observed.observations.filter(pl.col("role") != "outer")
        calls = known.select("emitter", "signal", "layer").unique()
        for emitter, signal, layer in calls.iter_rows():
            found["signals"][emitter].add(signal)
            found["layers"][emitter].add(f"`{layer}`")
            found["captures"][emitter].add(folder.name)
        points = observed.metric_points.filter(pl.col("emitter").is_not_null())
        for emitter, name in points.select("emitter", "name").unique().iter_rows():
            found["metrics"][emitter].add(f"`{name}`")
            found["captures"][emitter].add(folder.name)
    return found


def _dialects() -> Iterator[str]:
    for path in sorted(DIALECTS.glob("[!_]*.toml")):
        table = tomllib.loads(path.read_text())
        yield f"\n## {table.get('title') or path.stem}\n"
        yield f"`ingest/dialects/{path.name}`\n"
        yield "| records | are | input | output | emitter |\n|---|---|---|---|---|"
        for rule in table.get("rule", []):
            yield _rule(rule, table)


def _rule(rule: dict[str, Any], table: dict[str, Any]) -> str:
    scope = rule.get("scope") or (f"{rule['scope_prefix']}*" if "scope_prefix" in rule else "")
    which = [f"{rule['signal']}s" if rule["signal"] != "any" else "all"]
    which += [f"of `{scope}`"] if scope else []
    which += ["named " + ", ".join(f"`{name}`" for name in rule["names"])] if rule.get("names") else []
    which += [f"whose operation is one of its {rule['operations']}s"] if rule.get("operations") else []
    which += ["with " + ", ".join(f"`{key}`" for key in rule["has"])] if rule.get("has") else []
    which += ["with any of " + ", ".join(f"`{k}`" for k in rule["has_any"])] if rule.get("has_any") else []
    which += [f"with `{text}` in `{key}`" for key, text in rule.get("contains", {}).items()]
    which += ["that failed" if rule["failed"] else "that did not fail"] if "failed" in rule else []
    which += [f"where `{key}` is {' or '.join(words)}" for key, words in rule.get("where", {}).items()]
    emitter = rule.get("emitter") or table.get("emitters", {}).get(scope) or "by scope"
    role = "ignored" if rule["role"] == "ignore" else rule["role"]
    if role in ("ignored", "outer"):
        return f"| {' '.join(which)} | {role} | | | |"
    reads = [rule.get(part) or table.get(part, "inclusive") for part in ("input", "output")]
    return f"| {' '.join(which)} | {role} | {reads[0]} | {reads[1]} | {emitter} |"


def _advice() -> Iterator[str]:
    yield "\n## What to change where something lacks, or too much is sent\n"
    yield "| emitter | seen | change |\n|---|---|---|"
    for emitter, lack, text in ADVICE:
        yield f"| {emitter or 'any other'} | {LACKS[lack]} | {text} |"


if __name__ == "__main__":
    PAGE.write_text(page())
