"""What a record means: conventions about tokens, units and types, attribution, privacy, hostile values."""

from __future__ import annotations

import math
import re
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import polars as pl
import pytest

import ingest.decode as decode_module
from ingest import scan
from ingest.decode import decode
from ingest.dialect import DialectError, load_dialects
from ingest.observation import LINKS, OBSERVATIONS, REJECTS, UNRECOGNISED
from ingest.observe import observe
from ingest.segment import Frame, Kind
from tests.ingest_decode_support import (
    RECEIVED_NS,
    capture_frames,
    frame,
    kept,
    log_frame,
    observed,
    rows,
    span_frame,
)

CHAT = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai"}
IN, OUT = "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"
READ, WRITE = "gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cache_write.input_tokens"
REASONING, TOTAL = "gen_ai.usage.reasoning.output_tokens", "gen_ai.usage.total_tokens"
RECEIVED = datetime.fromtimestamp(RECEIVED_NS / 10**9, tz=UTC)


def chat(**attributes: Any) -> dict[str, Any]:
    return CHAT | {IN: 100, OUT: 10} | attributes


def one(attributes: dict[str, Any], **changes: Any) -> dict[str, Any]:
    (row,) = rows([span_frame(attributes, **changes)])
    return row


def test_the_schemas_are_what_comes_out() -> None:
    for found in (observed(), observed(span_frame(chat())), observed(*capture_frames("claude-code-error"))):
        assert dict(found.observations.schema) == OBSERVATIONS
        assert dict(found.links.schema) == LINKS
        assert dict(found.rejects.schema) == REJECTS
        assert dict(found.unrecognised.schema) == UNRECOGNISED


# --- tokens ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        ({IN: 100, READ: 30, WRITE: 20}, 100),  # a whole and its parts
        ({IN: 10, READ: 30, WRITE: 20}, 60),  # a whole cannot be smaller than its parts
        ({IN: 100, READ: 30, WRITE: 20, TOTAL: 160}, 150),  # the total proves that they are apart
        ({IN: 100, READ: 30, WRITE: 20, TOTAL: 110}, 100),
        ({IN: 0}, None),  # no answer comes of nothing
    ],
)
def test_input_includes_its_cached_parts(told: dict[str, int], wanted: int | None) -> None:
    row = one(CHAT | {OUT: 10} | told)
    assert row["input_tokens"] == wanted
    assert bool(row["anomalies"]) == (wanted not in {told[IN]})


def test_output_includes_reasoning() -> None:
    assert one(chat(**{OUT: 50, REASONING: 20}))["output_tokens"] == 50
    assert one(chat(**{OUT: 5, REASONING: 20}))["output_tokens"] == 25


def test_aliases_of_one_quantity_are_not_added() -> None:
    row = one(chat(**{READ: 7, "gen_ai.usage.cache_read_input_tokens": 7, "gen_ai.usage.prompt_tokens": 100}))
    assert (row["input_tokens"], row["cache_read_tokens"]) == (100, 7)


@pytest.mark.parametrize(
    ("key", "column"),
    [
        ("gen_ai.usage.cache_read_input_tokens", "cache_read_tokens"),
        ("gen_ai.usage.cached_input_tokens", "cache_read_tokens"),
        ("gen_ai.usage.input_tokens.cached", "cache_read_tokens"),
        ("gen_ai.usage.cache_creation.input_tokens", "cache_write_tokens"),
        ("gen_ai.usage.cache_creation_input_tokens", "cache_write_tokens"),
        ("gen_ai.usage.cache_write_input_tokens", "cache_write_tokens"),
        ("gen_ai.usage.input_tokens.cache_write", "cache_write_tokens"),
        ("gen_ai.usage.reasoning_tokens", "reasoning_tokens"),
        ("gen_ai.usage.details.thoughts_tokens", "reasoning_tokens"),
        ("gen_ai.usage.output_tokens.reasoning", "reasoning_tokens"),
    ],
)
def test_a_part_has_many_names(key: str, column: str) -> None:
    """Whoever sends them: no table is needed for the names that conventions had or have."""
    assert one(chat(**{key: 7}))[column] == 7


def test_parts_that_are_not_told_stay_null() -> None:
    row = one(chat())
    parts = ("cache_read_tokens", "cache_write_tokens", "cache_write_1h_tokens", "reasoning_tokens")
    assert [row[name] for name in parts] == [None] * 4


def test_writes_are_at_least_their_parts() -> None:
    ttl = "anthropic.usage.cache_creation.ephemeral_{}_input_tokens"
    row = one(chat(**{IN: 1000, WRITE: 0, ttl.format("5m"): 40, ttl.format("1h"): 2}))
    assert (row["cache_write_tokens"], row["cache_write_1h_tokens"]) == (42, 2)


@pytest.mark.parametrize("value", ["12", 12, 12.0, " 12 "])
def test_numbers_come_in_every_type(value: Any) -> None:
    assert one(chat(**{OUT: value}))["output_tokens"] == 12


@pytest.mark.parametrize(
    "value", [-1, 10**18, -(1 << 63), 12.5, math.nan, math.inf, "twelve", True, 1e300, "9" * 400]
)
def test_absurd_counts_are_unknown_and_noted(value: Any) -> None:
    row = one(chat(**{OUT: value}))
    assert (row["input_tokens"], row["output_tokens"]) == (100, None)
    assert row["anomalies"] == ["output_tokens:absurd"]


@pytest.mark.parametrize("value", ["None", "null", ""])
def test_words_for_nothing_tell_nothing(value: str) -> None:
    row = one(chat(**{OUT: value}))
    assert (row["output_tokens"], row["anomalies"]) == (None, [])


def test_a_failed_call_with_zeros_tells_nothing() -> None:
    row = one(chat(**{IN: 0, OUT: 0, "error.type": "timeout"}))
    assert (row["status"], row["error_type"], row["input_tokens"], row["output_tokens"]) == (
        "error",
        "timeout",
        None,
        None,
    )


def test_a_failed_call_with_usage_keeps_it() -> None:
    assert one(chat(**{"error.type": "content_filter"}))["output_tokens"] == 10


# --- what is a call --------------------------------------------------------------------------------------


def test_roles_follow_the_operation_not_the_name() -> None:
    operations = ("chat", "embeddings", "generate_content", "invoke_agent", "execute_tool", "create_agent")
    found = rows([span_frame(*(chat(**{"gen_ai.operation.name": name}) for name in operations))])
    assert [(row["operation"], row["role"]) for row in found] == [
        ("chat", "call"),
        ("embeddings", "call"),
        ("generate_content", "call"),
        ("invoke_agent", "aggregate"),
    ]


def test_service_name_alone_decides_nothing() -> None:
    disguise = {"service.name": "claude-code"}
    assert rows([span_frame({"input_tokens": 5}, resource=disguise)]) == []
    assert rows([log_frame({"event.name": "api_request", "input_tokens": 5}, scope="my.own.scope")]) == []


def test_what_looks_like_a_call_and_fits_nothing_is_counted() -> None:
    found = observed(span_frame({IN: 5}, {IN: 6}, {"http.method": "GET"}, scope="new.sdk")).unrecognised
    assert found.to_dicts() == [{"scope": "new.sdk", "name": "a span", "signal": "span", "count": 2}]


def test_spans_without_ids_are_rejected() -> None:
    for missing in ({"trace_id": bytes(16)}, {"span_id": b""}, {"trace_id": b"short"}):
        found = observed(span_frame(chat(), **missing))
        assert (found.observations.height, found.links.height) == (0, 0)
        assert found.rejects["reason"].to_list() == ["span without ids"]


def test_every_span_is_linked_whatever_it_is() -> None:
    found = observed(span_frame({"http.method": "GET"}, chat(), parent_span_id=b"parent!!"))
    assert found.links["span_id"].to_list() == [1, 2]
    assert found.links["parent_span_id"].to_list() == [int.from_bytes(b"parent!!", "big")] * 2


# --- time ------------------------------------------------------------------------------------------------


def test_a_log_without_time_takes_observed_then_its_timestamp_then_ours() -> None:
    told = {"event.name": "api_request", "event.timestamp": "2026-11-22T06:18:46.609Z"}
    observed_ns = RECEIVED_NS - 5 * 10**9
    cases = [
        (
            {"time_unix_nano": 0, "observed_time_unix_nano": observed_ns},
            "observed",
            RECEIVED - timedelta(seconds=5),
        ),
        ({"time_unix_nano": 0}, "attribute", datetime(2026, 11, 22, 6, 18, 46, 609000, tzinfo=UTC)),
    ]
    for changes, source, wanted in cases:
        (row,) = rows([log_frame(told, **changes)])
        assert (row["effective_from"], row["effective_at"]) == (source, wanted)
    (row,) = rows([log_frame({"event.name": "api_request"}, time_unix_nano=0)])
    assert (row["effective_from"], row["effective_at"]) == ("received", RECEIVED)


@pytest.mark.parametrize("start", [(1 << 64) - 1, 1 << 63, 5 * 10**18])
def test_impossible_times_are_noted_and_not_used(start: int) -> None:
    row = one(chat(), start_time_unix_nano=start, end_time_unix_nano=start)
    assert row["effective_from"] == "received"
    assert row["anomalies"] == ["time:absurd"]


def test_a_clock_that_is_ahead_is_noted() -> None:
    row = one(chat(), start_time_unix_nano=RECEIVED_NS + 10**13, end_time_unix_nano=RECEIVED_NS + 10**13)
    assert row["anomalies"] == ["clock:ahead"]
    assert row["received_at"] == RECEIVED


def test_a_span_that_ends_before_it_starts_has_no_duration() -> None:
    row = one(chat(), end_time_unix_nano=10**9)
    assert (row["duration_ms"], row["started_at"] == row["ended_at"]) == (None, True)
    assert row["anomalies"] == ["time:ends_before_start"]


def test_units_are_put_right() -> None:
    row = one(chat(**{"gen_ai.response.time_to_first_chunk": 0.25}))
    assert (row["ttft_ms"], row["duration_ms"], row["streaming"]) == (250.0, 100.0, True)


# --- money -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "wanted"),
    [
        ({"cost_usd": 0.1}, "0.1"),
        ({"cost_usd": 0.02043075, "cost_usd_micros": 20431}, "0.02043075"),
        ({"cost_usd_micros": 20431}, "0.020431"),
        ({"cost_usd": "0.000000000001"}, "0.000000000001"),
        ({"cost_usd": 2.5e-07}, "0.00000025"),
        ({"cost_usd": -1.0}, None),
        ({"cost_usd": math.nan}, None),
        ({"cost_usd": 1e30}, None),
        ({"cost_usd": "much"}, None),
    ],
)
def test_reported_cost_is_the_decimal_that_was_written(
    attributes: dict[str, Any], wanted: str | None
) -> None:
    (row,) = rows([log_frame({"event.name": "api_request", **attributes})])
    assert row["reported_cost_usd"] == (None if wanted is None else Decimal(wanted))
    assert bool(row["anomalies"]) == (wanted is None)


def test_a_zero_that_means_unknown_is_unknown() -> None:
    assert one(chat(**{"gen_ai.usage.cost": 0.0}))["reported_cost_usd"] is None
    assert one(chat(**{"operation.cost": 0.0}))["reported_cost_usd"] == 0


# --- attribution and privacy -----------------------------------------------------------------------------


def test_attribution_record_before_resource_own_keys_before_mapped_ones() -> None:
    resource = {
        "service.name": "shop",
        "team": "mapped",
        "tollbook.team": "resource",
        "service.namespace": "space",
    }
    row = one(chat(**{"tollbook.project": "record", "team.id": "record-mapped"}), resource=resource)
    assert (row["team"], row["project"], row["agent"]) == ("resource", "record", "shop")
    assert one(chat(department="d"), resource={"service.name": "s", "team": "t"})["team"] == "t"
    assert one(chat(**{"gen_ai.agent.name": "planner"}))["agent"] == "planner"


def test_the_operators_mapping_comes_right_after_our_own_keys() -> None:
    dialects = load_dialects({"team": ["squad.name"], "user_id": ["employee.number"]})
    told = span_frame(chat(**{"squad.name": "blue", "team.id": "red", "employee.number": 4711}))
    (row,) = observe(decode([told], dialects)).observations.to_dicts()
    assert (row["team"], row["user_id"]) == ("blue", "4711")
    with pytest.raises(DialectError, match="squad"):
        load_dialects({"squad": ["x"]})


def test_labels_are_maps_with_each_name_once() -> None:
    resource = {"tollbook.label.tier": "gold", "tollbook.label.zone": "eu"}
    row = one(chat(**{"tollbook.label.tier": "silver"}), resource=resource)
    assert row["labels"] == [{"key": "tier", "value": "silver"}, {"key": "zone", "value": "eu"}]
    assert one(chat())["labels"] is None


def test_a_stated_access_is_kept_with_its_evidence() -> None:
    row = one(chat(**{"tollbook.access": "payg"}))
    assert (row["access_hint"], row["access_evidence"]) == ("payg", "tollbook.access=payg")
    assert one(chat(**{"tollbook.access": "whatever"}))["access_hint"] is None


def test_who_carried_a_call_tells_headers_kind_of_key_and_plan() -> None:
    told = {
        "tollbook.headers": "anthropic-ratelimit-unified-5h-utilization=0.05",
        "tollbook.credential_kind": "sk-ant-oat",
        "tollbook.plan": "claude-max",
    }
    row = one(chat(**told))
    assert (row["headers"], row["credential_kind"], row["plan_hint"]) == tuple(told.values())
    assert one(chat())["headers"] is None


def test_email_addresses_are_dropped_unless_wanted() -> None:
    told = span_frame(chat(**{"user.id": "ann@example.com", "tollbook.label.who": "bob@example.com"}))
    (row,) = rows([told])
    assert (row["user_id"], row["labels"]) == (None, None)
    assert row["anomalies"] == ["email:label", "email:user.id"]
    assert "example.com" not in str(row)
    (kept,) = observe(decode([told]), keep_emails=True).observations.to_dicts()
    assert kept["user_id"] == "ann@example.com"


def test_model_versions_are_no_email_addresses() -> None:
    row = one(chat(**{"gen_ai.request.model": "claude-sonnet-4@20250514", "user.id": "someone@host"}))
    assert (row["request_model"], row["user_id"]) == ("claude-sonnet-4@20250514", "someone@host")


@pytest.mark.parametrize("secret", ["sk-ant-api03-abcdefghijkl", "AIzaSyD-1234567890", "Bearer abcdefghijkl"])
def test_credentials_never_come_through(secret: str) -> None:
    row = one(chat(**{"user.id": secret, "gen_ai.request.model": secret}))
    assert secret not in str(row)
    assert row["anomalies"] == ["credential:gen_ai.request.model", "credential:user.id"]


def test_urls_lose_user_query_and_fragment() -> None:
    row = one(
        chat(
            **{"url.full": "https://me:pw@api.example.com/v1/x?key=secret#top", "server.address": "h.example"}
        )
    )
    assert (row["url"], row["server_address"]) == ("https://api.example.com/v1/x", "h.example")
    assert "secret" not in str(row)
    assert "pw" not in str(row["attributes"])


def test_only_named_attributes_are_kept() -> None:
    row = one(chat(**{"gen_ai.input.messages": "the prompt", "custom": "x", "gen_ai.response.id": "r1"}))
    assert kept(row["attributes"]) == CHAT | {
        IN: 100,
        OUT: 10,
        "gen_ai.response.id": "r1",
        "service.name": "shop",
    }


def test_no_dialect_names_a_key_that_holds_content() -> None:
    """Section 5 of the emitter survey: prompts, answers, arguments, messages, bodies."""
    words = (
        "prompt.",
        "messages",
        "content",
        "arguments",
        "body",
        "output.value",
        "input.value",
        "completion.0",
    )
    dialects = load_dialects()
    names = [dialects.vocabulary.strings[key] for key in dialects.kept]
    plain = [name for name in names if "#" not in name and not name.endswith("_count")]
    assert not [name for name in plain if any(word in name for word in words)]
    inside = {name.partition("#")[2].rpartition("/")[2] for name in names if "#" in name}
    counts = r"tokens?(_above_1hr)?$|Tokens$|^(input|output|total|total_cost|reasoning|audio)$"
    facts = r"^(id|request_id|model|model_name|status_code|stream|service_?[tT]ier|api_base|)$"
    counts += "|^cache_(read|creation)$|TokenCount$|^(in|out)put_(cache_read|cache_creation|reasoning)$"
    assert not [name for name in inside if not re.search(f"{counts}|{facts}", name)]


# --- size ------------------------------------------------------------------------------------------------


def test_a_megabyte_in_an_attribute_is_dropped_and_noted() -> None:
    huge = "x" * (1 << 20)
    row = one(
        chat(**{"gen_ai.request.model": huge, "gen_ai.response.model": "m" * 1024, "gen_ai.prompt": huge})
    )
    assert (row["request_model"], len(row["response_model"])) == (None, 1024)
    assert row["anomalies"] == ["too_long:gen_ai.request.model"]
    assert len(str(row)) < 10_000


def test_a_label_with_an_endless_name_is_dropped_and_noted() -> None:
    row = one(chat(**{"tollbook.label." + "n" * 100_000: "v", "tollbook.label.fine": "v"}))
    assert row["labels"] == [{"key": "fine", "value": "v"}]
    assert (row["anomalies"], len(row["attributes"]) < 2000) == (["too_long:label"], True)


def test_a_hundred_thousand_spans_and_attributes_take_bounded_time() -> None:
    crowd = span_frame(*({"http.method": "GET"} for _ in range(20_000)))
    wide = span_frame(
        chat() | {f"noise.{i}": i for i in range(20_000)} | {f"tollbook.label.n{i}": "v" for i in range(100)}
    )
    started = time.process_time()
    found = observed(crowd, wide)
    assert time.process_time() - started < 10
    assert found.links.height == 20_001 - 1 + 1
    (row,) = found.observations.to_dicts()
    assert len(row["labels"]) == 32


@pytest.mark.parametrize("holders", [1, 200])
def test_millions_of_empty_fields_are_refused_alone(monkeypatch: pytest.MonkeyPatch, holders: int) -> None:
    """Two bytes a field on the wire are ninety in memory; in one message or many."""
    monkeypatch.setattr(scan, "MAX_FIELDS", 40_000)
    crowded = frame(Kind.TRACES_PROTO, nested(60_000 // holders) * holders, offset=7)
    found = observed(span_frame(chat()), crowded, span_frame(chat(), chat()))
    assert found.observations.height == 3
    assert found.rejects.select("journal_offset", "reason").rows() == [(7, "body has too many fields")]


def nested(count: int) -> bytes:
    """A resource holder with many empty scope holders."""
    size = 2 * count
    return bytes([0x0A, size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14]) + b"\x12\x00" * count


def test_garbage_beside_good_requests_costs_only_itself() -> None:
    good = span_frame(chat())
    bad = Frame(offset=7, kind=Kind.TRACES_PROTO, received_at_ns=RECEIVED_NS, body=b"\xff" * 50)
    found = observed(good, bad, frame(Kind.CONTROL, b"not OTLP at all"))
    assert found.observations.height == 1
    assert found.rejects.select("journal_offset", "reason").rows() == [(7, "body is not valid protobuf")]


def test_a_body_that_breaks_the_decoder_is_found_and_rejected_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    real = decode_module.read_columns

    def fragile(bodies: list[bytes], *rest: Any) -> Any:
        if any(b"poison" in body for body in bodies):
            raise RuntimeError("boom")
        return real(bodies, *rest)

    monkeypatch.setattr(decode_module, "read_columns", fragile)
    frames = [
        Frame(offset=i, kind=Kind.TRACES_PROTO, received_at_ns=RECEIVED_NS, body=span_frame(chat(x=x)).body)
        for i, x in enumerate(["a", "b", "poison", "c"])
    ]
    found = observed(*frames)
    assert found.observations["journal_offset"].to_list() == [0, 1, 3]
    assert found.rejects.select("journal_offset", "reason").rows() == [(2, "decoder failed: RuntimeError")]


def test_wrong_utf8_is_dropped_where_nobody_checked() -> None:
    told = span_frame(chat(**{"user.id": "QQQQ", "gen_ai.request.model": "fine"}))
    found = observed(frame(Kind.TRACES_PROTO, told.body.replace(b"QQQQ", b"\xff\xfe\xfd\xfc")))
    (row,) = found.observations.to_dicts()
    assert (row["user_id"], row["request_model"]) == (None, "fine")
    assert row["anomalies"] == ["not_utf8:user.id"]


def test_observations_can_be_put_together() -> None:
    """Frames over different buffers concatenate and keep their texts."""
    both = pl.concat([observed(span_frame(chat())).observations, observed(span_frame(chat())).observations])
    assert both["service"].to_list() == ["shop", "shop"]
