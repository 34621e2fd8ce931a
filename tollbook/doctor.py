"""`tollbook doctor`: looks at everything that commonly goes wrong, and says what to do about each.

It reads, and changes nothing. It never prints what it finds in other programs' settings: only whether that
points here.
"""

from __future__ import annotations

import os
import shutil
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tollbook.client import Client, ClientError, Unreachable
from tollbook.errors import TollbookError

Level = Literal["ok", "warning", "failure"]

LITTLE_DISK_BYTES = 2 << 30
MUCH_LAG_BYTES = 64 << 20
SHOWN_MODELS = 10
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
UNPRICED = "SELECT served_model, calls FROM unpriced_models ORDER BY calls DESC"
EMITTER_FACTS = (  # column, how it is put, and whether something of the bill is missing
    ("duplicates_merged", "duplicates merged", False),
    ("usage_unknown_calls", "without tokens", True),
    ("aggregates", "sums that stand for calls", True),
    ("from_metrics", "sums of metrics", True),
    ("capture_gap_tokens", "tokens in its metrics that no call accounts for", True),
    ("sampled_records", "records that are samples", True),
    ("content_records", "records with content (which was dropped)", False),
)
ASSUMED = (
    "SELECT agent, count(*) AS calls FROM calls WHERE cost_status = 'assumed' GROUP BY ALL ORDER BY 2 DESC"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: how it is, and what to do if it is not well."""

    level: Level
    what: str
    next: str = ""


def examine(client: Client, *, data_dir: Path | None, settings_fault: str | None) -> list[Finding]:
    """Every finding. `data_dir` is NULL, and `settings_fault` told, where the settings cannot be read."""
    found = [_settings(settings_fault)]
    if data_dir is not None:
        found.append(_disk(data_dir))
    try:
        found += _server(client)
    except Unreachable as error:
        found.append(Finding("failure", f"nothing answers at {client.url}", str(error).partition("; ")[2]))
    except ClientError as error:
        found.append(Finding("failure", "the server refused to answer", str(error)))
    return [*found, *_agents(client.url)]


def _settings(fault: str | None) -> Finding:
    if fault is None:
        return Finding("ok", "the settings can be read")
    return Finding("failure", "the settings cannot be used", fault)


def _disk(data_dir: Path) -> Finding:
    there = next(folder for folder in (data_dir, *data_dir.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    text = f"{free / (1 << 30):.1f} GiB are free where the data is kept"
    if free < LITTLE_DISK_BYTES:
        return Finding("warning", text, "free space: when it is full, telemetry is refused (503), not lost")
    return Finding("ok", text)


def _server(client: Client) -> Iterator[Finding]:
    health = client.get("/healthz")
    yield Finding("ok", f"tollbook answers at {client.url}")
    yield _readiness(client)
    yield _lag(health)
    yield from _figures(client)


def _readiness(client: Client) -> Finding:
    try:
        client.get("/readyz")
    except ClientError as error:
        return Finding("failure", "it is not ready", str(error).partition("\n")[0])
    return Finding("ok", "the ledger and the readers are up")


def _lag(health: dict[str, Any]) -> Finding:
    behind = health["acknowledged"] - health["published"]
    if behind > MUCH_LAG_BYTES:
        return Finding(
            "warning",
            f"{behind:,} bytes of telemetry are acknowledged but not yet published",
            "wait; if it does not shrink, look for errors of the ledger in the server's log",
        )
    return Finding("ok", f"what is published lags {behind:,} bytes behind what is acknowledged")


def _figures(client: Client) -> Iterator[Finding]:
    total = _rows(client, "SELECT count(*) FROM calls")[0][0]
    if not total:
        yield Finding(
            "warning", "no call is recorded yet", "point an agent here: tollbook connect claude-code"
        )
        return
    yield Finding("ok", f"{total:,} calls are recorded")
    yield from _told(
        _rows(client, UNPRICED),
        "calls of {} have no price",
        "their cost is in no amount; a newer tollbook may know the model, or its name is misspelt",
    )
    yield from map(_emitter, client.get("/api/v1/emitters")["emitters"])
    yield from _told(
        _rows(client, ASSUMED),
        "calls of {} are of unknown access and assumed to be paid per use",
        "let the agent say so: resource attribute tollbook.access=payg or tollbook.access=subscription",
    )


def _emitter(told: dict[str, Any]) -> Finding:
    name = told["emitter"] or "an unnamed source"
    facts = [f"{told['calls']:,} calls by {name} ({told['signals']}; last seen {told['last_seen']})"]
    facts += [f"{told[column]:,} {text}" for column, text, _ in EMITTER_FACTS if told[column]]
    lacking = any(told[column] for column, _, lacks in EMITTER_FACTS if lacks)
    return Finding("warning" if lacking else "ok", ", ".join(facts), told["advice"] or "")


def _told(rows: list[list[Any]], text: str, advice: str) -> Iterator[Finding]:
    for name, calls in rows[:SHOWN_MODELS]:
        yield Finding("warning", f"{calls:,} {text.format(name or 'an unnamed source')}", advice)


def _rows(client: Client, query: str) -> list[list[Any]]:
    return list(client.post("/api/v1/sql", {"query": query})["rows"])


# --- the agents on this machine ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent that may be installed here, and how to see whether it sends its telemetry here."""

    name: str
    program: str
    points_at: Callable[[str], bool | None]


def _agents(url: str) -> Iterable[Finding]:
    for agent in AGENTS:
        if shutil.which(agent.program) is None:
            continue
        pointed = agent.points_at(url)
        if pointed:
            yield Finding("ok", f"{agent.name} sends its telemetry here")
        else:
            where = "elsewhere" if pointed is False else "nowhere"
            yield Finding(
                "warning", f"{agent.name} sends its telemetry {where}", f"tollbook connect {agent.name}"
            )


def _claude_code(url: str) -> bool | None:
    told = _json(Path.home() / ".claude" / "settings.json").get("env", {})
    environment = {**os.environ, **(told if isinstance(told, dict) else {})}
    if not environment.get("CLAUDE_CODE_ENABLE_TELEMETRY"):
        return None
    return same_place(environment.get(ENDPOINT), url)


def _codex(url: str) -> bool | None:
    try:
        otel = tomllib.loads((Path.home() / ".codex" / "config.toml").read_text()).get("otel", {})
    except (OSError, ValueError):
        return None
    exporter = otel.get("exporter", {}) if isinstance(otel, dict) else {}
    endpoints = [part.get("endpoint") for part in exporter.values()] if isinstance(exporter, dict) else []
    return any(same_place(endpoint, url) for endpoint in endpoints) if endpoints else None


def _gemini_cli(url: str) -> bool | None:
    telemetry = _json(Path.home() / ".gemini" / "settings.json").get("telemetry", {})
    told = telemetry.get("otlpEndpoint") if isinstance(telemetry, dict) else None
    return same_place(os.environ.get("GEMINI_TELEMETRY_OTLP_ENDPOINT") or told, url)


AGENTS = (
    Agent("claude-code", "claude", _claude_code),
    Agent("codex", "codex", _codex),
    Agent("gemini-cli", "gemini", _gemini_cli),
)


def same_place(endpoint: object, url: str) -> bool | None:
    """Whether an endpoint lies on this server; None if there is none."""
    if not isinstance(endpoint, str) or not endpoint:
        return None
    here, there = (text.replace("localhost", "127.0.0.1").rstrip("/") for text in (url, endpoint))
    return there == here or there.startswith(here + "/")


def _json(path: Path) -> dict[str, Any]:
    import json  # noqa: PLC0415  # not needed where no agent is installed

    try:
        told = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def settings_fault(load: Callable[[], Any]) -> tuple[Any, str | None]:
    """The settings, or NULL and why not."""
    try:
        return load(), None
    except TollbookError as error:
        return None, str(error)
