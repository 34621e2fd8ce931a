"""`GET /metrics`: the house's counters in the Prometheus text format.

The table below is the reference: a metric that is counted but not listed here fails a test. Labels never
carry names of people, teams or models, so the page stays small and says nothing about anyone.
"""

from __future__ import annotations

from collections.abc import Mapping

PREFIX = "tollbook_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

METRICS: dict[str, tuple[str, str]] = {
    "ready": ("gauge", "1 when every part is up and usage.duckdb is published"),
    "uptime_seconds": ("gauge", "seconds since the start"),
    "requests_total": ("counter", "export requests received"),
    "refused_total": ("counter", "export requests refused, by reason"),
    "acknowledged_total": ("counter", "export requests acknowledged"),
    "acknowledged_bytes_total": ("counter", "bytes of export requests acknowledged"),
    "journal_durable_bytes": ("counter", "journal position up to which everything is on disk"),
    "journal_backlog_bytes": ("gauge", "journaled bytes that are not yet in the ledger"),
    "journal_groups_total": ("counter", "group commits of the journal"),
    "ledger_up": ("gauge", "1 while the ledger process runs"),
    "ledger_committed_bytes": ("counter", "journal position up to which everything is in the ledger"),
    "ledger_published_bytes": ("counter", "journal position up to which everything is in usage.duckdb"),
    "ledger_restarts_total": ("counter", "times the ledger process had to be started again"),
    "ledger_calls_total": ("counter", "call revisions written"),
    "ledger_repeated_records_total": ("counter", "records that were delivered again and left out"),
    "ledger_publish_seconds": ("gauge", "how long the last publication took"),
    "reader_queries_total": ("counter", "queries asked of the readers"),
    "reader_refused_total": ("counter", "queries that failed or were refused"),
    "reader_killed_total": ("counter", "queries ended at their deadline"),
    "reader_restarts_total": ("counter", "readers that had to be replaced"),
    "reader_busy_total": ("counter", "queries turned away because too many waited"),
    "budget_checks_total": ("counter", "budget checks answered"),
    "budget_reservations_total": ("counter", "reservations promised"),
    "budget_reservations_open": ("gauge", "reservations that hold now"),
    "proxy_attempts_total": ("counter", "calls sent to providers, by how they ended"),
    "proxy_fallbacks_total": ("counter", "calls served in the place of another target, by whether it costs"),
    "proxy_refused_total": ("counter", "calls refused before anything was sent"),
    "proxy_unrecorded_total": (
        "counter",
        "calls whose record could not be written; the next start records them",
    ),
    "proxy_in_flight": ("gauge", "calls on their way now"),
    "budget_events_dropped_total": ("counter", "budget events that could not be recorded"),
}


def render(counters: Mapping[str, int | float]) -> bytes:
    """The page. Keys are `name` or `name{label=value,...}`; a name that is not in METRICS is left untyped."""
    lines: list[str] = []
    described = ""
    for key, number in sorted(counters.items(), key=lambda item: (item[0].partition("{")[0], item[0])):
        name, _, labels = key.partition("{")
        if name != described:
            lines += _head(name)
            described = name
        lines.append(f"{PREFIX}{name}{_labels(labels.rstrip('}'))} {number}")
    return ("\n".join(lines) + "\n").encode()


def _head(name: str) -> list[str]:
    kind, meaning = METRICS.get(name, ("untyped", ""))
    return [f"# HELP {PREFIX}{name} {meaning}".rstrip(), f"# TYPE {PREFIX}{name} {kind}"]


def _labels(text: str) -> str:
    if not text:
        return ""
    pairs = (part.split("=", 1) for part in text.split(","))
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs) + "}"


def _escaped(value: str) -> str:
    return value.strip('"').replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
