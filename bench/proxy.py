"""Live calls: what the proxy adds to a stream of 24 events, and what a stream costs it.

The same client talks to the same model server, directly and through tollbook. At a fixed rate the difference
is what an agent waits longer; at full speed on one machine it is mostly the queue of the others, so that is
where throughput and CPU are read. Every call must be in the ledger afterwards. LiteLLM's proxy carries the
same streams in the same run, at a tenth of the rate, which is what it can carry without a queue.
"""

# ruff: noqa: S603  # the commands are our own

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from bench import process_tree
from bench.peers import LiteLLM, PeerMissing
from bench.plan import Figures, Run
from bench.server import BenchError, Tollbook, end

PART: Final = "live calls"
CONNECTIONS: Final = (1, 16, 64)
PACED_PER_S: Final = 100.0
FULL_SPEED_CONNECTIONS: Final = 16
PEER_CONNECTIONS: Final = (1, 16)
PEER_PACED_PER_S: Final = 10.0
PATH: Final = "/v1/chat/completions"


def measure(run: Run) -> None:
    """Measure paced and at full speed, directly and through tollbook."""
    with _model_server() as model:
        door = f'[[door]]\nprovider = "openai"\nbase_url = "{model}/v1"\nlocal = true\n'
        with Tollbook(run.folder, files={"routes.toml": door}) as house:
            streams = 0
            for connections in CONNECTIONS:
                streams += _paced(run, house, model, connections)
            streams += _full_speed(run, house, model)
            _verify(house, streams)
        _measure_peer(run, model)


def _measure_peer(run: Run, model: str) -> None:
    """The same through LiteLLM's proxy, where it installs."""
    try:
        with LiteLLM(run.folder, model) as peer:
            run.versions["litellm"] = peer.version
            for connections in PEER_CONNECTIONS:
                _paced_peer(run, peer, model, connections)
            _full_speed_peer(run, peer)
    except PeerMissing as reason:
        run.missing["litellm"] = str(reason)
        run.say(f"litellm is missing: {reason}")


def _paced_peer(run: Run, peer: LiteLLM, model: str, connections: int) -> None:
    pace = (connections, run.lengths.check_s, PEER_PACED_PER_S)
    _load(peer.http + PATH, connections, 1.0, PEER_PACED_PER_S)
    figures = _added(_load(model + PATH, *pace), _load(peer.http + PATH, *pace))
    pace_told = f"{PEER_PACED_PER_S:.0f}/s, {peer.name}"
    run.keep(PART, {"connections": str(connections), "pace": pace_told}, figures)


def _full_speed_peer(run: Run, peer: LiteLLM) -> None:
    before = sum(process_tree.cpu_s(peer.pid).values())
    through = _load(peer.http + PATH, FULL_SPEED_CONNECTIONS, run.lengths.check_s, 0.0)
    used = sum(process_tree.cpu_s(peer.pid).values()) - before
    labels = {"connections": str(FULL_SPEED_CONNECTIONS), "pace": f"full speed, {peer.name}"}
    run.keep(PART, labels, _carried(through, used_s=used))


def _paced(run: Run, house: Tollbook, model: str, connections: int) -> int:
    pace = (connections, run.lengths.check_s, PACED_PER_S)
    _load(house.http + PATH, *pace[:1], 0.5, PACED_PER_S)
    direct, through = _load(model + PATH, *pace), _load(house.http + PATH, *pace)
    labels = {"connections": str(connections), "pace": f"{PACED_PER_S:.0f}/s"}
    run.keep(PART, labels, _added(direct, through))
    return int(through["streams"])


def _added(direct: dict[str, Any], through: dict[str, Any]) -> Figures:
    """What the way through adds to the direct one."""
    return {
        "added p50 ms": through["p50_ms"] - direct["p50_ms"],
        "added p99 ms": through["p99_ms"] - direct["p99_ms"],
        "p50 ms": through["p50_ms"],
        "p99 ms": through["p99_ms"],
        "direct p50 ms": direct["p50_ms"],
        "direct p99 ms": direct["p99_ms"],
    }


def _full_speed(run: Run, house: Tollbook, model: str) -> int:
    pace = (FULL_SPEED_CONNECTIONS, run.lengths.check_s, 0.0)
    direct = _load(model + PATH, *pace)
    before = process_tree.cpu_s(house.pid)["front"]
    through = _load(house.http + PATH, *pace)
    used = process_tree.cpu_s(house.pid)["front"] - before
    figures = _carried(through, used_s=used) | {"direct streams/s": direct["streams"] / direct["seconds"]}
    run.keep(PART, {"connections": str(FULL_SPEED_CONNECTIONS), "pace": "full speed"}, figures)
    return int(through["streams"])


def _carried(through: dict[str, Any], *, used_s: float) -> Figures:
    """What was carried at full speed, and what CPU it took."""
    return {
        "streams/s": through["streams"] / through["seconds"],
        "streams per CPU-second": through["streams"] / used_s if used_s else None,
        "CPU us/stream": used_s / through["streams"] * 1e6,
        "p50 ms": through["p50_ms"],
        "p99 ms": through["p99_ms"],
    }


def _verify(house: Tollbook, streams: int) -> None:
    """Every stream that was answered is one call with its tokens."""
    house.settle(int(house.health()["acknowledged"]))
    query = "SELECT count(*) FROM calls WHERE basis = 'proxy' AND output_tokens > 0 AND input_tokens = 20"
    found = int(house.ask("POST", "/api/v1/sql", {"query": query})["rows"][0][0])
    if found < streams:
        raise BenchError(f"{streams} streams were answered and {found} are in the ledger")


def _load(url: str, connections: int, seconds: float, per_s: float) -> dict[str, Any]:
    told = (url, connections, seconds, per_s)
    command = [sys.executable, "-m", "bench.proxy_load", *map(str, told)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 120)
    if done.returncode:
        raise BenchError(f"the client failed: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    if result["bad"]:
        raise BenchError(f"{url}: {result['bad']} streams did not end as they should")
    return result


@contextmanager
def _model_server() -> Iterator[str]:
    command = [sys.executable, "-m", "bench.model_server"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["http"]
    finally:
        end(process)
        if process.stdin:
            process.stdin.close()
