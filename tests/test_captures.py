"""The bill of real agents, held against what their model server really served.

`expected.json` beside each capture is that server's own record. A call whose usage the telemetry shows
nowhere must be there as unknown, or not at all, but never as a number.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from decimal import Decimal
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from billing.explain import explain
from billing.ledger import Ledger
from billing.loader import Loader
from billing.store import read
from catalog.access import fold_value
from catalog.catalog import Catalog
from catalog.provider_book import load_book
from ingest.dialect import default_dialects
from ingest.inflate import inflate
from ingest.journal import Frame, Kind
from tests import emitters_page
from tests.capture_score import CAPTURES, KINDS, RECEIVED_NS, UNTOLD, WRITES, expected, names

NAMES = names()
CATALOG = Catalog.load()


def requests(name: str) -> list[tuple[Kind, bytes]]:
    """The capture's bodies as the journal keeps them."""
    found = []
    for request in expected(name)["requests"]:
        body = (CAPTURES / name / request["file"]).read_bytes()
        if request["content_encoding"]:
            body = inflate(body, encoding=request["content_encoding"], limit_bytes=1 << 26)
        found.append((KINDS[request["signal"], "json" in request["content_type"]], body))
    return found


def frames(bodies: list[tuple[Kind, bytes]], start: int = 0, received_ns: int = RECEIVED_NS) -> list[Frame]:
    made = []
    for kind, body in bodies:
        start += len(body)
        made.append(Frame(start, kind, received_ns, body))
    return made


class Book:
    """A ledger that takes bodies."""

    def __init__(self, folder: Path) -> None:
        self._ledger = Ledger.open(folder / "ledger.duckdb", epoch="e", pricing=CATALOG)
        self._loader = Loader(self._ledger)

    def take(self, bodies: list[tuple[Kind, bytes]], received_ns: int = RECEIVED_NS) -> None:
        self._loader.load(self._loader.prepare(frames(bodies, self._ledger.position, received_ns)))

    def calls(self) -> pl.DataFrame:
        assert read(self._ledger.cursor(), "SELECT reason FROM rejects").is_empty()
        return read(
            self._ledger.cursor(),
            "SELECT * EXCLUDE (commit_no, revision, recorded_at, labels, modifiers, usage_details) "
            "FROM calls ORDER BY call_id",
        )

    def close(self) -> None:
        self._ledger.close()


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    opened = Book(tmp_path)
    yield opened
    opened.close()


def visible(name: str) -> list[dict[str, Any]]:
    return [call for call in expected(name)["calls"] if call["usage_visible_in"]]


def input_of(call: dict[str, Any]) -> int:
    return int(call["input_uncached"] + call["cache_read"] + sum(call[part] for part in WRITES))


def by_tokens(calls: pl.DataFrame) -> dict[tuple[int, int], dict[str, Any]]:
    known = calls.filter(pl.col("usage_known"))
    rows = {(row["input_tokens"], row["output_tokens"]): row for row in known.iter_rows(named=True)}
    assert len(rows) == len(known), "two calls with the same tokens: one was counted twice"
    return rows


@cache
def alone(name: str) -> pl.DataFrame:
    """The calls of a capture, all of it at once, in a ledger of its own."""
    return _calls_of([requests(name)])


@cache
def doubled(name: str) -> pl.DataFrame:
    """The calls of a capture and its clone, mixed, three requests at a time."""
    mixed = [*requests(name), *cloned(name)]
    random.Random(3).shuffle(mixed)
    return _calls_of([mixed[start : start + 3] for start in range(0, len(mixed), 3)])


def _calls_of(batches: list[list[tuple[Kind, bytes]]]) -> pl.DataFrame:
    with TemporaryDirectory() as folder:
        book = Book(Path(folder))
        try:
            for bodies in batches:
                book.take(bodies)
            return book.calls()
        finally:
            book.close()


@pytest.mark.parametrize("name", NAMES)
def test_every_visible_call_is_there_once_with_its_tokens_and_its_price(name: str) -> None:
    calls = alone(name)
    rows = by_tokens(calls)
    assert sorted(rows) == sorted((input_of(call), call["output"]) for call in visible(name))
    assert len(calls) <= len(expected(name)["calls"])
    for call in visible(name):
        _compare(call, rows[input_of(call), call["output"]])


def _compare(call: dict[str, Any], row: dict[str, Any]) -> None:
    told = set(call["told"]) - UNTOLD.get(call["response_id"], set())
    writes = sum(call[part] for part in WRITES)
    assert row["status"] == "ok"
    parts = {
        "cache_read": call["cache_read"],
        "cache_write": writes,
        "cache_write_1h": call["cache_write_1h"],
    }
    for part, tokens in parts.items():
        allowed = {tokens} if part in told else {tokens, None}  # a corner of the record may tell more
        assert row[f"{part}_tokens"] in allowed, part
    if "reasoning" in told:
        assert row["reasoning_tokens"] == call["reasoning"]
    assert row["provider"] == call["provider"]
    if call["response_id_visible_in"]:
        assert row["response_id"] == call["response_id"]
    if (call["session_id_source"] or "").startswith("telemetry record"):
        assert row["session_id"] == call["session_id"]
    if row["streaming"] is not None:
        assert row["streaming"] == call["streaming"]
    if _all_told(call, told):
        assert row["list_cost_usd"] == Decimal(call["list_cost_usd"])


def _all_told(call: dict[str, Any], told: set[str]) -> bool:
    """Whether every part that the call has, and that has a price of its own, is told."""
    parts = {
        "cache_read": call["cache_read"],
        "cache_write": sum(call[part] for part in WRITES),
        "cache_write_1h": call["cache_write_1h"],
    }
    return all(name in told for name, tokens in parts.items() if tokens)


@pytest.mark.parametrize("name", NAMES)
def test_what_failed_is_not_billed(name: str) -> None:
    failed = alone(name).filter(pl.col("status") == "error")
    assert failed["billed_cost_usd"].to_list() == [Decimal(0)] * len(failed)
    assert set(failed["cost_status"]) <= {"not_billable"}
    assert not failed["usage_known"].any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [1, 2])
def test_any_order_split_and_repetition_gives_the_same_calls(name: str, seed: int) -> None:
    bodies, rng = requests(name), random.Random(seed)
    shuffled = bodies + rng.sample(bodies, min(2, len(bodies)))
    rng.shuffle(shuffled)
    pieces = []
    while shuffled:
        size = rng.randint(1, 3)
        pieces.append(shuffled[:size])
        shuffled = shuffled[size:]
    assert _calls_of(pieces).equals(alone(name))


ID_KEYS = {
    *("gen_ai.response.id", "response_id", "ai.response.id"),
    *("request_id", "anthropic.request.id", "gen_ai.request.id"),
}
Message = ExportTraceServiceRequest | ExportLogsServiceRequest


def _parsed(kind: Kind, body: bytes) -> Message | None:
    if kind not in (Kind.TRACES_PROTO, Kind.LOGS_PROTO):
        return None
    message = ExportTraceServiceRequest() if kind == Kind.TRACES_PROTO else ExportLogsServiceRequest()
    message.ParseFromString(body)
    return message


def _ids(kind: Kind, body: bytes) -> set[bytes]:
    """Every trace, span, response and request id in a body, as its bytes stand there."""
    message = _parsed(kind, body)
    if message is None:
        return set() if "METRICS" in kind.name else _json_ids(json.loads(body))
    found = set()
    for record in _records(message):
        found |= {record.trace_id, record.span_id, getattr(record, "parent_span_id", b"")}
        found |= {a.value.string_value.encode() for a in record.attributes if a.key in ID_KEYS}
    return {value for value in found if len(value) >= 8}


def _records(message: Any) -> Iterator[Any]:
    for resource in getattr(message, "resource_spans", None) or message.resource_logs:
        for scope in getattr(resource, "scope_spans", None) or resource.scope_logs:
            yield from getattr(scope, "spans", None) or scope.log_records


def _json_ids(told: Any) -> set[bytes]:
    if isinstance(told, list):
        return set().union(*map(_json_ids, told)) if told else set()
    if not isinstance(told, dict):
        return set()
    found = set().union(*map(_json_ids, told.values())) if told else set()
    found |= {told[key].encode() for key in ("traceId", "spanId", "parentSpanId") if told.get(key)}
    if told.get("key") in ID_KEYS:
        found.add(str(told["value"].get("stringValue", "")).encode())
    return {value for value in found if len(value) >= 8}


def cloned(name: str) -> list[tuple[Kind, bytes]]:
    """The same telemetry of other calls: fresh ids of the same lengths, everything else equal."""
    bodies = requests(name)
    ids = set().union(*(_ids(kind, body) for kind, body in bodies))
    ids |= {call["response_id"].encode() for call in expected(name)["calls"] if call["response_id"]}
    longest_first = sorted(ids, key=len, reverse=True)
    return [(kind, _replaced(body, longest_first)) for kind, body in bodies]


def _replaced(body: bytes, ids: list[bytes]) -> bytes:
    for value in ids:
        body = body.replace(value, _another(value))
    return body


def _another(value: bytes) -> bytes:
    """Another id of the same shape: its last letters and digits replaced by others of their kind."""
    digest = hashlib.sha256(value).digest()
    if not value.isascii() or not value.decode().isprintable():
        return digest[: len(value)]
    letters = "abcdef" if set(value) <= set(b"0123456789abcdef") else "ghijklmnopqrstuvwxyz"
    tail = [_of_kind(c, letters, n) for c, n in zip(value[-12:].decode(), digest, strict=False)]
    return value[:-12] + "".join(tail).encode()


def _of_kind(character: str, letters: str, number: int) -> str:
    for kind in ("0123456789", letters, letters.upper()):
        if character in kind:
            return kind[(kind.index(character) + 1 + number % (len(kind) - 1)) % len(kind)]
    return character


@pytest.mark.parametrize("name", NAMES)
def test_a_clone_at_the_same_moment_is_as_many_calls_again(name: str) -> None:
    """Twice the calls, even where a log without any id is the same record again and only its span is not."""
    single, double = alone(name), doubled(name)
    assert len(double) == 2 * len(single)
    if name not in LOGS_WITHOUT_IDS:
        sums = ["input_tokens", "output_tokens", "list_cost_usd", "observation_count"]
        assert double.select(pl.col(sums).sum()).rows() == single.select(pl.col(sums).sum() * 2).rows()


LOGS_WITHOUT_IDS = {"codex-chatgpt-login", "codex-http", "codex-json-tool", "gemini-cli-http-tool"}
"""Their logs are byte for byte the same in a clone, so that half of what they tell is told once."""


@pytest.mark.parametrize("name", ["openinference-anthropic", "codex-json-tool", "agent-framework"])
def test_requests_in_reverse_across_restarts_are_the_same_calls(name: str, tmp_path: Path) -> None:
    for body in reversed(requests(name)):
        reopened = Book(tmp_path)
        reopened.take([body])
        reopened.close()
    reopened = Book(tmp_path)
    try:
        assert reopened.calls().equals(alone(name))
    finally:
        reopened.close()


@pytest.mark.parametrize("name", ["openinference-anthropic", "claude-code-traces-beta", "google-adk"])
def test_single_records_in_reverse_minutes_apart_are_the_same_calls(name: str, tmp_path: Path) -> None:
    """Every record in a request of its own, the last one first, five minutes between; half-way a restart."""
    records = [
        one for kind, body in reversed(requests(name)) for one in reversed(_single_records(kind, body))
    ]
    book = Book(tmp_path)
    for number, body in enumerate(records):
        if number == len(records) // 2:
            book.close()
            book = Book(tmp_path)
        book.take([body], received_ns=RECEIVED_NS + number * 300 * 10**9)
    try:
        assert book.calls().equals(alone(name))
    finally:
        book.close()


def _single_records(kind: Kind, body: bytes) -> list[tuple[Kind, bytes]]:
    """The request's spans or log records, each in a request of its own (metrics stay together)."""
    message = _parsed(kind, body)
    if message is None:
        return [(kind, body)]
    found = []
    for resource in getattr(message, "resource_spans", None) or getattr(message, "resource_logs", []):
        for scope in getattr(resource, "scope_spans", None) or resource.scope_logs:
            for record in getattr(scope, "spans", None) or scope.log_records:
                found.append((kind, _wrapped(message, resource, scope, record)))
    return found


def _wrapped(message: Message, resource: Any, scope: Any, record: Any) -> bytes:
    """A request with one record of another."""
    request: Any = type(message)()
    spans = isinstance(message, ExportTraceServiceRequest)
    holder = request.resource_spans.add() if spans else request.resource_logs.add()
    holder.resource.CopyFrom(resource.resource)
    group = holder.scope_spans.add() if spans else holder.scope_logs.add()
    group.scope.CopyFrom(scope.scope)
    (group.spans if spans else group.log_records).append(record)
    body: bytes = request.SerializeToString()
    return body


def test_all_captures_and_their_clones_into_one_ledger_are_exactly_the_sum(book: Book) -> None:
    """Originals and clones interleaved request by request, as if all these agents ran at once."""
    bodies = [body for name in NAMES for body in (*requests(name), *cloned(name))]
    random.Random(7).shuffle(bodies)
    for start in range(0, len(bodies), 24):
        book.take(bodies[start : start + 24])
    together = book.calls()
    assert len(together) == 2 * sum(len(alone(name)) for name in NAMES)
    assert together.equals(pl.concat([doubled(name) for name in NAMES]).sort("call_id"))


def test_a_call_can_be_explained_down_to_its_records(book: Book) -> None:
    book.take(requests("claude-code-traces-beta"))
    call = book.calls().row(0, named=True)
    explained = explain(book._ledger, CATALOG, call["call_id"], call["started_at"])
    assert explained is not None
    assert {told["signal"] for told in explained["observations"]} == {"log", "span"}
    lines = explained["price"]["lines"]
    assert sum(Decimal(line["usd"]) for line in lines) == call["list_cost_usd"]


def test_the_page_about_emitters_is_what_dialects_and_captures_say() -> None:
    assert emitters_page.PAGE.read_text() == emitters_page.page(), "python -m tests.emitters_page"


@pytest.mark.parametrize(
    "name",
    [
        "claude-code-grpc-cumulative",
        "claude-code-http",
        "codex-json-tool",
        "gemini-cli-http-tool",
        "qwen-code-grpc",
    ],
)
def test_where_only_metrics_arrive_their_sums_are_the_bill(name: str, book: Book) -> None:
    book.take([(kind, body) for kind, body in requests(name) if kind.name.startswith("METRICS")])
    told = book.calls()
    assert set(told["basis"]) == {"metric"}
    assert told["call_count"].null_count() == len(told)
    assert told["input_tokens"].sum() == sum(map(input_of, visible(name)))
    assert told["output_tokens"].sum() == sum(call["output"] for call in visible(name))


@pytest.mark.parametrize(
    ("name", "access", "evidence", "plan", "billed"),
    [
        ("codex-chatgpt-login", "subscription", "auth_mode=Chatgpt", "chatgpt", True),
        ("claude-code-subscription", "subscription", "anthropic.plan=max", "claude-max", True),
        ("gemini-cli-http-tool", "payg", "auth_type=gemini-api-key", None, False),
        ("claude-code-http", "unknown", "claude-code reaches anthropic under a plan or metered", None, False),
        ("codex-http", "unknown", "codex reaches openai under a plan or metered", None, False),
    ],
)
def test_the_agents_own_statement_decides_the_access(
    name: str, access: str, evidence: str, plan: str | None, billed: bool, book: Book
) -> None:
    """A plan billed nothing; a login that states nothing is assumed to be metered, and shown apart."""
    book.take(requests(name))
    calls = book.calls()
    facts = calls.select("access", "access_evidence", "plan_id").unique().rows()
    assert facts == [(access, evidence, plan)]
    assert calls["list_cost_usd"].null_count() == 0
    assert (calls["billed_cost_usd"] == 0).all() == billed


def test_dialects_and_catalogue_agree_on_what_a_statement_means() -> None:
    said = {
        (s.key, fold_value(s.value)): s.access for p in load_book().providers.values() for s in p.statements
    }
    for key in default_dialects().access:
        for value, access in key.values.items():
            assert said.get((key.key.text, fold_value(value)), access) == access
