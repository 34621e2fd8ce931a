"""Identities: stable for ever, and of what a record says, not of how it was sent."""

from __future__ import annotations

import random
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import polars as pl
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from ingest.identity import text_keys
from ingest.segment import Frame, Kind
from tests.ingest_decode_support import capture_frames, frame, rows

MASK = (1 << 64) - 1
SEEDS = (0x746F6C6C626F6F6B, 0x9E3779B97F4A7C15)
FACTORS = dict(zip(SEEDS, (0xBF58476D1CE4E5B9, 0x94D049BB133111EB), strict=True))


# --- the documented function, written plainly ---------------------------------------------------------------


def mix(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def hashed(data: bytes, seed: int) -> int:
    h = mix(seed ^ len(data))
    if len(data) > 256:
        data = blake2b(data, digest_size=16).digest()
    for at in range(0, len(data), 8):
        h ^= int.from_bytes(data[at : at + 8], "little")
        h = (h ^ h >> 32) * FACTORS[seed] & MASK
    return h


def value_hash(value: AnyValue, seed: int) -> int:
    return hashed(value.SerializeToString(deterministic=True), seed)


def attributes_hash(pairs: Sequence[KeyValue], seed: int) -> int:
    factor = FACTORS[seed]
    both = ((hashed(pair.key.encode(), seed), value_hash(pair.value, seed)) for pair in pairs)
    return sum(mix(key ^ value * factor & MASK) for key, value in both) & MASK


def log_identity(request: ExportLogsServiceRequest) -> tuple[int, int]:
    """Of a request with one record."""
    holder = request.resource_logs[0]
    group = holder.scope_logs[0]
    log = group.log_records[0]
    halves = []
    for seed in SEEDS:
        parts = [
            attributes_hash(holder.resource.attributes, seed),
            attributes_hash(group.scope.attributes, seed),
            attributes_hash(log.attributes, seed),
            hashed(group.scope.name.encode(), seed),
            hashed(group.scope.version.encode(), seed),
            hashed(log.severity_text.encode(), seed),
            hashed(log.event_name.encode(), seed),
            value_hash(log.body, seed),
            log.time_unix_nano,
            log.observed_time_unix_nano,
            log.severity_number,
            *(int.from_bytes(log.trace_id[at : at + 8], "big") for at in (0, 8)),
            int.from_bytes(log.span_id, "big"),
        ]
        h = mix(seed ^ 2)
        for part in parts:
            h = mix(h ^ part)
        halves.append(h)
    return halves[0], halves[1]


# ------------------------------------------------------------------------------------------------------------


def pair(key: str, **value: Any) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(**value))


def request(**changes: Any) -> ExportLogsServiceRequest:
    """One record of a model call with every kind of value."""
    found = ExportLogsServiceRequest()
    holder = found.resource_logs.add()
    holder.resource.attributes.extend(
        [pair("service.name", string_value="claude-code"), pair("process.pid", int_value=-1)]
    )
    group = holder.scope_logs.add()
    group.scope.name, group.scope.version = "com.anthropic.claude_code.events", "2.1.330"
    log = LogRecord(
        time_unix_nano=1_795_328_326_609_000_000,
        observed_time_unix_nano=1_795_328_326_609_000_001,
        severity_text="INFO",
        severity_number=9,  # type: ignore[arg-type]
        body=AnyValue(string_value="claude_code.api_request"),
        trace_id=bytes(range(16)),
        span_id=bytes(range(8)),
        attributes=[
            pair("event.name", string_value="api_request"),
            pair("input_tokens", int_value=7),
            *(pair(f"n{number}", int_value=number) for number in (0, 127, 128, 1 << 48, 1 << 62, -1)),
            pair("cost_usd", double_value=0.02),
            pair("cached", bool_value=True),
            pair("nothing"),
            pair("long", string_value="é" * 400),
            pair("list", array_value={"values": [AnyValue(int_value=1), AnyValue(string_value="two")]}),
        ],
    )
    for name, value in changes.items():
        setattr(log, name, value)
    group.log_records.append(log)
    return found


def sent(found: ExportLogsServiceRequest) -> Frame:
    return frame(Kind.LOGS_PROTO, found.SerializeToString())


def identity(found: ExportLogsServiceRequest) -> tuple[int, int]:
    (row,) = rows([sent(found)])
    return row["id_hi"], row["id_lo"]


def test_the_function_is_the_documented_one() -> None:
    assert identity(request()) == log_identity(request())


def test_identities_are_pinned() -> None:
    """If this fails, stored history would be counted again: restore the function, do not change the
    numbers.
    """
    assert identity(request()) == (0xA31F8399D41FE553, 0x73EAD2B161EAACCE)
    spans = [row for row in rows(capture_frames("copilot-proto-tool")) if row["role"] == "call"]
    first = min(spans, key=lambda row: row["started_at"])
    assert (first["id_hi"], first["id_lo"]) == (0x1536C1C301CE4F04, 0x20D371EED44BB8A6)


def test_the_order_of_attributes_does_not_matter() -> None:
    shuffled = request()
    log = shuffled.resource_logs[0].scope_logs[0].log_records[0]
    attributes = list(log.attributes)
    random.Random(1).shuffle(attributes)
    del log.attributes[:]
    log.attributes.extend(attributes)
    assert identity(shuffled) == identity(request())


@pytest.mark.parametrize(
    "change",
    [
        {"time_unix_nano": 1_795_328_326_609_000_002},
        {"observed_time_unix_nano": 0},
        {"severity_text": "WARN"},
        {"severity_number": 10},
        {"trace_id": bytes(range(1, 17))},
        {"span_id": b""},
        {"event_name": "api_request"},
    ],
)
def test_every_part_of_a_record_counts(change: dict[str, Any]) -> None:
    assert identity(request(**change)) != identity(request())


def wrapped(number: int, payload: bytes) -> bytes:
    """A field that holds a message."""
    size = len(payload)
    return bytes([number << 3 | 2, size & 0x7F | 0x80, size >> 7]) + payload


@pytest.mark.parametrize(
    ("plain", "other"),
    [
        (b"\x18\x07", b"\x18\x87\x80\x00"),  # an integer written longer than it need be
        (b"\x10\x01", b"\x10\x05"),  # a flag that is neither 0 nor 1
        (b"\x0a\x01x", b"\x0a\x81\x00x"),  # a length written longer
        (b"\x0a\x01x", b"\x18\x07\x0a\x01x"),  # two members set: the last counts
        (b"", b"\xc2\x3e\x00"),  # nothing but an unknown field
    ],
)
def test_another_encoding_of_a_value_is_the_same_value(plain: bytes, other: bytes) -> None:
    found = []
    for value in (plain, other):
        record = wrapped(6, wrapped(1, b"event.name") + wrapped(2, b"\x0a\x0bapi_request"))
        record += wrapped(6, wrapped(1, b"key") + wrapped(2, value))
        group = wrapped(1, wrapped(1, b"com.anthropic.claude_code.events")) + wrapped(2, record)
        (row,) = rows([frame(Kind.LOGS_PROTO, wrapped(1, wrapped(2, group)))])
        found.append((row["id_hi"], row["id_lo"]))
    assert found[0] == found[1]


def test_twins_that_differ_in_one_attribute_are_two() -> None:
    """Claude Code counts its events: calls of the same millisecond differ in event.sequence alone."""
    seen = set()
    for sequence in range(20):
        found = request()
        found.resource_logs[0].scope_logs[0].log_records[0].attributes.append(
            pair("event.sequence", int_value=sequence)
        )
        seen.add(identity(found))
    assert len(seen) == 20


def test_a_record_that_comes_twice_is_one() -> None:
    twice = request()
    records = twice.resource_logs[0].scope_logs[0].log_records
    records.append(records[0])
    found = rows([sent(twice), sent(request())])
    assert len({(row["id_hi"], row["id_lo"]) for row in found}) == 1


def test_splitting_a_request_by_record_changes_nothing() -> None:
    whole = []
    parts = []
    for one in capture_frames("claude-code-traces-beta"):
        if one.kind != Kind.LOGS_PROTO:
            continue
        whole.append(one)
        found = ExportLogsServiceRequest.FromString(one.body)
        for holder in found.resource_logs:
            for group in holder.scope_logs:
                for log in group.log_records:
                    part = ExportLogsServiceRequest()
                    to = part.resource_logs.add(resource=holder.resource)
                    to.scope_logs.add(scope=group.scope, log_records=[log])
                    parts.append(sent(part))
    assert len(parts) > len(whole)
    assert ids(parts) == ids(whole)


def ids(frames: list[Frame]) -> set[tuple[int, int]]:
    return {(row["id_hi"], row["id_lo"]) for row in rows(frames)}


def test_keys_of_texts_are_the_same_wherever_a_text_stands() -> None:
    texts = pl.Series("response_id", ["resp_1", None, "resp_1", "", "x" * 300, "resp_2"])
    keys = text_keys(texts)
    assert (keys.name, keys.dtype, keys.null_count()) == ("response_id", pl.UInt64, 1)
    assert keys[0] == keys[2]
    assert keys.drop_nulls().n_unique() == 4
    assert text_keys(texts.slice(2)).to_list() == keys.slice(2).to_list()
    assert text_keys(texts.reverse()).to_list() == keys.reverse().to_list()
    assert text_keys(texts.clear()).is_empty()
    assert text_keys(pl.Series(["abc"])).item() == 6706915725959390413  # stored: it must stay
