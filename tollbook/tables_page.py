"""docs/tables.md: every table of `usage.duckdb` with every column's type, unit and meaning.

Made from the same structures as the tables themselves; a test holds the page against them and against a file
that a running tollbook has published.
"""

from __future__ import annotations

from billing.spend import BUDGET_EVENTS, BUDGETS
from billing.tables import PUBLISHED, Column

MEANINGS = {
    "calls": "One row per model call that reached a provider, as it is known now.",
    "call_revisions": "Every revision of every call; `superseded_by` says which call took it in.",
    "usage_hourly": "Sums of calls by hour and dimensions; always equal to a recomputation from `calls`.",
    "usage_daily": "The same by day.",
    "unpriced_models": "View: models without a known price, most called first.",
    "budgets": "Budgets and where they stood when the file was published.",
    "budget_events": "Checks that were denied or warned, and thresholds that recorded spend has passed.",
    "emitters": "Who tells of calls, how completely, and what to change where something lacks.",
    "plans": "Every window of every plan in use, seat by seat: what is used, how fast, until when.",
    "plan_values": "The value of each plan's calls against its fee, this month and the two before.",
    "plan_shares": "The fee of each month split over the teams by the value of their calls, to the cent.",
    "jobs": "Jobs over history (`tollbook reprice`, `tollbook reprocess`) and how far they have come.",
    "job_changes": "What each job has changed: sums before and after, by model and by what differs.",
    "meta": "Facts about this file: which journal position and which ledger it shows.",
}
UNPRICED_MODELS = (
    Column("served_model", "VARCHAR", "'provider/id as served'"),
    Column("provider", "VARCHAR", "as in calls"),
    Column("model", "VARCHAR", "as in calls"),
    Column("calls", "HUGEINT", "calls without a price"),
    Column("input_tokens", "HUGEINT", "their input tokens"),
    Column("output_tokens", "HUGEINT", "their output tokens"),
    Column("last_seen", "TIMESTAMPTZ", "start of the newest one"),
)
TABLES: dict[str, tuple[Column, ...]] = {
    **PUBLISHED,
    "unpriced_models": UNPRICED_MODELS,
    "budgets": BUDGETS,
    "budget_events": BUDGET_EVENTS,
}
UNITS = (("_usd", "US dollars"), ("_ms", "milliseconds"), ("_tokens", "tokens"), ("calls", "calls"))
METER_AMOUNTS = {"limit_amount", "spent", "remaining", "reserved", "estimate"}
HEAD = """# Tables

What `usage.duckdb` holds, for `tollbook sql`, `POST /api/v1/sql` and any program that opens DuckDB files
(open it read-only; it is replaced as a whole). Money is DECIMAL, never a float; times are UTC; NULL means
unknown, never nothing. This page is made from the code (`tollbook/tables_page.py`).
"""


def unit(column: Column) -> str:
    """The unit of a column's values; empty where there is none."""
    if column.type in ("TIMESTAMPTZ", "DATE"):
        return "UTC"
    if column.name in METER_AMOUNTS:
        return "the meter's"
    if column.name in ("plan_draw", "used", "size"):
        return "the plan's"
    if column.name in ("fee", "fee_share"):
        return "the currency"
    return next((text for ending, text in UNITS if column.name.endswith(ending)), "")


def tables_page() -> str:
    """The page's text."""
    parts = [HEAD]
    for name, meaning in MEANINGS.items():
        rows = [
            f"| `{column.name}` | {column.type} | {unit(column)} | {column.meaning} |"
            for column in TABLES[name]
        ]
        parts.append(f"## {name}\n{meaning}\n\n| column | type | unit | meaning |\n|---|---|---|---|")
        parts[-1] += "\n" + "\n".join(rows) + "\n"
    return "\n".join(parts)
