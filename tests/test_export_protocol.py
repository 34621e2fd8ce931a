"""The short way of small exports, where every byte is ours. test_ingest_receivers asks both ways the same."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.ingest_server import Receivers, receivers
from tests.telemetry import export, new_call, span_of

TRACES = "/v1/traces"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Receivers]:
    async with receivers(tmp_path) as running:
        yield running


@dataclass(slots=True)
class Wire:
    """One connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def answer(self) -> tuple[int, dict[str, str]]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        await self.reader.readexactly(int(headers["content-length"]))
        return int(head[0].split(" ")[1]), headers


@pytest.fixture
async def wire(server: Receivers) -> AsyncIterator[Wire]:
    connected = Wire(*await asyncio.open_connection("127.0.0.1", server.http_port))
    yield connected
    connected.writer.close()
    await connected.writer.wait_closed()


def posted(seed: int, *, host: str = "127.0.0.1", path: str = TRACES) -> bytes:
    rng = random.Random(seed)
    body = export([span_of(new_call(rng), rng)])
    lines = (
        f"POST {path} HTTP/1.1",
        f"host: {host}",
        "content-type: application/x-protobuf",
        f"content-length: {len(body)}",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def test_an_export_may_come_in_any_pieces(server: Receivers, wire: Wire) -> None:
    whole = posted(1)
    for size in (7, 150, len(whole) - 3):
        for start in range(0, len(whole), size):
            wire.writer.write(whole[start : start + size])
            await wire.writer.drain()
            await asyncio.sleep(0.001)
        assert (await wire.answer())[0] == 200
    assert [frame.body for frame in server.frames()] == [whole.partition(b"\r\n\r\n")[2]] * 3


async def test_exports_sent_ahead_are_taken_in_order(server: Receivers, wire: Wire) -> None:
    sent = [posted(number) for number in range(40)]
    wire.writer.write(b"".join(sent))
    offsets = [int((await wire.answer())[1]["tollbook-offset"]) for _ in sent]
    assert offsets == sorted(set(offsets))
    assert [frame.body for frame in server.frames()] == [each.partition(b"\r\n\r\n")[2] for each in sent]


async def test_the_guard_stands_before_it(server: Receivers, wire: Wire) -> None:
    for _ in range(2):  # what was read once is remembered
        wire.writer.write(posted(1, host="rebound.example"))
        assert (await wire.answer())[0] == 403
    assert server.frames() == []


async def test_other_requests_on_the_same_connection_go_the_long_way(server: Receivers, wire: Wire) -> None:
    wrong = posted(2).replace(b"x-protobuf", b"x-nonsense")
    wire.writer.write(posted(1) + wrong + posted(3, path="/api/public/otel/v1/traces"))
    assert [(await wire.answer())[0] for _ in range(3)] == [200, 415, 200]
    assert len(server.frames()) == 2
