"""Telemetry that was made to hurt, from request to ledger: what it costs is bounded, it is noted, and honest
calls beside it come out to the last digit.

`HOSTILE_RECORDS` sets how many records carry one response id (default 6,000; a million takes some minutes):
`make hostile`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans

import billing.ledger
from billing.fusion import MAX_SHARED
from billing.ledger import Ledger
from billing.loader import Loader
from billing.store import read
from catalog.catalog import Catalog
from ingest.journal import Frame, Kind
from tests.telemetry import attribute

CATALOG = Catalog.load()
RECORDS = int(os.environ.get("HOSTILE_RECORDS", "6000"))
PER_REQUEST = min(10_000, RECORDS // 4)
RECEIVED_NS = 1_795_330_000_000_000_000
IN = "gen_ai.usage.input_tokens"
CHAT: dict[str, Any] = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-4o-mini",
    IN: 1000,
    "gen_ai.usage.output_tokens": 100,
}
HONEST_USD = Decimal("0.00021")


class Book:
    """A ledger that takes requests of spans."""

    def __init__(self, folder: Path) -> None:
        self._ledger = Ledger.open(folder / "ledger.duckdb", epoch="e", pricing=CATALOG)
        self._loader = Loader(self._ledger)

    def take(self, *requests: ExportTraceServiceRequest) -> None:
        frames, end = [], self._ledger.position
        for request in requests:
            body = request.SerializeToString()
            end += len(body)
            frames.append(Frame(end, Kind.TRACES_PROTO, RECEIVED_NS, body))
        self._loader.load(self._loader.prepare(frames))

    def rows(self, query: str) -> list[dict[str, Any]]:
        return read(self._ledger.cursor(), query).to_dicts()

    def honest(self) -> list[tuple[int, int, Decimal]]:
        query = "SELECT input_tokens, output_tokens, list_cost_usd FROM calls WHERE service = 'honest'"
        return [tuple(row.values()) for row in self.rows(query)]  # type: ignore[misc]

    def close(self) -> None:
        self._ledger.close()


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    opened = Book(tmp_path)
    yield opened
    opened.close()


def group(request: ExportTraceServiceRequest, service: str, scope: str = "some.sdk") -> ScopeSpans:
    holder = request.resource_spans.add()
    holder.resource.attributes.append(attribute("service.name", service))
    spans = holder.scope_spans.add()
    spans.scope.name = scope
    return spans


def add(
    to: ScopeSpans, number: int, told: dict[str, Any] | None = None, *, trace: int = 0, parent: int = 0
) -> None:
    """A span of a second; without attributes one that tells of no call."""
    span = to.spans.add(
        trace_id=(trace or number).to_bytes(16, "big"),
        span_id=number.to_bytes(8, "big"),
        parent_span_id=parent.to_bytes(8, "big") if parent else b"",
        name="a span",
        start_time_unix_nano=RECEIVED_NS - 2 * 10**9,
        end_time_unix_nano=RECEIVED_NS - 10**9,
    )
    span.attributes.extend(attribute(key, value) for key, value in (told or {}).items())


def honest(number: int) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    told = CHAT | {"gen_ai.response.id": f"resp_of_an_honest_call_{number}"}
    add(group(request, "honest"), number, told)
    return request


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many stored records each batch had to look at."""
    counts: list[int] = []
    related: Callable[..., pl.DataFrame] = billing.ledger.related

    def counting(*arguments: Any) -> pl.DataFrame:
        found = related(*arguments)
        counts.append(len(found))
        return found

    monkeypatch.setattr(billing.ledger, "related", counting)
    return counts


def test_one_response_id_on_very_many_records(book: Book, looked_at: list[int]) -> None:
    """A batch looks at no more of them however many there are; each is noted, and none hides another call."""
    book.take(honest(1))
    for first in range(10, RECORDS, PER_REQUEST):
        request = ExportTraceServiceRequest()
        spans = group(request, "hostile", scope=f"sdk.{first // PER_REQUEST % 2}")
        for number in range(first, min(first + PER_REQUEST, RECORDS + 10)):
            add(spans, number, CHAT | {"gen_ai.response.id": "resp_that_is_on_every_record"})
        book.take(request)
    book.take(honest(2))
    assert max(looked_at) <= 4 * MAX_SHARED
    assert book.honest() == [(1000, 100, HONEST_USD)] * 2
    (noted,) = book.rows(
        "SELECT count(*) AS records, count(*) FILTER (list_contains(anomalies, 'response_id:not_unique')) AS "
        "noted FROM observations WHERE service = 'hostile'"
    )
    assert noted["noted"] == noted["records"] >= RECORDS - 10


@pytest.mark.parametrize("per_request", [50])
def test_a_constant_response_id_on_every_call_of_two_layers(book: Book, per_request: int) -> None:
    """Some emitters put one word on all their calls: these are told apart by their traces, batch by batch."""
    count = 400
    for first in range(1, count + 1, per_request):
        request = ExportTraceServiceRequest()
        outer, inner = (group(request, "constant", scope=scope) for scope in ("outer", "inner"))
        for number in range(first, first + per_request):
            told = CHAT | {"gen_ai.response.id": "an_id_that_never_changes", IN: 1000 + number}
            add(outer, 2 * number, told, trace=number)
            add(inner, 2 * number + 1, told, trace=number, parent=2 * number)
        book.take(request)
    (found,) = book.rows(
        "SELECT count(*) AS calls, sum(observation_count)::BIGINT AS records, sum(input_tokens)::BIGINT AS "
        "tokens FROM calls"
    )
    tokens = sum(1000 + number for number in range(1, count + 1))
    assert found == {"calls": count, "records": 2 * count, "tokens": tokens}


@pytest.mark.parametrize("cycle", [False, True])
def test_a_trace_of_a_hundred_thousand_spans(book: Book, cycle: bool) -> None:
    """A call below a chain, or in a cycle, of spans that are no calls, and the same call above them."""
    depth = 100_000
    request = ExportTraceServiceRequest()
    spans = group(request, "hostile")
    for number in range(2, depth):
        add(spans, number, trace=7, parent=number - 1)
    add(spans, 1, CHAT, trace=7, parent=depth - 1 if cycle else 0)
    inner = group(request, "hostile", scope="sdk.below")
    add(inner, depth, CHAT, trace=7, parent=depth - 1)
    book.take(request, honest(1))
    assert book.honest() == [(1000, 100, HONEST_USD)]
    found = book.rows("SELECT observation_count AS records FROM calls WHERE service = 'hostile'")
    assert found == [{"records": 2}]


def test_absurd_values_hurt_nobody_else(book: Book) -> None:
    request = ExportTraceServiceRequest()
    spans = group(request, "hostile")
    counts: tuple[Any, ...] = (2**63 - 1, -5, 10**9, "9" * 400, 1e308, float("nan"), "many", True)
    for number, absurd in enumerate(counts, start=1):
        add(spans, number, CHAT | {"gen_ai.usage.input_tokens": absurd})
    megabyte = "x" * (1 << 20)
    for number, key in enumerate(("gen_ai.request.model", "gen_ai.response.id", "session.id"), start=20):
        add(spans, number, CHAT | {key: megabyte})
    add(spans, 30, CHAT | {"gen_ai.input.messages": megabyte, "k" * (1 << 20): 1})
    book.take(request, honest(99))
    assert book.honest() == [(1000, 100, HONEST_USD)]
    unknown = book.rows("SELECT * FROM calls WHERE service = 'hostile' AND NOT usage_known")
    assert len(unknown) == len(counts)
    assert {row["billed_cost_usd"] for row in unknown} == {None}
    assert len(book.rows("SELECT id_lo FROM observations")) == len(counts) + 5
    codes = {code for row in book.rows("SELECT anomalies FROM observations") for code in row["anomalies"]}
    assert {"gen_ai.usage.input_tokens:absurd", "input_tokens:absurd"} & codes
    assert {"too_long:gen_ai.request.model", "too_long:gen_ai.response.id", "too_long:session.id"} <= codes
