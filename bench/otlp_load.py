"""Load from a process of its own: as many new requests as the server acknowledges, and how long each took.

`python -m bench.otlp_load --http http://127.0.0.1:4318 --spans 512 --seconds 5` (or `--grpc HOST:PORT`)
prints one JSON object. Every body is new: some are made ahead, the rest while sending.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import time
from dataclasses import dataclass
from typing import Any

import uvloop

from bench import http1, http2
from bench.traffic import Gate, Load, Tally, Traffic, made_ahead

RESULT_GRACE_S = 60


@dataclass(frozen=True, slots=True)
class Result:
    """What one load came to. `busy`: share of a CPU that the generator itself used."""

    tally: Tally
    spans_per_s: float
    requests_per_s: float
    p50_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    busy: float


def _process(load: Load, started: Any, gate: Gate, results: Any) -> None:
    """The generator process: make bodies, wait for the word, send, report."""
    bodies = made_ahead(load)
    gc.disable()
    started.wait()
    cpu = time.process_time()

    async def send() -> Tally:
        traffic = Traffic(load, bodies, gate)
        await (http1.send if load.http else http2.send)(traffic)
        return traffic.tally

    tally = uvloop.run(send())
    tally.cpu_s = time.process_time() - cpu
    results.send(tally)


class Running:
    """A load whose process is ready: `begin` starts it, `result` waits for its end.

    `gate.value = False` holds it back meanwhile.
    """

    def __init__(self, load: Load) -> None:
        context = multiprocessing.get_context("spawn")
        self.load = load
        self.gate: Gate = context.Value("b", 1, lock=False)
        self._start = context.Barrier(2)
        self._results, theirs = context.Pipe(duplex=False)
        self._worker = context.Process(target=_process, args=(load, self._start, self.gate, theirs))
        self._worker.daemon = True
        self._worker.start()
        theirs.close()

    def begin(self) -> None:
        """Wait until the bodies are made, then let it send."""
        self._start.wait(timeout=RESULT_GRACE_S)

    @property
    def sending(self) -> bool:
        """Whether it has not reported yet."""
        return not self._results.poll()

    def result(self) -> Result:
        """What came back."""
        if not self._results.poll(self.load.seconds + RESULT_GRACE_S):
            self._worker.kill()
            raise TimeoutError("the load generator did not end: the server has stopped answering")
        tally: Tally = self._results.recv()
        self._worker.join()
        return _summary(tally)


def run(load: Load) -> Result:
    """Send a load from a process of its own."""
    running = Running(load)
    running.begin()
    return running.result()


def _summary(tally: Tally) -> Result:
    latencies = sorted(tally.latencies_s)
    return Result(
        tally=tally,
        spans_per_s=tally.spans / tally.seconds,
        requests_per_s=tally.acknowledged / tally.seconds,
        p50_ms=percentile_ms(latencies, 0.50),
        p99_ms=percentile_ms(latencies, 0.99),
        max_ms=percentile_ms(latencies, 1.0),
        busy=tally.cpu_s / tally.seconds,
    )


def percentile_ms(ordered_s: list[float], share: float) -> float | None:
    """The time below which `share` of the sorted times lie, in milliseconds; None without any."""
    if not ordered_s:
        return None
    return 1000 * ordered_s[min(len(ordered_s) - 1, int(share * len(ordered_s)))]


def main() -> None:
    """Parse the command line, send, print the summary."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--http", metavar="URL")
    target.add_argument("--grpc", metavar="HOST:PORT")
    parser.add_argument("--spans", type=int, default=1)
    parser.add_argument("--slots", type=int, default=16, help="requests under way at most")
    parser.add_argument("--rate", type=float, help="requests a second; default: as many as are answered")
    parser.add_argument("--seconds", type=float, default=5.0)
    given = parser.parse_args()
    result = run(
        Load(
            http=given.http,
            grpc=given.grpc,
            spans=(given.spans,),
            slots=given.slots,
            seconds=given.seconds,
            rate=given.rate,
        )
    )
    figures = {name: getattr(result, name) for name in Result.__slots__ if name != "tally"}
    counts = {
        name: getattr(result.tally, name) for name in ("acknowledged", "refused", "unanswered", "offset")
    }
    print(
        json.dumps(counts | {name: round(value, 3) for name, value in figures.items() if value is not None})
    )


if __name__ == "__main__":
    main()
