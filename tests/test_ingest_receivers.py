"""What the receivers answer over real HTTP and gRPC: every row of the bad-input table, and what is kept."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
import orjson
import pytest
import zstandard
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from ingest import grpc_receiver
from ingest.grpc_receiver import Crowd
from ingest.http_receiver import is_otlp_path
from ingest.intake import Reason, Transport
from ingest.journal import Kind
from ingest.limits import Limits
from ingest.otlp import SHAPES, Encoding, Signal
from ingest.validity import Content, NotOtlp, check, check_in_steps
from tests.ingest_server import Receivers, receivers

PROTOBUF, JSON = "application/x-protobuf", "application/json"
TRACE_JSON = b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"5b8e","name":"chat","unknown":1}]}]}]}'
LOGS_JSON = b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":null,"timeUnixNano":1}]}]}]}'
METRICS_JSON = b'{"resourceMetrics":[{"resource":null,"scopeMetrics":null}]}'


def trace_request(spans: int = 1, name: str = "chat") -> bytes:
    """A protobuf export of `spans` spans."""
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for number in range(spans):
        span = scope.spans.add(trace_id=b"t" * 16, span_id=number.to_bytes(8, "big"), name=name)
        attribute = span.attributes.add()
        attribute.key, attribute.value.string_value = "gen_ai.request.model", "gpt-4o"
    return request.SerializeToString()


def large_trace() -> bytes:
    """A protobuf export of 128,000 spans in one scope, about 10 MB."""
    request = ExportTraceServiceRequest.FromString(trace_request(1000))
    spans = request.resource_spans[0].scope_spans[0].spans
    for _ in range(7):
        spans.MergeFrom(list(spans))
    return request.SerializeToString()


LARGE_TRACE = large_trace()


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def rpc_status(self) -> status_pb2.Status:
        """The body as google.rpc.Status, whichever encoding it has."""
        if self.headers["content-type"] == JSON:
            return status_pb2.Status(**json.loads(self.body))
        assert self.headers["content-type"] == PROTOBUF
        return status_pb2.Status.FromString(self.body)


async def http(
    port: int,
    body: bytes,
    *,
    path: str = "/v1/traces",
    method: str = "POST",
    chunked: bool = False,
    **headers: str,
) -> Answer:
    """Send one request over a connection of its own. Header names are written with underscores."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    length = "transfer-encoding: chunked" if chunked else f"content-length: {len(body)}"
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    head = "\r\n".join([f"{method} {path} HTTP/1.1", "host: localhost", "connection: close", length, *lines])
    writer.write(head.encode() + b"\r\n\r\n")
    if chunked:
        for at in range(0, len(body), 10_000):
            part = body[at : at + 10_000]
            writer.write(b"%x\r\n%s\r\n" % (len(part), part))
        body = b"0\r\n\r\n"
    writer.write(body)
    try:
        answer = await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()
    head_bytes, _, rest = answer.partition(b"\r\n\r\n")
    status, *fields = head_bytes.decode().split("\r\n")
    parsed = dict(field.split(": ", 1) for field in fields)
    return Answer(int(status.split()[1]), parsed, rest)


async def export(
    address: str, body: bytes, signal: Signal = Signal.TRACES, compression: grpc.Compression | None = None
) -> tuple[bytes, dict[str, str | bytes]]:
    """One unary call with raw bytes; the answer and its trailers."""
    async with grpc.aio.insecure_channel(
        address, compression=compression, options=[("grpc.max_send_message_length", -1)]
    ) as channel:
        call = channel.unary_unary(f"/{SHAPES[signal].grpc_service}/Export")(body)
        answer = await call
        return answer, dict(await call.trailing_metadata())


async def export_refused(
    address: str, body: bytes, **more: Signal
) -> tuple[grpc.StatusCode, status_pb2.Status]:
    """The code and the google.rpc.Status of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await export(address, body, **more)
    details = dict(caught.value.trailing_metadata()).get("grpc-status-details-bin", b"")
    return caught.value.code(), status_pb2.Status.FromString(details)


@asynccontextmanager
async def full_disk(server: Receivers) -> AsyncIterator[None]:
    """The journal's directory is gone, so that no segment can be started: a fault of the disk."""
    journal = server.intake.journal
    journal._writer.give_up()
    journal._writer._spare = None
    moved = server.directory.rename(server.directory.with_name("away"))
    yield
    moved.rename(server.directory)


@pytest.fixture(params=[True, False], ids=["short", "long"])
async def server(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Receivers]:
    """Receivers with the usual limits; both ways of HTTP have to answer alike."""
    async with receivers(tmp_path, short=request.param) as running:
        yield running


@pytest.fixture(params=[True, False], ids=["short", "long"])
async def narrow(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Receivers]:
    """Receivers that take 10,000 bytes at most, and 30,000 of backlog."""
    limits = Limits(max_body_bytes=10_000, max_backlog_bytes=30_000)
    async with receivers(tmp_path, limits, short=request.param) as running:
        yield running


# --- what is taken ---


@pytest.mark.parametrize(
    ("path", "body", "content_type", "kind"),
    [
        ("/v1/traces", trace_request(), PROTOBUF, Kind.TRACES_PROTO),
        ("/v1/traces", TRACE_JSON, JSON, Kind.TRACES_JSON),
        ("/v1/traces", TRACE_JSON, "Application/JSON; charset=utf-8", Kind.TRACES_JSON),
        ("/api/public/otel/v1/traces", trace_request(), "application/X-Protobuf ;v=1", Kind.TRACES_PROTO),
        ("/v1/logs", b"\n\x00", PROTOBUF, Kind.LOGS_PROTO),
        ("/v1/logs", LOGS_JSON, JSON, Kind.LOGS_JSON),
        ("/v1/metrics", b"\n\x00", PROTOBUF, Kind.METRICS_PROTO),
        ("/v1/metrics", METRICS_JSON, JSON, Kind.METRICS_JSON),
    ],
)
async def test_a_valid_export_is_journaled_as_it_is(
    server: Receivers, path: str, body: bytes, content_type: str, kind: Kind
) -> None:
    answer = await http(server.http_port, body, path=path, content_type=content_type)
    [frame] = server.frames()
    assert (answer.status, frame.kind, frame.body) == (200, kind, body)
    assert int(answer.headers["tollbook-offset"]) == frame.offset
    is_json = "json" in content_type.lower()
    assert answer.headers["content-type"] == (JSON if is_json else PROTOBUF)
    assert answer.body == (b"{}" if is_json else b"")


def raw_deflate(body: bytes) -> bytes:
    """Deflate without the zlib wrapper, as some senders do."""
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(body) + stream.flush()


@pytest.mark.parametrize("size", [1, 40_000])
@pytest.mark.parametrize(
    ("encoding", "compress"),
    [
        ("gzip", gzip.compress),
        ("GZIP", lambda body: gzip.compress(body[:5]) + gzip.compress(body[5:])),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
        ("zstd", zstandard.compress),
        ("zstd", lambda body: zstandard.compress(body[:5]) + zstandard.compress(body[5:])),
        ("identity", bytes),
    ],
)
async def test_every_content_encoding_is_undone(
    server: Receivers, encoding: str, compress: Callable[[bytes], bytes], size: int
) -> None:
    body = trace_request(size)
    answer = await http(server.http_port, compress(body), content_type=PROTOBUF, content_encoding=encoding)
    assert answer.status == 200
    assert [frame.body for frame in server.frames()] == [body]


async def test_a_chunked_body_is_put_together(server: Receivers) -> None:
    body = trace_request(2000)
    assert (await http(server.http_port, body, chunked=True, content_type=PROTOBUF)).status == 200
    assert [frame.body for frame in server.frames()] == [body]


@pytest.mark.parametrize(
    ("body", "content_type"),
    [(b"", PROTOBUF), (b"{}", JSON), (b'{"resourceSpans":[]}', JSON), (b'{"resourceSpans":null}', JSON)],
)
async def test_an_empty_export_is_acknowledged_and_not_stored(
    server: Receivers, body: bytes, content_type: str
) -> None:
    before = int(
        (await http(server.http_port, trace_request(), content_type=PROTOBUF)).headers["tollbook-offset"]
    )
    answer = await http(server.http_port, body, content_type=content_type)
    assert (answer.status, int(answer.headers["tollbook-offset"])) == (200, before)
    assert len(server.frames()) == 1


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
async def test_grpc_takes_all_three_signals(server: Receivers, compression: grpc.Compression) -> None:
    bodies = {
        Signal.TRACES: LARGE_TRACE,  # beyond grpc's own limit of 4 MB
        Signal.LOGS: b"\n\x00",
        Signal.METRICS: b"\n\x00",
    }
    for signal, body in bodies.items():
        answer, trailers = await export(server.grpc, body, signal, compression)
        assert ExportTraceServiceResponse.FromString(answer) == ExportTraceServiceResponse()
        assert int(trailers["tollbook-offset"]) == server.intake.journal.durable
    frames = server.frames()
    assert [frame.kind for frame in frames] == [Kind.TRACES_PROTO, Kind.LOGS_PROTO, Kind.METRICS_PROTO]
    assert [frame.body for frame in frames] == list(bodies.values())
    assert server.intake.counts.acknowledged[Signal.LOGS, Transport.GRPC] == 1
    assert server.intake.counts.acknowledged_bytes == sum(map(len, bodies.values()))


# --- what is not OTLP ---

NOT_OTLP = [
    (b"hello", PROTOBUF),
    (b"\x08\x01", PROTOBUF),  # a well-formed message without resource_spans
    (trace_request()[:-3], PROTOBUF),
    (trace_request(20_000)[:-3], PROTOBUF),
    (trace_request(20_000) + b"\x0b", PROTOBUF),
    (trace_request(name="x" * 5).replace(b"xxxxx", b"\xff\xfexxx"), PROTOBUF),  # not UTF-8
    (trace_request(20_000, name="x" * 5)[::-1].replace(b"xxxxx", b"xxx\xfe\xff", 1)[::-1], PROTOBUF),
    (b"hello", JSON),
    (b"", JSON),
    (b"[]", JSON),
    (b'{"resourceLogs":[]}', JSON),
    (b'{"resourceSpans":{}}', JSON),
    (b'{"resourceSpans":[1]}', JSON),
    (b'{"resourceSpans":[{"scopeSpans":[{"spans":["x"]}]}]}', JSON),
    (TRACE_JSON[:-1], JSON),
    (TRACE_JSON.replace(b"chat", b"c" * 300_000)[:-1], JSON),
    (TRACE_JSON.replace(b"chat", b"c" * 300_000) + b"x", JSON),
    (b"[" * 300_000, JSON),
]


@pytest.mark.parametrize(("body", "content_type"), NOT_OTLP)
async def test_what_is_not_otlp_is_400_with_a_status_in_its_encoding(
    server: Receivers, body: bytes, content_type: str
) -> None:
    answer = await http(server.http_port, body, content_type=content_type)
    assert (answer.status, answer.headers["content-type"]) == (400, content_type)
    assert answer.rpc_status().code == 3
    assert answer.rpc_status().message
    assert "tollbook-offset" not in answer.headers
    assert server.intake.journal.durable == 0
    assert server.intake.counts.refused[Reason.NOT_OTLP] == 1


async def test_grpc_calls_that_come_together_are_few_groups(
    server: Receivers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_receiver, "_GATHER_S", 0.2)  # long enough for any machine to bring all of them
    async with grpc.aio.insecure_channel(server.grpc) as channel:
        call = channel.unary_unary(f"/{SHAPES[Signal.TRACES].grpc_service}/Export")
        for _ in range(2):
            await asyncio.gather(*(call(trace_request()) for _ in range(40)))
    assert len(server.frames()) == 80
    assert server.intake.journal.groups < 30


def test_callers_who_are_few_wait_for_no_others() -> None:
    crowd = Crowd()
    assert [crowd.begin() > 0 for _ in range(4)] == [False, False, True, True]
    for _ in range(4):
        crowd.end()
    waits = []
    for _ in range(3):  # one by one: only the first cannot know that it is alone
        waits.append(crowd.begin() > 0)
        crowd.end()
    assert waits == [True, False, False]


async def test_grpc_garbage_is_invalid_argument(server: Receivers) -> None:
    for body in (b"hello", trace_request()[:-1], b"\x08\x01"):
        code, status = await export_refused(server.grpc, body)
        assert (code, status.code) == (grpc.StatusCode.INVALID_ARGUMENT, 3)
        assert not status.details
    assert server.intake.journal.durable == 0


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        pytest.param("gzip", b"not gzip", id="gzip-not"),
        pytest.param("gzip", gzip.compress(trace_request())[:-5], id="gzip-cut"),
        pytest.param("gzip", gzip.compress(trace_request()) + b"rest", id="gzip-followed"),
        pytest.param("deflate", b"\x00\x01\x02", id="deflate-not"),
        pytest.param("deflate", zlib.compress(trace_request()) + b"rest", id="deflate-followed"),
        pytest.param("zstd", b"not zstd", id="zstd-not"),
        pytest.param("zstd", zstandard.compress(trace_request())[:-3], id="zstd-cut"),
    ],
)
async def test_damaged_compression_is_400(server: Receivers, encoding: str, body: bytes) -> None:
    answer = await http(server.http_port, body, content_type=PROTOBUF, content_encoding=encoding)
    assert (answer.status, answer.rpc_status().code) == (400, 3)
    assert server.intake.journal.durable == 0


async def test_wrong_types_are_415(server: Receivers) -> None:
    for headers in ({"content_type": "text/plain"}, {}, {"content_type": "application/x-protobufx"}):
        answer = await http(server.http_port, trace_request(), **headers)
        assert (answer.status, json.loads(answer.body)["code"]) == (415, "content_type")
    for encoding in ("br", "gzip, gzip"):
        answer = await http(server.http_port, b"x", content_type=JSON, content_encoding=encoding)
        assert (answer.status, answer.rpc_status().code) == (415, 3)
    assert server.intake.counts.refused[Reason.CONTENT_TYPE] == 3


async def test_only_post(server: Receivers) -> None:
    for method in ("GET", "PUT", "OPTIONS"):
        answer = await http(server.http_port, b"", method=method, content_type=JSON)
        assert (answer.status, answer.headers["allow"]) == (405, "POST")


# --- what is too much ---


async def test_too_large_is_413_before_and_after_decompression(narrow: Receivers) -> None:
    big = trace_request(1000)
    one_over = next(
        body for size in range(9800, 10_001) if len(body := trace_request(name="x" * size)) > 10_000
    )
    assert len(big) > len(one_over) == 10_001
    zeros = bytes(100_000_000)
    bombs = [
        (big, "identity"),
        (one_over, "identity"),
        (gzip.compress(big), "gzip"),
        (gzip.compress(zeros, 9), "gzip"),
        (b"".join([gzip.compress(b"")] * 400), "gzip"),
        (zlib.compress(zeros, 9)[:9000], "deflate"),
        (zstandard.compress(zeros), "zstd"),
        (zstandard.compress(b"") * 500, "zstd"),
    ]
    for body, encoding in bombs:
        answer = await http(narrow.http_port, body, content_type=PROTOBUF, content_encoding=encoding)
        assert (answer.status, answer.rpc_status().code) == (413, 8), encoding
    assert (await http(narrow.http_port, big, chunked=True, content_type=JSON)).status == 413
    assert narrow.intake.journal.durable == 0
    assert narrow.intake.held_bytes == 0


async def test_a_large_bomb_is_stopped_within_the_limit(server: Receivers) -> None:
    bomb = gzip.compress(bytes(200 << 20), 9)
    answer = await http(server.http_port, bomb, content_type=PROTOBUF, content_encoding="gzip")
    assert (answer.status, answer.rpc_status().code) == (413, 8)


async def test_grpc_beyond_the_limit_is_resource_exhausted(narrow: Receivers) -> None:
    code, _ = await export_refused(narrow.grpc, trace_request(1000))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert narrow.intake.journal.durable == 0


async def test_a_full_backlog_is_429_until_the_ledger_has_caught_up(narrow: Receivers) -> None:
    body = trace_request(100)
    taken = 0
    while (answer := await http(narrow.http_port, body, content_type=PROTOBUF)).status == 200:
        taken += 1
    assert 30_000 // len(body) <= taken < 30_000 // len(body) + 2
    assert (answer.status, answer.rpc_status().code, answer.headers["retry-after"]) == (429, 8, "2")
    code, status = await export_refused(narrow.grpc, body)
    assert (code, status.code) == (grpc.StatusCode.RESOURCE_EXHAUSTED, 8)
    assert retry_delay_s(status) == 2
    assert len(narrow.frames()) == taken
    narrow.intake.journal.release(narrow.intake.journal.durable)
    assert (await http(narrow.http_port, body, content_type=PROTOBUF)).status == 200
    assert narrow.intake.counts.refused[Reason.OVERLOAD] == 2


def retry_delay_s(status: status_pb2.Status) -> int:
    """What the RetryInfo in the details says."""
    [detail] = status.details
    info = error_details_pb2.RetryInfo()
    assert detail.Unpack(info)
    return info.retry_delay.seconds


async def test_a_failing_disk_is_503_and_then_all_is_well_again(server: Receivers) -> None:
    body = trace_request()
    async with full_disk(server):
        answer = await http(server.http_port, TRACE_JSON, content_type=JSON)
        assert (answer.status, answer.rpc_status().code, answer.headers["retry-after"]) == (503, 14, "2")
        code, status = await export_refused(server.grpc, body)
        assert (code, status.code, retry_delay_s(status)) == (grpc.StatusCode.UNAVAILABLE, 14, 2)
    assert (await http(server.http_port, body, content_type=PROTOBUF)).status == 200
    assert [frame.body for frame in server.frames()] == [body]


async def test_too_much_in_memory_is_429(tmp_path: Path) -> None:
    async with receivers(tmp_path, Limits(max_held_bytes=100_000)) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.http_port)
        writer.write(
            b"POST /v1/traces HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"content-length: 200000\r\n\r\n" + b" " * 150_000
        )
        async with asyncio.timeout(5):
            while server.intake.held_bytes < 100_000:
                await asyncio.sleep(0.01)
        assert (await http(server.http_port, trace_request(), content_type=PROTOBUF)).status == 429
        writer.close()  # in the middle of its body
        async with asyncio.timeout(5):
            while server.intake.held_bytes:
                await asyncio.sleep(0.01)
        assert (await http(server.http_port, trace_request(), content_type=PROTOBUF)).status == 200
        assert len(server.frames()) == 1
        del reader


# --- large bodies do not hold the loop ---

LARGE_BODIES = [
    (Encoding.PROTOBUF, LARGE_TRACE),
    (Encoding.PROTOBUF, trace_request(name="x" * 20_000_000)),
    (
        Encoding.JSON,
        orjson.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [{"name": "x" * 80}] * 150_000}]}]}),
    ),
]


FEW_STEPS = 10  # one span of 20 MB is parsed in one step: it cannot be cut


@pytest.mark.parametrize(("encoding", "body"), LARGE_BODIES)
def test_no_step_of_checking_a_large_body_is_long(encoding: Encoding, body: bytes) -> None:
    steps = check_in_steps(Signal.TRACES, encoding, body)
    worst_s, total_s, taken, content = 0.0, 0.0, 0, None
    while content is None:
        began_s = time.thread_time()
        try:
            next(steps)
        except StopIteration as end:
            content = end.value
        took_s = time.thread_time() - began_s
        worst_s, total_s, taken = max(worst_s, took_s), total_s + took_s, taken + 1
    assert content is Content.RECORDS
    assert taken > 1
    if taken > FEW_STEPS:
        assert worst_s < 0.8 * total_s, "no step may be nearly the whole of the work"


async def test_the_loop_goes_round_while_a_large_body_is_checked(server: Receivers) -> None:
    rounds = 0

    async def count() -> None:
        nonlocal rounds
        while True:
            rounds += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    offset = await server.intake.take(Signal.TRACES, Encoding.PROTOBUF, LARGE_BODIES[0][1])
    counting.cancel()
    assert offset == server.intake.journal.durable > len(LARGE_BODIES[0][1])
    assert rounds > 20


LARGE = trace_request(3000)


@settings(max_examples=60, deadline=None)
@given(at=st.integers(1, len(LARGE) - 1), byte=st.integers(0, 255), cut=st.booleans())
def test_piece_by_piece_agrees_with_protobuf_on_damaged_bodies(at: int, byte: int, cut: bool) -> None:
    body = LARGE[:at] if cut else LARGE[:at] + bytes([byte]) + LARGE[at + 1 :]
    assert verdict_in_steps(Encoding.PROTOBUF, body) == verdict_at_once(Encoding.PROTOBUF, body)


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, len(TRACE_JSON) - 1), byte=st.sampled_from(b'{}[]",: \n0x'), cut=st.booleans())
def test_piece_by_piece_agrees_with_orjson_on_damaged_bodies(at: int, byte: int, cut: bool) -> None:
    body = TRACE_JSON[:at] if cut else TRACE_JSON[:at] + bytes([byte]) + TRACE_JSON[at + 1 :]
    assert verdict_in_steps(Encoding.JSON, body) == verdict_at_once(Encoding.JSON, body)


def verdict_at_once(encoding: Encoding, body: bytes) -> bool:
    """Whether the body is taken, found by one parse."""
    try:
        check(Signal.TRACES, encoding, body)
    except NotOtlp:
        return False
    return True


def verdict_in_steps(encoding: Encoding, body: bytes) -> bool:
    """Whether the body is taken, found piece by piece."""
    try:
        list(check_in_steps(Signal.TRACES, encoding, body))
    except NotOtlp:
        return False
    return True


def test_steps_find_records_and_are_many() -> None:
    steps = check_in_steps(Signal.TRACES, Encoding.PROTOBUF, trace_request(20_000))
    count = 0
    while True:
        try:
            next(steps)
        except StopIteration as end:
            assert end.value is Content.RECORDS
            break
        count += 1
    assert count >= 8


def test_paths() -> None:
    assert is_otlp_path("/v1/logs") is Signal.LOGS
    assert is_otlp_path("/api/public/otel/v1/metrics") is Signal.METRICS
    assert is_otlp_path("/v1/messages") is None
