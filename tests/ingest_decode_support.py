"""What the decode and dialect tests share: captures as journal frames, and decoding in one step."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from ingest.decode import decode
from ingest.observe import Observed, observe
from ingest.segment import Frame, Kind

CAPTURES = Path(__file__).parent.parent / "fixtures" / "captures"
RECEIVED_NS = 1_795_330_000_000_000_000  # after every capture
KINDS = {
    ("traces", False): Kind.TRACES_PROTO,
    ("traces", True): Kind.TRACES_JSON,
    ("logs", False): Kind.LOGS_PROTO,
    ("logs", True): Kind.LOGS_JSON,
    ("metrics", False): Kind.METRICS_PROTO,
    ("metrics", True): Kind.METRICS_JSON,
}


def expected(capture: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CAPTURES / capture / "expected.json").read_text())
    return found


def frame(kind: Kind, body: bytes, *, offset: int = 1) -> Frame:
    return Frame(offset=offset, kind=kind, received_at_ns=RECEIVED_NS, body=body)


def capture_frames(capture: str) -> list[Frame]:
    """The requests of a capture, in the order they were sent."""
    frames = []
    for number, request in enumerate(expected(capture)["requests"], start=1):
        body = (CAPTURES / capture / request["file"]).read_bytes()
        if request["content_encoding"] == "gzip":
            body = gzip.decompress(body)
        is_json = "json" in (request["content_type"] or "")
        frames.append(frame(KINDS[request["signal"], is_json], body, offset=number))
    return frames


def observed(*frames: Frame) -> Observed:
    return observe(decode(frames))


def rows(frames: Sequence[Frame]) -> list[dict[str, Any]]:
    return observed(*frames).observations.to_dicts()


def comparable(observations: pl.DataFrame) -> list[dict[str, Any]]:
    """Rows without what depends on the request they came in, attributes as sets, in the order of identity."""
    found = observations.drop("journal_offset").sort("id_hi", "id_lo").to_dicts()
    for row in found:
        row["attributes"] = sorted(row["attributes"], key=str)
    return found
