"""OTLP load from processes of its own: as many new requests as the receiver acknowledges, and how long each
took.

`python -m bench.otlp_load --http http://127.0.0.1:4318 --spans 512 --connections 16 --seconds 5` (or `--grpc
HOST:PORT`) prints one JSON object. Closed loop: every connection sends its next request when the last one is
answered. Bodies are made ahead (`--bodies` per process, all different) and each is sent once unless the time
outlasts them (then `repeated` says how many requests were not new).
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

import grpc
import grpc.aio
import uvloop

from bench.corpus import template

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


@dataclass(slots=True)
class Load:
    """What to send where."""

    http: str | None
    grpc: str | None
    spans: int
    connections: int
    seconds: float
    bodies: int
    gzip: bool = False


@dataclass(slots=True)
class Tally:
    """What one process saw. `offset`: the highest journal offset acknowledged."""

    acknowledged: int = 0
    refused: int = 0
    offset: int = 0
    latencies_s: list[float] = field(default_factory=list)
    seconds: float = 0.0
    cpu_s: float = 0.0
    made: int = 0


class Bodies:
    """Bodies made ahead, handed out one after another."""

    def __init__(self, load: Load) -> None:
        self.template = template(load.spans)
        fresh: Callable[[], bytes] = self.template.fresh
        self._bodies = [gzip.compress(fresh(), 6) if load.gzip else fresh() for _ in range(load.bodies)]
        self._next = 0

    def next(self) -> bytes:
        """The next body; from the beginning again when all are used."""
        body = self._bodies[self._next % len(self._bodies)]
        self._next += 1
        return body


class HttpConnection(asyncio.Protocol):
    """One keep-alive connection that always has one request under way."""

    def __init__(self, bodies: Bodies, tally: Tally, *, until: float, head: bytes) -> None:
        self._bodies, self._tally, self._until, self._head = bodies, tally, until, head
        self._received = b""
        self._sent_at = 0.0
        self._transport: asyncio.Transport | None = None
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        """Count the answer once its head and body are there; then send the next request."""
        self._received += data
        head, separator, rest = self._received.partition(b"\r\n\r\n")
        if not separator or len(rest) < int(_header(head, b"content-length") or 0):
            return
        self._received = b""
        self._count(head)
        if time.perf_counter() < self._until:
            self._send()
        else:
            self._end()

    def connection_lost(self, _exc: Exception | None) -> None:
        """A server that went away ends this connection's part."""
        self._end()

    def _count(self, head: bytes) -> None:
        self._tally.latencies_s.append(time.perf_counter() - self._sent_at)
        if head.startswith(b"HTTP/1.1 200"):
            self._tally.acknowledged += 1
            self._tally.offset = max(self._tally.offset, int(_header(head, b"tollbook-offset") or 0))
        else:
            self._tally.refused += 1

    def _send(self) -> None:
        body = self._bodies.next()
        self._sent_at = time.perf_counter()
        if self._transport:
            self._transport.writelines([self._head % len(body), body])

    def _end(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
        if self._transport:
            self._transport.close()


def _header(head: bytes, name: bytes) -> bytes | None:
    _, found, rest = head.partition(b"\r\n" + name + b": ")
    return rest.partition(b"\r\n")[0] if found else None


async def _send_http(load: Load, bodies: Bodies, tally: Tally) -> None:
    url = urlsplit(load.http or "")
    encoding = b"content-encoding: gzip\r\n" if load.gzip else b""
    head = (
        b"POST /v1/traces HTTP/1.1\r\nhost: " + url.netloc.encode() + b"\r\n"
        b"content-type: application/x-protobuf\r\n" + encoding + b"content-length: %d\r\n\r\n"
    )
    until = time.perf_counter() + load.seconds
    loop = asyncio.get_running_loop()
    connections = [
        (
            await loop.create_connection(
                lambda: HttpConnection(bodies, tally, until=until, head=head), url.hostname, url.port
            )
        )[1]
        for _ in range(load.connections)
    ]
    await asyncio.gather(*(connection.done for connection in connections))


async def _send_grpc(load: Load, bodies: Bodies, tally: Tally) -> None:
    """Four calls under way on each channel: one channel is one HTTP/2 connection."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    compression = grpc.Compression.Gzip if load.gzip else grpc.Compression.NoCompression
    channels = [
        grpc.aio.insecure_channel(load.grpc or "", options=options, compression=compression)
        for _ in range(max(1, load.connections // 4))
    ]
    until = time.perf_counter() + load.seconds
    calls = [channels[index % len(channels)].unary_unary(EXPORT) for index in range(load.connections)]
    await asyncio.gather(*(_call_repeatedly(call, bodies, tally, until=until) for call in calls))
    await asyncio.gather(*(channel.close() for channel in channels))


async def _call_repeatedly(export: Any, bodies: Bodies, tally: Tally, *, until: float) -> None:
    while (sent_at := time.perf_counter()) < until:
        call = export(bodies.next())
        try:
            await call
            trailers = dict(await call.trailing_metadata())
            tally.acknowledged += 1
            tally.offset = max(tally.offset, int(trailers.get("tollbook-offset", 0)))
        except grpc.aio.AioRpcError:
            tally.refused += 1
        tally.latencies_s.append(time.perf_counter() - sent_at)


def _process(load: Load, start: Any, results: Any) -> None:
    """One generator process: make the bodies, wait for the others, send, report."""
    bodies, tally = Bodies(load), Tally()
    start.wait()
    began, cpu = time.perf_counter(), time.process_time()
    uvloop.run(_send_http(load, bodies, tally) if load.http else _send_grpc(load, bodies, tally))
    tally.seconds = time.perf_counter() - began
    tally.cpu_s = time.process_time() - cpu
    tally.made = load.bodies
    results.put(asdict(tally))


def run(load: Load, processes: int = 1) -> dict[str, Any]:
    """Send `load` from `processes` processes of their own and sum up what they saw."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(processes), context.SimpleQueue()
    workers = [context.Process(target=_process, args=(load, start, results)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    tallies = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    return _summary(load, tallies)


def _summary(load: Load, tallies: list[dict[str, Any]]) -> dict[str, Any]:
    latencies = sorted(latency for tally in tallies for latency in tally["latencies_s"])
    acknowledged = sum(tally["acknowledged"] for tally in tallies)
    sent = acknowledged + sum(tally["refused"] for tally in tallies)
    seconds = max(tally["seconds"] for tally in tallies)
    return {
        "transport": "http" if load.http else "grpc",
        "spans_per_request": load.spans,
        "gzip": load.gzip,
        "connections": load.connections * len(tallies),
        "acknowledged": acknowledged,
        "refused": sent - acknowledged,
        "repeated": max(0, sent - sum(tally["made"] for tally in tallies)),
        "seconds": round(seconds, 3),
        "requests_per_s": round(acknowledged / seconds),
        "spans_per_s": round(acknowledged * load.spans / seconds),
        "p50_ms": _percentile_ms(latencies, 0.50),
        "p99_ms": _percentile_ms(latencies, 0.99),
        "generator_cpu_s": round(sum(tally["cpu_s"] for tally in tallies), 2),
        "offset": max(tally["offset"] for tally in tallies),
    }


def _percentile_ms(latencies_s: list[float], share: float) -> float | None:
    """The latency below which `share` of the sorted `latencies_s` lie, in milliseconds; None without any."""
    if not latencies_s:
        return None
    return round(1000 * latencies_s[min(len(latencies_s) - 1, int(share * len(latencies_s)))], 3)


def main() -> None:
    """Parse the command line, send, print the summary."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--http", metavar="URL")
    target.add_argument("--grpc", metavar="HOST:PORT")
    parser.add_argument("--spans", type=int, default=1)
    parser.add_argument("--connections", type=int, default=16, help="per process")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--bodies", type=int, help="made ahead per process; default: about 256 MB of them")
    parser.add_argument("--gzip", action="store_true")
    given = parser.parse_args()
    bodies = given.bodies or max(100, min(200_000, (256 << 20) // (len(template(given.spans).body))))
    load = Load(
        http=given.http,
        grpc=given.grpc,
        spans=given.spans,
        connections=given.connections,
        seconds=given.seconds,
        bodies=bodies,
        gzip=given.gzip,
    )
    print(json.dumps(run(load, given.processes)))


if __name__ == "__main__":
    main()
