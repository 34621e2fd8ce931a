"""How much of the bill of real agents is right: `python -m tests.capture_score [capture ...]`.

Every capture goes through the same loader and ledger as journaled requests do, into a ledger of its own. A
call is exact when every quantity its server counted comes out as it was served (parts that are not told may
be NULL), with provider, models, streaming, ids, session and, where all parts are told, the price. A capture
is exact when all its visible calls are, none is counted twice or made up, and nothing that failed is billed.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

from billing.ledger import Ledger
from billing.loader import Loader
from billing.store import read
from catalog.catalog import Catalog
from ingest.inflate import inflate
from ingest.journal import Frame, Kind

CAPTURES = Path(__file__).parent.parent / "fixtures" / "captures"
RECEIVED_NS = 1_795_330_000_000_000_000
KINDS = {
    ("traces", False): Kind.TRACES_PROTO,
    ("traces", True): Kind.TRACES_JSON,
    ("logs", False): Kind.LOGS_PROTO,
    ("logs", True): Kind.LOGS_JSON,
    ("metrics", False): Kind.METRICS_PROTO,
    ("metrics", True): Kind.METRICS_JSON,
}
WRITES = ("cache_write_5m", "cache_write_1h", "cache_write_30m")
UNTOLD = {f"resp_traceloop_{n}": {"cache_write"} for n in (11, 12, 13)}
"""Parts that `told` names though no record of the call carries them: Traceloop's spans of OpenAI's Responses
tell no cache writes. The number stands nowhere in the capture: total is input and output, input holds the
writes unmarked, metrics tell input and output alone. `told` is of the emitter, which tells its writes for
Anthropic. So it stays NULL, is priced as uncached input, and `usage_complete` is false.
"""
Call = dict[str, Any]
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Score:
    """One capture's: how many calls are visible, how many of them exact, and what is wrong, in words."""

    capture: str
    visible: int
    exact: int
    faults: tuple[str, ...]


def names() -> list[str]:
    """The captures in fixtures/, in alphabetical order."""
    return sorted(path.parent.name for path in CAPTURES.glob("*/expected.json"))


@cache
def expected(capture: str) -> dict[str, Any]:
    """What was served, and how the requests of a capture were sent."""
    told: dict[str, Any] = json.loads((CAPTURES / capture / "expected.json").read_text())
    return told


def frames(capture: str) -> list[Frame]:
    """A capture's requests as the journal keeps them."""
    made, offset = [], 0
    for request in expected(capture)["requests"]:
        body = (CAPTURES / capture / request["file"]).read_bytes()
        if request["content_encoding"]:
            body = inflate(body, encoding=request["content_encoding"], limit_bytes=1 << 26)
        offset += len(body)
        kind = KINDS[request["signal"], "json" in (request["content_type"] or "")]
        made.append(Frame(offset, kind, RECEIVED_NS, body))
    return made


def billed(capture: str, catalog: Catalog) -> list[Row]:
    """The calls that a new ledger makes of a capture."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger.open(Path(folder) / "ledger.duckdb", epoch="score", pricing=catalog)
        loader = Loader(ledger)
        loader.load(loader.prepare(frames(capture)))
        rows = read(ledger.cursor(), "SELECT * EXCLUDE (labels, modifiers, usage_details) FROM calls")
        ledger.close()
    return rows.to_dicts()


def score(capture: str, rows: list[Row]) -> Score:
    """Holds the calls of a capture against what was served."""
    calls = expected(capture)["calls"]
    visible = [call for call in calls if call["usage_visible_in"]]
    found = {(row["input_tokens"], row["output_tokens"]): row for row in rows if row["usage_known"]}
    faults = list(_surplus(rows, calls, found))
    exact = 0
    for call in visible:
        row = found.get((_input(call), call["output"]))
        wrong = list(_differences(call, row)) if row else ["not found"]
        exact += not wrong
        faults += [f"n={call['n']}: {fault}" for fault in wrong]
    return Score(capture, len(visible), exact, tuple(faults))


def _surplus(rows: list[Row], calls: list[Call], found: dict[tuple[int, int], Row]) -> Iterator[str]:
    """Calls that were counted twice, made up, or billed though they failed."""
    known = [row for row in rows if row["usage_known"]]
    served = {(_input(call), call["output"]) for call in calls if call["usage_visible_in"]}
    if len(known) != len(found):
        yield f"{len(known) - len(found)} counted twice"
    if made_up := found.keys() - served:
        yield f"never served: {sorted(made_up)}"
    if len(rows) > len(calls):
        yield f"{len(rows)} calls of {len(calls)} served"
    if any(row["status"] == "error" and row["billed_cost_usd"] != 0 for row in rows):
        yield "a failure is billed"


def _input(call: Call) -> int:
    return int(call["input_uncached"] + call["cache_read"] + sum(call[part] for part in WRITES))


def _differences(call: Call, row: Row) -> Iterator[str]:
    writes = sum(call[part] for part in WRITES)
    parts = {
        "cache_read": call["cache_read"],
        "cache_write": writes,
        "cache_write_1h": call["cache_write_1h"],
        "reasoning": call["reasoning"],
    }
    must = set(call["told"]) - UNTOLD.get(call["response_id"], set())
    for name, served in parts.items():
        told = row[f"{name}_tokens"]
        if told != served and (told is not None or name in must):
            yield f"{name} {told} instead of {served}"
    yield from _wrong_facts(call, row)
    priced = all(row[f"{name}_tokens"] is not None for name, served in parts.items() if served)
    if priced and row["list_cost_usd"] != Decimal(call["list_cost_usd"]):
        yield f"costs {row['list_cost_usd']} instead of {call['list_cost_usd']}"


def _wrong_facts(call: Call, row: Row) -> Iterator[str]:
    facts = {"provider": call["provider"]}
    if call["response_id_visible_in"]:
        facts["response_id"] = call["response_id"]
    if (call["session_id_source"] or "").startswith("telemetry record"):
        facts["session_id"] = call["session_id"]
    if row["streaming"] is not None:
        facts["streaming"] = call["streaming"]
    for name, wanted in facts.items():
        if row[name] != wanted:
            yield f"{name} {row[name]!r} instead of {wanted!r}"
    models = {call["request_model"], call["response_model"]}
    if row["request_model"] not in {None, *models} or row["response_model"] not in {None, *models}:
        yield f"models {row['request_model']!r} and {row['response_model']!r}"
    if row["model"] is None:
        yield "model unknown"
    if row["status"] != "ok":
        yield f"status {row['status']}"


def main(wanted: list[str]) -> int:
    """Prints the table; 0 if everything is exact."""
    catalog = Catalog.load()
    scores = [score(capture, billed(capture, catalog)) for capture in wanted or names()]
    width = max(len(found.capture) for found in scores)
    for found in scores:
        verdict = "exact" if not found.faults else "; ".join(found.faults)
        print(f"{found.capture:<{width}}  {found.exact:>3} / {found.visible:<3} {verdict}")
    whole = sum(not found.faults for found in scores)
    print(f"captures exact: {whole} / {len(scores)}")
    print(f"calls exact: {sum(f.exact for f in scores)} / {sum(f.visible for f in scores)}")
    return 0 if whole == len(scores) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
