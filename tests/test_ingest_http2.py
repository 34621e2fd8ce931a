"""The gRPC port, spoken to in raw HTTP/2 frames: what libraries do rarely, and what attackers do."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hpack import Decoder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.grpc_receiver import start_grpc
from ingest.http2 import MAX_FRAME_BYTES, MAX_HEAD_BYTES
from ingest.http2_frames import PREFACE, Fault
from ingest.intake import Intake
from ingest.journal import Journal, Kind
from ingest.limits import Limits
from ingest.otlp import SHAPES, Signal
from tests.ingest_server import Receivers, receivers

DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END, HEAD_ENDS, PADDED, WITH_PRIORITY, ACK = 1, 4, 8, 0x20, 1
BODY = b"\n\x00"  # one empty resource: valid for each signal
MESSAGE = b"\0" + struct.pack(">I", len(BODY)) + BODY
LEAST = (":method", "POST"), (":scheme", "http"), ("content-type", "application/grpc"), ("te", "trailers")


def frame(kind: int, flags: int, number: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", number) + payload


def path(signal: Signal = Signal.TRACES) -> str:
    return f"/{SHAPES[signal].grpc_service}/Export"


def literal(name: str, value: str) -> bytes:
    """A header that enters no table, unlike the encoder's own."""
    coded = [bytes((len(each),)) + each.encode() for each in (name, value)]
    return b"\0" + b"".join(coded)


def block(*more: tuple[str, str], signal: Signal = Signal.TRACES) -> bytes:
    return b"".join(literal(*each) for each in (*LEAST, (":path", path(signal)), *more))


@dataclass
class Client:
    """One connection; `settings`, window updates and acknowledgements of the server are passed over."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    decoder: Decoder = field(default_factory=Decoder)

    def send(self, *frames: bytes) -> None:
        self.writer.write(b"".join(frames))

    async def next(self) -> tuple[int, int, int, bytes]:
        """Kind, flags, stream and payload of the next frame that answers something."""
        async with asyncio.timeout(10):
            while True:
                head = await self.reader.readexactly(9)
                payload = await self.reader.readexactly(int.from_bytes(head[:3]))
                if head[3] not in (SETTINGS, WINDOW):
                    return head[3], head[4], int.from_bytes(head[5:]), payload

    async def answer(self) -> tuple[int, dict[str, str]]:
        """The stream and all headers of the next whole answer."""
        told: dict[str, str] = {}
        while True:
            kind, flags, number, payload = await self.next()
            assert kind in (HEADERS, DATA), (kind, payload)
            if kind == HEADERS:
                told |= {str(name): str(value) for name, value in self.decoder.decode(payload)}
            else:
                assert payload == bytes(5)
            if flags & END:
                return number, told

    async def fault(self) -> int:
        """The code with which the connection ends."""
        kind, _, _, payload = await self.next()
        assert kind == GOAWAY
        async with asyncio.timeout(10):
            assert await self.reader.read() == b""
        return int.from_bytes(payload[4:8])


@asynccontextmanager
async def connected(
    server: Receivers, *, greet: bytes = PREFACE + frame(SETTINGS, 0, 0)
) -> AsyncIterator[Client]:
    host, _, port = server.grpc.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(greet)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Receivers]:
    async with receivers(tmp_path) as running:
        yield running


async def test_a_call_that_comes_byte_by_byte(server: Receivers) -> None:
    async with connected(server, greet=b"") as client:
        whole = (
            PREFACE
            + frame(SETTINGS, 0, 0)
            + frame(HEADERS, HEAD_ENDS, 1, block())
            + frame(DATA, END, 1, MESSAGE)
        )
        for byte in whole:
            client.send(bytes((byte,)))
            await client.writer.drain()
            await asyncio.sleep(0)
        number, told = await client.answer()
        assert (number, told[":status"], told["grpc-status"]) == (1, "200", "0")
        assert int(told["tollbook-offset"]) == server.intake.journal.durable
        assert [each.body for each in server.frames()] == [BODY]
        assert server.intake.held_bytes == 0


async def test_every_way_to_cut_a_call_into_frames(server: Receivers) -> None:
    head = block()
    async with connected(server) as client:
        client.send(
            frame(HEADERS, HEAD_ENDS | PADDED | WITH_PRIORITY, 1, b"\x03" + bytes(5) + head + bytes(3)),
            frame(DATA, PADDED, 1, b"\x02" + MESSAGE[:3] + bytes(2)),
            frame(DATA, 0, 1),
            frame(77, 0xFF, 1, b"of a kind that is not known"),
            frame(PRIORITY, 0, 1, bytes(5)),
            frame(DATA, 0, 1, MESSAGE[3:]),
            frame(DATA, END | PADDED, 1, b"\0"),
            frame(HEADERS, 0, 3, head[:20]),
            frame(CONTINUATION, 0, 3, head[20:30]),
            frame(CONTINUATION, HEAD_ENDS, 3, head[30:]),
            frame(DATA, 0, 3, MESSAGE),
            frame(HEADERS, HEAD_ENDS | END, 3, literal("more", "to tell")),
        )
        answers = dict([await client.answer(), await client.answer()])
        assert {number: told["grpc-status"] for number, told in answers.items()} == {1: "0", 3: "0"}
        assert [each.body for each in server.frames()] == [BODY, BODY]


async def test_the_same_bytes_of_a_head_mean_what_the_table_says_now(server: Receivers) -> None:
    """Entry 62 is the last one entered: the same block asks for one service, then for another."""
    same = b"".join(literal(*each) for each in LEAST) + b"\xbe"
    async with connected(server) as client:
        for turn, signal in enumerate((Signal.TRACES, Signal.LOGS, Signal.METRICS)):
            coded = path(signal).encode()
            entered = same[:-1] + b"\x44" + bytes((len(coded),)) + coded
            for place, head in enumerate((entered, same, same)):
                number = 1 + 2 * (3 * turn + place)
                client.send(frame(HEADERS, HEAD_ENDS, number, head), frame(DATA, END, number, MESSAGE))
                assert (await client.answer())[1]["grpc-status"] == "0"
    kinds = (Kind.TRACES_PROTO, Kind.LOGS_PROTO, Kind.METRICS_PROTO)
    assert [each.kind for each in server.frames()] == [kind for kind in kinds for _ in range(3)]


async def test_answers_wait_for_the_clients_windows(server: Receivers) -> None:
    none = struct.pack(">HI", 4, 0)
    async with connected(server, greet=PREFACE + frame(SETTINGS, 0, 0, none)) as client:
        for number in (1, 3):
            client.send(frame(HEADERS, HEAD_ENDS, number, block()), frame(DATA, END, number, MESSAGE))
        async with asyncio.timeout(10):
            while len(server.frames()) < 2:
                await asyncio.sleep(0.01)
        client.send(frame(PING, 0, 0, b"are you?"))
        assert await client.next() == (PING, ACK, 0, b"are you?")
        client.send(frame(WINDOW, 0, 1, struct.pack(">I", 5)))
        assert (await client.answer())[0] == 1
        client.send(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 100)))
        assert (await client.answer())[0] == 3


async def test_a_call_that_is_reset_is_forgotten(server: Receivers) -> None:
    async with connected(server) as client:
        client.send(frame(HEADERS, HEAD_ENDS, 1, block()), frame(DATA, 0, 1, MESSAGE[:4]))
        client.send(frame(RST, 0, 1, bytes(4)), frame(DATA, END, 1, MESSAGE[4:]))
        client.send(frame(HEADERS, HEAD_ENDS, 3, block()), frame(DATA, END, 3, MESSAGE))
        assert (await client.answer())[0] == 3
        assert (len(server.frames()), server.intake.held_bytes) == (1, 0)


async def test_a_connection_that_is_lost_holds_nothing(server: Receivers) -> None:
    async with connected(server) as client:
        client.send(frame(HEADERS, HEAD_ENDS, 1, block()), frame(DATA, 0, 1, MESSAGE[:4]))
        async with asyncio.timeout(10):
            while not server.intake.held_bytes:
                await asyncio.sleep(0.01)
    async with asyncio.timeout(10):
        while server.intake.held_bytes:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("head", "message", "status"),
    [
        (block(signal=Signal.LOGS).replace(b"/Export", b"/Import"), MESSAGE, "12"),
        (block(("grpc-encoding", "snappy")), b"\1" + MESSAGE[1:], "12"),
        (block(("grpc-encoding", "gzip")), b"\1" + MESSAGE[1:], "3"),
        (block(), MESSAGE + MESSAGE, "3"),
        (block(), MESSAGE[:-1], "3"),
        (block(), b"", "3"),
        (block(), b"\2" + MESSAGE[1:], "3"),
        (block(), b"\0\0\0\0\1\n", "3"),
    ],
)
async def test_a_call_that_cannot_be_taken(
    server: Receivers, head: bytes, message: bytes, status: str
) -> None:
    async with connected(server) as client:
        client.send(frame(HEADERS, HEAD_ENDS, 1, head), frame(DATA, END, 1, message))
        told = (await client.answer())[1]
        assert (told["grpc-status"], bool(told["grpc-message"])) == (status, True)
        assert server.frames() == []
        assert server.intake.held_bytes == 0


async def test_what_is_not_grpc_is_415(server: Receivers) -> None:
    async with connected(server) as client:
        head = block().replace(b"application/grpc", b"application/json")
        client.send(frame(HEADERS, HEAD_ENDS, 1, head))
        assert (await client.answer())[1] == {":status": "415"}
        kind, _, number, payload = await client.next()
        assert (kind, number, payload) == (RST, 1, bytes(4))


async def test_more_streams_than_allowed_are_refused(tmp_path: Path) -> None:
    async with receivers(tmp_path, Limits(max_concurrent_rpcs=2)) as server, connected(server) as client:
        for number in (1, 3, 5):
            client.send(frame(HEADERS, HEAD_ENDS, number, block()))
        kind, _, number, payload = await client.next()
        assert (kind, number, int.from_bytes(payload)) == (RST, 5, Fault.REFUSED_STREAM)
        async with connected(server) as other:  # the limit is one for all connections
            other.send(frame(HEADERS, HEAD_ENDS, 1, block()))
            assert (await other.answer())[1]["grpc-status"] == "8"
        client.send(frame(DATA, END, 1, MESSAGE))
        assert (await client.answer())[1]["grpc-status"] == "0"


OPENED = frame(HEADERS, HEAD_ENDS, 1, block())


@pytest.mark.parametrize(
    ("sent", "fault"),
    [
        (frame(HEADERS, HEAD_ENDS, 2, block()), Fault.PROTOCOL_ERROR),
        (frame(HEADERS, HEAD_ENDS, 1, b"\xff\xff\xff\xff\x7f"), Fault.COMPRESSION_ERROR),
        (frame(HEADERS, HEAD_ENDS, 1, bytes(MAX_HEAD_BYTES + 1)), Fault.ENHANCE_YOUR_CALM),
        (frame(HEADERS, HEAD_ENDS | PADDED, 1, b"\x09short"), Fault.PROTOCOL_ERROR),
        (frame(HEADERS, 0, 1, block()) + frame(PING, 0, 0, bytes(8)), Fault.PROTOCOL_ERROR),
        (frame(HEADERS, 0, 1, block()) + frame(DATA, 0, 1, MESSAGE), Fault.PROTOCOL_ERROR),
        (frame(HEADERS, 0, 1) + frame(CONTINUATION, 0, 1), Fault.ENHANCE_YOUR_CALM),
        (frame(HEADERS, 0, 1) + 5 * frame(CONTINUATION, 0, 1, bytes(4096)), Fault.ENHANCE_YOUR_CALM),
        (frame(CONTINUATION, HEAD_ENDS, 1, block()), Fault.PROTOCOL_ERROR),
        (frame(DATA, 0, 1, MESSAGE), Fault.PROTOCOL_ERROR),
        (OPENED + frame(DATA, END, 0, MESSAGE), Fault.PROTOCOL_ERROR),
        (OPENED + frame(HEADERS, HEAD_ENDS, 1, literal("not", "the end")), Fault.PROTOCOL_ERROR),
        (frame(PING, 0, 0, bytes(7)), Fault.FRAME_SIZE_ERROR),
        (frame(SETTINGS, 0, 0, bytes(5)), Fault.FRAME_SIZE_ERROR),
        (frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 1 << 31)), Fault.FLOW_CONTROL_ERROR),
        (frame(WINDOW, 0, 0, b"\x7f\xff\xff\xff"), Fault.FLOW_CONTROL_ERROR),
        (frame(PUSH, HEAD_ENDS, 1, bytes(4)), Fault.PROTOCOL_ERROR),
        (struct.pack(">I", MAX_FRAME_BYTES + 1)[1:] + bytes(6), Fault.FRAME_SIZE_ERROR),
    ],
)
async def test_a_peer_at_fault_is_told_so_and_left(server: Receivers, sent: bytes, fault: Fault) -> None:
    async with connected(server) as client:
        client.send(sent)
        assert await client.fault() == fault
    assert server.intake.held_bytes == 0


async def test_http_1_is_not_spoken_here(server: Receivers) -> None:
    async with connected(server, greet=b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n") as client:
        assert await client.fault() == Fault.PROTOCOL_ERROR


async def test_a_server_that_stops_answers_what_it_has_begun(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal", segment_bytes=1 << 20)
    grpc_server, port = await start_grpc(Intake(journal, Limits()), host="127.0.0.1", port=0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    client = Client(reader, writer)
    client.send(PREFACE, frame(SETTINGS, 0, 0), OPENED, frame(PING, 0, 0, bytes(8)))
    assert (await client.next())[0] == PING
    stopping = asyncio.create_task(grpc_server.stop(10))
    assert (await client.next())[0] == GOAWAY
    client.send(frame(HEADERS, HEAD_ENDS, 3, block()), frame(DATA, END, 1, MESSAGE))
    kind, _, number, payload = await client.next()
    assert (kind, number, int.from_bytes(payload)) == (RST, 3, Fault.REFUSED_STREAM)
    assert (await client.answer())[1]["grpc-status"] == "0"
    await stopping
    assert await reader.read() == b""
    writer.close()
    await journal.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    frames=st.lists(
        st.tuples(st.integers(0, 10), st.integers(0, 255), st.integers(0, 5), st.binary(max_size=40))
    )
)
async def test_no_frames_do_any_harm(server: Receivers, frames: list[tuple[int, int, int, bytes]]) -> None:
    async with connected(server) as client:
        client.send(*(frame(*each) for each in frames))
        client.writer.write_eof()
        async with asyncio.timeout(10):
            await client.reader.read()
    async with connected(server) as client:
        client.send(OPENED, frame(DATA, END, 1, MESSAGE))
        assert (await client.answer())[1]["grpc-status"] == "0"
    assert server.intake.held_bytes == 0
